//! What the log holds: streams, their files, and the newest message of each topic, now or at any moment that is still kept.
//!
//! Invariant: topics come in their order, each once, with the record that was its newest then.
//! Must not know: how any of it is found.

use super::{Part, merged, unavailable};
use crate::gateway::{Gateway, stored};
use axum::{
    Json,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::{IntoParams, ToSchema};
use weir_bridge::{
    feed::{newest, seek},
    filters::Filters,
    record,
};
use weir_core::{message::Stored, session::begin::Begin, topic::filter_is_valid};
use weir_log::{Asker, Newest, Offset, PartitionId, ReadError, Seek, Watermark};

/// Records read for one part.
const BYTES_MAX: usize = 1 << 20;

/// One partition of the log.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct PartitionInfo {
    pub stream: String,
    pub partition: u32,
    /// The oldest record that is kept.
    pub start: u64,
    /// One past the newest durable record.
    pub end: u64,
    pub segments: usize,
    pub bytes: u64,
    /// Nothing in it is older, ms since 1970.
    pub oldest_ms: Option<u64>,
    /// So much is kept; missing: as much as the disk holds.
    pub limit_bytes: Option<u64>,
    /// For so long; missing: whatever its age.
    pub limit_age_ms: Option<u64>,
    /// When the oldest file leaves if the log grows on as in the last minutes, ms since 1970; missing: not foreseen.
    pub leaves_at_ms: Option<u64>,
    /// Why nothing more is taken; missing: all is well.
    pub failed: Option<String>,
    /// Why nothing is taken for now; it passes by itself.
    pub stalled: Option<String>,
}

/// What the log holds.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct StreamsInfo {
    pub streams: Vec<PartitionInfo>,
}

/// What the log holds.
#[utoipa::path(get, path = "/api/v1/streams", responses((status = 200, body = StreamsInfo),
    (status = 503, description = "A directory of the log cannot be listed.")))]
pub(crate) async fn streams(State(gateway): State<Arc<Gateway>>) -> Response {
    let mut streams = Vec::new();
    let stalled = gateway.engine.stalled();
    for p in gateway.engine.partitions() {
        let span = gateway.engine.span(p.id);
        let segments = match gateway.engine.segments(p.id) {
            Ok(segments) => segments,
            Err(e) => return unavailable(format!("{}/{}: {e}", p.stream, p.number)),
        };
        let retention = gateway.retention(weir_core::ids::PartitionId(p.id.0));
        let failed = if let Watermark::Failed(f) = gateway.engine.appended(p.id) { Some(f.to_string()) } else { None };
        streams.push(PartitionInfo {
            stream: p.stream.clone(),
            partition: p.number,
            start: span.start.0,
            end: span.durable.0,
            oldest_ms: segments.first().map(|s| s.created_ms),
            limit_bytes: retention.bytes,
            limit_age_ms: retention.age.map(|age| age.as_millis() as u64),
            leaves_at_ms: gateway.loss_at(weir_core::ids::PartitionId(p.id.0), &segments, span.start),
            segments: segments.len(),
            bytes: segments.iter().map(|s| s.bytes).sum(),
            failed,
            stalled: stalled.iter().find(|(id, _)| *id == p.id).map(|(_, stall)| stall.to_string()),
        });
    }
    Json(StreamsInfo { streams }).into_response()
}

/// One file of the log.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SegmentInfo {
    pub stream: String,
    pub partition: u32,
    /// Its first record.
    pub base: u64,
    /// One past its last; missing: it is being written.
    pub end: Option<u64>,
    pub bytes: u64,
    /// When it began, ms since 1970: nothing in it is older.
    pub created_ms: u64,
    /// When the next one began, ms since 1970: nothing in it is younger.
    pub sealed_ms: Option<u64>,
}

/// The files of the log, oldest first in each partition.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct SegmentsInfo {
    pub segments: Vec<SegmentInfo>,
}

/// The files of the log, oldest first in each partition.
#[utoipa::path(get, path = "/api/v1/segments", responses((status = 200, body = SegmentsInfo),
    (status = 503, description = "A directory of the log cannot be listed.")))]
pub(crate) async fn segments(State(gateway): State<Arc<Gateway>>) -> Response {
    let mut all = Vec::new();
    for p in gateway.engine.partitions() {
        let segments = match gateway.engine.segments(p.id) {
            Ok(segments) => segments,
            Err(e) => return unavailable(format!("{}/{}: {e}", p.stream, p.number)),
        };
        all.extend(segments.into_iter().map(|s| SegmentInfo {
            stream: p.stream.clone(),
            partition: p.number,
            base: s.base.0,
            end: s.end.map(|end| end.0),
            bytes: s.bytes,
            created_ms: s.created_ms,
            sealed_ms: s.sealed_ms,
        }));
    }
    Json(SegmentsInfo { segments: all }).into_response()
}

/// A message in the log.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MessageInfo {
    pub topic: String,
    pub stream: String,
    pub partition: u32,
    pub offset: u64,
    /// When it was written, ms since 1970.
    pub time_ms: u64,
    pub qos: u8,
    pub retain: bool,
    /// Of the payload.
    pub bytes: usize,
    /// The payload, of a list up to 4 KiB of it, if it is text.
    pub text: Option<String>,
    /// The same if it is not.
    pub base64: Option<String>,
}

/// A part of all topics, in their order.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct TopicsInfo {
    pub topics: Vec<MessageInfo>,
    /// There may be more behind this one; missing: these were the last.
    pub after: Option<String>,
}

#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Moment {
    /// Only topics that match; without it all but those of `$`.
    filter: Option<String>,
    /// As it was then: `-15m`, `time:2026-01-31T08:00:00Z`, `offset:N` (before that record of each partition); without it now.
    at: Option<String>,
}

impl MessageInfo {
    /// With so many bytes of its payload.
    pub(super) fn of(m: &Stored<'_>, stream: &str, partition: u32, shown: usize) -> Self {
        let (text, base64) = record::payload(m.payload, shown);
        Self {
            topic: String::from_utf8_lossy(m.topic).into_owned(),
            stream: stream.into(),
            partition,
            offset: m.offset.0,
            time_ms: m.time_ms,
            qos: m.qos as u8,
            retain: m.retain,
            bytes: m.payload.len(),
            base64,
            text: text.map(Into::into),
        }
    }
}

/// The newest message of each topic, retained or not.
#[utoipa::path(get, path = "/api/v1/topics", params(Moment, Part),
    responses((status = 200, body = TopicsInfo), (status = 400, description = "A filter or a moment that is none."),
        (status = 503, description = "The log cannot be read.")))]
pub(crate) async fn topics(State(gateway): State<Arc<Gateway>>, Query(moment): Query<Moment>, Query(part): Query<Part>) -> Response {
    let filter = moment.filter.as_deref().unwrap_or("#");
    if !filter_is_valid(filter) {
        return (StatusCode::BAD_REQUEST, format!("{filter}: not a topic filter\n")).into_response();
    }
    let at = match Begin::parse(moment.at.as_deref().unwrap_or("latest"), gateway.now().wall_ms) {
        Ok(Some(Begin::Last(_) | Begin::Earliest)) => Err("at: a time or an offset".into()),
        Ok(at) => Ok(at),
        Err(e) => Err(e.to_string()),
    };
    match at {
        Ok(at) => match find(&gateway, filter, at, &part).await {
            Ok(found) => Json(found).into_response(),
            Err(e) => unavailable(e),
        },
        Err(words) => (StatusCode::BAD_REQUEST, format!("{words}\n")).into_response(),
    }
}

async fn find(gateway: &Gateway, filter: &str, at: Option<Begin>, part: &Part) -> Result<TopicsInfo, ReadError> {
    let select = Arc::new(Filters::new([filter.into()]));
    let (by, mut topics, mut upto) = (Asker::browser(), Vec::new(), None::<String>);
    for nth in gateway.read_by(filter) {
        let p = PartitionId(gateway.partitions[nth].0);
        let below = match at {
            None => Offset(u64::MAX),
            Some(Begin::Offset(at)) => Offset(at.0),
            Some(Begin::Time(ms)) => seek(&*gateway.engine, &by, p, Seek::Time(ms)).await?,
            Some(Begin::Earliest | Begin::Last(_)) => Offset(0),
        };
        let after = part.after.clone().into_bytes();
        let asked = Newest { below, select: select.clone(), after, keys_max: part.limit(), bytes_max: BYTES_MAX };
        let page = newest(&*gateway.engine, &by, p, asked).await?;
        let (stream, number) = &gateway.streams[nth];
        topics.extend(page.batch.iter().filter_map(|r| stored(&r)).map(|m| MessageInfo::of(&m, stream, *number, record::PAYLOAD_SHOWN)));
        // Behind this one other partitions are ahead.
        let last = page.after.map(|key| String::from_utf8_lossy(&key).into_owned());
        upto = upto.into_iter().chain(last).min();
    }
    let (topics, after) = merged(topics, upto, part.limit(), |t| &t.topic);
    Ok(TopicsInfo { topics, after })
}
