//! `weir log`: what a data directory holds, whole or damaged, and that looking changes nothing.

mod support;

use std::{
    collections::BTreeMap,
    io::{Seek, SeekFrom, Write},
    path::Path,
    process::{Command, Output},
};
use support::{
    Weir, binary, dir,
    raw::{PUBACK, Raw, Version},
};

fn log(args: &[&str], data: &Path) -> Output {
    Command::new(binary()).arg("log").args(args).arg("--data").arg(data).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Names and bytes of everything below.
fn files(path: &Path, into: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, into);
        } else if path.file_name().is_some_and(|n| n != "lock") {
            into.insert(path.display().to_string(), std::fs::read(&path).unwrap());
        }
    }
}

fn publish(port: u16, numbers: std::ops::Range<u16>) {
    let mut p = Raw::connect_with(port, Version::V311, "p", true, &[]);
    for n in numbers {
        p.publish(1, false, n + 1, &format!("t/{}", n % 3), &format!("message {n}"));
        p.expect_ack(PUBACK, n + 1);
    }
}

#[test]
fn a_log_is_verified_printed_and_left_as_it_was() {
    let dir = dir();
    let data = dir.path().join("data");
    let weir = Weir::start(&data);
    publish(weir.mqtt, 0..100);
    let busy = log(&["verify"], &data);
    assert!(busy.status.code() == Some(1) && text(&busy.stderr).contains("in use"), "{}", text(&busy.stderr));
    weir.kill();
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    files(&data, &mut before);

    let whole = log(&["verify"], &data);
    assert!(whole.status.success(), "{}", text(&whole.stderr));
    assert!(
        text(&whole.stdout).lines().any(|l| l.starts_with("default/0: files 1, ") && l.ends_with("records 100, records [0, 100)")),
        "{}",
        text(&whole.stdout)
    );
    let all = text(&log(&["cat"], &data).stdout);
    assert_eq!(all.lines().count(), 100);
    let (first, last) = (all.lines().next().unwrap(), all.lines().last().unwrap());
    assert!(
        first.starts_with("default/0:0 2")
            && first.ends_with("Z t/0 message 0")
            && last.starts_with("default/0:99 ")
            && last.ends_with(" t/0 message 99")
    );
    let some = text(&log(&["cat", "--json", "-t", "+/1", "--from", "50"], &data).stdout);
    let lines: Vec<serde_json::Value> = some.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let numbers: Vec<u64> = lines.iter().map(|l| l["offset"].as_u64().unwrap()).collect();
    assert!(numbers.iter().copied().eq((50..100).filter(|n| n % 3 == 1)), "{numbers:?}");
    assert!(lines[0]["topic"] == "t/1" && lines[0]["payload"] == "message 52" && lines[0]["qos"] == 1 && lines[0]["stream"] == "default/0");
    files(&data, &mut after);
    assert!(before == after, "looking changes nothing");

    // One byte in the middle: named with its file, its place and its records; the others are printed.
    let segment = data.join("streams/default/0/00000000000000000000.log");
    let place = std::fs::read(&segment).unwrap().windows(10).position(|w| w == b"message 40").unwrap();
    let mut file = std::fs::File::options().write(true).open(&segment).unwrap();
    file.seek(SeekFrom::Start(place as u64)).unwrap();
    file.write_all(b"M").unwrap();
    drop(file);
    let damaged = log(&["verify"], &data);
    assert_eq!(damaged.status.code(), Some(1));
    assert!(
        text(&damaged.stdout).contains("records [40, 41) are lost") && text(&damaged.stderr).contains("in places: 1;"),
        "{}{}",
        text(&damaged.stdout),
        text(&damaged.stderr)
    );
    let rest = log(&["cat"], &data);
    assert!(text(&rest.stdout).lines().count() == 99 && text(&rest.stderr).contains("records [40, 41)"));
    // The same for programs.
    let json = log(&["verify", "-o", "json"], &data);
    let sums: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let of = |name: &str| sums.as_array().unwrap().iter().find(|s| s["name"] == name).unwrap().clone();
    let (stream, state) = (of("default/0"), of("state"));
    assert_eq!(json.status.code(), Some(1));
    assert_eq!((&stream["records"], &stream["from"], &stream["to"]), (&99.into(), &0.into(), &100.into()));
    let problem = &stream["problems"][0];
    assert_eq!((&problem["kind"], &problem["from"], &problem["to"]), (&"damage".into(), &40.into(), &41.into()));
    assert_eq!(state["problems"], serde_json::json!([]));

    let nowhere = log(&["verify"], dir.path());
    assert!(nowhere.status.code() == Some(1) && text(&nowhere.stderr).contains("there is no log here"), "{}", text(&nowhere.stderr));
    assert!(std::fs::read_dir(dir.path()).unwrap().count() == 1, "nothing is made");
}

/// Segments that retention took, and the end of a clean stop, are no damage.
#[test]
fn a_ring_is_whole() {
    let dir = dir();
    let data = dir.path().join("data");
    let ports = [support::free_port(), support::free_port(), support::free_port()];
    let mut command = support::command(&binary(), &data, ports);
    command.args(["--retention-bytes", "64MiB"]);
    let weir = Weir::spawn(command, ports);
    let mut p = Raw::connect_with(weir.mqtt, Version::V311, "p", true, &[]);
    let payload = "x".repeat(1 << 20);
    for n in 1..=150 {
        p.publish(1, false, n, "big", &payload);
        p.expect_ack(PUBACK, n);
    }
    let first = data.join("streams/default/0/00000000000000000000.log");
    support::eventually("retention", std::time::Duration::from_secs(10), || !first.exists());
    drop(p);
    assert_eq!(weir.terminate(), Some(0));
    let out = log(&["verify"], &data);
    assert!(out.status.success(), "{}{}", text(&out.stdout), text(&out.stderr));
    let line = text(&out.stdout).lines().find(|l| l.starts_with("default/0")).unwrap().to_owned();
    assert!(line.ends_with(", 150)") && !line.contains("[0, "), "{line}");
}

#[test]
fn a_log_of_another_version_is_named_as_that() {
    let dir = dir();
    let data = dir.path().join("data");
    let weir = Weir::start(&data);
    publish(weir.mqtt, 0..3);
    assert_eq!(weir.terminate(), Some(0));
    // Bytes 4 and 5 of a segment are its version, 48 to 51 its checksum: with the old one, or with our batches behind it, it would be ours, rotten.
    let path = data.join("streams/default/0/00000000000000000000.log");
    let mut file = std::fs::File::options().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(4)).unwrap();
    file.write_all(&[9]).unwrap();
    file.seek(SeekFrom::Start(48)).unwrap();
    file.write_all(b"else").unwrap();
    file.seek(SeekFrom::Start(12_288)).unwrap();
    file.write_all(&[7; 8_192]).unwrap();
    let words = "segment format version 9; this program reads version 1";
    let verify = log(&["verify"], &data);
    assert!(verify.status.code() == Some(1) && text(&verify.stdout).contains(words), "{}", text(&verify.stdout));
    let run = Command::new(binary())
        .args(["run", "--data"])
        .arg(&data)
        .args(["--mqtt", "--http", "--admin"].iter().flat_map(|flag| [*flag, "127.0.0.1:0"]))
        .output()
        .unwrap();
    assert!(run.status.code() == Some(1) && text(&run.stderr).contains(words), "{}", text(&run.stderr));
}

/// The same lines from the files and from the gateway that runs on them.
#[test]
fn a_running_gateway_prints_what_its_files_hold() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut p = Raw::connect_with(weir.mqtt, Version::V5, "p", true, &[]);
    let mut publish = |n: u16, topic: &str, payload: &str| {
        p.publish(1, n.is_multiple_of(3), n, topic, payload);
        p.expect_ack(PUBACK, n);
    };
    let mut bytes = Command::new(binary());
    bytes.args(["pub", "-p", &weir.mqtt.to_string(), "-t", "bytes", "-q", "1", "-s"]).stdin(std::process::Stdio::piped());
    let mut bytes = bytes.spawn().unwrap();
    bytes.stdin.take().unwrap().write_all(&[0xFF, 0, b'\n']).unwrap();
    assert!(bytes.wait().unwrap().success());
    publish(2, "empty", "");
    publish(3, "long", &"x".repeat(1_200_000));
    (4..2_500).for_each(|n| publish(n, if n % 2 == 0 { "even/x" } else { "odd" }, &n.to_string()));
    // Each at a time of its own.
    for n in 2_500..2_540 {
        std::thread::sleep(std::time::Duration::from_millis(10));
        publish(n, if n % 4 == 0 { "rare/x" } else { "odd" }, &n.to_string());
    }
    let admin = format!("127.0.0.1:{}", weir.admin);
    let data = dir.path().to_str().unwrap().to_owned();
    let cat = |source: [&str; 2], args: &[&str]| {
        let out = Command::new(binary()).args(["log", "cat"]).args(source).args(args).output().unwrap();
        (out.status.code(), out.stdout, String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let calls: [&[&str]; 7] = [
        &[],
        &["-j"],
        &["-t", "even/#", "-j"],
        &["-t", "rare/#", "-j"],
        &["--from", "10", "--until", "2000"],
        &["-t", "nothing"],
        &["--from", "9999"],
    ];
    let live: Vec<_> = calls.iter().map(|args| cat(["--admin", &admin], args)).collect();
    // Its events and numbers too, which go on.
    let events = cat(["--admin", &admin], &["-t", "$SYS/events/connected/#"]);
    assert!(events.0 == Some(0) && String::from_utf8_lossy(&events.1).contains("$SYS/events/connected/p"), "{events:?}");
    let locked = cat(["--data", &data], &[]);
    assert!(locked.0 == Some(1) && locked.2.contains("--admin"), "{}", locked.2);
    drop(p);
    assert_eq!(weir.terminate(), Some(0));
    for (args, live) in calls.iter().zip(live) {
        let files = cat(["--data", &data], args);
        assert_eq!((live.0, live.2.as_str(), live.1.len()), (files.0, files.2.as_str(), files.1.len()), "{args:?}");
        assert!(live.1 == files.1, "{args:?}: other lines");
    }
    assert_eq!(cat(["--admin", "127.0.0.1:1"], &[]).0, Some(1));
}
