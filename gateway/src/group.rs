//! Groups: one task per shared filter reads for all its members and gives each record to one of them; the member reads the record and sends it.
//!
//! Invariant: as in `weir_core::group`. A subscriber is answered when the group's place is durable; a member that goes is told of by its driver,
//! and what it had is given to the others at once. A group ends, and its value with it, with its last subscriber.
//! Must not know: payloads, packets.

mod describe;

pub(crate) use describe::Description;

use crate::{
    burial::Burials,
    cursors::Counted,
    gateway::{Gateway, stored},
    metrics::Total,
    peer::Peer,
    tail,
};
use dashmap::DashMap;
use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{
        mpsc::{UnboundedReceiver, UnboundedSender, error::SendError, unbounded_channel},
        oneshot,
    },
    time::Instant,
};
use weir_bridge::filters::Filters;
use weir_core::{
    fanout::{Reader, Step},
    group::{Group, Owed, Place},
    ids::{Offset, PartitionId, SubscribeId},
    session::CHECKPOINT_MS,
    topic::{is_system, shared},
};
use weir_log::{AppendError, Asker, Fetch, Fetched, Put, ReadError, Receipt, Wake, Wanted, Watermark};

const FETCH_BYTES: u32 = 256 * 1024;
const FETCH_RECORDS: u32 = 1_024;

pub(crate) enum Command {
    /// Answered with `Mail::shared`.
    /// Per partition, a new group begins at this offset or later.
    Join { peer: Arc<Peer>, id: SubscribeId, sid: u64, credit: usize, from: Vec<Offset> },
    /// The member of this peer is done with it.
    Settle(u64, Place),
    /// The member of this peer was sent these.
    Sent(u64, Vec<Place>),
    /// The connection of a member is gone.
    Gone(u64),
    /// A session is a subscriber no more.
    Unshare(u64),
    /// Answered with what it is.
    Describe(oneshot::Sender<Description>),
    /// Answered with `Mail::groups_reached` when its members were given everything before these offsets, or none of them has room.
    Reach(Arc<Peer>, Vec<Offset>),
}

/// All groups, by `GROUP/FILTER`.
#[derive(Default)]
pub(crate) struct Groups(DashMap<Box<str>, UnboundedSender<Command>>);

/// Name of the group of a shared filter: `$queue/FILTER` and `$share/$queue/FILTER` are the same.
fn name(shared_filter: &str) -> Option<Box<str>> {
    shared(shared_filter).map(|(group, filter)| format!("{group}/{filter}").into())
}

/// The key of a group.
pub(crate) fn key(name: &str) -> Vec<u8> {
    [b"g/", name.as_bytes()].concat()
}

impl Groups {
    /// Begins the groups that were stored, with the sessions that subscribe to them.
    pub fn restore(gateway: &Arc<Gateway>, groups: HashMap<Box<str>, (Group, HashSet<u64>)>) {
        for (name, (group, subscribers)) in groups {
            let tx = Home::spawn(gateway.clone(), name.clone(), Some(group), subscribers);
            gateway.groups.0.insert(name, tx);
        }
    }

    /// There would be more than so many with the group of this filter; false for a filter that is not shared.
    pub fn would_be_beyond(&self, filter: &str, most: usize) -> bool {
        name(filter).is_some_and(|name| self.0.len() >= most && !self.0.contains_key(&name))
    }

    /// Tells the group of a shared filter, which begins with its first `Join`. False: there is none.
    pub fn tell(gateway: &Arc<Gateway>, shared_filter: &str, command: Command) -> bool {
        let Some(name) = name(shared_filter) else { return false };
        let command = match gateway.groups.0.get(&name) {
            // It cannot end meanwhile: it leaves the map under the same lock, and only when nothing was sent.
            Some(group) => match group.send(command) {
                Ok(()) => return true,
                // It panicked.
                Err(SendError(command)) => command,
            },
            None => command,
        };
        if !matches!(command, Command::Join { .. }) {
            return false;
        }
        let mut group =
            gateway.groups.0.entry(name.clone()).or_insert_with(|| Home::spawn(gateway.clone(), name.clone(), None, HashSet::new()));
        if group.is_closed() {
            *group = Home::spawn(gateway.clone(), name, None, HashSet::new());
        }
        group.send(command).is_ok()
    }
}

/// What the sessions of the store subscribe to: `GROUP/FILTER` and session ids.
pub(crate) fn subscribed<'a>(filters: impl Iterator<Item = &'a str>, sid: u64, into: &mut HashMap<Box<str>, HashSet<u64>>) {
    for name in filters.filter_map(name) {
        into.entry(name).or_default().insert(sid);
    }
}

struct Member {
    peer: Arc<Peer>,
    id: SubscribeId,
    sid: u64,
    given: Vec<(SubscribeId, Place)>,
}

/// Offsets that were read and match, and the end of what was examined.
struct Found {
    nth: usize,
    offsets: VecDeque<Offset>,
    next: Offset,
}

enum Reading {
    Idle,
    /// Of the nth partition.
    Fetching(usize),
    Found(Found),
    /// The log could not be read.
    Failed,
}

/// One group at home: its task.
struct Home {
    gateway: Arc<Gateway>,
    name: Box<str>,
    filter: Box<str>,
    select: Arc<Filters>,
    peer: Arc<Peer>,
    who: Arc<dyn Wake>,
    group: Group,
    readers: Vec<Reader>,
    asker: Asker,
    /// Tails that have started; the readers begin when all have.
    started: usize,
    entered: bool,
    /// The store has a value of an earlier life.
    stored: bool,
    subscribers: HashSet<u64>,
    members: HashMap<u64, Member>,
    reading: Reading,
    burials: Burials,
    /// Who waits for the value to be durable, and since which put.
    joining: Vec<(Arc<Peer>, SubscribeId)>,
    /// Who waits until the group has come to these offsets.
    reaching: Vec<(Arc<Peer>, Vec<Offset>)>,
    /// Per partition, up to where the tail has offered.
    offered: Vec<Offset>,
    put: Option<Receipt>,
    /// The value is to be put then.
    dirty: Option<Instant>,
    draining: bool,
    /// Dropped when the value says all that is known.
    checkpoint: Option<UnboundedSender<()>>,
    counted: Counted,
}

/// A group that panicked ends with the connections of its members, which have nothing from it any more: who comes again begins it anew.
impl Drop for Home {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        self.gateway.totals.add(Total::Panics, 1);
        self.count(false);
        tracing::error!(group = &*self.name, "a group panicked; it ends, with the connections of its members, and others go on");
        let waiting = self.joining.iter().map(|(peer, _)| peer).chain(self.reaching.iter().map(|(peer, _)| peer));
        self.members.values().map(|m| &m.peer).chain(waiting).for_each(|peer| peer.tell(|m| m.dismissed = true));
        self.leave();
    }
}

impl Home {
    fn spawn(gateway: Arc<Gateway>, name: Box<str>, stored: Option<Group>, subscribers: HashSet<u64>) -> UnboundedSender<Command> {
        let (tx, rx) = unbounded_channel();
        let home = Self::new(gateway, name, stored, subscribers);
        // One that was stored may have nobody left.
        home.peer.wake();
        // If it panics, its members are told by `Drop`, and all others go on.
        tokio::spawn(home.run(rx));
        tx
    }

    fn new(gateway: Arc<Gateway>, name: Box<str>, stored: Option<Group>, subscribers: HashSet<u64>) -> Self {
        let peer = gateway.peer(None);
        let filter: Box<str> = name.split_once('/').map_or("", |(_, filter)| filter).into();
        let mut home = Self {
            name,
            select: Arc::new(Filters::new([filter.clone()])),
            filter,
            who: peer.clone(),
            peer,
            stored: stored.is_some(),
            group: stored.unwrap_or_default(),
            readers: Vec::new(),
            asker: Asker::default(),
            started: 0,
            entered: false,
            subscribers,
            members: HashMap::new(),
            reading: Reading::Idle,
            burials: Burials::default(),
            joining: Vec::new(),
            reaching: Vec::new(),
            offered: vec![Offset(0); gateway.partitions.len()],
            put: None,
            dirty: None,
            draining: false,
            checkpoint: None,
            counted: Counted::default(),
            gateway,
        };
        home.count(home.stored);
        home
    }

    async fn run(mut self, mut commands: UnboundedReceiver<Command>) {
        loop {
            let due = self.dirty;
            let mut command = tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => Some(command),
                    None => return,
                },
                () = self.peer.rung() => None,
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => None,
            };
            while let Some(next) = command.take().or_else(|| commands.try_recv().ok()) {
                // Whoever joins now begins another: what was published between belongs to neither.
                let is_joined = matches!(next, Command::Join { .. });
                if self.entered && (is_joined && self.has_no_subscriber() || self.is_over()) {
                    self.end();
                    self = Self::new(self.gateway.clone(), self.name.clone(), None, HashSet::new());
                }
                self.command(next);
            }
            if self.is_over() {
                self.end();
                let gateway = self.gateway.clone();
                if gateway.groups.0.remove_if(&self.name, |_, _| commands.is_empty()).is_some() {
                    return;
                }
                self = Self::new(gateway, self.name.clone(), None, HashSet::new());
                continue;
            }
            self.read_mail();
            self.feed();
            let goes_on = !self.draining && !matches!(self.reading, Reading::Failed) && self.group.has_room() && !self.group.owes();
            self.answer_reached(goes_on);
            self.bury();
            self.answer();
            if self.draining && self.members.is_empty() {
                self.dirty = self.dirty.map(|_| Instant::now());
                if self.dirty.is_none() || self.put_value() {
                    return self.leave();
                }
            } else if self.dirty.is_some_and(|at| at <= Instant::now()) {
                self.put_value();
            }
            if self.dirty.is_none_or(|at| at > Instant::now()) {
                self.checkpoint = None;
            }
        }
    }

    /// Nobody subscribes to it, and nobody has anything of it.
    fn is_over(&self) -> bool {
        self.has_no_subscriber() && self.members.is_empty()
    }

    /// Members that have unsubscribed may still acknowledge what they were sent.
    fn has_no_subscriber(&self) -> bool {
        self.subscribers.is_empty() && !self.draining
    }

    fn end(&mut self) {
        self.answer_reached(false);
        if self.entered || self.stored {
            self.delete();
        }
        self.leave();
    }

    fn leave(&mut self) {
        if self.entered {
            self.gateway.tails.iter().for_each(|tail| drop(tail.send(tail::Command::Leave(self.peer.id))));
        }
        self.gateway.peers.remove(&self.peer.id);
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Join { peer, id, sid, credit, from } => {
                self.subscribers.insert(sid);
                self.group.join(peer.id, credit);
                self.joining.push((peer.clone(), id));
                self.members.insert(peer.id, Member { peer, id, sid, given: Vec::new() });
                self.enter(&from);
            }
            Command::Settle(peer, place) => {
                if self.group.settle(peer, place) {
                    self.touch();
                }
                let ended = |m: &Member| !self.subscribers.contains(&m.sid);
                if self.members.get(&peer).is_some_and(ended) && self.group.is_idle(peer) {
                    self.gone(peer);
                }
            }
            Command::Sent(peer, places) => {
                let sent = places.into_iter().filter(|place| self.group.sent(peer, *place)).count();
                if sent > 0 {
                    self.touch();
                }
            }
            Command::Gone(peer) => self.gone(peer),
            Command::Describe(to) => {
                // The request may have ended.
                let _ = to.send(self.describe());
            }
            Command::Reach(peer, to) => {
                for ((nth, tail), to) in self.gateway.tails.iter().enumerate().zip(&to) {
                    if self.offered[nth] < *to {
                        let _ = tail.send(tail::Command::Reach(self.peer.clone(), *to));
                    }
                }
                self.reaching.push((peer, to));
            }
            Command::Unshare(sid) => {
                self.subscribers.remove(&sid);
                let members: Vec<u64> = self.members.iter().filter(|(_, m)| m.sid == sid).map(|(peer, _)| *peer).collect();
                // It was promised an answer, and there will be no group to wait for.
                for (peer, id) in self.joining.extract_if(.., |(peer, _)| members.contains(&peer.id)) {
                    peer.tell(|m| m.shared.push(id));
                }
                // What they were sent they may still acknowledge.
                let idle: Vec<u64> = members.into_iter().filter(|peer| self.group.retire(*peer)).collect();
                idle.into_iter().for_each(|peer| self.gone(peer));
                self.touch();
            }
        }
    }

    fn gone(&mut self, peer: u64) {
        self.joining.retain(|(p, _)| p.id != peer);
        // What was promised is given, whatever becomes of its subject.
        for (peer, to) in self.reaching.extract_if(.., |(p, _)| p.id == peer) {
            peer.tell(|m| m.groups_reached.push(to));
        }
        if self.members.remove(&peer).is_some() {
            self.group.leave(peer);
            self.touch();
        }
    }

    fn touch(&mut self) {
        self.dirty.get_or_insert_with(|| Instant::now() + Duration::from_millis(CHECKPOINT_MS));
    }

    /// Has the tails offer what matches.
    fn enter(&mut self, from: &[Offset]) {
        if std::mem::replace(&mut self.entered, true) {
            return;
        }
        for (nth, tail) in self.gateway.tails.iter().enumerate() {
            let from = from.get(nth).copied().unwrap_or_default();
            let _ = tail.send(tail::Command::Subscribe(self.peer.clone(), SubscribeId(0), self.filter.clone(), from));
        }
    }

    fn is_ready(&self) -> bool {
        self.started >= self.gateway.partitions.len()
    }

    fn read_mail(&mut self) {
        let Some(mail) = self.peer.take() else { return };
        for (_, p, at) in mail.started {
            self.group.begin(p, at);
            self.started += 1;
            if self.is_ready() {
                let next = |p: &PartitionId| self.group.next(*p).unwrap_or_default();
                self.readers = self.gateway.partitions.iter().map(|p| Reader::new(next(p), next(p))).collect();
                // A new group's place is put at once.
                self.dirty = Some(Instant::now());
            }
        }
        for (p, at) in mail.offered {
            if let Some(nth) = self.gateway.partitions.iter().position(|q| *q == p) {
                self.offered[nth] = at.max(self.offered[nth]);
            }
        }
        if let Some(fetched) = mail.fetched {
            self.fetched(fetched);
        }
        if let Some(dying) = mail.dying {
            self.burials.read(&self.gateway, &self.name, dying);
        }
        self.draining |= mail.drain;
        if mail.checkpoint.is_some() {
            self.checkpoint = mail.checkpoint;
            self.pass();
            self.dirty = self.dirty.map(|_| Instant::now());
        }
    }

    /// What the tails have offered to others and not to this group it has passed.
    fn pass(&mut self) {
        for nth in 0..self.readers.len() {
            let offered = self.gateway.passed[nth].offset();
            let reader = &mut self.readers[nth];
            reader.pass(&self.peer.inbox(nth), offered);
            self.group.passed(self.gateway.partitions[nth], reader.next);
            if reader.is_unsaved() {
                self.dirty.get_or_insert_with(Instant::now);
            }
        }
    }

    fn fetched(&mut self, fetched: Result<Fetched, ReadError>) {
        let Reading::Fetching(nth) = self.reading else { return };
        match fetched {
            Ok(f) => {
                if !f.lost.is_empty() {
                    let lost = weir_log::records(&f.lost);
                    tracing::warn!(
                        group = &*self.name,
                        "{lost} are lost for the group: taken by retention before it had come to them, or damaged"
                    );
                    self.gateway.totals.add(Total::Lost, f.lost.end.0 - f.lost.start.0);
                }
                let offsets = f.batch.iter().filter(|r| stored(r).is_some()).map(|r| Offset(r.offset.0)).collect();
                self.reading = Reading::Found(Found { nth, offsets, next: Offset(f.next.0) });
            }
            Err(e) => {
                // Nothing is passed over: its members hear no more from this partition until the gateway starts again.
                tracing::error!(group = &*self.name, "reading the log: {e}");
                self.reading = Reading::Failed;
            }
        }
    }

    /// Gives what there is while members have room.
    fn feed(&mut self) {
        if !self.is_ready() {
            return;
        }
        // Dead letters have no dead letters: who reads them and does not acknowledge is given them for ever.
        let deliveries_max = if self.filter.starts_with("$dead/") { 0 } else { self.gateway.limits.read().max_deliveries };
        while let Some((place, owed)) = self.group.next_owed(deliveries_max) {
            match owed {
                Owed::To(member) => self.give(member, place),
                Owed::Dead { deliveries } => self.burials.push(place, deliveries),
            }
        }
        let mut turn = 0;
        while turn < self.readers.len() && !self.group.owes() && self.group.has_room() {
            turn = if self.read(turn) { 0 } else { turn + 1 };
        }
        for member in self.members.values_mut().filter(|m| !m.given.is_empty()) {
            let given = std::mem::take(&mut member.given);
            member.peer.tell(|m| m.given.extend(given));
        }
    }

    /// Answers those whose offsets were reached. Who is far behind is not waited for, and nobody is when what is given has no taker.
    fn answer_reached(&mut self, goes_on: bool) {
        let due =
            |home: &Self, to: &[Offset]| !goes_on || home.is_ready() && !to.iter().enumerate().any(|(nth, to)| home.is_before(nth, *to));
        let (reached, waiting) = std::mem::take(&mut self.reaching).into_iter().partition(|(_, to)| due(self, to));
        self.reaching = waiting;
        reached.into_iter().for_each(|(peer, to): (Arc<Peer>, _)| peer.tell(|m| m.groups_reached.push(to)));
    }

    /// It will soon be at `to` in the nth partition, and is not yet.
    fn is_before(&self, nth: usize, to: Offset) -> bool {
        let Some(reader) = self.readers.get(nth) else { return false };
        let id = weir_log::PartitionId(self.gateway.partitions[nth].0);
        let is_far = reader.next.0 < self.gateway.engine.recent_start(id).0;
        let has_given = || self.offered[nth] >= to && reader.has_sent_all(&self.peer.inbox(nth));
        reader.next < to && !is_far && !has_given()
    }

    fn give(&mut self, member: u64, place: Place) {
        if let Some(m) = self.members.get_mut(&member) {
            m.given.push((m.id, place));
        }
        self.touch();
    }

    /// False: the record is to be offered again.
    fn offer(&mut self, nth: usize, at: Offset) -> bool {
        let place = (self.gateway.partitions[nth], at);
        let Some(member) = self.group.offer(place) else { return false };
        self.give(member, place);
        self.readers[nth].sent(Offset(at.0 + 1));
        true
    }

    fn passed(&mut self, nth: usize, next: Offset) {
        self.readers[nth].sent(next);
        self.group.passed(self.gateway.partitions[nth], next);
    }

    /// Goes on in the nth partition; true: there was something.
    fn read(&mut self, nth: usize) -> bool {
        match std::mem::replace(&mut self.reading, Reading::Idle) {
            Reading::Found(mut found) if found.nth == nth => {
                while let Some(at) = found.offsets.front().copied() {
                    if !self.offer(nth, at) {
                        self.reading = Reading::Found(found);
                        return false;
                    }
                    found.offsets.pop_front();
                }
                self.passed(nth, found.next);
                self.readers[nth].fetched();
                return true;
            }
            other => self.reading = other,
        }
        let id = weir_log::PartitionId(self.gateway.partitions[nth].0);
        let durable = Offset(self.gateway.engine.span(id).durable.0);
        let recent = Offset(self.gateway.engine.recent_start(id).0);
        if !matches!(self.reading, Reading::Idle) {
            // One fetch at a time; its partition has its turn when it has come.
            return false;
        }
        let step = self.readers[nth].step(&mut self.peer.inbox(nth), durable, recent);
        match step {
            Step::Wait => false,
            Step::Join => {
                let _ = self.gateway.tails[nth].send(tail::Command::Join(self.peer.id));
                false
            }
            Step::Fetch(range) => {
                let wanted =
                    Wanted::Range { from: weir_log::Offset(range.start.0), to: weir_log::Offset(range.end.0), select: self.select.clone() };
                let peer = self.peer.clone();
                let fetch = Fetch { partition: id, wanted, records_max: FETCH_RECORDS, bytes_max: FETCH_BYTES };
                self.reading = Reading::Fetching(nth);
                self.gateway.engine.fetch(&self.asker, fetch, Box::new(move |fetched| peer.tell(|m| m.fetched = Some(fetched))));
                false
            }
            Step::Send => self.offer_entry(nth),
        }
    }

    fn offer_entry(&mut self, nth: usize) -> bool {
        let Some(entry) = self.readers[nth].entry().cloned() else { return false };
        for i in entry.runs.into_iter().flatten() {
            let at = Offset(entry.batch.start.0 + u64::from(i));
            if at >= self.readers[nth].next && !self.offer(nth, at) {
                return false;
            }
        }
        self.passed(nth, entry.batch.end);
        true
    }

    /// Dead letters on their way to the log.
    fn bury(&mut self) {
        while let Some(place) = self.burials.step(&self.gateway, &self.peer, &self.who) {
            self.group.bury(place);
            self.touch();
        }
    }

    /// True: it was taken.
    fn put_value(&mut self) -> bool {
        let (key, value) = (key(&self.name), self.group.value());
        match self.gateway.engine.state().put(&[Put { key: &key, tag: 0, value: Some(&value) }], &self.who) {
            Ok(receipt) => {
                self.readers.iter_mut().for_each(Reader::saved);
                self.count(true);
                (self.put, self.dirty) = (Some(receipt), None);
                true
            }
            Err(AppendError::Full) => false,
            Err(AppendError::Stopping) => true,
            Err(e @ AppendError::TooLarge { .. }) => {
                tracing::error!(
                    group = &*self.name,
                    "the place of a group that the state store does not take: {e}; after a restart its members get again what it has passed"
                );
                self.dirty = None;
                true
            }
            Err(e @ AppendError::Failed(_)) => self.gateway.state_failed(&e),
        }
    }

    /// What its value says of how far it has come; false: it has none.
    fn count(&mut self, is_stored: bool) {
        let reads = is_stored && !is_system(&self.filter);
        self.gateway.count(&mut self.counted, |p| self.group.needs(p).filter(|_| reads));
    }

    fn delete(&mut self) {
        let key = key(&self.name);
        self.count(false);
        let put = Put { key: &key, tag: 0, value: None };
        if let Err(e) = self.gateway.engine.state().put(&[put], &self.who) {
            // The next start deletes it: it has no subscriber then.
            tracing::warn!(group = &*self.name, "deleting the place of a group that has ended: {e}");
        }
    }

    /// Answers those whose group is durable.
    fn answer(&mut self) {
        let durable = match (self.gateway.engine.state().appended(), self.put) {
            (Watermark::Appended(at), Some(put)) => at >= put,
            (Watermark::Failed(f), _) => self.gateway.state_failed(&f),
            // Read from the store, and not changed since.
            (_, None) => self.dirty.is_none_or(|at| at > Instant::now()),
        };
        if self.is_ready() && durable {
            for (peer, id) in self.joining.drain(..) {
                peer.tell(|m| m.shared.push(id));
            }
        }
    }
}

/// A group with this member that panics.
#[cfg(test)]
pub(crate) fn panics(gateway: &Arc<Gateway>, name: &str, member: &Arc<Peer>) {
    let mut home = Home::new(gateway.clone(), name.into(), None, HashSet::new());
    home.members.insert(member.id, Member { peer: member.clone(), id: SubscribeId(0), sid: 1, given: Vec::new() });
    panic!("on purpose");
}
