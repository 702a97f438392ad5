//! Who is connected.
//!
//! Invariant: says what each connection has last said of itself; asks nobody.
//! Must not know: sessions.

use crate::{gateway::Gateway, peer::Peer};
use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// A connection.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ClientInfo {
    pub client_id: String,
    /// Hash of the id: a record names its publisher so.
    pub origin: String,
    /// `3.1.1` or `5`.
    pub version: String,
    /// Where it comes from.
    pub address: Option<String>,
    /// Milliseconds since 1970.
    pub connected_ms: u64,
    /// Records between it and the end of the log while it reads from the log; missing: it is given what comes as it comes, or reads nothing.
    pub behind_records: Option<u64>,
}

/// The clients that are connected, by client id.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ClientsInfo {
    pub clients: Vec<ClientInfo>,
}

/// Who is connected, by client id.
#[utoipa::path(get, path = "/api/v1/clients", responses((status = 200, body = ClientsInfo)))]
pub(crate) async fn clients(State(gateway): State<Arc<Gateway>>) -> Json<ClientsInfo> {
    let ends = gateway.ends();
    let info = |p: &Peer| {
        let identity = p.identity().filter(|_| p.is_connected())?;
        Some(ClientInfo {
            client_id: identity.client_id.to_string(),
            origin: format!("{:016x}", weir_core::message::hash(identity.client_id.as_bytes())),
            version: identity.version.to_string(),
            address: p.address.map(|a| a.to_string()),
            connected_ms: identity.connected_ms,
            behind_records: p.lag(&ends),
        })
    };
    let mut clients: Vec<_> = gateway.peers.iter().filter_map(|p| info(p.value())).collect();
    clients.sort_unstable_by(|a, b| a.client_id.cmp(&b.client_id));
    Json(ClientsInfo { clients })
}

/// Ends a connection; its session stays, as after any other end. Version 5 is told: administrative action.
#[utoipa::path(delete, path = "/api/v1/clients/{client_id}", params(("client_id" = String, Path)),
    responses((status = 204, description = "It is told to go."), (status = 403, description = "It comes from a page that is not the gateway's own."),
        (status = 404, description = "Nobody of this id is connected.")))]
pub(crate) async fn disconnect(State(gateway): State<Arc<Gateway>>, Path(client_id): Path<String>) -> Response {
    let Some(peer) = gateway.connection(&client_id) else { return not_connected(&client_id) };
    tracing::info!(client = crate::refusals::short(&client_id), "disconnected by the admin API");
    peer.tell(|m| m.dismissed = true);
    StatusCode::NO_CONTENT.into_response()
}

fn not_connected(client_id: &str) -> Response {
    (StatusCode::NOT_FOUND, format!("nobody with client id {client_id} is connected\n")).into_response()
}
