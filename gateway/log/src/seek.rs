//! Finding where to begin reading: the first record of a time, or the last so many that a selector chooses.
//!
//! Invariant: times of batches never go back, so the places of the segments are sorted by them. Nothing is searched twice: the search for the last
//! records goes back in windows that double.
//! Must not know: who reads, or what a key means.

use crate::{
    Fetch, Offset, PartitionId, ReadError, Select,
    reader::{self, Source, Wanted},
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

/// Serves `seek` from the segments of a partition.
pub(crate) fn seek<S: Storage>(source: &Source<'_, S>, p: PartitionId, seek: &Seek) -> Result<Offset, ReadError> {
    match seek {
        Seek::Time(ms) => time(source, *ms),
        Seek::Last { count, select, below } => last(source, p, *count, select, *below),
    }
}

fn time<S: Storage>(source: &Source<'_, S>, ms: u64) -> Result<Offset, ReadError> {
    let mut segments = source.segments.all();
    // The last one that begins before this time holds it, or ends before it.
    while let Some((segment, after)) = segments.pop() {
        let end = after.unwrap_or(source.durable).min(source.durable);
        if let Some(place) = segment.place_before(ms, end)? {
            return scan(&segment, place, end, ms);
        }
        let rest = segments.last().is_none();
        if rest {
            return Ok(segment.head.base.min(source.durable));
        }
    }
    Ok(source.durable)
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

fn last<S: Storage>(
    source: &Source<'_, S>,
    p: PartitionId,
    count: u32,
    select: &Arc<dyn Select>,
    below: Offset,
) -> Result<Offset, ReadError> {
    let (start, count) = (source.segments.start(), count.min(LAST_MAX) as usize);
    let below = below.min(source.durable);
    let (mut end, mut window, mut missing) = (below, WINDOW.max(count as u64), count);
    let mut first = below;
    while missing > 0 && end > start {
        let from = Offset(end.0.saturating_sub(window)).max(start);
        let found = chosen(source, p, from..end, select, missing)?;
        missing -= found.len();
        first = found.front().copied().unwrap_or(first);
        (end, window) = (from, window * 2);
    }
    Ok(first)
}

/// The last `count` in a range.
fn chosen<S: Storage>(
    source: &Source<'_, S>,
    partition: PartitionId,
    range: std::ops::Range<Offset>,
    select: &Arc<dyn Select>,
    count: usize,
) -> Result<VecDeque<Offset>, ReadError> {
    let (mut at, mut found) = (range.start, VecDeque::new());
    while at < range.end {
        let wanted = Wanted::Range { from: at, to: range.end, select: select.clone() };
        let fetched = reader::fetch(source, &Fetch { partition, wanted, records_max: u32::MAX, bytes_max: FETCH_BYTES })?;
        found.extend(fetched.batch.iter().map(|r| r.offset));
        found.drain(..found.len().saturating_sub(count));
        if fetched.next <= at {
            break;
        }
        at = fetched.next;
    }
    Ok(found)
}
