//! The first lines of the page, twice a second, made once for all browsers; with nobody there not at all.
//!
//! Invariant: what one browser is told, all are.
//! Must not know: sockets.

use crate::{
    gateway::{Connected, Gateway},
    metrics::{DROPPED, RECEIVED, REFUSED, SENT, Total},
};
use serde::Serialize;
use std::{cmp::Reverse, collections::BTreeMap, collections::VecDeque, sync::Arc, time::Duration};
use tokio::time::Instant;
use weir_bridge::feed::Feed;

const EVERY: Duration = Duration::from_millis(500);
/// Rates are over the last two seconds.
const KEPT: usize = 5;
/// Who is furthest behind.
const URGENT: usize = 3;

#[derive(Serialize)]
struct Behind {
    client: String,
    records: u64,
}

#[derive(Serialize)]
struct Figures {
    #[serde(rename = "type")]
    kind: &'static str,
    time: u64,
    boot: u64,
    /// Messages per second.
    received: f64,
    delivered: f64,
    /// Messages to clients since the start.
    sent: u64,
    /// Microseconds from its acceptance until a record is on disk, over the last five seconds.
    append_p50_us: Option<u64>,
    append_p99_us: Option<u64>,
    /// Bytes that wait for the disk.
    pending: u64,
    connections: u64,
    sessions: u64,
    behind: u64,
    lag_max: u64,
    /// Since the start.
    lost: u64,
    dropped: u64,
    refused: u64,
    synced_ms: Option<u64>,
    /// Why nothing is acknowledged any more.
    failed: Option<String>,
    /// Durable ends, by `stream/partition`.
    positions: BTreeMap<String, u64>,
    urgent: Vec<Behind>,
    browsers: u64,
}

/// When, how many came and went.
type Sample = (Instant, [u64; 2]);

fn look(gateway: &Gateway, feed: &Feed, samples: &mut VecDeque<Sample>) -> Figures {
    let sum = |all| gateway.totals.sum(all);
    let now = (Instant::now(), [sum(RECEIVED), sum(SENT)]);
    samples.push_back(now);
    if samples.len() > KEPT {
        samples.pop_front();
    }
    let (since, before) = samples.front().copied().unwrap_or(now);
    let seconds = (now.0 - since).as_secs_f64().max(0.001);
    let [received, delivered] = std::array::from_fn(|i| ((now.1[i] - before[i]) as f64 / seconds * 10.0).round() / 10.0);
    let ends = gateway.ends();
    let Connected { connections, behind, lag_max, .. } = gateway.connected();
    let mut urgent: Vec<_> =
        gateway.peers.iter().filter_map(|p| Some(Behind { records: p.lag(&ends)?, client: p.identity()?.client_id.to_string() })).collect();
    urgent.sort_by_key(|b| Reverse(b.records));
    urgent.truncate(URGENT);
    let last = gateway.rates.last();
    let failed = gateway.log_trouble();
    let pending = gateway.engine.partitions().iter().map(|p| gateway.engine.memory(p.id).pending_bytes as u64).sum();
    Figures {
        kind: "figures",
        time: gateway.now().wall_ms,
        boot: gateway.boot,
        received,
        delivered,
        sent: now.1[1],
        append_p50_us: last.as_ref().and_then(|s| s.append_p50_us),
        append_p99_us: last.as_ref().and_then(|s| s.append_p99_us),
        pending,
        connections,
        sessions: gateway.sessions(),
        behind,
        lag_max,
        lost: gateway.totals.get(Total::Lost),
        dropped: sum(DROPPED),
        refused: sum(REFUSED),
        synced_ms: gateway.metrics.synced_ms(),
        failed,
        positions: gateway.streams.iter().zip(&ends).map(|((stream, n), end)| (format!("{stream}/{n}"), *end)).collect(),
        urgent,
        browsers: feed.counts.browsers.load(std::sync::atomic::Ordering::Relaxed),
    }
}

/// Until the process ends.
pub(crate) async fn run(gateway: Arc<Gateway>, feed: Arc<Feed>) {
    let mut samples = VecDeque::new();
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tick.tick().await;
        if feed.figures.receiver_count() == 0 {
            samples.clear();
            continue;
        }
        // Numbers and texts of ours: it never fails.
        if let Ok(text) = serde_json::to_string(&look(&gateway, &feed, &mut samples)) {
            feed.figures.send_replace(text.into());
        }
    }
}
