//! The life of messages of watched topics: received, on disk, acknowledged, sent and acknowledged per subscriber.
//!
//! Invariant: bounded, the oldest go first; nothing is kept of what nobody watches. Times are of one clock, microseconds after the message was received.
//! Must not know: sessions, sockets.

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Instant,
};
use utoipa::ToSchema;
use weir_bridge::watched::Watched;
use weir_core::ids::{Offset, PartitionId};
use weir_log::Commit;

/// Messages whose life is known, about 200 B each and 80 B per subscriber.
const LIVES_MAX: usize = 4_096;
const SUBSCRIBERS_MAX: usize = 256;
/// Batches that may be durable before their messages are noted.
const COMMITS_MAX: usize = 64;

type Key = (PartitionId, Offset);

struct Step {
    client: Arc<str>,
    sent: Instant,
    acknowledged: Option<Instant>,
}

struct Life {
    publisher: Arc<str>,
    received: Instant,
    received_ms: u64,
    durable: Option<(Instant, usize)>,
    acknowledged: Option<Instant>,
    subscribers: Vec<Step>,
}

#[derive(Default)]
struct Known {
    lives: BTreeMap<Key, Life>,
    order: VecDeque<Key>,
    /// Partition, first and end, when, how many.
    commits: VecDeque<(PartitionId, u64, u64, Instant, usize)>,
}

#[derive(Default)]
pub(crate) struct Lives {
    pub watched: Arc<Watched>,
    known: Mutex<Known>,
}

/// What became of a message for one subscriber.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SentInfo {
    pub client_id: String,
    /// Microseconds after it was received.
    pub sent_us: u64,
    /// Missing: not yet, or QoS 0.
    pub acknowledged_us: Option<u64>,
}

/// The life of a message.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TraceInfo {
    pub publisher: String,
    /// When it was received, ms since 1970.
    pub received_ms: u64,
    /// When it was on disk, microseconds after that; missing: not yet.
    pub durable_us: Option<u64>,
    /// Records that one sync made durable with it.
    pub batch: Option<usize>,
    /// When its acknowledgement was written; missing: not yet, or QoS 0.
    pub acknowledged_us: Option<u64>,
    pub subscribers: Vec<SentInfo>,
}

impl Lives {
    pub fn watches(&self, topic: &[u8]) -> bool {
        self.watched.any() && std::str::from_utf8(topic).is_ok_and(|t| self.watched.has(t))
    }

    pub fn received(&self, at: Key, publisher: &Arc<str>, received: Instant, received_ms: u64) {
        let mut known = self.known.lock();
        let commit = known.commits.iter().find(|(p, first, end, ..)| *p == at.0 && (*first..*end).contains(&at.1.0));
        let durable = commit.map(|(.., when, n)| (*when, *n));
        let life = Life { publisher: publisher.clone(), received, received_ms, durable, acknowledged: None, subscribers: Vec::new() };
        known.lives.insert(at, life);
        known.order.push_back(at);
        if known.order.len() > LIVES_MAX
            && let Some(oldest) = known.order.pop_front()
        {
            known.lives.remove(&oldest);
        }
    }

    /// By the writers, once a batch.
    pub fn committed(&self, p: weir_log::PartitionId, commit: &Commit) {
        if !self.watched.any() {
            return;
        }
        let p = PartitionId(p.0);
        let (first, end) = (commit.end.0 - commit.records as u64, commit.end.0);
        let mut known = self.known.lock();
        for (_, life) in known.lives.range_mut((p, Offset(first))..(p, Offset(end))) {
            life.durable = Some((commit.at, commit.records));
        }
        known.commits.push_back((p, first, end, commit.at, commit.records));
        if known.commits.len() > COMMITS_MAX {
            known.commits.pop_front();
        }
    }

    pub fn acknowledged(&self, at: Key) {
        if let Some(life) = self.known.lock().lives.get_mut(&at) {
            life.acknowledged.get_or_insert_with(Instant::now);
        }
    }

    pub fn sent(&self, at: Key, client: &Arc<str>) {
        if let Some(life) = self.known.lock().lives.get_mut(&at)
            && life.subscribers.len() < SUBSCRIBERS_MAX
        {
            life.subscribers.push(Step { client: client.clone(), sent: Instant::now(), acknowledged: None });
        }
    }

    pub fn taken(&self, at: Key, client: &str) {
        let mut known = self.known.lock();
        let steps = known.lives.get_mut(&at).map(|l| &mut l.subscribers);
        if let Some(step) = steps.into_iter().flatten().rfind(|s| &*s.client == client) {
            step.acknowledged.get_or_insert_with(Instant::now);
        }
    }

    /// `None`: nobody watched its topic when it came, or that is long ago.
    pub fn trace(&self, at: Key) -> Option<TraceInfo> {
        let known = self.known.lock();
        let life = known.lives.get(&at)?;
        let us = |t: Instant| t.saturating_duration_since(life.received).as_micros() as u64;
        Some(TraceInfo {
            publisher: life.publisher.to_string(),
            received_ms: life.received_ms,
            durable_us: life.durable.map(|(at, _)| us(at)),
            batch: life.durable.map(|(_, n)| n),
            acknowledged_us: life.acknowledged.map(us),
            subscribers: life
                .subscribers
                .iter()
                .map(|s| SentInfo { client_id: s.client.to_string(), sent_us: us(s.sent), acknowledged_us: s.acknowledged.map(us) })
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const P: PartitionId = PartitionId(0);

    fn commit(end: u64, records: usize, at: Instant) -> Commit {
        Commit { records, bytes: 0, sync: Duration::ZERO, append: Duration::ZERO, end: weir_log::Offset(end), at }
    }

    #[test]
    fn a_life_is_told_whether_it_is_noted_before_or_after_its_sync_and_the_oldest_goes() {
        let lives = Lives::default();
        let _watch = lives.watched.watch("t").expect("room");
        let (start, who): (_, Arc<str>) = (Instant::now(), "p".into());
        lives.committed(weir_log::PartitionId(0), &commit(2, 2, start + Duration::from_micros(30)));
        lives.received((P, Offset(1)), &who, start, 5);
        lives.received((P, Offset(2)), &who, start, 5);
        lives.committed(weir_log::PartitionId(0), &commit(3, 1, start + Duration::from_micros(70)));
        let told = |n| lives.trace((P, Offset(n))).map(|t| (t.durable_us, t.batch));
        assert_eq!((told(0), told(1), told(2)), (None, Some((Some(30), Some(2))), Some((Some(70), Some(1)))));
        lives.acknowledged((P, Offset(1)));
        lives.sent((P, Offset(1)), &"s".into());
        lives.taken((P, Offset(1)), "s");
        let t = lives.trace((P, Offset(1))).expect("known");
        let [sent] = &t.subscribers[..] else { panic!("one subscriber: {t:?}") };
        assert!(sent.client_id == "s" && sent.acknowledged_us >= Some(sent.sent_us) && t.acknowledged_us.is_some());
        (3..3 + LIVES_MAX as u64).for_each(|n| lives.received((P, Offset(n)), &who, start, 5));
        assert!(lives.trace((P, Offset(2))).is_none() && lives.trace((P, Offset(3))).is_some());
    }
}
