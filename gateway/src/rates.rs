//! How much came and went, step by step, for the last hour: for whoever looks now and wants to know what was a moment ago. Prometheus has the rest.
//!
//! Invariant: at most an hour of steps; a step says per second what was counted in it.
//! Must not know: who asks.

use crate::{
    gateway::Gateway,
    metrics::{CONNECTIONS, Commits, DROPPED, RECEIVED, SENT, Total},
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use utoipa::ToSchema;

/// One step.
pub const STEP: Duration = Duration::from_secs(5);
/// An hour.
const STEPS_MAX: usize = 720;

/// What was counted in one step of five seconds, per second.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RateInfo {
    /// The end of the step, ms since 1970.
    pub at_ms: u64,
    /// Messages from clients.
    pub messages_in: u64,
    /// Messages to clients.
    pub messages_out: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Messages that were not sent to a subscriber, for whatever reason, and records lost.
    pub dropped: u64,
    /// Connections that were accepted.
    pub connects: u64,
    /// Connections at the end of the step.
    pub connections: u64,
    /// Half of the batches of the step were durable so many microseconds after their first record came; missing: there was none.
    pub append_p50_us: Option<u64>,
    /// 99 of 100 of them.
    pub append_p99_us: Option<u64>,
    /// Batches by how many records they had: up to 1, 2, 4, 8, 16, 32, 64, and more.
    pub commit_sizes: Vec<u64>,
}

#[derive(Default)]
pub(crate) struct Rates {
    steps: Mutex<VecDeque<RateInfo>>,
}

impl Rates {
    /// Oldest first.
    pub fn steps(&self) -> Vec<RateInfo> {
        self.steps.lock().iter().cloned().collect()
    }

    /// The last step.
    pub fn last(&self) -> Option<RateInfo> {
        self.steps.lock().back().cloned()
    }

    fn push(&self, step: RateInfo) {
        let mut steps = self.steps.lock();
        if steps.len() >= STEPS_MAX {
            steps.pop_front();
        }
        steps.push_back(step);
    }
}

/// Until the process ends.
pub(crate) async fn run(gateway: Arc<Gateway>) {
    let totals = || {
        let (sum, lost) = (|all| gateway.totals.sum(all), gateway.totals.get(Total::Lost));
        [sum(RECEIVED), sum(SENT), sum(&[Total::BytesIn]), sum(&[Total::BytesOut]), sum(DROPPED) + lost, sum(CONNECTIONS)]
    };
    let mut before = totals();
    let mut tick = tokio::time::interval(STEP);
    tick.tick().await;
    loop {
        tick.tick().await;
        let now = totals();
        let [messages_in, messages_out, bytes_in, bytes_out, dropped, connects] =
            std::array::from_fn(|i| (now[i] - before[i]) / STEP.as_secs());
        let (at_ms, connections) = (gateway.now().wall_ms, gateway.connected().connections);
        let commits: Commits = gateway.metrics.take_commits();
        gateway.rates.push(RateInfo {
            at_ms,
            messages_in,
            messages_out,
            bytes_in,
            bytes_out,
            dropped,
            connects,
            connections,
            append_p50_us: commits.quantile(0.5),
            append_p99_us: commits.quantile(0.99),
            commit_sizes: commits.sizes.to_vec(),
        });
        before = now;
    }
}
