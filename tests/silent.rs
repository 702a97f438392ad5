//! Peers that say nothing, half a packet, or too much: they are closed in time, and cost nobody else anything.

mod support;

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};
use support::{Weir, dir, http_get};

fn connect(weir: &Weir, bytes: &[u8]) -> TcpStream {
    let mut s = TcpStream::connect(("127.0.0.1", weir.mqtt)).unwrap();
    s.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    s.write_all(bytes).unwrap();
    s
}

/// Everything until the gateway closes, and how long that took.
fn until_closed(mut s: TcpStream) -> (Vec<u8>, Duration) {
    let start = Instant::now();
    let mut all = Vec::new();
    s.read_to_end(&mut all).unwrap();
    (all, start.elapsed())
}

#[test]
fn a_client_that_falls_silent_is_closed_after_one_and_a_half_keep_alives_and_its_will_is_published() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut watcher = connect(&weir, b"\x10\x0D\x00\x04MQTT\x04\x02\x00\x00\x00\x01w\x82\x06\x00\x01\x00\x01z\x00");
    watcher.read_exact(&mut [0; 9]).unwrap();
    // Keep-alive 2 s, will "z"; for version 5 with the reason.
    let four = connect(&weir, b"\x10\x13\x00\x04MQTT\x04\x06\x00\x02\x00\x01a\x00\x01z\x00\x01!");
    let five = connect(&weir, b"\x10\x15\x00\x04MQTT\x05\x06\x00\x02\x00\x00\x01b\x00\x00\x01z\x00\x01!");
    let four = std::thread::spawn(move || until_closed(four));
    let (said, took) = until_closed(five);
    assert!(said.ends_with(&[0xE0, 1, 0x8D]), "DISCONNECT with reason 0x8D: {said:02x?}");
    assert!((2_500..4_500).contains(&took.as_millis()), "{took:?}");
    let (said, took) = four.join().unwrap();
    assert_eq!(said, [0x20, 2, 0, 0]);
    assert!((2_500..4_500).contains(&took.as_millis()), "{took:?}");
    let mut wills = [0; 12];
    watcher.read_exact(&mut wills).unwrap();
    assert_eq!(wills, *b"\x30\x04\x00\x01z!\x30\x04\x00\x01z!");
}

#[test]
fn a_socket_without_a_first_packet_is_closed_and_others_are_served() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let silent = connect(&weir, b"");
    let half = connect(&weir, b"\x10\x0D\x00\x04MQ");
    let half = std::thread::spawn(move || until_closed(half));
    let (said, took) = until_closed(silent);
    assert!(said.is_empty() && (9_000..12_000).contains(&took.as_millis()), "{took:?}");
    assert!(half.join().unwrap().0.is_empty());
    assert!(http_get(weir.admin, "/readyz").contains("200 OK"));
}

#[test]
fn p9_bytes_that_are_not_mqtt_end_their_connection_only() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut good = connect(&weir, b"\x10\x0D\x00\x04MQTT\x04\x02\x00\x00\x00\x01g");
    good.read_exact(&mut [0; 4]).unwrap();
    for bad in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\x30\x04\x00\x01a!", b"\x10\xFF\xFF\xFF\x7F", b"\x00\x00", b"\xFF\xFF\xFF\xFF\xFF\xFF"] {
        assert!(until_closed(connect(&weir, bad)).0.is_empty(), "{bad:02x?}");
    }
    // Another version: a CONNACK of 3.1.1 that says so.
    assert_eq!(until_closed(connect(&weir, b"\x10\x0F\x00\x06MQIsdp\x04\x02\x00\x00\x00\x01o")).0, [0x20, 2, 0, 1]);
    assert_eq!(until_closed(connect(&weir, b"\x10\x0E\x00\x06MQIsdp\x03\x02\x00\x00\x00\x00")).0, [0x20, 2, 0, 2]);
    // 3.1 is taken, with bits that later versions forbid.
    let mut old = connect(&weir, b"\x14\x0F\x00\x06MQIsdp\x03\x03\x00\x00\x00\x01o");
    let mut connack = [0; 4];
    old.read_exact(&mut connack).unwrap();
    assert_eq!(connack, [0x20, 2, 0, 0]);
    // QoS 2, and a PUBREL that is repeated with DUP: MQTT 3.1, 2.1.
    old.write_all(b"\x34\x06\x00\x01a\x00\x05x").unwrap();
    old.read_exact(&mut connack).unwrap();
    assert_eq!(connack, [0x50, 2, 0, 5]);
    for head in [0x62, 0x6A] {
        old.write_all(&[head, 2, 0, 5]).unwrap();
        old.read_exact(&mut connack).unwrap();
        assert_eq!(connack, [0x70, 2, 0, 5], "{head:02x}");
    }
    // A bridge of mosquitto with its defaults says so in its protocol level; version 5 has no such bit.
    let mut bridge = connect(&weir, b"\x10\x0D\x00\x04MQTT\x84\x02\x00\x00\x00\x01B");
    bridge.read_exact(&mut connack).unwrap();
    assert_eq!(connack, [0x20, 2, 0, 0]);
    assert_eq!(until_closed(connect(&weir, b"\x10\x0E\x00\x04MQTT\x85\x02\x00\x00\x00\x00\x01B")).0, [0x20, 2, 0, 1]);
    // Its CONNACK has no flag for a session that is there.
    for _ in 0..2 {
        let mut old = connect(&weir, b"\x10\x0F\x00\x06MQIsdp\x03\x00\x00\x00\x00\x01k");
        old.read_exact(&mut connack).unwrap();
        assert_eq!(connack, [0x20, 2, 0, 0]);
    }
    // After CONNECT version 5 is told why.
    let late = connect(&weir, b"\x10\x0E\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x01l\x36\x06\x00\x01a\x00\x01\x00");
    assert!(until_closed(late).0.ends_with(&[0xE0, 1, 0x81]));
    good.write_all(b"\xC0\x00").unwrap();
    let mut pong = [0; 2];
    good.read_exact(&mut pong).unwrap();
    assert_eq!(pong, [0xD0, 0]);
}

/// 3 MiB in one packet, through a gateway that reads 64 KiB at a time.
#[test]
fn a_large_packet_arrives_whole() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut sub = connect(&weir, b"\x10\x0D\x00\x04MQTT\x04\x02\x00\x00\x00\x01s\x82\x06\x00\x01\x00\x01b\x00");
    sub.read_exact(&mut [0; 9]).unwrap();
    let payload: Vec<u8> = (0..3u32 << 20).map(|n| (n % 251) as u8).collect();
    let length = payload.len() + 3;
    let mut packet =
        vec![0x30, length as u8 | 0x80, (length >> 7) as u8 | 0x80, (length >> 14) as u8 | 0x80, (length >> 21) as u8, 0, 1, b'b'];
    packet.extend_from_slice(&payload);
    let mut publisher = connect(&weir, b"\x10\x0D\x00\x04MQTT\x04\x02\x00\x00\x00\x01p");
    publisher.write_all(&packet).unwrap();
    let mut got = vec![0; packet.len()];
    sub.read_exact(&mut got).unwrap();
    assert!(got == packet);
}

/// What stands behind a DISCONNECT or a violation in the same write is nobody's.
#[test]
fn nothing_is_taken_after_a_goodbye_or_a_violation() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut sub = connect(&weir, b"\x10\x0D\x00\x04MQTT\x04\x02\x00\x00\x00\x01s\x82\x06\x00\x01\x00\x01#\x00");
    sub.read_exact(&mut [0; 9]).unwrap();
    for bad in [&b"\xE0\x00"[..], b"\x36\x05\x00\x01a\x00\x01", b"\x20\x02\x00\x00"] {
        let before = b"\x10\x0D\x00\x04MQTT\x04\x02\x00\x00\x00\x01p\x30\x04\x00\x01b1";
        let (said, _) = until_closed(connect(&weir, &[before, bad, b"\x30\x04\x00\x01b2"].concat()));
        assert_eq!(said, [0x20, 2, 0, 0], "{bad:02x?}");
    }
    let mut last = connect(&weir, b"\x10\x0D\x00\x04MQTT\x04\x02\x00\x00\x00\x01l\x30\x04\x00\x01b3");
    last.read_exact(&mut [0; 4]).unwrap();
    let mut got = [0; 24];
    sub.read_exact(&mut got).unwrap();
    assert_eq!(got, *b"\x30\x04\x00\x01b1\x30\x04\x00\x01b1\x30\x04\x00\x01b1\x30\x04\x00\x01b3");
}

/// The first head, another that has begun, and a body have ten seconds each; between two requests a socket has a minute.
#[test]
fn half_a_request_is_waited_for_ten_seconds_and_an_idle_socket_longer() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let open = |port: u16, bytes: &str| {
        let mut s = TcpStream::connect(("127.0.0.1", port)).unwrap();
        s.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        s.write_all(bytes.as_bytes()).unwrap();
        s
    };
    let whole = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let answered = |s: &mut TcpStream| {
        let mut bytes = [0; 4_096];
        let n = s.read(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..n]).into_owned()
    };
    let [mut idle, mut half, mut quiet] = [whole; 3].map(|request| open(weir.admin, request));
    for s in [&mut idle, &mut half, &mut quiet] {
        assert!(answered(s).contains("200 OK"));
    }
    quiet.set_read_timeout(Some(Duration::from_secs(90))).unwrap();
    let quiet = std::thread::spawn(move || until_closed(quiet));
    half.write_all(b"GET /healthz HTTP/1.1\r\nHost").unwrap();
    let put = |port| open(port, "PUT /api/v1/log-level HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{\"le");
    let waiting = [open(weir.http, ""), open(weir.http, "GET / HT"), half, put(weir.admin), put(weir.http)];
    let all = waiting.map(|s| std::thread::spawn(move || until_closed(s)));
    let [silent, first, second, body, public] = all.map(|t| t.join().unwrap());
    for (said, took) in [&silent, &first, &second] {
        assert!(said.is_empty() && (9_000..13_000).contains(&took.as_millis()), "{said:?} {took:?}");
    }
    for (said, took) in [&body, &public] {
        let said = String::from_utf8_lossy(said);
        assert!(said.starts_with("HTTP/1.1 408") && said.contains("within 10 s"), "{said}");
        assert!((9_000..13_000).contains(&took.as_millis()), "{took:?}");
    }
    idle.write_all(whole.as_bytes()).unwrap();
    assert!(answered(&mut idle).contains("200 OK"), "it had nothing to say for as long");
    let mut large = open(
        weir.admin,
        &format!("PUT /api/v1/log-level HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n{}", "x".repeat(80_000)),
    );
    assert!(answered(&mut large).starts_with("HTTP/1.1 413"));
    let (said, took) = quiet.join().unwrap();
    assert!(said.is_empty() && (58_000..65_000).contains(&took.as_millis()), "{said:?} {took:?}");
}
