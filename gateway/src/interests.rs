//! Who publishes is told whether anybody subscribes: the counts of all sessions, connected or not, and what was last asked by a connection.
//!
//! Invariant: a session's filter is counted from the moment its subscription is carried out, or from the start, until it or its session ends.
//! Must not know: sessions beyond their filters.

use parking_lot::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};
use weir_core::{interest::Interest, session::Session};

#[derive(Default)]
pub(crate) struct Interests {
    counts: RwLock<Interest>,
    changes: AtomicU64,
}

/// The last answer, good until the filters change.
#[derive(Default)]
pub(crate) struct Asked {
    topic: String,
    changes: u64,
    any: bool,
}

impl Interests {
    pub fn of(counts: Interest) -> Self {
        Self { counts: RwLock::new(counts), changes: AtomicU64::new(1) }
    }

    fn change(&self, change: impl FnOnce(&mut Interest)) {
        let mut counts = self.counts.write();
        change(&mut counts);
        self.changes.fetch_add(1, Ordering::Release);
    }

    pub fn add(&self, filter: &str) {
        self.change(|counts| counts.add(filter));
    }

    pub fn remove(&self, filter: &str) {
        self.change(|counts| counts.remove(filter));
    }

    /// The session ends; its shared filters leave with their groups.
    pub fn remove_all(&self, session: &Session) {
        self.change(|counts| session.filters().iter().for_each(|f| counts.remove(f)));
    }

    /// Subscriptions of all sessions.
    pub fn len(&self) -> u64 {
        self.counts.read().len()
    }

    /// Those of them that are shared.
    pub fn shared(&self) -> u64 {
        self.counts.read().shared()
    }

    pub fn any(&self, topic: &str, asked: &mut Asked) -> bool {
        let changes = self.changes.load(Ordering::Acquire);
        if asked.changes != changes || asked.topic != topic {
            topic.clone_into(&mut asked.topic);
            asked.any = self.counts.read().any(topic);
            asked.changes = changes;
        }
        asked.any
    }
}
