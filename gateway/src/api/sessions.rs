//! Sessions: what each reads, how far it has come, what it waits for; and who gets a topic.
//!
//! Invariant: a connected session is described by its own connection, any other by what the store has; nothing here waits for a slow one for ever.
//! Must not know: how a session works.

use super::{Part, heavy::json, unavailable};
use crate::{
    clock::date_ms,
    gateway::{Gateway, session_key},
    waiting::{First, Reader},
};
use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};
use tokio::{sync::oneshot, task::JoinError, time::Instant};
use utoipa::{IntoParams, ToSchema};
use weir_core::{
    session::{
        Session,
        describe::{Description, Place},
    },
    topic::{filter_matches, is_system, shared},
};
use weir_log::{Offset, Partition, SegmentInfo};

/// Of the filters in one answer; the next part goes on behind it.
const BYTES_MAX: usize = 1 << 20;
/// A connection describes its session when it has its turn.
const PATIENCE: Duration = Duration::from_secs(2);
/// So long the log is searched for what waits for the sessions of one answer; the next answer goes on there.
const SEARCH: Duration = Duration::from_millis(200);

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SubscriptionInfo {
    pub filter: String,
    pub qos: u8,
}

/// How far a session has come in one partition.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PlaceInfo {
    pub stream: String,
    pub partition: u32,
    /// The record that it reads next.
    pub next: u64,
    /// The end of the log.
    pub end: u64,
    /// It is given what comes as it comes.
    pub live: bool,
    /// Milliseconds since the first message was written that waits for it; missing: none does.
    pub behind_ms: Option<u64>,
    /// Records below this are gone; a session whose next is below it loses some.
    pub start: u64,
    /// When retention takes that message, ms since 1970, if it reads no further and the log grows on as in the last minutes; missing: not foreseen.
    pub loss_at_ms: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SessionInfo {
    pub client_id: String,
    pub connected: bool,
    /// Without a connection since then, ms since 1970.
    pub since_ms: Option<u64>,
    pub version: String,
    /// Seconds that it outlives its connection; missing: for ever.
    pub expiry_s: Option<u32>,
    pub has_will: bool,
    pub subscriptions: Vec<SubscriptionInfo>,
    /// Of the partitions that its own filters read; a group reads for its members.
    pub places: Vec<PlaceInfo>,
    /// Messages with QoS 1 and 2 that were sent and not acknowledged by the client.
    pub in_flight: usize,
    pub in_flight_max: usize,
    /// Offset of the oldest of them.
    pub oldest_in_flight: Option<u64>,
    /// STREAM/PARTITION of that one.
    pub oldest_in_flight_in: Option<String>,
    /// How often in a row it has left with that one unacknowledged, since the gateway was started: it may
    /// not be able to take it.
    pub left_there: u32,
    /// What it published and is not acknowledged yet, for the disk has not answered.
    pub unacknowledged: usize,
    /// Messages with QoS 2 that it published and has not released.
    pub unreleased: usize,
}

/// What a session reads, how far it has come, and what it waits for; connected or not.
#[utoipa::path(get, path = "/api/v1/sessions/{client_id}", params(("client_id" = String, Path)),
    responses((status = 200, body = SessionInfo), (status = 404, description = "There is no such session."),
        (status = 503, description = "Its connection did not answer, or the store cannot be read.")))]
pub(crate) async fn session(State(gateway): State<Arc<Gateway>>, Path(client_id): Path<String>) -> Response {
    match look(&gateway, &files(&gateway), &client_id, Instant::now() + SEARCH).await {
        Ok(Some(session)) => Json(session).into_response(),
        Ok(None) => (StatusCode::NOT_FOUND, format!("there is no session of {client_id}\n")).into_response(),
        Err(words) => unavailable(words),
    }
}

/// Asks its connection, or the store. `None`: there is no such session. What waits for it is looked for in the log until `until`.
pub(super) async fn look(
    gateway: &Gateway,
    files: &[Vec<SegmentInfo>],
    client_id: &str,
    until: Instant,
) -> Result<Option<SessionInfo>, String> {
    let of = async |connected, description: Description| {
        let waiting = waits(gateway, files, client_id, connected, &description, until).await;
        let mut session = info(gateway, client_id.to_owned(), connected, description);
        for (place, waits) in session.places.iter_mut().zip(waiting) {
            (place.behind_ms, place.loss_at_ms) = waits;
        }
        Ok(Some(session))
    };
    if let Some(peer) = gateway.connection(client_id) {
        let (tx, rx) = oneshot::channel();
        peer.tell(|m| m.describe.push(tx));
        // One that ends meanwhile does not answer: the store knows it then. Its end takes the question away, unless it came too late for that.
        if peer.is_connected() {
            match tokio::time::timeout(PATIENCE, rx).await {
                Ok(Ok(description)) => return of(true, description).await,
                Ok(Err(_)) => {}
                Err(_) => return Err("its connection does not answer".into()),
            }
        }
    }
    let (tx, rx) = oneshot::channel();
    gateway.engine.state().get(&session_key(client_id), Box::new(move |entry| drop(tx.send(entry))));
    match rx.await {
        Ok(Ok(Some(entry))) => match Session::decode(client_id, &entry.value) {
            Ok(s) => of(false, s.describe(gateway.ended(&s))).await,
            Err(e) => Err(format!("key c/{client_id}: {e}")),
        },
        Ok(Ok(None)) => Ok(None),
        Ok(Err(e)) => Err(format!("the state store: {e}")),
        Err(_) => Err("the log stops".into()),
    }
}

#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Which {
    /// Only sessions that get messages of this topic.
    topic: Option<String>,
}

/// A part of all sessions, by client id: connected ones, and those that the store keeps.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SessionsInfo {
    pub sessions: Vec<SessionInfo>,
    /// There may be more behind this one; missing: these were the last.
    pub after: Option<String>,
}

/// All sessions, or who gets the messages of a topic. With a topic a part may be empty and still not the last.
#[utoipa::path(get, path = "/api/v1/sessions", params(Which, Part),
    responses((status = 200, body = SessionsInfo), (status = 503, description = "A connection did not answer, or the store cannot be read.")))]
pub(crate) async fn sessions(State(gateway): State<Arc<Gateway>>, Query(which): Query<Which>, Query(part): Query<Part>) -> Response {
    let limit = part.limit();
    let stored = match stored(&gateway, session_key(&part.after), limit + 1).await {
        Ok(keys) => keys,
        Err(e) => return unavailable(e),
    };
    let stored = stored.iter().filter_map(|key| std::str::from_utf8(key.strip_prefix(b"c/")?).ok()).map(Into::into);
    let peers: Vec<_> = gateway.peers.iter().map(|p| p.value().clone()).collect();
    let here = peers.iter().filter(|p| p.is_connected()).filter_map(|p| p.identity());
    let here = here.map(|i| i.client_id.to_string()).filter(|id| *id > part.after);
    let mut names: Vec<String> = stored.chain(here).collect();
    names.sort_unstable();
    names.dedup();
    let more = names.len() > limit;
    names.truncate(limit);
    let until = Instant::now() + SEARCH;
    let (mut sessions, files, mut bytes, mut looked_at) = (Vec::new(), files(&gateway), 0, None);
    for name in &names {
        if bytes > BYTES_MAX {
            return json(&SessionsInfo { sessions, after: looked_at });
        }
        looked_at = Some(name.clone());
        match look(&gateway, &files, name, until).await {
            Ok(Some(session)) if which.topic.as_ref().is_none_or(|topic| gets(&session, topic)) => {
                bytes += session.subscriptions.iter().map(|s| s.filter.len() + 32).sum::<usize>();
                sessions.push(session);
            }
            // Gone meanwhile.
            Ok(_) => {}
            Err(words) => return unavailable(format!("{name}: {words}")),
        }
    }
    let after = names.pop().filter(|_| more);
    json(&SessionsInfo { sessions, after })
}

/// Keys of the store, in order. Looking for them holds up whoever puts, so it is done for a tenth of the time at most.
async fn stored(gateway: &Arc<Gateway>, behind: Vec<u8>, max: usize) -> Result<Vec<Box<[u8]>>, JoinError> {
    let _turn = gateway.listing.lock().await;
    let (asking, began) = (gateway.clone(), Instant::now());
    let keys = tokio::task::spawn_blocking(move || asking.engine.state().keys(b"c/", &behind, max)).await;
    tokio::time::sleep(began.elapsed() * 9).await;
    keys
}

fn gets(s: &SessionInfo, topic: &str) -> bool {
    s.subscriptions.iter().any(|s| filter_matches(shared(&s.filter).map_or(&*s.filter, |(_, filter)| filter), topic))
}

/// The files of each partition, as long as they can be listed: once for all sessions of an answer.
fn files(gateway: &Gateway) -> Vec<Vec<SegmentInfo>> {
    gateway.engine.partitions().iter().map(|p| gateway.engine.segments(p.id).unwrap_or_default()).collect()
}

/// Places in partitions that its own filters read; a group reads for its members.
fn own_places<'a>(gateway: &'a Gateway, d: &'a Description) -> impl Iterator<Item = (&'a Place, &'a Partition)> {
    let reads = |system: bool| d.subscriptions.iter().any(|s| shared(&s.filter).is_none() && is_system(&s.filter) == system);
    let [messages, system] = [reads(false), reads(true)];
    d.places.iter().filter_map(move |p| {
        let known = gateway.engine.partitions().iter().find(|known| known.id.0 == p.partition.0)?;
        (if gateway.is_system(p.partition) { system } else { messages }).then_some((p, known))
    })
}

/// Of each of its places: for how long something has waited for it, and when that is lost.
async fn waits(
    gateway: &Gateway,
    files: &[Vec<SegmentInfo>],
    client_id: &str,
    connected: bool,
    d: &Description,
    until: Instant,
) -> Vec<(Option<u64>, Option<u64>)> {
    let mut all = Vec::new();
    let own = d.subscriptions.iter().filter(|s| shared(&s.filter).is_none());
    let filters: Vec<_> = own.map(|s| (&*s.filter, s.qos)).collect();
    for (p, known) in own_places(gateway, d) {
        // One that takes no more is not live, whatever it is offered.
        let reads_no_further = !(connected && p.live) || d.in_flight >= d.in_flight_max;
        let (next, kept_until) = (Offset(p.next.0), Offset(p.kept_until.0));
        let reader = Reader { client_id, connected, filters: &filters, next, kept_until };
        let first = if reads_no_further { gateway.waiting.first(gateway, known.id, &reader, until).await } else { None };
        let files = gateway.partitions.iter().position(|q| *q == p.partition).and_then(|nth| files.get(nth));
        let loss_at = |first: First| gateway.loss_at(p.partition, files?, first.at);
        all.push((first.map(|first| gateway.now().wall_ms.saturating_sub(first.time_ms)), first.and_then(loss_at)));
    }
    all
}

/// What waits for it is not known yet.
fn info(gateway: &Gateway, client_id: String, connected: bool, d: Description) -> SessionInfo {
    let place = |(p, known): (&Place, &Partition)| {
        let span = gateway.engine.span(known.id);
        PlaceInfo {
            stream: known.stream.clone(),
            partition: known.number,
            next: p.next.0,
            end: span.durable.0,
            live: connected && p.live,
            behind_ms: None,
            start: span.start.0,
            loss_at_ms: None,
        }
    };
    let partition = d.oldest_in_flight.and_then(|(p, _)| gateway.partitions.iter().position(|q| *q == p));
    let oldest_in = partition.and_then(|nth| gateway.streams.get(nth));
    let left_there = gateway.departures.of(&client_id, d.oldest_in_flight).map_or(0, |d| d.times);
    SessionInfo {
        client_id,
        connected,
        since_ms: Some(date_ms(gateway.now(), d.since_ms)).filter(|_| !connected),
        version: d.version.to_string(),
        expiry_s: (d.expiry_s != u32::MAX).then_some(d.expiry_s),
        has_will: d.has_will,
        places: own_places(gateway, &d).map(place).collect(),
        subscriptions: d.subscriptions.into_iter().map(|s| SubscriptionInfo { filter: s.filter.into(), qos: s.qos }).collect(),
        in_flight: d.in_flight,
        in_flight_max: d.in_flight_max,
        oldest_in_flight: d.oldest_in_flight.map(|(_, at)| at.0),
        oldest_in_flight_in: oldest_in.map(|(stream, number)| format!("{stream}/{number}")),
        left_there,
        unacknowledged: d.unacknowledged,
        unreleased: d.unreleased,
    }
}
