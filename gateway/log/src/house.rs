//! What is done behind the writers until the engine stops: a file for the next segment is prepared, sealed segments are synced if their writer does not, and get their key index.
//!
//! Invariant: nobody waits for it; what it does not get done is done by the writer, or a reader scans.
//! Must not know: who reads or appends.

use crate::{
    Durability,
    index::{self, Indexed},
    readers::Readers,
    segment::Segments,
    storage::{File, Name, Storage},
};
use std::{ops::RangeInclusive, sync::Arc, time::Duration};

/// How often a segment without a sidecar, or without a file for the next one, is looked for: soon after a file was prepared, for then segments fill, and at length.
const SEAL_EVERY: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_millis(200);

/// A partition's disk, and what is on it.
pub(crate) struct Files<S: Storage> {
    pub storage: Arc<S>,
    pub segments: Arc<Segments<S::File>>,
    pub durability: Durability,
}

impl<S: Storage> Files<S> {
    /// True: there is a file for the next segment now. Where nobody waits for a sync, zeros in it would help nobody.
    fn prepare(&self, wait: &dyn Fn(Duration) -> bool) -> bool {
        if self.durability == Durability::Os {
            return false;
        }
        self.segments.prepare(&*self.storage, wait).unwrap_or_else(|e| {
            // The writer will say the same if it cannot make one itself.
            eprintln!("{}: preparing a file for the next segment: {e}", self.storage.describe());
            false
        })
    }

    /// Oldest first, until `stopped`.
    fn seal(&self, stopped: &dyn Fn() -> bool) {
        for (segment, end) in self.segments.sealed() {
            if stopped() {
                return;
            }
            let new = matches!(&*segment.indexed.read(), Indexed::Building(_) | Indexed::Missing);
            if new
                && self.durability == Durability::Os
                && let Err(e) = segment.file.sync_data()
            {
                eprintln!("syncing {}: {e}; what it holds may not be on the disk", segment.name);
            }
            let sealed = index::seal(&*self.storage, &segment, end);
            if new && !self.segments.holds(&segment) {
                // Retired meanwhile, perhaps before its sidecar was there. A failed removal leaves a file that goes at the next start.
                let _unremoved = self.storage.remove_if_there(Name::Index(segment.head.base));
                continue;
            }
            if let Err(e) = sealed {
                eprintln!("the key index of {}: {e}; the segment is scanned instead", segment.name);
                *segment.indexed.write() = Indexed::Never;
            }
        }
    }

    /// Everything that there is to do.
    #[cfg(any(test, feature = "sim"))]
    pub fn step(&self) {
        self.prepare(&|_| true);
        self.seal(&|| false);
    }
}

pub(crate) fn keep<S: Storage>(partitions: &[Files<S>], readers: &Readers) {
    let mut pause = *SEAL_EVERY.start();
    loop {
        let mut worked = false;
        for files in partitions {
            worked |= files.prepare(&|pause| !readers.wait(pause));
            files.seal(&|| readers.is_stopped());
        }
        pause = if worked { *SEAL_EVERY.start() } else { (pause * 2).min(*SEAL_EVERY.end()) };
        if readers.wait(pause) {
            return;
        }
    }
}
