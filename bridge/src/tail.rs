//! The newest end of one partition, followed for all browsers together, as long as one is there.
//!
//! Invariant: every record is looked at once and written as JSON once, whoever wants it; with nobody there the log is not followed. What is followed is taken as it comes,
//! for whoever follows slowly holds the writer.
//! Must not know: sockets.

use crate::{
    channel::{Channel, Wish},
    feed::{exactly, recent},
    frame::Frame,
    record::{Written, json},
};
use parking_lot::Mutex;
use std::{collections::HashMap, ops::Range, sync::Arc, time::Duration};
use tokio::{sync::Notify, time::Instant};
use weir_core::trie::Trie;
use weir_log::{Asker, Batch, Engine, Follow, Kind, Offset, Partition, ReadError, Wake};

/// Of topics whose channels are remembered, with those.
const KNOWN_BYTES: usize = 16 << 20;
/// Of one, beside its name and its channels.
const KNOWN_TOPIC_BYTES: usize = 144;
/// Different wishes at once, in one partition: each has frames of its own.
pub const CHANNELS_MAX: usize = 1_024;
/// Of what is noted of topics that have changed, of all channels of a partition, in equal parts.
const CHANGED_BYTES: usize = 64 << 20;
/// Of the frames of all channels of a partition, in equal parts, and of one at most.
const FRAMES_BYTES: usize = 64 << 20;
const FRAME_BYTES_MAX: usize = 4 << 20;
/// What one batch may cost: others on this thread wait for so long, and the writer in the end. What is not done then is passed over, and read from the log by those who want it.
const BATCH_TIME: Duration = Duration::from_millis(20);
/// Batches that are looked at before others on this thread get a turn.
const BATCHES_PER_TURN: usize = 64;
/// Nobody there for so long: the log is followed no more.
const IDLE: Duration = Duration::from_secs(1);

#[derive(Default)]
pub struct Bell(Notify);

impl Wake for Bell {
    fn wake(&self) {
        self.0.notify_one();
    }
}

/// Which channels want a topic, by their places in the list.
struct Known {
    topic: Arc<str>,
    wanted_by: Vec<usize>,
}

#[derive(Default)]
struct State {
    channels: Vec<Arc<Channel>>,
    /// Places of the channels by their filters.
    trie: Trie<usize>,
    known: HashMap<Box<str>, Known>,
    known_bytes: usize,
    position: Offset,
    follows: bool,
}

impl State {
    /// Channels of topics are looked for again.
    fn forget(&mut self) {
        self.known.clear();
        self.known_bytes = 0;
    }
}

pub struct Tail {
    pub partition: Partition,
    engine: Arc<dyn Engine>,
    state: Mutex<State>,
    /// A channel that has something to say was made, or one is due.
    bell: Arc<Bell>,
}

impl Tail {
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, partition: Partition) -> Arc<Self> {
        Arc::new(Self { partition, engine, state: Mutex::default(), bell: Arc::default() })
    }

    /// The channel of a wish, and where it has come to. `None`: too many different ones.
    pub fn join(self: &Arc<Self>, wish: &Wish, bell: &Arc<Notify>) -> Option<(Arc<Channel>, Offset)> {
        let mut state = self.state.lock();
        if !state.follows {
            let following = self.engine.follow(self.partition.id, self.bell.clone());
            (state.follows, state.position) = (true, following.start());
            let tail = self.clone();
            tokio::spawn(async move {
                if let Err(e) = tail.clone().run(following).await {
                    tracing::error!("the feed of {}/{} stopped: {e}", tail.partition.stream, tail.partition.number);
                    // Those who are there are told; the next one who comes tries again.
                    std::mem::take(&mut *tail.state.lock()).channels.iter().for_each(|c| c.stop());
                }
            });
        }
        let position = state.position;
        if let Some(known) = state.channels.iter().find(|c| c.wish == *wish) {
            known.join(bell);
            return Some((known.clone(), position));
        }
        if state.channels.len() >= CHANNELS_MAX {
            return None;
        }
        let channel = Arc::new(Channel::new(wish.clone(), position));
        channel.join(bell);
        let place = state.channels.len();
        state.trie.insert(&wish.filter, place);
        state.channels.push(channel.clone());
        state.forget();
        Some((channel, position))
    }

    async fn run(self: Arc<Self>, following: Box<dyn Follow>) -> Result<(), ReadError> {
        let mut written = Written::default();
        loop {
            let due = self.due();
            tokio::select! {
                () = self.bell.0.notified() => {}
                () = tokio::time::sleep_until(due.unwrap_or_else(|| Instant::now() + IDLE)) => {}
            }
            let mut turn = 0;
            while let Some(batch) = following.poll() {
                self.offer(&batch, &mut written);
                turn += 1;
                if turn == BATCHES_PER_TURN {
                    // Others have their turn: ten thousand of them may be ready, so not after each.
                    turn = 0;
                    tokio::task::yield_now().await;
                }
            }
            self.say_newest(&mut written);
            if self.is_over() {
                return Ok(());
            }
        }
    }

    /// Channels, and the bytes of their frames.
    pub fn size(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.channels.len(), state.channels.iter().map(|c| c.bytes()).sum())
    }

    /// When the first conflated channel has something to say.
    fn due(&self) -> Option<Instant> {
        self.state.lock().channels.iter().filter_map(|c| c.due()).min()
    }

    /// Drops channels that nobody is at; true: there is none left.
    fn is_over(&self) -> bool {
        let mut state = self.state.lock();
        let before = state.channels.len();
        state.channels.retain(|c| !c.is_idle());
        state.channels.iter().for_each(|c| c.forget_snapshot());
        if state.channels.len() < before {
            state.forget();
            state.trie = Trie::default();
            let State { channels, trie, .. } = &mut *state;
            channels.iter().enumerate().for_each(|(place, c)| _ = trie.insert(&c.wish.filter, place));
        }
        state.follows = !state.channels.is_empty();
        !state.follows
    }

    fn offer(&self, batch: &Batch, written: &mut Written) {
        let mut state = self.state.lock();
        let State { channels, known, known_bytes, trie, .. } = &mut *state;
        let changed_max = CHANGED_BYTES / channels.len().max(1);
        let (begun, bytes_max) = (Instant::now(), (FRAMES_BYTES / channels.len().max(1)).min(FRAME_BYTES_MAX));
        let mut wanted: HashMap<usize, Vec<u32>> = HashMap::new();
        for (topic, range) in runs(batch) {
            if begun.elapsed() > BATCH_TIME {
                channels.iter().for_each(|c| c.skip(batch.end()));
                state.position = batch.end();
                return;
            }
            if *known_bytes > KNOWN_BYTES {
                known.clear();
                *known_bytes = 0;
            }
            let k = match known.get(topic) {
                Some(k) => k,
                None => known.entry(topic.into()).or_insert_with(|| {
                    let mut wanted_by = Vec::new();
                    trie.find(topic, &mut |place| wanted_by.push(*place));
                    *known_bytes += 2 * topic.len() + size_of_val(&*wanted_by) + KNOWN_TOPIC_BYTES;
                    Known { topic: topic.into(), wanted_by }
                }),
            };
            for at in &k.wanted_by {
                let Some(channel) = channels.get(*at) else { continue };
                if channel.wish.conflate.is_some() {
                    let (first, count) = (batch.get(range.start).offset, u64::from(range.end - range.start));
                    channel.mark(&k.topic, (first, batch.get(range.end - 1).offset), count, changed_max);
                } else {
                    wanted.entry(*at).or_default().extend(range.clone());
                }
            }
        }
        for (at, channel) in channels.iter().enumerate() {
            if begun.elapsed() > BATCH_TIME || channel.is_over() {
                channel.skip(batch.end());
                continue;
            }
            let records: Vec<_> = wanted.remove(&at).unwrap_or_default();
            let first = records.first().map(|i| batch.get(*i).offset);
            let records: Vec<_> =
                records.iter().filter_map(|i| written.json(&batch.get(*i)).map(|json| (batch.get(*i).offset, json))).collect();
            match first.filter(|_| !records.is_empty()) {
                Some(first) => channel.push(Frame::several(channel.said()..batch.end(), first, 0, &records), bytes_max),
                None => channel.advance(batch.end()),
            }
        }
        state.position = batch.end();
    }

    /// What conflated channels have to say. What is not in memory any more is read beside, for nothing may wait for that here.
    fn say_newest(self: &Arc<Self>, written: &mut Written) {
        let now = Instant::now();
        let state = self.state.lock();
        let changed_max = CHANGED_BYTES / state.channels.len().max(1);
        let bytes_max = (FRAMES_BYTES / state.channels.len().max(1)).min(FRAME_BYTES_MAX);
        let due: Vec<_> = state.channels.iter().filter(|c| c.due().is_some_and(|at| at <= now)).cloned().collect();
        drop(state);
        for channel in due {
            let after = channel.said();
            let Some((places, first, matched, end)) = channel.take(now, changed_max) else { continue };
            let thinned = matched.saturating_sub(places.len() as u64);
            let mut records = Vec::with_capacity(places.len());
            if recent(&*self.engine, self.partition.id, &places, |r| records.extend(written.json(r).map(|json| (r.offset, json)))) {
                channel.push(Frame::several(after..end, first, thinned, &records), bytes_max);
                continue;
            }
            let tail = self.clone();
            tokio::spawn(async move {
                let mut records = Vec::with_capacity(places.len());
                match exactly(&*tail.engine, &Asker::browser(), tail.partition.id, places, |r| {
                    records.extend(json(r).map(|json| (r.offset, json)))
                })
                .await
                {
                    Ok(()) => channel.push(Frame::several(after..end, first, thinned, &records), bytes_max),
                    Err(e) => {
                        tracing::error!("the feed of {}/{}: {e}", tail.partition.stream, tail.partition.number);
                        channel.stop();
                    }
                }
                // The next step may be due already.
                tail.bell.wake();
            });
        }
    }
}

/// Runs of messages with equal topics.
fn runs(batch: &Batch) -> impl Iterator<Item = (&str, Range<u32>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < batch.len() as u32 {
            let first = batch.get(at);
            let start = at;
            at += 1;
            let topic = std::str::from_utf8(first.key).ok().filter(|_| first.kind == Kind::Message);
            let Some(topic) = topic else { continue };
            while at < batch.len() as u32 && batch.get(at).key == first.key && batch.get(at).kind == Kind::Message {
                at += 1;
            }
            return Some((topic, start..at));
        }
        None
    })
}
