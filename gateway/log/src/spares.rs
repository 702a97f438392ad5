//! Files that are ready to become the next segment: of retired segments, or prepared with zeros while the active one fills.
//!
//! Invariant: no name of a spare is used twice in one run, so a file that one thread takes cannot be another's by the time it is renamed. A spare is held open: beginning a
//! segment with it needs no descriptor. A retired file's new name is durable before the file is used again; a prepared one has all its blocks on the device. What is in reserve is taken last.

use crate::sync::{
    Mutex,
    atomic::{AtomicU32, Ordering},
};
use crate::{
    segment::Segment,
    storage::{File, Name, Storage, aligned},
};
use std::{
    cell::Cell,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

/// Retired files that are kept to be used again: more would only take space.
const RETIRED_MAX: usize = 2;
/// Zeros that are written at once. Small, so that a commit beside it waits for little.
const ZEROS: usize = 256 * 1024;
/// Where there is a page cache between, no more than this is ever in it.
const SYNC_BYTES: u64 = 1 << 20;
/// Bytes a second beyond which a log leaves the device no time for zeros too: 16 KiB messages lost a tenth of their rate, while 1 KiB messages, at 700 MB/s, had won a quarter.
const FAST_BYTES: u64 = 400 << 20;
/// A rate is known after so long.
const FAST_AFTER: Duration = Duration::from_millis(20);
/// Between two parts of a file whose zeros are ahead of what fills the active segment: 25 MiB/s.
const ZEROS_EVERY: Duration = Duration::from_millis(10);
/// The same while the active segment has been prepared by nobody and every sync waits for the file system: this file takes over as soon as it is there, after a third of a second.
const ZEROS_SOON: Duration = Duration::from_millis(1);

/// A file that can become the next segment.
pub(crate) struct Spare<F> {
    pub name: Name,
    pub file: F,
    /// Every block of it was written.
    pub prepared: bool,
}

pub(crate) struct Spares<F> {
    /// The size of the next segment, in bytes: a file of another size is no spare.
    segment_bytes: u32,
    /// Retired files are used again. Only where each batch is synced before the next is written: what a power cut leaves unwritten must be zeros elsewhere, because an old record of
    /// equal size at the same place passes for the new one.
    recycles: bool,
    /// The number of the next spare.
    number: AtomicU32,
    state: Mutex<State<F>>,
}

struct State<F> {
    /// Of retired segments.
    retired: Vec<Spare<F>>,
    /// Retired files that are being renamed.
    keeping: usize,
    prepared: Prepared<F>,
    /// For a disk that is full.
    reserve: Option<Spare<F>>,
    /// It is being made.
    making: bool,
    /// There was no room for it when it was tried last.
    short: bool,
}

/// The file that is prepared while the active segment fills.
enum Prepared<F> {
    Nothing,
    Ready(Spare<F>),
    /// There was no room, no time, or worse; tried again for the segment after the next.
    Failed,
}

/// Do so many bytes in this time leave none for zeros?
pub(crate) fn is_fast(bytes: u64, time: Duration) -> bool {
    u128::from(bytes) * 1_000 > u128::from(FAST_BYTES) * time.as_millis()
}

impl<F: File> Spares<F> {
    pub fn new(segment_bytes: u32, recycles: bool) -> Self {
        let state = State { retired: Vec::new(), keeping: 0, prepared: Prepared::Nothing, reserve: None, making: false, short: false };
        Self { segment_bytes, recycles, number: AtomicU32::new(0), state: Mutex::new(state) }
    }

    /// A name that nothing had in this run.
    pub fn fresh_name(&self) -> Name {
        Name::Spare(self.number.fetch_add(1, Ordering::Relaxed))
    }

    /// Takes a file for the next segment. Old batches in it are told by their salt.
    pub fn take(&self) -> Option<Spare<F>> {
        let mut state = self.state.lock();
        state.retired.pop().or_else(|| match std::mem::replace(&mut state.prepared, Prepared::Nothing) {
            Prepared::Ready(spare) => Some(spare),
            other => {
                state.prepared = other;
                state.reserve.take()
            }
        })
    }

    /// Keeps room for one more segment, whatever others do with the disk.
    pub fn keep_reserve<S: Storage<File = F>>(&self, storage: &S) -> io::Result<()> {
        {
            let mut state = self.state.lock();
            if state.reserve.is_some() {
                state.short = false;
                return Ok(());
            }
            // Another thread does.
            if std::mem::replace(&mut state.making, true) {
                return Ok(());
            }
        }
        let name = self.fresh_name();
        let made = storage.create(name, u64::from(self.segment_bytes));
        let mut state = self.state.lock();
        (state.making, state.short) = (false, made.is_err());
        match made {
            Ok(file) => {
                state.reserve = Some(Spare { name, file, prepared: false });
                Ok(())
            }
            Err(e) => {
                drop(state);
                storage.remove_if_there(name).and(Err(e))
            }
        }
    }

    pub fn has_reserve(&self) -> bool {
        self.state.lock().reserve.is_some()
    }

    /// Gives files of retired segments back to the disk: somebody else needs the room more.
    pub fn give_back<S: Storage<File = F>>(&self, storage: &S) -> io::Result<()> {
        let retired = std::mem::take(&mut self.state.lock().retired);
        retired.into_iter().map(|spare| storage.remove_if_there(spare.name)).fold(Ok(()), io::Result::and)
    }

    /// There was no room for a reserve.
    pub fn is_short(&self) -> bool {
        self.state.lock().short
    }

    /// A segment begun now would have all its blocks.
    pub fn is_any(&self) -> bool {
        let state = self.state.lock();
        matches!(state.prepared, Prepared::Ready(_)) || !state.retired.is_empty()
    }

    fn is_wanted(&self) -> bool {
        let state = self.state.lock();
        state.retired.is_empty() && matches!(state.prepared, Prepared::Nothing)
    }

    /// A segment has begun: what failed may be tried again.
    pub fn begun(&self) {
        let mut state = self.state.lock();
        if matches!(state.prepared, Prepared::Failed) {
            state.prepared = Prepared::Nothing;
        }
    }

    /// Makes the file of a retired segment a spare, unzeroed. False: it is read, has another size, or there are enough; its name is still the segment's.
    pub fn keep<S: Storage<File = F>>(&self, storage: &S, retired: Arc<Segment<F>>) -> io::Result<bool> {
        let of_size = retired.head.segment_bytes == self.segment_bytes
            && retired.file.bytes().is_ok_and(|bytes| bytes == u64::from(self.segment_bytes));
        if !self.recycles || !of_size {
            return Ok(false);
        }
        let Some(Segment { head, file, .. }) = Arc::into_inner(retired) else { return Ok(false) };
        {
            let mut state = self.state.lock();
            if state.retired.len() + state.keeping >= RETIRED_MAX {
                return Ok(false);
            }
            state.keeping += 1;
        }
        let name = self.fresh_name();
        // The new name is durable before the file is used again, or the old name could come back with another segment's content.
        let renamed = storage.rename(Name::Segment(head.base), name).and_then(|()| storage.sync_names());
        let mut state = self.state.lock();
        state.keeping -= 1;
        renamed?;
        state.retired.push(Spare { name, file, prepared: true });
        Ok(true)
    }

    /// Makes a file whose every block has been written, unless there is a spare: a sync of what is written into it later is one of data, not of the file system's extents and inode too
    /// (what that gives stands in `docs/performance.md`). Slow: on a thread that nobody waits for. The zeros keep ahead of what fills the active segment, whose bytes are `filled`; beyond
    /// that they are written seldom, unless it is wanted `soon`. True: there is one now.
    pub fn prepare<S: Storage<File = F>>(
        &self,
        storage: &S,
        soon: bool,
        filled: &dyn Fn() -> u64,
        wait: &dyn Fn(Duration) -> bool,
    ) -> io::Result<bool> {
        if !self.is_wanted() {
            return Ok(false);
        }
        let every = if soon { ZEROS_SOON } else { ZEROS_EVERY };
        let (begun, before, fast) = (Instant::now(), filled(), Cell::new(false));
        let go_on = |zeros| {
            let (now, time) = (filled(), begun.elapsed());
            fast.set(time > FAST_AFTER && is_fast(now.saturating_sub(before), time));
            !fast.get() && self.is_wanted() && wait(if zeros > now { every } else { Duration::ZERO })
        };
        let name = self.fresh_name();
        let (prepared, made) = match write_zeros(storage, name, u64::from(self.segment_bytes), &go_on) {
            Ok(Some(file)) => (Prepared::Ready(Spare { name, file, prepared: true }), Ok(true)),
            Ok(None) if !fast.get() => (Prepared::Nothing, Ok(false)),
            Ok(None) => (Prepared::Failed, Ok(false)),
            Err(e) => (Prepared::Failed, Err(e)),
        };
        self.state.lock().prepared = prepared;
        match made {
            Ok(true) => Ok(true),
            not => storage.remove_if_there(name).and(not),
        }
    }
}

/// `go_on` is asked between parts; false ends it, and there is no file.
fn write_zeros<S: Storage>(storage: &S, name: Name, bytes: u64, go_on: &dyn Fn(u64) -> bool) -> io::Result<Option<S::File>> {
    let (file, mut room) = (storage.create(name, bytes)?, Vec::new());
    let zeros = aligned(&mut room, ZEROS);
    for at in (0..bytes).step_by(ZEROS) {
        if !go_on(at) {
            return Ok(None);
        }
        let part = zeros.get(..(bytes - at).min(ZEROS as u64) as usize).unwrap_or_default();
        file.write_at(&[io::IoSlice::new(part)], at)?;
        let end = at + part.len() as u64;
        if end == bytes || end.is_multiple_of(SYNC_BYTES) {
            file.sync_data()?;
        }
    }
    Ok(Some(file))
}
