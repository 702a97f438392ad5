//! What goes to a browser: JSON objects with records in them. Records are written once; a message is made of them when its browser takes it.
//!
//! Invariant: a frame says up to which position everything was said, and nothing of who wants it: all who want the same share it.
//! Must not know: who takes it, or where records come from.

use serde::Serialize;
use std::{borrow::Borrow, ops::Range};
use tokio_tungstenite::tungstenite::Utf8Bytes;
use weir_log::{Offset, Partition};

/// Of one message, but for its last record; few where parts are tested.
pub const MESSAGE_BYTES: usize = if cfg!(test) { 12 } else { 256 * 1024 };

/// Whose subscription, and which partition.
#[derive(Clone, Debug)]
pub struct Head {
    pub id: u32,
    /// `"id":1,"stream":"default","partition":0`
    json: String,
    pub epoch: String,
}

impl Head {
    #[must_use]
    pub fn new(id: u32, p: &Partition) -> Self {
        let stream = serde_json::Value::from(p.stream.as_str());
        Self { id, json: format!(r#""id":{id},"stream":{stream},"partition":{}"#, p.number), epoch: format!("{:016x}", p.log_id) }
    }
}

/// Records that belong together; shared by all who want the same.
#[derive(Debug)]
pub struct Frame {
    /// Nothing that is wanted lies between this and `first`: whoever stands there may take the frame.
    pub after: Offset,
    /// The first that is wanted.
    pub first: Offset,
    /// Everything below was said.
    pub end: Offset,
    pub records: u32,
    /// Records that newer ones of their topics stand for.
    pub thinned: u64,
    /// Of a part of a step: what it changes in how many a reader was told without their step's thinned ones. 0 over all parts.
    pub owed: i64,
    /// Records, with commas between.
    body: Box<str>,
}

impl Frame {
    fn new<T: AsRef<str>>(span: Range<Offset>, first: Offset, thinned: u64, records: &[(Offset, T)]) -> Self {
        let bytes: usize = records.iter().map(|(_, r)| r.as_ref().len() + 1).sum();
        let mut body = String::with_capacity(bytes);
        for (nth, (_, r)) in records.iter().enumerate() {
            if nth > 0 {
                body.push(',');
            }
            body.push_str(r.as_ref());
        }
        Self { after: span.start, first, end: span.end, records: records.len() as u32, thinned, owed: 0, body: body.into() }
    }

    /// As many as their sizes want. `records`: where they are, in order, and their JSON. `thinned` is told with the last one.
    #[must_use]
    pub fn several<T: AsRef<str>>(span: Range<Offset>, first: Offset, thinned: u64, records: &[(Offset, T)]) -> Vec<Self> {
        let (mut frames, mut after, mut first, mut rest) = (Vec::new(), span.start, first, records);
        loop {
            let mut bytes = 0;
            let fits = rest.iter().take_while(|(_, r)| (bytes == 0 || bytes < MESSAGE_BYTES, bytes += r.as_ref().len() + 1).0).count();
            let (part, more) = rest.split_at(fits);
            // A part says everything below the next one's first record.
            let Some((next, _)) = more.first() else {
                let told: i64 = frames.iter().map(|f: &Self| f.owed).sum();
                frames.push(Self { owed: -told, ..Self::new(after..span.end, first, thinned, part) });
                return frames;
            };
            frames.push(Self { owed: -(part.len() as i64), ..Self::new(after..*next, first, 0, part) });
            (after, first, rest) = (*next, *next, more);
        }
    }

    #[must_use]
    pub fn bytes(&self) -> usize {
        self.body.len()
    }
}

fn begin(text: &mut String, head: &Head, position: Offset, thinned: u64) {
    use std::fmt::Write;
    let _never_fails = write!(text, r#"{{"type":"records",{},"position":{}"#, head.json, position.0);
    if thinned > 0 {
        let _never_fails = write!(text, r#","thinned":{thinned}"#);
    }
    text.push_str(r#","records":["#);
}

/// Frames as one message. `more`: thinned ones that they do not tell.
#[must_use]
pub fn joined(head: &Head, frames: &[impl Borrow<Frame>], more: u64) -> Utf8Bytes {
    let thinned = frames.iter().map(|f| f.borrow().thinned).sum::<u64>() + more;
    let mut text = String::with_capacity(frames.iter().map(|f| f.borrow().bytes() + 1).sum::<usize>() + head.json.len() + 96);
    begin(&mut text, head, frames.last().map_or(Offset(0), |f| f.borrow().end), thinned);
    for (nth, f) in frames.iter().enumerate() {
        if nth > 0 {
            text.push(',');
        }
        text.push_str(&f.borrow().body);
    }
    text.push_str("]}");
    text.into()
}

/// A range of offsets that somebody was owed and does not get.
#[derive(Clone, Debug, Serialize)]
pub struct Lost {
    pub from: u64,
    pub to: u64,
    /// `retention`, `damage`.
    pub reason: &'static str,
}

/// A part of a snapshot: newest records below a position.
#[must_use]
pub fn snapshot(head: &Head, position: Offset, done: bool, body: &str) -> Utf8Bytes {
    format!(r#"{{"type":"snapshot",{},"epoch":"{}","position":{},"done":{done},"records":[{body}]}}"#, head.json, head.epoch, position.0)
        .into()
}

/// Where a subscription begins in a partition. `snapshot`: one follows. `recovered`: of one that goes on, whether it misses nothing.
#[must_use]
pub fn start(head: &Head, range: Range<Offset>, snapshot: bool, recovered: Option<bool>, lost: Option<&Lost>) -> Utf8Bytes {
    let more = recovered.map_or(String::new(), |r| format!(r#","recovered":{r}"#));
    let lost = lost.and_then(|l| serde_json::to_string(l).ok()).map_or(String::new(), |l| format!(r#","lost":{l}"#));
    let Range { start, end } = range;
    format!(
        r#"{{"type":"start",{},"epoch":"{}","position":{},"end":{},"snapshot":{snapshot}{more}{lost}}}"#,
        head.json, head.epoch, start.0, end.0
    )
    .into()
}

#[must_use]
pub fn lost(head: &Head, lost: &Lost) -> Utf8Bytes {
    let range = serde_json::to_string(lost).unwrap_or_default();
    format!(r#"{{"type":"lost",{},"lost":{range}}}"#, head.json).into()
}

/// Everything below was looked at, and nothing more was wanted.
#[must_use]
pub fn position(head: &Head, position: Offset) -> Utf8Bytes {
    format!(r#"{{"type":"position",{},"position":{}}}"#, head.json, position.0).into()
}

/// The past in steps: `more` is an object.
#[must_use]
pub fn steps(head: &Head, position: Offset, more: &serde_json::Value) -> Utf8Bytes {
    let more = more.to_string();
    let more = more.strip_prefix('{').unwrap_or_default();
    format!(r#"{{"type":"steps",{},"epoch":"{}","position":{},{more}"#, head.json, head.epoch, position.0).into()
}

/// That was all that was asked for.
#[must_use]
pub fn end(id: u32) -> Utf8Bytes {
    format!(r#"{{"type":"end","id":{id}}}"#).into()
}

/// What was asked is not given; `id`: of a subscription, which ends with it.
#[must_use]
pub fn error(id: Option<u32>, message: &str) -> Utf8Bytes {
    serde_json::json!({ "type": "error", "id": id, "message": message }).to_string().into()
}

#[must_use]
pub fn beat(time_ms: u64) -> Utf8Bytes {
    format!(r#"{{"type":"beat","time":{time_ms}}}"#).into()
}
