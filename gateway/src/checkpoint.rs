//! Checkpoints of the fold, and retention, which stays below them.
//!
//! Invariant: `folded/PARTITION` = F is put after every value says what the log says of it before F: sessions with open exchanges of QoS 2 or
//! wills, retained topics. The puts of the state store become durable in order, so F is never durable before them. A segment goes only
//! below F, and only when what is retained in it is kept in the store and every cursor that has passed it is durable.
//! Must not know: what a session is.
//!
//! `r/TOPIC`: u8 format 1, u32 partition, u64 offset, all little-endian; and then u32 second in which the message expires (0: never), u32 bytes of its payload,
//! or, when retention has taken the record: u64 time, u8 flags, u16 length of meta, meta, u32 length of headers, headers, payload.

use crate::{
    clock::{self, Reached},
    fold::Base,
    gateway::Gateway,
    peer::Peer,
    retention::{Hold, Retention, Steps},
    vital,
};
use std::{collections::HashMap, ops::Range, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc::unbounded_channel, oneshot, watch},
    task::JoinHandle,
};
use weir_core::{
    group::Place,
    ids::{Now, Offset, PartitionId},
    message::Stored,
    retained::{Expiry, Position, expiry},
};
use weir_log::{AppendError, Asker, Fetch, Nobody, Put, Record, SegmentInfo, Wake, Wanted};

const FORMAT: u8 = 1;
/// Puts in one call: others come between.
const PUTS_PER_CALL: usize = 256;
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// For the values of connections.
const PATIENCE: Duration = Duration::from_millis(500);
const PATIENCE_MAX: Duration = Duration::from_secs(8);
/// Between two looks at a partition that holds more than it may.
const HELD_EVERY_MS: u64 = 1_000;
/// Bytes of retained messages moved in one step.
const MOVE_BYTES: u32 = 1 << 20;

fn folded_key(p: PartitionId) -> Vec<u8> {
    format!("folded/{}", p.0).into_bytes()
}

/// The key of a retained topic.
pub(crate) fn retained_key(topic: &str) -> Vec<u8> {
    [b"r/", topic.as_bytes()].concat()
}

/// A value of `r/TOPIC`.
pub(crate) struct Kept<'a> {
    at: Place,
    /// Of a message that the log still has.
    expires: Option<Expiry>,
    /// Of its payload.
    bytes: u32,
    /// When retention has taken it from the log.
    pub message: Option<Stored<'a>>,
}

impl<'a> Kept<'a> {
    fn place(at: Place) -> Vec<u8> {
        [&[FORMAT][..], &at.0.0.to_le_bytes(), &at.1.0.to_le_bytes()].concat()
    }

    fn whole(at: Place, r: &Record<'_>) -> Vec<u8> {
        let mut b = Self::place(at);
        b.extend_from_slice(&r.time_ms.to_le_bytes());
        b.push(r.flags);
        b.extend_from_slice(&(r.meta.len() as u16).to_le_bytes());
        b.extend_from_slice(r.meta);
        b.extend_from_slice(&(r.headers.len() as u32).to_le_bytes());
        b.extend_from_slice(r.headers);
        b.extend_from_slice(r.value);
        b
    }

    /// Of a message that the log has.
    fn position(p: PartitionId, position: Position) -> Vec<u8> {
        let expires = position.expires.map_or(0, Expiry::get).to_le_bytes();
        [&Self::place((p, position.at))[..], &expires, &position.bytes.to_le_bytes()].concat()
    }

    /// `None`: not of this format.
    pub fn parse(topic: &'a str, value: &'a [u8]) -> Option<Self> {
        let rest = value.strip_prefix(&[FORMAT])?;
        let (partition, rest) = rest.split_first_chunk::<4>()?;
        let (offset, rest) = rest.split_first_chunk::<8>()?;
        let at = (PartitionId(u32::from_le_bytes(*partition)), Offset(u64::from_le_bytes(*offset)));
        if rest.is_empty() {
            return Some(Self { at, expires: None, bytes: 0, message: None });
        }
        if let Some((expires, rest)) = rest.split_first_chunk()
            && (rest.is_empty() || rest.len() == size_of::<u32>())
        {
            let bytes = rest.try_into().map_or(0, u32::from_le_bytes);
            return Some(Self { at, expires: Expiry::new(u32::from_le_bytes(*expires)), bytes, message: None });
        }
        let (time_ms, rest) = rest.split_first_chunk::<8>()?;
        let (flags, rest) = rest.split_first()?;
        let (n, rest) = rest.split_first_chunk::<2>()?;
        let (meta, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*n)))?;
        let (n, rest) = rest.split_first_chunk::<4>()?;
        let (headers, payload) = rest.split_at_checked(u32::from_le_bytes(*n) as usize)?;
        let message = Stored::parse(at.1, u64::from_le_bytes(*time_ms), *flags, meta, topic.as_bytes(), headers, payload)?;
        Some(Self { at, expires: expiry(&message), bytes: payload.len() as u32, message: Some(message) })
    }
}

/// Takes a key of the store, at the start; `None`: not one of these. Gives the end offset that it names.
pub(crate) fn read(key: &[u8], value: &[u8], bases: &mut HashMap<PartitionId, Base>) -> Option<Result<Place, String>> {
    if let Some(p) = key.strip_prefix(b"folded/") {
        let p = PartitionId(std::str::from_utf8(p).ok()?.parse().ok()?);
        let at = u64::from_le_bytes(*value.first_chunk()?);
        bases.entry(p).or_default().folded = weir_log::Offset(at);
        return Some(Ok((p, Offset(at))));
    }
    let topic = std::str::from_utf8(key.strip_prefix(b"r/")?).ok()?;
    let Some(kept) = Kept::parse(topic, value) else {
        return Some(Err(format!("key r/{topic}: a retained message that this program cannot read")));
    };
    let position = Position { at: kept.at.1, expires: kept.expires, bytes: kept.bytes };
    bases.entry(kept.at.0).or_default().retained.restore(topic, position);
    Some(Ok((kept.at.0, Offset(kept.at.1.0 + 1))))
}

/// Looks after checkpoints and retention until it is stopped.
pub(crate) struct Keeper {
    task: JoinHandle<Work>,
    stop: watch::Sender<bool>,
}

impl Keeper {
    pub fn start(gateway: Arc<Gateway>) -> Self {
        let (stop, mut stopping) = watch::channel(false);
        let folded = vec![Offset(0); gateway.partitions.len()];
        let steps = Steps::new(gateway.now());
        let mut work = Work {
            gateway,
            steps,
            folded,
            reached: None,
            held: HashMap::new(),
            asker: Asker::default(),
            patience: PATIENCE,
            trouble: None,
        };
        let task = vital::spawn("the keeper of the log", async move {
            // What the start has folded.
            work.checkpoint().await;
            while !*stopping.borrow() {
                work.look().await;
                let _ = tokio::time::timeout(LOOK_EVERY, stopping.changed()).await;
            }
            work
        });
        Self { task, stop }
    }

    /// After the last connection: the next start has nothing to fold.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        if let Ok(mut work) = self.task.await {
            work.checkpoint().await;
        }
    }
}

/// What retention would take of a partition.
struct Taking {
    retention: Retention,
    segments: Vec<SegmentInfo>,
    below: Offset,
    now: Now,
    /// The wall clock says ages.
    trusted: bool,
}

struct Work {
    gateway: Arc<Gateway>,
    steps: Steps,
    /// Per partition, as it was put.
    folded: Vec<Offset>,
    /// The steady clock, as it was put.
    reached: Option<Reached>,
    asker: Asker,
    /// Partitions that hold more than they may, for somebody has yet to read it, and when that was looked at, in `Now::monotonic_ms`.
    held: HashMap<usize, u64>,
    /// How long connections are waited for.
    patience: Duration,
    /// Why retention did not work last, as it was said.
    trouble: Option<String>,
}

impl Work {
    async fn look(&mut self) {
        let mut sealed = false;
        let mut wanted = Vec::new();
        let now = self.gateway.now();
        let trusted = self.steps.trusted(now);
        self.gateway.retained.iter().for_each(|view| view.write().expire(now.steady_ms));
        let mut files = 0;
        for (nth, p) in self.gateway.partitions.iter().enumerate() {
            let retention = self.gateway.retention(*p);
            let retention = if trusted { retention } else { retention.ageless() };
            let p = weir_log::PartitionId(p.0);
            match self.gateway.engine.segments(p) {
                Ok(segments) => {
                    files += segments.len();
                    self.gateway.growth[nth].look(now.monotonic_ms, &segments);
                    sealed |= segments.last().is_some_and(|active| active.base.0 > self.folded[nth].0);
                    let below = retention.below(&segments, now.wall_ms);
                    wanted.push((nth, Taking { retention, segments, below, now, trusted }));
                }
                Err(e) => tracing::warn!("looking at the segments of partition {}: {e}; it is tried again", p.0),
            }
        }
        self.gateway.sockets.log_has(files);
        if sealed || self.reached.is_some_and(|r| r.differs(self.gateway.clock.reached())) {
            self.checkpoint().await;
        }
        let mut hold = Hold::Nobody;
        for (nth, taking) in wanted {
            hold = hold.max(self.take(nth, taking).await);
        }
        let before = self.gateway.set_hold(hold);
        if hold == Hold::Nobody && before != hold {
            tracing::info!("publishers go on");
        } else if hold == Hold::Everybody && before < hold {
            tracing::error!(
                "all publishers wait, those who read too: the log has grown to twice log.retention_bytes beside what log.retention_min_age keeps"
            );
        }
    }

    /// Takes what is too much or too old. Returns whose publishes wait if it is too much and some of it stays.
    async fn take(&mut self, nth: usize, taking: Taking) -> Hold {
        let (p, below) = (self.gateway.partitions[nth], taking.below.min(self.folded[nth]));
        let start = Offset(self.gateway.engine.span(weir_log::PartitionId(p.0)).start.0);
        if below <= start {
            self.held.remove(&nth);
            return Hold::Nobody;
        }
        let hold = taking.retention.hold(&taking.segments);
        // While a reader stands still, all connections are asked for their places once a second at most.
        let now_ms = taking.now.monotonic_ms;
        if self.held.get(&nth).is_some_and(|looked_ms| now_ms < looked_ms + HELD_EVERY_MS) {
            return hold;
        }
        // What they have passed is known then, and durable before anything goes.
        let all = self.gateway.peers.iter().map(|p| p.value().clone()).collect();
        self.ask(all).await;
        let unread = self.gateway.cursors[nth].unread(below);
        let Taking { retention, segments, now, trusted, .. } = taking;
        let cut = retention.cut(&segments, below, unread.map(|u| u.from), now.wall_ms, trusted);
        let by_bytes = retention.ageless().below(&segments, now.wall_ms) > start;
        // One file after the other: what is retained in it needs room in the store first, and on a
        // full disk there is as much as one file.
        let mut at = start;
        let ends = segments.iter().map(|s| Offset(s.base.0)).filter(|end| *end > start && *end < cut.below).chain([cut.below]);
        for end in ends.filter(|end| *end > start) {
            if !self.retire(nth, at..end).await {
                break;
            }
            at = end;
        }
        if at > start {
            tracing::info!("retention: partition {} begins at record {at} now", p.0);
        }
        if at > start && by_bytes {
            let lost = unread.filter(|u| u.from < at);
            self.gateway.made_room(nth, lost.map(|u| (u.from.max(start)..at, u.readers)));
        }
        if cut.held {
            if let Some(unread) = unread.filter(|_| self.held.insert(nth, now_ms).is_none()) {
                let (stream, number) = &self.gateway.streams[nth];
                tracing::warn!(
                    "publishers wait: log.retention_min_age keeps record {} of {stream}/{number} and what is behind it, beyond log.retention_bytes; sessions and groups that have not come so far: {}",
                    unread.from,
                    unread.readers
                );
            }
            return hold;
        }
        self.held.remove(&nth);
        Hold::Nobody
    }

    async fn checkpoint(&mut self) {
        let mut positions: Vec<_> = self.gateway.passed.iter().map(|tail| tail.offset()).collect();
        // What one of them knows and does not say is in the log: it is folded again at the next start, if there is no later checkpoint.
        let marked = self.gateway.marked.iter().map(|p| p.value().clone()).collect();
        let folds = self.ask(marked).await;
        let mut puts = Vec::new();
        for (nth, view) in self.gateway.retained.iter().enumerate() {
            let p = self.gateway.partitions[nth];
            for (topic, at) in view.write().take_changed() {
                puts.push((retained_key(&topic), at.map(|at| Kept::position(p, at))));
            }
        }
        if !folds {
            positions.clone_from(&self.folded);
        }
        for (nth, at) in positions.iter().enumerate().filter(|(nth, at)| **at > self.folded[*nth]) {
            puts.push((folded_key(self.gateway.partitions[nth]), Some(at.0.to_le_bytes().to_vec())));
        }
        let reached = self.gateway.clock.reached();
        puts.push((clock::KEY.to_vec(), Some(reached.value())));
        if !self.put(&puts).await {
            // The next one puts them.
            let topics = puts.iter().filter_map(|(key, _)| std::str::from_utf8(key.strip_prefix(b"r/")?).ok());
            topics.for_each(|topic| self.gateway.retained[self.gateway.partition_of(topic)].write().touch(topic));
        } else {
            self.reached = Some(reached);
            self.folded = positions;
        }
    }

    /// Asks these to put what they know, and waits until they have, but not for ever: a connection that has no turn must not hold up what all need. False: not all of them have.
    async fn ask(&mut self, peers: Vec<Arc<Peer>>) -> bool {
        let (token, mut rest) = unbounded_channel();
        peers.iter().for_each(|p| p.tell(|m| m.checkpoint = Some(token.clone())));
        drop((token, peers));
        // Ends when each has dropped its token.
        let all = async { while rest.recv().await.is_some() {} };
        let answered = tokio::time::timeout(self.patience, all).await.is_ok();
        // Where all are slow, they have longer the next time.
        self.patience = if answered { PATIENCE } else { (self.patience * 2).min(PATIENCE_MAX) };
        if !answered {
            tracing::warn!("a checkpoint does not wait for connections that have no turn; the store has what they put last");
        }
        answered
    }

    /// True: all were taken, in order.
    async fn put(&self, puts: &[(Vec<u8>, Option<Vec<u8>>)]) -> bool {
        let nobody: Arc<dyn Wake> = Arc::new(Nobody);
        for some in puts.chunks(PUTS_PER_CALL) {
            let some: Vec<_> = some.iter().map(|(key, value)| Put { key, tag: 0, value: value.as_deref() }).collect();
            loop {
                match self.gateway.engine.state().put(&some, &nobody) {
                    Ok(_) => break,
                    Err(AppendError::Full) => tokio::time::sleep(Duration::from_millis(5)).await,
                    Err(AppendError::Stopping) => return false,
                    Err(e @ AppendError::TooLarge { .. }) => {
                        // What the log has stays there: nothing below it is retired.
                        tracing::error!("a checkpoint that the state store does not take: {e}; retention waits for it");
                        return false;
                    }
                    Err(e @ AppendError::Failed(_)) => self.gateway.state_failed(&e),
                }
            }
        }
        true
    }

    /// True: it is gone.
    async fn retire(&mut self, nth: usize, range: Range<Offset>) -> bool {
        let (p, below) = (weir_log::PartitionId(self.gateway.partitions[nth].0), range.end);
        if !self.keep_retained(nth, range).await {
            return false;
        }
        let (tx, rx) = oneshot::channel();
        self.gateway.engine.retire(p, weir_log::Offset(below.0), Box::new(move |r| drop(tx.send(r))));
        match rx.await {
            Ok(Ok(())) => {
                self.trouble = None;
                return true;
            }
            Ok(Err(e)) => {
                // It is tried four times a second.
                let trouble = format!("retention in partition {}: {e}; it is tried again", p.0);
                if self.trouble.as_ref() != Some(&trouble) {
                    tracing::warn!("{trouble}");
                    self.trouble = Some(trouble);
                }
            }
            // The log stops.
            Err(_) => {}
        }
        false
    }

    /// Moves retained messages of `range`, which the log is about to forget, into the state store. False: not all of them.
    async fn keep_retained(&self, nth: usize, range: Range<Offset>) -> bool {
        let mut after: Option<Box<str>> = None;
        loop {
            let page = self.gateway.retained[nth].read().within(&range, after.as_deref());
            let mut wanted: Vec<_> = page.found.into_iter().map(|(topic, at)| (at, topic)).collect();
            wanted.sort_unstable();
            while !wanted.is_empty() {
                if !self.keep_some(nth, &mut wanted).await {
                    return false;
                }
            }
            match page.after {
                Some(topic) => after = Some(topic),
                None => return true,
            }
        }
    }

    async fn keep_some(&self, nth: usize, wanted: &mut Vec<(Offset, Box<str>)>) -> bool {
        let p = self.gateway.partitions[nth];
        let offsets = wanted.iter().map(|(at, _)| weir_log::Offset(at.0)).collect();
        let fetch =
            Fetch { partition: weir_log::PartitionId(p.0), wanted: Wanted::Exactly(offsets), records_max: u32::MAX, bytes_max: MOVE_BYTES };
        let (tx, rx) = oneshot::channel();
        self.gateway.engine.fetch(&self.asker, fetch, Box::new(move |f| drop(tx.send(f))));
        let fetched = match rx.await {
            Ok(Ok(fetched)) => fetched,
            Ok(Err(e)) => {
                tracing::error!("retention keeps a segment, for a retained message in it cannot be read: {e}");
                return false;
            }
            Err(_) => return false,
        };
        let examined = wanted.partition_point(|(at, _)| at.0 < fetched.next.0);
        let topics: HashMap<u64, Box<str>> = wanted.drain(..examined).map(|(at, topic)| (at.0, topic)).collect();
        let keep = |r: Record<'_>| {
            let (topic, at) = (topics.get(&r.offset.0)?, Offset(r.offset.0));
            Some((retained_key(topic), Some(Kept::whole((p, at), &r))))
        };
        let puts: Vec<_> = fetched.batch.iter().filter_map(keep).collect();
        self.put(&puts).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_core::packet::Qos;

    #[test]
    fn a_kept_message_comes_back() {
        let at = (PartitionId(2), Offset(77));
        assert!(Kept::parse("t", &Kept::place(at)).is_some_and(|k| k.at == at && k.message.is_none()));
        let mut records = weir_log::Records::default();
        records.push(weir_log::Kind::Message, 5, &[7, 0, 0, 0, 0, 0, 0, 0], b"t", b"", b"payload").expect("small");
        let r = Record {
            offset: weir_log::Offset(77),
            time_ms: 9,
            kind: weir_log::Kind::Message,
            flags: 5,
            meta: &[7, 0, 0, 0, 0, 0, 0, 0],
            key: b"t",
            headers: b"",
            value: b"payload",
        };
        let value = Kept::whole(at, &r);
        let m = Kept::parse("t", &value).and_then(|k| k.message).expect("whole");
        assert_eq!((m.offset, m.qos, m.retain, m.client_hash, m.payload), (Offset(77), Qos::AtLeastOnce, true, 7, &b"payload"[..]));
        let position = Position { at: at.1, expires: Expiry::new(5), bytes: 7 };
        let with_expiry = Kept::position(at.0, position);
        assert!(Kept::parse("t", &with_expiry).is_some_and(|k| (k.at, k.expires, k.bytes) == (at, Expiry::new(5), 7)));
        let of_older = &with_expiry[..17];
        assert!(Kept::parse("t", of_older).is_some_and(|k| (k.expires, k.bytes) == (Expiry::new(5), 0)));
        // As long as a place with its expiry it is one.
        for cut in (14..value.len() - b"payload".len()).filter(|cut| ![17, 21].contains(cut)) {
            assert!(Kept::parse("t", &value[..cut]).is_none(), "{cut}");
        }
    }
}
