//! What a person meets who starts it wrongly: a clear line that names the thing and the way out, exit code not 0. And that an
//! acknowledgement follows a sync.

mod support;

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Stdio,
    time::Duration,
};
use support::{Guard, Weir, binary, command, dir, free_port, http_get, signal};

/// Starts it, expects that it ends by itself; gives exit code and what it said on standard error.
fn refused(data: &Path, ports: [u16; 3]) -> (i32, String) {
    let mut child = Guard(command(&binary(), data, ports).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    let mut err = child.0.stderr.take().unwrap();
    let code = child.wait(Duration::from_secs(10)).code().unwrap();
    let mut said = String::new();
    err.read_to_string(&mut said).unwrap();
    (code, said)
}

fn ports() -> [u16; 3] {
    [free_port(), free_port(), free_port()]
}

#[track_caller]
fn assert_says((code, said): (i32, String), words: &[&str]) {
    assert_ne!(code, 0);
    for word in words {
        assert!(said.contains(word), "{word:?} is missing in: {said}");
    }
}

#[test]
fn a_port_in_use() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let dir = dir();
    assert_says(refused(dir.path(), [port, free_port(), free_port()]), &["--mqtt", &port.to_string(), "in use"]);
    assert_says(refused(dir.path(), [free_port(), port, free_port()]), &["--http", "in use"]);
    assert_says(refused(dir.path(), [free_port(), free_port(), port]), &["--admin", "in use"]);
}

#[test]
fn a_directory_that_cannot_be_used() {
    let dir = dir();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert_says(refused(&file, ports()), &["data directory", "file"]);
    let foreign = dir.path().join("photos");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("holiday.jpg"), "x").unwrap();
    assert_says(refused(&foreign, ports()), &["photos", "holiday.jpg", "not a Weir data directory", "--data"]);
    assert_eq!(std::fs::read_dir(&foreign).unwrap().count(), 1, "it leaves nothing behind");
}

/// Permissions do not hold for root; a directory below /proc cannot be made by anybody.
#[test]
fn a_directory_that_cannot_be_made() {
    assert_says(refused(Path::new("/proc/weir"), ports()), &["/proc/weir"]);
}

#[test]
fn a_second_process_on_the_same_directory() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    assert_says(refused(dir.path(), ports()), &["in use", &weir.process.0.id().to_string(), "--data"]);
    assert!(http_get(weir.admin, "/readyz").contains("200 OK"), "the first one goes on");
}

#[test]
fn a_public_address_without_a_word_about_it() {
    let dir = dir();
    let mut c = std::process::Command::new(binary());
    c.args(["run", "--mqtt", "0.0.0.0:0", "--data"]).arg(dir.path()).stdin(Stdio::null());
    let out = c.output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_says((out.status.code().unwrap(), said), &["0.0.0.0", "--allow-anonymous"]);
}

#[test]
fn healthy_ready_and_exit_code_0_after_sigterm() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    for path in ["/healthz", "/readyz"] {
        assert!(http_get(weir.admin, path).contains("200 OK"));
    }
    assert_eq!(weir.terminate(), Some(0));
}

/// CONNECT, one QoS 1 PUBLISH, its PUBACK.
fn lone_publish(port: u16, id: u8) {
    let mut s = TcpStream::connect(("127.0.0.1", port)).unwrap();
    s.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    s.write_all(b"\x10\x0D\x00\x04MQTT\x04\x02\x00\x3C\x00\x01x").unwrap();
    let mut connack = [0; 4];
    s.read_exact(&mut connack).unwrap();
    assert_eq!(connack, [0x20, 2, 0, 0]);
    s.write_all(&[0x32, 8, 0, 3, b'a', b'/', b'b', 0, id, b'!']).unwrap();
    let mut puback = [0; 4];
    s.read_exact(&mut puback).unwrap();
    assert_eq!(puback, [0x40, 2, 0, id]);
}

/// P1, seen from the kernel: between reading the PUBLISH and writing its PUBACK lies at least one fdatasync that ended well.
#[test]
fn p1_an_fdatasync_lies_between_a_lone_publish_and_its_puback() {
    let dir = dir();
    let trace = dir.path().join("trace");
    let (data, ports) = (dir.path().join("data"), ports());
    let run = command(&binary(), &data, ports);
    let mut strace = std::process::Command::new("strace");
    strace.args(["-f", "-I", "2", "-s", "64", "-xx", "-e", "trace=fdatasync,recvfrom,read,sendto,write,writev", "-o"]).arg(&trace);
    strace.arg(run.get_program()).args(run.get_args()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let weir = Weir::spawn(strace, ports);
    for n in 1..=3 {
        lone_publish(weir.mqtt, n);
    }
    // strace passes it on to the gateway that it traces.
    signal(weir.process.0.id(), "TERM");
    weir.ended();
    let trace = std::fs::read_to_string(trace).unwrap();
    let lines: Vec<&str> = trace.lines().collect();
    let find = |from: usize, wanted: &dyn Fn(&str) -> bool| lines[from..].iter().position(|l| wanted(l)).map(|i| from + i);
    let mut from = 0;
    for n in 1..=3 {
        let publish = format!(r"\x32\x08\x00\x03\x61\x2f\x62\x00\x{n:02x}");
        let puback = format!(r"\x40\x02\x00\x{n:02x}");
        let read = find(from, &|l| l.contains(&publish)).unwrap_or_else(|| panic!("PUBLISH {n} was not seen"));
        let written = find(read, &|l| l.contains(&puback)).unwrap_or_else(|| panic!("PUBACK {n} was not seen"));
        let synced = lines[read..written].iter().filter(|l| l.contains("fdatasync") && l.trim_end().ends_with("= 0")).count();
        assert!(synced >= 1, "no fdatasync between PUBLISH {n} and its PUBACK:\n{}", lines[read..=written].join("\n"));
        from = written;
    }
}

/// P8 on a real disk: from the first failed sync on nothing is acknowledged, it is said why, and a restart has what was acknowledged.
#[test]
fn after_a_failed_sync_nothing_more_is_acknowledged_and_it_is_said_why() {
    let dir = dir();
    let (data, said, ports) = (dir.path().join("data"), dir.path().join("said"), ports());
    let run = command(&binary(), &data, ports);
    let mut strace = std::process::Command::new("strace");
    // strace counts per thread: the partition's writer fails at its fifth.
    strace.args(["-f", "-I", "2", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=5+"]);
    strace.arg(run.get_program()).args(run.get_args()).stdin(Stdio::null()).stdout(Stdio::piped());
    strace.stderr(std::fs::File::create(&said).unwrap());
    let weir = Weir::spawn(strace, ports);
    let publish = |n: u32| {
        let mut c = std::process::Command::new("mosquitto_pub");
        c.args(["-p", &ports[0].to_string(), "-q", "1", "-r", "-t", &format!("kept/{n}"), "-m", &n.to_string()]);
        c.stderr(Stdio::null()).status().unwrap().success()
    };
    let acknowledged: Vec<u32> = (0..12).filter(|n| publish(*n)).collect();
    assert!((1..12).contains(&acknowledged.len()), "{acknowledged:?}");
    assert!(acknowledged.iter().enumerate().all(|(i, n)| i as u32 == *n), "nothing after the failure: {acknowledged:?}");
    let ready = http_get(ports[2], "/readyz");
    assert!(ready.contains("503") && ready.contains("syncing") && ready.contains("restart"), "{ready}");
    let error = std::fs::read_to_string(&said).unwrap();
    assert!(
        error.contains("the log stopped") && error.contains("00000000000000000000.log") && error.contains("Input/output error"),
        "{error}"
    );
    signal(weir.process.0.id(), "TERM");
    weir.ended();

    let weir = Weir::start_on(&data, ports);
    let mut c = std::process::Command::new("mosquitto_sub");
    c.args(["-p", &weir.mqtt.to_string(), "-t", "kept/#", "-q", "1", "-W", "2", "-F", "%p"]);
    let kept = String::from_utf8(c.output().unwrap().stdout).unwrap();
    for n in acknowledged {
        assert!(kept.lines().any(|l| l == n.to_string()), "{n} was acknowledged: {kept}");
    }
}
