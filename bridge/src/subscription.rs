//! One subscription of one browser: a cursor for each partition, over what all share while it keeps up and over the log where it does not.
//!
//! Invariant: without `latest_only` every record from the first on is told once, in order, or its range is told as lost; with it the newest of each topic, and how many that thinned.
//! What waits for a slow browser is a position, never a record.
//! Must not know: JSON beyond frames, sockets.

use crate::{
    ask::{Reached, Start, Wish},
    channel::{self, Channel, Next},
    feed::{Feed, READ_BYTES, exactly, fetch, seek},
    filters::Filters,
    frame::{self, Frame, Head, Lost},
    outlet::{Gone, Outlet, Turn},
    record::json,
    snapshot::{Pages, SHARED_BYTES, Snapshot},
    steps,
    tail::Tail,
};
use std::{
    collections::HashMap,
    fmt::Write,
    ops::Range,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::sync::Notify;
use weir_core::{
    session::begin::Begin,
    topic::{SYSTEM_STREAM, is_system},
};
use weir_log::{Asker, Fetch, Offset, ReadError, Seek, Select, Wanted};

/// Records of one message that is read from the log.
const READ_RECORDS: u32 = 1_000;
/// A conflated subscription that goes on is told every record if it missed at most so many, counted in offsets.
const REPLAY_MAX: u64 = 10_000;
/// Whoever was told nothing for so long is told its position, so that it need not go on from an old one.
const POSITION_EVERY: Duration = Duration::from_secs(10);

/// Why a subscription ends.
#[derive(Debug)]
pub enum End {
    /// Its browser.
    Gone,
    /// It cannot be fulfilled.
    Failed(String),
}

impl From<Gone> for End {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

impl From<ReadError> for End {
    fn from(e: ReadError) -> Self {
        Self::Failed(format!("the log cannot be read: {e}"))
    }
}

/// A place in one partition.
struct Cursor {
    tail: Arc<Tail>,
    head: Head,
    name: String,
    /// While it wants what comes.
    channel: Option<Arc<Channel>>,
    next: Offset,
    /// Only what lies before.
    until: Option<Offset>,
    /// Every record up to here is read from the log, whatever its channel leaves out.
    replay: Offset,
    /// The position that was told last.
    told: Offset,
    /// Records of a topic that a newer one stood for; below 0 while a step is told in parts.
    thinned: i64,
}

impl Cursor {
    /// So many more records than were told are accounted for: how many of them to tell as thinned now.
    fn thinned(&mut self, more: i64) -> u64 {
        self.thinned += more;
        let now = self.thinned.max(0);
        self.thinned -= now;
        now as u64
    }
}

struct Subscription {
    feed: Arc<Feed>,
    wish: Wish,
    filters: Arc<Filters>,
    outlet: Outlet,
    /// While it makes what it says.
    turn: Option<Turn>,
    by: Asker,
    bell: Arc<Notify>,
    cursors: Vec<Cursor>,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        for channel in self.cursors.iter().filter_map(|c| c.channel.as_ref()) {
            channel.leave(&self.bell);
        }
    }
}

/// Until it ends by itself, or its browser does.
pub async fn run(feed: Arc<Feed>, wish: Wish, outlet: Outlet, by: Asker) -> Result<(), Gone> {
    let (id, out) = (wish.id, outlet.clone());
    let _watch = wish.trace.then(|| feed.watched.watch(&wish.filter)).flatten();
    let filters = Arc::new(Filters::new([wish.filter.as_str().into()]).with_times(true));
    let mut s = Subscription { feed, wish, filters, outlet, turn: None, by, bell: Arc::default(), cursors: Vec::new() };
    let served = s.serve().await;
    // What it says last has a turn of its own.
    drop(s);
    match served {
        Ok(()) => out.say(frame::end(id), None).await,
        Err(End::Failed(words)) => out.say(frame::error(Some(id), &words), None).await,
        Err(End::Gone) => Err(Gone),
    }
}

impl Subscription {
    async fn serve(&mut self) -> Result<(), End> {
        let system = is_system(&self.wish.filter);
        let tails: Vec<_> = self.feed.tails.iter().filter(|t| (t.partition.stream == SYSTEM_STREAM) == system).cloned().collect();
        for tail in tails {
            self.begin(tail).await?;
        }
        if let Start::Steps { step, field, .. } = self.wish.start.clone() {
            for nth in 0..self.cursors.len() {
                self.take_turn().await;
                self.steps(nth, step, field.as_deref()).await?;
                self.yield_turn();
            }
            return Ok(());
        }
        loop {
            let busy = self.drain().await?;
            if self.cursors.iter().all(|c| c.channel.is_none() && c.until.is_none_or(|until| c.next >= until)) {
                return Ok(());
            }
            match self.wish.pace.filter(|_| busy && !self.wish.latest_only) {
                Some(pace) => tokio::time::sleep(pace).await,
                None if busy => {}
                None if tokio::time::timeout(POSITION_EVERY, self.bell.notified()).await.is_err() => self.tell_positions().await?,
                None => {}
            }
        }
    }

    /// Tells all that there is now, however many messages it takes: with a pause after each, whoever gets more than one in that time would fall behind without bound. False: there was nothing.
    async fn drain(&mut self) -> Result<bool, End> {
        let mut any = false;
        loop {
            let mut busy = false;
            for nth in 0..self.cursors.len() {
                busy |= self.step(nth).await?;
            }
            if !busy {
                return Ok(any);
            }
            any = true;
            tokio::task::yield_now().await;
        }
    }

    /// Of all partitions, for who comes again.
    fn reached(&self) -> Option<String> {
        if !self.outlet.wants_positions() {
            return None;
        }
        let mut text = String::new();
        for c in &self.cursors {
            let comma = if text.is_empty() { "" } else { "," };
            let _never_fails = write!(text, "{comma}{}:{}:{}", c.name, c.head.epoch, c.next.0);
        }
        Some(text)
    }

    async fn say(&mut self, text: tokio_tungstenite::tungstenite::Utf8Bytes) -> Result<(), End> {
        self.feed.counts.bytes.fetch_add(text.len() as u64, Ordering::Relaxed);
        let reached = self.reached();
        match &mut self.turn {
            Some(turn) => turn.say(text, reached).await?,
            None => self.outlet.say(text, reached).await?,
        }
        Ok(())
    }

    /// Others say nothing until `yield_turn`.
    async fn take_turn(&mut self) {
        if self.turn.is_none() {
            self.turn = Some(self.outlet.turn().await);
        }
    }

    fn yield_turn(&mut self) {
        self.turn = None;
    }

    async fn tell_positions(&mut self) -> Result<(), End> {
        for nth in 0..self.cursors.len() {
            let Some(c) = self.cursors.get_mut(nth).filter(|c| c.next > c.told) else { continue };
            c.told = c.next;
            let text = frame::position(&c.head, c.next);
            self.say(text).await?;
        }
        Ok(())
    }

    /// Makes a cursor, and tells where it begins.
    async fn begin(&mut self, tail: Arc<Tail>) -> Result<(), End> {
        let (partition, engine) = (tail.partition.clone(), self.feed.engine.clone());
        let span = engine.span(partition.id);
        let wants_more = self.wish.until.is_none() && !matches!(self.wish.start, Start::At(_) | Start::Steps { .. });
        let (mut channel, mut end) = (None, span.durable);
        if wants_more {
            let conflate = self.wish.pace.filter(|_| self.wish.latest_only);
            let wish = channel::Wish { filter: self.wish.filter.as_str().into(), conflate };
            let Some((joined, position)) = tail.join(&wish, &self.bell) else {
                return Err(End::Failed("too many different subscriptions in this gateway at once".into()));
            };
            (channel, end) = (Some(joined), position);
        }
        let (head, name) = (Head::new(self.wish.id, &partition), format!("{}/{}", partition.stream, partition.number));
        // From here on the channel is left when this is dropped.
        self.cursors.push(Cursor { tail, head, name, channel, next: end, until: None, replay: Offset(0), told: end, thinned: 0 });
        let nth = self.cursors.len() - 1;
        let until = match self.wish.until {
            Some(Some(until)) => Some(self.find(nth, until, Offset(u64::MAX)).await?),
            Some(None) => Some(end),
            None => matches!(self.wish.start, Start::Steps { .. }).then_some(end),
        };
        let (mut recovered, mut lost) = (None, None);
        // Who begins now begins with the next frame, which may hold what was looked at already.
        let now = self.cursors.get(nth).and_then(|c| c.channel.as_ref()).map_or(end, |c| c.said().min(end));
        let mut next = now;
        let mut snapshot = false;
        match self.wish.start.clone() {
            Start::Now { snapshot: true } => snapshot = true,
            // What is on disk has come already, even if nobody has looked at it here.
            Start::Now { snapshot: false } if !self.wish.latest_only => next = end.max(span.durable),
            Start::Now { .. } => {}
            Start::At(at) => (next, snapshot) = (self.find(nth, at, Offset(u64::MAX)).await?, true),
            Start::From(from) | Start::Steps { from, .. } => next = self.find(nth, from, until.unwrap_or(Offset(u64::MAX))).await?,
            Start::Resume(reached) => match self.resume(nth, &reached, span.start, end) {
                Resumed::From(at, range) => (next, recovered, lost) = (at, Some(range.is_none()), range),
                Resumed::Anew(is_complete) => (snapshot, recovered) = (true, Some(is_complete)),
            },
        }
        let Some(c) = self.cursors.get_mut(nth) else { return Ok(()) };
        (c.next, c.told, c.until, c.replay) =
            (next, next, until, if snapshot { Offset(0) } else { c.channel.as_ref().map_or(end, |c| c.said()) });
        self.take_turn().await;
        // Taken before it is said where it stands: nothing may come between.
        let taken = if snapshot { Some(self.take_snapshot(nth).await?) } else { None };
        let next = taken.as_ref().map_or(next, |(snapshot, _)| snapshot.position);
        let Some(c) = self.cursors.get(nth) else { return Ok(()) };
        let end = until.unwrap_or(if matches!(self.wish.start, Start::At(_)) { next } else { end.max(next) });
        let text = frame::start(&c.head, next..end, snapshot, recovered, lost.as_ref());
        self.say(text).await?;
        if let Some((snapshot, pages)) = taken {
            self.tell_snapshot(nth, &snapshot, pages).await?;
        }
        self.yield_turn();
        Ok(())
    }

    /// Where one goes on that was here before.
    fn resume(&self, nth: usize, reached: &HashMap<String, Reached>, start: Offset, end: Offset) -> Resumed {
        let known = self.cursors.get(nth).and_then(|c| Some((reached.get(&c.name)?, c.head.epoch.as_str())));
        // A partition that is new to it: nothing is missed with a snapshot.
        let Some((reached, epoch)) = known else { return Resumed::Anew(true) };
        let at = Offset(reached.position);
        if reached.epoch != epoch || at > end {
            return Resumed::Anew(false);
        }
        if at < start {
            return Resumed::From(start, Some(Lost { from: at.0, to: start.0, reason: "retention" }));
        }
        if self.wish.latest_only && end.0 - at.0 > REPLAY_MAX {
            return Resumed::Anew(true);
        }
        Resumed::From(at, None)
    }

    async fn find(&self, nth: usize, begin: Begin, below: Offset) -> Result<Offset, End> {
        let Some(c) = self.cursors.get(nth) else { return Ok(Offset(0)) };
        let (engine, p) = (&*self.feed.engine, c.tail.partition.id);
        let span = engine.span(p);
        Ok(match begin {
            Begin::Earliest => span.start,
            Begin::Offset(at) => Offset(at.0).min(span.durable),
            Begin::Time(ms) => seek(engine, &self.by, p, Seek::Time(ms)).await?,
            Begin::Last(count) => {
                let select: Arc<dyn Select> = self.filters.clone();
                seek(engine, &self.by, p, Seek::Last { count, select, below }).await?
            }
        })
    }

    /// Is there something to say? It costs nothing to ask, and a turn may be long in coming.
    fn has_news(&mut self, nth: usize) -> bool {
        let Some(c) = self.cursors.get_mut(nth) else { return false };
        let Some(channel) = &c.channel else { return c.until.is_some_and(|until| c.next < until) };
        if self.wish.latest_only && c.next < c.replay {
            return true;
        }
        match channel.next(c.next) {
            Next::Nothing(at) => {
                c.next = at;
                false
            }
            _ => true,
        }
    }

    /// What comes next, when it has its turn; false: there is nothing now.
    async fn step(&mut self, nth: usize) -> Result<bool, End> {
        if !self.has_news(nth) {
            return Ok(false);
        }
        self.take_turn().await;
        let said = self.next(nth).await;
        self.yield_turn();
        said
    }

    /// One message at most; false: there is nothing now.
    async fn next(&mut self, nth: usize) -> Result<bool, End> {
        let Some(c) = self.cursors.get_mut(nth) else { return Ok(false) };
        let Some(channel) = &c.channel else {
            return match c.until.filter(|until| c.next < *until) {
                Some(until) => self.read(nth, until).await.map(|()| true),
                None => Ok(false),
            };
        };
        if self.wish.latest_only && c.next < c.replay {
            let to = c.replay;
            return self.read(nth, to).await.map(|()| true);
        }
        match channel.next(c.next) {
            Next::Nothing(at) => {
                c.next = at;
                Ok(false)
            }
            Next::Frames(frames) => {
                let more = c.thinned(frames.iter().map(|f| f.owed).sum());
                let (text, next) = (frame::joined(&c.head, &frames, more), frames.last().map_or(c.next, |f| f.end));
                let records = frames.iter().map(|f| u64::from(f.records)).sum();
                let thinned = frames.iter().map(|f| f.thinned).sum::<u64>() + more;
                (c.next, c.told) = (next, next);
                self.told(records, thinned);
                self.say(text).await.map(|()| true)
            }
            Next::Read(to) => self.read(nth, to).await.map(|()| true),
            Next::Newest { places, end, matched } => self.newest(nth, places, end, matched).await.map(|()| true),
            Next::Beyond => {
                self.feed.counts.restarts.fetch_add(1, Ordering::Relaxed);
                self.snapshot(nth).await.map(|()| true)
            }
            Next::Stopped => Err(End::Failed("the feed has stopped; the gateway's log says why".into())),
        }
    }

    fn told(&self, records: u64, thinned: u64) {
        self.feed.counts.records.fetch_add(records, Ordering::Relaxed);
        self.feed.counts.thinned.fetch_add(thinned, Ordering::Relaxed);
    }

    /// Tells what the log has, as far as one message goes.
    async fn read(&mut self, nth: usize, to: Offset) -> Result<(), End> {
        let Some(c) = self.cursors.get_mut(nth) else { return Ok(()) };
        let wanted = Wanted::Range { from: c.next, to, select: self.filters.clone() };
        let asked = Fetch { partition: c.tail.partition.id, wanted, records_max: READ_RECORDS, bytes_max: READ_BYTES };
        let found = fetch(&*self.feed.engine, &self.by, asked).await?;
        let span = c.next..found.next.min(to);
        let range: Range<Offset> = found.lost.clone();
        if !range.is_empty() {
            let reason = if found.damage.is_some() { "damage" } else { "retention" };
            self.feed.counts.lost.fetch_add(range.end.0 - range.start.0, Ordering::Relaxed);
            let text = frame::lost(&c.head, &Lost { from: range.start.0, to: range.end.0, reason });
            self.say(text).await?;
        }
        let records: Vec<_> = found.batch.iter().filter_map(|r| json(&r).map(|json| (r.offset, json))).collect();
        self.frames(nth, span, 0, &records).await
    }

    async fn newest(&mut self, nth: usize, places: Vec<Offset>, end: Offset, matched: u64) -> Result<(), End> {
        let Some(c) = self.cursors.get_mut(nth) else { return Ok(()) };
        let (mut records, span) = (Vec::with_capacity(places.len()), c.next..end);
        let thinned = c.thinned(matched as i64 - places.len() as i64);
        exactly(&*self.feed.engine, &self.by, c.tail.partition.id, places, |r| records.extend(json(r).map(|json| (r.offset, json))))
            .await?;
        self.frames(nth, span, thinned, &records).await
    }

    /// Tells these records, and that everything in the span was told with them.
    async fn frames(&mut self, nth: usize, span: Range<Offset>, thinned: u64, records: &[(Offset, String)]) -> Result<(), End> {
        let Some(c) = self.cursors.get_mut(nth) else { return Ok(()) };
        if records.is_empty() && thinned == 0 {
            (c.next, c.told) = (span.end, span.end);
            return Ok(());
        }
        for frame in Frame::several(span.clone(), span.start, thinned, records) {
            let Some(c) = self.cursors.get_mut(nth) else { return Ok(()) };
            (c.next, c.told) = (frame.end, frame.end);
            let text = frame::joined(&c.head, std::slice::from_ref(&frame), 0);
            self.told(u64::from(frame.records), frame.thinned);
            self.say(text).await?;
        }
        Ok(())
    }

    /// Tells the newest of each topic below a position; the cursor is there afterwards.
    async fn snapshot(&mut self, nth: usize) -> Result<(), End> {
        let (snapshot, pages) = self.take_snapshot(nth).await?;
        self.tell_snapshot(nth, &snapshot, pages).await
    }

    /// Reads what is shared of a snapshot, or its first parts; the cursor is at its position afterwards.
    async fn take_snapshot(&mut self, nth: usize) -> Result<(Arc<Snapshot>, Pages), End> {
        let Some(c) = self.cursors.get(nth) else { return Err(End::Gone) };
        let (partition, channel) = (c.tail.partition.id, c.channel.clone());
        let below = match &channel {
            // Where the next frame begins.
            Some(channel) => channel.said(),
            None => c.next,
        };
        let mut pages = Pages::new(self.feed.engine.clone(), self.by.clone(), partition, self.filters.clone(), below);
        let parts: Arc<Snapshot> = match channel {
            Some(channel) => {
                let mut shared = channel.snapshot.lock().await;
                match shared.as_ref().filter(|s| s.is_fresh()) {
                    Some(known) => {
                        pages.end();
                        known.clone()
                    }
                    None => {
                        let room = self.feed.snapshots.clone().try_acquire_many_owned(SHARED_BYTES as u32).ok();
                        let made = Arc::new(pages.collect(room).await?);
                        *shared = (made.is_kept() && pages.is_done()).then(|| made.clone());
                        made
                    }
                }
            }
            None => Arc::new(pages.collect(None).await?),
        };
        let Some(c) = self.cursors.get_mut(nth) else { return Err(End::Gone) };
        (c.next, c.told, c.thinned) = (parts.position, parts.position, 0);
        Ok((parts, pages))
    }

    async fn tell_snapshot(&mut self, nth: usize, parts: &Snapshot, mut pages: Pages) -> Result<(), End> {
        let Some(head) = self.cursors.get(nth).map(|c| c.head.clone()) else { return Ok(()) };
        for (i, part) in parts.parts.iter().enumerate() {
            let done = pages.is_done() && i + 1 == parts.parts.len();
            self.say(frame::snapshot(&head, parts.position, done, part)).await?;
        }
        while let Some(part) = pages.next().await? {
            self.say(frame::snapshot(&head, parts.position, pages.is_done(), &part)).await?;
        }
        Ok(())
    }

    async fn steps(&mut self, nth: usize, step: Duration, field: Option<&str>) -> Result<(), End> {
        let Some(c) = self.cursors.get(nth) else { return Ok(()) };
        let feed = self.feed.clone();
        // Nobody closes it.
        let _few = feed.steps.acquire().await.ok();
        let of = (c.tail.partition.id, c.next..c.until.unwrap_or(c.next));
        let text = steps::told(&*self.feed.engine, &self.by, &c.head, of, self.filters.clone(), step, field).await?;
        self.say(text).await
    }
}

enum Resumed {
    /// What lies between is not there any more.
    From(Offset, Option<Lost>),
    /// With a snapshot; false: it is another log, or another life of it.
    Anew(bool),
}
