//! Room for a packet that is longer than a read: taken before more of it is read, and given back when it has been carried out.
//!
//! Invariant: whoever has room makes progress, or is closed; whoever waits for it is not read.
//! Must not know: what is in the packet.

use super::{Driver, Phase};
use crate::account::{PATIENCE, Room, SMALL_BYTES, STEP_BYTES, Waiter};
use tokio::sync::oneshot;
use weir_core::{
    ids::Now,
    limits::Limit,
    packet::ReasonCode,
    session::{Cause, Event, Violation},
};
use weir_log::Wake;

/// What a connection has for its packet.
pub(super) enum For {
    /// What it asked for comes here.
    Asked {
        answer: oneshot::Receiver<Room>,
        _in_line: Waiter,
        /// Since when it waits, in `Now::monotonic_ms`.
        asked_ms: u64,
    },
    Has {
        room: Room,
        /// When the packet went on last, in `Now::monotonic_ms`.
        heard_ms: u64,
        /// How much of it there was.
        bytes: usize,
    },
}

const PATIENCE_MS: u64 = PATIENCE.as_millis() as u64;
/// A deadline that is looked at so late means that the gateway itself has stood still.
const LATE_MS: u64 = 1_000;

impl Driver {
    pub(super) fn waits_for_room(&self) -> bool {
        matches!(self.room.as_deref(), Some(For::Asked { .. }))
    }

    /// When a packet must have gone on, or had room.
    pub(super) fn room_deadline(&self) -> Option<u64> {
        match self.room.as_deref()? {
            For::Has { heard_ms, .. } => Some(heard_ms + PATIENCE_MS),
            For::Asked { asked_ms, .. } => Some(asked_ms + PATIENCE_MS),
        }
    }

    /// What it had room for has been taken; for what begins behind it, it stands in line like all
    /// others.
    pub(super) fn packet_ended(&mut self) {
        self.room = None;
    }

    /// After a read: room for all of what has begun, unless it is little.
    pub(super) fn make_room(&mut self, now: Now) {
        let begun = self.rest.len();
        let wanted = if begun == 0 || self.waiting { begun } else { begun.max(self.needs) };
        if wanted <= SMALL_BYTES {
            self.room = None;
            // A larger packet may have been here.
            if self.rest.capacity() > 2 * SMALL_BYTES {
                self.rest.shrink_to(SMALL_BYTES);
            }
            return;
        }
        let is_short = self.gateway.inbound.is_short();
        if let Some(For::Has { room, heard_ms, bytes }) = self.room.as_deref_mut()
            && room.bytes() >= wanted
        {
            if !is_short || begun >= *bytes + STEP_BYTES || begun < *bytes {
                (*heard_ms, *bytes) = (now.monotonic_ms, begun);
            }
            return;
        }
        self.room = None;
        // Publishers that wait for readers do not take the room of these readers.
        let may_use_it = !self.gateway.is_held() || self.is_reader();
        if let Some(room) = self.gateway.inbound.try_room(wanted, may_use_it) {
            self.has_room(now, room);
            return;
        }
        let (tell, answer) = oneshot::channel();
        let peer = self.peer.clone();
        let in_line = self.gateway.inbound.in_line(wanted, may_use_it, move |room| {
            if tell.send(room).is_ok() {
                peer.wake();
            }
        });
        self.room = Some(Box::new(For::Asked { answer, _in_line: in_line, asked_ms: now.monotonic_ms }));
    }

    fn has_room(&mut self, now: Now, room: Room) {
        let (heard_ms, bytes) = (now.monotonic_ms, self.rest.len());
        // As much as it has room for, and not up to twice that.
        self.rest.reserve_exact(room.bytes().saturating_sub(bytes));
        self.room = Some(Box::new(For::Has { room, heard_ms, bytes }));
    }

    /// Looks whether what it asked for has come.
    pub(super) fn take_room(&mut self, now: Now) {
        if let Some(For::Asked { answer, .. }) = self.room.as_deref_mut()
            && let Ok(room) = answer.try_recv()
        {
            self.has_room(now, room);
        }
    }

    /// Others may wait for the room that it has, and it sends no more of its packet; or there is
    /// none for it.
    pub(super) fn is_stuck_in_a_packet(&mut self, now: Now) -> bool {
        let Some(at) = self.room_deadline().filter(|at| *at <= now.monotonic_ms) else { return false };
        let stood_still = now.monotonic_ms >= at + LATE_MS;
        let (reads, is_held) = (self.wants_read(), self.gateway.is_held());
        let since_ms = match self.room.as_deref_mut() {
            // The gateway does not read: that is no silence of the client.
            Some(For::Has { heard_ms, .. }) if stood_still || !reads => heard_ms,
            // The publishers that have it wait too.
            Some(For::Asked { asked_ms, .. }) if stood_still || is_held => asked_ms,
            _ => return true,
        };
        *since_ms = now.monotonic_ms;
        false
    }

    pub(super) fn close_for_room(&mut self, now: Now) {
        // Nothing more is taken from it, and its memory is others' now.
        (self.rest, self.waiting, self.room) = (Vec::new(), false, None);
        self.gateway.refused(Limit::InboundBytes, self.name());
        let statement = "a packet that stopped half-way, or had no room within ten seconds";
        if matches!(self.phase, Phase::Running(_)) {
            self.event(now, Event::Closed(Cause::Violation(Violation { reason: ReasonCode::QUOTA_EXCEEDED, statement })));
        } else {
            self.closed(Cause::KeepAlive);
        }
    }
}
