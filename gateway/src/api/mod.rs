//! The admin API: what is connected, what sessions wait for, what the log holds, how the process runs; and what changes something: the end of a connection or
//! of a session, a message by hand, retained messages, the log level.
//!
//! Invariant: what reads is on the page's origin too. What changes something or reveals the
//! configuration is on the admin port only, and of all pages only the gateway's own may ask for it.
//! Must not know: sockets, the command line.

pub mod change;
pub mod clients;
pub mod groups;
pub(crate) mod heavy;
pub mod log;
mod own_page;
pub mod past;
pub mod process;
pub mod records;
mod refusal;
pub mod sessions;
pub(crate) mod shared;

use crate::gateway::Gateway;
use axum::{
    Json, Router,
    http::StatusCode,
    middleware::{from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use heavy::{Heavy, few};
pub(crate) use own_page::OwnPage;
use own_page::{own_page, preflight};
use process::Process;
use serde::Deserialize;
use std::sync::Arc;
use utoipa::{IntoParams, OpenApi};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Weir, admin API",
        description = "Everything on the admin port; what only reads, but for the configuration, on the page's port too."
    ),
    paths(
        clients::clients,
        clients::disconnect,
        change::publish,
        change::forget,
        change::retained,
        change::clear,
        groups::groups,
        sessions::session,
        sessions::sessions,
        log::streams,
        log::segments,
        log::topics,
        past::about,
        past::history,
        past::record,
        records::records,
        past::trace,
        process::rates,
        process::config,
        process::log_level,
        process::set_log_level
    )
)]
struct Api;

/// What only reads.
pub(crate) fn reading() -> Router<Arc<Gateway>> {
    Router::new()
        .route("/api/v1/clients", get(clients::clients))
        .route("/api/v1/sessions", get(sessions::sessions))
        .route("/api/v1/sessions/{client_id}", get(sessions::session))
        .route("/api/v1/retained", get(change::retained))
        .route("/api/v1/groups", get(groups::groups))
        .route("/api/v1/streams", get(log::streams))
        .route("/api/v1/segments", get(log::segments))
        .route("/api/v1/topics", get(log::topics))
        .route("/api/v1/history", get(past::history))
        .route("/api/v1/gateway", get(past::about))
        .route("/api/v1/records/{stream}/{partition}", get(records::records))
        .route("/api/v1/records/{stream}/{partition}/{offset}", get(past::record))
        .route("/api/v1/records/{stream}/{partition}/{offset}/trace", get(past::trace))
        .route("/api/v1/rates", get(process::rates))
        .route("/api/v1/openapi.json", get(|| async { Json(Api::openapi()) }))
        .layer(from_fn(refusal::in_json))
}

/// What is for those who run it, beside that.
pub(crate) fn running(gateway: Arc<Gateway>, process: Arc<Process>, page: OwnPage) -> Router {
    let process = Router::new()
        .route("/api/v1/config", get(process::config))
        .route("/api/v1/log-level", get(process::log_level).put(process::set_log_level).options(preflight))
        .with_state(process);
    let clients = Router::new()
        .route("/api/v1/clients/{client_id}", delete(clients::disconnect).options(preflight))
        .route("/api/v1/sessions/{client_id}", delete(change::forget).options(preflight))
        .route("/api/v1/retained", delete(change::clear).options(preflight))
        .route("/api/v1/publish", post(change::publish).options(preflight));
    let changing = clients.with_state(gateway.clone()).merge(process).layer(from_fn_with_state(page, own_page));
    let changing = changing.layer(from_fn(refusal::in_json));
    // What changes something answers in a few words, and may have to wait for the disk: it takes no turn of those that answer at length.
    reading().layer(from_fn_with_state(Heavy::default(), few)).with_state(gateway).merge(changing)
}

/// A part of a long list.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Part {
    /// Go on behind this one.
    #[serde(default)]
    after: String,
    /// So many at most: 100, or up to 1,000.
    limit: Option<usize>,
}

impl Part {
    fn limit(&self) -> usize {
        self.limit.unwrap_or(100).clamp(1, 1_000)
    }
}

/// One part of what several partitions hold, by topic. `upto`: behind this one, partitions that stopped there have more.
pub(crate) fn merged<T>(mut all: Vec<T>, upto: Option<String>, limit: usize, topic: impl Fn(&T) -> &str) -> (Vec<T>, Option<String>) {
    all.sort_unstable_by(|a, b| topic(a).cmp(topic(b)));
    all.retain(|one| upto.as_deref().is_none_or(|upto| topic(one) <= upto));
    let more = all.len() > limit;
    all.truncate(limit);
    let after = all.last().map(|one| topic(one).to_owned()).filter(|_| more).or(upto);
    (all, after)
}

fn unavailable(words: impl std::fmt::Display) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{words}\n")).into_response()
}
