//! Segments: the files of a partition, their header, and where to begin reading in them.
//!
//! Invariant: a file with a segment's name has a whole header (it is written and synced under a spare's name first).
//! Must not know: what a record means, or who appends.
//!
//! Header, little-endian, in the first 4,096 bytes; batches begin at 12,288:
//!
//! | at | field |
//! |---|---|
//! | 0 | magic `WEIS`, u16 version 1, u16 zero |
//! | 8 | u64 `salt`, random at every use of the file |
//! | 16 | u64 `log_id`, random when the partition is created |
//! | 24 | u64 base offset |
//! | 32 | u32 partition, u32 `segment_bytes` |
//! | 40 | u64 created (ms), u32 CRC of 0..48, u32 zero |
//! | 56 | magic `WEIF`, u32 CRC of 64..72, u64 oldest record of the log then; missing in files of an earlier program |
//!
//! The block behind it, from byte 4,096 on, is the successor's, written when the next segment begins; one with another salt is of an earlier use of the file:
//!
//! | at | field |
//! |---|---|
//! | 0 | magic `WEIN`, u32 CRC of 8..24 |
//! | 8 | u64 `salt` of this segment, u64 base offset of the next |
//!
//! With the magic `WEIC` it says that the segment is about to be cut at its end, and the offset is that of its end.

use crate::sync::{
    Mutex, RwLock,
    atomic::{AtomicU64, Ordering},
};
use crate::{
    Durability, Offset, PartitionId, ReadError,
    batch::{self, BATCH_HEAD, BatchHead},
    error::is_shortage,
    index::{Building, Indexed},
    record::{RECORD_HEAD, crc},
    ring::Ring,
    spares::{Spare, Spares, is_fast},
    storage::{File, Name, Storage, read_around},
};
use std::{fmt, io, sync::Arc, time::Duration};

pub const BLOCK: u64 = 4096;
/// Where the first batch begins.
pub const BATCHES_AT: u64 = 3 * BLOCK;
/// One place to begin reading per this many bytes.
pub const PLACE_BYTES: u32 = 64 * 1024;

/// Sizes of a log, with the reason for each default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// 64 MiB: recovery reads one segment, retention removes one.
    pub segment_bytes: u32,
    /// 8 MiB: what may wait for the writer; one commit's greatest size.
    pub pending_bytes_max: usize,
    /// 64 MiB: newest batches in memory, from which live readers are served.
    pub ring_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, pending_bytes_max: 8 << 20, ring_bytes: 64 << 20 }
    }
}

impl Limits {
    /// Greatest size of the records of one append: a batch of them must fit in a segment.
    #[must_use]
    pub fn append_bytes_max(&self) -> usize {
        self.segment_bytes as usize - (BATCHES_AT + BLOCK) as usize - BATCH_HEAD
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHead {
    pub salt: u64,
    pub log_id: u64,
    pub base: Offset,
    pub partition: PartitionId,
    pub segment_bytes: u32,
    pub created_ms: u64,
    /// The oldest record of the log when the segment began; `None`: of a program that did not say it.
    pub first: Option<Offset>,
}

impl SegmentHead {
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut b = vec![0; BLOCK as usize];
        b[..4].copy_from_slice(b"WEIS");
        b[4] = 1;
        b[8..16].copy_from_slice(&self.salt.to_le_bytes());
        b[16..24].copy_from_slice(&self.log_id.to_le_bytes());
        b[24..32].copy_from_slice(&self.base.0.to_le_bytes());
        b[32..36].copy_from_slice(&self.partition.0.to_le_bytes());
        b[36..40].copy_from_slice(&self.segment_bytes.to_le_bytes());
        b[40..48].copy_from_slice(&self.created_ms.to_le_bytes());
        let sum = crc(&b[..48]);
        b[48..52].copy_from_slice(&sum.to_le_bytes());
        if let Some(first) = self.first {
            b[56..60].copy_from_slice(b"WEIF");
            b[64..72].copy_from_slice(&first.0.to_le_bytes());
            let sum = crc(&b[64..72]);
            b[60..64].copy_from_slice(&sum.to_le_bytes());
        }
        b
    }

    /// Reads a header; the error says what is wrong with it.
    pub fn parse(whole: &[u8]) -> Result<Self, HeadError> {
        let b: &[u8; 52] = whole.get(..52).and_then(|b| b.try_into().ok()).ok_or(HeadError::Damaged("shorter than a segment header"))?;
        let word = |at: usize| u64::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3], b[at + 4], b[at + 5], b[at + 6], b[at + 7]]);
        let half = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        if b[..4] != *b"WEIS" {
            return Err(HeadError::Damaged("not a segment of a Weir log"));
        }
        let version = u16::from_le_bytes([b[4], b[5]]);
        let mut ours = *b;
        ours[4..6].copy_from_slice(&1u16.to_le_bytes());
        if VERSIONS_TO_COME.contains(&version) && half(48) != crc(&ours[..48]) {
            // Another version may have its checksum elsewhere. One of ours whose version alone has rotted is known by it.
            return Err(HeadError::Version(version));
        }
        if half(48) != crc(&b[..48]) {
            return Err(HeadError::Damaged("the header's checksum is wrong"));
        }
        Ok(Self {
            salt: word(8),
            log_id: word(16),
            base: Offset(word(24)),
            partition: PartitionId(half(32)),
            segment_bytes: half(36),
            created_ms: word(40),
            first: parse_first(whole),
        })
    }
}

/// Where the log began when the segment did.
fn parse_first(b: &[u8]) -> Option<Offset> {
    let b: &[u8; 16] = b.get(56..72)?.try_into().ok()?;
    let sum = b[4..8].try_into().map_or(0, u32::from_le_bytes);
    let whole = b[..4] == *b"WEIF" && sum == crc(&b[8..]);
    whole.then(|| Offset(b[8..].try_into().map_or(0, u64::from_le_bytes)))
}

/// Numbers that a header says of a later program rather than of a disk that forgets.
const VERSIONS_TO_COME: std::ops::RangeInclusive<u16> = 2..=31;

/// What a file of segments is.
pub(crate) enum Identified {
    Ours(SegmentHead),
    /// The header is damaged, and the first batch says what it said.
    Remade(SegmentHead, HeadError),
}

/// Judges a file by its first blocks and, where its header is damaged, by its first batch: for recovery and for those who verify, so that what one calls whole the other does. `partition`:
/// `None`, any. `batches` gives what stands behind the head.
pub(crate) fn identify(
    head: &[u8],
    base: Offset,
    partition: Option<PartitionId>,
    batches: impl FnOnce() -> io::Result<Vec<u8>>,
) -> io::Result<Result<Identified, HeadError>> {
    let e = match SegmentHead::parse(head) {
        Ok(head) if head.base != base => HeadError::Alien(format!("its header says it begins at record {}", head.base)),
        Ok(head) => match partition.filter(|p| *p != head.partition) {
            Some(p) => HeadError::Alien(format!("its header says it belongs to partition {}, not {}", head.partition.0, p.0)),
            None => return Ok(Ok(Identified::Ours(head))),
        },
        Err(e) => e,
    };
    // A version whose checksum is right is no accident. Else it may have rotted, and what stands behind it knows better.
    let sum = head.get(48..52).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
    let is_meant = matches!(e, HeadError::Version(_)) && head.get(..48).is_some_and(|b| crc(b) == sum);
    if is_meant || matches!(e, HeadError::Alien(_)) {
        return Ok(Err(e));
    }
    let batches = batches()?;
    let first = salt_of_first(&batches, base).and_then(|salt| BatchHead::parse(&batches, salt));
    let remade = first.map(|first| SegmentHead {
        salt: first.salt,
        log_id: 0,
        base,
        partition: partition.unwrap_or(PartitionId(0)),
        segment_bytes: (BATCHES_AT as usize + batches.len()) as u32,
        created_ms: first.time_ms,
        first: None,
    });
    Ok(remade.map(|head| Identified::Remade(head, e.clone())).ok_or(e))
}

/// Why a segment's header cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeadError {
    Damaged(&'static str),
    /// Of another segment or partition.
    Alien(String),
    /// Written by another version of the program.
    Version(u16),
}

impl fmt::Display for HeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged(what) => f.write_str(what),
            Self::Alien(what) => f.write_str(what),
            Self::Version(n) => write!(f, "segment format version {n}; this program reads version 1"),
        }
    }
}

/// The salt of a segment, from the first of its batches, which must be whole and begin at `base`.
pub(crate) fn salt_of_first(batches: &[u8], base: Offset) -> Option<u64> {
    let salt = BatchHead::salt_of(batches)?;
    crate::batch::check(batches, salt, base).filter(|(head, _)| head.first == base).map(|(head, _)| head.salt)
}

/// Where the base offset of the next segment stands.
pub(crate) const SUCCESSOR_AT: u64 = BLOCK;
const SUCCESSOR_BYTES: usize = 24;

/// Notes in a segment which one comes after it: if that file is missing at a start, it is missed. Not synced.
pub(crate) fn write_successor<F: File>(segment: &Segment<F>, next: Offset) -> io::Result<()> {
    write_note(segment, b"WEIN", next)
}

/// Notes in a segment that it is about to be cut behind its last record, which ends at `end`. Not synced.
pub(crate) fn write_cut<F: File>(segment: &Segment<F>, end: Offset) -> io::Result<()> {
    write_note(segment, CUT, end)
}

const CUT: &[u8; 4] = b"WEIC";

fn write_note<F: File>(segment: &Segment<F>, kind: &[u8; 4], next: Offset) -> io::Result<()> {
    let mut b = vec![0; BLOCK as usize];
    b[..4].copy_from_slice(kind);
    b[8..16].copy_from_slice(&segment.head.salt.to_le_bytes());
    b[16..24].copy_from_slice(&next.0.to_le_bytes());
    let sum = crc(&b[8..24]);
    b[4..8].copy_from_slice(&sum.to_le_bytes());
    segment.file.write_at(&[io::IoSlice::new(&b)], SUCCESSOR_AT)
}

/// The base offset of the next segment, if one has begun.
pub(crate) fn successor<F: File>(segment: &Segment<F>) -> io::Result<Option<Offset>> {
    let mut b = [0; SUCCESSOR_BYTES];
    let (n, _) = read_around(&segment.file, &mut b, SUCCESSOR_AT)?;
    Ok(parse_successor(b.get(..n).unwrap_or_default(), segment.head.salt))
}

/// Reads the block of the successor, of which `b` is the beginning.
pub(crate) fn parse_successor(b: &[u8], salt: u64) -> Option<Offset> {
    parse_note(b, b"WEIN", salt)
}

/// The offset of a note of this kind.
fn parse_note(b: &[u8], kind: &[u8; 4], salt: u64) -> Option<Offset> {
    let b: &[u8; SUCCESSOR_BYTES] = b.get(..SUCCESSOR_BYTES)?.try_into().ok()?;
    let word = |at: usize| b[at..at + 8].try_into().map_or(0, u64::from_le_bytes);
    let sum = b[4..8].try_into().map_or(0, u32::from_le_bytes);
    let whole = b[..4] == *kind && sum == crc(&b[8..24]) && word(8) == salt;
    whole.then(|| Offset(word(16)))
}

/// Why a newest segment is shorter than it was made, unless a start that was broken off cut it where its records end.
pub(crate) fn is_cut(head: &SegmentHead, bytes: u64, note: &[u8], end: Offset) -> Option<String> {
    let cut = bytes < u64::from(head.segment_bytes) && parse_note(note, CUT, head.salt) != Some(end);
    cut.then(|| format!("it has {bytes} bytes of {}: somebody has cut it", head.segment_bytes))
}

/// Where reading can begin: a record, and the batch around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub delta: u32,
    pub position: u32,
    pub batch_end: u32,
    pub time_ms: u64,
}

/// A batch: where it lies, and when it was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Placed {
    start: u32,
    end: u32,
    time_ms: u64,
}

/// An open segment, shared by the writer and the readers.
pub struct Segment<F> {
    pub head: SegmentHead,
    pub file: F,
    pub name: String,
    filled: AtomicU64,
    /// `None` until somebody reads a segment of an earlier run.
    places: RwLock<Option<Vec<Place>>>,
    pub(crate) indexed: RwLock<Indexed>,
    /// What was written last is read from there.
    ring: Arc<Ring>,
    /// Its blocks had been written before its first batch.
    pub(crate) prepared: bool,
    /// Its header was damaged at this start.
    pub(crate) remade: bool,
}

/// Bytes read for a record that an index names: most are shorter.
const RECORD_READ: usize = 1_024;
/// Bytes read behind it: as far as the head of the next batch.
const BEHIND: usize = 8 + BATCH_HEAD;

impl<F: File> Segment<F> {
    pub(crate) fn new(head: SegmentHead, file: F, name: String, places: Option<Vec<Place>>, indexed: Indexed, ring: Arc<Ring>) -> Self {
        Self {
            head,
            file,
            name,
            filled: AtomicU64::new(0),
            places: RwLock::new(places),
            indexed: RwLock::new(indexed),
            ring,
            prepared: false,
            remade: false,
        }
    }

    /// Reads as much as there is; from memory perhaps less, but whole batches.
    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
        self.ring.read_at(self.head.base, into, at).map_or_else(|| read_around(&self.file, into, at).map(|(n, _)| n), Ok)
    }

    /// The whole record at `position`, its CRC checked, with its offset and the time of the last place before it.
    /// `expected`: for the message if it is damaged. `end`: of what is durable here.
    pub(crate) fn record_at(&self, position: u32, expected: Offset, end: Offset, raw: &mut Vec<u8>) -> Result<(Offset, u64), ReadError> {
        let at = u64::from(position);
        let damaged = || self.damaged(at, expected);
        raw.resize(RECORD_READ, 0);
        let n = self.read_at(raw, at).map_err(self.io(at))?;
        raw.truncate(n);
        // What the ring still has was read from there.
        let mut in_memory = self.ring.holds(self.head.base, at);
        let (len, delta) = batch::len_and_delta(raw).ok_or_else(damaged)?;
        if raw.len() < if in_memory { len } else { len + BEHIND } {
            if at + len as u64 > u64::from(self.head.segment_bytes) {
                return Err(damaged());
            }
            raw.resize(len + BEHIND, 0);
            let n = self.read_at(raw, at).map_err(self.io(at))?;
            raw.truncate(n);
            in_memory = self.ring.holds(self.head.base, at);
        }
        let behind = raw.split_off(len.min(raw.len()));
        let offset = self.head.base.plus(u64::from(delta));
        if !batch::record_is_whole(raw) || !in_memory && !self.goes_on(&behind, at + len as u64, offset.plus(1), end) {
            return Err(damaged());
        }
        let before = self.place_of(position);
        Ok((offset, before.map_or(0, |p| p.time_ms)))
    }

    /// Does `behind`, which stands at `at`, begin with the record `next`? A record's own checksum leaves its offset out, and an
    /// index leads to it without counting from the head of its batch: what stands behind it says whether its offset has rotted.
    fn goes_on(&self, behind: &[u8], at: u64, next: Offset, end: Offset) -> bool {
        let delta = batch::len_and_delta(behind).filter(|(len, _)| *len >= RECORD_HEAD).map(|(_, delta)| delta);
        let in_batch = delta.is_some_and(|delta| self.head.base.plus(u64::from(delta)) == next);
        let gap = (at.next_multiple_of(8) - at) as usize;
        let new_batch = || BatchHead::parse(behind.get(gap..)?, self.head.salt).map(|head| head.first);
        in_batch || next == end || new_batch() == Some(next)
    }

    /// The last place at or before `position`. A copy: the writer notes places under the same lock, and must not wait for whoever reads a file.
    fn place_of(&self, position: u32) -> Option<Place> {
        let places = self.places.read();
        let places = places.as_deref().unwrap_or_default();
        places.partition_point(|p| p.position <= position).checked_sub(1).and_then(|i| places.get(i)).copied()
    }

    /// The time of the batch that holds `position`. `batch`: the one that was found last, so that positions that ascend pass each header once. Headers that are
    /// damaged leave it at the last one before them.
    pub(crate) fn batch_of(&self, position: u32, batch: &mut Placed) -> Result<u64, ReadError> {
        let before = self.place_of(position);
        if let Some(place) = before.filter(|p| p.batch_end > batch.end || position < batch.start) {
            *batch = Placed { start: place.position, end: place.batch_end, time_ms: place.time_ms };
        }
        while batch.end <= position {
            let at = u64::from(batch.end).next_multiple_of(8);
            let mut b = [0; BATCH_HEAD];
            self.read_at(&mut b, at).map_err(self.io(at))?;
            let Some(head) = BatchHead::parse(&b, self.head.salt).filter(|h| h.len > 0) else { break };
            *batch = Placed { start: at as u32, end: at as u32 + head.len, time_ms: head.time_ms };
        }
        Ok(batch.time_ms)
    }

    pub(crate) fn damaged(&self, at: u64, offset: Offset) -> ReadError {
        ReadError::Damaged { file: self.name.clone(), at, offset }
    }

    pub(crate) fn io(&self, at: u64) -> impl FnOnce(io::Error) -> ReadError + '_ {
        move |error| ReadError::Io { file: self.name.clone(), at, error }
    }

    /// The name of another segment beside it.
    pub(crate) fn named(&self, base: Offset) -> String {
        self.name.replace(&Name::Segment(self.head.base).to_string(), &Name::Segment(base).to_string())
    }

    /// Where the last batch that was noted ends.
    pub(crate) fn filled(&self) -> u64 {
        self.filled.load(Ordering::Relaxed)
    }

    /// Notes the records of a batch that was just written at `at`: one place per 64 KiB.
    pub(crate) fn wrote(&self, at: u64, first_delta: u32, starts: &[u32], len: u32, time_ms: u64) {
        self.filled.store(at + u64::from(len), Ordering::Relaxed);
        let mut places = self.places.write();
        let places = places.get_or_insert_default();
        let mut next = places.last().map_or(0, |p| p.position + PLACE_BYTES);
        for (i, start) in starts.iter().enumerate() {
            let position = at as u32 + start;
            if position >= next {
                places.push(Place { delta: first_delta + i as u32, position, batch_end: at as u32 + len, time_ms });
                next = position + PLACE_BYTES;
            }
        }
    }

    /// The last place at or before `offset`, or the first of all if what is before that cannot be read; `None` in a segment without records. The first call on a segment of an earlier run
    /// hops over its batch headers, up to `end`: the end of all that can be read of the segment, because what is found stays.
    pub(crate) fn place(&self, offset: Offset, end: Offset) -> Result<Option<Place>, ReadError> {
        if self.places.read().is_none() {
            let found = self.hop(end)?;
            *self.places.write() = Some(found);
        }
        let places = self.places.read();
        let places = places.as_deref().unwrap_or_default();
        let i = places.partition_point(|p| self.head.base.0 + u64::from(p.delta) <= offset.0);
        Ok(places.get(i.saturating_sub(1)).copied())
    }

    /// The last place whose records are older than `ms`; `None`: nothing in it is. As in `place`, the first call may hop over batch headers.
    pub(crate) fn place_before(&self, ms: u64, end: Offset) -> Result<Option<Place>, ReadError> {
        self.place(self.head.base, end)?;
        let places = self.places.read();
        let places = places.as_deref().unwrap_or_default();
        let i = places.partition_point(|p| p.time_ms < ms);
        Ok(i.checked_sub(1).and_then(|i| places.get(i)).copied())
    }

    /// The first whole batch at or behind `at` with records after `offset`: where reading goes on behind damage.
    pub(crate) fn resume(&self, at: u64, offset: Offset) -> Result<Option<(u64, Offset)>, ReadError> {
        let at = at.next_multiple_of(8);
        let mut bytes = vec![0; self.file.bytes().map_err(self.io(at))?.saturating_sub(at) as usize];
        let (n, _) = read_around(&self.file, &mut bytes, at).map_err(self.io(at))?;
        bytes.truncate(n);
        let found = crate::recovery::look_ahead(&bytes, 0, self.head.salt, self.head.base, offset);
        Ok(found.map(|(later, first)| (at + later as u64, first)))
    }

    fn hop(&self, end: Offset) -> Result<Vec<Place>, ReadError> {
        let mut places: Vec<Place> = Vec::new();
        let (mut at, mut offset) = (BATCHES_AT, self.head.base);
        while offset < end {
            let mut b = [0; BATCH_HEAD];
            self.read_at(&mut b, at).map_err(self.io(at))?;
            let head = BatchHead::parse(&b, self.head.salt).filter(|h| h.first == offset && h.count > 0);
            let Some(head) = head else {
                match self.resume(at, offset)? {
                    Some((later_at, later)) if later < end => {
                        (at, offset) = (later_at, later);
                        continue;
                    }
                    _ => break,
                }
            };
            let position = at as u32 + BATCH_HEAD as u32;
            if places.last().is_none_or(|p| position >= p.position + PLACE_BYTES) {
                let delta = (offset.0 - self.head.base.0) as u32;
                places.push(Place { delta, position, batch_end: at as u32 + head.len, time_ms: head.time_ms });
            }
            at = (at + u64::from(head.len)).next_multiple_of(8);
            offset = offset.plus(u64::from(head.count));
        }
        Ok(places)
    }
}

/// Why a segment could not be begun.
#[derive(Debug)]
pub(crate) struct BeginError {
    pub error: io::Error,
    /// Nothing of the log has changed, and it may work later: there was no room, or no descriptor.
    pub passes: bool,
}

impl BeginError {
    fn before_rename(error: io::Error) -> Self {
        Self { passes: is_shortage(&error), error }
    }

    fn after_rename(error: io::Error) -> Self {
        Self { error, passes: false }
    }
}

/// Makes a new segment ready for its first batch: header into a spare, sync, rename, sync of the directory. Whatever crash comes
/// between leaves a spare or a whole segment.
pub(crate) fn create<S: Storage>(
    storage: &S,
    head: SegmentHead,
    spares: &Spares<S::File>,
    ring: &Arc<Ring>,
) -> Result<Segment<S::File>, BeginError> {
    let spare = match spares.take() {
        Some(spare) => spare,
        None => {
            let name = spares.fresh_name();
            let file = storage.create(name, u64::from(head.segment_bytes)).map_err(|e| given_up(storage, name, e))?;
            Spare { name, file, prepared: false }
        }
    };
    let written = spare.file.write_at(&[io::IoSlice::new(&head.encode())], 0).and_then(|()| spare.file.sync_data());
    written.map_err(|e| given_up(storage, spare.name, e))?;
    let name = Name::Segment(head.base);
    storage.rename(spare.name, name).map_err(|e| given_up(storage, spare.name, e))?;
    // Fails closed: records never go into a file that would not be found by its name.
    let same = storage.identity(name).and_then(|named| Ok(named == spare.file.identity()?)).map_err(BeginError::after_rename)?;
    if !same {
        return Err(BeginError::after_rename(io::Error::other(format!("{name} is another file than the one that was renamed"))));
    }
    storage.sync_names().map_err(BeginError::after_rename)?;
    let segment = Segment::new(
        head,
        spare.file,
        format!("{}/{name}", storage.describe()),
        Some(Vec::new()),
        Indexed::Building(RwLock::new(Building::new(head.base))),
        ring.clone(),
    );
    Ok(Segment { prepared: spare.prepared, ..segment })
}

/// A spare that did not become a segment takes no room.
fn given_up<S: Storage>(storage: &S, spare: Name, error: io::Error) -> BeginError {
    // Left behind, it goes at the next start.
    let _unremoved = storage.remove_if_there(spare);
    BeginError::before_rename(error)
}

/// The segments of a partition in order of base offset, with the end of what may be read.
pub struct Segments<F> {
    list: RwLock<Vec<Arc<Segment<F>>>>,
    /// Retired, and still on the disk because a removal failed.
    leftover: Mutex<Vec<Offset>>,
    pub(crate) spares: Spares<F>,
    pub(crate) ring: Arc<Ring>,
}

/// A file of a partition, as others see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    pub base: Offset,
    /// The base of the next one; the active segment has none.
    pub end: Option<Offset>,
    /// Of the file, which is as long as it may become from its beginning on.
    pub bytes: u64,
    /// Where what was written last ends; 0: nothing was written in this run.
    pub filled: u64,
    /// When it began: nothing in it is older.
    pub created_ms: u64,
    /// When the next one began: nothing in it is younger.
    pub sealed_ms: Option<u64>,
}

impl<F: File> Segments<F> {
    pub(crate) fn new(list: Vec<Arc<Segment<F>>>, ring: Arc<Ring>, segment_bytes: u32, durability: Durability) -> Self {
        let spares = Spares::new(segment_bytes, durability == Durability::Disk);
        Self { list: RwLock::new(list), leftover: Mutex::default(), spares, ring }
    }

    pub(crate) fn push(&self, segment: Arc<Segment<F>>) {
        let mut list = self.list.write();
        // Of one that nothing was in a fresh file has taken the name.
        list.pop_if(|newest| newest.head.base == segment.head.base);
        list.push(segment);
        drop(list);
        self.spares.begun();
    }

    /// Takes the oldest segment away if it is sealed and ends at or before `below`. Compared and taken under one lock: two may retire at once.
    pub(crate) fn take_oldest(&self, below: Offset) -> Option<Arc<Segment<F>>> {
        let mut list = self.list.write();
        list.get(1).is_some_and(|next| next.head.base <= below).then(|| list.remove(0))
    }

    /// Has retention not taken it yet?
    pub(crate) fn holds(&self, segment: &Segment<F>) -> bool {
        self.list.read().first().is_some_and(|oldest| oldest.head.base <= segment.head.base)
    }

    /// The oldest segment and where it ends, unless it is the active one.
    pub(crate) fn oldest_sealed(&self) -> Option<(Arc<Segment<F>>, Offset)> {
        let list = self.list.read();
        Some((list.first()?.clone(), list.get(1)?.head.base))
    }

    /// Prepares a file for the next segment once something was written into the active one, unless there is one or segments fill too fast. `wait` is asked to wait so long between
    /// parts; false ends it.
    pub(crate) fn prepare<S: Storage<File = F>>(&self, storage: &S, wait: &dyn Fn(Duration) -> bool) -> io::Result<bool> {
        let (active, before) = {
            let list = self.list.read();
            let Some(active) = list.last().cloned() else { return Ok(false) };
            (active, list.len().checked_sub(2).and_then(|i| list.get(i)).cloned())
        };
        let took = |s: &Segment<F>| Duration::from_millis(active.head.created_ms.saturating_sub(s.head.created_ms));
        // 0 bytes: nothing was written in this run. 0 ms: the clock was set back.
        if active.filled() == 0 || before.is_some_and(|s| s.filled() > 0 && !took(&s).is_zero() && is_fast(s.filled(), took(&s))) {
            return Ok(false);
        }
        let filled = || self.list.read().last().map_or(0, |active| active.filled());
        self.spares.prepare(storage, !active.prepared, &filled, wait)
    }

    pub(crate) fn infos(&self) -> io::Result<Vec<SegmentInfo>> {
        let list = self.list.read();
        let info = |(i, s): (usize, &Arc<Segment<F>>)| {
            let after = list.get(i + 1);
            let (end, sealed_ms) = (after.map(|n| n.head.base), after.map(|n| n.head.created_ms));
            let (base, bytes, created_ms) = (s.head.base, s.file.bytes()?, s.head.created_ms);
            Ok(SegmentInfo { base, end, bytes, filled: s.filled(), created_ms, sealed_ms })
        };
        list.iter().enumerate().map(info).collect()
    }

    /// Takes sealed segments that end at or before `below` away, oldest first, durably. A file that nobody reads becomes a spare, unzeroed; one that is
    /// being read is removed, and its readers keep it open.
    pub(crate) fn retire<S: Storage<File = F>>(&self, storage: &S, below: Offset) -> io::Result<()> {
        let leftover = std::mem::take(&mut *self.leftover.lock());
        let mut changed = !leftover.is_empty();
        // Each is tried, whatever becomes of the others.
        let mut result = Ok(());
        for base in leftover {
            result = self.remove_retired(storage, base).and(result);
        }
        while let Some(oldest) = self.take_oldest(below) {
            changed = true;
            let base = oldest.head.base;
            let kept = self.spares.keep(storage, oldest).inspect_err(|_| self.leftover.lock().push(base));
            result = match kept {
                Ok(false) => self.remove_retired(storage, base),
                Ok(true) => storage.remove_if_there(Name::Index(base)),
                Err(e) => Err(e),
            }
            .and(result);
        }
        if changed { storage.sync_names().and(result) } else { result }
    }

    /// Removes a segment's files, or notes that they are still there.
    fn remove_retired<S: Storage<File = F>>(&self, storage: &S, base: Offset) -> io::Result<()> {
        let removed = storage.remove_if_there(Name::Index(base)).and_then(|()| storage.remove_if_there(Name::Segment(base)));
        removed.inspect_err(|_| self.leftover.lock().push(base))
    }

    /// Sealed segments with their ends.
    pub(crate) fn sealed(&self) -> Vec<(Arc<Segment<F>>, Offset)> {
        let list = self.list.read();
        list.windows(2).map(|w| (w[0].clone(), w[1].head.base)).collect()
    }

    /// All of them, each with the base of the one after it.
    pub(crate) fn all(&self) -> Vec<(Arc<Segment<F>>, Option<Offset>)> {
        let list = self.list.read();
        list.iter().enumerate().map(|(i, s)| (s.clone(), list.get(i + 1).map(|next| next.head.base))).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.list.read().len()
    }

    pub(crate) fn start(&self) -> Offset {
        self.list.read().first().map_or(Offset(0), |s| s.head.base)
    }

    /// The segment that holds `offset` and the base of the one after it, if any.
    pub(crate) fn find(&self, offset: Offset) -> Option<(Arc<Segment<F>>, Option<Offset>)> {
        let list = self.list.read();
        let i = list.partition_point(|s| s.head.base <= offset).checked_sub(1)?;
        Some((list.get(i)?.clone(), list.get(i + 1).map(|s| s.head.base)))
    }
}

/// A window over a segment: short reads from one buffered one.
struct Window<'s, F> {
    segment: &'s Segment<F>,
    buffer: Vec<u8>,
    /// Of the buffer, from `at` in the file on.
    filled: usize,
    at: u64,
}

impl<'s, F: File> Window<'s, F> {
    /// Bytes read ahead: enough that a scan is bound by memory and not by calls.
    const AHEAD: usize = 128 * 1024;

    fn new(segment: &'s Segment<F>) -> Self {
        Self { segment, buffer: Vec::new(), filled: 0, at: 0 }
    }

    /// `n` bytes at `at`, fewer at the end of the file.
    fn get(&mut self, at: u64, n: usize) -> io::Result<&[u8]> {
        let inside = at >= self.at && at + n as u64 <= self.at + self.filled as u64;
        if !inside {
            if self.buffer.len() < n.max(Self::AHEAD) {
                self.buffer.resize(n.max(Self::AHEAD), 0);
            }
            self.filled = self.segment.read_at(&mut self.buffer, at)?;
            self.at = at;
        }
        let from = (at - self.at) as usize;
        let to = (from + n).min(self.filled);
        Ok(&self.buffer[from..to])
    }
}

/// One step of a scan: the next record's place, or the batch header before it.
pub(crate) struct Scan<'s, F> {
    segment: &'s Segment<F>,
    window: Window<'s, F>,
    position: u64,
    batch_end: u64,
    time_ms: u64,
    next: Offset,
}

impl<'s, F: File> Scan<'s, F> {
    pub fn new(segment: &'s Segment<F>, place: Place) -> Self {
        Self {
            segment,
            window: Window::new(segment),
            position: u64::from(place.position),
            batch_end: u64::from(place.batch_end),
            time_ms: place.time_ms,
            next: segment.head.base.plus(u64::from(place.delta)),
        }
    }

    /// Where it stands in the file: after the record that `step` gave last.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Offset of the record that `step` gives next.
    pub fn next(&self) -> Offset {
        self.next
    }

    /// Behind damage where `step` should have given a record: the next record that can be read; `None`: there is none in this segment.
    pub fn pass_damage(&mut self) -> Result<Option<Offset>, ReadError> {
        let (segment, at, lost) = (self.segment, self.position, self.next);
        if at < self.batch_end {
            // Perhaps only this one: the record behind it stands where its length says.
            let head = self.window.get(at, RECORD_HEAD).map_err(segment.io(at))?;
            let len = crate::batch::len_and_delta(head).map(|(len, _)| len).filter(|len| at + (*len as u64) < self.batch_end);
            if let Some(len) = len {
                (self.position, self.next) = (at + len as u64, lost.plus(1));
                if self.peek() {
                    return Ok(Some(self.next));
                }
                (self.position, self.next) = (at, lost);
            }
        }
        let Some((at, first)) = segment.resume(at, lost)? else { return Ok(None) };
        (self.position, self.batch_end, self.next) = (at, at, first);
        Ok(Some(first))
    }

    /// Does a whole record stand here?
    fn peek(&mut self) -> bool {
        let (position, batch_end, next) = (self.position, self.batch_end, self.next);
        let whole = self.step().is_ok();
        (self.position, self.batch_end, self.next) = (position, batch_end, next);
        whole
    }

    /// The next whole record, its CRC checked. The caller knows that there is one: it stops at a durable end.
    pub fn step(&mut self) -> Result<(&[u8], u64), ReadError> {
        let (segment, next) = (self.segment, self.next);
        if self.position >= self.batch_end {
            let at = self.position.next_multiple_of(8);
            let bytes = self.window.get(at, BATCH_HEAD).map_err(segment.io(at))?;
            let head = BatchHead::parse(bytes, segment.head.salt).filter(|h| h.first == next && h.count > 0);
            let head = head.ok_or_else(|| segment.damaged(at, next))?;
            self.position = at + BATCH_HEAD as u64;
            self.batch_end = at + u64::from(head.len);
            self.time_ms = head.time_ms;
        }
        let at = self.position;
        let head = self.window.get(at, RECORD_HEAD).map_err(segment.io(at))?;
        let whole = crate::batch::len_and_delta(head)
            .filter(|(len, delta)| at + *len as u64 <= self.batch_end && segment.head.base.plus(u64::from(*delta)) == next);
        let (len, _) = whole.ok_or_else(|| segment.damaged(at, next))?;
        let raw = self.window.get(at, len).map_err(segment.io(at))?;
        if !crate::batch::record_is_whole(raw) {
            return Err(segment.damaged(at, next));
        }
        self.position += len as u64;
        self.next = next.plus(1);
        Ok((raw, self.time_ms))
    }
}
