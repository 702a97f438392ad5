//! The date of the machine is set while the gateway runs, and nothing expires or waits for that:
//! what expires goes by the time that passes [MQTT-3.1.2-23, MQTT-3.1.3-9, MQTT-3.3.2-5].

mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use support::{
    Weir, binary, command, dir, free_port,
    raw::{Raw, Version},
};

/// From the package `faketime`: answers questions for the date, and leaves the other clocks alone.
fn library() -> PathBuf {
    let found = fs::read_dir("/usr/lib").unwrap().flatten();
    let places = found.map(|e| e.path().join("faketime/libfaketimeMT.so.1"));
    places.into_iter().find(|p| p.exists()).expect("the package faketime; see tests/install.sh")
}

/// A gateway whose date can be set.
struct Dated {
    weir: Weir,
    file: PathBuf,
}

impl Dated {
    fn start(dir: &Path, hours: i64) -> Self {
        let file = dir.join("date");
        set(&file, hours);
        let ports = [free_port(), free_port(), free_port()];
        let mut command = command(&binary(), &dir.join("data"), ports);
        command
            .env("LD_PRELOAD", library())
            .env("FAKETIME_TIMESTAMP_FILE", &file)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        Self { weir: Weir::spawn(command, ports), file }
    }

    fn set(&self, hours: i64) {
        set(&self.file, hours);
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn set(file: &Path, hours: i64) {
    let next = file.with_extension("next");
    fs::write(&next, format!("{hours:+}h\n")).unwrap();
    fs::rename(next, file).unwrap();
}

/// MQTT 5 properties: session expiry, and message expiry, in seconds.
fn session_expiry(seconds: u16) -> Vec<u8> {
    [&[17, 0, 0], &seconds.to_be_bytes()[..]].concat()
}

fn message_expiry(seconds: u16) -> Vec<u8> {
    [&[2, 0, 0], &seconds.to_be_bytes()[..]].concat()
}

#[test]
fn a_date_set_ahead_ends_no_session_and_no_message_and_publishes_no_will() {
    let dir = dir();
    let gateway = Dated::start(dir.path(), 0);
    let port = gateway.weir.mqtt;
    let hour = session_expiry(3_600);
    let mut pump = Raw::connect_with(port, Version::V5, "pump", true, &hour);
    pump.subscribe("cmd/#", 1);
    drop(pump);
    let mut watcher = Raw::connect(port, Version::V5, "watcher");
    watcher.subscribe("will/#", 1);
    drop(Raw::with_will(port, "patient", true, 120, "will/patient", 100));
    let mut boss = Raw::connect(port, Version::V5, "boss");
    let mut publish = |id, payload: &str| {
        boss.publish_with(2, id, "cmd/pump", &message_expiry(600), payload);
        boss.read();
    };
    publish(1, "before");
    gateway.set(8);
    publish(2, "after");
    watcher.expect_silence();
    let mut pump = Raw::connect_with(port, Version::V5, "pump", false, &hour);
    assert!(pump.session_present, "its hour is not over");
    assert_eq!([pump.expect_publish().payload, pump.expect_publish().payload], ["before", "after"]);
    // The process goes, and the date stays as it was set: the messages have their ten minutes still.
    drop((pump, boss, watcher));
    let mut second = Raw::connect_with(port, Version::V5, "second", true, &hour);
    second.subscribe("$replay/earliest/cmd/#", 1);
    assert_eq!(second.expect_publish().payload, "before");
    drop((second, gateway));
    let gateway = Dated::start(dir.path(), 8);
    let mut third = Raw::connect(gateway.weir.mqtt, Version::V5, "third");
    third.subscribe("$replay/earliest/cmd/#", 1);
    assert_eq!([third.expect_publish().payload, third.expect_publish().payload], ["before", "after"]);
    let mut pump = Raw::connect_with(gateway.weir.mqtt, Version::V5, "pump", false, &hour);
    assert!(pump.session_present, "its hour is not over");
    pump.disconnect();
}

#[test]
fn a_date_set_back_holds_nothing_up() {
    let dir = dir();
    let gateway = Dated::start(dir.path(), 24);
    let port = gateway.weir.mqtt;
    let mut watcher = Raw::connect(port, Version::V5, "watcher");
    watcher.subscribe("will/#", 1);
    drop(Raw::connect_with(port, Version::V5, "short", true, &session_expiry(4)));
    drop(Raw::with_will(port, "gone", true, 60, "will/gone", 3));
    let start = Instant::now();
    gateway.set(0);
    let mut boss = Raw::connect(port, Version::V5, "boss");
    boss.publish_with(3, 1, "kept/1", &message_expiry(3), "kept");
    boss.read();
    let will = watcher.next(Duration::from_secs(20)).expect("the will").publish(Version::V5);
    let took = start.elapsed();
    assert_eq!(will.topic, "will/gone");
    assert!((2_500..6_000).contains(&took.as_millis()), "after {took:?}");
    std::thread::sleep(Duration::from_secs(5).saturating_sub(start.elapsed()));
    let short = Raw::connect_with(port, Version::V5, "short", false, &session_expiry(4));
    assert!(!short.session_present, "its four seconds are over");
    let mut late = Raw::connect(port, Version::V5, "late");
    late.subscribe("kept/#", 1);
    late.expect_silence();
}
