//! Slow links: what counts is that something moves. A client that is not read, or that is sent
//! something for longer than its keep-alive, is not silent [MQTT-3.1.2-22].

mod support;

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};
use support::{
    Weir, dir,
    raw::{PUBACK, Raw, Version},
    slow::{connect_packet, subscriber, websocket_subscriber},
};

const LARGE: usize = 7_000_000;

/// A message that is longer than what sockets hold, for the subscribers of `t`.
fn publish_large(port: u16) {
    let mut p = Raw::connect(port, Version::V311, "publisher");
    p.publish(1, false, 1, "t", &"x".repeat(LARGE));
    p.expect_ack(PUBACK, 1);
}

/// Reads so many bytes in pieces of 30 kB with a pause after each. Gives how many came before the end.
fn read_slowly(socket: &mut TcpStream, wanted: usize, pause: Duration) -> usize {
    let (mut buffer, mut got) = (vec![0; 30_000], 0);
    socket.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
    while got < wanted {
        match socket.read(&mut buffer) {
            Ok(0) | Err(_) => return got,
            Ok(n) => got += n,
        }
        std::thread::sleep(pause);
    }
    got
}

#[test]
fn who_is_sent_a_large_message_is_heard_meanwhile() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut c = subscriber(weir.mqtt, "c", 2);
    publish_large(weir.mqtt);
    // It takes nothing for longer than its keep-alive allows, and says all along that it is there.
    for _ in 0..6 {
        std::thread::sleep(Duration::from_secs(1));
        c.write_all(&[0xC0, 0]).unwrap();
    }
    let answers = LARGE + 6 * 2;
    assert!(read_slowly(&mut c, answers, Duration::ZERO) >= answers);
}

#[test]
fn who_takes_nothing_and_says_nothing_is_closed() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut c = subscriber(weir.mqtt, "c", 2);
    publish_large(weir.mqtt);
    std::thread::sleep(Duration::from_secs(6));
    assert!(read_slowly(&mut c, LARGE, Duration::ZERO) < LARGE, "it was closed before it had all");
}

#[test]
fn who_sends_to_itself_and_does_not_read_comes_to_the_end() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut c = subscriber(weir.mqtt, "c", 0);
    c.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
    // 1,000,000 bytes behind the topic, QoS 0.
    let message = [&[0x30, 0xC3, 0x84, 0x3D, 0, 1, b't'][..], &vec![b'x'; 1_000_000]].concat();
    for n in 0..30 {
        c.write_all(&message).unwrap_or_else(|e| panic!("message {n}: {e}"));
    }
    c.write_all(&[0xC0, 0]).unwrap();
    // What it was too slow for is dropped, as QoS 0 is; what comes is whole, and the answer to PINGREQ is among it.
    c.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut rest = vec![0; message.len() - 1];
    loop {
        let mut head = [0];
        c.read_exact(&mut head).unwrap();
        match head[0] {
            0x30 => c.read_exact(&mut rest).unwrap(),
            0xD0 => break,
            other => panic!("{other:#x}"),
        }
        assert!(rest == message[1..], "a message is as it was sent");
    }
}

#[test]
fn a_message_may_take_longer_than_the_keep_alive() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut c = subscriber(weir.mqtt, "c", 1);
    // 6,000 bytes to "u" with QoS 1, a thousand every 0.7 s.
    let message = [&[0x32, 0xF5, 0x2E, 0, 1, b'u', 0, 7][..], &vec![b'x'; 6_000]].concat();
    for piece in message.chunks(1_000) {
        c.write_all(piece).unwrap();
        std::thread::sleep(Duration::from_millis(700));
    }
    let mut puback = [0; 4];
    c.read_exact(&mut puback).unwrap();
    assert_eq!(puback, [0x40, 2, 0, 7]);
    // Silence is silence still.
    let begun = Instant::now();
    c.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    match c.read(&mut puback) {
        Ok(0) => {}
        Err(e) if e.kind() == ErrorKind::ConnectionReset => {}
        other => panic!("{other:?}"),
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

/// Longer than the ten seconds that one piece of it may take.
#[test]
fn a_slow_websocket_gets_all_of_a_large_message() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut c = websocket_subscriber(weir.http, "c");
    publish_large(weir.mqtt);
    let begun = Instant::now();
    let got = read_slowly(&mut c, LARGE, Duration::from_millis(80));
    assert!(got >= LARGE && begun.elapsed() > Duration::from_secs(15), "{got} bytes in {:?}", begun.elapsed());
}

/// Whoever takes over the session of a client that does not read waits for nothing, and nobody waits for him.
#[test]
fn takeovers_of_clients_that_do_not_read_hold_up_nobody() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let stuck: Vec<_> = (0..40).map(|n| websocket_subscriber(weir.http, &format!("c{n}"))).collect();
    publish_large(weir.mqtt);
    std::thread::sleep(Duration::from_millis(500));
    let begun = Instant::now();
    let mut takeovers: Vec<_> = (0..40)
        .map(|n| {
            let mut socket = TcpStream::connect(("127.0.0.1", weir.mqtt)).unwrap();
            socket.write_all(&connect_packet(&format!("c{n}"), 0)).unwrap();
            socket
        })
        .collect();
    let honest = Raw::connect(weir.mqtt, Version::V5, "honest");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    for socket in &mut takeovers {
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut connack = [0; 4];
        socket.read_exact(&mut connack).unwrap();
        assert_eq!(connack, [0x20, 2, 0, 0]);
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    drop((stuck, honest));
}

/// Answers stop at what a client does not take, and go on when it does, wherever its packets were cut.
#[test]
fn answers_go_on_when_they_are_taken() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    for (port, frame) in [(weir.mqtt, false), (weir.http, true)] {
        for pings in [131_072usize, 150_000, 400_000, 2_000_000] {
            let mut c = if frame { websocket_subscriber(port, "c") } else { subscriber(port, "c", 0) };
            let mut writing = c.try_clone().unwrap();
            let asking = std::thread::spawn(move || {
                let mut send = |bytes: &[u8]| {
                    if frame {
                        let head = [&[0x82, 0xFF][..], &(bytes.len() as u64).to_be_bytes(), &[0; 4]].concat();
                        writing.write_all(&head).unwrap();
                    }
                    writing.write_all(bytes).unwrap();
                };
                send(&[0xC0, 0].repeat(pings));
                // And one behind them.
                send(&[0xC0, 0]);
            });
            std::thread::sleep(Duration::from_millis(300));
            let mut got = 0;
            let mut buffer = vec![0; 1 << 20];
            c.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            while got < pings + 1 {
                let n = c.read(&mut buffer).unwrap_or_else(|e| panic!("{got} of {pings} over {port}: {e}"));
                assert!(n > 0);
                // Heads of frames have neither.
                got += buffer[..n].iter().filter(|b| **b == 0xD0).count();
            }
            asking.join().unwrap();
        }
    }
}
