//! A gateway as a user runs it: the built binary, its ports, its data directory; killed and reaped when a test ends.
#![allow(dead_code, reason = "each test uses its part")]

pub mod raw;
pub mod slow;

use std::{
    cell::RefCell,
    collections::VecDeque,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// The binary that `test.sh` has built; WEIR_TARGET=release takes the release build, for figures.
pub fn binary() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target"), PathBuf::from);
    let build = std::env::var("WEIR_TARGET").unwrap_or_else(|_| "debug".into());
    let path = target.join(build).join("weir");
    assert!(path.exists(), "{} is missing: cargo build -p weir", path.display());
    path
}

/// A port that was free a moment ago, given to nobody else in this process. Below those that the kernel takes for outgoing connections (32,768 on): one of
/// them would stand in the way of a gateway that is started again on its port.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 20_000 + ((std::process::id() * 131 + n) % 12_000) as u16;
        if nobody_listens(port) {
            return port;
        }
    }
}

/// Asked by a connection, not by a listener of our own: a process that another test starts in that moment holds a copy of the listener until it has become
/// its program, and the gateway finds the port in use (72 of 16,200 tries with three threads that start processes; none in 16,050 this way).
fn nobody_listens(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_err()
}

/// Ends a child whatever happens.
pub struct Guard(pub Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Guard {
    /// Waits for its end; panics when it takes too long.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "it did not end within {limit:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

pub struct Weir {
    pub process: Guard,
    pub mqtt: u16,
    pub http: u16,
    pub admin: u16,
}

/// The command, without starting it.
pub fn command(program: &Path, data: &Path, ports: [u16; 3]) -> Command {
    let mut command = Command::new(program);
    command.arg("run");
    for (flag, port) in ["--mqtt", "--http", "--admin"].iter().zip(ports) {
        command.args([(*flag).to_owned(), format!("127.0.0.1:{port}")]);
    }
    command.arg("--data").arg(data).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    command
}

impl Weir {
    pub fn start(data: &Path) -> Self {
        Self::start_on(data, [free_port(), free_port(), free_port()])
    }

    /// Ready when this returns.
    pub fn start_on(data: &Path, ports: [u16; 3]) -> Self {
        Self::spawn(command(&binary(), data, ports), ports)
    }

    pub fn spawn(mut command: Command, ports: [u16; 3]) -> Self {
        let mut child = command.spawn().unwrap();
        let out = child.stdout.take().unwrap();
        let process = Guard(child);
        let (tx, rx) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let _ = tx.send(line);
            }
        });
        let first = rx.recv_timeout(Duration::from_secs(30));
        if first.as_deref() != Ok("weir ready") {
            let mut process = process;
            panic!("it says {first:?} and has ended with {:?}", process.0.try_wait());
        }
        Self { process, mqtt: ports[0], http: ports[1], admin: ports[2] }
    }

    pub fn ports(&self) -> [u16; 3] {
        [self.mqtt, self.http, self.admin]
    }

    /// SIGKILL.
    pub fn kill(mut self) {
        self.process.0.kill().unwrap();
        self.process.0.wait().unwrap();
    }

    /// Waits for an end that was asked for. strace may end before the gateway that it traces: the ports are free when both have.
    pub fn ended(mut self) {
        self.process.wait(Duration::from_secs(20));
        eventually("the ports are free again", Duration::from_secs(20), || self.ports().into_iter().all(nobody_listens));
    }

    /// SIGTERM; gives the exit code.
    pub fn terminate(mut self) -> Option<i32> {
        signal(self.process.0.id(), "TERM");
        self.process.wait(Duration::from_secs(20)).code()
    }
}

pub fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([format!("-{name}"), pid.to_string()]).status().unwrap().success());
}

pub fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Waits until `done`; panics with `what` when it takes too long.
pub fn eventually(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// GET, the whole answer.
pub fn http_get(port: u16, path: &str) -> String {
    let mut s = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
    write!(s, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    s.read_to_string(&mut answer).unwrap();
    answer
}

/// A peer whose output is collected by a thread.
pub struct Collected {
    pub guard: Guard,
    lines: mpsc::Receiver<String>,
    /// Lines that were taken too early, to be given again.
    kept: RefCell<VecDeque<String>>,
}

impl Collected {
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let out = child.stdout.take().unwrap();
        let (tx, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let _ = tx.send(line);
            }
        });
        Self { guard: Guard(child), lines, kept: RefCell::default() }
    }

    /// The next line.
    pub fn line(&self) -> String {
        self.try_line(Duration::from_secs(10)).expect("a line of output")
    }

    pub fn keep(&self, lines: Vec<String>) {
        self.kept.borrow_mut().extend(lines);
    }

    pub fn try_line(&self, wait: Duration) -> Option<String> {
        let kept = self.kept.borrow_mut().pop_front();
        kept.or_else(|| self.lines.recv_timeout(wait).ok())
    }

    /// All lines until its end.
    pub fn rest(mut self) -> Vec<String> {
        self.guard.wait(Duration::from_secs(20));
        self.lines.iter().collect()
    }
}
