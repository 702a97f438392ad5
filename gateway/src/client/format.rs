//! `-F`: how a message is printed, by the letters of mosquitto_sub(1).
//!
//! Invariant: a format is judged before anything is subscribed to. Payloads are printed byte for
//! byte, except in JSON and on a terminal.

use super::{
    Failure,
    link::Message,
    pieces::{Piece, Piece::*},
};
use crate::terminal::shown;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::ZonedDateTime;
use serde::{
    Serialize, Serializer,
    ser::{SerializeMap, SerializeStruct},
};
use serde_json::value::RawValue;
use std::fmt::Write;

/// A format that has been judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format {
    pieces: Vec<Piece>,
    /// JSON over several lines.
    pretty: bool,
}

impl Format {
    /// Judges `text`.
    ///
    /// # Errors
    /// A letter that does not exist, or a format that ends in the middle of one.
    pub fn parse(text: &str, pretty: bool) -> Result<Self, Failure> {
        Ok(Self { pieces: super::pieces::parse(text)?, pretty })
    }

    /// Prints `m`, which arrived at `now`.
    pub fn print(&self, m: &Message, now: &ZonedDateTime) -> Vec<u8> {
        let mut out = Vec::new();
        for piece in &self.pieces {
            match piece {
                Text(text) => out.extend_from_slice(text.as_bytes()),
                Date(letter) => {
                    let date = jiff::fmt::strtime::format(format!("%{letter}"), now);
                    out.extend_from_slice(date.unwrap_or_default().as_bytes());
                }
                Nanoseconds => {
                    let _never_fails = write!(Bytes(&mut out), "{:09}", now.subsec_nanosecond());
                }
                Field('p', spec) => out.extend_from_slice(&shown(&spec.payload(&m.payload))),
                Field(letter @ ('x' | 'X'), spec) => {
                    let hex = hex(&m.payload, *letter == 'X');
                    out.extend_from_slice(&spec.payload(hex.as_bytes()));
                }
                Field(letter @ ('j' | 'J'), _) => {
                    let json = self.json(m, now, *letter == 'J');
                    out.extend_from_slice(&shown(json.as_bytes()));
                }
                Field(letter, spec) => {
                    let field = spec.field(*letter, &field(*letter, m, now));
                    out.extend_from_slice(&shown(field.as_bytes()));
                }
            }
        }
        out
    }

    fn json(&self, m: &Message, now: &ZonedDateTime, payload_is_json: bool) -> String {
        let whole = Json { m, now, payload_is_json };
        let text = if self.pretty {
            // A payload that stays as it was written would stay on one line.
            serde_json::to_value(&whole).and_then(|v| serde_json::to_string_pretty(&v))
        } else {
            serde_json::to_string(&whole)
        };
        text.unwrap_or_default()
    }
}

struct Bytes<'a>(&'a mut Vec<u8>);

impl Write for Bytes<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

fn or_nothing<T: ToString>(value: Option<&T>) -> String {
    value.map(T::to_string).unwrap_or_default()
}

fn field(letter: char, m: &Message, now: &ZonedDateTime) -> String {
    let p = &m.properties;
    match letter {
        'A' => or_nothing(p.topic_alias.as_ref()),
        'C' => p.content_type.clone().unwrap_or_default(),
        'D' => p.correlation_data.as_ref().map_or_else(String::new, |data| String::from_utf8_lossy(data).into_owned()),
        'E' => or_nothing(p.message_expiry_interval.as_ref()),
        'F' => or_nothing(p.payload_format_indicator.as_ref()),
        'I' => now.strftime("%Y-%m-%dT%H:%M:%S%z").to_string(),
        'P' => p.user_properties.iter().map(|(k, v)| format!("{k}:{v}")).collect::<Vec<_>>().join(" "),
        'R' => p.response_topic.clone().unwrap_or_default(),
        'S' => or_nothing(p.subscription_identifiers.first()),
        'U' => {
            let since = now.timestamp();
            format!("{}.{:09}", since.as_second(), since.subsec_nanosecond())
        }
        'l' => m.payload.len().to_string(),
        'm' => m.packet_id.to_string(),
        'q' => m.qos.to_string(),
        'r' => u8::from(m.retain).to_string(),
        _ => m.topic.clone(),
    }
}

fn hex(bytes: &[u8], upper: bool) -> String {
    bytes.iter().fold(String::new(), |mut text, b| {
        let _never_fails = if upper { write!(text, "{b:02X}") } else { write!(text, "{b:02x}") };
        text
    })
}

/// A message as `%j` and `%J` print it; the order of its members is mosquitto's.
struct Json<'a> {
    m: &'a Message,
    now: &'a ZonedDateTime,
    payload_is_json: bool,
}

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let m = self.m;
        let mut out = serializer.serialize_struct("message", 8)?;
        out.serialize_field("tst", &self.now.strftime("%Y-%m-%dT%H:%M:%S%.6f%:z").to_string())?;
        out.serialize_field("topic", &m.topic)?;
        out.serialize_field("qos", &m.qos)?;
        out.serialize_field("retain", &u8::from(m.retain))?;
        out.serialize_field("payloadlen", &m.payload.len())?;
        if m.qos > 0 {
            out.serialize_field("mid", &m.packet_id)?;
        }
        if m.properties != Default::default() {
            out.serialize_field("properties", &Properties(m))?;
        }
        let Ok(text) = std::str::from_utf8(&m.payload) else {
            out.serialize_field("payload64", &STANDARD.encode(&m.payload))?;
            return out.end();
        };
        match serde_json::from_str::<&RawValue>(text) {
            // Numbers stay as the device wrote them.
            Ok(json) if self.payload_is_json => out.serialize_field("payload", json)?,
            _ => out.serialize_field("payload", text)?,
        }
        out.end()
    }
}

struct Properties<'a>(&'a Message);

impl Serialize for Properties<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let p = &self.0.properties;
        let mut out = serializer.serialize_map(None)?;
        match &p.subscription_identifiers[..] {
            [] => {}
            [one] => out.serialize_entry("subscription-identifier", one)?,
            several => out.serialize_entry("subscription-identifier", several)?,
        }
        if let Some(alias) = p.topic_alias {
            out.serialize_entry("topic-alias", &alias)?;
        }
        if let Some(seconds) = p.message_expiry_interval {
            out.serialize_entry("message-expiry-interval", &seconds)?;
        }
        if let Some(content_type) = &p.content_type {
            out.serialize_entry("content-type", content_type)?;
        }
        if let Some(data) = &p.correlation_data {
            match std::str::from_utf8(data) {
                Ok(text) => out.serialize_entry("correlation-data", text)?,
                Err(_) => out.serialize_entry("correlation-data64", &STANDARD.encode(data))?,
            }
        }
        if let Some(indicator) = p.payload_format_indicator {
            out.serialize_entry("payload-format-indicator", &indicator)?;
        }
        if let Some(topic) = &p.response_topic {
            out.serialize_entry("response-topic", topic)?;
        }
        if !p.user_properties.is_empty() {
            out.serialize_entry("user-properties", &Pairs(&p.user_properties))?;
        }
        out.end()
    }
}

/// An object whose names may repeat, as those of user properties may [MQTT-3.3.2-18].
struct Pairs<'a>(&'a [(String, String)]);

impl Serialize for Pairs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::{Timestamp, tz::TimeZone};
    use rumqttc::v5::mqttbytes::v5::PublishProperties;

    fn print(format: &str, m: &Message) -> String {
        let now = Timestamp::from_millisecond(1_500).expect("a time").to_zoned_datetime(TimeZone::UTC);
        let format = Format::parse(format, false).expect("a format");
        String::from_utf8(format.print(m, &now)).expect("text")
    }

    fn message(payload: &[u8]) -> Message {
        Message {
            topic: "a/b".into(),
            payload: payload.to_vec(),
            qos: 1,
            retain: true,
            packet_id: 7,
            properties: PublishProperties {
                user_properties: vec![("k".into(), "v".into()), ("k".into(), "w".into())],
                content_type: Some("text/x".into()),
                ..Default::default()
            },
        }
    }

    #[test]
    fn letters_mean_what_they_mean_to_mosquitto() {
        let m = message(b"{\"n\":1.50}");
        assert_eq!(print("%t|%p|%q|%r|%l|%m|%%|\\n|%P", &m), "a/b|{\"n\":1.50}|1|1|10|7|%|\n|k:v k:w");
        assert_eq!(print("%6x %I %U", &m), "7b226e 1970-01-01T00:00:01+0000 1.500000000");
        assert_eq!(print("%10t|%-5t|%05l|%.1t|%4p|%-12p|", &m), "       a/b|a/b  |00010|a|{\"n\"|{\"n\":1.50}  |");
        assert_eq!(print("@Y-@m @@ @N", &m), "1970-01 @ 500000000");
        assert!(print("%J", &m).contains(r#""payload":{"n":1.50}"#));
        let j = print("%j", &m);
        let end = r#""properties":{"content-type":"text/x","user-properties":{"k":"v","k":"w"}},"payload":"{\"n\":1.50}"}"#;
        assert!(j.ends_with(end), "{j}");
    }

    #[test]
    fn a_payload_that_is_no_text_is_base64_in_json() {
        for letter in ["%j", "%J"] {
            let json = print(letter, &message(b"\xFF\x00"));
            assert!(json.ends_with(r#""payload64":"/wA="}"#), "{json}");
        }
        assert!(print("%J", &message(b"no json")).ends_with(r#""payload":"no json"}"#));
    }

    #[test]
    fn a_pretty_message_has_its_members_on_lines() {
        let format = Format::parse("%J", true).expect("a format");
        let text = String::from_utf8(format.print(&message(b"{\"n\":1}"), &ZonedDateTime::now())).expect("text");
        assert!(text.lines().any(|line| line.trim() == r#""n": 1"#), "{text}");
    }

    #[test]
    fn an_impossible_format_names_what_there_is() {
        for bad in ["%y", "%", "%5", "%+t", "@", "\\", "\\q", "@!"] {
            assert!(Format::parse(bad, false).is_err_and(|e| e.words.starts_with("-F: ")), "{bad}");
        }
    }
}
