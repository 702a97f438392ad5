//! What an operator wants to know before it happens: how old the oldest record is, when it leaves, when a
//! reader loses something, how far groups are behind, how much of the disk is free.
//!
//! Times are seconds since 1970; 0: not foreseen, or there is nothing.

use crate::{gateway::Gateway, group::Groups, metrics::Name};
use std::{sync::Arc, sync::atomic::Ordering, time::Duration};
use weir_core::ids::PartitionId;
use weir_log::{Offset, SegmentInfo};

/// Groups describe themselves; ten thousand of them take a while.
const GROUPS_EVERY: Duration = Duration::from_secs(15);

/// What is foreseen of one partition.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Foreseen {
    /// When its oldest file was begun.
    pub oldest_s: f64,
    /// When that file leaves.
    pub leaves_s: f64,
    /// When the first record goes that a stored session or group has not read.
    pub loss_s: f64,
}

fn seconds(ms: Option<u64>) -> f64 {
    ms.map_or(0.0, |ms| ms as f64 / 1_000.0)
}

/// Looks at the nth partition, which has these files.
pub(crate) fn of_partition(gateway: &Gateway, nth: usize, segments: &[SegmentInfo]) -> Option<Foreseen> {
    let p = gateway.engine.partitions().get(nth)?;
    let span = gateway.engine.span(p.id);
    let leaves = |next: Offset| gateway.loss_at(PartitionId(p.id.0), segments, next);
    let unread = gateway.cursors.get(nth).and_then(|cursors| cursors.unread(weir_core::ids::Offset(span.durable.0)));
    Some(Foreseen {
        oldest_s: seconds(segments.first().filter(|_| span.durable > span.start).map(|s| s.created_ms)),
        leaves_s: seconds(leaves(span.start)),
        loss_s: seconds(unread.and_then(|unread| leaves(Offset(unread.from.0).max(span.start)))),
    })
}

/// Free and all bytes of the disk that the data directory is on.
pub(crate) fn disk(gateway: &Gateway) -> Option<(u64, u64)> {
    let about = gateway.about.get()?;
    let disk = rustix::fs::statvfs(about.data.as_str()).ok()?;
    Some((disk.f_bavail.saturating_mul(disk.f_frsize), disk.f_blocks.saturating_mul(disk.f_frsize)))
}

/// The gauges of what is foreseen.
pub(crate) fn gauges(gateway: &Gateway, set: impl Fn(Name, f64)) {
    set(Name::GroupLagMax, gateway.metrics.group_lag.load(Ordering::Relaxed) as f64);
    if let Some((free, all)) = disk(gateway) {
        set(Name::DiskFree, free as f64);
        set(Name::DiskSize, all as f64);
    }
}

/// Asks all groups now and then, until the process ends.
pub(crate) async fn run(gateway: Arc<Gateway>) {
    loop {
        let all = Groups::describe(&gateway).await;
        let most = all.iter().map(|group| group.lag(&gateway)).max().unwrap_or(0);
        gateway.metrics.group_lag.store(most, Ordering::Relaxed);
        tokio::time::sleep(GROUPS_EVERY).await;
    }
}
