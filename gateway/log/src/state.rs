//! The state store: the newest value of each key, on the same segments and the same writer as the data.
//!
//! Invariant: a put moves the directory entry under the same lock that appends it, so the order of the directory is the order of the
//! log; the puts of one call become durable in order. A value is given out only when it is durable.
//! Must not know: what a key or a value means. No promise needs two keys to change together.
//!
//! Cleaning is re-append: when less than half of the files is live, the records of the oldest segment that the directory still
//! points at are appended again, version and tag kept, and the segment goes when the copies are durable. Tombstones of the oldest
//! segment delete nothing any more and go with it.

use crate::sync::{
    Condvar, Mutex,
    thread::{self, JoinHandle},
};
use crate::{
    AppendError, Kind, Nobody, Offset, ReadError, Receipt, Records, Stall, Wake, Watermark,
    batch::parse,
    engine::{STATE, start_key},
    index::Cache,
    partition::Partition,
    reader::{self, Fetch, Source, Wanted},
    readers::{Budget, Job, Progress, Turn},
    record::{PushError, Registration},
    segment::{BATCHES_AT, Limits, Scan, Segment, Segments},
    storage::{File, Name, Storage},
};
use std::{
    collections::{BinaryHeap, HashMap, VecDeque},
    sync::{Arc, mpsc::RecvTimeoutError},
    time::Duration,
};

/// How often who waits for the store looks whether it has stalled.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Copies per lock while cleaning: a put waits no longer than this takes.
const COPY_BYTES: usize = 256 * 1024;

/// One change: a new value, or `None` to delete the key.
#[derive(Clone, Copy, Debug)]
pub struct Put<'a> {
    pub key: &'a [u8],
    /// A number that a scan gives without looking into the value.
    pub tag: u32,
    pub value: Option<&'a [u8]>,
}

/// What a key holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub tag: u32,
    pub value: Vec<u8>,
}

pub type GetDone = Box<dyn FnOnce(Result<Option<Entry>, ReadError>) + Send>;

/// Takes key, tag and value.
pub type Each<'a> = dyn FnMut(&[u8], u32, &[u8]) + 'a;

/// What the store takes on its disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateSize {
    /// Of the newest values, with their keys. Its files are at most about twice as large.
    pub live_bytes: u64,
    /// There was no room for a file in reserve, which acknowledgements, cleaning and the next start have whatever others do with the disk.
    pub is_short: bool,
}

pub trait State: Send + Sync {
    /// `AppendError::Full`: nothing was taken, `who` is woken when there is room.
    fn put(&self, puts: &[Put<'_>], who: &Arc<dyn Wake>) -> Result<Receipt, AppendError>;
    /// The newest put, once that is durable. Called back on a thread of the log's own, or at once.
    fn get(&self, key: &[u8], done: GetDone);
    fn appended(&self) -> Watermark;
    fn size(&self) -> StateSize;
    /// Up to `max` keys that begin with `prefix`, ascending, behind `after`. Looks at every key and holds up puts meanwhile, tens of nanoseconds a key: for
    /// people.
    fn keys(&self, prefix: &[u8], after: &[u8], max: usize) -> Vec<Box<[u8]>>;
    /// Gives every key with its tag and value. Holds up all puts meanwhile: for the start.
    fn scan(&self, each: &mut Each<'_>) -> Result<(), ReadError>;
}

#[derive(Clone, Copy, Debug)]
struct Located {
    offset: Offset,
    len: u32,
}

/// Keys whose deletion may not be durable yet: they are gone for good only then.
#[derive(Debug, Default)]
pub(crate) struct Deleted {
    /// Behind the record that deleted it.
    of: HashMap<Box<[u8]>, Offset>,
    order: VecDeque<(Offset, Box<[u8]>)>,
}

impl Deleted {
    fn add(&mut self, key: &[u8], end: Offset) {
        self.of.insert(key.into(), end);
        self.order.push_back((end, key.into()));
    }

    /// Forgets those that are gone for good.
    pub fn forget(&mut self, durable: Offset) {
        while let Some((end, key)) = self.order.pop_front_if(|(end, _)| *end <= durable) {
            // It may have been deleted again.
            if self.of.get(&key) == Some(&end) {
                self.of.remove(&key);
            }
        }
    }

    /// What must be durable before the key is gone.
    pub fn end_of(&self, key: &[u8]) -> Offset {
        self.of.get(key).copied().unwrap_or_default()
    }
}

/// Where the newest record of each key lies. Whole keys, not hashes of them: 40 B more a key, and no collision to refuse.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    map: HashMap<Box<[u8]>, Located, foldhash::fast::RandomState>,
    live_bytes: u64,
    /// Offset of the next record.
    next: Offset,
    pub(crate) deleted: Deleted,
    scratch: Records,
}

const META: usize = 12;

impl Directory {
    /// Reads all segments in order.
    pub fn load<F: File>(segments: &Segments<F>, end: Offset) -> Result<Self, ReadError> {
        let mut directory = Self { next: segments.start(), ..Self::default() };
        each_record(segments, end, &mut |offset, raw| {
            directory.next = offset;
            directory.note(raw);
            directory.next = offset.plus(1);
        })?;
        directory.next = end;
        Ok(directory)
    }

    /// Moves the entry of the record `raw`, which stands at `next`.
    fn note(&mut self, raw: &[u8]) {
        let Some((kind, _, [_, key, ..])) = parse(raw) else { return };
        let old = if kind == Kind::Tombstone {
            self.map.remove(key)
        } else {
            self.live_bytes += raw.len() as u64;
            self.map.insert(key.into(), Located { offset: self.next, len: raw.len() as u32 })
        };
        self.live_bytes -= old.map_or(0, |o| u64::from(o.len));
    }

    fn holds(&self, raw: &[u8], offset: Offset) -> bool {
        parse(raw).is_some_and(|(kind, _, [_, key, ..])| kind != Kind::Tombstone && self.map.get(key).is_some_and(|l| l.offset == offset))
    }

    /// Appends `puts` and moves their entries, or does nothing.
    pub fn put(
        &mut self,
        puts: &[Put<'_>],
        append: impl FnOnce(&mut Records) -> Result<Receipt, AppendError>,
    ) -> Result<Receipt, AppendError> {
        let mut records = std::mem::take(&mut self.scratch);
        records.clear();
        // The buffer is everybody's: whoever put with it last is not who puts now.
        records.registered = Registration::default();
        for (i, p) in puts.iter().enumerate() {
            let version = self.next.plus(i as u64 + 1).0;
            let mut meta = [0; META];
            meta[..4].copy_from_slice(&p.tag.to_le_bytes());
            meta[4..].copy_from_slice(&version.to_le_bytes());
            let kind = if p.value.is_some() { Kind::Message } else { Kind::Tombstone };
            let pushed = records.push(kind, 0, &meta, p.key, &[], p.value.unwrap_or_default());
            if let Err(PushError::KeyTooLong { bytes } | PushError::MetaTooLong { bytes } | PushError::TooLong { bytes }) = pushed {
                return Err(AppendError::TooLarge { bytes, bytes_max: crate::record::KEY_BYTES_MAX });
            }
        }
        let receipt = self.append(&mut records, append);
        self.scratch = records;
        receipt
    }

    fn append(
        &mut self,
        records: &mut Records,
        append: impl FnOnce(&mut Records) -> Result<Receipt, AppendError>,
    ) -> Result<Receipt, AppendError> {
        let receipt = append(records)?;
        for (i, start) in records.starts().iter().enumerate() {
            let end = records.starts().get(i + 1).map_or(records.bytes().len(), |e| *e as usize);
            let raw = &records.bytes()[*start as usize..end];
            self.note(raw);
            self.next = self.next.plus(1);
            if let Some((Kind::Tombstone, _, [_, key, ..])) = parse(raw) {
                self.deleted.add(key, self.next);
            }
        }
        Ok(receipt)
    }

    /// Re-appends those of `candidates` that are still the newest of their key.
    pub fn copy(
        &mut self,
        candidates: &[(Offset, Vec<u8>)],
        append: impl FnOnce(&mut Records) -> Result<Receipt, AppendError>,
    ) -> Result<(), AppendError> {
        let mut records = Records::default();
        candidates.iter().filter(|(offset, raw)| self.holds(raw, *offset)).for_each(|(_, raw)| records.push_raw(raw));
        if records.is_empty() {
            return Ok(());
        }
        self.append(&mut records, append).map(drop)
    }

    /// Less than half of `segments` files is live.
    pub fn wants_cleaning(&self, segments: usize, limits: &Limits) -> bool {
        segments > 1 && self.live_bytes * 2 < segments as u64 * u64::from(limits.segment_bytes)
    }

    #[cfg(test)]
    pub fn located(&self, key: &[u8]) -> Option<Offset> {
        self.map.get(key).map(|l| l.offset)
    }
}

fn each_record<F: File>(segments: &Segments<F>, end: Offset, each: &mut dyn FnMut(Offset, &[u8])) -> Result<(), ReadError> {
    let mut at = segments.start();
    while at < end {
        let Some((segment, after)) = segments.find(at) else { break };
        let to = after.unwrap_or(end).min(end);
        each_of(&segment, to, each)?;
        at = to.max(at.plus(1));
    }
    Ok(())
}

fn each_of<F: File>(segment: &Segment<F>, end: Offset, each: &mut dyn FnMut(Offset, &[u8])) -> Result<(), ReadError> {
    if segment.head.base >= end {
        return Ok(());
    }
    let place = segment.place(segment.head.base, end)?.filter(|place| place.delta == 0);
    let place = place.ok_or_else(|| segment.damaged(BATCHES_AT, segment.head.base))?;
    let mut scan = Scan::new(segment, place);
    while scan.next() < end {
        let offset = scan.next();
        let (raw, _) = scan.step()?;
        each(offset, raw);
    }
    Ok(())
}

/// Appends what of a piece of a segment is still live.
type AppendCopies<'a> = dyn FnMut(&[(Offset, Vec<u8>)]) -> Result<(), AppendError> + 'a;

/// Copies what is live in the oldest sealed segment, in pieces of at most `piece_bytes_max`, or of one record, through `append`. False: there is no sealed segment.
pub(crate) fn clean_oldest<F: File>(
    segments: &Segments<F>,
    piece_bytes_max: usize,
    append: &mut AppendCopies<'_>,
) -> Result<bool, CleanError> {
    let Some((segment, end)) = segments.oldest_sealed() else { return Ok(false) };
    let mut piece: Vec<(Offset, Vec<u8>)> = Vec::new();
    let mut bytes = 0;
    let mut failed = None;
    each_of(&segment, end, &mut |offset, raw| {
        if failed.is_some() {
            return;
        }
        if bytes + raw.len() > piece_bytes_max && !piece.is_empty() {
            failed = append(&piece).err();
            piece.clear();
            bytes = 0;
        }
        bytes += raw.len();
        piece.push((offset, raw.to_vec()));
    })
    .map_err(CleanError::Read)?;
    failed.map_or_else(|| append(&piece), Err).map_err(CleanError::Append)?;
    Ok(true)
}

#[derive(Debug)]
pub(crate) enum CleanError {
    Read(ReadError),
    Append(AppendError),
}

/// Removes the oldest segment, durably: a removal that came back after a crash would bring back what later tombstones deleted.
pub(crate) fn remove_oldest<S: Storage>(storage: &S, segments: &Segments<S::File>) -> std::io::Result<()> {
    let Some((oldest, end)) = segments.oldest_sealed() else { return Ok(()) };
    // Out of the list only afterwards: after a failed removal this one is tried again, and never the one behind it.
    storage.remove_if_there(Name::Segment(oldest.head.base))?;
    storage.sync_names()?;
    segments.take_oldest(end);
    Ok(())
}

pub(crate) type Submit = Arc<dyn Fn(Job) + Send + Sync>;

struct Inner<S: Storage> {
    storage: Arc<S>,
    limits: Limits,
    directory: Mutex<Directory>,
    partition: Partition<S>,
    submit: Submit,
    /// Of nothing: it is read by offset.
    indexes: Cache,
    stopping: Mutex<bool>,
    stop: Condvar,
}

/// The state store at work.
pub(crate) struct StateStore<S: Storage> {
    inner: Arc<Inner<S>>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl<S: Storage> StateStore<S> {
    /// `threads`: it is cleaned by a thread of its own.
    pub fn start(
        storage: Arc<S>,
        limits: Limits,
        directory: Directory,
        partition: Partition<S>,
        submit: Submit,
        threads: bool,
    ) -> std::io::Result<Self> {
        let inner = Arc::new(Inner {
            storage,
            limits,
            directory: Mutex::new(directory),
            partition,
            submit,
            indexes: Cache::new(0),
            stopping: Mutex::new(false),
            stop: Condvar::new(),
        });
        let keeper = inner.clone();
        let keep = move || keeper.keep();
        let keeper = if threads { Some(thread::Builder::new().name("log-keeper".into()).spawn(keep)?) } else { None };
        Ok(Self { inner, keeper: Mutex::new(keeper) })
    }

    pub(crate) fn lacks_reserve(&self) -> bool {
        !self.inner.partition.segments.spares.has_reserve()
    }

    /// Takes room for the next file now, if there is any; it is tried once a second anyhow.
    pub(crate) fn keep_reserve(&self) {
        let _short = self.inner.partition.segments.spares.keep_reserve(&*self.inner.storage);
    }

    #[cfg(any(test, feature = "sim"))]
    pub fn step(&self) -> bool {
        self.keep_reserve();
        self.inner.partition.step()
    }

    #[cfg(any(test, feature = "sim"))]
    pub fn step_clean(&self) {
        // A disk that fails, or has no power any more, says so elsewhere.
        let _given_up = self.inner.clean();
    }

    pub fn stalled(&self) -> Option<Arc<Stall>> {
        self.inner.partition.shared.stalled()
    }

    /// Waits for room.
    pub fn put_patiently(&self, puts: &[Put<'_>]) -> Result<Receipt, AppendError> {
        let nobody: Arc<dyn Wake> = Arc::new(Nobody);
        loop {
            match self.put(puts, &nobody) {
                Err(AppendError::Full) => self.inner.partition.wait_a_little(),
                other => return other,
            }
        }
    }

    /// Does not wait for room, and puts nothing while the store is stalled.
    pub fn put_at_once(&self, puts: &[Put<'_>]) -> std::io::Result<Receipt> {
        if let Some(stall) = self.stalled() {
            return Err(std::io::Error::other(stall.to_string()));
        }
        let nobody: Arc<dyn Wake> = Arc::new(Nobody);
        self.put(puts, &nobody).map_err(|e| std::io::Error::other(e.to_string()))
    }

    /// Returns when it is durable; with an error when the store has failed, has stalled or stops.
    pub fn wait_durable(&self, receipt: Receipt) -> std::io::Result<()> {
        self.inner.wait_durable(receipt)
    }

    pub fn stop(&self) {
        *self.inner.stopping.lock() = true;
        self.inner.stop.notify_all();
        if let Some(keeper) = self.keeper.lock().take() {
            let _nothing_to_do_after_a_panic = keeper.join();
        }
        self.inner.partition.stop();
    }
}

impl<S: Storage> Drop for StateStore<S> {
    fn drop(&mut self) {
        self.stop();
    }
}

impl<S: Storage> Inner<S> {
    /// Looks once a second whether the store wants cleaning. A failure is printed and tried again: cleaning only gives back space.
    fn keep(&self) {
        let mut short = false;
        loop {
            {
                let mut stopping = self.stopping.lock();
                if !*stopping {
                    self.stop.wait_for(&mut stopping, Duration::from_secs(1));
                }
                if *stopping {
                    return;
                }
            }
            let reserved = self.partition.segments.spares.keep_reserve(&*self.storage);
            if let (Err(e), false) = (&reserved, short) {
                eprintln!("{}: keeping room for the next file: {e}; it is tried again", self.storage.describe());
            }
            short = reserved.is_err();
            while !*self.stopping.lock() && self.directory.lock().wants_cleaning(self.partition.segments.len(), &self.limits) {
                if let Err(e) = self.clean() {
                    eprintln!("cleaning the state store: {e}; it is tried again");
                    break;
                }
            }
        }
    }

    fn wait_durable(&self, receipt: Receipt) -> std::io::Result<()> {
        #[cfg(any(test, feature = "sim"))]
        while self.partition.is_stepped() && self.partition.shared.durable() < Offset(receipt.0) && self.partition.step() {}
        let (tx, rx) = std::sync::mpsc::channel::<()>();
        self.partition.shared.when_durable(Offset(receipt.0), Box::new(move || drop(tx)));
        // What waits here is a thread that others need.
        while rx.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
            if let Some(stall) = self.partition.shared.stalled() {
                return Err(std::io::Error::other(stall.to_string()));
            }
            if *self.stopping.lock() {
                return Err(std::io::Error::other("the log is stopping"));
            }
        }
        if self.partition.shared.durable() < Offset(receipt.0) {
            return Err(std::io::Error::other("the state store has failed"));
        }
        Ok(())
    }

    fn clean(&self) -> Result<(), String> {
        let segments = &self.partition.segments;
        let nobody: Arc<dyn Wake> = Arc::new(Nobody);
        let mut append = |piece: &[(Offset, Vec<u8>)]| {
            loop {
                let copied = self.directory.lock().copy(piece, |r| self.partition.shared.append(r, &nobody));
                match copied {
                    // The writer is busy with others: they go first.
                    Err(AppendError::Full) => self.partition.wait_a_little(),
                    other => return other,
                }
            }
        };
        let copied = clean_oldest(segments, COPY_BYTES.min(self.limits.append_bytes_max()), &mut append).map_err(|e| match e {
            CleanError::Read(e) => e.to_string(),
            CleanError::Append(e) => e.to_string(),
        })?;
        if !copied {
            return Ok(());
        }
        // Where the store begins then, in a file that stays: if its oldest is missing at a start, it is missed.
        if let Some((_, end)) = segments.oldest_sealed() {
            let puts = [Put { key: &start_key(STATE), tag: 0, value: Some(&end.0.to_le_bytes()) }];
            loop {
                match self.directory.lock().put(&puts, |r| self.partition.shared.append(r, &nobody)) {
                    Err(AppendError::Full) => self.partition.wait_a_little(),
                    put => break put.map(drop).map_err(|e| e.to_string())?,
                }
            }
        }
        // Everything that was put before, not the copies alone: a record that was not copied has been superseded, and until what superseded it is durable it is all there is.
        let put = Receipt(self.directory.lock().next.0);
        self.wait_durable(put).map_err(|e| e.to_string())?;
        remove_oldest(&*self.storage, segments).map_err(|e| e.to_string())
    }

    fn read(self: &Arc<Self>, key: Vec<u8>, done: GetDone) {
        let mut directory = self.directory.lock();
        directory.deleted.forget(self.partition.shared.durable());
        let located = directory.map.get(&key[..]).map(|l| l.offset);
        // An absent key waits too, but for nothing that was put under another.
        let needed = located.map_or_else(|| directory.deleted.end_of(&key), |o| o.plus(1));
        drop(directory);
        let this = self.clone();
        let then = move || {
            if this.partition.shared.durable() < needed {
                return done(Err(ReadError::Stopping));
            }
            let Some(offset) = located else { return done(Ok(None)) };
            let submit = this.submit.clone();
            let mut once = Some((this, key, done));
            submit(Box::new(move |turn| {
                if let Some((this, key, done)) = once.take() {
                    match turn {
                        Turn::Read => this.read_at(key, offset, done),
                        Turn::Stopped => done(Err(ReadError::Stopping)),
                    }
                }
                Progress::Answered
            }));
        };
        self.partition.shared.when_durable(needed, Box::new(then));
    }

    fn read_at(self: &Arc<Self>, key: Vec<u8>, offset: Offset, done: GetDone) {
        let fetch = Fetch { partition: crate::PartitionId(u32::MAX), wanted: Wanted::Exactly(vec![offset]), records_max: 1, bytes_max: 1 };
        let (segments, durable) = (&*self.partition.segments, self.partition.shared.durable());
        match reader::fetch(&Source { storage: &*self.storage, segments, indexes: &self.indexes, durable }, &fetch, Budget::of_step(true)) {
            Err(e) => done(Err(e)),
            Ok(fetched) => match fetched.batch.iter().next() {
                Some(r) => done(Ok(Some(Entry { tag: tag(r.meta), value: r.value.to_vec() }))),
                // It would not be read the next time either.
                None if let Some(d) = fetched.damage => {
                    done(Err(ReadError::Damaged { file: d.file, at: d.at.unwrap_or_default(), offset }))
                }
                // Cleaning moved it meanwhile.
                None => self.read(key, done),
            },
        }
    }
}

pub(crate) fn tag(meta: &[u8]) -> u32 {
    meta.first_chunk::<4>().map_or(0, |b| u32::from_le_bytes(*b))
}

impl<S: Storage> State for StateStore<S> {
    fn put(&self, puts: &[Put<'_>], who: &Arc<dyn Wake>) -> Result<Receipt, AppendError> {
        let mut directory = self.inner.directory.lock();
        directory.deleted.forget(self.inner.partition.shared.durable());
        directory.put(puts, |r| self.inner.partition.shared.append(r, who))
    }

    fn get(&self, key: &[u8], done: GetDone) {
        self.inner.read(key.to_vec(), done);
    }

    fn appended(&self) -> Watermark {
        self.inner.partition.shared.appended()
    }

    fn size(&self) -> StateSize {
        let is_short = self.inner.partition.segments.spares.is_short();
        StateSize { live_bytes: self.inner.directory.lock().live_bytes, is_short }
    }

    fn keys(&self, prefix: &[u8], after: &[u8], max: usize) -> Vec<Box<[u8]>> {
        // The smallest so far, the greatest of them on top.
        let mut least: BinaryHeap<Box<[u8]>> = BinaryHeap::new();
        let directory = self.inner.directory.lock();
        for key in directory.map.keys().filter(|key| key.starts_with(prefix) && ***key > *after) {
            if least.len() < max || least.peek().is_some_and(|top| key < top) {
                least.push(key.clone());
                if least.len() > max {
                    least.pop();
                }
            }
        }
        least.into_sorted_vec()
    }

    fn scan(&self, each: &mut Each<'_>) -> Result<(), ReadError> {
        let directory = self.inner.directory.lock();
        scan(&directory, &self.inner.partition.segments, self.inner.partition.shared.durable(), each)
    }
}

/// Gives every live key with its tag and value.
pub(crate) fn scan<F: File>(directory: &Directory, segments: &Segments<F>, end: Offset, each: &mut Each<'_>) -> Result<(), ReadError> {
    each_record(segments, end, &mut |offset, raw| {
        if directory.holds(raw, offset)
            && let Some((_, _, [meta, key, _, value])) = parse(raw)
        {
            each(key, tag(meta), value);
        }
    })
}
