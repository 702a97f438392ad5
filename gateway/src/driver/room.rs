//! Room for a packet that is longer than a read: taken before more of it is read, and given back when it has been carried out.
//!
//! Invariant: whoever has room makes progress, or is closed; whoever waits for it is not read.
//! Must not know: what is in the packet.

use super::{Driver, Phase};
use crate::account::{PATIENCE, Room, SMALL_BYTES, STEP_BYTES};
use weir_core::{
    ids::Now,
    limits::Limit,
    packet::ReasonCode,
    session::{Cause, Event, Violation},
};

/// What a connection has for its packet.
pub(super) enum For {
    Asked,
    Has {
        room: Room,
        /// When the packet went on last, in `Now::monotonic_ms`.
        heard_ms: u64,
        /// How much of it there was.
        bytes: usize,
    },
}

const PATIENCE_MS: u64 = PATIENCE.as_millis() as u64;
/// A deadline that is looked at so late: the gateway itself has stood still.
const LATE_MS: u64 = 1_000;

impl Driver {
    pub(super) fn waits_for_room(&self) -> bool {
        matches!(self.room.as_deref(), Some(For::Asked))
    }

    /// When a packet must have gone on.
    pub(super) fn room_deadline(&self) -> Option<u64> {
        match self.room.as_deref()? {
            For::Has { heard_ms, .. } => Some(heard_ms + PATIENCE_MS),
            For::Asked => None,
        }
    }

    /// After a read: room for all of what has begun, unless it is little.
    pub(super) fn make_room(&mut self, now: Now) {
        let begun = self.rest.len();
        let wanted = if begun == 0 || self.waiting { begun } else { begun.max(self.needs) };
        if wanted <= SMALL_BYTES {
            self.room = None;
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
            self.rest.reserve_exact(wanted - begun);
            self.has_room(now, room);
            return;
        }
        self.room = Some(Box::new(For::Asked));
        let (inbound, peer) = (self.gateway.inbound.clone(), self.peer.clone());
        tokio::spawn(async move {
            let room = inbound.room(wanted, may_use_it).await;
            peer.tell(|m| m.room = Some(room));
        });
    }

    fn has_room(&mut self, now: Now, room: Room) {
        let (heard_ms, bytes) = (now.monotonic_ms, self.rest.len());
        self.room = Some(Box::new(For::Has { room, heard_ms, bytes }));
    }

    /// `None`: there was none in time.
    pub(super) fn room_came(&mut self, now: Now, room: Option<Room>) {
        if !self.waits_for_room() {
            return;
        }
        match room {
            Some(room) => self.has_room(now, room),
            None if self.gateway.is_held() => {
                // The publishers that have it wait too.
                self.room = None;
                self.make_room(now);
            }
            None => self.close_for_room(now),
        }
    }

    /// Others may wait for the room that it has, and it sends no more of its packet.
    pub(super) fn is_stuck_in_a_packet(&mut self, now: Now) -> bool {
        let Some(at) = self.room_deadline().filter(|at| *at <= now.monotonic_ms) else { return false };
        // The gateway does not read, or did not run: that is no silence of the client.
        let listens = self.wants_read() && now.monotonic_ms < at + LATE_MS;
        if let Some(For::Has { heard_ms, .. }) = self.room.as_deref_mut().filter(|_| !listens) {
            *heard_ms = now.monotonic_ms;
            return false;
        }
        true
    }

    pub(super) fn close_for_room(&mut self, now: Now) {
        self.room = None;
        self.gateway.refused(Limit::InboundBytes, self.name());
        let statement = "a packet that stopped half-way, or had no room within ten seconds";
        if matches!(self.phase, Phase::Running(_)) {
            self.event(now, Event::Closed(Cause::Violation(Violation { reason: ReasonCode::QUOTA_EXCEEDED, statement })));
        } else {
            self.closed(Cause::KeepAlive);
        }
    }
}
