//! The first record that waits for a session. Its place in a partition says only from where on one
//! may: a quiet filter leaves it far behind with
//! nothing to come.
//!
//! Invariant: while a session stands still no record is looked at twice for it; a question reads
//! the log once per partition, as long as it has
//! time. At most so many places are noted; when there are more, all are forgotten and found again.
//! Must not know: the API.

use crate::gateway::{Gateway, stored};
use parking_lot::Mutex;
use std::{collections::HashMap, sync::Arc};
use tokio::time::Instant;
use weir_bridge::{feed::fetch, filters::Filters};
use weir_core::{message::Stored, packet::Qos};
use weir_log::{Asker, Everything, Fetch, Offset, PartitionId, Select, Wanted};

/// About 150 bytes each.
const NOTED_MAX: usize = 20_000;
/// Records of one read: most of them are QoS 0, which waits for nobody, or the first is the one.
const RECORDS_MAX: u32 = 256;
const BYTES_MAX: u32 = 1 << 16;

/// A session in one partition.
pub(crate) struct Reader<'a> {
    pub client_id: &'a str,
    pub connected: bool,
    /// Its own filters, not those that groups read for it, and the QoS of each.
    pub filters: &'a [(&'a str, u8)],
    pub next: Offset,
    /// Messages of QoS 0 below this are sent too.
    pub kept_until: Offset,
}

impl Reader<'_> {
    /// QoS 0 that came while it was away is not sent.
    fn waits_for(&self, m: &Stored<'_>, now_ms: u64) -> bool {
        let kept = self.connected || m.qos != Qos::AtMostOnce || m.offset.0 < self.kept_until.0;
        kept && !m.is_expired(now_ms)
    }

    fn wanted(&self) -> impl Iterator<Item = &str> {
        let all = self.connected || self.next < self.kept_until;
        self.filters.iter().filter(move |(_, qos)| all || *qos > 0).map(|(filter, _)| *filter)
    }

    /// Another one, if what it reads has changed.
    fn print(&self) -> u64 {
        let mut bytes = vec![u8::from(self.connected)];
        bytes.extend_from_slice(&self.kept_until.0.to_le_bytes());
        for filter in self.wanted() {
            bytes.extend_from_slice(filter.as_bytes());
            bytes.push(0);
        }
        weir_core::message::hash(&bytes)
    }
}

/// What waits first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct First {
    pub at: Offset,
    /// When it was written, ms since 1970.
    pub time_ms: u64,
}

/// What is known of a session in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    print: u64,
    from: Offset,
    /// Nothing before this waits.
    checked: Offset,
    first: Option<(First, Option<u64>)>,
}

#[derive(Default)]
pub(crate) struct Waiting(Mutex<HashMap<(Box<str>, PartitionId), Known>>);

impl Waiting {
    /// `None`: nothing waits, or the log cannot be read. The log is read once, unless it is later
    /// than
    /// `until`: what was not looked at counts as waiting, and the next question goes on there.
    pub async fn first(&self, gateway: &Gateway, p: PartitionId, reader: &Reader<'_>, until: Instant) -> Option<First> {
        let span = gateway.engine.span(p);
        let from = reader.next.max(span.start);
        let mut known = self.of(p, reader, from);
        let now_ms = gateway.now().steady_ms;
        if let Some((first, expires_ms)) = known.first {
            if expires_ms.is_none_or(|at| at > now_ms) {
                return Some(first);
            }
            (known.first, known.checked) = (None, first.at.plus(1));
        }
        let mut failed = false;
        if known.checked < span.durable && Instant::now() < until {
            let select: Arc<dyn Select> = Arc::new(Filters::new(reader.wanted().map(Into::into)).with_times(true));
            let wanted = Wanted::Range { from: known.checked, to: span.durable, select };
            match fetch(&*gateway.engine, &Asker::browser(), Fetch { partition: p, wanted, records_max: RECORDS_MAX, bytes_max: BYTES_MAX })
                .await
            {
                Ok(found) => {
                    let waits = found.batch.iter().filter_map(|r| stored(&r)).find(|m| reader.waits_for(m, now_ms));
                    let first = waits.map(|m| (First { at: Offset(m.offset.0), time_ms: m.time_ms }, m.expires_ms));
                    known.first = first;
                    known.checked = first.map_or(found.next.min(span.durable), |(first, _)| first.at);
                }
                Err(_) => failed = true,
            }
        }
        self.note(p, reader.client_id, known);
        match known.first {
            Some((first, _)) => Some(first),
            None if failed || known.checked >= span.durable => None,
            None => read(gateway, p, known.checked).await,
        }
    }

    /// What is known, if it stands where it stood, or behind that.
    fn of(&self, p: PartitionId, reader: &Reader<'_>, from: Offset) -> Known {
        let print = reader.print();
        let known = self.0.lock().get(&(reader.client_id.into(), p)).copied().filter(|k| k.print == print && k.from <= from);
        let known = known.unwrap_or(Known { print, from, checked: from, first: None });
        let first = known.first.filter(|(first, _)| first.at >= from);
        Known { from, checked: known.checked.max(from), first, ..known }
    }

    fn note(&self, p: PartitionId, client_id: &str, known: Known) {
        let mut all = self.0.lock();
        if all.len() >= NOTED_MAX {
            all.clear();
        }
        all.insert((client_id.into(), p), known);
    }
}

/// The record there, whatever it is.
async fn read(gateway: &Gateway, p: PartitionId, from: Offset) -> Option<First> {
    let wanted = Wanted::Range { from, to: from.plus(1), select: Arc::new(Everything) };
    let found = fetch(&*gateway.engine, &Asker::browser(), Fetch { partition: p, wanted, records_max: 1, bytes_max: 1 }).await.ok()?;
    found.batch.iter().next().map(|r| First { at: r.offset, time_ms: r.time_ms })
}
