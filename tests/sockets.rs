//! Sockets that say nothing, on every port, and more of them than there are descriptors: the log goes on, and they are closed in the end.

mod support;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use support::{
    Weir, binary, dir, free_port, http_get,
    raw::{PUBACK, Raw, Version},
};

fn is_closed(socket: &mut TcpStream) -> bool {
    socket.set_nonblocking(true).unwrap();
    let mut buffer = [0; 4_096];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(e) => return e.kind() != ErrorKind::WouldBlock,
        }
    }
}

/// With so many descriptors.
fn start_within(descriptors: u32, dir: &Path) -> Weir {
    let ports = [free_port(), free_port(), free_port()];
    let arguments = ["--mqtt", "--http", "--admin"].iter().zip(ports).map(|(flag, port)| format!("{flag} 127.0.0.1:{port}"));
    let run = format!(
        "ulimit -n {descriptors}; exec {} run {} --data {}",
        binary().display(),
        arguments.collect::<Vec<_>>().join(" "),
        dir.join("data").display()
    );
    let mut command = Command::new("sh");
    command.args(["-c", &run]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    Weir::spawn(command, ports)
}

/// Pages that are open take the places of browsers, and a device that speaks MQTT over websocket
/// comes in all the same.
#[test]
fn browsers_take_no_place_of_mqtt_over_websocket() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    // A shell may allow a thousand.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let page = "GET /index.html HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let open = || {
        let mut socket = TcpStream::connect(("127.0.0.1", weir.http)).unwrap();
        socket.write_all(page.as_bytes()).unwrap();
        let mut status = [0; 12];
        socket.read_exact(&mut status).unwrap();
        (status[9..].to_vec(), socket)
    };
    let browsers: Vec<_> = (0..2_000).map(|_| open()).collect();
    assert!(browsers.iter().all(|(status, _)| status != b"503"));
    assert_eq!(open().0, b"503");
    let mut device = support::slow::websocket_subscriber(weir.http, "device");
    device.write_all(&support::slow::frame(b"\xC0\0")).unwrap();
    device.read_exact(&mut [0; 4]).unwrap();
    drop(browsers);
    support::eventually("there is room again", Duration::from_secs(20), || open().0 != b"503");
}

/// Whoever looks after the gateway finds it when clients have taken every place that they can have.
#[test]
fn the_admin_port_answers_when_clients_have_taken_all_sockets() {
    let dir = dir();
    let weir = start_within(120, dir.path());
    let clients: Vec<_> = (0..80).map(|_| TcpStream::connect(("127.0.0.1", weir.mqtt)).unwrap()).collect();
    support::eventually("all places are taken", Duration::from_secs(5), || {
        let metrics = http_get(weir.admin, "/metrics");
        let of = |name: &str| metrics.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<u32>().ok()).unwrap();
        of("weir_sockets ") == of("weir_sockets_limit ")
    });
    for _ in 0..20 {
        assert!(http_get(weir.admin, "/healthz").contains("200 OK"));
    }
    drop(clients);
}

#[test]
fn silent_sockets_take_no_descriptor_from_the_log_and_are_closed() {
    let dir = dir();
    let weir = start_within(120, dir.path());
    let mut p = Raw::connect(weir.mqtt, Version::V5, "publisher");
    let open = |port: u16, words: &str| {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        socket.write_all(words.as_bytes()).unwrap();
        socket
    };
    let heads =
        ["", "GET / HTTP/1.1\r\nHost: x\r\n", "PUT / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 9\r\n\r\nhalf"];
    let mut silent: Vec<_> = (0..150).map(|n| open(if n % 2 == 0 { weir.http } else { weir.admin }, heads[n % heads.len()])).collect();
    silent.extend((0..30).map(|_| open(weir.mqtt, "")));
    let begun = Instant::now();
    // Over the end of a segment.
    let body = "x".repeat(1_000_000);
    for n in 1..=75 {
        p.publish(1, false, n, "x", &body);
        assert_eq!(p.expect_ack(PUBACK, n), 0x10);
    }
    support::eventually("all of them are closed", Duration::from_secs(150), || {
        silent.retain_mut(|socket| !is_closed(socket));
        silent.is_empty()
    });
    assert!(begun.elapsed() > Duration::from_secs(5), "not at once");
    assert!(http_get(weir.admin, "/readyz").contains("200 OK"));
    p.publish(1, false, 100, "x", "last");
    assert_eq!(p.expect_ack(PUBACK, 100), 0x10);
}
