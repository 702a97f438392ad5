//! Measures a broker, any broker, over sockets: fan-in, the round trip of a lone publish, and the bare `fdatasync` beside it.
//!
//! ```text
//! measure fan-in PORT SECONDS       10 publishers, window 100, 256 B, QoS 1, one subscriber of everything, QoS 1
//! measure round-trip PORT COUNT     one publisher, window 1
//! measure fdatasync FILE COUNT      4 KiB written over and over into zeroed blocks, each synced
//! ```
//!
//! Every message is checked at the subscriber: order per publisher, no gap, no repeat; otherwise the exit code is 1.
//! Packets are written by hand: a client library on the same two cores would be what is measured.

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::FileExt,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const PUBLISHERS: u64 = 10;
const WINDOW: u64 = 100;
const PAYLOAD: usize = 256;

fn connect(port: u16, id: &str) -> TcpStream {
    let mut s = TcpStream::connect(("127.0.0.1", port)).expect("a broker");
    s.set_nodelay(true).expect("a socket");
    let mut packet = vec![0x10, 12 + id.len() as u8, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0, 0, id.len() as u8];
    packet.extend_from_slice(id.as_bytes());
    s.write_all(&packet).expect("written");
    let mut connack = [0; 4];
    s.read_exact(&mut connack).expect("a CONNACK");
    assert_eq!(connack, [0x20, 2, 0, 0]);
    s
}

/// A PUBLISH whose payload begins with publisher and sequence.
fn publish(out: &mut Vec<u8>, publisher: u64, seq: u64) {
    let topic = format!("bench/{publisher}");
    let length = 2 + topic.len() + 2 + PAYLOAD;
    out.extend_from_slice(&[0x32, length as u8 | 0x80, (length >> 7) as u8, 0, topic.len() as u8]);
    out.extend_from_slice(topic.as_bytes());
    out.extend_from_slice(&((seq % 65_535) as u16 + 1).to_be_bytes());
    out.extend_from_slice(&publisher.to_be_bytes());
    out.extend_from_slice(&seq.to_be_bytes());
    out.resize(out.len() + PAYLOAD - 16, b'x');
}

/// Publishes with a full window until told to stop; then waits for what is in flight. Gives the number acknowledged.
fn publisher(port: u16, p: u64, stop: &AtomicBool) -> u64 {
    let mut s = connect(port, &format!("pub{p}"));
    let (mut sent, mut acknowledged) = (0, 0);
    let (mut out, mut buffer, mut half) = (Vec::new(), vec![0; 64 * 1024], 0);
    while !stop.load(Ordering::Relaxed) || acknowledged < sent {
        if !stop.load(Ordering::Relaxed) {
            out.clear();
            while sent - acknowledged < WINDOW {
                publish(&mut out, p, sent);
                sent += 1;
            }
            s.write_all(&out).expect("written");
        }
        let n = s.read(&mut buffer).expect("acknowledgements");
        assert!(n > 0, "the broker closed the connection");
        // Nothing but PUBACKs of 4 bytes comes here.
        half += n;
        acknowledged += half as u64 / 4;
        half %= 4;
    }
    acknowledged
}

/// Counts and checks what arrives.
fn subscriber(port: u16, delivered: &AtomicU64, last: &AtomicU64, wrong: &AtomicU64) {
    let mut s = connect(port, "sub");
    s.write_all(b"\x82\x0c\x00\x01\x00\x07bench/#\x01").expect("written");
    let (mut data, mut next): (Vec<u8>, Vec<u64>) = (Vec::new(), vec![0; PUBLISHERS as usize]);
    let (mut buffer, mut acks) = (vec![0; 256 * 1024], Vec::new());
    while let Ok(n @ 1..) = s.read(&mut buffer) {
        data.extend_from_slice(&buffer[..n]);
        let mut at = 0;
        acks.clear();
        while let Some((length, head)) = length(&data[at..]) {
            let Some(packet) = data.get(at + head..at + head + length) else { break };
            if data[at] & 0xF0 == 0x30 {
                let topic = usize::from(u16::from_be_bytes([packet[0], packet[1]]));
                let body = &packet[2 + topic..];
                acks.extend_from_slice(&[0x40, 2, body[0], body[1]]);
                let word = |from: usize| u64::from_be_bytes(body[from..from + 8].try_into().expect("8 bytes"));
                let (p, seq) = (word(2) as usize, word(10));
                wrong.fetch_add(u64::from(next[p] != seq), Ordering::Relaxed);
                next[p] = seq + 1;
                delivered.fetch_add(1, Ordering::Relaxed);
            } else {
                last.store(1, Ordering::Relaxed);
            }
            at += head + length;
        }
        data.drain(..at);
        if !acks.is_empty() && s.write_all(&acks).is_err() {
            return;
        }
    }
}

/// Remaining length and bytes of the fixed header.
fn length(b: &[u8]) -> Option<(usize, usize)> {
    let mut n = 0;
    for i in 0..4 {
        let byte = *b.get(1 + i)?;
        n |= usize::from(byte & 0x7F) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((n, 2 + i));
        }
    }
    None
}

fn fan_in(port: u16, seconds: u64) -> bool {
    let shared = Arc::new((AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false)));
    let s = shared.clone();
    thread::spawn(move || subscriber(port, &s.0, &s.1, &s.2));
    while shared.1.load(Ordering::Relaxed) == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    let publishers: Vec<_> = (0..PUBLISHERS)
        .map(|p| {
            let s = shared.clone();
            thread::spawn(move || publisher(port, p, &s.3))
        })
        .collect();
    // The first second warms up.
    thread::sleep(Duration::from_secs(1));
    let (start, before) = (Instant::now(), shared.0.load(Ordering::Relaxed));
    thread::sleep(Duration::from_secs(seconds));
    let rate = (shared.0.load(Ordering::Relaxed) - before) as f64 / start.elapsed().as_secs_f64();
    shared.3.store(true, Ordering::Relaxed);
    let acknowledged: u64 = publishers.into_iter().map(|p| p.join().expect("no panic")).sum();
    let end = Instant::now() + Duration::from_secs(30);
    while shared.0.load(Ordering::Relaxed) < acknowledged && Instant::now() < end {
        thread::sleep(Duration::from_millis(10));
    }
    let (delivered, wrong) = (shared.0.load(Ordering::Relaxed), shared.2.load(Ordering::Relaxed));
    println!("{rate:.0} delivered/s; {acknowledged} acknowledged, {delivered} delivered, {wrong} out of order");
    delivered == acknowledged && wrong == 0
}

fn percentiles(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |p: usize| times[(times.len() * p / 100).min(times.len() - 1)].as_micros();
    println!("{what}: p50 {} us, p90 {} us, p99 {} us ({} times)", at(50), at(90), at(99), times.len());
}

fn round_trip(port: u16, count: u64) -> bool {
    let mut s = connect(port, "lone");
    let mut times = Vec::new();
    for seq in 0..count {
        let mut out = Vec::new();
        publish(&mut out, 0, seq);
        let start = Instant::now();
        s.write_all(&out).expect("written");
        let mut puback = [0; 4];
        s.read_exact(&mut puback).expect("a PUBACK");
        times.push(start.elapsed());
    }
    percentiles("round trip of a lone QoS 1 publish", times);
    true
}

fn fdatasync(path: &str, count: u64) -> bool {
    let file = std::fs::File::options().write(true).create(true).truncate(true).open(path).expect("a file");
    let blocks = 4_096;
    file.write_all_at(&vec![0; 4096 * blocks], 0).expect("written");
    file.sync_all().expect("synced");
    let mut times = Vec::new();
    for n in 0..count {
        let start = Instant::now();
        file.write_all_at(&[n as u8 | 1; 4096], (n % blocks as u64) * 4096).expect("written");
        file.sync_data().expect("synced");
        times.push(start.elapsed());
    }
    percentiles("4 KiB written and fdatasync", times);
    std::fs::remove_file(path).is_ok()
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("{text:?} is not a number"));
    let right = match args[..] {
        ["fan-in", port, seconds] => fan_in(number(port) as u16, number(seconds)),
        ["round-trip", port, count] => round_trip(number(port) as u16, number(count)),
        ["fdatasync", file, count] => fdatasync(file, number(count)),
        _ => {
            eprintln!("usage: measure fan-in PORT SECONDS | round-trip PORT COUNT | fdatasync FILE COUNT");
            return ExitCode::from(2);
        }
    };
    if right { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
