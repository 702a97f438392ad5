//! The session's one record in the state store, and the will in it.
//!
//! Invariant: `decode(value())` gives the same session; every place that the value names was durable when it was put.
//! Must not know: keys, or when it is put.
//!
//! u8 format 1, then in this order, integers LEB128, strings with their length in front: sid, protocol level, flags (bit 0 connected,
//! bit 1 will), expiry, boot, connection number, since (ms); subscriptions: count, each options (and bit 6: with positions), identifier, filter, starts (count, each
//! partition and offset, only while the reader has not passed them or a page needs them); readers: count, each partition and next; outbound: count, each ordinal,
//! partition, offset, kind (bit 0 retained, bits 1 and 2 the stage: QoS 1, QoS 2 sent, QoS 2 released); next ordinal; open exchanges of QoS 2 inbound: count, each packet id,
//! sequence, partition; next sequence; retained pages: count, each filter, again, partition index, after (empty: from the start); the will: topic, QoS and retain, delay,
//! expiry + 1 (0: none), headers, payload. Then, only if there is any of it: what was sent of the first page's current part: count, offsets; what the client
//! does not know yet to be lost: count, each partition, from and to; the past that a subscription asked
//! for and that is not sent yet: count, each partition and end; messages in the window that are copies:
//! count, each ordinal and identifier; readers that stand between two copies: count, each partition and
//! the identifier of the last one that was sent.

use super::{
    BegunPage, Lost, Paging, PartitionReader, Session,
    outbound::{Inflight, Stage, Why},
    subscriptions::Subscription,
};
use crate::{
    fanout::Reader,
    ids::{Offset, PartitionId, SubscribeId},
    message::{Message, WillMark},
    packet::{PacketId, Qos, SubscriptionOptions, Version, Will},
    property::{Properties, PropertiesBuf, Property},
    topic::shared,
};
use std::{borrow::Cow, fmt, num::NonZeroU32};

const FORMAT: u8 = 1;
/// In the byte of the options, whose two highest bits MQTT leaves free: deliveries say where they stand.
const POSITION: u8 = 0x40;

/// A value that this program cannot read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueError {
    /// Written by another version of the program.
    Format(u8),
    Malformed,
}

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Format(n) => write!(f, "a session value of format {n}; this program reads format {FORMAT}"),
            Self::Malformed => f.write_str("a malformed session value"),
        }
    }
}

impl std::error::Error for ValueError {}

/// A will that outlives its CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedWill {
    topic: Box<str>,
    qos: Qos,
    retain: bool,
    delay_s: u32,
    expiry_s: Option<u32>,
    /// Properties without delay and expiry.
    headers: Vec<u8>,
    payload: Vec<u8>,
}

impl OwnedWill {
    /// What it takes in the session's value.
    pub(super) fn bytes(&self) -> usize {
        self.topic.len() + self.headers.len() + self.payload.len()
    }

    /// Topic and bytes of the payload, if the message is to be retained.
    pub(super) fn retained(&self) -> Option<(&str, usize)> {
        (self.retain && !self.payload.is_empty()).then_some((&*self.topic, self.payload.len()))
    }

    pub(super) fn of(w: &Will<'_>) -> Self {
        let (mut delay_s, mut expiry_s) = (0, None);
        let mut headers = PropertiesBuf::default();
        for p in w.properties.iter() {
            match p {
                Property::WillDelayInterval(s) => delay_s = s,
                Property::MessageExpiryInterval(s) => expiry_s = Some(s),
                other => {
                    headers.push(other);
                }
            }
        }
        let headers = headers.as_properties().raw().to_vec();
        Self { topic: w.topic.into(), qos: w.qos, retain: w.retain, delay_s, expiry_s, headers, payload: w.payload.to_vec() }
    }

    pub(super) fn topic(&self) -> &str {
        &self.topic
    }

    pub(super) fn delay_s(&self) -> u32 {
        self.delay_s
    }

    pub(super) fn message(&self, mark: WillMark, client_hash: u64, steady_ms: u64) -> Message<'_> {
        let properties = Properties::from_stored(&self.headers);
        let will = Will { qos: self.qos, retain: self.retain, properties, topic: &self.topic, payload: &self.payload };
        let mut message = Message::of_will(&will, mark, client_hash, steady_ms);
        message.expires_ms = self.expiry_s.map(|s| steady_ms + u64::from(s) * 1_000);
        message.headers = Cow::Borrowed(&self.headers);
        message
    }
}

pub(crate) fn put(b: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        b.push(n as u8 | 0x80);
        n >>= 7;
    }
    b.push(n as u8);
}

fn put_bytes(b: &mut Vec<u8>, bytes: &[u8]) {
    put(b, bytes.len() as u64);
    b.extend_from_slice(bytes);
}

pub(crate) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub fn int(&mut self) -> Option<u64> {
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let (b, rest) = self.0.split_first()?;
            self.0 = rest;
            n |= u64::from(b & 0x7F) << shift;
            if b & 0x80 == 0 {
                return Some(n);
            }
        }
        None
    }

    fn byte(&mut self) -> Option<u8> {
        let (b, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*b)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let n = usize::try_from(self.int()?).ok()?;
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }

    pub fn place(&mut self) -> Option<(PartitionId, Offset)> {
        Some((PartitionId(u32::try_from(self.int()?).ok()?), Offset(self.int()?)))
    }

    /// A list: its count is bounded by the bytes that are left.
    pub fn list<T>(&mut self, mut one: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let n = usize::try_from(self.int()?).ok().filter(|n| *n <= self.0.len())?;
        (0..n).map(|_| one(self)).collect()
    }
}

impl Session {
    /// What is stored of it.
    #[must_use]
    pub fn value(&self) -> Vec<u8> {
        let mut b = vec![FORMAT];
        put(&mut b, self.sid);
        b.push(if self.version == Version::V5 { 5 } else { 4 });
        b.push(u8::from(self.was_connected) | u8::from(self.will.is_some()) << 1);
        for n in [u64::from(self.expiry_s), self.boot, self.connection, self.since_ms] {
            put(&mut b, n);
        }
        // Those of a SUBSCRIBE that is about to be answered too: nobody asks for them again.
        let pages: Vec<&Paging> = self.pages.iter().map(|page| &page.paging).chain(self.inbound.pages()).collect();
        put(&mut b, self.subscriptions.len() as u64);
        for (filter, s) in self.subscriptions.all.iter().chain(&self.subscriptions.shared) {
            b.push(s.options.to_byte() | if s.position { POSITION } else { 0 });
            put(&mut b, u64::from(s.identifier));
            put_bytes(&mut b, filter.as_bytes());
            // A page of retained messages ends at the start, whether or not the reader has come to it.
            let paged = pages.iter().any(|page| page.filter == *filter);
            let ahead = |(p, start): &&(PartitionId, Offset)| paged || self.readers.iter().any(|r| r.id == *p && r.reader.next < *start);
            let starts: Vec<_> = s.start.iter().filter(ahead).collect();
            put(&mut b, starts.len() as u64);
            starts.iter().for_each(|(p, start)| [u64::from(p.0), start.0].iter().for_each(|n| put(&mut b, *n)));
        }
        put(&mut b, self.readers.len() as u64);
        self.readers.iter().for_each(|r| [u64::from(r.id.0), r.reader.next.0].iter().for_each(|n| put(&mut b, *n)));
        // What a group gave is in the group's value.
        let own: Vec<_> = self.outbound.window.iter().filter(|f| f.why.shared().is_none()).collect();
        put(&mut b, own.len() as u64);
        for f in own {
            let kind = u64::from(f.why == Why::Retained) | (f.stage as u64) << 1;
            [f.ordinal, u64::from(f.partition.0), f.offset.0, kind].iter().for_each(|n| put(&mut b, *n));
        }
        put(&mut b, self.outbound.next_ordinal);
        let open = self.open_exchanges();
        put(&mut b, open.len() as u64);
        open.iter().for_each(|(id, seq, p)| [u64::from(id.get()), *seq, u64::from(p.0)].iter().for_each(|n| put(&mut b, *n)));
        put(&mut b, self.exchanges.next_seq);
        put(&mut b, pages.len() as u64);
        for p in pages {
            put_bytes(&mut b, p.filter.as_bytes());
            put(&mut b, u64::from(p.again));
            put(&mut b, p.partition as u64);
            put_bytes(&mut b, p.after.as_deref().unwrap_or_default().as_bytes());
        }
        if let Some(w) = &self.will {
            put_bytes(&mut b, w.topic.as_bytes());
            b.push(w.qos as u8 | u8::from(w.retain) << 2);
            put(&mut b, u64::from(w.delay_s));
            put(&mut b, w.expiry_s.map_or(0, |s| u64::from(s) + 1));
            put_bytes(&mut b, &w.headers);
            put_bytes(&mut b, &w.payload);
        }
        self.put_rest(&mut b);
        b
    }

    /// What most sessions have nothing of.
    fn put_rest(&self, b: &mut Vec<u8>) {
        let kept: Vec<_> = self.readers.iter().filter(|r| r.reader.next < r.reader.kept_until).collect();
        let copies = self
            .outbound
            .window
            .iter()
            .filter_map(|f| if let Why::Copy(identifier) = f.why { Some((f.ordinal, identifier)) } else { None });
        let copies: Vec<_> = copies.collect();
        let copied: Vec<_> =
            self.readers.iter().filter_map(|r| Some((r.id.0, r.copied.filter(|(at, _)| *at == r.reader.next)?.1.get()))).collect();
        let page_sent = self.pages.front().map_or(&[][..], |page| &page.sent);
        if page_sent.is_empty() && self.lost.is_empty() && kept.is_empty() && copies.is_empty() && copied.is_empty() {
            return;
        }
        put(b, page_sent.len() as u64);
        page_sent.iter().for_each(|at| put(b, at.0));
        put(b, self.lost.len() as u64);
        for Lost { partition, range, .. } in &self.lost {
            [u64::from(partition.0), range.start.0, range.end.0].iter().for_each(|n| put(b, *n));
        }
        put(b, kept.len() as u64);
        kept.iter().for_each(|r| [u64::from(r.id.0), r.reader.kept_until.0].iter().for_each(|n| put(b, *n)));
        if copies.is_empty() && copied.is_empty() {
            return;
        }
        put(b, copies.len() as u64);
        copies.iter().for_each(|(ordinal, identifier)| [*ordinal, u64::from(*identifier)].iter().for_each(|n| put(b, *n)));
        put(b, copied.len() as u64);
        copied.iter().for_each(|(p, identifier)| [*p, *identifier].iter().for_each(|n| put(b, u64::from(*n))));
    }

    /// The session id in a stored value.
    #[must_use]
    pub fn sid_of(value: &[u8]) -> Option<u64> {
        Fields(value.strip_prefix(&[FORMAT])?).int()
    }

    /// Reads a stored value.
    pub fn decode(client_id: &str, value: &[u8]) -> Result<Self, ValueError> {
        match value.split_first() {
            Some((&FORMAT, rest)) => Self::fields(client_id, Fields(rest)).ok_or(ValueError::Malformed),
            Some((format, _)) => Err(ValueError::Format(*format)),
            None => Err(ValueError::Malformed),
        }
    }

    fn fields(client_id: &str, mut f: Fields<'_>) -> Option<Self> {
        let mut s = Self::new(client_id, f.int()?);
        s.version = if f.int()? == 4 { Version::V311 } else { Version::V5 };
        let flags = f.int()?;
        s.was_connected = flags & 1 != 0;
        (s.expiry_s, s.boot, s.connection, s.since_ms) = (u32::try_from(f.int()?).ok()?, f.int()?, f.int()?, f.int()?);
        let mut next_id = || s.subscriptions.next_id();
        let all = f.list(|f| {
            let byte = f.byte()?;
            let options = SubscriptionOptions::from_byte(byte & !POSITION)?;
            let identifier = u32::try_from(f.int()?).ok()?;
            let filter: Box<str> = f.text()?.into();
            let (start, position) = (f.list(Fields::place)?, byte & POSITION != 0);
            Some((filter, Subscription { options, identifier, id: next_id(), new: false, position, begins: None, start }))
        })?;
        (s.subscriptions.shared, s.subscriptions.all) = all.into_iter().partition(|(filter, _)| shared(filter).is_some());
        let readers = f.list(Fields::place)?;
        s.readers = readers
            .into_iter()
            .map(|(id, next)| PartitionReader {
                id,
                stream: "".into(),
                number: 0,
                system: false,
                reader: Reader::new(next, next),
                appended: Offset(0),
                copied: None,
                dropping: false,
            })
            .collect();
        let window = f.list(|f| {
            let ordinal = f.int()?;
            let (partition, offset) = f.place()?;
            let kind = f.int()?;
            let stage = [Stage::Unacknowledged, Stage::Sent, Stage::Released].into_iter().find(|s| *s as u64 == kind >> 1)?;
            let why = if kind & 1 != 0 { Why::Retained } else { Why::Subscribed };
            Some(Inflight { ordinal, partition, offset, stage, why })
        })?;
        s.outbound.window = window.into();
        s.outbound.next_ordinal = f.int()?;
        let open =
            f.list(|f| Some((PacketId::new(u16::try_from(f.int()?).ok()?)?, f.int()?, PartitionId(u32::try_from(f.int()?).ok()?))))?;
        open.into_iter().for_each(|(id, seq, p)| s.exchanges.restore(id, seq, p));
        s.exchanges.next_seq = f.int()?;
        let paging = f.list(|f| {
            let filter: Box<str> = f.text()?.into();
            let again = f.int()? != 0;
            let partition = usize::try_from(f.int()?).ok()?;
            let after = f.text()?;
            // One that was unsubscribed from before its answer has none: no id is so high.
            let subscription = s.subscriptions.all.get(&filter).map_or(SubscribeId(u32::MAX), |s| s.id);
            Some(Paging { filter, subscription, again, partition, after: (!after.is_empty()).then(|| after.into()) })
        })?;
        s.pages = paging.into_iter().map(BegunPage::from).collect();
        if flags & 2 != 0 {
            s.will = Some(Box::new(Self::will_fields(&mut f)?));
        }
        if !f.0.is_empty() {
            let sent = f.list(|f| f.int().map(Offset))?;
            if let Some(page) = s.pages.front_mut() {
                page.sent = sent;
            }
            s.lost = f.list(|f| {
                let (partition, start) = f.place()?;
                Some(Lost { partition, range: start..Offset(f.int()?), carrier: None })
            })?;
            for (p, until) in f.list(Fields::place)? {
                s.readers.iter_mut().filter(|r| r.id == p).for_each(|r| r.reader.kept_until = until);
            }
        }
        if !f.0.is_empty() {
            for (ordinal, identifier) in f.list(|f| Some((f.int()?, u32::try_from(f.int()?).ok()?)))? {
                s.outbound.window.iter_mut().filter(|f| f.ordinal == ordinal).for_each(|f| f.why = Why::Copy(identifier));
            }
            for (p, Offset(identifier)) in f.list(Fields::place)? {
                let identifier = NonZeroU32::new(u32::try_from(identifier).ok()?)?;
                s.readers.iter_mut().filter(|r| r.id == p).for_each(|r| r.copied = Some((r.reader.next, identifier)));
            }
        }
        Some(s)
    }

    fn will_fields(f: &mut Fields<'_>) -> Option<OwnedWill> {
        let topic = f.text()?.into();
        let bits = f.int()? as u8;
        let (delay_s, expiry) = (u32::try_from(f.int()?).ok()?, f.int()?);
        Some(OwnedWill {
            topic,
            qos: Qos::from_bits(bits & 3)?,
            retain: bits & 4 != 0,
            delay_s,
            expiry_s: expiry.checked_sub(1).and_then(|s| u32::try_from(s).ok()),
            headers: f.bytes()?.to_vec(),
            payload: f.bytes()?.to_vec(),
        })
    }

    /// End offsets that a value names: everything below them was durable when it was put.
    #[must_use]
    pub fn named(&self) -> Vec<(PartitionId, Offset)> {
        let read = self.readers.iter().map(|r| (r.id, r.reader.next));
        let sent = self.outbound.window.iter().filter(|f| f.why.shared().is_none()).map(|f| (f.partition, Offset(f.offset.0 + 1)));
        read.chain(sent).collect()
    }
}
