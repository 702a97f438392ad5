//! Packets of one connection take effect in the order in which they were sent.
//!
//! Invariant: a subscription begins behind everything that its connection appended before the SUBSCRIBE, and before everything that it appends
//! after. What it publishes before an UNSUBSCRIBE is sent to it first, as far as the client has room for it.

use super::{Driver, Phase, feed::Feeding, log_id};
use crate::{group, tail::Command};
use weir_core::{
    ids::{Now, Offset},
    packet::{Packet, Unsubscribe},
};

/// Groups that were asked to say when they have come to what the connection appended.
pub(super) struct Groups {
    ends: Vec<Offset>,
    left: usize,
}

impl Driver {
    /// Must this packet wait for what those before it began? It is looked at again whenever something has happened.
    pub(super) fn must_wait(&mut self, now: Now, packet: &Packet<'_>) -> bool {
        match packet {
            Packet::Publish(_) => {
                if std::mem::take(&mut self.filters_changed) {
                    self.act(now);
                }
                self.phase.session().is_some_and(|s| s.is_starting())
            }
            Packet::Subscribe(_) => self.waits_to_append(now),
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
        let Phase::Running(session) = &mut self.phase else { return false };
        if session.is_starting() || !self.stuck && !session.may_deliver() {
            return true;
        }
        if self.stuck {
            return false;
        }
        let mut waits = false;
        for nth in 0..session.partitions() {
            let (p, end) = (self.gateway.partitions[nth], session.appended_end(nth));
            // Nothing of a partition that no filter reads is on its way.
            let reads = session.reads(nth);
            let reader = session.reader(nth);
            // A replay that is far behind does not go on to its end for this.
            let far = reader.next.0 < self.gateway.engine.recent_start(log_id(p)).0;
            if reader.next >= end || far || !reads {
                continue;
            }
            let asked = self.reached.iter_mut().find(|(q, _, _)| *q == p);
            match asked {
                Some((_, at, offered)) if *at >= end => waits |= !*offered || !reader.is_live() || !matches!(self.feeding, Feeding::Idle),
                _ => {
                    self.reached.retain(|(q, _, _)| *q != p);
                    self.reached.push((p, end, false));
                    let _ = self.gateway.tails[nth].send(Command::Reach(self.peer.clone(), end));
                    waits = true;
                }
            }
        }
        waits
    }

    /// A group may be about to give what this connection published to it.
    fn waits_for_groups(&mut self, u: &Unsubscribe<'_>) -> bool {
        let ends = self.appended_ends();
        if self.groups.as_ref().is_none_or(|asked| asked.ends != ends) {
            let shared = u.filters.iter().map(|(filter, _)| filter).filter(|f| self.shared.iter().any(|s| **s == **f));
            let reach = || group::Command::Reach(self.peer.clone(), ends.clone());
            let left = shared.filter(|filter| group::Groups::tell(&self.gateway, filter, reach())).count();
            self.groups = Some(Box::new(Groups { ends, left }));
        }
        let asked = self.groups.as_ref().is_some_and(|asked| asked.left > 0);
        let on_the_way = !self.stuck && (!self.given.is_empty() || !matches!(self.feeding, Feeding::Idle));
        if !asked && !on_the_way {
            self.groups = None;
        }
        asked || on_the_way
    }

    pub(super) fn group_reached(&mut self, at: &[Offset]) {
        if let Some(asked) = self.groups.as_mut().filter(|asked| asked.ends == at) {
            asked.left = asked.left.saturating_sub(1);
        }
    }
}
