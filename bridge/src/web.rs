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

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";
const TEXT: &str = "text/plain; charset=utf-8";

/// Path, kind, content.
macro_rules! files {
    ($($path:literal, $kind:ident, $file:literal;)*) => {
        /// Everything that a browser may load.
        pub const FILES: &[(&str, &str, &str)] = &[$(($path, $kind, include_str!(concat!("../web/", $file))),)*];
    };
}

files! {
    "/", HTML, "index.html";
    "/page.css", CSS, "page.css";
    "/icon.svg", SVG, "icon.svg";
    "/admin.js", JS, "admin.js";
    "/app.js", JS, "app.js";
    "/banner.js", JS, "banner.js";
    "/charts.js", JS, "charts.js";
    "/client.js", JS, "client.js";
    "/clients.js", JS, "clients.js";
    "/draw.js", JS, "draw.js";
    "/export.js", JS, "export.js";
    "/figures.js", JS, "figures.js";
    "/first.js", JS, "first.js";
    "/format.js", JS, "format.js";
    "/groups.js", JS, "groups.js";
    "/keys.js", JS, "keys.js";
    "/life.js", JS, "life.js";
    "/logview.js", JS, "logview.js";
    "/model.js", JS, "model.js";
    "/mqtt.js", JS, "mqtt.js";
    "/payload.js", JS, "payload.js";
    "/publish.js", JS, "publish.js";
    "/refusals.js", JS, "refusals.js";
    "/retained.js", JS, "retained.js";
    "/search.js", JS, "search.js";
    "/series.js", JS, "series.js";
    "/strip.js", JS, "strip.js";
    "/topic.js", JS, "topic.js";
    "/tree.js", JS, "tree.js";
    "/urgent.js", JS, "urgent.js";
    "/vendor/uplot.js", JS, "vendor/uplot.js";
    "/vendor/uplot.css", CSS, "vendor/uplot.css";
    "/vendor/LICENSE.uplot", TEXT, "vendor/LICENSE.uplot";
}

/// The page and the feed.
pub fn router(feed: Arc<Feed>) -> Router {
    let feeds = Router::new().route("/ws", get(ws)).route("/events", get(events)).with_state(feed);
    FILES.iter().fold(feeds, |router, (path, kind, content)| router.route(path, get(|| async { file(kind, content) })))
}

fn file(kind: &'static str, content: &'static str) -> Response {
    let mut response = content.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    );
    // A page of another version would not understand the feed.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}
