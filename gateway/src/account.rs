//! Memory that many connections share: a connection takes room before it holds much, and gives it back.
//!
//! Invariant: no more is taken than there is, whatever clients do; those that wait are served in turn.
//! Must not know: what it is for.

use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::AbortHandle,
};

/// Who has room and makes no progress for longer is closed when others wait for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// What must have moved in that time.
pub(crate) const STEP_BYTES: usize = 64 * 1024;
/// Of a packet that needs no room of its own: ten thousand of them are 160 MB.
pub(crate) const SMALL_BYTES: usize = 16 * 1024;
/// What needs no more than this counts as small: see `Shared`.
pub(crate) const PART_BYTES: usize = 256 * 1024;
const UNIT: usize = 1_024;

/// So many bytes, for all connections together.
#[derive(Clone)]
pub(crate) struct Account {
    units: Arc<Semaphore>,
    bytes: usize,
}

/// Given back when it is dropped.
pub(crate) struct Room {
    permit: OwnedSemaphorePermit,
}

impl Room {
    pub fn bytes(&self) -> usize {
        self.permit.num_permits() * UNIT
    }

    /// Gives back what is more than `bytes`.
    pub fn shrink(&mut self, bytes: usize) {
        let more = self.permit.num_permits().saturating_sub(units(bytes) as usize);
        drop(self.permit.split(more));
    }
}

fn units(bytes: usize) -> u32 {
    bytes.div_ceil(UNIT) as u32
}

impl Account {
    pub fn new(bytes: usize) -> Self {
        Self { units: Arc::new(Semaphore::new(bytes / UNIT)), bytes }
    }

    /// Taken or not.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How much of it is taken.
    pub fn taken(&self) -> usize {
        self.bytes.saturating_sub(self.units.available_permits() * UNIT)
    }

    /// Room is scarce: connections read little at once.
    pub fn is_short(&self) -> bool {
        self.units.available_permits() < units(PART_BYTES) as usize
    }

    /// Without waiting.
    pub fn try_room(&self, bytes: usize) -> Option<Room> {
        self.units.clone().try_acquire_many_owned(units(bytes)).ok().map(|permit| Room { permit })
    }

    /// For as long as it takes.
    async fn wait(&self, bytes: usize) -> Option<Room> {
        self.units.clone().acquire_many_owned(units(bytes)).await.ok().map(|permit| Room { permit })
    }
}

/// In line for room, until it is dropped.
pub(crate) struct Waiter {
    task: AbortHandle,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The fraction of a shared account that is for what needs up to `PART_BYTES`, whatever larger ones
/// have taken.
const SMALL_PART: usize = 16;

/// An account of which a part is for what is small.
#[derive(Clone)]
pub(crate) struct Shared {
    all: Account,
    small: Account,
}

impl Shared {
    pub fn new(bytes: usize) -> Self {
        let small = bytes / SMALL_PART;
        Self { all: Account::new(bytes - small), small: Account::new(small) }
    }

    pub fn bytes(&self) -> usize {
        self.all.bytes() + self.small.bytes()
    }

    /// As much as one can have.
    pub fn most(&self) -> usize {
        self.all.bytes()
    }

    pub fn taken(&self) -> usize {
        self.all.taken() + self.small.taken()
    }

    /// Room is scarce: connections read little at once.
    pub fn is_short(&self) -> bool {
        self.all.is_short()
    }

    fn for_small(&self, bytes: usize, may_use_it: bool) -> Option<&Account> {
        Some(&self.small).filter(|_| may_use_it && bytes <= PART_BYTES)
    }

    /// Without waiting. `may_use_it`: the part for what is small.
    pub fn try_room(&self, bytes: usize, may_use_it: bool) -> Option<Room> {
        let small = || self.for_small(bytes, may_use_it)?.try_room(bytes);
        self.all.try_room(bytes).or_else(small)
    }

    /// For as long as it takes.
    async fn wait(&self, bytes: usize, may_use_it: bool) -> Option<Room> {
        let Some(small) = self.for_small(bytes, may_use_it) else { return self.all.wait(bytes).await };
        tokio::select! {
            room = self.all.wait(bytes) => room,
            room = small.wait(bytes) => room,
        }
    }

    /// Calls `then` with the room when there is some.
    pub fn in_line(&self, bytes: usize, may_use_it: bool, then: impl FnOnce(Room) + Send + 'static) -> Waiter {
        let account = self.clone();
        let task = tokio::spawn(async move {
            if let Some(room) = account.wait(bytes, may_use_it).await {
                then(room);
            }
        });
        Waiter { task: task.abort_handle() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn room_is_given_back() {
        let account = Account::new(1 << 20);
        let all = account.try_room(1 << 20).expect("room");
        assert!(account.is_short() && account.try_room(1).is_none());
        assert_eq!((account.taken(), all.bytes()), (1 << 20, 1 << 20));
        let mut all = all;
        all.shrink(600_000);
        assert!(account.taken() >= 600_000 && account.taken() < 602_000 && account.try_room(400_000).is_some());
        drop(all);
        assert!(!account.is_short() && account.try_room(500_000).is_some_and(|room| room.bytes() >= 500_000));
        assert_eq!(account.taken(), 0);
    }

    #[tokio::test]
    async fn who_leaves_the_line_holds_up_nobody_behind() {
        let shared = Shared::new(16 << 20);
        let all = shared.try_room(shared.most(), true).expect("all of it");
        let (tx, mut came) = tokio::sync::mpsc::unbounded_channel();
        let line = |bytes: usize| {
            let tx = tx.clone();
            shared.in_line(bytes, true, move |room| drop(tx.send(room)))
        };
        let (most, half) = (line(shared.most()), line(shared.most() / 2));
        tokio::task::yield_now().await;
        assert!(came.try_recv().is_err());
        drop(most);
        let mut all = all;
        all.shrink(shared.most() / 4);
        let room = came.recv().await.expect("room for the second");
        assert!((shared.most() / 2..shared.most()).contains(&room.bytes()));
        drop((room, all, half));
        assert_eq!(shared.taken(), 0);
    }

    #[tokio::test]
    async fn small_packets_have_room_when_large_ones_have_taken_all_of_theirs() {
        let shared = Shared::new(16 << 20);
        let large: Vec<_> = std::iter::from_fn(|| shared.try_room(1 << 20, true)).collect();
        assert_eq!((large.len(), shared.is_short(), shared.bytes()), (15, true, 16 << 20));
        let small = shared.try_room(PART_BYTES, true).expect("room for a small one");
        assert!(shared.try_room(PART_BYTES, false).is_none() && shared.try_room(PART_BYTES + 1, true).is_none());
        let rest = shared.wait(3 * PART_BYTES / 4, true).await.expect("more of it");
        assert_eq!(shared.taken(), (15 << 20) + 7 * PART_BYTES / 4);
        drop((small, rest, large));
        assert_eq!(shared.taken(), 0);
    }
}
