//! Messages with QoS 2 on their way in: which packet ids the peer has not released, and which of that is on disk.
//!
//! ```text
//!   PUBLISH ──▶ record ──▶ PUBREC ──▶ PUBREL ──▶ note ──▶ PUBCOMP, and the id is free
//! ```
//!
//! Invariant: a packet id that is open is not appended again, through reconnect, takeover and crash. The value holds exactly what is open on disk;
//! what moved after it was put is folded in from the log, in any order of partitions, because every exchange has a sequence number of its own.
//! Must not know: topics, the order of acknowledgements.

use super::{
    Append, Session, Violation,
    inbound::{Reply, Until, place_of},
};
use crate::{
    ids::{PartitionId, Receipt, Source},
    message::{Exchange, Mark, Release, partition_of},
    packet::{PacketId, ReasonCode},
};
use std::collections::BTreeMap;

/// Which of its two records an exchange has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Publish,
    Release,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Open {
    seq: u64,
    partition: PartitionId,
    step: Step,
    /// Of the record of `step`. `None`: not appended yet, or durable from an earlier life (`known`).
    receipt: Option<Receipt>,
    known: bool,
}

#[derive(Debug, Default)]
pub(super) struct Exchanges {
    open: BTreeMap<PacketId, Open>,
    pub next_seq: u64,
    /// What is on its way there never arrives.
    failed: Vec<PartitionId>,
}

/// What the log says of a session after its value was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    Published(PartitionId, Mark),
    Released(Exchange),
}

impl Fact {
    #[must_use]
    pub fn sid(&self) -> u64 {
        match self {
            Self::Published(_, mark) => mark.sid(),
            Self::Released(exchange) => exchange.sid,
        }
    }
}

impl Exchanges {
    pub fn len(&self) -> usize {
        self.open.len()
    }

    pub fn is_open(&self, packet_id: PacketId) -> bool {
        self.open.contains_key(&packet_id)
    }

    /// One that lasts from an earlier life, read from the value.
    pub fn restore(&mut self, packet_id: PacketId, seq: u64, partition: PartitionId) {
        self.open.insert(packet_id, Open { seq, partition, step: Step::Publish, receipt: None, known: true });
    }

    fn begin(&mut self, packet_id: PacketId, partition: PartitionId) -> u64 {
        let seq = self.next_seq;
        self.next_seq += 1;
        self.open.insert(packet_id, Open { seq, partition, step: Step::Publish, receipt: None, known: false });
        seq
    }

    pub fn submitted(&mut self, packet_id: PacketId, receipt: Receipt) {
        if let Some(open) = self.open.get_mut(&packet_id) {
            open.receipt = Some(receipt);
        }
    }

    pub fn complete(&mut self, packet_id: PacketId) {
        self.open.remove(&packet_id);
    }
}

impl Session {
    fn is_durable(&self, open: &Open) -> bool {
        open.known || open.receipt.is_some_and(|r| self.inbound.is_durable(Source::Partition(open.partition), r))
    }

    /// Some record of an exchange is on its way to the disk.
    pub(super) fn exchanges_pending(&self) -> bool {
        let pending = |open: &Open| !self.is_durable(open) && !self.exchanges.failed.contains(&open.partition);
        self.expiry_s > 0 && self.exchanges.open.values().any(pending)
    }

    /// Nothing more becomes durable in this partition. True: something was on its way there.
    pub(super) fn exchanges_fail(&mut self, p: PartitionId) -> bool {
        if !self.exchanges.failed.contains(&p) {
            self.exchanges.failed.push(p);
        }
        self.expiry_s > 0 && self.exchanges.open.values().any(|open| open.partition == p && !self.is_durable(open))
    }

    /// What is open on disk: packet id, sequence number, partition.
    pub(super) fn open_exchanges(&self) -> Vec<(PacketId, u64, PartitionId)> {
        let open = |o: &Open| self.is_durable(o) == (o.step == Step::Publish);
        self.exchanges.open.iter().filter(|(_, o)| open(o)).map(|(id, o)| (*id, o.seq, o.partition)).collect()
    }

    /// A PUBLISH of an exchange that is open: nothing is appended [MQTT-4.3.3-10].
    pub(super) fn repeat_exchange(&mut self, packet_id: PacketId) {
        // In flight: the first one's PUBREC is on its way.
        if self.exchanges.open.get(&packet_id).is_some_and(|open| self.is_durable(open)) {
            self.inbound.push(Until::Ready, Reply::Received(packet_id, ReasonCode::SUCCESS));
        }
    }

    /// A new PUBLISH with QoS 2. Gives its mark, if anything of it outlives the connection.
    pub(super) fn begin_exchange(&mut self, topic: &str, packet_id: PacketId) -> Option<Mark> {
        let partition = self.readers.get(partition_of(topic, self.homes())).map_or(PartitionId(0), |r| r.id);
        let seq = self.exchanges.begin(packet_id, partition);
        self.inbound.push(Until::Appended, Reply::Received(packet_id, ReasonCode::SUCCESS));
        (self.expiry_s > 0).then_some(Mark::Exchange(Exchange { sid: self.sid, packet_id, seq }))
    }

    /// A PUBREL: the note that says so is appended to the partition of the message, so that no order of reading mistakes one for the other.
    pub(super) fn end_exchange<'a>(&mut self, packet_id: PacketId) -> Result<Option<Append<'a>>, Violation> {
        let Some(open) = self.exchanges.open.get_mut(&packet_id) else {
            // Released before, and the PUBCOMP was lost: as good as new.
            self.inbound.push(Until::Ready, Reply::Completed(packet_id, None));
            return Ok(None);
        };
        if open.step == Step::Release {
            return Ok(None);
        }
        let place = open.receipt.map(|r| (open.partition, place_of(r)));
        if self.expiry_s == 0 {
            self.exchanges.complete(packet_id);
            self.inbound.push(Until::Ready, Reply::Completed(packet_id, place));
            return Ok(None);
        }
        (open.step, open.receipt, open.known) = (Step::Release, None, false);
        let exchange = Exchange { sid: self.sid, packet_id, seq: open.seq };
        let append = Append::Release(open.partition, Release { client_hash: self.client_hash, exchange });
        self.inbound.push(Until::Appended, Reply::Completed(packet_id, place));
        Ok(Some(append))
    }

    /// Takes what the log says after the value: at the start, before anybody connects.
    pub fn fold(&mut self, fact: &Fact) {
        if fact.sid() != self.sid {
            // Of the session that a clean start ended.
            return;
        }
        match *fact {
            Fact::Published(_, Mark::Will(mark)) => {
                if self.will_mark() == Some(mark) {
                    // A crash came between the will's record and the value without it.
                    self.will = None;
                }
            }
            Fact::Published(partition, Mark::Exchange(e)) => {
                self.exchanges.next_seq = self.exchanges.next_seq.max(e.seq + 1);
                if self.exchanges.open.get(&e.packet_id).is_none_or(|known| known.seq <= e.seq) {
                    self.exchanges.restore(e.packet_id, e.seq, partition);
                }
            }
            Fact::Released(e) => {
                if self.exchanges.open.get(&e.packet_id).is_some_and(|known| known.seq == e.seq) {
                    self.exchanges.complete(e.packet_id);
                }
            }
        }
    }
}
