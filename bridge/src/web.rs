//! What a browser loads and where it listens: the page's files, `/ws`, `/events`.
//!
//! Invariant: the page may load nothing from elsewhere; a file is what was compiled in.
//! Must not know: MQTT, what the page shows.

use crate::{events::events, feed::Feed, socket::ws};
use axum::{
    Router,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
    routing::get,
};
use std::sync::Arc;

/// The page and the feed.
pub fn router(feed: Arc<Feed>) -> Router {
    Router::new()
        .route("/", get(|| async { file("text/html; charset=utf-8", include_str!("../web/index.html")) }))
        .route("/page.js", get(|| async { file("text/javascript; charset=utf-8", include_str!("../web/page.js")) }))
        .route("/page.css", get(|| async { file("text/css; charset=utf-8", include_str!("../web/page.css")) }))
        .route("/ws", get(ws))
        .route("/events", get(events))
        .with_state(feed)
}

fn file(kind: &'static str, content: &'static str) -> Response {
    let mut response = content.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'self'"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
