//! Model clients of both versions: what a careful client with a store of its own does, and what it must never see.

use crate::{gateway::Gateway, metrics::Total};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use weir_core::{
    codec::{Decoded, decode, encode},
    packet::{Ack, Connect, Filters, Packet, PacketId, Publish, Qos, ReasonCode, Subscribe, Version, Will},
    property::{Properties, PropertiesBuf, Property},
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
    /// Records that were told to be lost, by client; those told to no client are the group's.
    pub lost: BTreeMap<String, u64>,
    told: u64,
}

impl Ledger {
    /// What the gateway has counted since, while it served this client.
    pub fn tell_lost(&mut self, gateway: &Gateway, client: Option<&str>) {
        let lost = gateway.totals.get(Total::Lost);
        if lost > self.told {
            *self.lost.entry(client.unwrap_or("group").into()).or_default() += lost - self.told;
        }
        // Less: another process.
        self.told = lost;
    }

    fn acknowledge(&mut self, m: &Open) {
        self.acknowledged.insert(m.payload.clone());
        if m.retain {
            let newest = self.retained.entry(m.topic.clone()).or_default();
            *newest = std::mem::take(newest).max(m.payload.clone());
        }
    }
}

#[derive(Clone)]
pub(super) struct Open {
    id: PacketId,
    payload: String,
    topic: String,
    qos: Qos,
    retain: bool,
    received: bool,
}

pub(super) enum Role {
    Publisher {
        open: BTreeMap<u64, Open>,
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

/// A filter that is added while its session may be behind.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Second {
    None,
    Wanted,
    Asked,
    There,
}

/// The filter that `adder` adds: from then on.
const SECOND: &str = "t/+/1";
/// A message with this payload has a topic that it matches.
fn is_of_second(payload: &str) -> bool {
    payload.split(':').nth(1).and_then(|seq| seq.parse::<u64>().ok()).is_some_and(|seq| seq % 3 == 1)
}

/// And the one of `replayer`: from the beginning of the log.
const REPLAYED: &str = "$replay/earliest/t/+/1";

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
    pub version: Version,
    /// Of this connection, by topic: what the publisher sends instead; by alias: what the gateway sends instead.
    aliases_out: BTreeMap<String, u16>,
    aliases_in: BTreeMap<u16, String>,
    window: Window,
}

/// Messages with QoS 1 and 2 on their way to this connection, as the gateway must see them: it has not heard more than what left `out`.
#[derive(Default)]
struct Window {
    came: usize,
    /// Bytes that were said, and that have left.
    said: usize,
    left: usize,
    /// Where in what was said acknowledgements end.
    acks: VecDeque<usize>,
    heard: usize,
    /// With QoS 2, not released.
    ids: BTreeSet<PacketId>,
}

/// Of clients of version 5.
const RECEIVE_MAXIMUM: u16 = 3;
const TOPIC_ALIASES: u16 = 2;

fn bare(packet_id: PacketId) -> Ack<'static> {
    Ack { packet_id, reason: ReasonCode::SUCCESS, properties: Properties::default() }
}

impl Client {
    pub fn new(id: &str, role: Role) -> Self {
        Self {
            id: id.into(),
            role,
            known: false,
            connected: false,
            seen: BTreeSet::new(),
            rest: Vec::new(),
            out: Vec::new(),
            version: Version::V311,
            aliases_out: BTreeMap::new(),
            aliases_in: BTreeMap::new(),
            window: Window::default(),
        }
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

    /// Subscribes to `t/+/0`, and later to `SECOND` or `REPLAYED`.
    pub fn adder(id: &str) -> Self {
        let mut client = Self::subscriber(id, "t/+/0", Qos::AtLeastOnce);
        if let Role::Subscriber { second, .. } = &mut client.role {
            *second = Second::Wanted;
        }
        client
    }

    fn say(&mut self, packet: &Packet<'_>) {
        let before = self.out.len();
        encode(packet, self.version, &mut self.out);
        self.window.said += self.out.len() - before;
        if matches!(packet, Packet::PubAck(_) | Packet::PubComp(_)) {
            self.window.acks.push_back(self.window.said);
        }
    }

    /// The next bytes on their way to the gateway.
    pub fn take(&mut self, n: usize) -> Vec<u8> {
        self.window.left += n;
        while self.window.acks.front().is_some_and(|end| *end <= self.window.left) {
            self.window.acks.pop_front();
            self.window.heard += 1;
        }
        self.out.drain(..n).collect()
    }

    fn say_publish(&mut self, m: &Open, dup: bool) {
        let mut properties = PropertiesBuf::default();
        let mut topic = &*m.topic;
        if self.version == Version::V5 {
            let next = self.aliases_out.len() as u16 + 1;
            let known = self.aliases_out.get(topic).copied();
            if let Some(alias) = known.or((next <= TOPIC_ALIASES).then_some(next)) {
                properties.push(Property::TopicAlias(alias));
                self.aliases_out.insert(topic.into(), alias);
            }
            if known.is_some() {
                topic = "";
            }
        }
        let packet_id = (m.qos != Qos::AtMostOnce).then_some(m.id);
        let packet = Publish {
            dup,
            qos: m.qos,
            retain: m.retain,
            topic,
            packet_id,
            properties: properties.as_properties(),
            payload: m.payload.as_bytes(),
        };
        self.say(&Packet::Publish(packet));
    }

    fn say_subscribe(&mut self, filter: &str, qos: Qos) {
        let mut raw = (filter.len() as u16).to_be_bytes().to_vec();
        raw.extend_from_slice(filter.as_bytes());
        raw.push(qos as u8);
        let filters = Filters::from_validated(&raw, true);
        self.say(&Packet::Subscribe(Subscribe { packet_id: PacketId::MIN, properties: Properties::default(), filters }));
    }

    /// A new connection: says CONNECT.
    pub fn connect(&mut self) {
        (self.connected, self.rest, self.out) = (false, Vec::new(), Vec::new());
        (self.aliases_out, self.aliases_in, self.window) = Default::default();
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
        let mut properties = PropertiesBuf::default();
        if self.version == Version::V5 {
            properties
                .push(Property::SessionExpiryInterval(u32::MAX))
                .push(Property::ReceiveMaximum(RECEIVE_MAXIMUM))
                .push(Property::TopicAliasMaximum(TOPIC_ALIASES));
        }
        let properties = properties.as_properties();
        let connect = Connect { clean_start: false, properties, will, ..Connect::new(self.version, &id) };
        self.say(&Packet::Connect(connect));
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

    /// The filter that was added later is there.
    pub fn has_second(&self) -> bool {
        matches!(self.role, Role::Subscriber { second: Second::There, .. })
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
            let filter = if self.id == "replayer" { REPLAYED } else { SECOND };
            self.say_subscribe(filter, Qos::AtLeastOnce);
        }
        let Role::Publisher { open, next, last } = &mut self.role else { return };
        if !self.connected || open.len() >= 4 || *next >= *last {
            return;
        }
        let seq = *next;
        *next += 1;
        let qos = match coin {
            0 | 2 | 4 => Qos::AtLeastOnce,
            1 | 3 | 5 => Qos::ExactlyOnce,
            _ => Qos::AtMostOnce,
        };
        let message = Open {
            id: PacketId::MIN.saturating_add((seq % 9) as u16),
            // The QoS in it: what was published with 1 may lie in the log twice.
            payload: format!("{}:{seq:06}:{}", self.id, qos as u8),
            // Long, so that a few records fill a segment.
            topic: format!("t/{}{}/{}", self.id, "x".repeat(600), seq % 3),
            qos,
            retain: coin.is_multiple_of(3),
            received: false,
        };
        if open.values().any(|o| o.id == message.id) {
            *next -= 1;
            return;
        }
        ledger.published.insert(message.payload.clone());
        self.say_publish(&message, false);
        if qos != Qos::AtMostOnce
            && let Role::Publisher { open, .. } = &mut self.role
        {
            open.insert(seq, message);
        }
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
            match decode(&rest[used..], self.version, usize::MAX) {
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
                if let Role::Subscriber { subscribed, second, got, .. } = &mut self.role {
                    *subscribed = true;
                    if *second == Second::Asked {
                        *second = Second::There;
                        if self.id == "replayer" {
                            // Asked again where the first SUBACK did not come, all of it comes again, from the beginning.
                            self.seen.retain(|payload| !is_of_second(payload));
                            got.retain(|payload| !is_of_second(payload));
                        }
                        if self.id == "adder" {
                            ledger.before_second = Some(ledger.published.clone());
                        }
                    }
                }
            }
            Packet::PubAck(a) | Packet::PubComp(a) => self.finished(a.packet_id, matches!(p, Packet::PubComp(_)), ledger),
            Packet::PubRec(a) => {
                let Role::Publisher { open, .. } = &mut self.role else { panic!("{}: a PUBREC", self.id) };
                if let Some(m) = open.values_mut().find(|m| m.id == a.packet_id) {
                    assert_eq!(m.qos, Qos::ExactlyOnce);
                    m.received = true;
                    ledger.acknowledge(m);
                }
                self.say(&Packet::PubRel(bare(a.packet_id)));
            }
            Packet::PubRel(a) => {
                let Role::Subscriber { held, .. } = &mut self.role else { panic!("{}: a PUBREL", self.id) };
                held.remove(&a.packet_id);
                // One that came on an earlier connection is on its way still.
                self.window.came += usize::from(!self.window.ids.remove(&a.packet_id));
                self.say(&Packet::PubComp(bare(a.packet_id)));
            }
            Packet::Publish(m) => self.message(m, ledger),
            Packet::Disconnect(_) if self.version == Version::V5 => {}
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
        let mut wanted = None;
        let mut again = Vec::new();
        match &mut self.role {
            Role::Publisher { open, .. } => again.extend(open.values().cloned()),
            Role::Subscriber { filter, qos, subscribed: false, .. } => wanted = Some((filter.clone(), *qos)),
            // The SUBACK did not come: asked again.
            Role::Subscriber { second, .. } if *second == Second::Asked => *second = Second::Wanted,
            _ => {}
        }
        for m in again {
            if m.received {
                self.say(&Packet::PubRel(bare(m.id)));
            } else {
                self.say_publish(&m, true);
            }
        }
        if let Some((filter, qos)) = wanted {
            self.say_subscribe(&filter, qos);
        }
    }

    fn finished(&mut self, id: PacketId, complete: bool, ledger: &mut Ledger) {
        let Role::Publisher { open, .. } = &mut self.role else { panic!("{}: an acknowledgement", self.id) };
        let Some((seq, m)) = open.iter().find(|(_, m)| m.id == id) else { return };
        assert_eq!(complete, m.qos == Qos::ExactlyOnce, "{}: the wrong acknowledgement for {}", self.id, m.payload);
        assert!(!complete || m.received, "{}: PUBCOMP before PUBREC", self.id);
        ledger.acknowledge(m);
        let seq = *seq;
        open.remove(&seq);
    }

    fn message(&mut self, m: &Publish<'_>, ledger: &mut Ledger) {
        let Role::Subscriber { held, got, member, qos, .. } = &mut self.role else { panic!("{}: a message", self.id) };
        let payload = String::from_utf8(m.payload.to_vec()).expect("ours");
        assert!(m.qos <= *qos);
        let alias = m.properties.iter().find_map(|p| if let Property::TopicAlias(alias) = p { Some(alias) } else { None });
        if let Some(alias) = alias {
            assert!((1..=TOPIC_ALIASES).contains(&alias) && self.version == Version::V5, "{}: alias {alias}", self.id);
            if !m.topic.is_empty() {
                self.aliases_in.insert(alias, m.topic.into());
            }
        }
        let topic = if m.topic.is_empty() { alias.and_then(|a| self.aliases_in.get(&a)).expect("an alias that was set") } else { m.topic };
        if m.qos != Qos::AtMostOnce && self.version == Version::V5 {
            self.window.came += 1;
            let on_the_way = self.window.came - self.window.heard;
            assert!(on_the_way <= usize::from(RECEIVE_MAXIMUM), "{}: {on_the_way} on their way", self.id);
        }
        // One with QoS 0, which nobody waits for, may still be on its way when it subscribes: it takes the place of the one that was acknowledged, and comes as it is published.
        if self.id == "looker"
            && let Some(newest) = ledger.retained.get(topic)
        {
            assert!(!m.retain || payload >= *newest, "{}: retained {payload}, acknowledged {newest}", self.id);
            if m.retain || payload > *newest {
                ledger.retained.remove(topic);
            }
        }
        // Per connection each record once; a group may give one again that another had, and who subscribes again is sent what is retained again.
        assert!(
            m.retain || self.seen.insert(payload.clone()) || *member || self.id == "dead" || payload.ends_with(":1"),
            "{}: {payload} twice on one connection",
            self.id
        );
        match (m.qos, m.packet_id) {
            (Qos::ExactlyOnce, Some(id)) => {
                self.window.ids.insert(id);
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
            (Qos::AtMostOnce, None) if payload.ends_with(":0") => {
                if *member {
                    *ledger.group.entry(payload).or_default() += 1;
                } else if !m.retain {
                    got.push(payload);
                }
            }
            _ => panic!("{}: {payload} with {:?}", self.id, m.qos),
        }
    }
}
