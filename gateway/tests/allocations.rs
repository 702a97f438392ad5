//! In steady state nothing is allocated per message: what a batch needs is allocated once for all that are in it.
//!
//! The gateway runs in this process, on its own threads; the client beside it uses fixed buffers, so that what is counted is the gateway's.

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::{
    alloc::System,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    time::Duration,
};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Messages that are on their way at once.
const BATCH: usize = 500;
const ROUNDS: usize = 100;
/// Of one read, one append, one commit, one delivery and its acknowledgements, however many messages; 15 were counted, and one of each message would be 500.
const PER_BATCH: usize = 100;

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port")
}

fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u16).to_be_bytes()[..], s.as_bytes()].concat()
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let n = body.len();
    let length = if n < 128 { vec![n as u8] } else { vec![n as u8 | 0x80, (n >> 7) as u8] };
    [&[first][..], &length, body].concat()
}

fn connect(at: SocketAddr, client_id: &str) -> TcpStream {
    let mut socket = TcpStream::connect(at).expect("connects");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
    socket.set_nodelay(true).expect("a socket");
    socket.write_all(&packet(0x10, &[&text("MQTT")[..], &[4, 2, 0, 0], &text(client_id)].concat())).expect("sends");
    socket.read_exact(&mut [0; 4]).expect("a CONNACK");
    socket
}

/// Publishes all, and takes and acknowledges them at the subscriber.
fn round(publisher: &mut TcpStream, subscriber: &mut TcpStream, publishes: &[u8], acks: &mut [u8], came: &mut [u8], id_at: usize) {
    publisher.write_all(publishes).expect("sends");
    publisher.read_exact(acks).expect("PUBACKs");
    assert!(acks.chunks_exact(4).all(|a| a[0] == 0x40));
    subscriber.read_exact(came).expect("messages");
    let each = came.len() / BATCH;
    for (message, ack) in came.chunks_exact(each).zip(acks.chunks_exact_mut(4)) {
        assert_eq!(message[0], 0x32, "QoS 1");
        ack.copy_from_slice(&[0x40, 2, message[id_at], message[id_at + 1]]);
    }
    subscriber.write_all(acks).expect("sends");
}

#[test]
fn nothing_is_allocated_per_message() {
    let directory = tempfile::tempdir().expect("a directory");
    let (ready, is_ready) = mpsc::channel();
    let all = weir::Retention { bytes: None, age: None, min_age: std::time::Duration::ZERO };
    let options = weir::Options {
        mqtt: free(),
        http: free(),
        admin: free(),
        data: directory.path().join("data"),
        durability: weir_log::Durability::Disk,
        limits: weir::Limits {
            messages: all,
            events: all,
            max_deliveries: 0,
            // The subscriber acknowledges a batch at a time.
            client: std::sync::Arc::new(weir::ClientLimits { in_flight_311: BATCH as u16, ..Default::default() }),
            fleet: weir::FleetLimits::default(),
        },
        sys_interval: None,
        settings: Vec::new(),
        hosts: Vec::new(),
        origins: Vec::new(),
        allow_anonymous: false,
    };
    let at = options.mqtt;
    std::thread::spawn(move || {
        let level = weir::api::process::Level { get: Box::new(|| "info".into()), set: Box::new(|_| Ok(())) };
        let hooks = weir::Hooks { level, ready: || ready.send(()).expect("somebody waits"), reload: || None };
        weir::run(&options, hooks).expect("runs");
    });
    is_ready.recv_timeout(Duration::from_secs(20)).expect("ready");

    let mut subscriber = connect(at, "subscriber");
    subscriber.write_all(&packet(0x82, &[&[0, 1][..], &text("t/#"), &[1]].concat())).expect("sends");
    subscriber.read_exact(&mut [0; 5]).expect("a SUBACK");
    let mut publisher = connect(at, "publisher");
    let publish = |id: u16| packet(0x32, &[&text("t/some/topic")[..], &id.to_be_bytes(), &[7; 200]].concat());
    let publishes: Vec<u8> = (1..=BATCH as u16).flat_map(publish).collect();
    let (mut acks, mut came) = (vec![0; 4 * BATCH], vec![0; publishes.len()]);
    let id_at = 3 + 2 + "t/some/topic".len();

    // What grows with the first messages has its size.
    (0..40).for_each(|_| round(&mut publisher, &mut subscriber, &publishes, &mut acks, &mut came, id_at));
    let region = Region::new(ALLOCATOR);
    (0..ROUNDS).for_each(|_| round(&mut publisher, &mut subscriber, &publishes, &mut acks, &mut came, id_at));
    let counted = region.change();
    let made = counted.allocations + counted.reallocations;
    println!(
        "{:.1} allocations a round of {BATCH} messages, {:.3} a message, {} B",
        made as f64 / ROUNDS as f64,
        made as f64 / (ROUNDS * BATCH) as f64,
        counted.bytes_allocated / ROUNDS
    );
    assert!(made < ROUNDS * PER_BATCH, "{made} in {ROUNDS} rounds");
}
