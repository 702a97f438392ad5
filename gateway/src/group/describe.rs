//! What each group is, for the admin API.
//!
//! Invariant: a group describes itself, in its turn; nothing changes by it.
//! Must not know: how it is shown.

use super::{Command, Groups, Home};
use crate::{gateway::Gateway, peer::Peer};
use tokio::sync::{mpsc::UnboundedSender, oneshot};
use weir_core::ids::{Offset, PartitionId};

/// What a group is, for the admin API.
pub(crate) struct Description {
    pub name: Box<str>,
    /// Sessions that subscribe, connected or not.
    pub subscribers: usize,
    /// Client ids, and what is on its way to each.
    pub members: Vec<(String, usize)>,
    pub to_redeliver: usize,
    pub dead_lettering: usize,
    /// Per partition, the record that it looks at next.
    pub next: Vec<(PartitionId, Offset)>,
}

impl Description {
    /// The filter that it reads.
    pub fn filter(&self) -> &str {
        self.name.split_once('/').map_or("", |(_, filter)| filter)
    }

    /// Records of the partitions that its filter reads, with the offset that it looks at next in each.
    pub fn places(&self, gateway: &Gateway) -> Vec<(PartitionId, Offset)> {
        let reads: Vec<_> = gateway.read_by(self.filter()).map(|nth| gateway.partitions[nth]).collect();
        self.next.iter().filter(|(p, _)| reads.contains(p)).copied().collect()
    }

    /// Records that members have and have not acknowledged.
    pub fn pending(&self) -> usize {
        self.members.iter().map(|(_, pending)| pending).sum()
    }

    /// Records between it and the end of the log, matching or not, and what is pending or to be delivered again.
    pub fn lag(&self, gateway: &Gateway) -> u64 {
        let ends = gateway.ends();
        let end = |p| gateway.partitions.iter().position(|q| *q == p).and_then(|nth| ends.get(nth).copied());
        let unread: u64 = self.places(gateway).into_iter().map(|(p, next)| end(p).unwrap_or(0).saturating_sub(next.0)).sum();
        unread + (self.pending() + self.to_redeliver + self.dead_lettering) as u64
    }
}

impl Groups {
    /// All groups, by name; one that ends meanwhile is left out.
    pub async fn describe(gateway: &Gateway) -> Vec<Description> {
        let ask = |group: &UnboundedSender<Command>| {
            let (tx, rx) = oneshot::channel();
            group.send(Command::Describe(tx)).ok().map(|()| rx)
        };
        let asked: Vec<_> = gateway.groups.0.iter().filter_map(|group| ask(group.value())).collect();
        let mut all = Vec::new();
        for answer in asked {
            all.extend(answer.await);
        }
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

impl Home {
    pub(super) fn describe(&self) -> Description {
        let named = |peer: &Peer| peer.identity().map_or_else(String::new, |i| i.client_id.to_string());
        let mut members: Vec<_> = self.members.iter().map(|(id, m)| (named(&m.peer), self.group.pending(*id))).collect();
        members.sort_unstable();
        Description {
            name: self.name.clone(),
            subscribers: self.subscribers.len(),
            members,
            to_redeliver: self.group.to_redeliver(),
            dead_lettering: self.group.dead_lettering(),
            next: self.gateway.partitions.iter().filter_map(|p| Some((*p, self.group.next(*p)?))).collect(),
        }
    }
}
