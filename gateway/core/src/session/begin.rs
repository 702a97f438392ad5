//! Where a subscription begins, when its client asks for another place than now: user property `from` of SUBSCRIBE, or a filter
//! `$replay/FROM/FILTER` for version 3.1.1.
//!
//! Invariant: what is not understood is refused with words that say what would be; nothing is guessed.
//! Must not know: where in the log that is; the shell finds it.

use crate::ids::Offset;
use std::{
    fmt,
    time::{Duration, UNIX_EPOCH},
};

/// More are asked for by time or offset: finding the last so many costs 8 B each.
pub const LAST_MAX: u32 = 100_000;

/// A place in the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// The oldest record there is.
    Earliest,
    /// The last so many that match, per partition.
    Last(u32),
    Offset(Offset),
    /// The first record written at or after this time, ms since 1970.
    Time(u64),
}

/// What was asked and is not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoPlace(pub String);

impl fmt::Display for NoPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(text) = self;
        write!(f, "from {text:?}: none of earliest, latest, last:N (1 to {LAST_MAX}), offset:N, time:2026-01-31T08:00:00Z, -15m")
    }
}

impl Begin {
    /// `None`: from now on, as without it.
    pub fn parse(text: &str, wall_ms: u64) -> Result<Option<Self>, NoPlace> {
        let found = match text.split_once(':') {
            None if text == "latest" => return Ok(None),
            None if text == "earliest" => Some(Self::Earliest),
            None => text.strip_prefix('-').and_then(duration_ms).map(|ago| Self::Time(wall_ms.saturating_sub(ago))),
            Some(("last", n)) => number(n).and_then(|n| u32::try_from(n).ok()).filter(|n| (1..=LAST_MAX).contains(n)).map(Self::Last),
            Some(("offset", n)) => number(n).map(|n| Self::Offset(Offset(n))),
            Some(("time", at)) => time_ms(at).map(Self::Time),
            Some(_) => None,
        };
        found.map(Some).ok_or_else(|| NoPlace(text.chars().take(64).collect()))
    }
}

/// Digits only: no sign, no space.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

fn duration_ms(text: &str) -> Option<u64> {
    humantime::parse_duration(text).ok().map(millis)
}

fn time_ms(text: &str) -> Option<u64> {
    humantime::parse_rfc3339_weak(text).ok()?.duration_since(UNIX_EPOCH).ok().map(millis)
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// `FROM` and `FILTER` of `$replay/FROM/FILTER`.
#[must_use]
pub fn replay(filter: &str) -> Option<(&str, &str)> {
    filter.strip_prefix("$replay/").map(|rest| rest.split_once('/').unwrap_or((rest, "")))
}

/// The filter itself, without where it is to begin.
#[must_use]
pub fn plain(filter: &str) -> &str {
    replay(filter).map_or(filter, |(_, filter)| filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_where_and_refuses_what_it_does_not_understand() {
        let now = 1_800_000_000_000;
        let parse = |text| Begin::parse(text, now);
        assert_eq!(parse("latest"), Ok(None));
        assert_eq!(parse("earliest"), Ok(Some(Begin::Earliest)));
        assert_eq!(parse("last:20"), Ok(Some(Begin::Last(20))));
        assert_eq!(parse("offset:0"), Ok(Some(Begin::Offset(Offset(0)))));
        assert_eq!(parse("time:2026-01-31T08:00:00Z"), Ok(Some(Begin::Time(1_769_846_400_000))));
        assert_eq!(parse("-15m"), Ok(Some(Begin::Time(now - 900_000))));
        assert_eq!(parse("-1h 30s"), Ok(Some(Begin::Time(now - 3_630_000))));
        assert_eq!(parse("-1000years"), Ok(Some(Begin::Time(0))), "before the beginning");
        for bad in
            ["", "now", "last:0", "last:100001", "last:x", "offset:-1", "offset:+1", "offset:", "time:yesterday", "15m", "-", "-15", "x:1"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse(&"é".repeat(500)).is_err_and(|e| e.to_string().len() < 300));
        assert_eq!(replay("$replay/-15m/a/#"), Some(("-15m", "a/#")));
        assert_eq!((plain("$replay/last:1/a"), plain("a/b"), plain("$replay/-1h")), ("a", "a/b", ""));
    }
}
