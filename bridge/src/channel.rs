//! What all browsers with the same wish share: the latest frames of one filter in one partition, made once.
//!
//! Invariant: whoever asks with the position it has reached is given what comes next, or told where else to get it; nothing waits for anybody here, so memory is bounded
//! whatever the readers do.
//! Must not know: sockets, the log.

use crate::frame::{Frame, MESSAGE_BYTES};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};
use weir_log::Offset;

/// Frames that are kept for who comes late; what is older is read from the log.
const FRAMES_MAX: usize = 256;
/// Of a conflated channel, that are woken at once. A step wakes everybody who is there, and others on the same threads must have their turn.
const WAKES_MAX: usize = 32;
/// Steps of a conflated channel whose changes are known; who is further behind gets a new snapshot.
const TICKS_MAX: usize = 1_024;
/// Of a topic that has changed, beside its name.
const CHANGED_BYTES: usize = 160;
/// Places of newest records that are given at once; few where parts are tested.
const CHANGED_AT_ONCE: usize = if cfg!(test) { 3 } else { 1_000 };

/// What is wanted of a partition.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Wish {
    pub filter: Box<str>,
    /// Only the newest of each topic, once in this time; else every record.
    pub conflate: Option<Duration>,
}

/// What comes after a position.
#[derive(Debug)]
pub enum Next {
    /// Nothing yet; everything below was looked at.
    Nothing(Offset),
    Frames(Vec<Arc<Frame>>),
    /// The log has it, up to here.
    Read(Offset),
    /// Newest records by now; with them everything below `end` is said. `matched` were wanted in the steps that end there.
    Newest {
        places: Vec<Offset>,
        end: Offset,
        matched: u64,
    },
    /// Too far behind: only a new snapshot helps.
    Beyond,
    /// The log cannot be followed any more.
    Stopped,
}

/// A step of a conflated channel.
struct Tick {
    after: Offset,
    end: Offset,
    matched: u64,
}

#[derive(Default)]
struct Recent {
    frames: VecDeque<Arc<Frame>>,
    bytes: usize,
    /// Where the last frame, or the channel, ended or began.
    said: Offset,
    /// The same before what was pushed last.
    before: Offset,
    /// Everything below was looked at.
    end: Offset,
    ticks: VecDeque<Tick>,
    changed: HashMap<Arc<str>, Offset>,
    places: BTreeMap<Offset, Arc<str>>,
    /// Of what has changed.
    changed_bytes: usize,
}

/// What a topic that has changed takes.
pub fn weight(topic: &str) -> usize {
    topic.len() + CHANGED_BYTES
}

/// Newest places since the last step.
#[derive(Default)]
pub struct Dirty {
    topics: HashMap<Arc<str>, Offset>,
    bytes: usize,
    /// There was no room for all of them.
    is_over: bool,
    first: Option<Offset>,
    matched: u64,
}

pub struct Channel {
    pub wish: Wish,
    recent: Mutex<Recent>,
    bells: Mutex<Vec<Arc<Notify>>>,
    /// Told once in a while to who joins.
    pub snapshot: tokio::sync::Mutex<Option<Arc<crate::snapshot::Snapshot>>>,
    dirty: Mutex<Dirty>,
    /// A conflated channel says nothing before.
    due: Mutex<Instant>,
    stopped: AtomicBool,
}

impl Channel {
    #[must_use]
    pub fn new(wish: Wish, start: Offset) -> Self {
        Self {
            wish,
            recent: Mutex::new(Recent { said: start, before: start, end: start, ..Recent::default() }),
            bells: Mutex::default(),
            snapshot: tokio::sync::Mutex::default(),
            dirty: Mutex::default(),
            due: Mutex::new(Instant::now()),
            stopped: AtomicBool::new(false),
        }
    }

    /// Rung when there is something.
    pub fn join(&self, bell: &Arc<Notify>) {
        self.bells.lock().push(bell.clone());
    }

    pub fn leave(&self, bell: &Arc<Notify>) {
        let mut bells = self.bells.lock();
        if let Some(at) = bells.iter().position(|b| Arc::ptr_eq(b, bell)) {
            bells.swap_remove(at);
        }
    }

    pub fn is_idle(&self) -> bool {
        self.bells.lock().is_empty()
    }

    /// Nothing more comes.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.ring();
    }

    /// Conflated, many are woken one group after another, over half a step at most.
    fn ring(&self) {
        let bells = self.bells.lock();
        let Some(step) = self.wish.conflate.filter(|_| bells.len() > WAKES_MAX) else {
            return bells.iter().for_each(|b| b.notify_one());
        };
        let bells = bells.clone();
        tokio::spawn(async move {
            let mut turns = tokio::time::interval(step / 2 / bells.len().div_ceil(WAKES_MAX) as u32);
            for group in bells.chunks(WAKES_MAX) {
                turns.tick().await;
                group.iter().for_each(|b| b.notify_one());
            }
        });
    }

    /// Everything below was looked at.
    pub fn advance(&self, end: Offset) {
        self.recent.lock().end = end;
    }

    /// Where the next frame begins.
    pub fn said(&self) -> Offset {
        self.recent.lock().said
    }

    /// Everything below was passed over: whoever has not come there yet reads the log, or gets a new snapshot.
    pub fn skip(&self, end: Offset) {
        *self.recent.lock() = Recent { said: end, before: end, end, ..Recent::default() };
        *self.dirty.lock() = Dirty::default();
        self.ring();
    }

    /// Frames that follow each other, of which so many bytes are kept; of a conflated channel those of one step.
    pub fn push(&self, frames: Vec<Frame>, bytes_max: usize) {
        {
            let mut r = self.recent.lock();
            if frames.first().is_none_or(|f| f.after != r.said) {
                // They were made before others were passed over.
                return;
            }
            // Conflated, each is only good for who has everything before it: the last step is kept, and one more for whose turn is only now.
            let kept_from = if self.wish.conflate.is_some() { r.before } else { Offset(0) };
            r.before = r.said;
            for frame in frames {
                (r.said, r.end) = (frame.end, frame.end.max(r.end));
                r.bytes += frame.bytes();
                r.frames.push_back(Arc::new(frame));
            }
            let is_old = |r: &Recent| r.frames.front().is_some_and(|f| f.end <= kept_from);
            while is_old(&r) || r.frames.len() > FRAMES_MAX || r.bytes > bytes_max {
                let Some(frame) = r.frames.pop_front() else { break };
                r.bytes -= frame.bytes();
            }
        }
        self.ring();
    }

    /// Forgets a snapshot that nobody shares any more.
    pub fn forget_snapshot(&self) {
        if let Ok(mut snapshot) = self.snapshot.try_lock() {
            snapshot.take_if(|s| !s.is_fresh());
        }
    }

    /// Of what is noted of steps that were said.
    #[cfg(test)]
    pub fn changed_bytes(&self) -> usize {
        self.recent.lock().changed_bytes
    }

    /// Of the frames that are kept.
    pub fn bytes(&self) -> usize {
        self.recent.lock().bytes
    }

    /// Of a conflated channel: `count` records of a topic came, the first and the last here. What is noted takes `bytes_max` at most.
    pub fn mark(&self, topic: &Arc<str>, (first, last): (Offset, Offset), count: u64, bytes_max: usize) {
        let mut dirty = self.dirty.lock();
        dirty.first.get_or_insert(first);
        dirty.matched += count;
        if let Some(at) = dirty.topics.get_mut(topic) {
            *at = last;
        } else if dirty.bytes + weight(topic) > bytes_max {
            dirty.is_over = true;
        } else {
            dirty.bytes += weight(topic);
            dirty.topics.insert(topic.clone(), last);
        }
    }

    /// More has changed than is noted: pass it over with `skip`.
    pub fn is_over(&self) -> bool {
        self.dirty.lock().is_over
    }

    /// When a conflated channel has something to say; `None`: nothing yet, or a frame is being made.
    pub fn due(&self) -> Option<Instant> {
        if self.recent.lock().is_making() {
            return None;
        }
        (!self.dirty.lock().topics.is_empty()).then(|| *self.due.lock())
    }

    /// What a conflated channel has to say now: places, the first record of all, how many there were, and up to where.
    pub fn take(&self, now: Instant, bytes_max: usize) -> Option<(Vec<Offset>, Offset, u64, Offset)> {
        let mut r = self.recent.lock();
        let dirty = std::mem::take(&mut *self.dirty.lock());
        let first = dirty.first?;
        *self.due.lock() = now + self.wish.conflate.unwrap_or_default();
        let mut places: Vec<_> = dirty.topics.values().copied().collect();
        places.sort_unstable();
        for (topic, at) in dirty.topics {
            let bytes = weight(&topic);
            r.places.insert(at, topic.clone());
            match r.changed.insert(topic, at) {
                Some(before) => drop(r.places.remove(&before)),
                None => r.changed_bytes += bytes,
            }
        }
        let (after, end) = (r.said, r.end);
        r.ticks.push_back(Tick { after, end, matched: dirty.matched });
        while r.ticks.len() > TICKS_MAX || (r.changed_bytes > bytes_max && r.ticks.len() > 1) {
            let Some(tick) = r.ticks.pop_front() else { break };
            while let Some(oldest) = r.places.first_entry().filter(|e| *e.key() < tick.end) {
                let topic = oldest.remove();
                r.changed.remove(&topic);
                r.changed_bytes -= weight(&topic);
            }
        }
        Some((places, first, dirty.matched, end))
    }

    /// What comes after `next`, for who has everything before it.
    pub fn next(&self, next: Offset) -> Next {
        if self.stopped.load(Ordering::Acquire) {
            return Next::Stopped;
        }
        let r = self.recent.lock();
        if self.wish.conflate.is_none() {
            return r.every(next);
        }
        // What was marked is looked at, but not said; what was taken is being made into a frame.
        let clean = self.dirty.lock().first.is_none() && !r.is_making();
        match r.newest(next) {
            Next::Nothing(at) if clean => Next::Nothing(r.end.max(at)),
            other => other,
        }
    }
}

impl Recent {
    /// A step was taken, and its frame is not here yet.
    fn is_making(&self) -> bool {
        self.ticks.back().is_some_and(|t| t.end > self.said)
    }

    fn every(&self, next: Offset) -> Next {
        let from = self.frames.partition_point(|f| f.end <= next);
        let Some(frame) = self.frames.get(from) else {
            // All that was said ends at or before `next`, or nothing was.
            return if next < self.said { Next::Read(self.said) } else { Next::Nothing(self.end.max(next)) };
        };
        if next < frame.after {
            return Next::Read(frame.after);
        }
        if next > frame.first {
            return Next::Read(frame.end);
        }
        let (mut bytes, mut frames) = (0, Vec::new());
        for f in self.frames.range(from..) {
            bytes += f.bytes();
            if bytes > MESSAGE_BYTES && !frames.is_empty() {
                break;
            }
            frames.push(f.clone());
        }
        Next::Frames(frames)
    }

    fn newest(&self, next: Offset) -> Next {
        if next >= self.said {
            return Next::Nothing(next);
        }
        let at = self.frames.partition_point(|f| f.end <= next);
        if let Some(frame) = self.frames.get(at).filter(|f| f.after <= next && next <= f.first) {
            return Next::Frames(vec![frame.clone()]);
        }
        if self.ticks.front().is_none_or(|t| next < t.after) {
            return Next::Beyond;
        }
        let mut places: Vec<_> = self.places.range(next..self.said).take(CHANGED_AT_ONCE + 1).map(|(at, _)| *at).collect();
        // In parts, for a long list: go on at the next place.
        let end = if places.len() > CHANGED_AT_ONCE { places.pop().unwrap_or(self.said) } else { self.said };
        let matched = self.ticks.iter().filter(|t| next < t.end && t.end <= end).map(|t| t.matched).sum();
        Next::Newest { places, end, matched }
    }
}
