//! The one door to the disk. Everything that touches a file goes through these two traits, so that every fault can be had in a test.
//!
//! Invariant: no path above this trait; a directory is a set of `Name`s.
//! Must not know: what is in the files.

#[cfg(any(test, feature = "sim"))]
pub mod chaos;
mod file;
#[cfg(any(test, feature = "sim"))]
pub mod sim;

pub use file::FileStorage;
pub(crate) use file::aligned;

use crate::Offset;
use std::{fmt, io};

/// A file of a partition's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// `%020d.log`, by its base offset.
    Segment(Offset),
    /// `%020d.idx`: the key index of the sealed segment with this base offset.
    Index(Offset),
    /// `spare-N`: a prepared file of no meaning.
    Spare(u32),
    /// `%020d.damaged`: a segment that cannot be read at all, kept for whoever looks into it. The log does not touch it again.
    Damaged(Offset),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(base) => write!(f, "{base:020}.log"),
            Self::Index(base) => write!(f, "{base:020}.idx"),
            Self::Spare(n) => write!(f, "spare-{n}"),
            Self::Damaged(base) => write!(f, "{base:020}.damaged"),
        }
    }
}

impl Name {
    /// The name that `text` stands for; `None` for files that are not ours.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let name = match text.split_once('.') {
            Some((n, "log")) => Self::Segment(Offset(n.parse().ok()?)),
            Some((n, "idx")) => Self::Index(Offset(n.parse().ok()?)),
            Some((n, "damaged")) => Self::Damaged(Offset(n.parse().ok()?)),
            _ => Self::Spare(text.strip_prefix("spare-")?.parse().ok()?),
        };
        (name.to_string() == text).then_some(name)
    }
}

/// A file whatever its name: of two files that exist at the same time, never the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub device: u64,
    pub inode: u64,
}

/// The directory of one partition.
pub trait Storage: Send + Sync + 'static {
    type File: File;
    /// Where it is, for messages.
    fn describe(&self) -> String;
    fn names(&self) -> io::Result<Vec<Name>>;
    /// A new file of `bytes` zeros; one that was there is replaced.
    fn create(&self, name: Name, bytes: u64) -> io::Result<Self::File>;
    fn open(&self, name: Name) -> io::Result<Self::File>;
    /// Replaces `to` if it exists; `NotFound` if `from` does not.
    fn rename(&self, from: Name, to: Name) -> io::Result<()>;
    /// `NotFound` if there is no such file.
    fn remove(&self, name: Name) -> io::Result<()>;
    /// Which file has this name now.
    fn identity(&self, name: Name) -> io::Result<Identity>;

    fn remove_if_there(&self, name: Name) -> io::Result<()> {
        match self.remove(name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Makes creations, renames and removals durable.
    fn sync_names(&self) -> io::Result<()>;
}

/// An open file.
pub trait File: Send + Sync + 'static {
    /// Reads as much as there is, up to the length of `into`.
    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize>;
    /// Writes all parts, one after the other.
    fn write_at(&self, parts: &[io::IoSlice<'_>], at: u64) -> io::Result<()>;
    fn sync_data(&self) -> io::Result<()>;
    /// What is read afterwards is what the device has. After a failed sync the page cache passes for written what is not.
    fn drop_cache(&self) -> io::Result<()>;
    /// Nothing more will be written: gives back what writing held.
    fn finish(&self) {}
    fn truncate(&self, bytes: u64) -> io::Result<()>;
    fn bytes(&self) -> io::Result<u64>;
    fn identity(&self) -> io::Result<Identity>;
}

/// What a device answers for a place that it cannot read.
fn is_unreadable(error: &io::Error) -> bool {
    use rustix::io::Errno;
    Errno::from_io_error(error).is_some_and(|e| [Errno::IO, Errno::ILSEQ, Errno::NODATA].contains(&e))
}

/// Reads as `File::read_at`. A block that the device cannot read is given as zeros, so that what stood there is missed by its checksum like any other damage, and what stands beside it is
/// not lost. Gives how much there is, and where the first such block begins.
pub(crate) fn read_around<F: File>(file: &F, into: &mut [u8], at: u64) -> io::Result<(usize, Option<u64>)> {
    const BLOCK: u64 = crate::segment::BLOCK;
    match file.read_at(into, at) {
        Err(e) if is_unreadable(&e) => {}
        read => return read.map(|n| (n, None)),
    }
    let (mut done, mut unreadable) = (0, None);
    while done < into.len() {
        let here = at + done as u64;
        let n = (BLOCK - here % BLOCK).min((into.len() - done) as u64) as usize;
        let part = &mut into[done..done + n];
        match file.read_at(part, here) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if is_unreadable(&e) => {
                part.fill(0);
                unreadable.get_or_insert(here);
                done += n;
            }
            Err(e) => return Err(e),
        }
    }
    // Behind the end of the file there is nothing, readable or not.
    let end = file.bytes()?.saturating_sub(at).min(done as u64);
    Ok((end as usize, unreadable))
}
