//! What the active segment holds after any end of the process: the decision at the place where the next batch should stand.
//!
//! | there stands | decision |
//! |---|---|
//! | magic, salt, expected offset, batch CRC and all record CRCs right | take it |
//! | anything else, and behind it a whole batch of this salt with a higher offset | damage in the middle: that batch proves that this place was synced. A gap, and on behind it |
//! | anything else, and the `clean` key or a stored value names a higher offset | acknowledged records are gone: a gap up to there, and the next record gets that offset |
//! | anything else, after an unclean stop | torn tail: cut here, bytes logged and counted |
//!
//! A gap is quarantined: named in the state store, told to every reader that crosses it. In the state store itself there are no gaps: it is
//! refused, for a session that is missing there is missed by nobody.
//!
//! Invariant: nothing that was acknowledged is cut. It rests on the writer, which never starts a batch before the sync of the one before returned.
//! Must not know: what a record means.

use crate::{
    Damage, Offset, OpenError,
    batch::{self, BATCH_HEAD, BatchHead},
    segment::{self, BATCHES_AT, BLOCK, Identified, SUCCESSOR_AT, Segment, is_cut},
    storage::{File, Name, Storage, read_around},
};
use std::io;

/// What a scan of the active segment found.
#[derive(Debug)]
pub(crate) struct Found {
    /// One past the last whole record.
    pub end: Offset,
    /// Where the next batch would stand.
    pub at: u64,
    /// Time of the last batch.
    pub time_ms: u64,
    /// Bytes of a batch that was begun and never synced; 0 for zeros or stale bytes.
    pub torn_bytes: u64,
    /// From the start of the block in which `at` lies, up to `at`.
    pub tail: Vec<u8>,
    /// Behind `at` there is something other than zeros.
    pub stale: bool,
    /// Acknowledged records may be gone without a trace: the file was cut, or cannot be read where the next batch would stand.
    pub unsure: bool,
    /// Records that must have stood here, and the byte where the first of them should begin.
    pub gaps: Vec<Damage>,
}

/// Has it a segment?
pub(crate) fn has_segments<S: Storage>(storage: &S) -> io::Result<bool> {
    Ok(storage.names()?.iter().any(|name| matches!(name, Name::Segment(_))))
}

/// Has it a record, or had it one? A start and `weir log verify` ask alike.
pub(crate) fn has_records<S: Storage>(storage: &S) -> io::Result<bool> {
    for name in storage.names()? {
        match name {
            Name::Segment(Offset(0)) => {}
            Name::Segment(_) | Name::Damaged(_) => return Ok(true),
            Name::Index(_) | Name::Spare(_) => continue,
        }
        let file = storage.open(name)?;
        let mut bytes = vec![0; file.bytes()? as usize];
        let (read, _) = read_around(&file, &mut bytes, 0)?;
        bytes.truncate(read);
        let batches = bytes.get(BATCHES_AT as usize..).unwrap_or_default().to_vec();
        let head = match segment::identify(&bytes, Offset(0), None, || Ok(batches))? {
            Ok(Identified::Ours(head) | Identified::Remade(head, _)) => head,
            // Nobody knows what was in it.
            Err(_) => return Ok(true),
        };
        // Of a batch that stands behind damage there is one too.
        if look_ahead(&bytes, BATCHES_AT as usize, head.salt, head.base, head.base).is_some()
            || batch::check(bytes.get(BATCHES_AT as usize..).unwrap_or_default(), head.salt, head.base).is_some()
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads the whole segment, from the device: what is about to be believed must be there.
pub(crate) fn scan<F: File>(segment: &Segment<F>, gaps_allowed: bool) -> Result<Found, OpenError> {
    let io = |what: &str| OpenError::io(format!("{what} {}", segment.name));
    segment.file.drop_cache().map_err(io("syncing"))?;
    let mut bytes = vec![0; segment.file.bytes().map_err(io("looking at"))? as usize];
    let (read, unreadable) = read_around(&segment.file, &mut bytes, 0).map_err(io("reading"))?;
    bytes.truncate(read);

    let (salt, base) = (segment.head.salt, segment.head.base);
    let (mut at, mut end, mut time_ms) = (BATCHES_AT as usize, base, 0);
    let mut gaps = Vec::new();
    loop {
        let here = bytes.get(at..).unwrap_or_default();
        if let Some((head, starts)) = batch::check(here, salt, base).filter(|(h, _)| h.first == end) {
            segment.wrote(at as u64, (end.0 - base.0) as u32, &starts, head.len, head.time_ms);
            at = (at + head.len as usize).next_multiple_of(8);
            end = end.plus(u64::from(head.count));
            time_ms = head.time_ms;
            continue;
        }
        let Some((later_at, later)) = look_ahead(&bytes, at, salt, base, end) else { break };
        if !gaps_allowed {
            let what = format!("record {end} should stand here, and a whole batch from record {later} stands at byte {later_at}");
            return Err(OpenError::Damaged { file: segment.name.clone(), at: at as u64, what });
        }
        gaps.push(Damage { file: segment.name.clone(), at: Some(at as u64), range: end..later });
        (at, end) = (later_at, later);
    }
    let note = bytes.get(SUCCESSOR_AT as usize..).unwrap_or_default();
    let cut = is_cut(&segment.head, bytes.len() as u64, note, end);
    let unsure = cut.is_some() || unreadable.is_some_and(|first| first + BLOCK > at as u64);
    if unsure && !gaps_allowed {
        let what = cut.unwrap_or_else(|| "the device cannot read what stands there".into());
        return Err(OpenError::Damaged { file: segment.name.clone(), at: at as u64, what });
    }
    let torn = BatchHead::parse(bytes.get(at..).unwrap_or_default(), salt).filter(|h| h.first == end);
    let block = at - at % crate::segment::BLOCK as usize;
    let tail = bytes.get(block..at).unwrap_or_default().to_vec();
    let stale = bytes.get(at..).unwrap_or_default().iter().any(|b| *b != 0);
    Ok(Found { end, unsure, stale, at: at as u64, time_ms, torn_bytes: torn.map_or(0, |h| u64::from(h.len)), tail, gaps })
}

/// A whole batch of this segment at or behind `at` with an offset above `end`.
pub(crate) fn look_ahead(bytes: &[u8], at: usize, salt: u64, base: Offset, end: Offset) -> Option<(usize, Offset)> {
    (at..bytes.len().saturating_sub(BATCH_HEAD)).step_by(8).find_map(|at| {
        let here = &bytes[at..];
        let head = BatchHead::parse(here, salt).filter(|h| h.first > end)?;
        batch::check(here, salt, base).map(|_| (at, head.first))
    })
}
