//! Limits that clients meet, in the log: a line when one is met, and then one every ten seconds at most.
//!
//! Invariant: a peer cannot fill the log of the process; what was not said is counted in the next line.
//! Must not know: what is limited.

use parking_lot::Mutex;
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};
use weir_core::limits::Limit;

/// Between two lines about the same.
pub(crate) const EVERY: Duration = Duration::from_secs(10);

/// When a limit was said last, and how often it was met since.
struct Said {
    at: Instant,
    since: u64,
}

/// How often it was met and not said before; `None`: it is not said now.
fn met(said: &mut Option<Said>, now: Instant) -> Option<u64> {
    match said {
        Some(said) if now.duration_since(said.at) < EVERY => {
            said.since += 1;
            None
        }
        _ => Some(said.replace(Said { at: now, since: 0 }).map_or(0, |before| before.since)),
    }
}

/// One thing that strangers can make happen as often as they like.
#[derive(Default)]
pub(crate) struct Seldom(Mutex<Option<Said>>);

impl Seldom {
    /// How often it happened and was not said before; `None`: it is not said now.
    pub fn happened(&self) -> Option<u64> {
        met(&mut self.0.lock(), Instant::now())
    }
}

#[derive(Default)]
pub(crate) struct Refusals(Mutex<HashMap<Limit, Option<Said>>>);

impl Refusals {
    /// `what` becomes of it: `refused`, as an example.
    pub fn say(&self, what: &str, limit: Limit, client_id: &str) {
        if let Some(before) = self.met(limit, Instant::now()) {
            let more = if before > 0 { format!(", and {before} times more since this was said last") } else { String::new() };
            tracing::warn!(client = short(client_id), "{what}: more than limits.{} allows{more}", limit.key());
        }
    }

    fn met(&self, limit: Limit, now: Instant) -> Option<u64> {
        met(self.0.lock().entry(limit).or_default(), now)
    }
}

/// Was it said long enough ago? Then it is said now.
pub(crate) fn is_due(said: &Mutex<Option<Instant>>) -> bool {
    let mut said = said.lock();
    let due = said.is_none_or(|at| at.elapsed() >= EVERY);
    if due {
        *said = Some(Instant::now());
    }
    due
}

/// Bytes of a client id in a line of the log.
const CLIENT_ID_BYTES: usize = 128;

/// The beginning of a client id.
pub(crate) fn short(client_id: &str) -> &str {
    &client_id[..client_id.floor_char_boundary(CLIENT_ID_BYTES)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_said_once_in_ten_seconds() {
        let (all, start) = (Refusals::default(), Instant::now());
        let met = |limit, s| all.met(limit, start + Duration::from_secs(s));
        assert_eq!((met(Limit::TopicBytes, 0), met(Limit::TopicBytes, 1), met(Limit::TopicBytes, 9)), (Some(0), None, None));
        assert_eq!(met(Limit::ClientIdBytes, 1), Some(0));
        assert_eq!((met(Limit::TopicBytes, 10), met(Limit::TopicBytes, 20)), (Some(2), Some(0)));
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        assert_eq!((short("a"), short(&"ä".repeat(100)).len(), short(&format!("a{}", "ä".repeat(100))).len()), ("a", 128, 127));
    }
}
