//! A million stored sessions with a filter each: what they cost a start, and what they cost while nobody is connected.
//!
//! The store is written as the gateway would write it, with values from real sessions; a million connections would take minutes.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use weir_core::{
    codec::{Decoded, decode},
    ids::{Now, Offset, PartitionId},
    limits::Limits,
    packet::{Packet, Version},
    session::{
        Cause, ConnectRequest, Event, Session,
        connect::{Joining, Partition},
    },
};
use weir_log::{AppendError, Engine, FileEngine, Nobody, Options, Put, Wake};

const SESSIONS: usize = 1_000_000;

/// The figure is that of a release build, which WEIR_TARGET=release takes; the other is several times as slow.
fn binary() -> (PathBuf, Duration) {
    let debug = PathBuf::from(env!("CARGO_BIN_EXE_weir"));
    if std::env::var("WEIR_TARGET").is_ok_and(|t| t == "release") {
        return (debug.with_file_name("../release/weir"), Duration::from_secs(2));
    }
    (debug, Duration::from_secs(10))
}

fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u16).to_be_bytes()[..], s.as_bytes()].concat()
}

fn connect(client_id: &str) -> Vec<u8> {
    let body = [&text("MQTT")[..], &[4, 0, 0, 0], &text(client_id)].concat();
    [&[0x10, body.len() as u8][..], &body].concat()
}

fn subscribe(filter: &str) -> Vec<u8> {
    let body = [&[0, 1][..], &text(filter), &[1]].concat();
    [&[0x82, body.len() as u8][..], &body].concat()
}

fn packet(bytes: &[u8]) -> Packet<'_> {
    match decode(bytes, Version::V311, usize::MAX) {
        Ok(Decoded::Packet(p, _)) => p,
        other => panic!("{other:?}"),
    }
}

/// The value of a session that has subscribed and is offline.
fn value(nth: usize, client_id: &str) -> Vec<u8> {
    let now = Now { monotonic_ms: 0, wall_ms: 1_790_000_000_000, steady_ms: 1_790_000_000_000 };
    let (connect, subscribe) = (connect(client_id), subscribe(&format!("site/{nth}/+")));
    let Packet::Connect(c) = packet(&connect) else { panic!("a CONNECT") };
    // Whatever day it is.
    let limits = std::sync::Arc::new(Limits { session_expiry_s: u32::MAX, ..Limits::default() });
    let fleet: std::sync::Arc<dyn weir_core::limits::Fleet> = std::sync::Arc::new(weir_core::limits::Unbounded);
    let request = ConnectRequest::read(&c, &limits).expect("a request");
    let mut session = Session::new(client_id, 0);
    let partitions = [Partition { id: PartitionId(0), stream: "default".into(), number: 0, system: false, end: Offset(0) }];
    let joining =
        Joining { sid: nth as u64 + 1, boot: 0, partitions: &partitions, resumed: false, in_store: false, limits: &limits, fleet: &fleet };
    let mut out = Vec::new();
    session.connect(now, &request, &joining, &mut out);
    session.packet(now, &packet(&subscribe), &mut out).expect("no violation");
    session.handle(now, Event::Closed(Cause::Socket), &mut out);
    session.value()
}

fn write_store(data: &Path) {
    let options = Options::new(data, &[("default", 1)]);
    let engine = FileEngine::open(&options, &mut |_, _, _| Vec::new()).expect("opens");
    let nobody: Arc<dyn Wake> = Arc::new(Nobody);
    for first in (0..SESSIONS).step_by(1_000) {
        let all: Vec<_> = (first..first + 1_000).map(|n| (format!("c/device-{n}"), value(n, &format!("device-{n}")))).collect();
        let puts: Vec<_> = all.iter().map(|(key, value)| Put { key: key.as_bytes(), tag: 0, value: Some(value) }).collect();
        while let Err(e) = engine.state().put(&puts, &nobody) {
            assert!(matches!(e, AppendError::Full), "{e}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    engine.stop();
}

struct Weir(Child, u16);

impl Drop for Weir {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Weir {
    /// Starts it, and says how long that took.
    fn start(data: &Path) -> (Self, Duration) {
        let port = || TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        let (start, mqtt) = (Instant::now(), port());
        let mut command = Command::new(binary().0);
        command.arg("run").arg("--data").arg(data).args(["--mqtt", &format!("127.0.0.1:{mqtt}")]);
        for flag in ["--http", "--admin"] {
            command.args([flag, &format!("127.0.0.1:{}", port())]);
        }
        let mut child = command.stdout(Stdio::piped()).spawn().expect("starts");
        let output = child.stdout.take().expect("its output");
        let weir = Self(child, mqtt);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).expect("a line");
        assert_eq!(line, "weir ready\n");
        (weir, start.elapsed())
    }

    fn resident_bytes(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("its status");
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1_024
    }
}

#[test]
fn a_million_sessions_start_in_two_seconds_and_cost_150_bytes_each() {
    let dir = tempfile::tempdir().expect("a directory");
    let (empty, _) = Weir::start(&dir.path().join("empty"));
    let nothing = empty.resident_bytes();
    drop(empty);
    let data = dir.path().join("data");
    write_store(&data);
    let (weir, took) = Weir::start(&data);
    std::thread::sleep(Duration::from_millis(500));
    let each = weir.resident_bytes().saturating_sub(nothing) / SESSIONS;
    println!("a million sessions: start {took:?}, {each} B each");
    assert!(each <= 150, "{each} B each");
    assert!(took <= binary().1, "{took:?}");
    let mut socket = TcpStream::connect(("127.0.0.1", weir.1)).expect("connects");
    socket.write_all(&connect("device-777777")).expect("writes");
    let mut connack = [0; 4];
    socket.read_exact(&mut connack).expect("a CONNACK");
    assert_eq!(connack, [0x20, 2, 1, 0], "the session is present");
}
