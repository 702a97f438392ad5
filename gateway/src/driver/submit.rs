//! What a read pass appends: records are gathered per partition while packets are decoded, then appended at once, and the session is told what it was given.
//!
//! Invariant: one append per pass and partition; the session hears of receipts in the order of its packets, when every partition has taken its part.
//! Must not know: packets, sockets.

use super::{Driver, log_id};
use crate::gateway::encode;
use std::{cell::Cell, ops::Range};
use weir_core::{
    ids::{Now, Offset, Receipt, Source, Watermark},
    message::Message,
    packet::Qos,
    session::{Append, Cause, Event},
};
use weir_log::{
    AppendError, Kind, Records,
    record::{PushError, Registration},
};

thread_local! {
    /// An empty one: a thread has one in use at a time, but for those that found no room.
    static SPARE: Cell<Option<Box<Pass>>> = const { Cell::new(None) };
}

/// What a connection appends, held by it only while there is something: most have nothing most of the time.
#[derive(Default)]
pub(super) struct Pass {
    /// Per partition.
    pub records: Vec<Records>,
    /// What is acknowledged of it, in order.
    runs: Vec<Run>,
    /// Per partition: from the receipt before its first record to that of its last.
    pub receipts: Vec<Option<Range<u64>>>,
    /// The will's partition, when its record is the one in `records`.
    pub will: Option<usize>,
}

impl Pass {
    /// What `held` holds, or an empty one for an owner that was registered there.
    pub fn of(held: &mut Option<Box<Self>>, partitions: usize, registered: Registration) -> &mut Self {
        held.get_or_insert_with(|| {
            let mut pass = SPARE.take().unwrap_or_default();
            pass.records.resize_with(partitions, Records::default);
            pass.receipts.resize(partitions, None);
            pass.records.iter_mut().for_each(|r| r.registered = registered);
            pass
        })
    }

    /// Everything in it was told.
    fn give_back(mut self: Box<Self>) {
        self.receipts.fill(None);
        SPARE.set(Some(self));
    }
}

/// Records of one pass and partition that are acknowledged one after the other.
pub(super) struct Run {
    /// Index of the partition.
    partition: usize,
    count: u32,
    /// Records of the pass in this partition, up to and with the last of these.
    end: usize,
}

impl Driver {
    /// Encodes it into the records of its partition.
    pub(super) fn append(&mut self, append: &Append<'_>) -> Result<(), PushError> {
        let (p, acknowledged) = match append {
            Append::Message(m) => (self.gateway.partition_of(&m.topic), m.qos != Qos::AtMostOnce),
            Append::Release(p, _) => (self.gateway.partitions.iter().position(|q| q == p).unwrap_or(0), true),
        };
        let records = &mut Pass::of(&mut self.pass, self.gateway.partitions.len(), self.registered).records[p];
        match append {
            Append::Message(m) => {
                let nth = records.len();
                encode(m, records)?;
                self.trace(m, p, nth);
            }
            Append::Release(_, r) => {
                let meta = r.meta();
                records.push(Kind::Note, meta.flags, meta.bytes(), b"", b"", b"")?;
            }
        }
        if !self.marked && matches!(append, Append::Release(..) | Append::Message(Message { mark: Some(_), .. })) {
            self.mark();
        }
        if acknowledged {
            // Who wants to know where each one is has a receipt for each.
            let together = self.phase.session().is_none_or(|s| !s.wants_positions());
            let pass = Pass::of(&mut self.pass, self.gateway.partitions.len(), self.registered);
            let end = pass.records[p].len();
            match pass.runs.last_mut() {
                Some(run) if run.partition == p && together => (run.count, run.end) = (run.count + 1, end),
                _ => pass.runs.push(Run { partition: p, count: 1, end }),
            }
        }
        Ok(())
    }

    /// The log is about to say something of the session: checkpoints ask for its value first.
    pub(super) fn mark(&mut self) {
        self.marked = true;
        self.gateway.marked.insert(self.peer.id, self.peer.clone());
    }

    /// Appends the records of this pass; all receipts are told in order when every partition has taken its part.
    pub(super) fn submit(&mut self, now: Now) {
        self.full = false;
        let Some(mut pass) = self.pass.take() else { return };
        let mut failed = Vec::new();
        for (p, records) in pass.records.iter_mut().enumerate() {
            if records.is_empty() {
                continue;
            }
            let bytes = records.bytes().len() as u64;
            let (engine, p_id) = (&self.gateway.engine, log_id(self.gateway.partitions[p]));
            // What nobody waits for is written when it comes.
            let waits = pass.runs.iter().any(|run| run.partition == p);
            match if waits { engine.append_leading(p_id, records, &self.who) } else { engine.append(p_id, records, &self.who) } {
                Ok(receipt) => {
                    self.peer.add_published(bytes);
                    pass.receipts[p] = Some(receipt.0 - records.len() as u64..receipt.0);
                    records.clear();
                    self.registered = records.registered;
                }
                Err(AppendError::Full) => self.full = true,
                Err(e) => {
                    if !matches!(e, AppendError::Stopping) {
                        self.gateway.partition_failed(&e);
                    }
                    records.clear();
                    // One that never becomes durable.
                    pass.receipts[p] = Some(u64::MAX..u64::MAX);
                    failed.push(self.gateway.partitions[p]);
                }
            }
        }
        if !failed.is_empty() {
            // What it published cannot be taken, and it cannot be told otherwise.
            self.event(now, Event::Closed(Cause::LogFailed));
        }
        if self.full {
            self.pass = Some(pass);
        } else {
            self.submitted(now, &mut pass);
            pass.give_back();
        }
        for p in failed {
            self.event(now, Event::Appended(Source::Partition(p), Watermark::Failed));
        }
    }

    /// Every partition has taken its part.
    fn submitted(&mut self, now: Now, pass: &mut Pass) {
        self.trace_submitted(&pass.receipts);
        if let Some(session) = self.phase.session() {
            let ends = pass.receipts.iter().map(|r| r.as_ref().map(|r| r.end).filter(|end| *end < u64::MAX));
            ends.enumerate().for_each(|(nth, end)| session.appended(nth, end.map_or_else(|| session.appended_end(nth), Offset)));
        }
        for run in pass.runs.drain(..) {
            if let Some(receipts) = &pass.receipts[run.partition] {
                let receipt = Receipt(receipts.start.saturating_add(run.end as u64));
                self.event(now, Event::Submitted(self.gateway.partitions[run.partition], receipt, run.count));
            }
        }
        if let Some(p) = pass.will.take()
            && let Some(receipts) = &pass.receipts[p]
        {
            let receipt = Receipt(receipts.end);
            // Its watermark may have passed already: look again.
            self.seen[p] = Receipt(0);
            self.event(now, Event::WillSubmitted(self.gateway.partitions[p], receipt));
        }
    }
}
