//! Batches: what one commit wrote, in memory and on disk.
//!
//! Invariant: a `Batch` was checked whole when it was made, so reading a record from it cannot fail.
//! Must not know: files, or who reads.
//!
//! Header, 48 bytes, at a multiple of 8 in the file, little-endian:
//!
//! | at | field |
//! |---|---|
//! | 0 | u32 magic `WEIB` |
//! | 4 | u32 CRC-32C of bytes 8..48 and of the first 12 bytes of every record |
//! | 8 | u64 `salt` of the segment |
//! | 16 | u64 offset of the first record |
//! | 24 | u32 length with header, without padding; u32 number of records |
//! | 32 | u64 time (ms, never below that of the batch before); u32 flags 0; u32 zero |

use crate::{
    Offset,
    pending::{Room, Standing},
    record::{Kind, META_BYTES_MAX, RECORD_HEAD, RECORD_SEAL, crc},
};

use std::{cmp::Ordering, ops::Range};

pub const BATCH_HEAD: usize = 48;
/// The CRC is of the header from there on,
const HEAD_CHECKED_AT: usize = 8;
/// and so many bytes of it.
pub(crate) const HEAD_CHECKED: usize = BATCH_HEAD - HEAD_CHECKED_AT;
const MAGIC: [u8; 4] = *b"WEIB";

/// A record as read: borrowed from its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub offset: Offset,
    /// When its batch was written, ms since 1970.
    pub time_ms: u64,
    pub kind: Kind,
    pub flags: u8,
    pub meta: &'a [u8],
    pub key: &'a [u8],
    pub headers: &'a [u8],
    pub value: &'a [u8],
}

/// The parts of a whole record; `None` where its lengths contradict each other. Checks no CRC.
pub(crate) fn parse(raw: &[u8]) -> Option<(Kind, u8, [&[u8]; 4])> {
    let (head, rest) = raw.split_at_checked(RECORD_HEAD)?;
    let kind = Kind::from_byte(head[12])?;
    let (meta, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes([head[14], head[15]])))?;
    let (n, rest) = rest.split_first_chunk::<2>()?;
    let (key, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*n)))?;
    let (_packet_id, mut rest) = rest.split_first_chunk::<2>()?;
    let mut headers_len = 0usize;
    for shift in [0, 7, 14, 21] {
        let (b, tail) = rest.split_first()?;
        rest = tail;
        headers_len |= usize::from(b & 0x7F) << shift;
        if b & 0x80 == 0 {
            break;
        }
    }
    let (headers, value) = rest.split_at_checked(headers_len)?;
    (meta.len() <= META_BYTES_MAX).then_some((kind, head[13], [meta, key, headers, value]))
}

/// `len` and `delta` of the record at the front of `raw`.
pub(crate) fn len_and_delta(raw: &[u8]) -> Option<(usize, u32)> {
    let (len, rest) = raw.split_first_chunk::<4>()?;
    let (delta, _) = rest.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*len) as usize, u32::from_le_bytes(*delta)))
}

/// Is `raw` exactly one whole record with a right CRC?
pub(crate) fn record_is_whole(raw: &[u8]) -> bool {
    let stored = raw.get(8..RECORD_SEAL).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes);
    len_and_delta(raw).is_some_and(|(len, _)| len == raw.len())
        && raw.len() >= RECORD_HEAD
        && stored == Some(crc(&raw[RECORD_SEAL..]))
        && parse(raw).is_some()
}

/// What a batch header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHead {
    pub salt: u64,
    pub first: Offset,
    pub len: u32,
    pub count: u32,
    pub time_ms: u64,
}

impl BatchHead {
    fn encode(&self) -> [u8; BATCH_HEAD] {
        let mut b = [0; BATCH_HEAD];
        b[..4].copy_from_slice(&MAGIC);
        b[8..16].copy_from_slice(&self.salt.to_le_bytes());
        b[16..24].copy_from_slice(&self.first.0.to_le_bytes());
        b[24..28].copy_from_slice(&self.len.to_le_bytes());
        b[28..32].copy_from_slice(&self.count.to_le_bytes());
        b[32..40].copy_from_slice(&self.time_ms.to_le_bytes());
        b
    }

    /// The salt of the header at the front of `b`, if it looks like one.
    pub(crate) fn salt_of(b: &[u8]) -> Option<u64> {
        let salt = b.get(8..16)?.try_into().map(u64::from_le_bytes).ok()?;
        b.starts_with(&MAGIC).then_some(salt)
    }

    /// Reads a header that belongs to the segment with `salt`. Checks no CRC: that needs the records.
    #[must_use]
    pub fn parse(b: &[u8], salt: u64) -> Option<Self> {
        let b: &[u8; BATCH_HEAD] = b.get(..BATCH_HEAD)?.try_into().ok()?;
        let word = |at: usize| u64::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3], b[at + 4], b[at + 5], b[at + 6], b[at + 7]]);
        let half = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        let head = Self { salt: word(8), first: Offset(word(16)), len: half(24), count: half(28), time_ms: word(32) };
        (b[..4] == MAGIC && head.salt == salt && head.len as usize >= BATCH_HEAD && word(40) == 0).then_some(head)
    }
}

/// Completes a batch in place: `bytes` begins with room for the header, then come `count` numbered records; `heads` has room for `HEAD_CHECKED` bytes and then their first `RECORD_SEAL`.
pub(crate) fn seal(bytes: &mut [u8], count: usize, salt: u64, first: Offset, time_ms: u64, heads: &mut [u8]) {
    let head = BatchHead { salt, first, len: bytes.len() as u32, count: count as u32, time_ms }.encode();
    heads[..HEAD_CHECKED].copy_from_slice(&head[HEAD_CHECKED_AT..]);
    bytes[..BATCH_HEAD].copy_from_slice(&head);
    bytes[4..HEAD_CHECKED_AT].copy_from_slice(&crc(heads).to_le_bytes());
}

/// Checks the batch at the front of `bytes`: header, its CRC, every record and its CRC. Gives the header and the places of the records.
pub(crate) fn check(bytes: &[u8], salt: u64, segment_base: Offset) -> Option<(BatchHead, Vec<u32>)> {
    let head = BatchHead::parse(bytes, salt)?;
    let bytes = bytes.get(..head.len as usize)?;
    let delta = u32::try_from(head.first.0.checked_sub(segment_base.0)?).ok()?;
    // A count cannot be trusted before the CRC; the length bounds it.
    let mut starts = Vec::with_capacity((head.count as usize).min(bytes.len() / RECORD_HEAD));
    let mut heads = bytes[HEAD_CHECKED_AT..BATCH_HEAD].to_vec();
    let mut at = BATCH_HEAD;
    while at < bytes.len() {
        let (len, d) = len_and_delta(&bytes[at..])?;
        let raw = bytes.get(at..at.checked_add(len)?)?;
        if d != delta.checked_add(starts.len() as u32)? || !record_is_whole(raw) {
            return None;
        }
        heads.extend_from_slice(&raw[..RECORD_SEAL]);
        starts.push(at as u32);
        at += len;
    }
    let sum = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
    (sum == crc(&heads) && starts.len() == head.count as usize && head.count > 0).then_some((head, starts))
}

/// Records that share their segment and time: from `index` on, until the next group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Group {
    index: u32,
    segment_base: Offset,
    time_ms: u64,
}

/// Records one after the other in a batch that have the same kind, flags and key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run<'a> {
    /// Indices.
    pub records: Range<u32>,
    pub kind: Kind,
    pub flags: u8,
    pub key: &'a [u8],
}

/// Records in memory, immutable and shared: those of one commit, or those that a fetch chose.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Where it begins in them: what is before belongs to nobody.
    from: usize,
    /// Where its records begin in it.
    starts: Vec<u32>,
    /// Of one commit: the first record of each run; of others every record is one.
    runs: Vec<u32>,
    groups: Vec<Group>,
    /// Of one commit: where it stands in its segment.
    at: u64,
}

impl Batch {
    /// Takes a sealed batch, from `from` on in `bytes`.
    pub(crate) fn sealed((bytes, from): (Vec<u8>, usize), starts: Vec<u32>, runs: Vec<u32>, standing: Standing, time_ms: u64) -> Self {
        let group = Group { index: 0, segment_base: standing.segment_base, time_ms };
        Self { bytes, from, starts, runs, groups: vec![group], at: standing.at }
    }

    /// Its memory, for another.
    pub(crate) fn into_room(self) -> Room {
        Room { bytes: self.bytes, starts: self.starts, runs: self.runs, heads: Vec::new() }
    }

    /// Of one commit: its segment, and where it stands there.
    pub(crate) fn place(&self) -> (Offset, u64) {
        (self.groups.first().map_or(Offset(0), |g| g.segment_base), self.at)
    }

    /// Of one commit: the bytes of its segment from there on.
    pub(crate) fn sealed_bytes(&self) -> &[u8] {
        &self.bytes[self.from..]
    }

    /// Adds a whole record that was checked.
    pub(crate) fn push(&mut self, raw: &[u8], segment_base: Offset, time_ms: u64) {
        let group = Group { index: self.starts.len() as u32, segment_base, time_ms };
        if self.groups.last().is_none_or(|g| (g.segment_base, g.time_ms) != (segment_base, time_ms)) {
            self.groups.push(group);
        }
        self.starts.push(self.bytes.len() as u32);
        self.bytes.extend_from_slice(raw);
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Memory that it holds.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.bytes.capacity() + 4 * (self.starts.capacity() + self.runs.capacity()) + 64
    }

    /// Bytes of its records.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len() - self.from
    }

    /// Offset of its first record; 0 if there is none.
    #[must_use]
    pub fn first(&self) -> Offset {
        self.iter().next().map_or(Offset(0), |r| r.offset)
    }

    /// One past the offset of its last record; 0 if there is none.
    #[must_use]
    pub fn end(&self) -> Offset {
        match self.len() {
            0 => Offset(0),
            n => self.get(n as u32 - 1).offset.plus(1),
        }
    }

    /// The record at `index`; panics past the end, as a slice does: indices come from this batch.
    #[must_use]
    pub fn get(&self, index: u32) -> Record<'_> {
        let raw = self.raw(index);
        let group = self.groups[self.groups.partition_point(|g| g.index <= index) - 1];
        // Checked when the batch was made.
        let (kind, flags, [meta, key, headers, value]) = parse(raw).unwrap_or((Kind::Note, 0, [&[]; 4]));
        let (_, delta) = len_and_delta(raw).unwrap_or_default();
        Record { offset: group.segment_base.plus(u64::from(delta)), time_ms: group.time_ms, kind, flags, meta, key, headers, value }
    }

    /// The record at `offset`, if it is among them.
    #[must_use]
    pub fn find(&self, offset: Offset) -> Option<Record<'_>> {
        let (mut low, mut high) = (0, self.len() as u32);
        while low < high {
            let middle = low.midpoint(high);
            let r = self.get(middle);
            match r.offset.cmp(&offset) {
                Ordering::Equal => return Some(r),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// Offset of its last record.
    pub(crate) fn last(&self) -> Option<Offset> {
        (!self.is_empty()).then(|| self.get(self.len() as u32 - 1).offset)
    }

    /// Where its records begin in it.
    pub(crate) fn starts(&self) -> &[u32] {
        &self.starts
    }

    pub(crate) fn raw(&self, index: u32) -> &[u8] {
        let at = self.from + self.starts[index as usize] as usize;
        let (len, _) = len_and_delta(&self.bytes[at..]).unwrap_or_default();
        &self.bytes[at..at + len]
    }

    pub fn iter(&self) -> impl Iterator<Item = Record<'_>> {
        (0..self.len() as u32).map(|i| self.get(i))
    }

    /// All its records in runs: who wants to know keys and flags looks at one record of each.
    pub fn runs(&self) -> impl Iterator<Item = Run<'_>> {
        let (n, every) = (self.len() as u32, self.runs.is_empty());
        let count = if every { n } else { self.runs.len() as u32 };
        let first = move |nth: u32| if every { nth } else { self.runs.get(nth as usize).copied().unwrap_or(n) };
        (0..count).map(move |nth| {
            let records = first(nth)..first(nth + 1);
            let Record { kind, flags, key, .. } = self.get(records.start);
            Run { records, kind, flags, key }
        })
    }
}
