//! A partition at work: what waits to be written, and who writes it.
//!
//! ```text
//!   append ──▶ pending ──▶ the writer's thread ──────────▶ write, sync ──▶ durable ──▶ ring ──▶ wakes
//!      └──── alone, and little: on the caller's own thread ────▲
//! ```
//!
//! Invariant: one batch is written at a time (`Queue::writing`), whoever writes it. `durable` moves only after the sync; then the ring has the batch,
//! then everybody who waits is woken. Whoever registers for a wake-up and then looks at the watermark misses nothing.
//! Must not know: keys, or what a waiter waits for.

use crate::sync::{
    Condvar, Mutex,
    atomic::{AtomicU64, Ordering},
    thread::{self, JoinHandle},
};
use crate::{
    AppendError, Batch, Commit, Durability, Failure, Memory, Observe, Offset, PartitionId, Receipt, Records, Span, Stall, Wake, Watermark,
    appender::{Appender, CommitError},
    batch::BATCH_HEAD,
    pending::{Pending, Room, Standing},
    record::Registration,
    ring::{Following, Ring},
    segment::{BLOCK, Limits, Segments},
    storage::Storage,
};
use std::{
    mem,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

type Then = Box<dyn FnOnce() + Send>;

/// A caller's own thread writes no more than this at once: it has other things to do.
const LEAD_BYTES_MAX: usize = 16 * 1024;
/// Nor when the last batch was of more appenders than this: then a batch gathers while another is written, and the writer's thread is faster for all.
const LEAD_CROWD_MAX: usize = 4;
/// Nor when the last sync took longer: a slow disk holds up the caller's other work once, not always.
const LEAD_SYNC_MAX: Duration = Duration::from_millis(1);

struct Queue {
    pending: Pending,
    /// Where it will stand, unless a new segment is begun for it; while another is written, where that one does.
    standing: Standing,
    /// For the one after it.
    room: Room,
    /// Counts batches, so that an appender is registered once in each.
    number: u64,
    /// When the first of what waits was accepted.
    since: Instant,
    /// One past the last accepted record.
    end: Offset,
    /// A batch is being written, or is stalled.
    writing: bool,
    /// The batch that could not be begun: nothing is written before it.
    stalled: Option<Taken>,
    last: Last,
    wakes: Vec<Arc<dyn Wake>>,
    /// Those that found the batch full.
    full: Vec<Arc<dyn Wake>>,
    /// To run once this offset is durable (or the partition has failed).
    then: Vec<(Offset, Then)>,
    stopping: bool,
}

/// What the last batch says of the load.
struct Last {
    ended: Instant,
    sync: Duration,
    appenders: usize,
    /// The address of one of them: only for comparison.
    by: usize,
}

impl Last {
    /// Nobody but this caller seems to write. Of another that comes sooner than a sync after the last batch, more will come: written one by one, each by its own
    /// thread, they would wait for each other, and with one thread for all of them no batch would ever gather.
    fn is_quiet(&self, now: Instant, by: usize) -> bool {
        let alone = self.by == by || now.saturating_duration_since(self.ended) >= self.sync;
        alone && self.appenders <= LEAD_CROWD_MAX && self.sync <= LEAD_SYNC_MAX
    }
}

fn address(who: &Arc<dyn Wake>) -> usize {
    Arc::as_ptr(who).cast::<()>() as usize
}

/// Between two tries to begin a segment while there is no room or no descriptor for it.
const RETRY_EVERY: Duration = Duration::from_millis(100);

/// What became of a batch.
enum Written {
    Durable,
    /// It waits for the writer's thread to try again.
    Stalled,
    /// Nothing more will be written.
    Failed,
}

/// Work for whoever writes.
struct Taken {
    pending: Pending,
    /// When the first of it was accepted.
    since: Instant,
    wakes: Vec<Arc<dyn Wake>>,
    /// Those that found the batch full.
    full: Vec<Arc<dyn Wake>>,
}

impl Queue {
    fn take(&mut self) -> Taken {
        self.writing = true;
        self.number += 1;
        let next = self.pending.next(self.standing, mem::take(&mut self.room));
        Taken {
            pending: mem::replace(&mut self.pending, next),
            since: self.since,
            wakes: mem::take(&mut self.wakes),
            full: mem::take(&mut self.full),
        }
    }
}

pub(crate) struct Shared {
    id: PartitionId,
    limits: Limits,
    /// Keys are indexed.
    indexed: bool,
    /// It has a writer of its own; else it is stepped.
    pub threads: bool,
    now_ms: fn() -> u64,
    observe: Arc<dyn Observe>,
    queue: Mutex<Queue>,
    work: Condvar,
    durable: AtomicU64,
    failed: OnceLock<Arc<Failure>>,
    stall: Mutex<Option<Arc<Stall>>>,
    pub ring: Arc<Ring>,
}

impl Shared {
    pub fn append(&self, records: &mut Records, who: &Arc<dyn Wake>) -> Result<Receipt, AppendError> {
        self.enqueue(records, who, false).map(|(receipt, _)| receipt)
    }

    /// `leads`: the caller would write it. It is given what to write, and must, when that is best.
    fn enqueue(&self, records: &mut Records, who: &Arc<dyn Wake>, leads: bool) -> Result<(Receipt, Option<Taken>), AppendError> {
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
        let receipt = Receipt(q.end.0);
        // A new segment takes a create and two syncs more: that is the writer's.
        let rolls = (q.standing.at + (bytes + BATCH_HEAD) as u64).next_multiple_of(BLOCK) > u64::from(self.limits.segment_bytes);
        let alone = first && !q.writing && !rolls && bytes <= LEAD_BYTES_MAX && q.last.is_quiet(q.since, address(who));
        if leads && alone && self.threads && self.ring.has_room() {
            q.last.by = address(who);
            // It is there itself when its batch is durable, and nobody needs to wake it.
            return Ok((receipt, Some(q.take())));
        }
        let registration = Registration { partition: self.id, batch: q.number };
        if records.registered != registration {
            records.registered = registration;
            q.wakes.push(who.clone());
        }
        let idle = first && !q.writing;
        drop(q);
        if idle {
            self.work.notify_one();
        }
        Ok((receipt, None))
    }

    pub fn appended(&self) -> Watermark {
        match self.failed.get() {
            Some(failure) => Watermark::Failed(failure.clone()),
            None => Watermark::Appended(Receipt(self.durable.load(Ordering::Acquire))),
        }
    }

    pub fn stalled(&self) -> Option<Arc<Stall>> {
        self.stall.lock().clone()
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

    pub fn memory(&self) -> Memory {
        let (pending_bytes_max, recent_bytes_max) = (self.limits.pending_bytes_max, self.limits.ring_bytes);
        let pending_bytes = self.queue.lock().pending.bytes();
        Memory { pending_bytes, pending_bytes_max, recent_bytes: self.ring.bytes(), recent_bytes_max }
    }

    /// The next work for the writer; `None` when it shall end.
    fn take(&self) -> Option<Taken> {
        let mut q = self.queue.lock();
        while q.pending.is_empty() || q.writing {
            if q.stalled.is_some() && !q.stopping && self.threads {
                self.work.wait_for(&mut q, RETRY_EVERY);
            }
            if let Some(stalled) = q.stalled.take() {
                return Some(stalled);
            }
            if self.failed() || q.stopping && !q.writing {
                return None;
            }
            self.work.wait(&mut q);
        }
        (!self.failed()).then(|| q.take())
    }

    fn fail(&self, failure: Failure) {
        let failure = Arc::new(failure);
        let _first_failure_stays = self.failed.set(failure);
        let mut q = self.queue.lock();
        q.writing = false;
        let (wakes, full) = (mem::take(&mut q.wakes), mem::take(&mut q.full));
        drop(q);
        self.work.notify_all();
        wakes.iter().chain(&full).for_each(|w| w.wake());
        self.ring.wake_followers();
        self.run_then();
    }

    /// Writes it as one batch. `caller`: whose thread this is, who need not be woken unless somebody else writes it in the end.
    fn write_one<S: Storage>(&self, appender: &Mutex<Appender<S>>, taken: Taken, caller: Option<&Arc<dyn Wake>>) -> Written {
        let Taken { pending, since, mut wakes, full } = taken;
        full.iter().for_each(|w| w.wake());
        // What it was writing may not pass as durable after a panic (printed by its thread), and nobody may wait for it.
        let written = panic::catch_unwind(AssertUnwindSafe(|| self.commit(&mut appender.lock(), pending, since, &wakes)));
        match written {
            Ok(Ok(())) => Written::Durable,
            Ok(Err(CommitError::Stalled { pending, stall })) if !self.queue.lock().stopping => {
                wakes.extend(caller.cloned());
                self.stall(Taken { pending: *pending, since, wakes, full: Vec::new() }, stall);
                Written::Stalled
            }
            Ok(Err(e)) => self.give_up(e.into(), &wakes),
            Err(_panicked) => {
                let error = std::io::Error::other("it panicked");
                self.give_up(Failure { what: "the writer".into(), error }, &wakes)
            }
        }
    }

    fn give_up(&self, failure: Failure, wakes: &[Arc<dyn Wake>]) -> Written {
        self.fail(failure);
        wakes.iter().for_each(|w| w.wake());
        Written::Failed
    }

    /// Puts a batch back that could not be begun. Appends wait behind it, as behind a slow disk.
    fn stall(&self, taken: Taken, stall: Stall) {
        let mut known = self.stall.lock();
        if known.is_none() {
            eprintln!("{stall}");
        }
        *known = Some(Arc::new(stall));
        drop(known);
        self.queue.lock().stalled = Some(taken);
        self.work.notify_one();
    }

    fn commit<S: Storage>(
        &self,
        appender: &mut Appender<S>,
        pending: Pending,
        since: Instant,
        wakes: &[Arc<dyn Wake>],
    ) -> Result<(), CommitError> {
        let batch = appender.commit(pending, (self.now_ms)())?;
        let (at, end) = (Instant::now(), batch.end());
        if let Some(passed) = self.stall.lock().take() {
            eprintln!("{}: it has passed, and what was waiting is written", passed.what);
        }
        self.durable.store(end.0, Ordering::Release);
        let batch = Arc::new(batch);
        let (followers, gone) = self.ring.push(batch.clone());
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
        let gone = gone.and_then(Arc::into_inner).map(Batch::into_room).unwrap_or_default();
        let room = appender.take_room().or(gone);
        self.written(appender, wakes, room);
        Ok(())
    }

    /// The next may be written.
    fn written<S: Storage>(&self, appender: &Appender<S>, wakes: &[Arc<dyn Wake>], room: Room) {
        let sync = appender.sync_took();
        let mut q = self.queue.lock();
        q.writing = false;
        (q.standing, q.room) = (appender.standing(), room);
        let by = wakes.first().map_or(q.last.by, address);
        q.last = Last { ended: Instant::now(), sync, appenders: wakes.len(), by };
        let more = !q.pending.is_empty() || q.stopping;
        drop(q);
        if more {
            self.work.notify_one();
        }
    }

    /// The writer's thread.
    fn write<S: Storage>(&self, appender: &Mutex<Appender<S>>) {
        loop {
            let Some(taken) = self.take() else { return };
            self.ring.wait_for_room();
            if matches!(self.write_one(appender, taken, None), Written::Failed) {
                return;
            }
        }
    }

    /// Something waits to be written, and there is room for it.
    #[cfg(any(test, feature = "sim"))]
    fn can_write(&self) -> bool {
        let q = self.queue.lock();
        let waits = !q.pending.is_empty() || q.stalled.is_some();
        waits && !self.failed() && self.ring.has_room()
    }
}

/// How a partition begins.
pub(crate) struct Beginning<'a> {
    pub id: PartitionId,
    pub limits: Limits,
    pub durability: Durability,
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
    pub durability: Durability,
    /// Locked by whoever has set `Queue::writing`.
    appender: Arc<Mutex<Appender<S>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl<S: Storage> Partition<S> {
    pub fn start(beginning: Beginning<'_>, appender: Appender<S>) -> std::io::Result<Self> {
        let Beginning { id, limits, durability, name, indexed, threads, now_ms, observe } = beginning;
        let end = appender.next();
        let segments = appender.segments().clone();
        let queue = Queue {
            pending: Pending::at(appender.standing(), 0, Room::default()),
            standing: appender.standing(),
            room: Room::default(),
            number: 1,
            since: Instant::now(),
            end,
            writing: false,
            stalled: None,
            last: Last { ended: Instant::now(), sync: Duration::ZERO, appenders: 0, by: 0 },
            wakes: Vec::new(),
            full: Vec::new(),
            then: Vec::new(),
            stopping: false,
        };
        let shared = Arc::new(Shared {
            id,
            limits,
            indexed,
            threads,
            now_ms,
            observe,
            queue: Mutex::new(queue),
            work: Condvar::new(),
            durable: AtomicU64::new(end.0),
            failed: OnceLock::new(),
            stall: Mutex::new(None),
            ring: segments.ring.clone(),
        });
        let appender = Arc::new(Mutex::new(appender));
        let (thread, written) = (shared.clone(), appender.clone());
        let writer =
            threads.then(|| thread::Builder::new().name(format!("log-{name}")).spawn(move || thread.write(&written))).transpose()?;
        Ok(Self { shared, segments, durability, appender, writer: Mutex::new(writer) })
    }

    /// Appends; what would be written alone is written and synced before it returns, on this thread: two hand-overs less.
    pub fn append_leading(&self, records: &mut Records, who: &Arc<dyn Wake>) -> Result<Receipt, AppendError> {
        let (receipt, taken) = self.shared.enqueue(records, who, true)?;
        if let Some(taken) = taken {
            // A failure shows in the watermark.
            self.shared.write_one(&self.appender, taken, Some(who));
        }
        Ok(receipt)
    }

    /// Writes and syncs one batch, if one waits and the ring has room. False: nothing to do.
    #[cfg(any(test, feature = "sim"))]
    pub fn step(&self) -> bool {
        let taken = self.shared.can_write().then(|| self.shared.take()).flatten();
        taken.map(|taken| self.shared.write_one(&self.appender, taken, None)).is_some()
    }

    /// Nobody writes but who steps.
    #[cfg(any(test, feature = "sim"))]
    pub fn is_stepped(&self) -> bool {
        !self.shared.threads
    }

    /// There was no room: whoever waits lets the writer write.
    pub fn wait_a_little(&self) {
        #[cfg(any(test, feature = "sim"))]
        if self.is_stepped() && self.step() {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }

    pub fn span(&self) -> Span {
        Span { start: self.segments.start(), durable: self.shared.durable() }
    }

    pub fn follow(&self, wake: Arc<dyn Wake>) -> Following {
        Following::new(self.shared.ring.clone(), || self.shared.durable(), wake)
    }

    /// Makes everything accepted durable and ends the writer; later appends are refused.
    pub fn stop(&self) {
        self.shared.queue.lock().stopping = true;
        self.shared.work.notify_all();
        let Some(writer) = self.writer.lock().take() else { return };
        // A follower that is never polled again must not hold the writer now.
        self.shared.ring.let_go();
        let _caught_inside = writer.join();
        self.shared.run_then();
    }

    /// Stopped, and all of it is on the disk, or the partition has failed.
    pub fn finish(&self) {
        self.stop();
        if let Err(failure) = self.appender.lock().finish() {
            self.shared.fail(failure);
        }
    }
}

impl<S: Storage> Drop for Partition<S> {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_told_from_one_who_writes_alone() {
        let (sync, ended) = (Duration::from_micros(100), Instant::now());
        let last = |appenders, sync| Last { ended, sync, appenders, by: 7 };
        let soon = ended + Duration::from_micros(20);
        let later = ended + Duration::from_micros(100);
        assert!(last(0, sync).is_quiet(soon, 7), "the same again: it had waited for its acknowledgement");
        assert!(!last(0, sync).is_quiet(soon, 8), "another: more come");
        assert!(last(0, sync).is_quiet(later, 8));
        assert!(last(LEAD_CROWD_MAX, sync).is_quiet(later, 8) && !last(LEAD_CROWD_MAX + 1, sync).is_quiet(later, 7));
        assert!(!last(0, LEAD_SYNC_MAX * 2).is_quiet(ended + LEAD_SYNC_MAX * 9, 7), "a slow disk");
    }
}
