//! A batch that is gathered: the same bytes wherever it was expected to stand, and written from where it lies if it does.

use super::*;
use crate::{batch, pending::Room, segment::BLOCK};
use std::collections::HashSet;

/// Somewhere in a segment.
fn somewhere(rng: &mut Rng) -> Standing {
    let segment_base = Offset(rng.below(1_000_000));
    Standing { at: 8 * rng.below(100_000), segment_base, first: segment_base.plus(rng.below(100_000)) }
}

/// What other batches have left, of any size.
pub(super) fn used(rng: &mut Rng) -> Room {
    let mut bytes = |max: u64| vec![0xEE; rng.below(max) as usize];
    let (heads, starts) = (bytes(200), vec![77; bytes(200).len()]);
    Room { bytes: bytes([100, 60_000, 500_000][heads.len() % 3]), runs: starts.clone(), starts, heads }
}

/// The bytes that are written, in how many parts, and the batch; `front` stands before it in its block.
fn written(mut gathered: Pending, standing: Standing, front: &[u8]) -> (Vec<u8>, usize, Batch) {
    gathered.seal(standing, 7, 1_000);
    let (bytes, parts) = gathered.write(front, |parts| {
        if let [part] = parts {
            assert!(part.as_ptr().align_offset(BLOCK as usize) == 0, "one part begins where a block does");
        }
        (parts.iter().flat_map(|part| part.to_vec()).collect(), parts.len())
    });
    (bytes, parts, gathered.sealed(standing, 1_000).0)
}

#[test]
fn a_batch_is_the_same_wherever_it_was_expected() {
    let (mut large, mut elsewhere) = (0, 0);
    for seed in 0..400 {
        let rng = &mut Rng::new(seed);
        let (expected, real) = (somewhere(rng), somewhere(rng));
        let real = if rng.chance(50) { expected } else { real };
        let front: Vec<u8> = (0..real.at % BLOCK).map(|_| 1 + rng.below(255) as u8).collect();
        let hint = [0, 1_000, 40_000, 200_000][rng.below(4) as usize];
        let (mut gathered, mut plain) = (Pending::at(expected, hint, used(rng)), Pending::default());
        let longest = [300, 20_000][rng.below(2) as usize];
        for n in 0..1 + rng.below(40) {
            let r = message(n, rng.below(longest) as usize);
            gathered.push(&r);
            plain.push(&r);
        }
        let bytes = plain.bytes();
        assert_eq!((gathered.bytes(), gathered.len()), (bytes, plain.len()));
        let behind = real.behind(&gathered);
        let (got, parts, batch) = written(gathered, real, &front);
        let (want, _, reference) = written(plain, real, &front);
        assert!(got == want, "seed {seed}: other bytes");
        let (found, starts) = batch::check(&got[front.len()..], 7, real.segment_base).expect("a whole batch");
        assert_eq!((found.first, starts.len()), (real.first, batch.len()), "seed {seed}");
        assert!(got.starts_with(&front) && (got.len() as u64).is_multiple_of(BLOCK), "seed {seed}: whole blocks");
        assert_eq!(behind.first, batch.end());
        assert_eq!(behind.at, (real.at + u64::from(found.len)).next_multiple_of(8));
        assert_eq!(batch.sealed_bytes(), &got[front.len()..][..found.len as usize], "seed {seed}");
        let all = |b: &Batch| b.iter().map(|r| (r.offset, r.key.to_vec(), r.value.to_vec())).collect::<Vec<_>>();
        assert!(all(&batch) == all(&reference), "seed {seed}");
        // Where it was expected a large one is not copied.
        if bytes >= 40_000 && real == expected {
            assert_eq!(parts, 1, "seed {seed}");
            large += 1;
        }
        elsewhere += usize::from(real != expected && bytes >= 40_000);
        assert!(batch.memory() <= 2 * bytes + 4 * BLOCK as usize + 8 * batch.len(), "seed {seed}: {} for {bytes}", batch.memory());
    }
    assert!(large > 50 && elsewhere > 50, "{large} where they were expected, {elsewhere} not");
}

#[test]
fn what_stands_behind_is_expected_there() {
    // Through an appender: every batch stands where the one before it said, or in a new segment.
    let storage = Arc::new(crate::storage::sim::SimStorage::new(1));
    let mut a = open(&storage, true);
    let (mut expected, mut new) = (a.standing(), 0);
    for n in 0..100 {
        let mut gathered = Pending::at(expected, 0, Room::default());
        gathered.push(&message(n, (n as usize * 997) % 5_000));
        let behind = expected.behind(&gathered);
        a.commit(gathered, n).expect("commits");
        new += u32::from(a.standing() != behind);
        expected = a.standing();
    }
    assert!((2..20).contains(&new), "{new} segments of 64 KiB for 250 KB");
}

#[test]
fn runs_are_what_follows_each_other_with_the_same_kind_flags_and_key() {
    let kinds = [Kind::Message, Kind::Note, Kind::Tombstone];
    for seed in 0..100 {
        let rng = &mut Rng::new(seed);
        let standing = somewhere(rng);
        let mut gathered = Pending::at(standing, 0, used(rng));
        // What was appended, and where an append begins.
        let (mut all, mut begins) = (Vec::new(), HashSet::new());
        for _ in 0..1 + rng.below(9) {
            let mut records = Records::default();
            // Used before.
            records.push(Kind::Message, 0, &[], b"a", &[], &[]).expect("small");
            records.clear();
            begins.insert(all.len());
            for _ in 0..rng.below(6) {
                let (kind, flags) = (kinds[rng.below(8).saturating_sub(5) as usize], rng.below(8).saturating_sub(6) as u8);
                let key: &[u8] = [&b""[..], b"a", b"aa"][rng.below(3) as usize];
                let mut one = Records::default();
                one.push(kind, flags, &[0; 8][..rng.below(9) as usize], key, &[], b"value").expect("small");
                if rng.chance(20) {
                    // As it was read: a run of its own.
                    records.push_raw(one.bytes());
                    begins.extend([all.len(), all.len() + 1]);
                } else {
                    records.push(kind, flags, &[0; 8][..rng.below(9) as usize], key, &[], b"value").expect("small");
                }
                all.push((kind, flags, key));
            }
            gathered.push(&records);
        }
        let mut expected = Vec::new();
        for (i, what) in all.iter().enumerate() {
            match expected.last_mut() {
                Some((records, known)) if *known == *what && !begins.contains(&i) => *records = 0..=i as u32,
                _ => expected.push((0..=i as u32, *what)),
            }
        }
        gathered.seal(standing, 7, 1);
        let (batch, _) = gathered.sealed(standing, 1);
        let mut from = 0;
        let runs: Vec<_> = batch.runs().collect();
        for (run, (records, what)) in runs.iter().zip(&expected) {
            assert_eq!((run.records.clone(), (run.kind, run.flags, run.key)), (from..records.end() + 1, *what), "seed {seed}");
            from = run.records.end;
        }
        assert_eq!((runs.len(), from as usize), (expected.len(), all.len()), "seed {seed}");
        // Of records that were chosen each is one.
        let mut chosen = Batch::default();
        (0..batch.len() as u32).for_each(|i| chosen.push(batch.raw(i), standing.segment_base, 1));
        let each: Vec<_> = chosen.runs().map(|run| (run.records, (run.kind, run.flags, run.key))).collect();
        assert_eq!(each, all.iter().enumerate().map(|(i, what)| (i as u32..i as u32 + 1, *what)).collect::<Vec<_>>());
    }
}
