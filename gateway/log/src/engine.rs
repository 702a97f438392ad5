//! The engine: everything above meets the log here. `FileEngine` is the one on local files; a replicated one would implement the same.
//!
//! Invariant: one process per data directory; what `open` refuses it refuses before it has changed anything.
//! Must not know: MQTT. No path or file is in the trait.

use crate::sync::{
    Mutex,
    thread::{self, JoinHandle},
};
use crate::{
    AppendError, Batch, Damage, Durability, Fetch, Fetched, Follow, Memory, Nobody, Observe, Offset, OpenError, PartitionId, Put,
    ReadError, Receipt, Records, Span, Stall, Wake, Watermark,
    appender::{Appender, Opening},
    claim::claim,
    house,
    index::Cache,
    newest::{self, Newest, Page},
    partition::{self, Beginning},
    pending::Pending,
    reader::{self, Source},
    readers::{Asker, Budget, Progress, Readers, Turn, Waiting, answering},
    records, recovery, seek,
    segment::{Limits, SegmentInfo},
    state::{self, Directory, State, StateStore},
    storage::{FileStorage, Name, Storage},
};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    hash::{BuildHasher, Hasher, RandomState},
    io,
    ops::Range,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

/// A partition as others see it; fixed while the engine runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    pub id: PartitionId,
    pub stream: String,
    /// Its number within the stream.
    pub number: u32,
    /// Random when it was created: names the life of the log.
    pub log_id: u64,
}

/// Takes every stored key with its tag and value, once, in no order; gives the end offsets that the value names.
pub type Named<'a> = dyn FnMut(&[u8], u32, &[u8]) -> Vec<(PartitionId, Offset)> + 'a;

/// The disk of a partition: where, below the data directory, and how it is written.
pub type Make<'a, S> = dyn Fn(&Path, Durability) -> Result<Arc<S>, OpenError> + 'a;

pub type FetchDone = Box<dyn FnOnce(Result<Fetched, ReadError>) + Send>;
pub type SeekDone = Box<dyn FnOnce(Result<Offset, ReadError>) + Send>;
pub type NewestDone = Box<dyn FnOnce(Result<Page, ReadError>) + Send>;
pub type RetireDone = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Completion-based and neutral to any runtime. A partition id that is not of `partitions` is the caller's bug and panics.
pub trait Engine: Send + Sync + 'static {
    fn partitions(&self) -> &[Partition];
    fn span(&self, p: PartitionId) -> Span;
    /// Takes all records, which get consecutive offsets, or none. `who` is woken when they are durable, and after `Full` when there is room.
    fn append(&self, p: PartitionId, records: &mut Records, who: &Arc<dyn Wake>) -> Result<Receipt, AppendError>;
    /// The same, for a caller that has nothing better to do than to wait: what would be written alone is durable when it returns (or the partition has
    /// failed), written on this thread. It blocks for one sync, and not where others wait too or the disk is slow.
    fn append_leading(&self, p: PartitionId, records: &mut Records, who: &Arc<dyn Wake>) -> Result<Receipt, AppendError>;
    fn appended(&self, p: PartitionId) -> Watermark;
    /// Durable batches from now on; `who` is woken at each.
    fn follow(&self, p: PartitionId, who: Arc<dyn Wake>) -> Box<dyn Follow>;
    /// The batches that hold these offsets, as far as they are still in memory.
    fn recent(&self, p: PartitionId, offsets: &[Offset]) -> Vec<Option<Arc<Batch>>>;
    /// First offset that is still in memory.
    fn recent_start(&self, p: PartitionId) -> Offset;
    /// Reads on a thread of the log's own and calls back there. It ends early where it has read for long enough: others have their turns.
    fn fetch(&self, by: &Asker, fetch: Fetch, done: FetchDone);
    /// Finds an offset, in as many turns as it takes.
    fn seek(&self, by: &Asker, p: PartitionId, seek: seek::Seek, done: SeekDone);
    /// Reads the newest record of each key, in as many turns as it takes.
    fn newest(&self, by: &Asker, p: PartitionId, newest: Newest, done: NewestDone);
    /// Reads that wait for their turn.
    fn waiting(&self) -> Waiting;
    fn memory(&self, p: PartitionId) -> Memory;
    fn state(&self) -> &dyn State;
    /// The files of a partition, oldest first; the last is being written.
    fn segments(&self, p: PartitionId) -> io::Result<Vec<SegmentInfo>>;
    /// Retention: what lies before `below` in whole segments is gone for good. On a thread of the log's own, like `fetch`.
    fn retire(&self, p: PartitionId, below: Offset, done: RetireDone);
    /// Places where acknowledged records cannot be read; each is a key `damage/PARTITION/OFFSET`.
    fn damaged(&self) -> usize;
    /// Partitions, and the state store, that accept nothing for now and go on by themselves: there is no room on the disk, or no descriptor.
    fn stalled(&self) -> Vec<(PartitionId, Arc<Stall>)>;
    /// Makes everything accepted durable, notes that the end was clean, ends the threads. Blocks; later appends are refused.
    fn stop(&self);
}

/// Sidecars in memory: about 60 of segments with 10,000 topics.
const INDEX_CACHE_BYTES: usize = 64 << 20;
/// The state store's partition in segment headers.
pub const STATE: PartitionId = PartitionId(u32::MAX);
/// The state store is read by key, not followed: its ring only bridges a commit.
const STATE_RING_BYTES: usize = 1 << 20;
pub(crate) const CLEAN: &[u8] = b"clean";

/// A stream to open, or to create.
#[derive(Clone, Debug)]
pub struct Stream {
    pub name: String,
    /// How many; fixed when the stream is created.
    pub partitions: u32,
    /// `None`: those of all.
    pub limits: Option<Limits>,
    pub durability: Durability,
}

pub struct Options {
    pub directory: PathBuf,
    pub limits: Limits,
    /// In order.
    pub streams: Vec<Stream>,
    /// Milliseconds since 1970; batch times never go back in any case.
    pub now_ms: fn() -> u64,
    /// A new random number per call.
    pub random: fn() -> u64,
    pub observe: Arc<dyn Observe>,
    /// What is another after each start of the operating system; `None`: not known.
    pub boot: Option<String>,
}

impl Options {
    /// On the system's clock, with default limits.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>, streams: &[(&str, u32)]) -> Self {
        let streams = streams
            .iter()
            .map(|(name, n)| Stream { name: (*name).into(), partitions: *n, limits: None, durability: Durability::Disk })
            .collect();
        // Linux's; elsewhere it is not known.
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
        Self { directory: directory.into(), limits: Limits::default(), streams, now_ms, random, observe: Arc::new(Nobody), boot }
    }
}

/// A clock before 1970 counts as 0.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// On local files.
pub type FileEngine = LogEngine<FileStorage>;

pub struct LogEngine<S: Storage> {
    partitions: Vec<Partition>,
    data: Vec<partition::Partition<S>>,
    storages: Vec<Arc<S>>,
    indexes: Arc<Cache>,
    quarantined: Arc<Mutex<Quarantined>>,
    /// Where partitions begin, as it was put last.
    starts: Arc<Mutex<HashMap<PartitionId, Offset>>>,
    state: Arc<StateStore<S>>,
    readers: Arc<Readers>,
    /// Retention has its turn as all others.
    retiring: Asker,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// The state partition ended cleanly, or not yet.
    stopped: Mutex<bool>,
    torn_bytes: u64,
    /// Of the data directory.
    _lock: Option<fs::File>,
}

/// The partitions of a stream.
pub(crate) fn stream_key(name: &str) -> Vec<u8> {
    format!("stream/{name}").into_bytes()
}

/// u8 format 1, u32 id of the first partition, u32 how many.
pub(crate) fn stream_value(first: u32, count: u32) -> Vec<u8> {
    [&[1][..], &first.to_le_bytes(), &count.to_le_bytes()].concat()
}

/// Where a partition begins since retention took what was before.
pub(crate) fn start_key(p: PartitionId) -> Vec<u8> {
    format!("start/{}", p.0).into_bytes()
}

/// A partition that is written without waiting for syncs.
fn os_key(p: PartitionId) -> Vec<u8> {
    format!("os/{}", p.0).into_bytes()
}

/// Of `os_key`: u8 format 1, the start of the operating system. One that is not known is never the same.
fn boot_value(o: &Options) -> Vec<u8> {
    let boot = o.boot.clone().unwrap_or_else(|| format!("unknown {:016x}", (o.random)()));
    [&[1], boot.trim().as_bytes()].concat()
}

pub(crate) fn partition_of(key: &[u8], prefix: &[u8]) -> Option<PartitionId> {
    std::str::from_utf8(key.strip_prefix(prefix)?).ok()?.parse().ok().map(PartitionId)
}

/// Acknowledged records that cannot be read: what was found where.
fn damage_key(p: PartitionId, from: Offset) -> Vec<u8> {
    format!("damage/{}/{}", p.0, from.0).into_bytes()
}

/// u8 format 1, u64 end offset, u64 byte in the file, the file.
fn damage_value(d: &Damage) -> Vec<u8> {
    [&[1][..], &d.range.end.0.to_le_bytes(), &d.at.unwrap_or_default().to_le_bytes(), d.file.as_bytes()].concat()
}

fn parse_damage_key(key: &[u8]) -> Option<(PartitionId, Offset)> {
    let (p, from) = std::str::from_utf8(key.strip_prefix(b"damage/")?).ok()?.split_once('/')?;
    Some((PartitionId(p.parse().ok()?), Offset(from.parse().ok()?)))
}

fn parse_damage_end(value: &[u8]) -> Option<Offset> {
    value.get(1..)?.first_chunk().map(|b| Offset(u64::from_le_bytes(*b)))
}

/// Damage that the state store names: where it begins and ends.
#[derive(Default)]
struct Quarantined(BTreeMap<(PartitionId, Offset), Offset>);

impl Quarantined {
    /// Takes out those of a partition that `is_whole`: somebody has restored their file.
    fn take_back(&mut self, p: PartitionId, is_whole: impl Fn(&Range<Offset>) -> bool) -> Vec<Range<Offset>> {
        let of_it = self.0.range((p, Offset(0))..=(p, Offset(u64::MAX)));
        let back: Vec<_> = of_it.map(|((_, from), end)| *from..*end).filter(is_whole).collect();
        self.0.retain(|(q, from), end| *q != p || !back.contains(&(*from..*end)));
        back
    }

    /// Notes damage and gives what to put; nothing if all of it is known. Ranges that touch become one, because a reader that begins in the middle of a gap finds the rest of it.
    fn add(&mut self, p: PartitionId, damage: &Damage) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let mut range = damage.range.clone();
        let touching = self.0.range((p, Offset(0))..=(p, range.end)).filter(|(_, end)| **end >= range.start);
        let touching: Vec<_> = touching.map(|((_, from), end)| *from..*end).collect();
        if touching.iter().any(|known| known.start <= range.start && range.end <= known.end) {
            return Vec::new();
        }
        for known in &touching {
            self.0.remove(&(p, known.start));
            range = range.start.min(known.start)..range.end.max(known.end);
        }
        self.0.insert((p, range.start), range.end);
        let gone = touching.iter().filter(|known| known.start != range.start).map(|known| (damage_key(p, known.start), None));
        let key = damage_key(p, range.start);
        let value = damage_value(&Damage { range: range.clone(), ..damage.clone() });
        gone.chain([(key, Some(value))]).collect()
    }
}

pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

impl LogEngine<FileStorage> {
    /// Opens or creates the log. `named` is shown everything that is stored, and reports every end offset that a value names: records
    /// below it were acknowledged, so those that are missing are a gap that readers are told of, and no offset below it is given out again.
    pub fn open(o: &Options, named: &mut Named<'_>) -> Result<Self, OpenError> {
        let lock = claim(&o.directory)?;
        let make = |path: &Path, durability| {
            let path = o.directory.join(path);
            FileStorage::new(&path, durability).map(Arc::new).map_err(OpenError::io(format!("creating {}", path.display())))
        };
        Self::open_on(o, &make, named, Some(lock), true)
    }
}

impl<S: Storage> LogEngine<S> {
    fn open_on(o: &Options, make: &Make<'_, S>, named: &mut Named<'_>, lock: Option<fs::File>, threads: bool) -> Result<Self, OpenError> {
        let io = |what: &str| OpenError::io(format!("{what} {}", o.directory.display()));
        let storage = make(Path::new("state"), Durability::Disk)?;
        let limits = Limits { ring_bytes: STATE_RING_BYTES, ..o.limits };
        // What the state store held is known only when it is open, so it is always sealed and begun anew.
        let opening = Opening {
            partition: STATE,
            limits,
            clean: false,
            named: Offset(0),
            start: Offset(0),
            begun: false,
            gaps_allowed: false,
            durability: Durability::Disk,
            unsynced: false,
            now_ms: (o.now_ms)(),
            random: o.random,
        };
        // Nothing is created beside what somebody may bring back.
        let is_new = !recovery::has_segments(&*storage).map_err(io("listing"))?;
        let unheard = |stream: &Stream, storage: &S| {
            let here = storage.describe();
            let any = recovery::has_records(storage).map_err(OpenError::io(format!("reading {here}")))?;
            let state = o.directory.join("state");
            if any { Err(OpenError::Unknown { stream: stream.name.clone(), state }) } else { Ok(()) }
        };
        let at = |stream: &Stream, number: u32| {
            let path = Path::new("streams").join(&stream.name).join(number.to_string());
            make(&path, stream.durability)
        };
        for stream in o.streams.iter().filter(|_| is_new) {
            for number in 0..stream.partitions {
                let storage = at(stream, number)?;
                unheard(stream, &storage)?;
            }
        }
        let mut appender = Appender::open(storage.clone(), &opening)?;
        // Before anything else takes the room. Without it the start is one like any other, and the keeper tries again.
        let _short = appender.segments().spares.keep_reserve(&*storage);
        let read = |e: ReadError| OpenError::Damaged { file: "state".into(), at: 0, what: e.to_string() };
        let mut directory = Directory::load(appender.segments(), appender.next()).map_err(read)?;

        let mut ends = HashMap::new();
        let mut clean = false;
        let mut starts = HashMap::new();
        let mut quarantined = Quarantined::default();
        // Written without waiting for syncs, and under which start of the operating system.
        let mut unsynced = HashMap::new();
        let mut streams = HashMap::new();
        let mut name = |p: PartitionId, end: Offset| {
            let known: &mut Offset = ends.entry(p).or_default();
            *known = (*known).max(end);
        };
        state::scan(&directory, appender.segments(), appender.next(), &mut |key, tag, value| {
            if key == CLEAN {
                clean = true;
                parse_ends(value).into_iter().for_each(|(p, end)| name(p, end));
            } else if let Some(stream) = key.strip_prefix(b"stream/") {
                streams.insert(stream.to_vec(), parse_stream(value));
            } else if let Some((p, from)) = parse_damage_key(key) {
                quarantined.0.insert((p, from), parse_damage_end(value).unwrap_or(from));
            } else if let Some(p) = partition_of(key, b"os/") {
                unsynced.insert(p, value.to_vec());
            } else if let Some(p) = partition_of(key, b"start/") {
                starts.insert(p, Offset(value.first_chunk().map_or(0, |b| u64::from_le_bytes(*b))));
            } else {
                named(key, tag, value).into_iter().for_each(|(p, end)| name(p, end));
            }
        })
        .map_err(read)?;

        let began = appender.began().max(starts.get(&STATE).copied());
        let first = appender.segments().start();
        if let Some(began) = began.filter(|began| *began < first) {
            let file = storage.describe() + "/" + &Name::Segment(began).to_string();
            return Err(OpenError::Damaged { file, at: 0, what: "the file is missing".into() });
        }
        let plan = plan(&o.streams, &streams)?;
        let (mut opened, mut storages) = (Vec::new(), Vec::new());
        for (stream, first) in &plan {
            let limits = stream.limits.unwrap_or(o.limits);
            for number in 0..stream.partitions {
                let id = PartitionId(first + number);
                let durability = stream.durability;
                let storage = at(stream, number)?;
                let named = ends.get(&id).copied().unwrap_or_default();
                let start = starts.get(&id).copied().unwrap_or_default();
                let begun = streams.contains_key(stream.name.as_bytes());
                if !begun {
                    unheard(stream, &storage)?;
                }
                let (now_ms, random) = ((o.now_ms)(), o.random);
                let unsynced = unsynced.get(&id).is_some_and(|boot| *boot != boot_value(o));
                let opening =
                    Opening { partition: id, limits, clean, named, start, begun, gaps_allowed: true, durability, unsynced, now_ms, random };
                let appender = Appender::open(storage.clone(), &opening)?;
                storages.push(storage);
                let partition = Partition { id, stream: stream.name.clone(), number, log_id: appender.log_id() };
                opened.push((partition, limits, durability, appender));
            }
        }
        // Nothing can be refused any more. The goodbye of the last run is gone before anything is appended; new streams are known
        // before their first record.
        let mut puts = vec![(CLEAN.to_vec(), None)];
        for (stream, first) in &plan {
            if !streams.contains_key(stream.name.as_bytes()) {
                puts.push((stream_key(&stream.name), Some(stream_value(*first, stream.partitions))));
            }
        }
        for ((p, _, durability, appender), storage) in opened.iter().zip(&storages) {
            if *durability == Durability::Os || unsynced.contains_key(&p.id) {
                puts.push((os_key(p.id), (*durability == Durability::Os).then(|| boot_value(o))));
            }
            let back = quarantined.take_back(p.id, |range| reader::is_whole(&**storage, appender, range));
            for range in back {
                puts.push((damage_key(p.id, range.start), None));
                eprintln!("{} of {}/{} can be read again", records(&range), p.stream, p.number);
            }
            for ((_, from), end) in quarantined.0.range((p.id, Offset(0))..=(p.id, Offset(u64::MAX))) {
                let lost = records(&(*from..*end));
                eprintln!("{lost} of {}/{} cannot be read, as was found earlier; readers are told", p.stream, p.number);
            }
            for gap in appender.gaps() {
                let new = quarantined.add(p.id, gap);
                if !new.is_empty() {
                    eprintln!("{gap}");
                    puts.extend(new);
                }
            }
        }
        let puts: Vec<_> = puts.iter().map(|(key, value)| Put { key, tag: 0, value: value.as_deref() }).collect();
        let mut pending = Pending::default();
        let put = directory.put(&puts, |r| {
            pending.push(r);
            Ok(Receipt(0))
        });
        put.map_err(|e| OpenError::Io { what: "naming streams".into(), error: std::io::Error::other(e.to_string()) })?;
        appender.commit(pending, (o.now_ms)())?;

        let mut torn_bytes = appender.torn_bytes();
        let begin = |id, limits, durability, name: &str, indexed, appender| {
            let beginning = Beginning { id, limits, durability, name, indexed, threads, now_ms: o.now_ms, observe: o.observe.clone() };
            partition::Partition::start(beginning, appender).map_err(io("starting a thread for"))
        };
        let state = begin(STATE, limits, Durability::Disk, "state", false, appender)?;
        let (mut partitions, mut data) = (Vec::new(), Vec::new());
        for (p, limits, durability, appender) in opened {
            // What was cut beside something that is known to be missing was perhaps acknowledged.
            torn_bytes += if appender.gaps().is_empty() { appender.torn_bytes() } else { 0 };
            let name = format!("{}-{}", p.stream, p.number);
            data.push(begin(p.id, limits, durability, &name, true, appender)?);
            partitions.push(p);
        }
        let readers = Arc::new(Readers::default());
        let mut running = if threads { Readers::start(&readers).map_err(io("starting a thread for"))? } else { Vec::new() };
        let files = |(storage, data): (&Arc<S>, &partition::Partition<S>)| house::Files {
            storage: storage.clone(),
            segments: data.segments.clone(),
            durability: data.durability,
        };
        let kept: Vec<_> = storages.iter().zip(&data).map(files).collect();
        let stop = readers.clone();
        let seal = move || house::keep(&kept, &stop);
        if threads {
            running.push(thread::Builder::new().name("log-index".into()).spawn(seal).map_err(io("starting a thread for"))?);
        }
        let submit = readers.clone();
        let state = StateStore::start(storage, limits, directory, state, Arc::new(move |job| submit.submit_state(job)), threads);
        let state = state.map_err(io("starting a thread for"))?;
        Ok(Self {
            partitions,
            data,
            storages,
            indexes: Arc::new(Cache::new(INDEX_CACHE_BYTES)),
            quarantined: Arc::new(Mutex::new(quarantined)),
            starts: Arc::new(Mutex::new(starts)),
            state: Arc::new(state),
            readers,
            retiring: Asker::default(),
            threads: Mutex::new(running),
            stopped: Mutex::new(false),
            torn_bytes,
            _lock: lock,
        })
    }

    /// Bytes that recovery cut: batches that were begun and never acknowledged.
    #[must_use]
    pub fn torn_bytes(&self) -> u64 {
        self.torn_bytes
    }

    fn place(&self, p: PartitionId) -> usize {
        self.partitions.iter().position(|known| known.id == p).expect("a partition of this engine")
    }

    fn partition(&self, p: PartitionId) -> &partition::Partition<S> {
        &self.data[self.place(p)]
    }

    /// Reads from a partition on a thread of the log's own, step by step.
    fn read<T>(
        &self,
        by: &Asker,
        p: PartitionId,
        mut step: impl FnMut(&Source<'_, S>, Budget) -> Option<Result<T, ReadError>> + Send + 'static,
        done: impl FnOnce(Result<T, ReadError>) + Send + 'static,
    ) {
        let partition = self.partition(p);
        let (segments, shared) = (partition.segments.clone(), partition.shared.clone());
        let (storage, indexes) = (self.storages[self.place(p)].clone(), self.indexes.clone());
        let step = move || {
            let source = Source { storage: &*storage, segments: &segments, indexes: &indexes, durable: shared.durable() };
            // What is stepped is done by one seed.
            step(&source, Budget::of_step(shared.threads))
        };
        self.readers.submit(by, answering(step, done));
    }

    fn put_clean(&self) {
        let mut value = vec![1];
        for (p, d) in self.partitions.iter().zip(&self.data) {
            if d.shared.failed() {
                return;
            }
            value.extend_from_slice(&p.id.0.to_le_bytes());
            value.extend_from_slice(&d.shared.durable().0.to_le_bytes());
        }
        // A store that has failed has said so.
        let _ = self.state.put_patiently(&[Put { key: CLEAN, tag: 0, value: Some(&value) }]);
    }
}

impl<S: Storage> Engine for LogEngine<S> {
    fn partitions(&self) -> &[Partition] {
        &self.partitions
    }

    fn span(&self, p: PartitionId) -> Span {
        self.partition(p).span()
    }

    fn append(&self, p: PartitionId, records: &mut Records, who: &Arc<dyn Wake>) -> Result<Receipt, AppendError> {
        self.partition(p).shared.append(records, who)
    }

    fn append_leading(&self, p: PartitionId, records: &mut Records, who: &Arc<dyn Wake>) -> Result<Receipt, AppendError> {
        self.partition(p).append_leading(records, who)
    }

    fn appended(&self, p: PartitionId) -> Watermark {
        self.partition(p).shared.appended()
    }

    fn follow(&self, p: PartitionId, who: Arc<dyn Wake>) -> Box<dyn Follow> {
        Box::new(self.partition(p).follow(who))
    }

    fn recent(&self, p: PartitionId, offsets: &[Offset]) -> Vec<Option<Arc<Batch>>> {
        self.partition(p).shared.ring.find(offsets)
    }

    fn recent_start(&self, p: PartitionId) -> Offset {
        let shared = &self.partition(p).shared;
        shared.ring.start().unwrap_or_else(|| shared.durable())
    }

    fn fetch(&self, by: &Asker, fetch: Fetch, done: FetchDone) {
        let (quarantined, state, p) = (self.quarantined.clone(), self.state.clone(), fetch.partition);
        let read = move |source: &Source<'_, S>, budget| {
            let fetched = reader::fetch(source, &fetch, budget)?;
            if let Some(damage) = &fetched.damage {
                let puts = quarantined.lock().add(p, damage);
                let puts: Vec<_> = puts.iter().map(|(key, value)| Put { key, tag: 0, value: value.as_deref() }).collect();
                if !puts.is_empty() {
                    eprintln!("{damage}");
                    // A store that has failed has said so.
                    let _ = state.put_patiently(&puts);
                }
            }
            Ok(fetched)
        };
        self.read(by, p, move |source, budget| Some(read(source, budget)), done);
    }

    fn seek(&self, by: &Asker, p: PartitionId, seek: seek::Seek, done: SeekDone) {
        let mut search = seek::Search::new(p, seek);
        self.read(by, p, move |source, budget| search.step(source, budget), done);
    }

    fn newest(&self, by: &Asker, p: PartitionId, newest: Newest, done: NewestDone) {
        let mut search = None;
        let step = move |source: &Source<'_, S>, budget| {
            search.get_or_insert_with(|| newest::Search::new(source, newest.clone())).step(source, budget)
        };
        self.read(by, p, step, done);
    }

    fn waiting(&self) -> Waiting {
        self.readers.waiting()
    }

    fn memory(&self, p: PartitionId) -> Memory {
        self.partition(p).shared.memory()
    }

    fn state(&self) -> &dyn State {
        &*self.state
    }

    fn damaged(&self) -> usize {
        self.quarantined.lock().0.len()
    }

    fn stalled(&self) -> Vec<(PartitionId, Arc<Stall>)> {
        let data = self.partitions.iter().zip(&self.data).filter_map(|(p, d)| Some((p.id, d.shared.stalled()?)));
        data.chain(self.state.stalled().map(|stall| (STATE, stall))).collect()
    }

    fn segments(&self, p: PartitionId) -> io::Result<Vec<SegmentInfo>> {
        self.partition(p).segments.infos()
    }

    fn retire(&self, p: PartitionId, below: Offset, done: RetireDone) {
        let (segments, storage) = (self.partition(p).segments.clone(), self.storages[self.place(p)].clone());
        let (state, starts) = (self.state.clone(), self.starts.clone());
        let retire = move || {
            // The start is durable before a file goes: what is missing below it is not damage. It never goes back, whoever comes first.
            let put = {
                let mut starts = starts.lock();
                let start = starts.get(&p).copied().unwrap_or_default().max(below);
                let put = state.put_at_once(&[Put { key: &start_key(p), tag: 0, value: Some(&start.0.to_le_bytes()) }]);
                starts.extend(put.is_ok().then_some((p, start)));
                put
            };
            put.and_then(|receipt| state.wait_durable(receipt)).and_then(|()| segments.retire(&*storage, below))?;
            // On a full disk the store is first: the next file can go when what is retained in it
            // has room there.
            if state.lacks_reserve() {
                state.keep_reserve();
            }
            if state.lacks_reserve() {
                if let Err(e) = segments.spares.give_back(&*storage) {
                    eprintln!("{}: giving files back: {e}; the next start does", storage.describe());
                }
                state.keep_reserve();
            }
            Ok(())
        };
        let mut once = Some((retire, done));
        let job = move |turn| {
            if let Some((retire, done)) = once.take() {
                done(match turn {
                    Turn::Stopped => Err(io::Error::other("the log is stopping")),
                    Turn::Read => panic::catch_unwind(AssertUnwindSafe(retire))
                        .unwrap_or_else(|_| Err(io::Error::other("it panicked; standard error has the place"))),
                });
            }
            Progress::Answered
        };
        self.readers.submit(&self.retiring, Box::new(job));
    }

    fn stop(&self) {
        let mut stopped = self.stopped.lock();
        if std::mem::replace(&mut *stopped, true) {
            return;
        }
        self.data.iter().for_each(partition::Partition::finish);
        self.put_clean();
        self.state.stop();
        self.readers.stop();
        self.threads.lock().drain(..).for_each(|t| {
            let _printed_by_its_thread = t.join();
        });
    }
}

impl<S: Storage> Drop for LogEngine<S> {
    fn drop(&mut self) {
        // Dropped without `stop`: an unclean end, as after a crash; the threads end all the same.
        self.readers.stop();
        // Perhaps this is one of them: the last owner may be a callback.
        let others = self.threads.lock().drain(..).filter(|t| t.thread().id() != thread::current().id()).collect::<Vec<_>>();
        others.into_iter().for_each(|t| {
            let _printed_by_its_thread = t.join();
        });
    }
}

#[cfg(any(test, feature = "sim"))]
impl<S: Storage> LogEngine<S> {
    /// Opens the log with its threads on any disks, without a lock on the directory.
    pub fn open_on_disks(o: &Options, disk: &Make<'_, S>, named: &mut Named<'_>) -> Result<Self, OpenError> {
        Self::open_on(o, disk, named, None, true)
    }
}

/// The engine without threads, on disks of a simulation: nothing happens but what is stepped.
#[cfg(any(test, feature = "sim"))]
impl LogEngine<crate::storage::sim::SimStorage> {
    pub fn open_stepped(
        o: &Options,
        disk: &dyn Fn(&Path) -> Arc<crate::storage::sim::SimStorage>,
        named: &mut Named<'_>,
    ) -> Result<Self, OpenError> {
        Self::open_on(o, &|path, _| Ok(disk(path)), named, None, false)
    }

    /// Writes one batch of the nth partition; false: nothing waits.
    pub fn step_partition(&self, nth: usize) -> bool {
        self.data[nth].step()
    }

    pub fn step_state(&self) -> bool {
        self.state.step()
    }

    /// Jobs are done as they come, or wait to be stepped: a start waits for what it reads.
    pub fn read_at_once(&self, at_once: bool) {
        self.readers.at_once(at_once);
    }

    /// Cleans the state store, whether it wants it or not.
    pub fn step_clean(&self) {
        self.state.step_clean();
    }

    /// Does one job of the reader threads; false: there is none.
    pub fn step_reader(&self) -> bool {
        self.readers.step()
    }

    /// Seals what the index thread would.
    pub fn step_index(&self) {
        for (storage, data) in self.storages.iter().zip(&self.data) {
            house::Files { storage: storage.clone(), segments: data.segments.clone(), durability: data.durability }.step();
        }
    }
}

/// Which partitions each stream has: what is stored must be what is wanted; a new stream takes the next ids.
fn plan(wanted: &[Stream], stored: &HashMap<Vec<u8>, Option<(u32, u32)>>) -> Result<Vec<(Stream, u32)>, OpenError> {
    let mut next = stored.values().flatten().map(|(first, count)| first + count).max().unwrap_or(0);
    let mut plan = Vec::new();
    for stream in wanted {
        match stored.get(stream.name.as_bytes()) {
            Some(Some((first, n))) if *n == stream.partitions => plan.push((stream.clone(), *first)),
            Some(known) => {
                let stored = known.map_or(0, |(_, n)| n);
                return Err(OpenError::Streams { name: stream.name.clone(), stored, wanted: stream.partitions });
            }
            None => {
                plan.push((stream.clone(), next));
                next += stream.partitions;
            }
        }
    }
    Ok(plan)
}

pub(crate) fn parse_stream(value: &[u8]) -> Option<(u32, u32)> {
    let (format, rest) = value.split_first()?;
    let (first, rest) = rest.split_first_chunk()?;
    let (count, _) = rest.split_first_chunk()?;
    (*format == 1).then_some((u32::from_le_bytes(*first), u32::from_le_bytes(*count)))
}

fn parse_ends(value: &[u8]) -> Vec<(PartitionId, Offset)> {
    let entry = |b: &[u8]| {
        let (p, rest) = b.split_first_chunk()?;
        Some((PartitionId(u32::from_le_bytes(*p)), Offset(u64::from_le_bytes(*rest.first_chunk()?))))
    };
    value.get(1..).unwrap_or_default().chunks_exact(12).filter_map(entry).collect()
}
