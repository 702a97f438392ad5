//! A record that several filters of one client match: one PUBLISH, or one for each Subscription
//! Identifier.
//!
//! Invariant: copies leave in the order of their identifiers, and none twice; filters without one go with the least. Where
//! a reader stands between two copies is in the session's value.
//! Must not know: windows, packet ids.

use super::{Session, subscriptions::Granted};
use crate::{ids::PartitionId, limits::Overlapping, message::Stored, packet::Version};
use std::num::NonZeroU32;

/// What is sent of a record now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copies {
    /// The record, once.
    One,
    /// The copy for this identifier.
    Of { identifier: u32, is_last: bool },
    /// Nothing: all its copies were sent.
    Sent,
}

impl Session {
    /// The copy of this record that was sent last. A reader that went elsewhere meanwhile begins with the first.
    pub(super) fn copied(&self, nth: usize, r: &Stored<'_>) -> Option<NonZeroU32> {
        self.readers[nth].copied.filter(|(at, _)| *at == r.offset).map(|(_, identifier)| identifier)
    }

    /// `granted`: by all filters that match, or behind the first copy by whatever; by those of the copy alone when this returns.
    pub(super) fn next_copy(&mut self, nth: usize, r: &Stored<'_>, granted: &mut Granted) -> Copies {
        let (copied, partition) = (self.copied(nth, r), self.readers[nth].id);
        let in_copies = self.version == Version::V5 && self.limits.overlapping == Overlapping::Copies;
        if copied.is_none() && (!in_copies || granted.identifiers.len() < 2) {
            return Copies::One;
        }
        // What was begun in copies ends in copies, whatever the configuration says by then; 3.1.1 has no identifiers.
        let above = copied.map_or(0, NonZeroU32::get);
        let next = self.subscriptions.next_identifier(above, partition, r, self.client_hash).filter(|_| self.version == Version::V5);
        let Some(identifier) = next else { return Copies::Sent };
        let is_last = self.subscriptions.next_identifier(identifier, partition, r, self.client_hash).is_none();
        self.grant_copy(identifier, partition, r, granted);
        Copies::Of { identifier, is_last }
    }

    /// What the filters of this copy give.
    pub(super) fn grant_copy(&mut self, identifier: u32, partition: PartitionId, r: &Stored<'_>, granted: &mut Granted) {
        let least = self.subscriptions.next_identifier(0, partition, r, self.client_hash);
        let from = if least.is_none_or(|least| identifier <= least) { 0 } else { identifier };
        self.subscriptions.grant_of(from..=identifier, partition, r, self.client_hash, granted);
    }
}
