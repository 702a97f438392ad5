//! What tries to prove the log wrong: crashes of a simulated disk, random operations against a model, the engine with its threads.

mod bytes;
mod crash;
mod damage;
mod engine;
mod index;
mod leading;
mod newest;
mod os;
mod pending;
mod ring;
#[cfg(feature = "schedules")]
mod schedules;
mod seek;
mod state;
mod stepped;

use crate::{
    Batch, Durability, Kind, Limits, Offset, PartitionId, Records,
    appender::{Appender, Opening},
    pending::{Pending, Standing},
    storage::{Storage, sim::Rng},
};
use std::{cell::Cell, sync::Arc};

pub(crate) const SMALL: Limits = Limits { segment_bytes: 64 * 1024, pending_bytes_max: 16 * 1024, ring_bytes: 64 * 1024 };

thread_local! {
    static RANDOM: Cell<u64> = const { Cell::new(1) };
}

/// Salts that follow the seed of the test.
fn random() -> u64 {
    RANDOM.with(|r| {
        let next = Rng::new(r.get()).next_u64();
        r.set(next);
        next
    })
}

fn seed_random(seed: u64) {
    RANDOM.with(|r| r.set(seed + 1));
}

/// Seeds of `./test.sh`; more with WEIR_SEEDS.
fn crash_seeds() -> u64 {
    std::env::var("WEIR_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(200)
}

fn opening(clean: bool, named: Offset) -> Opening {
    Opening {
        partition: PartitionId(3),
        limits: SMALL,
        clean,
        named,
        start: Offset(0),
        begun: false,
        gaps_allowed: false,
        durability: Durability::Disk,
        unsynced: false,
        now_ms: 1_000,
        random,
    }
}

fn open<S: Storage>(storage: &Arc<S>, clean: bool) -> Appender<S> {
    Appender::open(storage.clone(), &opening(clean, Offset(0))).expect("opens without faults")
}

/// A message whose key and value follow from `n`.
fn message(n: u64, value_len: usize) -> Records {
    let mut records = Records::default();
    let value: Vec<u8> = (0..value_len).map(|i| (n as usize + i) as u8).collect();
    records.push(Kind::Message, 1, &n.to_le_bytes(), format!("k/{}", n % 7).as_bytes(), b"hh", &value).expect("small");
    records
}

fn pending(all: &[Records]) -> Pending {
    let mut p = Pending::default();
    all.iter().for_each(|r| p.push(r));
    p
}

fn fetch_from<S: Storage>(a: &Appender<S>, fetch: &crate::Fetch) -> Result<crate::Fetched, crate::ReadError> {
    let indexes = crate::index::Cache::new(1 << 20);
    let source = crate::reader::Source { storage: a.storage(), segments: a.segments(), indexes: &indexes, durable: a.next() };
    crate::reader::fetch(&source, fetch, crate::readers::Budget::of_step(false))
}

/// Whoever reads in a test.
static ASKER: std::sync::LazyLock<crate::Asker> = std::sync::LazyLock::new(crate::Asker::default);

/// What a range is answered with, in as many turns as it takes.
fn fetched(engine: &dyn crate::Engine, partition: PartitionId, range: std::ops::Range<Offset>) -> Vec<crate::Fetched> {
    let (mut from, mut all) = (range.start, Vec::new());
    while from < range.end {
        let (tx, rx) = std::sync::mpsc::channel();
        let wanted = crate::Wanted::Range { from, to: range.end, select: Arc::new(crate::Everything) };
        let fetch = crate::Fetch { partition, wanted, records_max: u32::MAX, bytes_max: u32::MAX };
        engine.fetch(&ASKER, fetch, Box::new(move |r| tx.send(r.expect("reads")).expect("somebody waits")));
        let fetched = rx.recv_timeout(std::time::Duration::from_secs(10)).expect("an answer");
        from = fetched.next;
        all.push(fetched);
    }
    all
}

/// Everything that can be read.
fn everything<S: Storage>(a: &Appender<S>) -> Batch {
    let fetch = crate::Fetch {
        partition: PartitionId(3),
        wanted: crate::Wanted::Range { from: Offset(0), to: a.next(), select: Arc::new(crate::Everything) },
        records_max: u32::MAX,
        bytes_max: u32::MAX,
    };
    let fetched = fetch_from(a, &fetch).expect("reads without faults");
    assert_eq!(fetched.next, a.next());
    fetched.batch
}
