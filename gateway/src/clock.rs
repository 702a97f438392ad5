//! The time: the date of the machine, which may be set, and a steady clock for what expires.
//!
//! Invariant: the steady clock never goes back, and while the process lives it goes as fast as time
//! does, whatever becomes of the date. Over a restart it goes on by what the date says has passed:
//! the state store keeps how far the two were apart and what the steady clock had reached.
//! Must not know: what expires.

use tokio::time::Instant;
use weir_core::ids::Now;

/// The key of `Reached` in the state store.
pub(crate) const KEY: &[u8] = b"clock";
/// A smaller change of the distance is no set date, but two clocks that are read one after another.
const STEP_MS: u64 = 1_000;

pub(crate) fn wall_ms() -> u64 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// What the store keeps of the steady clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reached {
    /// Less than nothing: the date was set forward.
    ahead_of_wall_ms: i64,
    steady_ms: u64,
}

impl Reached {
    /// `None`: not a value of this format.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (ahead, rest) = value.split_first_chunk::<8>()?;
        let ahead_of_wall_ms = i64::from_le_bytes(*ahead);
        Some(Self { ahead_of_wall_ms, steady_ms: u64::from_le_bytes(*rest.first_chunk()?) })
    }

    pub fn value(self) -> Vec<u8> {
        [self.ahead_of_wall_ms.to_le_bytes(), self.steady_ms.to_le_bytes()].concat()
    }

    /// Was the date set between the two?
    pub fn differs(self, other: Self) -> bool {
        self.ahead_of_wall_ms.abs_diff(other.ahead_of_wall_ms) > STEP_MS
    }
}

pub(crate) struct Clock {
    start: Instant,
    steady_at_start_ms: u64,
    wall_ms: fn() -> u64,
}

impl Clock {
    /// `wall_ms`: milliseconds since 1970. A date that is earlier than what was reached, as on a
    /// machine without a clock of its own, begins there.
    pub fn begin(wall_ms: fn() -> u64, before: Reached) -> Self {
        let since = wall_ms().saturating_add_signed(before.ahead_of_wall_ms);
        let steady_at_start_ms = since.max(before.steady_ms);
        Self { start: Instant::now(), steady_at_start_ms, wall_ms }
    }

    pub fn now(&self) -> Now {
        let monotonic_ms = self.start.elapsed().as_millis() as u64;
        let steady_ms = self.steady_at_start_ms.saturating_add(monotonic_ms);
        Now { monotonic_ms, wall_ms: (self.wall_ms)(), steady_ms }
    }

    /// The moment of `Now::monotonic_ms`.
    pub fn instant(&self, monotonic_ms: u64) -> Instant {
        self.start + std::time::Duration::from_millis(monotonic_ms)
    }

    pub fn reached(&self) -> Reached {
        let now = self.now();
        let ahead_of_wall_ms = now.steady_ms.wrapping_sub(now.wall_ms).cast_signed();
        Reached { ahead_of_wall_ms, steady_ms: now.steady_ms }
    }
}

/// A time of the steady clock as people read it: what the date says, or will say, then.
pub(crate) fn date_ms(now: Now, steady_ms: u64) -> u64 {
    let ahead = now.wall_ms.wrapping_sub(now.steady_ms).cast_signed();
    steady_ms.saturating_add_signed(ahead)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::Cell, time::Duration};

    const HOUR: u64 = 3_600_000;

    thread_local! {
        static DATE: Cell<u64> = const { Cell::new(0) };
    }

    fn date() -> u64 {
        DATE.with(Cell::get)
    }

    /// Time passes, and the date with it.
    async fn pass(ms: u64) {
        DATE.set(date() + ms);
        tokio::time::advance(Duration::from_millis(ms)).await;
    }

    fn again(clock: &Clock) -> Clock {
        let reached = Reached::parse(&clock.reached().value()).expect("its own value");
        assert_eq!(reached, clock.reached());
        Clock::begin(date, reached)
    }

    #[tokio::test(start_paused = true)]
    async fn a_date_that_is_set_changes_nothing_for_what_expires() {
        DATE.set(100 * HOUR);
        let clock = Clock::begin(date, Reached::default());
        assert_eq!(clock.now().steady_ms, 100 * HOUR);
        for set in [108 * HOUR, 3 * HOUR, 200 * HOUR] {
            let (before, reached) = (clock.now().steady_ms, clock.reached());
            DATE.set(set);
            assert!(clock.reached().differs(reached));
            pass(HOUR).await;
            assert_eq!(clock.now().steady_ms, before + HOUR);
            assert_eq!(clock.now().wall_ms, set + HOUR);
            assert_eq!(date_ms(clock.now(), clock.now().steady_ms + 5), set + HOUR + 5);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn over_a_restart_the_date_says_what_has_passed() {
        DATE.set(100 * HOUR);
        let clock = Clock::begin(date, Reached::default());
        DATE.set(300 * HOUR);
        pass(HOUR).await;
        let (reached, clock) = (clock.reached(), {
            DATE.set(date() + 7 * HOUR);
            clock
        });
        // The store had it before the machine was off for seven hours.
        let clock = Clock::begin(date, Reached { steady_ms: clock.now().steady_ms, ..reached });
        assert_eq!(clock.now().steady_ms, 108 * HOUR);
        // The next one starts without a date.
        DATE.set(0);
        let next = again(&Clock::begin(date, clock.reached()));
        assert!(next.now().steady_ms >= 108 * HOUR);
        let last = next.now().steady_ms;
        DATE.set(500 * HOUR);
        pass(5).await;
        assert_eq!(next.now().steady_ms, last + 5);
        assert_eq!(again(&next).now().steady_ms, last + 5);
    }
}
