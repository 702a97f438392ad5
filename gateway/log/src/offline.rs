//! A log that nobody runs, read from end to end: for those who verify or print it.
//!
//! Invariant: writes nothing but its lock. What it calls whole, recovery and readers call whole: the same checks.
//! Must not know: what a record means.

use crate::{
    Batch, Damage, Durability, Offset, OpenError, PartitionId,
    batch::{self, BatchHead},
    claim::claim,
    engine::{self, STATE},
    pending::Standing,
    recovery,
    segment::{self, BATCHES_AT, BLOCK, Identified, SUCCESSOR_AT, SegmentHead},
    storage::{File, FileStorage, Name, Storage, read_around},
};
use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

/// A directory of segments: `state`, or `streams/STREAM/PARTITION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub name: String,
    path: PathBuf,
    /// Whose files they are, if the state store or most of them say so.
    partition: Option<PartitionId>,
    /// What the state store says of its beginning.
    start: Option<Offset>,
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
    /// Acknowledged records at the end of the newest file: how many, the files do not say.
    Behind {
        name: String,
        at: u64,
        from: Offset,
    },
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

/// What `Found::Behind` says to people.
#[must_use]
pub fn behind(name: &str, at: u64, from: Offset) -> String {
    format!(
        "{name} is damaged at byte {at}: records from {from} on are lost, and how many, the files do not say; restore the file from a copy to have them back"
    )
}

/// The data directory, claimed while it is read: no gateway runs on it.
pub struct Offline {
    pub sources: Vec<Source>,
    /// Streams with records that the state store has never heard of: it is missing, or of another data directory.
    pub unknown: Vec<String>,
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
    Ok(Source { name, path, partition: None, start: None, bases, bytes })
}

impl Offline {
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        let io = |what: &str, path: &Path| OpenError::io(format!("{what} {}", path.display()));
        let (state, streams) = (directory.join("state"), directory.join("streams"));
        if !state.is_dir() && !streams.is_dir() {
            let error = io::Error::other("there is no log here");
            return Err(OpenError::Io { what: format!("reading {}", directory.display()), error });
        }
        let lock = claim(directory)?;
        let mut sources = Vec::new();
        if state.is_dir() {
            let state = source("state".into(), state.clone()).map_err(io("listing", &state))?;
            sources.push(Source { partition: Some(STATE), ..state });
        }
        let mut named = Vec::new();
        for stream in directories(&streams).map_err(io("listing", &streams))? {
            for partition in directories(&stream).map_err(io("listing", &stream))? {
                let both = (stream.file_name().unwrap_or_default(), partition.file_name().unwrap_or_default());
                let name = format!("{}/{}", both.0.display(), both.1.display());
                named.push(source(name, partition.clone()).map_err(io("listing", &partition))?);
            }
        }
        sources.extend(named);
        let known = Known::read(&sources)?;
        for name in known.names().filter(|name| sources.iter().all(|s| s.name != *name)).collect::<Vec<_>>() {
            let path = streams.join(&name);
            sources.push(Source { name, path, partition: None, start: None, bases: Vec::new(), bytes: 0 });
        }
        sources.sort_by(|a, b| (a.partition != Some(STATE), &a.name).cmp(&(b.partition != Some(STATE), &b.name)));
        for source in &mut sources {
            if source.partition.is_none() {
                source.partition = known.partition(&source.name).map_or_else(|| source.of_most(), |p| Ok(Some(p)))?;
            }
            source.start = source.partition.and_then(|p| known.starts.get(&p).copied());
        }
        let stream = |source: &Source| source.name.split_once('/').map(|(stream, _)| stream.to_owned());
        let unheard = |stream: &String| !known.streams.contains_key(stream.as_bytes());
        let mut unknown = Vec::new();
        for source in &sources {
            if let Some(name) = stream(source).filter(unheard)
                && unknown.last() != Some(&name)
                && source.has_records()?
            {
                unknown.push(name);
            }
        }
        Ok(Self { sources, unknown, _lock: lock })
    }
}

/// Directories below this one; files are not ours.
fn directories(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(Vec::new());
    }
    let all: io::Result<Vec<_>> = fs::read_dir(path)?.map(|entry| entry.map(|e| e.path())).collect();
    Ok(all?.into_iter().filter(|path| path.is_dir()).collect())
}

/// What the state store says of the streams.
#[derive(Default)]
struct Known {
    /// The id of the first partition, and how many.
    streams: HashMap<Vec<u8>, (u32, u32)>,
    starts: HashMap<PartitionId, Offset>,
}

impl Known {
    fn read(sources: &[Source]) -> Result<Self, OpenError> {
        let mut known = Self::default();
        let Some(state) = sources.iter().find(|s| s.partition == Some(STATE)) else { return Ok(known) };
        state.read(&mut |found| {
            if let Found::Batch(batch) = found {
                batch.iter().for_each(|r| known.note(r.key, r.value));
            }
            true
        })?;
        Ok(known)
    }

    fn note(&mut self, key: &[u8], value: &[u8]) {
        if let (Some(name), Some(partitions)) = (key.strip_prefix(b"stream/"), engine::parse_stream(value)) {
            self.streams.insert(name.to_vec(), partitions);
        } else if let (Some(p), Some(start)) = (engine::partition_of(key, b"start/"), value.first_chunk()) {
            self.starts.insert(p, Offset(u64::from_le_bytes(*start)));
        }
    }

    /// Of `STREAM/NUMBER`.
    fn partition(&self, source: &str) -> Option<PartitionId> {
        let (stream, number) = source.split_once('/')?;
        Some(PartitionId(self.streams.get(stream.as_bytes())?.0 + number.parse::<u32>().ok()?))
    }

    /// Of every partition.
    fn names(&self) -> impl Iterator<Item = String> {
        let of = |(name, (_, count)): (&Vec<u8>, &(u32, u32))| {
            let name = String::from_utf8_lossy(name).into_owned();
            (0..*count).map(move |number| format!("{name}/{number}"))
        };
        self.streams.iter().flat_map(of)
    }
}

impl Source {
    /// Whose files they are.
    pub(crate) fn partition(&self) -> Option<PartitionId> {
        self.partition
    }

    /// Where its first file begins.
    pub(crate) fn first(&self) -> Option<Offset> {
        self.bases.first().copied()
    }

    /// It has records, or had some.
    fn has_records(&self) -> Result<bool, OpenError> {
        let reading = || OpenError::io(format!("reading {}", self.path.display()));
        let storage = FileStorage::new(&self.path, Durability::Os).map_err(reading())?;
        recovery::has_records(&storage).map_err(reading())
    }

    /// What most of its files say.
    fn of_most(&self) -> Result<Option<PartitionId>, OpenError> {
        let mut said: HashMap<PartitionId, usize> = HashMap::new();
        for base in &self.bases {
            let head = self.bytes_of(*base, BLOCK)?;
            if let Ok(head) = SegmentHead::parse(&head) {
                *said.entry(head.partition).or_default() += 1;
            }
        }
        Ok(said.into_iter().max_by_key(|(_, n)| *n).map(|(p, _)| p))
    }

    fn path_of(&self, base: Offset) -> PathBuf {
        self.path.join(Name::Segment(base).to_string())
    }

    /// The first `max` bytes of a file, with zeros where the device cannot read.
    fn bytes_of(&self, base: Offset, max: u64) -> Result<Vec<u8>, OpenError> {
        let path = self.path_of(base);
        let reading = || OpenError::io(format!("reading {}", path.display()));
        let storage = FileStorage::new(&self.path, Durability::Os).map_err(reading())?;
        let file = storage.open(Name::Segment(base)).map_err(reading())?;
        let mut bytes = vec![0; file.bytes().map_err(reading())?.min(max) as usize];
        let (n, _) = read_around(&file, &mut bytes, 0).map_err(reading())?;
        bytes.truncate(n);
        Ok(bytes)
    }

    /// The oldest file, if it is missing: the newest that can be read say where the log began when they did, and the state store where it began afterwards.
    fn missing_first(&self) -> Result<Option<String>, OpenError> {
        let Some(first) = self.bases.first() else {
            // A partition has a file from before anybody knows of it on.
            let known = self.partition.is_some_and(|p| p != STATE);
            return Ok(known.then(|| self.path_of(self.start.unwrap_or_default()).display().to_string()));
        };
        let mut known = self.start;
        if self.partition == Some(STATE) {
            for base in &self.bases {
                known = known.max(SegmentHead::parse(&self.bytes_of(*base, BLOCK)?).ok().and_then(|head| head.first));
            }
        } else {
            known = known.or(Some(Offset(0)));
        }
        Ok(known.filter(|known| known < first).map(|known| self.path_of(known).display().to_string()))
    }

    /// Gives what is in it. `false` from `each`: enough.
    pub fn read(&self, each: &mut dyn FnMut(Found) -> bool) -> Result<(), OpenError> {
        if let Some(name) = self.missing_first()?
            && !each(Found::Missing { name })
        {
            return Ok(());
        }
        let mut expected = self.bases.first().copied().unwrap_or_default();
        for (i, base) in self.bases.iter().enumerate() {
            let next = self.bases.get(i + 1).copied();
            let name = self.path_of(*base).display().to_string();
            let bytes = self.bytes_of(*base, u64::MAX)?;
            if !each(Found::File { name: name.clone(), bytes: bytes.len() as u64 }) {
                return Ok(());
            }
            if *base > expected
                && !each(Found::Damage(Damage { file: self.path_of(expected).display().to_string(), at: None, range: expected..*base }))
            {
                return Ok(());
            }
            match file(&name, &bytes, (self.partition, *base), next, each) {
                Some(end) => expected = end,
                None => return Ok(()),
            }
        }
        Ok(())
    }
}

/// One file; gives where it ends, `None`: enough.
fn file(
    name: &str,
    bytes: &[u8],
    (partition, base): (Option<PartitionId>, Offset),
    next: Option<Offset>,
    each: &mut dyn FnMut(Found) -> bool,
) -> Option<Offset> {
    let damage = |at: usize, range| Found::Damage(Damage { file: name.to_owned(), at: Some(at as u64), range });
    let batches = || Ok(bytes.get(BATCHES_AT as usize..).unwrap_or_default().to_vec());
    let head = match segment::identify(bytes, base, partition, batches) {
        Ok(Ok(Identified::Ours(head))) => head,
        // The next start makes the header again.
        Ok(Ok(Identified::Remade(head, e))) => {
            let why = format!("{e}; the next start makes the header again, and no batch is lost by it");
            if !each(Found::Head { name: name.to_owned(), why }) {
                return None;
            }
            head
        }
        Ok(Err(e)) => {
            let lost = next.map_or_else(|| Found::Behind { name: name.to_owned(), at: 0, from: base }, |next| damage(0, base..next));
            let told = each(Found::Head { name: name.to_owned(), why: e.to_string() }) && each(lost);
            return told.then_some(next.unwrap_or(base));
        }
        // It is all in memory.
        Err(_) => return Some(base),
    };
    let salt = head.salt;
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
    let successor = segment::parse_successor(bytes.get(SUCCESSOR_AT as usize..).unwrap_or_default(), salt);
    if let Some(next) = next.filter(|next| *next > end) {
        // The file that was begun behind this one may be what is missing: then this one is not to be restored.
        let gone = successor.filter(|after| *after > base && (end..next).contains(after));
        let here = end..gone.unwrap_or(next);
        let named = |gone: Offset| name.replace(&Name::Segment(base).to_string(), &Name::Segment(gone).to_string());
        let told = (here.is_empty() || each(damage(at, here)))
            && gone.is_none_or(|gone| each(Found::Damage(Damage { file: named(gone), at: None, range: gone..next })));
        return told.then_some(next);
    }
    if let Some(missing) = successor.filter(|after| next.is_none() && *after > base) {
        let name = name.replace(&Name::Segment(base).to_string(), &Name::Segment(missing).to_string());
        return each(Found::Missing { name }).then_some(end);
    }
    let note = bytes.get(SUCCESSOR_AT as usize..).unwrap_or_default();
    if next.is_none() && segment::is_cut(&head, bytes.len() as u64, note, end).is_some() {
        return each(Found::Behind { name: name.to_owned(), at: at as u64, from: end }).then_some(end);
    }
    let torn = BatchHead::parse(bytes.get(at..).unwrap_or_default(), salt).filter(|h| h.first == end && next.is_none());
    match torn {
        Some(h) => each(Found::Torn { name: name.to_owned(), at: at as u64, bytes: u64::from(h.len) }).then_some(end),
        None => Some(end),
    }
}
