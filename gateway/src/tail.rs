//! The tail of one partition: folds each durable batch into the retained view, then offers it to the live readers whose filters match.
//!
//! Invariant: folds before it offers. Commands are served between batches, so `Started` and `Join` name exact offsets. Each run of equal
//! topics is matched against the trie once, with a cache per topic until a filter changes; each matched reader gets one entry, one lock and one
//! wake per batch.
//! Must not know: sessions, QoS, payloads.

use crate::{gateway::stored, peer::Peer, refusals::short};
use parking_lot::RwLock;
use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::{Notify, mpsc::UnboundedReceiver};
use weir_core::{
    fanout::{Entry, add_run},
    ids::{Offset, PartitionId, SubscribeId},
    message::is_retained,
    retained::Retained,
    trie::Trie,
};
use weir_log::{Batch, Follow, Kind, Wake};

/// Of topics whose readers are remembered, with those: a hundred thousand topics with a reader or two each.
const CACHE_BYTES_MAX: usize = 16 << 20;
/// Of a topic, beside its name and its readers.
const CACHED_BYTES: usize = 96;
/// Nodes of the trie that one topic may visit: about 0.2 ms. Those of honest fleets visit a few dozen.
const NODES_MAX: usize = 4_096;
/// The least weight of a reader's filters for which it is set apart: eight of eight `+` each, or a hundred of one.
const WEIGHT_MIN: u64 = 128;
/// Batches served before others on this thread get a turn.
const BATCHES_PER_TURN: usize = 16;
/// Batches served before a command that waits.
const BATCHES_PER_COMMAND: usize = 64;

pub(crate) enum Command {
    /// Offer what matches; answered with `Mail::started`, at this offset or later.
    Subscribe(Arc<Peer>, SubscribeId, Box<str>, Offset),
    /// Answered with `Mail::offered` when everything before this offset was offered.
    Reach(Arc<Peer>, Offset),
    Unsubscribe(u64, Box<str>),
    /// Offer everything from now on.
    Join(u64),
    Leave(u64),
}

/// Rung by the log.
#[derive(Default)]
pub(crate) struct Bell(Notify);

impl Wake for Bell {
    fn wake(&self) {
        self.0.notify_one();
    }
}

/// How far a tail has come: everything before it is folded, and in the inboxes of those it is for.
#[derive(Default)]
pub(crate) struct Passed(AtomicU64);

impl Passed {
    /// Look into an inbox after this, and not before.
    pub fn offset(&self) -> Offset {
        Offset(self.0.load(Ordering::Acquire))
    }
}

struct Reader {
    peer: Arc<Peer>,
    live: bool,
    filters: Vec<Box<str>>,
    /// Of `weight` of all filters.
    weight: u64,
    /// Its filters would cost others too much: it is offered every message, and matches by itself.
    apart: bool,
    /// Indices of the current batch that match.
    runs: Vec<Range<u32>>,
}

/// By how much a filter can multiply what topics visit: twice for each `+`.
fn weight(filter: &str) -> u64 {
    let plus = filter.split('/').filter(|level| *level == "+").count();
    (1 << plus.min(16)) - 1
}

pub(crate) struct Tail {
    id: PartitionId,
    /// Index of the partition.
    nth: usize,
    following: Box<dyn Follow>,
    bell: Arc<Bell>,
    commands: UnboundedReceiver<Command>,
    retained: Arc<RwLock<Retained>>,
    /// Everything before it was offered.
    position: Offset,
    passed: Arc<Passed>,
    readers: Vec<Option<Reader>>,
    free: Vec<u32>,
    by_peer: HashMap<u64, u32>,
    trie: Trie<u32>,
    cache: HashMap<Box<[u8]>, Arc<[u32]>>,
    cache_bytes: usize,
    /// Readers that match by themselves.
    apart: Vec<u32>,
    touched: Vec<u32>,
    /// Commands that wait for an offset: what their connections appended before them is not folded yet.
    parked: Vec<(Offset, Command)>,
    /// Batches so far.
    batches: usize,
}

impl Tail {
    pub fn new(
        id: PartitionId,
        nth: usize,
        following: Box<dyn Follow>,
        bell: Arc<Bell>,
        commands: UnboundedReceiver<Command>,
        (retained, passed): (Arc<RwLock<Retained>>, Arc<Passed>),
    ) -> Self {
        let position = Offset(following.start().0);
        passed.0.store(position.0, Ordering::Release);
        Self {
            id,
            nth,
            following,
            bell,
            commands,
            retained,
            position,
            passed,
            readers: Vec::new(),
            free: Vec::new(),
            by_peer: HashMap::new(),
            trie: Trie::default(),
            cache: HashMap::new(),
            cache_bytes: 0,
            apart: Vec::new(),
            touched: Vec::new(),
            parked: Vec::new(),
            batches: 0,
        }
    }

    /// Until nobody can send it a command any more.
    pub async fn run(mut self) {
        loop {
            let mut command = tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(command) => Some(command),
                    None => return,
                },
                () = self.bell.0.notified() => None,
            };
            // What was acknowledged before a command was given is folded before it is served: who subscribes after the PUBACK of a retained
            // message gets it as retained. But commands do not wait for ever.
            let mut left = BATCHES_PER_COMMAND;
            while left > 0 {
                let Some(batch) = self.following.poll() else { break };
                self.fold(&batch);
                self.offer(&batch);
                self.passed.0.store(self.position.0, Ordering::Release);
                self.serve_parked();
                command = command.or_else(|| self.commands.try_recv().ok());
                left -= usize::from(command.is_some());
                if self.turn() {
                    tokio::task::yield_now().await;
                }
            }
            if left == 0 {
                // There may be more.
                self.bell.wake();
            }
            if let Some(command) = command {
                self.serve(command);
            }
        }
    }

    /// Is it time to let others on this thread run?
    fn turn(&mut self) -> bool {
        self.batches += 1;
        self.batches.is_multiple_of(BATCHES_PER_TURN)
    }

    /// Serves those whose offset has been reached.
    fn serve_parked(&mut self) {
        if self.parked.is_empty() {
            return;
        }
        let (due, parked): (Vec<_>, Vec<_>) = std::mem::take(&mut self.parked).into_iter().partition(|(at, _)| *at <= self.position);
        self.parked = parked;
        due.into_iter().for_each(|(_, command)| self.serve(command));
    }

    fn serve(&mut self, command: Command) {
        match command {
            Command::Subscribe(.., at) | Command::Reach(_, at) if at > self.position => self.parked.push((at, command)),
            Command::Reach(peer, at) => peer.tell(|m| m.offered.push((self.id, at))),
            Command::Subscribe(peer, id, filter, _) => {
                let slot = self.slot(&peer);
                let reader = self.readers[slot as usize].as_ref().filter(|r| r.apart);
                let new = match reader {
                    Some(apart) => !apart.filters.contains(&filter),
                    None => self.trie.insert(&filter, slot),
                };
                if new {
                    self.forget();
                    if let Some(reader) = &mut self.readers[slot as usize] {
                        reader.weight += weight(&filter);
                        reader.filters.push(filter);
                    }
                }
                let (partition, at) = (self.id, self.position);
                peer.tell(|m| m.started.push((id, partition, at)));
            }
            Command::Unsubscribe(peer, filter) => {
                self.end_parked(|p, parked| p.id == peer && *parked == *filter);
                let Some(slot) = self.by_peer.get(&peer).copied() else { return };
                self.trie.remove(&filter, &slot);
                self.forget();
                if let Some(reader) = &mut self.readers[slot as usize] {
                    let had = reader.filters.len();
                    reader.filters.retain(|f| *f != filter);
                    if reader.filters.len() < had {
                        reader.weight -= weight(&filter);
                    }
                }
            }
            Command::Join(peer) => {
                let reader = self.by_peer.get(&peer).and_then(|slot| self.readers[*slot as usize].as_mut());
                if let Some(reader) = reader {
                    reader.peer.inbox(self.nth).join(self.position);
                    reader.live = true;
                    reader.peer.wake();
                }
            }
            Command::Leave(peer) => {
                self.end_parked(|p, _| p.id == peer);
                self.parked.retain(|(_, command)| !matches!(command, Command::Reach(p, _) if p.id == peer));
                let Some(slot) = self.by_peer.remove(&peer) else { return };
                if let Some(reader) = self.readers[slot as usize].take() {
                    for filter in &reader.filters {
                        self.trie.remove(filter, &slot);
                    }
                    self.forget();
                    self.apart.retain(|apart| *apart != slot);
                    self.free.push(slot);
                }
            }
        }
    }

    /// Answers parked commands of a peer whose subject has gone: what was promised is given.
    fn end_parked(&mut self, gone: impl Fn(&Peer, &str) -> bool) {
        let (id, position) = (self.id, self.position);
        self.parked.retain(|(at, command)| match command {
            Command::Subscribe(peer, subscribe_id, filter, _) if gone(peer, filter) => {
                peer.tell(|m| m.started.push((*subscribe_id, id, position.max(*at))));
                false
            }
            _ => true,
        });
    }

    fn slot(&mut self, peer: &Arc<Peer>) -> u32 {
        if let Some(slot) = self.by_peer.get(&peer.id) {
            return *slot;
        }
        let reader = Some(Reader { peer: peer.clone(), live: false, filters: Vec::new(), weight: 0, apart: false, runs: Vec::new() });
        let slot = match self.free.pop() {
            Some(slot) => {
                self.readers[slot as usize] = reader;
                slot
            }
            None => {
                self.readers.push(reader);
                self.readers.len() as u32 - 1
            }
        };
        self.by_peer.insert(peer.id, slot);
        slot
    }

    fn fold(&self, batch: &Batch) {
        let mut view = None;
        for run in batch.runs().filter(|run| run.kind == Kind::Message && is_retained(run.flags)) {
            for m in run.records.filter_map(|i| stored(&batch.get(i))) {
                view.get_or_insert_with(|| self.retained.write()).apply(&m);
            }
        }
    }

    fn offer(&mut self, batch: &Batch) {
        let first = batch.first();
        let span = Offset(first.0)..Offset(batch.end().0);
        self.position = span.end;
        if self.by_peer.is_empty() {
            return;
        }
        let (mut topic, mut readers): (&[u8], Arc<[u32]>) = (&[], Arc::new([]));
        for (nth, run) in batch.runs().filter(|run| run.kind == Kind::Message).enumerate() {
            if nth == 0 || run.key != topic {
                topic = run.key;
                readers = self.matching(topic);
            }
            let records = run.records;
            for slot in readers.iter() {
                let Some(reader) = &mut self.readers[*slot as usize] else { continue };
                if !reader.live {
                    continue;
                }
                if reader.runs.is_empty() {
                    self.touched.push(*slot);
                }
                add_run(&mut reader.runs, records.clone());
            }
        }
        self.offer_all(batch);
        for slot in self.touched.drain(..) {
            let Some(reader) = &mut self.readers[slot as usize] else { continue };
            let entry = Entry { batch: span.clone(), runs: std::mem::take(&mut reader.runs) };
            reader.live = reader.peer.inbox(self.nth).offer(entry);
            reader.peer.wake();
        }
    }

    /// Those who match by themselves are offered every message.
    fn offer_all(&mut self, batch: &Batch) {
        if self.apart.is_empty() {
            return;
        }
        let mut all: Vec<Range<u32>> = Vec::new();
        for run in batch.runs().filter(|run| run.kind == Kind::Message) {
            add_run(&mut all, run.records);
        }
        for slot in &self.apart {
            if let Some(reader) = self.readers[*slot as usize].as_mut().filter(|r| r.live && !all.is_empty()) {
                // A reader that was set apart in this batch may be touched already.
                if reader.runs.is_empty() {
                    self.touched.push(*slot);
                }
                reader.runs.clone_from(&all);
            }
        }
    }

    /// Sets those readers apart whose filters multiply most. False: there are none that would help.
    fn set_apart(&mut self) -> bool {
        let others = |r: &&Reader| !r.apart && r.weight >= WEIGHT_MIN;
        let Some(most) = self.readers.iter().flatten().filter(others).map(|r| r.weight).max() else { return false };
        let least = (most / 4).max(WEIGHT_MIN);
        let mut gone: Vec<(u32, Vec<Box<str>>)> = Vec::new();
        for (slot, reader) in self.readers.iter_mut().enumerate() {
            let Some(reader) = reader.as_mut().filter(|r| !r.apart && r.weight >= least) else { continue };
            reader.apart = true;
            let client = reader.peer.identity().map_or("?", |i| short(&i.client_id));
            let filters = reader.filters.len();
            tracing::warn!(client, filters, "its filters overlap so much that they would hold up others: it matches by itself from now on");
            gone.push((slot as u32, reader.filters.clone()));
        }
        self.apart.extend(gone.iter().map(|(slot, _)| *slot));
        self.forget();
        let many = gone.iter().map(|(_, filters)| filters.len()).sum::<usize>();
        if many * 2 < self.trie.len() {
            gone.iter().for_each(|(slot, filters)| filters.iter().for_each(|filter| _ = self.trie.remove(filter, slot)));
            return true;
        }
        // What is left is less.
        let old = std::mem::take(&mut self.trie);
        for (slot, reader) in self.readers.iter().enumerate().filter_map(|(slot, r)| Some((slot, r.as_ref()?))) {
            if !reader.apart {
                reader.filters.iter().for_each(|filter| _ = self.trie.insert(filter, slot as u32));
            }
        }
        // It takes a while to take it apart.
        tokio::task::spawn_blocking(move || drop(old));
        true
    }

    fn find(&self, topic: &str, nodes_max: usize) -> Option<Vec<u32>> {
        let mut found = Vec::new();
        self.trie.find_within(topic, nodes_max, &mut |slot| found.push(*slot)).then_some(found)
    }

    /// Readers of a topic, each once.
    fn matching(&mut self, topic: &[u8]) -> Arc<[u32]> {
        if let Some(found) = self.cache.get(topic) {
            return found.clone();
        }
        let mut found = Vec::new();
        if let Ok(topic) = std::str::from_utf8(topic) {
            found = loop {
                if let Some(found) = self.find(topic, NODES_MAX) {
                    break found;
                }
                if !self.set_apart() {
                    break self.find(topic, usize::MAX).unwrap_or_default();
                }
            };
        }
        found.sort_unstable();
        found.dedup();
        let found: Arc<[u32]> = found.into();
        let bytes = topic.len() + size_of_val(&*found) + CACHED_BYTES;
        if self.cache_bytes + bytes > CACHE_BYTES_MAX {
            self.forget();
        }
        self.cache_bytes += bytes;
        self.cache.insert(topic.into(), found.clone());
        found
    }

    /// Readers of topics are looked for again.
    fn forget(&mut self) {
        self.cache.clear();
        self.cache_bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_core::fanout;
    use weir_log::{Engine, LogEngine, Nobody, Options, Records, storage::sim::SimStorage};

    /// Filters of twelve levels, each `a` or `+`: more than one topic may visit.
    fn overlapping() -> impl Iterator<Item = Box<str>> {
        let level = |bits: u32, n: u32| if bits >> n & 1 == 0 { "a/" } else { "+/" };
        (0..1u32 << 12).map(move |bits| ((0..12).map(|n| level(bits, n)).collect::<String>() + "#").into())
    }

    /// A reader that is set apart in the middle of a batch is offered each of its records once.
    #[tokio::test]
    async fn a_reader_that_is_set_apart_is_offered_everything_once() {
        let disks = [1, 2].map(|seed| Arc::new(SimStorage::new(seed)));
        let disk = |path: &std::path::Path| disks[usize::from(!path.ends_with("state"))].clone();
        let options = Options::new("sim", &[("default", 1)]);
        let engine = LogEngine::open_stepped(&options, &disk, &mut |_, _, _| Vec::new()).expect("opens");
        let (bell, id) = (Arc::new(Bell::default()), weir_log::PartitionId(0));
        let (_tx, commands) = tokio::sync::mpsc::unbounded_channel();
        let shared = (Arc::default(), Arc::default());
        let mut tail = Tail::new(PartitionId(0), 0, engine.follow(id, bell.clone()), bell, commands, shared);
        let (wide, plain) = (Arc::new(Peer::new(1, 1, None)), Arc::new(Peer::new(2, 1, None)));
        let subscribe = |tail: &mut Tail, peer: &Arc<Peer>, filter: Box<str>| {
            tail.serve(Command::Subscribe(peer.clone(), SubscribeId(0), filter, Offset(0)));
        };
        subscribe(&mut tail, &wide, "first".into());
        overlapping().for_each(|filter| subscribe(&mut tail, &wide, filter));
        subscribe(&mut tail, &plain, "first".into());
        [&wide, &plain].iter().for_each(|peer| tail.serve(Command::Join(peer.id)));
        let mut records = Records::default();
        let deep = "a/".repeat(13);
        for topic in ["first", &deep, "other"] {
            records.push(Kind::Message, 0, &[0; 8], topic.as_bytes(), b"", b"x").expect("a record");
        }
        let nobody: Arc<dyn Wake> = Arc::new(Nobody);
        engine.append(id, &mut records, &nobody).expect("taken");
        while engine.step_partition(0) {}
        let batch = tail.following.poll().expect("a batch");
        tail.offer(&batch);
        let offered = |peer: &Peer| {
            let (mut reader, mut entries) = (fanout::Reader::new(Offset(0), Offset(0)), Vec::new());
            while reader.step(&mut peer.inbox(0), Offset(3), Offset(0)) == fanout::Step::Send {
                let entry = reader.entry().expect("an entry").clone();
                reader.sent(entry.batch.end);
                entries.push(entry.runs);
            }
            entries
        };
        assert_eq!(tail.apart.len(), 1);
        let run = |records: Range<u32>| vec![Vec::from_iter([records])];
        assert_eq!(offered(&wide), run(0..3), "it matches by itself from the beginning of the batch");
        assert_eq!(offered(&plain), run(0..1));
        // The same filter again counts once.
        let before = tail.readers.iter().flatten().map(|r| r.weight).max();
        subscribe(&mut tail, &wide, "first".into());
        overlapping().take(1).for_each(|filter| subscribe(&mut tail, &wide, filter));
        assert_eq!(tail.readers.iter().flatten().map(|r| r.weight).max(), before);
    }
}
