//! A connection as a member of groups: what they gave it, and what of that it was sent.
//!
//! Invariant: what a group gave is sent, or the group hears that its member has gone; it hears of
//! what was sent once per wake-up.
//! Must not know: how a group chooses its members.

use super::{
    Driver,
    feed::{EXACTLY_MAX, Feed, Held, exactly},
    log_id,
};
use crate::{
    gateway::stored,
    group::{Command, Groups},
};
use std::collections::VecDeque;
use weir_core::{
    group::Place,
    ids::{Now, Offset, SubscribeId},
    packet::Unsubscribe,
    session::Session,
};
use weir_log::Record;

/// Most connections have none.
#[derive(Default)]
pub(super) struct Membership {
    /// Shared filters whose groups it is a member of.
    filters: Vec<Box<str>>,
    /// Records that groups gave, to be read and sent.
    given: VecDeque<(SubscribeId, Place)>,
    /// Those that were sent, and whose groups do not know it yet.
    sent: Vec<(SubscribeId, Place)>,
    asked: Option<Asked>,
}

/// Groups that were asked to say when they have come to what the connection appended.
struct Asked {
    ends: Vec<Offset>,
    left: usize,
}

impl Membership {
    fn given(&self) -> Option<(SubscribeId, Place)> {
        self.given.front().copied()
    }

    /// What can be fetched at once: of one partition, ascending.
    fn take_given(&mut self) -> Vec<(SubscribeId, Place)> {
        let mut taken: Vec<(SubscribeId, Place)> = Vec::new();
        while let Some(next) = self.given()
            && taken.last().is_none_or(|(_, (p, at))| *p == next.1.0 && *at < next.1.1)
            && taken.len() < EXACTLY_MAX
        {
            taken.push(next);
            self.given.pop_front();
        }
        taken
    }
}

impl Driver {
    pub(super) fn join_group(&mut self, id: SubscribeId, filter: Box<str>) {
        let Some((sid, credit)) = self.phase.session().map(|s| (s.sid(), s.credit())) else { return };
        let (peer, from) = (self.peer.clone(), self.appended_ends());
        Groups::tell(&self.gateway, &filter, Command::Join { peer, id, sid, credit, from });
        let of = &mut self.groups.get_or_insert_default().filters;
        if !of.contains(&filter) {
            of.push(filter);
        }
    }

    pub(super) fn is_member(&self) -> bool {
        self.groups.as_ref().is_some_and(|groups| !groups.filters.is_empty())
    }

    pub(super) fn leave_groups(&mut self) {
        let Some(groups) = &mut self.groups else { return };
        groups.given.clear();
        for filter in std::mem::take(&mut groups.filters) {
            Groups::tell(&self.gateway, &filter, Command::Gone(self.peer.id));
        }
    }

    pub(super) fn groups_gave(&mut self, given: Vec<(SubscribeId, Place)>) {
        if !given.is_empty() {
            self.groups.get_or_insert_default().given.extend(given);
        }
    }

    /// Tells groups what of theirs was sent.
    pub(super) fn tell_sent(&mut self) {
        let Some(groups) = &mut self.groups else { return };
        let mut sent = std::mem::take(&mut groups.sent);
        let Some(session) = self.phase.session() else { return };
        while let Some((id, _)) = sent.first().copied() {
            let (places, rest): (Vec<_>, Vec<_>) = sent.into_iter().partition(|(of, _)| *of == id);
            sent = rest;
            if let Some(filter) = session.shared_filter(id) {
                let places = places.into_iter().map(|(_, place)| place).collect();
                Groups::tell(&self.gateway, filter, Command::Sent(self.peer.id, places));
            }
        }
    }

    /// Sends what groups gave as far as memory has it in one batch, or has it read. True: something
    /// was sent, go on.
    pub(super) fn next_shared(&mut self, now: Now) -> bool {
        let Some((_, (p, at))) = self.next_given() else { return false };
        let batch = self.gateway.engine.recent(log_id(p), &[weir_log::Offset(at.0)]).pop().flatten();
        if let Some(batch) = batch {
            while let Some((id, (q, at))) = self.next_given()
                && q == p
                && let Some(record) = batch.find(weir_log::Offset(at.0))
            {
                if !self.send_given(now, id, (p, at), Some(record)) {
                    return false;
                }
                self.groups.as_mut().and_then(|groups| groups.given.pop_front());
            }
            return true;
        }
        let taken = self.groups.as_mut().map(|groups| groups.take_given()).unwrap_or_default();
        let given: Vec<_> = taken.into_iter().map(|(id, (_, at))| (id, at)).collect();
        let wanted = exactly(given.iter().map(|(_, at)| *at));
        self.fetch(Feed::Shared(p, given), p, wanted);
        false
    }

    fn next_given(&self) -> Option<(SubscribeId, Place)> {
        self.groups.as_ref()?.given()
    }

    /// True: what groups gave is sent, go on.
    pub(super) fn send_shared(&mut self, now: Now, mut held: Box<Held>) -> bool {
        let Feed::Shared(p, given) = &held.kind else { return false };
        while let Some((id, at)) = given.get(held.index as usize).copied() {
            if at >= held.next {
                // A fetch may end early: what it did not come to is asked for again.
                let rest = given.iter().skip(held.index as usize).rev();
                let groups = self.groups.get_or_insert_default();
                rest.for_each(|(id, at)| groups.given.push_front((*id, (*p, *at))));
                return true;
            }
            let record = held.batch.find(weir_log::Offset(at.0));
            if !self.send_given(now, id, (*p, at), record) {
                self.let_go(held);
                return false;
            }
            held.index += 1;
        }
        true
    }

    /// False: there is no room for it.
    fn send_given(&mut self, now: Now, id: SubscribeId, (p, at): Place, record: Option<Record<'_>>) -> bool {
        let r = record.as_ref().and_then(stored);
        let place = r.as_ref().map(|r| ((p, at), r.topic));
        let bytes = r.as_ref().map_or(0, |r| r.payload.len());
        let deliver = |session: &mut Session, out: &mut Vec<u8>| session.deliver_shared(now, id, p, at, r.as_ref(), out);
        let given = self.give(place, bytes, deliver).is_some();
        if given {
            self.groups.get_or_insert_default().sent.push((id, (p, at)));
        }
        given
    }

    /// A group may be about to give what this connection published to it.
    pub(super) fn waits_for_groups(&mut self, u: &Unsubscribe<'_>) -> bool {
        let ends = self.appended_ends();
        let Some(groups) = &mut self.groups else { return false };
        let shared = || u.filters.iter().map(|(filter, _)| filter).filter(|f| groups.filters.iter().any(|of| **of == **f));
        if shared().next().is_none() {
            return false;
        }
        if groups.asked.as_ref().is_none_or(|asked| asked.ends != ends) {
            let reach = || Command::Reach(self.peer.clone(), ends.clone());
            let left = shared().filter(|filter| Groups::tell(&self.gateway, filter, reach())).count();
            groups.asked = Some(Asked { ends, left });
        }
        let asked = groups.asked.as_ref().is_some_and(|asked| asked.left > 0);
        let on_the_way = !self.stuck && (!groups.given.is_empty() || self.feeding.is_shared());
        if !asked && !on_the_way {
            groups.asked = None;
        }
        asked || on_the_way
    }

    pub(super) fn group_reached(&mut self, at: &[Offset]) {
        let asked = self.groups.as_mut().and_then(|groups| groups.asked.as_mut());
        if let Some(asked) = asked.filter(|asked| asked.ends == at) {
            asked.left = asked.left.saturating_sub(1);
        }
    }
}
