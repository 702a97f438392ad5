//! P5: memory stays within its bound whoever does not keep up, and nobody else feels it. The bound: 64 MiB of newest batches, 8 MiB that wait for
//! the disk, 320 KiB a connection (256 KiB unsent, 64 KiB being read), and 64 MiB for everything else.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use support::{
    Weir, dir,
    raw::{PUBACK, Raw, Version},
};

const MIB: usize = 1 << 20;

fn bound(connections: usize) -> usize {
    (64 + 8 + 64) * MIB + connections * 320 * 1024
}

fn rss(weir: &Weir) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", weir.process.0.id())).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
}

/// Publishes `mib` MiB with QoS 1 in messages of 16 KiB, many at a time.
fn flood(port: u16, mib: usize) {
    let mut p = Raw::connect_with(port, Version::V311, "flood", true, &[]);
    let payload = "x".repeat(16 * 1024);
    let total = mib * 64;
    for n in 0..total {
        p.publish(1, false, (n % 60_000) as u16 + 1, "flood/x", &payload);
        if n >= 200 {
            assert_eq!(p.read().head, PUBACK);
        }
    }
    for _ in 0..200 {
        assert_eq!(p.read().head, PUBACK);
    }
}

/// Another client that sends itself a message every 5 ms until it is stopped; gives the round trips, sorted.
fn ping(port: u16, stop: Arc<AtomicBool>) -> JoinHandle<Vec<Duration>> {
    thread::spawn(move || {
        let mut c = Raw::connect_with(port, Version::V311, "ping", true, &[]);
        c.subscribe("ping/x", 0);
        let mut all = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let start = Instant::now();
            c.publish(0, false, 0, "ping/x", "ping");
            assert_eq!(c.read().head, 0x30);
            all.push(start.elapsed());
            thread::sleep(Duration::from_millis(5));
        }
        all.sort();
        all
    })
}

fn p99(all: &[Duration]) -> Duration {
    assert!(all.len() > 50, "hardly any round trips: {}", all.len());
    all[all.len() * 99 / 100]
}

/// `stuck` subscribers of everything that never read, while `mib` MiB are published.
fn stuck(stuck: usize, mib: usize) {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let sleepers: Vec<Raw> = (0..stuck)
        .map(|n| {
            let mut c = Raw::connect_with(weir.mqtt, Version::V311, &format!("stuck-{n}"), true, &[]);
            c.subscribe("flood/#", 1);
            c
        })
        .collect();
    let stop = Arc::new(AtomicBool::new(false));
    let pinger = ping(weir.mqtt, stop.clone());
    let start = Instant::now();
    flood(weir.mqtt, mib);
    let took = start.elapsed();
    stop.store(true, Ordering::Relaxed);
    let all = pinger.join().unwrap();
    let (used, bound, p99) = (rss(&weir), bound(stuck + 2), p99(&all));
    println!(
        "{stuck} stuck, {mib} MiB in {took:?}: at most {} MiB of {} MiB, others' p99 {p99:?} of {}",
        used / MIB,
        bound / MIB,
        all.len()
    );
    assert!(used <= bound, "{} MiB, bound {} MiB", used / MIB, bound / MIB);
    // The machine of the tests is shared and the build unoptimized: what is looked for is a gateway that stands still (2 s and more under load, before connections
    // wrote in turns).
    let limit = if std::env::var("WEIR_TARGET").is_ok() { 50 } else { 1_000 };
    assert!(p99 < Duration::from_millis(limit), "{p99:?}");
    drop(sleepers);
}

#[test]
fn p5_a_subscriber_that_never_reads_costs_its_bound_and_nobody_else() {
    stuck(1, 1_024);
}

#[test]
fn p5_a_thousand_subscribers_that_never_read() {
    stuck(1_000, 1_024);
}

#[test]
fn p5_ten_thousand_retained_messages_to_one_that_does_not_read() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut p = Raw::connect_with(weir.mqtt, Version::V311, "p", true, &[]);
    let payload = "r".repeat(8 * 1024);
    for n in 0..10_000u32 {
        p.publish_with(3, (n % 60_000) as u16 + 1, &format!("kept/{n}"), &[], &payload);
        if n >= 200 {
            assert_eq!(p.read().head, PUBACK);
        }
    }
    let mut sleepers: Vec<Raw> = Vec::new();
    for n in 0..20 {
        let mut c = Raw::connect_with(weir.mqtt, Version::V311, &format!("stuck-{n}"), true, &[]);
        c.subscribe("kept/#", 1);
        sleepers.push(c);
    }
    thread::sleep(Duration::from_secs(1));
    let (used, bound) = (rss(&weir), bound(21));
    println!("20 x 80 MiB of retained messages: at most {} MiB", used / MIB);
    assert!(used <= bound, "{} MiB, bound {} MiB", used / MIB, bound / MIB);
}

/// QoS 0 has no acknowledgement to wait for: the publisher is held by its socket.
#[test]
fn p5_a_publisher_that_is_faster_than_the_disk_is_held() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let publishers: Vec<_> = (0..4)
        .map(|n| {
            let port = weir.mqtt;
            thread::spawn(move || {
                let mut p = Raw::connect_with(port, Version::V311, &format!("fast-{n}"), true, &[]);
                let payload = "x".repeat(64 * 1024);
                (0..1_500).for_each(|_| p.publish(0, false, 0, &format!("fast/{n}"), &payload));
                // Everything was taken when this is answered.
                p.expect_silence();
            })
        })
        .collect();
    publishers.into_iter().for_each(|p| p.join().unwrap());
    let (used, bound) = (rss(&weir), bound(4));
    println!("375 MiB of QoS 0: at most {} MiB", used / MIB);
    assert!(used <= bound, "{} MiB, bound {} MiB", used / MIB, bound / MIB);
}
