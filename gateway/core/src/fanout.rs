//! The hand-over between the tail of a partition, which offers what is new, and a connection, which reads at its own speed.
//!
//! | who | when | does |
//! |---|---|---|
//! | tail | a batch matches and the reader is live | `Inbox::offer`; refused: the reader is behind from this batch on |
//! | connection | the head of its entries has left memory | `Reader::fall_behind`; `next` stays |
//! | connection | behind, no entries | fetch `[next, durable)`; once `next` is in memory: ask to join |
//! | tail | join | `Inbox::join`: live from here on, `joined` = where |
//! | connection | `next < joined`, in any mode | fetch `[next, joined)` first, only then entries |
//! | connection | record below `next` | skip: `next` is the one truth |
//! | connection | a subscription begins before `next` | `Reader::go_back`: behind, at the smaller place; what the inbox holds is dropped |
//!
//! Invariant: the records sent are exactly those that match, in offset order, each once per connection. A join may be late, doubled or
//! stale: it only says where offers begin.
//! Must not know: batches (an entry holds the offset of its first record, never the batch: a stuck reader would pin its memory), locks.

use crate::ids::Offset;
use std::{collections::VecDeque, ops::Range};

/// Entries in an inbox: enough for a reader that is woken late, little enough that a stuck one costs nothing.
#[cfg(not(test))]
pub const INBOX_ENTRIES_MAX: usize = 64;
/// Small in tests, so that random steps fill it often.
#[cfg(test)]
pub const INBOX_ENTRIES_MAX: usize = 3;

/// Runs of one entry: beyond them the last one covers what lies between, and the reader looks at it by itself. 32 KiB.
pub const RUNS_MAX: usize = 4_096;
/// Of all entries of an inbox, but for its only one.
const INBOX_RUNS_MAX: usize = 2 * RUNS_MAX;

/// Adds records of the batch to those that may match.
pub fn add_run(runs: &mut Vec<Range<u32>>, records: Range<u32>) {
    let is_full = runs.len() >= RUNS_MAX;
    match runs.last_mut() {
        Some(last) if last.end == records.start || is_full => last.end = records.end,
        _ => runs.push(records),
    }
}

/// Records of one batch that match: offsets, ascending, and what the batch covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Offsets of the batch; the first names it.
    pub batch: Range<Offset>,
    /// Runs of indices into the batch.
    pub runs: Vec<Range<u32>>,
}

/// Entries in order. Most readers have never had any, and hold nothing for them.
#[expect(clippy::box_collection, reason = "8 bytes in each of four, where 32 would be for nothing")]
#[derive(Debug, Default)]
struct Entries(Option<Box<VecDeque<Entry>>>);

impl Entries {
    fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |entries| entries.len())
    }

    fn runs(&self) -> usize {
        self.0.as_ref().map_or(0, |entries| entries.iter().map(|entry| entry.runs.len()).sum())
    }

    fn front(&self) -> Option<&Entry> {
        self.0.as_ref()?.front()
    }

    fn push_back(&mut self, entry: Entry) {
        self.0.get_or_insert_default().push_back(entry);
    }

    /// Takes those that end by `next` from the front.
    fn pop_until(&mut self, next: Offset) {
        if let Some(entries) = &mut self.0 {
            while entries.pop_front_if(|e| e.batch.end <= next).is_some() {}
        }
    }

    fn clear(&mut self) {
        self.0 = None;
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Behind,
    Live,
}

/// What the tail and a connection share about one reader and partition; the shell keeps it under a lock.
#[derive(Debug, Default)]
pub struct Inbox {
    mode: Mode,
    entries: Entries,
    joined: Offset,
    /// Joins so far: tells an answered request from an open one.
    joins: u64,
    /// The batch that found the inbox full: everything that matches before it is in the entries.
    refused: Option<Offset>,
}

impl Inbox {
    /// The tail offers; false: the reader is behind, offer no more until it joins.
    pub fn offer(&mut self, entry: Entry) -> bool {
        if self.mode == Mode::Behind {
            return false;
        }
        let runs = self.entries.runs() + entry.runs.len();
        if self.entries.len() >= INBOX_ENTRIES_MAX || self.entries.len() > 0 && runs > INBOX_RUNS_MAX {
            self.mode = Mode::Behind;
            self.refused = Some(entry.batch.start);
            return false;
        }
        self.entries.push_back(entry);
        debug_assert!(self.entries.len() <= INBOX_ENTRIES_MAX, "the bound of an inbox");
        true
    }

    /// The tail offers everything from `tail` on.
    pub fn join(&mut self, tail: Offset) {
        *self = Self { mode: Mode::Live, entries: Entries::default(), joined: tail, joins: self.joins + 1, refused: None };
    }
}

/// What a connection does next for one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing until somebody wakes it.
    Wait,
    /// Read these offsets from the log; answer with `Reader::fetched`.
    Fetch(Range<Offset>),
    /// Ask the tail to join.
    Join,
    /// Send the first entry; answer with `Reader::sent`, or with `fall_behind` if its batch has left memory.
    Send,
}

/// A connection's place in one partition.
#[derive(Debug, Default)]
pub struct Reader {
    /// Everything before it was sent, or did not match.
    pub next: Offset,
    entries: Entries,
    fetching: bool,
    /// It has asked to join, when `asked` joins had been answered.
    joining: bool,
    /// Means nothing while it has not.
    asked: u64,
    live: bool,
    /// Joins seen.
    joins: u64,
    /// QoS 0 records from here on are sent: they came while the reader kept up, or are asked for.
    pub live_from: Offset,
    /// Records before it are sent whatever their QoS: a subscription asked for them from the past.
    pub kept_until: Offset,
    /// It went back: what the inbox holds is too new.
    went_back: bool,
    /// It has come further since `saved`.
    unsaved: bool,
}

impl Reader {
    #[must_use]
    pub fn new(next: Offset, live_from: Offset) -> Self {
        Self { next, live_from, ..Self::default() }
    }

    /// Decides; takes what the inbox holds. `durable`: the end of what can be read; `recent`: first offset still in memory.
    pub fn step(&mut self, inbox: &mut Inbox, durable: Offset, recent: Offset) -> Step {
        if std::mem::take(&mut self.went_back) {
            inbox.entries.clear();
            (inbox.mode, inbox.refused) = (Mode::Behind, None);
        }
        if self.joining && inbox.joins > self.asked {
            self.joining = false;
        }
        self.note_mode(inbox);
        if self.fetching {
            return Step::Wait;
        }
        if self.next < inbox.joined {
            self.fetching = true;
            return Step::Fetch(self.next..inbox.joined);
        }
        self.entries.pop_until(self.next);
        if self.entry().is_none() {
            std::mem::swap(&mut self.entries, &mut inbox.entries);
            self.entries.pop_until(self.next);
        }
        if self.entry().is_some() {
            return Step::Send;
        }
        if inbox.mode == Mode::Live || self.joining {
            return Step::Wait;
        }
        if let Some(refused) = inbox.refused.take() {
            self.next = self.next.max(refused);
        }
        if self.next < recent && self.next < durable {
            self.fetching = true;
            return Step::Fetch(self.next..durable);
        }
        (self.joining, self.asked) = (true, inbox.joins);
        Step::Join
    }

    fn note_mode(&mut self, inbox: &Inbox) {
        if inbox.joins > self.joins {
            self.joins = inbox.joins;
            self.live = true;
            self.live_from = self.live_from.min(inbox.joined);
        }
        if self.live && inbox.mode == Mode::Behind {
            self.live = false;
            self.live_from = Offset(u64::MAX);
        }
    }

    /// The entry that `Step::Send` is about.
    #[must_use]
    pub fn entry(&self) -> Option<&Entry> {
        self.entries.front()
    }

    /// Everything before `next` of what was fetched or offered was sent or did not match.
    pub fn sent(&mut self, next: Offset) {
        self.unsaved |= next > self.next;
        self.next = self.next.max(next);
    }

    /// Reads from `to` on, again if it has come further, and with all that is of QoS 0 before `until`. What a fetch on its way brings is too new and must not be sent.
    pub fn go_back(&mut self, to: Offset, until: Offset) {
        self.kept_until = self.kept_until.max(until);
        // While it is live, what lies between `next` and the tail was offered for other filters, or to nobody.
        if to < self.next || self.live {
            self.next = self.next.min(to);
            self.entries.clear();
            (self.live, self.went_back) = (false, true);
        }
    }

    /// The fetch that `step` asked for has ended; what it found was sent up to `next`.
    pub fn fetched(&mut self) {
        self.fetching = false;
    }

    /// A message of QoS 0 at this place is not sent: it was published while the reader was behind, and nobody asked for it from the past.
    #[must_use]
    pub fn is_late(&self, offset: Offset) -> bool {
        offset < self.live_from && offset >= self.kept_until
    }

    #[must_use]
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// The tail has offered everything before `offered`: what is not on its way was not for this reader.
    pub fn pass(&mut self, inbox: &Inbox, offered: Offset) {
        let live = self.live && !self.fetching && !self.went_back;
        if !live || inbox.mode != Mode::Live || inbox.joins != self.joins || self.next < inbox.joined {
            return;
        }
        let waiting = [&self.entries, &inbox.entries].into_iter().filter_map(|entries| entries.0.as_ref()).flat_map(|all| all.iter());
        let first = waiting.filter(|entry| entry.batch.end > self.next).map(|entry| entry.batch.start).min();
        self.sent(first.unwrap_or(offered).min(offered));
    }

    /// Where it has come to is on its way to the store.
    pub fn saved(&mut self) {
        self.unsaved = false;
    }

    #[must_use]
    pub fn is_unsaved(&self) -> bool {
        self.unsaved
    }

    /// Everything that the tail has offered was sent.
    #[must_use]
    pub fn has_sent_all(&self, inbox: &Inbox) -> bool {
        let joined = self.live && !self.fetching && inbox.mode == Mode::Live && inbox.joins == self.joins;
        let sent = |entries: &Entries| entries.0.iter().flat_map(|all| all.iter()).all(|entry| entry.batch.end <= self.next);
        joined && sent(&self.entries) && sent(&inbox.entries)
    }

    /// The batch of the first entry has left memory: the log has it still.
    pub fn fall_behind(&mut self, inbox: &mut Inbox) {
        self.entries.clear();
        inbox.entries.clear();
        inbox.mode = Mode::Behind;
        inbox.refused = None;
        self.note_mode(inbox);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Batches of a log in which record n matches if `n % every == 0`, a tail over them, and a reader; driven in any order.
    struct World {
        batches: Vec<Range<u64>>,
        every: u64,
        /// Batches in memory: from this index on.
        memory: usize,
        /// Batches the tail has seen.
        tail: usize,
        inbox: Inbox,
        reader: Reader,
        live: bool,
        join_queue: u32,
        fetch: Option<Range<Offset>>,
        sent: Vec<u64>,
    }

    impl World {
        fn offset(&self, batch: usize) -> Offset {
            Offset(self.batches.get(batch).map_or_else(|| self.batches.last().map_or(0, |b| b.end), |b| b.start))
        }

        fn tail_step(&mut self) {
            if self.tail == self.batches.len() {
                return;
            }
            let b = self.batches[self.tail].clone();
            self.tail += 1;
            let matching: Vec<u32> = b.clone().filter(|n| n % self.every == 0).map(|n| (n - b.start) as u32).collect();
            if self.live && !matching.is_empty() {
                let runs = matching.iter().map(|i| *i..i + 1).collect();
                self.live = self.inbox.offer(Entry { batch: Offset(b.start)..Offset(b.end), runs });
            }
        }

        fn tail_command(&mut self) {
            if self.join_queue > 0 {
                self.join_queue -= 1;
                let at = self.offset(self.tail);
                self.inbox.join(at);
                self.live = true;
            }
        }

        /// `room`: records that may be sent in this step.
        fn connection(&mut self, mut room: usize) {
            let (durable, recent) = (self.offset(self.batches.len()), self.offset(self.memory));
            match self.reader.step(&mut self.inbox, durable, recent) {
                Step::Wait => {}
                Step::Join => self.join_queue += 1,
                Step::Fetch(range) => {
                    assert!(range.start < range.end);
                    self.fetch = Some(range);
                }
                Step::Send => {
                    let entry = self.reader.entry().expect("an entry").clone();
                    if entry.batch.start < recent {
                        self.reader.fall_behind(&mut self.inbox);
                        return;
                    }
                    for i in entry.runs.into_iter().flatten() {
                        let offset = Offset(entry.batch.start.0 + u64::from(i));
                        if offset < self.reader.next {
                            continue;
                        }
                        if room == 0 {
                            return;
                        }
                        room -= 1;
                        self.sent.push(offset.0);
                        self.reader.sent(Offset(offset.0 + 1));
                    }
                    self.reader.sent(entry.batch.end);
                }
            }
        }

        /// A fetch ends, perhaps early.
        fn fetch_ends(&mut self, room: usize) {
            let Some(range) = self.fetch.take() else { return };
            let mut next = range.start.0;
            let mut left = room;
            while next < range.end.0 {
                if next % self.every == 0 {
                    if left == 0 {
                        break;
                    }
                    left -= 1;
                    self.sent.push(next);
                }
                next += 1;
            }
            self.reader.sent(Offset(next));
            self.reader.fetched();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5_000))]

        #[test]
        fn sends_exactly_what_matches_once_and_in_order(
            every in 1u64..4,
            start in 0u64..20,
            back in 0u64..60,
            steps in proptest::collection::vec((0u8..10, 1u64..8), 0..400),
        ) {
            let mut w = World {
                batches: Vec::new(), every, memory: 0, tail: 0, inbox: Inbox::default(),
                reader: Reader::new(Offset(start), Offset(0)), live: false, join_queue: 0, fetch: None, sent: Vec::new(),
            };
            let mut from = start;
            for (what, n) in steps {
                match what {
                    0 | 1 => {
                        let from = w.offset(w.batches.len()).0;
                        w.batches.push(from..from + n);
                    }
                    2 => (0..n).for_each(|_| w.tail_step()),
                    3 => w.tail_command(),
                    // A stale or doubled join.
                    4 => w.join_queue += u32::from(n == 1),
                    5 | 6 => w.connection(n as usize),
                    7 => w.fetch_ends(n as usize),
                    8 if n == 7 => {
                        // A fetch on its way is stale.
                        w.fetch = None;
                        w.reader.fetched();
                        let (was, back) = (w.reader.next.0, w.reader.next.0.saturating_sub(back));
                        let sent: Vec<u64> = (from..was).filter(|n| n % every == 0).collect();
                        prop_assert_eq!(std::mem::take(&mut w.sent), sent);
                        from = back;
                        w.reader.go_back(Offset(back), Offset(was));
                        prop_assert!((back..was).all(|n| !w.reader.is_late(Offset(n))));
                    }
                    9 => w.reader.pass(&w.inbox, w.offset(w.tail)),
                    // Memory lets go of what the tail has seen.
                    _ => w.memory = w.memory.max(w.tail.saturating_sub(n as usize)),
                }
            }
            // Left alone, it catches up: enough rounds for one record each.
            let total = w.offset(w.batches.len()).0;
            for _ in 0..(3 * total + 300) {
                w.tail_step();
                w.tail_command();
                w.connection(1);
                w.fetch_ends(1);
            }
            let want: Vec<u64> = (from..total.max(from)).filter(|n| n % every == 0).collect();
            prop_assert_eq!(w.sent, want);
        }
    }

    #[test]
    fn what_an_inbox_holds_is_bounded_in_bytes() {
        let mut runs = Vec::new();
        (0..10_000).for_each(|n| add_run(&mut runs, n * 2..n * 2 + 1));
        assert_eq!((runs.len(), runs.first(), runs.last()), (RUNS_MAX, Some(&(0..1)), Some(&(8_190..19_999))));
        add_run(&mut runs, 19_999..20_000);
        assert_eq!(runs.last(), Some(&(8_190..20_000)));
        let entry = |n: u64| Entry { batch: Offset(n * 20_000)..Offset(n * 20_000 + 20_000), runs: runs.clone() };
        let mut inbox = Inbox::default();
        inbox.join(Offset(0));
        assert!(inbox.offer(entry(0)) && inbox.offer(entry(1)) && !inbox.offer(entry(2)), "it is behind then");
    }

    #[test]
    fn a_live_reader_passes_what_was_offered_to_others() {
        let (mut inbox, mut reader) = (Inbox::default(), Reader::default());
        let passes = |reader: &mut Reader, inbox: &Inbox, offered: u64| {
            reader.pass(inbox, Offset(offered));
            reader.next.0
        };
        inbox.join(Offset(5));
        assert_eq!(passes(&mut reader, &inbox, 9), 0, "it has not heard that it is live");
        assert_eq!(reader.step(&mut inbox, Offset(9), Offset(0)), Step::Fetch(Offset(0)..Offset(5)));
        assert_eq!(passes(&mut reader, &inbox, 9), 0, "a fetch is on its way");
        reader.sent(Offset(5));
        reader.fetched();
        reader.saved();
        assert_eq!((passes(&mut reader, &inbox, 9), reader.is_unsaved()), (9, true));
        assert!(inbox.offer(Entry { batch: Offset(20)..Offset(30), runs: Vec::new() }));
        assert_eq!(passes(&mut reader, &inbox, 40), 20, "this one waits");
        reader.sent(Offset(24));
        reader.saved();
        assert_eq!((passes(&mut reader, &inbox, 40), reader.is_unsaved()), (24, false), "the rest of the batch may be for it");
        reader.sent(Offset(30));
        assert_eq!(passes(&mut reader, &inbox, 40), 40);
        reader.fall_behind(&mut inbox);
        assert_eq!(passes(&mut reader, &inbox, 50), 40, "nobody offers it anything");
    }

    #[test]
    fn a_full_inbox_makes_the_reader_behind_and_only_a_join_live_again() {
        let (mut inbox, mut reader) = (Inbox::default(), Reader::default());
        let entry = |n: u64| Entry { batch: Offset(n)..Offset(n + 1), runs: Vec::new() };
        assert!(!inbox.offer(entry(0)), "nobody has joined");
        inbox.join(Offset(0));
        let taken = (0..200).filter(|n| inbox.offer(entry(*n))).count();
        assert_eq!(taken, INBOX_ENTRIES_MAX);
        for n in 0..INBOX_ENTRIES_MAX as u64 {
            assert_eq!(reader.step(&mut inbox, Offset(200), Offset(0)), Step::Send);
            reader.sent(Offset(n + 1));
        }
        assert_eq!(reader.step(&mut inbox, Offset(200), Offset(0)), Step::Join, "what was refused is still in memory");
        assert_eq!((reader.is_live(), reader.live_from), (false, Offset(u64::MAX)), "QoS 0 is not sent while behind");
        inbox.join(Offset(200));
        assert_eq!(reader.step(&mut inbox, Offset(200), Offset(0)), Step::Fetch(Offset(INBOX_ENTRIES_MAX as u64)..Offset(200)));
        assert_eq!(reader.live_from, Offset(200));
    }
}
