//! How fast a partition grows: what was written in the last minutes.
//!
//! Invariant: a burst counts for as long as it took; nothing is said before a minute has been seen.
//! Must not know: what retention does with it.

use parking_lot::Mutex;
use std::collections::VecDeque;
use weir_log::{Offset, SegmentInfo};

const EVERY_MS: u64 = 10_000;
/// Ten minutes of them.
const SAMPLES: usize = 60;
/// Less says nothing about what comes.
const LEAST_MS: u64 = 60_000;

/// Of one partition.
#[derive(Default)]
pub(crate) struct Growth(Mutex<Seen>);

#[derive(Default)]
struct Seen {
    /// When, in `Now::monotonic_ms`, and bytes that were written until then since this began.
    samples: VecDeque<(u64, u64)>,
    written: u64,
    /// The file that was written last, and its length.
    active: Option<(Offset, u64)>,
}

impl Growth {
    /// The files as they are now.
    pub fn look(&self, now_ms: u64, segments: &[SegmentInfo]) {
        let seen = &mut *self.0.lock();
        if let Some((base, bytes)) = seen.active {
            let since = segments.iter().filter(|s| s.base >= base).map(|s| s.bytes).sum::<u64>();
            seen.written += since.saturating_sub(bytes);
        }
        seen.active = segments.last().map(|s| (s.base, s.bytes));
        if seen.samples.back().is_none_or(|(at, _)| now_ms >= at + EVERY_MS) {
            seen.samples.push_back((now_ms, seen.written));
            if seen.samples.len() > SAMPLES {
                seen.samples.pop_front();
            }
        }
    }

    /// Bytes per millisecond. `None`: too little was seen, or nothing was written.
    pub fn rate(&self) -> Option<f64> {
        let seen = self.0.lock();
        let ((first_ms, first), (last_ms, last)) = (seen.samples.front()?, seen.samples.back()?);
        let (ms, bytes) = (last_ms - first_ms, last - first);
        (ms >= LEAST_MS && bytes > 0).then(|| bytes as f64 / ms as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retention::Retention;
    use std::time::Duration;

    /// A log of files of 4 MiB that begins with a burst into a small one.
    struct Log {
        files: Vec<SegmentInfo>,
        growth: Growth,
        now_ms: u64,
    }

    impl Log {
        fn new() -> Self {
            let file = |base, end, bytes, created_ms, sealed_ms| SegmentInfo { base: Offset(base), end, bytes, created_ms, sealed_ms };
            let burst = file(0, Some(Offset(100)), 16 << 10, 0, Some(40));
            Self { files: vec![burst, file(100, None, 0, 40, None)], growth: Growth::default(), now_ms: 40 }
        }

        fn second(&mut self, bytes: u64, retention: Retention) {
            self.now_ms += 1_000;
            let now_ms = self.now_ms;
            let active = self.files.last_mut().expect("a file");
            active.bytes += bytes;
            if active.bytes >= 4 << 20 {
                let base = Offset(active.base.0 + 100);
                (active.end, active.sealed_ms) = (Some(base), Some(now_ms));
                self.files.push(SegmentInfo { base, end: None, bytes: 0, created_ms: now_ms, sealed_ms: None });
            }
            let below = retention.below(&self.files, now_ms);
            self.files.retain(|s| s.base.0 >= below.0);
            self.growth.look(now_ms, &self.files);
        }
    }

    #[test]
    fn a_loss_comes_when_it_was_foreseen_at_any_rate() {
        let kept = Retention { bytes: Some(64 << 20), age: None, min_age: Duration::ZERO };
        for per_s in [20_000, 300_000, 3_000_000] {
            let mut log = Log::new();
            assert_eq!(kept.loss_at(&log.files, Offset(0), log.now_ms, log.growth.rate()), None, "too early to say");
            (0..600).for_each(|_| log.second(per_s, kept));
            let next = log.files.last().expect("a file").base;
            let foreseen = kept.loss_at(&log.files, next, log.now_ms, log.growth.rate()).expect("foreseen") - log.now_ms;
            let from = log.now_ms;
            while log.files.first().is_some_and(|s| s.base <= next) {
                log.second(per_s, kept);
            }
            let took = log.now_ms - from;
            assert!(foreseen.abs_diff(took) <= took / 8 + 2_000, "{per_s} a second: {foreseen} ms foreseen, {took} it took");
        }
    }

    #[test]
    fn what_was_written_is_counted_over_files_that_begin_and_go() {
        let kept = Retention { bytes: Some(8 << 20), age: None, min_age: Duration::ZERO };
        let mut log = Log::new();
        (0..59).for_each(|_| log.second(1_000_000, kept));
        assert_eq!(log.growth.rate(), None, "a minute is not over");
        (0..141).for_each(|_| log.second(1_000_000, kept));
        assert!(log.growth.rate().is_some_and(|rate| (990.0..1_010.0).contains(&rate)), "{:?}", log.growth.rate());
        (0..700).for_each(|_| log.second(0, kept));
        assert_eq!(log.growth.rate(), None, "nothing comes any more");
    }
}
