//! Packets of one connection take effect in the order in which they were sent.
//!
//! Invariant: a subscription begins behind everything that its connection appended before the SUBSCRIBE, and before everything that it appends
//! after. What it publishes before an UNSUBSCRIBE is sent to it first, as far as the client has room for it.

use super::{Driver, Phase, feed::Feeding, log_id};
use crate::tail::Command;
use weir_core::{
    ids::{Now, Offset},
    packet::{Packet, Subscribe},
};

impl Driver {
    /// Must this packet wait for what those before it began? It is looked at again whenever something has happened.
    pub(super) fn must_wait(&mut self, now: Now, packet: &Packet<'_>) -> bool {
        match packet {
            Packet::Publish(_) if self.is_ahead(now) => true,
            Packet::Publish(_) => {
                if std::mem::take(&mut self.filters_changed) {
                    self.act(now);
                }
                self.phase.session().is_some_and(|s| s.is_starting())
            }
            Packet::Subscribe(s) => self.waits_to_append(now) || self.waits_for_the_retained(s),
            Packet::Unsubscribe(u) => self.waits_to_append(now) || self.waits_for_its_own() || self.waits_for_groups(u),
            _ => false,
        }
    }

    /// What came before is appended first, so that it is known where it ends.
    fn waits_to_append(&mut self, now: Now) -> bool {
        self.filters_changed = true;
        self.submit(now);
        self.full
    }

    /// The ends of what this connection appended, per partition.
    pub(super) fn appended_ends(&self) -> Vec<Offset> {
        let Phase::Running(session) = &self.phase else { return Vec::new() };
        (0..session.partitions()).map(|nth| session.appended_end(nth)).collect()
    }

    /// Something that this connection published may be on its way to it. A client without room is not waited for: its acknowledgements may stand behind this packet.
    fn waits_for_its_own(&mut self) -> bool {
        let Phase::Running(session) = &self.phase else { return false };
        if session.is_starting() || !self.stuck && !session.may_deliver() {
            return true;
        }
        let partitions = session.partitions();
        !self.stuck && (0..partitions).fold(false, |waits, nth| waits | self.waits_for_partition(nth))
    }

    fn waits_for_partition(&mut self, nth: usize) -> bool {
        let Phase::Running(session) = &mut self.phase else { return false };
        let end = session.appended_end(nth);
        let reads = session.reads(nth);
        let reader = session.reader(nth);
        // A replay that is far behind does not go on to its end for this, and of a partition that no filter reads nothing is on its way.
        let far = reader.next.0 < self.gateway.engine.recent_start(log_id(self.gateway.partitions[nth])).0;
        if reader.next >= end || far || !reads {
            return false;
        }
        let all_sent = reader.has_sent_all(&self.peer.inbox(nth));
        !self.has_reached(nth, end) || !all_sent || !matches!(self.feeding, Feeding::Idle)
    }

    /// A filter that the session has is answered with retained messages at once: the view must have what this connection published, and what is new to the reader would come as such.
    fn waits_for_the_retained(&mut self, s: &Subscribe<'_>) -> bool {
        let Phase::Running(session) = &self.phase else { return false };
        if !s.filters.iter().any(|(filter, _)| session.has_filter(filter)) {
            return false;
        }
        let ends = self.appended_ends();
        let folded =
            ends.iter().enumerate().filter(|(_, end)| end.0 > 0).fold(true, |folded, (nth, end)| folded & self.has_reached(nth, *end));
        !folded || self.waits_for_its_own()
    }

    /// The nth tail has folded and offered everything before `end`; it is asked to say so.
    fn has_reached(&mut self, nth: usize, end: Offset) -> bool {
        let p = self.gateway.partitions[nth];
        if let Some((_, _, offered)) = self.reached.iter().find(|(q, at, _)| *q == p && *at >= end) {
            return *offered;
        }
        self.reached.retain(|(q, _, _)| *q != p);
        self.reached.push((p, end, false));
        let _ = self.gateway.tails[nth].send(Command::Reach(self.peer.clone(), end));
        false
    }
}
