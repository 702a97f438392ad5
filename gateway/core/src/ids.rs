//! Numbers with a meaning. The log has its own; the shell converts.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($of:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $of);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// Place of a record in its partition.
    Offset(u64)
}
number! {
    /// A partition, engine-wide.
    PartitionId(u32)
}
number! {
    /// What an append or a put was given; durable once the watermark of its source has reached it.
    Receipt(u64)
}
number! {
    /// One subscription of one session, while it is connected.
    SubscribeId(u32)
}

/// What a receipt belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    Partition(PartitionId),
    State,
}

/// How far a source is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watermark {
    Appended(Receipt),
    /// Nothing more will be.
    Failed,
}

/// The time, as the shell reads it once per wake-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Only grows; for timers.
    pub monotonic_ms: u64,
    /// Milliseconds since 1970 by the date of the machine, which may be set; for what people read.
    pub wall_ms: u64,
    /// Milliseconds since 1970 by a clock that nobody sets and that never goes back; for expiry.
    pub steady_ms: u64,
}
