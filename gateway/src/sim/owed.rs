//! After any input, when nothing more can happen, nothing is owed: every packet that has an answer has it.
//!
//! Clients send what they like in any order and cut anywhere: SUBSCRIBE and UNSUBSCRIBE of the same filters, shared ones and those that begin in the past, messages of every QoS to themselves, PUBREL of
//! what is open and of what is not. Some never acknowledge what they are sent. Then disks, readers and tasks do all that they can, and no timer of more than a few milliseconds is waited for: an
//! answer that only comes with the next packet, or a quarter of a second later with a checkpoint, is owed.

use super::*;
use weir_core::codec::{Decoded, decode};
use weir_core::packet::Packet;

const FILTERS: [&str; 7] = ["a", "a/#", "+", "$share/g/a", "$share/h/#", "$queue/b", "$replay/earliest/a"];
const TOPICS: [&str; 3] = ["a", "b", "a/b"];

/// Bytes of a client, and what they are owed.
struct Talker {
    version: Version,
    driver: Driver,
    out: Vec<u8>,
    heard: Vec<u8>,
    next_id: u16,
    /// Head of the answer and packet id.
    owed: Vec<(u8, u16)>,
    /// Of messages with QoS 2 that were begun.
    open: Vec<u16>,
    acknowledges: bool,
}

impl Talker {
    fn new(life: &Life, name: char, version: Version, acknowledges: bool) -> Self {
        let driver = Driver::new(life.gateway.clone(), None);
        let mut t =
            Self { version, driver, out: Vec::new(), heard: Vec::new(), next_id: 0, owed: vec![(0x20, 0)], open: Vec::new(), acknowledges };
        let level = if version == Version::V5 { 5 } else { 4 };
        let properties: &[u8] = if version == Version::V5 { &[5, 0x11, 0, 0, 1, 0] } else { &[] };
        t.packet(0x10, &[b"\0\x04MQTT", &[level, 0, 0, 0][..], properties, &[0, 1, name as u8]].concat());
        t
    }

    fn packet(&mut self, head: u8, body: &[u8]) {
        self.out.extend([head, body.len() as u8]);
        self.out.extend(body);
    }

    /// With what stands in front of the properties, of which there are none.
    fn with_id(&mut self, head: u8, answer: u8, rest: &[u8]) {
        self.next_id += 1;
        let properties: &[u8] = if self.version == Version::V5 { &[0] } else { &[] };
        self.packet(head, &[&self.next_id.to_be_bytes()[..], properties, rest].concat());
        self.owed.push((answer, self.next_id));
    }

    fn act(&mut self, rng: &mut Rng) {
        let text = |s: &str| [&(s.len() as u16).to_be_bytes()[..], s.as_bytes()].concat();
        let filter = text(FILTERS[rng.below(FILTERS.len() as u64) as usize]);
        match rng.below(10) {
            0..3 => self.with_id(0x82, 0x90, &[&filter[..], &[rng.below(3) as u8]].concat()),
            3..5 => self.with_id(0xA2, 0xB0, &filter),
            5..8 => {
                let (qos, retain, topic) = (rng.below(3) as u8, rng.below(2) as u8, text(TOPICS[rng.below(3) as usize]));
                self.next_id += 1;
                let id = self.next_id.to_be_bytes();
                let id: &[u8] = if qos > 0 { &id } else { &[] };
                let properties: &[u8] = if self.version == Version::V5 { &[0] } else { &[] };
                self.packet(0x30 | qos << 1 | retain, &[&topic[..], id, properties, b"x"].concat());
                self.owed.extend((qos > 0).then_some(([0, 0x40, 0x50][usize::from(qos)], self.next_id)));
                self.open.extend((qos == 2).then_some(self.next_id));
            }
            8 => {
                let id = self.open.pop().unwrap_or(60_000);
                self.packet(0x62, &id.to_be_bytes());
                self.owed.push((0x70, id));
            }
            _ => {
                self.packet(0xC0, &[]);
                self.owed.push((0xD0, 0));
            }
        }
    }

    fn send(&mut self, most: u64, rng: &mut Rng) -> bool {
        let n = (1 + rng.below(most)).min(self.out.len() as u64) as usize;
        if n == 0 || !self.driver.wants_read() {
            return false;
        }
        let bytes: Vec<u8> = self.out.drain(..n).collect();
        self.driver.received(&bytes);
        true
    }

    /// Takes what was said to it, and answers if it does.
    fn hear(&mut self) -> bool {
        let n = self.driver.out.len();
        self.heard.extend_from_slice(self.driver.out.unsent());
        self.driver.written(n);
        loop {
            let heard = std::mem::take(&mut self.heard);
            let Ok(Decoded::Packet(packet, used)) = decode(&heard, self.version, 1 << 20) else {
                self.heard = heard;
                return n > 0;
            };
            let mut answer = None;
            let came = match packet {
                Packet::ConnAck(_) => (0x20, 0),
                Packet::PubAck(a) => (0x40, a.packet_id.get()),
                Packet::PubRec(a) => (0x50, a.packet_id.get()),
                Packet::PubComp(a) => (0x70, a.packet_id.get()),
                Packet::SubAck(a) => (0x90, a.packet_id.get()),
                Packet::UnsubAck(a) => (0xB0, a.packet_id.get()),
                Packet::PingResp => (0xD0, 0),
                Packet::Publish(p) => {
                    answer = p.packet_id.map(|id| (if p.qos == Qos::AtLeastOnce { 0x40 } else { 0x50 }, id.get()));
                    (0, 0)
                }
                Packet::PubRel(a) => {
                    answer = Some((0x70, a.packet_id.get()));
                    (0, 0)
                }
                other => panic!("{other:?} to a client that does nothing wrong"),
            };
            if came.0 != 0 {
                let at = self
                    .owed
                    .iter()
                    .position(|owed| *owed == came)
                    .unwrap_or_else(|| panic!("{came:?} that nobody asked for: {:?}", self.owed));
                self.owed.remove(at);
            }
            self.heard = heard[used..].to_vec();
            if let Some((head, id)) = answer.filter(|_| self.acknowledges) {
                self.packet(head, &id.to_be_bytes());
            }
        }
    }

    fn called(&mut self) -> bool {
        let rung = rung(&self.driver);
        if rung {
            self.driver.woken();
        }
        rung
    }
}

fn run(seed: u64) {
    WALL.set(1_790_000_000_000);
    RANDOM.set(Rng::new(seed + 1));
    let mut w = World::new(seed);
    w.retention = Retention { bytes: None, age: None, min_age: Duration::ZERO };
    let mut rng = Rng::new(seed ^ 0x0DED);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let life = w.begin();
        let talker = |(i, name): (u64, char)| {
            let version = if (seed + i).is_multiple_of(2) { Version::V5 } else { Version::V311 };
            Talker::new(&life, name, version, !(seed >> i).is_multiple_of(3))
        };
        let mut talkers: Vec<Talker> = (0..).zip('a'..='c').map(talker).collect();
        for _ in 0..200 {
            let t = &mut talkers[rng.below(3) as usize];
            match rng.below(8) {
                0..2 if t.out.len() < 200 && t.next_id < 40 => t.act(&mut rng),
                2..4 => drop(t.send(60, &mut rng)),
                4 => drop(t.hear()),
                5 => drop(life.engine.step_partition(rng.below(u64::from(PARTITIONS)) as usize)),
                6 => drop(life.engine.step_state()),
                7 => drop(life.engine.step_reader()),
                _ => {}
            }
            if rng.below(3) > 0 {
                talkers.iter_mut().for_each(|t| _ = t.called());
                tokio::task::yield_now().await;
            }
        }
        // All that can happen happens.
        let (mut still, mut turns) = (0, 0);
        while still < 20 {
            let mut moved = life.engine.step_state() | life.engine.step_reader();
            (0..PARTITIONS as usize).for_each(|p| moved |= life.engine.step_partition(p));
            for t in &mut talkers {
                moved |= t.send(1_000, &mut rng) | t.hear() | t.called();
            }
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            still = if moved { 0 } else { still + 1 };
            if still == 10 {
                tokio::time::advance(Duration::from_millis(2)).await;
            }
            turns += 1;
            assert!(turns < 100_000, "it does not come to rest");
        }
        for (t, name) in talkers.iter().zip('a'..) {
            assert!(t.driver.close().is_none(), "{name} was closed: {:?}", t.driver.close());
            assert!(
                t.out.is_empty() && t.owed.is_empty(),
                "{name} ({}) is owed {:x?}; {} bytes were not read",
                t.version,
                t.owed,
                t.out.len()
            );
        }
    });
}

#[test]
fn when_nothing_more_can_happen_nothing_is_owed() {
    let number = |name: &str, default| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let (first, count) = (number("WEIR_SEED", 1), number("WEIR_SEEDS", 300));
    for seed in first..first + count {
        if let Err(panic) = std::panic::catch_unwind(|| run(seed)) {
            eprintln!("WEIR_SEED={seed} WEIR_SEEDS=1");
            std::panic::resume_unwind(panic);
        }
    }
}
