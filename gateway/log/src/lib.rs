//! The log as everything above it sees it: append records to a partition, be told when they are durable, read from an offset.
//!
//! Invariant: what a reader is given is durable, dense from below, and in offset order.
//! Must not know: MQTT, topics (a key is bytes), any async runtime, or who reads.

use std::fmt;

/// Place of a record in its partition. Dense, from 0, only grows; never given out twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub u64);

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A partition, engine-wide: assigned ascending when it is created, never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId(pub u32);
