//! A record that several filters of one client match: one PUBLISH, or one for each Subscription
//! Identifier.
//!
//! Invariant: copies leave in the order of their identifiers, and none twice; filters without one go with the least. Where
//! a reader stands between two copies is in the session's value.
//! Must not know: windows, packet ids.

use super::{Session, subscriptions::Granted};
use crate::{limits::Overlapping, message::Stored, packet::Version};

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
        let at = granted.identifiers.partition_point(|n| *n <= copied);
        let (Some(identifier), true) = (granted.identifiers.get(at).copied(), in_copies) else { return Copies::Sent };
        let (least, is_last) = (if at == 0 { 0 } else { identifier }, at + 1 == granted.identifiers.len());
        self.subscriptions.grant_of(least..=identifier, partition, r, self.client_hash, granted);
        Copies::Of { identifier, is_last }
    }
}
