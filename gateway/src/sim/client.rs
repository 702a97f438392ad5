//! Model clients: what a careful client with a store of its own does, and what it must never see.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use weir_core::{
    codec::{Decoded, decode, encode},
    packet::{Ack, Connect, Filters, Packet, PacketId, Publish, Qos, ReasonCode, Subscribe, Version, Will},
    property::Properties,
};

/// What all clients of one run know together.
#[derive(Default)]
pub(super) struct Ledger {
    /// Payloads that were acknowledged, or whose PUBREC came.
    pub acknowledged: BTreeSet<String>,
    /// Wills of connections that had their CONNACK and were cut.
    pub wills_owed: BTreeSet<String>,
    /// Payload and how often, at the group.
    pub group: HashMap<String, u32>,
    /// Payloads that were sent, whatever became of them.
    pub published: BTreeSet<String>,
    /// Those of them that were sent before `adder` had the SUBACK of its second filter.
    pub before_second: Option<BTreeSet<String>>,
    /// Newest acknowledged retained message of each topic.
    pub retained: HashMap<String, String>,
}

impl Ledger {
    fn acknowledge(&mut self, m: &Open) {
        self.acknowledged.insert(m.payload.clone());
        if m.retain {
            let newest = self.retained.entry(m.topic.clone()).or_default();
            *newest = std::mem::take(newest).max(m.payload.clone());
        }
    }
}

struct Open {
    id: PacketId,
    payload: String,
    topic: String,
    qos: Qos,
    retain: bool,
    received: bool,
}

pub(super) enum Role {
    Publisher {
        open: BTreeMap<u64, OpenMessage>,
        next: u64,
        last: u64,
    },
    Subscriber {
        filter: String,
        qos: Qos,
        subscribed: bool,
        held: BTreeSet<PacketId>,
        got: Vec<String>,
        member: bool,
        second: Second,
    },
    /// Each connection has a will of its own.
    Mortal {
        connections: u64,
    },
}

pub(super) struct OpenMessage(Open);

/// A filter that is added while its session may be behind.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Second {
    None,
    Wanted,
    Asked,
    There,
}

pub(super) const SECOND: &str = "t/+/1";

pub(super) struct Client {
    pub id: String,
    pub role: Role,
    /// A CONNACK has come once: from then on the session is there.
    known: bool,
    /// Of this connection.
    pub connected: bool,
    seen: BTreeSet<String>,
    rest: Vec<u8>,
    pub out: Vec<u8>,
}

const V: Version = Version::V311;

fn bare(packet_id: PacketId) -> Ack<'static> {
    Ack { packet_id, reason: ReasonCode::SUCCESS, properties: Properties::default() }
}

impl Client {
    pub fn new(id: &str, role: Role) -> Self {
        Self { id: id.into(), role, known: false, connected: false, seen: BTreeSet::new(), rest: Vec::new(), out: Vec::new() }
    }

    pub fn publisher(id: &str, last: u64) -> Self {
        Self::new(id, Role::Publisher { open: BTreeMap::new(), next: 0, last })
    }

    pub fn subscriber(id: &str, filter: &str, qos: Qos) -> Self {
        let member = filter.starts_with("$share");
        let role = Role::Subscriber {
            filter: filter.into(),
            qos,
            subscribed: false,
            held: BTreeSet::new(),
            got: Vec::new(),
            member,
            second: Second::None,
        };
        Self::new(id, role)
    }

    /// Subscribes to `t/+/0`, and later to `SECOND`.
    pub fn adder(id: &str) -> Self {
        let mut client = Self::subscriber(id, "t/+/0", Qos::AtLeastOnce);
        if let Role::Subscriber { second, .. } = &mut client.role {
            *second = Second::Wanted;
        }
        client
    }

    fn say(&mut self, packet: &Packet<'_>) {
        encode(packet, V, &mut self.out);
    }

    /// A new connection: says CONNECT.
    pub fn connect(&mut self) {
        (self.connected, self.rest, self.out) = (false, Vec::new(), Vec::new());
        self.seen.clear();
        let mut will_text = String::new();
        if let Role::Mortal { connections } = &mut self.role {
            *connections += 1;
            will_text = format!("{}-{connections}", self.id);
        }
        let will = (!will_text.is_empty()).then_some(Will {
            qos: Qos::ExactlyOnce,
            retain: false,
            properties: Properties::default(),
            topic: "will/x",
            payload: will_text.as_bytes(),
        });
        let id = self.id.clone();
        self.say(&Packet::Connect(Connect {
            version: V,
            is_31: false,
            clean_start: false,
            keep_alive_s: 0,
            properties: Properties::default(),
            client_id: &id,
            will,
            username: None,
            password: None,
        }));
    }

    /// The connection is gone without a word.
    pub fn cut(&mut self, ledger: &mut Ledger) {
        if let (Role::Mortal { connections }, true) = (&self.role, self.connected) {
            ledger.wills_owed.insert(format!("{}-{connections}", self.id));
        }
        self.connected = false;
    }

    pub fn is_subscribed(&self) -> bool {
        !matches!(self.role, Role::Subscriber { subscribed: false, .. })
    }

    /// Publishes one more, if it may.
    pub fn act(&mut self, coin: u64, ledger: &mut Ledger) {
        if let Role::Subscriber { subscribed: true, second, .. } = &mut self.role
            && *second == Second::Wanted
            && self.connected
            // In the middle of everything.
            && ledger.published.len() > 15
            && coin == 0
        {
            *second = Second::Asked;
            subscribe(SECOND, Qos::AtLeastOnce, &mut self.out);
        }
        let Role::Publisher { open, next, last } = &mut self.role else { return };
        if !self.connected || open.len() >= 4 || *next >= *last {
            return;
        }
        let seq = *next;
        *next += 1;
        let qos = if coin.is_multiple_of(2) { Qos::AtLeastOnce } else { Qos::ExactlyOnce };
        let message = Open {
            id: PacketId::MIN.saturating_add((seq % 9) as u16),
            // The QoS in it: what was published with 1 may lie in the log twice.
            payload: format!("{}:{seq:06}:{}", self.id, qos as u8),
            // Long, so that a few records fill a segment.
            topic: format!("t/{}{}/{}", self.id, "x".repeat(400), seq % 3),
            qos,
            retain: coin.is_multiple_of(3),
            received: false,
        };
        if open.values().any(|o| o.0.id == message.id) {
            *next -= 1;
            return;
        }
        let out = &mut self.out;
        publish(&message, false, out);
        ledger.published.insert(message.payload.clone());
        open.insert(seq, OpenMessage(message));
    }

    pub fn is_done(&self) -> bool {
        match &self.role {
            Role::Publisher { open, next, last } => open.is_empty() && next >= last,
            _ => true,
        }
    }

    pub fn received(&mut self, bytes: &[u8], ledger: &mut Ledger) {
        let mut rest = std::mem::take(&mut self.rest);
        rest.extend_from_slice(bytes);
        let mut used = 0;
        loop {
            match decode(&rest[used..], V, usize::MAX) {
                Ok(Decoded::Packet(p, n)) => {
                    self.packet(&p, ledger);
                    used += n;
                }
                Ok(Decoded::Incomplete(_)) => break,
                Err(e) => panic!("{}: the gateway said {e:?}", self.id),
            }
        }
        rest.drain(..used);
        self.rest = rest;
    }

    fn packet(&mut self, p: &Packet<'_>, ledger: &mut Ledger) {
        match p {
            Packet::ConnAck(c) => self.connack(c.session_present, c.reason),
            Packet::SubAck(_) => {
                if let Role::Subscriber { subscribed, second, .. } = &mut self.role {
                    *subscribed = true;
                    if *second == Second::Asked {
                        *second = Second::There;
                        ledger.before_second = Some(ledger.published.clone());
                    }
                }
            }
            Packet::PubAck(a) | Packet::PubComp(a) => self.finished(a.packet_id, matches!(p, Packet::PubComp(_)), ledger),
            Packet::PubRec(a) => {
                let Role::Publisher { open, .. } = &mut self.role else { panic!("{}: a PUBREC", self.id) };
                if let Some(m) = open.values_mut().find(|m| m.0.id == a.packet_id) {
                    assert_eq!(m.0.qos, Qos::ExactlyOnce);
                    m.0.received = true;
                    ledger.acknowledge(&m.0);
                }
                self.say(&Packet::PubRel(bare(a.packet_id)));
            }
            Packet::PubRel(a) => {
                let Role::Subscriber { held, .. } = &mut self.role else { panic!("{}: a PUBREL", self.id) };
                held.remove(&a.packet_id);
                self.say(&Packet::PubComp(bare(a.packet_id)));
            }
            Packet::Publish(m) => self.message(m, ledger),
            other => panic!("{}: {other:?}", self.id),
        }
    }

    fn connack(&mut self, present: bool, reason: ReasonCode) {
        if reason != ReasonCode::SUCCESS {
            // Refused: busy, or going. It comes again.
            return;
        }
        assert!(present || !self.known, "{}: a session that was acknowledged is gone", self.id);
        (self.known, self.connected) = (true, true);
        match &mut self.role {
            Role::Publisher { open, .. } => {
                for m in open.values() {
                    if m.0.received {
                        encode(&Packet::PubRel(bare(m.0.id)), V, &mut self.out);
                    } else {
                        publish(&m.0, true, &mut self.out);
                    }
                }
            }
            Role::Subscriber { filter, qos, subscribed: false, .. } => subscribe(filter, *qos, &mut self.out),
            // The SUBACK did not come: asked again.
            Role::Subscriber { second, .. } if *second == Second::Asked => *second = Second::Wanted,
            _ => {}
        }
    }

    fn finished(&mut self, id: PacketId, complete: bool, ledger: &mut Ledger) {
        let Role::Publisher { open, .. } = &mut self.role else { panic!("{}: an acknowledgement", self.id) };
        let Some((seq, m)) = open.iter().find(|(_, m)| m.0.id == id) else { return };
        assert_eq!(complete, m.0.qos == Qos::ExactlyOnce, "{}: the wrong acknowledgement for {}", self.id, m.0.payload);
        assert!(!complete || m.0.received, "{}: PUBCOMP before PUBREC", self.id);
        ledger.acknowledge(&m.0);
        let seq = *seq;
        open.remove(&seq);
    }

    fn message(&mut self, m: &Publish<'_>, ledger: &mut Ledger) {
        let Role::Subscriber { held, got, member, qos, .. } = &mut self.role else { panic!("{}: a message", self.id) };
        let payload = String::from_utf8(m.payload.to_vec()).expect("ours");
        assert!(m.qos <= *qos);
        // While others publish, a newer one may be on its way.
        if m.retain
            && self.id == "looker"
            && let Some(newest) = ledger.retained.remove(m.topic)
        {
            assert!(payload >= newest, "{}: retained {payload}, acknowledged {newest}", self.id);
        }
        // Per connection each record once; a group may give one again that another had, and who subscribes again is sent what is retained again.
        assert!(
            m.retain || self.seen.insert(payload.clone()) || *member || payload.ends_with(":1"),
            "{}: {payload} twice on one connection",
            self.id
        );
        match (m.qos, m.packet_id) {
            (Qos::ExactlyOnce, Some(id)) => {
                let new = held.insert(id);
                assert!(new || m.dup, "{}: packet id {id} is used again before it was released", self.id);
                if new {
                    got.push(payload);
                }
                self.say(&Packet::PubRec(bare(id)));
            }
            (Qos::AtLeastOnce, Some(id)) => {
                if *member {
                    *ledger.group.entry(payload).or_default() += 1;
                } else {
                    got.push(payload);
                }
                self.say(&Packet::PubAck(bare(id)));
            }
            _ => panic!("{}: QoS 0 that nobody published", self.id),
        }
    }
}

fn subscribe(filter: &str, qos: Qos, out: &mut Vec<u8>) {
    let mut raw = (filter.len() as u16).to_be_bytes().to_vec();
    raw.extend_from_slice(filter.as_bytes());
    raw.push(qos as u8);
    let filters = Filters::from_validated(&raw, true);
    encode(&Packet::Subscribe(Subscribe { packet_id: PacketId::MIN, properties: Properties::default(), filters }), V, out);
}

fn publish(m: &Open, dup: bool, out: &mut Vec<u8>) {
    let packet = Publish {
        dup,
        qos: m.qos,
        retain: m.retain,
        topic: &m.topic,
        packet_id: Some(m.id),
        properties: Properties::default(),
        payload: m.payload.as_bytes(),
    };
    encode(&Packet::Publish(packet), V, out);
}
