//! Reading: a range of a partition through a selector, or exact offsets.
//!
//! Invariant: never past the durable end; every record's CRC is checked before anybody sees it; a fetch examines all records before
//! `next` or fails.
//! Must not know: who reads, or what a key means.

use crate::{
    Batch, Damage, Offset, PartitionId, ReadError,
    appender::Appender,
    batch::parse,
    index::{self, Cache},
    readers::Budget,
    segment::{self, BATCHES_AT, PLACE_BYTES, Placed, Scan, Segment, Segments},
    storage::{File, Storage},
};
use std::{ops::Range, sync::Arc};

/// Chooses records by key. Called on the log's reader threads.
pub trait Select: Send + Sync {
    fn matches(&self, key: &[u8]) -> bool;

    /// Where keys that match may go on after `key`, which does not: an index passes over the others.
    fn skip(&self, _key: &[u8], _to: &mut Vec<u8>) -> Skip {
        Skip::Next
    }

    /// Every record is to have the time of its own batch. Without it one that an index finds has that of a place up to 64 KiB before it: finding its batch
    /// takes a look at each header between.
    fn wants_times(&self) -> bool {
        false
    }

    /// It chooses so much that an index is no help.
    fn is_wide(&self) -> bool {
        false
    }
}

/// Where a scan of sorted keys goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    Next,
    /// With the first key at or after what was written.
    To,
    /// No key after it matches.
    End,
}

/// Every record.
pub struct Everything;

impl Select for Everything {
    fn matches(&self, _key: &[u8]) -> bool {
        true
    }

    fn is_wide(&self) -> bool {
        true
    }
}

#[derive(Clone)]
pub enum Wanted {
    /// Records of `[from, to)` that `select` chooses.
    Range { from: Offset, to: Offset, select: Arc<dyn Select> },
    /// These records, ascending.
    Exactly(Vec<Offset>),
}

#[derive(Clone)]
pub struct Fetch {
    pub partition: PartitionId,
    pub wanted: Wanted,
    pub records_max: u32,
    /// Stop after this many bytes of chosen records; one record is always given.
    pub bytes_max: u32,
}

#[derive(Debug, Default)]
pub struct Fetched {
    /// Chosen records in offset order.
    pub batch: Batch,
    /// Everything wanted before this offset was examined: go on here. At least `to`, or past the last offset wanted, when the fetch is complete.
    pub next: Offset,
    /// Wanted, and not there: taken by retention, or damaged. Empty: nothing.
    pub lost: Range<Offset>,
    /// Why it is lost, if retention has not taken it.
    pub damage: Option<Damage>,
}

/// What a fetch reads from.
pub(crate) struct Source<'a, S: Storage> {
    pub storage: &'a S,
    pub segments: &'a Segments<S::File>,
    pub indexes: &'a Cache,
    pub durable: Offset,
}

/// Serves `fetch` from the segments of its partition. It ends early when the budget is spent, and has come further even then.
pub(crate) fn fetch<S: Storage>(source: &Source<'_, S>, fetch: &Fetch, budget: Budget) -> Result<Fetched, ReadError> {
    let (records_max, bytes_max) = (fetch.records_max.max(1), fetch.bytes_max as usize);
    let mut out = Out { fetched: Fetched::default(), records_max, bytes_max, budget };
    match &fetch.wanted {
        Wanted::Range { from, to, select } => range(source, *from, (*to).min(source.durable), &**select, &mut out)?,
        Wanted::Exactly(offsets) => exactly(source.segments, source.durable, offsets, &mut out)?,
    }
    Ok(out.fetched)
}

struct Out {
    fetched: Fetched,
    records_max: u32,
    bytes_max: usize,
    budget: Budget,
}

impl Out {
    /// Ends the fetch behind records that cannot be read, or before them if others are lost already: a fetch tells of one loss.
    fn lose<F: File>(&mut self, segment: &Segment<F>, at: u64, range: Range<Offset>) {
        // The file that was begun behind this one may be what is missing: then this one is not to be restored.
        let gone = segment::successor(segment).ok().flatten().filter(|gone| *gone > segment.head.base && *gone < range.end);
        let (file, at, range) = match gone {
            Some(gone) if gone <= range.start => (segment.named(gone), None, range),
            Some(gone) => (segment.name.clone(), Some(at), range.start..gone),
            None => (segment.name.clone(), Some(at), range),
        };
        if !self.fetched.lost.is_empty() {
            self.fetched.next = range.start;
            return;
        }
        self.fetched.next = range.end;
        self.fetched.lost = range.clone();
        self.fetched.damage = Some(Damage { file, at, range });
    }

    fn is_full(&self) -> bool {
        let batch = &self.fetched.batch;
        !batch.is_empty() && (batch.len() as u32 >= self.records_max || batch.bytes() >= self.bytes_max)
    }
}

fn range<S: Storage>(source: &Source<'_, S>, from: Offset, to: Offset, select: &dyn Select, out: &mut Out) -> Result<(), ReadError> {
    let segments = source.segments;
    let mut at = from;
    // A run of equal keys is judged once.
    let mut last: Option<(Vec<u8>, bool)> = None;
    while at < to && (at == from || !out.budget.is_over()) {
        let Some((segment, after)) = segments.find(at) else {
            // Older than the oldest segment, or that has gone meanwhile.
            let start = segments.start().min(to);
            if start <= at || !out.fetched.batch.is_empty() {
                break;
            }
            out.fetched.lost = from..start;
            at = start;
            continue;
        };
        let end = after.unwrap_or(to).min(to);
        let Some(place) = segment.place(at, after.unwrap_or(source.durable))? else {
            // Nothing in it can be read, not even where it begins.
            out.lose(&segment, BATCHES_AT, at..end);
            return Ok(());
        };
        // No place leads to these records: the reader hears of them, whether an index knows them or not.
        let readable = segment.head.base.plus(u64::from(place.delta));
        if readable > at {
            out.lose(&segment, BATCHES_AT, at..readable.min(end));
            return Ok(());
        }
        if !select.is_wide()
            && let Some(chosen) = index::ask(source.storage, source.indexes, &segment, select, place.position)
            && chosen.end > at
        {
            out.budget.asked_index();
            let upto = end.min(chosen.end);
            let known = after.unwrap_or(source.durable);
            match pick(&segment, &chosen.positions, (at..upto, known), select.wants_times(), out) {
                Ok(Some(next)) => {
                    out.fetched.next = next;
                    return Ok(());
                }
                Ok(None) => {
                    at = upto;
                    continue;
                }
                // A scan finds out what is lost.
                Err(ReadError::Damaged { .. }) => at = out.fetched.batch.last().map_or(at, |last| at.max(last.plus(1))),
                Err(e) => return Err(e),
            }
        }
        let mut scan = Scan::new(&segment, place);
        while scan.next() < end {
            if out.is_full() || out.budget.is_spent() && at > from {
                out.fetched.next = at;
                return Ok(());
            }
            out.budget.spend();
            let wanted = scan.next() >= at;
            let (raw, time_ms) = match scan.step() {
                Ok(step) => step,
                Err(ReadError::Damaged { at: byte, .. }) => {
                    let lost = scan.next().max(at)..scan.pass_damage()?.map_or(end, |next| next.min(end));
                    if lost.start >= lost.end {
                        // Before what is wanted.
                        continue;
                    }
                    out.lose(&segment, byte, lost);
                    return Ok(());
                }
                Err(e) => return Err(e),
            };
            if !wanted {
                continue;
            }
            at = at.plus(1);
            let Some((_, _, [_, key, ..])) = parse(raw) else { continue };
            let chosen = match &last {
                Some((k, chosen)) if k == key => *chosen,
                _ => {
                    let chosen = select.matches(key);
                    last = Some((key.to_vec(), chosen));
                    chosen
                }
            };
            if chosen {
                out.fetched.batch.push(raw, segment.head.base, time_ms);
            }
        }
        at = at.max(end);
    }
    out.fetched.next = at.max(from);
    Ok(())
}

/// Can all of this range be read, at a start?
pub(crate) fn is_whole<S: Storage>(storage: &S, appender: &Appender<S>, range: &Range<Offset>) -> bool {
    let (indexes, mut at) = (Cache::new(0), range.start);
    let source = Source { storage, segments: appender.segments(), indexes: &indexes, durable: appender.next() };
    while at < range.end {
        let wanted = Wanted::Range { from: at, to: range.end, select: Arc::new(Nothing) };
        let asked = Fetch { partition: PartitionId(0), wanted, records_max: 1, bytes_max: 1 };
        let read = fetch(&source, &asked, Budget::of_step(false));
        match read {
            Ok(fetched) if fetched.lost.is_empty() && fetched.next > at => at = fetched.next,
            _ => return false,
        }
    }
    true
}

/// Looks at every record, and chooses none.
struct Nothing;

impl Select for Nothing {
    fn matches(&self, _key: &[u8]) -> bool {
        false
    }

    fn is_wide(&self) -> bool {
        true
    }
}

/// Reads the records at these positions that lie in `range`; `end` is that of the segment. Gives where to go on if there
/// was no room for one, or no time.
fn pick<F: File>(
    segment: &Segment<F>,
    positions: &[u32],
    (range, end): (Range<Offset>, Offset),
    times: bool,
    out: &mut Out,
) -> Result<Option<Offset>, ReadError> {
    let mut buffer = Vec::new();
    let mut batch = Placed::default();
    for position in positions {
        let (offset, time_ms) = segment.record_at(*position, range.start, end, &mut buffer)?;
        if offset < range.start {
            continue;
        }
        if offset >= range.end {
            break;
        }
        if out.is_full() || out.budget.is_spent() && offset > range.start {
            return Ok(Some(offset));
        }
        out.budget.spend();
        let time_ms = if times { segment.batch_of(*position, &mut batch)? } else { time_ms };
        out.fetched.batch.push(&buffer, segment.head.base, time_ms);
    }
    Ok(None)
}

fn exactly<F: File>(segments: &Segments<F>, durable: Offset, offsets: &[Offset], out: &mut Out) -> Result<(), ReadError> {
    let mut wanted = offsets.iter().copied().filter(|o| *o < durable).peekable();
    while let Some(&first) = wanted.peek() {
        let Some((segment, after)) = segments.find(first) else {
            // Older than the oldest segment.
            wanted.next();
            continue;
        };
        let end = after.unwrap_or(durable);
        let Some(place) = segment.place(first, end)? else {
            out.lose(&segment, BATCHES_AT, first..end);
            return Ok(());
        };
        let mut scan = Scan::new(&segment, place);
        while let Some(&offset) = wanted.peek() {
            // Far ahead: a new place is nearer than reading on.
            if offset >= end || offset.0 > scan.next().0 + u64::from(PLACE_BYTES) / 64 && scan.next() > first {
                break;
            }
            if out.is_full() {
                out.fetched.next = offset;
                return Ok(());
            }
            if scan.next() > offset {
                out.lose(&segment, BATCHES_AT, offset..scan.next().min(end));
                return Ok(());
            }
            let before = scan.next() < offset;
            match scan.step() {
                Ok(_) if before => {}
                Ok((raw, time_ms)) => {
                    out.fetched.batch.push(raw, segment.head.base, time_ms);
                    wanted.next();
                }
                Err(ReadError::Damaged { at: byte, .. }) => {
                    let lost = scan.next().max(offset)..scan.pass_damage()?.map_or(end, |next| next.min(end));
                    // Else it is before what is wanted.
                    if lost.start < lost.end {
                        out.lose(&segment, byte, lost);
                        return Ok(());
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }
    out.fetched.next = offsets.last().map_or(Offset(0), |o| o.plus(1));
    Ok(())
}
