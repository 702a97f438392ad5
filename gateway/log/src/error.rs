//! What can go wrong, one type per operation, each in words that name the file and the way out.

use crate::Offset;
use std::{fmt, io, ops::Range, path::PathBuf, sync::Arc};

/// Why a partition stopped for good.
#[derive(Debug)]
pub struct Failure {
    /// What was being done, with its file.
    pub what: String,
    pub error: io::Error,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed: {}; nothing more is acknowledged there. Repair the disk, then restart", self.what, self.error)
    }
}

/// Why a partition accepts nothing for now. It goes on by itself.
#[derive(Debug)]
pub struct Stall {
    /// What was being done, with its file.
    pub what: String,
    pub error: io::Error,
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; nothing is acknowledged there until that passes, and it is tried again until then", self.what, self.error)
    }
}

#[derive(Clone, Debug)]
pub enum AppendError {
    /// The byte budget of the pending batch is used up. Nothing was taken; the caller is woken when there is room.
    Full,
    /// The records of one call are larger than a segment can take.
    TooLarge { bytes: usize, bytes_max: usize },
    /// The partition stopped after a failed write or sync.
    Failed(Arc<Failure>),
    /// The log is stopping.
    Stopping,
}

impl fmt::Display for AppendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the pending batch is full"),
            Self::TooLarge { bytes, bytes_max } => {
                write!(f, "{bytes} bytes of records in one append, at most {bytes_max} fit in a segment")
            }
            Self::Failed(failure) => failure.fmt(f),
            Self::Stopping => f.write_str("the log is stopping"),
        }
    }
}

impl std::error::Error for AppendError {}

/// Records that were acknowledged and cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub file: String,
    /// Where the first of them should stand; `None`: the whole file is missing.
    pub at: Option<u64>,
    pub range: Range<Offset>,
}

/// A range in words: `records [5, 10)` are five, from offset 5 on. Every range that Weir prints has
/// this form; its end is one past the last, as on the wire.
#[must_use]
pub fn records(range: &Range<Offset>) -> String {
    format!("records [{}, {})", range.start, range.end)
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lost = records(&self.range);
        match self.at {
            Some(at) => write!(
                f,
                "{} is damaged at byte {at}: {lost} are lost; stop, and restore the file from a copy to have them back",
                self.file
            ),
            None => write!(f, "{} is missing: {lost} are lost; stop, and restore it from a copy to have them back", self.file),
        }
    }
}

#[derive(Debug)]
pub enum ReadError {
    Io {
        file: String,
        at: u64,
        error: io::Error,
    },
    /// Bytes that are not the record that must stand there.
    Damaged {
        file: String,
        at: u64,
        offset: Offset,
    },
    /// A fault of this program: it panicked while it read, and the panic is printed.
    Panicked,
    Stopping,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { file, at, error } => write!(f, "reading {file} at byte {at}: {error}"),
            Self::Damaged { file, at, offset } => write!(f, "{file} is damaged at byte {at}, where record {offset} should stand"),
            Self::Panicked => f.write_str("the reader panicked; standard error has the place"),
            Self::Stopping => f.write_str("the log is stopping"),
        }
    }
}

impl std::error::Error for ReadError {}

/// Why a data directory cannot be opened.
#[derive(Debug)]
pub enum OpenError {
    Io {
        what: String,
        error: io::Error,
    },
    /// Another process holds the directory.
    Locked {
        directory: PathBuf,
        pid: Option<u32>,
    },
    /// There is something in the directory, and it is not ours.
    Foreign {
        directory: PathBuf,
        found: String,
    },
    /// Bytes before the end of the log that are not what was written.
    Damaged {
        file: String,
        at: u64,
        what: String,
    },
    /// A file that another version of the program wrote.
    Version {
        file: String,
        version: u16,
    },
    /// A durable value names records that the log does not hold.
    Missing {
        partition: String,
        end: Offset,
        named: Offset,
    },
    /// A stream has records, and the state store has never heard of it.
    Unknown {
        stream: String,
        state: PathBuf,
    },
    /// The streams on disk differ from those asked for.
    Streams {
        name: String,
        stored: u32,
        wanted: u32,
    },
}

impl OpenError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| Self::Io { what, error }
    }
}

/// The machine is short of something that may come back by itself: room on the disk, a quota, descriptors, memory.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let shortages = [Errno::NOSPC, Errno::DQUOT, Errno::MFILE, Errno::NFILE, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|e| shortages.contains(&e))
}

impl OpenError {
    /// It may work later as it is.
    #[must_use]
    pub fn is_shortage(&self) -> bool {
        matches!(self, Self::Io { error, .. } if is_shortage(error))
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { what, error } => write!(f, "{what}: {error}"),
            Self::Locked { directory, pid } => {
                write!(f, "data directory {} is in use by ", directory.display())?;
                match pid {
                    Some(pid) => write!(f, "process {pid}")?,
                    None => f.write_str("another process")?,
                }
                f.write_str(": stop it, or choose another directory with --data")
            }
            Self::Foreign { directory, found } => write!(
                f,
                "{} is not a Weir data directory: it holds {found}. Choose an empty or a new directory with --data",
                directory.display()
            ),
            Self::Version { file, version } => {
                write!(f, "{file}: segment format version {version}; this program reads version 1. Start the program that wrote it")
            }
            Self::Damaged { file, at, what } => write!(
                f,
                "{file} is damaged at byte {at}: {what}. It held what was acknowledged, so nothing starts without it: restore the file from a copy, or keep what can be read with \
                 weir log repair"
            ),
            Self::Missing { partition, end, named } => write!(
                f,
                "partition {partition} ends at offset {end}, but records up to {named} were acknowledged: its newest segment is missing or cut. Restore it from a copy, or keep what is there with weir log repair"
            ),
            Self::Unknown { stream, state } => write!(
                f,
                "stream {stream} has records, and the state store in {} does not know it: its files are missing, or of another data directory. Restore them from a copy, or begin a new \
                 state store, without sessions, with weir log repair",
                state.display()
            ),
            Self::Streams { name, stored, wanted } => {
                write!(f, "stream {name} has {stored} partitions on disk and {wanted} are asked for: a topic would change its partition")
            }
        }
    }
}

impl std::error::Error for OpenError {}
