//! A will is published once, at the earlier of its delay and the end of its session, through reconnect, takeover, clean start and SIGKILL
//! [MQTT-3.1.2-8, MQTT-3.1.3-9].

mod support;

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};
use support::{
    Weir, dir,
    raw::{PUBACK, Raw, Version},
};

/// What comes within that time: topic, and when.
fn watch(watcher: &mut Raw, start: Instant, wait: Duration) -> Vec<(String, u128)> {
    let mut got = Vec::new();
    while let Some(left) = wait.checked_sub(start.elapsed()) {
        let Some(p) = watcher.next(left.max(Duration::from_millis(1))) else { continue };
        let p = p.publish(Version::V5);
        watcher.ack(PUBACK, p.id);
        assert_eq!(p.payload, "gone");
        got.push((p.topic, start.elapsed().as_millis()));
    }
    got
}

#[test]
fn a_will_waits_for_its_delay_or_the_end_of_its_session() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut watcher = Raw::connect(weir.mqtt, Version::V5, "watcher");
    watcher.subscribe("will/#", 1);
    let start = Instant::now();
    // Topic, clean start, expiry, delay, and what happens to it.
    drop(Raw::with_will(weir.mqtt, "now", true, 0, "will/now", 60));
    drop(Raw::with_will(weir.mqtt, "delayed", true, 60, "will/delayed", 2));
    drop(Raw::with_will(weir.mqtt, "expired", true, 2, "will/expired", 60));
    drop(Raw::with_will(weir.mqtt, "back", true, 60, "will/back", 1));
    let back = Raw::connect(weir.mqtt, Version::V5, "back");
    assert!(back.session_present);
    let old = Raw::with_will(weir.mqtt, "taken", true, 60, "will/taken", 1);
    let taken = Raw::connect(weir.mqtt, Version::V5, "taken");
    assert!(taken.session_present);
    drop(Raw::with_will(weir.mqtt, "clean", true, 60, "will/clean", 60));
    let clean = Raw::connect_with(weir.mqtt, Version::V5, "clean", true, &[]);
    Raw::with_will(weir.mqtt, "goodbye", true, 60, "will/goodbye", 0).disconnect();
    let got = watch(&mut watcher, start, Duration::from_millis(4_500));
    let at: HashMap<&str, u128> = got.iter().map(|(topic, at)| (&**topic, *at)).collect();
    assert_eq!(at.len(), got.len(), "each once: {got:?}");
    assert_eq!(at.len(), 4, "{got:?}");
    assert!(at["will/now"] < 1_000 && at["will/clean"] < 1_000, "{got:?}");
    assert!((2_000..4_000).contains(&at["will/delayed"]) && (2_000..4_000).contains(&at["will/expired"]), "{got:?}");
    drop((old, back, taken, clean));
}

#[test]
fn a_delayed_will_survives_sigkill_and_comes_once() {
    let dir = dir();
    let mut weir = Weir::start(dir.path());
    let mut watcher = Raw::connect(weir.mqtt, Version::V5, "watcher");
    watcher.subscribe("will/#", 1);
    let connected = Raw::with_will(weir.mqtt, "connected", true, 60, "will/connected", 2);
    drop(Raw::with_will(weir.mqtt, "offline", true, 60, "will/offline", 7));
    // Both values are durable before the crash: CONNACK waited for the first, and a round trip of
    // the second came after it.
    watcher.expect_silence();
    std::thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    let mut got = Vec::new();
    // SIGKILL may cut between a delivery and the note of its acknowledgement, and the message then
    // comes again, as QoS 1 allows. So each crash keeps away from the times at which a will is due:
    // 2 s after a restart, and 7 s after the start.
    for last in [4_000, 10_000] {
        let ports = weir.ports();
        weir.kill();
        weir = Weir::start_on(dir.path(), ports);
        watcher = Raw::connect(weir.mqtt, Version::V5, "watcher");
        got.extend(watch(&mut watcher, start, Duration::from_millis(last)));
    }
    got.sort();
    let topics: Vec<&str> = got.iter().map(|(topic, _)| &**topic).collect();
    assert_eq!(topics, ["will/connected", "will/offline"], "{got:?}");
    // The first counts as disconnected from the restart on.
    assert!(got[0].1 >= 2_000 && got[1].1 >= 5_500, "{got:?}");
    drop(connected);
}
