//! The first packet: what it asks, what it is answered.
//!
//! Invariant: a refusal is a CONNACK in the peer's own version, and nothing after it [MQTT-3.1.4-2].
//! Must not know: who else is connected.

use super::{
    Action, Cause, Event, INFLIGHT_MAX, Life, Outbound, OwnedWill, PACKET_BYTES_MAX, PartitionReader, RECEIVE_MAXIMUM, Session,
    Subscriptions, Violation, aliases,
    exchanges::Exchanges,
    held::Held,
    inbound::{Inbound, Reply, Until},
    position::wants_position,
};
use crate::{
    codec::encode,
    fanout::Reader,
    ids::{Now, Offset, PartitionId},
    limits::{Fleet, Limit, Limits},
    packet::{ConnAck, Connect, Packet, ReasonCode, Version},
    property::{Properties, PropertiesBuf, Property},
    topic::{has_controls, is_bridge_state, is_reserved},
};
use std::sync::Arc;

/// What a CONNECT asks, kept while its session is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectRequest {
    pub version: Version,
    /// Empty: the server names it.
    pub client_id: String,
    pub clean_start: bool,
    is_31: bool,
    is_bridge: bool,
    pub expiry_s: u32,
    keep_alive_s: u16,
    receive_maximum: u16,
    maximum_packet_size: u32,
    topic_aliases_max: u16,
    position: bool,
    will: Option<Box<OwnedWill>>,
    assigned: bool,
    /// What it asked for, where it gets less.
    asked_expiry_s: u32,
    /// It has another keep-alive than it asked for.
    told_keep_alive: bool,
}

/// A CONNECT that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub version: Version,
    pub reason: ReasonCode,
    /// What it met.
    pub limit: Option<Limit>,
}

/// Appends the CONNACK that says no.
pub fn refuse(refusal: Refusal, out: &mut Vec<u8>) {
    let reason = match (refusal.version, refusal.reason) {
        (Version::V5, reason) => reason,
        (_, ReasonCode::UNSUPPORTED_PROTOCOL_VERSION) => ReasonCode(1),
        (_, ReasonCode::CLIENT_IDENTIFIER_NOT_VALID) => ReasonCode(2),
        (_, ReasonCode::BAD_USER_NAME_OR_PASSWORD) => ReasonCode(4),
        (_, ReasonCode::NOT_AUTHORIZED) => ReasonCode(5),
        _ => ReasonCode(3),
    };
    encode(&Packet::ConnAck(ConnAck { session_present: false, reason, properties: Properties::default() }), refusal.version, out);
}

pub(super) fn session_expiry(properties: Properties<'_>) -> Option<u32> {
    properties.iter().find_map(|p| if let Property::SessionExpiryInterval(s) = p { Some(s) } else { None })
}

impl ConnectRequest {
    pub fn read(c: &Connect<'_>, limits: &Limits) -> Result<Self, Refusal> {
        let refusal = |reason| Refusal { version: c.version, reason, limit: None };
        let over = |reason, limit| Refusal { version: c.version, reason, limit: Some(limit) };
        // A session of a client without a name could never be found again [MQTT-3.1.3-8 (3.1.1)].
        if c.client_id.is_empty() && c.version == Version::V311 && !c.clean_start || has_controls(c.client_id) {
            return Err(refusal(ReasonCode::CLIENT_IDENTIFIER_NOT_VALID));
        }
        if let Some(limit) = limits.refuses_client_id(c.client_id) {
            return Err(over(ReasonCode::CLIENT_IDENTIFIER_NOT_VALID, limit));
        }
        if let Some(limit) = limits.refuses_properties(c.properties) {
            return Err(over(ReasonCode::QUOTA_EXCEEDED, limit));
        }
        if let Some(will) = c.will {
            if is_reserved(will.topic) && !is_bridge_state(will.topic, will.payload) {
                return Err(refusal(ReasonCode::TOPIC_NAME_INVALID));
            }
            if let Some(limit) = limits.refuses_name(will.topic) {
                return Err(over(ReasonCode::TOPIC_NAME_INVALID, limit));
            }
            let bytes = will.topic.len() + will.properties.raw().len() + will.payload.len();
            let over_bytes = (bytes > limits.will_bytes).then_some(Limit::WillBytes);
            if let Some(limit) = over_bytes.or_else(|| limits.refuses_properties(will.properties)) {
                return Err(over(ReasonCode::QUOTA_EXCEEDED, limit));
            }
        }
        let mut request = Self {
            version: c.version,
            client_id: c.client_id.into(),
            clean_start: c.clean_start,
            is_31: c.is_31,
            is_bridge: c.is_bridge,
            expiry_s: if c.version == Version::V311 && !c.clean_start { u32::MAX } else { 0 },
            keep_alive_s: c.keep_alive_s,
            receive_maximum: if c.version == Version::V5 { INFLIGHT_MAX } else { limits.in_flight_311 },
            maximum_packet_size: u32::MAX,
            topic_aliases_max: 0,
            position: wants_position(c.properties),
            will: c.will.map(|w| Box::new(OwnedWill::of(&w))),
            assigned: false,
            asked_expiry_s: 0,
            told_keep_alive: false,
        };
        for property in c.properties.iter() {
            match property {
                Property::SessionExpiryInterval(s) => request.expiry_s = s,
                Property::ReceiveMaximum(n) => request.receive_maximum = n,
                Property::MaximumPacketSize(n) => request.maximum_packet_size = n,
                Property::TopicAliasMaximum(n) => request.topic_aliases_max = n,
                Property::AuthenticationMethod(_) => return Err(refusal(ReasonCode::BAD_AUTHENTICATION_METHOD)),
                _ => {}
            }
        }
        request.asked_expiry_s = request.expiry_s;
        request.expiry_s = request.expiry_s.min(limits.session_expiry_s);
        // Version 3.1.1 cannot be told of another time [MQTT-3.1.2-21].
        let longer = limits.keep_alive_s > 0 && (c.keep_alive_s == 0 || c.keep_alive_s > limits.keep_alive_s);
        if c.version == Version::V5 && longer {
            request.keep_alive_s = limits.keep_alive_s;
            request.told_keep_alive = true;
        }
        Ok(request)
    }

    /// Its session outlives the connection.
    #[must_use]
    pub fn is_stored(&self) -> bool {
        self.expiry_s > 0 || self.will.is_some()
    }

    /// Topic of a will that is to be retained, and bytes of its payload.
    #[must_use]
    pub fn retained_will(&self) -> Option<(&str, usize)> {
        self.will.as_ref()?.retained()
    }

    /// What its will takes; 0: it has none.
    #[must_use]
    pub fn will_bytes(&self) -> usize {
        self.will.as_ref().map_or(0, |w| w.bytes())
    }

    /// Has the session's value no room for this will beside its filters?
    #[must_use]
    pub fn is_too_much_for(&self, session: &Session, session_bytes: usize) -> bool {
        let will = self.will_bytes();
        will > 0 && !self.clean_start && session.subscriptions.bytes() + will > session_bytes
    }

    /// Gives a name to a client that has none [MQTT-3.1.3-6].
    pub fn assign(&mut self, client_id: String) {
        self.client_id = client_id;
        self.assigned = true;
    }
}

/// A partition, with the names that a client is told.
#[derive(Clone, Debug)]
pub struct Partition {
    pub id: PartitionId,
    pub stream: Arc<str>,
    /// Its number within the stream.
    pub number: u32,
    /// It holds what the gateway says, and no filter reads it but those of `$SYS`; behind all others.
    pub system: bool,
    /// Its durable end.
    pub end: Offset,
}

/// What a session joins when it is connected.
#[derive(Clone, Copy)]
pub struct Joining<'a> {
    /// Id for a session that begins now.
    pub sid: u64,
    pub boot: u64,
    pub partitions: &'a [Partition],
    /// This was a session before: read from the store, or handed over.
    pub resumed: bool,
    /// The store has a value of this client id.
    pub in_store: bool,
    pub limits: &'a Arc<Limits>,
    pub fleet: &'a Arc<dyn Fleet>,
}

impl Session {
    /// A connection takes the session. The CONNACK follows when what it says is durable.
    pub fn connect(&mut self, now: Now, request: &ConnectRequest, joining: &Joining<'_>, out: &mut Vec<u8>) {
        let present = joining.resumed && !request.clean_start;
        self.actions.clear();
        if !present {
            self.unshare_all();
            self.sid = joining.sid;
            self.connection = 0;
            self.subscriptions = Subscriptions::default();
            self.exchanges = Exchanges::default();
            self.outbound = Outbound::default();
            self.pages.clear();
            self.lost.clear();
            self.readers = Box::default();
        }
        self.limits = joining.limits.clone();
        self.fleet = joining.fleet.clone();
        self.version = request.version;
        self.is_bridge = request.is_bridge;
        self.expiry_s = request.expiry_s;
        self.boot = joining.boot;
        self.connection += 1;
        self.since_ms = now.steady_ms;
        self.was_connected = true;
        self.will.clone_from(&request.will);
        self.will_owed = false;
        self.gave_up = false;
        self.bridge_states = 0;
        self.life = Life::Connected;
        self.in_store = joining.in_store;
        self.inbound = Inbound::default();
        self.aliases_in = aliases::Inbound::default();
        self.aliases_out = aliases::Outbound::new(request.topic_aliases_max);
        self.connack_sent = false;
        self.moved = None;
        self.keep_alive_s = request.keep_alive_s;
        self.heard_ms = now.monotonic_ms;
        self.outbound.receive_maximum = request.receive_maximum.min(INFLIGHT_MAX);
        self.outbound.maximum_packet_size = request.maximum_packet_size;
        self.held = Held::default();
        self.position = request.position;
        // Whatever carried it is sent again, or was never there.
        self.lost.iter_mut().for_each(|lost| lost.carrier = None);
        self.outbound.resend = 0..self.outbound.window.len();
        self.join(joining, present);
        let until = if self.is_stored() || self.in_store {
            self.put_wanted = true;
            Until::Put
        } else {
            Until::Ready
        };
        let connack = self.connack(request, present);
        if connack.len() > self.outbound.packet_bytes_max() {
            // What may not be sent is not sent, and without it there is no connection [MQTT-3.1.2-24].
            let statement = "MQTT-3.1.2-24: a maximum packet size that leaves no room for the CONNACK";
            return self.handle(now, Event::Closed(Cause::Violation(Violation::new(ReasonCode::PACKET_TOO_LARGE, statement))), out);
        }
        self.inbound.push(until, Reply::Connect(connack.into()));
        self.release(out);
    }

    /// Readers begin behind, where they were; a partition without a stored place is younger than the session.
    fn join(&mut self, joining: &Joining<'_>, present: bool) {
        let place = |p: PartitionId, end: Offset| {
            let known = self.readers.iter().find(|r| r.id == p && present).map(|r| (r.reader.next, r.reader.kept_until, r.copied));
            let (next, kept_until, copied) = known.unwrap_or((if present { Offset(0) } else { end }, Offset(0), None));
            let mut reader = Reader::new(next, end);
            reader.kept_until = kept_until;
            (reader, copied)
        };
        let reader = |p: &Partition| {
            let (reader, copied) = place(p.id, p.end);
            let (stream, number, system) = (p.stream.clone(), p.number, p.system);
            PartitionReader { id: p.id, stream, number, system, reader, appended: Offset(0), copied, dropping: false }
        };
        self.readers = joining.partitions.iter().map(reader).collect();
        self.subscriptions.starting.clear();
        for (filter, s) in &mut self.subscriptions.all {
            s.new = false;
            self.actions.push_back(Action::Subscribe { id: s.id, filter: filter.clone(), new: false, begin: None });
        }
        for (filter, s) in &mut self.subscriptions.shared {
            s.new = false;
            self.actions.push_back(Action::Share { id: s.id, filter: filter.clone(), new: false });
        }
        self.subscriptions.changed();
    }

    fn connack(&self, request: &ConnectRequest, session_present: bool) -> Vec<u8> {
        let mut properties = PropertiesBuf::default();
        if self.version == Version::V5 {
            properties
                .push(Property::ReceiveMaximum(RECEIVE_MAXIMUM))
                .push(Property::TopicAliasMaximum(aliases::TOPIC_ALIASES_MAX))
                .push(Property::MaximumPacketSize(PACKET_BYTES_MAX as u32));
            if request.expiry_s != request.asked_expiry_s {
                properties.push(Property::SessionExpiryInterval(request.expiry_s));
            }
            if request.told_keep_alive {
                properties.push(Property::ServerKeepAlive(request.keep_alive_s));
            }
            if request.assigned {
                properties.push(Property::AssignedClientIdentifier(&self.client_id));
            }
        }
        let mut bytes = Vec::new();
        let session_present = session_present && !request.is_31;
        let packet = ConnAck { session_present, reason: ReasonCode::SUCCESS, properties: properties.as_properties() };
        encode(&Packet::ConnAck(packet), self.version, &mut bytes);
        bytes
    }
}
