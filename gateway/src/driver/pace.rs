//! How fast a client may publish: whoever is faster is not read for a while. Off unless it is configured; and while retention keeps what somebody has yet to read,
//! publishers are not read at all.
//!
//! Invariant: nothing is refused or dropped for it; a client that waits is not silent. One that has something to read itself is slowed and not stopped, for its
//! acknowledgements stand behind its messages.
//! Must not know: what is published.

use super::Driver;
use crate::retention::Hold;
use parking_lot::Mutex;
use std::collections::HashMap;
use weir_core::{
    ids::Now,
    limits::{Limit, Limits},
};

/// So far ahead of its rate it may be.
const AHEAD_US: u64 = 1_000_000;
/// A publisher that waits for readers looks again after so long.
const HELD_MS: u64 = 500;
/// What one that reads itself may publish meanwhile: as many bytes as it is sent, and beyond them a message in `HELD_MS`, and so many bytes a second.
const HELD_BYTES_PER_S: u64 = 16 * 1024;

pub(super) struct Pace {
    messages_per_s: u64,
    bytes_per_s: u64,
    /// Until when what it has published is paid for, by each, in µs of the monotonic clock.
    paid_us: [u64; 2],
    /// It is not read before, in `Now::monotonic_ms`.
    until_ms: Option<u64>,
    /// Bytes that it was sent while publishers waited, and that it has not published.
    sent_bytes: u64,
    /// What it published beyond them is paid for then, as long as publishers wait, in `Now::monotonic_ms`.
    held_ms: u64,
}

impl Pace {
    /// `None`: as fast as it can.
    pub fn of(limits: &Limits) -> Option<Box<Self>> {
        let (messages_per_s, bytes_per_s) = (limits.publish_messages.into(), limits.publish_bytes);
        let any = messages_per_s > 0 || bytes_per_s > 0;
        any.then(|| Box::new(Self::with(messages_per_s, bytes_per_s)))
    }

    /// The same, for a client that has been here before.
    pub fn on_from(limits: &Limits, paid_us: Option<[u64; 2]>, now_us: u64) -> Option<Box<Self>> {
        let mut pace = Self::of(limits)?;
        if let Some(paid_us) = paid_us {
            pace.paid_us = paid_us;
            let until = paid_us.into_iter().max().unwrap_or_default().saturating_sub(AHEAD_US).div_ceil(1_000);
            pace.until_ms = (until * 1_000 > now_us).then_some(until);
        }
        Some(pace)
    }

    /// 0: any.
    fn with(messages_per_s: u64, bytes_per_s: u64) -> Self {
        Self { messages_per_s, bytes_per_s, paid_us: [0; 2], until_ms: None, sent_bytes: 0, held_ms: 0 }
    }

    /// A message of so many bytes. Gives the limit that it is beyond now and was not before.
    fn take(&mut self, now_us: u64, bytes: u64) -> Option<Limit> {
        let was_beyond = self.paid_us.iter().any(|paid| *paid > now_us + AHEAD_US);
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
        beyond.filter(|_| !was_beyond)
    }
}

/// What clients published beyond their rate before they left. The next connection of the same client
/// id starts from there.
#[derive(Default)]
pub(crate) struct Debts(Mutex<HashMap<Box<str>, [u64; 2]>>);

impl Debts {
    fn keep(&self, client_id: &str, paid_us: [u64; 2], now_us: u64) {
        if paid_us.iter().all(|paid| *paid <= now_us) {
            return;
        }
        let mut all = self.0.lock();
        all.insert(client_id.into(), paid_us);
        if all.len().is_multiple_of(1_024) {
            all.retain(|_, paid_us| paid_us.iter().any(|paid| *paid > now_us));
        }
    }

    fn of(&self, client_id: &str) -> Option<[u64; 2]> {
        self.0.lock().get(client_id).copied()
    }
}

impl Driver {
    /// Where the client goes on that has come. `Err`: it brings a will, and has published more than is paid for yet, wills among it.
    pub(super) fn find_pace(&mut self, now: Now, limits: &Limits, client_id: &str, has_will: bool) -> Result<(), Limit> {
        let now_us = now.monotonic_ms * 1_000;
        self.pace = Pace::on_from(limits, self.gateway.debts.of(client_id), now_us);
        let is_ahead = |pace: &Pace| pace.until_ms.is_some();
        if !has_will || !self.pace.as_deref().is_some_and(is_ahead) {
            return Ok(());
        }
        Err(if limits.publish_messages > 0 { Limit::PublishMessages } else { Limit::PublishBytes })
    }

    /// It goes; what it has published is paid for later.
    pub(super) fn leave_debts(&self, client_id: &str) {
        if let Some(pace) = &self.pace {
            self.gateway.debts.keep(client_id, pace.paid_us, self.gateway.now().monotonic_ms * 1_000);
        }
    }

    pub(super) fn waits_for_its_pace(&self) -> bool {
        self.pace.as_ref().is_some_and(|pace| pace.until_ms.is_some())
    }

    pub(super) fn pace_deadline(&self) -> Option<u64> {
        self.pace.as_ref()?.until_ms
    }

    /// The next message waits: it is ahead of its rate, or the log has no room before others have read.
    pub(super) fn is_ahead(&mut self, now: Now) -> bool {
        let waits = match self.gateway.hold() {
            Hold::Nobody => false,
            Hold::Publishers => !self.is_reader(),
            Hold::Everybody => true,
        };
        if waits {
            self.pause(now.monotonic_ms + HELD_MS);
        }
        self.pace.as_ref().and_then(|pace| pace.until_ms).is_some_and(|until| until > now.monotonic_ms)
    }

    /// It has a durable subscription or is a member of a group, and may be the one that publishers wait for.
    pub(super) fn is_reader(&mut self) -> bool {
        let is_member = self.is_member();
        self.phase.session().is_some_and(|s| is_member || s.is_stored() && s.subscribes())
    }

    /// Publishers wait, and this one may be waited for: what it derives from what it reads goes through.
    fn pay_while_held(&mut self, now: Now, bytes: u64) {
        let sent = self.pace.as_mut().map(|pace| &mut pace.sent_bytes);
        match sent.filter(|sent| **sent >= bytes) {
            Some(sent) => *sent -= bytes,
            None => {
                self.pause(now.monotonic_ms + HELD_MS);
                if let Some(pace) = &mut self.pace {
                    pace.held_ms = now.monotonic_ms + HELD_MS.max(bytes * 1_000 / HELD_BYTES_PER_S);
                }
            }
        }
    }

    /// So many bytes have left to the client.
    pub(super) fn was_sent(&mut self, bytes: usize) {
        if self.gateway.is_held() && self.is_reader() {
            let pace = self.pace.get_or_insert_with(|| Box::new(Pace::with(0, 0)));
            pace.sent_bytes = pace.sent_bytes.saturating_add(bytes as u64);
        }
    }

    fn pause(&mut self, until_ms: u64) {
        let pace = self.pace.get_or_insert_with(|| Box::new(Pace::with(0, 0)));
        pace.until_ms = Some(until_ms.max(pace.until_ms.unwrap_or_default()));
    }

    /// A message has been taken, of so many bytes with all that is before its payload.
    pub(super) fn keep_pace(&mut self, now: Now, bytes: usize) {
        if self.gateway.is_held() {
            self.pay_while_held(now, bytes as u64);
        }
        let Some(pace) = &mut self.pace else { return };
        if let Some(limit) = pace.take(now.monotonic_ms * 1_000, bytes as u64) {
            self.gateway.slowed(limit, self.name());
        }
    }

    /// Its time may have come.
    pub(super) fn go_on_at_its_pace(&mut self, now: Now) {
        if let Some(pace) = &mut self.pace {
            pace.until_ms = pace.until_ms.filter(|until| *until > now.monotonic_ms);
            if pace.held_ms > now.monotonic_ms && self.gateway.is_held() {
                pace.until_ms.get_or_insert(now.monotonic_ms + HELD_MS);
            }
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
