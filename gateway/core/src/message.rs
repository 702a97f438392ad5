//! A message on its way into the log and out of it: what stands in a record's flags and meta.
//!
//! Invariant: what must be atomic with a message stands in its record; `Stored::parse` gives back what `Message` put in.
//! Must not know: files, or who gets it.
//!
//! Flags: bits 0–1 QoS, 2 retain, 3 sid block, 4 expiry, 5 will. Meta, little-endian: client hash 8; with a sid block sid 8, packet id 2,
//! sequence 8 (a will: packet id 0, connection number); with expiry absolute ms 8. Headers are the properties without expiry and alias.

use crate::{
    ids::Offset,
    packet::{PacketId, Publish, Qos, Will},
    property::{Properties, PropertiesBuf, Property},
};
use std::{borrow::Cow, sync::Arc};

const RETAIN: u8 = 1 << 2;
const SID: u8 = 1 << 3;
const EXPIRY: u8 = 1 << 4;
const WILL: u8 = 1 << 5;

/// Index of a topic's partition among `partitions`: a topic never moves.
#[must_use]
pub fn partition_of(topic: &str, partitions: usize) -> usize {
    match partitions {
        0 | 1 => 0,
        n => (hash(topic.as_bytes()) % n as u64) as usize,
    }
}

/// xxh3-64, seed 0. Partitions and origins rest on it: it never changes.
#[must_use]
pub fn hash(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}

/// Who published: the will of which connection of which session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WillMark {
    pub sid: u64,
    pub connection: u64,
}

/// One exchange of QoS 2 of one session: its PUBLISH has this mark, and so has the note that ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Exchange {
    pub sid: u64,
    pub packet_id: PacketId,
    /// Counts the session's exchanges; never reused.
    pub seq: u64,
}

/// What a record says about a session, atomically with its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mark {
    Will(WillMark),
    Exchange(Exchange),
}

impl Mark {
    #[must_use]
    pub fn sid(&self) -> u64 {
        match self {
            Self::Will(w) => w.sid,
            Self::Exchange(e) => e.sid,
        }
    }
}

/// The end of an exchange, as a note in the partition of its message: the peer has released the packet id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    pub client_hash: u64,
    pub exchange: Exchange,
}

impl Release {
    #[must_use]
    pub fn meta(&self) -> Meta {
        let mut meta = Meta { flags: 0, bytes: [0; 34], len: 0 };
        meta.put(&self.client_hash.to_le_bytes());
        meta.mark(Mark::Exchange(self.exchange));
        meta
    }
}

/// A topic name: the packet's, or the one that its alias stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topic<'a> {
    Borrowed(&'a str),
    Shared(Arc<str>),
}

impl std::ops::Deref for Topic<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Borrowed(topic) => topic,
            Self::Shared(topic) => topic,
        }
    }
}

/// A message to append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    pub topic: Topic<'a>,
    pub qos: Qos,
    pub retain: bool,
    pub client_hash: u64,
    pub expires_ms: Option<u64>,
    pub mark: Option<Mark>,
    pub headers: Cow<'a, [u8]>,
    pub payload: &'a [u8],
}

/// Flags and meta of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    pub flags: u8,
    bytes: [u8; 34],
    len: usize,
}

impl Meta {
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn mark(&mut self, mark: Mark) {
        let (packet_id, seq) = match mark {
            Mark::Will(w) => (0, w.connection),
            Mark::Exchange(e) => (e.packet_id.get(), e.seq),
        };
        self.flags |= if matches!(mark, Mark::Will(_)) { SID | WILL } else { SID };
        self.put(&mark.sid().to_le_bytes());
        self.put(&packet_id.to_le_bytes());
        self.put(&seq.to_le_bytes());
    }
}

/// Properties without expiry and topic alias, and the expiry: borrowed where there is nothing to leave out.
#[inline]
fn headers(properties: Properties<'_>) -> (Cow<'_, [u8]>, Option<u32>) {
    if properties.is_empty() { (Cow::Borrowed(properties.raw()), None) } else { headers_of_some(properties) }
}

fn headers_of_some(properties: Properties<'_>) -> (Cow<'_, [u8]>, Option<u32>) {
    let left_out =
        |p: &Property<'_>| matches!(p, Property::MessageExpiryInterval(_) | Property::TopicAlias(_) | Property::WillDelayInterval(_));
    if !properties.iter().any(|p| left_out(&p)) {
        return (Cow::Borrowed(properties.raw()), None);
    }
    let kept: PropertiesBuf = properties.iter().filter(|p| !left_out(p)).collect();
    let expiry = properties.iter().find_map(|p| if let Property::MessageExpiryInterval(s) = p { Some(s) } else { None });
    (Cow::Owned(kept.as_properties().raw().to_vec()), expiry)
}

impl<'a> Message<'a> {
    #[must_use]
    #[inline]
    pub fn of_publish(p: &Publish<'a>, topic: Topic<'a>, mark: Option<Mark>, client_hash: u64, steady_ms: u64) -> Self {
        let (headers, expiry) = headers(p.properties);
        let expires_ms = expiry.map(|s| steady_ms + u64::from(s) * 1000);
        Self { topic, qos: p.qos, retain: p.retain, client_hash, expires_ms, mark, headers, payload: p.payload }
    }

    #[must_use]
    pub fn of_will(w: &Will<'a>, mark: WillMark, client_hash: u64, steady_ms: u64) -> Self {
        let (headers, expiry) = headers(w.properties);
        let expires_ms = expiry.map(|s| steady_ms + u64::from(s) * 1000);
        let mark = Some(Mark::Will(mark));
        Self { topic: Topic::Borrowed(w.topic), qos: w.qos, retain: w.retain, client_hash, expires_ms, mark, headers, payload: w.payload }
    }

    #[must_use]
    pub fn meta(&self) -> Meta {
        let mut meta = Meta { flags: self.qos as u8 | if self.retain { RETAIN } else { 0 }, bytes: [0; 34], len: 0 };
        meta.put(&self.client_hash.to_le_bytes());
        if let Some(mark) = self.mark {
            meta.mark(mark);
        }
        if let Some(ms) = self.expires_ms {
            meta.flags |= EXPIRY;
            meta.put(&ms.to_le_bytes());
        }
        meta
    }
}

/// Client hash, mark, and what follows.
fn parse_meta(flags: u8, meta: &[u8]) -> Option<(u64, Option<Mark>, &[u8])> {
    let word = |b: &[u8; 8]| u64::from_le_bytes(*b);
    let (hash, meta) = meta.split_first_chunk::<8>()?;
    if flags & SID == 0 {
        return Some((word(hash), None, meta));
    }
    let (sid, rest) = meta.split_first_chunk::<8>()?;
    let (id, rest) = rest.split_first_chunk::<2>()?;
    let (seq, rest) = rest.split_first_chunk::<8>()?;
    let (sid, seq) = (word(sid), word(seq));
    let mark = if flags & WILL != 0 {
        Mark::Will(WillMark { sid, connection: seq })
    } else {
        Mark::Exchange(Exchange { sid, packet_id: PacketId::new(u16::from_le_bytes(*id))?, seq })
    };
    Some((word(hash), Some(mark), rest))
}

/// The exchange that a note ends; `None`: not a note of this format.
#[must_use]
pub fn parse_release(flags: u8, meta: &[u8]) -> Option<Exchange> {
    match parse_meta(flags, meta)? {
        (_, Some(Mark::Exchange(exchange)), _) => Some(exchange),
        _ => None,
    }
}

/// Does a message with these flags replace what its topic retains?
#[must_use]
pub fn is_retained(flags: u8) -> bool {
    flags & RETAIN != 0
}

/// A message as read from the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored<'a> {
    pub offset: Offset,
    /// When it was written, ms since 1970.
    pub time_ms: u64,
    pub qos: Qos,
    pub retain: bool,
    pub client_hash: u64,
    pub mark: Option<Mark>,
    pub expires_ms: Option<u64>,
    /// UTF-8, as it was when it was published.
    pub topic: &'a [u8],
    pub headers: Properties<'a>,
    pub payload: &'a [u8],
}

impl<'a> Stored<'a> {
    /// `None`: not a message of this format.
    #[must_use]
    pub fn parse(
        offset: Offset,
        time_ms: u64,
        flags: u8,
        meta: &[u8],
        topic: &'a [u8],
        headers: &'a [u8],
        payload: &'a [u8],
    ) -> Option<Self> {
        let (client_hash, mark, meta) = parse_meta(flags, meta)?;
        let expires_ms = if flags & EXPIRY != 0 { Some(u64::from_le_bytes(*meta.first_chunk()?)) } else { None };
        Some(Self {
            offset,
            time_ms,
            qos: Qos::from_bits(flags & 3)?,
            retain: is_retained(flags),
            client_hash,
            mark,
            expires_ms,
            topic,
            headers: Properties::from_stored(headers),
            payload,
        })
    }

    /// The same for whoever looks after messages that a group's members did not acknowledge, with why and where it was: `$dead/GROUP/TOPIC`.
    #[must_use]
    pub fn dead_letter(&self, group: &str, deliveries: u32, position: &str) -> Message<'a> {
        let topic = String::from_utf8_lossy(self.topic);
        let mut name = format!("$dead/{group}/{topic}");
        if name.len() > crate::session::KEY_BYTES_MAX {
            name = format!("$dead/{group}");
        }
        let mut headers: PropertiesBuf = self.headers.iter().collect();
        headers
            .push(Property::UserProperty(("reason", "max_deliveries")))
            .push(Property::UserProperty(("deliveries", &deliveries.to_string())))
            .push(Property::UserProperty(("position", position)));
        Message {
            topic: Topic::Shared(name.into()),
            qos: self.qos,
            retain: false,
            client_hash: self.client_hash,
            expires_ms: self.expires_ms,
            mark: None,
            headers: Cow::Owned(headers.as_properties().raw().to_vec()),
            payload: self.payload,
        }
    }

    #[must_use]
    pub fn is_expired(&self, steady_ms: u64) -> bool {
        self.expires_ms.is_some_and(|at| at <= steady_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_names_its_exchange() {
        let exchange = Exchange { sid: 1 << 40 | 3, packet_id: PacketId::MAX, seq: 9 };
        let meta = Release { client_hash: 7, exchange }.meta();
        assert_eq!(parse_release(meta.flags, meta.bytes()), Some(exchange));
        for cut in 0..meta.bytes().len() {
            assert_eq!(parse_release(meta.flags, &meta.bytes()[..cut]), None);
        }
    }

    #[test]
    fn what_goes_in_comes_out() {
        let properties: PropertiesBuf =
            [Property::ContentType("t"), Property::MessageExpiryInterval(5), Property::UserProperty(("a", "b"))].into_iter().collect();
        let publish = Publish {
            dup: false,
            qos: Qos::AtLeastOnce,
            retain: true,
            topic: "a/b",
            packet_id: None,
            properties: properties.as_properties(),
            payload: b"x",
        };
        let message = Message::of_publish(&publish, Topic::Borrowed(publish.topic), None, 7, 1_000);
        let (meta, kept) = (message.meta(), [Property::ContentType("t"), Property::UserProperty(("a", "b"))]);
        let stored = Stored::parse(Offset(9), 2, meta.flags, meta.bytes(), b"a/b", &message.headers, b"x").expect("whole");
        assert_eq!((stored.qos, stored.retain, stored.client_hash, stored.expires_ms), (Qos::AtLeastOnce, true, 7, Some(6_000)));
        assert!(stored.headers.iter().eq(kept) && stored.mark.is_none());
        assert!(stored.is_expired(6_000) && !stored.is_expired(5_999));

        let will = Will { qos: Qos::AtMostOnce, retain: false, properties: properties.as_properties(), topic: "w", payload: b"" };
        let mark = WillMark { sid: 1 << 40 | 3, connection: 4 };
        let message = Message::of_will(&will, mark, 7, 0);
        let meta = message.meta();
        assert_eq!(meta.flags, SID | EXPIRY | WILL);
        let stored = Stored::parse(Offset(9), 2, meta.flags, meta.bytes(), b"w", &message.headers, b"").expect("whole");
        assert_eq!((stored.mark, stored.expires_ms), (Some(Mark::Will(mark)), Some(5_000)));
        for cut in 0..meta.bytes().len() {
            assert!(Stored::parse(Offset(9), 2, meta.flags, &meta.bytes()[..cut], b"w", &[], b"").is_none());
        }
    }
}
