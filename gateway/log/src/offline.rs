//! A log that nobody runs, read from end to end: for those who verify or print it.
//!
//! Invariant: writes nothing but its lock. What it calls whole, recovery and readers call whole: the same checks.
//! Must not know: what a record means.

use crate::{
    Batch, Damage, Offset, OpenError, PartitionId,
    batch::{self, BatchHead},
    claim::claim,
    pending::Standing,
    recovery,
    segment::{self, BATCHES_AT, BLOCK, HeadError, SUCCESSOR_AT, SegmentHead},
    storage::Name,
};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A directory of segments: `state`, or `streams/STREAM/PARTITION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub name: String,
    path: PathBuf,
    /// In order.
    bases: Vec<Offset>,
    /// Of all its files.
    pub bytes: u64,
}

/// What is found, in order.
#[derive(Debug)]
pub enum Found {
    /// Another file begins.
    File {
        name: String,
        bytes: u64,
    },
    Batch(Batch),
    /// The head of a file that cannot be read, and why: of another version, or damaged. What is lost with it follows.
    Head {
        name: String,
        why: String,
    },
    /// Acknowledged records that cannot be read.
    Damage(Damage),
    /// A file that begins behind the last one, and is not there. What was in it nobody knows.
    Missing {
        name: String,
    },
    /// A batch that was begun and never acknowledged, at the end.
    Torn {
        name: String,
        at: u64,
        bytes: u64,
    },
}

/// The data directory, claimed while it is read: no gateway runs on it.
pub struct Offline {
    pub sources: Vec<Source>,
    _lock: fs::File,
}

fn source(name: String, path: PathBuf) -> io::Result<Source> {
    let (mut bases, mut bytes) = (Vec::new(), 0);
    for entry in fs::read_dir(&path)? {
        let entry = entry?;
        if let Some(Name::Segment(base)) = entry.file_name().to_str().and_then(Name::parse) {
            bases.push(base);
            bytes += entry.metadata()?.len();
        }
    }
    bases.sort_unstable();
    Ok(Source { name, path, bases, bytes })
}

impl Offline {
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        let io = |what: &str, path: &Path| OpenError::io(format!("{what} {}", path.display()));
        if !directory.join("state").is_dir() {
            let error = io::Error::other("there is no log here");
            return Err(OpenError::Io { what: format!("reading {}", directory.display()), error });
        }
        let lock = claim(directory)?;
        let mut sources = vec![source("state".into(), directory.join("state")).map_err(io("listing", &directory.join("state")))?];
        let streams = directory.join("streams");
        let mut named = Vec::new();
        for stream in fs::read_dir(&streams).map_err(io("listing", &streams))? {
            let stream = stream.map_err(io("listing", &streams))?;
            for partition in fs::read_dir(stream.path()).map_err(io("listing", &stream.path()))? {
                let partition = partition.map_err(io("listing", &stream.path()))?;
                let name = format!("{}/{}", stream.file_name().display(), partition.file_name().display());
                named.push(source(name, partition.path()).map_err(io("listing", &partition.path()))?);
            }
        }
        named.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        sources.extend(named);
        Ok(Self { sources, _lock: lock })
    }
}

impl Source {
    /// Which partition its files belong to, if one of them says so.
    pub(crate) fn partition(&self) -> Result<Option<PartitionId>, OpenError> {
        for base in &self.bases {
            let path = self.path.join(Name::Segment(*base).to_string());
            let mut head = vec![0; BLOCK as usize];
            let read = fs::File::open(&path).and_then(|mut file| std::io::Read::read(&mut file, &mut head));
            let n = read.map_err(OpenError::io(format!("reading {}", path.display())))?;
            if let Ok(head) = SegmentHead::parse(head.get(..n).unwrap_or_default()) {
                return Ok(Some(head.partition));
            }
        }
        Ok(None)
    }

    /// Gives what is in it. `false` from `each`: enough.
    pub fn read(&self, each: &mut dyn FnMut(Found) -> bool) -> Result<(), OpenError> {
        let mut expected = self.bases.first().copied().unwrap_or_default();
        for (i, base) in self.bases.iter().enumerate() {
            let next = self.bases.get(i + 1).copied();
            let path = self.path.join(Name::Segment(*base).to_string());
            let name = path.display().to_string();
            let bytes = fs::read(&path).map_err(OpenError::io(format!("reading {name}")))?;
            if !each(Found::File { name: name.clone(), bytes: bytes.len() as u64 }) {
                return Ok(());
            }
            if *base > expected && !each(Found::Damage(Damage { file: name.clone(), at: 0, range: expected..*base })) {
                return Ok(());
            }
            match file(&name, &bytes, *base, next, each) {
                Some(end) => expected = end,
                None => return Ok(()),
            }
        }
        Ok(())
    }
}

/// One file; gives where it ends, `None`: enough.
fn file(name: &str, bytes: &[u8], base: Offset, next: Option<Offset>, each: &mut dyn FnMut(Found) -> bool) -> Option<Offset> {
    let damage = |at: usize, range| Found::Damage(Damage { file: name.to_owned(), at: at as u64, range });
    let salt = match SegmentHead::parse(bytes) {
        Ok(head) => head.salt,
        Err(e) => {
            if !each(Found::Head { name: name.to_owned(), why: e.to_string() }) {
                return None;
            }
            let batches = bytes.get(BATCHES_AT as usize..).unwrap_or_default();
            let ours = matches!(e, HeadError::Damaged(_));
            let Some(salt) = segment::salt_of_first(batches, base).filter(|_| ours) else {
                // How much was in the last one, nobody knows.
                let end = next.unwrap_or(base.plus(1));
                return each(damage(0, base..end)).then_some(end);
            };
            // The next start makes the header again.
            salt
        }
    };
    let (mut at, mut end) = (BATCHES_AT as usize, base);
    loop {
        let here = bytes.get(at..).unwrap_or_default();
        if let Some((batch, starts)) = batch::check(here, salt, base).filter(|(h, _)| h.first == end) {
            let len = batch.len as usize;
            let raw = here.get(..len).unwrap_or_default().to_vec();
            let standing = Standing { at: at as u64, segment_base: base, first: batch.first };
            at = (at + len).next_multiple_of(8);
            end = end.plus(u64::from(batch.count));
            if !each(Found::Batch(Batch::sealed((raw, 0), starts, Vec::new(), standing, batch.time_ms))) {
                return None;
            }
        } else if let Some((later_at, later)) = recovery::look_ahead(bytes, at, salt, base, end) {
            if !each(damage(at, end..later)) {
                return None;
            }
            (at, end) = (later_at, later);
        } else {
            break;
        }
    }
    if let Some(next) = next.filter(|next| *next > end) {
        return each(damage(at, end..next)).then_some(next);
    }
    let successor = segment::parse_successor(bytes.get(SUCCESSOR_AT as usize..).unwrap_or_default(), salt);
    if let Some(missing) = successor.filter(|after| next.is_none() && *after > base) {
        let name = name.replace(&Name::Segment(base).to_string(), &Name::Segment(missing).to_string());
        return each(Found::Missing { name }).then_some(end);
    }
    let torn = BatchHead::parse(bytes.get(at..).unwrap_or_default(), salt).filter(|h| h.first == end && next.is_none());
    match torn {
        Some(h) => each(Found::Torn { name: name.to_owned(), at: at as u64, bytes: u64::from(h.len) }).then_some(end),
        None => Some(end),
    }
}
