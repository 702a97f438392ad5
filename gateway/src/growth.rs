//! How fast a partition grows: what was written in the last three minutes, or in the last seconds if that was more.
//!
//! Invariant: nothing is said before a minute has been seen. A load that begins is known after seconds, and one that ends is forgotten
//! after three minutes: what comes in bursts is foreseen too.
//! Must not know: what retention does with it.

use parking_lot::Mutex;
use std::collections::VecDeque;
use weir_log::{Offset, SegmentInfo};

const EVERY_MS: u64 = 5_000;
/// Three minutes of them.
const SAMPLES: usize = 36;
/// So many are the last seconds.
const LATELY: usize = 3;
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
    /// The file that was written last, and how far.
    active: Option<(Offset, u64)>,
}

impl Growth {
    /// The files as they are now, before any is taken away.
    pub fn look(&self, now_ms: u64, segments: &[SegmentInfo]) {
        let seen = &mut *self.0.lock();
        let last = segments.last().map(|s| (s.base, s.filled));
        if let Some((base, filled)) = seen.active {
            let since = segments.iter().filter(|s| s.base >= base).map(|s| s.filled).sum::<u64>();
            // What was in the file before this run is no growth of it.
            let begins = filled == 0 && seen.written == 0 && last.is_some_and(|(now, _)| now == base);
            seen.written += if begins { 0 } else { since.saturating_sub(filled) };
        }
        seen.active = last;
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
        let since = |nth: usize| {
            let ((first_ms, first), (last_ms, last)) = (seen.samples.get(nth)?, seen.samples.back()?);
            let (ms, bytes) = (last_ms - first_ms, last - first);
            Some((ms, bytes as f64 / ms.max(1) as f64))
        };
        let (ms, rate) = since(0)?;
        let lately = since(seen.samples.len().saturating_sub(1 + LATELY)).map_or(0.0, |(_, rate)| rate);
        (ms >= LEAST_MS && rate > 0.0).then(|| rate.max(lately))
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

    /// A file has its length from its beginning on.
    fn begun(base: u64, created_ms: u64) -> SegmentInfo {
        SegmentInfo { base: Offset(base), end: None, bytes: 4 << 20, filled: 0, created_ms, sealed_ms: None }
    }

    impl Log {
        fn new() -> Self {
            let end = Some(Offset(100));
            let burst = SegmentInfo { end, bytes: 16 << 10, filled: 16 << 10, sealed_ms: Some(40), ..begun(0, 0) };
            Self { files: vec![burst, begun(100, 40)], growth: Growth::default(), now_ms: 40 }
        }

        fn second(&mut self, bytes: u64, retention: Retention) {
            self.now_ms += 1_000;
            let now_ms = self.now_ms;
            let active = self.files.last_mut().expect("a file");
            active.filled += bytes;
            active.bytes = active.bytes.max(active.filled);
            if active.filled >= active.bytes {
                let base = Offset(active.base.0 + 100);
                (active.end, active.sealed_ms) = (Some(base), Some(now_ms));
                self.files.push(begun(base.0, now_ms));
            }
            self.growth.look(now_ms, &self.files);
            let below = retention.below(&self.files, now_ms);
            self.files.retain(|s| s.base.0 >= below.0);
        }
    }

    #[test]
    fn a_loss_comes_when_it_was_foreseen_at_any_rate() {
        // Whole files, and a part of one beside them.
        let sizes = [64 << 20, 66 << 20].map(|bytes| Retention { bytes: Some(bytes), age: None, min_age: Duration::ZERO });
        for (per_s, kept) in [20_000, 300_000, 3_000_000].into_iter().flat_map(|per_s| sizes.map(|kept| (per_s, kept))) {
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
            assert!(foreseen.abs_diff(took) <= took / 50 + 2_000, "{per_s} a second: {foreseen} ms foreseen, {took} it took");
        }
    }

    #[test]
    fn a_load_that_begins_is_known_within_seconds() {
        let kept = Retention { bytes: Some(64 << 20), age: None, min_age: Duration::ZERO };
        let mut log = Log::new();
        (0..300).for_each(|_| log.second(1_000, kept));
        (0..16).for_each(|_| log.second(2_000_000, kept));
        assert!(log.growth.rate().is_some_and(|rate| (1_500.0..2_100.0).contains(&rate)), "{:?}", log.growth.rate());
        (0..100).for_each(|_| log.second(1_000, kept));
        assert!(log.growth.rate().is_some_and(|rate| rate > 100.0), "bursts may come again: {:?}", log.growth.rate());
        (0..100).for_each(|_| log.second(1_000, kept));
        assert!(log.growth.rate().is_some_and(|rate| (0.9..1.1).contains(&rate)), "{:?}", log.growth.rate());
    }

    #[test]
    fn what_a_file_had_before_the_start_is_no_growth() {
        let (growth, mut file) = (Growth::default(), begun(0, 0));
        for second in 0..=120 {
            growth.look(second * 1_000, std::slice::from_ref(&file));
            // The first write of this run is behind three MiB of the last one.
            file.filled = (3 << 20) + second * 100;
        }
        assert!(growth.rate().is_some_and(|rate| (0.09..0.11).contains(&rate)), "{:?}", growth.rate());
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
