//! The same as server-sent events: `GET /events?filter=…`, for curl and for who cannot have a websocket.
//!
//! Invariant: each message has as its id where it leads to, so `Last-Event-ID` goes on there with nothing missed.
//! Must not know: what a subscription does.

use crate::{
    ask::{Wanted, parse_reached},
    feed::Feed,
    outlet::Outlet,
    socket::{Here, wall_ms},
    subscription,
};
use axum::{
    body::Body,
    extract::{Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;
use serde::Deserialize;
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::sync::mpsc;
use weir_log::Asker;

/// A comment, so that what stands between does not take it for dead.
const BEAT: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    filter: String,
    from: Option<String>,
    at: Option<String>,
    until: Option<String>,
    step: Option<String>,
    field: Option<String>,
    rate_max: Option<f64>,
    latest_only: Option<bool>,
    snapshot: Option<bool>,
    trace: Option<bool>,
}

pub async fn events(State(feed): State<Arc<Feed>>, headers: HeaderMap, Query(asked): Query<Asked>) -> Response {
    let refuse = |words: &str| (StatusCode::BAD_REQUEST, format!("{words}\n")).into_response();
    let Asked { filter, from, at, until, step, field, rate_max, latest_only, snapshot, trace } = asked;
    let mut wanted = Wanted { filter, from, at, until, step, field, rate_max, latest_only, snapshot, trace, ..Wanted::default() };
    if let Some(id) = headers.get("last-event-id") {
        let Some(reached) = id.to_str().ok().and_then(parse_reached) else { return refuse("Last-Event-ID: not one of this feed") };
        // What it asked for the first time it has had.
        (wanted.from, wanted.snapshot, wanted.resume) = (None, None, Some(reached));
    }
    let wish = match wanted.wish(wall_ms()) {
        Ok(wish) => wish,
        Err(words) => return refuse(&words),
    };
    let Some(here) = Here::new(&feed) else { return Here::refused() };
    // One on its way, and one that waits.
    let (tx, rx) = mpsc::channel(1);
    let task = tokio::spawn(subscription::run(feed, wish, Outlet::Events(tx), Asker::browser()));
    let ended = Ended(task);
    let body = stream::unfold((rx, here, ended), |(mut rx, here, ended)| async move {
        let text = match tokio::time::timeout(BEAT, rx.recv()).await {
            Ok(text) => text?,
            Err(_) => ": here\n\n".into(),
        };
        Some((Ok::<_, Infallible>(text), (rx, here, ended)))
    });
    ([(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")], Body::from_stream(body)).into_response()
}

/// Its subscription ends with the request.
struct Ended(tokio::task::JoinHandle<Result<(), crate::outlet::Gone>>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.abort();
    }
}
