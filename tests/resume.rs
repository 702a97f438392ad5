//! What a narrow filter matches among many records is read, and the rest is not: a session that comes back has its first message at once, and so
//! have many at the same time. WEIR_RECORDS and WEIR_SESSIONS make it larger; WEIR_TARGET=release measures the release build.

mod support;

use std::time::{Duration, Instant};
use support::{
    Weir, dir,
    raw::{PUBACK, Raw, Version},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// `per_topic` records on each of `topics` topics, interleaved, from one publisher with a window of 1,000.
fn fill(port: u16, topics: usize, per_topic: usize) {
    let mut p = Raw::connect_with(port, Version::V311, "filler", true, &[]);
    let total = topics * per_topic;
    let mut body = Vec::new();
    for n in 0..total {
        let topic = n * 7_919 % topics;
        let name = format!("site{}/device{}/temp", topic % 100, topic / 100);
        body.clear();
        body.extend((name.len() as u16).to_be_bytes());
        body.extend(name.as_bytes());
        body.extend(((n % 1_000) as u16 + 1).to_be_bytes());
        body.extend(format!("{n:016}").as_bytes());
        p.send(0x32, &body);
        if n >= 900 {
            assert_eq!(p.read().head, PUBACK);
        }
    }
    for _ in 0..total.min(900) {
        assert_eq!(p.read().head, PUBACK);
    }
}

fn connect_packet(id: &str) -> Vec<u8> {
    let mut connect = vec![0x10, 12 + id.len() as u8, 0, 4, b'M', b'Q', b'T', b'T', 4, 0, 0, 0, 0, id.len() as u8];
    connect.extend(id.as_bytes());
    connect
}

/// Connects a session that is there, and gives when its first message came and how many came, in order.
async fn come_back(port: u16, id: String, expected: usize) -> (Duration, usize) {
    let start = Instant::now();
    let mut s = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    s.write_all(&connect_packet(&id)).await.unwrap();
    let (mut buffer, mut got, mut first, mut last) = (Vec::new(), 0, None, String::new());
    while got < expected {
        let read = tokio::time::timeout(Duration::from_secs(30), s.read_buf(&mut buffer)).await;
        let bytes = read.unwrap_or_else(|_| panic!("{id}: nothing more after {got} of {expected}")).unwrap();
        assert!(bytes > 0, "{id}: closed after {got}");
        while buffer.len() > 1 && buffer.len() >= 2 + usize::from(buffer[1]) {
            let packet: Vec<u8> = buffer.drain(..2 + usize::from(buffer[1])).collect();
            if packet[0] & 0xF0 == 0x30 {
                first.get_or_insert_with(|| start.elapsed());
                let payload = String::from_utf8(packet[packet.len() - 16..].to_vec()).unwrap();
                assert!(payload > last, "{id}: {payload} after {last}");
                last = payload;
                got += 1;
            }
        }
    }
    (first.unwrap(), got)
}

#[test]
fn a_narrow_session_has_its_first_message_at_once_and_so_have_many() {
    let (records, sessions) = (number("WEIR_RECORDS", 200_000), number("WEIR_SESSIONS", 500));
    let topics = 10_000.min(records / 100);
    let per_topic = records / topics;
    let dir = dir();
    let weir = Weir::start(dir.path());
    for n in 0..sessions {
        let topic = n % topics;
        let mut c = Raw::connect(weir.mqtt, Version::V311, &format!("one-{n}"));
        c.subscribe(&format!("site{}/device{}/temp", topic % 100, topic / 100), 1);
        c.disconnect();
    }
    let mut narrow = Raw::connect(weir.mqtt, Version::V311, "narrow");
    narrow.subscribe("site42/+/temp", 1);
    narrow.disconnect();
    let start = Instant::now();
    fill(weir.mqtt, topics, per_topic);
    println!("{records} records on {topics} topics in {:?}", start.elapsed());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // As much as the window of version 3.1.1 lets through without an acknowledgement.
    let (first, _) = runtime.block_on(come_back(weir.mqtt, "narrow".into(), (topics / 100 * per_topic).min(1_000)));
    println!("first message of 1 session after {first:?}");
    let start = Instant::now();
    let port = weir.mqtt;
    runtime.block_on(async {
        let all: Vec<_> = (0..sessions).map(|n| tokio::spawn(come_back(port, format!("one-{n}"), per_topic))).collect();
        for task in all {
            assert_eq!(task.await.unwrap().1, per_topic);
        }
    });
    let took = start.elapsed();
    println!("{sessions} sessions at once, {per_topic} messages each, in {took:?}");
    // A debug build on a busy machine; a scan of everything would take many times as long.
    assert!(first < Duration::from_millis(300), "{first:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
}

/// Connects anew, perhaps while the old socket is still there.
async fn connect_again(port: u16, id: String, old: Option<TcpStream>, overlap: bool) -> (String, TcpStream) {
    let mut new = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    if overlap {
        new.write_all(&connect_packet(&id)).await.unwrap();
        drop(old);
    } else {
        drop(old);
        new.write_all(&connect_packet(&id)).await.unwrap();
    }
    let mut connack = [0; 4];
    let read = tokio::time::timeout(Duration::from_secs(20), new.read_exact(&mut connack)).await;
    assert!(matches!(read, Ok(Ok(_))), "{id}: no CONNACK: {read:?}");
    assert_eq!((connack[0], connack[3]), (0x20, 0), "{id}: {connack:02x?}");
    (id, new)
}

/// Who comes waits until the same client has left; who leaves may not wait for those who come.
#[test]
fn a_fleet_that_goes_and_comes_at_the_same_time_is_taken() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let port = weir.mqtt;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut fleet: Vec<(String, Option<TcpStream>)> = (0..400).map(|n| (format!("device-{n}"), None)).collect();
        for round in 0..4 {
            let come =
                |(n, (id, old)): (usize, (String, Option<TcpStream>))| tokio::spawn(connect_again(port, id, old, (n + round) % 2 == 0));
            let coming: Vec<_> = fleet.into_iter().enumerate().map(come).collect();
            fleet = Vec::new();
            for task in coming {
                let (id, socket) = task.await.unwrap();
                fleet.push((id, Some(socket)));
            }
        }
        assert_eq!(fleet.len(), 400);
    });
    assert_eq!(weir.terminate(), Some(0));
}
