//! A record as JSON text, written once for everybody.
//!
//! Invariant: everything that comes from a device is data: text is a JSON string, anything else base64.
//! Must not know: who reads, or what a frame is.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Serialize;
use std::{collections::HashMap, mem, sync::Arc};
use weir_log::{Kind, Offset, Record};

/// Payload bytes shown of one record; the length is told in full, and the rest is one request away.
pub const PAYLOAD_SHOWN: usize = 4_096;
/// Text that is kept for the next one who wants it; twice this at most.
const KEPT_BYTES: usize = 2 << 20;

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
    /// Hash of the publisher's client id.
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
}

/// The payload, as far as it is shown: text, or base64 of what is none.
#[must_use]
pub fn payload(value: &[u8], shown_max: usize) -> (Option<&str>, Option<String>) {
    let shown = value.get(..shown_max).unwrap_or(value);
    let text = match std::str::from_utf8(shown) {
        Ok(text) => Some(text),
        // Cut inside a character.
        Err(e) if shown.len() < value.len() && e.error_len().is_none() => {
            shown.get(..e.valid_up_to()).and_then(|s| std::str::from_utf8(s).ok())
        }
        Err(_) => None,
    };
    (text, text.is_none().then(|| STANDARD.encode(shown)))
}

/// `None`: not a message.
#[must_use]
pub fn json(r: &Record<'_>) -> Option<String> {
    let topic = std::str::from_utf8(r.key).ok().filter(|_| r.kind == Kind::Message)?;
    let (text, base64) = payload(r.value, PAYLOAD_SHOWN);
    let origin = r.meta.first_chunk().map(|hash| format!("{:016x}", u64::from_le_bytes(*hash)));
    let (qos, retain) = (r.flags & 3, r.flags & 4 != 0);
    serde_json::to_string(&Shown { topic, offset: r.offset.0, time: r.time_ms, qos, retain, bytes: r.value.len(), text, base64, origin })
        .ok()
}

/// What was written lately, in two halves: the older one goes when the newer one is full.
#[derive(Default)]
pub struct Written {
    newer: HashMap<Offset, Arc<str>>,
    older: HashMap<Offset, Arc<str>>,
    bytes: usize,
}

impl Written {
    pub fn json(&mut self, r: &Record<'_>) -> Option<Arc<str>> {
        if let Some(known) = self.newer.get(&r.offset).or_else(|| self.older.get(&r.offset)) {
            return Some(known.clone());
        }
        let text: Arc<str> = json(r)?.into();
        if self.bytes > KEPT_BYTES {
            (self.older, self.bytes) = (mem::take(&mut self.newer), 0);
        }
        self.bytes += text.len() + 64;
        self.newer.insert(r.offset, text.clone());
        Some(text)
    }
}
