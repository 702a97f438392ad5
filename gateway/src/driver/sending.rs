//! Room for a message above 64 KiB that the client is sent: taken before it is put behind what is unsent, and released when it has left.
//!
//! Invariant: whoever has room makes progress, or is closed when others wait; whoever waits for it holds nothing of what it is to be sent. What waits for the
//! session's value before it may leave (QoS 2) counts as unsent.
//! Must not know: sessions, what is in the message.

use super::{Driver, OUT_BYTES_HIGH, feed::Feeding};
use crate::account::{Room, STEP_BYTES, Waiter};
use weir_core::{
    ids::Now,
    limits::Limit,
    packet::ReasonCode,
    session::{Cause, Event, Violation},
};

/// What a connection has for its large messages, and what it waits for.
#[derive(Default)]
pub(super) struct OutboundRoom {
    /// For what is unsent; kept until larger room has come.
    has: Option<Room>,
    /// Since when the client has taken less than a step of it, in `Now::monotonic_ms`, and how much.
    taken_ms: u64,
    taken: usize,
    waiter: Option<Waiter>,
}

/// A client that takes less than a step in this time is closed when others wait. A socket says that it can take more when a third of its buffer is free, which may be a MiB.
const PATIENCE_MS: u64 = 30_000;

impl Driver {
    pub(super) fn waits_to_send(&self) -> bool {
        self.sending.as_ref().is_some_and(|sending| sending.waiter.is_some())
    }

    /// Is there room for so many bytes more? If not, it hears when there is.
    #[inline]
    pub(super) fn may_send(&mut self, bytes: usize) -> bool {
        bytes <= OUT_BYTES_HIGH || self.has_room_to_send(bytes)
    }

    fn has_room_to_send(&mut self, bytes: usize) -> bool {
        let unsent = self.unsent();
        if unsent >= OUT_BYTES_HIGH || self.waits_to_send() {
            // What is before it leaves first.
            return false;
        }
        // More than there is never comes, and whoever waited for it would hold up all others.
        let wanted = (unsent + bytes).min(self.gateway.outbound.most());
        let has = self.sending.as_ref().and_then(|sending| sending.has.as_ref());
        if has.is_some_and(|room| room.bytes() >= wanted) {
            return true;
        }
        if let Some(room) = self.gateway.outbound.try_room(wanted, true) {
            self.may_go_on(room);
            return true;
        }
        let peer = self.peer.clone();
        let waiter = self.gateway.outbound.in_line(wanted, true, move |room| peer.tell(|m| m.out_room = Some(room)));
        self.sending.get_or_insert_default().waiter = Some(waiter);
        false
    }

    /// Bytes that have not left.
    fn unsent(&mut self) -> usize {
        self.out.len() + self.held_bytes()
    }

    /// Of those, what waits for the session's value.
    pub(super) fn held_bytes(&mut self) -> usize {
        self.phase.session().map_or(0, |s| s.held_bytes())
    }

    fn may_go_on(&mut self, room: Room) {
        let taken_ms = self.gateway.now().monotonic_ms;
        **self.sending.get_or_insert_default() = OutboundRoom { has: Some(room), taken_ms, taken: 0, waiter: None };
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
        let is_reading = self.is_reading_for_room();
        let Some(sending) = &mut self.sending else { return };
        sending.taken += left;
        if sending.taken >= STEP_BYTES {
            (sending.taken_ms, sending.taken) = (now_ms, 0);
        }
        match &mut sending.has {
            // What it is for comes.
            Some(_) if is_reading => {}
            Some(room) if unsent > OUT_BYTES_HIGH => {
                if room.bytes() >= memory + STEP_BYTES {
                    room.shrink(memory);
                }
            }
            _ => sending.has = None,
        }
        if sending.has.is_none() && sending.waiter.is_none() {
            self.sending = None;
        }
    }

    /// What it has room for is being read.
    fn is_reading_for_room(&self) -> bool {
        !matches!(self.feeding, Feeding::Idle | Feeding::Held(_))
    }

    /// Room that it waited for and does not need any more: what it was for has gone.
    pub(super) fn give_up_room(&mut self) {
        if !self.is_reading_for_room() {
            self.give_room_back(0);
        }
    }

    /// When the client must have taken some of its message.
    pub(super) fn sending_deadline(&self) -> Option<u64> {
        let sending = self.sending.as_ref().filter(|_| self.close.is_none())?;
        // What is unsent lies in memory until the socket has ended, and its room is kept as long.
        sending.has.as_ref().map(|_| sending.taken_ms + PATIENCE_MS)
    }

    /// Closes it when others wait for the room that it has, and it takes nothing. True: it was due.
    pub(super) fn end_what_is_not_taken(&mut self, now: Now) -> bool {
        if self.sending_deadline().is_none_or(|at| at > now.monotonic_ms) {
            return false;
        }
        if !self.gateway.outbound.is_short() || self.unsent() <= OUT_BYTES_HIGH {
            let sending = self.sending.get_or_insert_default();
            (sending.taken_ms, sending.taken) = (now.monotonic_ms, 0);
            return false;
        }
        self.gateway.refused(Limit::OutboundBytes, self.name());
        let statement = "less than 64 KiB of a large message taken in thirty seconds, while others waited for its room";
        self.event(now, Event::Closed(Cause::Violation(Violation { reason: ReasonCode::QUOTA_EXCEEDED, statement })));
        true
    }
}
