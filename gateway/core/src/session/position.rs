//! Where a message stands in the log, for clients of version 5 that ask for it: user property `position` = `true` of SUBSCRIBE (deliveries say it) and of
//! CONNECT (PUBACK and PUBCOMP say it); and what was lost for them.
//!
//! Invariant: nobody who has not asked is told. What is lost is told with the next message that says its position, and again after that connection has ended, until such a message is
//! acknowledged.
//! Must not know: how a record came there.

use super::{Lost, Session};
use crate::{
    ids::{Offset, PartitionId},
    message::Stored,
    property::{Properties, PropertiesBuf, Property},
};
use std::{
    ops::Range,
    time::{Duration, UNIX_EPOCH},
};

/// Ranges told one by one; beyond them the last one grows over what lies between.
const LOST_MAX: usize = 16;

/// Of an acknowledgement without its properties: head, packet id, reason and two lengths.
const ACK_BYTES_MAX: usize = 12;

/// Later times cannot be written.
const YEAR_10000_MS: u64 = 253_402_300_800_000;

/// A user property that means something to the gateway.
pub(super) fn asked<'a>(properties: Properties<'a>, name: &str) -> Option<&'a str> {
    properties.iter().find_map(|p| match p {
        Property::UserProperty((key, value)) if key == name => Some(value),
        _ => None,
    })
}

pub(super) fn wants_position(properties: Properties<'_>) -> bool {
    asked(properties, "position") == Some("true")
}

impl Session {
    /// Some of its deliveries say where they stand and when they were written.
    #[must_use]
    pub fn tells_positions(&self) -> bool {
        self.subscriptions.all.values().any(|s| s.position)
    }

    /// Every acknowledged record is to have a receipt of its own.
    #[must_use]
    pub fn wants_positions(&self) -> bool {
        self.position
    }

    /// For an acknowledgement; empty for who has not asked.
    pub(super) fn position_of(&self, place: Option<(PartitionId, Offset)>) -> PropertiesBuf {
        let mut properties = PropertiesBuf::default();
        if let Some((p, offset)) = place.filter(|_| self.position) {
            self.push_place(p, offset, &mut properties);
        }
        // A longer acknowledgement than the client takes says less [MQTT-3.4.2-2, MQTT-3.7.2-2].
        let fits = properties.as_properties().raw().len() + ACK_BYTES_MAX <= self.outbound.packet_bytes_max();
        if fits { properties } else { PropertiesBuf::default() }
    }

    fn push_place(&self, p: PartitionId, offset: Offset, to: &mut PropertiesBuf) {
        let Some(reader) = self.readers.iter().find(|r| r.id == p) else { return };
        to.push(Property::UserProperty(("stream", &reader.stream)))
            .push(Property::UserProperty(("partition", &reader.number.to_string())))
            .push(Property::UserProperty(("offset", &offset.to_string())));
    }

    fn push_place_and_time(&self, p: PartitionId, r: &Stored<'_>, to: &mut PropertiesBuf) {
        self.push_place(p, r.offset, to);
        let time = UNIX_EPOCH + Duration::from_millis(r.time_ms.min(YEAR_10000_MS - 1));
        to.push(Property::UserProperty(("timestamp", &humantime::format_rfc3339_millis(time).to_string())));
    }

    /// For a delivery, as far as there is `room` in bytes: a message is not withheld for what is said beside it. Losses stand before `stream`, where no
    /// publisher can say any. Gives how many it tells.
    pub(super) fn push_position(&self, p: PartitionId, r: &Stored<'_>, room: usize, to: &mut PropertiesBuf) -> usize {
        let (start, mut told) = (to.len(), 0);
        self.push_place_and_time(p, r, to);
        let place = to.len() - start;
        if place > room {
            to.truncate(start);
            return 0;
        }
        if self.lost.iter().all(|lost| lost.carrier.is_some()) {
            return 0;
        }
        to.truncate(start);
        for Lost { partition, range, .. } in self.lost.iter().filter(|lost| lost.carrier.is_none()) {
            let before = to.len();
            if let Some(reader) = self.readers.iter().find(|r| r.id == *partition) {
                let text = format!("{}/{}:{}-{}", reader.stream, reader.number, range.start, range.end);
                to.push(Property::UserProperty(("lost", &text)));
            }
            if to.len() - start + place > room {
                to.truncate(before);
                break;
            }
            told += 1;
        }
        self.push_place_and_time(p, r, to);
        told
    }

    /// These records will never be sent. `adjoins`: nothing that matches lies between the last one that was lost and these.
    pub(super) fn lose(&mut self, p: PartitionId, range: Range<Offset>, adjoins: bool) {
        if !self.subscriptions.all.values().chain(self.subscriptions.shared.values()).any(|s| s.position) {
            return;
        }
        let full = self.lost.len() >= LOST_MAX;
        let last = self.lost.iter_mut().rev().find(|lost| lost.partition == p && lost.carrier.is_none());
        match last {
            Some(last) if adjoins || full || last.range.end == range.start => {
                last.range = last.range.start.min(range.start)..last.range.end.max(range.end);
            }
            _ => self.lost.push(Lost { partition: p, range, carrier: None }),
        }
    }

    /// The client has the message of this ordinal, and knows what it says.
    pub(super) fn knows(&mut self, ordinal: u64) {
        self.lost.retain(|lost| lost.carrier != Some(ordinal));
    }

    /// The client is told of the first `count` losses by a message that was just written. `ordinal`: of one that it acknowledges, else it is taken to know.
    pub(super) fn told(&mut self, ordinal: Option<u64>, count: usize) {
        let mut left = count;
        let mut is_told = |lost: &Lost| {
            let told = lost.carrier.is_none() && left > 0;
            left -= usize::from(told);
            told
        };
        match ordinal {
            None => self.lost.retain(|lost| !is_told(lost)),
            Some(_) => self.lost.iter_mut().for_each(|lost| {
                if is_told(lost) {
                    lost.carrier = ordinal;
                }
            }),
        }
    }
}
