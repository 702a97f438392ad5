//! What an operator changes: a message by hand, a session that nobody needs, retained messages.
//!
//! Invariant: each goes the way that a client's packets go, and no page but the gateway's own may ask for it.
//! What ends or clears something is in the events, whoever has stopped waiting for the answer.
//! Must not know: the log.

use super::{Part, merged, sessions, unavailable};
use crate::{
    driver::Visit,
    gateway::Gateway,
    visitor::{PATIENCE, Refused, Visitor, Went},
};
use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};
use tokio::{sync::Mutex, time::Instant};
use utoipa::{IntoParams, ToSchema};
use weir_core::{
    packet::ReasonCode,
    topic::{filter_is_valid, topic_is_valid},
};

/// Topics of one request that are cleared, and for how long, whatever rate a client is allowed; the next request goes on.
const CLEARED_MAX: usize = 1_000;
const CLEARS_FOR: Duration = Duration::from_secs(5);
/// Topics that are cleared with one wait for the disk.
const CLEARED_AT_ONCE: usize = 64;
/// Two that clear at once would clear the same topics, and both count them.
static CLEARING: Mutex<()> = Mutex::const_new(());

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

/// `before`: what was done all the same.
fn refused(reason: Refused, before: &str) -> Response {
    match reason {
        Some(ReasonCode::SERVER_BUSY | ReasonCode::SERVER_UNAVAILABLE) => {
            unavailable(format_args!("{before}another connection keeps the session, or the log does not answer; try again"))
        }
        Some(reason) => (StatusCode::CONFLICT, format!("{before}refused with reason {reason}\n")).into_response(),
        None => unavailable(format_args!("{before}the gateway did not answer in time, or stops")),
    }
}

/// Runs to its end, whoever goes on asking.
async fn done<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Result<T, Response> {
    tokio::spawn(work).await.map_err(unavailable)
}

/// Publishes with QoS 1; answered when the message is on disk. The body has 64 KiB at most: what is larger goes by MQTT.
/// Admin port only.
#[utoipa::path(post, path = "/api/v1/publish", request_body = MessageToPublish,
    responses((status = 200, body = PublishedInfo), (status = 400, description = "Not a topic, or a payload that is none."),
        (status = 403, description = "It comes from a page that is not the gateway's own."), (status = 409, description = "It is refused as a client's would be."),
        (status = 413, description = "The body is longer than 64 KiB."), (status = 422, description = "Not a message: the key that is wrong is named."),
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
        let (mut went, refused) = visitor.publish([(&*m.topic, &*payload, m.retain)].into_iter()).await;
        visitor.leave().await;
        went.pop().ok_or(refused.flatten())
    };
    match done(work).await {
        Ok(Ok(went)) => Json(PublishedInfo::from(went)).into_response(),
        Ok(Err(reason)) => refused(reason, ""),
        Err(failed) => failed,
    }
}

#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Idle {
    /// Only if nobody is connected to it, and nobody was since then, ms since 1970.
    idle_since_ms: Option<u64>,
}

/// Ends a session, connected or not: what waits for it is forgotten, its filters and its places in groups are gone. A client
/// of version 5 that is connected gets DISCONNECT 0x8E. Admin port only.
#[utoipa::path(delete, path = "/api/v1/sessions/{client_id}", params(("client_id" = String, Path), Idle),
    responses((status = 204, description = "There is no session of this client any more."), (status = 403, description = "It comes from a page that is not the gateway's own."),
        (status = 404, description = "There is no such session."), (status = 409, description = "Somebody was connected to it since then."),
        (status = 503, description = "Its connection did not end in time.")))]
pub(crate) async fn forget(State(gateway): State<Arc<Gateway>>, Path(client_id): Path<String>, Query(idle): Query<Idle>) -> Response {
    match sessions::look(&gateway, &[], &client_id, tokio::time::Instant::now()).await {
        Ok(Some(session)) if idle.idle_since_ms.is_some_and(|since| session.since_ms.is_none_or(|away| away > since)) => {
            return (StatusCode::CONFLICT, format!("{client_id} was connected since then\n")).into_response();
        }
        Ok(Some(_)) => {}
        Ok(None) => return (StatusCode::NOT_FOUND, format!("there is no session of {client_id}\n")).into_response(),
        Err(words) => return unavailable(words),
    }
    let now = gateway.now();
    let steady = |wall_ms: u64| now.steady_ms.saturating_sub(now.wall_ms.saturating_sub(wall_ms));
    let visit = Visit { idle_since: idle.idle_since_ms.map(steady) };
    let work = async move {
        // Judged again where it is claimed and loaded: nobody comes between.
        Visitor::come_to(gateway.clone(), &client_id, visit).await?.leave().await;
        tracing::info!(client = crate::refusals::short(&client_id), "its session is ended by the admin API");
        gateway.events.session_deleted(&gateway, &client_id);
        Ok::<_, Refused>(())
    };
    match done(work).await {
        Ok(Ok(())) => StatusCode::NO_CONTENT.into_response(),
        Ok(Err(reason)) => refused(reason, ""),
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

/// Topics to clear, and whether there are more.
async fn to_clear(gateway: &Gateway, filter: &str) -> (Vec<String>, bool) {
    let (mut topics, mut after) = (Vec::new(), String::new());
    loop {
        let part = find(gateway, filter, &after, CLEARED_MAX - topics.len());
        topics.extend(part.retained.into_iter().map(|r| r.topic));
        match part.after {
            Some(_) if topics.len() >= CLEARED_MAX => return (topics, true),
            Some(last) => after = last,
            None => return (topics, false),
        }
        // A million topics may be looked at for none that matches: devices have their turns in between.
        tokio::task::yield_now().await;
    }
}

/// Clears and says so; what was cleared counts, and is in the events, whatever comes of the rest.
async fn clear_some(gateway: Arc<Gateway>, filter: &str) -> (ClearedInfo, Option<Refused>) {
    let (topics, more) = to_clear(&gateway, filter).await;
    let (mut cleared, mut refused) = (0, None);
    let end = Instant::now() + CLEARS_FOR;
    match Visitor::come(gateway.clone(), "").await {
        Err(reason) => refused = Some(reason),
        Ok(mut visitor) => {
            for some in topics.chunks(CLEARED_AT_ONCE) {
                let (went, reason) = visitor.publish(some.iter().map(|topic| (&**topic, &b""[..], true))).await;
                (cleared, refused) = (cleared + went.len(), reason);
                if refused.is_some() || Instant::now() >= end {
                    break;
                }
            }
            visitor.leave().await;
        }
    }
    if cleared > 0 {
        gateway.events.retained_cleared(&gateway, filter, cleared);
    }
    (ClearedInfo { cleared, more: more || cleared < topics.len() }, refused)
}

/// Clears retained messages, up to 1,000, for a few seconds: an empty retained message is published to each topic, as a
/// client would. Admin port only.
#[utoipa::path(delete, path = "/api/v1/retained", params(Matching),
    responses((status = 200, body = ClearedInfo), (status = 400, description = "Not a topic filter."), (status = 403, description = "It comes from a page that is not the gateway's own."),
        (status = 409, description = "It is refused as a client's would be."),
        (status = 503, description = "The log did not take it in time, or others clear.")))]
pub(crate) async fn clear(State(gateway): State<Arc<Gateway>>, Query(which): Query<Matching>) -> Response {
    if !filter_is_valid(&which.filter) {
        return wrong(format_args!("{}: not a topic filter", which.filter));
    }
    let work = async move {
        let _alone = tokio::time::timeout(PATIENCE, CLEARING.lock()).await.ok()?;
        Some(clear_some(gateway, &which.filter).await)
    };
    match done(work).await {
        Ok(Some((part, None))) => Json(part).into_response(),
        Ok(Some((part, Some(reason)))) => refused(reason, &format!("{} cleared; ", part.cleared)),
        Ok(None) => unavailable("another request clears; come again"),
        Err(failed) => failed,
    }
}
