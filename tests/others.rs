//! What one client does is not felt by the others: whatever it asks for, they log in, are
//! acknowledged and get their messages within the times that stand here.

mod support;

use std::{
    io::Write,
    net::TcpStream,
    time::{Duration, Instant},
};
use support::{
    Weir, dir,
    raw::{PUBACK, Raw, Version},
};

/// QoS 0 messages of one byte to `TOPIC/N` for each number, in few writes, and one of QoS 1 behind them, which is
/// acknowledged when all of them are on disk.
fn fill(port: u16, numbers: std::ops::Range<u32>, topic: &str) {
    let mut c = Raw::connect(port, Version::V311, "fill");
    let mut packets = Vec::new();
    for n in numbers {
        let topic = format!("{topic}/{n}");
        packets.extend([0x30, (topic.len() + 3) as u8, 0, topic.len() as u8]);
        packets.extend(topic.as_bytes());
        packets.push(b'v');
        if packets.len() > 1 << 20 {
            c.write(&packets);
            packets.clear();
        }
    }
    c.write(&packets);
    c.publish(1, false, 1, "filled", "");
    c.expect_ack(PUBACK, 1);
}

/// The worst of some logins with a session that has to be read from the store.
fn worst_login(port: u16) -> Duration {
    let login = |_| {
        let began = Instant::now();
        Raw::connect(port, Version::V5, "honest").disconnect();
        began.elapsed()
    };
    (0..10).map(login).max().unwrap_or_default()
}

/// 26 s were measured with twenty reads over 6 M topics: each read kept a reader until it had looked through the log.
#[test]
fn a_login_does_not_wait_for_those_who_read_the_past() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    for chunk in 0..4 {
        fill(weir.mqtt, chunk * 400_000..(chunk + 1) * 400_000, "many/topics");
    }
    Raw::connect(weir.mqtt, Version::V5, "honest").disconnect();
    let mut readers = Vec::new();
    for n in 0..20 {
        let mut browser = TcpStream::connect(("127.0.0.1", weir.http)).unwrap();
        write!(browser, "GET /events?from=earliest&filter=%2B/%2B/x{n} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut client = Raw::connect(weir.mqtt, Version::V5, &format!("reader {n}"));
        client.send_subscribe(&format!("$replay/earliest/+/+/y{n}"), 1);
        readers.push((browser, client));
    }
    let worst = worst_login(weir.mqtt);
    assert!(worst < Duration::from_millis(200), "a login took {worst:?}");
    // One who reads a little of the past has its turn between them.
    let began = Instant::now();
    let mut c = Raw::connect(weir.mqtt, Version::V5, "little");
    c.subscribe("$replay/last:1/filled", 1);
    assert_eq!(c.expect_publish().topic, "filled");
    let took = began.elapsed();
    assert!(took < Duration::from_secs(4), "one record of the past took {took:?}");
}
