//! What a session is given to send: first what must be sent again, then retained pages, then what is new, from memory or from the log.
//!
//! Invariant: one thing at a time and one fetch on the way; what did not fit is held and goes on when there is room; a fetch that ended early is
//! asked for the rest.
//! Must not know: packets, receipts, how a session begins and ends.

use super::{Driver, NEVER, OUT_BYTES_HIGH, Phase, log_id};
use crate::{
    checkpoint::{Kept, retained_key},
    gateway::stored,
    tail::Command,
};
use std::{ops::Range, sync::Arc};
use tokio::sync::OwnedSemaphorePermit;
use weir_bridge::filters::Filters;
use weir_core::{
    fanout::Step,
    group::Place,
    ids::{Now, Offset, PartitionId, SubscribeId},
    session::{Cause, Delivery, Event, Paging, Session},
};
use weir_log::{Asker, Batch, Entry, Fetch, Fetched, ReadError, Record, Select, Wanted};

/// One fetch: enough for a socket write, little enough for 10,000 at once.
const FETCH_BYTES: u32 = 64 * 1024;
const FETCH_RECORDS: u32 = 1_024;
/// A large one, as long as few are read at once: to a reader that keeps up with its socket, every fetch costs two thread changes and a wait for the device.
const LARGE_FETCH_BYTES: u32 = 512 * 1024;
const LARGE_FETCH_RECORDS: u32 = 4_096;
/// What is read and finds no room in the window of its client is held, unless it is more than this: then it is read again. A fetch is longer by one record at most.
const HELD_BYTES_MAX: usize = 2 * FETCH_BYTES as usize;
/// Large ones that are on the way or held by their connections: 32 MiB.
pub(crate) const LARGE_FETCHES: usize = 64;
/// A batch that is looked through by the connection itself: others on its thread wait for so long at most, a millisecond.
const RECENT_RECORDS_MAX: usize = 8_192;
/// What it may look at in one turn: others on its thread wait for so long. A session with thousands of filters takes milliseconds for a topic.
const TURN_MS: u64 = 1;
/// Sessions with fewer filters than that are never so slow.
const FILTERS_FEW: usize = 64;
/// Records asked for one by one in one fetch.
pub(super) const EXACTLY_MAX: usize = 64;

/// Records that were read and are being sent.
pub(super) struct Held {
    pub(super) kind: Feed,
    pub(super) batch: Batch,
    /// Next record of the batch.
    pub(super) index: u32,
    /// Everything before it was examined.
    pub(super) next: Offset,
    large_permit: Option<OwnedSemaphorePermit>,
}

#[derive(Clone)]
pub(super) enum Feed {
    /// What was on its way, of this partition.
    Resend(PartitionId, Vec<Offset>),
    Page(Box<Page>),
    /// Of the nth partition.
    Range(usize),
    /// What groups gave of this partition.
    Shared(PartitionId, Vec<(SubscribeId, Offset)>),
}

/// A part of the retained messages that a filter asked for.
#[derive(Clone)]
pub(super) struct Page {
    paging: Paging,
    /// Where it goes on.
    after: Option<Box<str>>,
    /// Offsets, ascending, and topics.
    wanted: Vec<(Offset, Box<str>)>,
    /// Topics whose messages retention took from the log: the state store keeps them.
    kept: Vec<Box<str>>,
}

/// What is large lies elsewhere: an idle connection holds none of it.
pub(super) enum Feeding {
    Idle,
    /// The permit is that of a large fetch.
    Fetching(Feed, Option<OwnedSemaphorePermit>),
    /// A range of the nth partition that was asked for before a filter was added: it is read again when it has come.
    Stale(usize),
    /// The state store is asked for the last of `kept`.
    Kept(Box<Page>),
    /// It has answered with this.
    Found(Box<Page>, Option<Entry>),
    Held(Box<Held>),
    /// There was no room for what was read: it is read again when there is.
    Again(Feed),
}

impl Page {
    /// The first `count` of what is wanted were looked for: what the log does not have is kept in the store.
    fn examined(&mut self, count: usize, found: &Batch) {
        let missing = |at: &Offset| found.find(weir_log::Offset(at.0)).is_none();
        self.kept.extend(self.wanted.drain(..count).filter(|(at, _)| missing(at)).map(|(_, topic)| topic));
    }
}

impl Held {
    fn record(&self) -> Option<Record<'_>> {
        (self.index < self.batch.len() as u32).then(|| self.batch.get(self.index))
    }
}

impl Feeding {
    /// Something that a group gave is read, or waits to be sent.
    pub fn is_shared(&self) -> bool {
        let kind = match self {
            Self::Fetching(kind, _) | Self::Again(kind) => Some(kind),
            Self::Held(held) => Some(&held.kind),
            Self::Idle | Self::Stale(_) | Self::Kept(_) | Self::Found(..) => None,
        };
        kind.is_some_and(|kind| matches!(kind, Feed::Shared(..)))
    }
}

impl Driver {
    /// Gives the session records while there is room: what must be sent again, then retained pages, then what is new.
    pub(super) fn feed(&mut self, now: Now) {
        self.stuck = false;
        let many = self.phase.session().is_some_and(|s| s.filters_len() > FILTERS_FEW);
        self.turn_end = if many { now.monotonic_ms + TURN_MS } else { NEVER };
        loop {
            let Phase::Running(session) = &mut self.phase else { return };
            if !session.may_deliver() {
                return self.let_go_of_large();
            }
            if self.out.len() >= OUT_BYTES_HIGH || self.waits_to_send() {
                self.stuck = true;
                return self.let_go_of_large();
            }
            match std::mem::replace(&mut self.feeding, Feeding::Idle) {
                on_the_way @ (Feeding::Fetching(..) | Feeding::Stale(_) | Feeding::Kept(_)) => {
                    self.feeding = on_the_way;
                    return;
                }
                Feeding::Found(page, entry) => {
                    if !self.send_kept(now, page, entry) {
                        return;
                    }
                }
                Feeding::Held(held) => {
                    if !self.send_held(now, held) {
                        return;
                    }
                }
                Feeding::Again(feed) => {
                    if !self.read_behind(now, feed) {
                        return;
                    }
                }
                Feeding::Idle => {
                    if !self.next_feed(now) {
                        return;
                    }
                }
            }
        }
    }

    /// True: it is sent, go on.
    fn send_held(&mut self, now: Now, mut held: Box<Held>) -> bool {
        if matches!(held.kind, Feed::Resend(..)) && !self.may_send(held.batch.bytes()) {
            self.let_go(held);
            return false;
        }
        let Phase::Running(session) = &mut self.phase else { return false };
        if let Feed::Resend(_, offsets) = &held.kind {
            let records: Vec<_> = held.batch.iter().collect();
            // A fetch may end early: what it did not come to is asked for again.
            let examined = offsets.partition_point(|o| *o < held.next);
            session.resend(now, &offsets[..examined], records.iter().filter_map(stored), self.out.end());
            self.give_room_back(0);
            return true;
        }
        if matches!(held.kind, Feed::Shared(..)) {
            return self.send_shared(now, held);
        }
        if let Feed::Page(page) = &held.kind
            && session.page_next() != Some(&page.paging)
        {
            // Unsubscribed meanwhile, and perhaps subscribed to again.
            return true;
        }
        while let Some(r) = held.record() {
            let sent = match held.kind {
                Feed::Range(nth) => self.send_record(now, nth, &r),
                Feed::Page(_) | Feed::Resend(..) | Feed::Shared(..) => {
                    let bytes = r.value.len();
                    stored(&r).map_or(Some(false), |r| self.give(None, bytes, |session, out| session.deliver_retained(now, &r, out)))
                }
            };
            if sent.is_none() {
                self.let_go(held);
                return false;
            }
            held.index += 1;
        }
        let Phase::Running(session) = &mut self.phase else { return false };
        match held.kind {
            Feed::Range(nth) => {
                session.reader(nth).sent(held.next);
                session.reader(nth).fetched();
            }
            Feed::Page(mut page) => {
                let examined = page.wanted.partition_point(|(at, _)| *at < held.next);
                page.examined(examined, &held.batch);
                return self.go_on_with_page(now, page);
            }
            Feed::Resend(..) | Feed::Shared(..) => {}
        }
        true
    }

    /// Nothing can be sent now: what was read and is large is read again later.
    fn let_go_of_large(&mut self) {
        match std::mem::replace(&mut self.feeding, Feeding::Idle) {
            Feeding::Held(held) => self.let_go(held),
            Feeding::Found(page, Some(entry)) if entry.value.len() > HELD_BYTES_MAX => self.feeding = Feeding::Again(Feed::Page(page)),
            other => self.feeding = other,
        }
    }

    /// It goes on later; what is large is not held meanwhile, whatever it waits for.
    pub(super) fn let_go(&mut self, held: Box<Held>) {
        let is_large = held.batch.bytes() > if held.large_permit.is_some() { 2 * LARGE_FETCH_BYTES as usize } else { HELD_BYTES_MAX };
        if !is_large && !self.waits_to_send() {
            self.feeding = Feeding::Held(held);
            return;
        }
        let at = held.record().map(|r| Offset(r.offset.0));
        self.feeding = match held.kind {
            Feed::Range(nth) => {
                if let Phase::Running(session) = &mut self.phase {
                    session.reader(nth).fetched();
                }
                Feeding::Idle
            }
            Feed::Shared(p, mut given) => {
                given.drain(..held.index as usize);
                Feeding::Again(Feed::Shared(p, given))
            }
            Feed::Page(mut page) => {
                let sent = page.wanted.partition_point(|(of, _)| at.is_some_and(|at| *of < at));
                page.examined(sent, &held.batch);
                Feeding::Again(Feed::Page(page))
            }
            resend @ Feed::Resend(..) => Feeding::Again(resend),
        };
    }

    /// Reads what there is room for now. True: go on.
    fn read_behind(&mut self, now: Now, feed: Feed) -> bool {
        let (p, wanted) = match feed {
            Feed::Page(page) => return self.go_on_with_page(now, page),
            Feed::Range(_) => return true,
            Feed::Shared(p, ref given) => (p, exactly(given.iter().map(|(_, at)| *at))),
            Feed::Resend(p, ref offsets) => (p, exactly(offsets.iter().copied())),
        };
        self.fetch(feed, p, wanted);
        false
    }

    /// Gives the session a record of the nth partition. `None`: there is no room for it; else whether it was sent.
    fn send_record(&mut self, now: Now, nth: usize, r: &Record<'_>) -> Option<bool> {
        let Some(r) = stored(r) else { return Some(false) };
        let place = (self.gateway.partitions[nth], r.offset);
        // For what is not sent no room is waited for.
        let is_sent = r.payload.len() <= OUT_BYTES_HIGH || self.phase.session().is_some_and(|s| s.wants(now, nth, &r));
        let (of, bytes) = if is_sent { (Some((place, r.topic)), r.payload.len()) } else { (None, 0) };
        let mut sent = false;
        loop {
            let mut more = false;
            sent |= self.give(of, bytes, |session, out| {
                let delivery = session.deliver(now, nth, &r, out);
                more = delivery == Delivery::More;
                delivery
            })?;
            if !more {
                return Some(sent);
            }
        }
    }

    /// `None`: there is no room, or its turn is over; else whether something was sent, of which those hear who watch this topic.
    pub(super) fn give(
        &mut self,
        of: Option<(Place, &[u8])>,
        bytes: usize,
        deliver: impl FnOnce(&mut Session, &mut Vec<u8>) -> Delivery,
    ) -> Option<bool> {
        if self.turn_end < NEVER && self.gateway.now().monotonic_ms >= self.turn_end {
            // It goes on when others have had their turns.
            self.turn_over = true;
            self.who.wake();
            return None;
        }
        let before = self.out.len();
        if before >= OUT_BYTES_HIGH || !self.may_send(bytes) {
            self.stuck = true;
            return None;
        }
        let Phase::Running(session) = &mut self.phase else { return None };
        let delivery = deliver(session, self.out.end());
        self.give_room_back(0);
        if delivery == Delivery::NoRoom {
            self.stuck = true;
            return None;
        }
        let sent = self.out.len() > before;
        let lives = &self.gateway.metrics.lives;
        if let Some((at, topic)) = of
            && sent
            && lives.watches(topic)
        {
            let traces = self.traces.get_or_insert_default();
            lives.sent(at, &traces.client(self.client_id.as_deref()));
            traces.follow(at);
        }
        Some(sent)
    }

    /// True: something was sent at once, go on.
    fn next_feed(&mut self, now: Now) -> bool {
        let Phase::Running(session) = &mut self.phase else { return false };
        if let Some((p, offsets)) = session.resend_next(self.out.end()) {
            self.fetch(Feed::Resend(p, offsets.clone()), p, exactly(offsets.into_iter()));
            return false;
        }
        if session.is_resending() {
            // The client has no room for the rest: nothing new overtakes it.
            self.stuck = true;
            return false;
        }
        if session.page_next().is_some() {
            return self.next_page(now);
        }
        // Partitions in rotation, and what groups gave.
        let n = session.partitions() + 1;
        for i in 0..n {
            let nth = (self.turn + i) % n;
            let sent = if nth == n - 1 { self.next_shared(now) } else { self.next_step(now, nth) };
            if sent {
                self.turn = (nth + 1) % n;
                return true;
            }
            if !matches!(self.feeding, Feeding::Idle) || self.waits_to_send() {
                self.turn = (nth + 1) % n;
                return false;
            }
        }
        false
    }

    fn next_page(&mut self, now: Now) -> bool {
        let Phase::Running(session) = &mut self.phase else { return false };
        let Some(paging) = session.page_next().cloned() else { return false };
        let Some(limit) = session.page_limit(&paging) else {
            session.handle(now, Event::PageEnded(None), self.out.end());
            return true;
        };
        let page = self.gateway.retained[paging.partition].read().page(&paging.filter, paging.after.as_deref(), EXACTLY_MAX);
        let mut wanted: Vec<_> = page.found.into_iter().map(|(topic, at)| (at, topic)).filter(|(at, _)| *at < limit).collect();
        wanted.sort_unstable();
        self.go_on_with_page(now, Box::new(Page { paging, after: page.after, wanted, kept: Vec::new() }))
    }

    /// True: this part of the page has ended, go on.
    fn go_on_with_page(&mut self, now: Now, page: Box<Page>) -> bool {
        if !page.wanted.is_empty() {
            self.fetch_page(page);
            return false;
        }
        if let Some(topic) = page.kept.last() {
            let peer = self.peer.clone();
            self.gateway.engine.state().get(&retained_key(topic), Box::new(move |e| peer.tell(|m| m.kept = Some(e))));
            self.feeding = Feeding::Kept(page);
            return false;
        }
        self.event(now, Event::PageEnded(page.after));
        true
    }

    /// The state store has answered.
    pub(super) fn kept(&mut self, now: Now, entry: Result<Option<Entry>, ReadError>) {
        let Feeding::Kept(page) = std::mem::replace(&mut self.feeding, Feeding::Idle) else { return };
        match entry {
            Ok(entry) => self.feeding = Feeding::Found(page, entry),
            Err(e) => {
                tracing::error!("a retained message in the state store: {e}");
                self.event(now, Event::Closed(Cause::LogFailed));
            }
        }
    }

    /// True: go on.
    fn send_kept(&mut self, now: Now, mut page: Box<Page>, entry: Option<Entry>) -> bool {
        let Phase::Running(session) = &mut self.phase else { return false };
        if session.page_next() != Some(&page.paging) {
            // Unsubscribed meanwhile, and perhaps subscribed to again.
            return true;
        }
        // One that is newer, or gone, meanwhile comes as it is published, or does not come.
        let kept = page.kept.last().zip(entry.as_ref()).and_then(|(topic, e)| Kept::parse(topic, &e.value)?.message);
        if let Some(m) = kept
            && self.give(None, m.payload.len(), |session, out| session.deliver_retained(now, &m, out)).is_none()
        {
            self.feeding = if self.waits_to_send() { Feeding::Again(Feed::Page(page)) } else { Feeding::Found(page, entry) };
            return false;
        }
        page.kept.pop();
        self.go_on_with_page(now, page)
    }

    fn fetch_page(&mut self, page: Box<Page>) {
        let Some(p) = self.gateway.partitions.get(page.paging.partition).copied() else { return };
        let wanted = exactly(page.wanted.iter().map(|(at, _)| *at));
        self.fetch(Feed::Page(page), p, wanted);
    }

    /// A filter is about to be added: what is being read was chosen without it.
    pub(super) fn read_again(&mut self) {
        let Phase::Running(session) = &mut self.phase else { return };
        self.feeding = match std::mem::replace(&mut self.feeding, Feeding::Idle) {
            Feeding::Fetching(Feed::Range(nth), _) => Feeding::Stale(nth),
            Feeding::Held(held) => match held.kind {
                Feed::Range(nth) => {
                    session.reader(nth).fetched();
                    Feeding::Idle
                }
                _ => Feeding::Held(held),
            },
            other => other,
        };
    }

    fn next_step(&mut self, now: Now, nth: usize) -> bool {
        let Phase::Running(session) = &mut self.phase else { return false };
        let p = log_id(self.gateway.partitions[nth]);
        let durable = Offset(self.gateway.engine.span(p).durable.0);
        let recent = Offset(self.gateway.engine.recent_start(p).0);
        let step = session.step(nth, &mut self.peer.inbox(nth), durable, recent);
        match step {
            Step::Wait => false,
            Step::Join => {
                let _ = self.gateway.tails[nth].send(Command::Join(self.peer.id));
                false
            }
            Step::Fetch(range) => {
                if let Some(sent) = self.send_recent(now, nth, &range) {
                    return sent;
                }
                let (from, to) = (weir_log::Offset(range.start.0), weir_log::Offset(range.end.0));
                let Phase::Running(session) = &mut self.phase else { return false };
                let times = session.tells_positions();
                let known = self.filters.take().filter(|known| known.wants_times() == times);
                let select = known.unwrap_or_else(|| Arc::new(Filters::new(session.filters()).with_times(times)));
                self.filters = Some(select.clone());
                self.fetch(Feed::Range(nth), self.gateway.partitions[nth], Wanted::Range { from, to, select });
                false
            }
            Step::Send => self.send_entry(now, nth),
        }
    }

    /// Sends what is wanted of the batch in memory that the range begins in, if much of the last one was: no thread change, no copy, and nothing is held. `None`: it is to be fetched.
    fn send_recent(&mut self, now: Now, nth: usize, range: &Range<Offset>) -> Option<bool> {
        let Phase::Running(session) = &mut self.phase else { return None };
        let p = log_id(self.gateway.partitions[nth]);
        let batch = self.gateway.engine.recent(p, &[weir_log::Offset(range.start.0)]).pop().flatten();
        let batch = batch.filter(|batch| self.dense && batch.len() <= RECENT_RECORDS_MAX)?;
        let end = Offset(batch.end().0).min(range.end);
        let from = range.start.0.saturating_sub(batch.first().0) as u32;
        let (mut examined, mut sent) = (0, 0);
        session.reader(nth).fetched();
        for r in (from..batch.len() as u32).map(|i| batch.get(i)).take_while(|r| r.offset.0 < end.0) {
            let Some(was_sent) = self.send_record(now, nth, &r) else { return Some(false) };
            examined += 1;
            sent += u64::from(was_sent);
        }
        let Phase::Running(session) = &mut self.phase else { return None };
        session.reader(nth).sent(end);
        self.dense = is_dense(sent, examined);
        Some(true)
    }

    /// Sends from memory what the tail offered.
    fn send_entry(&mut self, now: Now, nth: usize) -> bool {
        let Phase::Running(session) = &mut self.phase else { return false };
        let Some(entry) = session.reader(nth).entry().cloned() else { return false };
        let p = log_id(self.gateway.partitions[nth]);
        let batch = self.gateway.engine.recent(p, &[weir_log::Offset(entry.batch.start.0)]).pop().flatten();
        let Some(batch) = batch else {
            session.reader(nth).fall_behind(&mut self.peer.inbox(nth));
            return true;
        };
        // What was sent of it before there was no room is passed over run by run.
        let from = session.reader(nth).next.0.saturating_sub(entry.batch.start.0) as u32;
        for i in entry.runs.into_iter().flat_map(|run| run.start.max(from)..run.end) {
            if self.send_record(now, nth, &batch.get(i)).is_none() {
                return false;
            }
        }
        let Phase::Running(session) = &mut self.phase else { return false };
        session.reader(nth).sent(entry.batch.end);
        true
    }

    /// Made when it reads for the first time: an idle connection has none.
    pub(super) fn asker(&mut self) -> Asker {
        (**self.asker.get_or_insert_default()).clone()
    }

    pub(super) fn fetch(&mut self, feed: Feed, partition: PartitionId, wanted: Wanted) {
        let large = matches!(feed, Feed::Range(_)).then(|| self.gateway.large_fetches.clone().try_acquire_owned().ok()).flatten();
        let (records_max, bytes_max) =
            if large.is_some() { (LARGE_FETCH_RECORDS, LARGE_FETCH_BYTES) } else { (FETCH_RECORDS, FETCH_BYTES) };
        self.feeding = Feeding::Fetching(feed, large);
        let (peer, by) = (self.peer.clone(), self.asker());
        let fetch = Fetch { partition: log_id(partition), wanted, records_max, bytes_max };
        self.gateway.engine.fetch(&by, fetch, Box::new(move |fetched| peer.tell(|m| m.fetched = Some(fetched))));
    }

    /// Messages that were on their way and that the log no longer has: the session counts them, the operator hears of them here.
    fn tell_gone<'a>(&self, f: &Fetched, wanted: impl Iterator<Item = &'a Offset>) {
        let gone: Vec<_> = wanted.filter(|at| at.0 < f.next.0 && f.batch.find(weir_log::Offset(at.0)).is_none()).map(|at| at.0).collect();
        if !gone.is_empty() {
            let client = self.name();
            tracing::warn!(client, ?gone, "messages on their way to this client are lost: taken by retention, or damaged");
        }
    }

    pub(super) fn fetched(&mut self, now: Now, fetched: Result<Fetched, ReadError>) {
        let (kind, large) = match std::mem::replace(&mut self.feeding, Feeding::Idle) {
            Feeding::Fetching(kind, large) => (kind, large),
            Feeding::Stale(nth) => {
                if let Some(session) = self.phase.session() {
                    session.reader(nth).fetched();
                }
                return;
            }
            Feeding::Idle | Feeding::Held(_) | Feeding::Kept(_) | Feeding::Found(..) | Feeding::Again(..) => return,
        };
        if let (Ok(f), Feed::Range(_)) = (&fetched, &kind)
            && !f.lost.is_empty()
        {
            let lost = weir_log::records(&f.lost);
            let client = self.name();
            tracing::warn!(client, "{lost} are lost for this client: taken by retention before it had come to them, or damaged",);
            if let Feed::Range(nth) = &kind {
                let range = Offset(f.lost.start.0)..Offset(f.lost.end.0);
                self.event(now, Event::Lost(self.gateway.partitions[*nth], range));
            }
        }
        if let (Ok(f), Feed::Range(nth), Some(session)) = (&fetched, &kind, self.phase.session()) {
            self.dense = is_dense(f.batch.len() as u64, f.next.0.saturating_sub(session.reader(*nth).next.0));
        }
        if let (Ok(f), Feed::Resend(_, offsets)) = (&fetched, &kind) {
            self.tell_gone(f, offsets.iter());
        }
        if let (Ok(f), Feed::Shared(_, given)) = (&fetched, &kind) {
            self.tell_gone(f, given.iter().map(|(_, at)| at));
        }
        match fetched {
            Ok(f) => {
                let large = large.filter(|_| f.batch.bytes() > FETCH_BYTES as usize);
                self.feeding =
                    Feeding::Held(Box::new(Held { kind, batch: f.batch, index: 0, next: Offset(f.next.0), large_permit: large }));
            }
            Err(e) => self.unreadable(now, &e),
        }
    }

    /// Acknowledged records that cannot be read: this reader is told by the end of its connection, the operator here.
    pub(super) fn unreadable(&mut self, now: Now, e: &ReadError) {
        tracing::error!(client = self.name(), "reading the log: {e}");
        self.event(now, Event::Closed(Cause::LogFailed));
    }
}

/// Looking at every record costs less than an index does.
fn is_dense(wanted: u64, examined: u64) -> bool {
    wanted * 8 >= examined
}

pub(super) fn exactly(offsets: impl Iterator<Item = Offset>) -> Wanted {
    Wanted::Exactly(offsets.map(|o| weir_log::Offset(o.0)).collect())
}
