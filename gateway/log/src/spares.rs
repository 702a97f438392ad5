//! Files that are ready to become the next segment: of retired segments, or prepared with zeros while the active one fills.
//!
//! Invariant: a spare's name is durable before the file is used again; a prepared one has all its blocks on the device.
//! Must not know: what is in a segment.

use crate::storage::{File, Name, Storage, aligned};
use parking_lot::Mutex;
use std::{
    cell::Cell,
    io,
    time::{Duration, Instant},
};

/// Retired files that are kept to be used again: more would only take space.
const RETIRED_MAX: u32 = 2;
pub(crate) const PREPARED: Name = Name::Spare(RETIRED_MAX + 1);
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

#[derive(Default)]
pub(crate) struct Spares {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Of retired segments.
    retired: Vec<Name>,
    prepared: Prepared,
}

/// The file that is prepared while the active segment fills.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Prepared {
    #[default]
    Nothing,
    Ready,
    /// Until its segment is in the list it has this name.
    Taken,
    /// There was no room, no time, or worse; tried again for the segment after the next.
    Failed,
}

/// Do so many bytes in this time leave none for zeros?
pub(crate) fn is_fast(bytes: u64, time: Duration) -> bool {
    u128::from(bytes) * 1_000 > u128::from(FAST_BYTES) * time.as_millis()
}

impl Spares {
    /// The name of a file for the next segment; its old content is told by its salt.
    pub fn take(&self) -> Option<Name> {
        let mut state = self.state.lock();
        state.retired.pop().or_else(|| {
            let ready = state.prepared == Prepared::Ready;
            ready.then(|| {
                state.prepared = Prepared::Taken;
                PREPARED
            })
        })
    }

    /// A segment begun now would have all its blocks.
    pub fn is_any(&self) -> bool {
        let state = self.state.lock();
        state.prepared == Prepared::Ready || !state.retired.is_empty()
    }

    fn is_wanted(&self) -> bool {
        let state = self.state.lock();
        state.retired.is_empty() && state.prepared == Prepared::Nothing
    }

    /// A segment has begun, and has its name.
    pub fn begun(&self) {
        let mut state = self.state.lock();
        if state.prepared != Prepared::Ready {
            state.prepared = Prepared::Nothing;
        }
    }

    /// Makes a retired segment's file a spare, unzeroed; false: there are enough.
    pub fn keep<S: Storage>(&self, storage: &S, name: Name) -> io::Result<bool> {
        let mut state = self.state.lock();
        let Some(spare) = (1..=RETIRED_MAX).map(Name::Spare).find(|n| !state.retired.contains(n)) else { return Ok(false) };
        storage.rename(name, spare)?;
        // Before it may be used again: or its name could come back with another segment's content.
        storage.sync_names()?;
        state.retired.push(spare);
        Ok(true)
    }

    /// Makes a file whose every block has been written, unless there is a spare: a sync of what is written into it later is one of data, not of the file system's extents and inode too
    /// (what that gives stands in `docs/performance.md`). Slow: on a thread that nobody waits for. The zeros keep ahead of what fills the active segment, whose bytes are `filled`; beyond
    /// that they are written seldom, unless it is wanted `soon`. True: there is one now.
    pub fn prepare<S: Storage>(
        &self,
        storage: &S,
        bytes: u64,
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
        let made = write_zeros(storage, bytes, &go_on);
        self.state.lock().prepared = match made {
            Ok(true) => Prepared::Ready,
            Ok(false) if !fast.get() => Prepared::Nothing,
            _ => Prepared::Failed,
        };
        match made {
            Ok(true) => Ok(true),
            not => storage.remove(PREPARED).and(not),
        }
    }
}

/// `go_on` is asked between parts; false ends it.
fn write_zeros<S: Storage>(storage: &S, bytes: u64, go_on: &dyn Fn(u64) -> bool) -> io::Result<bool> {
    let (file, mut room) = (storage.create(PREPARED, bytes)?, Vec::new());
    let zeros = aligned(&mut room, ZEROS);
    for at in (0..bytes).step_by(ZEROS) {
        if !go_on(at) {
            return Ok(false);
        }
        let part = zeros.get(..(bytes - at).min(ZEROS as u64) as usize).unwrap_or_default();
        file.write_at(&[io::IoSlice::new(part)], at)?;
        let end = at + part.len() as u64;
        if end == bytes || end.is_multiple_of(SYNC_BYTES) {
            file.sync_data()?;
        }
    }
    Ok(true)
}
