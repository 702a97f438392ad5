//! The records of one partition, in the order of their offsets, a part at a time.

use super::{heavy::json, log::MessageInfo, past::named_so, unavailable};
use crate::gateway::{Gateway, stored};
use axum::{
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};
use weir_bridge::{feed::fetch, filters::Filters};
use weir_core::topic::filter_is_valid;
use weir_log::{Asker, Everything, Fetch, Offset, Select, Wanted};

/// Payloads and topics read for one part. One record is always given.
const BYTES_MAX: u32 = 1 << 20;
/// Records of one part.
const RECORDS_MAX: u32 = 1_000;

#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Asked {
    /// The first offset to look at; without it the oldest that is kept.
    from: Option<u64>,
    /// Stop before this offset; without it at the end of the log.
    until: Option<u64>,
    /// Only topics that match; without it all.
    filter: Option<String>,
    /// So many records at most: up to 1,000.
    limit: Option<u32>,
}

/// Offsets whose records are not there.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LostInfo {
    pub from: u64,
    /// One past the last.
    pub to: u64,
    /// `retention` or what is damaged.
    pub reason: String,
}

/// A part of a partition.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RecordsPart {
    pub records: Vec<MessageInfo>,
    /// Go on here with `from`; everything before was looked at.
    pub next: u64,
    /// One past the newest durable record.
    pub end: u64,
    /// One range at most; more are found behind `next`.
    pub lost: Vec<LostInfo>,
}

/// Records of one partition, whole, in the order of their offsets. A part may be empty and still not
/// be the last: the last has a `next` that is not below `until`, or not below `end`.
#[utoipa::path(get, path = "/api/v1/records/{stream}/{partition}",
    params(("stream" = String, Path), ("partition" = u32, Path), Asked),
    responses((status = 200, body = RecordsPart), (status = 400, description = "Not a topic filter."),
        (status = 404, description = "There is no such partition."), (status = 503, description = "The log cannot be read.")))]
pub(crate) async fn records(
    State(gateway): State<Arc<Gateway>>,
    Path((stream, partition)): Path<(String, u32)>,
    Query(asked): Query<Asked>,
) -> Response {
    let select: Arc<dyn Select> = match asked.filter {
        Some(filter) if !filter_is_valid(&filter) => {
            return (StatusCode::BAD_REQUEST, format!("{filter}: not a topic filter\n")).into_response();
        }
        Some(filter) => Arc::new(Filters::new([filter.into()]).with_times(true)),
        None => Arc::new(Everything),
    };
    let Some(p) = named_so(&gateway, &stream, partition) else {
        return (StatusCode::NOT_FOUND, format!("there is no partition {stream}/{partition}\n")).into_response();
    };
    let span = gateway.engine.span(p.id);
    let from = Offset(asked.from.unwrap_or(span.start.0));
    let to = Offset(asked.until.unwrap_or(span.durable.0).min(span.durable.0)).max(from);
    let records_max = asked.limit.unwrap_or(RECORDS_MAX).clamp(1, RECORDS_MAX);
    let wanted = Wanted::Range { from, to, select };
    let asked = Fetch { partition: p.id, wanted, records_max, bytes_max: BYTES_MAX };
    let found = match fetch(&*gateway.engine, &Asker::browser(), asked).await {
        Ok(found) => found,
        Err(e) => return unavailable(e),
    };
    let lost = (!found.lost.is_empty()).then(|| LostInfo {
        from: found.lost.start.0,
        to: found.lost.end.0,
        reason: found.damage.as_ref().map_or_else(|| "retention".into(), ToString::to_string),
    });
    let info = |m: &weir_core::message::Stored<'_>| MessageInfo::of(m, &p.stream, p.number, usize::MAX);
    let records = tokio::task::block_in_place(|| found.batch.iter().filter_map(|r| stored(&r).map(|m| info(&m))).collect());
    json(&RecordsPart { records, next: found.next.0, end: span.durable.0, lost: lost.into_iter().collect() })
}
