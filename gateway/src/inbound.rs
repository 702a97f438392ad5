//! Memory for packets that have begun and are not whole yet: one account for all connections.
//!
//! Invariant: what lies in memory of unfinished packets is bounded, whatever clients declare: beyond a little of each, a connection reads on only when it has room for all of its packet.
//! Must not know: packets.

use crate::account::{Account, PART_BYTES, PATIENCE, Room};
use parking_lot::Mutex;
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{io::ReadBuf, time::Instant};
use weir_bridge::upgrade::Gate;

/// Of a packet that needs no room of its own: ten thousand of them are 160 MB.
pub(crate) const SMALL_BYTES: usize = 16 * 1024;

/// So much of it is for packets of up to `PART_BYTES`, whatever larger ones have taken.
const SMALL_PART: usize = 16;

/// Of all connections.
#[derive(Clone)]
pub(crate) struct Inbound {
    all: Account,
    small: Account,
}

impl Inbound {
    pub fn new(bytes: usize) -> Self {
        let small = bytes / SMALL_PART;
        Self { all: Account::new(bytes - small), small: Account::new(small) }
    }

    pub fn bytes(&self) -> usize {
        self.all.bytes() + self.small.bytes()
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

    /// Without waiting. `may_use_it`: the part for small packets.
    pub fn try_room(&self, bytes: usize, may_use_it: bool) -> Option<Room> {
        let small = || self.for_small(bytes, may_use_it)?.try_room(bytes);
        self.all.try_room(bytes).or_else(small)
    }

    /// `None`: there was none in time.
    pub async fn room(&self, bytes: usize, may_use_it: bool) -> Option<Room> {
        let Some(small) = self.for_small(bytes, may_use_it) else { return self.all.room(bytes).await };
        tokio::select! {
            room = self.all.room(bytes) => room,
            room = small.room(bytes) => room,
        }
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
        // Of a message that goes on the rest comes as that of a large one.
        let is_first = meter.rooms.is_empty();
        let asking = meter.asking.get_or_insert_with(|| Box::pin(async move { inbound.room(PART_BYTES, is_first).await }));
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
    async fn small_packets_have_room_when_large_ones_have_taken_all_of_theirs() {
        let inbound = Inbound::new(16 << 20);
        let large: Vec<_> = std::iter::from_fn(|| inbound.try_room(1 << 20, true)).collect();
        assert_eq!((large.len(), inbound.is_short(), inbound.bytes()), (15, true, 16 << 20));
        let small = inbound.try_room(PART_BYTES, true).expect("room for a small one");
        assert!(inbound.try_room(PART_BYTES, false).is_none() && inbound.try_room(PART_BYTES + 1, true).is_none());
        let rest = inbound.room(3 * PART_BYTES / 4, true).await.expect("more of it");
        assert_eq!(inbound.taken(), (15 << 20) + 7 * PART_BYTES / 4);
        assert!(inbound.room(PART_BYTES, false).await.is_none(), "after a while");
        drop((small, rest, large));
        assert_eq!(inbound.taken(), 0);
    }
}
