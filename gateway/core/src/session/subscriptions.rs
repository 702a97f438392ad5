//! The filters of one session, and what they grant a record. `Subscriptions::grant` is the only place that knows subscription options.
//!
//! Invariant: a record before a subscription's start does not match it, live or behind; a topic is judged by all filters once per run of
//! equal topics.
//! Must not know: windows, packet ids, or how a record was found.

use super::{
    Action, Begin, Paging, Session, Violation,
    begin::{plain, replay},
    inbound::{Reply, Subscribed, Until},
    position::{asked, wants_position},
};
use crate::{
    codec::encode,
    ids::{Now, Offset, PartitionId, SubscribeId},
    limits::Limit,
    message::Stored,
    packet::{Packet, PacketId, Qos, ReasonCode, SubAck, Subscribe, SubscriptionOptions, Unsubscribe, Version},
    property::{Properties, PropertiesBuf, Property},
    topic::{filter_is_valid, filter_matches, is_system, shared},
};
use std::{
    collections::BTreeMap,
    ops::{Bound, Range, RangeInclusive},
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Subscription {
    pub options: SubscriptionOptions,
    /// Subscription identifier; 0: none.
    pub identifier: u32,
    /// This life's number of it.
    pub id: SubscribeId,
    /// Subscribed to in this life: its tails answer with its start. One of an earlier life has its start already.
    pub new: bool,
    /// Deliveries say where they stand.
    pub position: bool,
    /// It begins in the past: what each partition has answered first.
    pub begins: Option<Vec<(PartitionId, Offset)>>,
    /// First offset that it matches, per partition.
    pub start: Vec<(PartitionId, Offset)>,
}

/// What one record is to one subscriber.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Granted {
    pub qos: Qos,
    pub retain: bool,
    /// It says where it stands.
    pub position: bool,
    pub identifiers: Vec<u32>,
}

#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    pub all: BTreeMap<Box<str>, Subscription>,
    /// With `$share/GROUP/` in front: the group reads, the session is one of its members.
    pub shared: BTreeMap<Box<str>, Subscription>,
    /// Shared ones that were unsubscribed from while messages of theirs were in flight: their acknowledgements count.
    ended: Vec<(SubscribeId, Box<str>)>,
    next_id: u32,
    /// Filters of `all` that are new, until every tail has answered with a start.
    pub starting: BTreeMap<SubscribeId, Box<str>>,
    /// Held only by who is sent messages.
    last: Option<Box<Last>>,
}

/// Topic of the last grant, and the filters that match it.
#[derive(Clone, Debug, Default)]
struct Last {
    topic: Vec<u8>,
    matching: Vec<Match>,
    /// No filter has changed since.
    valid: bool,
}

#[derive(Clone, Debug)]
struct Match {
    options: SubscriptionOptions,
    position: bool,
    identifier: u32,
    start: Vec<(PartitionId, Offset)>,
}

impl Match {
    /// It has begun before this record, which is not its own.
    fn gives(&self, p: PartitionId, r: &Stored<'_>, client_hash: u64) -> bool {
        let started = self.start.iter().all(|(q, start)| *q != p || r.offset >= *start);
        started && !(self.options.no_local && r.client_hash == client_hash)
    }
}

impl Subscriptions {
    pub fn next_id(&mut self) -> SubscribeId {
        self.next_id += 1;
        SubscribeId(self.next_id)
    }

    /// Is there a filter that reads partitions of this kind?
    pub fn read(&self, system: bool) -> bool {
        if system {
            // `0` stands behind `/`.
            return self.all.contains_key("$SYS")
                || self.all.range::<str, _>((Bound::Included("$SYS/"), Bound::Excluded("$SYS0"))).next().is_some();
        }
        self.all.keys().any(|filter| !is_system(filter))
    }

    pub fn len(&self) -> usize {
        self.all.len() + self.shared.len()
    }

    /// Of all filters, in the session's value.
    pub fn bytes(&self) -> usize {
        self.all.keys().chain(self.shared.keys()).map(|filter| weight(filter)).sum()
    }

    fn of_kind(&mut self, filter: &str) -> &mut BTreeMap<Box<str>, Subscription> {
        if shared(filter).is_some() { &mut self.shared } else { &mut self.all }
    }

    pub fn shared_by_id(&self, id: SubscribeId) -> Option<(&str, &Subscription)> {
        self.shared.iter().find(|(_, s)| s.id == id).map(|(filter, s)| (&**filter, s))
    }

    /// The filters have changed.
    pub fn changed(&mut self) {
        if let Some(last) = &mut self.last {
            last.valid = false;
        }
    }

    fn find(&mut self, topic: &[u8]) -> &[Match] {
        let last = self.last.get_or_insert_default();
        if last.valid && last.topic == topic {
            return &last.matching;
        }
        last.valid = true;
        last.topic.clear();
        last.topic.extend_from_slice(topic);
        last.matching.clear();
        if let Ok(topic) = std::str::from_utf8(topic) {
            let matching = self.all.iter().filter(|(filter, _)| filter_matches(filter, topic));
            last.matching.extend(matching.map(|(_, s)| Match {
                options: s.options,
                position: s.position,
                identifier: s.identifier,
                start: s.start.clone(),
            }));
            // A copy looks at the filters with its identifier alone.
            last.matching.sort_by_key(|m| m.identifier);
        }
        &last.matching
    }

    /// The least identifier above this one of those that match.
    pub fn next_identifier(&mut self, above: u32, p: PartitionId, r: &Stored<'_>, client_hash: u64) -> Option<u32> {
        let all = self.find(r.topic);
        let behind = all.get(all.partition_point(|m| m.identifier <= above)..)?;
        behind.iter().find(|m| m.gives(p, r, client_hash)).map(|m| m.identifier)
    }

    /// The greatest QoS of those that match, all their identifiers, retain as published if any asks.
    pub fn grant(&mut self, p: PartitionId, r: &Stored<'_>, client_hash: u64, into: &mut Granted) -> bool {
        self.grant_of(0..=u32::MAX, p, r, client_hash, into)
    }

    /// The same of those whose identifier is one of these.
    pub fn grant_of(
        &mut self,
        identifiers: RangeInclusive<u32>,
        p: PartitionId,
        r: &Stored<'_>,
        client_hash: u64,
        into: &mut Granted,
    ) -> bool {
        let mut qos = None;
        (into.retain, into.position) = (false, false);
        into.identifiers.clear();
        let all = self.find(r.topic);
        let first = all.partition_point(|m| m.identifier < *identifiers.start());
        let all = all.get(first..).unwrap_or_default().iter().take_while(|m| m.identifier <= *identifiers.end());
        for m in all.filter(|m| m.gives(p, r, client_hash)) {
            qos = qos.max(Some(m.options.qos));
            into.retain |= r.retain && m.options.retain_as_published;
            into.position |= m.position;
            into.identifiers.extend((m.identifier != 0).then_some(m.identifier));
        }
        into.identifiers.dedup();
        into.qos = qos.unwrap_or_default().min(r.qos);
        qos.is_some()
    }
}

/// What a SUBSCRIBE asks of one filter.
struct Asked {
    options: SubscriptionOptions,
    identifier: u32,
    position: bool,
    begin: Option<Begin>,
}

/// A filter that is not taken.
struct Refused {
    reason: ReasonCode,
    words: String,
    limit: Option<Limit>,
}

/// Bytes of a filter in the session's value.
fn weight(filter: &str) -> usize {
    filter.len() + 8
}

/// Where it is to begin; `None`: now.
fn begin(from: Option<&str>, filter: &str, now: Now) -> Result<Option<Begin>, Refused> {
    let refused = |reason, words| Refused { reason, words, limit: None };
    let begin = from.map_or(Ok(None), |from| Begin::parse(from, now.wall_ms));
    let begin = begin.map_err(|e| refused(ReasonCode::IMPLEMENTATION_SPECIFIC, e.to_string()))?;
    if begin.is_some() && shared(filter).is_some() {
        return Err(refused(ReasonCode::IMPLEMENTATION_SPECIFIC, "from: a group has one place for all its members".into()));
    }
    Ok(begin)
}

impl Session {
    pub(super) fn subscribe(&mut self, now: Now, s: &Subscribe<'_>) -> Result<(), Violation> {
        self.fits_answer(s.filters.iter().count())?;
        let identifier = s.properties.iter().find_map(|p| if let Property::SubscriptionIdentifier(n) = p { Some(n) } else { None });
        let (position, from) = (wants_position(s.properties), asked(s.properties, "from"));
        let (mut reasons, mut answers, mut why) = (Vec::new(), 0, String::new());
        let mut bytes = self.subscriptions.bytes();
        let mut ack = Subscribed { bytes: Vec::new(), new: Vec::new(), retained: Vec::new() };
        for (whole, options) in s.filters.iter() {
            let (from, filter) = replay(whole).map_or((from, whole), |(from, filter)| (Some(from), filter));
            let begin = match self.refuse_filter(filter, bytes).map_or_else(|| begin(from, filter, now), Err) {
                Ok(begin) => begin,
                Err(refused) => {
                    self.actions.extend(refused.limit.map(Action::Refused));
                    reasons.push(if self.version == Version::V5 { refused.reason.0 } else { ReasonCode::UNSPECIFIED.0 });
                    why = refused.words;
                    continue;
                }
            };
            let is_shared = shared(filter).is_some();
            let known = self.subscriptions.all.contains_key(filter);
            // A message with QoS 2 that has begun may not go to another member [MQTT-4.8.2-5]; with QoS 1 it may.
            let qos = if is_shared { options.qos.min(Qos::AtLeastOnce) } else { options.qos };
            let (no_local, retain_as_published) =
                (options.no_local || self.is_bridge && !is_shared, options.retain_as_published || self.is_bridge);
            let options = SubscriptionOptions { qos, no_local, retain_as_published, ..options };
            reasons.push(options.qos as u8);
            let asked = Asked { options, identifier: identifier.unwrap_or(0), position, begin };
            let taken = self.subscriptions.len();
            let new = self.add_subscription(filter, asked);
            bytes += if self.subscriptions.len() > taken { weight(filter) } else { 0 };
            ack.new.extend(new);
            answers += if new.is_none() {
                0
            } else if is_shared {
                1
            } else {
                self.readers.iter().filter(|r| r.system == is_system(filter)).count() * if begin.is_some() { 2 } else { 1 }
            };
            if is_shared {
                // No retained messages for shared subscriptions [MQTT 5, 3.8.3.1].
                continue;
            }
            let Some(subscription) = self.subscriptions.all.get(filter).map(|s| s.id) else { continue };
            let wanted = options.retain_handling == 0 || options.retain_handling == 1 && new.is_some();
            if wanted && !(known && ack.retained.iter().any(|p| &*p.filter == filter)) {
                ack.retained.push(Paging { filter: filter.into(), subscription, again: new.is_none(), partition: 0, after: None });
            }
        }
        self.subscriptions.changed();
        ack.bytes = self.suback(s.packet_id, &reasons, &why);
        let until = match answers {
            0 => self.when_put(),
            n => Until::Started(n),
        };
        self.inbound.push(until, Reply::Subscribe(Box::new(ack)));
        Ok(())
    }

    /// An answer that the client does not take is not sent, and without one it would wait for ever [MQTT-3.1.2-24].
    fn fits_answer(&self, filters: usize) -> Result<(), Violation> {
        let reasons = vec![0; filters];
        let fits = self.outbound.packet_bytes_max() > filters + 10
            || self.suback(PacketId::MIN, &reasons, "").len() <= self.outbound.packet_bytes_max();
        let statement = "MQTT-3.1.2-24: a maximum packet size that leaves no room for the answer to so many filters";
        if fits { Ok(()) } else { Err(Violation::new(ReasonCode::PACKET_TOO_LARGE, statement)) }
    }

    /// A change of the session is acknowledged when its value is durable, if it has one.
    fn when_put(&mut self) -> Until {
        if !self.is_stored() {
            return Until::Ready;
        }
        self.put_wanted = true;
        Until::Put
    }

    /// `why`: of what was refused last, for people; left out where it does not fit [MQTT-3.9.2-1].
    fn suback(&self, packet_id: PacketId, reasons: &[u8], why: &str) -> Vec<u8> {
        let encoded = |properties: Properties<'_>| {
            let mut bytes = Vec::new();
            encode(&Packet::SubAck(SubAck { packet_id, properties, reasons }), self.version, &mut bytes);
            bytes
        };
        let mut words = PropertiesBuf::default();
        if self.version == Version::V5 && !why.is_empty() {
            words.push(Property::ReasonString(why));
        }
        let bytes = encoded(words.as_properties());
        if bytes.len() > self.outbound.packet_bytes_max() { encoded(Properties::default()) } else { bytes }
    }

    /// `bytes`: of the filters of the session, with those of this packet that were taken.
    fn refuse_filter(&self, filter: &str, bytes: usize) -> Option<Refused> {
        if !filter_is_valid(filter) {
            return Some(Refused {
                reason: ReasonCode::TOPIC_FILTER_INVALID,
                words: "a filter that is not well formed, or none behind $replay/FROM/".into(),
                limit: None,
            });
        }
        let over =
            |reason, limit: Limit| Some(Refused { reason, words: format!("more than limits.{} allows", limit.key()), limit: Some(limit) });
        if let Some(limit) = self.limits.refuses_name(filter) {
            return over(ReasonCode::TOPIC_FILTER_INVALID, limit);
        }
        if self.subscriptions.all.contains_key(filter) || self.subscriptions.shared.contains_key(filter) {
            return None;
        }
        let is_shared = shared(filter).is_some();
        if self.subscriptions.len() >= self.limits.subscriptions {
            over(ReasonCode::QUOTA_EXCEEDED, Limit::Subscriptions)
        } else if is_shared && self.subscriptions.shared.len() >= self.limits.shared_subscriptions {
            over(ReasonCode::QUOTA_EXCEEDED, Limit::SharedSubscriptions)
        } else if bytes + weight(filter) + self.will.as_ref().map_or(0, |w| w.bytes()) > self.limits.session_bytes {
            over(ReasonCode::QUOTA_EXCEEDED, Limit::SessionBytes)
        } else {
            self.fleet.refuses_filter(filter, self.is_stored()).and_then(|limit| over(ReasonCode::QUOTA_EXCEEDED, limit))
        }
    }

    /// Gives the number of a new filter. The same filter again keeps its start, or the span behind would be lost; unless it is to begin elsewhere.
    fn add_subscription(&mut self, filter: &str, asked: Asked) -> Option<SubscribeId> {
        let Asked { options, identifier, position, begin } = asked;
        if let Some(known) = self.subscriptions.of_kind(filter).get_mut(filter) {
            if begin.is_none() {
                (known.options, known.identifier, known.position) = (options, identifier, position);
                return None;
            }
            let before = known.id;
            self.subscriptions.starting.remove(&before);
            self.actions.push_back(Action::Unsubscribe(filter.into()));
        }
        let id = self.subscriptions.next_id();
        let begins = begin.map(|_| Vec::new());
        let subscription = Subscription { options, identifier, id, new: true, position, begins, start: Vec::new() };
        self.subscriptions.of_kind(filter).insert(filter.into(), subscription);
        let (is_shared, filter, new) = (shared(filter).is_some(), Box::<str>::from(filter), true);
        if !is_shared {
            self.subscriptions.starting.insert(id, filter.clone());
        }
        self.actions.push_back(if is_shared { Action::Share { id, filter, new } } else { Action::Subscribe { id, filter, new, begin } });
        Some(id)
    }

    pub(super) fn unsubscribe(&mut self, u: &Unsubscribe<'_>) -> Result<(), Violation> {
        self.fits_answer(u.filters.iter().count())?;
        let mut reasons = Vec::new();
        for (filter, _) in u.filters.iter() {
            let filter = plain(filter);
            if let Some(gone) = self.subscriptions.all.remove(filter) {
                self.subscriptions.starting.remove(&gone.id);
                self.actions.push_back(Action::Unsubscribe(filter.into()));
                self.pages.retain(|page| &*page.paging.filter != filter);
                reasons.push(ReasonCode::SUCCESS.0);
            } else if let Some(gone) = self.subscriptions.shared.remove(filter) {
                let in_flight = |id: SubscribeId| self.outbound.window.iter().any(|f| f.why.shared() == Some(id));
                self.subscriptions.ended.retain(|(id, _)| in_flight(*id));
                if in_flight(gone.id) {
                    self.subscriptions.ended.push((gone.id, filter.into()));
                }
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
        self.inbound.push(until, Reply::Unsubscribe(bytes.into()));
        Ok(())
    }

    /// The tail of one partition offers what matches filter `id` from `at` on.
    pub(super) fn started(&mut self, id: SubscribeId, p: PartitionId, at: Offset) {
        if let Some(reader) = self.readers.iter_mut().find(|r| r.id == p) {
            let started = |s: &Subscription| !s.new || s.start.iter().any(|(q, _)| *q == p);
            let mut here = self.subscriptions.all.iter().filter(|(filter, _)| is_system(filter) == reader.system);
            if !here.any(|(_, s)| started(s) || s.id == id && s.begins.is_some()) {
                // Nothing matched before: what lies before is not read.
                reader.reader.sent(at);
            }
        }
        let Subscriptions { all, starting, .. } = &mut self.subscriptions;
        if let Some(filter) = starting.get(&id)
            && let Some(s) = all.get_mut(filter)
        {
            let tails = self.readers.iter().filter(|r| r.system == is_system(filter)).count();
            if s.start.len() + 1 >= tails && s.begins.as_ref().is_none_or(|first| first.len() >= tails) {
                starting.remove(&id);
            }
            match s.begins.as_mut().map(|first| (first.iter().find(|(q, _)| *q == p).copied(), first)) {
                None => s.start.push((p, at)),
                Some((None, first)) => first.push((p, at)),
                Some((Some((_, first)), _)) => self.go_back(id, p, at.min(first)..at.max(first)),
            }
            self.subscriptions.changed();
        }
        self.put_wanted |= self.inbound.started(id, self.is_stored());
    }

    /// Filter `id` asks for what lies in `past`: the one reader goes back there, and what was sent for other filters before is not for them any more. So each
    /// record is sent once, whatever it matches, and in order.
    fn go_back(&mut self, id: SubscribeId, p: PartitionId, past: Range<Offset>) {
        let to = past.start;
        let Some(reader) = self.readers.iter_mut().find(|r| r.id == p) else { return };
        let sent = reader.reader.next;
        for (_, s) in self.subscriptions.all.iter_mut().filter(|(filter, _)| is_system(filter) == reader.system) {
            let start = s.start.iter_mut().find(|(q, _)| *q == p);
            match start {
                _ if s.id == id => s.start.push((p, to)),
                Some((_, start)) => *start = sent.max(*start),
                // It was there before, and its start was passed; one that is new is not sent anything yet.
                None if !s.new => s.start.push((p, sent)),
                None => {}
            }
        }
        reader.reader.go_back(to, past.end);
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

    /// The filter of a shared subscription, also of one that has ended with messages in flight.
    #[must_use]
    pub fn shared_filter(&self, id: SubscribeId) -> Option<&str> {
        let ended = self.subscriptions.ended.iter().find(|(of, _)| *of == id).map(|(_, filter)| &**filter);
        self.subscriptions.shared_by_id(id).map(|(filter, _)| filter).or(ended)
    }

    /// A filter as it stands in a SUBSCRIBE: the session has it already.
    #[must_use]
    pub fn has_filter(&self, whole: &str) -> bool {
        self.subscriptions.all.contains_key(replay(whole).map_or(whole, |(_, filter)| filter))
    }

    /// The shared filters of the session.
    pub fn shared_filters(&self) -> impl Iterator<Item = &str> {
        self.subscriptions.shared.keys().map(|f| &**f)
    }

    /// Retained messages of this partition below this offset are sent for a page; newer ones come as they are published.
    #[must_use]
    pub fn page_limit(&self, paging: &Paging) -> Option<Offset> {
        let reader = self.readers.get(paging.partition)?;
        let subscription = self.subscriptions.all.get(&paging.filter).filter(|s| s.id == paging.subscription)?;
        let start = subscription.start.iter().find(|(p, _)| *p == reader.id).map_or(Offset(0), |(_, start)| *start);
        Some(if paging.again { start.max(reader.reader.next) } else { start })
    }

    /// The filters, for a fetch that chooses by them.
    #[must_use]
    pub fn filters(&self) -> Vec<Box<str>> {
        self.subscriptions.all.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_of_the_gateways_own_topics_are_told_from_their_neighbours() {
        let neighbours = ["$SYS", "$SYS-a/b", "$SYS/b", "$SYSTEM", "$dead/x", "#", "a"];
        for chosen in 0..1u32 << neighbours.len() {
            let mut s = Subscriptions::default();
            let filters: Vec<&str> = neighbours.iter().enumerate().filter(|(i, _)| chosen >> i & 1 == 1).map(|(_, f)| *f).collect();
            for filter in &filters {
                let id = s.next_id();
                let options = SubscriptionOptions::default();
                let new = Subscription { options, identifier: 0, id, new: true, position: false, begins: None, start: Vec::new() };
                s.all.insert((*filter).into(), new);
            }
            for system in [true, false] {
                assert_eq!(s.read(system), filters.iter().any(|f| is_system(f) == system), "{filters:?}");
            }
        }
    }
}
