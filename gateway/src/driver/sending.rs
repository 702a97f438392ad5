//! Room for a message above 64 KiB that the client is sent: taken before it is put behind what is unsent, and released when it has left.
//!
//! Invariant: whoever has room makes progress, or is closed when others wait; whoever waits for it holds nothing of what it is to be sent. What waits for the
//! session's value before it may leave (QoS 2) counts as unsent.
//! Must not know: sessions, what is in the message.

use super::{Driver, OUT_BYTES_HIGH, feed::Feeding};
use crate::account::{Room, STEP_BYTES};
use tokio::task::AbortHandle;
use weir_core::{
    ids::Now,
    limits::Limit,
    packet::ReasonCode,
    session::{Cause, Event, Violation},
};

/// What a connection has for its large message.
pub(super) enum Sending {
    Waits {
        _in_line: Waiter,
    },
    Has {
        room: Room,
        /// When the client took some of it last, in `Now::monotonic_ms`.
        taken_ms: u64,
    },
}

/// In line for room, until it is dropped.
pub(super) struct Waiter {
    task: AbortHandle,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Who takes not a byte for so long is closed when others wait. A socket says that it can take more when a third of its buffer is free, which may be a MiB.
const PATIENCE_MS: u64 = 30_000;

impl Driver {
    pub(super) fn waits_to_send(&self) -> bool {
        matches!(self.sending.as_deref(), Some(Sending::Waits { .. }))
    }

    /// Is there room for so many bytes more? If not, it hears when there is.
    #[inline]
    pub(super) fn may_send(&mut self, bytes: usize) -> bool {
        bytes <= OUT_BYTES_HIGH || self.has_room_to_send(bytes)
    }

    fn has_room_to_send(&mut self, bytes: usize) -> bool {
        let wanted = self.unsent() + bytes;
        match self.sending.as_deref() {
            Some(Sending::Waits { .. }) => return false,
            Some(Sending::Has { room, .. }) if room.bytes() >= wanted => return true,
            _ => self.sending = None,
        }
        if let Some(room) = self.gateway.outbound.try_room(wanted) {
            self.may_go_on(room);
            return true;
        }
        let (outbound, peer) = (self.gateway.outbound.clone(), self.peer.clone());
        let waiter = tokio::spawn(async move {
            let room = outbound.wait(wanted).await;
            peer.tell(|m| m.out_room = room);
        });
        self.sending = Some(Box::new(Sending::Waits { _in_line: Waiter { task: waiter.abort_handle() } }));
        false
    }

    /// Bytes that have not left.
    fn unsent(&mut self) -> usize {
        self.out.len() + self.phase.session().map_or(0, |s| s.held_bytes())
    }

    fn may_go_on(&mut self, room: Room) {
        let taken_ms = self.gateway.now().monotonic_ms;
        self.sending = Some(Box::new(Sending::Has { room, taken_ms }));
    }

    /// The room that it waited for.
    pub(super) fn out_room_came(&mut self, room: Room) {
        if self.waits_to_send() {
            self.may_go_on(room);
        }
    }

    /// Something was put behind what is unsent, or `left` bytes have left.
    #[inline]
    pub(super) fn give_room_back(&mut self, left: usize) {
        if self.sending.is_some() {
            self.shrink_room(left);
        }
    }

    fn shrink_room(&mut self, left: usize) {
        let (unsent, now_ms) = (self.unsent(), self.gateway.now().monotonic_ms);
        let memory = unsent - self.out.len() + self.out.memory();
        let Some(Sending::Has { room, taken_ms }) = self.sending.as_deref_mut() else { return };
        if unsent <= OUT_BYTES_HIGH {
            self.sending = None;
            return;
        }
        if left > 0 {
            *taken_ms = now_ms;
        }
        if room.bytes() >= memory + STEP_BYTES {
            room.shrink(memory);
        }
    }

    /// Room that it waited for and does not need any more: what it was for has gone.
    pub(super) fn give_up_room(&mut self) {
        let is_reading = !matches!(self.feeding, Feeding::Idle | Feeding::Held(_));
        if !is_reading {
            self.give_room_back(0);
        }
    }

    /// When the client must have taken some of its message.
    pub(super) fn sending_deadline(&self) -> Option<u64> {
        if self.close.is_some() {
            // What is unsent lies in memory until the socket has ended, and its room is kept as long.
            return None;
        }
        match self.sending.as_deref()? {
            Sending::Has { taken_ms, .. } => Some(taken_ms + PATIENCE_MS),
            Sending::Waits { .. } => None,
        }
    }

    /// Closes it when others wait for the room that it has, and it takes nothing. True: it was due.
    pub(super) fn end_what_is_not_taken(&mut self, now: Now) -> bool {
        let (is_short, is_owed) = (self.gateway.outbound.is_short(), self.unsent() > OUT_BYTES_HIGH);
        match self.sending.as_deref_mut() {
            Some(Sending::Has { taken_ms, .. }) if *taken_ms + PATIENCE_MS <= now.monotonic_ms => {
                if !is_short || !is_owed {
                    *taken_ms = now.monotonic_ms;
                    return false;
                }
            }
            _ => return false,
        }
        self.gateway.refused(Limit::OutboundBytes, self.name());
        let statement = "nothing of a large message taken in thirty seconds, while others waited for its room";
        self.event(now, Event::Closed(Cause::Violation(Violation { reason: ReasonCode::QUOTA_EXCEEDED, statement })));
        true
    }
}
