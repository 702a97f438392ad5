//! A session as those see it who run the gateway.
//!
//! Invariant: says what is, changes nothing.
//! Must not know: how it is shown.

use super::{PartitionReader, Session};
use crate::{
    ids::{Offset, PartitionId},
    packet::Version,
};

/// One filter of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribed {
    /// With `$share/GROUP/` in front, if it is shared.
    pub filter: Box<str>,
    pub qos: u8,
}

/// How far it has read in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub partition: PartitionId,
    /// Everything before it was sent, or is not for it.
    pub next: Offset,
    /// Messages of QoS 0 before it are sent too.
    pub kept_until: Offset,
    /// It is given what comes as it comes.
    pub live: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub version: Version,
    /// Seconds that it outlives its connection; `u32::MAX`: for ever.
    pub expiry_s: u32,
    pub has_will: bool,
    /// Since when nobody is connected, by the steady clock; means nothing while somebody is.
    pub since_ms: u64,
    pub subscriptions: Vec<Subscribed>,
    pub places: Vec<Place>,
    /// Messages with QoS 1 and 2 on their way to the client, and how many it takes at once.
    pub in_flight: usize,
    pub in_flight_max: usize,
    /// The oldest of them.
    pub oldest_in_flight: Option<(PartitionId, Offset)>,
    /// Acknowledgements that wait for the disk.
    pub unacknowledged: usize,
    /// Messages with QoS 2 that the client has not released.
    pub unreleased: usize,
}

impl Session {
    /// The oldest message that was sent to the client and is not acknowledged.
    #[must_use]
    pub fn oldest_in_flight(&self) -> Option<(PartitionId, Offset)> {
        self.outbound.window.front().map(|f| (f.partition, f.offset))
    }

    /// Was it sent, and is it not acknowledged yet?
    #[must_use]
    pub fn is_in_flight(&self, p: PartitionId, at: Offset) -> bool {
        self.outbound.window.iter().any(|f| f.partition == p && f.offset == at)
    }

    /// `ended_ms`: when the boot that saw it connected ended.
    #[must_use]
    pub fn describe(&self, ended_ms: u64) -> Description {
        let all = self.subscriptions.all.iter().chain(&self.subscriptions.shared);
        let place =
            |r: &PartitionReader| Place { partition: r.id, next: r.reader.next, kept_until: r.reader.kept_until, live: r.reader.is_live() };
        Description {
            version: self.version,
            expiry_s: self.expiry_s,
            has_will: self.will.is_some(),
            since_ms: self.away_since(ended_ms),
            subscriptions: all.map(|(filter, s)| Subscribed { filter: filter.clone(), qos: s.options.qos as u8 }).collect(),
            places: self.readers.iter().map(place).collect(),
            in_flight: self.outbound.window.len(),
            in_flight_max: self.outbound.window_max(),
            oldest_in_flight: self.oldest_in_flight(),
            unacknowledged: self.inbound.waiting(),
            unreleased: self.exchanges.len(),
        }
    }
}
