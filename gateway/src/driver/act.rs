//! What the session asks of the shell: puts, wills, the tails, the groups.
//!
//! Invariant: actions are carried out in order; a put that finds no room holds up those behind it.
//! Must not know: packets, sockets.

use super::{DeferredPut, Driver, PUT_AHEAD_MS, PUT_BYTES_PER_MS, Phase, feed::Feeding, log_id, submit::Pass};
use crate::{
    gateway::{encode, session_key},
    group::{self, Groups},
    refusals::short,
    tail::Command,
};
use std::sync::Arc;
use weir_bridge::filters::Filters;
use weir_core::{
    ids::{Now, Offset, Receipt, SubscribeId},
    session::{Action, Cause, Event, Session, begin::Begin},
};
use weir_log::{AppendError, Put, ReadError, Seek};

impl Driver {
    /// Carries out what the session asks.
    pub(super) fn act(&mut self, now: Now) {
        if let Some(put) = self.put.take() {
            self.perform(now, put.action);
        }
        while self.put.is_none() {
            let Some(action) = self.phase.session().and_then(Session::poll_action) else { return };
            self.perform(now, action);
        }
    }

    fn perform(&mut self, now: Now, action: Action) {
        match action {
            Action::PutValue | Action::DeleteValue => self.put_value(now, action),
            Action::AppendWill => self.append_will(now),
            Action::Subscribe { id, filter, new, begin } => {
                if new {
                    self.gateway.interests.add(&filter);
                }
                if let Some(begin) = begin {
                    // The one reader goes back from where it is.
                    self.pass();
                    self.gateway.read_by(&filter).for_each(|nth| self.find(id, nth, &filter, begin));
                }
                self.entered = true;
                self.filters = None;
                self.read_again();
                let tails = self.gateway.read_by(&filter);
                let from = self.appended_ends();
                let from = |nth: usize| from.get(nth).copied().unwrap_or_default();
                self.tell_tails(tails, |nth| Command::Subscribe(self.peer.clone(), id, filter.clone(), from(nth)));
            }
            Action::Unsubscribe(filter) => {
                self.gateway.interests.remove(&filter);
                self.filters = None;
                let tails = self.gateway.read_by(&filter);
                self.tell_tails(tails, |_| Command::Unsubscribe(self.peer.id, filter.clone()));
            }
            Action::Share { id, filter, new } => {
                if new {
                    self.gateway.interests.add(&filter);
                }
                self.join_group(id, filter);
            }
            Action::Unshare(filter, sid) => {
                self.gateway.interests.remove(&filter);
                // It stays a member until it has acknowledged what it was sent: its end is told as that of the others.
                Groups::tell(&self.gateway, &filter, group::Command::Unshare(sid));
            }
            Action::Settle(filter, p, at) => {
                Groups::tell(&self.gateway, &filter, group::Command::Settle(self.peer.id, (p, at)));
            }
            Action::Refused(limit) => self.gateway.refused(limit, self.name()),
            Action::Close(cause) => {
                if let Some(client_id) = self.client_id.as_ref().filter(|_| self.visit.is_none()) {
                    self.gateway.events.closed(&self.gateway, client_id, cause);
                }
                self.close.get_or_insert(cause);
                self.pass();
                self.leave_tails();
                self.leave_groups();
                self.feeding = Feeding::Idle;
            }
            Action::HandOver => {
                if !matches!(self.phase, Phase::Settling(..)) {
                    self.hand_over();
                }
            }
        }
    }

    /// Finds where a subscription begins in the nth partition.
    fn find(&mut self, id: SubscribeId, nth: usize, filter: &str, begin: Begin) {
        let (p, peer, by) = (self.gateway.partitions[nth], self.peer.clone(), self.asker());
        let seek = match begin {
            Begin::Earliest => {
                let start = self.gateway.engine.span(log_id(p)).start.0;
                return peer.tell(|m| m.started.push((id, p, Offset(start))));
            }
            Begin::Offset(at) => return peer.tell(|m| m.started.push((id, p, at))),
            Begin::Time(ms) => Seek::Time(ms),
            Begin::Last(count) => Seek::Last { count, select: Arc::new(Filters::new([filter.into()])), below: weir_log::Offset(u64::MAX) },
        };
        let found = move |found: Result<weir_log::Offset, ReadError>| {
            peer.tell(|m| match found {
                Ok(at) => m.started.push((id, p, Offset(at.0))),
                Err(e) => m.unread = Some(e),
            });
        };
        self.gateway.engine.seek(&by, log_id(p), seek, Box::new(found));
    }

    fn put_value(&mut self, now: Now, action: Action) {
        self.pass();
        let goes_on = self.close.is_none() && matches!(self.phase, Phase::Running(_));
        let Some(session) = self.phase.session() else { return };
        if goes_on && self.paid_ms > now.monotonic_ms + PUT_AHEAD_MS {
            self.put = Some(Box::new(DeferredPut { action, due: Some(self.paid_ms - PUT_AHEAD_MS) }));
            return;
        }
        let value = (action == Action::PutValue).then(|| session.value());
        self.paid_ms = self.paid_ms.max(now.monotonic_ms) + value.as_ref().map_or(0, |v| v.len() as u64 / PUT_BYTES_PER_MS);
        let key = session_key(session.client_id());
        match self.gateway.engine.state().put(&[Put { key: &key, tag: session.tag(), value: value.as_deref() }], &self.who) {
            Ok(receipt) => {
                let is_put = value.is_some();
                session.saved();
                self.gateway.count(&mut self.counted, |p| session.needs(p).filter(|_| is_put));
                if self.peer.set_stored(value.is_some()) != value.is_some() {
                    self.gateway.stored(value.is_some());
                }
                self.event(now, Event::PutSubmitted(Receipt(receipt.0)));
            }
            Err(AppendError::Full) => self.put = Some(Box::new(DeferredPut { action, due: None })),
            Err(AppendError::TooLarge { bytes, .. }) => {
                tracing::error!(client = short(session.client_id()), bytes, "the session's value is too large to be stored");
                self.event(now, Event::Closed(Cause::LogFailed));
            }
            Err(e @ AppendError::Failed(_)) => self.gateway.state_failed(&e),
            // The process ends, and this session with it: as in a crash, its last value counts.
            Err(AppendError::Stopping) => self.leave(),
        }
    }

    /// What the tails have offered to others and not to this session it has passed. After `leave_tails` they offer it nothing.
    pub(super) fn pass(&mut self) {
        if !self.entered {
            return;
        }
        let Some(session) = self.phase.session() else { return };
        for (nth, tail) in self.gateway.passed.iter().enumerate() {
            let offered = tail.offset();
            session.pass(nth, &self.peer.inbox(nth), offered);
        }
    }

    fn append_will(&mut self, now: Now) {
        let Some(session) = self.phase.session() else { return };
        let Some(m) = session.will_message(now) else { return };
        let p = self.gateway.partition_of(&m.topic);
        // Its topic was judged at CONNECT, and the rest of a will is below 128 KiB.
        let bytes = m.topic.len() + m.headers.len() + m.payload.len();
        let pass = Pass::of(&mut self.pass, self.gateway.partitions.len(), self.registered);
        if let Err(e) = encode(&m, &mut pass.records[p]) {
            tracing::error!(client = short(session.client_id()), "a will that is no record: {e}");
            return;
        }
        pass.will = Some(p);
        self.keep_pace(now, bytes);
        self.mark();
        self.submit(now);
        self.watermarks(now);
    }

    pub(super) fn tell_tails(&self, tails: impl Iterator<Item = usize>, command: impl Fn(usize) -> Command) {
        for (nth, tail) in tails.filter_map(|nth| Some((nth, self.gateway.tails.get(nth)?))) {
            // A tail that is gone means that the process ends.
            let _ = tail.send(command(nth));
        }
    }

    pub(super) fn leave_tails(&mut self) {
        if std::mem::take(&mut self.entered) {
            self.tell_tails(0..self.gateway.tails.len(), |_| Command::Leave(self.peer.id));
        }
    }
}
