//! Random clients against a model of what they are owed: sessions, retained messages, wills, replays, groups and the feed, through cuts, SIGKILL and
//! stops in order. Over sockets only; the log, printed at the end, says what was published.
//!
//! It goes on for `WEIR_MODEL_SECONDS` (60), a world of 20 s after the other. `WEIR_SEED` repeats the operations of a world.

#[path = "../support/mod.rs"]
mod support;

mod client;
mod feed;
mod ledger;
mod world;

use std::time::{Duration, Instant};
use world::World;

/// xorshift64*.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % n
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn run(durability: &str) {
    let seconds = number("WEIR_MODEL_SECONDS").unwrap_or(60);
    let begun = Instant::now();
    let mut seed = number("WEIR_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 20);
    loop {
        // The last seed in the output of a failure is the one that failed.
        eprintln!("WEIR_SEED={seed} ({durability})");
        let mut world = World::start(seed, durability);
        let end = Instant::now() + Duration::from_secs(seconds.min(20));
        while Instant::now() < end {
            world.step();
        }
        world.end();
        if begun.elapsed().as_secs() >= seconds {
            return;
        }
        seed += 1;
    }
}

#[test]
fn nobody_is_owed_anything_in_the_end_disk() {
    run("disk");
}

#[test]
fn nobody_is_owed_anything_in_the_end_os() {
    run("os");
}
