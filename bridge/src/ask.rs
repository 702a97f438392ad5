//! What a browser may ask for, and what each wish means.
//!
//! Invariant: what is not understood is refused with words that say what would be; nothing is guessed.
//! Must not know: how it is answered.

use serde::Deserialize;
use std::{collections::HashMap, time::Duration};
use weir_core::{
    session::begin::Begin,
    topic::{filter_is_valid, shared},
};

/// Frames per second of who wants only the newest and says no more.
const NEWEST_RATE: f64 = 10.0;
/// More than a screen shows.
const RATES: std::ops::RangeInclusive<f64> = 0.1..=100.0;
const STEPS_MS: std::ops::RangeInclusive<u64> = 100..=366 * 86_400_000;

/// One message of a browser.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub enum Ask {
    Subscribe(Box<Wanted>),
    /// The figures of the page's first lines.
    Figures {
        id: u32,
    },
    Unsubscribe {
        id: u32,
    },
}

/// How far somebody had come in a partition, in which life of the log.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reached {
    pub position: u64,
    pub epoch: String,
}

/// As it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    #[serde(default)]
    pub id: u32,
    pub filter: String,
    pub from: Option<String>,
    pub at: Option<String>,
    pub until: Option<String>,
    pub step: Option<String>,
    pub field: Option<String>,
    pub rate_max: Option<f64>,
    pub latest_only: Option<bool>,
    pub snapshot: Option<bool>,
    pub trace: Option<bool>,
    pub resume: Option<HashMap<String, Reached>>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Start {
    /// Newest of each topic, unless they are not wanted, then what comes.
    Now {
        snapshot: bool,
    },
    /// What comes after these, by `stream/partition`.
    Resume(HashMap<String, Reached>),
    From(Begin),
    /// Newest of each topic then, and nothing more.
    At(Begin),
    /// Lowest, highest, last of each step.
    Steps {
        from: Begin,
        step: Duration,
        field: Option<String>,
    },
}

/// A wish that can be fulfilled.
#[derive(Clone, Debug, PartialEq)]
pub struct Wish {
    pub id: u32,
    pub filter: String,
    pub start: Start,
    /// Only what was written before; `Some(None)`: before now.
    pub until: Option<Option<Begin>>,
    /// Least time between frames.
    pub pace: Option<Duration>,
    /// Only the newest of each topic in a frame.
    pub latest_only: bool,
    /// The life of its messages is kept meanwhile.
    pub trace: bool,
}

impl Wanted {
    /// Checks it. `wall_ms`: now.
    pub fn wish(self, wall_ms: u64) -> Result<Wish, String> {
        let Self { id, filter, from, at, until, step, field, rate_max, latest_only, snapshot, trace, resume } = self;
        if !filter_is_valid(&filter) || shared(&filter).is_some() {
            return Err(format!("{filter:?} is not a topic filter"));
        }
        let place = |name: &str, text: &str| Begin::parse(text, wall_ms).map_err(|e| format!("{name}: {e}"));
        let moment = |name: &str, text: &str| match place(name, text)? {
            Some(Begin::Last(_) | Begin::Earliest) => Err(format!("{name} {text:?}: a time or an offset")),
            place => Ok(place),
        };
        let until = until.map(|text| moment("until", &text)).transpose()?;
        let step = step.map(|text| {
            let step = humantime::parse_duration(&text).map_err(|e| format!("step {text:?}: {e}; as 10s"))?;
            STEPS_MS.contains(&(step.as_millis() as u64)).then_some(step).ok_or_else(|| format!("step {text:?}: 100ms to 366d"))
        });
        let snapshot_said = snapshot.is_some();
        let start = match (from, at, resume, step.transpose()?) {
            (Some(from), None, None, Some(step)) => match place("from", &from)? {
                Some(Begin::Last(_)) | None => return Err("step: from a time, an offset or earliest".into()),
                Some(from) => Start::Steps { from, step, field },
            },
            (None, None, None, Some(_)) => return Err("step: from where is missing".into()),
            (Some(from), None, None, None) => match place("from", &from)? {
                Some(from) => Start::From(from),
                None => Start::Now { snapshot: false },
            },
            (None, Some(at), None, None) if until.is_none() => match moment("at", &at)? {
                Some(at) => Start::At(at),
                None => return Err("at: a time or an offset".into()),
            },
            (None, None, Some(reached), None) if until.is_none() => Start::Resume(reached),
            (None, None, None, None) if until.is_none() => Start::Now { snapshot: snapshot.unwrap_or(true) },
            (None, None, None, None) => return Err("until: from where is missing".into()),
            _ => return Err("one of from, at and resume; until and step go with from".into()),
        };
        if snapshot_said && !matches!(start, Start::Now { .. }) {
            return Err("snapshot: only of now; at gives one of the past".into());
        }
        let latest_only = latest_only.unwrap_or(false);
        let rate = rate_max.or(latest_only.then_some(NEWEST_RATE));
        let pace = match rate {
            Some(rate) if RATES.contains(&rate) => Some(Duration::from_secs_f64(1.0 / rate)),
            Some(rate) => return Err(format!("rate_max {rate}: 0.1 to 100 frames per second")),
            None => None,
        };
        let trace = trace.unwrap_or(false);
        if trace && filter.contains(['+', '#']) {
            return Err("trace: of one topic, without + and #".into());
        }
        Ok(Wish { id, filter, start, until, pace, latest_only, trace })
    }
}

/// `default/0:EPOCH:POSITION` for each partition, with commas: the id of a server-sent event.
pub fn parse_reached(text: &str) -> Option<HashMap<String, Reached>> {
    let one = |part: &str| {
        let mut fields = part.rsplitn(3, ':');
        let (position, epoch, name) = (fields.next()?.parse().ok()?, fields.next()?, fields.next()?);
        Some((name.to_owned(), Reached { position, epoch: epoch.to_owned() }))
    };
    text.split(',').map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(json: &str) -> Result<Wish, String> {
        match serde_json::from_str(json).map_err(|e| e.to_string())? {
            Ask::Subscribe(wanted) => wanted.wish(1_800_000_000_000),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn wishes_are_understood_or_refused_in_words() {
        let plain = wish(r##"{"type":"subscribe","id":7,"filter":"#"}"##).expect("understood");
        assert_eq!((plain.id, plain.start, plain.pace, plain.latest_only), (7, Start::Now { snapshot: true }, None, false));
        let newest = wish(r#"{"type":"subscribe","filter":"a","latest_only":true}"#).expect("understood");
        assert_eq!(newest.pace, Some(Duration::from_millis(100)));
        let past = wish(r#"{"type":"subscribe","filter":"a","from":"offset:3","until":"latest"}"#).expect("understood");
        assert_eq!((past.start, past.until), (Start::From(Begin::Offset(weir_core::ids::Offset(3))), Some(None)));
        for (asked, words) in [
            (r#"{"type":"subscribe","filter":"a/#/b"}"#, "not a topic filter"),
            (r#"{"type":"subscribe","filter":"$share/g/a"}"#, "not a topic filter"),
            (r#"{"type":"subscribe","filter":"a","until":"latest"}"#, "until: from where is missing"),
            (r#"{"type":"subscribe","filter":"a","at":"last:3"}"#, "at \"last:3\""),
            (r#"{"type":"subscribe","filter":"a","at":"-1m","from":"-1m"}"#, "one of from"),
            (r#"{"type":"subscribe","filter":"a","from":"-1m","step":"1ms"}"#, "100ms to 366d"),
            (r#"{"type":"subscribe","filter":"a","rate_max":0}"#, "0.1 to 100"),
            (r#"{"type":"subscribe","filter":"a","rate":1}"#, "unknown field"),
            (r#"{"type":"subscribe"}"#, "filter"),
            ("{}", "type"),
        ] {
            let said = wish(asked).expect_err("refused");
            assert!(said.contains(words), "{asked}: {said}");
        }
    }

    #[test]
    fn the_id_of_an_event_says_where_to_go_on() {
        let reached = parse_reached("default/0:00ff:12,a:b/1:0a:9").expect("understood");
        assert_eq!(reached["default/0"], Reached { position: 12, epoch: "00ff".into() });
        assert_eq!(reached["a:b/1"].position, 9);
        assert!(["", "x", "default/0:1", "default/0:e:x"].iter().all(|t| parse_reached(t).is_none()));
    }
}
