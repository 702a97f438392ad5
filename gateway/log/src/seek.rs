//! Finding where to begin reading: the first record of a time, or the last so many that a selector chooses.
//!
//! Invariant: times of batches never go back, so the places of the segments are sorted by them. Nothing is searched twice: the search for the last
//! records goes back in windows that double.
//! Must not know: who reads, or what a key means.

use crate::{
    Fetch, Offset, PartitionId, ReadError, Select,
    reader::{self, Source, Wanted},
    readers::Budget,
    segment::{Place, Scan, Segment},
    storage::{File, Storage},
};
use std::{collections::VecDeque, sync::Arc};

/// More are found one fetch at a time: 8 B each are held meanwhile.
pub const LAST_MAX: u32 = 100_000;
/// Offsets of the first window.
const WINDOW: u64 = 1_024;
/// Read at once.
const FETCH_BYTES: u32 = 256 * 1024;

#[derive(Clone)]
pub enum Seek {
    /// The first record written at or after this time, ms since 1970; the durable end if there is none.
    Time(u64),
    /// The first of the last `count` (at most `LAST_MAX`) before `below` that `select` chooses; the first of all, if there are fewer; `below` or the
    /// durable end for none.
    Last { count: u32, select: Arc<dyn Select>, below: Offset },
}

/// A search, step by step.
pub(crate) enum Search {
    /// The segments from this one on are younger.
    Time(u64, Option<Offset>),
    Last(Last),
}

impl Search {
    pub fn new(partition: PartitionId, seek: Seek) -> Self {
        match seek {
            Seek::Time(ms) => Self::Time(ms, None),
            Seek::Last { count, select, below } => {
                Self::Last(Last { partition, select, below, count: count.min(LAST_MAX) as usize, window: None })
            }
        }
    }

    /// `None`: it goes on.
    pub fn step<S: Storage>(&mut self, source: &Source<'_, S>, budget: Budget) -> Option<Result<Offset, ReadError>> {
        match self {
            Self::Time(ms, looked) => time(source, *ms, looked, &budget).transpose(),
            Self::Last(last) => last.step(source, budget).transpose(),
        }
    }
}

fn time<S: Storage>(source: &Source<'_, S>, ms: u64, looked: &mut Option<Offset>, budget: &Budget) -> Result<Option<Offset>, ReadError> {
    let mut segments = source.segments.all();
    // Those that were looked at are younger.
    segments.retain(|(segment, _)| looked.is_none_or(|looked| segment.head.base < looked));
    // The last one that begins before this time holds it, or ends before it.
    while let Some((segment, after)) = segments.pop() {
        let end = after.unwrap_or(source.durable).min(source.durable);
        if let Some(place) = segment.place_before(ms, end)? {
            return scan(&segment, place, end, ms).map(Some);
        }
        if segments.is_empty() {
            return Ok(Some(segment.head.base.min(source.durable)));
        }
        *looked = Some(segment.head.base);
        if budget.is_over() {
            return Ok(None);
        }
    }
    // Retention has taken those that were left.
    Ok(Some(looked.unwrap_or(source.durable)))
}

/// The first record from `place` on that is not older, or the end.
fn scan<F: File>(segment: &Segment<F>, place: Place, end: Offset, ms: u64) -> Result<Offset, ReadError> {
    let mut scan = Scan::new(segment, place);
    while scan.next() < end {
        let at = scan.next();
        match scan.step() {
            Ok((_, time_ms)) if time_ms >= ms => return Ok(at),
            Ok(_) => {}
            Err(ReadError::Damaged { .. }) => {
                if scan.pass_damage()?.is_none() {
                    break;
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(end)
}

/// The last records that a selector chooses.
pub(crate) struct Last {
    partition: PartitionId,
    select: Arc<dyn Select>,
    below: Offset,
    count: usize,
    window: Option<Window>,
}

/// A part of the log that is looked through for the last records in it.
struct Window {
    start: Offset,
    end: Offset,
    /// Everything before this was looked at.
    at: Offset,
    /// The last of those that were found in it, as many as are missing.
    found: VecDeque<Offset>,
    missing: usize,
    /// The first that was found so far.
    first: Offset,
}

impl Window {
    /// Of so many offsets before `end`, but none below `floor`.
    fn before(end: Offset, offsets: u64, floor: Offset, missing: usize, first: Offset) -> Self {
        let start = Offset(end.0.saturating_sub(offsets)).max(floor);
        Self { start, end, at: start, found: VecDeque::new(), missing, first }
    }
}

impl Last {
    /// One fetch. `None`: it goes on.
    fn step<S: Storage>(&mut self, source: &Source<'_, S>, budget: Budget) -> Result<Option<Offset>, ReadError> {
        let (count, start) = (self.count, source.segments.start());
        let below = self.below.min(source.durable);
        let window = self.window.get_or_insert_with(|| Window::before(below, WINDOW.max(count as u64), start, count, below));
        if window.missing > 0 && window.at < window.end {
            let wanted = Wanted::Range { from: window.at, to: window.end, select: self.select.clone() };
            let asked = Fetch { partition: self.partition, wanted, records_max: u32::MAX, bytes_max: FETCH_BYTES };
            let fetched = reader::fetch(source, &asked, budget)?;
            window.found.extend(fetched.batch.iter().map(|r| r.offset));
            window.found.drain(..window.found.len().saturating_sub(window.missing));
            if fetched.next > window.at && fetched.next < window.end {
                window.at = fetched.next;
                return Ok(None);
            }
        }
        let (missing, first) = (window.missing - window.found.len(), window.found.front().copied().unwrap_or(window.first));
        if missing == 0 || window.start <= start {
            return Ok(Some(first));
        }
        self.window = Some(Window::before(window.start, (window.end.0 - window.start.0) * 2, start, missing, first));
        Ok(None)
    }
}

/// All steps at once.
#[cfg(test)]
pub(crate) fn seek<S: Storage>(source: &Source<'_, S>, p: PartitionId, seek: &Seek, records: u32) -> Result<Offset, ReadError> {
    let mut search = Search::new(p, seek.clone());
    loop {
        if let Some(found) = search.step(source, Budget::of_records(records)) {
            return found;
        }
    }
}
