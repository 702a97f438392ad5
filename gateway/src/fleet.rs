//! What all clients hold together, and whether there is room for more of it.
//!
//! Invariant: asked only for what is new, so whoever has something keeps it; and refused before the disk is full, so what is there can still be acknowledged, cleaned and started.
//! Must not know: packets.

use crate::gateway::Gateway;
use std::path::Path;
use weir_core::limits::{Fleet, Limit};

/// Limits of all clients together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FleetLimits {
    /// In the store.
    pub sessions: u64,
    /// Of the newest values of the state store; its files are up to twice as large.
    pub store_bytes: u64,
    pub groups: usize,
    /// Topics.
    pub retained: u64,
    /// Of retained topics and payloads.
    pub retained_bytes: u64,
    /// Of packets that have begun and are not whole yet; taken at the start.
    pub inbound_bytes: usize,
    /// Of large messages on their way to clients; taken at the start.
    pub outbound_bytes: usize,
    /// At once; 0: any.
    pub connections_per_address: u32,
    /// A second; 0: any.
    pub connects_per_address: u32,
}

impl Default for FleetLimits {
    fn default() -> Self {
        Self {
            sessions: 1_000_000,
            store_bytes: 1 << 30,
            groups: 10_000,
            retained: 1_000_000,
            retained_bytes: 512 << 20,
            inbound_bytes: 256 << 20,
            outbound_bytes: 256 << 20,
            connections_per_address: 0,
            connects_per_address: 0,
        }
    }
}

/// A quarter of the disk that a directory is on; as much as there may ever be where nobody says how large that is.
pub(crate) fn quarter_of_disk(directory: &Path) -> u64 {
    rustix::fs::statvfs(directory).map_or(u64::MAX, |disk| disk.f_blocks.saturating_mul(disk.f_frsize) / 4)
}

impl Gateway {
    /// Why the state store takes nothing new.
    fn refuses_stored(&self) -> Option<Limit> {
        let size = self.engine.state().size();
        let most = self.limits.read().fleet.store_bytes.min(self.store_bytes_max);
        (size.live_bytes > most || size.is_short).then_some(Limit::StoreBytes)
    }

    /// Why no session begins that is to outlive its connection.
    pub fn refuses_session(&self) -> Option<Limit> {
        let full = self.sessions() >= self.limits.read().fleet.sessions;
        full.then_some(Limit::Sessions).or_else(|| self.refuses_stored())
    }
}

impl Fleet for Gateway {
    fn refuses_filter(&self, filter: &str, stored: bool) -> Option<Limit> {
        let full = self.groups.would_be_beyond(filter, self.limits.read().fleet.groups);
        let stored = || if stored { self.refuses_stored() } else { None };
        full.then_some(Limit::Groups).or_else(stored)
    }

    fn refuses_retained(&self, topic: &str, bytes: usize) -> Option<Limit> {
        let fleet = self.limits.read().fleet;
        // Who would wait for the tail here asks the next time.
        let view = self.retained.get(self.partition_of(topic))?.try_read()?;
        view.is_beyond(topic, bytes, fleet.retained, fleet.retained_bytes)
    }
}
