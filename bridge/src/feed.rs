//! The browser's feed: the newest value of each topic at a stated position, then every record after it.
//!
//! Invariant: a subscriber gets a snapshot at position P and then exactly the matching records from P on, in order; when it is too slow for
//! that it gets a new snapshot, never a gap that it is not told of. What waits for it is offsets, never records.
//! Must not know: HTTP, JSON.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Arc, atomic::AtomicU64},
};
use tokio::sync::{
    Notify,
    mpsc::{self, UnboundedReceiver, UnboundedSender, error::TrySendError, unbounded_channel},
    oneshot,
};
use weir_core::topic::filter_matches;
use weir_log::{Batch, Engine, Everything, Fetch, Fetched, Kind, Offset, Partition, PartitionId, ReadError, Wake, Wanted};

/// Batches that may wait for one subscriber before it gets a new snapshot instead.
const WAITING_MAX: usize = 256;
/// Topics whose newest place is remembered, about 110 B each; beyond it new topics are seen only live.
const TOPICS_MAX: usize = 1_000_000;

/// What a subscriber is told.
#[derive(Debug)]
pub enum Told {
    /// Offsets of the newest records that match, all below `position`.
    Snapshot { position: Offset, newest: Vec<Offset> },
    /// Of the batch that begins at `batch`, these records.
    Records { batch: Offset, indices: Vec<u32> },
}

struct Subscribe {
    filter: Box<str>,
    tell: mpsc::Sender<Told>,
}

/// What browsers were told.
#[derive(Debug, Default)]
pub struct Counts {
    /// Now.
    pub browsers: AtomicU64,
    pub records: AtomicU64,
    pub bytes: AtomicU64,
    /// New snapshots for who was too slow.
    pub restarts: AtomicU64,
}

/// All partitions' feeds.
pub struct Feed {
    pub engine: Arc<dyn Engine>,
    pub counts: Arc<Counts>,
    partitions: Vec<(Partition, UnboundedSender<Subscribe>)>,
}

#[derive(Default)]
struct Bell(Notify);

impl Wake for Bell {
    fn wake(&self) {
        self.0.notify_one();
    }
}

/// Reads from the log without blocking.
pub async fn fetch(engine: &dyn Engine, fetch: Fetch) -> Result<Fetched, ReadError> {
    let (tx, rx) = oneshot::channel();
    engine.fetch(fetch, Box::new(move |f| drop(tx.send(f))));
    rx.await.unwrap_or(Err(ReadError::Stopping))
}

impl Feed {
    /// Starts one task per partition. Snapshots are answered when the past has been read.
    pub fn start(engine: Arc<dyn Engine>) -> Arc<Self> {
        let partitions = engine.partitions().to_vec().into_iter().map(|p| {
            let (tx, rx) = unbounded_channel();
            let task = Tail { engine: engine.clone(), id: p.id, newest: BTreeMap::new(), subscribers: Vec::new(), position: Offset(0) };
            let name = format!("{}/{}", p.stream, p.number);
            tokio::spawn(async move {
                if let Err(e) = task.run(rx).await {
                    tracing::error!("the feed of {name} stopped: {e}");
                }
            });
            (p, tx)
        });
        Arc::new(Self { partitions: partitions.collect(), engine: engine.clone(), counts: Arc::default() })
    }

    pub fn partitions(&self) -> impl Iterator<Item = &Partition> {
        self.partitions.iter().map(|(p, _)| p)
    }

    /// A snapshot and then the records of the nth partition; ends when the subscriber was too slow.
    pub fn subscribe(&self, nth: usize, filter: &str) -> mpsc::Receiver<Told> {
        let (tell, told) = mpsc::channel(WAITING_MAX);
        if let Some((_, tail)) = self.partitions.get(nth) {
            // A feed that has stopped tells nothing; its error is in the log.
            let _ = tail.send(Subscribe { filter: filter.into(), tell });
        }
        told
    }
}

struct Tail {
    engine: Arc<dyn Engine>,
    id: PartitionId,
    newest: BTreeMap<Box<str>, Offset>,
    subscribers: Vec<Subscribe>,
    position: Offset,
}

impl Tail {
    async fn run(mut self, mut subscribe: UnboundedReceiver<Subscribe>) -> Result<(), ReadError> {
        self.position = self.engine.span(self.id).start;
        // First most of the past, without holding the log; then what came meanwhile.
        self.read_to(self.engine.span(self.id).durable).await?;
        let bell = Arc::new(Bell::default());
        let following = self.engine.follow(self.id, bell.clone());
        self.read_to(following.start()).await?;
        loop {
            let asked = tokio::select! {
                s = subscribe.recv() => match s {
                    Some(s) => Some(s),
                    None => return Ok(()),
                },
                () = bell.0.notified() => None,
            };
            // Also before a snapshot: who has its PUBACK finds its message there.
            while let Some(batch) = following.poll() {
                self.offer(&batch);
                tokio::task::yield_now().await;
            }
            if let Some(asked) = asked {
                self.snapshot(asked);
            }
        }
    }

    async fn read_to(&mut self, end: Offset) -> Result<(), ReadError> {
        while self.position < end {
            let wanted = Wanted::Range { from: self.position, to: end, select: Arc::new(Everything) };
            let f = Fetch { partition: self.id, wanted, records_max: u32::MAX, bytes_max: 1 << 20 };
            let fetched = fetch(&*self.engine, f).await?;
            self.fold(&fetched.batch);
            self.position = fetched.next;
        }
        Ok(())
    }

    fn fold(&mut self, batch: &Batch) {
        for (topic, range) in runs(batch) {
            let Some(last) = range.end.checked_sub(1) else { continue };
            let at = batch.get(last).offset;
            if let Some(known) = self.newest.get_mut(topic) {
                *known = at;
            } else if self.newest.len() < TOPICS_MAX {
                self.newest.insert(topic.into(), at);
            }
        }
    }

    fn snapshot(&mut self, s: Subscribe) {
        let newest = self.newest.iter().filter(|(topic, _)| filter_matches(&s.filter, topic)).map(|(_, at)| *at);
        let mut newest: Vec<_> = newest.collect();
        newest.sort_unstable();
        if s.tell.try_send(Told::Snapshot { position: self.position, newest }).is_ok() {
            self.subscribers.push(s);
        }
    }

    fn offer(&mut self, batch: &Batch) {
        self.fold(batch);
        let first = batch.first();
        self.position = batch.end();
        let runs: Vec<_> = runs(batch).collect();
        self.subscribers.retain(|s| {
            let matching = runs.iter().filter(|(topic, _)| filter_matches(&s.filter, topic));
            let indices: Vec<u32> = matching.flat_map(|(_, range)| range.clone()).collect();
            if indices.is_empty() {
                return !s.tell.is_closed();
            }
            match s.tell.try_send(Told::Records { batch: first, indices }) {
                Ok(()) => true,
                // Too slow, or gone: its channel ends, and it may ask for a new snapshot.
                Err(TrySendError::Full(_) | TrySendError::Closed(_)) => false,
            }
        });
    }
}

/// Runs of messages with equal topics.
fn runs(batch: &Batch) -> impl Iterator<Item = (&str, Range<u32>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < batch.len() as u32 {
            let first = batch.get(at);
            let start = at;
            at += 1;
            let topic = std::str::from_utf8(first.key).ok().filter(|_| first.kind == Kind::Message);
            let Some(topic) = topic else { continue };
            while at < batch.len() as u32 && batch.get(at).key == first.key && batch.get(at).kind == Kind::Message {
                at += 1;
            }
            return Some((topic, start..at));
        }
        None
    })
}
