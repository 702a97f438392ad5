//! A timer that is exact to some microseconds.
//!
//! Invariant: who waits goes on at or after the moment, and not a millisecond later for the timer's own sake: the runtime's timer is that coarse, and at a fixed rate its
//! delay would count as the broker's.
//! Must not know: what is waited for.

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime};
use std::{io, time::Duration};
use tokio::net::unix::pipe::Receiver;

/// A timer of the kernel's is read as a pipe is: eight bytes when its moment has come.
pub struct Clock(Receiver);

impl Clock {
    pub fn new() -> io::Result<Self> {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        Ok(Self(Receiver::from_owned_fd_unchecked(fd)?))
    }

    /// May be given up at any moment.
    pub async fn sleep(&self, time: Duration) -> io::Result<()> {
        // 0 would be never.
        let time = time.max(Duration::from_nanos(1));
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: zero, it_value: value })?;
        loop {
            self.0.readable().await?;
            match self.0.try_read(&mut [0; 8]) {
                // What is left of one that was given up.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                read => return read.map(drop),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[tokio::test]
    async fn it_wakes_at_the_moment_even_after_one_that_was_given_up() {
        let clock = Clock::new().expect("a timer");
        let mut late = Vec::new();
        for _ in 0..50 {
            let given_up = tokio::time::timeout(Duration::from_micros(100), clock.sleep(Duration::from_secs(9))).await;
            assert!(given_up.is_err());
            let began = Instant::now();
            clock.sleep(Duration::from_micros(200)).await.expect("a timer");
            let took = began.elapsed();
            assert!(took >= Duration::from_micros(200), "{took:?}");
            late.push(took - Duration::from_micros(200));
        }
        late.sort_unstable();
        // One in ten at least, whatever else the machine does.
        assert!(late[5] < Duration::from_micros(700), "{late:?}");
    }
}
