//! A subscriber that keeps what a client of MQTT keeps, and remembers everything that it was sent.

use crate::{
    Rng,
    ledger::Interval,
    support::raw::{PUBACK, PUBCOMP, PUBREC, Packet, Raw, Version},
};
use std::{collections::BTreeMap, time::Duration};

/// A message that came, once per delivery; one of QoS 2 when its exchange began.
#[derive(Clone, Debug)]
pub struct Got {
    pub topic: String,
    pub payload: String,
    pub qos: u8,
    pub dup: bool,
    pub retain: bool,
    /// Starts of the gateway before it.
    pub life: usize,
}

pub struct Client {
    pub name: String,
    pub version: Version,
    /// Its session outlives its connection.
    pub persistent: bool,
    pub socket: Option<Raw>,
    pub intervals: Vec<Interval>,
    /// Of sessions that are over.
    pub past: Vec<Interval>,
    pub got: Vec<Got>,
    /// What it acknowledged of QoS 1.
    pub acknowledged: Vec<String>,
    /// Messages of QoS 1 that wait for their PUBACK.
    unacknowledged: Vec<(u16, String)>,
    /// Exchanges of QoS 2 that have begun.
    open: BTreeMap<u16, String>,
}

impl Client {
    pub fn new(name: &str, version: Version, persistent: bool) -> Self {
        Self {
            name: name.to_owned(),
            version,
            persistent,
            socket: None,
            intervals: Vec::new(),
            past: Vec::new(),
            got: Vec::new(),
            acknowledged: Vec::new(),
            unacknowledged: Vec::new(),
            open: BTreeMap::new(),
        }
    }

    /// Connects; a session that is not there any more owes nothing.
    pub fn connect(&mut self, port: u16, window: u8) {
        let mut properties = vec![0x21, 0, window];
        if self.persistent {
            properties.extend([0x11, 0, 0, 0x0E, 0x10]);
        }
        let c = Raw::connect_with(port, self.version, &self.name, !self.persistent, &properties);
        assert!(c.session_present || !self.persistent || self.intervals.is_empty(), "{}: its session is gone", self.name);
        if !c.session_present {
            self.open.clear();
            self.past.append(&mut self.intervals);
        }
        self.unacknowledged.clear();
        self.socket = Some(c);
    }

    /// Takes up to `most` packets, waiting so long for each. False: nothing came.
    pub fn take(&mut self, most: usize, wait: Duration, life: usize, rng: &mut Rng) -> bool {
        let mut any = false;
        for _ in 0..most {
            let Some(p) = self.socket.as_mut().and_then(|s| s.next(wait)) else { break };
            self.handle(&p, life);
            any = true;
        }
        if rng.chance(70) {
            self.acknowledge();
        }
        any
    }

    fn handle(&mut self, p: &Packet, life: usize) {
        let Some(socket) = &mut self.socket else { return };
        match p.head & 0xF0 {
            0x30 => {
                let m = p.publish(self.version);
                if m.qos < 2 || !self.open.contains_key(&m.id) {
                    let (topic, payload) = (m.topic, m.payload.clone());
                    self.got.push(Got { topic, payload, qos: m.qos, dup: m.dup, retain: m.retain, life });
                }
                match m.qos {
                    1 => self.unacknowledged.push((m.id, m.payload)),
                    2 => {
                        self.open.insert(m.id, m.payload);
                        socket.try_ack(PUBREC, m.id);
                    }
                    _ => {}
                }
            }
            0x60 => {
                self.open.remove(&p.id());
                socket.try_ack(PUBCOMP, p.id());
            }
            0x90 | 0xB0 => {}
            other => panic!("{}: {other:02x} came: {p:02x?}", self.name),
        }
    }

    /// Handles what comes until an acknowledgement of this kind has come.
    pub fn until(&mut self, head: u8, life: usize) -> Packet {
        loop {
            let p = self.socket.as_mut().expect("connected").read();
            if p.head == head {
                return p;
            }
            self.handle(&p, life);
        }
    }

    pub fn acknowledge(&mut self) {
        let Some(socket) = &mut self.socket else { return };
        for (id, payload) in self.unacknowledged.drain(..) {
            if socket.try_ack(PUBACK, id) {
                self.acknowledged.push(payload);
            }
        }
    }

    /// Takes everything until nothing comes; one at a time, for a window of one opens with each acknowledgement.
    pub fn drain(&mut self, life: usize, rng: &mut Rng) {
        while self.take(1, Duration::from_millis(500), life, rng) {
            self.acknowledge();
        }
        self.acknowledge();
    }
}
