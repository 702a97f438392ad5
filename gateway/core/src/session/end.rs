//! How a session ends: with its connection, with the process, with its time; and its will.
//!
//! Invariant: it is handed over only when what it owes is durable: its will if that is due, and what is open of QoS 2.
//! Must not know: packets, how a session begins.

use super::{Action, Cause, Held, Life, Session};
use crate::{
    ids::{Now, PartitionId, Receipt, Source},
    message::{Message, WillMark},
    packet::{Disconnect, Packet, Version},
    property::Properties,
};

impl Session {
    /// The connection ends; the session goes on to its end.
    pub(super) fn close(&mut self, now: Now, cause: Cause, out: &mut Vec<u8>) {
        if self.life != Life::Connected {
            return;
        }
        if let Some(reason) = cause.reason().filter(|_| self.version == Version::V5 && self.connack_sent) {
            self.reply(&Packet::Disconnect(Disconnect { reason, properties: Properties::default() }), out);
        }
        self.actions.push_back(Action::Close(cause));
        self.held = Held::default();
        if cause == Cause::Drain {
            // As in a crash: the next start counts it as disconnected from then on, and its will is due then.
            self.life = Life::Draining;
            return;
        }
        if cause == (Cause::Disconnect { will: false }) {
            self.will = None;
        }
        self.since_ms = now.steady_ms;
        self.life = Life::Ending;
        self.owe_will(now, now.steady_ms);
    }

    /// The will is published now if its time has come.
    pub(super) fn owe_will(&mut self, now: Now, ended_ms: u64) {
        self.will_owed = self.will_due_at(ended_ms).is_some_and(|at| at <= now.steady_ms);
        if self.will_owed {
            self.actions.push_back(Action::AppendWill);
        }
    }

    /// The value without its will is put only when the will is durable: a crash between repeats nothing, the fold has seen the mark.
    pub(super) fn will_is_durable(&mut self, source: Source, receipt: Receipt) {
        let durable = self.will_receipt.is_some_and(|(p, r)| source == Source::Partition(p) && r <= receipt);
        if durable && self.life == Life::Ending {
            self.will_receipt = None;
            self.will = None;
            self.will_owed = false;
        }
    }

    /// Ends when nothing is owed any more.
    pub(super) fn settle(&mut self) {
        let owed = match self.life {
            Life::Ending => self.will_owed || self.exchanges_pending(),
            Life::Draining => self.exchanges_pending(),
            Life::Offline | Life::Connected | Life::Ended => true,
        };
        if !owed {
            self.end();
        }
    }

    pub(super) fn end(&mut self) {
        self.was_connected &= self.life == Life::Draining;
        self.life = Life::Ended;
        self.put_wanted = self.is_stored() || self.in_store;
        if self.expiry_s == 0 {
            self.unshare_all();
        }
        self.actions.push_back(Action::HandOver);
    }

    /// Whoever waits for it can never be answered; who only reads, or publishes elsewhere, goes on (P8). What is on its way there is not waited
    /// for: if the log has it, the next start finds it.
    pub(super) fn log_failed(&mut self, now: Now, source: Source, out: &mut Vec<u8>) {
        let mut waits = self.inbound.waits_for(source);
        if let Source::Partition(p) = source {
            waits |= self.exchanges_fail(p);
            if self.will_owed && self.will_partition().is_none_or(|will| will == p) {
                // The value keeps it.
                (self.will_owed, self.gave_up) = (false, true);
            }
        }
        if waits {
            self.close(now, Cause::LogFailed, out);
        }
    }

    fn will_partition(&self) -> Option<PartitionId> {
        let will = self.will.as_ref()?;
        self.home_of(will.topic())
    }

    /// Its will is due, and the log could not take it: it waits for the next start.
    #[must_use]
    pub fn gave_up(&self) -> bool {
        self.gave_up
    }

    /// The will as a message, while there is one.
    #[must_use]
    pub fn will_message(&self, now: Now) -> Option<Message<'_>> {
        let mark = WillMark { sid: self.sid, connection: self.connection };
        self.will.as_ref().map(|w| w.message(mark, self.client_hash, now.steady_ms))
    }

    #[must_use]
    pub fn will_mark(&self) -> Option<WillMark> {
        self.will.as_ref().map(|_| WillMark { sid: self.sid, connection: self.connection })
    }

    /// When its will is published if nobody connects: after the will delay, or with the session if that ends first [MQTT-3.1.3-9]; ms since 1970.
    #[must_use]
    pub fn will_due_at(&self, ended_ms: u64) -> Option<u64> {
        let since = if self.life == Life::Ending { self.since_ms } else { self.away_since(ended_ms) };
        self.will.as_ref().map(|w| since + u64::from(w.delay_s().min(self.expiry_s)) * 1_000)
    }

    /// A session that nobody owns, whose will may be due: `ended_ms` is when the boot that saw it connected ended. Goes the way of a closed
    /// connection.
    pub fn end_offline(&mut self, now: Now, ended_ms: u64) {
        self.since_ms = self.away_since(ended_ms);
        self.was_connected = false;
        self.in_store = true;
        self.life = Life::Ending;
        self.owe_will(now, self.since_ms);
        self.settle();
    }

    /// Its time is over: it ends with its connection, and nothing of it is kept.
    pub fn expire(&mut self) {
        self.expiry_s = 0;
    }

    /// Since when nobody is connected, ms since 1970. `ended_ms`: when the boot that saw it connected ended.
    #[must_use]
    pub fn away_since(&self, ended_ms: u64) -> u64 {
        if self.was_connected { ended_ms } else { self.since_ms }
    }

    #[must_use]
    pub fn was_connected(&self) -> bool {
        self.was_connected
    }

    /// When it ends if nobody connects, ms since 1970; `None`: never [MQTT 5, 3.1.2.11.2]. `ended_ms`: when the boot that saw it connected ended.
    #[must_use]
    pub fn expires_at(&self, ended_ms: u64) -> Option<u64> {
        let since = self.away_since(ended_ms);
        (self.expiry_s != u32::MAX).then(|| since + u64::from(self.expiry_s) * 1_000)
    }

    /// When something is due while it is offline, its will or its end; ms since 1970.
    #[must_use]
    pub fn due_at(&self, ended_ms: u64) -> Option<u64> {
        self.expires_at(ended_ms).into_iter().chain(self.will_due_at(ended_ms)).min()
    }

    /// The deadline in seconds since 1970, where it is known: while it is connected there is none, and 0 says so.
    #[must_use]
    pub fn tag(&self) -> u32 {
        let deadline = if self.was_connected { None } else { self.due_at(0) };
        deadline.map_or(0, |at| u32::try_from(at.div_ceil(1_000)).unwrap_or(u32::MAX))
    }

    #[must_use]
    pub fn boot(&self) -> u64 {
        self.boot
    }
}
