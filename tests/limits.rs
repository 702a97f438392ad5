//! What a client may ask for: the longest names that can be configured are kept over SIGKILL, and longer ones cost nobody else anything.

mod support;

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};
use support::{
    Weir, binary, command, dir, free_port, http_get,
    raw::{PUBACK, Raw, Version},
};

const LONGEST: usize = 65_000;
const RETAIN: u8 = 1;

fn start(data: &std::path::Path, ports: [u16; 3], limits: &[(&str, &str)]) -> Weir {
    let mut command = command(&binary(), data, ports);
    command.envs(limits.iter().map(|(key, value)| (format!("WEIR__LIMITS__{key}"), *value)));
    Weir::spawn(command, ports)
}

/// `prefix`, and as much as is missing to the longest.
fn longest(prefix: &str) -> String {
    format!("{prefix}{}", "n".repeat(LONGEST - prefix.len()))
}

/// Each kind of name is a key of the log, some with a prefix in front.
#[test]
fn the_longest_names_are_kept_over_sigkill() {
    let dir = dir();
    let ports = [free_port(), free_port(), free_port()];
    let limits = [("TOPIC_BYTES", "65000"), ("CLIENT_ID_BYTES", "65000"), ("SESSION_BYTES", "1MiB"), ("WILL_BYTES", "128KiB")];
    let weir = start(dir.path(), ports, &limits);
    let (client_id, topic, will) = (longest("c"), longest("t"), longest("w"));
    let filters = [longest("f"), longest("$queue/"), longest("$share/g/")];
    let mut c = Raw::connect_with(weir.mqtt, Version::V5, &client_id, false, &[0x11, 0, 0, 0, 200]);
    for filter in &filters {
        assert_eq!(c.subscribe(filter, 1), 1);
    }
    c.publish_with(1 << 1 | RETAIN, 1, &topic, &[], "kept");
    assert_eq!(c.expect_ack(PUBACK, 1), 0x10, "nobody subscribes");
    let lost = Raw::with_will(weir.mqtt, "will", true, 60, &will, 0);
    let mut reader = Raw::connect_with(weir.mqtt, Version::V5, "reader", true, &[]);
    reader.subscribe(&will, 1);
    drop(lost);
    assert_eq!(reader.expect_publish().payload, "gone");
    weir.kill();
    // What is retained is put at the start, when the log is folded.
    for _ in 0..2 {
        let weir = start(dir.path(), ports, &limits);
        let mut c = Raw::connect_with(weir.mqtt, Version::V5, &client_id, false, &[0x11, 0, 0, 0, 200]);
        assert!(c.session_present);
        c.publish(1, false, 1, &filters[0], "mine");
        // In the second round with the one of the first in front, which was never acknowledged.
        let packets: Vec<_> = std::iter::from_fn(|| c.next(Duration::from_millis(500))).collect();
        assert!(packets.iter().any(|p| p.head == PUBACK) && packets.iter().any(|p| p.head & 0xF0 == 0x30), "{}", packets.len());
        c.subscribe(&topic, 1);
        assert!(c.expect_publish().retain);
        weir.kill();
    }
}

/// An alias stands for the topic that it was sent with last, whatever became of that message.
#[test]
fn an_alias_that_comes_with_a_refused_message_is_set() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut reader = Raw::connect(weir.mqtt, Version::V5, "reader");
    reader.subscribe("wages/#", 0);
    let mut c = Raw::connect(weir.mqtt, Version::V5, "c");
    let alias = [0x23, 0, 1];
    let heavy = [&alias[..], &[0x26, 0, 1, b'k', 0, 0].repeat(65)].concat();
    for (topic, properties, reason) in
        [("wages/a", &alias[..], 0), ("wages/b", &heavy, 0x97), ("", &alias, 0), (&*"w".repeat(4_097), &alias, 0x90), ("", &alias, 0x90)]
    {
        c.publish_with(1 << 1, 7, topic, properties, "x");
        assert_eq!(c.expect_ack(PUBACK, 7), reason, "{topic}");
    }
    assert_eq!([reader.expect_publish().topic, reader.expect_publish().topic], ["wages/a", "wages/b"]);
    reader.expect_silence();
}

#[test]
fn beyond_a_limit_there_is_an_answer_a_count_and_no_harm() {
    let dir = dir();
    let weir = start(dir.path(), [free_port(), free_port(), free_port()], &[]);
    let mut c = Raw::connect_with(weir.mqtt, Version::V5, "c", true, &[]);
    for (topic, reason) in [("t".repeat(4_096), 0x10), ("t".repeat(4_097), 0x90), (longest("t"), 0x90), ("/".repeat(128), 0x90)] {
        for flags in [1 << 1, 1 << 1 | RETAIN] {
            c.publish_with(flags, 1, &topic, &[], "x");
            assert_eq!(c.expect_ack(PUBACK, 1), reason, "{} bytes", topic.len());
        }
    }
    for filter in ["f".repeat(4_097), longest("$queue/"), longest("$share/g/"), "+/".repeat(128)] {
        assert_eq!(c.subscribe(&filter, 1), 0x8F, "{} bytes", filter.len());
    }
    for n in 0..=100 {
        assert_eq!(c.subscribe(&format!("$share/g/{n}"), 1), if n < 100 { 1 } else { 0x97 }, "group {n}");
    }
    for topic in ["$SYS/a", "$dead/g/a", "$replay/a", "$share/g/a", "$queue/a", "$dead"] {
        c.publish(1, false, 1, topic, "x");
        assert_eq!(c.expect_ack(PUBACK, 1), 0x87, "{topic}");
    }
    // What a bridge says of itself, and no more of it than that.
    for (payload, reason) in [("1", 0x10), ("more", 0x87)] {
        c.publish_with(1 << 1 | RETAIN, 1, "$SYS/broker/connection/b/state", &[], payload);
        assert_eq!(c.expect_ack(PUBACK, 1), reason, "{payload}");
    }
    // Filters that are refused weigh nothing for the one behind them.
    let filter = |name: String| [&(name.len() as u16).to_be_bytes()[..], name.as_bytes(), &[1]].concat();
    let refused: Vec<u8> = (0..80).flat_map(|n| filter(format!("$share/g/{n:04000}"))).collect();
    c.send(0x82, &[&[0, 9, 0][..], &refused, &filter("plain".into())].concat());
    let suback = c.read().body;
    assert_eq!(suback.split_last_chunk::<81>().map(|(_, reasons)| (reasons[0], reasons[79], reasons[80])), Some((0x97, 0x97, 1)));
    assert!(Raw::try_connect(weir.mqtt, &"c".repeat(1_024), true).is_some());
    let refused = std::panic::catch_unwind(|| Raw::try_connect(weir.mqtt, &"c".repeat(1_025), true).is_some());
    assert!(refused.is_err(), "CONNACK 0x85");
    let metrics = http_get(weir.admin, "/metrics");
    for (reason, n) in [("topic_bytes", 7), ("topic_levels", 3), ("shared_subscriptions", 81), ("client_id_bytes", 1), ("topic", 7)] {
        let line = format!("weir_refused_total{{reason=\"{reason}\"}} {n}");
        assert!(metrics.contains(&line), "{line}: {:?}", metrics.lines().filter(|l| l.starts_with("weir_refused")).collect::<Vec<_>>());
    }
    assert!(http_get(weir.admin, "/readyz").contains("200 OK"));
}

/// What has expired is held no longer, neither in memory nor over a restart.
#[test]
fn retained_messages_that_have_expired_are_collected() {
    let dir = dir();
    let ports = [free_port(), free_port(), free_port()];
    let retained = |weir: &Weir| {
        let metrics = http_get(weir.admin, "/metrics");
        let of = metrics.lines().find_map(|l| l.strip_prefix("weir_retained_messages ")?.parse::<u32>().ok());
        of.unwrap()
    };
    let weir = start(dir.path(), ports, &[]);
    let mut c = Raw::connect_with(weir.mqtt, Version::V5, "c", true, &[]);
    let soon = [2, 0, 0, 0, 2];
    for n in 1..=200 {
        c.publish_with(1 << 1 | RETAIN, n, &format!("fleeting/{n}"), &soon, "x");
        c.expect_ack(PUBACK, n);
    }
    c.publish_with(1 << 1 | RETAIN, 1, "lasting", &[], "x");
    c.expect_ack(PUBACK, 1);
    assert!(retained(&weir) > 200);
    // Once with what the log says of them, once with what a checkpoint has put in the store.
    weir.kill();
    assert_eq!(start(dir.path(), ports, &[]).terminate(), Some(0));
    let weir = start(dir.path(), ports, &[]);
    support::eventually("they are collected", Duration::from_secs(10), || retained(&weir) < 100);
    let mut c = Raw::connect_with(weir.mqtt, Version::V5, "c", true, &[]);
    c.subscribe("lasting", 0);
    assert!(c.expect_publish().retain);
}

/// CONNECT with a session that stays and a will of so many bytes; gives the socket and the reason of the CONNACK.
fn login(port: u16, level: u8, client_id: &str, will_bytes: usize) -> (TcpStream, u8) {
    let text = |s: &str| [&(s.len() as u16).to_be_bytes()[..], s.as_bytes()].concat();
    let mut body = [&text("MQTT")[..], &[level, 0x04, 0, 0]].concat();
    if level == 5 {
        body.extend([5, 0x11, 0, 0, 2, 0]);
    }
    body.extend(text(client_id));
    if level == 5 {
        // It waits as long as the session.
        body.extend([5, 0x18, 0, 0, 2, 0]);
    }
    body.extend([text("w"), text(&"w".repeat(will_bytes))].concat());
    let mut length = body.len();
    let mut packet = vec![0x10];
    while length >= 0x80 {
        packet.push(length as u8 | 0x80);
        length >>= 7;
    }
    packet.push(length as u8);
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.write_all(&[packet, body].concat()).unwrap();
    let connack = short_packet(&mut socket);
    (socket, connack[3])
}

/// A packet of less than 128 bytes.
fn short_packet(socket: &mut TcpStream) -> Vec<u8> {
    let mut packet = vec![0; 2];
    socket.read_exact(&mut packet).unwrap();
    packet.resize(2 + usize::from(packet[1]), 0);
    socket.read_exact(&mut packet[2..]).unwrap();
    packet
}

/// What is there is kept, found and deleted; what is new is refused long before the disk is full.
#[test]
fn the_state_store_is_filled_up_to_its_quota() {
    let dir = dir();
    let ports = [free_port(), free_port(), free_port()];
    let limits = [("STORE_BYTES", "4MiB")];
    let weir = start(dir.path(), ports, &limits);
    let name = |n: u32| format!("full {n}");
    let most = (0..200).find(|n| {
        let (socket, reason) = login(weir.mqtt, 5, &name(*n), 60_000);
        assert!([0, 0x97].contains(&reason), "{reason:#x}");
        drop(socket);
        reason == 0x97
    });
    let most = most.expect("a refusal");
    assert!((60..80).contains(&most), "{most} sessions of 60 kB in 4 MiB");
    assert_eq!(login(weir.mqtt, 4, "new", 10).1, 3);
    let mut known = login(weir.mqtt, 5, &name(0), 60_000);
    assert_eq!(known.1, 0, "who has a session keeps it");
    known.0.write_all(b"\x82\x07\0\x09\0\0\x01f\0").unwrap();
    let suback = short_packet(&mut known.0);
    assert_eq!((suback[0], suback.last()), (0x90, Some(&0x97)));
    // Whoever keeps nothing comes as always, and is acknowledged.
    let mut c = Raw::connect_with(weir.mqtt, Version::V5, "passing", true, &[]);
    c.publish(1, false, 1, "t", "x");
    c.expect_ack(PUBACK, 1);
    weir.kill();
    let weir = start(dir.path(), ports, &limits);
    assert_eq!(login(weir.mqtt, 5, "new", 10).1, 0x97, "after a restart too");
    for n in 0..20 {
        // A clean start ends the session, and its will is published.
        Raw::connect_with(weir.mqtt, Version::V5, &name(n), true, &[]).disconnect();
    }
    support::eventually("there is room again", Duration::from_secs(10), || login(weir.mqtt, 5, "new", 10).1 == 0);
    assert!(http_get(weir.admin, "/metrics").contains("weir_refused_total{reason=\"store_bytes\"}"));
}

#[test]
fn what_all_clients_hold_together_is_bounded() {
    let dir = dir();
    let limits = [("SESSIONS", "3"), ("GROUPS", "2"), ("RETAINED", "2"), ("RETAINED_BYTES", "1000")];
    let weir = start(dir.path(), [free_port(), free_port(), free_port()], &limits);
    let mut c = Raw::connect(weir.mqtt, Version::V5, "one");
    let mut other = Raw::connect(weir.mqtt, Version::V5, "two");
    for (filter, reason) in [("$share/a/t", 1), ("$queue/t", 1), ("$share/b/t", 0x97), ("plain", 1)] {
        assert_eq!(c.subscribe(filter, 1), reason, "{filter}");
    }
    assert_eq!((other.subscribe("$share/a/t", 1), other.subscribe("$share/c/t", 1)), (1, 0x97));
    // One at a time: what is retained is known when it is on disk.
    let mut retain = |topic: &str, bytes: usize| {
        c.publish_with(1 << 1 | RETAIN, 7, topic, &[], &"x".repeat(bytes));
        let reason = c.expect_ack(PUBACK, 7);
        std::thread::sleep(Duration::from_millis(50));
        reason
    };
    let none = 0x10;
    for (topic, bytes, reason) in
        [("r1", 10, none), ("r2", 900, none), ("r3", 1, 0x97), ("r1", 200, 0x97), ("r1", 20, none), ("r2", 0, none), ("r3", 1, none)]
    {
        assert_eq!(retain(topic, bytes), reason, "{topic} {bytes}");
    }
    assert_eq!(login(weir.mqtt, 5, "three", 10).1, 0);
    assert_eq!((login(weir.mqtt, 5, "four", 10).1, login(weir.mqtt, 4, "four", 10).1), (0x97, 3));
    let metrics = http_get(weir.admin, "/metrics");
    for (reason, n) in [("sessions", 2), ("groups", 2), ("retained", 1), ("retained_bytes", 1)] {
        let line = format!("weir_refused_total{{reason=\"{reason}\"}} {n}");
        assert!(metrics.contains(&line), "{line}: {:?}", metrics.lines().filter(|l| l.starts_with("weir_refused")).collect::<Vec<_>>());
    }
}

#[test]
fn an_address_has_so_many_connections_and_begins_so_many_a_second() {
    let dir = dir();
    let weir = start(dir.path(), [free_port(), free_port(), free_port()], &[("CONNECTIONS_PER_ADDRESS", "3")]);
    let connect = || Raw::try_connect(weir.mqtt, "", true);
    let mut open: Vec<_> = (0..3).map(|_| connect().expect("a place")).collect();
    assert!(connect().is_none(), "closed before it is heard");
    // The page is of the same address, the admin port of none.
    let refused = std::panic::catch_unwind(|| http_get(weir.http, "/")).is_err_and(|_| true);
    assert!(refused && http_get(weir.admin, "/readyz").contains("200 OK"));
    open.pop();
    support::eventually("a place is free again", Duration::from_secs(5), || connect().is_some());
    assert!(http_get(weir.admin, "/metrics").contains("weir_refused_total{reason=\"connections_per_address\"}"));
    drop(weir);
    let weir = start(dir.path(), [free_port(), free_port(), free_port()], &[("CONNECTS_PER_ADDRESS", "2")]);
    let admitted = (0..40).filter(|_| Raw::try_connect(weir.mqtt, "", true).is_some()).count();
    assert!((10..15).contains(&admitted), "{admitted}");
}

/// A new connection of the same client goes on where the last one was, and its wills are messages.
#[test]
fn a_rate_is_that_of_a_client_and_not_of_a_connection() {
    let dir = dir();
    let weir = start(dir.path(), [free_port(), free_port(), free_port()], &[("PUBLISH_MESSAGES", "50")]);
    let end = || {
        let metrics = http_get(weir.admin, "/metrics");
        let of = |l: &str| {
            l.strip_prefix("weir_log_end_offset{")?.split_once("default").map(|(_, rest)| rest.split(' ').nth(1)?.parse::<f64>().ok())?
        };
        metrics.lines().find_map(of).unwrap()
    };
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        let mut c = Raw::connect_with(weir.mqtt, Version::V5, "again", true, &[]);
        for n in 0..20 {
            c.publish(0, false, 0, "t", &n.to_string());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let took = began.elapsed().as_secs_f64();
    assert!(end() > 50.0 && end() < 50.0 * (took + 1.0) + 30.0, "{} in {took} s", end());
    let (before, began) = (end(), std::time::Instant::now());
    let mut came = 0;
    while began.elapsed() < Duration::from_secs(3) {
        // A will, and the socket is cut.
        let mut socket = std::net::TcpStream::connect(("127.0.0.1", weir.mqtt)).unwrap();
        socket.write_all(b"\x10\x1A\x00\x04MQTT\x04\x06\x00\x3C\x00\x05wills\x00\x01t\x00\x04gone").unwrap();
        let mut connack = [0; 4];
        came += u32::from(socket.read_exact(&mut connack).is_ok() && connack[3] == 0);
    }
    let took = began.elapsed().as_secs_f64();
    support::eventually("wills are published", Duration::from_secs(5), || end() > before);
    assert!(came > 50 && end() - before < 50.0 * (took + 1.0) + 30.0, "{came} came, {} in {took} s", end() - before);
}

/// Whoever is too fast is not read; nothing is lost, nobody is closed, and others are as fast as they like.
#[test]
fn a_client_publishes_no_faster_than_it_may() {
    let dir = dir();
    let limits = [("PUBLISH_MESSAGES", "100"), ("PUBLISH_BYTES", "100KiB")];
    let weir = start(dir.path(), [free_port(), free_port(), free_port()], &limits);
    let mut reader = Raw::connect_with(weir.mqtt, Version::V5, "reader", true, &[]);
    reader.subscribe("t", 0);
    let mut c = Raw::connect_with(weir.mqtt, Version::V5, "loud", true, &[]);
    let began = std::time::Instant::now();
    for (many, payload) in [(400, "x".to_owned()), (40, "x".repeat(10_000))] {
        for n in 0..many {
            c.publish(0, false, 0, "t", &format!("{n}{payload}"));
        }
        for n in 0..many {
            assert!(reader.expect_publish().payload.starts_with(&n.to_string()));
        }
        let took = began.elapsed().as_secs_f64();
        assert!((2.5..12.0).contains(&took), "{many} messages in {took} s");
    }
    // PINGREQ is answered in its turn.
    c.expect_silence();
    assert!(http_get(weir.admin, "/metrics").contains("weir_slowed_total{reason=\"publish_bytes\"}"));
}

/// Retained, shared, sent again or new: a large message waits for room, and comes when there is some.
#[test]
fn a_large_message_waits_for_room_whatever_way_it_comes() {
    const BYTES: usize = 7_400_000;
    let dir = dir();
    let weir = start(dir.path(), [free_port(), free_port(), free_port()], &[("OUTBOUND_BYTES", "16MiB")]);
    let payload = "x".repeat(BYTES);
    let mut p = Raw::connect_with(weir.mqtt, Version::V5, "p", true, &[]);
    let mut publish = |topic: &str, flags: u8| {
        p.publish_with(1 << 1 | flags, 1, topic, &[], &payload);
        p.read();
    };
    let connect = |name: &str| Raw::connect_with(weir.mqtt, Version::V5, name, false, &[0x11, 0, 0, 0, 200]);
    publish("kept", RETAIN);
    let mut again = connect("again");
    again.subscribe("again", 1);
    publish("again", 0);
    assert_eq!(again.expect_publish().payload.len(), BYTES);
    drop(again);
    // These take it all, and read nothing: a part of each message is in the buffers of its socket.
    let stuck: Vec<_> = (0..12)
        .map(|n| {
            let mut c = Raw::connect_with(weir.mqtt, Version::V5, &format!("stuck {n}"), true, &[]);
            c.send_subscribe("kept", 1);
            c
        })
        .collect();
    let taken = || http_get(weir.admin, "/metrics").lines().find_map(|l| l.strip_prefix("weir_outbound_bytes ")?.parse::<u64>().ok());
    support::eventually("the room is taken", Duration::from_secs(10), || taken().is_some_and(|bytes| bytes > 10 << 20));
    let again = connect("again");
    let mut live = connect("live");
    live.subscribe("live", 1);
    let mut member = connect("member");
    member.subscribe("$share/g/live", 1);
    let mut kept = connect("kept");
    kept.send_subscribe("kept", 1);
    assert_eq!(kept.read().head, 0x90);
    publish("live", 0);
    // One for whom it is not reads on.
    let mut small = connect("small");
    small.subscribe("$replay/earliest/small", 1);
    let mut p = Raw::connect_with(weir.mqtt, Version::V5, "q", true, &[]);
    p.publish(1, false, 1, "small", "x");
    assert_eq!(small.expect_publish().payload, "x");
    let mut waiting = [again, live, member, kept];
    for c in &mut waiting {
        assert!(c.next(Duration::from_millis(300)).is_none(), "there is no room");
        // Small ones wait behind it, and the connection lives.
        c.send(0xC0, &[]);
        assert_eq!(c.read().head, 0xD0);
    }
    // What is not as large goes on.
    let mut other = connect("other");
    other.subscribe("other", 1);
    p.publish(1, false, 2, "other", &"x".repeat(100_000));
    assert_eq!(other.expect_publish().payload.len(), 100_000);
    drop(stuck);
    let all = waiting.map(|mut c| {
        std::thread::spawn(move || {
            let m = c.expect_publish();
            c.ack(PUBACK, m.id);
            c.expect_silence();
            (m.topic, m.payload.len(), m.dup)
        })
    });
    let all = all.map(|t| t.join().unwrap());
    assert_eq!(all.each_ref().map(|(topic, ..)| &**topic), ["again", "live", "live", "kept"]);
    assert!(all.iter().all(|(_, bytes, _)| *bytes == BYTES) && all[0].2, "{all:?}");
    support::eventually("it is released", Duration::from_secs(10), || taken() == Some(0));
}

/// What waits for the session's value before it may leave takes room as well.
#[test]
fn large_messages_of_qos_2_share_the_same_room() {
    let dir = dir();
    let weir = start(dir.path(), [free_port(), free_port(), free_port()], &[("OUTBOUND_BYTES", "16MiB")]);
    let _stuck: Vec<_> = (0..40)
        .map(|n| {
            let mut c = Raw::connect(weir.mqtt, Version::V5, &format!("stuck {n}"));
            c.subscribe("big", 2);
            c
        })
        .collect();
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", weir.process.0.id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap().trim().trim_end_matches(" kB").parse::<u64>();
        line.unwrap() >> 10
    };
    let mut p = Raw::connect_with(weir.mqtt, Version::V5, "p", true, &[]);
    let fillers = fill(&weir, &mut p);
    let before = resident();
    // What waits for the second one keeps the room of the first.
    for id in 1..=2 {
        p.publish(2, false, id, "big", &"x".repeat(7_400_000));
        p.expect_ack(0x50, id);
    }
    drop(fillers);
    let taken = || taken(&weir);
    std::thread::sleep(Duration::from_secs(2));
    assert!(taken() > 10 << 20, "and kept while nobody reads");
    let more = resident() - before;
    assert!(more < 90, "{more} MiB more");
}

/// Clients that take all room of 16 MiB, but for what is small, until they go.
fn fill(weir: &Weir, p: &mut Raw) -> [Raw; 2] {
    let fillers = ["a", "b"].map(|id| {
        let mut c = Raw::connect_with(weir.mqtt, Version::V5, id, true, &[]);
        c.subscribe("fill", 1);
        c
    });
    p.publish(1, false, 9, "fill", &"x".repeat((8 << 20) - 100));
    p.expect_ack(PUBACK, 9);
    support::eventually("no room", Duration::from_secs(10), || taken(weir) > 14 << 20);
    fillers
}

/// Of `limits.outbound_bytes`.
fn taken(weir: &Weir) -> u64 {
    let metrics = http_get(weir.admin, "/metrics");
    metrics.lines().find_map(|l| l.strip_prefix("weir_outbound_bytes ")?.parse().ok()).unwrap()
}

/// An answer that is longer than the client takes is not sent, and it does not wait for it for ever [MQTT-3.1.2-24].
#[test]
fn answers_to_many_filters_are_no_longer_than_the_client_takes() {
    let dir = dir();
    let weir = start(dir.path(), [free_port(), free_port(), free_port()], &[]);
    for (head, answer, options) in [(0x82, 0x90, &[0][..]), (0xA2, 0xB0, &[][..])] {
        for (filters, fits) in [(20, true), (40, false)] {
            let mut c = Raw::connect_with(weir.mqtt, Version::V5, "small", true, &[0x27, 0, 0, 0, 30]);
            let filter = |n: u8| [&[0, 2, b'f', b'0' + n][..], options].concat();
            c.send(head, &[vec![0, 9, 0], (0..filters).flat_map(filter).collect()].concat());
            let p = c.read();
            assert_eq!((p.head, p.body.len() > 20), if fits { (answer, true) } else { (0xE0, false) }, "{p:02x?}");
            assert!(fits || p.body.first() == Some(&0x95), "{p:02x?}");
        }
    }
}

/// Large packets that are slow to come do not take the room of a small one.
#[test]
fn a_small_packet_has_room_beside_large_ones_that_are_slow() {
    let dir = dir();
    let weir = start(dir.path(), [free_port(), free_port(), free_port()], &[("INBOUND_BYTES", "16MiB")]);
    let _slow = [7_800_000, 6_600_000, 2_200_000].map(|bytes| {
        let mut c = Raw::connect_with(weir.mqtt, Version::V5, &format!("slow {bytes}"), true, &[]);
        let length = [bytes & 0x7F | 0x80, bytes >> 7 & 0x7F | 0x80, bytes >> 14 & 0x7F | 0x80, bytes >> 21].map(|byte: u32| byte as u8);
        c.write(&[&[0x30], &length[..], &[0, 1, b't', 0], &[b'x'; 20_000]].concat());
        c
    });
    let metrics = || http_get(weir.admin, "/metrics");
    let taken = || metrics().lines().find_map(|l| l.strip_prefix("weir_inbound_bytes ")?.parse::<u64>().ok());
    support::eventually("the room is taken", Duration::from_secs(5), || taken().is_some_and(|bytes| bytes > 14_000_000));
    std::thread::sleep(Duration::from_millis(500));
    let mut c = Raw::connect_with(weir.mqtt, Version::V5, "small", true, &[]);
    c.publish(1, false, 1, "t", &"x".repeat(200_000));
    assert_eq!(c.next(Duration::from_secs(5)).map(|ack| ack.head), Some(PUBACK));
}

/// A message behind those that wait for the session's value is no wish for room yet: all of it together would never be free.
#[test]
fn who_is_sent_large_messages_of_qos_2_holds_up_nobody() {
    let dir = dir();
    let weir = start(dir.path(), [free_port(), free_port(), free_port()], &[("OUTBOUND_BYTES", "16MiB")]);
    let mut p = Raw::connect_with(weir.mqtt, Version::V5, "p", true, &[]);
    let mut slow = Raw::connect(weir.mqtt, Version::V5, "slow");
    slow.subscribe("big", 2);
    p.publish(1, false, 9, "big", &"x".repeat(7_400_000));
    p.expect_ack(PUBACK, 9);
    support::eventually("on its way", Duration::from_secs(10), || taken(&weir) > 7 << 20);
    for (id, bytes) in [(1, 60_000), (2, (8 << 20) - 100), (3, (8 << 20) - 100)] {
        p.publish(2, false, id, "big", &"x".repeat(bytes));
        p.expect_ack(0x50, id);
    }
    assert_eq!(slow.expect_publish().payload.len(), 7_400_000);
    assert_eq!(slow.expect_publish().payload.len(), 60_000);
    let mut honest = Raw::connect_with(weir.mqtt, Version::V5, "honest", true, &[]);
    honest.subscribe("other", 1);
    p.publish(1, false, 4, "other", &"x".repeat(100_000));
    p.expect_ack(PUBACK, 4);
    assert_eq!(honest.expect_publish().payload.len(), 100_000);
}

/// Both write more than the sockets hold, and neither reads: the gateway reads on.
#[test]
fn who_sends_while_a_large_message_of_qos_2_is_on_its_way_is_read() {
    let dir = dir();
    let weir = start(dir.path(), [free_port(), free_port(), free_port()], &[]);
    let mut c = Raw::connect(weir.mqtt, Version::V5, "both");
    c.subscribe("big", 2);
    let mut p = Raw::connect_with(weir.mqtt, Version::V5, "p", true, &[]);
    p.publish(2, false, 1, "big", &"x".repeat(7_400_000));
    p.expect_ack(0x50, 1);
    support::eventually("on its way", Duration::from_secs(10), || taken(&weir) > 7 << 20);
    let (done, written) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let large = "x".repeat(7_400_000);
        (0..4).for_each(|_| c.publish(0, false, 0, "other", &large));
        done.send(c).unwrap();
    });
    written.recv_timeout(Duration::from_secs(20)).expect("all that it sends is read");
}

/// A client that is slowed loses nothing by it: not its place, not what it sent before it went, and its will is not published.
#[test]
fn who_is_slowed_is_not_closed_and_its_goodbye_is_heard() {
    let dir = dir();
    let weir = start(dir.path(), [free_port(), free_port(), free_port()], &[("PUBLISH_MESSAGES", "2")]);
    let mut watcher = Raw::connect_with(weir.mqtt, Version::V5, "watcher", true, &[]);
    watcher.subscribe("will", 0);
    watcher.subscribe("slow/#", 0);
    let mut burst = Raw::connect_with(weir.mqtt, Version::V5, "burst", true, &[]);
    let payload = "x".repeat(1_000);
    burst.in_one_write(|c| (1..=28).for_each(|id| c.publish(1, false, id, "burst", &payload)));
    let mut c = Raw::with_will(weir.mqtt, "goes", true, 0, "will", 0);
    c.in_one_write(|c| {
        (0..8).for_each(|n| c.publish(0, false, 0, "slow/x", &n.to_string()));
        c.disconnect();
    });
    drop(c);
    for n in 0..8 {
        assert_eq!(watcher.expect_publish().payload, n.to_string());
    }
    // The burst takes longer than a packet that has begun may.
    for id in 1..=28 {
        assert_eq!(burst.expect_ack(PUBACK, id), 0x10, "{id}");
    }
    watcher.expect_silence();
    assert!(http_get(weir.admin, "/metrics").contains("weir_refused_total{reason=\"inbound_bytes\"} 0"));
}
