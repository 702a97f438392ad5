//! The writing end of one partition, without threads: `open` recovers it, `commit` makes one batch durable.
//!
//! Invariant: `commit` returns `Ok` only when the batch is on disk, or with `Durability::Os` in the operating system's hands; after an error nothing more is written. Never a second batch
//! before the sync of the one before returned (`recovery.rs` decides by this).
//! Must not know: who waits, clocks, or threads. So a simulation drives it from one seed.

use crate::sync::RwLock;
use crate::{
    Damage, Durability, Failure, Offset, OpenError, PartitionId, Stall,
    batch::Batch,
    index::{Building, Indexed},
    pending::{Pending, Room, Standing},
    record::RECORD_BYTES_MIN,
    recovery,
    ring::Ring,
    segment::{self, BATCHES_AT, BLOCK, BeginError, HeadError, Identified, Limits, Segment, SegmentHead, Segments},
    storage::{File, Name, Storage, read_around},
};
use std::{
    collections::HashSet,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

/// Of one that is begun where there is no room for more.
const SEGMENT_BYTES_MIN: u32 = 1 << 20;

/// How a partition is opened.
pub struct Opening {
    pub partition: PartitionId,
    pub limits: Limits,
    /// The process that wrote last said goodbye.
    pub clean: bool,
    /// The greatest end offset that a durable value names.
    pub named: Offset,
    /// Retention has taken everything before: segments that end there are removed.
    pub start: Offset,
    /// It was there before: its first file was made before anybody knew of it.
    pub begun: bool,
    /// What is missing is a gap; else the partition is refused.
    pub gaps_allowed: bool,
    pub durability: Durability,
    /// Records may be gone without a trace: the last run did not wait for syncs (`Durability::Os`), and the operating system has been started since.
    pub unsynced: bool,
    pub now_ms: u64,
    /// Gives a new random number per call.
    pub random: fn() -> u64,
}

/// Why a batch is not durable.
#[derive(Debug)]
pub enum CommitError {
    /// There was no room or no descriptor for the next segment. Nothing was written.
    Stalled {
        pending: Box<Pending>,
        stall: Stall,
    },
    Failed(Failure),
}

impl From<CommitError> for Failure {
    fn from(e: CommitError) -> Self {
        match e {
            CommitError::Stalled { stall: Stall { what, error }, .. } => Self { what, error },
            CommitError::Failed(failure) => failure,
        }
    }
}

impl From<CommitError> for OpenError {
    fn from(e: CommitError) -> Self {
        let Failure { what, error } = e.into();
        Self::Io { what, error }
    }
}

pub struct Appender<S: Storage> {
    storage: Arc<S>,
    limits: Limits,
    durability: Durability,
    random: fn() -> u64,
    segments: Arc<Segments<S::File>>,
    active: Arc<Segment<S::File>>,
    /// Where the last batch stands.
    written_at: u64,
    /// Where the next batch will stand.
    at: u64,
    /// The bytes of its block before it.
    tail: Vec<u8>,
    /// What the last batch left for one to come.
    room: Room,
    next: Offset,
    time_ms: u64,
    failed: bool,
    sync_took: Duration,
    /// What recovery cut.
    torn_bytes: u64,
    gaps: Vec<Damage>,
}

impl<S: Storage> Appender<S> {
    /// Recovers the partition: reads its newest segment, decides what it holds, and stands ready to append. After an unclean stop
    /// the segment is sealed at the cut and a fresh one is begun, with the first batch at the latest where there is no room for it yet.
    pub fn open(storage: Arc<S>, o: &Opening) -> Result<Self, OpenError> {
        let here = storage.describe();
        let (mut bases, mut indexes, mut set_aside) = (Vec::new(), HashSet::new(), Vec::new());
        for name in storage.names().map_err(OpenError::io(format!("listing {here}")))? {
            match name {
                Name::Segment(base) => bases.push(base),
                Name::Index(base) => drop(indexes.insert(base)),
                Name::Damaged(base) => set_aside.push(base),
                // Prepared and never used.
                Name::Spare(_) => storage.remove(name).map_err(OpenError::io(format!("removing {here}/{name}")))?,
            }
        }
        bases.sort_unstable();
        let retired = bases.windows(2).take_while(|w| w[1] <= o.start).count();
        let gone: Vec<_> = bases.drain(..retired).collect();
        let newest = bases.last().copied();
        for base in indexes.extract_if(|base| !bases.contains(base) || Some(*base) == newest) {
            // Of a segment that is gone, or that may still grow.
            let name = Name::Index(base);
            storage.remove(name).map_err(OpenError::io(format!("removing {here}/{name}")))?;
        }
        for base in gone {
            let name = Name::Segment(base);
            storage.remove(name).map_err(OpenError::io(format!("removing {here}/{name}, which retention has taken")))?;
        }
        let ring = Ring::new(o.limits.ring_bytes);
        let (mut segments, mut headless) = (Vec::new(), Vec::new());
        // What the newest file held if it cannot be read, or is not there.
        let mut beyond: Option<Damage> = None;
        if let Some(first) = bases.first().filter(|first| o.begun && **first > o.start) {
            let file = format!("{here}/{}", Name::Segment(o.start));
            headless.push(Damage { file, at: None, range: o.start..*first });
        }
        let mut opened = Vec::new();
        let mut log_id = None;
        for base in &bases {
            let indexed = if indexes.contains(base) { Indexed::Sealed } else { Indexed::Missing };
            let segment = open_segment(&*storage, *base, o, log_id, indexed, &ring);
            log_id = segment.as_ref().ok().map(|s| s.head.log_id).or(log_id);
            opened.push((*base, segment));
        }
        // The newest ones that are none cannot be gone on from.
        while let Some((base, Err(OpenError::Damaged { file, what, .. }))) =
            opened.pop_if(|(_, segment)| o.gaps_allowed && matches!(segment, Err(OpenError::Damaged { .. })))
        {
            let aside = Name::Damaged(base);
            eprintln!("{file}: {what}; it is kept as {aside}, and the log goes on behind what it can have held");
            storage.rename(Name::Segment(base), aside).map_err(OpenError::io(format!("renaming {file}")))?;
            storage.sync_names().map_err(OpenError::io(format!("renaming {file}")))?;
            set_aside.push(base);
        }
        let ends: Vec<_> = opened.iter().skip(1).map(|(base, _)| *base).collect();
        for (i, (base, segment)) in opened.into_iter().enumerate() {
            match (segment, ends.get(i)) {
                (Ok(segment), _) => segments.push(Arc::new(segment)),
                // A sealed one costs what is in it.
                (Err(OpenError::Damaged { file, at, .. }), Some(next)) if o.gaps_allowed => {
                    headless.push(Damage { file, at: Some(at), range: base..*next });
                }
                (Err(e), _) => return Err(e),
            }
        }
        // Of one that was set aside now, or at a start that came no further. The next one begins behind it.
        set_aside.sort_unstable();
        let last = segments.last().map_or(o.start, |s| s.head.base);
        for base in set_aside.into_iter().filter(|base| *base > last || segments.is_empty() && *base == last) {
            let known = beyond.as_ref().map_or(last, |b| b.range.end).max(o.named);
            // A name that no segment of this log can have had.
            if base <= known.plus(2 * records_max(o)) {
                // Its old name is the one to restore it under.
                let file = format!("{here}/{}", Name::Segment(base));
                let from = beyond.take().map_or(base, |before| before.range.start);
                beyond = Some(Damage { file, at: None, range: from..end_of_lost(base, o) });
            }
        }
        let Some(active) = segments.last().cloned() else {
            headless.extend(beyond);
            return Self::create(storage, o, headless);
        };
        let successor = segment::successor(&active).map_err(OpenError::io(format!("reading {}", active.name)))?;
        if let Some(next) = successor.filter(|next| beyond.is_none() && *next > active.head.base) {
            if !o.gaps_allowed {
                return Err(OpenError::Missing { partition: here, end: next, named: next.plus(1) });
            }
            let file = format!("{here}/{}", Name::Segment(next));
            eprintln!("{file}: the newest segment is missing; the log goes on behind what it can have held");
            beyond = Some(Damage { file, at: None, range: next..end_of_lost(next, o) });
        }
        let mut found = recovery::scan(&active, o.gaps_allowed)?;
        let scanned_end = found.end;
        let known_end = beyond.is_none();
        if let Some(beyond) = beyond {
            if found.end < beyond.range.start {
                found.gaps.push(Damage { file: active.name.clone(), at: Some(found.at), range: found.end..beyond.range.start });
            }
            found.end = beyond.range.end;
            found.gaps.push(beyond);
        }
        // Behind batches that are not synced there must be zeros: of an old record of equal size nothing would tell a new one that a power cut took.
        let stale = o.durability == Durability::Os && found.stale;
        let clean = o.clean && found.gaps.is_empty() && o.named <= found.end && !stale;
        found.gaps.extend(headless);
        if o.named > found.end {
            if !o.gaps_allowed {
                return Err(OpenError::Missing { partition: here, end: found.end, named: o.named });
            }
            found.gaps.push(Damage { file: active.name.clone(), at: Some(found.at), range: found.end..o.named });
            found.end = o.named;
        }
        // A file that has rotted in one place may have rotted where a torn batch seems to stand.
        let unsure = o.unsynced || found.unsure || active.remade && o.gaps_allowed;
        if unsure && !clean && known_end {
            // Who read them has seen their offsets. The header of a segment is synced before its first batch, so no other had begun.
            let end = found.end.plus(u64::from(active.head.segment_bytes).saturating_sub(found.at) / RECORD_BYTES_MIN);
            found.gaps.push(Damage { file: active.name.clone(), at: Some(found.at), range: found.end..end });
            found.end = end;
        }
        let found_end = found.end;
        // A segment without records says how late it was, too.
        let time_ms = found.time_ms.max(active.head.created_ms);
        let mut appender = Self {
            storage,
            limits: o.limits,
            durability: o.durability,
            random: o.random,
            segments: Arc::new(Segments::new(segments, ring, o.limits.segment_bytes, o.durability)),
            active,
            written_at: found.at,
            at: found.at,
            tail: found.tail,
            room: Room::default(),
            next: found.end,
            time_ms,
            failed: false,
            sync_took: Duration::ZERO,
            torn_bytes: found.torn_bytes,
            gaps: found.gaps,
        };
        if clean {
            // Goes on in the same file: what is in it is indexed like what comes.
            let built = Building::of(&appender.active, found_end);
            let built = built.map_err(|e| OpenError::Damaged { file: appender.active.name.clone(), at: 0, what: e.to_string() })?;
            *appender.active.indexed.write() = Indexed::Building(RwLock::new(built));
        } else {
            appender
                .seal_at_cut(o.now_ms, scanned_end, o.gaps_allowed)
                .map_err(OpenError::io(format!("beginning a new segment in {here}")))?;
        }
        Ok(appender)
    }

    /// Begins a log behind what `gaps` says is lost of it.
    fn create(storage: Arc<S>, o: &Opening, mut gaps: Vec<Damage>) -> Result<Self, OpenError> {
        let here = storage.describe();
        if gaps.is_empty() && o.begun {
            let range = o.start..end_of_lost(o.start, o);
            if !range.is_empty() {
                gaps.push(Damage { file: format!("{here}/{}", Name::Segment(o.start)), at: None, range });
            }
        }
        let lost = gaps.iter().map(|gap| gap.range.end).max().unwrap_or_default();
        if o.named > lost {
            if !o.gaps_allowed {
                return Err(OpenError::Missing { partition: here, end: Offset(0), named: o.named });
            }
            gaps.push(Damage { file: here.clone(), at: None, range: lost..o.named });
        }
        let first = o.named.max(lost);
        let head = SegmentHead {
            salt: (o.random)(),
            log_id: (o.random)(),
            base: first,
            partition: o.partition,
            segment_bytes: o.limits.segment_bytes,
            created_ms: o.now_ms,
            first: Some(first),
        };
        let segments = Segments::new(Vec::new(), Ring::new(o.limits.ring_bytes), o.limits.segment_bytes, o.durability);
        let active = segment::create(&*storage, head, &segments.spares, &segments.ring)
            .map_err(|e| OpenError::io(format!("creating the first segment in {here}"))(e.error))?;
        let active = Arc::new(active);
        segments.push(active.clone());
        Ok(Self {
            storage,
            limits: o.limits,
            durability: o.durability,
            random: o.random,
            segments: Arc::new(segments),
            active,
            written_at: BATCHES_AT,
            at: BATCHES_AT,
            tail: Vec::new(),
            room: Room::default(),
            next: first,
            time_ms: 0,
            failed: false,
            sync_took: Duration::ZERO,
            torn_bytes: 0,
            gaps,
        })
    }

    /// Never writes after a cut in the same file: what stands behind the cut could be taken for its own later.
    /// `end`: of what stands in the file, whatever is known to be lost behind it.
    fn seal_at_cut(&mut self, now_ms: u64, end: Offset, gaps_allowed: bool) -> io::Result<()> {
        if self.next > self.active.head.base {
            let whole = self.at.next_multiple_of(BLOCK);
            // Nor does what was torn stay in the block of the cut.
            let zeros = vec![0; (whole - self.at) as usize];
            self.active.file.write_at(&[io::IoSlice::new(&zeros)], self.at)?;
            // If this start comes no further, the next one must not take it for cut by somebody else.
            segment::write_cut(&self.active, end)?;
            self.active.file.sync_data()?;
            self.active.file.truncate(whole)?;
            self.active.file.sync_data()?;
        }
        // If this start is refused in the end, its segment has not said that the log begins where it found its first file.
        let began = self.began();
        match self.begin_segment_saying(now_ms, began) {
            Err(BeginError { passes: true, .. }) if !gaps_allowed => self.begin_smaller(now_ms, began),
            Err(BeginError { error, passes: true }) => {
                // What is there is served, and retention may make room: the first batch tries again.
                eprintln!(
                    "{}: no segment can be begun behind it: {error}; it is tried again when something is to be written",
                    self.active.name
                );
                self.at = u64::from(self.active.head.segment_bytes);
                self.tail.clear();
                Ok(())
            }
            begun => begun.map_err(|e| e.error),
        }
    }

    /// Without it nothing starts, and what it is to hold first is little.
    fn begin_smaller(&mut self, now_ms: u64, began: Option<Offset>) -> io::Result<()> {
        let segment_bytes = self.limits.segment_bytes;
        let mut begun = Err(io::Error::from(io::ErrorKind::StorageFull));
        while begun.is_err() && self.limits.segment_bytes / 2 >= SEGMENT_BYTES_MIN {
            self.limits.segment_bytes /= 2;
            begun = self.begin_segment_saying(now_ms, began).map_err(|e| e.error);
        }
        self.limits.segment_bytes = segment_bytes;
        begun
    }

    fn begin_segment(&mut self, now_ms: u64) -> Result<(), BeginError> {
        let first = self.segments.start();
        self.begin_segment_saying(now_ms, Some(first))
    }

    /// `first`: where the log begins, as far as that is known.
    fn begin_segment_saying(&mut self, now_ms: u64, first: Option<Offset>) -> Result<(), BeginError> {
        let head = SegmentHead {
            salt: (self.random)(),
            base: self.next,
            segment_bytes: self.limits.segment_bytes,
            // Never before a batch that stands before it, whatever the clock says.
            created_ms: now_ms.max(self.time_ms),
            first,
            ..self.active.head
        };
        let begun = segment::create(&*self.storage, head, &self.segments.spares, &self.segments.ring)?;
        self.note_successor();
        self.active.file.finish();
        self.active = Arc::new(begun);
        self.segments.push(self.active.clone());
        self.at = BATCHES_AT;
        self.tail.clear();
        Ok(())
    }

    /// Before anything is written to the next segment: if that is missing at a start, it is missed.
    fn note_successor(&self) {
        if self.next == self.active.head.base {
            // The next one has taken its name.
            return;
        }
        let written = segment::write_successor(&self.active, self.next);
        let synced = written.and_then(|()| if self.durability == Durability::Disk { self.active.file.sync_data() } else { Ok(()) });
        if let Err(e) = synced {
            eprintln!("{}: noting the segment behind it: {e}; if that is lost, nobody can tell", self.active.name);
        }
    }

    /// Where the next batch will stand, unless a new segment is begun for it.
    pub(crate) fn standing(&self) -> Standing {
        Standing { at: self.at, segment_base: self.active.head.base, first: self.next }
    }

    /// What the last batch needs no more.
    pub(crate) fn take_room(&mut self) -> Room {
        std::mem::take(&mut self.room)
    }

    /// By the sync of the last batch.
    #[must_use]
    pub fn sync_took(&self) -> Duration {
        self.sync_took
    }

    /// Offset of the next record.
    #[must_use]
    pub fn next(&self) -> Offset {
        self.next
    }

    #[must_use]
    pub fn log_id(&self) -> u64 {
        self.active.head.log_id
    }

    /// Where the log began when its newest segments that say so did.
    pub(crate) fn began(&self) -> Option<Offset> {
        self.segments.all().into_iter().filter_map(|(s, _)| s.head.first).max()
    }

    /// Records that were acknowledged and that recovery did not find.
    #[must_use]
    pub fn gaps(&self) -> &[Damage] {
        &self.gaps
    }

    /// Bytes that recovery cut from the tail.
    #[must_use]
    pub fn torn_bytes(&self) -> u64 {
        self.torn_bytes
    }

    #[cfg(test)]
    pub fn storage(&self) -> &S {
        &self.storage
    }

    pub(crate) fn segments(&self) -> &Arc<Segments<S::File>> {
        &self.segments
    }

    /// Writes `pending` as one batch and syncs it (with `Durability::Disk`).
    ///
    /// # Errors
    /// [`CommitError::Stalled`]: nothing was written, and the same batch can be committed later. [`CommitError::Failed`]: the partition is over, because what is on disk is unknown
    /// until it is opened anew.
    pub fn commit(&mut self, mut pending: Pending, now_ms: u64) -> Result<Batch, CommitError> {
        let failure = |what: &str, name: &str, error| CommitError::Failed(Failure { what: format!("{what} {name}"), error });
        if self.failed {
            return Err(failure("an earlier write to", &self.active.name, io::Error::other("stopped")));
        }
        self.failed = true;
        let full = self.is_full_for(&pending);
        if full || self.has_better() {
            let (sealed, end) = (self.active.clone(), self.at.next_multiple_of(BLOCK));
            match self.begin_segment(now_ms) {
                Ok(()) if full => {}
                Ok(()) => give_back(&sealed, end),
                Err(BeginError { error, passes: true }) => {
                    self.failed = false;
                    let what = format!("beginning a segment after {}", self.active.name);
                    return Err(CommitError::Stalled { pending: Box::new(pending), stall: Stall { what, error } });
                }
                Err(e) => return Err(failure("beginning a segment after", &self.active.name, e.error)),
            }
        }
        let bytes = pending.batch_bytes() as u64;
        self.time_ms = self.time_ms.max(now_ms);
        let standing = self.standing();
        pending.seal(standing, self.active.head.salt, self.time_ms);
        // One write of [front of the tail block, batch, zeros]: the front is rewritten with equal bytes.
        let from = self.at - self.tail.len() as u64;
        let written = pending.write(&self.tail, |parts| self.active.file.write_at(parts, from));
        written.map_err(|e| failure("writing", &self.active.name, e))?;
        if self.durability == Durability::Disk {
            let begun = Instant::now();
            self.active.file.sync_data().map_err(|e| failure("syncing", &self.active.name, e))?;
            self.sync_took = begun.elapsed();
        }

        self.written_at = self.at;
        self.advance(&pending);
        self.next = self.next.plus(pending.len() as u64);
        self.failed = false;
        let (batch, room) = pending.sealed(standing, self.time_ms);
        self.room = room;
        let delta = (standing.first.0 - standing.segment_base.0) as u32;
        self.active.wrote(standing.at, delta, batch.starts(), bytes as u32, self.time_ms);
        Ok(batch)
    }

    /// The batch does not fit into the active segment.
    fn is_full_for(&self, pending: &Pending) -> bool {
        (self.at + pending.batch_bytes() as u64).next_multiple_of(BLOCK) > u64::from(self.active.head.segment_bytes)
    }

    /// The first segment of a log or of a run is only allocated, and slower for it; a file that is ready takes over.
    fn has_better(&self) -> bool {
        self.durability == Durability::Disk && !self.active.prepared && self.next > self.active.head.base && self.segments.spares.is_any()
    }

    /// Syncs what was not: nothing comes any more.
    pub fn finish(&self) -> Result<(), Failure> {
        if self.durability == Durability::Disk {
            return Ok(());
        }
        // Of those that are synced it costs nothing.
        self.segments.all().iter().try_for_each(|(segment, _)| {
            segment.file.sync_data().map_err(|error| Failure { what: format!("syncing {}", segment.name), error })
        })
    }

    /// Adds the batch that `commit` gave last to the key index of its segment: when nobody waits for it any more.
    pub fn index(&self, batch: &Batch) {
        if let Indexed::Building(building) = &*self.active.indexed.read() {
            building.write().batch(batch, self.written_at);
        }
    }

    /// Remembers the block in which the next batch begins.
    fn advance(&mut self, written: &Pending) {
        let at = self.standing().behind(written).at;
        let block = at - at % BLOCK;
        if block >= self.at {
            self.tail.clear();
        }
        self.tail.extend_from_slice(written.after(block.saturating_sub(self.at)));
        self.tail.resize((at - block) as usize, 0);
        self.at = at;
    }
}

/// One past the greatest offset that can have been given out in a segment that begins at `base` and cannot be read.
fn end_of_lost(base: Offset, o: &Opening) -> Offset {
    // After a stop in order the end is known.
    let most = if o.clean && o.named >= base { 0 } else { records_max(o) };
    o.named.max(base.plus(most))
}

/// The most records that a segment of these limits can hold.
fn records_max(o: &Opening) -> u64 {
    u64::from(o.limits.segment_bytes) / RECORD_BYTES_MIN
}

/// Cuts a sealed segment where it ends.
fn give_back<F: File>(sealed: &Segment<F>, bytes: u64) {
    if let Err(e) = sealed.file.truncate(bytes) {
        eprintln!("truncating {}: {e}; it keeps the room that it does not need", sealed.name);
    }
}

fn open_segment<S: Storage>(
    storage: &S,
    base: Offset,
    o: &Opening,
    log_id: Option<u64>,
    indexed: Indexed,
    ring: &Arc<Ring>,
) -> Result<Segment<S::File>, OpenError> {
    let name = format!("{}/{}", storage.describe(), Name::Segment(base));
    let file = storage.open(Name::Segment(base)).map_err(OpenError::io(format!("opening {name}")))?;
    let read = |bytes: u64, at: u64| {
        let mut into = vec![0; bytes as usize];
        read_around(&file, &mut into, at).map(|(n, _)| {
            into.truncate(n);
            into
        })
    };
    let reading = || OpenError::io(format!("reading {name}"));
    let block = read(BLOCK, 0).map_err(reading())?;
    let batches = || read(file.bytes()?.saturating_sub(BATCHES_AT), BATCHES_AT);
    let (head, remade) = match segment::identify(&block, base, Some(o.partition), batches).map_err(reading())? {
        Ok(Identified::Ours(head)) => (head, false),
        Ok(Identified::Remade(head, e)) => {
            // What the header said of the log's life is its neighbours' to say.
            let segment_bytes = head.segment_bytes.max(o.limits.segment_bytes);
            let head = SegmentHead { log_id: log_id.unwrap_or_else(o.random), segment_bytes, ..head };
            file.write_at(&[io::IoSlice::new(&head.encode())], 0).map_err(OpenError::io(format!("writing {name}")))?;
            file.sync_data().map_err(OpenError::io(format!("syncing {name}")))?;
            eprintln!(
                "{name}: {e}: the file is damaged at byte 0. The header was made again from the first batch, and no batch is lost by it"
            );
            (head, true)
        }
        Err(HeadError::Version(n)) => return Err(OpenError::Version { file: name, version: n }),
        Err(e) => return Err(OpenError::Damaged { file: name, at: 0, what: e.to_string() }),
    };
    let mut segment = Segment::new(head, file, name, None, indexed, ring.clone());
    segment.remade = remade;
    Ok(segment)
}
