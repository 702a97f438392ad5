//! How fast a client may publish: whoever is faster is not read for a while. Off unless it is configured.
//!
//! Invariant: nothing is refused or dropped for it; a client that waits is not silent.
//! Must not know: what is published.

use super::{Driver, Phase};
use weir_core::{
    codec::{Decoded, decode},
    ids::Now,
    limits::{Limit, Limits},
    packet::Packet,
    session::PACKET_BYTES_MAX,
};

/// So far ahead of its rate it may be.
const AHEAD_US: u64 = 1_000_000;
/// A publisher that waits for those who read looks again after so long.
const HELD_MS: u64 = 500;
/// While a message waits, acknowledgements and pings behind it are taken, in so many bytes: who reads and publishes on one connection goes on reading.
const OVERTAKE_BYTES: usize = 16 * 1024;

pub(super) struct Pace {
    messages_per_s: u64,
    bytes_per_s: u64,
    /// Until when what it has published is paid for, by each, in µs of the monotonic clock.
    paid_us: [u64; 2],
    /// It is not read before, in `Now::monotonic_ms`.
    until_ms: Option<u64>,
}

impl Pace {
    /// `None`: as fast as it can.
    pub fn of(limits: &Limits) -> Option<Box<Self>> {
        let (messages_per_s, bytes_per_s) = (limits.publish_messages.into(), limits.publish_bytes);
        let any = messages_per_s > 0 || bytes_per_s > 0;
        any.then(|| Box::new(Self::with(messages_per_s, bytes_per_s)))
    }

    /// 0: any.
    fn with(messages_per_s: u64, bytes_per_s: u64) -> Self {
        Self { messages_per_s, bytes_per_s, paid_us: [0; 2], until_ms: None }
    }

    /// A message of so many bytes. Gives the limit that it is beyond now and was not before.
    fn take(&mut self, now_us: u64, bytes: u64) -> Option<Limit> {
        let held = self.until_ms.is_some();
        let all = [(1, self.messages_per_s, Limit::PublishMessages), (bytes, self.bytes_per_s, Limit::PublishBytes)];
        let mut beyond = None;
        for (paid, (n, per_s, limit)) in self.paid_us.iter_mut().zip(all).filter(|(_, (_, per_s, _))| *per_s > 0) {
            *paid = now_us.max(*paid) + n.saturating_mul(1_000_000) / per_s;
            if *paid > now_us + AHEAD_US {
                let until = (*paid - AHEAD_US).div_ceil(1_000);
                self.until_ms = Some(self.until_ms.unwrap_or_default().max(until));
                beyond = Some(limit);
            }
        }
        beyond.filter(|_| !held)
    }
}

impl Driver {
    pub(super) fn waits_for_its_pace(&self) -> bool {
        self.pace.as_ref().is_some_and(|pace| pace.until_ms.is_some())
    }

    /// What comes now may be an acknowledgement.
    pub(super) fn may_be_overtaken(&self) -> bool {
        self.waits_for_its_pace() && self.rest.len() < OVERTAKE_BYTES
    }

    /// Takes acknowledgements and pings from behind the messages that wait: they say nothing of those.
    pub(super) fn overtake(&mut self, now: Now) {
        if !self.waits_for_its_pace() || !matches!(self.phase, Phase::Running(_)) {
            return;
        }
        let (mut rest, mut at) = (std::mem::take(&mut self.rest), 0);
        while let Ok(Decoded::Packet(packet, n)) = decode(rest.get(at..).unwrap_or_default(), self.version, PACKET_BYTES_MAX) {
            match packet {
                Packet::PubAck(_) | Packet::PubRec(_) | Packet::PubComp(_) | Packet::PingReq => {
                    self.stuck = false;
                    self.packet(now, packet);
                    rest.drain(at..at + n);
                }
                Packet::Publish(_) | Packet::PubRel(_) => at += n,
                // Whatever else it is keeps its place.
                _ => break,
            }
        }
        self.rest = rest;
    }

    pub(super) fn pace_deadline(&self) -> Option<u64> {
        self.pace.as_ref()?.until_ms
    }

    /// The next message waits: it is ahead of its rate, or the log has no room before others have read.
    pub(super) fn is_ahead(&mut self, now: Now) -> bool {
        if self.gateway.is_held() {
            let again = now.monotonic_ms + HELD_MS;
            self.pace.get_or_insert_with(|| Box::new(Pace::with(0, 0))).until_ms = Some(again);
        }
        self.pace.as_ref().and_then(|pace| pace.until_ms).is_some_and(|until| until > now.monotonic_ms)
    }

    /// A message has been taken, of so many bytes with all that is before its payload.
    pub(super) fn keep_pace(&mut self, now: Now, bytes: usize) {
        let Some(pace) = &mut self.pace else { return };
        if let Some(limit) = pace.take(now.monotonic_ms * 1_000, bytes as u64) {
            self.gateway.slowed(limit, self.name());
        }
    }

    /// Its time may have come.
    pub(super) fn go_on_at_its_pace(&mut self, now: Now) {
        if let Some(pace) = &mut self.pace {
            pace.until_ms = pace.until_ms.filter(|until| *until > now.monotonic_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_faster_waits_and_has_its_rate_in_the_end() {
        let limits = Limits { publish_messages: 100, publish_bytes: 10_000, ..Limits::default() };
        let mut pace = Pace::of(&limits).expect("a rate");
        let (mut now_us, mut sent) = (0, 0);
        while now_us < 20_000_000 {
            sent += 1;
            pace.take(now_us, 10);
            now_us = pace.until_ms.take().map_or(now_us, |ms| ms * 1_000);
        }
        assert!((2_000..2_200).contains(&sent), "{sent} messages in 20 s and a burst of one");
        // The other limit.
        assert_eq!(pace.take(now_us, 1_000_000), Some(Limit::PublishBytes));
        assert!(pace.until_ms.is_some_and(|until| until * 1_000 > now_us + 90_000_000) && Pace::of(&Limits::default()).is_none());
    }
}
