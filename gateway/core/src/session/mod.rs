//! One MQTT session: what its packets, its records and its receipts make it do.
//!
//! ```text
//!   connect ──▶ value put ──▶ CONNACK ──▶ packets and records ──▶ end ──▶ will appended ──▶ value put or deleted ──▶ handed over
//! ```
//!
//! Invariant: nothing that acknowledges leaves before what it acknowledges is durable (`inbound`), acknowledgements leave in order of receipt, and what is
//! delivered can be delivered again until the peer has acknowledged it (`outbound`).
//! Must not know: sockets, clocks, the log. The shell carries out `Action`s, answers with `Event`s, and gives records to `deliver`.

mod aliases;
pub mod begin;
pub mod connect;
mod copies;
pub mod describe;
mod end;
mod exchanges;
mod held;
mod inbound;
mod outbound;
mod position;
mod subscriptions;
#[cfg(test)]
mod transcript;
pub mod value;

pub use connect::{ConnectRequest, Refusal, refuse};
pub use exchanges::Fact;
pub use outbound::Delivery;
pub use value::OwnedWill;

use crate::{
    codec::{disconnect_reason, encode},
    fanout::Reader,
    ids::{Now, Offset, PartitionId, Receipt, Source, SubscribeId, Watermark},
    limits::{Fleet, Limit, Limits, Unbounded},
    message::{Message, Release, hash, partition_of},
    packet::{Ack, Disconnect, Packet, PacketId, ReasonCode, Version},
    property::Properties,
    topic::is_system,
};
use begin::Begin;
use exchanges::Exchanges;
use held::Held;
use inbound::{Inbound, Reply};
use outbound::Outbound;
use std::{
    collections::VecDeque,
    num::NonZeroU32,
    ops::Range,
    sync::{Arc, LazyLock},
};
use subscriptions::Subscriptions;

/// Acknowledgements that wait for the disk, and open exchanges of QoS 2. Beyond it the connection is not read; CONNACK of
/// version 5 says it (Receive Maximum).
pub const RECEIVE_MAXIMUM: u16 = 1_024;
/// Outbound messages of QoS 1 and 2 on the way to one client: each costs 32 bytes, and the client may set less.
pub const INFLIGHT_MAX: u16 = 1_024;
/// Topics, filters and client ids are keys of the log, of 65,535 bytes at most, some with a prefix.
pub const KEY_BYTES_MAX: usize = 65_000;
/// A packet becomes one record, and a record must fit several times in a segment.
pub const PACKET_BYTES_MAX: usize = 8 << 20;
/// How long deliveries and acknowledgements may stay out of the stored value: after a crash they repeat.
pub const CHECKPOINT_MS: u64 = 250;

/// A peer's fault: its connection is closed with this reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    pub reason: ReasonCode,
    /// The statement of the specification that it broke.
    pub statement: &'static str,
}

impl Violation {
    const fn new(reason: ReasonCode, statement: &'static str) -> Self {
        Self { reason, statement }
    }
}

impl From<crate::codec::DecodeError> for Violation {
    fn from(e: crate::codec::DecodeError) -> Self {
        Self::new(e.reason, e.statement)
    }
}

/// What happens to a session, beside packets and records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// So many of the notes and messages with QoS 1 and 2 that `packet` gave, in order, got this receipt.
    Submitted(PartitionId, Receipt, u32),
    /// The put or delete that was asked for got this receipt.
    PutSubmitted(Receipt),
    /// The will got this receipt.
    WillSubmitted(PartitionId, Receipt),
    Appended(Source, Watermark),
    /// The tail of this partition offers what matches the new filter from this offset on; or what is to be read for it begins here. A filter that
    /// begins in the past is told both, in any order.
    Started(SubscribeId, PartitionId, Offset),
    /// The group of a shared filter has the session as a member.
    Shared(SubscribeId),
    /// One part of a retained page ended: go on after this topic of this partition, or it was the last.
    PageEnded(Option<Box<str>>),
    /// What is stored must say all that is known; `marked`: the log says something of the session that its value may not say yet.
    Checkpoint {
        marked: bool,
    },
    /// These records were gone, by retention or damage, before the session's reader had come to them.
    Lost(PartitionId, Range<Offset>),
    Timeout,
    Closed(Cause),
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The peer said goodbye; with reason 0x04 its will is still published.
    Disconnect {
        will: bool,
    },
    /// The socket ended.
    Socket,
    /// It said nothing for one and a half times its keep-alive [MQTT-3.1.2-22].
    KeepAlive,
    Violation(Violation),
    /// Another connection has the client id [MQTT-3.1.4-3].
    TakenOver,
    /// Somebody who runs the gateway wants it gone.
    Dismissed,
    /// The gateway stops: as in a crash, but in order.
    Drain,
    /// The log takes nothing more.
    LogFailed,
}

impl Cause {
    /// In one word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Disconnect { .. } => "disconnect",
            Self::Socket => "socket",
            Self::KeepAlive => "keep_alive",
            Self::Violation(_) => "violation",
            Self::TakenOver => "taken_over",
            Self::Dismissed => "dismissed",
            Self::Drain => "stopping",
            Self::LogFailed => "log_failed",
        }
    }

    /// What a DISCONNECT says, if one is sent.
    #[must_use]
    pub fn reason(self) -> Option<ReasonCode> {
        match self {
            Self::Disconnect { .. } | Self::Socket => None,
            Self::KeepAlive => Some(ReasonCode::KEEP_ALIVE_TIMEOUT),
            Self::Violation(v) => Some(disconnect_reason(v.reason)),
            Self::TakenOver => Some(ReasonCode::SESSION_TAKEN_OVER),
            Self::Dismissed => Some(ReasonCode::ADMINISTRATIVE_ACTION),
            Self::Drain => Some(ReasonCode::SERVER_SHUTTING_DOWN),
            Self::LogFailed => Some(ReasonCode::IMPLEMENTATION_SPECIFIC),
        }
    }
}

/// A record that a packet asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Append<'a> {
    Message(Message<'a>),
    /// A note in this partition.
    Release(PartitionId, Release),
}

/// What the shell is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Put `Session::value` under the session's key.
    PutValue,
    DeleteValue,
    /// Append `Session::will_message`.
    AppendWill,
    /// Offer what matches this filter; answer with `Started` per partition.
    Subscribe {
        id: SubscribeId,
        filter: Box<str>,
        /// In this life; one of an earlier life was stored.
        new: bool,
        /// Find this place in each partition, and answer with `Started` a second time.
        begin: Option<Begin>,
    },
    Unsubscribe(Box<str>),
    /// Become a member of the group of this shared filter; answer with `Shared`.
    Share {
        id: SubscribeId,
        filter: Box<str>,
        /// As in `Subscribe`.
        new: bool,
    },
    /// The session of this id is a subscriber of the group no more.
    Unshare(Box<str>, u64),
    /// The record that the group gave is done with.
    Settle(Box<str>, PartitionId, Offset),
    /// Count that a limit was met.
    Refused(Limit),
    /// Close the socket once what was written is sent; the session goes on to its end.
    Close(Cause),
    /// The session has ended: whoever waits for the client id may have it.
    HandOver,
}

/// How far a session's end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Offline,
    Connected,
    /// Waits until its will, and what is open of QoS 2, is durable: whoever has the session next knows all of it.
    Ending,
    /// The same without a will: it is due at the next start.
    Draining,
    Ended,
}

/// Counted since the shell took them last, which is after every turn: 32 bits are plenty for
/// messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// QoS 0 messages that were not sent because the reader was behind.
    pub dropped_behind: u32,
    /// Messages larger than the client's maximum packet size.
    pub dropped_too_large: u32,
    pub dropped_expired: u32,
    /// Records of the log, matching or not, that retention or damage took before they were read, and messages on their way that it took.
    pub lost: u64,
    /// Publishes to topics that belong to the gateway.
    pub refused_topic: u32,
    /// By QoS.
    pub received: [u32; 3],
    pub sent: [u32; 3],
    /// Bytes of the payloads of those messages.
    pub received_payload: u64,
    pub sent_payload: u64,
    /// Packets to the client that are no PUBLISH.
    pub answers: u32,
}

#[derive(Debug)]
struct PartitionReader {
    id: PartitionId,
    stream: Arc<str>,
    /// Its number within the stream.
    number: u32,
    system: bool,
    reader: Reader,
    /// One past the last record that this connection appended.
    appended: Offset,
    /// The record there is sent in copies; the last that was sent is the one for this identifier.
    copied: Option<(Offset, NonZeroU32)>,
    /// The last record that matched was not sent, because it was late.
    dropping: bool,
}

/// Records that are lost for the client, which wants to know it and does not know it yet.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Lost {
    partition: PartitionId,
    range: Range<Offset>,
    /// The message in the window that says so: the client knows it when it acknowledges that.
    carrier: Option<u64>,
}

/// What a filter asks of the retained messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paging {
    pub filter: Box<str>,
    /// Which subscription with this filter: there may have been others.
    pub subscription: SubscribeId,
    /// The filter was subscribed to before: what was delivered already is sent again [MQTT-3.8.4-3].
    pub again: bool,
    /// Index of the partition.
    pub partition: usize,
    pub after: Option<Box<str>>,
}

/// A page that is being sent, or is next.
#[derive(Clone, Debug)]
struct BegunPage {
    paging: Paging,
    /// What was sent of the part that is being sent; 64 at most.
    sent: Vec<Offset>,
}

impl From<Paging> for BegunPage {
    fn from(paging: Paging) -> Self {
        Self { paging, sent: Vec::new() }
    }
}

#[derive(Debug)]
pub struct Session {
    client_id: Box<str>,
    client_hash: u64,
    sid: u64,
    version: Version,
    expiry_s: u32,
    /// The boot that saw it connected last.
    boot: u64,
    /// Counts its connections: marks wills.
    connection: u64,
    /// While offline: since when, ms since 1970.
    since_ms: u64,
    was_connected: bool,
    will: Option<Box<OwnedWill>>,
    subscriptions: Subscriptions,
    readers: Box<[PartitionReader]>,
    exchanges: Exchanges,
    outbound: Outbound,
    held: Held,
    pages: VecDeque<BegunPage>,
    /// The client wants to know where its messages went.
    position: bool,
    lost: Vec<Lost>,

    life: Life,
    /// The store has a value of this client id.
    in_store: bool,
    inbound: Inbound,
    aliases_in: aliases::Inbound,
    aliases_out: aliases::Outbound,
    actions: VecDeque<Action>,
    put_wanted: bool,
    /// Deliveries or acknowledgements moved what is stored, since then.
    moved: Option<u64>,
    connack_sent: bool,
    keep_alive_s: u16,
    heard_ms: u64,
    /// It is to be published before the session is handed over.
    will_owed: bool,
    will_receipt: Option<(PartitionId, Receipt)>,
    gave_up: bool,
    counts: Counts,
    /// Version 3.1.1 has no words for what the filters of a bridge are to have.
    is_bridge: bool,
    /// Messages under `$SYS` that it has said as a bridge.
    bridge_states: u8,
    limits: Arc<Limits>,
    fleet: Arc<dyn Fleet>,
}

/// Of sessions that nobody is connected to.
static DEFAULT_LIMITS: LazyLock<Arc<Limits>> = LazyLock::new(Arc::default);
static UNBOUNDED: LazyLock<Arc<dyn Fleet>> = LazyLock::new(|| Arc::new(Unbounded));

impl Session {
    /// A session that nobody has connected to yet.
    #[must_use]
    pub fn new(client_id: &str, sid: u64) -> Self {
        Self {
            client_id: client_id.into(),
            client_hash: hash(client_id.as_bytes()),
            sid,
            version: Version::V5,
            expiry_s: 0,
            boot: 0,
            connection: 0,
            since_ms: 0,
            was_connected: false,
            will: None,
            subscriptions: Subscriptions::default(),
            readers: Box::default(),
            exchanges: Exchanges::default(),
            outbound: Outbound::default(),
            held: Held::default(),
            pages: VecDeque::new(),
            position: false,
            lost: Vec::new(),
            life: Life::Offline,
            in_store: false,
            inbound: Inbound::default(),
            aliases_in: aliases::Inbound::default(),
            aliases_out: aliases::Outbound::default(),
            actions: VecDeque::new(),
            put_wanted: false,
            moved: None,
            connack_sent: false,
            keep_alive_s: 0,
            heard_ms: 0,
            will_owed: false,
            will_receipt: None,
            gave_up: false,
            counts: Counts::default(),
            bridge_states: 0,
            is_bridge: false,
            limits: DEFAULT_LIMITS.clone(),
            fleet: UNBOUNDED.clone(),
        }
    }

    #[must_use]
    pub fn client_id(&self) -> &str {
        &self.client_id
    }

    #[must_use]
    pub fn sid(&self) -> u64 {
        self.sid
    }

    /// Kept when the connection is gone: it outlives it, or its will does.
    #[must_use]
    pub fn is_stored(&self) -> bool {
        self.expiry_s > 0 || self.will.is_some()
    }

    /// It has a filter, shared or not.
    #[must_use]
    pub fn subscribes(&self) -> bool {
        self.subscriptions.len() > 0
    }

    #[must_use]
    pub fn has_will(&self) -> bool {
        self.will.is_some()
    }

    /// Takes packets: neither side has said goodbye.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.life == Life::Connected
    }

    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.life == Life::Ended
    }

    /// Filters of its own.
    #[must_use]
    pub fn filters_len(&self) -> usize {
        self.subscriptions.all.len()
    }

    /// The filters of a SUBSCRIBE do not all have their start yet.
    #[must_use]
    pub fn is_starting(&self) -> bool {
        self.inbound.is_starting()
    }

    /// The connection has appended records to the nth partition, the last of which ends at `end`.
    pub fn appended(&mut self, nth: usize, end: Offset) {
        if let Some(reader) = self.readers.get_mut(nth) {
            reader.appended = end;
        }
    }

    /// One past the last record that this connection appended to the nth partition: what it subscribes to now begins there or later.
    #[must_use]
    pub fn appended_end(&self, nth: usize) -> Offset {
        self.readers.get(nth).map_or(Offset(0), |r| r.appended)
    }

    /// Something was heard from the client.
    pub fn heard(&mut self, now: Now) {
        self.heard_ms = now.monotonic_ms;
    }

    /// Partitions for messages.
    fn homes(&self) -> usize {
        self.readers.iter().filter(|r| !r.system).count()
    }

    /// The partition of a topic.
    fn home_of(&self, topic: &str) -> Option<PartitionId> {
        let system = is_system(topic);
        let of_messages = || self.readers.get(partition_of(topic, self.homes()));
        if system { self.readers.iter().find(|r| r.system) } else { of_messages() }.map(|r| r.id)
    }

    pub fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// Is there room for another packet? Many clients ignore the Receive Maximum, so backpressure is not
    /// to read, whatever their version.
    #[must_use]
    pub fn wants_packets(&self) -> bool {
        self.life == Life::Connected && self.inbound.waiting() < usize::from(RECEIVE_MAXIMUM)
    }

    /// When `Event::Timeout` is due, in `Now::monotonic_ms`.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        let keep_alive = self.keep_alive_deadline().filter(|_| self.life == Life::Connected);
        let checkpoint = self.moved.filter(|_| self.life == Life::Connected).map(|at| at + CHECKPOINT_MS);
        keep_alive.into_iter().chain(checkpoint).min()
    }

    /// When it counts as gone, if it says nothing: after one and a half times its keep-alive
    /// [MQTT-3.1.2-22].
    fn keep_alive_deadline(&self) -> Option<u64> {
        (self.keep_alive_s > 0).then(|| self.heard_ms + u64::from(self.keep_alive_s) * 1_500)
    }

    pub fn poll_action(&mut self) -> Option<Action> {
        if std::mem::take(&mut self.put_wanted) || self.held.wants_put() {
            self.moved = None;
            if !self.is_stored() {
                self.in_store = false;
                return Some(Action::DeleteValue);
            }
            self.in_store = true;
            return Some(Action::PutValue);
        }
        self.actions.pop_front()
    }

    /// Takes a packet; a record may have to be appended. Replies that need no waiting go to `out`.
    pub fn packet<'a>(&mut self, now: Now, packet: &Packet<'a>, out: &mut Vec<u8>) -> Result<Option<Append<'a>>, Violation> {
        self.heard_ms = now.monotonic_ms;
        match packet {
            Packet::Publish(p) => self.publish(now, p, out),
            Packet::PubAck(a) => self.puback(now, a.packet_id).map(|()| None),
            Packet::PubRec(a) => self.pubrec(now, a, out).map(|()| None),
            Packet::PubComp(a) => self.pubcomp(now, a.packet_id).map(|()| None),
            Packet::PubRel(a) => {
                let note = self.end_exchange(a.packet_id)?;
                self.release(out);
                Ok(note)
            }
            Packet::Subscribe(s) => {
                self.subscribe(now, s)?;
                self.release(out);
                Ok(None)
            }
            Packet::Unsubscribe(u) => {
                self.unsubscribe(u)?;
                self.release(out);
                Ok(None)
            }
            Packet::PingReq => {
                self.reply(&Packet::PingResp, out);
                Ok(None)
            }
            Packet::Disconnect(d) => self.disconnect(now, d, out).map(|()| None),
            Packet::Connect(_) => Err(Violation::new(ReasonCode::PROTOCOL_ERROR, "MQTT-3.1.0-2: a second CONNECT")),
            Packet::Auth(_) => Err(Violation::new(ReasonCode::PROTOCOL_ERROR, "MQTT-4.12.0-6: AUTH without an authentication method")),
            Packet::ConnAck(_) | Packet::SubAck(_) | Packet::UnsubAck(_) | Packet::PingResp => {
                Err(Violation::new(ReasonCode::PROTOCOL_ERROR, "MQTT 5, 2.1.2: a packet that only a server sends"))
            }
        }
    }

    fn reply(&mut self, packet: &Packet<'_>, out: &mut Vec<u8>) {
        self.counts.answers += 1;
        encode(packet, self.version, out);
    }

    /// Something that is stored lazily has moved.
    fn touch(&mut self, now: Now) {
        if self.is_stored() {
            self.moved.get_or_insert(now.monotonic_ms);
        }
    }

    fn disconnect(&mut self, now: Now, d: &Disconnect<'_>, out: &mut Vec<u8>) -> Result<(), Violation> {
        if let Some(expiry_s) = connect::session_expiry(d.properties) {
            if self.expiry_s == 0 && expiry_s != 0 {
                return Err(Violation::new(ReasonCode::PROTOCOL_ERROR, "MQTT-3.14.2-2: session expiry set in DISCONNECT only"));
            }
            self.expiry_s = expiry_s.min(self.limits.session_expiry_s);
        }
        let will = d.reason == ReasonCode::DISCONNECT_WITH_WILL;
        self.close(now, Cause::Disconnect { will }, out);
        self.settle();
        Ok(())
    }

    pub fn handle(&mut self, now: Now, event: Event, out: &mut Vec<u8>) {
        match event {
            Event::Submitted(p, receipt, n) => self.inbound.submitted(p, receipt, n, &mut self.exchanges),
            Event::PutSubmitted(receipt) => {
                self.inbound.put_submitted(receipt);
                self.held.put_submitted(receipt);
            }
            Event::WillSubmitted(p, receipt) => self.will_receipt = Some((p, receipt)),
            Event::Appended(source, Watermark::Appended(receipt)) => {
                self.inbound.appended(source, receipt);
                if source == Source::State {
                    self.held.appended(receipt, out);
                }
                self.will_is_durable(source, receipt);
            }
            Event::Appended(source, Watermark::Failed) => self.log_failed(now, source, out),
            Event::Started(id, p, at) => self.started(id, p, at),
            Event::Shared(id) => self.shared(id),
            Event::PageEnded(after) => self.page_ended(after),
            Event::Checkpoint { marked } => {
                let has_passed = self.readers.iter().any(|r| r.reader.is_unsaved());
                self.put_wanted |= self.is_stored() && (marked || has_passed || self.moved.is_some());
            }
            Event::Lost(p, range) => {
                self.counts.lost += range.end.0 - range.start.0;
                self.lose(p, range, false);
                self.touch(now);
            }
            Event::Timeout => self.timeout(now, out),
            Event::Closed(cause) => self.close(now, cause, out),
        }
        self.release(out);
        self.settle();
    }

    fn timeout(&mut self, now: Now, out: &mut Vec<u8>) {
        if self.keep_alive_deadline().is_some_and(|at| now.monotonic_ms >= at) {
            self.close(now, Cause::KeepAlive, out);
        } else if self.moved.is_some_and(|at| now.monotonic_ms >= at + CHECKPOINT_MS) {
            self.put_wanted = true;
        }
    }

    /// Sends acknowledgements whose turn it is.
    fn release(&mut self, out: &mut Vec<u8>) {
        if self.life != Life::Connected {
            return;
        }
        while let Some((place, ack)) = self.inbound.pop_ready() {
            match ack {
                Reply::Publish(id, reason) => {
                    let position = self.position_of(place);
                    self.reply(&Packet::PubAck(Ack { packet_id: id, reason, properties: position.as_properties() }), out);
                }
                Reply::Received(id, reason) => self.reply(&Packet::PubRec(Ack { reason, ..bare(id) }), out),
                Reply::Completed(id, place) => {
                    self.exchanges.complete(id);
                    let position = self.position_of(place);
                    self.reply(&Packet::PubComp(Ack { properties: position.as_properties(), ..bare(id) }), out);
                }
                Reply::Connect(bytes) => {
                    self.connack_sent = true;
                    self.counts.answers += 1;
                    out.extend_from_slice(&bytes);
                    // Who only subscribes needs none from here on.
                    self.inbound.shrink();
                }
                Reply::Subscribe(s) => {
                    self.counts.answers += 1;
                    out.extend_from_slice(&s.bytes);
                    self.pages.extend(s.retained.into_iter().map(BegunPage::from));
                }
                Reply::Unsubscribe(bytes) => {
                    self.counts.answers += 1;
                    out.extend_from_slice(&bytes);
                }
            }
        }
    }
}

fn bare(packet_id: PacketId) -> Ack<'static> {
    Ack { packet_id, reason: ReasonCode::SUCCESS, properties: Properties::default() }
}
