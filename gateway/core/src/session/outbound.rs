//! What goes out: the window of messages with QoS 1 and 2, their packet ids, and how a record becomes a PUBLISH.
//!
//! Invariant: an entry leaves the window only by the peer's acknowledgement; ids count from 1 and skip those in use; the window is
//! in the order of first sending [MQTT-4.6.0-6]. Of a session that outlives its connection, a QoS 2 PUBLISH leaves only when the value that
//! says *sent* is durable, and a PUBREL only when the one that says *released* is: else a crash delivers twice, or forgets an id that the peer
//! holds.
//! Must not know: where records come from.

use super::{Action, BegunPage, INFLIGHT_MAX, Paging, Session, Violation, bare, copies::Copies, subscriptions::Granted};
use crate::{
    codec::publish_head,
    fanout::{Inbox, Step},
    ids::{Now, Offset, PartitionId, SubscribeId},
    message::Stored,
    packet::{Ack, Packet, PacketId, Qos, ReasonCode, Version},
    property::{Properties, PropertiesBuf, Property},
};
use std::{collections::VecDeque, num::NonZeroU32};

/// Packet ids in a round [MQTT-2.2.1-3].
const IDS: u64 = 65_535;
/// Of a PUBLISH beside its topic, properties and payload: head, three lengths, packet id, topic alias.
const PUBLISH_BYTES_MAX: usize = 5 + 2 + 2 + 4 + 3;

/// How far the exchange of one message has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// QoS 1: waits for PUBACK.
    Unacknowledged,
    /// QoS 2: waits for PUBREC.
    Sent,
    /// QoS 2: waits for PUBCOMP; the record is needed no more.
    Released,
}

impl Stage {
    fn qos(self) -> Qos {
        if self == Self::Unacknowledged { Qos::AtLeastOnce } else { Qos::ExactlyOnce }
    }
}

/// One message on its way to the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Inflight {
    /// Counts ids given out, skipped ones too: the id is this modulo the round, and the window is sorted by it.
    pub ordinal: u64,
    pub partition: PartitionId,
    pub offset: Offset,
    pub stage: Stage,
    pub why: Why,
}

/// Why a record is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    Subscribed,
    /// The copy for the subscriptions with this identifier.
    Copy(u32),
    /// From the retained messages, because of a subscription.
    Retained,
    /// Given by the group of this subscription, which is told when it is done with.
    Shared(SubscribeId),
}

impl Why {
    pub(super) fn shared(self) -> Option<SubscribeId> {
        if let Self::Shared(id) = self { Some(id) } else { None }
    }
}

fn id_of(ordinal: u64) -> PacketId {
    PacketId::MIN.saturating_add((ordinal % IDS) as u16)
}

#[derive(Debug)]
pub(super) struct Outbound {
    pub window: VecDeque<Inflight>,
    pub next_ordinal: u64,
    /// The client's Receive Maximum, or ours if that is less.
    pub receive_maximum: u16,
    /// The client's Maximum Packet Size.
    pub maximum_packet_size: u32,
    /// Entries of the window that were sent in an earlier life only, and not yet again in this one.
    pub resend: std::ops::Range<usize>,
    /// Room for what a record is granted, of who is sent messages.
    granted: Option<Box<Granted>>,
    /// Room for the properties of what it is sent.
    own: Option<Box<PropertiesBuf>>,
}

impl Default for Outbound {
    fn default() -> Self {
        Self {
            window: VecDeque::new(),
            next_ordinal: 0,
            receive_maximum: INFLIGHT_MAX,
            maximum_packet_size: u32::MAX,
            resend: 0..0,
            granted: None,
            own: None,
        }
    }
}

impl Outbound {
    pub fn window_max(&self) -> usize {
        self.receive_maximum.into()
    }

    pub fn packet_bytes_max(&self) -> usize {
        self.maximum_packet_size as usize
    }

    /// Takes the next free id.
    fn take_id(&mut self) -> u64 {
        loop {
            let ordinal = self.next_ordinal;
            self.next_ordinal += 1;
            // Ids of the last round are free unless the oldest in the window is as old as that.
            let old = self.window.front().is_some_and(|f| ordinal - f.ordinal >= IDS);
            if !old || !self.window.iter().any(|f| f.ordinal % IDS == ordinal % IDS) {
                return ordinal;
            }
        }
    }

    fn find(&self, id: PacketId) -> Option<usize> {
        match self.window.front() {
            Some(f) if id_of(f.ordinal) == id => Some(0),
            _ => self.window.iter().position(|f| id_of(f.ordinal) == id),
        }
    }

    fn remove(&mut self, i: usize) {
        self.window.remove(i);
        self.resend.start -= usize::from(i < self.resend.start);
        self.resend.end -= usize::from(i < self.resend.end);
    }

    /// The exchange of `id`, which must be at `stage`, is over. `None`: there is none, as after an acknowledgement that came twice.
    fn finish(&mut self, id: PacketId, stage: Stage) -> Result<Option<Inflight>, Violation> {
        let Some(i) = self.find(id) else { return Ok(None) };
        if self.window.get(i).is_some_and(|f| f.stage != stage) {
            return Err(Violation::new(
                ReasonCode::PROTOCOL_ERROR,
                "MQTT-4.3.3-1: an acknowledgement that is not the next step of its message",
            ));
        }
        let entry = self.window.get(i).copied();
        self.remove(i);
        Ok(entry)
    }

    /// Something was sent in an earlier life and not yet again in this one.
    fn is_resending(&self) -> bool {
        !self.resend.is_empty()
    }

    fn has_room(&self) -> bool {
        self.window.len() < self.window_max()
    }
}

/// What became of a record that was given to `deliver`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Sent, or it did not match: give the next.
    Done,
    /// A copy was sent, and another is to follow: give it again.
    More,
    /// Give it again when there is room.
    NoRoom,
}

impl Session {
    pub(super) fn puback(&mut self, now: Now, id: PacketId) -> Result<(), Violation> {
        match self.outbound.finish(id, Stage::Unacknowledged)? {
            Some(Inflight { why: Why::Shared(s), partition, offset, ordinal, .. }) => {
                self.knows(ordinal);
                self.settle_shared(s, partition, offset);
            }
            Some(f) => {
                self.knows(f.ordinal);
                self.touch(now);
            }
            None => {}
        }
        Ok(())
    }

    pub(super) fn pubcomp(&mut self, now: Now, id: PacketId) -> Result<(), Violation> {
        if self.outbound.finish(id, Stage::Released)?.is_some() {
            self.touch(now);
        }
        Ok(())
    }

    /// The peer has the message, or will not have it [MQTT-4.3.3-4]; whoever asks is told to release, also what nobody knows.
    pub(super) fn pubrec(&mut self, now: Now, a: &Ack<'_>, out: &mut Vec<u8>) -> Result<(), Violation> {
        let refused = a.reason.0 >= 0x80;
        let Some(f) = self.outbound.find(a.packet_id).and_then(|i| self.outbound.window.get_mut(i)) else {
            if !refused {
                self.pubrel(a.packet_id, false, out);
            }
            return Ok(());
        };
        match f.stage {
            Stage::Sent if refused => {
                self.outbound.finish(a.packet_id, Stage::Sent)?;
                self.touch(now);
            }
            Stage::Sent => {
                f.stage = Stage::Released;
                let ordinal = f.ordinal;
                self.knows(ordinal);
                self.pubrel(a.packet_id, true, out);
            }
            Stage::Released => self.pubrel(a.packet_id, false, out),
            Stage::Unacknowledged => {
                return Err(Violation::new(ReasonCode::PROTOCOL_ERROR, "MQTT-4.3.2-2: a PUBREC for a message with QoS 1"));
            }
        }
        Ok(())
    }

    fn pubrel(&mut self, id: PacketId, news: bool, out: &mut Vec<u8>) {
        self.emit(news, out, |s, out| s.reply(&Packet::PubRel(bare(id)), out));
    }

    /// Writes to `out`, or behind what waits for the value: when the value has news that must be durable first, or others wait already.
    fn emit<T>(&mut self, news: bool, out: &mut Vec<u8>, write: impl FnOnce(&mut Self, &mut Vec<u8>) -> T) -> T {
        // What dies with the connection needs no value.
        if self.expiry_s == 0 || !news && self.held.is_empty() {
            return write(self, out);
        }
        let mut held = std::mem::take(&mut self.held.bytes);
        let result = write(self, &mut held);
        self.held.bytes = held;
        result
    }

    /// May records be given now? Not before the CONNACK, not between a SUBSCRIBE and its SUBACK.
    #[must_use]
    pub fn may_deliver(&self) -> bool {
        self.connack_sent && self.life == super::Life::Connected && self.inbound.subscribing == 0
    }

    #[must_use]
    pub fn partitions(&self) -> usize {
        self.readers.len()
    }

    /// Some filter of the session reads the `nth` partition: its reader moves.
    #[must_use]
    pub fn reads(&self, nth: usize) -> bool {
        self.readers.get(nth).is_some_and(|r| self.subscriptions.read(r.system))
    }

    /// Decides what to read next of the `nth` partition.
    pub fn step(&mut self, nth: usize, inbox: &mut Inbox, durable: Offset, recent: Offset) -> Step {
        if !self.reads(nth) {
            return Step::Wait;
        }
        self.readers[nth].reader.step(inbox, durable, recent)
    }

    #[must_use]
    pub fn reader(&mut self, nth: usize) -> &mut crate::fanout::Reader {
        &mut self.readers[nth].reader
    }

    /// Gives a record of the `nth` partition, in offset order. `next` moves with it.
    pub fn deliver(&mut self, now: Now, nth: usize, r: &Stored<'_>, out: &mut Vec<u8>) -> Delivery {
        let (partition, reader) = (self.readers[nth].id, &self.readers[nth].reader);
        if r.offset < reader.next {
            return Delivery::Done;
        }
        let mut granted = self.outbound.granted.take().unwrap_or_default();
        // What was begun in copies was judged with the first of them: each looks at its own filters.
        let is_begun = self.copied(nth, r).is_some();
        let is_behind = reader.is_late(r.offset);
        let matches = is_begun || self.subscriptions.grant(partition, r, self.client_hash, &mut granted);
        let late = !is_begun && granted.qos == Qos::AtMostOnce && is_behind;
        let delivery = if !matches {
            Delivery::Done
        } else if r.is_expired(now.steady_ms) {
            self.counts.dropped_expired += 1;
            Delivery::Done
        } else if late {
            self.counts.dropped_behind += 1;
            let dropping = std::mem::replace(&mut self.readers[nth].dropping, true);
            self.lose(partition, r.offset..Offset(r.offset.0 + 1), dropping);
            Delivery::Done
        } else {
            let sent = match self.next_copy(nth, r, &mut granted) {
                Copies::One => self.send(now, partition, r, &granted, granted.retain, Why::Subscribed, out),
                Copies::Of { identifier, is_last } => {
                    let sent = self.send(now, partition, r, &granted, granted.retain, Why::Copy(identifier), out);
                    if sent == Delivery::Done && !is_last { Delivery::More } else { sent }
                }
                Copies::Sent => Delivery::Done,
            };
            self.readers[nth].dropping &= sent == Delivery::NoRoom;
            sent
        };
        match delivery {
            Delivery::More => self.readers[nth].copied = granted.identifiers.first().and_then(|n| Some((r.offset, NonZeroU32::new(*n)?))),
            Delivery::Done => self.readers[nth].copied = None,
            Delivery::NoRoom => {}
        }
        self.outbound.granted = Some(granted);
        if delivery == Delivery::Done {
            self.readers[nth].reader.sent(Offset(r.offset.0 + 1));
        }
        if matches && delivery != Delivery::NoRoom {
            self.touch(now);
        }
        delivery
    }

    /// How many records a group may have on the way to this session.
    #[must_use]
    pub fn credit(&self) -> usize {
        self.outbound.window_max().min(crate::group::CREDIT_MAX)
    }

    /// What it reads next in the nth partition while it is behind there; `None`: it is live, or subscribes to nothing in it.
    #[must_use]
    pub fn behind(&self, nth: usize) -> Option<Offset> {
        let reader = self.readers.get(nth).filter(|r| self.subscriptions.read(r.system))?;
        (!reader.reader.is_live()).then_some(reader.reader.next)
    }

    /// The nth tail has offered everything before `offered`: the session has come so far, but for what is on its way to it.
    pub fn pass(&mut self, nth: usize, inbox: &Inbox, offered: Offset) {
        if let Some(r) = self.readers.get_mut(nth).filter(|r| self.subscriptions.read(r.system)) {
            r.reader.pass(inbox, offered);
        }
    }

    /// Bytes that wait for its value to be durable, and are sent then.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.held.bytes.len()
    }

    /// Would `deliver` send this record of the nth partition, if there were room?
    pub fn wants(&mut self, now: Now, nth: usize, r: &Stored<'_>) -> bool {
        let mut granted = self.outbound.granted.take().unwrap_or_default();
        let reader = &self.readers[nth];
        let wants = r.offset >= reader.reader.next
            && self.subscriptions.grant(reader.id, r, self.client_hash, &mut granted)
            && !r.is_expired(now.steady_ms)
            && r.payload.len() < self.outbound.packet_bytes_max();
        self.outbound.granted = Some(granted);
        wants
    }

    /// Its value is on its way to the store.
    pub fn saved(&mut self) {
        self.readers.iter_mut().for_each(|r| r.reader.saved());
    }

    /// Partitions that it has a place in.
    pub fn partitions_read(&self) -> impl Iterator<Item = PartitionId> {
        self.readers.iter().map(|r| r.id)
    }

    /// The first record of a partition of messages that the session has not been sent, or has not acknowledged; `None`: it reads no messages.
    #[must_use]
    pub fn needs(&self, p: PartitionId) -> Option<Offset> {
        let reader = self.readers.iter().find(|r| r.id == p).filter(|_| self.subscriptions.read(false))?;
        // What is retained is kept for it when its segment goes.
        let own = self.outbound.window.iter().filter(|f| matches!(f.why, Why::Subscribed | Why::Copy(_)) && f.partition == p);
        own.map(|f| f.offset).chain([reader.reader.next]).min()
    }

    /// Gives a record that the group of a shared subscription gave this session. `None` for the record: the log no longer has it.
    pub fn deliver_shared(
        &mut self,
        now: Now,
        id: SubscribeId,
        partition: PartitionId,
        offset: Offset,
        record: Option<&Stored<'_>>,
        out: &mut Vec<u8>,
    ) -> Delivery {
        // Unsubscribed meanwhile: the group has given it to another.
        let Some((_, s)) = self.subscriptions.shared_by_id(id) else { return Delivery::Done };
        let Some(r) = record else {
            self.counts.lost += 1;
            self.lose(partition, offset..Offset(offset.0 + 1), false);
            self.touch(now);
            self.settle_shared(id, partition, offset);
            return Delivery::Done;
        };
        if r.is_expired(now.steady_ms) {
            self.counts.dropped_expired += 1;
            self.settle_shared(id, partition, offset);
            return Delivery::Done;
        }
        let identifiers = if s.identifier == 0 { Vec::new() } else { vec![s.identifier] };
        let retain = r.retain && s.options.retain_as_published;
        let granted = Granted { qos: s.options.qos.min(r.qos), retain, position: s.position, identifiers };
        self.send(now, partition, r, &granted, retain, Why::Shared(id), out)
    }

    /// The group's record is done with.
    fn settle_shared(&mut self, id: SubscribeId, partition: PartitionId, offset: Offset) {
        if let Some(filter) = self.shared_filter(id) {
            self.actions.push_back(Action::Settle(filter.into(), partition, offset));
        }
    }

    /// Sends a record with a new id, if it has one and there is room for it.
    #[expect(clippy::too_many_arguments, reason = "the parts of one PUBLISH")]
    fn send(
        &mut self,
        now: Now,
        partition: PartitionId,
        r: &Stored<'_>,
        granted: &Granted,
        retain: bool,
        why: Why,
        out: &mut Vec<u8>,
    ) -> Delivery {
        if self.held.is_full() || self.outbound.is_resending() {
            return Delivery::NoRoom;
        }
        let stage = match granted.qos {
            Qos::AtMostOnce => {
                let flags = (false, Qos::AtMostOnce, retain);
                self.emit(false, out, |s, out| s.write(now, (partition, r), flags, None, granted, out));
                if let Some(id) = why.shared() {
                    self.settle_shared(id, partition, r.offset);
                }
                return Delivery::Done;
            }
            Qos::AtLeastOnce => Stage::Unacknowledged,
            Qos::ExactlyOnce => Stage::Sent,
        };
        if !self.outbound.has_room() {
            return Delivery::NoRoom;
        }
        let (ordinal, flags) = (self.outbound.take_id(), (false, granted.qos, retain));
        let write = |s: &mut Self, out: &mut Vec<u8>| s.write(now, (partition, r), flags, Some(ordinal), granted, out);
        if self.emit(stage == Stage::Sent, out, write) {
            self.outbound.window.push_back(Inflight { ordinal, partition, offset: r.offset, stage, why });
        } else if let Some(id) = why.shared() {
            self.settle_shared(id, partition, r.offset);
        }
        Delivery::Done
    }

    /// False: larger than the client takes, so not sent, and counted [MQTT-3.1.2-25].
    fn write(
        &mut self,
        now: Now,
        (partition, r): (PartitionId, &Stored<'_>),
        flags: (bool, Qos, bool),
        ordinal: Option<u64>,
        granted: &Granted,
        out: &mut Vec<u8>,
    ) -> bool {
        let id = ordinal.map(id_of);
        let mut told = 0;
        let mut own = self.outbound.own.take().unwrap_or_default();
        own.clear();
        if self.version == Version::V5 {
            granted.identifiers.iter().for_each(|n| {
                own.push(Property::SubscriptionIdentifier(*n));
            });
            if let Some(at) = r.expires_ms {
                // What is left of it [MQTT-3.3.2-6].
                own.push(Property::MessageExpiryInterval(at.saturating_sub(now.steady_ms).div_ceil(1_000) as u32));
            }
            if granted.position {
                // What the message needs without it: with heads and an alias as long as they can be.
                let bytes = r.topic.len() + r.headers.raw().len() + r.payload.len() + own.as_properties().raw().len() + PUBLISH_BYTES_MAX;
                told = self.push_position(partition, r, self.outbound.packet_bytes_max().saturating_sub(bytes), &mut own);
            }
        }
        let alias = self.aliases_out.of(r.topic);
        if let Some((property, _)) = alias {
            own.push(property);
        }
        let topic = if alias.is_some_and(|(_, known)| known) { &[][..] } else { r.topic };
        let stored = if self.version == Version::V5 { r.headers } else { Properties::default() };
        let before = out.len();
        publish_head(out, self.version, flags, topic, id, own.as_properties(), stored, r.payload.len());
        self.outbound.own = Some(own);
        if out.len() - before + r.payload.len() > self.outbound.packet_bytes_max() {
            out.truncate(before);
            self.counts.dropped_too_large += 1;
            return false;
        }
        if alias.is_some_and(|(_, known)| !known) {
            self.aliases_out.sent(r.topic);
        }
        out.extend_from_slice(r.payload);
        if told > 0 {
            self.told(ordinal, told);
        }
        self.counts.sent[flags.1 as usize] += 1;
        self.counts.sent_payload += r.payload.len() as u64;
        true
    }

    /// The next messages that were sent in an earlier life and not acknowledged: offsets of one partition, ascending. What was released is
    /// released again on the way, in its place [MQTT-4.4.0-1].
    #[must_use]
    pub fn resend_next(&mut self, out: &mut Vec<u8>) -> Option<(PartitionId, Vec<Offset>)> {
        // Not more at once than the client takes now [MQTT-3.3.4-9].
        let end = self.outbound.resend.end.min(self.outbound.window_max());
        while let Some(f) = self.outbound.window.get(self.outbound.resend.start).copied()
            && self.outbound.resend.start < end
            && f.stage == Stage::Released
        {
            self.pubrel(id_of(f.ordinal), false, out);
            self.outbound.resend.start += 1;
        }
        let start = self.outbound.resend.start;
        let mut offsets: Vec<Offset> = Vec::new();
        let mut partition = None;
        for f in self.outbound.window.range(start..end.min(start + 64).max(start)) {
            let fits = partition.is_none_or(|p| p == f.partition) && offsets.last().is_none_or(|o| *o < f.offset);
            if !fits || f.stage == Stage::Released {
                break;
            }
            partition = Some(f.partition);
            offsets.push(f.offset);
        }
        partition.map(|p| (p, offsets))
    }

    /// Something is to be sent again before anything new, as the client has room for it.
    #[must_use]
    pub fn is_resending(&self) -> bool {
        self.outbound.is_resending()
    }

    /// Sends them again, with their ids and DUP [MQTT-3.3.1-1, MQTT-4.4.0-1]. Those that the log no longer has are given up, but an id of
    /// QoS 2, which the peer may hold, is released.
    pub fn resend<'a>(&mut self, now: Now, offsets: &[Offset], found: impl Iterator<Item = Stored<'a>>, out: &mut Vec<u8>) {
        let mut found = found.peekable();
        let mut granted = self.outbound.granted.take().unwrap_or_default();
        for offset in offsets {
            let first = self.outbound.resend.start;
            // Acknowledged meanwhile?
            let entry = self.outbound.window.get(first).filter(|f| self.outbound.resend.contains(&first) && f.offset == *offset);
            let Some(f) = entry.copied() else { continue };
            while found.next_if(|r| r.offset < *offset).is_some() {}
            let record = found.next_if(|r| r.offset == *offset);
            if record.is_none() {
                self.counts.lost += 1;
                self.lose(f.partition, *offset..Offset(offset.0 + 1), false);
            }
            let sent = record.is_some_and(|r| {
                // Whatever it was granted then, it completes with the QoS it began with; a filter that is gone gives no identifiers.
                match f.why {
                    Why::Copy(identifier) => self.grant_copy(identifier, f.partition, &r, &mut granted),
                    _ => {
                        self.subscriptions.grant(f.partition, &r, self.client_hash, &mut granted);
                    }
                }
                let flags = (true, f.stage.qos(), f.why == Why::Retained || granted.retain);
                self.emit(false, out, |s, out| s.write(now, (f.partition, &r), flags, Some(f.ordinal), &granted, out))
            });
            match (sent, f.stage) {
                (true, _) => self.outbound.resend.start += 1,
                (false, Stage::Sent) => {
                    if let Some(f) = self.outbound.window.get_mut(first) {
                        f.stage = Stage::Released;
                    }
                    self.pubrel(id_of(f.ordinal), true, out);
                    self.outbound.resend.start += 1;
                }
                (false, _) => {
                    self.outbound.window.remove(first);
                    self.outbound.resend.end -= 1;
                }
            }
        }
        self.outbound.granted = Some(granted);
        self.touch(now);
    }

    /// The retained page to read next; deliveries wait until it has ended, or a stale value could follow a newer one.
    #[must_use]
    pub fn page_next(&self) -> Option<&Paging> {
        self.pages.front().map(|page| &page.paging)
    }

    /// Gives a retained message of the page.
    pub fn deliver_retained(&mut self, now: Now, r: &Stored<'_>, out: &mut Vec<u8>) -> Delivery {
        let Some(BegunPage { paging, sent }) = self.pages.front() else { return Delivery::Done };
        let (Some(s), Some(reader)) = (self.subscriptions.all.get(&paging.filter), self.readers.get(paging.partition)) else {
            return Delivery::Done;
        };
        if sent.contains(&r.offset) {
            // By the connection before this one, or before it was read again.
            return Delivery::Done;
        }
        let delivery = if r.is_expired(now.steady_ms) {
            self.counts.dropped_expired += 1;
            Delivery::Done
        } else {
            let identifiers = if s.identifier == 0 { Vec::new() } else { vec![s.identifier] };
            let granted = Granted { qos: s.options.qos.min(r.qos), retain: true, position: s.position, identifiers };
            let partition = reader.id;
            self.send(now, partition, r, &granted, true, Why::Retained, out)
        };
        if delivery == Delivery::Done {
            if let Some(page) = self.pages.front_mut() {
                page.sent.push(r.offset);
            }
            self.touch(now);
        }
        delivery
    }

    pub(super) fn page_ended(&mut self, after: Option<Box<str>>) {
        let partitions = self.readers.len();
        let Some(BegunPage { paging, sent }) = self.pages.front_mut() else { return };
        *sent = Vec::new();
        paging.after = after;
        if paging.after.is_none() {
            paging.partition += 1;
            if paging.partition >= partitions {
                self.pages.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_count_from_1_skip_those_in_use_and_come_round() {
        let mut o = Outbound::default();
        let entry = |ordinal| Inflight {
            ordinal,
            partition: PartitionId(0),
            offset: Offset(0),
            stage: Stage::Unacknowledged,
            why: Why::Subscribed,
        };
        let first = o.take_id();
        assert_eq!(id_of(first).get(), 1);
        o.window.push_back(entry(first));
        for n in 2..=IDS {
            let ordinal = o.take_id();
            assert_eq!(u64::from(id_of(ordinal).get()), n);
            // Two more stay in use.
            if n == 5 || n == 65_535 {
                o.window.push_back(entry(ordinal));
            }
        }
        let round: Vec<u16> = (0..10)
            .map(|_| {
                let o = o.take_id();
                id_of(o).get()
            })
            .collect();
        assert_eq!(round, [2, 3, 4, 6, 7, 8, 9, 10, 11, 12]);
        let five = PacketId::MIN.saturating_add(4);
        assert!(o.finish(five, Stage::Released).is_err());
        let mut finished = || o.finish(five, Stage::Unacknowledged).map(|f| f.is_some());
        assert_eq!([finished(), finished()], [Ok(true), Ok(false)]);
        assert_eq!(o.window.len(), 2);
    }
}
