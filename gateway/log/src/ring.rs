//! The newest durable batches of a partition in memory, and who follows them.
//!
//! Followers pull: one that does not take what there is keeps it, and a full ring holds the writer; so memory is bounded without counting what anybody has queued.
//! Whoever reads the file of a segment finds here what is newest, and asks the disk only for what is older.
//!
//! Invariant: what is here is durable, dense and in order; what a follower has yet to take stays.
//! Must not know: what is in the batches, who writes them.

use crate::sync::{Condvar, Mutex};
use crate::{Batch, Follow, Offset, Wake};
use std::{collections::VecDeque, sync::Arc};

/// Of one read: the lock is held while they are found.
const READ_BATCHES_MAX: usize = 64;

pub(crate) struct Ring {
    bytes_max: usize,
    inside: Mutex<Inside>,
    /// A follower has moved on.
    moved: Condvar,
}

#[derive(Default)]
struct Inside {
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

impl Inside {
    /// For one batch more.
    fn has_room(&mut self, bytes_max: usize) -> bool {
        self.shrink(bytes_max);
        self.bytes <= bytes_max || self.batches.len() <= 1
    }

    /// Drops the oldest batches that are too many and that every follower has. Gives the largest of them.
    fn shrink(&mut self, bytes_max: usize) -> Option<Arc<Batch>> {
        let needed = self.followers.iter().map(|f| f.next).min();
        let mut largest: Option<Arc<Batch>> = None;
        while self.bytes > bytes_max && self.batches.len() > 1 {
            let oldest = self.batches.pop_front_if(|oldest| needed.is_none_or(|n| oldest.end() <= n));
            let Some(oldest) = oldest else { break };
            self.bytes -= oldest.memory();
            if largest.as_ref().is_none_or(|l| l.memory() < oldest.memory()) {
                largest = Some(oldest);
            }
        }
        largest
    }

    /// Index of the batch that holds `offset`.
    fn find(&self, offset: Offset) -> Option<usize> {
        let i = self.batches.partition_point(|b| b.first() <= offset).checked_sub(1)?;
        (offset < self.batches[i].end()).then_some(i)
    }
}

impl Ring {
    pub fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { bytes_max, inside: Mutex::default(), moved: Condvar::new() })
    }

    /// Takes the next batch; gives the followers, who are to be woken, and the largest that it let go for it.
    pub fn push(&self, batch: Arc<Batch>) -> (Vec<Arc<dyn Wake>>, Option<Arc<Batch>>) {
        let mut ring = self.inside.lock();
        debug_assert!(ring.bytes <= self.bytes_max || ring.batches.len() <= 1, "the bound of the ring, and one batch");
        ring.bytes += batch.memory();
        ring.batches.push_back(batch);
        let gone = ring.shrink(self.bytes_max);
        (ring.followers.iter().map(|f| f.wake.clone()).collect(), gone)
    }

    pub fn has_room(&self) -> bool {
        self.inside.lock().has_room(self.bytes_max)
    }

    /// Waits until a lagging follower has let go of enough: memory stays bounded.
    pub fn wait_for_room(&self) {
        let mut ring = self.inside.lock();
        while !ring.has_room(self.bytes_max) {
            self.moved.wait(&mut ring);
        }
    }

    /// The batches that hold these offsets, as far as they are still here.
    pub fn find(&self, offsets: &[Offset]) -> Vec<Option<Arc<Batch>>> {
        let ring = self.inside.lock();
        offsets.iter().map(|o| ring.find(*o).map(|i| ring.batches[i].clone())).collect()
    }

    /// First offset that is here.
    pub fn start(&self) -> Option<Offset> {
        self.inside.lock().batches.front().map(|b| b.first())
    }

    pub fn bytes(&self) -> usize {
        self.inside.lock().bytes
    }

    /// Reads what the file of the segment with this base has at `at`, as many batches as there is room for; `None`: it is not here.
    pub fn read_at(&self, base: Offset, into: &mut [u8], at: u64) -> Option<usize> {
        let batches = self.of_file(base, at, into.len());
        let mut done = 0;
        for batch in batches {
            // Between two lie zeros up to the next multiple of eight.
            let gap = usize::try_from(batch.place().1.saturating_sub(at)).ok()?.saturating_sub(done);
            let from = usize::try_from(at.saturating_sub(batch.place().1)).ok()?;
            let (bytes, room) = (batch.sealed_bytes().get(from..)?, into.get_mut(done..)?);
            let Some(room) = room.get_mut(..(gap + bytes.len()).min(room.len())) else { break };
            let (zeros, room) = room.split_at_mut(gap.min(room.len()));
            zeros.fill(0);
            room.copy_from_slice(bytes.get(..room.len())?);
            done += zeros.len() + room.len();
        }
        (done > 0).then_some(done)
    }

    /// Is the file's byte here?
    pub fn holds(&self, base: Offset, at: u64) -> bool {
        let ring = self.inside.lock();
        let before = ring.batches.partition_point(|b| b.place() <= (base, at)).checked_sub(1);
        let batch = before.and_then(|i| ring.batches.get(i)).filter(|b| b.place().0 == base);
        batch.is_some_and(|b| at < b.place().1 + b.sealed_bytes().len() as u64)
    }

    /// The batches that hold so many bytes of a file from `at` on; none unless the first of them does.
    fn of_file(&self, base: Offset, at: u64, bytes: usize) -> Vec<Arc<Batch>> {
        let end = at + bytes as u64;
        let ring = self.inside.lock();
        let Some(first) = ring.batches.partition_point(|b| b.place() <= (base, at)).checked_sub(1) else { return Vec::new() };
        let of_it = ring.batches.range(first..).take_while(|b| b.place().0 == base && b.place().1 < end);
        let found: Vec<_> = of_it.take(READ_BATCHES_MAX).cloned().collect();
        let holds = found.first().is_some_and(|b| at < b.place().1 + b.sealed_bytes().len() as u64);
        if holds { found } else { Vec::new() }
    }

    pub fn wake_followers(&self) {
        let wakes: Vec<_> = self.inside.lock().followers.iter().map(|f| f.wake.clone()).collect();
        wakes.iter().for_each(|w| w.wake());
    }

    /// Nobody holds the writer any more.
    pub fn let_go(&self) {
        self.inside.lock().followers.clear();
        self.moved.notify_all();
    }
}

/// A reader of the ring.
pub(crate) struct Following {
    ring: Arc<Ring>,
    id: u64,
    start: Offset,
}

impl Following {
    /// From the end of what is here; of an empty ring, from `durable`.
    pub fn new(ring: Arc<Ring>, durable: impl Fn() -> Offset, wake: Arc<dyn Wake>) -> Self {
        let mut inside = ring.inside.lock();
        // Under the lock: a batch that is pushed later is seen by this follower, one that was pushed before is not.
        let start = inside.batches.back().map_or_else(durable, |b| b.end());
        let id = inside.next_follower;
        inside.next_follower += 1;
        inside.followers.push(Follower { id, next: start, wake });
        drop(inside);
        Self { ring, id, start }
    }
}

impl Follow for Following {
    fn start(&self) -> Offset {
        self.start
    }

    fn poll(&self) -> Option<Arc<Batch>> {
        let mut ring = self.ring.inside.lock();
        let next = ring.followers.iter().find(|f| f.id == self.id)?.next;
        let batch = ring.batches[ring.find(next)?].clone();
        let end = batch.end();
        if let Some(follower) = ring.followers.iter_mut().find(|f| f.id == self.id) {
            follower.next = end;
        }
        drop(ring);
        self.ring.moved.notify_one();
        Some(batch)
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.ring.inside.lock().followers.retain(|f| f.id != self.id);
        self.ring.moved.notify_one();
    }
}
