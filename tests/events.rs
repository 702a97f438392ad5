//! What happens to clients is a record under `$SYS/events`, and `$SYS/broker` has what mosquitto's dashboards look for: with mosquitto's own client.

mod support;

use serde_json::Value;
use std::{io::Write, process::Command, time::Duration};
use support::{
    Collected, Weir, binary, command, dir, eventually, free_port, http_get,
    raw::{PUBACK, Raw, Version},
};

fn mosquitto_sub(port: u16, args: &[&str]) -> Collected {
    let mut command = Command::new("mosquitto_sub");
    Collected::spawn(command.args(["-p", &port.to_string()]).args(args))
}

/// A session that waits for events of these topics; there once this returns.
fn watch(weir: &Weir, filter: &str) -> Collected {
    let events = mosquitto_sub(weir.mqtt, &["-t", filter, "-v", "-q", "1", "-i", "watcher"]);
    // Its session is there at CONNECT, its subscription later: what happens between is not owed.
    eventually("watcher subscribes", Duration::from_secs(20), || http_get(weir.admin, "/api/v1/sessions/watcher").contains(filter));
    events
}

/// Topic and JSON.
fn event(line: &str) -> (String, Value) {
    let (topic, json) = line.split_once(' ').expect("topic and payload");
    (topic.into(), serde_json::from_str(json).unwrap_or_else(|e| panic!("{line}: {e}")))
}

/// The next event of this topic.
fn wait_for(events: &Collected, topic: &str) -> Value {
    for _ in 0..100 {
        let (got, json) = event(&events.line());
        if got == topic {
            return json;
        }
    }
    panic!("no {topic}");
}

#[test]
fn what_happens_to_clients_is_told_and_can_be_read_later() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let events = watch(&weir, "$SYS/events/#");

    let mut a = Raw::connect_with(weir.mqtt, Version::V5, "a/1", true, &[]);
    let connected = wait_for(&events, "$SYS/events/connected/a%2F1");
    assert_eq!((&connected["client"], &connected["version"], &connected["clean_start"]), (&"a/1".into(), &"5".into(), &true.into()));
    assert!(connected["address"].as_str().is_some_and(|a| a.starts_with("127.0.0.1:")), "{connected}");
    a.disconnect();
    assert_eq!(wait_for(&events, "$SYS/events/closed/a%2F1")["reason"], "disconnect");

    let first = Raw::connect_with(weir.mqtt, Version::V5, "b", true, &[]);
    let second = Raw::connect_with(weir.mqtt, Version::V5, "b", true, &[]);
    let closed = wait_for(&events, "$SYS/events/closed/b");
    assert_eq!((&closed["reason"], &closed["code"]), (&"taken_over".into(), &0x8E.into()));
    drop((first, second));
    assert_eq!(wait_for(&events, "$SYS/events/closed/b")["reason"], "socket");

    let mut c = Raw::connect_with(weir.mqtt, Version::V5, "c", true, &[]);
    c.send(0x30, &[0]);
    let closed = wait_for(&events, "$SYS/events/closed/c");
    assert!(closed["reason"] == "violation" && closed["statement"].as_str().is_some_and(|s| !s.is_empty()), "{closed}");

    // A publish to a topic of the gateway's own is refused, and told of.
    let mut d = Raw::connect_with(weir.mqtt, Version::V5, "d", true, &[]);
    d.publish(1, false, 1, "$SYS/events/closed/x", "forged");
    assert_eq!(d.expect_ack(PUBACK, 1), 0x87);
    let refused = wait_for(&events, "$SYS/events/refused/d");
    assert_eq!((&refused["reason"], &refused["messages"]), (&"topic".into(), &1.into()));

    // A group may read them, and a session that reads nothing else is behind in nothing else.
    let mut member = Raw::connect_with(weir.mqtt, Version::V5, "member", true, &[]);
    assert_eq!(member.subscribe("$share/g/$SYS/events/refused/+", 1), 1);
    let explained = Command::new(binary()).args(["explain", "watcher", "--admin", &format!("127.0.0.1:{}", weir.admin)]).output().unwrap();
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(explained.contains("system/0: ") && !explained.contains("default/0"), "{explained}");
    // A session without a name could never be found again: refused.
    let mut nameless = std::net::TcpStream::connect(("127.0.0.1", weir.mqtt)).unwrap();
    nameless.write_all(b"\x10\x0c\x00\x04MQTT\x04\x00\x00\x00\x00\x00").unwrap();
    let p = member.expect_publish();
    assert!(p.topic.starts_with("$SYS/events/refused/") && p.payload.contains("\"code\""), "{p:?}");
    member.ack(PUBACK, p.id);

    // Who subscribes to everything gets none of it.
    let mut all = Raw::connect_with(weir.mqtt, Version::V5, "all", true, &[]);
    assert_eq!(all.subscribe("#", 1), 1);
    all.expect_silence();

    // They are in the log: of one client, in order, after a restart.
    let ports = weir.ports();
    assert_eq!(weir.terminate(), Some(0));
    let weir = Weir::start_on(dir.path(), ports);
    let past = |filter: &str, n: &str| {
        let out = Command::new(binary())
            .args(["sub", "-p", &weir.mqtt.to_string(), "-t", filter, "--from", "earliest", "-C", n, "-F", "%t"])
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let topic = |kind: &str| format!("$SYS/events/{kind}/b\n");
    let (on, off) = (topic("connected"), topic("closed"));
    assert_eq!(past("$SYS/events/+/b", "4"), [on.as_str(), &off, &on, &off].concat());
    // Whoever was connected when it stopped is told of.
    assert_eq!(past("$SYS/events/closed/watcher", "1"), "$SYS/events/closed/watcher\n");
}

#[test]
fn who_falls_behind_is_told_of_until_it_is_live_again() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let events = watch(&weir, "$SYS/events/+/slow");
    let mut slow = Raw::connect_with(weir.mqtt, Version::V311, "slow", true, &[]);
    assert_eq!(slow.subscribe("s", 1), 1);
    assert_eq!(event(&events.line()).0, "$SYS/events/connected/slow");
    // It acknowledges nothing: its window fills, then what waits for it.
    let mut p = Raw::connect_with(weir.mqtt, Version::V311, "p", true, &[]);
    for n in 1..=3_000 {
        p.publish(1, false, n, "s", "x");
        p.expect_ack(PUBACK, n);
    }
    let (topic, json) = event(&events.line());
    assert!(topic == "$SYS/events/behind/slow" && json["records"].as_u64() > Some(0), "{topic} {json}");
    for _ in 0..3_000 {
        let id = slow.expect_publish().id;
        slow.ack(PUBACK, id);
    }
    assert_eq!(event(&events.line()).0, "$SYS/events/live/slow");
}

#[test]
fn the_broker_topics_have_mosquittos_names() {
    let dir = dir();
    let ports = [free_port(), free_port(), free_port()];
    let config = dir.path().join("weir.toml");
    std::fs::write(&config, "[events]\nsys_interval = \"1s\"\n").unwrap();
    let mut command = command(std::path::Path::new(binary().as_path()), &dir.path().join("data"), ports);
    let weir = Weir::spawn(
        {
            command.arg("-c").arg(&config);
            command
        },
        ports,
    );
    // Retained: there at once, for who asks in the way of scripts.
    let one = |topic: &str| mosquitto_sub(weir.mqtt, &["-t", topic, "-C", "1", "-W", "5"]).rest().concat();
    eventually("it is written", Duration::from_secs(5), || one("$SYS/broker/version").starts_with("weir version "));
    assert!(one("$SYS/broker/uptime").ends_with(" seconds"));
    let mut p = Raw::connect_with(weir.mqtt, Version::V311, "p", true, &[]);
    for n in 1..=50 {
        p.publish(1, false, n, "s", "x");
        p.expect_ack(PUBACK, n);
    }
    eventually("it counts", Duration::from_secs(5), || one("$SYS/broker/publish/messages/received") == "50");
    assert_eq!(one("$SYS/broker/publish/bytes/received"), "50");
    // The log is the message store.
    assert_eq!(one("$SYS/broker/store/messages/count"), "50");
    assert!(one("$SYS/broker/load/publish/received/1min").parse::<f64>().unwrap() > 0.0);
    // Who asks may be there when they are counted, and is so once in a while.
    eventually("one is connected", Duration::from_secs(10), || one("$SYS/broker/clients/connected") == "1");
}

/// Every name that mosquitto writes, and after the same traffic the numbers that it has.
#[test]
fn the_broker_topics_count_what_mosquittos_count() {
    let dir = dir();
    let ports = [free_port(), free_port(), free_port()];
    let config = dir.path().join("weir.toml");
    std::fs::write(&config, "[events]\nsys_interval = \"1s\"\n").unwrap();
    let mut ours = command(std::path::Path::new(binary().as_path()), &dir.path().join("data"), ports);
    ours.arg("-c").arg(&config);
    let weir = Weir::spawn(ours, ports);
    let port = free_port();
    let config = dir.path().join("mosquitto.conf");
    std::fs::write(&config, format!("listener {port} 127.0.0.1\nallow_anonymous true\nsys_interval 1\n")).unwrap();
    let mut theirs = std::process::Command::new("mosquitto");
    theirs.arg("-c").arg(&config).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let _mosquitto = support::Guard(theirs.spawn().unwrap());
    let both = [weir.mqtt, port];
    let listens = |port| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
    eventually("mosquitto listens", Duration::from_secs(10), || listens(port));
    for port in both {
        for (id, filter) in [("waits", "t/#"), ("shares", "$share/g/s/#")] {
            Raw::connect_with(port, Version::V311, id, false, &[]).subscribe(filter, 1);
        }
        let mut p = Raw::connect_with(port, Version::V311, "p", true, &[]);
        for n in 1..=20 {
            p.publish(1, n % 2 == 0, n, "t/x", "12345");
            p.expect_ack(PUBACK, n);
        }
        // Packets of all kinds count, and not messages alone.
        for _ in 0..200 {
            p.send(0xC0, &[]);
            assert_eq!(p.read().head, 0xD0);
        }
    }
    let topics = |port| -> std::collections::BTreeMap<String, String> {
        let lines = mosquitto_sub(port, &["-t", "$SYS/broker/#", "-F", "%t=%p", "-W", "3"]).rest();
        lines.iter().filter_map(|l| l.split_once('=')).map(|(t, p)| (t.into(), p.into())).collect()
    };
    let counted = |port| topics(port).get("$SYS/broker/publish/messages/received").is_some_and(|n| n == "20");
    eventually("both have counted", Duration::from_secs(20), || both.into_iter().all(counted));
    let [mine, theirs] = both.map(topics);
    let missing: Vec<_> = theirs.keys().filter(|name| !mine.contains_key(*name)).collect();
    assert!(theirs.len() > 40 && missing.is_empty(), "{missing:?}");
    for name in ["publish/messages/received", "publish/bytes/received", "clients/disconnected", "clients/inactive", "clients/expired"] {
        let name = format!("$SYS/broker/{name}");
        assert_eq!(mine[&name], theirs[&name], "{name}");
    }
    let number = |of: &std::collections::BTreeMap<String, String>, name: &str| of[&format!("$SYS/broker/{name}")].parse::<f64>().unwrap();
    assert_eq!(number(&mine, "shared_subscriptions/count"), 1.0);
    // Those who ask are counted too, by either at its own pace: they differ by a few.
    for name in ["messages/received", "messages/sent", "load/connections/1min", "load/sockets/1min", "load/messages/received/1min"] {
        let (a, b) = (number(&mine, name), number(&theirs, name));
        assert!(a > 0.0 && b > 0.0 && (a - b).abs() <= 12.0 + b * 0.5, "{name}: {a} beside {b}");
    }
    assert!(number(&mine, "heap/current") > 1e6 && number(&mine, "heap/maximum") >= number(&mine, "heap/current"));
}
