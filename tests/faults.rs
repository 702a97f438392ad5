//! P2, P7, P8: faults of a real disk. Each ends in a state with words for an operator, what was acknowledged is served, and others are not held up: a bit that
//! flips in the log, one that flips in the state store, a full filesystem, a slow disk.

mod support;

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use support::{
    Guard, Weir, binary, command, dir, eventually, free_port, http_get,
    raw::{PUBACK, Raw, Version},
    signal,
};

fn ports() -> [u16; 3] {
    [free_port(), free_port(), free_port()]
}

/// Starts it; what it says goes to `said`.
fn start(data: &Path, ports: [u16; 3], said: &Path) -> Weir {
    let mut c = command(&binary(), data, ports);
    c.stderr(File::create(said).unwrap());
    let started = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| Weir::spawn(c, ports)));
    started.unwrap_or_else(|_| panic!("it does not start: {}", std::fs::read_to_string(said).unwrap()))
}

fn publish(c: &mut Raw, id: u16, topic: &str, payload: &str) {
    c.publish(1, false, id, topic, payload);
    c.expect_ack(PUBACK, id);
}

fn flip(file: &Path, at: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[at] ^= 4;
    std::fs::write(file, bytes).unwrap();
}

fn drain(c: &mut Raw) -> Vec<String> {
    let mut got = Vec::new();
    while let Some(p) = c.next(Duration::from_millis(700)) {
        let p = p.publish(Version::V5);
        c.ack(PUBACK, p.id);
        got.push(p.payload);
    }
    got
}

#[test]
fn p7_a_damaged_record_is_told_and_the_others_are_served() {
    let (dir, ports) = (dir(), ports());
    let said = dir.path().join("said");
    let data = dir.path().join("data");
    let mut weir = start(&data, ports, &said);
    let mut late = Raw::connect(weir.mqtt, Version::V5, "late");
    late.subscribe("a/#", 1);
    drop(late);
    let mut p = Raw::connect_with(weir.mqtt, Version::V5, "p", true, &[]);
    (1..=5).for_each(|n| publish(&mut p, n, "a/b", &format!("message-{n}")));
    let file = data.join("streams/default/0/00000000000000000000.log");
    let at = |needle: &[u8]| std::fs::read(&file).unwrap().windows(needle.len()).position(|w| w == needle).unwrap();
    // Active segment, damage before its end; then the same file sealed.
    for (damaged, left) in [(2, &[1, 3, 4, 5][..]), (4, &[])] {
        weir.kill();
        flip(&file, at(format!("message-{damaged}").as_bytes()));
        weir = start(&data, ports, &said);
        let mut late = Raw::connect(weir.mqtt, Version::V5, "late");
        assert!(late.session_present);
        let want: Vec<_> = left.iter().map(|n| format!("message-{n}")).collect();
        assert_eq!(drain(&mut late), want, "of damage to {damaged}");
        if damaged == 4 {
            // Nobody was owed it any more: who reads the past is told.
            let mut past = Raw::connect_with(weir.mqtt, Version::V5, "past", true, &[]);
            past.subscribe("$replay/earliest/a/#", 1);
            assert_eq!(drain(&mut past), ["message-1", "message-3", "message-5"]);
        }
        let lost = "00000000000000000000.log is damaged at byte 1";
        let range = format!("records [{}, {damaged}) are lost", damaged - 1);
        eventually("words for the operator", Duration::from_secs(5), || {
            let words = std::fs::read_to_string(&said).unwrap();
            words.contains(lost) && words.contains(&range) && words.contains("restore the file from a copy")
        });
    }
    let mut p = Raw::connect_with(weir.mqtt, Version::V5, "p", true, &[]);
    publish(&mut p, 9, "a/b", "goes on");
    assert!(http_get(weir.admin, "/readyz").contains("200 OK"));
}

#[test]
fn p7_a_damaged_state_store_is_refused_with_file_and_byte() {
    let (dir, ports) = (dir(), ports());
    let weir = Weir::start_on(dir.path(), ports);
    for n in 0..3 {
        let mut c = Raw::connect(weir.mqtt, Version::V5, &format!("session-{n}"));
        c.subscribe("a/#", 1);
    }
    weir.kill();
    let files = std::fs::read_dir(dir.path().join("state")).unwrap().map(|f| f.unwrap().path());
    let file: PathBuf = files.filter(|f| f.extension().is_some_and(|e| e == "log")).max().unwrap();
    let at = std::fs::read(&file).unwrap().windows(9).position(|w| w == b"session-0").unwrap();
    flip(&file, at);
    let mut child = Guard(command(&binary(), dir.path(), ports).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    assert!(!child.wait(Duration::from_secs(10)).success());
    let mut words = String::new();
    std::io::Read::read_to_string(&mut child.0.stderr.take().unwrap(), &mut words).unwrap();
    for word in [file.file_name().unwrap().to_str().unwrap(), "damaged at byte", "restore"] {
        assert!(words.contains(word), "{word}: {words}");
    }
}

/// A tmpfs of its own; unmounted when dropped.
struct Mount(PathBuf);

impl Mount {
    fn new(at: PathBuf, size: &str) -> Self {
        std::fs::create_dir_all(&at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(&at).status().unwrap();
        assert!(mounted.success(), "this test mounts a small tmpfs: run it as root");
        Self(at)
    }

    fn grow(&self, size: &str) {
        assert!(Command::new("mount").args(["-o", &format!("remount,size={size}")]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn p8_a_full_filesystem_stops_taking_goes_on_serving_and_takes_again_when_there_is_room() {
    let (dir, ports) = (dir(), ports());
    let said = dir.path().join("said");
    // Room for the state store and two segments.
    let mount = Mount::new(dir.path().join("disk"), "220m");
    let data = mount.0.join("data");
    let weir = start(&data, ports, &said);
    let mut late = Raw::connect(weir.mqtt, Version::V5, "late");
    late.subscribe("a/#", 1);
    drop(late);
    let mut reader = Raw::connect_with(weir.mqtt, Version::V5, "reader", true, &[]);
    reader.subscribe("none/#", 1);
    let mut p = Raw::connect_with(weir.mqtt, Version::V5, "p", true, &[]);
    let padding = "x".repeat(500_000);
    let mut acknowledged = 0u16;
    loop {
        assert!(acknowledged < 1_000, "the disk was not full");
        p.publish(1, false, acknowledged + 1, "a/b", &format!("{acknowledged}:{padding}"));
        match p.next(Duration::from_secs(10)) {
            Some(a) if a.head == PUBACK => acknowledged += 1,
            // It waits.
            None => break,
            Some(other) => panic!("{other:02x?}"),
        }
    }
    assert!(acknowledged > 100 && !p.is_closed(), "{acknowledged}");
    let ready = http_get(weir.admin, "/readyz");
    assert!(ready.contains("503") && ready.contains("No space left"), "{ready}");
    let words = std::fs::read_to_string(&said).unwrap();
    assert!(words.contains("nothing is acknowledged there until that passes") && words.contains("No space left"), "{words}");
    assert!(http_get(weir.admin, "/metrics").contains("weir_log_stalled 1"));
    // Who only reads goes on, and so does who comes to read.
    reader.expect_silence();
    let mut late = Raw::connect(weir.mqtt, Version::V5, "late");
    for n in 0..acknowledged {
        let m = late.expect_publish();
        assert!(m.payload.starts_with(&format!("{n}:")), "{n}");
        late.ack(PUBACK, m.id);
    }
    // Nobody starts it again.
    mount.grow("400m");
    let room = p.next(Duration::from_secs(10)).expect("the message that waited is acknowledged");
    assert_eq!((room.head, room.id()), (PUBACK, acknowledged + 1));
    let m = late.expect_publish();
    assert!(m.payload.starts_with(&format!("{acknowledged}:")));
    late.ack(PUBACK, m.id);
    assert!(http_get(weir.admin, "/readyz").contains("200 OK"));
    // A start on what a full disk left is a start like any other.
    drop((late, p));
    weir.kill();
    let weir = start(&data, ports, &said);
    let mut p = Raw::connect_with(weir.mqtt, Version::V5, "p", true, &[]);
    publish(&mut p, 1, "a/b", "room again");
    let mut late = Raw::connect(weir.mqtt, Version::V5, "late");
    eventually("the message after the full disk", Duration::from_secs(10), || {
        let m = late.expect_publish();
        late.ack(PUBACK, m.id);
        m.payload == "room again"
    });
    drop(weir);
}

/// Publishes until nothing is acknowledged for three seconds.
fn fill(weir: &Weir) {
    let mut p = Raw::connect_with(weir.mqtt, Version::V5, "p", true, &[]);
    let padding = "x".repeat(500_000);
    for id in 1.. {
        p.publish(1, false, id, "a/b", &padding);
        if p.next(Duration::from_secs(3)).is_none() {
            break;
        }
    }
    assert!(http_get(weir.admin, "/metrics").contains("weir_log_stalled 1"));
}

/// What is retained in a file that goes needs room in the store first, and the disk has room for
/// one file more.
#[test]
fn p8_retained_messages_do_not_keep_a_full_disk_full() {
    let (dir, ports) = (dir(), ports());
    let config = dir.path().join("weir.toml");
    std::fs::write(&config, "").unwrap();
    let mount = Mount::new(dir.path().join("disk"), "1000m");
    let data = mount.0.join("data");
    let mut run = command(&binary(), &data, ports);
    run.arg("-c").arg(&config);
    let weir = Weir::spawn(run, ports);
    let mut p = Raw::connect_with(weir.mqtt, Version::V5, "p", true, &[]);
    let padding = "x".repeat(200_000);
    for n in 1..=1_500 {
        p.publish_with(0x33, n, &format!("kept/{n}"), &[], &format!("{n}:{padding}"));
        p.expect_ack(PUBACK, n);
    }
    fill(&weir);
    std::fs::write(&config, "[log]\nretention_bytes = \"64MiB\"\n").unwrap();
    support::signal(weir.process.0.id(), "HUP");
    let mut p = Raw::connect_with(weir.mqtt, Version::V5, "p", true, &[]);
    p.publish(1, false, 1, "a/b", "when there is room");
    assert!(p.next(Duration::from_secs(60)).is_some_and(|a| a.head == PUBACK), "retention makes room");
    let mut late = Raw::connect_with(weir.mqtt, Version::V5, "late", true, &[]);
    for n in [1, 700, 1_500] {
        late.subscribe(&format!("kept/{n}"), 0);
        assert!(late.expect_publish().payload.starts_with(&format!("{n}:")));
    }
}

/// Somebody else has taken what was left, too: the log is opened without any room, again and again, and what retention takes is room.
#[test]
fn p8_a_start_on_a_full_disk_serves_what_is_there_and_retention_makes_room() {
    let (dir, ports) = (dir(), ports());
    let said = dir.path().join("said");
    let mount = Mount::new(dir.path().join("disk"), "400m");
    let data = mount.0.join("data");
    let mut weir = start(&data, ports, &said);
    let mut late = Raw::connect(weir.mqtt, Version::V5, "late");
    late.subscribe("last", 1);
    drop(late);
    publish(&mut Raw::connect_with(weir.mqtt, Version::V5, "p", true, &[]), 1, "last", "of a full disk");
    fill(&weir);
    weir.kill();
    let mut filler = File::create(mount.0.join("filler")).unwrap();
    while std::io::Write::write_all(&mut filler, &[7; 1 << 16]).is_ok() {}
    // A start gives back what was ready for the next segment, and that is room once more.
    weir = start(&data, ports, &said);
    fill(&weir);
    for _ in 0..3 {
        weir.kill();
        weir = start(&data, ports, &said);
        let mut late = Raw::connect(weir.mqtt, Version::V5, "late");
        assert_eq!(late.expect_publish().payload, "of a full disk");
        let mut p = Raw::connect_with(weir.mqtt, Version::V5, "p", true, &[]);
        p.publish(1, false, 1, "a/b", "waits");
        assert!(p.next(Duration::from_secs(1)).is_none());
        let metrics = http_get(weir.admin, "/metrics");
        assert!(metrics.contains("weir_log_stalled 1") && metrics.contains("weir_state_short 1"));
    }
    weir.kill();
    let mut less = command(&binary(), &data, ports);
    less.args(["--retention-bytes", "64MiB"]);
    let weir = Weir::spawn(less, ports);
    let mut p = Raw::connect_with(weir.mqtt, Version::V5, "p", true, &[]);
    publish(&mut p, 1, "a/b", "room again");
    assert!(http_get(weir.admin, "/readyz").contains("200 OK"));
    eventually("the reserve is there again", Duration::from_secs(10), || http_get(weir.admin, "/metrics").contains("weir_state_short 0"));
}

#[test]
fn p2_nothing_is_seen_before_it_is_durable_and_a_slow_disk_costs_only_those_who_wait_for_it() {
    let (dir, ports) = (dir(), ports());
    let run = command(&binary(), dir.path(), ports);
    let mut strace = Command::new("strace");
    // Every sync of the partition takes 300 ms more.
    strace.args(["-f", "-I", "2", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", "inject=fdatasync:delay_exit=300000"]);
    strace.arg(run.get_program()).args(run.get_args()).stdin(Stdio::null()).stdout(Stdio::piped());
    let weir = Weir::spawn(strace, ports);
    let mut other = Raw::connect_with(weir.mqtt, Version::V5, "other", true, &[]);
    let mut p = Raw::connect_with(weir.mqtt, Version::V5, "p", true, &[]);
    let mut watcher = Raw::connect_with(weir.mqtt, Version::V5, "watcher", true, &[]);
    watcher.subscribe("seen/#", 0);
    let sent = Instant::now();
    p.publish(0, false, 0, "seen/x", "not before the sync");
    assert_eq!(watcher.expect_publish().payload, "not before the sync");
    assert!(sent.elapsed() >= Duration::from_millis(290), "seen {:?} after it was sent, and a sync takes 300 ms", sent.elapsed());
    for n in 1..=20 {
        p.publish(1, false, n, "a/b", "x");
    }
    let start = Instant::now();
    for _ in 0..20 {
        let ping = Instant::now();
        other.expect_silence();
        assert!(ping.elapsed() < Duration::from_millis(200), "{:?}", ping.elapsed());
    }
    for n in 1..=20 {
        p.expect_ack(PUBACK, n);
    }
    // Two groups at most: the first alone, the others together.
    assert!((Duration::from_millis(250)..Duration::from_millis(2_000)).contains(&start.elapsed()), "{:?}", start.elapsed());
    // Not killed: strace would leave the gateway behind.
    signal(weir.process.0.id(), "TERM");
    weir.ended();
}
