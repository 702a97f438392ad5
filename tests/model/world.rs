//! One gateway, those who use it, and what they do next.

use crate::{
    Rng,
    client::{Client, Got},
    feed::Feed,
    ledger::{Interval, Published, Truth, matches, published, retained},
    support::{
        Weir, binary, command, dir, free_port, http_get,
        raw::{PUBACK, PUBCOMP, PUBREC, PUBREL, Raw, Version},
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};
use tempfile::TempDir;

const TOPICS: [&str; 8] = ["a", "a/b", "a/b/c", "a/d", "b", "b/c", "c/d/e", "c"];
const FILTERS: [&str; 9] = ["#", "a/#", "+/b", "a/+", "b", "c/#", "+/+/+", "a/b/c", "+"];
const GROUP: &str = "a/#";
const RETAIN: u8 = 1;
/// For the next message of a replay, where others keep the machine busy.
const PATIENCE: Duration = Duration::from_secs(5);
/// For everybody to have everything in the end.
const QUIET: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_millis(5);

pub struct World {
    rng: Rng,
    what: String,
    dir: TempDir,
    ports: [u16; 3],
    durability: &'static str,
    weir: Option<Weir>,
    /// Starts so far.
    life: usize,
    publisher: Option<Raw>,
    packet_id: u16,
    /// The next message's.
    number: u64,
    /// What a publisher that did not know sent again at QoS 1.
    may_be_twice: BTreeSet<u64>,
    clients: Vec<Client>,
    members: Vec<Client>,
    feed: Feed,
    will: Option<Raw>,
    wills: usize,
    done: BTreeMap<&'static str, usize>,
}

impl World {
    pub fn start(seed: u64, durability: &str) -> Self {
        let durability = if durability == "os" { "os" } else { "disk" };
        let ports = [free_port(), free_port(), free_port()];
        let versions = [Version::V5, Version::V311];
        let clients = (0..6).map(|n| Client::new(&format!("c{n}"), versions[n % 2], n < 4)).collect();
        let members = (0..3).map(|n| Client::new(&format!("m{n}"), versions[n % 2], true)).collect();
        let mut world = Self {
            rng: Rng::new(seed),
            what: format!("WEIR_SEED={seed} ({durability})"),
            dir: dir(),
            ports,
            durability,
            weir: None,
            life: 0,
            publisher: None,
            packet_id: 0,
            may_be_twice: BTreeSet::new(),
            number: 0,
            clients,
            members,
            feed: Feed::start(ports[1]),
            will: None,
            wills: 0,
            done: BTreeMap::new(),
        };
        world.open();
        world
    }

    fn open(&mut self) {
        let mut command = command(&binary(), self.dir.path(), self.ports);
        command.args(["--max-deliveries", "0", "--durability", self.durability]);
        self.weir = Some(Weir::spawn(command, self.ports));
        self.publisher = Some(Raw::connect(self.ports[0], Version::V5, "publisher"));
    }

    pub fn step(&mut self) {
        let what = match self.rng.below(100) {
            0..40 => self.publish(),
            40..50 => self.connect(),
            50..58 => self.subscribe(),
            58..61 => self.unsubscribe(),
            61..78 => self.take(),
            78..83 => self.cut(),
            83..91 => self.group(),
            91..95 => self.replay(),
            95..98 => self.leave_a_will(),
            98 => self.end_process(true),
            _ if self.rng.chance(40) => self.end_process(false),
            _ => self.die_while_publishing(),
        };
        *self.done.entry(what).or_default() += 1;
    }

    fn next_id(&mut self) -> u16 {
        self.packet_id = self.packet_id % 60_000 + 1;
        self.packet_id
    }

    /// A message, or a few, acknowledged before anything else happens.
    fn publish(&mut self) -> &'static str {
        for _ in 0..1 + self.rng.below(6) {
            let (topic, qos, retain) = (*self.rng.pick(&TOPICS), self.rng.below(3) as u8, self.rng.chance(25));
            // The end of a retained message, now and then.
            let payload = if retain && self.rng.chance(15) { String::new() } else { self.number.to_string() };
            self.number += 1;
            let id = self.next_id();
            let p = self.publisher.as_mut().unwrap();
            p.publish_with(qos << 1 | if retain { RETAIN } else { 0 }, id, topic, &[], &payload);
            match qos {
                1 => drop(p.expect_ack(PUBACK, id)),
                2 => {
                    p.expect_ack(PUBREC, id);
                    p.ack(PUBREL, id);
                    p.expect_ack(PUBCOMP, id);
                }
                _ => {}
            }
        }
        "publish"
    }

    fn connect(&mut self) -> &'static str {
        let (nth, window) = (self.rng.below(self.clients.len()), *self.rng.pick(&[1, 2, 5, 50]));
        let c = &mut self.clients[nth];
        if c.socket.is_none() {
            c.connect(self.ports[0], window);
        }
        "connect"
    }

    fn connected(&mut self) -> Option<usize> {
        let nth = self.rng.below(self.clients.len());
        self.clients[nth].socket.is_some().then_some(nth)
    }

    fn subscribe(&mut self) -> &'static str {
        let Some(nth) = self.connected() else { return "nothing" };
        let (filter, qos, after) = (*self.rng.pick(&FILTERS), self.rng.below(3) as u8, self.number);
        let c = &mut self.clients[nth];
        if c.intervals.iter().any(|i| i.filter == filter) {
            return "nothing";
        }
        c.socket.as_mut().unwrap().send_subscribe(filter, qos);
        assert_eq!(c.until(0x90, self.life).body.last(), Some(&qos));
        c.intervals.push(Interval { filter: filter.to_owned(), qos, after, from: self.number, end: None });
        "subscribe"
    }

    fn unsubscribe(&mut self) -> &'static str {
        let Some(nth) = self.connected() else { return "nothing" };
        let c = &mut self.clients[nth];
        if c.intervals.is_empty() {
            return "nothing";
        }
        let gone = self.rng.below(c.intervals.len());
        let mut interval = c.intervals.remove(gone);
        c.socket.as_mut().unwrap().send_unsubscribe(&interval.filter);
        c.until(0xB0, self.life);
        interval.end = Some(self.number);
        c.past.push(interval);
        "unsubscribe"
    }

    fn take(&mut self) -> &'static str {
        let Some(nth) = self.connected() else { return "nothing" };
        let most = 1 + self.rng.below(20);
        self.clients[nth].take(most, SOON, self.life, &mut self.rng);
        "take"
    }

    fn cut(&mut self) -> &'static str {
        let Some(nth) = self.connected() else { return "nothing" };
        self.clients[nth].socket = None;
        "cut"
    }

    /// A member comes, takes something, or goes.
    fn group(&mut self) -> &'static str {
        let (nth, window) = (self.rng.below(self.members.len()), *self.rng.pick(&[1, 10, 50]));
        let goes = self.rng.chance(25);
        let m = &mut self.members[nth];
        if m.socket.is_none() {
            m.connect(self.ports[0], window);
            if m.intervals.is_empty() {
                let after = self.number;
                m.socket.as_mut().unwrap().send_subscribe(&format!("$share/g/{GROUP}"), 1);
                m.until(0x90, self.life);
                m.intervals.push(Interval { filter: GROUP.to_owned(), qos: 1, after, from: self.number, end: None });
            }
        } else if goes {
            m.socket = None;
        } else {
            m.take(20, SOON, self.life, &mut self.rng);
        }
        "group"
    }

    /// A stranger reads the past of a filter: all of it, in order, each message once, whatever its QoS.
    fn replay(&mut self) -> &'static str {
        let (filter, qos) = (*self.rng.pick(&FILTERS), self.rng.below(2) as u8);
        let mut c = Client::new("", Version::V311, false);
        c.connect(self.ports[0], 50);
        c.socket.as_mut().unwrap().send_subscribe(&format!("$replay/earliest/{filter}"), qos);
        c.until(0x90, self.life);
        let known = self.clients.iter().flat_map(|c| &c.got).filter(|g| g.qos > 0 && matches(filter, &g.topic));
        let owed: BTreeSet<u64> = known.filter_map(|g| g.payload.parse().ok()).collect();
        let mut until = Instant::now() + PATIENCE;
        loop {
            if c.take(500, Duration::from_millis(60), self.life, &mut self.rng) {
                c.acknowledge();
                until = Instant::now() + PATIENCE;
                continue;
            }
            let got: BTreeSet<u64> = c.got.iter().filter_map(|g| g.payload.parse().ok()).collect();
            if owed.is_subset(&got) || Instant::now() > until {
                break;
            }
        }
        let told: Vec<u64> = c.got.iter().filter(|g| !g.retain).filter_map(|g| g.payload.parse().ok()).collect();
        let distinct: BTreeSet<u64> = told.iter().copied().collect();
        let twice: BTreeSet<u64> = told.windows(2).filter(|w| w[0] == w[1]).map(|w| w[0]).collect();
        assert!(told.is_sorted() && twice.is_subset(&self.may_be_twice), "{}: a replay of {filter} told {told:?}", self.what);
        let known = self.clients.iter().flat_map(|c| &c.got).filter(|g| g.qos > 0 && matches(filter, &g.topic));
        for g in known {
            assert!(
                g.payload.parse().is_ok_and(|n| distinct.contains(&n)) || g.payload == "gone" || g.payload.is_empty(),
                "{}: a replay of {filter} misses {g:?}",
                self.what
            );
        }
        "replay"
    }

    /// Each connection that breaks leaves its will, once.
    fn leave_a_will(&mut self) -> &'static str {
        match self.will.take() {
            Some(connection) => drop(connection),
            None => {
                self.will = Some(Raw::with_will(self.ports[0], "will", true, 0, "c/d/e", 0));
                self.wills += 1;
            }
        }
        "will"
    }

    /// SIGKILL, or SIGTERM. Everybody's connections end with it.
    fn end_process(&mut self, killed: bool) -> &'static str {
        self.will = None;
        let weir = self.weir.take().unwrap();
        if killed {
            weir.kill();
        } else {
            assert_eq!(weir.terminate(), Some(0));
        }
        self.publisher = None;
        self.clients.iter_mut().chain(&mut self.members).for_each(|c| c.socket = None);
        self.life += 1;
        self.open();
        if killed { "kill" } else { "stop" }
    }

    /// The publisher does not know what became of its last message, and sends it again.
    fn die_while_publishing(&mut self) -> &'static str {
        let (topic, qos, id) = (*self.rng.pick(&TOPICS), 1 + self.rng.below(2) as u8, self.next_id());
        let payload = self.number.to_string();
        self.number += 1;
        if qos == 1 {
            // Both are in the log.
            self.may_be_twice.insert(self.number - 1);
        }
        self.publisher.as_mut().unwrap().publish(qos, false, id, topic, &payload);
        std::thread::sleep(Duration::from_micros(self.rng.below(3_000) as u64));
        self.end_process(true);
        let p = self.publisher.as_mut().unwrap();
        assert!(p.session_present, "{}: the publisher's session is gone", self.what);
        p.publish(qos, true, id, topic, &payload);
        if qos == 1 {
            p.expect_ack(PUBACK, id);
        } else {
            p.expect_ack(PUBREC, id);
            p.ack(PUBREL, id);
            p.expect_ack(PUBCOMP, id);
        }
        "die while publishing"
    }

    /// Nothing is on its way to this client, and nothing waits for it.
    fn has_all(&self, name: &str) -> bool {
        let answer = http_get(self.ports[2], &format!("/api/v1/sessions/{name}"));
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let Ok(session) = serde_json::from_str::<serde_json::Value>(body) else { return false };
        let places = session["places"].as_array().into_iter().flatten();
        session["in_flight"] == 0 && places.clone().all(|p| p["next"].as_u64() >= p["end"].as_u64())
    }

    /// Everybody comes back and takes what there is; then it is compared.
    pub fn end(mut self) {
        self.will = None;
        for c in self.clients.iter_mut().chain(&mut self.members) {
            if c.socket.is_none() {
                c.connect(self.ports[0], 50);
            }
        }
        // Two rounds: what one member had goes to the others. More while the gateway has something for somebody: a disk that
        // others keep busy takes its time with each step of QoS 2.
        let until = Instant::now() + QUIET;
        for round in 0.. {
            self.clients.iter_mut().chain(&mut self.members).for_each(|c| c.drain(self.life, &mut self.rng));
            let all = self.clients.iter().chain(&self.members);
            if round > 0 && (Instant::now() > until || all.clone().all(|c| self.has_all(&c.name))) {
                break;
            }
        }
        let told = self.feed.end();
        assert_eq!(self.weir.take().unwrap().terminate(), Some(0));
        let truth = Truth { all: published(&binary(), self.dir.path()) };
        let offsets: Vec<u64> = truth.all.iter().map(|r| r.offset).collect();
        assert_eq!(told, offsets, "{}: the feed tells every record once, in order", self.what);
        let wills = truth.all.iter().filter(|r| r.payload == "gone").count();
        assert_eq!(wills, self.wills, "{}: each will once", self.what);
        self.clients.iter().for_each(|c| check(&self.what, c, &truth));
        check_group(&self.what, &self.members, &truth);
        eprintln!(
            "{}: {} records, {} deliveries, {:?}",
            self.what,
            offsets.len(),
            self.clients.iter().map(|c| c.got.len()).sum::<usize>(),
            self.done
        );
    }
}

/// The records that a delivery can be of.
fn of<'a>(truth: &'a Truth, got: &'a Got) -> impl Iterator<Item = &'a Published> {
    truth.all.iter().filter(|r| r.payload == got.payload && r.topic == got.topic)
}

fn check(what: &str, c: &Client, truth: &Truth) {
    let what = format!("{what}, {}", c.name);
    let (mut last, mut life, mut once) = (None, 0, BTreeSet::new());
    for g in &c.got {
        assert!(of(truth, g).any(|r| g.qos <= r.qos), "{what}: {g:?} was never published so");
        if g.retain {
            let asked = c.intervals.iter().chain(&c.past).any(|i| matches(&i.filter, &g.topic));
            assert!(asked && of(truth, g).any(|r| r.retain), "{what}: {g:?} is no retained message of a subscription");
            continue;
        }
        let own = |r: &&Published| c.intervals.iter().chain(&c.past).any(|i| truth.may_have(i, r));
        assert!(of(truth, g).any(|r| own(&r)), "{what}: {g:?} belongs to no subscription: {:?} {:?}", c.intervals, c.past);
        if g.qos == 2 && g.payload != "gone" && !g.payload.is_empty() {
            assert!(once.insert(&g.payload), "{what}: {g:?} came twice");
        }
        if g.life != life {
            // Of QoS 1 up to a quarter of a second comes again after SIGKILL.
            (last, life) = (None, g.life);
        }
        if !g.dup {
            let next = of(truth, g).map(|r| r.offset).filter(|offset| last.is_none_or(|last| *offset > last)).min();
            assert!(next.is_some(), "{what}: {g:?} comes behind {last:?}");
            last = next;
        }
    }
    let came: BTreeSet<(&str, &str)> = c.got.iter().map(|g| (&*g.topic, &*g.payload)).collect();
    for i in &c.intervals {
        for r in truth.owed(i) {
            assert!(came.contains(&(&*r.topic, &*r.payload)), "{what}: {r:?} never came to {i:?}");
        }
        let start = truth.behind(i.after);
        for r in retained(&truth.all, start).into_values().filter(|r| matches(&i.filter, &r.topic) && r.qos > 0 && i.qos > 0) {
            let replaced = truth.all.iter().any(|newer| newer.retain && newer.topic == r.topic && newer.offset >= start);
            assert!(replaced || came.contains(&(&*r.topic, &*r.payload)), "{what}: the retained {r:?} never came to {i:?}");
        }
    }
}

/// Everything since the group began was acknowledged by one of its members.
fn check_group(what: &str, members: &[Client], truth: &Truth) {
    let Some(first) = members.iter().flat_map(|m| &m.intervals).min_by_key(|i| i.from) else { return };
    let acknowledged: BTreeSet<&str> = members.iter().flat_map(|m| &m.acknowledged).map(|p| &**p).collect();
    for r in truth.owed(first) {
        assert!(acknowledged.contains(&*r.payload), "{what}: {r:?} was given to nobody of the group");
    }
}
