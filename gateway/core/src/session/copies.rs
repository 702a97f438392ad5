//! A record that several filters of one client match: one PUBLISH, or one for each Subscription
//! Identifier.
//!
//! Invariant: copies leave in the order of their identifiers, and none twice; filters without one go with the least. Where
//! a reader stands between two copies is in the session's value.
//! Must not know: windows, packet ids.

use super::{Session, subscriptions::Granted};
use crate::{ids::PartitionId, limits::Overlapping, message::Stored, packet::Version};

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
    /// `granted`: by all filters that match; by those of the copy alone when this returns.
    pub(super) fn next_copy(&mut self, nth: usize, r: &Stored<'_>, granted: &mut Granted) -> Copies {
        // A reader that went elsewhere meanwhile begins with the first copy.
        let copied = self.readers[nth].copied.filter(|(at, _)| *at == r.offset).map_or(0, |(_, identifier)| identifier.get());
        let partition = self.readers[nth].id;
        let in_copies = self.version == Version::V5 && self.limits.overlapping == Overlapping::Copies;
        if copied == 0 && (!in_copies || granted.identifiers.len() < 2) {
            return Copies::One;
        }
        // What was begun in copies ends in copies, whatever the configuration says by then; 3.1.1 has no identifiers.
        let at = granted.identifiers.partition_point(|n| *n <= copied);
        let identifier = granted.identifiers.get(at).copied().filter(|_| self.version == Version::V5);
        let Some(identifier) = identifier else { return Copies::Sent };
        let is_last = at + 1 == granted.identifiers.len();
        self.grant_copy(identifier, partition, r, granted);
        Copies::Of { identifier, is_last }
    }

    /// `granted`: by all filters that match; by those of this copy alone when this returns.
    pub(super) fn grant_copy(&mut self, identifier: u32, partition: PartitionId, r: &Stored<'_>, granted: &mut Granted) {
        let is_first = granted.identifiers.first().is_none_or(|first| identifier <= *first);
        let least = if is_first { 0 } else { identifier };
        self.subscriptions.grant_of(least..=identifier, partition, r, self.client_hash, granted);
    }
}
