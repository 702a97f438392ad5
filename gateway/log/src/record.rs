//! Records in the making, encoded as they will lie on disk.
//!
//! Invariant: nothing in a record depends on its place but `delta`, which the writer fills in; so records are encoded, with their
//! CRC, by the tasks that append and outside of any lock.
//! Must not know: files, or what flags, meta, headers and values mean.
//!
//! One record, little-endian where not said otherwise:
//!
//! | at | field |
//! |---|---|
//! | 0 | u32 `len`, from here to the last byte |
//! | 4 | u32 `delta`: offset less the base offset of the segment |
//! | 8 | u32 CRC-32C of bytes 12..`len` |
//! | 12 | u8 kind, u8 flags, u16 `meta_len` |
//! | 16 | meta |
//! | … | u16 big-endian key length, key, two zero bytes, varint header length, headers, value: the body of an MQTT 5 PUBLISH |

use crate::PartitionId;
use std::{fmt, ops::Range};

/// Bytes of a record before its meta.
pub const RECORD_HEAD: usize = 16;
/// Of a record without anything: the lengths of its parts.
pub(crate) const RECORD_BYTES_MIN: u64 = RECORD_HEAD as u64 + 2 + 2 + 1;
/// Bytes of a record that the batch CRC covers.
pub const RECORD_SEAL: usize = 12;
/// Keys longer than this cannot be stored: their length is a u16. Names that others make keys of with a prefix must leave room for it.
pub const KEY_BYTES_MAX: usize = u16::MAX as usize;
/// Meta is a few fixed fields.
pub const META_BYTES_MAX: usize = 1_024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Message = 0,
    /// Takes an offset and is seen by the fold only.
    Note = 1,
    /// Deletes its key.
    Tombstone = 2,
}

impl Kind {
    pub(crate) fn from_byte(b: u8) -> Option<Self> {
        match b {
            0 => Some(Self::Message),
            1 => Some(Self::Note),
            2 => Some(Self::Tombstone),
            _ => None,
        }
    }
}

/// A record that the log does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushError {
    KeyTooLong { bytes: usize },
    MetaTooLong { bytes: usize },
    TooLong { bytes: usize },
}

impl fmt::Display for PushError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyTooLong { bytes } => write!(f, "a key of {bytes} bytes, at most {KEY_BYTES_MAX}"),
            Self::MetaTooLong { bytes } => write!(f, "meta of {bytes} bytes, at most {META_BYTES_MAX}"),
            Self::TooLong { bytes } => write!(f, "a record of {bytes} bytes, at most {}", u32::MAX / 4),
        }
    }
}

impl std::error::Error for PushError {}

pub(crate) fn crc(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// No key is there.
const NOWHERE: Range<usize> = usize::MAX..usize::MAX;

/// Partition and batch in which somebody who appends was registered for a wake-up: once per batch is enough.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registration {
    pub(crate) partition: PartitionId,
    /// From 1 on; 0: in none.
    pub(crate) batch: u64,
}

/// Records to append: pushed, appended with one call, cleared and used again.
#[derive(Debug, Default)]
pub struct Records {
    bytes: Vec<u8>,
    starts: Vec<u32>,
    /// The first of each run.
    runs: Vec<u32>,
    /// Kind, flags and key of the last: bytes of it.
    last: ([u8; 2], Range<usize>),
    /// Of the owner: who lends them to another owner takes it along.
    pub registered: Registration,
}

impl Records {
    pub fn push(&mut self, kind: Kind, flags: u8, meta: &[u8], key: &[u8], headers: &[u8], value: &[u8]) -> Result<(), PushError> {
        if key.len() > KEY_BYTES_MAX {
            return Err(PushError::KeyTooLong { bytes: key.len() });
        }
        if meta.len() > META_BYTES_MAX {
            return Err(PushError::MetaTooLong { bytes: meta.len() });
        }
        let len = RECORD_HEAD + meta.len() + 2 + key.len() + 2 + varint_len(headers.len()) + headers.len() + value.len();
        if len > (u32::MAX / 4) as usize || self.bytes.len() + len > (u32::MAX / 2) as usize {
            return Err(PushError::TooLong { bytes: len });
        }
        let start = self.bytes.len();
        let (head, last) = (&self.last.0, self.bytes.get(self.last.1.clone()));
        if self.starts.is_empty() || *head != [kind as u8, flags] || last != Some(key) {
            self.runs.push(self.starts.len() as u32);
        }
        self.starts.push(start as u32);
        let b = &mut self.bytes;
        b.reserve(len);
        b.extend_from_slice(&(len as u32).to_le_bytes());
        b.extend_from_slice(&[0; 8]);
        b.extend_from_slice(&[kind as u8, flags]);
        b.extend_from_slice(&(meta.len() as u16).to_le_bytes());
        b.extend_from_slice(meta);
        b.extend_from_slice(&(key.len() as u16).to_be_bytes());
        self.last = ([kind as u8, flags], b.len()..b.len() + key.len());
        b.extend_from_slice(key);
        b.extend_from_slice(&[0, 0]);
        varint(b, headers.len());
        b.extend_from_slice(headers);
        b.extend_from_slice(value);
        let sum = crc(&b[start + RECORD_SEAL..]);
        b[start + 8..start + RECORD_SEAL].copy_from_slice(&sum.to_le_bytes());
        Ok(())
    }

    /// A record that was read before, as it is.
    pub(crate) fn push_raw(&mut self, raw: &[u8]) {
        self.runs.push(self.starts.len() as u32);
        self.last.1 = NOWHERE;
        self.starts.push(self.bytes.len() as u32);
        self.bytes.extend_from_slice(raw);
    }

    pub fn clear(&mut self) {
        self.bytes.clear();
        self.starts.clear();
        self.runs.clear();
        // A buffer that one large message stretched is not kept for the life of an idle connection.
        if self.bytes.capacity() > 256 * 1024 {
            self.bytes = Vec::new();
        }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn starts(&self) -> &[u32] {
        &self.starts
    }

    /// The first record of each run: of those that follow each other and have the same kind, flags and key.
    pub(crate) fn runs(&self) -> &[u32] {
        &self.runs
    }
}

fn varint_len(n: usize) -> usize {
    match n {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}

fn varint(out: &mut Vec<u8>, mut n: usize) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}
