//! The newest record of each topic before a position, from the log's index; shared by all who come within a second.
//!
//! Invariant: with the records from its position on it is everything; what is told of it is bounded, and an end before the last topic is said.
//! Must not know: who wants it.

use crate::{feed::newest, filters::Filters, record::json};
use std::{sync::Arc, time::Duration};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use weir_log::{Asker, Engine, Newest, Offset, PartitionId, ReadError};

/// Of one part.
const PART_BYTES: usize = 128 * 1024;
const PART_TOPICS: usize = 1_000;
/// Of all parts: a page that wants more than a tree can show.
pub const TOPICS_MAX: usize = 200_000;
/// What is shared is at most so large, and at most so old.
pub const SHARED_BYTES: usize = 4 << 20;
/// All that are shared, and those that are told at length.
pub const SNAPSHOTS_BYTES: usize = 64 << 20;
const SHARED_FOR: Duration = Duration::from_secs(1);

/// Parts as JSON records with commas between.
#[derive(Debug)]
pub struct Snapshot {
    pub position: Offset,
    pub parts: Vec<String>,
    made: Instant,
    /// Of `SNAPSHOTS_BYTES`.
    room: Option<OwnedSemaphorePermit>,
}

impl Snapshot {
    /// There was room for it.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.room.is_some()
    }

    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.made.elapsed() < SHARED_FOR
    }
}

/// Reads one, part by part.
pub struct Pages {
    engine: Arc<dyn Engine>,
    by: Asker,
    partition: PartitionId,
    newest: Newest,
    told: usize,
    is_done: bool,
}

impl Pages {
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, by: Asker, partition: PartitionId, filters: Arc<Filters>, below: Offset) -> Self {
        let newest = Newest { below, select: filters, after: Vec::new(), keys_max: PART_TOPICS, bytes_max: PART_BYTES };
        Self { engine, by, partition, newest, told: 0, is_done: false }
    }

    /// The next part; `None`: that was all.
    pub async fn next(&mut self) -> Result<Option<String>, ReadError> {
        if self.is_done {
            return Ok(None);
        }
        let page = newest(&*self.engine, &self.by, self.partition, self.newest.clone()).await?;
        let records: Vec<_> = page.batch.iter().filter_map(|r| json(&r)).collect();
        self.told += records.len();
        self.is_done = page.after.is_none() || self.told >= TOPICS_MAX;
        self.newest.after = page.after.unwrap_or_default();
        Ok(Some(records.join(",")))
    }

    /// Somebody else has read it.
    pub fn end(&mut self) {
        self.is_done = true;
    }

    #[must_use]
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// All parts, if there is room and they are few enough to be shared; else those that were read, one at least.
    pub async fn collect(&mut self, room: Option<OwnedSemaphorePermit>) -> Result<Snapshot, ReadError> {
        let (mut parts, mut bytes) = (Vec::new(), 0);
        while (bytes < SHARED_BYTES && room.is_some() || parts.is_empty())
            && let Some(part) = self.next().await?
        {
            bytes += part.len();
            parts.push(part);
        }
        // What it does not need is given back.
        let room = room.and_then(|mut room| room.split(bytes.min(SHARED_BYTES)));
        Ok(Snapshot { position: self.newest.below, parts, made: Instant::now(), room })
    }
}
