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

/// Serves `newest` from the segments of a partition.
pub(crate) fn newest<S: Storage>(source: &Source<'_, S>, n: &Newest) -> Result<Page, ReadError> {
    let (segments, below) = (source.segments.all(), n.below.min(source.durable));
    let mut found = Found::new();
    for (nth, (segment, after)) in segments.iter().enumerate().rev().filter(|(_, (s, _))| s.head.base < below) {
        let end = after.unwrap_or(below).min(below);
        let whole = *after == Some(end);
        let readable = after.unwrap_or(source.durable);
        let before = if whole { u32::MAX } else { position(segment, end, readable)? };
        let mut last = Found::new();
        let mut indexed = Found::new();
        let covered = index::newest(source.storage, source.indexes, segment, &*n.select, &n.after, before, &mut |key, position| {
            take(&mut indexed, n.keys_max, key, (nth, position))
        });
        let rest = covered.unwrap_or(segment.head.base)..end;
        scan(segment, rest, readable, n, nth, &mut last)?;
        for (key, at) in last.into_iter().chain(indexed) {
            take(&mut found, n.keys_max, &key, at);
        }
    }
    read(&segments, source.durable, found, n)
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

fn scan<F: File>(
    segment: &Segment<F>,
    range: Range<Offset>,
    readable: Offset,
    n: &Newest,
    nth: usize,
    last: &mut Found,
) -> Result<(), ReadError> {
    let Some(place) = (range.start < range.end).then(|| segment.place(range.start, readable)).transpose()?.flatten() else {
        return Ok(());
    };
    let mut scan = Scan::new(segment, place);
    while scan.next() < range.end {
        let wanted = scan.next() >= range.start;
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
                return Ok(());
            }
            continue;
        };
        let at = (nth, scan.position() as u32 - len as u32);
        // The last one counts.
        last.remove(&key);
        take(last, n.keys_max, &key, at);
    }
    Ok(())
}

fn read<F: File>(segments: &[(Arc<Segment<F>>, Option<Offset>)], durable: Offset, found: Found, n: &Newest) -> Result<Page, ReadError> {
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
