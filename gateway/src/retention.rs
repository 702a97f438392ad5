//! Which segments are too many or too old, and whether the clock can be trusted to say so.
//!
//! Invariant: whole sealed segments go, oldest first; a clock that was set does not make the log look old.
//! Must not know: what must happen before they go (`checkpoint`).

use std::time::Duration;
use weir_core::ids::{Now, Offset};
use weir_log::SegmentInfo;

/// The wall clock and the monotonic one may part by so much: more is a clock that was set, or a machine that slept.
const STEP_MS: u64 = 60_000;
/// Time for somebody to notice and set it back.
const PAUSE_MS: u64 = 3_600_000;

/// How much of a stream is kept; what is older goes, oldest segment first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Bytes per partition; `None`: as long as the disk has room.
    pub bytes: Option<u64>,
    /// `None`: whatever its age.
    pub age: Option<Duration>,
}

impl Retention {
    /// The same, whatever the age.
    pub fn ageless(self) -> Self {
        Self { age: None, ..self }
    }

    /// Everything before this may go.
    pub fn below(&self, segments: &[SegmentInfo], now_ms: u64) -> Offset {
        let mut total: u64 = segments.iter().map(|s| s.bytes).sum();
        let oldest_ms = self.age.map_or(0, |age| now_ms.saturating_sub(age.as_millis() as u64));
        let mut below = Offset(0);
        for s in segments {
            let (Some(end), Some(sealed_ms)) = (s.end, s.sealed_ms) else { break };
            let too_much = self.bytes.is_some_and(|max| total > max);
            if !too_much && sealed_ms >= oldest_ms {
                break;
            }
            total -= s.bytes;
            below = Offset(end.0);
        }
        below
    }
}

/// Steps of the wall clock. Retention by age pauses after one: a wrong date would take everything.
pub(crate) struct Steps {
    before: Now,
    paused_until_ms: u64,
}

impl Steps {
    pub fn new(now: Now) -> Self {
        Self { before: now, paused_until_ms: 0 }
    }

    /// Can ages be told by the wall clock now?
    pub fn trusted(&mut self, now: Now) -> bool {
        let passed_ms = now.monotonic_ms.saturating_sub(self.before.monotonic_ms);
        let parted_ms = now.wall_ms.abs_diff(self.before.wall_ms + passed_ms);
        if parted_ms > STEP_MS {
            tracing::warn!(
                "the clock was set, or the machine slept: by {} s in {} s; retention by age pauses for an hour",
                parted_ms / 1_000,
                passed_ms / 1_000
            );
            (self.before, self.paused_until_ms) = (now, now.monotonic_ms + PAUSE_MS);
        }
        now.monotonic_ms >= self.paused_until_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_sealed_segments_go_by_bytes_and_by_age() {
        let segment = |n: u64, sealed: Option<u64>| SegmentInfo {
            base: weir_log::Offset(n * 10),
            end: sealed.is_some().then(|| weir_log::Offset(n * 10 + 10)),
            bytes: 100,
            sealed_ms: sealed,
        };
        let segments = [segment(0, Some(1_000)), segment(1, Some(5_000)), segment(2, Some(9_000)), segment(3, None)];
        let below = |bytes, age| Retention { bytes, age }.below(&segments, 10_000).0;
        assert_eq!(below(None, None), 0);
        assert_eq!([400, 399, 200, 0].map(|bytes| below(Some(bytes), None)), [0, 10, 20, 30]);
        assert_eq!([20, 8, 4, 1, 0].map(|s| below(None, Some(Duration::from_secs(s)))), [0, 10, 20, 20, 30]);
        assert_eq!(below(Some(300), Some(Duration::from_secs(4))), 20);
    }

    #[test]
    fn a_clock_that_is_set_pauses_retention_by_age_for_an_hour() {
        let now = |s: u64, wall_s: u64| Now { monotonic_ms: s * 1_000, wall_ms: wall_s * 1_000 };
        let mut steps = Steps::new(now(0, 1_000_000));
        assert!(steps.trusted(now(10, 1_000_010)) && steps.trusted(now(20, 1_000_070)), "within a minute");
        for (set, wall) in [(100, 3_000_000), (5_000, 1_000_000)] {
            assert!(!steps.trusted(now(set, wall)), "set");
            assert!(!steps.trusted(now(set + 3_599, wall + 3_599)));
            assert!(steps.trusted(now(set + 3_600, wall + 3_600)), "an hour later");
        }
    }
}
