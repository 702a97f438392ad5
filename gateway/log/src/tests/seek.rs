//! Seeking finds what looking at every record finds: while a segment is written, sealed, after a restart, and with records that are damaged.

use super::{index::Keys, *};
use crate::{
    Everything, Select,
    index::{self, Cache},
    reader::Source,
    seek::{Seek, seek},
    storage::{File, Name, sim::SimStorage},
};

fn found(a: &Appender<SimStorage>, cache: &Cache, what: &Seek) -> u64 {
    let source = Source { storage: a.storage(), segments: a.segments(), indexes: cache, durable: a.next() };
    seek(&source, PartitionId(3), what, 7).expect("reads").0
}

#[test]
fn finds_the_first_record_of_a_time_and_the_last_records_of_a_key() {
    for seed in 0..20 {
        seed_random(seed);
        let mut rng = Rng::new(seed ^ 0x5EE4);
        let storage = Arc::new(SimStorage::new(seed));
        let mut a = open(&storage, true);
        // Time and key of every record.
        let mut all: Vec<(u64, u64)> = Vec::new();
        let mut now = 2_000;
        for _life in 0..3 {
            let cache = Cache::new(1 << 16);
            for _ in 0..80 {
                now += rng.below(3) * rng.below(50);
                let mut batch = Vec::new();
                for _ in 0..1 + rng.below(20) {
                    let n = if rng.chance(40) { rng.below(2) } else { 2 + rng.below(40) };
                    let mut r = Records::default();
                    let value = vec![0; rng.below(200) as usize];
                    r.push(Kind::Message, 0, &[], format!("k/{n}").as_bytes(), b"", &value).expect("small");
                    batch.push(r);
                    all.push((now, n));
                }
                let batch = a.commit(pending(&batch), now).expect("commits");
                a.index(&batch);
                if rng.chance(10) {
                    for (segment, end) in a.segments().sealed() {
                        index::seal(&*storage, &segment, end).expect("writes");
                    }
                }
            }
            for _ in 0..20 {
                let ms = 1_990 + rng.below(now - 1_980);
                let want = all.iter().position(|(at, _)| *at >= ms).unwrap_or(all.len());
                assert_eq!(found(&a, &cache, &Seek::Time(ms)), want as u64, "seed {seed}, {ms} of {now}");

                let (n, count) = (rng.below(50), rng.below(40) as u32);
                let positions: Vec<usize> = (0..all.len()).filter(|i| all[*i].1 == n).collect();
                let first = positions.len().saturating_sub(count as usize);
                let want = positions.get(first).copied().unwrap_or(all.len());
                let select: Arc<dyn Select> = Arc::new(Keys { wanted: vec![format!("k/{n}").into_bytes()], wide: rng.chance(30) });
                assert_eq!(
                    found(&a, &cache, &Seek::Last { count, select: select.clone(), below: Offset(u64::MAX) }),
                    want as u64,
                    "seed {seed}, the last {count} of {n}"
                );
                let below = rng.below(all.len() as u64 + 1) as usize;
                let first = positions.partition_point(|i| *i < below);
                let want = positions[..first].get(first.saturating_sub(count as usize)).copied().unwrap_or(below);
                let last = Seek::Last { count, select, below: Offset(below as u64) };
                assert_eq!(found(&a, &cache, &last), want as u64, "seed {seed}, the last {count} of {n} before {below}");

                let count = rng.below(all.len() as u64 + 50) as u32;
                let want = all.len().saturating_sub(count as usize);
                assert_eq!(
                    found(&a, &cache, &Seek::Last { count, select: Arc::new(Everything), below: Offset(u64::MAX) }),
                    want as u64,
                    "seed {seed}"
                );
            }
            let clean = rng.chance(50);
            drop(a);
            a = open(&storage, clean);
        }
        assert!(a.segments().len() > 5, "seed {seed}: one segment only");
    }
}

/// Added to the numbers in records, so that they are found in the file.
const META: u64 = 1 << 40;

#[test]
fn damage_hides_no_more_than_what_it_damaged() {
    seed_random(1);
    let storage = Arc::new(SimStorage::new(1));
    let mut a = open(&storage, true);
    for n in 0..20 {
        a.commit(pending(&[message(META + n, 100), message(META + n, 100)]), 1_000 + n).expect("commits");
    }
    // The first record of the batch of 1,010.
    let cache = Cache::new(1 << 16);
    let segment = a.segments().find(Offset(0)).expect("a segment").0;
    let mut bytes = vec![0; SMALL.segment_bytes as usize];
    segment.file.read_at(&mut bytes, 0).expect("reads");
    let record = bytes.windows(8).skip(4_096).position(|w| w == (META + 10).to_le_bytes()).expect("its meta") + 4_096;
    storage.damage(Name::Segment(segment.head.base), record);
    assert_eq!(found(&a, &cache, &Seek::Time(1_005)), 10);
    assert_eq!(found(&a, &cache, &Seek::Time(1_010)), 21, "the next that can be read");
    assert_eq!(found(&a, &cache, &Seek::Time(1_012)), 24);
    assert_eq!(
        found(&a, &cache, &Seek::Last { count: 20, select: Arc::new(Everything), below: Offset(u64::MAX) }),
        19,
        "what cannot be read is not counted"
    );
}
