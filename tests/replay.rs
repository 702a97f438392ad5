//! Subscriptions that begin in the past, with real clients: what comes is what was published since then, in order, once, and then what comes live.

mod support;

use std::{
    collections::BTreeMap,
    process::{Command, Output},
    time::{Duration, SystemTime},
};
use support::{
    Collected, Weir, binary, dir,
    raw::{PUBACK, Raw, Version},
};

fn publish(port: u16, topic: &str, range: std::ops::Range<u16>, qos: u8) {
    let mut p = Raw::connect_with(port, Version::V5, "publisher", true, &[]);
    for n in range {
        p.publish(qos, false, n + 1, topic, &n.to_string());
        if qos == 1 {
            p.expect_ack(PUBACK, n + 1);
        }
    }
    // Behind everything before it.
    p.publish(1, false, 60_000, "other", "x");
    p.expect_ack(PUBACK, 60_000);
}

fn sub(port: u16, args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(["sub", "-p", &port.to_string()]).args(args);
    command
}

fn lines(out: &Output) -> Vec<String> {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).lines().map(Into::into).collect()
}

fn numbers(range: std::ops::Range<u16>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

/// The reader stops reading while others publish, so that its inbox and its socket fill.
#[test]
fn a_slow_replay_at_qos_0_beside_a_publisher_misses_nothing_of_the_past() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let payload = |n: u16| format!("{n} {}", "x".repeat(1_000));
    let past = 20_000;
    let mut p = Raw::connect_with(weir.mqtt, Version::V5, "publisher", true, &[]);
    for n in 0..past {
        p.publish(0, false, 0, "r/a", &payload(n));
    }
    p.publish(1, false, 1, "r/a", &payload(past));
    p.expect_ack(PUBACK, 1);
    let mut reader = Raw::connect_with(weir.mqtt, Version::V5, "reader", true, &[]);
    reader.subscribe("$replay/earliest/r/a", 0);
    for n in past + 1..past + 300 {
        p.publish(0, false, 0, "r/a", &payload(n));
        std::thread::sleep(Duration::from_millis(5));
    }
    let got: Vec<u16> = std::iter::from_fn(|| reader.next(Duration::from_secs(1)))
        .map(|packet| packet.publish(Version::V5).payload.split(' ').next().unwrap().parse().unwrap())
        .collect();
    assert_eq!(got[..=usize::from(past)], (0..=past).collect::<Vec<_>>());
    assert!(got.is_sorted_by(|a, b| a < b), "what came live is behind it, in order");
}

#[test]
fn weir_sub_begins_where_it_is_told() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    publish(weir.mqtt, "r/a", 0..100, 1);
    // QoS 0 too: what is asked for is sent.
    publish(weir.mqtt, "r/a", 100..200, 0);
    std::thread::sleep(Duration::from_millis(20));
    let moment = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    publish(weir.mqtt, "r/b", 200..300, 1);
    for version in ["311", "5"] {
        let run = |args: &[&str]| lines(&sub(weir.mqtt, &[args, &["-V", version]].concat()).output().unwrap());
        assert_eq!(run(&["-t", "r/+", "--from", "earliest", "-C", "300"]), numbers(0..300), "{version}");
        assert_eq!(run(&["-t", "r/a", "--from", "last:5", "-C", "5"]), numbers(195..200), "{version}");
        assert_eq!(run(&["-t", "r/#", "--from", "last:150", "-q", "1", "-C", "150"]), numbers(150..300), "{version}");
        assert_eq!(run(&["-t", "r/#", "--from", &moment, "-C", "100"]), numbers(200..300), "{version}");
        assert_eq!(run(&["-t", "r/#", "--from", "-1h", "-C", "300"]), numbers(0..300), "{version}");
        assert_eq!(run(&["-t", "r/a", "--from", "50", "-C", "150"]), numbers(50..200), "{version}");
    }
    // From there on without a seam while others publish.
    let mut follow = sub(weir.mqtt, &["-t", "r/#", "--from", "earliest", "-q", "1", "-C", "1300"]);
    let follow = Collected::spawn(&mut follow);
    publish(weir.mqtt, "r/c", 300..1300, 1);
    assert_eq!(follow.rest(), numbers(0..1300));
    // Where it stands.
    let out = lines(&sub(weir.mqtt, &["-t", "r/b", "--from", "last:1", "-C", "1", "-F", "%p %P"]).output().unwrap());
    let words: Vec<&str> = out[0].split(' ').collect();
    assert_eq!(words[..4], ["299", "stream:default", "partition:0", "offset:301"], "{out:?}");
    let time = words[4].strip_prefix("timestamp:").expect("a time");
    assert!(*time >= *moment && time.len() == moment.len(), "{time}, {moment}");
    for (args, words) in [
        (&["--from", "soon"][..], "none of earliest"),
        (&["--from", "last:0"], "none of earliest"),
        (&["--from", "2026-13-01T00:00:00Z"], "none of earliest"),
    ] {
        let out = sub(weir.mqtt, &[&["-t", "r/a"], args].concat()).output().unwrap();
        assert_eq!(out.status.code(), Some(1), "{args:?}");
        assert!(String::from_utf8_lossy(&out.stderr).contains(words), "{}", String::from_utf8_lossy(&out.stderr));
    }
    let out = sub(weir.mqtt, &["-t", "$share/g/r/a", "--from", "earliest"]).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("a group has one place"), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn a_broken_connection_goes_on_where_it_was() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let ports = weir.ports();
    publish(weir.mqtt, "r/a", 0..10, 1);
    let mut command = sub(weir.mqtt, &["-t", "r/a", "--from", "earliest", "-C", "20"]);
    let mut follow = Collected::spawn(&mut command);
    let first: Vec<String> = (0..10).map(|_| follow.line()).collect();
    assert_eq!(first, numbers(0..10));
    weir.kill();
    let weir = Weir::start_on(dir.path(), ports);
    publish(weir.mqtt, "r/a", 10..20, 1);
    assert_eq!(follow.rest(), numbers(10..20));
    follow = Collected::spawn(&mut sub(weir.mqtt, &["-t", "r/a", "--from", "last:1", "-C", "1"]));
    assert_eq!(follow.rest(), numbers(19..20));
}

/// A session that has other filters gets for them what it had not got, once, and for the new one the past.
#[test]
fn a_session_with_other_filters_gets_each_message_once() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    publish(weir.mqtt, "r/a", 0..50, 1);
    let mut s = Raw::connect_with(weir.mqtt, Version::V311, "s", false, &[]);
    assert_eq!(s.subscribe("r/b", 1), 1);
    publish(weir.mqtt, "r/b", 0..10, 1);
    let mut got = Vec::new();
    let mut take = |s: &mut Raw, n: usize| {
        for _ in 0..n {
            let p = s.expect_publish();
            s.ack(PUBACK, p.id);
            got.push(format!("{} {}", p.topic, p.payload));
        }
        std::mem::take(&mut got)
    };
    assert_eq!(take(&mut s, 10), (0..10).map(|n| format!("r/b {n}")).collect::<Vec<_>>());
    assert_eq!(s.subscribe("$replay/earliest/r/#", 1), 1);
    let all = (0..50).map(|n| format!("r/a {n}")).chain((0..10).map(|n| format!("r/b {n}")));
    assert_eq!(take(&mut s, 60), all.collect::<Vec<_>>(), "r/# from the beginning; r/b once more, because r/# asks for it");
    publish(weir.mqtt, "r/b", 10..12, 1);
    assert_eq!(take(&mut s, 2), ["r/b 10", "r/b 11"], "both filters match: once");
    s.expect_silence();
}

/// A connection that reads something else, of which nothing comes, gets the past as any other, wherever in it that begins.
#[test]
fn a_past_begins_where_it_is_asked_for_beside_a_filter_that_is_quiet() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut c = Raw::connect_with(weir.mqtt, Version::V311, "c", true, &[]);
    c.subscribe("quiet/#", 1);
    publish(weir.mqtt, "loud", 0..100, 1);
    for from in [50, 99, 0] {
        assert_eq!(c.subscribe(&format!("$replay/offset:{from}/loud"), 1), 1);
        for n in from..100 {
            let p = c.expect_publish();
            c.ack(PUBACK, p.id);
            assert_eq!(p.payload, n.to_string(), "from {from}");
        }
        c.expect_silence();
    }
}

/// User properties of an acknowledgement of version 5, behind id and reason.
fn told(body: &[u8]) -> Vec<(String, String)> {
    let mut rest = body.get(4..).unwrap_or_default();
    let text = |rest: &mut &[u8]| {
        let n = usize::from(u16::from_be_bytes([rest[0], rest[1]]));
        let text = String::from_utf8(rest[2..2 + n].to_vec()).unwrap();
        *rest = &rest[2 + n..];
        text
    };
    let mut all = Vec::new();
    while let Some((0x26, more)) = rest.split_first() {
        rest = more;
        let name = text(&mut rest);
        all.push((name, text(&mut rest)));
    }
    all
}

/// Every acknowledgement names the record that the log has: many in one read, with QoS 0 between, which has none.
#[test]
fn acknowledgements_say_where_each_message_went() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut p = Raw::connect_with(weir.mqtt, Version::V5, "p", true, b"\x26\x00\x08position\x00\x04true");
    for n in 1..=500u16 {
        match n % 5 {
            0 => p.publish(0, false, 0, "ack/zero", &n.to_string()),
            1 => p.publish(2, false, n, "ack/two", &n.to_string()),
            _ => p.publish(1, false, n, "ack/one", &n.to_string()),
        }
    }
    let mut places = BTreeMap::new();
    while places.len() < 400 {
        let a = p.read();
        match a.head {
            0x50 => p.ack(0x62, a.id()),
            PUBACK | 0x70 => {
                let told = told(&a.body);
                assert_eq!(told[..2], [("stream".into(), "default".into()), ("partition".into(), "0".into())], "{:02x?}", a.body);
                assert_eq!(told[2].0, "offset");
                places.insert(a.id().to_string(), told[2].1.clone());
            }
            other => panic!("{other:02x}"),
        }
    }
    let out = sub(weir.mqtt, &["-t", "ack/+", "--from", "earliest", "-C", "500", "-F", "%p %P"]).output().unwrap();
    for line in lines(&out) {
        let words: Vec<&str> = line.split(' ').collect();
        let offset = words[3].strip_prefix("offset:").expect("a position");
        let number: u16 = words[0].parse().unwrap();
        assert_eq!(places.get(words[0]).map(String::as_str), (!number.is_multiple_of(5)).then_some(offset), "{line}");
    }
}
