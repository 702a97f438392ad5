//! Debian's mosquitto: its clients, 3.1.1 and 5, with QoS 0 and 1, retained, wills, persistent sessions, and all of it over a restart; and the broker's bridge.

mod support;

use std::{
    process::{Command, Stdio},
    time::Duration,
};
use support::{
    Collected, Guard, Weir, dir, eventually, free_port, http_get,
    raw::{PUBACK, Raw, Version},
};

const VERSIONS: [&str; 2] = ["mqttv311", "mqttv5"];

fn publish(weir: &Weir, version: &str, args: &[&str]) {
    let status = Command::new("mosquitto_pub").args(["-p", &weir.mqtt.to_string(), "-V", version]).args(args).status().unwrap();
    assert!(status.success(), "mosquitto_pub {args:?}");
}

/// Subscribed when this returns: mosquitto_sub says so with -d.
fn subscribe(weir: &Weir, version: &str, args: &[&str]) -> Collected {
    let mut command = Command::new("stdbuf");
    command.args(["-oL", "mosquitto_sub", "-p", &weir.mqtt.to_string(), "-V", version, "-d", "-F", "%t|%p|q%q|r%r"]).args(args);
    let sub = Collected::spawn(&mut command);
    // A persistent session gets what it missed at once, before the SUBACK.
    let mut early = Vec::new();
    loop {
        match sub.line() {
            line if line.starts_with("Subscribed") => break,
            line if line.contains('|') => early.push(line),
            _ => {}
        }
    }
    sub.keep(early);
    sub
}

/// The next message, past what -d says.
fn message(sub: &Collected) -> String {
    loop {
        let line = sub.line();
        if line.contains('|') {
            return line;
        }
    }
}

#[test]
fn qos_0_and_1_in_both_versions() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    for version in VERSIONS {
        let sub = subscribe(&weir, version, &["-t", "a/#", "-q", "1"]);
        for (n, other) in VERSIONS.iter().enumerate() {
            publish(&weir, other, &["-t", "a/b", "-m", &format!("one-{n}"), "-q", "1"]);
            publish(&weir, other, &["-t", "a/c", "-m", &format!("zero-{n}"), "-q", "0"]);
            publish(&weir, other, &["-t", "b/c", "-m", "elsewhere", "-q", "1"]);
            assert_eq!(message(&sub), format!("a/b|one-{n}|q1|r0"), "{version} from {other}");
            assert_eq!(message(&sub), format!("a/c|zero-{n}|q0|r0"), "{version} from {other}");
        }
    }
}

#[test]
fn a_retained_message_is_kept_replaced_deleted_and_survives_sigkill() {
    let dir = dir();
    let mut weir = Weir::start(dir.path());
    for version in VERSIONS {
        publish(&weir, version, &["-t", "r/1", "-m", "old", "-q", "1", "-r"]);
        publish(&weir, version, &["-t", "r/1", "-m", "new", "-q", "1", "-r"]);
        publish(&weir, version, &["-t", "r/2", "-m", "deleted", "-q", "1", "-r"]);
        publish(&weir, version, &["-t", "r/2", "-n", "-q", "1", "-r"]);
        let ports = weir.ports();
        weir.kill();
        weir = Weir::start_on(dir.path(), ports);
        let sub = subscribe(&weir, version, &["-t", "r/#", "-q", "1"]);
        assert_eq!(message(&sub), "r/1|new|q1|r1");
        publish(&weir, version, &["-t", "r/3", "-m", "live", "-q", "1"]);
        assert_eq!(message(&sub), "r/3|live|q1|r0", "nothing stands between: r/2 was deleted");
    }
}

#[test]
fn a_will_is_published_when_its_client_dies_and_not_when_it_says_goodbye() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let watcher = subscribe(&weir, "mqttv5", &["-t", "will/#", "-q", "1"]);
    for version in VERSIONS {
        let will = ["-t", "x", "--will-topic", "will/a", "--will-payload", version, "--will-qos", "1"];
        publish(&weir, version, &[&will[..], &["-m", "polite"]].concat());
        watcher.assert_quiet_messages(Duration::from_millis(300));
        let mut dying = subscribe(&weir, version, &will);
        dying.guard.0.kill().unwrap();
        assert_eq!(message(&watcher), format!("will/a|{version}|q1|r0"));
    }
}

#[test]
fn a_will_of_a_client_that_was_connected_when_the_gateway_was_killed_is_published_once_at_the_next_start() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let ports = weir.ports();
    let _dying = subscribe(&weir, "mqttv5", &["-t", "x", "--will-topic", "will/b", "--will-payload", "gone", "--will-qos", "1"]);
    let watcher = ["-t", "will/#", "-q", "1", "-c", "-i", "watcher"];
    drop(subscribe(&weir, "mqttv311", &watcher));
    weir.kill();
    for round in 0..2 {
        let weir = Weir::start_on(dir.path(), ports);
        let sub = subscribe(&weir, "mqttv311", &watcher);
        if round == 0 {
            assert_eq!(message(&sub), "will/b|gone|q1|r0");
            // Acknowledged and stored before the next end.
            std::thread::sleep(Duration::from_millis(500));
        } else {
            sub.assert_quiet_messages(Duration::from_millis(500));
        }
        weir.kill();
    }
}

#[test]
fn a_persistent_session_gets_what_it_missed_in_order_over_sigkill_and_sigterm() {
    let dir = dir();
    let mut weir = Weir::start(dir.path());
    let ports = weir.ports();
    for version in VERSIONS {
        let args = |version: &str| {
            let mut args =
                vec!["-t".to_owned(), "p/#".into(), "-q".into(), "1".into(), "-c".into(), "-i".into(), format!("keeper-{version}")];
            if version == "mqttv5" {
                args.extend(["-x".to_owned(), "3600".into()]);
            }
            args
        };
        let args = args(version);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        drop(subscribe(&weir, version, &args));
        for n in 0..50 {
            publish(&weir, version, &["-t", "p/x", "-m", &n.to_string(), "-q", "1"]);
            match n {
                20 => weir.kill(),
                35 => assert_eq!(weir.terminate(), Some(0)),
                _ => continue,
            }
            weir = Weir::start_on(dir.path(), ports);
        }
        let sub = subscribe(&weir, version, &args);
        for n in 0..50 {
            assert_eq!(message(&sub), format!("p/x|{n}|q1|r0"), "{version}");
        }
        // A clean start ends it.
        drop(sub);
        drop(subscribe(&weir, version, &["-t", "other", "-i", args[6]]));
        publish(&weir, version, &["-t", "p/x", "-m", "for-nobody", "-q", "1"]);
        let sub = subscribe(&weir, version, &args);
        sub.assert_quiet_messages(Duration::from_millis(300));
    }
}

impl Collected {
    /// No message, whatever -d says.
    fn assert_quiet_messages(&self, wait: Duration) {
        let end = std::time::Instant::now() + wait;
        while std::time::Instant::now() < end {
            match self.try_line(Duration::from_millis(50)) {
                Some(line) => assert!(!line.contains('|'), "unexpected: {line}"),
                None => continue,
            }
        }
    }
}

#[test]
fn a_takeover_closes_the_first_client() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    for version in VERSIONS {
        let first = subscribe(&weir, version, &["-t", "t", "-i", "same"]);
        let second = subscribe(&weir, version, &["-t", "t", "-i", "same"]);
        // It may come back at once and take over in turn; that it was closed shows either way.
        let mut closed = false;
        eventually("the first client is closed", Duration::from_secs(5), || {
            closed |= first.try_line(Duration::from_millis(10)).is_some_and(|l| l.contains("CONNECT") || l.contains("Subscribed"));
            closed
        });
        drop((first, second));
    }
}

/// Everything that comes for half a second.
fn drain(c: &mut Raw) -> Vec<(String, String)> {
    let mut got = Vec::new();
    while let Some(p) = c.next(Duration::from_millis(500)) {
        let p = p.publish(Version::V311);
        if p.qos > 0 {
            c.ack(PUBACK, p.id);
        }
        got.push((p.topic, p.payload));
    }
    got
}

/// A bridge with mosquitto's defaults: retained messages and QoS 1 both ways, no storm between the two, and back after SIGKILL.
#[test]
fn the_bridge_of_mosquitto_carries_both_ways_and_comes_back() {
    for version in ["mqttv311", "mqttv50"] {
        let (dir, far_port) = (dir(), free_port());
        let mut weir = Weir::start(&dir.path().join("data"));
        let conf = dir.path().join("mosquitto.conf");
        let text = format!(
            "listener {far_port} 127.0.0.1\nallow_anonymous true\nconnection bridge\naddress 127.0.0.1:{}\nbridge_protocol_version {version}\n\
             cleansession false\ntopic up/# out 1\ntopic down/# in 1\ntopic both/# both 1\nrestart_timeout 1\n",
            weir.mqtt
        );
        std::fs::write(&conf, text).unwrap();
        let _broker = Guard(Command::new("/usr/sbin/mosquitto").arg("-c").arg(&conf).stderr(Stdio::null()).spawn().unwrap());
        eventually("the bridge is connected", Duration::from_secs(10), || http_get(weir.admin, "/api/v1/clients").contains("bridge"));
        let mut far = Raw::connect_with(far_port, Version::V311, "far", true, &[]);
        let mut near = Raw::connect_with(weir.mqtt, Version::V311, "near", true, &[]);
        far.subscribe("#", 1);
        near.subscribe("#", 1);
        // Its own subscriptions may still be on their way.
        std::thread::sleep(Duration::from_secs(1));
        drain(&mut far);
        drain(&mut near);
        let publish = |c: &mut Raw, topic: &str, retain: u8, payload: &str| c.publish_with(1 << 1 | retain, 1, topic, &[], payload);
        for (c, all) in [(&mut far, [("up/1", 1), ("both/1", 0)]), (&mut near, [("down/1", 1), ("both/2", 0)])] {
            all.iter().for_each(|(topic, retain)| publish(c, topic, *retain, "x"));
        }
        let topics = |c: &mut Raw| {
            let mut got = Vec::new();
            // Until nothing has come for a second: acknowledgements of its own come between.
            while let Some(p) = c.next(Duration::from_secs(1)) {
                if p.head != PUBACK {
                    let p = p.publish(Version::V311);
                    c.ack(PUBACK, p.id);
                    got.push(p.topic);
                }
                assert!(got.len() < 20, "a storm: {got:?}");
            }
            got.sort_unstable();
            got
        };
        for (name, got) in [("far", topics(&mut far)), ("near", topics(&mut near))] {
            assert_eq!(got, ["both/1", "both/2", "down/1", "up/1"], "{version}, {name}");
        }
        let mut late = Raw::connect_with(far_port, Version::V311, "late", true, &[]);
        late.subscribe("down/1", 1);
        assert!(late.expect_publish().retain, "{version}: retained at the other end too");
        let ports = weir.ports();
        weir.kill();
        publish(&mut far, "up/2", 0, "while it was away");
        weir = Weir::start_on(&dir.path().join("data"), ports);
        let mut near = Raw::connect_with(weir.mqtt, Version::V311, "near", true, &[]);
        near.subscribe("up/2", 1);
        assert_eq!(near.expect_publish().payload, "while it was away", "{version}");
        let mut late = Raw::connect_with(weir.mqtt, Version::V311, "late", true, &[]);
        late.subscribe("up/1", 1);
        assert!(late.expect_publish().retain, "{version}");
    }
}
