//! P4: 20 rounds of SIGKILL at random moments under QoS 1 publishers at full speed and a persistent subscriber that comes and goes.
//! Nothing acknowledged is missing, the order of each publisher is kept, and the newest retained value is at least as new as the
//! newest acknowledged one.

mod support;

use rumqttc::{Client, Event, MqttOptions, Outgoing, Packet, QoS};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use support::{Weir, binary, command, dir, eventually, free_port, http_get};

const PUBLISHERS: usize = 4;

fn rounds() -> usize {
    std::env::var("WEIR_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(20)
}

fn options(id: &str, port: u16, clean: bool) -> MqttOptions {
    let mut o = MqttOptions::new(id, "127.0.0.1", port);
    o.set_keep_alive(Duration::from_secs(30)).set_clean_session(clean).set_inflight(100).set_max_packet_size(1 << 20, 1 << 20);
    o
}

/// Publishes `p:seq` from `next` on until the connection breaks; gives the sequence after the last one sent. Acknowledged ones go into the set.
fn publish(p: usize, port: u16, next: u64, acknowledged: &Mutex<HashSet<String>>) -> u64 {
    let (client, mut connection) = Client::new(options(&format!("pub-{p}"), port, true), 200);
    let stop = Arc::new(AtomicBool::new(false));
    let (sender_stop, mut seq) = (stop.clone(), next);
    let sender = thread::spawn(move || {
        while !sender_stop.load(Ordering::Relaxed) {
            let topic = format!("kill/{p}/{}", seq % 5);
            if client.publish(topic, QoS::AtLeastOnce, seq % 7 == 0, format!("{p}:{seq}")).is_err() {
                break;
            }
            seq += 1;
        }
        seq
    });
    // The library gives ids in the order of sending; an id means the message that was sent with it last.
    let (mut sent, mut by_id) = (next, HashMap::new());
    while let Ok(event) = connection.recv() {
        match event {
            Ok(Event::Outgoing(Outgoing::Publish(id))) => {
                by_id.insert(id, sent);
                sent += 1;
            }
            Ok(Event::Incoming(Packet::PubAck(ack))) => {
                let seq = by_id.remove(&ack.pkid).expect("an id in flight");
                acknowledged.lock().unwrap().insert(format!("{p}:{seq}"));
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    stop.store(true, Ordering::Relaxed);
    drop(connection);
    sender.join().unwrap()
}

/// A persistent subscriber that stays for a random time, goes, and comes back, also while the gateway is away.
fn subscriber(port: u16, received: Arc<Mutex<Vec<String>>>, stop: Arc<AtomicBool>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut turn = 0u64;
        while !stop.load(Ordering::Relaxed) {
            // Acknowledges by hand, after it has noted the message: by itself the library acknowledges whole reads before it gives them.
            let mut options = options("keeper", port, false);
            options.set_manual_acks(true);
            let (client, mut connection) = Client::new(options, 10_000);
            client.subscribe("kill/#", QoS::AtLeastOnce).unwrap();
            turn += 1;
            let end = Instant::now() + Duration::from_millis(100 + turn * 7919 % 700);
            while Instant::now() < end {
                match connection.recv_timeout(Duration::from_millis(20)) {
                    Ok(Ok(Event::Incoming(Packet::Publish(m)))) => {
                        received.lock().unwrap().push(String::from_utf8(m.payload.to_vec()).unwrap());
                        client.try_ack(&m).unwrap();
                    }
                    Ok(Ok(_)) | Err(rumqttc::RecvTimeoutError::Timeout) => {}
                    Ok(Err(_)) | Err(_) => break,
                }
            }
            thread::sleep(Duration::from_millis(turn * 31 % 50));
        }
    })
}

fn split(message: &str) -> (usize, u64) {
    let (p, seq) = message.split_once(':').unwrap();
    (p.parse().unwrap(), seq.parse().unwrap())
}

#[test]
fn nothing_acknowledged_is_lost_over_20_rounds_of_sigkill() {
    survives("disk", rounds());
}

/// The operating system lives on, and has what was acknowledged.
#[test]
fn nor_is_it_where_only_the_operating_system_has_it() {
    survives("os", rounds() / 4);
}

fn survives(durability: &str, rounds: usize) {
    let dir = dir();
    let start = |ports| {
        let mut command = command(&binary(), dir.path(), ports);
        command.args(["--durability", durability]);
        Weir::spawn(command, ports)
    };
    let mut weir = start([free_port(), free_port(), free_port()]);
    let (port, ports) = (weir.mqtt, weir.ports());
    // The session exists before anything is published.
    {
        let (client, mut connection) = Client::new(options("keeper", port, false), 10);
        client.subscribe("kill/#", QoS::AtLeastOnce).unwrap();
        eventually("a SUBACK", Duration::from_secs(5), || {
            matches!(connection.recv_timeout(Duration::from_millis(50)), Ok(Ok(Event::Incoming(Packet::SubAck(_)))))
        });
    }
    let acknowledged = Arc::new(Mutex::new(HashSet::new()));
    let received = Arc::new(Mutex::new(Vec::new()));
    let stop = Arc::new(AtomicBool::new(false));
    let keeper = subscriber(port, received.clone(), stop.clone());
    let mut next = [0u64; PUBLISHERS];
    for round in 0..rounds {
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|p| {
                let (acknowledged, from) = (acknowledged.clone(), next[p]);
                thread::spawn(move || publish(p, port, from, &acknowledged))
            })
            .collect();
        thread::sleep(Duration::from_millis(100 + (round as u64 * 7717) % 400));
        weir.kill();
        for (p, publisher) in publishers.into_iter().enumerate() {
            next[p] = publisher.join().unwrap();
        }
        weir = start(ports);
    }
    let acknowledged = acknowledged.lock().unwrap().clone();
    assert!(acknowledged.len() > 50 * rounds, "hardly anything was published: {}", acknowledged.len());
    let missing = || {
        let received: HashSet<String> = received.lock().unwrap().iter().cloned().collect();
        acknowledged.difference(&received).take(5).cloned().collect::<Vec<_>>()
    };
    let end = Instant::now() + Duration::from_secs(60);
    while !missing().is_empty() && Instant::now() < end {
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(missing(), Vec::<String>::new(), "acknowledged and never delivered, of {}", acknowledged.len());
    stop.store(true, Ordering::Relaxed);
    keeper.join().unwrap();
    check_order(&received.lock().unwrap());
    check_retained(port, &acknowledged);
    let lost = http_get(weir.admin, "/metrics").lines().find(|l| l.starts_with("weir_lost_records_total")).map(str::to_owned);
    assert_eq!(lost.as_deref(), Some("weir_lost_records_total 0"));
    println!("{} acknowledged, {} received", acknowledged.len(), received.lock().unwrap().len());
}

/// The first arrival of each message comes in the order of its publisher.
fn check_order(received: &[String]) {
    let (mut seen, mut last) = (HashSet::new(), HashMap::new());
    for message in received.iter().filter(|m| seen.insert((*m).clone())) {
        let (p, seq) = split(message);
        let before = last.insert(p, seq);
        assert!(before.is_none_or(|b| b < seq), "{message} came after {p}:{before:?}");
    }
}

fn check_retained(port: u16, acknowledged: &HashSet<String>) {
    let mut newest: HashMap<String, u64> = HashMap::new();
    for (p, seq) in acknowledged.iter().map(|m| split(m)).filter(|(_, seq)| seq % 7 == 0) {
        let known = newest.entry(format!("kill/{p}/{}", seq % 5)).or_default();
        *known = seq.max(*known);
    }
    let (client, mut connection) = Client::new(options("looker", port, true), 10);
    client.subscribe("kill/#", QoS::AtLeastOnce).unwrap();
    let mut left: VecDeque<_> = newest.into_iter().collect();
    eventually("all retained messages", Duration::from_secs(10), || {
        if let Ok(Ok(Event::Incoming(Packet::Publish(m)))) = connection.recv_timeout(Duration::from_millis(50)) {
            assert!(m.retain, "nobody publishes now");
            let (_, seq) = split(std::str::from_utf8(&m.payload).unwrap());
            left.retain(|(topic, newest)| {
                let this = *topic == m.topic;
                assert!(!this || seq >= *newest, "{topic}: retained {seq}, acknowledged {newest}");
                !this
            });
        }
        left.is_empty()
    });
}
