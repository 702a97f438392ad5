//! The README's first command: a gateway with something to look at, within five seconds, and nothing left behind.

mod support;

use std::{
    collections::BTreeSet,
    process::Stdio,
    time::{Duration, Instant},
};
use support::{
    Guard, binary, eventually, free_port, http_get,
    raw::{Raw, Version},
    signal,
};

fn metric(admin: u16, name: &str) -> u64 {
    let text = http_get(admin, "/metrics");
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn a_demonstration_is_alive_within_five_seconds_and_leaves_nothing() {
    let [mqtt, http, admin] = [free_port(), free_port(), free_port()];
    let temporary = support::dir();
    let begun = Instant::now();
    let mut command = std::process::Command::new(binary());
    command.arg("demo").env("TMPDIR", temporary.path()).stdout(Stdio::piped());
    for (flag, port) in [("--mqtt", mqtt), ("--http", http), ("--admin", admin)] {
        command.args([flag, &format!("127.0.0.1:{port}")]);
    }
    let mut demo = Guard(command.spawn().unwrap());
    eventually("it listens", Duration::from_secs(5), || std::net::TcpStream::connect(("127.0.0.1", mqtt)).is_ok());
    let mut c = Raw::connect_with(mqtt, Version::V311, "looker", true, &[]);
    c.subscribe("#", 0);
    let mut kinds = BTreeSet::new();
    while kinds.len() < 4 {
        let p = c.expect_publish();
        kinds.insert(p.topic.rsplit('/').next().unwrap().to_owned());
        assert!(begun.elapsed() < Duration::from_secs(5), "{kinds:?} after {:?}", begun.elapsed());
    }
    assert!(kinds.iter().eq(["climate", "position", "state", "status"]), "{kinds:?}");
    eventually("fifty devices", Duration::from_secs(5), || metric(admin, "weir_connections") >= 50);
    eventually("one of them falls behind", Duration::from_secs(20), || metric(admin, "weir_sessions_behind") == 1);
    let mut will = Raw::connect_with(mqtt, Version::V311, "will", true, &[]);
    will.subscribe("site/faro/flaky/status", 0);
    while will.expect_publish().payload != "gone" {}
    let mut said = String::new();
    signal(demo.0.id(), "TERM");
    std::io::Read::read_to_string(&mut demo.0.stdout.take().unwrap(), &mut said).unwrap();
    assert_eq!(demo.wait(Duration::from_secs(10)).code(), Some(0));
    assert!(said.contains(&format!("http://127.0.0.1:{http}/")), "{said}");
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0, "its data is thrown away");
}
