//! What a page needs to place a moment: where the gateway listens, how much was written when, and one record whole.
//!
//! Invariant: how much was written comes from the log itself, so it is there after a restart too.
//! Must not know: how a page draws it.

use super::{heavy::json, log::MessageInfo, unavailable};
use crate::{
    clock::date_ms,
    gateway::{Gateway, stored},
    lives::TraceInfo,
};
use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};
use weir_bridge::feed::{fetch, seek};
use weir_core::{ids::PartitionId, property::Property};
use weir_log::{Asker, Fetch, Offset, Partition, ReadError, Seek, Wanted};

/// Steps of one answer: more than a screen is wide.
const STEPS_MAX: u64 = 2_000;

/// Where the gateway listens, and since when.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct GatewayInfo {
    pub version: String,
    /// How often it was started on this log.
    pub boot: u64,
    /// When it was started, ms since 1970.
    pub started_ms: u64,
    /// Its clock, ms since 1970.
    pub now_ms: u64,
    /// Address and port of MQTT.
    pub mqtt: String,
    pub http: String,
    pub admin: String,
    /// Directory of the log.
    pub data: String,
}

/// Where the gateway listens, and since when.
#[utoipa::path(get, path = "/api/v1/gateway", responses((status = 200, body = GatewayInfo)))]
pub(crate) async fn about(State(gateway): State<Arc<Gateway>>) -> Json<GatewayInfo> {
    let about = gateway.about.get().cloned().unwrap_or_default();
    Json(GatewayInfo { boot: gateway.boot, now_ms: gateway.now().wall_ms, ..about })
}

#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Steps {
    /// Beginning of the first step, ms since 1970.
    from_ms: u64,
    /// Length of a step.
    step_ms: u64,
    /// How many: up to 2,000.
    steps: u64,
}

/// Records written in each step.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct HistoryInfo {
    pub from_ms: u64,
    pub step_ms: u64,
    /// All partitions together, but the gateway's own stream. Steps before the oldest record that is kept have none.
    pub records: Vec<u64>,
}

/// How many records were written when, as far as they are kept; from the times in the log, so a step is exact but for clocks that were set.
#[utoipa::path(get, path = "/api/v1/history", params(Steps),
    responses((status = 200, body = HistoryInfo), (status = 400, description = "Too many steps, or none."),
        (status = 503, description = "The log cannot be read.")))]
pub(crate) async fn history(State(gateway): State<Arc<Gateway>>, Query(asked): Query<Steps>) -> Response {
    let Steps { from_ms, step_ms, steps } = asked;
    if step_ms == 0 || !(1..=STEPS_MAX).contains(&steps) {
        return (StatusCode::BAD_REQUEST, format!("steps: 1 to {STEPS_MAX}, of 1 ms at least\n")).into_response();
    }
    let mut records = vec![0; steps as usize];
    for nth in gateway.read_by("#") {
        if let Err(e) = count(&gateway, nth, from_ms, step_ms, &mut records).await {
            return unavailable(e);
        }
    }
    Json(HistoryInfo { from_ms, step_ms, records }).into_response()
}

/// Adds what one partition has. What is empty at both ends is not looked at.
async fn count(gateway: &Gateway, nth: usize, from_ms: u64, step_ms: u64, records: &mut [u64]) -> Result<(), ReadError> {
    let Some(p) = gateway.engine.partitions().get(nth) else { return Ok(()) };
    let end = gateway.engine.span(p.id).durable;
    let by = Asker::browser();
    let at = async |ms: u64| seek(&*gateway.engine, &by, p.id, Seek::Time(ms)).await;
    let mut before = at(from_ms).await?;
    for (i, n) in records.iter_mut().enumerate() {
        if before >= end {
            return Ok(());
        }
        let next = at(from_ms.saturating_add(step_ms.saturating_mul(i as u64 + 1))).await?;
        *n += next.0.saturating_sub(before.0);
        before = next;
    }
    Ok(())
}

/// A record, whole.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RecordInfo {
    #[serde(flatten)]
    pub message: MessageInfo,
    /// Hash of the publisher's client id.
    pub origin: String,
    /// When it is worth nothing any more, ms since 1970.
    pub expires_ms: Option<u64>,
    /// Properties of version 5, in order: name and value.
    pub properties: Vec<(String, String)>,
}

/// One record with all of its payload.
#[utoipa::path(get, path = "/api/v1/records/{stream}/{partition}/{offset}",
    params(("stream" = String, Path), ("partition" = u32, Path), ("offset" = u64, Path)),
    responses((status = 200, body = RecordInfo), (status = 404, description = "There is no message there, or not any more."),
        (status = 503, description = "The log cannot be read.")))]
pub(crate) async fn record(State(gateway): State<Arc<Gateway>>, Path((stream, partition, offset)): Path<(String, u32, u64)>) -> Response {
    let known = named_so(&gateway, &stream, partition);
    let found = match known {
        Some(p) => one(&gateway, p, offset).await,
        None => Ok(None),
    };
    match found {
        Ok(Some(record)) => json(&record),
        Ok(None) => (StatusCode::NOT_FOUND, format!("there is no message at {stream}/{partition} {offset}\n")).into_response(),
        Err(e) => unavailable(e),
    }
}

pub(super) fn named_so<'a>(gateway: &'a Gateway, stream: &str, number: u32) -> Option<&'a Partition> {
    gateway.engine.partitions().iter().find(|p| p.stream == stream && p.number == number)
}

/// What became of a message, and when. Kept of topics that somebody watches (`trace` of a subscription of the feed), while he does.
#[utoipa::path(get, path = "/api/v1/records/{stream}/{partition}/{offset}/trace",
    params(("stream" = String, Path), ("partition" = u32, Path), ("offset" = u64, Path)),
    responses((status = 200, body = TraceInfo), (status = 204, description = "Nobody watched its topic when it came, or that is long ago.")))]
pub(crate) async fn trace(State(gateway): State<Arc<Gateway>>, Path((stream, partition, offset)): Path<(String, u32, u64)>) -> Response {
    let known = named_so(&gateway, &stream, partition);
    let at = known.map(|p| (PartitionId(p.id.0), weir_core::ids::Offset(offset)));
    match at.and_then(|at| gateway.metrics.lives.trace(at)) {
        Some(trace) => Json(trace).into_response(),
        None => StatusCode::NO_CONTENT.into_response(),
    }
}

async fn one(gateway: &Gateway, p: &Partition, offset: u64) -> Result<Option<RecordInfo>, ReadError> {
    let wanted = Wanted::Exactly(vec![Offset(offset)]);
    let found = fetch(&*gateway.engine, &Asker::browser(), Fetch { partition: p.id, wanted, records_max: 1, bytes_max: 1 }).await?;
    let message = found.batch.iter().next();
    let now = gateway.now();
    // Eight megabytes are as long in base64 as a thread of devices is not to be away.
    Ok(tokio::task::block_in_place(|| {
        message.as_ref().and_then(stored).map(|m| RecordInfo {
            message: MessageInfo::of(&m, &p.stream, p.number, usize::MAX),
            origin: format!("{:016x}", m.client_hash),
            expires_ms: m.expires_ms.map(|at| date_ms(now, at)),
            properties: m.headers.iter().map(|p| named(&p)).collect(),
        })
    }))
}

fn named(p: &Property<'_>) -> (String, String) {
    match p {
        Property::UserProperty((name, value)) => ((*name).into(), (*value).into()),
        Property::ContentType(value) => ("content type".into(), (*value).into()),
        Property::ResponseTopic(value) => ("response topic".into(), (*value).into()),
        Property::CorrelationData(value) => {
            ("correlation data".into(), value.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" "))
        }
        Property::PayloadFormatIndicator(value) => ("payload format".into(), if *value { "text" } else { "bytes" }.into()),
        other => ("property".into(), format!("{other:?}")),
    }
}
