//! A partition at work: what waits for the writer, the writer's thread, the newest batches in memory, and who follows them.
//!
//! Invariant: `durable` moves only after the sync; then the ring has the batch, then everybody who waits is woken. Whoever registers
//! for a wake-up and then looks at the watermark misses nothing.
//! Must not know: keys, or what a waiter waits for.

use crate::{
    AppendError, Batch, Commit, Failure, Follow, Memory, Observe, Offset, PartitionId, Receipt, Records, Span, Wake, Watermark,
    appender::{Appender, Pending},
    segment::{Limits, Segments},
    storage::Storage,
};
use parking_lot::{Condvar, Mutex};
use std::{
    collections::VecDeque,
    mem,
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

type Then = Box<dyn FnOnce() + Send>;

struct Queue {
    pending: Pending,
    /// Counts batches, so that an appender is registered once in each.
    number: u64,
    /// When the first of what waits was accepted.
    since: Instant,
    /// One past the last accepted record.
    end: Offset,
    wakes: Vec<Arc<dyn Wake>>,
    /// Those that found the batch full.
    full: Vec<Arc<dyn Wake>>,
    /// To run once this offset is durable (or the partition has failed).
    then: Vec<(Offset, Then)>,
    stopping: bool,
}

/// Work for the writer.
struct Taken {
    pending: Pending,
    /// When the first of it was accepted.
    since: Instant,
    wakes: Vec<Arc<dyn Wake>>,
}

struct Ring {
    batches: VecDeque<Arc<Batch>>,
    bytes: usize,
    followers: Vec<Follower>,
    next_follower: u64,
}

struct Follower {
    id: u64,
    next: Offset,
    wake: Arc<dyn Wake>,
}

pub(crate) struct Shared {
    id: PartitionId,
    limits: Limits,
    /// Keys are indexed.
    indexed: bool,
    now_ms: fn() -> u64,
    observe: Arc<dyn Observe>,
    queue: Mutex<Queue>,
    work: Condvar,
    durable: AtomicU64,
    failed: OnceLock<Arc<Failure>>,
    ring: Mutex<Ring>,
    /// A follower has moved on.
    moved: Condvar,
}

impl Ring {
    /// Drops the oldest batches that are too many and that every follower has.
    fn shrink(&mut self, bytes_max: usize) {
        let needed = self.followers.iter().map(|f| f.next).min();
        while self.bytes > bytes_max && self.batches.len() > 1 {
            let Some(oldest) = self.batches.front() else { return };
            if needed.is_some_and(|n| n < oldest.end()) {
                return;
            }
            self.bytes -= oldest.memory();
            self.batches.pop_front();
        }
    }

    /// Index of the batch that holds `offset`.
    fn find(&self, offset: Offset) -> Option<usize> {
        let i = self.batches.partition_point(|b| b.first() <= offset).checked_sub(1)?;
        (offset < self.batches[i].end()).then_some(i)
    }
}

impl Shared {
    pub fn append(&self, records: &mut Records, who: &Arc<dyn Wake>) -> Result<Receipt, AppendError> {
        let (bytes, bytes_max) = (records.bytes().len(), self.limits.append_bytes_max());
        if bytes > bytes_max {
            return Err(AppendError::TooLarge { bytes, bytes_max });
        }
        let mut q = self.queue.lock();
        if let Some(failure) = self.failed.get() {
            return Err(AppendError::Failed(failure.clone()));
        }
        if q.stopping {
            return Err(AppendError::Stopping);
        }
        let budget = self.limits.pending_bytes_max.min(bytes_max);
        if !q.pending.is_empty() && q.pending.bytes() + bytes > budget {
            q.full.push(who.clone());
            return Err(AppendError::Full);
        }
        let first = q.pending.is_empty();
        if first {
            q.since = Instant::now();
        }
        debug_assert!(q.pending.is_empty() || q.pending.bytes() + bytes <= self.limits.pending_bytes_max, "the bound of what waits");
        q.pending.push(records);
        q.end = q.end.plus(records.len() as u64);
        let registration = Some((self.id, q.number));
        if records.registered != registration {
            records.registered = registration;
            q.wakes.push(who.clone());
        }
        let receipt = Receipt(q.end.0);
        drop(q);
        if first {
            self.work.notify_one();
        }
        Ok(receipt)
    }

    pub fn appended(&self) -> Watermark {
        match self.failed.get() {
            Some(failure) => Watermark::Failed(failure.clone()),
            None => Watermark::Appended(Receipt(self.durable.load(Ordering::Acquire))),
        }
    }

    pub fn failed(&self) -> bool {
        self.failed.get().is_some()
    }

    pub fn durable(&self) -> Offset {
        Offset(self.durable.load(Ordering::Acquire))
    }

    /// Runs `then` when everything before `offset` is durable, or the partition has failed.
    pub fn when_durable(&self, offset: Offset, then: Then) {
        let mut q = self.queue.lock();
        if self.durable() >= offset || self.failed.get().is_some() {
            drop(q);
            then();
        } else {
            q.then.push((offset, then));
        }
    }

    fn run_then(&self) {
        let durable = self.durable();
        let mut q = self.queue.lock();
        if q.then.is_empty() {
            return;
        }
        let all = self.failed.get().is_some();
        let (ready, rest): (Vec<_>, Vec<_>) = mem::take(&mut q.then).into_iter().partition(|(o, _)| all || *o <= durable);
        q.then = rest;
        drop(q);
        ready.into_iter().for_each(|(_, then)| then());
    }

    /// The batches that hold these offsets, as far as they are still in memory.
    pub fn recent(&self, offsets: &[Offset]) -> Vec<Option<Arc<Batch>>> {
        let ring = self.ring.lock();
        offsets.iter().map(|o| ring.find(*o).map(|i| ring.batches[i].clone())).collect()
    }

    /// First offset that is still in memory.
    pub fn recent_start(&self) -> Offset {
        let ring = self.ring.lock();
        ring.batches.front().map_or_else(|| self.durable(), |b| b.first())
    }

    pub fn memory(&self) -> Memory {
        let (pending_bytes_max, recent_bytes_max) = (self.limits.pending_bytes_max, self.limits.ring_bytes);
        let pending_bytes = self.queue.lock().pending.bytes();
        Memory { pending_bytes, pending_bytes_max, recent_bytes: self.ring.lock().bytes, recent_bytes_max }
    }

    fn push(&self, batch: Arc<Batch>) -> Vec<Arc<dyn Wake>> {
        let mut ring = self.ring.lock();
        debug_assert!(ring.bytes <= self.limits.ring_bytes || ring.batches.len() <= 1, "the bound of the ring, and one batch");
        ring.bytes += batch.memory();
        ring.batches.push_back(batch);
        ring.shrink(self.limits.ring_bytes);
        ring.followers.iter().map(|f| f.wake.clone()).collect()
    }

    /// Waits until a lagging follower has let go of enough: memory stays bounded.
    fn wait_for_room(&self) {
        let mut ring = self.ring.lock();
        loop {
            ring.shrink(self.limits.ring_bytes);
            if ring.bytes <= self.limits.ring_bytes || ring.batches.len() <= 1 {
                return;
            }
            self.moved.wait(&mut ring);
        }
    }

    /// The next work for the writer; `None` when it shall end.
    fn take(&self) -> Option<Taken> {
        let mut q = self.queue.lock();
        while q.pending.is_empty() {
            if q.stopping {
                return None;
            }
            self.work.wait(&mut q);
        }
        let pending = mem::take(&mut q.pending);
        let wakes = mem::take(&mut q.wakes);
        let full = mem::take(&mut q.full);
        q.number += 1;
        let since = q.since;
        drop(q);
        full.iter().for_each(|w| w.wake());
        Some(Taken { pending, since, wakes })
    }

    fn fail(&self, failure: Failure) {
        let failure = Arc::new(failure);
        let _first_failure_stays = self.failed.set(failure);
        let mut q = self.queue.lock();
        let (wakes, full) = (mem::take(&mut q.wakes), mem::take(&mut q.full));
        drop(q);
        wakes.iter().chain(&full).for_each(|w| w.wake());
        let followers: Vec<_> = self.ring.lock().followers.iter().map(|f| f.wake.clone()).collect();
        followers.iter().for_each(|w| w.wake());
        self.run_then();
    }

    /// Writes all that waits as one batch. False: nothing more will be written.
    fn write_one<S: Storage>(&self, appender: &mut Appender<S>) -> bool {
        let Some(Taken { pending, since, wakes }) = self.take() else { return false };
        match appender.commit(pending, (self.now_ms)()) {
            Ok(batch) => {
                let (at, end) = (Instant::now(), batch.end());
                self.durable.store(end.0, Ordering::Release);
                let batch = Arc::new(batch);
                let followers = self.push(batch.clone());
                wakes.iter().chain(&followers).for_each(|w| w.wake());
                self.run_then();
                let (records, bytes) = (batch.len(), batch.bytes());
                self.observe.committed(
                    self.id,
                    &Commit { records, bytes, sync: appender.sync_took(), append: at.saturating_duration_since(since), end, at },
                );
                if self.indexed {
                    appender.index(&batch);
                }
                true
            }
            Err(failure) => {
                self.fail(failure);
                wakes.iter().for_each(|w| w.wake());
                false
            }
        }
    }

    fn write<S: Storage>(&self, mut appender: Appender<S>) {
        loop {
            self.wait_for_room();
            if !self.write_one(&mut appender) {
                return;
            }
        }
    }

    /// Something waits to be written, and there is room for it.
    #[cfg(any(test, feature = "sim"))]
    fn can_write(&self) -> bool {
        let waits = !self.queue.lock().pending.is_empty() && !self.failed();
        let mut ring = self.ring.lock();
        ring.shrink(self.limits.ring_bytes);
        waits && (ring.bytes <= self.limits.ring_bytes || ring.batches.len() <= 1)
    }
}

/// How a partition begins.
pub(crate) struct Beginning<'a> {
    pub id: PartitionId,
    pub limits: Limits,
    /// Of its thread.
    pub name: &'a str,
    /// It is read by key.
    pub indexed: bool,
    /// It has a writer of its own; else it is stepped.
    pub threads: bool,
    pub now_ms: fn() -> u64,
    pub observe: Arc<dyn Observe>,
}

/// A partition with its writer thread; dropped or stopped, the thread finishes what pends and ends.
pub(crate) struct Partition<S: Storage> {
    pub shared: Arc<Shared>,
    pub segments: Arc<Segments<S::File>>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Without a thread: whoever steps writes.
    #[cfg(any(test, feature = "sim"))]
    stepped: Mutex<Option<Appender<S>>>,
}

impl<S: Storage> Partition<S> {
    pub fn start(beginning: Beginning<'_>, appender: Appender<S>) -> std::io::Result<Self> {
        let Beginning { id, limits, name, indexed, threads, now_ms, observe } = beginning;
        let end = appender.next();
        let segments = appender.segments().clone();
        let queue = Queue {
            pending: Pending::default(),
            number: 0,
            since: Instant::now(),
            end,
            wakes: Vec::new(),
            full: Vec::new(),
            then: Vec::new(),
            stopping: false,
        };
        let ring = Ring { batches: VecDeque::new(), bytes: 0, followers: Vec::new(), next_follower: 0 };
        let shared = Arc::new(Shared {
            id,
            limits,
            indexed,
            now_ms,
            observe,
            queue: Mutex::new(queue),
            work: Condvar::new(),
            durable: AtomicU64::new(end.0),
            failed: OnceLock::new(),
            ring: Mutex::new(ring),
            moved: Condvar::new(),
        });
        #[cfg(any(test, feature = "sim"))]
        if !threads {
            return Ok(Self { shared, segments, writer: Mutex::new(None), stepped: Mutex::new(Some(appender)) });
        }
        debug_assert!(threads, "only tests step");
        let thread = shared.clone();
        let write = move || {
            if panic::catch_unwind(AssertUnwindSafe(|| thread.write(appender))).is_err() {
                // Printed by its thread. What it was writing may not pass as durable, and nobody may wait for it.
                thread.fail(Failure { what: "the writer".into(), error: std::io::Error::other("it panicked") });
            }
        };
        let writer = Mutex::new(Some(thread::Builder::new().name(format!("log-{name}")).spawn(write)?));
        Ok(Self {
            shared,
            segments,
            writer,
            #[cfg(any(test, feature = "sim"))]
            stepped: Mutex::new(None),
        })
    }

    /// Writes and syncs one batch, if one waits and the ring has room. False: nothing to do.
    #[cfg(any(test, feature = "sim"))]
    pub fn step(&self) -> bool {
        let mut stepped = self.stepped.lock();
        let can = self.shared.can_write();
        if let Some(appender) = stepped.as_mut().filter(|_| can) {
            self.shared.write_one(appender);
        }
        can
    }

    /// Nobody writes but who steps.
    #[cfg(any(test, feature = "sim"))]
    pub fn is_stepped(&self) -> bool {
        self.stepped.lock().is_some()
    }

    /// There was no room: whoever waits lets the writer write.
    pub fn wait_a_little(&self) {
        #[cfg(any(test, feature = "sim"))]
        if self.is_stepped() && self.step() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }

    pub fn span(&self) -> Span {
        Span { start: self.segments.start(), durable: self.shared.durable() }
    }

    pub fn follow(&self, wake: Arc<dyn Wake>) -> Following {
        let mut ring = self.shared.ring.lock();
        // Under the ring's lock: a batch that is pushed later is seen by this follower, one that was pushed before is not.
        let next = ring.batches.back().map_or_else(|| self.shared.durable(), |b| b.end());
        let id = ring.next_follower;
        ring.next_follower += 1;
        ring.followers.push(Follower { id, next, wake });
        drop(ring);
        Following { shared: self.shared.clone(), id, start: next }
    }

    /// Makes everything accepted durable and ends the writer; later appends are refused.
    pub fn stop(&self) {
        self.shared.queue.lock().stopping = true;
        self.shared.work.notify_all();
        let Some(writer) = self.writer.lock().take() else { return };
        // A follower that is never polled again must not hold the writer now.
        {
            let mut ring = self.shared.ring.lock();
            ring.followers.clear();
            self.shared.moved.notify_all();
        }
        let _caught_inside = writer.join();
        self.shared.run_then();
    }
}

impl<S: Storage> Drop for Partition<S> {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A reader of the ring. While it does not take what there is, the ring keeps it; a full ring holds the writer.
pub(crate) struct Following {
    shared: Arc<Shared>,
    id: u64,
    start: Offset,
}

impl Follow for Following {
    fn start(&self) -> Offset {
        self.start
    }

    fn poll(&self) -> Option<Arc<Batch>> {
        let mut ring = self.shared.ring.lock();
        let next = ring.followers.iter().find(|f| f.id == self.id)?.next;
        let batch = ring.batches[ring.find(next)?].clone();
        let end = batch.end();
        if let Some(follower) = ring.followers.iter_mut().find(|f| f.id == self.id) {
            follower.next = end;
        }
        drop(ring);
        self.shared.moved.notify_one();
        Some(batch)
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.shared.ring.lock().followers.retain(|f| f.id != self.id);
        self.shared.moved.notify_one();
    }
}
