//! What an operator changes: a message by hand, a session that nobody needs, retained messages.
//!
//! Invariant: each goes the way that a client's packets go, and no page but the gateway's own may ask for it.
//! What ends or clears something is in the events.
//! Must not know: sessions, the log.

use super::{Part, merged, unavailable};
use crate::{
    gateway::{Gateway, session_key},
    visitor::{AT_ONCE, Refused, Visitor, Went},
};
use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::sync::oneshot;
use utoipa::{IntoParams, ToSchema};
use weir_core::{
    packet::ReasonCode,
    topic::{filter_is_valid, topic_is_valid},
};

/// Topics of one request that are cleared; the next one goes on.
const CLEARED_MAX: usize = 1_000;

/// A message to publish.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MessageToPublish {
    pub topic: String,
    /// The payload, as text.
    pub text: Option<String>,
    /// The same as bytes.
    pub base64: Option<String>,
    #[serde(default)]
    pub retain: bool,
}

/// Where a message is in the log.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PublishedInfo {
    pub stream: String,
    pub partition: u32,
    pub offset: u64,
}

impl From<Went> for PublishedInfo {
    fn from(w: Went) -> Self {
        Self { stream: w.stream, partition: w.partition, offset: w.offset }
    }
}

fn wrong(words: impl std::fmt::Display) -> Response {
    (StatusCode::BAD_REQUEST, format!("{words}\n")).into_response()
}

fn refused(reason: Refused) -> Response {
    match reason {
        Some(ReasonCode::SERVER_BUSY | ReasonCode::SERVER_UNAVAILABLE) => {
            unavailable("another connection keeps the session, or the log does not answer; try again")
        }
        Some(reason) => (StatusCode::CONFLICT, format!("refused with reason {reason}\n")).into_response(),
        None => unavailable("the gateway did not answer in time, or stops"),
    }
}

/// Runs to its end, whoever goes on asking.
async fn done<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Result<T, Response> {
    tokio::spawn(work).await.map_err(unavailable)
}

/// Publishes with QoS 1; answered when the message is on disk. Admin port only.
#[utoipa::path(post, path = "/api/v1/publish", request_body = MessageToPublish,
    responses((status = 200, body = PublishedInfo), (status = 400, description = "Not a topic, or a payload that is none."),
        (status = 403, description = "It comes from a page that is not the gateway's own."), (status = 409, description = "It is refused as a client's would be."),
        (status = 503, description = "The log did not take it in time.")))]
pub(crate) async fn publish(State(gateway): State<Arc<Gateway>>, Json(m): Json<MessageToPublish>) -> Response {
    if !topic_is_valid(&m.topic) {
        return wrong(format_args!("{}: not a topic to publish to", m.topic));
    }
    let payload = match (m.text, m.base64) {
        (Some(text), None) => text.into_bytes(),
        (None, Some(base64)) => match STANDARD.decode(base64) {
            Ok(bytes) => bytes,
            Err(e) => return wrong(format_args!("base64: {e}")),
        },
        (None, None) => Vec::new(),
        (Some(_), Some(_)) => return wrong("text or base64, not both"),
    };
    let work = async move {
        let mut visitor = Visitor::come(gateway, "").await?;
        let went = visitor.publish([(&*m.topic, &*payload, m.retain)].into_iter()).await;
        visitor.leave().await;
        went
    };
    match done(work).await {
        Ok(Ok(went)) => {
            went.into_iter().next().map_or_else(|| unavailable("no answer"), |went| Json(PublishedInfo::from(went)).into_response())
        }
        Ok(Err(reason)) => refused(reason),
        Err(failed) => failed,
    }
}

/// Ends a session, connected or not: what waits for it is forgotten, its filters and its places in groups are gone. A client
/// of version 5 that is connected gets DISCONNECT 0x8E. Admin port only.
#[utoipa::path(delete, path = "/api/v1/sessions/{client_id}", params(("client_id" = String, Path)),
    responses((status = 204, description = "There is no session of this client any more."), (status = 403, description = "It comes from a page that is not the gateway's own."),
        (status = 404, description = "There is no such session."), (status = 503, description = "Its connection did not end in time.")))]
pub(crate) async fn forget(State(gateway): State<Arc<Gateway>>, Path(client_id): Path<String>) -> Response {
    let (tx, rx) = oneshot::channel();
    gateway.engine.state().get(&session_key(&client_id), Box::new(move |entry| drop(tx.send(entry))));
    let is_stored = matches!(rx.await, Ok(Ok(Some(_))));
    if !is_stored && gateway.connection(&client_id).is_none() {
        return (StatusCode::NOT_FOUND, format!("there is no session of {client_id}\n")).into_response();
    }
    tracing::info!(client = crate::refusals::short(&client_id), "its session is ended by the admin API");
    let (by, id) = (gateway.clone(), client_id.clone());
    let work = async move {
        Visitor::come(by, &id).await?.leave().await;
        Ok::<_, Refused>(())
    };
    match done(work).await {
        Ok(Ok(())) => {
            gateway.events.session_deleted(&gateway, &client_id);
            StatusCode::NO_CONTENT.into_response()
        }
        Ok(Err(reason)) => refused(reason),
        Err(failed) => failed,
    }
}

#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Matching {
    /// Only topics that match.
    filter: String,
}

/// A topic with a retained message.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RetainedInfo {
    pub topic: String,
    pub stream: String,
    pub partition: u32,
    /// Where it was published; the message itself may be kept beside the log by now.
    pub offset: u64,
}

/// A part of all retained messages, in the order of their topics.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RetainedPart {
    pub retained: Vec<RetainedInfo>,
    /// There may be more behind this one; missing: these were the last.
    pub after: Option<String>,
}

fn find(gateway: &Gateway, filter: &str, after: &str, limit: usize) -> RetainedPart {
    let (mut all, mut upto) = (Vec::new(), None::<String>);
    for nth in gateway.read_by(filter) {
        let page = gateway.retained[nth].read().page(filter, Some(after).filter(|a| !a.is_empty()), limit);
        let (stream, partition) = &gateway.streams[nth];
        let info = |(topic, at): (Box<str>, weir_core::ids::Offset)| RetainedInfo {
            topic: topic.into(),
            stream: stream.to_string(),
            partition: *partition,
            offset: at.0,
        };
        all.extend(page.found.into_iter().map(info));
        // Behind this one other partitions are ahead.
        upto = upto.into_iter().chain(page.after.map(Into::into)).min();
    }
    let (retained, after) = merged(all, upto, limit, |r| &r.topic);
    RetainedPart { retained, after }
}

/// Topics with a retained message. A part may be empty and still not the last.
#[utoipa::path(get, path = "/api/v1/retained", params(Matching, Part),
    responses((status = 200, body = RetainedPart), (status = 400, description = "Not a topic filter.")))]
pub(crate) async fn retained(State(gateway): State<Arc<Gateway>>, Query(which): Query<Matching>, Query(part): Query<Part>) -> Response {
    if !filter_is_valid(&which.filter) {
        return wrong(format_args!("{}: not a topic filter", which.filter));
    }
    Json(find(&gateway, &which.filter, &part.after, part.limit())).into_response()
}

/// How many retained messages were cleared.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ClearedInfo {
    pub cleared: usize,
    /// There may be more: ask again.
    pub more: bool,
}

/// Clears retained messages, up to 1,000: an empty retained message is published to each topic, as a client would. Admin
/// port only.
#[utoipa::path(delete, path = "/api/v1/retained", params(Matching),
    responses((status = 200, body = ClearedInfo), (status = 400, description = "Not a topic filter."), (status = 403, description = "It comes from a page that is not the gateway's own."),
        (status = 409, description = "It is refused as a client's would be."), (status = 503, description = "The log did not take it in time.")))]
pub(crate) async fn clear(State(gateway): State<Arc<Gateway>>, Query(which): Query<Matching>) -> Response {
    if !filter_is_valid(&which.filter) {
        return wrong(format_args!("{}: not a topic filter", which.filter));
    }
    let (mut topics, mut after) = (Vec::new(), String::new());
    let more = loop {
        let part = find(&gateway, &which.filter, &after, CLEARED_MAX - topics.len());
        topics.extend(part.retained.into_iter().map(|r| r.topic));
        match part.after {
            Some(_) if topics.len() >= CLEARED_MAX => break true,
            Some(last) => after = last,
            None => break false,
        }
    };
    let (by, cleared) = (gateway.clone(), topics.len());
    let work = async move {
        let mut visitor = Visitor::come(by, "").await?;
        let mut done = Ok(());
        for some in topics.chunks(AT_ONCE) {
            done = visitor.publish(some.iter().map(|topic| (&**topic, &b""[..], true))).await.map(drop);
            if done.is_err() {
                break;
            }
        }
        visitor.leave().await;
        done
    };
    match done(work).await {
        Ok(Ok(())) => {
            gateway.events.retained_cleared(&gateway, &which.filter, cleared);
            Json(ClearedInfo { cleared, more }).into_response()
        }
        Ok(Err(reason)) => refused(reason),
        Err(failed) => failed,
    }
}
