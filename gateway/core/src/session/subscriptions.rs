//! The filters of one session, and what they grant a record. `Subscriptions::grant` is the only place that knows subscription options.
//!
//! Invariant: a record before a subscription's start does not match it, live or behind; a topic is judged by all filters once per run of
//! equal topics.
//! Must not know: windows, packet ids, or how a record was found.

use super::{
    Action, FILTER_LEVELS_MAX, KEY_BYTES_MAX, Paging, SUBSCRIPTIONS_MAX, Session,
    inbound::{Reply, Subscribed, Until},
};
use crate::{
    codec::encode,
    ids::{Offset, PartitionId, SubscribeId},
    message::Stored,
    packet::{Packet, Qos, ReasonCode, SubAck, Subscribe, SubscriptionOptions, Unsubscribe, Version},
    property::{Properties, Property},
    topic::{filter_matches, shared},
};
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subscription {
    pub options: SubscriptionOptions,
    /// Subscription identifier; 0: none.
    pub identifier: u32,
    /// This life's number of it.
    pub id: SubscribeId,
    /// Subscribed to in this life: its tails answer with its start. One of an earlier life has its start already.
    pub new: bool,
    /// First offset that it matches, per partition.
    pub start: Vec<(PartitionId, Offset)>,
}

/// What one record is to one subscriber.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Granted {
    pub qos: Qos,
    pub retain: bool,
    pub identifiers: Vec<u32>,
}

#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    pub all: BTreeMap<Box<str>, Subscription>,
    /// With `$share/GROUP/` in front: the group reads, the session is one of its members.
    pub shared: BTreeMap<Box<str>, Subscription>,
    next_id: u32,
    /// Topic of the last grant, and the filters that match it.
    topic: Vec<u8>,
    matching: Vec<Match>,
    cached: bool,
}

#[derive(Clone, Debug)]
struct Match {
    options: SubscriptionOptions,
    identifier: u32,
    start: Vec<(PartitionId, Offset)>,
}

impl Subscriptions {
    pub fn next_id(&mut self) -> SubscribeId {
        self.next_id += 1;
        SubscribeId(self.next_id)
    }

    pub fn len(&self) -> usize {
        self.all.len() + self.shared.len()
    }

    fn of_kind(&mut self, filter: &str) -> &mut BTreeMap<Box<str>, Subscription> {
        if shared(filter).is_some() { &mut self.shared } else { &mut self.all }
    }

    pub fn shared_by_id(&self, id: SubscribeId) -> Option<(&str, &Subscription)> {
        self.shared.iter().find(|(_, s)| s.id == id).map(|(filter, s)| (&**filter, s))
    }

    /// The filters have changed.
    pub fn changed(&mut self) {
        self.cached = false;
    }

    fn find(&mut self, topic: &[u8]) {
        if self.cached && self.topic == topic {
            return;
        }
        self.cached = true;
        self.topic.clear();
        self.topic.extend_from_slice(topic);
        self.matching.clear();
        let Ok(topic) = std::str::from_utf8(topic) else { return };
        let matching = self.all.iter().filter(|(filter, _)| filter_matches(filter, topic));
        self.matching.extend(matching.map(|(_, s)| Match { options: s.options, identifier: s.identifier, start: s.start.clone() }));
    }

    /// One copy per record: the greatest QoS of those that match, all their identifiers, retain as published if any asks.
    pub fn grant(&mut self, p: PartitionId, r: &Stored<'_>, client_hash: u64, into: &mut Granted) -> bool {
        self.find(r.topic);
        let mut qos = None;
        into.retain = false;
        into.identifiers.clear();
        for m in &self.matching {
            let started = m.start.iter().all(|(q, start)| *q != p || r.offset >= *start);
            let echo = m.options.no_local && r.client_hash == client_hash;
            if !started || echo {
                continue;
            }
            qos = qos.max(Some(m.options.qos));
            into.retain |= r.retain && m.options.retain_as_published;
            into.identifiers.extend((m.identifier != 0).then_some(m.identifier));
        }
        into.qos = qos.unwrap_or_default().min(r.qos);
        qos.is_some()
    }
}

impl Session {
    pub(super) fn subscribe(&mut self, s: &Subscribe<'_>) {
        let identifier = s.properties.iter().find_map(|p| if let Property::SubscriptionIdentifier(n) = p { Some(n) } else { None });
        let (mut reasons, mut answers) = (Vec::new(), 0);
        let mut ack = Subscribed { bytes: Vec::new(), new: Vec::new(), retained: Vec::new() };
        for (filter, options) in s.filters.iter() {
            if let Some(reason) = self.refuse_filter(filter) {
                reasons.push(if self.version == Version::V5 { reason.0 } else { ReasonCode::UNSPECIFIED.0 });
                continue;
            }
            let is_shared = shared(filter).is_some();
            // A message with QoS 2 that has begun may not go to another member [MQTT-4.8.2-5]; with QoS 1 it may.
            let qos = if is_shared { options.qos.min(Qos::AtLeastOnce) } else { options.qos };
            let options = SubscriptionOptions { qos, ..options };
            reasons.push(options.qos as u8);
            let new = self.add_subscription(filter, options, identifier.unwrap_or(0));
            ack.new.extend(new);
            answers += if new.is_none() {
                0
            } else if is_shared {
                1
            } else {
                self.readers.len()
            };
            if is_shared {
                // No retained messages for shared subscriptions [MQTT 5, 3.8.3.1].
                continue;
            }
            let wanted = options.retain_handling == 0 || options.retain_handling == 1 && new.is_some();
            if wanted && !ack.retained.iter().any(|p| &*p.filter == filter) {
                ack.retained.push(Paging { filter: filter.into(), again: new.is_none(), partition: 0, after: None });
            }
        }
        self.subscriptions.changed();
        let packet = SubAck { packet_id: s.packet_id, properties: Properties::default(), reasons: &reasons };
        encode(&Packet::SubAck(packet), self.version, &mut ack.bytes);
        let until = match answers {
            0 => self.when_put(),
            n => Until::Started(n),
        };
        self.inbound.push(until, Reply::Subscribe(ack));
    }

    /// A change of the session is acknowledged when its value is durable, if it has one.
    fn when_put(&mut self) -> Until {
        if !self.is_stored() {
            return Until::Ready;
        }
        self.put_wanted = true;
        Until::Put
    }

    fn refuse_filter(&self, filter: &str) -> Option<ReasonCode> {
        if filter.len() > KEY_BYTES_MAX || filter.split('/').count() > FILTER_LEVELS_MAX {
            return Some(ReasonCode::TOPIC_FILTER_INVALID);
        }
        let known = self.subscriptions.all.contains_key(filter) || self.subscriptions.shared.contains_key(filter);
        let full = self.subscriptions.len() >= SUBSCRIPTIONS_MAX && !known;
        full.then_some(ReasonCode::QUOTA_EXCEEDED)
    }

    /// Gives the number of a new filter. The same filter again keeps its start, or the span behind would be lost.
    fn add_subscription(&mut self, filter: &str, options: SubscriptionOptions, identifier: u32) -> Option<SubscribeId> {
        if let Some(known) = self.subscriptions.of_kind(filter).get_mut(filter) {
            (known.options, known.identifier) = (options, identifier);
            return None;
        }
        let id = self.subscriptions.next_id();
        let subscription = Subscription { options, identifier, id, new: true, start: Vec::new() };
        self.subscriptions.of_kind(filter).insert(filter.into(), subscription);
        let (is_shared, filter, new) = (shared(filter).is_some(), filter.into(), true);
        self.actions.push_back(if is_shared { Action::Share { id, filter, new } } else { Action::Subscribe { id, filter, new } });
        Some(id)
    }

    pub(super) fn unsubscribe(&mut self, u: &Unsubscribe<'_>) {
        let mut reasons = Vec::new();
        for (filter, _) in u.filters.iter() {
            if self.subscriptions.all.remove(filter).is_some() {
                self.actions.push_back(Action::Unsubscribe(filter.into()));
                self.paging.retain(|p| &*p.filter != filter);
                reasons.push(ReasonCode::SUCCESS.0);
            } else if self.subscriptions.shared.remove(filter).is_some() {
                self.actions.push_back(Action::Unshare(filter.into(), self.sid));
                reasons.push(ReasonCode::SUCCESS.0);
            } else {
                reasons.push(ReasonCode::NO_SUBSCRIPTION_EXISTED.0);
            }
        }
        self.subscriptions.changed();
        let reasons: &[u8] = if self.version == Version::V5 { &reasons } else { &[] };
        let mut bytes = Vec::new();
        let packet = SubAck { packet_id: u.packet_id, properties: Properties::default(), reasons };
        encode(&Packet::UnsubAck(packet), self.version, &mut bytes);
        let until = self.when_put();
        self.inbound.push(until, Reply::Unsubscribe(bytes));
    }

    /// The tail of one partition offers what matches filter `id` from `at` on.
    pub(super) fn started(&mut self, id: SubscribeId, p: PartitionId, at: Offset) {
        let started = |s: &Subscription| !s.new || s.start.iter().any(|(q, _)| *q == p);
        if !self.subscriptions.all.values().any(started)
            && let Some(reader) = self.readers.iter_mut().find(|r| r.id == p)
        {
            // Nothing matched before: what lies before is not read.
            reader.reader.sent(at);
        }
        if let Some(s) = self.subscriptions.all.values_mut().find(|s| s.id == id && s.new) {
            s.start.push((p, at));
            self.subscriptions.changed();
        }
        self.put_wanted |= self.inbound.started(id, self.is_stored());
    }

    /// Its group has the session as a subscriber, durably.
    pub(super) fn shared(&mut self, id: SubscribeId) {
        self.put_wanted |= self.inbound.started(id, self.is_stored());
    }

    /// The session ends for good: its groups are told.
    pub(super) fn unshare_all(&mut self) {
        for filter in std::mem::take(&mut self.subscriptions.shared).into_keys() {
            self.actions.push_back(Action::Unshare(filter, self.sid));
        }
    }

    /// The shared filters of the session.
    pub fn shared_filters(&self) -> impl Iterator<Item = &str> {
        self.subscriptions.shared.keys().map(|f| &**f)
    }

    /// Retained messages of this partition below this offset are sent for a page; newer ones come as they are published.
    #[must_use]
    pub fn page_limit(&self, paging: &Paging) -> Option<Offset> {
        let reader = self.readers.get(paging.partition)?;
        let subscription = self.subscriptions.all.get(&paging.filter)?;
        let start = subscription.start.iter().find(|(p, _)| *p == reader.id).map_or(Offset(0), |(_, start)| *start);
        Some(if paging.again { start.max(reader.reader.next) } else { start })
    }

    /// The filters, for a fetch that chooses by them.
    #[must_use]
    pub fn filters(&self) -> Vec<Box<str>> {
        self.subscriptions.all.keys().cloned().collect()
    }
}
