//! The examples do what they say, through the restarts that they are about.

mod support;

use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};
use support::{
    Collected, Guard, Weir, binary, dir, eventually, free_port, http_get,
    raw::{PUBACK, Raw, Version},
};

/// Built with the tests.
fn example(name: &str) -> Command {
    let mut target = std::env::current_exe().unwrap();
    // target/PROFILE/deps/THIS
    target.pop();
    target.pop();
    Command::new(target.join("examples").join(name))
}

fn publish(port: u16, topic: &str, range: std::ops::Range<u16>) {
    let mut p = Raw::connect_with(port, Version::V311, "publisher", true, &[]);
    for n in range {
        p.publish(1, false, n + 1, topic, &n.to_string());
        p.expect_ack(PUBACK, n + 1);
    }
}

#[test]
fn device_survives_restarts() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let ports = weir.ports();
    let mut reader = Raw::connect_with(weir.mqtt, Version::V311, "reader", false, &[]);
    assert_eq!(reader.subscribe("devices/#", 1), 1);
    drop(reader);
    let mut device = example("device");
    device.args([&format!("127.0.0.1:{}", weir.mqtt), "sensor-7", "150"]);
    let device = Collected::spawn(&mut device);
    let metric = |weir: &Weir, n: u32| http_get(weir.admin, "/metrics").contains(&format!("direction=\"in\",qos=\"1\"}} {n}"));
    eventually("some came", Duration::from_secs(10), || (20..100).any(|n| metric(&weir, n)));
    weir.kill();
    std::thread::sleep(Duration::from_millis(300));
    let weir = Weir::start_on(dir.path(), ports);
    let said = device.rest();
    assert!(said[0].starts_with("150 readings acknowledged"), "{said:?}");
    // Everything is there: in order, and what came twice was on its way when the gateway was killed.
    let mut reader = Raw::connect_with(weir.mqtt, Version::V311, "reader", false, &[]);
    let mut next = 0;
    while next < 150 {
        let p = reader.expect_publish();
        reader.ack(PUBACK, p.id);
        let n: u32 = p.payload.parse().unwrap();
        assert!(n <= next, "{n} after {next}");
        next = next.max(n + 1);
    }
}

#[test]
fn consumer_counts_each_message_once_through_sigkill() {
    let dir = dir();
    let (data, file) = (dir.path().join("data"), dir.path().join("total.json"));
    let weir = Weir::start(&data);
    let start = |weir: &Weir| {
        let mut consumer = example("consumer");
        consumer.args([&format!("127.0.0.1:{}", weir.mqtt), "devices/#"]).arg(&file).stderr(Stdio::null());
        Guard(consumer.spawn().unwrap())
    };
    let stored = |key: &str| -> u64 {
        let value: Option<Value> = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        value.map_or(0, |v| v[key].as_u64().unwrap())
    };
    publish(weir.mqtt, "devices/a", 0..100);
    let consumer = start(&weir);
    eventually("half", Duration::from_secs(10), || stored("count") >= 50);
    // SIGKILL, wherever it is.
    drop(consumer);
    publish(weir.mqtt, "devices/a", 100..200);
    let consumer = start(&weir);
    eventually("some more", Duration::from_secs(10), || stored("count") >= 150);
    let ports = weir.ports();
    weir.kill();
    let weir = Weir::start_on(&data, ports);
    publish(weir.mqtt, "devices/a", 200..300);
    eventually("all", Duration::from_secs(10), || stored("count") >= 300);
    drop(consumer);
    assert_eq!((stored("count"), stored("sum")), (300, (0..300).sum()));
}

#[test]
fn dashboard_prints_the_newest_values_and_what_comes() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    publish(weir.mqtt, "site/a", 0..3);
    publish(weir.mqtt, "site/b", 0..5);
    let mut dashboard = example("dashboard");
    dashboard.args([&format!("ws://127.0.0.1:{}/ws", weir.http), "site/#", "4"]).stderr(Stdio::null());
    let dashboard = Collected::spawn(&mut dashboard);
    assert_eq!([dashboard.line(), dashboard.line()], ["site/a 2", "site/b 4"]);
    publish(weir.mqtt, "site/a", 7..9);
    assert_eq!(dashboard.rest(), ["site/a 7", "site/a 8"]);
}

#[test]
fn upstream_carries_everything_to_the_other_broker() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let (ports, other) = (weir.ports(), free_port());
    let mut upstream = example("upstream");
    upstream.args([&format!("127.0.0.1:{}", weir.mqtt), "devices/#", &format!("127.0.0.1:{other}")]).stderr(Stdio::null());
    let _upstream = Guard(upstream.spawn().unwrap());
    eventually("it subscribes", Duration::from_secs(10), || http_get(weir.admin, "/metrics").contains("weir_subscriptions 1\n"));
    let mut sub = Command::new(binary());
    let sub = Collected::spawn(sub.args(["sub", "-p", &other.to_string(), "-t", "devices/#", "-q", "1", "-F", "%t %p"]));
    eventually("it listens to the other broker", Duration::from_secs(10), || {
        publish(weir.mqtt, "devices/probe", 0..1);
        sub.try_line(Duration::from_millis(200)).is_some()
    });
    let number = || -> u16 {
        let mut lines = std::iter::from_fn(|| sub.try_line(Duration::from_secs(10)));
        lines.find_map(|l| l.strip_prefix("devices/a ").map(|n| n.parse().unwrap())).expect("a message")
    };
    publish(weir.mqtt, "devices/a", 0..200);
    (0..200).for_each(|n| assert_eq!(number(), n));
    // While Weir is away nothing comes, and then everything.
    weir.kill();
    let weir = Weir::start_on(dir.path(), ports);
    // More at once than are on their way to the other broker.
    let mut burst = Raw::connect_with(weir.mqtt, Version::V311, "burst", true, &[]);
    (200..1_200).for_each(|n| burst.publish(1, false, n, "devices/a", &n.to_string()));
    (200..1_200).for_each(|n| assert_eq!(burst.expect_ack(PUBACK, n), 0));
    let mut next = 200;
    while next < 1_200 {
        let n = number();
        assert!(n <= next, "{n} after {next}");
        next = next.max(n + 1);
    }
}

#[test]
fn there_is_a_test_for_every_example() {
    let files = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")).unwrap();
    let mut names: Vec<PathBuf> = files.map(|f| f.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "rs")).collect();
    names.sort();
    let stems: Vec<_> = names.iter().map(|p| p.file_stem().unwrap().to_str().unwrap()).collect();
    assert_eq!(stems, ["consumer", "dashboard", "device", "upstream"]);
}
