//! A session that comes back is owed what it was owed: retained messages that it asked for, and what was in flight, whatever its window is now.

mod support;

use std::{collections::BTreeMap, time::Duration};
use support::{
    Weir, dir, eventually,
    raw::{PUBACK, PUBCOMP, PUBREC, PUBREL, Raw, Version},
};

const TOPICS: usize = 150;
const RETAIN: u8 = 1;

/// An expiry of an hour, and a Receive Maximum.
fn connect(port: u16, version: Version, window: u8) -> Raw {
    Raw::connect_with(port, version, "c", false, &[0x11, 0, 0, 0x0E, 0x10, 0x21, 0, window])
}

/// Takes messages and completes their exchanges until `messages` have come or nothing comes; counts what came whole, per payload.
fn take(c: &mut Raw, version: Version, messages: usize, got: &mut BTreeMap<String, (u32, bool)>) {
    let (mut taken, mut open) = (0, BTreeMap::new());
    while taken < messages || !open.is_empty() {
        let Some(p) = c.next(Duration::from_millis(400)) else { return };
        match p.head & 0xF0 {
            0x30 => {
                let m = p.publish(version);
                taken += 1;
                if m.qos == 1 {
                    got.entry(m.payload).or_insert((0, m.retain)).0 += 1;
                } else if !m.dup || !got.contains_key(&m.payload) {
                    open.insert(m.id, (m.payload, m.retain));
                }
                match m.qos {
                    1 => c.ack(PUBACK, m.id),
                    2 => c.ack(PUBREC, m.id),
                    _ => {}
                }
            }
            0x60 => {
                if let Some((payload, retain)) = open.remove(&p.id()) {
                    got.entry(payload).or_insert((0, retain)).0 += 1;
                }
                c.ack(PUBCOMP, p.id());
            }
            other => assert_eq!(other, PUBREL & 0xF0, "{p:02x?}"),
        }
    }
}

/// The connection is cut, the process killed or stopped, again and again in the middle of the retained messages; the client never subscribes again.
#[test]
fn retained_messages_go_on_where_the_connection_ended() {
    for version in [Version::V311, Version::V5] {
        // Of QoS 0 everything has left for the socket before the first is read.
        for qos in 1..3u8 {
            let dir = dir();
            let mut weir = Weir::start(dir.path());
            let mut publisher = Raw::connect_with(weir.mqtt, version, "p", true, &[]);
            for n in 0..TOPICS {
                publisher.publish_with(2 << 1 | RETAIN, n as u16 + 1, &format!("kept/{n}"), &[], &format!("{n}"));
                assert_eq!(publisher.read().head, PUBREC);
                publisher.ack(PUBREL, n as u16 + 1);
                assert_eq!(publisher.read().head, PUBCOMP);
            }
            let mut got = BTreeMap::new();
            let mut c = connect(weir.mqtt, version, 5);
            assert_eq!(c.subscribe("kept/#", qos), qos);
            for life in 0..6 {
                take(&mut c, version, 11, &mut got);
                // What moved is put within a quarter of a second; QoS 1 may repeat up to that.
                std::thread::sleep(Duration::from_millis(350));
                drop(c);
                if life % 3 > 0 {
                    let ports = weir.ports();
                    if life % 3 == 1 {
                        weir.kill();
                    } else {
                        assert_eq!(weir.terminate(), Some(0));
                    }
                    weir = Weir::start_on(dir.path(), ports);
                }
                c = connect(weir.mqtt, version, 5);
                assert!(c.session_present);
            }
            take(&mut c, version, TOPICS, &mut got);
            let what = format!("{version:?}, QoS {qos}");
            assert_eq!(got.len(), TOPICS, "{what}");
            assert!(got.values().all(|(_, retain)| *retain), "{what}: all of them retained");
            if qos == 2 {
                assert!(got.values().all(|(times, _)| *times == 1), "{what}: once each: {got:?}");
            }
            c.expect_silence();
        }
    }
}

/// Ten in flight, back with a window of two: they are sent again as it opens, in order, before anything new.
#[test]
fn a_smaller_window_gets_everything_again_in_order() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut c = connect(weir.mqtt, Version::V5, 10);
    c.subscribe("a", 1);
    let mut publisher = Raw::connect_with(weir.mqtt, Version::V5, "p", true, &[]);
    for n in 1..=10 {
        publisher.publish(1, false, n, "a", &format!("{n:02}"));
        assert_eq!((publisher.expect_ack(PUBACK, n), c.expect_publish().payload), (0, format!("{n:02}")));
    }
    drop(c);
    for n in 11..=20 {
        publisher.publish(if n % 2 == 0 { 0 } else { 1 }, false, n, "a", &format!("{n:02}"));
    }
    let mut c = connect(weir.mqtt, Version::V5, 2);
    publisher.publish(0, false, 0, "a", "21");
    let mut got = Vec::new();
    eventually("all come again", Duration::from_secs(20), || {
        if let Some(p) = c.next(Duration::from_millis(300)) {
            let m = p.publish(Version::V5);
            got.push(m.payload);
            if m.qos == 1 {
                c.ack(PUBACK, m.id);
            }
        }
        got.len() >= 15
    });
    assert!(got.is_sorted(), "{got:?}");
    let again: Vec<String> = (1..=10).map(|n| format!("{n:02}")).collect();
    assert_eq!(got[..10], again);
}
