//! The page `/` and its feed `/ws`, in JSON.
//!
//! Invariant: everything that comes from a device is data: text is a JSON string, anything else base64; the page may load nothing from elsewhere.
//! Must not know: MQTT.
//!
//! The browser says `{"filter": "sensors/#"}`, again to change it. It is told per partition
//! `{"type": "snapshot", "stream", "partition", "position", "epoch", "filter", "done", "records": […]}`, in parts until `done`, and then
//! `{"type": "records", "stream", "partition", "records": […]}`. A record is `{topic, offset, time, qos, retain, text | base64}`. After `snapshot` with a later
//! position than was reached, the records between were too many for this browser.

use crate::{
    feed::{Counts, Feed, Told, fetch},
    upgrade::{Socket, upgrade},
};
use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
    routing::get,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use weir_core::topic::{SYSTEM_STREAM, filter_is_valid, is_system, shared};
use weir_log::{Fetch, Offset, Partition, Record, Wanted};

/// A subscription is one short line.
const MESSAGE_BYTES_MAX: usize = 128 * 1024;
/// One part of a snapshot.
const PART_BYTES: u32 = 256 * 1024;
/// Payload bytes shown of one record; the length is told in full.
const PAYLOAD_SHOWN: usize = 4_096;
/// A browser that takes nothing for so long is gone.
const WRITE_STALL: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ask {
    filter: String,
}

#[derive(Serialize)]
struct Shown<'a> {
    topic: &'a str,
    offset: u64,
    time: u64,
    qos: u8,
    retain: bool,
    bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Tell<'a> {
    Snapshot {
        stream: &'a str,
        partition: u32,
        position: u64,
        /// Names the life of the log: a position of another epoch means nothing here.
        epoch: String,
        filter: &'a str,
        done: bool,
        records: Vec<Shown<'a>>,
    },
    Records {
        stream: &'a str,
        partition: u32,
        records: Vec<Shown<'a>>,
    },
    Error {
        message: String,
    },
}

impl<'a> Shown<'a> {
    fn of(r: &Record<'a>) -> Option<Self> {
        let topic = std::str::from_utf8(r.key).ok()?;
        let shown = r.value.get(..PAYLOAD_SHOWN).unwrap_or(r.value);
        let text = match std::str::from_utf8(shown) {
            Ok(text) => Some(text),
            // Cut inside a character.
            Err(e) if shown.len() < r.value.len() && e.error_len().is_none() => std::str::from_utf8(&shown[..e.valid_up_to()]).ok(),
            Err(_) => None,
        };
        let base64 = text.is_none().then(|| STANDARD.encode(shown));
        let (qos, retain) = (r.flags & 3, r.flags & 4 != 0);
        Some(Self { topic, offset: r.offset.0, time: r.time_ms, qos, retain, bytes: r.value.len(), text, base64 })
    }
}

/// Page, script and feed.
pub fn router(feed: Arc<Feed>) -> Router {
    Router::new()
        .route("/", get(|| async { file("text/html; charset=utf-8", include_str!("../web/index.html")) }))
        .route("/page.js", get(|| async { file("text/javascript; charset=utf-8", include_str!("../web/page.js")) }))
        .route("/page.css", get(|| async { file("text/css; charset=utf-8", include_str!("../web/page.css")) }))
        .route("/ws", get(ws))
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

async fn ws(State(feed): State<Arc<Feed>>, request: Request) -> Response {
    upgrade(request, None, MESSAGE_BYTES_MAX, |socket| serve(socket, feed))
}

/// A browser, as long as it is there.
struct Here<'a>(&'a Counts);

impl<'a> Here<'a> {
    fn new(counts: &'a Counts) -> Self {
        counts.browsers.fetch_add(1, Ordering::Relaxed);
        Self(counts)
    }
}

impl Drop for Here<'_> {
    fn drop(&mut self) {
        self.0.browsers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One browser. Ends when the socket does.
async fn serve(mut socket: Socket, feed: Arc<Feed>) {
    let _here = Here::new(&feed.counts);
    let mut subscription: Option<(String, Queue)> = None;
    // Told since it subscribed: a feed that ends at once has stopped for good.
    let mut told_something = false;
    loop {
        let told = async {
            match &mut subscription {
                Some((_, told)) => told.recv().await,
                None => std::future::pending().await,
            }
        };
        let said = tokio::select! {
            message = socket.next() => match message {
                Some(Ok(Message::Text(text))) => {
                    match ask(&text) {
                        Ok(filter) => {
                            subscription = Some((filter.clone(), subscribe(&feed, filter)));
                            told_something = false;
                            Ok(())
                        }
                        Err(message) => say(&mut socket, &feed.counts, &Tell::Error { message }).await,
                    }
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(()),
                _ => Err(()),
            },
            told = told => match (told, &subscription) {
                (Some((nth, Some(told))), Some((filter, _))) => {
                    told_something = true;
                    tell(&mut socket, &feed, nth, filter, told).await
                }
                (_, Some(_)) if !told_something => {
                    let message = "the feed has stopped; the gateway's log says why".into();
                    let _ = say(&mut socket, &feed.counts, &Tell::Error { message }).await;
                    Err(())
                }
                // Too slow: what it has is too old to go on from.
                (_, Some((filter, _))) => {
                    feed.counts.restarts.fetch_add(1, Ordering::Relaxed);
                    subscription = Some((filter.clone(), subscribe(&feed, filter.clone())));
                    told_something = false;
                    Ok(())
                }
                (_, None) => Ok(()),
            },
        };
        if said.is_err() {
            return;
        }
    }
}

fn ask(text: &str) -> Result<String, String> {
    let ask: Ask = serde_json::from_str(text).map_err(|e| format!("expected {{\"filter\": \"…\"}}: {e}"))?;
    if filter_is_valid(&ask.filter) && shared(&ask.filter).is_none() {
        Ok(ask.filter)
    } else {
        Err(format!("{:?} is not a topic filter", ask.filter))
    }
}

/// Which partition tells what; its end comes as `None`.
type Queue = mpsc::Receiver<(usize, Option<Told>)>;

/// All partitions that the filter reads, in one queue.
fn subscribe(feed: &Arc<Feed>, filter: String) -> Queue {
    let (tx, rx) = mpsc::channel(1);
    let system = is_system(&filter);
    let read = feed.partitions().enumerate().filter(|(_, p)| (p.stream == SYSTEM_STREAM) == system);
    for (nth, _) in read {
        let (mut told, tx) = (feed.subscribe(nth, &filter), tx.clone());
        tokio::spawn(async move {
            while let Some(t) = told.recv().await {
                if tx.send((nth, Some(t))).await.is_err() {
                    return;
                }
            }
            // Nobody is left to be told.
            let _ = tx.send((nth, None)).await;
        });
    }
    rx
}

async fn say(socket: &mut Socket, counts: &Counts, tell: &Tell<'_>) -> Result<(), ()> {
    let text = serde_json::to_string(tell).map_err(|_| ())?;
    if let Tell::Records { records, .. } | Tell::Snapshot { records, .. } = tell {
        counts.records.fetch_add(records.len() as u64, Ordering::Relaxed);
    }
    counts.bytes.fetch_add(text.len() as u64, Ordering::Relaxed);
    match tokio::time::timeout(WRITE_STALL, socket.send(Message::text(text))).await {
        Ok(Ok(())) => Ok(()),
        _ => Err(()),
    }
}

/// What a list of records is: the newest per topic below a position, for a filter; or what came after.
#[derive(Clone, Copy)]
enum Head<'a> {
    Snapshot(&'a str, Offset),
    Records,
}

fn tell_of<'a>(p: &'a Partition, head: Head<'a>, done: bool, records: Vec<Shown<'a>>) -> Tell<'a> {
    let (stream, partition) = (p.stream.as_str(), p.number);
    match head {
        Head::Records => Tell::Records { stream, partition, records },
        Head::Snapshot(filter, position) => {
            Tell::Snapshot { stream, partition, position: position.0, epoch: format!("{:016x}", p.log_id), filter, done, records }
        }
    }
}

async fn tell(socket: &mut Socket, feed: &Feed, nth: usize, filter: &str, told: Told) -> Result<(), ()> {
    let Some(p) = feed.partitions().nth(nth).cloned() else { return Ok(()) };
    match told {
        Told::Snapshot { position, newest } => in_parts(socket, feed, &p, newest, Head::Snapshot(filter, position)).await,
        Told::Records { batch, indices } => {
            if let Some(found) = feed.engine.recent(p.id, &[batch]).pop().flatten() {
                let records = indices.iter().filter_map(|i| Shown::of(&found.get(*i))).collect();
                return say(socket, &feed.counts, &tell_of(&p, Head::Records, true, records)).await;
            }
            // No longer in memory: the browser lags by more than the ring holds, and the log has it still.
            let offsets = indices.iter().map(|i| batch.plus(u64::from(*i))).collect();
            in_parts(socket, feed, &p, offsets, Head::Records).await
        }
    }
}

/// Reads these records and says them, part by part; the last part is told so.
async fn in_parts(socket: &mut Socket, feed: &Feed, p: &Partition, mut offsets: Vec<Offset>, head: Head<'_>) -> Result<(), ()> {
    if offsets.is_empty() {
        return say(socket, &feed.counts, &tell_of(p, head, true, Vec::new())).await;
    }
    while !offsets.is_empty() {
        let wanted = Wanted::Exactly(offsets.clone());
        let part = match fetch(&*feed.engine, Fetch { partition: p.id, wanted, records_max: 4_096, bytes_max: PART_BYTES }).await {
            Ok(part) => part,
            Err(e) => {
                let message = e.to_string();
                tracing::error!("the feed: {message}");
                return say(socket, &feed.counts, &Tell::Error { message }).await;
            }
        };
        offsets.retain(|o| *o >= part.next);
        let records = part.batch.iter().filter_map(|r| Shown::of(&r)).collect();
        say(socket, &feed.counts, &tell_of(p, head, offsets.is_empty(), records)).await?;
    }
    Ok(())
}
