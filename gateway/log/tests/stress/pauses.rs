//! Pauses, and an end, between any two steps.

use std::{
    cell::Cell,
    hash::{BuildHasher, Hasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use weir_log::{
    Commit, Observe, PartitionId,
    storage::chaos::{Hook, Op},
};

thread_local! {
    static RANDOM: Cell<u64> = Cell::new(RandomState::new().build_hasher().finish() | 1);
}

/// Different on each thread and in each run: what threads do is not repeated by a seed anyway.
pub fn random() -> u64 {
    RANDOM.with(|r| {
        let mut x = r.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        r.set(x);
        x >> 11
    })
}

#[derive(Default)]
pub struct Pauses {
    /// Calls of each operation until the process is killed; 0: never.
    kill_in: [AtomicU64; Op::ALL.len()],
}

impl Pauses {
    pub fn kill_at(&self, op: Op, call: u64) {
        self.kill_in[op as usize].store(call, Ordering::Relaxed);
    }

    pub fn hook(self: &Arc<Self>) -> Hook {
        let pauses = self.clone();
        Arc::new(move |op| {
            let left = &pauses.kill_in[op as usize];
            if left.load(Ordering::Relaxed) > 0 && left.fetch_sub(1, Ordering::Relaxed) == 1 {
                let killed = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
                killed.expect("a process may kill itself");
            }
            pause(if op == Op::Read { 2 } else { 20 });
        })
    }
}

impl Observe for Pauses {
    fn committed(&self, _: PartitionId, _: &Commit) {
        pause(20);
    }
}

/// Sleeps for up to 3 ms in so many of a thousand calls, and yields in one of eight.
fn pause(often: u64) {
    let r = random();
    if r % 1_000 < often {
        std::thread::sleep(Duration::from_micros(r / 1_000 % 3_000));
    } else if r.is_multiple_of(8) {
        std::thread::yield_now();
    }
}
