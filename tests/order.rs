//! Packets of one connection take effect in the order in which they were sent, whether or not the client waits for answers in between.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use support::{
    Weir, dir,
    raw::{PUBACK, PUBREC, Packet, Publish, Raw, Version},
};

const ROUNDS: u32 = 6;
const RETAIN: u8 = 1;

/// In one write, or in one for each packet.
#[derive(Clone, Copy, Debug)]
enum Writes {
    One,
    Each,
}

/// Runs `round` for both versions, sessions that end with their connection and that do not, and both kinds of writing.
fn everywhere(round: impl Fn(&mut Raw, &str, &dyn Fn(&mut Raw, &dyn Fn(&mut Raw)))) {
    let dir = dir();
    let weir = Weir::start(dir.path());
    for version in [Version::V311, Version::V5] {
        for clean in [true, false] {
            for writes in [Writes::One, Writes::Each] {
                for n in 0..ROUNDS {
                    let what = format!("{version:?}/{clean}/{writes:?}/{n}");
                    let mut c = Raw::connect_with(weir.mqtt, version, &what, clean, if clean { &[] } else { &[0x11, 0, 0, 0, 9] });
                    let topic = format!("order/{what}");
                    round(&mut c, &topic, &|c, send| match writes {
                        Writes::One => c.in_one_write(send),
                        Writes::Each => send(c),
                    });
                }
            }
        }
    }
}

/// Has a topic of its own, and comes back to nobody.
const LAST: u16 = 60_000;

/// Everything that comes until these acknowledgements and messages have come. Then what was sent
/// before is durable, for a message behind it is, and what is on the way has had its time.
fn all(c: &mut Raw, acks: usize, messages: usize) -> Vec<Packet> {
    let mut packets = Vec::new();
    let is_ack = |p: &&Packet| p.head & 0xF0 != 0x30;
    let count = |packets: &[Packet]| packets.iter().filter(is_ack).count();
    while count(&packets) < acks || packets.len() - count(&packets) < messages {
        packets.push(c.read());
    }
    c.publish(1, false, LAST, "last", "last");
    let last = |p: &Packet| p.head == PUBACK && p.id() == LAST;
    while !packets.iter().any(last) {
        packets.push(c.read());
    }
    while let Some(packet) = c.next(Duration::from_millis(15)) {
        packets.push(packet);
    }
    packets.retain(|p| !last(p));
    packets
}

fn publishes(packets: &[Packet], version: Version) -> Vec<Publish> {
    packets.iter().filter(|p| p.head & 0xF0 == 0x30).map(|p| p.publish(version)).collect()
}

fn version(topic: &str) -> Version {
    if topic.contains("V311") { Version::V311 } else { Version::V5 }
}

#[test]
fn a_message_behind_a_subscribe_is_delivered() {
    for qos in 0..3 {
        everywhere(|c, topic, send| {
            send(c, &|c| {
                c.send_subscribe(topic, qos);
                c.publish(qos, false, 5, topic, "mine");
            });
            let packets = all(c, if qos == 0 { 1 } else { 2 }, 1);
            let got = publishes(&packets, version(topic));
            assert_eq!(got.iter().map(|p| (&*p.payload, p.retain, p.qos)).collect::<Vec<_>>(), [("mine", false, qos)], "{topic}");
            if qos == 1 {
                let puback = packets.iter().find(|p| p.head == PUBACK).expect("a PUBACK");
                assert_eq!(puback.body.get(2).copied().unwrap_or_default(), 0, "{topic}: somebody subscribes");
            }
            assert!(qos < 2 || packets.iter().any(|p| p.head == PUBREC));
        });
    }
}

#[test]
fn a_message_before_a_subscribe_is_not_delivered() {
    for filter in ["", "$share/g/"] {
        everywhere(|c, topic, send| {
            send(c, &|c| {
                c.publish(0, false, 0, topic, "before");
                c.send_subscribe(&format!("{filter}{topic}"), 0);
                c.publish(0, false, 0, topic, "after");
            });
            let got = publishes(&all(c, 1, 1), version(topic));
            assert_eq!(got.iter().map(|p| &*p.payload).collect::<Vec<_>>(), ["after"], "{filter}{topic}");
        });
    }
}

#[test]
fn a_retained_message_before_a_subscribe_comes_as_retained() {
    everywhere(|c, topic, send| {
        send(c, &|c| {
            c.publish_with(RETAIN, 0, topic, &[], "kept");
            c.send_subscribe(topic, 1);
        });
        let got = publishes(&all(c, 1, 1), version(topic));
        assert_eq!(got.iter().map(|p| (&*p.payload, p.retain)).collect::<Vec<_>>(), [("kept", true)], "{topic}");
    });
}

#[test]
fn a_retained_message_before_the_same_subscribe_again_is_what_is_retained() {
    everywhere(|c, topic, send| {
        c.publish_with(1 << 1 | RETAIN, 3, topic, &[], "old");
        c.read();
        c.subscribe(topic, 1);
        assert_eq!(c.expect_publish().payload, "old");
        send(c, &|c| {
            c.publish_with(RETAIN, 0, topic, &[], "new");
            c.send_subscribe(topic, 1);
        });
        let got = publishes(&all(c, 1, 2), version(topic));
        let mut got: Vec<_> = got.iter().map(|p| (&*p.payload, p.retain)).collect();
        got.sort_unstable();
        assert_eq!(got, [("new", false), ("new", true)], "{topic}");
    });
}

#[test]
fn a_message_between_subscribe_and_unsubscribe_is_delivered_and_none_behind() {
    for group in ["", "$share/g/", "$queue/"] {
        everywhere(|c, topic, send| {
            let filter = format!("{group}{topic}/+");
            send(c, &|c| {
                c.send_subscribe(&filter, 0);
                c.publish(0, false, 0, &format!("{topic}/a"), "between");
                c.publish(0, false, 0, &format!("{topic}/b/c"), "of another topic");
                c.send_unsubscribe(&filter);
                c.publish(0, false, 0, &format!("{topic}/a"), "behind");
            });
            let packets = all(c, 2, 1);
            let heads: Vec<u8> = packets.iter().map(|p| p.head & 0xF0).collect();
            assert_eq!(heads, [0x90, 0x30, 0xB0], "{filter}: SUBACK, the message, UNSUBACK");
            assert_eq!(publishes(&packets, version(topic))[0].payload, "between", "{filter}");
        });
    }
}

/// A group ends with its last subscriber: the next one begins where it is asked for.
#[test]
fn a_message_between_two_lives_of_a_group_is_not_delivered() {
    for filter in ["", "$share/g/", "$queue/"] {
        everywhere(|c, topic, send| {
            let filter = format!("{filter}{topic}");
            send(c, &|c| {
                c.send_subscribe(&filter, 1);
                c.send_unsubscribe(&filter);
                c.publish(1, false, 5, topic, "between");
                c.send_subscribe(&filter, 1);
                c.publish(1, false, 6, topic, "behind");
            });
            let got = publishes(&all(c, 5, 1), version(topic));
            assert_eq!(got.iter().map(|p| &*p.payload).collect::<Vec<_>>(), ["behind"], "{filter}");
        });
    }
}

/// Nothing of what was published matches a filter of the connection, or it has no filter: nothing is on its way, and nothing is waited for.
#[test]
fn an_unsubscribe_behind_a_message_that_nobody_here_reads_is_answered() {
    for (subscribed, unsubscribed) in
        [("$SYS/broker/uptime", "$SYS/broker/uptime"), ("$SYS/broker/uptime", "c"), ("a", "c"), ("$share/g/a", "$share/g/a")]
    {
        everywhere(|c, topic, send| {
            send(c, &|c| {
                c.send_subscribe(subscribed, 0);
                if unsubscribed == "c" {
                    c.send_unsubscribe(subscribed);
                }
                c.publish(0, false, 0, "b", "x");
                c.send_unsubscribe(unsubscribed);
                c.publish(1, false, 7, "b", "x");
                c.send(0xC0, &[]);
            });
            let wanted: &[u8] = if unsubscribed == "c" { &[PUBACK, 0x90, 0xB0, 0xB0, 0xD0] } else { &[PUBACK, 0x90, 0xB0, 0xD0] };
            let mut heads: Vec<u8> = all(c, wanted.len(), 0).iter().map(|p| p.head & 0xF0).filter(|head| *head != 0x30).collect();
            heads.sort_unstable();
            assert_eq!(heads, wanted, "{subscribed} {topic}");
        });
    }
}

/// A window that is full opens by acknowledgements that stand behind the UNSUBSCRIBE.
#[test]
fn an_unsubscribe_does_not_wait_for_a_client_without_room() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    // Receive Maximum 1.
    let mut c = Raw::connect_with(weir.mqtt, Version::V5, "c", true, &[0x21, 0, 1]);
    c.in_one_write(|c| {
        c.send_subscribe("a", 1);
        for id in 1..=3 {
            c.publish(1, false, id, "a", "mine");
        }
        c.send_unsubscribe("a");
        c.send(0xC0, &[]);
    });
    let packets = all(&mut c, 6, 1);
    let count = |head: u8| packets.iter().filter(|p| p.head & 0xF0 == head).count();
    assert_eq!((count(0x90), count(PUBACK), count(0xB0), count(0xD0)), (1, 3, 1, 1), "{packets:02x?}");
    assert_eq!(count(0x30), 1, "as many as it takes");
}

/// The page of the subscription that has ended was taken for that of the next one, which begins
/// behind the newer value.
#[test]
fn a_subscription_that_is_renewed_gets_the_newest_retained_value() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut p = Raw::connect_with(weir.mqtt, Version::V5, "p", true, &[]);
    let mut retain = |topic: &str, payload: &str| {
        p.publish_with(0x33, 1, topic, &[], payload);
        p.expect_ack(PUBACK, 1);
    };
    retain("a", "old");
    retain("z", "old");
    // Receive Maximum 1, and the message that takes it is not acknowledged.
    let mut c = Raw::connect_with(weir.mqtt, Version::V5, "c", true, &[0x21, 0, 1]);
    c.subscribe("a", 1);
    let first = c.expect_publish();
    c.subscribe("z", 1);
    // The page has been read, and waits.
    std::thread::sleep(Duration::from_millis(200));
    retain("z", "new");
    c.in_one_write(|c| {
        c.send_unsubscribe("z");
        c.send_subscribe("z", 1);
    });
    assert_eq!((c.read().head, c.read().head), (0xB0, 0x90));
    c.ack(PUBACK, first.id);
    assert_eq!(c.expect_publish().payload, "new");
}

/// An acknowledgement opens the window for what stands behind it, in one write with it or not.
#[test]
fn an_unsubscribe_behind_an_acknowledgement_waits_for_what_that_has_made_room_for() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    for writes in [Writes::One, Writes::Each] {
        let mut c = Raw::connect_with(weir.mqtt, Version::V5, "c", true, &[0x21, 0, 1]);
        c.subscribe("a", 1);
        for (id, payload) in [(1, "first"), (2, "second")] {
            c.publish(1, false, id, "a", payload);
        }
        let packets = all(&mut c, 2, 1);
        let got = publishes(&packets, Version::V5);
        assert_eq!(got.iter().map(|p| &*p.payload).collect::<Vec<_>>(), ["first"]);
        let id = got[0].id;
        let send = |c: &mut Raw| {
            c.ack(PUBACK, id);
            c.send_unsubscribe("a");
        };
        match writes {
            Writes::One => c.in_one_write(send),
            Writes::Each => send(&mut c),
        }
        let heads: Vec<u8> = all(&mut c, 1, 1).iter().map(|p| p.head & 0xF0).collect();
        assert_eq!(heads, [0x30, 0xB0], "{writes:?}: the second, then UNSUBACK");
    }
}

/// A member that has unsubscribed may still acknowledge; the next one to join begins a new group all the same.
#[test]
fn a_message_between_two_lives_of_a_group_is_not_delivered_with_something_unacknowledged_either() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    for filter in ["$share/g/x", "$queue/x"] {
        let mut c = Raw::connect(weir.mqtt, Version::V5, filter);
        c.subscribe(filter, 1);
        c.publish(1, false, 1, "x", "first");
        let first = publishes(&all(&mut c, 1, 1), Version::V5).remove(0);
        c.send_unsubscribe(filter);
        all(&mut c, 1, 0);
        c.publish(1, false, 2, "x", "between");
        all(&mut c, 1, 0);
        c.subscribe(filter, 1);
        // Of the life before.
        c.ack(PUBACK, first.id);
        c.publish(1, false, 3, "x", "behind");
        let got = publishes(&all(&mut c, 1, 1), Version::V5);
        assert_eq!(got.iter().map(|p| &*p.payload).collect::<Vec<_>>(), ["behind"], "{filter}");
        c.ack(PUBACK, got[0].id);
        c.publish(1, false, 4, "x", "last");
        let got = publishes(&all(&mut c, 1, 1), Version::V5);
        assert_eq!(got.iter().map(|p| &*p.payload).collect::<Vec<_>>(), ["last"], "{filter}");
        c.disconnect();
    }
}

/// A replay from far behind goes on for as long as it takes, and nothing waits for its end.
#[test]
fn an_unsubscribe_of_another_filter_does_not_wait_for_a_long_replay() {
    const MESSAGES: usize = 1_500_000;
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut p = Raw::connect(weir.mqtt, Version::V311, "publisher");
    // QoS 0, "t", nothing in it.
    let many = [0x30, 3, 0, 1, b't'].repeat(MESSAGES / 100);
    (0..100).for_each(|_| p.write(&many));
    p.publish(1, false, 1, "end", "");
    p.expect_ack(PUBACK, 1);
    let mut c = Raw::connect(weir.mqtt, Version::V311, "reader");
    c.subscribe("other", 0);
    c.send_subscribe("$replay/earliest/t", 0);
    assert_eq!(c.read().head, 0x90);
    assert_eq!(c.read().head, 0x30);
    c.send_unsubscribe("other");
    let sent = (0..MESSAGES).find(|_| c.read().head == 0xB0).expect("an UNSUBACK");
    assert!(sent < MESSAGES / 4, "{sent} of {MESSAGES} messages came before it");
}

#[test]
fn answers_come_whatever_becomes_of_their_subject() {
    for filter in ["$share/g/a", "$queue/a", "a", "$replay/earliest/a", "$replay/last:5/a"] {
        let plain = filter.strip_prefix("$replay/earliest/").or(filter.strip_prefix("$replay/last:5/")).unwrap_or(filter);
        everywhere(|c, topic, send| {
            send(c, &|c| {
                c.send_subscribe(filter, 1);
                c.send_unsubscribe(plain);
                c.publish(1, false, 7, "b", "x");
                c.send(0xC0, &[]);
            });
            let mut heads: Vec<u8> = all(c, 4, 0).iter().map(|p| p.head & 0xF0).collect();
            heads.sort_unstable();
            assert_eq!(heads, [PUBACK, 0x90, 0xB0, 0xD0], "{filter} {topic}");
        });
    }
}

/// A step of a script: of one connection, with names of its own.
#[derive(Clone, Copy, Debug)]
enum Step {
    Subscribe(usize),
    Unsubscribe(usize),
    /// Of QoS 0 or 1, to one of the topics, retained or not.
    Publish(u8, usize, bool),
}

const FILTERS: [&str; 5] = ["T/a", "T/+", "$share/g/T/a", "$queue/T/#", "$SYS/nothing"];
const TOPICS: [&str; 2] = ["T/a", "T/b"];

fn matches(filter: usize, topic: usize) -> bool {
    [[true, false], [true, true], [true, false], [true, true], [false, false]][filter][topic]
}

fn is_shared(filter: usize) -> bool {
    FILTERS[filter].starts_with("$share") || FILTERS[filter].starts_with("$queue")
}

/// What must come and what may: payload, RETAIN, how often at least and at most.
fn expected(script: &[Step]) -> BTreeMap<(usize, bool), (usize, usize)> {
    let mut all = BTreeMap::<_, (usize, usize)>::new();
    let mut filters = BTreeSet::new();
    let mut kept = [None; TOPICS.len()];
    for (nth, step) in script.iter().enumerate() {
        match *step {
            Step::Subscribe(filter) => {
                filters.insert(filter);
                for (topic, message) in kept.iter().enumerate().filter(|(topic, _)| !is_shared(filter) && matches(filter, *topic)) {
                    let Some(message) = message else { continue };
                    // A page that is being read when its filter goes, or its message is replaced, ends there.
                    let ends = script[nth..].iter().any(|s| match s {
                        Step::Unsubscribe(gone) => *gone == filter,
                        Step::Publish(_, to, retain) => *to == topic && *retain,
                        Step::Subscribe(_) => false,
                    });
                    let count = all.entry((*message, true)).or_default();
                    *count = (count.0 + usize::from(!ends), count.1 + 1);
                }
            }
            Step::Unsubscribe(filter) => drop(filters.remove(&filter)),
            Step::Publish(_, topic, retain) => {
                let plain = filters.iter().any(|f| !is_shared(*f) && matches(*f, topic));
                let copies = usize::from(plain) + filters.iter().filter(|f| is_shared(**f) && matches(**f, topic)).count();
                all.insert((nth, false), (copies, copies));
                if retain {
                    kept[topic] = Some(nth);
                }
            }
        }
    }
    all
}

fn play(c: &mut Raw, prefix: &str, script: &[Step], split: &mut impl FnMut() -> bool) -> Vec<Packet> {
    let name = |text: &str| text.replace('T', prefix);
    let mut nth = 0;
    while nth < script.len() {
        c.in_one_write(|c| {
            loop {
                match script[nth] {
                    Step::Subscribe(filter) => drop(c.send_subscribe(&name(FILTERS[filter]), 0)),
                    Step::Unsubscribe(filter) => c.send_unsubscribe(&name(FILTERS[filter])),
                    Step::Publish(qos, topic, retain) => {
                        c.publish_with(qos << 1 | u8::from(retain), nth as u16 + 1, &name(TOPICS[topic]), &[], &nth.to_string());
                    }
                }
                nth += 1;
                if nth == script.len() || split() {
                    break;
                }
            }
        });
    }
    let answers = script.iter().filter(|s| !matches!(s, Step::Publish(0, ..))).count();
    let messages = expected(script).values().map(|(least, _)| least).sum();
    all(c, answers, messages)
}

/// Random scripts of one connection, in one write or in several, against a model of what each subscription has seen.
#[test]
fn random_packets_of_one_connection_take_effect_in_order() {
    let seed = std::env::var("WEIR_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| u64::from(std::process::id()));
    println!("WEIR_SEED={seed}");
    let mut state = seed ^ 0x9E37_79B9_7F4A_7C15;
    let mut below = move |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let dir = dir();
    let weir = Weir::start(dir.path());
    for round in 0..400 {
        let version = if round % 2 == 0 { Version::V311 } else { Version::V5 };
        let script: Vec<_> = (0..2 + below(9))
            .map(|_| match below(10) {
                0..=2 => Step::Subscribe(below(FILTERS.len() as u64) as usize),
                3..=4 => Step::Unsubscribe(below(FILTERS.len() as u64) as usize),
                _ => Step::Publish(below(2) as u8, below(2) as usize, below(4) == 0),
            })
            .collect();
        println!("round {round}: {script:?}");
        let together = below(2) == 0;
        let mut c = Raw::connect_with(weir.mqtt, version, &format!("r{round}"), below(2) == 0, &[]);
        let packets = play(&mut c, &format!("order/{seed}/{round}"), &script, &mut || !together && below(3) == 0);
        let mut got = BTreeMap::<_, usize>::new();
        for p in publishes(&packets, version) {
            *got.entry((p.payload.parse::<usize>().unwrap(), p.retain)).or_default() += 1;
        }
        let what = format!("WEIR_SEED={seed}, round {round}, {version:?}, {script:?}");
        let expected = expected(&script);
        for (message, (least, most)) in &expected {
            let n = got.remove(message).unwrap_or_default();
            assert!((*least..=*most).contains(&n), "{what}: {message:?} came {n} times, {least} to {most} are right");
        }
        assert!(got.is_empty(), "{what}: {got:?}");
    }
}

#[test]
fn a_burst_of_qos_1_beyond_the_receive_maximum_is_acknowledged_in_order() {
    const BURST: u16 = 22_000;
    let dir = dir();
    let weir = Weir::start(dir.path());
    for version in [Version::V311, Version::V5] {
        let mut c = Raw::connect(weir.mqtt, version, "burst");
        // A PINGREQ in between is answered too.
        c.in_one_write(|c| {
            for id in 1..=BURST {
                c.publish(1, false, id, "burst", "x");
                if id == BURST / 2 {
                    c.send(0xC0, &[]);
                }
            }
        });
        let (mut acks, mut pings) = (Vec::new(), 0);
        while acks.len() < usize::from(BURST) || pings == 0 {
            let p = c.read();
            assert!(matches!(p.head, PUBACK | 0xD0), "{p:02x?}");
            if p.head == PUBACK { acks.push(p.id()) } else { pings += 1 }
        }
        assert!(acks.iter().copied().eq(1..=BURST), "in order");
    }
}

/// A client whose socket gathers small packets (RFC 896): its acknowledgement of a delivery is not
/// answered, and its next PUBLISH is held until TCP acknowledges that. Base: 45 ms a round.
#[test]
fn a_client_that_acknowledges_and_then_publishes_waits_for_no_timer_of_tcp() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut c = Raw::connect(weir.mqtt, Version::V311, "both");
    c.gather_small_packets();
    c.subscribe("own/x", 1);
    let begun = std::time::Instant::now();
    for n in 1..=50 {
        c.publish(1, false, n, "own/x", "x");
        c.expect_ack(PUBACK, n);
        let m = c.expect_publish();
        c.ack(PUBACK, m.id);
    }
    let each = begun.elapsed() / 50;
    assert!(each < Duration::from_millis(20), "{each:?} a round");
}
