//! How a session comes to a connection and leaves it: the client id is claimed, the stored value loaded, a will that was due published, and at
//! the end everything given back.
//!
//! Invariant: a session is worked on only by the owner of its client id; whatever way it goes, the client id is given up in the end.
//! Must not know: packets, records.

use super::{Driver, Phase, log_id};
use crate::{gateway::session_key, metrics::Total, retention::Hold};
use serde_json::json;
use std::sync::Arc;
use weir_core::{
    ids::{Now, Offset},
    limits::{Fleet, Limit},
    packet::ReasonCode,
    session::{
        ConnectRequest, Session,
        connect::{Joining, Partition},
        value::ValueError,
    },
};
use weir_log::ReadError;

impl Driver {
    /// The client id is ours: get what is stored under it.
    pub(super) fn load(&mut self) {
        let Some(client_id) = &self.client_id else { return };
        if self.is_left() {
            return;
        }
        let peer = self.peer.clone();
        self.gateway.engine.state().get(&session_key(client_id), Box::new(move |loaded| peer.tell(|m| m.loaded = Some(loaded))));
        if let Phase::Claiming(request, deadline) = std::mem::replace(&mut self.phase, Phase::Offline(None)) {
            self.phase = Phase::Loading(request, deadline);
        }
    }

    pub(super) fn loaded(&mut self, now: Now, loaded: Result<Option<weir_log::Entry>, ReadError>) {
        let client_id = self.client_id.clone().unwrap_or_default();
        let session = match loaded {
            Err(e) => {
                tracing::error!("session {client_id}: {e}");
                return self.refuse(ReasonCode::SERVER_UNAVAILABLE);
            }
            Ok(entry) => entry.map(|e| Session::decode(&client_id, &e.value)).transpose(),
        };
        let session = match session {
            Err(e @ (ValueError::Format(_) | ValueError::Malformed)) => {
                tracing::error!("state store, key c/{client_id}: {e}");
                return self.refuse(ReasonCode::IMPLEMENTATION_SPECIFIC);
            }
            Ok(session) => session,
        };
        self.peer.set_stored(session.is_some());
        self.counted = self.gateway.counted(|p| session.as_ref()?.needs(p));
        match std::mem::replace(&mut self.phase, Phase::Left) {
            Phase::Loading(request, _) => self.loaded_for(now, request, session),
            Phase::Offline(_) => self.loaded_offline(now, session),
            other => self.phase = other,
        }
    }

    fn loaded_for(&mut self, now: Now, request: Box<ConnectRequest>, session: Option<Session>) {
        let Some(mut session) = session else { return self.run(now, &request, None, false) };
        let ended = self.gateway.ended(&session);
        let alive = session.expires_at(ended).is_none_or(|at| at > now.steady_ms);
        self.gateway.totals.add(Total::SessionsExpired, u64::from(!alive));
        if session.has_will() && request.clean_start {
            // Its session ends, and its will does not wait for longer [MQTT-3.1.3-9].
            session.expire();
        }
        if session.will_due_at(ended).is_some_and(|at| at <= now.steady_ms) {
            session.end_offline(now, ended);
            self.phase = Phase::Settling(request, Box::new(session), alive);
        } else {
            // A will whose time has not come is not published: its session goes on.
            self.run(now, &request, Some(session), alive);
        }
    }

    fn loaded_offline(&mut self, now: Now, session: Option<Session>) {
        let Some(mut session) = session else {
            self.phase = Phase::Offline(None);
            return self.leave();
        };
        let ended = self.gateway.ended(&session);
        if session.expires_at(ended).is_some_and(|at| at <= now.steady_ms) {
            self.gateway.totals.add(Total::SessionsExpired, 1);
            session.expire();
        }
        if session.due_at(ended).is_some_and(|at| at <= now.steady_ms) {
            session.end_offline(now, ended);
            self.phase = Phase::Offline(Some(Box::new(session)));
        } else {
            if let Some(at) = session.due_at(ended) {
                self.gateway.offline.look(at, session.client_id());
            }
            self.phase = Phase::Offline(None);
            self.leave();
        }
    }

    /// `resumed`: its time was not over.
    fn run(&mut self, now: Now, request: &ConnectRequest, session: Option<Session>, resumed: bool) {
        let is_in_use = |since| session.as_ref().is_some_and(|s| s.away_since(self.gateway.ended(s)) > since);
        if self.idle_since().is_some_and(is_in_use) {
            return self.refuse(ReasonCode::SESSION_TAKEN_OVER);
        }
        let in_store = session.is_some();
        let session_bytes = self.gateway.client_limits().session_bytes;
        let is_too_much = session.as_ref().is_some_and(|s| resumed && request.is_too_much_for(s, session_bytes));
        if let Some(limit) = is_too_much.then_some(Limit::SessionBytes).or_else(|| self.beyond(request, in_store)) {
            self.gateway.refused(limit, &request.client_id);
            return self.refuse(ReasonCode::QUOTA_EXCEEDED);
        }
        if self.gateway.hold() == Hold::Everybody && request.will_bytes() > 0 {
            // It would be appended when the client goes, whoever waits.
            return self.refuse(ReasonCode::SERVER_BUSY);
        }
        if let Err(limit) = self.find_pace(now, &self.gateway.client_limits(), &request.client_id, request.will_bytes() > 0) {
            self.gateway.refused(limit, &request.client_id);
            return self.refuse(ReasonCode::QUOTA_EXCEEDED);
        }
        if let Some(ended) = session.as_ref().filter(|_| !resumed || request.clean_start) {
            self.gateway.interests.remove_all(ended);
        }
        let mut session = session.unwrap_or_else(|| Session::new(&request.client_id, 0));
        let end = |id| Offset(self.gateway.engine.span(log_id(id)).durable.0);
        let all = self.gateway.partitions.iter().zip(&self.gateway.streams);
        let joined = all.map(|(id, (stream, number))| Partition {
            id: *id,
            stream: stream.clone(),
            number: *number,
            system: self.gateway.is_system(*id),
            end: end(*id),
        });
        let partitions: Vec<_> = joined.collect();
        let limits = &self.gateway.client_limits();
        let (sid, boot, fleet) = (self.gateway.sid(), self.gateway.boot, self.gateway.clone() as Arc<dyn Fleet>);
        let joining = Joining { sid, boot, partitions: &partitions, resumed, in_store, limits, fleet: &fleet };
        session.connect(now, request, &joining, self.out.end());
        if self.visit.is_none() {
            let more = json!({
                "address": self.peer.address.map(|a| a.to_string()),
                "version": request.version.to_string(),
                "clean_start": request.clean_start,
                "session_present": resumed && !request.clean_start,
                "expiry_s": request.expiry_s,
            });
            self.gateway.events.connected(&self.gateway, &request.client_id, more);
        }
        self.phase = Phase::Running(Box::new(session));
    }

    /// Which limit of all clients together this one would be beyond.
    fn beyond(&self, request: &ConnectRequest, in_store: bool) -> Option<Limit> {
        let begins = request.is_stored() && !in_store;
        let session = begins.then(|| self.gateway.refuses_session()).flatten();
        session.or_else(|| request.retained_will().and_then(|(topic, bytes)| self.gateway.refuses_retained(topic, bytes)))
    }

    /// Steps between phases that need nobody else.
    pub(super) fn advance(&mut self, now: Now) {
        if !matches!(&self.phase, Phase::Settling(_, s, _) if s.is_ended()) {
            return;
        }
        if let Phase::Settling(request, session, alive) = std::mem::replace(&mut self.phase, Phase::Left) {
            if self.close.is_some() {
                // The peer is gone meanwhile.
                self.leave_now();
                return;
            }
            if session.has_will() {
                // The log could not take it; the store still has it, and a new session would forget it.
                return self.refuse(ReasonCode::SERVER_UNAVAILABLE);
            }
            self.run(now, &request, Some(*session), alive);
            self.act(now);
        }
    }

    /// The session has ended here; the store has it, if anybody has.
    pub(super) fn hand_over(&mut self) {
        match &self.phase {
            Phase::Running(s) => self.gateway.departures.note(s.client_id(), s.oldest_in_flight().filter(|_| s.is_stored())),
            // Its time is over: nobody comes back for it.
            Phase::Offline(Some(s)) if !s.is_stored() => self.gateway.departures.note(s.client_id(), None),
            _ => {}
        }
        if let Phase::Running(s) | Phase::Offline(Some(s)) = &mut self.phase {
            let counts = s.take_counts();
            self.gateway.totals.add_counts(&counts);
            self.gateway.events.counted(&self.gateway, s.client_id(), &counts);
            if !s.is_stored() {
                self.gateway.interests.remove_all(s);
            }
            if s.is_stored()
                && !s.was_connected()
                && !s.gave_up()
                && let Some(at) = s.due_at(0)
            {
                self.gateway.offline.look(at, s.client_id());
            }
        }
        self.leave();
    }

    pub(super) fn leave(&mut self) {
        self.phase = Phase::Left;
        self.leave_now();
    }

    /// Gives back everything that others know of it.
    pub(super) fn leave_now(&mut self) {
        self.leave_tails();
        self.leave_groups();
        if let Some(client_id) = &self.client_id {
            self.leave_debts(client_id);
            self.gateway.directory.leave(client_id, &self.peer);
        }
        // Whoever asks from now on sees that nobody is here; whoever has asked hears it.
        self.peer.set_connected(false);
        drop(self.peer.take());
        self.gateway.pressure.gone(&self.peer);
        self.gateway.marked.remove(&self.peer.id);
        self.gateway.peers.remove(&self.peer.id);
    }
}

/// A connection that panicked has ended like any other for everybody else; its session is what the store has.
impl Drop for Driver {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.gateway.totals.add(Total::Panics, 1);
            tracing::error!(client = self.name(), "a connection panicked; it is closed, others go on");
        }
        if !self.is_left() {
            self.leave();
        }
    }
}
