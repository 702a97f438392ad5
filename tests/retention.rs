//! P6: the log is a ring that never passes what somebody still needs to know: retained messages outlive their segments, a start reads only what the
//! last checkpoint did not see, and who comes too late is told what is gone and gets the rest.

mod support;

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    time::{Duration, Instant},
};
use support::{
    Weir, binary, command, dir, eventually, free_port, http_get,
    raw::{PUBACK, PUBREC, Raw, Version},
    signal,
};

fn start(data: &Path, ports: [u16; 3], bytes: &str) -> Weir {
    start_with(data, ports, &["--retention-bytes", bytes])
}

fn start_with(data: &Path, ports: [u16; 3], flags: &[&str]) -> Weir {
    let mut command = command(&binary(), data, ports);
    command.stderr(std::fs::File::create(said(data)).unwrap());
    command.args(flags);
    Weir::spawn(command, ports)
}

/// Where it says what it says.
fn said(data: &Path) -> std::path::PathBuf {
    data.with_extension("said")
}

fn ports() -> [u16; 3] {
    [free_port(), free_port(), free_port()]
}

/// Publishes `mib` MiB to `fill/x`.
fn fill(port: u16, mib: usize) {
    let mut p = Raw::connect_with(port, Version::V311, "filler", true, &[]);
    let payload = "x".repeat(64 * 1024);
    for n in 0..mib * 16 {
        let id = (n % 60_000) as u16 + 1;
        p.publish(1, false, id, "fill/x", &payload);
        if n >= 32 {
            p.expect_ack(PUBACK, ((n - 32) % 60_000) as u16 + 1);
        }
    }
    for n in mib * 16 - 32..mib * 16 {
        p.expect_ack(PUBACK, (n % 60_000) as u16 + 1);
    }
}

fn segments(data: &Path) -> usize {
    let names = std::fs::read_dir(data.join("streams/default/0")).unwrap();
    names.filter(|n| n.as_ref().unwrap().file_name().to_string_lossy().ends_with(".log")).count()
}

#[test]
fn p6_the_log_is_a_ring_who_comes_late_is_told_the_range_and_what_is_retained_outlives_it() {
    let dir = dir();
    let (data, ports) = (dir.path().join("data"), ports());
    let mut weir = start(&data, ports, "128MiB");
    let mut p = Raw::connect_with(weir.mqtt, Version::V5, "p", true, &[]);
    // With properties and an expiry far away.
    p.publish_with(0x03, 1, "kept/a", &[0x03, 0, 1, b't', 0x02, 0, 0, 0x0E, 0x10], "old value");
    p.expect_ack(PUBACK, 1);
    p.publish_with(0x03, 2, "kept/b", &[], "deleted");
    p.publish_with(0x03, 3, "kept/b", &[], "");
    p.expect_ack(PUBACK, 2);
    p.expect_ack(PUBACK, 3);
    // A session that is away, a group, and an exchange that is open all the time.
    let mut late = Raw::connect(weir.mqtt, Version::V5, "late");
    late.subscribe("fill/#", 1);
    drop(late);
    let mut open = Raw::connect(weir.mqtt, Version::V5, "open");
    open.publish(2, false, 7, "once/x", "once");
    open.expect_ack(PUBREC, 7);
    drop(open);
    fill(weir.mqtt, 400);
    eventually("retention", Duration::from_secs(10), || segments(&data) <= 3);
    for round in 0..2 {
        let mut looker = Raw::connect_with(weir.mqtt, Version::V5, "looker", true, &[]);
        looker.subscribe("kept/#", 1);
        let m = looker.expect_publish();
        assert_eq!((&*m.topic, &*m.payload, m.retain), ("kept/a", "old value", true), "round {round}");
        assert!(m.properties.windows(4).any(|w| w == [0x03, 0, 1, b't']), "{:02x?}", m.properties);
        looker.ack(PUBACK, m.id);
        looker.expect_silence();
        // The packet id is still known: its record has long gone.
        let mut open = Raw::connect(weir.mqtt, Version::V5, "open");
        open.publish(2, true, 7, "once/x", "once");
        open.expect_ack(PUBREC, 7);
        drop(open);
        weir.kill();
        weir = start(&data, ports, "128MiB");
    }
    // It is said before it happens, and after.
    let explain = |client: &str| {
        let out =
            std::process::Command::new(binary()).args(["explain", client, "--admin", &format!("127.0.0.1:{}", ports[2])]).output().unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    assert!(explain("late").contains("are lost for it, retention has taken them"), "{}", explain("late"));
    let mut waits = Raw::connect(weir.mqtt, Version::V5, "waits");
    waits.subscribe("wait/#", 1);
    drop(waits);
    p = Raw::connect_with(weir.mqtt, Version::V5, "p", true, &[]);
    // What is written in a minute says how the log grows on.
    for id in 1..=2 {
        p.publish(1, false, id, "wait/x", "x");
        p.expect_ack(PUBACK, id);
        std::thread::sleep(Duration::from_millis(500));
    }
    let foreseen = || explain("waits").contains("if it reads no further, retention takes the first that waits for it about 20");
    eventually("a loss is foreseen", Duration::from_secs(80), foreseen);
    // Who asks for what is gone is told the range on the wire.
    let mut past = std::process::Command::new(binary());
    past.args(["sub", "-p", &ports[0].to_string(), "-t", "fill/#", "--from", "0", "-C", "1", "-F", "%P"]);
    let told = String::from_utf8_lossy(&past.output().unwrap().stdout).into_owned();
    let word =
        |name: &str| told.split_whitespace().find_map(|w| w.strip_prefix(name)).unwrap_or_else(|| panic!("{name} {told}")).to_owned();
    let gone: usize = word("offset:").parse().unwrap();
    assert_eq!(word("lost:"), format!("default/0:0-{gone}"), "{told}");
    // Who was away gets what is left, from the first record of the ring on, and goes on.
    let mut late = Raw::connect(weir.mqtt, Version::V5, "late");
    assert!(late.session_present);
    let mut got = 0;
    while let Some(p) = late.next(Duration::from_secs(1)) {
        late.ack(PUBACK, p.publish_id());
        got += 1;
    }
    assert!((100..400 * 16).contains(&got), "{got} of {}", 400 * 16);
    // The exact range: its session began at record 3; record 3 is not for it, and all that follow are.
    let words = std::fs::read_to_string(said(&data)).unwrap();
    let told = words.lines().find(|l| l.contains("are lost for this client") && l.contains("\"late\"")).expect("told");
    let end: usize = told.split("records [3, ").nth(1).and_then(|r| r.split(')').next()?.parse().ok()).expect(told);
    assert_eq!(got, 400 * 16 - (end - 4), "{told}");
    fill(weir.mqtt, 4);
    let more = std::iter::from_fn(|| late.next(Duration::from_millis(500))).take(1).count();
    assert_eq!(more, 1);
    drop(late);
    let metrics = http_get(weir.admin, "/metrics");
    assert!(metrics.contains(&format!("weir_lost_records_total {}\n", end - 3 + gone)), "counted: {metrics}");
    assert_eq!(weir.terminate(), Some(0));
}

#[test]
fn what_is_older_than_its_age_goes_and_nothing_younger() {
    let dir = dir();
    let (data, ports) = (dir.path().join("data"), ports());
    let weir = start_with(&data, ports, &["--retention-bytes", "0", "--retention-age", "3s"]);
    fill(weir.mqtt, 140);
    let before = segments(&data);
    assert!(before >= 2, "the newest sealed one is younger");
    eventually("the sealed ones go", Duration::from_secs(10), || segments(&data) == 1);
    drop(weir);
}

#[test]
fn a_start_reads_what_the_last_checkpoint_did_not_see() {
    let dir = dir();
    let (data, ports) = (dir.path().join("data"), ports());
    let weir = start(&data, ports, "0");
    let mut p = Raw::connect_with(weir.mqtt, Version::V5, "p", true, &[]);
    p.publish_with(0x03, 1, "kept/a", &[], "value");
    p.expect_ack(PUBACK, 1);
    fill(weir.mqtt, 800);
    weir.kill();
    let begun = Instant::now();
    let weir = start(&data, ports, "0");
    let took = begun.elapsed();
    let mut looker = Raw::connect_with(weir.mqtt, Version::V5, "looker", true, &[]);
    looker.subscribe("kept/#", 1);
    assert_eq!(looker.expect_publish().payload, "value");
    // One segment is 64 MiB: a debug build reads it in far less than this, and 800 MiB in far more.
    println!("started in {took:?}");
    assert!(took < Duration::from_millis(1_500), "{took:?}");
}

#[test]
fn retention_is_taken_on_sighup() {
    let dir = dir();
    let (data, ports) = (dir.path().join("data"), ports());
    let file = dir.path().join("weir.toml");
    let write = |bytes: &str| std::fs::write(&file, format!("[log]\nretention_bytes = \"{bytes}\"\n")).unwrap();
    write("1GiB");
    let weir = start_with(&data, ports, &["-c", file.to_str().unwrap()]);
    fill(weir.mqtt, 200);
    assert!(segments(&data) > 3, "all of it is kept");
    write("64MiB");
    signal(weir.process.0.id(), "HUP");
    eventually("less is kept", Duration::from_secs(10), || segments(&data) <= 2);
    assert_eq!(weir.terminate(), Some(0));
}

fn metric(weir: &Weir, name: &str) -> u64 {
    let metrics = http_get(weir.admin, "/metrics");
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("{name}: {metrics}"))
}

/// The records that go were offered to others and not to these sessions: they have passed them, connected or not, and over SIGKILL.
#[test]
fn nothing_is_lost_for_a_session_whose_messages_have_all_come() {
    let dir = dir();
    let (data, ports) = (dir.path().join("data"), ports());
    let mut weir = start(&data, ports, "64MiB");
    let forever = [0x11, 0xFF, 0xFF, 0xFF, 0xFE];
    let quiet = |name: &str| {
        let mut c = Raw::connect_with(ports[0], Version::V5, name, false, &forever);
        c.subscribe("quiet/x", 1);
        c
    };
    let stays = quiet("stays");
    let mut member = Raw::connect_with(ports[0], Version::V5, "member", false, &forever);
    member.subscribe("$share/g/quiet/x", 1);
    let goes = quiet("goes");
    fill(weir.mqtt, 40);
    drop((goes, quiet("between")));
    fill(weir.mqtt, 300);
    eventually("retention", Duration::from_secs(10), || segments(&data) <= 2);
    drop((stays, member));
    let begins = |weir: &Weir| metric(weir, "weir_log_start_offset{stream=\"default\",partition=\"0\"}");
    let start_now = begins(&weir);
    assert!(start_now > 40 * 16, "what was before these went has gone too: {start_now}");
    let say = |what: bool| {
        let mut p = Raw::connect_with(ports[0], Version::V5, "p", true, &[]);
        p.publish(1, false, 1, "quiet/x", &format!("{what}"));
        p.expect_ack(PUBACK, 1);
    };
    // Of what was published while they were connected nothing is lost; what came later was not read by those who had gone.
    for killed in [false, true] {
        if killed {
            weir.kill();
            weir = start(&data, ports, "64MiB");
        }
        let mut all = ["stays", "member"].map(|name| Raw::connect_with(ports[0], Version::V5, name, false, &forever));
        // Behind what it was away for, which has been looked through then.
        say(killed);
        for c in &mut all {
            assert!(c.session_present);
            let m = c.expect_publish();
            assert_eq!(m.payload, format!("{killed}"));
            c.ack(PUBACK, m.id);
        }
        // The kill is not to come before their cursors are in the store.
        std::thread::sleep(Duration::from_secs(1));
        let words = std::fs::read_to_string(said(&data)).unwrap();
        assert_eq!(metric(&weir, "weir_lost_records_total"), 0, "killed: {killed}: {words}");
    }
    let words = std::fs::read_to_string(said(&data)).unwrap();
    assert!(!words.contains("are lost for"), "{words}");
    // Who went before has passed what it was connected for.
    let mut goes = Raw::connect_with(ports[0], Version::V5, "goes", false, &forever);
    assert_eq!(goes.expect_publish().payload, "true");
    let (lost, start_now) = (metric(&weir, "weir_lost_records_total"), begins(&weir));
    assert!((1..=start_now - 40 * 16).contains(&lost), "{lost} of {start_now}");
}

/// Publishers wait for who has not read, and a client that reads and publishes on one connection goes on reading.
#[test]
fn what_is_young_and_unread_is_kept_and_publishers_wait() {
    let dir = dir();
    let (data, ports) = (dir.path().join("data"), ports());
    let begin = |data: &Path| {
        let mut command = command(&binary(), data, ports);
        command.args(["--retention-bytes", "64MiB"]).env("WEIR__LOG__RETENTION_MIN_AGE", "1h");
        Weir::spawn(command, ports)
    };
    let mut weir = begin(&data);
    let forever = [0x11, 0xFF, 0xFF, 0xFF, 0xFE];
    let mut reader = Raw::connect_with(weir.mqtt, Version::V5, "reader", false, &forever);
    reader.subscribe("fill/#", 1);
    drop(reader);
    let mut loud = Raw::connect_with(weir.mqtt, Version::V5, "loud", true, &[]);
    let payload = "x".repeat(64 * 1024);
    let held = |weir: &Weir| metric(weir, "weir_publishers_held") == 1;
    let mut sent = 0u64;
    while !held(&weir) {
        for _ in 0..16 {
            loud.publish(1, false, 1, "fill/x", &payload);
            match loud.next(Duration::from_secs(2)) {
                Some(ack) => assert_eq!(ack.head, PUBACK),
                None => break,
            }
            sent += 1;
        }
        assert!(sent < 16 * 500, "nobody waits");
    }
    for _ in 0..2 {
        // It is kept over SIGKILL: the cursors are in the store.
        weir.kill();
        weir = begin(&data);
        eventually("held again", Duration::from_secs(5), || held(&weir));
        assert_eq!(metric(&weir, "weir_log_start_offset{stream=\"default\",partition=\"0\"}"), 0);
    }
    let mut loud = Raw::connect_with(weir.mqtt, Version::V5, "loud", true, &[]);
    loud.publish(1, false, 3, "fill/x", "later");
    assert!(loud.next(Duration::from_secs(1)).is_none() && !loud.is_closed(), "it waits");
    // One that has gone is seen to have gone, though nobody reads what it sent.
    let connections = || metric(&weir, "weir_connections");
    let before = connections();
    let mut gone = TcpStream::connect(("127.0.0.1", weir.mqtt)).unwrap();
    gone.write_all(&support::slow::connect_packet("gone", 1)).unwrap();
    gone.write_all(&[&[0x30, 0xC3, 0xB8, 0x02, 0, 1, b't'][..], &[b'x'; 40_000]].concat()).unwrap();
    eventually("it is there", Duration::from_secs(5), || connections() == before + 1);
    drop(gone);
    eventually("it has gone", Duration::from_secs(10), || connections() == before);
    // The reader publishes too, before it subscribes and for each message that it gets, and its acknowledgements stand behind that.
    let mut reader = Raw::connect_with(weir.mqtt, Version::V5, "reader", false, &forever);
    let (mut got, mut answers) = (0, 0);
    reader.publish(1, false, 9, "answer/x", &"y".repeat(20_000));
    reader.publish(1, false, 10, "answer/x", "y");
    // Two minutes' worth, if publishers waited so long.
    let mut other = Raw::connect_with(weir.mqtt, Version::V5, "other", false, &forever);
    other.subscribe("nothing", 1);
    other.publish(1, false, 11, "answer/x", &"y".repeat(2_000_000));
    other.expect_ack(PUBACK, 11);
    other.publish(1, false, 12, "answer/x", "y");
    reader.send_subscribe("fill/#", 1);
    let derived = "d".repeat(140);
    while got < sent {
        let p = reader.next(Duration::from_secs(15)).unwrap_or_else(|| panic!("{got} of {sent}"));
        match p.head {
            PUBACK => answers += 1,
            0x90 => {}
            _ => {
                reader.publish(0, false, 0, "derived", &derived);
                reader.ack(PUBACK, p.publish_id());
                got += 1;
            }
        }
    }
    // It has read, and they go on.
    other.expect_ack(PUBACK, 12);
    loud.expect_ack(PUBACK, 3);
    while answers < 2 {
        let p = reader.read();
        if p.head == PUBACK {
            answers += 1;
        } else {
            reader.ack(PUBACK, p.publish_id());
        }
    }
    assert_eq!((metric(&weir, "weir_lost_records_total"), metric(&weir, "weir_retention_unread_records_total")), (0, 0));
    eventually("room is made", Duration::from_secs(10), || segments(&data) <= 2 && !held(&weir));
}

/// 64 MiB, of which nothing goes in the next hour that somebody has yet to read.
fn start_held(data: &Path) -> Weir {
    let ports = ports();
    let mut command = command(&binary(), data, ports);
    command.args(["--retention-bytes", "64MiB", "--retention-min-age", "1h"]);
    Weir::spawn(command, ports)
}

/// Publishes until publishers wait. Gives how many messages came before.
fn fill_until_held(weir: &Weir, topic: &str) -> u64 {
    let mut loud = Raw::connect_with(weir.mqtt, Version::V5, "loud", true, &[]);
    let payload = "x".repeat(64 * 1024);
    for sent in 0..8_000 {
        loud.publish(1, false, 1, topic, &payload);
        if loud.next(Duration::from_secs(2)).is_none() {
            assert_eq!(metric(weir, "weir_publishers_held"), 1);
            return sent;
        }
    }
    panic!("nobody waits");
}

/// A worker takes a job, publishes what became of it, and acknowledges the job then: it is waited for, whatever its session is.
#[test]
fn a_member_of_a_group_without_a_session_publishes_on_while_publishers_wait() {
    let dir = dir();
    let weir = start_held(&dir.path().join("data"));
    let mut worker = Raw::connect_with(weir.mqtt, Version::V311, "worker", true, &[]);
    worker.subscribe("$share/g/jobs/#", 1);
    let sent = fill_until_held(&weir, "jobs/x");
    let (mut jobs, mut results, mut next) = (0, 0, 1);
    while jobs < sent || results < jobs {
        let p = worker.next(Duration::from_secs(15)).unwrap_or_else(|| panic!("{jobs} of {sent} jobs, {results} results"));
        if p.head == PUBACK {
            results += 1;
            continue;
        }
        worker.publish(1, false, next, "results/x", "done");
        worker.ack(PUBACK, p.publish_id());
        (jobs, next) = (jobs + 1, next % 60_000 + 1);
    }
}

/// Whoever reads publishes on, and what comes of that has an end, whatever way it comes.
#[test]
fn a_log_that_is_held_grows_so_far_and_no_further() {
    let dir = dir();
    let weir = start_held(&dir.path().join("data"));
    let forever = [0x11, 0xFF, 0xFF, 0xFF, 0xFE];
    let mut reader = Raw::connect_with(weir.mqtt, Version::V5, "reader", false, &forever);
    reader.subscribe("fill/#", 1);
    drop(reader);
    let _sent = fill_until_held(&weir, "fill/x");
    // What a connection publishes first is taken before it is paid for, and each is a new one.
    let connect = || Raw::connect_with(weir.mqtt, Version::V5, "echo", false, &forever);
    let mut echo = connect();
    echo.subscribe("echo", 0);
    let payload = "e".repeat(7_000_000);
    let level = || metric(&weir, "weir_publishers_held");
    for round in 0.. {
        assert!(round < 100, "it has not come there");
        echo = connect();
        echo.publish(1, false, 1, "other", &payload);
        if echo.next(Duration::from_secs(3)).is_none() && level() == 2 {
            break;
        }
    }
    echo = connect();
    std::thread::sleep(Duration::from_secs(2));
    let size = || metric(&weir, "weir_log_size_bytes{stream=\"default\",partition=\"0\"}") >> 20;
    let before = size();
    assert!((320..512).contains(&before), "{before} MiB");
    let mut goes = TcpStream::connect(("127.0.0.1", weir.mqtt)).unwrap();
    goes.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    goes.write_all(b"\x10\x17\x00\x04MQTT\x05\x06\x00\x3c\x00\x00\x01w\x00\x00\x01w\x00\x03xyz").unwrap();
    let mut connack = [0; 4];
    goes.read_exact(&mut connack).unwrap();
    assert_eq!(connack[3], 0x89, "a will is a message: {connack:?}");
    assert_eq!(size(), before);
    // It ends as it began: with those who read.
    let mut reader = Raw::connect_with(weir.mqtt, Version::V5, "reader", false, &forever);
    let end = Instant::now() + Duration::from_secs(60);
    while level() > 0 {
        assert!(Instant::now() < end, "they wait for nobody");
        while let Some(p) = reader.next(Duration::from_millis(50)) {
            reader.ack(PUBACK, p.publish_id());
        }
        while echo.next(Duration::from_millis(50)).is_some() {}
    }
    echo.publish(1, false, 1, "end", "x");
    while echo.read().head != PUBACK {}
}

/// Who pushes out what others have not read is named.
#[test]
fn who_pushes_out_what_others_have_not_read_is_named() {
    let dir = dir();
    let (data, ports) = (dir.path().join("data"), ports());
    let weir = start(&data, ports, "64MiB");
    let mut reader = Raw::connect(weir.mqtt, Version::V311, "reader");
    reader.subscribe("some/#", 1);
    drop(reader);
    let mut events = Raw::connect_with(weir.mqtt, Version::V5, "events", true, &[]);
    events.subscribe("$SYS/events/pushed_out/+", 1);
    let mut modest = Raw::connect_with(weir.mqtt, Version::V5, "modest", true, &[]);
    modest.publish(1, false, 1, "some/x", "small");
    modest.expect_ack(PUBACK, 1);
    // The filler has gone when somebody looks.
    fill(weir.mqtt, 200);
    let event = events.expect_publish();
    assert_eq!(event.topic, "$SYS/events/pushed_out/filler");
    let json: serde_json::Value = serde_json::from_str(&event.payload).unwrap();
    assert_eq!((&json["client"], &json["from"], &json["readers"]), (&"filler".into(), &0.into(), &1.into()), "{json}");
    assert!(json["bytes"].as_u64().is_some_and(|bytes| bytes > 60 << 20), "{json}");
    let metrics = http_get(weir.admin, "/metrics");
    assert!(metrics.contains("weir_retention_pushing_bytes{client=\"filler\"}") && !metrics.contains("client=\"modest\""), "{metrics}");
    assert!(metric(&weir, "weir_retention_unread_records_total") > 0);
    let words = std::fs::read_to_string(said(&data)).unwrap();
    assert!(words.lines().any(|l| l.contains("(sessions and groups: 1)") && l.contains("client=\"filler\"")), "{words}");
}

/// Not who published long ago and has all been read, and whatever the connections of a client.
#[test]
fn who_pushes_out_is_not_who_published_before() {
    let dir = dir();
    let (data, ports) = (dir.path().join("data"), ports());
    let weir = start(&data, ports, "64MiB");
    // This one has more bytes in the log's life, and nobody is behind.
    fill(weir.mqtt, 200);
    eventually("room is made", Duration::from_secs(10), || segments(&data) <= 2);
    let mut reader = Raw::connect(weir.mqtt, Version::V311, "reader");
    reader.subscribe("some/#", 1);
    drop(reader);
    let mut events = Raw::connect_with(weir.mqtt, Version::V5, "events", true, &[]);
    events.subscribe("$SYS/events/pushed_out/+", 1);
    let mut tiny = Raw::connect_with(weir.mqtt, Version::V5, "tiny", true, &[]);
    let payload = "x".repeat(500_000);
    for n in 0..400 {
        let mut loud = Raw::connect_with(weir.mqtt, Version::V311, "loud", true, &[]);
        loud.publish(1, false, 1, "some/x", &payload);
        loud.expect_ack(PUBACK, 1);
        if n % 50 == 0 {
            tiny.publish(1, false, 1, "some/y", &payload);
            tiny.expect_ack(PUBACK, 1);
        }
    }
    // In the first one there may still be what was left of the filler.
    let all: Vec<_> = std::iter::from_fn(|| {
        let event = events.next(Duration::from_secs(1))?.publish(Version::V5);
        events.ack(PUBACK, event.id);
        Some(event.topic)
    })
    .collect();
    assert!(all.len() >= 2 && all.iter().skip(1).all(|topic| topic == "$SYS/events/pushed_out/loud"), "{all:?}");
}
