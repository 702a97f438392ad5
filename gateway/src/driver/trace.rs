//! What a connection notes of messages of watched topics: when they came, when their acknowledgements were written, and the same on the way out.
//!
//! Invariant: with nothing watched it holds nothing and costs one load per message.
//! Must not know: how lives are kept.

use super::Driver;
use crate::refusals::short;
use std::{collections::VecDeque, ops::Range, sync::Arc, time::Instant};
use weir_core::{
    ids::{Offset, PartitionId},
    message::Message,
    packet::Qos,
};

/// Messages of one connection that are followed at once.
const FOLLOWED_MAX: usize = 1_024;

#[derive(Default)]
pub(super) struct Traces {
    client: Option<Arc<str>>,
    /// Of this pass: partition, which of its records, since when, and whether it is acknowledged.
    pass: Vec<(usize, u64, Instant, bool)>,
    /// Published, not acknowledged.
    published: VecDeque<(PartitionId, Offset)>,
    /// Sent, not acknowledged.
    pub sent: VecDeque<(PartitionId, Offset)>,
}

impl Traces {
    pub fn client(&mut self, client_id: Option<&str>) -> Arc<str> {
        self.client.get_or_insert_with(|| client_id.unwrap_or("?").into()).clone()
    }

    pub fn follow(&mut self, at: (PartitionId, Offset)) {
        self.sent.push_back(at);
        if self.sent.len() > FOLLOWED_MAX {
            self.sent.pop_front();
        }
    }
}

impl Driver {
    /// A message of this pass is the `nth` record of its partition's part.
    pub(super) fn trace(&mut self, m: &Message<'_>, partition: usize, nth: usize) {
        if !self.gateway.metrics.lives.watches(m.topic.as_bytes()) {
            return;
        }
        let pass = &mut self.traces.get_or_insert_default().pass;
        if pass.len() < FOLLOWED_MAX {
            pass.push((partition, nth as u64, Instant::now(), m.qos != Qos::AtMostOnce));
        }
    }

    /// Every partition has taken its part of the pass.
    pub(super) fn trace_submitted(&mut self, receipts: &[Option<Range<u64>>]) {
        let Some(traces) = &mut self.traces else { return };
        for (partition, nth, received, acknowledged) in std::mem::take(&mut traces.pass) {
            let Some(start) = receipts.get(partition).and_then(|r| r.as_ref()).map(|r| r.start) else { continue };
            // A receipt is the offset behind its record.
            let at = (self.gateway.partitions[partition], Offset(start.saturating_add(nth)));
            let client = traces.client(self.client_id.as_deref());
            self.gateway.metrics.lives.received(at, &client, received, self.gateway.now().wall_ms);
            if acknowledged {
                traces.published.push_back(at);
            }
        }
    }

    /// What lies below was acknowledged.
    pub(super) fn trace_acknowledged(&mut self, p: PartitionId, below: u64) {
        let Some(traces) = &mut self.traces else { return };
        traces.published.retain(|at| {
            let waits = at.0 != p || at.1.0 >= below;
            if !waits {
                self.gateway.metrics.lives.acknowledged(*at);
            }
            waits
        });
    }

    /// The client may have acknowledged something.
    pub(super) fn trace_taken(&mut self) {
        let Some(traces) = &mut self.traces else { return };
        let Some(session) = self.phase.session() else { return };
        let client = self.client_id.as_deref().map_or("?", short);
        traces.sent.retain(|(p, at)| {
            let waits = session.is_in_flight(*p, *at);
            if !waits {
                self.gateway.metrics.lives.taken((*p, *at), client);
            }
            waits
        });
    }
}
