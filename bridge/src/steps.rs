//! The past of values in steps: lowest, highest and last number of each, and what a text was until when.
//!
//! Invariant: an answer is bounded in time, records and bytes; one that had to stop says at which moment.
//! Must not know: who draws it.

use crate::{
    feed::{READ_BYTES, fetch},
    filters::Filters,
    frame::Head,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_tungstenite::tungstenite::Utf8Bytes;
use weir_log::{Asker, Engine, Fetch, Offset, PartitionId, ReadError, Wanted};

const TIME_MAX: Duration = Duration::from_secs(2);
const RECORDS_MAX: usize = 500_000;
/// Of an answer, as JSON, but for its last record's part.
const BYTES_MAX: usize = 512 * 1024;
/// A point's numbers at their longest.
const POINT_BYTES: usize = 100;
/// Topics times fields; more make no picture.
const SERIES_MAX: usize = 256;
/// Of one payload; deeper or more is not looked at.
const FIELDS_MAX: usize = 16;
/// A longer payload is no measurement: reading it as JSON would take a thread from others.
const PAYLOAD_MAX: usize = 64 * 1024;
const DEPTH_MAX: usize = 3;
/// A path that is longer is no name of a field.
const NAME_BYTES_MAX: usize = 256;
/// A text that is longer is not a state.
const STATE_BYTES_MAX: usize = 64;

/// Of one step.
struct Point {
    at: u64,
    low: f64,
    high: f64,
    last: f64,
    count: u64,
}

#[derive(Default)]
struct Series {
    points: Vec<Point>,
    /// When a text became another.
    states: Vec<(u64, String)>,
}

/// What a field holds.
#[derive(Debug, PartialEq)]
enum Found {
    Number(f64),
    State(String),
}

impl Series {
    /// By how many bytes it grew.
    fn add(&mut self, time: u64, step: u64, found: Found) -> usize {
        let number = match found {
            Found::State(state) if self.states.last().is_some_and(|(_, last)| *last == state) => return 0,
            Found::State(state) => {
                let bytes = written(&state) + 20;
                self.states.push((time, state));
                return bytes;
            }
            Found::Number(n) => n,
        };
        let at = time - time % step;
        match self.points.last_mut().filter(|p| p.at == at) {
            Some(p) => {
                (p.low, p.high, p.last) = (p.low.min(number), p.high.max(number), number);
                p.count += 1;
                0
            }
            None => {
                self.points.push(Point { at, low: number, high: number, last: number, count: 1 });
                POINT_BYTES
            }
        }
    }
}

/// Bytes of a text in JSON.
fn written(text: &str) -> usize {
    serde_json::to_string(text).map_or(0, |t| t.len())
}

fn leaf(v: &Value) -> Option<Found> {
    match v {
        Value::Number(n) => n.as_f64().map(Found::Number),
        Value::Bool(b) => Some(Found::State(b.to_string())),
        Value::String(s) if s.len() <= STATE_BYTES_MAX => Some(Found::State(s.clone())),
        _ => None,
    }
}

fn walk(v: &Value, name: &str, depth: usize, found: &mut Vec<(String, Found)>) {
    if found.len() >= FIELDS_MAX {
        return;
    }
    match v {
        Value::Object(map) if depth < DEPTH_MAX => {
            for (key, v) in map {
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                walk(v, &name, depth + 1, found);
            }
        }
        v => found.extend(leaf(v).filter(|_| name.len() <= NAME_BYTES_MAX).map(|leaf| (name.to_owned(), leaf))),
    }
}

/// What a payload says: a number, a short text, or fields of JSON, by their paths.
fn fields(payload: &[u8]) -> Vec<(String, Found)> {
    let mut found = Vec::new();
    if payload.len() > PAYLOAD_MAX {
        return found;
    }
    match serde_json::from_slice::<Value>(payload) {
        Ok(v) => walk(&v, "", 0, &mut found),
        Err(_) => {
            let text = std::str::from_utf8(payload).ok().filter(|t| t.len() <= STATE_BYTES_MAX);
            found.extend(text.map(|t| (String::new(), Found::State(t.to_owned()))));
        }
    }
    found
}

/// Reads the range and says it in one message.
pub async fn told(
    engine: &dyn Engine,
    by: &Asker,
    head: &Head,
    (partition, range): (PartitionId, Range<Offset>),
    filters: Arc<Filters>,
    step: Duration,
    field: Option<&str>,
) -> Result<Utf8Bytes, ReadError> {
    let (began, step) = (Instant::now(), (step.as_millis() as u64).max(1));
    let mut all: BTreeMap<(String, String), Series> = BTreeMap::new();
    let (mut next, mut records, mut bytes, mut left_out) = (range.start, 0, 0, false);
    let (mut read_to, mut stopped) = (None, None);
    while next < range.end {
        let wanted = Wanted::Range { from: next, to: range.end, select: filters.clone() };
        let found = fetch(engine, by, Fetch { partition, wanted, records_max: 10_000, bytes_max: READ_BYTES }).await?;
        for r in found.batch.iter() {
            if bytes >= BYTES_MAX {
                stopped = Some(r.offset);
                break;
            }
            read_to = Some(r.time_ms);
            let topic = String::from_utf8_lossy(r.key);
            for (name, value) in fields(r.value).into_iter().filter(|(name, _)| field.is_none_or(|f| f == name)) {
                let key = (topic.clone().into_owned(), name);
                if !all.contains_key(&key) {
                    let more = written(&key.0) + written(&key.1) + POINT_BYTES;
                    // The first is given whatever its name.
                    if all.len() >= SERIES_MAX || (bytes > 0 && bytes + more > BYTES_MAX) {
                        left_out = true;
                        continue;
                    }
                    bytes += more;
                }
                bytes += all.entry(key).or_default().add(r.time_ms, step, value);
            }
        }
        records += found.batch.len();
        next = stopped.unwrap_or(found.next);
        if began.elapsed() > TIME_MAX || records >= RECORDS_MAX || stopped.is_some() {
            break;
        }
    }
    let series: Vec<Value> = all
        .into_iter()
        .map(|((topic, field), s)| {
            let points: Vec<Value> = s.points.iter().map(|p| json!([p.at, p.low, p.high, p.last, p.count])).collect();
            json!({ "topic": topic, "field": field, "points": points, "states": s.states })
        })
        .collect();
    let is_complete = next >= range.end;
    let more = json!({ "step": step, "complete": is_complete, "read_to": if is_complete { None } else { read_to }, "left_out": left_out, "series": series });
    Ok(crate::frame::steps(head, next.min(range.end), &more))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_a_number_a_state_or_fields() {
        let number = |n| Found::Number(n);
        let state = |s: &str| Found::State(s.into());
        assert_eq!(fields(b"21.5"), [(String::new(), number(21.5))]);
        assert_eq!(fields(b"open"), [(String::new(), state("open"))]);
        assert_eq!(fields(br#"{"a":{"b":{"c":1,"d":{"e":2}}},"on":true}"#), [("a.b.c".into(), number(1.0)), ("on".into(), state("true"))]);
        assert_eq!(fields(b"\xFF"), []);
        assert_eq!(fields(&[b'x'; 65]), []);
        assert_eq!(fields(format!(r#"{{"{}":1,"a":2}}"#, "x".repeat(257)).as_bytes()), [("a".into(), number(2.0))]);
    }

    #[test]
    fn a_step_has_its_lowest_highest_and_last_and_a_state_when_it_changed() {
        let mut s = Series::default();
        for (t, n) in [(10, 3.0), (12, 1.0), (19, 2.0), (20, 9.0)] {
            s.add(t, 10, Found::Number(n));
        }
        let got: Vec<_> = s.points.iter().map(|p| (p.at, p.low, p.high, p.last, p.count)).collect();
        assert_eq!(got, [(10, 1.0, 3.0, 2.0, 3), (20, 9.0, 9.0, 9.0, 1)]);
        for (t, word) in [(1, "a"), (2, "a"), (3, "b")] {
            s.add(t, 10, Found::State(word.into()));
        }
        assert_eq!(s.states, [(1, "a".into()), (3, "b".into())]);
    }
}
