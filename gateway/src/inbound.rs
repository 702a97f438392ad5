//! Memory for packets that have begun and are not whole yet: one account for all connections.
//!
//! Invariant: what lies in memory of unfinished packets is bounded, whatever clients declare: beyond a little of each, a connection reads on only when it has room for all of its packet.
//! Must not know: packets.

use crate::{
    account::{PART_BYTES, PATIENCE, Room, STEP_BYTES},
    gateway::Gateway,
};
use parking_lot::Mutex;
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::time::Instant;
use weir_bridge::upgrade::Gate;

/// Of a packet that needs no room of its own: ten thousand of them are 160 MB.
pub(crate) const SMALL_BYTES: usize = 16 * 1024;

type Asking = Pin<Box<dyn Future<Output = Option<Room>> + Send>>;

/// What a websocket has read of a message that is not whole yet.
pub(crate) struct Meter {
    gateway: Arc<Gateway>,
    message: Mutex<Message>,
}

#[derive(Default)]
struct Message {
    read: usize,
    /// When it went on last.
    heard: Option<Instant>,
    /// How much of it there was.
    bytes: usize,
    rooms: Vec<Room>,
    asking: Option<Asking>,
}

impl Meter {
    pub fn new(gateway: Arc<Gateway>) -> Arc<Self> {
        Arc::new(Self { gateway, message: Mutex::default() })
    }

    /// A control frame was read, which may stand between the parts of a message that is not whole (RFC 6455, 5.4): it alone is not counted any more.
    pub fn forget(&self, frame_bytes: usize) {
        let mut message = self.message.lock();
        message.read = message.read.saturating_sub(frame_bytes);
    }

    /// A message is whole, and has been taken.
    pub fn reset(&self) {
        let mut message = self.message.lock();
        (message.read, message.heard, message.bytes) = (0, None, 0);
        message.rooms.clear();
    }

    /// The gateway does not read: that is no silence of the client.
    pub fn is_not_read(&self) {
        if let Some(heard) = &mut self.message.lock().heard {
            *heard = Instant::now();
        }
    }

    /// When a message that has room must have gone on.
    fn deadline(&self) -> Option<Instant> {
        let message = self.message.lock();
        message.heard.filter(|_| !message.rooms.is_empty() && message.asking.is_none()).map(|heard| heard + PATIENCE)
    }

    /// A message that has room does not go on.
    pub async fn stalled(&self) {
        while self.deadline().is_none_or(|at| at > Instant::now()) {
            tokio::time::sleep_until(self.deadline().unwrap_or_else(|| Instant::now() + PATIENCE)).await;
        }
    }
}

/// `None`: there was none in time.
async fn part(gateway: Arc<Gateway>, is_first: bool) -> Option<Room> {
    loop {
        match gateway.inbound.room(PART_BYTES, is_first).await {
            // The publishers that have it wait too.
            None if gateway.is_held() => {}
            room => return room,
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
        // Of a message that goes on the rest comes as that of a large one.
        let is_first = meter.rooms.is_empty();
        let asking = meter.asking.get_or_insert_with(|| Box::pin(part(self.gateway.clone(), is_first)));
        let Poll::Ready(answer) = asking.as_mut().poll(cx) else { return Poll::Pending };
        (meter.asking, meter.heard) = (None, Some(Instant::now()));
        match answer {
            Some(room) => {
                meter.rooms.push(room);
                Poll::Ready(Ok(()))
            }
            None => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        }
    }

    fn passed(&self, bytes: usize) {
        let is_short = self.gateway.inbound.is_short();
        let mut message = self.message.lock();
        message.read += bytes;
        if !is_short || message.heard.is_none() || message.read >= message.bytes + STEP_BYTES {
            (message.heard, message.bytes) = (Some(Instant::now()), message.read);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::Shared;

    #[tokio::test(start_paused = true)]
    async fn small_packets_have_room_when_large_ones_have_taken_all_of_theirs() {
        let inbound = Shared::new(16 << 20);
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
