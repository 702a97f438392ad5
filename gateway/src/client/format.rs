//! `-F`: how a message is printed, by mosquitto's letters.
//!
//! Invariant: an unknown letter is refused before anything is subscribed to. Payloads are printed byte for byte, but in JSON and on a terminal.
//! Must not know: where it is printed.

use super::{Failure, link::Message};
use crate::terminal::shown;
use serde_json::{Value, json};
use std::{
    fmt::Write,
    time::{SystemTime, UNIX_EPOCH},
};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Letter(char),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format(Vec<Part>);

const LETTERS: &str = "tpqrlmjJxXIUP";

impl Format {
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match (c, if matches!(c, '%' | '\\') { chars.next() } else { None }) {
                ('%', Some('%')) => plain.push('%'),
                ('%', Some(letter)) if LETTERS.contains(letter) => {
                    parts.push(Part::Text(std::mem::take(&mut plain)));
                    parts.push(Part::Letter(letter));
                }
                ('%', letter) => {
                    let letter = letter.map_or_else(String::new, String::from);
                    return Err(Failure::new(format!(
                        "-F: no %{letter}; there are %{} and %%",
                        LETTERS.split("").collect::<Vec<_>>().join(" %").trim_matches([' ', '%'])
                    )));
                }
                ('\\', Some('n')) => plain.push('\n'),
                ('\\', Some('t')) => plain.push('\t'),
                ('\\', Some('r')) => plain.push('\r'),
                ('\\', Some('0')) => plain.push('\0'),
                ('\\', Some(other)) => plain.push(other),
                (other, _) => plain.push(other),
            }
        }
        parts.push(Part::Text(plain));
        Ok(Self(parts))
    }

    pub fn print(&self, m: &Message, now: SystemTime) -> Vec<u8> {
        let mut out = Vec::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => out.extend_from_slice(text.as_bytes()),
                Part::Letter('p') => out.extend_from_slice(&shown(&m.payload)),
                Part::Letter(letter) => out.extend_from_slice(&shown(field(*letter, m, now).as_bytes())),
            }
        }
        out
    }
}

fn field(letter: char, m: &Message, now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    match letter {
        't' => m.topic.clone(),
        'q' => m.qos.to_string(),
        'r' => u8::from(m.retain).to_string(),
        'l' => m.payload.len().to_string(),
        'm' => m.packet_id.to_string(),
        'x' => hex(&m.payload, false),
        'X' => hex(&m.payload, true),
        'I' => humantime::format_rfc3339_seconds(now).to_string(),
        'U' => format!("{}.{:09}", since.as_secs(), since.subsec_nanos()),
        'P' => m.user_properties.iter().map(|(k, v)| format!("{k}:{v}")).collect::<Vec<_>>().join(" "),
        'j' => whole(m, now, json!(String::from_utf8_lossy(&m.payload))),
        // A payload that is no JSON is a string.
        _ => whole(m, now, serde_json::from_slice(&m.payload).unwrap_or_else(|_| json!(String::from_utf8_lossy(&m.payload)))),
    }
}

fn whole(m: &Message, now: SystemTime, payload: Value) -> String {
    let mut all = json!({
        "tst": humantime::format_rfc3339_micros(now).to_string(),
        "topic": m.topic,
        "qos": m.qos,
        "retain": u8::from(m.retain),
        "payloadlen": m.payload.len(),
        "payload": payload,
    });
    if m.qos > 0 {
        all["mid"] = m.packet_id.into();
    }
    if !m.user_properties.is_empty() {
        all["properties"] = json!({ "user-properties": m.user_properties.iter().map(|(k, v)| json!({ k: v })).collect::<Vec<_>>() });
    }
    all.to_string()
}

fn hex(bytes: &[u8], upper: bool) -> String {
    bytes.iter().fold(String::new(), |mut text, b| {
        let _never_fails = if upper { write!(text, "{b:02X}") } else { write!(text, "{b:02x}") };
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn letters_mean_what_they_mean_to_mosquitto() {
        let m = Message {
            topic: "a/b".into(),
            payload: b"{\"n\":1}".to_vec(),
            qos: 1,
            retain: true,
            packet_id: 7,
            user_properties: vec![("k".into(), "v".into())],
        };
        let now = UNIX_EPOCH + Duration::from_millis(1_500);
        let print = |format: &str| String::from_utf8(Format::parse(format).expect("a format").print(&m, now)).expect("text");
        assert_eq!(print("%t|%p|%q|%r|%l|%m|%%|\\n|%P"), "a/b|{\"n\":1}|1|1|7|7|%|\n|k:v");
        assert_eq!(print("%x %I %U"), "7b226e223a317d 1970-01-01T00:00:01Z 1.500000000");
        assert!(print("%j").contains(r#""payload":"{\"n\":1}""#) && print("%J").contains(r#""payload":{"n":1}"#));
        for bad in ["%y", "%"] {
            assert!(Format::parse(bad).is_err_and(|e| e.words.contains("%t %p") && e.words.ends_with("%%")), "{bad}");
        }
    }
}
