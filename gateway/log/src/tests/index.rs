//! Reading through the key index gives what a scan gives: while a segment is written, sealed, after a restart, with sidecars that are missing or
//! damaged, and with limits that end a fetch anywhere.

use super::*;
use crate::{
    Fetch, Fetched, Select, Skip, Wanted,
    index::{self, Cache},
    reader::{self, Source},
    storage::{Name, sim::SimStorage},
};

pub(super) struct Keys {
    pub wanted: Vec<Vec<u8>>,
    pub wide: bool,
}

impl Select for Keys {
    fn matches(&self, key: &[u8]) -> bool {
        self.wanted.iter().any(|k| k == key)
    }

    fn skip(&self, key: &[u8], to: &mut Vec<u8>) -> Skip {
        let Some(next) = self.wanted.iter().filter(|k| k.as_slice() > key).min() else { return Skip::End };
        to.clone_from(next);
        Skip::To
    }

    fn is_wide(&self) -> bool {
        self.wide
    }

    fn wants_times(&self) -> bool {
        true
    }
}

/// All of a range, in fetches of `records_max`.
fn read(a: &Appender<SimStorage>, cache: &Cache, from: u64, records_max: u32, select: Keys) -> Vec<(u64, usize, u64)> {
    let select = Arc::new(select);
    let (mut all, mut at) = (Vec::new(), Offset(from));
    while at < a.next() {
        let wanted = Wanted::Range { from: at, to: a.next(), select: select.clone() };
        let fetch = Fetch { partition: PartitionId(3), wanted, records_max, bytes_max: u32::MAX };
        let source = Source { storage: a.storage(), segments: a.segments(), indexes: cache, durable: a.next() };
        let Fetched { batch, next, .. } = reader::fetch(&source, &fetch, crate::readers::Budget::of_step(false)).expect("reads");
        assert!(next > at && batch.len() <= records_max as usize);
        all.extend(batch.iter().map(|r| (r.offset.0, r.value.len(), r.time_ms)));
        at = next;
    }
    all
}

fn records(rng: &mut Rng) -> Vec<Records> {
    let one = |rng: &mut Rng| {
        let mut r = Records::default();
        // Few keys that come often, many that come seldom.
        let key = if rng.chance(30) { rng.below(3) } else { rng.below(400) };
        let kind = if rng.chance(5) { Kind::Note } else { Kind::Message };
        let longest = if rng.chance(10) { 3_000 } else { 60 };
        let value: Vec<u8> = (0..rng.below(longest)).map(|i| i as u8).collect();
        // Notes have no key: only what is selected by key is indexed.
        let key = if kind == Kind::Note { String::new() } else { format!("k/{key}") };
        r.push(kind, 0, &[], key.as_bytes(), b"", &value).expect("small");
        r
    };
    (0..1 + rng.below(20)).map(|_| one(rng)).collect()
}

#[test]
fn the_index_chooses_what_a_scan_chooses() {
    let mut used = 0;
    for seed in 0..30 {
        seed_random(seed);
        let mut rng = Rng::new(seed ^ 0x1DE4);
        let storage = Arc::new(SimStorage::new(seed));
        let mut a = open(&storage, true);
        let mut now = 1_000;
        for life in 0..3 {
            let cache = Cache::new(1 << 16);
            for _ in 0..60 {
                let batch = a
                    .commit(pending(&records(&mut rng)), {
                        now += rng.below(9);
                        now
                    })
                    .expect("commits");
                // One that was not indexed yet, because the crash came before.
                if !rng.chance(1) {
                    a.index(&batch);
                }
                if rng.chance(10) {
                    for (segment, end) in a.segments().sealed() {
                        index::seal(&*storage, &segment, end).expect("writes");
                    }
                }
            }
            for _ in 0..10 {
                let keys = if rng.chance(20) { 3 } else { 420 };
                let wanted: Vec<_> = (0..1 + rng.below(3)).map(|_| format!("k/{}", rng.below(keys)).into_bytes()).collect();
                let (from, max) = (rng.below(a.next().0), 1 + rng.below(30) as u32);
                let scanned = read(&a, &cache, from, max, Keys { wanted: wanted.clone(), wide: true });
                let chosen = read(&a, &cache, from, max, Keys { wanted, wide: false });
                assert_eq!(chosen, scanned, "seed {seed}, life {life}, from {from}, {max} at a time");
            }
            used += a.segments().sealed().iter().filter(|(s, _)| matches!(*s.indexed.read(), index::Indexed::Sealed)).count();
            if rng.chance(50)
                && let Some((segment, _)) = a.segments().sealed().first()
                && matches!(*segment.indexed.read(), index::Indexed::Sealed)
            {
                storage.damage(Name::Index(segment.head.base), 70 + rng.below(50) as usize);
            }
            let clean = rng.chance(50);
            drop(a);
            a = open(&storage, clean);
        }
    }
    assert!(used > 30, "hardly any sidecar was used: {used}");
}
