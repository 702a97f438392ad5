//! What happens to clients, as records: `$SYS/events/KIND/CLIENT` in the stream `system`, with JSON in them, for whoever subscribes or looks later.
//!
//! | kind | when | beside `client` |
//! |---|---|---|
//! | connected | its session is its own | address, version, clean_start, session_present, expiry_s |
//! | closed | its connection ends | reason, code, statement if it broke one |
//! | refused | its CONNECT is not taken | address, code |
//! | refused | a page of another origin; `client` is empty, the topic ends with `gateway` | address, origin, code |
//! | dropped | within a second: not sent to it, or not taken from it | reason, messages |
//! | behind | it has not kept up for a second | records |
//! | live | it has caught up | |
//! | pushed_out | retention by bytes took what some had not read; `client` published most of it | stream, partition, from, to, bytes, readers |
//! | deleted | its session was ended by the admin API | |
//! | cleared | retained messages were cleared by the admin API; `client` is empty, the topic ends with `gateway` | filter, topics |
//! | started | the gateway takes connections; `client` is empty, the topic ends with `gateway` | boot, version |
//!
//! Invariant: who causes an event never waits for it; events that find no room are counted. A `/`, `+`, `#` or `%` of a client id is written as in an address, and no more than 128 bytes of it.
//! Must not know: sessions, or who reads.

use crate::{
    gateway::{Gateway, encode},
    metrics::Total,
    refusals::short,
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    fmt::Write,
    ops::Range,
    sync::Arc,
    time::Duration,
};
use tokio::sync::Notify;
use weir_core::{
    ids::Offset,
    limits::Limit,
    message::{Message, Topic},
    packet::{Qos, ReasonCode},
    session::{Cause, Counts},
};
use weir_log::{AppendError, Records, Wake};

/// Events that wait for the log: beyond them they are counted and forgotten, for a storm of connections must not take the memory.
const WAITING_MAX: usize = 65_536;
/// They wait for company: at most ten syncs a second.
const LINGER: Duration = Duration::from_millis(100);
/// Records in one append.
const CHUNK_BYTES: usize = 256 * 1024;
/// A topic and its JSON.
type Event = (String, Value);

#[derive(Default)]
struct Waiting {
    events: Vec<Event>,
    /// By client, and what happened for which reason.
    counted: BTreeMap<(Box<str>, (&'static str, &'static str)), u64>,
}

#[derive(Default)]
pub(crate) struct Events {
    waiting: Mutex<Waiting>,
    bell: Notify,
}

/// A level of a topic.
fn level(client_id: &str) -> String {
    let mut name = String::new();
    for c in short(client_id).chars() {
        if matches!(c, '/' | '+' | '#' | '%') {
            let _never_fails = write!(name, "%{:02X}", u32::from(c));
        } else {
            name.push(c);
        }
    }
    name
}

impl Events {
    fn push(&self, gateway: &Gateway, kind: &str, client_id: &str, mut more: Value) {
        if gateway.system.is_none() {
            return;
        }
        more["client"] = short(client_id).into();
        let mut waiting = self.waiting.lock();
        if waiting.events.len() >= WAITING_MAX {
            drop(waiting);
            return gateway.totals.add(Total::EventsDropped, 1);
        }
        let last = if client_id.is_empty() { "gateway".into() } else { level(client_id) };
        waiting.events.push((format!("$SYS/events/{kind}/{last}"), more));
        drop(waiting);
        self.bell.notify_one();
    }

    pub fn started(&self, gateway: &Gateway) {
        let more = json!({ "boot": gateway.boot, "version": env!("CARGO_PKG_VERSION") });
        self.push(gateway, "started", "", more);
    }

    /// `by`: bytes of the client since this happened last, and how many had not read it.
    pub fn pushed_out(&self, gateway: &Gateway, client_id: &str, nth: usize, range: &Range<Offset>, by: (u64, u64)) {
        let (stream, number) = &gateway.streams[nth];
        let more = json!({
            "stream": &**stream, "partition": number, "from": range.start.0, "to": range.end.0 - 1, "bytes": by.0, "readers": by.1,
        });
        self.push(gateway, "pushed_out", client_id, more);
    }

    pub fn connected(&self, gateway: &Gateway, client_id: &str, more: Value) {
        self.push(gateway, "connected", client_id, more);
    }

    pub fn closed(&self, gateway: &Gateway, client_id: &str, cause: Cause) {
        let mut more = json!({ "reason": cause.name(), "code": cause.reason().map(|code| code.0) });
        if let Cause::Violation(v) = cause {
            more["statement"] = v.statement.into();
        }
        self.push(gateway, "closed", client_id, more);
    }

    pub fn refused(&self, gateway: &Gateway, client_id: &str, address: Option<String>, reason: ReasonCode) {
        self.push(gateway, "refused", client_id, json!({ "address": address, "code": reason.0 }));
    }

    /// Pages of other origins asked for a socket or the feed, `before` times since this was said last.
    pub fn refused_origin(&self, gateway: &Gateway, origin: &str, address: Option<String>, before: u64) {
        self.push(gateway, "refused", "", json!({ "address": address, "origin": origin, "code": 403, "more": before }));
    }

    /// By the admin API.
    pub fn session_deleted(&self, gateway: &Gateway, client_id: &str) {
        self.push(gateway, "deleted", client_id, json!({}));
    }

    /// By the admin API.
    pub fn retained_cleared(&self, gateway: &Gateway, filter: &str, topics: usize) {
        self.push(gateway, "cleared", "", json!({ "filter": filter, "topics": topics }));
    }

    /// Adds what was dropped or refused to the events of the next second.
    pub fn counted(&self, gateway: &Gateway, client_id: &str, counts: &Counts) {
        let reasons = [
            (("dropped", "behind"), counts.dropped_behind.into()),
            (("dropped", "too_large"), counts.dropped_too_large.into()),
            (("dropped", "expired"), counts.dropped_expired.into()),
            (("dropped", "lost"), counts.lost),
            (("refused", "topic"), counts.refused_topic.into()),
        ];
        if gateway.system.is_none() || reasons.iter().all(|(_, n)| *n == 0) {
            return;
        }
        let mut waiting = self.waiting.lock();
        for (reason, n) in reasons.into_iter().filter(|(_, n)| *n > 0) {
            self.add(&mut waiting, gateway, (client_id, reason), n);
        }
    }

    /// Adds what met a limit to the same.
    pub fn limited(&self, gateway: &Gateway, client_id: &str, limit: Limit) {
        if gateway.system.is_some() {
            self.add(&mut self.waiting.lock(), gateway, (client_id, ("refused", limit.key())), 1);
        }
    }

    fn add(&self, waiting: &mut Waiting, gateway: &Gateway, (client_id, what): (&str, (&'static str, &'static str)), n: u64) {
        if waiting.counted.len() >= WAITING_MAX {
            gateway.totals.add(Total::EventsDropped, 1);
        } else {
            *waiting.counted.entry((client_id.into(), what)).or_default() += n;
        }
    }

    fn tell_counted(&self, gateway: &Gateway) {
        let counted = std::mem::take(&mut self.waiting.lock().counted);
        for ((client_id, (kind, reason)), n) in counted {
            self.push(gateway, kind, &client_id, json!({ "reason": reason, "messages": n }));
        }
    }

    /// Appends what waits, if the log takes it.
    pub async fn flush(&self, gateway: &Gateway) {
        self.tell_counted(gateway);
        let events = std::mem::take(&mut self.waiting.lock().events);
        let events = events.iter().map(|(topic, value)| (topic.as_str(), value.to_string(), false));
        append(gateway, events).await;
    }
}

/// Appends messages of the gateway's own: topic, payload, retained.
pub(crate) async fn append<'a>(gateway: &Gateway, messages: impl Iterator<Item = (&'a str, String, bool)>) {
    let mut records = Records::default();
    for (topic, payload, retain) in messages {
        let message = Message {
            topic: Topic::Borrowed(topic),
            qos: Qos::ExactlyOnce,
            retain,
            client_hash: 0,
            expires_ms: None,
            mark: None,
            headers: Cow::Borrowed(&[]),
            payload: payload.as_bytes(),
        };
        if encode(&message, &mut records).is_err() {
            gateway.totals.add(Total::EventsDropped, 1);
        }
        if records.bytes().len() >= CHUNK_BYTES {
            append_records(gateway, &mut records).await;
        }
    }
    append_records(gateway, &mut records).await;
}

struct Room(Notify);

impl Wake for Room {
    fn wake(&self) {
        self.0.notify_one();
    }
}

async fn append_records(gateway: &Gateway, records: &mut Records) {
    let Some(p) = gateway.system.map(|nth| weir_log::PartitionId(gateway.partitions[nth].0)).filter(|_| !records.is_empty()) else {
        return records.clear();
    };
    let room = Arc::new(Room(Notify::new()));
    let who: Arc<dyn Wake> = room.clone();
    loop {
        match gateway.engine.append(p, records, &who) {
            Ok(_) => return records.clear(),
            Err(AppendError::Full) => room.0.notified().await,
            Err(e) => {
                gateway.totals.add(Total::EventsDropped, records.len() as u64);
                if !matches!(e, AppendError::Stopping) {
                    gateway.partition_failed(&e);
                }
                return records.clear();
            }
        }
    }
}

/// Who is behind, looked at once a second: who was at two looks is told of.
#[derive(Default)]
struct Behind {
    before: HashSet<u64>,
    told: HashSet<u64>,
}

impl Behind {
    fn look(&mut self, gateway: &Gateway) {
        let ends = gateway.ends();
        let mut now = HashSet::new();
        for peer in &gateway.peers {
            let Some(identity) = peer.identity() else { continue };
            if let Some(records) = peer.lag(&ends) {
                now.insert(peer.id);
                if self.before.contains(&peer.id) && self.told.insert(peer.id) {
                    gateway.events.push(gateway, "behind", &identity.client_id, json!({ "records": records }));
                }
            } else if self.told.remove(&peer.id) {
                gateway.events.push(gateway, "live", &identity.client_id, json!({}));
            }
        }
        // Who is gone is told of as closed.
        self.told.retain(|id| gateway.peers.contains_key(id));
        self.before = now;
    }
}

/// Until the process ends.
pub(crate) async fn run(gateway: Arc<Gateway>) {
    let (mut behind, mut tick) = (Behind::default(), tokio::time::interval(Duration::from_secs(1)));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = gateway.events.bell.notified() => tokio::time::sleep(LINGER).await,
            _ = tick.tick() => behind.look(&gateway),
        }
        gateway.events.flush(&gateway).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_client_id_is_one_level() {
        assert_eq!(level("plain-1.é"), "plain-1.é");
        assert_eq!(level("a/b+c#d%e"), "a%2Fb%2Bc%23d%25e");
        assert_eq!(level(&"/".repeat(65_000)).len(), 3 * 128);
        assert!(weir_core::topic::topic_is_valid(&format!("$SYS/events/closed/{}", level("+/#"))));
    }
}
