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

/// A hundred years: nobody foresees more.
const FORESEEN_MS: f64 = 3_155_760_000_000.0;

/// How much of a stream is kept; what is older goes, oldest segment first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Bytes per partition; `None`: as long as the disk has room.
    pub bytes: Option<u64>,
    /// `None`: whatever its age.
    pub age: Option<Duration>,
    /// Bytes do not take what is younger and a durable reader has not read: publishers wait.
    pub min_age: Duration,
}

/// What retention takes, and whether publishers wait for the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Everything before this goes.
    pub below: Offset,
    /// There are more bytes than there may be, and they stay.
    pub held: bool,
}

/// Whose publishes wait while retention keeps unread records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Hold {
    #[default]
    Nobody,
    /// Who does not read itself.
    Publishers,
    /// Whatever they read: the log has grown as far as it may.
    Everybody,
}

impl From<u8> for Hold {
    fn from(n: u8) -> Self {
        match n {
            0 => Self::Nobody,
            1 => Self::Publishers,
            _ => Self::Everybody,
        }
    }
}

/// Beyond `retention_bytes` a held log grows by as much again, and by so much at least: room for what its readers make of it.
const BEYOND_BYTES_MIN: u64 = 256 << 20;

impl Retention {
    /// The same, whatever the age.
    pub fn ageless(self) -> Self {
        Self { age: None, ..self }
    }

    /// When the file that holds `next` goes, ms since 1970, if the log grows on at this rate, in bytes per ms. `None`: not foreseen.
    pub fn loss_at(&self, segments: &[SegmentInfo], next: weir_log::Offset, now_ms: u64, rate: Option<f64>) -> Option<u64> {
        let at = segments.partition_point(|s| s.base <= next).checked_sub(1)?;
        let by_age = self.age.zip(segments.get(at)?.sealed_ms).map(|(age, sealed_ms)| sealed_ms + age.as_millis() as u64);
        let by_bytes = self.bytes.and_then(|max| {
            let kept: u64 = segments.get(at..)?.iter().map(|s| s.bytes).sum();
            if kept > max {
                return Some(now_ms);
            }
            // Files count from their beginning on: it goes when one begins that is too much. Each is as large as the largest, and the first begins when
            // the newest is full.
            let file = segments.iter().map(|s| s.bytes).max()?.max(1);
            let free = segments.last().filter(|s| s.filled > 0).map_or(0, |s| s.bytes.saturating_sub(s.filled));
            let left = free + (max - kept) / file * file;
            let ms = left as f64 / rate?;
            (ms < FORESEEN_MS).then(|| now_ms + ms as u64)
        });
        // What somebody has yet to read is held so long.
        let held = segments.get(at).and_then(|s| s.sealed_ms).unwrap_or(now_ms).saturating_add(ms(self.min_age));
        let by_bytes = by_bytes.map(|at| at.max(held));
        by_age.into_iter().chain(by_bytes).min().map(|at| at.max(now_ms))
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

impl Retention {
    /// Of what is before `below`, without what is young and not read by somebody who needs everything from `unread` on. `trusted`: the wall clock says ages.
    pub(crate) fn cut(&self, segments: &[SegmentInfo], below: Offset, unread: Option<Offset>, now_ms: u64, trusted: bool) -> Cut {
        let old_ms = now_ms.saturating_sub(ms(self.min_age));
        let stays = |s: &SegmentInfo| {
            let young = !trusted || s.sealed_ms.is_none_or(|at| at > old_ms);
            // Age takes it, whoever has not read it.
            let is_old = trusted && s.sealed_ms.zip(self.age).is_some_and(|(at, age)| at.saturating_add(ms(age)) < now_ms);
            young && !is_old && !self.min_age.is_zero() && unread.is_some_and(|at| s.end.is_none_or(|end| end.0 > at.0))
        };
        let first = segments.iter().find(|s| s.base.0 < below.0 && stays(s)).map(|s| Offset(s.base.0));
        Cut { below: first.unwrap_or(below), held: first.is_some() }
    }
}

impl Retention {
    /// Who waits when what is too much has to stay.
    pub(crate) fn hold(&self, segments: &[SegmentInfo]) -> Hold {
        let most = self.bytes.map(|max| max.saturating_add(max.max(BEYOND_BYTES_MIN)));
        let total: u64 = segments.iter().map(|s| s.bytes).sum();
        if most.is_some_and(|most| total >= most) { Hold::Everybody } else { Hold::Publishers }
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
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

    /// Ten records in 100 bytes.
    fn segment(n: u64, sealed: Option<u64>) -> SegmentInfo {
        SegmentInfo {
            base: weir_log::Offset(n * 10),
            end: sealed.map(|_| weir_log::Offset(n * 10 + 10)),
            bytes: 100,
            filled: 100,
            created_ms: n * 1_000,
            sealed_ms: sealed,
        }
    }

    #[test]
    fn the_oldest_sealed_segments_go_by_bytes_and_by_age() {
        let segments = [segment(0, Some(1_000)), segment(1, Some(5_000)), segment(2, Some(9_000)), segment(3, None)];
        let below = |bytes, age| Retention { bytes, age, min_age: Duration::ZERO }.below(&segments, 10_000).0;
        assert_eq!(below(None, None), 0);
        assert_eq!([400, 399, 200, 0].map(|bytes| below(Some(bytes), None)), [0, 10, 20, 30]);
        assert_eq!([20, 8, 4, 1, 0].map(|s| below(None, Some(Duration::from_secs(s)))), [0, 10, 20, 20, 30]);
        assert_eq!(below(Some(300), Some(Duration::from_secs(4))), 20);
    }

    #[test]
    fn a_loss_is_foreseen_by_age_and_by_growth() {
        let segments = [segment(0, Some(1_000)), segment(1, Some(2_000)), segment(2, Some(3_000)), segment(3, None)];
        // 100 bytes in 1,000 ms.
        let loss = |bytes, age: Option<u64>, next| {
            let kept = Retention { bytes, age: age.map(Duration::from_secs), min_age: Duration::ZERO };
            kept.loss_at(&segments, weir_log::Offset(next), 3_500, Some(0.1))
        };
        assert_eq!(loss(None, None, 0), None);
        assert_eq!(
            [0, 9, 10, 29, 30].map(|next| loss(None, Some(10), next)),
            [Some(11_000), Some(11_000), Some(12_000), Some(13_000), None]
        );
        // 400 bytes behind its beginning, 600 more until it goes.
        assert_eq!([0, 10, 35].map(|next| loss(Some(1_000), None, next)), [Some(9_500), Some(10_500), Some(12_500)]);
        assert_eq!(loss(Some(300), None, 0), Some(3_500), "at once");
        assert_eq!(loss(Some(1 << 40), None, 0), None, "in centuries");
        assert_eq!(loss(Some(1_000), Some(2), 0), Some(3_500));
    }

    #[test]
    fn bytes_do_not_take_what_is_young_and_unread() {
        let segments = [segment(0, Some(1_000)), segment(1, Some(5_000)), segment(2, Some(9_000)), segment(3, None)];
        let cut = |min_age: u64, unread: Option<u64>, trusted| {
            let retention = Retention { bytes: Some(200), age: None, min_age: Duration::from_secs(min_age) };
            let cut = retention.cut(&segments, Offset(20), unread.map(Offset), 10_000, trusted);
            (cut.below.0, cut.held)
        };
        assert_eq!(cut(60, None, true), (20, false), "everybody has read it");
        assert_eq!(cut(60, Some(20), true), (20, false));
        assert_eq!(cut(60, Some(19), true), (10, true));
        assert_eq!(cut(60, Some(0), true), (0, true));
        assert_eq!((cut(5, Some(0), true), cut(6, Some(0), true), cut(10, Some(0), true)), ((20, false), (10, true), (0, true)), "by age");
        let aged = Retention { bytes: None, age: Some(Duration::from_secs(4)), min_age: Duration::from_secs(60) };
        assert_eq!(aged.cut(&segments, Offset(20), Some(Offset(0)), 10_000, true), Cut { below: Offset(20), held: false }, "age takes it");
        assert_eq!((cut(0, Some(0), true), cut(5, Some(0), false)), ((20, false), (0, true)), "a clock that was set says no age");
    }

    #[test]
    fn who_reads_publishes_on_until_the_log_has_twice_its_size() {
        let hold = |bytes: Option<u64>, total: u64| {
            let all = [SegmentInfo { bytes: total, ..segment(0, None) }];
            Retention { bytes, age: None, min_age: Duration::from_secs(60) }.hold(&all)
        };
        let (mib, small) = (1 << 20, Some(64 << 20));
        assert_eq!((hold(small, 319 * mib), hold(small, 320 * mib)), (Hold::Publishers, Hold::Everybody));
        let large = Some(1 << 30);
        assert_eq!((hold(large, (2 << 30) - 1), hold(large, 2 << 30)), (Hold::Publishers, Hold::Everybody));
        assert_eq!(hold(None, u64::MAX), Hold::Publishers);
        for hold in [Hold::Nobody, Hold::Publishers, Hold::Everybody] {
            assert_eq!(Hold::from(hold as u8), hold);
        }
    }

    #[test]
    fn a_clock_that_is_set_pauses_retention_by_age_for_an_hour() {
        let now = |s: u64, wall_s: u64| Now { monotonic_ms: s * 1_000, wall_ms: wall_s * 1_000, ..Now::default() };
        let mut steps = Steps::new(now(0, 1_000_000));
        assert!(steps.trusted(now(10, 1_000_010)) && steps.trusted(now(20, 1_000_070)), "within a minute");
        for (set, wall) in [(100, 3_000_000), (5_000, 1_000_000)] {
            assert!(!steps.trusted(now(set, wall)), "set");
            assert!(!steps.trusted(now(set + 3_599, wall + 3_599)));
            assert!(steps.trusted(now(set + 3_600, wall + 3_600)), "an hour later");
        }
    }
}
