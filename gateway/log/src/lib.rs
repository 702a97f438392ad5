//! The log as everything above it sees it: append records to a partition, be told when they are durable, read from an offset;
//! and beside it the state store, the newest value of each key.
//!
//! Invariant: what a reader is given is durable, dense from below, and in offset order. What an append or a put was told to be
//! appended survives a power cut (assumption A1, `ARCHITECTURE.md`).
//! Must not know: MQTT, topics (a key is bytes), any async runtime, or who reads.

pub mod appender;
pub mod batch;
mod claim;
pub mod engine;
mod error;
mod house;
mod index;
pub mod newest;
pub mod offline;
mod partition;
pub mod pending;
pub mod reader;
mod readers;
pub mod record;
mod recovery;
pub mod repair;
mod ring;
mod seek;
pub mod segment;
mod spares;
pub mod state;
pub mod storage;
mod sync;
#[cfg(test)]
mod tests;

pub use batch::{Batch, Record, Run};
pub use engine::{Engine, FileEngine, LogEngine, Options, Partition, STATE, Stream};
pub use error::{AppendError, Damage, Failure, OpenError, ReadError, Stall, records};
pub use newest::{Newest, Page};
pub use reader::{Everything, Fetch, Fetched, Select, Skip, Wanted};
pub use readers::{Asker, Waiting};
pub use record::{Kind, Records};
pub use seek::{LAST_MAX, Seek};
pub use segment::{Limits, SegmentInfo};
pub use state::{Entry, Put, State, StateSize};

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

/// Place of a record in its partition. Dense, from 0, only grows; never given out twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub u64);

impl Offset {
    #[must_use]
    pub fn plus(self, n: u64) -> Self {
        // Names of files are numbers that anybody can write.
        Self(self.0.saturating_add(n))
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A partition, engine-wide: assigned ascending when it is created, never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId(pub u32);

/// What an acknowledged record outlives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// A power cut: it is on the disk.
    #[default]
    Disk,
    /// The end of the process: the operating system has it. A power cut takes what was not written back yet, of the active segment and of the last one that was sealed.
    /// Offsets that were given out are not given out again all the same: what may be missing is a gap, and told.
    Os,
}

/// What an append or a put hands out. Grows within its partition; durable once the watermark has reached it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Receipt(pub u64);

/// How far a partition's appends are durable.
#[derive(Clone, Debug)]
pub enum Watermark {
    /// Every receipt up to this one is durable.
    Appended(Receipt),
    /// A write or sync failed: nothing more will be durable until a restart (P8).
    Failed(Arc<Failure>),
}

/// What of a partition can be read: `[start, durable)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub start: Offset,
    pub durable: Offset,
}

/// What a partition holds in memory, and may hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Waiting for the writer.
    pub pending_bytes: usize,
    pub pending_bytes_max: usize,
    /// The newest batches.
    pub recent_bytes: usize,
    pub recent_bytes_max: usize,
}

/// Somebody who waits. Called from the log's threads; must return at once and may come more often than needed.
pub trait Wake: Send + Sync {
    fn wake(&self);
}

/// One batch that became durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    pub records: usize,
    pub bytes: usize,
    /// What its sync took.
    pub sync: Duration,
    /// Since the first of its records was accepted.
    pub append: Duration,
    /// One past its last record.
    pub end: Offset,
    /// When its sync returned: nobody saw it before.
    pub at: Instant,
}

/// Somebody who measures. Called by the writers, once a batch; must return at once. The state store is `STATE`.
pub trait Observe: Send + Sync {
    fn committed(&self, p: PartitionId, commit: &Commit);
}

/// Nobody waits or measures.
pub struct Nobody;

impl Observe for Nobody {
    fn committed(&self, _: PartitionId, _: &Commit) {}
}

impl Wake for Nobody {
    fn wake(&self) {}
}

/// Durable batches in order, from the durable end at the time of `Engine::follow`. Dropped = stopped. A follower that does not take
/// what there is holds the writer in the end: so memory stays bounded.
pub trait Follow: Send {
    /// Where it began.
    fn start(&self) -> Offset;
    /// The next batch, if there is one yet.
    fn poll(&self) -> Option<Arc<Batch>>;
}
