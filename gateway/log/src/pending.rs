//! Records that wait for the writer, laid out as they will stand in the file.
//!
//! They are numbered as they come, while whoever appends them has them in its core's cache, for the place where the next batch is expected. A large batch lies in memory at the same distance
//! from the beginning of a block as in the file: with the front of its first block before it and zeros behind it, it is written from where it lies. If it comes to stand elsewhere (in a new
//! segment), it is numbered again, and its blocks are copied.
//!
//! Invariant: `sealed` gives the same bytes wherever the batch was expected.
//! Must not know: who appends, files, or when it is written.

use crate::{
    Batch, Offset, Records,
    batch::{self, BATCH_HEAD},
    record::RECORD_SEAL,
    segment::BLOCK,
};
use std::io;

const BLOCK_BYTES: usize = BLOCK as usize;
/// A batch of fewer bytes is copied into blocks when it is written: room for two blocks around it would be much for what it holds, and it stays in memory for as long as the ring has it.
const LAID_OUT_MIN: usize = 32 * 1024;

/// Memory for so many bytes in one of eight sizes between a power of two and the next: what one batch leaves is then enough for another.
fn class(bytes: usize) -> usize {
    bytes.next_multiple_of((bytes.next_power_of_two() / 16).max(8))
}

/// For a batch of about so many bytes that lies in memory as in the file: one that grows beyond its room is copied.
fn laid_out_room(expected: usize) -> usize {
    class(expected + expected / 4 + 3 * BLOCK_BYTES)
}

/// Where a batch stands, or is expected to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// In its segment.
    pub at: u64,
    pub segment_base: Offset,
    /// Of its first record.
    pub first: Offset,
}

impl Standing {
    /// Where the batch behind `pending` stands if that one stands here, and it is in the same segment.
    pub fn behind(self, pending: &Pending) -> Self {
        let at = (self.at + pending.batch_bytes() as u64).next_multiple_of(8);
        Self { at, first: self.first.plus(pending.len() as u64), ..self }
    }

    /// Where a batch begins in memory such that it lies there as in the file: less than two blocks from the front.
    fn begins_in(self, memory: &[u8]) -> usize {
        memory.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES) + self.front()
    }

    /// Bytes of its first block that are before it.
    fn front(self) -> usize {
        (self.at % BLOCK) as usize
    }
}

/// Memory that batches have done with: what is written to for the first time costs the system more than the copy into it.
#[derive(Debug, Default)]
pub(crate) struct Room {
    pub bytes: Vec<u8>,
    pub starts: Vec<u32>,
    pub runs: Vec<u32>,
    pub heads: Vec<u8>,
}

impl Room {
    /// With the larger buffer of the two.
    pub fn or(self, other: Self) -> Self {
        if self.bytes.capacity() >= other.bytes.capacity() { self } else { Self { heads: self.heads, ..other } }
    }
}

/// One batch that is gathered.
#[derive(Debug)]
pub struct Pending {
    standing: Standing,
    /// About as many bytes of a batch are expected.
    expected: usize,
    /// From `from` on the batch, its header not yet written.
    bytes: Vec<u8>,
    from: usize,
    /// Where its records begin in the batch.
    starts: Vec<u32>,
    /// The first of each run.
    runs: Vec<u32>,
    /// Room for the header's part, then the first bytes of every record: what the CRC of the batch is of.
    heads: Vec<u8>,
}

impl Default for Pending {
    fn default() -> Self {
        Self::at(Standing::default(), 0, Room::default())
    }
}

impl Pending {
    /// For a batch of about so many bytes, in that room if it is enough.
    pub(crate) fn at(standing: Standing, expected: usize, room: Room) -> Self {
        let Room { mut bytes, mut starts, mut runs, mut heads } = room;
        starts.clear();
        runs.clear();
        heads.clear();
        heads.resize(batch::HEAD_CHECKED, 0);
        bytes.clear();
        let from = if bytes.capacity() >= laid_out_room(expected) {
            standing.begins_in(&bytes)
        } else {
            // A large one is laid out with its first records.
            bytes = Vec::with_capacity(BATCH_HEAD.max(if expected < LAID_OUT_MIN { expected } else { 0 }));
            0
        };
        bytes.resize(from + BATCH_HEAD, 0);
        Self { standing, expected, bytes, from, starts, runs, heads }
    }

    /// What gathers while this one is written, if this one stands there.
    pub(crate) fn next(&self, standing: Standing, room: Room) -> Self {
        let mut next = Self::at(standing.behind(self), self.batch_bytes(), room);
        next.starts.reserve(self.len());
        next
    }

    pub fn push(&mut self, records: &Records) {
        self.reserve(records.bytes().len());
        let at = self.batch_bytes() as u32;
        self.bytes.extend_from_slice(records.bytes());
        let known = self.starts.len();
        self.runs.extend(records.runs().iter().map(|first| first + known as u32));
        self.starts.extend(records.starts().iter().map(|s| s + at));
        self.number(known);
    }

    /// Bytes of the records.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.batch_bytes() - BATCH_HEAD
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    pub(crate) fn batch_bytes(&self) -> usize {
        self.bytes.len() - self.from
    }

    /// Room for `more`: for a large batch such that it can be written from where it lies.
    fn reserve(&mut self, more: usize) {
        let bytes = self.batch_bytes() + more;
        let wanted = bytes.max(self.expected);
        let is_laid_out = self.is_laid_out();
        let has_room = self.bytes.capacity() - self.from >= bytes + BLOCK_BYTES;
        if is_laid_out && has_room || !is_laid_out && wanted < LAID_OUT_MIN {
            return;
        }
        let mut laid_out: Vec<u8> = Vec::with_capacity(laid_out_room(if is_laid_out { 2 * wanted } else { wanted }));
        let from = self.standing.begins_in(&laid_out);
        laid_out.resize(from, 0);
        laid_out.extend_from_slice(&self.bytes[self.from..]);
        (self.bytes, self.from) = (laid_out, from);
    }

    /// Where it lies in memory is where it is expected in the file, as far as blocks are concerned, with room for the rest of its last.
    fn is_laid_out(&self) -> bool {
        let front = self.standing.front();
        self.bytes.capacity() >= self.bytes.len() + BLOCK_BYTES
            && self.from >= front
            && self.bytes[self.from - front..].as_ptr().align_offset(BLOCK_BYTES) == 0
    }

    /// Numbers the records from the nth on.
    fn number(&mut self, nth: usize) {
        let delta = (self.standing.first.0 - self.standing.segment_base.0) as u32;
        let batch = &mut self.bytes[self.from..];
        for (i, start) in self.starts.iter().enumerate().skip(nth) {
            let at = *start as usize;
            batch[at + 4..at + 8].copy_from_slice(&(delta + i as u32).to_le_bytes());
            self.heads.extend_from_slice(&batch[at..at + RECORD_SEAL]);
        }
    }

    /// Completes the batch, which stands there.
    pub(crate) fn seal(&mut self, standing: Standing, salt: u64, time_ms: u64) {
        if (self.standing.segment_base, self.standing.first) != (standing.segment_base, standing.first) {
            (self.standing.segment_base, self.standing.first) = (standing.segment_base, standing.first);
            self.heads.truncate(batch::HEAD_CHECKED);
            self.number(0);
        }
        let count = self.len();
        batch::seal(&mut self.bytes[self.from..], count, salt, standing.first, time_ms, &mut self.heads);
    }

    /// Hands its blocks to `write`, with `front` in the first one before it and zeros behind it: in one part if it lies in whole blocks.
    pub(crate) fn write<T>(&mut self, front: &[u8], write: impl FnOnce(&[io::IoSlice<'_>]) -> T) -> T {
        let end = self.bytes.len();
        if front.len() == self.standing.front() && self.is_laid_out() {
            let first = self.from - front.len();
            self.bytes[first..self.from].copy_from_slice(front);
            self.bytes.resize(first + (end - first).next_multiple_of(BLOCK_BYTES), 0);
            let written = write(&[io::IoSlice::new(&self.bytes[first..])]);
            self.bytes.truncate(end);
            return written;
        }
        let (zeros, filled) = ([0; BLOCK_BYTES], front.len() + self.batch_bytes());
        let zeros = &zeros[..filled.next_multiple_of(BLOCK_BYTES) - filled];
        write(&[io::IoSlice::new(front), io::IoSlice::new(&self.bytes[self.from..]), io::IoSlice::new(zeros)])
    }

    /// The batch, sealed to stand there, and room for another. Where far more was expected it is a copy: it lies in memory for long, and cut to its size in place it would leave a hole behind it.
    pub(crate) fn sealed(mut self, standing: Standing, time_ms: u64) -> (Batch, Room) {
        let mut room = Room { heads: self.heads, ..Room::default() };
        let len = self.bytes.len();
        if self.bytes.capacity() > 2 * len {
            let mut bytes = Vec::with_capacity(class(len));
            bytes.extend_from_slice(&self.bytes[self.from..]);
            let (starts, runs) = (self.starts.clone(), self.runs.clone());
            (room.bytes, self.bytes, self.from) = (self.bytes, bytes, 0);
            (room.starts, self.starts) = (self.starts, starts);
            (room.runs, self.runs) = (self.runs, runs);
        }
        (Batch::sealed((self.bytes, self.from), self.starts, self.runs, standing, time_ms), room)
    }

    /// Its bytes from the one at `from` on; none behind its end.
    pub(crate) fn after(&self, from: u64) -> &[u8] {
        self.bytes[self.from..].get(from as usize..).unwrap_or_default()
    }
}
