//! The newest of each key before any offset is what a fold of all records gives: in pages of any size, with and without indexes, after restarts.

use super::*;
use crate::{
    Select, Skip,
    index::{self, Cache},
    newest::{Newest, newest},
    reader::Source,
    storage::sim::SimStorage,
};
use std::collections::BTreeMap;

/// Keys that end with a digit, or all.
struct Ending(Option<u8>);

impl Select for Ending {
    fn matches(&self, key: &[u8]) -> bool {
        self.0.is_none_or(|digit| key.last() == Some(&digit)) && !key.is_empty()
    }

    fn skip(&self, _: &[u8], _: &mut Vec<u8>) -> Skip {
        Skip::Next
    }
}

#[test]
fn pages_give_what_a_fold_gives() {
    let mut indexed = 0;
    for seed in 0..20 {
        seed_random(seed);
        let mut rng = Rng::new(seed ^ 0x0FE3);
        let storage = Arc::new(SimStorage::new(seed));
        let mut a = open(&storage, true);
        let (mut all, mut now): (Vec<(Vec<u8>, u64)>, _) = (Vec::new(), 1_000);
        for _life in 0..3 {
            let cache = Cache::new(1 << 16);
            for _ in 0..60 {
                let mut batch = Vec::new();
                now += rng.below(20);
                for _ in 0..1 + rng.below(20) {
                    let key = if rng.chance(40) { rng.below(3) } else { rng.below(150) };
                    let key = format!("k/{key}").into_bytes();
                    let mut r = Records::default();
                    r.push(Kind::Message, 0, &[], &key, b"", &vec![7; rng.below(300) as usize]).expect("small");
                    batch.push(r);
                    all.push((key, now));
                }
                let batch = a.commit(pending(&batch), now).expect("commits");
                // What is not indexed is scanned.
                if !rng.chance(2) {
                    a.index(&batch);
                }
                if rng.chance(10) {
                    for (segment, end) in a.segments().sealed() {
                        index::seal(&*storage, &segment, end).expect("writes");
                    }
                }
            }
            for _ in 0..15 {
                let below = rng.below(all.len() as u64 + 20);
                let digit = rng.chance(70).then(|| b'0' + rng.below(10) as u8);
                let mut want: BTreeMap<&[u8], (u64, u64)> = BTreeMap::new();
                for (i, (key, at)) in all.iter().enumerate().take(below as usize).filter(|(_, (key, _))| Ending(digit).matches(key)) {
                    want.insert(key, (i as u64, *at));
                }
                let (keys_max, bytes_max) = (1 + rng.below(60) as usize, 1 + rng.below(4_000) as usize);
                let (mut got, mut after) = (Vec::new(), Vec::new());
                loop {
                    let n = Newest { below: Offset(below), select: Arc::new(Ending(digit)), after, keys_max, bytes_max };
                    let source = Source { storage: a.storage(), segments: a.segments(), indexes: &cache, durable: a.next() };
                    let page = newest(&source, &n, 5).expect("reads");
                    assert!(page.batch.len() <= keys_max);
                    got.extend(page.batch.iter().map(|r| (r.key.to_vec(), (r.offset.0, r.time_ms))));
                    let Some(next) = page.after else { break };
                    after = next;
                }
                let want: Vec<_> = want.into_iter().map(|(key, at)| (key.to_vec(), at)).collect();
                assert_eq!(got, want, "seed {seed}, below {below} of {}, {keys_max} keys", all.len());
            }
            indexed += a.segments().sealed().iter().filter(|(s, _)| matches!(*s.indexed.read(), index::Indexed::Sealed)).count();
            let clean = rng.chance(50);
            drop(a);
            a = open(&storage, clean);
        }
    }
    assert!(indexed > 30, "hardly any index was used: {indexed}");
}

/// After a restart the first to look for places in a segment may ask for a moment early in it. What it finds stays, so it must be all of them.
#[test]
fn an_early_moment_leaves_later_times_right() {
    for early in [false, true] {
        seed_random(3);
        let storage = Arc::new(SimStorage::new(3));
        let large = || Opening { limits: Limits { segment_bytes: 1 << 20, ..SMALL }, ..opening(false, Offset(0)) };
        let mut a = Appender::open(storage.clone(), &large()).expect("opens");
        // One a second, in a single sealed segment.
        for n in 0..4_000u64 {
            let mut r = Records::default();
            let key: &[u8] = if n % 100 == 0 { b"k/9" } else { b"k/1" };
            r.push(Kind::Message, 1, &[], key, b"", &[7; 180]).expect("small");
            let batch = a.commit(pending(&[r]), n * 1_000).expect("commits");
            a.index(&batch);
        }
        a.segments().sealed().iter().for_each(|(segment, end)| index::seal(&*storage, segment, *end).expect("writes"));
        let end = a.next();
        drop(a);
        let a = Appender::open(storage.clone(), &large()).expect("opens");
        let indexes = Cache::new(1 << 20);
        let source = Source { storage: &*storage, segments: a.segments(), indexes: &indexes, durable: end };
        if early {
            let n = Newest { below: Offset(5), select: Arc::new(Ending(None)), after: Vec::new(), keys_max: 10, bytes_max: 1 << 20 };
            assert_eq!(newest(&source, &n, 5).expect("reads").batch.len(), 2);
        }
        let wanted = crate::Wanted::Range { from: Offset(0), to: end, select: Arc::new(Ending(Some(b'9'))) };
        let fetch = crate::Fetch { partition: PartitionId(3), wanted, records_max: u32::MAX, bytes_max: u32::MAX };
        let fetched = crate::reader::fetch(&source, &fetch, crate::readers::Budget::of_step(false)).expect("reads");
        assert_eq!(fetched.batch.len(), 40);
        // The time of the last place before it, at most 64 KiB of log early: about 250 records of one second.
        let latest = fetched.batch.iter().map(|r| r.offset.0 * 1_000 - r.time_ms).max();
        assert!(latest < Some(400_000), "early {early}: a time that is {latest:?} ms early");
    }
}
