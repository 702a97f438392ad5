//! P4, all at once: SIGKILL at random moments under publishers of QoS 1 and 2 over several topics, subscribers of both kinds that come and go, a
//! shared group whose members come and go, retained messages, and wills. 15 rounds, or WEIR_ROUNDS.
//!
//! Checked at the end: what was acknowledged is there; QoS 2 arrived exactly once, at a subscriber with QoS 2; the order of each publisher is kept;
//! the group has everything that was acknowledged, whoever had it; retained values are not older than acknowledged ones; a will of every
//! connection that was cut came, once each.

mod support;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use support::{
    Weir, dir,
    raw::{PUBACK, PUBCOMP, PUBREC, PUBREL, Raw, Version},
};

const WINDOW: usize = 50;

fn rounds() -> u64 {
    std::env::var("WEIR_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(15)
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Publishers finish what is open.
    finish: AtomicBool,
    /// Acknowledged payloads: PUBACK or PUBCOMP; and for QoS 2, PUBREC is a promise too.
    acknowledged: Mutex<HashSet<String>>,
    once: Mutex<Vec<String>>,
    least: Mutex<Vec<String>>,
    group: Mutex<HashSet<String>>,
}

impl Shared {
    fn finishing(&self) -> bool {
        self.finish.load(Ordering::Relaxed)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Connects until the gateway is there.
fn connect(shared: &Shared, port: u16, id: &str, clean: bool, will: bool) -> Option<Raw> {
    while !shared.stopped() {
        let made = if will { Raw::try_with_will(port, id, 60, &format!("will/{id}")) } else { Raw::try_connect(port, id, clean) };
        if made.is_some() {
            return made;
        }
        thread::sleep(Duration::from_millis(20));
    }
    None
}

/// Publishes with a window as a careful client does: what is not acknowledged is sent again, with its id, after a reconnect.
fn publish(shared: &Shared, port: u16, p: usize, qos: u8) {
    // Packet id, payload, and whether PUBREC has come.
    let mut open: BTreeMap<u64, (u16, String, bool)> = BTreeMap::new();
    let mut seq = 0u64;
    while let Some(mut c) = connect(shared, port, &format!("pub-{p}"), false, false) {
        let topic = |seq: u64| format!("t/{p}/{}", seq % 5);
        let flags = |seq: u64, dup: bool| qos << 1 | u8::from(seq.is_multiple_of(7)) | u8::from(dup) << 3;
        let mut alive = true;
        for (seq, (id, payload, received)) in &open {
            alive &= if *received {
                c.try_send(PUBREL, &id.to_be_bytes())
            } else {
                c.try_publish(flags(*seq, true), *id, &topic(*seq), payload)
            };
        }
        while alive && !(shared.finishing() && open.is_empty()) {
            while alive && open.len() < WINDOW && !shared.finishing() {
                let (id, payload) = ((seq % 60_000) as u16 + 1, format!("{p}:{seq}"));
                alive = c.try_publish(flags(seq, false), id, &topic(seq), &payload);
                open.insert(seq, (id, payload, false));
                seq += 1;
            }
            let Some(a) = c.next(Duration::from_secs(10)) else { break };
            let Some(at) = open.iter().find(|(_, (id, ..))| *id == a.id()).map(|(seq, _)| *seq) else { continue };
            match a.head {
                PUBREC => {
                    let entry = open.get_mut(&at).unwrap();
                    entry.2 = true;
                    shared.acknowledged.lock().unwrap().insert(entry.1.clone());
                    alive = c.try_send(PUBREL, &a.body[..2]);
                }
                PUBACK | PUBCOMP => {
                    let (_, payload, _) = open.remove(&at).unwrap();
                    shared.acknowledged.lock().unwrap().insert(payload);
                }
                other => panic!("{other:02x}"),
            }
        }
        if shared.finishing() && open.is_empty() {
            return;
        }
    }
}

/// A subscriber with a session. With QoS 2 it keeps the packet ids that it has not released, as a client with a store does, and so sees what comes
/// twice. It stays for a while, goes, and comes back.
fn subscribe(shared: &Shared, port: u16, id: &str, filter: &str, qos: u8, into: &Mutex<Vec<String>>) {
    let mut held: HashSet<u16> = HashSet::new();
    let mut turn = 0u64;
    while let Some(mut c) = connect(shared, port, id, false, false) {
        if !c.session_present && !c.try_subscribe(filter, qos) {
            continue;
        }
        turn += 1;
        let stay = Duration::from_millis(100 + turn * 7919 % 900);
        let end = Instant::now() + stay;
        while Instant::now() < end {
            let Some(p) = c.next(Duration::from_millis(50)) else {
                if c.is_closed() {
                    break;
                }
                continue;
            };
            if p.head == PUBREL {
                held.remove(&p.id());
                c.try_send(PUBCOMP, &p.body[..2]);
                continue;
            }
            let m = p.publish(Version::V311);
            // Noted before it is acknowledged.
            if m.qos < 2 || held.insert(m.id) {
                into.lock().unwrap().push(m.payload);
            }
            match m.qos {
                1 => drop(c.try_send(PUBACK, &m.id.to_be_bytes())),
                2 => drop(c.try_send(PUBREC, &m.id.to_be_bytes())),
                _ => {}
            }
        }
    }
}

fn member(shared: &Shared, port: u16, n: usize) {
    let mut turn = n as u64;
    while let Some(mut c) = connect(shared, port, &format!("member-{n}"), false, false) {
        if !c.session_present && !c.try_subscribe("$share/g/t/#", 1) {
            continue;
        }
        turn += 1;
        let end = Instant::now() + Duration::from_millis(50 + turn * 6947 % 500);
        while Instant::now() < end && !c.is_closed() {
            let Some(p) = c.next(Duration::from_millis(50)) else { continue };
            let m = p.publish(Version::V311);
            shared.group.lock().unwrap().insert(m.payload);
            c.try_send(PUBACK, &m.id.to_be_bytes());
        }
    }
}

fn order_is_kept(received: &[String]) {
    let (mut seen, mut last) = (HashSet::new(), HashMap::new());
    for m in received.iter().filter(|m| seen.insert((*m).clone())) {
        let (p, seq) = m.split_once(':').unwrap();
        let seq: u64 = seq.parse().unwrap();
        // Order holds per topic, and a publisher's topics share a partition here.
        let before = last.insert(p.to_owned(), seq);
        assert!(before.is_none_or(|b| b < seq), "{m} came after {p}:{before:?}");
    }
}

#[test]
fn p4_sigkill_under_everything_at_once() {
    let dir = dir();
    let mut weir = Weir::start(dir.path());
    let (port, ports) = (weir.mqtt, weir.ports());
    let shared = Arc::new(Shared::default());
    // The sessions exist before anything is published.
    for (id, filter, qos) in [("once", "t/#", 2), ("least", "t/#", 1), ("member-0", "$share/g/t/#", 1), ("wills", "will/#", 1)] {
        assert_eq!(Raw::connect(port, Version::V311, id).subscribe(filter, qos), qos);
    }
    let publishers: Vec<_> = (0..4)
        .map(|p| {
            let s = shared.clone();
            thread::spawn(move || publish(&s, port, p, if p % 2 == 0 { 2 } else { 1 }))
        })
        .collect();
    let mut readers: Vec<thread::JoinHandle<()>> = Vec::new();
    let s = shared.clone();
    readers.push(thread::spawn(move || subscribe(&s, port, "once", "t/#", 2, &s.once)));
    let s = shared.clone();
    readers.push(thread::spawn(move || subscribe(&s, port, "least", "t/#", 1, &s.least)));
    for n in 0..3 {
        let s = shared.clone();
        readers.push(thread::spawn(move || member(&s, port, n)));
    }
    let mut wills = Vec::new();
    for round in 0..rounds() {
        // Connected when the process dies: its will is due at the next start.
        wills.extend((0..3).filter_map(|n| connect(&shared, port, &format!("w{round}-{n}"), true, true)));
        thread::sleep(Duration::from_millis(100 + (round * 7717) % 500));
        weir.kill();
        weir = Weir::start_on(dir.path(), ports);
    }
    // Publishers finish what is open; readers go on until they have everything.
    shared.finish.store(true, Ordering::Relaxed);
    publishers.into_iter().for_each(|p| p.join().unwrap());
    let acknowledged = shared.acknowledged.lock().unwrap().clone();
    assert!(acknowledged.len() > 1_000, "hardly anything was published: {}", acknowledged.len());
    let end = Instant::now() + Duration::from_secs(60);
    let missing = |have: &HashSet<String>| acknowledged.difference(have).take(5).cloned().collect::<Vec<_>>();
    let of = |list: &Mutex<Vec<String>>| list.lock().unwrap().iter().cloned().collect::<HashSet<String>>();
    loop {
        let left = [missing(&of(&shared.once)), missing(&of(&shared.least)), missing(&shared.group.lock().unwrap())];
        if left.iter().all(Vec::is_empty) {
            break;
        }
        assert!(Instant::now() < end, "acknowledged and never delivered: {left:?}");
        thread::sleep(Duration::from_millis(100));
    }
    shared.stop.store(true, Ordering::Relaxed);
    readers.into_iter().for_each(|r| r.join().unwrap());
    let once = shared.once.lock().unwrap();
    order_is_kept(&once);
    order_is_kept(&shared.least.lock().unwrap());
    let mut seen = HashSet::new();
    for m in once.iter().filter(|m| m.starts_with(['0', '2'])) {
        assert!(seen.insert(m), "{m} came twice with QoS 2");
    }
    println!(
        "{} acknowledged; {} and {} received; {} wills",
        acknowledged.len(),
        once.len(),
        shared.least.lock().unwrap().len(),
        wills.len()
    );
    retained(port, &acknowledged);
    let mut watcher = Raw::connect(port, Version::V311, "wills");
    let mut got: Vec<String> = Vec::new();
    while let Some(p) = watcher.next(Duration::from_secs(1)) {
        let m = p.publish(Version::V311);
        watcher.try_send(PUBACK, &m.id.to_be_bytes());
        got.push(m.topic);
    }
    got.sort();
    let count = got.len();
    got.dedup();
    assert_eq!((got.len(), count), (rounds() as usize * 3, rounds() as usize * 3), "each will once");
}

/// The newest retained value of a topic is at least as new as the newest acknowledged one.
fn retained(port: u16, acknowledged: &HashSet<String>) {
    let mut newest: HashMap<String, u64> = HashMap::new();
    for (p, seq) in acknowledged.iter().map(|m| m.split_once(':').unwrap()) {
        let seq: u64 = seq.parse().unwrap();
        if seq.is_multiple_of(7) {
            let known = newest.entry(format!("t/{p}/{}", seq % 5)).or_default();
            *known = seq.max(*known);
        }
    }
    let mut looker = Raw::connect_with(port, Version::V311, "looker", true, &[]);
    looker.subscribe("t/#", 0);
    while let Some(p) = looker.next(Duration::from_millis(500)) {
        let m = p.publish(Version::V311);
        let seq: u64 = m.payload.split_once(':').unwrap().1.parse().unwrap();
        if let Some(newest) = newest.remove(&m.topic) {
            assert!(m.retain && seq >= newest, "{}: retained {seq}, acknowledged {newest}", m.topic);
        }
    }
    assert!(newest.is_empty(), "no retained message: {newest:?}");
}
