//! Bits that flip anywhere in the segments of a log: it opens, every acknowledged record is either read unchanged or told lost, the damage names its
//! place, what is far from it is read, and no offset is given out twice.

use super::*;
use crate::{
    Fetch, Select, Wanted,
    storage::{Name, sim::SimStorage},
};
use std::ops::Range;

/// One key of seven: through the index.
struct One;

impl Select for One {
    fn matches(&self, key: &[u8]) -> bool {
        key == b"k/3"
    }
}

/// Everything from 0 on: offsets with their values' lengths, and what is lost.
fn read(a: &Appender<SimStorage>, select: Arc<dyn Select>) -> (Vec<(u64, usize)>, Vec<Range<Offset>>) {
    let (mut all, mut lost, mut at) = (Vec::new(), Vec::new(), Offset(0));
    while at < a.next() {
        let wanted = Wanted::Range { from: at, to: a.next(), select: select.clone() };
        let fetched = fetch_from(a, &Fetch { partition: PartitionId(3), wanted, records_max: 7, bytes_max: u32::MAX }).expect("reads");
        assert!(fetched.next > at, "stands still at {at}");
        all.extend(fetched.batch.iter().map(|r| (r.offset.0, r.value.len())));
        if !fetched.lost.is_empty() {
            lost.push(fetched.lost);
        }
        at = fetched.next;
    }
    (all, lost)
}

#[test]
fn what_is_damaged_is_told_and_everything_else_is_read() {
    let (mut told, mut untouched) = (0, 0);
    for seed in 0..crash_seeds() {
        seed_random(seed);
        let mut rng = Rng::new(seed ^ 0xB17);
        let storage = Arc::new(SimStorage::new(seed));
        let mut a = open(&storage, true);
        let mut written = Vec::new();
        for _ in 0..40 {
            let records: Vec<_> = (0..1 + rng.below(8)).map(|i| message(a.next().0 + i, rng.below(900) as usize)).collect();
            let batch = a.commit(pending(&records), 5).expect("commits");
            written.extend(batch.iter().map(|r| (r.offset.0, r.value.len())));
            a.index(&batch);
        }
        let (end, last_batch) = (a.next(), written.len());
        let bases: Vec<_> = a.segments().infos().expect("lists").iter().map(|s| s.base).collect();
        drop(a);
        // A bit or a few, headers of sealed segments too; the header of the active one is refused, which `bytes` tests.
        for _ in 0..1 + rng.below(3) {
            let base = bases[rng.below(bases.len() as u64) as usize];
            let first = if Some(&base) == bases.last() { 12_288 } else { 0 };
            storage.damage(Name::Segment(base), (first + rng.below(52_000)) as usize);
        }
        let opening = Opening { gaps_allowed: true, ..opening(rng.chance(50), end) };
        let mut a = Appender::open(storage.clone(), &opening).expect("opens");
        assert_eq!(a.next(), end, "seed {seed}");
        let (got, lost) = read(&a, Arc::new(crate::Everything));
        let is_lost = |at: u64| lost.iter().any(|l| l.contains(&Offset(at)));
        let kept: Vec<_> = written.iter().copied().filter(|(at, _)| !is_lost(*at)).collect();
        assert_eq!(got, kept, "seed {seed}, lost {lost:?}");
        let missing = last_batch - kept.len();
        assert!(missing < last_batch, "seed {seed}: everything is lost");
        told += usize::from(missing > 0);
        untouched += usize::from(missing == 0);
        let (one, lost_by_key) = read(&a, Arc::new(One));
        let is_lost = |at: u64| lost_by_key.iter().any(|l| l.contains(&Offset(at)));
        let of_key: Vec<_> = kept.iter().copied().filter(|(at, _)| at % 7 == 3).collect();
        assert_eq!(one, of_key, "seed {seed}, by key");
        // By key, damage to others is not noticed; what is noticed is lost.
        assert!(written.iter().all(|(at, len)| !is_lost(*at) || !one.contains(&(*at, *len))));
        a.commit(pending(&[message(0, 10)]), 6).expect("takes more");
        assert_eq!(a.next(), end.plus(1));
    }
    assert!(told > 50 && untouched > 5, "{told} of {} logs lost something, {untouched} nothing", crash_seeds());
}
