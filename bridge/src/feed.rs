//! The log as browsers read it: a tail per partition, and what is counted of them.
//!
//! Invariant: reading never blocks a thread of the runtime.
//! Must not know: HTTP, what a subscription is.

use crate::{snapshot::SNAPSHOTS_BYTES, tail::Tail, watched::Watched};
use std::sync::{Arc, atomic::AtomicU64};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio_tungstenite::tungstenite::Utf8Bytes;
use weir_log::{Asker, Engine, Fetch, Fetched, Newest, Offset, Page, PartitionId, ReadError, Record, Seek, Wanted};

/// Read at once.
pub const READ_BYTES: u32 = 256 * 1024;

/// What browsers were told.
#[derive(Debug, Default)]
pub struct Counts {
    /// Now.
    pub browsers: AtomicU64,
    pub records: AtomicU64,
    pub bytes: AtomicU64,
    /// Records that newer ones of their topics stood for.
    pub thinned: AtomicU64,
    /// Records that retention or damage took before a browser had them.
    pub lost: AtomicU64,
    /// New snapshots for who was too slow.
    pub restarts: AtomicU64,
    /// Browsers beyond the limit.
    pub refused: AtomicU64,
}

/// All partitions' feeds.
pub struct Feed {
    pub engine: Arc<dyn Engine>,
    pub counts: Counts,
    pub tails: Vec<Arc<Tail>>,
    /// The page's first lines, as somebody else makes them while somebody listens.
    pub figures: watch::Sender<Utf8Bytes>,
    pub watched: Arc<Watched>,
    /// Permits to make steps of what is read.
    pub steps: Semaphore,
    /// Bytes for snapshots.
    pub snapshots: Arc<Semaphore>,
}

/// Steps are made of many records, at once by so few.
const STEPS_AT_ONCE: usize = 2;

impl Feed {
    /// Follows nothing until somebody is there.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, watched: Arc<Watched>) -> Arc<Self> {
        let tails = engine.partitions().iter().map(|p| Tail::new(engine.clone(), p.clone())).collect();
        let (steps, snapshots) = (Semaphore::new(STEPS_AT_ONCE), Arc::new(Semaphore::new(SNAPSHOTS_BYTES)));
        Arc::new(Self { engine, counts: Counts::default(), tails, figures: watch::Sender::default(), watched, steps, snapshots })
    }
}

/// Waits for a thread of the log.
async fn ask<T>(ask: impl FnOnce(oneshot::Sender<Result<T, ReadError>>)) -> Result<T, ReadError> {
    let (tx, rx) = oneshot::channel();
    ask(tx);
    rx.await.unwrap_or(Err(ReadError::Stopping))
}

pub async fn fetch(engine: &dyn Engine, by: &Asker, fetch: Fetch) -> Result<Fetched, ReadError> {
    ask(|tx| engine.fetch(by, fetch, Box::new(move |f| drop(tx.send(f))))).await
}

pub async fn seek(engine: &dyn Engine, by: &Asker, p: PartitionId, seek: Seek) -> Result<Offset, ReadError> {
    ask(|tx| engine.seek(by, p, seek, Box::new(move |f| drop(tx.send(f))))).await
}

pub async fn newest(engine: &dyn Engine, by: &Asker, p: PartitionId, newest: Newest) -> Result<Page, ReadError> {
    ask(|tx| engine.newest(by, p, newest, Box::new(move |f| drop(tx.send(f))))).await
}

/// Gives these records if all are in memory still; else none.
pub fn recent(engine: &dyn Engine, p: PartitionId, places: &[Offset], mut give: impl FnMut(&Record<'_>)) -> bool {
    if places.first().is_some_and(|first| *first < engine.recent_start(p)) {
        return false;
    }
    let batches = engine.recent(p, places);
    if batches.len() < places.len() || batches.iter().any(Option::is_none) {
        return false;
    }
    for (at, batch) in places.iter().zip(batches.iter().flatten()) {
        // Offsets of a batch in memory have no gaps.
        let index = at.0.saturating_sub(batch.first().0);
        if index < batch.len() as u64 {
            give(&batch.get(index as u32));
        }
    }
    true
}

/// Gives these records, from memory or from the disk. What is gone meanwhile is passed over.
pub async fn exactly(
    engine: &dyn Engine,
    by: &Asker,
    p: PartitionId,
    mut places: Vec<Offset>,
    mut give: impl FnMut(&Record<'_>),
) -> Result<(), ReadError> {
    if recent(engine, p, &places, &mut give) {
        return Ok(());
    }
    while !places.is_empty() {
        let wanted = Wanted::Exactly(places.clone());
        let part = fetch(engine, by, Fetch { partition: p, wanted, records_max: 4_096, bytes_max: READ_BYTES }).await?;
        part.batch.iter().for_each(|r| give(&r));
        places.retain(|o| *o >= part.next);
    }
    Ok(())
}
