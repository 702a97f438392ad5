//! Memory for packets that have begun and are not whole yet: one account for all connections.
//!
//! Invariant: what lies in memory of unfinished packets is bounded, whatever clients declare: beyond a little of each, a connection reads on only when it has room for all of its packet.
//! Must not know: packets.

use parking_lot::Mutex;
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::ReadBuf,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use weir_bridge::upgrade::Gate;

/// Of a packet that needs no room of its own: ten thousand of them are 160 MB.
pub(crate) const SMALL_BYTES: usize = 16 * 1024;
/// Who waits for room for longer, or has it and sends nothing, is closed: others wait for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Where the length of a message is not known beforehand, room is taken in such parts.
const PART_BYTES: usize = 256 * 1024;
const UNIT: usize = 1_024;

/// Room for unfinished packets.
#[derive(Clone)]
pub(crate) struct Inbound {
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
}

fn units(bytes: usize) -> u32 {
    bytes.div_ceil(UNIT) as u32
}

impl Inbound {
    pub fn new(bytes: usize) -> Self {
        Self { units: Arc::new(Semaphore::new(bytes / UNIT)), bytes }
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

    /// `None`: there was none in time.
    pub async fn room(&self, bytes: usize) -> Option<Room> {
        let asked = self.units.clone().acquire_many_owned(units(bytes));
        tokio::time::timeout(PATIENCE, asked).await.ok()?.ok().map(|permit| Room { permit })
    }
}

type Asking = Pin<Box<dyn Future<Output = Option<Room>> + Send>>;

/// What a websocket has read of a message that is not whole yet.
pub(crate) struct Meter {
    inbound: Inbound,
    message: Mutex<Message>,
}

#[derive(Default)]
struct Message {
    read: usize,
    /// When something of it came last.
    heard: Option<Instant>,
    rooms: Vec<Room>,
    asking: Option<Asking>,
}

impl Meter {
    pub fn new(inbound: Inbound) -> Arc<Self> {
        Arc::new(Self { inbound, message: Mutex::default() })
    }

    /// A message is whole, and has been taken.
    pub fn reset(&self) {
        let mut message = self.message.lock();
        (message.read, message.heard) = (0, None);
        message.rooms.clear();
    }

    /// When a message that has room must have gone on.
    fn deadline(&self) -> Option<Instant> {
        let message = self.message.lock();
        message.heard.filter(|_| !message.rooms.is_empty()).map(|heard| heard + PATIENCE)
    }

    /// A message that has room does not go on.
    pub async fn stalled(&self) {
        while self.deadline().is_none_or(|at| at > Instant::now()) {
            tokio::time::sleep_until(self.deadline().unwrap_or_else(|| Instant::now() + PATIENCE)).await;
        }
    }
}

impl Gate for Meter {
    fn poll_open(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let meter = &mut *self.message.lock();
        let room = SMALL_BYTES + meter.rooms.iter().map(Room::bytes).sum::<usize>();
        if meter.read <= room {
            return Poll::Ready(Ok(()));
        }
        let inbound = self.inbound.clone();
        let asking = meter.asking.get_or_insert_with(|| Box::pin(async move { inbound.room(PART_BYTES).await }));
        let Poll::Ready(answer) = asking.as_mut().poll(cx) else { return Poll::Pending };
        meter.asking = None;
        match answer {
            Some(room) => {
                meter.rooms.push(room);
                Poll::Ready(Ok(()))
            }
            None => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        }
    }

    fn passed(&self, read: &ReadBuf<'_>, before: usize) {
        let more = read.filled().len() - before;
        if more > 0 {
            let mut message = self.message.lock();
            message.read += more;
            message.heard = Some(Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn room_is_given_back_and_nobody_waits_for_it_for_ever() {
        let inbound = Inbound::new(1 << 20);
        let all = inbound.try_room(1 << 20).expect("room");
        assert!(inbound.is_short() && inbound.try_room(1).is_none());
        assert_eq!((inbound.taken(), all.bytes()), (1 << 20, 1 << 20));
        assert!(inbound.room(1).await.is_none(), "after a while");
        drop(all);
        assert!(!inbound.is_short() && inbound.room(500_000).await.is_some_and(|room| room.bytes() >= 500_000));
        assert_eq!(inbound.taken(), 0);
    }
}
