//! Room for a message above 64 KiB that the client is sent: taken before it is put behind what is unsent, and given back when it has left.
//!
//! Invariant: whoever has room makes progress, or is closed when others wait; whoever waits for it holds nothing of what it is to be sent.
//! Must not know: sessions, what is in the message.

use super::{Driver, OUT_BYTES_HIGH};
use crate::account::{PATIENCE, Room, STEP_BYTES};
use weir_core::{
    ids::Now,
    limits::Limit,
    packet::ReasonCode,
    session::{Cause, Event, Violation},
};

/// What a connection has for its large message.
pub(super) enum Sending {
    Waits,
    Has(Held),
}

pub(super) struct Held {
    room: Room,
    /// When the client took enough of it last, in `Now::monotonic_ms`, and how much was left then.
    taken_ms: u64,
    left: usize,
}

const PATIENCE_MS: u64 = PATIENCE.as_millis() as u64;

impl Driver {
    pub(super) fn waits_to_send(&self) -> bool {
        matches!(self.sending.as_deref(), Some(Sending::Waits))
    }

    /// Is there room for so many bytes more? If not, it hears when there is.
    pub(super) fn may_send(&mut self, bytes: usize) -> bool {
        if bytes <= OUT_BYTES_HIGH {
            return true;
        }
        let wanted = self.out.len() + bytes;
        if matches!(self.sending.as_deref(), Some(Sending::Has(held)) if held.room.bytes() >= wanted) {
            return true;
        }
        self.sending = None;
        if let Some(room) = self.gateway.outbound.try_room(wanted) {
            self.may_go_on(room);
            return true;
        }
        self.sending = Some(Box::new(Sending::Waits));
        let (outbound, peer) = (self.gateway.outbound.clone(), self.peer.clone());
        tokio::spawn(async move {
            let room = outbound.wait(wanted).await;
            peer.tell(|m| m.out_room = room);
        });
        false
    }

    fn may_go_on(&mut self, room: Room) {
        let taken_ms = self.gateway.now().monotonic_ms;
        self.sending = Some(Box::new(Sending::Has(Held { room, taken_ms, left: self.out.len() })));
    }

    /// The room that it waited for.
    pub(super) fn out_room_came(&mut self, room: Room) {
        if self.waits_to_send() {
            self.may_go_on(room);
        }
    }

    /// After something was put behind what is unsent, or has left.
    pub(super) fn give_room_back(&mut self) {
        let unsent = self.out.len();
        let Some(Sending::Has(held)) = self.sending.as_deref_mut() else { return };
        if unsent <= OUT_BYTES_HIGH {
            self.sending = None;
        } else if unsent + STEP_BYTES <= held.left || unsent > held.left {
            (held.taken_ms, held.left) = (self.gateway.now().monotonic_ms, unsent);
        }
    }

    /// When the client must have taken some of its message.
    pub(super) fn sending_deadline(&self) -> Option<u64> {
        if self.close.is_some() {
            // What is unsent lies in memory until the socket has ended, and its room is kept as long.
            return None;
        }
        match self.sending.as_deref()? {
            Sending::Has(held) => Some(held.taken_ms + PATIENCE_MS),
            Sending::Waits => None,
        }
    }

    /// Closes it when others wait for the room that it has, and it takes nothing. True: it was due.
    pub(super) fn end_what_is_not_taken(&mut self, now: Now) -> bool {
        let is_short = self.gateway.outbound.is_short();
        match self.sending.as_deref_mut() {
            Some(Sending::Has(held)) if held.taken_ms + PATIENCE_MS <= now.monotonic_ms => {
                if !is_short {
                    held.taken_ms = now.monotonic_ms;
                    return false;
                }
            }
            _ => return false,
        }
        self.gateway.refused(Limit::OutboundBytes, self.name());
        let statement = "less than 64 KiB of a large message taken in ten seconds, while others waited for its room";
        self.event(now, Event::Closed(Cause::Violation(Violation { reason: ReasonCode::QUOTA_EXCEEDED, statement })));
        true
    }
}
