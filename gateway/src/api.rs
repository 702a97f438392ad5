//! The admin API: what is connected, what a session waits for, what the log holds; and one thing that changes something, the end of a connection.
//!
//! Invariant: a connected session is described by its own connection, any other by what the store has; nothing here waits for a slow one for ever.
//! Must not know: sockets, the command line.

use crate::{gateway::Gateway, gateway::session_key, peer::Peer};
use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header::ORIGIN},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};
use tokio::sync::oneshot;
use utoipa::{OpenApi, ToSchema};
use weir_core::{
    packet::Version,
    session::{Session, describe::Description},
    topic::is_system,
};
use weir_log::Watermark;

/// A connection describes its session when it has its turn.
const PATIENCE: Duration = Duration::from_secs(2);

/// A connection.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ClientInfo {
    pub client_id: String,
    /// `3.1.1` or `5`.
    pub version: String,
    /// Where it comes from; missing behind a websocket.
    pub address: Option<String>,
    /// Milliseconds since 1970.
    pub connected_ms: u64,
    /// Records between it and the end of the log while it reads from the log; missing: it is given what comes as it comes, or reads nothing.
    pub behind_records: Option<u64>,
}

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
    /// Records below this are gone; a session whose next is below it loses some.
    pub start: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SessionInfo {
    pub client_id: String,
    pub connected: bool,
    pub version: String,
    /// Seconds that it outlives its connection; missing: for ever.
    pub expiry_s: Option<u32>,
    pub has_will: bool,
    pub subscriptions: Vec<SubscriptionInfo>,
    pub places: Vec<PlaceInfo>,
    /// Messages with QoS 1 and 2 that were sent and not acknowledged by the client.
    pub in_flight: usize,
    pub in_flight_max: usize,
    /// Offset of the oldest of them.
    pub oldest_in_flight: Option<u64>,
    /// What it published and is not acknowledged yet, for the disk has not answered.
    pub unacknowledged: usize,
    /// Messages with QoS 2 that it published and has not released.
    pub unreleased: usize,
}

/// One partition of the log.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PartitionInfo {
    pub stream: String,
    pub partition: u32,
    /// The oldest record that is kept.
    pub start: u64,
    /// One past the newest durable record.
    pub end: u64,
    pub segments: usize,
    pub bytes: u64,
    /// Why nothing more is taken; missing: all is well.
    pub failed: Option<String>,
}

#[derive(OpenApi)]
#[openapi(
    info(title = "Weir, admin API", description = "On the admin port only: whoever reaches it may do everything."),
    paths(clients, disconnect, session, streams)
)]
struct Api;

/// Its routes.
pub(crate) fn routes() -> Router<Arc<Gateway>> {
    Router::new()
        .route("/api/v1/clients", get(clients))
        .route("/api/v1/clients/{client_id}", axum::routing::delete(disconnect))
        .route("/api/v1/sessions/{client_id}", get(session))
        .route("/api/v1/streams", get(streams))
        .route("/api/v1/openapi.json", get(|| async { Json(Api::openapi()) }))
}

fn version(v: Version) -> String {
    if v == Version::V5 { "5" } else { "3.1.1" }.into()
}

fn find(gateway: &Gateway, client_id: &str) -> Option<Arc<Peer>> {
    let here = |p: &Peer| p.is_connected() && p.identity().is_some_and(|i| &*i.client_id == client_id);
    gateway.peers.iter().find(|p| here(p.value())).map(|p| p.value().clone())
}

/// Who is connected, by client id.
#[utoipa::path(get, path = "/api/v1/clients", responses((status = 200, body = Vec<ClientInfo>)))]
async fn clients(State(gateway): State<Arc<Gateway>>) -> Json<Vec<ClientInfo>> {
    let ends = gateway.ends();
    let info = |p: &Peer| {
        let identity = p.identity().filter(|_| p.is_connected())?;
        Some(ClientInfo {
            client_id: identity.client_id.to_string(),
            version: version(identity.version),
            address: identity.address.map(|a| a.to_string()),
            connected_ms: identity.connected_ms,
            behind_records: p.lag(&ends),
        })
    };
    let mut all: Vec<_> = gateway.peers.iter().filter_map(|p| info(p.value())).collect();
    all.sort_unstable_by(|a, b| a.client_id.cmp(&b.client_id));
    Json(all)
}

/// Ends a connection; its session stays, as after any other end. Version 5 is told: administrative action.
#[utoipa::path(delete, path = "/api/v1/clients/{client_id}", params(("client_id" = String, Path)),
    responses((status = 204, description = "It is told to go."), (status = 403, description = "It comes from a page in a browser."),
        (status = 404, description = "Nobody of this id is connected.")))]
async fn disconnect(State(gateway): State<Arc<Gateway>>, Path(client_id): Path<String>, headers: HeaderMap) -> Response {
    if headers.contains_key(ORIGIN) {
        // A page of somebody else's in the browser of whoever may reach this port.
        return (StatusCode::FORBIDDEN, "not from a browser\n").into_response();
    }
    let Some(peer) = find(&gateway, &client_id) else { return not_connected(&client_id) };
    tracing::info!(client = &*client_id, "disconnected by the admin API");
    peer.tell(|m| m.dismissed = true);
    StatusCode::NO_CONTENT.into_response()
}

fn not_connected(client_id: &str) -> Response {
    (StatusCode::NOT_FOUND, format!("nobody with client id {client_id} is connected\n")).into_response()
}

/// What a session reads, how far it has come, and what it waits for; connected or not.
#[utoipa::path(get, path = "/api/v1/sessions/{client_id}", params(("client_id" = String, Path)),
    responses((status = 200, body = SessionInfo), (status = 404, description = "There is no such session."),
        (status = 503, description = "Its connection did not answer, or the store cannot be read.")))]
async fn session(State(gateway): State<Arc<Gateway>>, Path(client_id): Path<String>) -> Response {
    if let Some(peer) = find(&gateway, &client_id) {
        let (tx, rx) = oneshot::channel();
        peer.tell(|m| m.describe.push(tx));
        // One that ends meanwhile does not answer: the store knows it then. Its end takes the question away, unless it came too late for that.
        if peer.is_connected() {
            match tokio::time::timeout(PATIENCE, rx).await {
                Ok(Ok(description)) => return Json(info(&gateway, client_id, true, description)).into_response(),
                Ok(Err(_)) => {}
                Err(_) => return (StatusCode::SERVICE_UNAVAILABLE, "its connection does not answer\n").into_response(),
            }
        }
    }
    let (tx, rx) = oneshot::channel();
    gateway.engine.state().get(&session_key(&client_id), Box::new(move |entry| drop(tx.send(entry))));
    match rx.await {
        Ok(Ok(Some(entry))) => match Session::decode(&client_id, &entry.value) {
            Ok(s) => Json(info(&gateway, client_id, false, s.describe())).into_response(),
            Err(e) => (StatusCode::SERVICE_UNAVAILABLE, format!("key c/{client_id}: {e}\n")).into_response(),
        },
        Ok(Ok(None)) => (StatusCode::NOT_FOUND, format!("there is no session of {client_id}\n")).into_response(),
        Ok(Err(e)) => (StatusCode::SERVICE_UNAVAILABLE, format!("the state store: {e}\n")).into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the log stops\n").into_response(),
    }
}

fn info(gateway: &Gateway, client_id: String, connected: bool, d: Description) -> SessionInfo {
    let system = d.subscriptions.iter().any(|s| is_system(&s.filter));
    let place = |p: &weir_core::session::describe::Place| {
        if gateway.is_system(p.partition) && !system {
            return None;
        }
        let known = gateway.engine.partitions().iter().find(|known| known.id.0 == p.partition.0)?;
        let span = gateway.engine.span(known.id);
        Some(PlaceInfo {
            stream: known.stream.clone(),
            partition: known.number,
            next: p.next.0,
            end: span.durable.0,
            live: connected && p.live,
            start: span.start.0,
        })
    };
    SessionInfo {
        client_id,
        connected,
        version: version(d.version),
        expiry_s: (d.expiry_s != u32::MAX).then_some(d.expiry_s),
        has_will: d.has_will,
        places: d.places.iter().filter_map(place).collect(),
        subscriptions: d.subscriptions.into_iter().map(|s| SubscriptionInfo { filter: s.filter.into(), qos: s.qos }).collect(),
        in_flight: d.in_flight,
        in_flight_max: d.in_flight_max,
        oldest_in_flight: d.oldest_in_flight.map(|(_, at)| at.0),
        unacknowledged: d.unacknowledged,
        unreleased: d.unreleased,
    }
}

/// What the log holds.
#[utoipa::path(get, path = "/api/v1/streams", responses((status = 200, body = Vec<PartitionInfo>),
    (status = 503, description = "A directory of the log cannot be listed.")))]
async fn streams(State(gateway): State<Arc<Gateway>>) -> Response {
    let mut all = Vec::new();
    for p in gateway.engine.partitions() {
        let span = gateway.engine.span(p.id);
        let segments = match gateway.engine.segments(p.id) {
            Ok(segments) => segments,
            Err(e) => return (StatusCode::SERVICE_UNAVAILABLE, format!("{}/{}: {e}\n", p.stream, p.number)).into_response(),
        };
        let failed = if let Watermark::Failed(f) = gateway.engine.appended(p.id) { Some(f.to_string()) } else { None };
        all.push(PartitionInfo {
            stream: p.stream.clone(),
            partition: p.number,
            start: span.start.0,
            end: span.durable.0,
            segments: segments.len(),
            bytes: segments.iter().map(|s| s.bytes).sum(),
            failed,
        });
    }
    Json(all).into_response()
}
