//! P4 for groups: each record of a shared filter goes to one member of its group, and to another if that one goes; the place of the group outlives its members
//! and SIGKILL, and ends with its last subscriber.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};
use support::{
    Weir, binary, command, dir, free_port,
    raw::{PUBACK, Raw, Version},
};

const FILTER: &str = "$share/g/jobs/#";

fn publish(port: u16, numbers: std::ops::Range<u32>) {
    let mut p = Raw::connect_with(port, Version::V311, "publisher", true, &[]);
    for n in numbers.clone() {
        p.publish(1, false, (n % 60_000) as u16 + 1, &format!("jobs/{}", n % 7), &n.to_string());
    }
    for n in numbers {
        p.expect_ack(PUBACK, (n % 60_000) as u16 + 1);
    }
}

fn member(port: u16, version: Version, id: &str) -> Raw {
    let mut c = Raw::connect(port, version, id);
    if !c.session_present {
        assert_eq!(c.subscribe(FILTER, 1), 1);
    }
    c
}

/// Everything that comes until nothing has come for a while; acknowledged.
fn drain(c: &mut Raw, version: Version) -> Vec<u32> {
    let mut got = Vec::new();
    while let Some(p) = c.next(Duration::from_millis(500)) {
        let p = p.publish(version);
        c.ack(PUBACK, p.id);
        got.push(p.payload.parse().unwrap());
    }
    got
}

#[test]
fn each_record_goes_to_one_member_and_what_one_had_goes_to_the_others() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut a = member(weir.mqtt, Version::V311, "a");
    let mut b = member(weir.mqtt, Version::V5, "b");
    let mut plain = Raw::connect(weir.mqtt, Version::V5, "plain");
    plain.subscribe("jobs/#", 1);
    publish(weir.mqtt, 0..100);
    let (mut from_a, from_b) = (drain(&mut a, Version::V311), drain(&mut b, Version::V5));
    assert_eq!(drain(&mut plain, Version::V5), (0..100).collect::<Vec<_>>(), "a group takes nothing from others");
    assert!(from_a.len() == 50 && from_b.len() == 50, "{} and {}", from_a.len(), from_b.len());
    from_a.extend(from_b);
    from_a.sort_unstable();
    assert_eq!(from_a, (0..100).collect::<Vec<_>>());
    // One reads and does not acknowledge, and goes: the other gets all of it, lowest first.
    publish(weir.mqtt, 100..140);
    for _ in 0..20 {
        a.expect_publish();
    }
    let mine = drain(&mut b, Version::V5);
    drop(a);
    let more = drain(&mut b, Version::V5);
    assert!(more.is_sorted() && more.len() == 20, "{more:?}");
    let all: BTreeSet<u32> = mine.into_iter().chain(more).collect();
    assert!(all.into_iter().eq(100..140));
}

#[test]
fn the_place_of_a_group_outlives_its_members_and_sigkill_and_ends_with_its_last_subscriber() {
    let dir = dir();
    let mut weir = Weir::start(dir.path());
    let mut a = member(weir.mqtt, Version::V5, "a");
    publish(weir.mqtt, 0..10);
    assert_eq!(drain(&mut a, Version::V5).len(), 10);
    std::thread::sleep(Duration::from_millis(400));
    drop(a);
    // Nobody is there, and then not even the process; more than one fetch holds.
    publish(weir.mqtt, 10..3_000);
    let ports = weir.ports();
    weir.kill();
    weir = Weir::start_on(dir.path(), ports);
    let mut b = Raw::connect_with(weir.mqtt, Version::V5, "b", true, &[]);
    assert_eq!(b.subscribe(FILTER, 1), 1);
    let got = drain(&mut b, Version::V5);
    assert!(got.iter().copied().eq(10..3_000), "{} from {:?}", got.len(), got.first());
    // `a` is still a subscriber: it goes on without `b`.
    drop(b);
    publish(weir.mqtt, 3_000..3_010);
    let mut a = member(weir.mqtt, Version::V5, "a");
    assert!(a.session_present);
    assert!(drain(&mut a, Version::V5).into_iter().eq(3_000..3_010));
    // The last subscription ends with a clean start; who comes then begins then.
    drop(a);
    publish(weir.mqtt, 3_010..3_020);
    drop(Raw::connect_with(weir.mqtt, Version::V5, "a", true, &[]));
    let mut c = member(weir.mqtt, Version::V5, "c");
    publish(weir.mqtt, 3_020..3_025);
    assert!(drain(&mut c, Version::V5).into_iter().eq(3_020..3_025));
}

/// Members that come, go without a word and come back, under load: each record is acknowledged by somebody, and in order where it is the first time.
#[test]
fn p4_nothing_is_lost_while_members_come_and_go() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let port = weir.mqtt;
    let total = 5_000u32;
    let mut first = member(port, Version::V311, "m0");
    let publisher = std::thread::spawn(move || (0..10).for_each(|n| publish(port, n * total / 10..(n + 1) * total / 10)));
    let mut acknowledged: BTreeMap<u32, u32> = BTreeMap::new();
    let end = Instant::now() + Duration::from_secs(40);
    let mut round = 0;
    while acknowledged.len() < total as usize {
        assert!(Instant::now() < end, "{} of {total}", acknowledged.len());
        let mut c = member(port, Version::V311, &format!("m{}", round % 3));
        round += 1;
        for _ in 0..150 {
            for member in [&mut c, &mut first] {
                let Some(p) = member.next(Duration::from_millis(20)) else { continue };
                let p = p.publish(Version::V311);
                member.ack(PUBACK, p.id);
                *acknowledged.entry(p.payload.parse().unwrap()).or_default() += 1;
            }
        }
        // What it has and did not acknowledge goes to others.
        if round % 3 == 1 {
            first = member(port, Version::V311, "m9");
        }
        drop(c);
    }
    publisher.join().unwrap();
    assert!(acknowledged.keys().copied().eq(0..total));
}

#[test]
fn what_no_member_acknowledges_becomes_a_dead_letter_and_the_group_goes_on() {
    let (dir, ports) = (dir(), [free_port(), free_port(), free_port()]);
    let start = || {
        let mut command = command(&binary(), dir.path(), ports);
        command.args(["--max-deliveries", "3"]);
        Weir::spawn(command, ports)
    };
    let mut weir = start();
    let mut dead = Raw::connect(weir.mqtt, Version::V5, "dead");
    dead.subscribe("$dead/#", 1);
    drop(member(weir.mqtt, Version::V5, "m"));
    publish(weir.mqtt, 0..3);
    // Dies of the first message, whenever it comes.
    for round in 0..3 {
        let mut m = member(weir.mqtt, Version::V5, "m");
        assert_eq!(m.expect_publish().payload, "0", "round {round}");
        drop(m);
        if round == 1 {
            // The count is put within 250 ms, and outlives the process.
            std::thread::sleep(Duration::from_millis(600));
            weir.kill();
            weir = start();
            dead = Raw::connect(weir.mqtt, Version::V5, "dead");
        }
    }
    let mut m = member(weir.mqtt, Version::V5, "m");
    let letter = dead.expect_publish();
    dead.ack(PUBACK, letter.id);
    assert_eq!((&*letter.topic, &*letter.payload, letter.qos), ("$dead/g/jobs/0", "0", 1));
    let says = |text: &str| letter.properties.windows(text.len()).any(|w| w == text.as_bytes());
    assert!(says("max_deliveries") && says("position") && says("default/0:0"), "{:02x?}", letter.properties);
    // What was sent behind it each time goes the same way; nothing is lost.
    let mut got = drain(&mut m, Version::V5);
    while let Some(p) = dead.next(Duration::from_millis(500)) {
        let p = p.publish(Version::V5);
        dead.ack(PUBACK, p.id);
        got.push(p.payload.parse().unwrap());
    }
    got.sort_unstable();
    assert_eq!(got, [1, 2]);
    drop(weir);
}

/// A group of dead letters makes none of its own, however often its members go.
#[test]
fn a_dead_letter_that_nobody_acknowledges_stays_what_it_is() {
    let (dir, ports) = (dir(), [free_port(), free_port(), free_port()]);
    let mut command = command(&binary(), dir.path(), ports);
    command.args(["--max-deliveries", "2"]);
    let weir = Weir::spawn(command, ports);
    let mut dead = Raw::connect(weir.mqtt, Version::V5, "dead");
    dead.subscribe("$dead/#", 1);
    let undertaker = || {
        let mut c = Raw::connect(weir.mqtt, Version::V5, "undertaker");
        if !c.session_present {
            assert_eq!(c.subscribe("$share/h/$dead/#", 1), 1);
        }
        c
    };
    drop((undertaker(), member(weir.mqtt, Version::V5, "m")));
    publish(weir.mqtt, 0..1);
    for _ in 0..2 {
        assert_eq!(member(weir.mqtt, Version::V5, "m").expect_publish().payload, "0");
    }
    let _m = member(weir.mqtt, Version::V5, "m");
    let letter = dead.expect_publish();
    dead.ack(PUBACK, letter.id);
    for _ in 0..5 {
        assert_eq!(undertaker().expect_publish().topic, "$dead/g/jobs/0");
    }
    dead.expect_silence();
}

/// A member that is unsubscribed, or a gateway that is killed, before most of what the member was given has left: that was not sent, and dies of nothing.
#[test]
fn what_was_never_sent_does_not_count_as_a_delivery() {
    const MESSAGES: u32 = 120;
    for killed in [false, true] {
        let dir = dir();
        let ports = [free_port(), free_port(), free_port()];
        let start = || {
            let mut command = command(&binary(), dir.path(), ports);
            command.args(["--max-deliveries", "3"]);
            Weir::spawn(command, ports)
        };
        let mut weir = start();
        let mut keeps = Raw::connect(weir.mqtt, Version::V5, "keeps the group");
        assert_eq!(keeps.subscribe("$share/g/jobs/#", 1), 1);
        drop(keeps);
        let mut publisher = Raw::connect_with(weir.mqtt, Version::V311, "publisher", true, &[]);
        let body = "x".repeat(300_000);
        for n in 0..MESSAGES {
            publisher.publish(1, false, n as u16 + 1, "jobs/1", &format!("{n:04}{body}"));
            publisher.expect_ack(PUBACK, n as u16 + 1);
        }
        // It reads nothing: a few messages fit into the socket, the others wait for it in the gateway.
        for n in 0..4 {
            let mut deaf = Raw::connect_with(weir.mqtt, Version::V5, &format!("deaf {n}"), true, &[0x11, 0, 0, 0, 60]);
            deaf.send_subscribe("$share/g/jobs/#", 1);
            std::thread::sleep(Duration::from_millis(700));
            if killed {
                weir.kill();
                weir = start();
            } else {
                deaf.send_unsubscribe("$share/g/jobs/#");
                std::thread::sleep(Duration::from_millis(200));
            }
        }
        let mut dead = Raw::connect(weir.mqtt, Version::V5, "dead");
        let mut body = vec![0, 9, 16, 0x26, 0, 4];
        body.extend(b"from\0\x08earliest");
        body[2] = body.len() as u8 - 3;
        body.extend(b"\0\x07$dead/#\0");
        dead.send(0x82, &body);
        let mut whole = Raw::connect(weir.mqtt, Version::V5, "keeps the group");
        let mut got = BTreeSet::new();
        while let Some(p) = whole.next(Duration::from_secs(2)) {
            let p = p.publish(Version::V5);
            whole.ack(PUBACK, p.id);
            got.insert(p.payload[..4].parse::<u32>().unwrap());
        }
        let mut died = BTreeSet::new();
        while let Some(p) = dead.next(Duration::from_millis(500)) {
            if p.head & 0xF0 == 0x30 {
                died.insert(p.publish(Version::V5).payload[..4].parse::<u32>().unwrap());
            }
        }
        let what = format!("killed {killed}: {} came, {} died", got.len(), died.len());
        assert_eq!(got.union(&died).count(), MESSAGES as usize, "{what}");
        assert!(died.len() < MESSAGES as usize / 2, "{what}; only what fits into a socket was ever sent");
    }
}

/// An acknowledgement counts, also right behind an UNSUBSCRIBE.
#[test]
fn what_was_sent_before_an_unsubscribe_may_be_acknowledged_behind_it() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut a = member(weir.mqtt, Version::V5, "a");
    let mut b = member(weir.mqtt, Version::V5, "b");
    publish(weir.mqtt, 0..20);
    let ids: Vec<u16> = (0..10).map(|_| a.expect_publish().id).collect();
    a.in_one_write(|a| {
        a.send_unsubscribe(FILTER);
        ids[..7].iter().for_each(|id| a.ack(PUBACK, *id));
    });
    assert_eq!(a.read().head, 0xB0);
    assert_eq!(drain(&mut b, Version::V5).len(), 10, "its own");
    // What it did not acknowledge is the other's when it goes.
    drop(a);
    assert_eq!(drain(&mut b, Version::V5).len(), 3);
}
