//! HTTP: MQTT over websocket beside the browser's page and feed, and the admin port.
//!
//! Invariant: what changes or reveals something about the process is on the admin port only.
//! Must not know: what the page shows.

use crate::{
    api::{
        self,
        process::Process,
        shared::{Answers, share},
    },
    gateway::Gateway,
    websocket,
};
use axum::{
    Router,
    extract::{Request, State},
    http::{StatusCode, header::CONTENT_TYPE},
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::get,
};
use std::sync::Arc;
use weir_bridge::{feed::Feed, upgrade::upgrade, web};
use weir_core::session::PACKET_BYTES_MAX;

/// The port for browsers.
pub(crate) fn public(gateway: Arc<Gateway>, feed: Arc<Feed>) -> Router {
    let reading = api::reading().layer(from_fn_with_state(Answers::default(), share));
    Router::new().route("/mqtt", get(mqtt)).merge(reading).with_state(gateway).merge(web::router(feed))
}

async fn mqtt(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    if gateway.is_draining() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    upgrade(request, Some("mqtt"), PACKET_BYTES_MAX, |socket| websocket::serve(socket, gateway))
}

/// The port for those who run it.
pub(crate) fn admin(gateway: Arc<Gateway>, process: Arc<Process>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(gateway.clone())
        .merge(api::running(gateway, process))
}

/// In the text format of Prometheus.
async fn metrics(State(gateway): State<Arc<Gateway>>) -> Response {
    let text = gateway.metrics.render(&gateway);
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// Ready: takes connections and can acknowledge.
async fn ready(State(gateway): State<Arc<Gateway>>) -> Response {
    if gateway.is_draining() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response();
    }
    match gateway.log_trouble() {
        Some(trouble) => (StatusCode::SERVICE_UNAVAILABLE, format!("{trouble}\n")).into_response(),
        None => "ready\n".into_response(),
    }
}
