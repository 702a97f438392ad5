//! The newest record of each key before an offset, a page of keys at a time: the log as it was at any moment that it still holds.
//!
//! Invariant: what looking at every record from the start to that offset would give, as far as it can be read. A page costs its keys, once per segment, and the scan of what no
//! index covers.
//! Must not know: what a key means.

use crate::{
    Batch, Kind, Offset, ReadError, Select,
    batch::parse,
    index,
    reader::Source,
    readers::Budget,
    segment::{Placed, Scan, Segment},
    storage::{File, Storage},
};
use std::{collections::BTreeMap, ops::Range, sync::Arc};

#[derive(Clone)]
pub struct Newest {
    /// Only records before this.
    pub below: Offset,
    pub select: Arc<dyn Select>,
    /// Only keys behind this one.
    pub after: Vec<u8>,
    pub keys_max: usize,
    /// Stop after this many bytes of records; one record is always given.
    pub bytes_max: usize,
}

/// Newest records, in the order of their keys.
#[derive(Debug, Default)]
pub struct Page {
    pub batch: Batch,
    /// Go on behind this key; `None`: that was all.
    pub after: Option<Vec<u8>>,
}

/// Where records of a page stand: the index of the segment, and the position in it.
type Found = BTreeMap<Vec<u8>, (usize, u32)>;

/// Takes a key's record unless a newer one is known; false: the page is full of smaller keys.
fn take(found: &mut Found, keys_max: usize, key: &[u8], at: (usize, u32)) -> bool {
    if found.len() > keys_max && found.last_key_value().is_some_and(|(last, _)| **last < *key) {
        return false;
    }
    if !found.contains_key(key) {
        found.insert(key.to_vec(), at);
        if found.len() > keys_max + 1 {
            found.pop_last();
        }
    }
    true
}

/// A segment of a page, and where it ends.
type Part<F> = (Arc<Segment<F>>, Option<Offset>);

/// A page that is read step by step.
pub(crate) struct Search<F> {
    newest: Newest,
    /// Those that begin before the offset, as they were when it began.
    segments: Vec<Part<F>>,
    durable: Offset,
    /// So many of them, the older ones, have not been looked at.
    left: usize,
    found: Found,
    scanning: Option<Scanning>,
}

/// What is known of a segment while the records that its index does not cover are looked at.
#[derive(Default)]
struct Scanning {
    indexed: Found,
    scanned: Found,
    rest: Range<Offset>,
}

impl<F: File> Search<F> {
    pub fn new<S: Storage<File = F>>(source: &Source<'_, S>, newest: Newest) -> Self {
        let newest = Newest { below: newest.below.min(source.durable), ..newest };
        let mut segments = source.segments.all();
        segments.retain(|(segment, _)| segment.head.base < newest.below);
        Self { durable: source.durable, left: segments.len(), newest, segments, found: Found::new(), scanning: None }
    }

    /// `None`: it goes on.
    pub fn step<S: Storage<File = F>>(&mut self, source: &Source<'_, S>, mut budget: Budget) -> Option<Result<Page, ReadError>> {
        self.look(source, &mut budget).map(|done| done.then(|| self.read())).transpose().map(Result::flatten)
    }

    /// Looks at segments, the newest first; false: not at all of them yet.
    fn look<S: Storage<File = F>>(&mut self, source: &Source<'_, S>, budget: &mut Budget) -> Result<bool, ReadError> {
        let n = &self.newest;
        while let Some(nth) = self.left.checked_sub(1)
            && let Some((segment, after)) = self.segments.get(nth)
        {
            let readable = after.unwrap_or(self.durable);
            let scanning = match &mut self.scanning {
                Some(scanning) => scanning,
                none => {
                    let end = after.unwrap_or(n.below).min(n.below);
                    let before = if *after == Some(end) { u32::MAX } else { position(segment, end, readable)? };
                    let mut indexed = Found::new();
                    let covered =
                        index::newest(source.storage, source.indexes, segment, &*n.select, &n.after, before, &mut |key, position| {
                            take(&mut indexed, n.keys_max, key, (nth, position))
                        });
                    budget.asked_index();
                    let rest = covered.unwrap_or(segment.head.base)..end;
                    none.insert(Scanning { indexed, scanned: Found::new(), rest })
                }
            };
            if !scan(segment, scanning, readable, n, nth, budget)? {
                return Ok(false);
            }
            let Scanning { indexed, scanned, .. } = self.scanning.take().unwrap_or_default();
            for (key, at) in scanned.into_iter().chain(indexed) {
                take(&mut self.found, n.keys_max, &key, at);
            }
            self.left = nth;
            if nth > 0 && budget.is_over() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn read(&mut self) -> Result<Page, ReadError> {
        read(&self.segments, self.durable, std::mem::take(&mut self.found), &self.newest)
    }
}

/// All steps at once.
#[cfg(test)]
pub(crate) fn newest<S: Storage>(source: &Source<'_, S>, newest: &Newest, records: u32) -> Result<Page, ReadError> {
    let mut search = Search::new(source, newest.clone());
    loop {
        if let Some(page) = search.step(source, Budget::of_records(records)) {
            return page;
        }
    }
}

/// Where the record `offset` begins, or what comes before it ends.
fn position<F: File>(segment: &Segment<F>, offset: Offset, readable: Offset) -> Result<u32, ReadError> {
    let Some(place) = segment.place(offset, readable)? else { return Ok(0) };
    let mut scan = Scan::new(segment, place);
    while scan.next() < offset {
        let damaged = match scan.step() {
            Ok(_) => false,
            Err(ReadError::Damaged { .. }) => true,
            Err(e) => return Err(e),
        };
        if damaged && scan.pass_damage()?.is_none() {
            break;
        }
    }
    Ok(scan.position() as u32)
}

/// Looks at what the index does not cover; false: not at all of it yet.
fn scan<F: File>(
    segment: &Segment<F>,
    scanning: &mut Scanning,
    readable: Offset,
    n: &Newest,
    nth: usize,
    budget: &mut Budget,
) -> Result<bool, ReadError> {
    let Scanning { scanned, rest, .. } = scanning;
    let Some(place) = (rest.start < rest.end).then(|| segment.place(rest.start, readable)).transpose()?.flatten() else {
        return Ok(true);
    };
    let (mut scan, from) = (Scan::new(segment, place), rest.start);
    while scan.next() < rest.end {
        if budget.is_spent() && scan.next() > from {
            rest.start = scan.next();
            return Ok(false);
        }
        budget.spend();
        let wanted = scan.next() >= from;
        let chosen = match scan.step() {
            Ok((raw, _)) => match parse(raw) {
                Some((Kind::Message, _, [_, key, ..])) if wanted && *key > *n.after && n.select.matches(key) => {
                    Ok((raw.len(), key.to_vec()))
                }
                _ => continue,
            },
            Err(ReadError::Damaged { .. }) => Err(()),
            Err(e) => return Err(e),
        };
        let Ok((len, key)) = chosen else {
            if scan.pass_damage()?.is_none() {
                return Ok(true);
            }
            continue;
        };
        let at = (nth, scan.position() as u32 - len as u32);
        // The last one counts.
        scanned.remove(&key);
        take(scanned, n.keys_max, &key, at);
    }
    Ok(true)
}

fn read<F: File>(segments: &[Part<F>], durable: Offset, found: Found, n: &Newest) -> Result<Page, ReadError> {
    let (mut page, mut raw) = (Page::default(), Vec::new());
    let mut read: Option<Vec<u8>> = None;
    for (i, (key, (nth, position))) in found.into_iter().enumerate() {
        let full = i >= n.keys_max || page.batch.bytes() >= n.bytes_max;
        if full && !page.batch.is_empty() {
            page.after = read;
            return Ok(page);
        }
        let Some((segment, end)) = segments.get(nth) else { continue };
        // Where its batches are, for the times: read once per segment.
        let end = end.unwrap_or(durable);
        segment.place(segment.head.base, end)?;
        match segment.record_at(position, segment.head.base, end, &mut raw) {
            Ok(_) => {
                let time_ms = segment.batch_of(position, &mut Placed::default())?;
                page.batch.push(&raw, segment.head.base, time_ms);
            }
            // Whoever reads the range is told of it.
            Err(ReadError::Damaged { .. }) => {}
            Err(e) => return Err(e),
        }
        read = Some(key);
    }
    Ok(page)
}
