//! Power cuts and failing writes on the simulated disk, from one seed each. The fault model stands in `storage/sim.rs`.
//!
//! Checked after every restart: the log opens; every acknowledged record is there, unchanged, in order; beyond them at most the one
//! batch that was in flight, whole; and the log takes more.

use super::*;
use crate::{
    OpenError,
    storage::{Name, sim::SimStorage},
};

type Stored = (u64, Vec<u8>);

fn stored(batch: &Batch) -> Vec<Stored> {
    batch.iter().map(|r| (r.offset.0, r.value.to_vec())).collect()
}

fn batch_of(rng: &mut Rng, from: u64) -> Vec<Records> {
    let count = 1 + rng.below(5);
    let mut one = |i| {
        let longest = if rng.chance(20) { 6_000 } else { 300 };
        message(from + i + (rng.below(200) << 32), rng.below(longest) as usize)
    };
    (0..count).map(&mut one).collect()
}

/// Writes until a fault stops it. Gives what was in flight then.
fn run(a: &mut Appender<SimStorage>, rng: &mut Rng, acknowledged: &mut Vec<Stored>) -> Vec<Stored> {
    for _ in 0..60 {
        let records = batch_of(rng, a.next().0);
        let in_flight: Vec<Stored> = {
            let base = a.next().0;
            let mut plain = Batch::default();
            records.iter().for_each(|r| plain.push(r.bytes(), Offset(0), 0));
            plain.iter().enumerate().map(|(i, r)| (base + i as u64, r.value.to_vec())).collect()
        };
        let mut gathered = match rng.below(3) {
            0 => Pending::default(),
            n => Pending::at(a.standing(), if n == 1 { 0 } else { 40_000 }, super::pending::used(rng)),
        };
        records.iter().for_each(|r| gathered.push(r));
        match a.commit(gathered, rng.below(1_000_000)) {
            Ok(batch) => {
                assert_eq!(stored(&batch), in_flight);
                acknowledged.extend(in_flight);
            }
            Err(_) => {
                assert!(a.commit(pending(&records), 0).is_err(), "nothing is written after a failure");
                return in_flight;
            }
        }
    }
    Vec::new()
}

fn check(a: &Appender<SimStorage>, acknowledged: &mut Vec<Stored>, in_flight: &[Stored], what: &str) {
    let got = stored(&everything(a));
    assert!(got.len() >= acknowledged.len(), "{what}: {} of {} acknowledged records", got.len(), acknowledged.len());
    assert_eq!(got[..acknowledged.len()], acknowledged[..], "{what}: acknowledged records");
    let more = &got[acknowledged.len()..];
    assert!(more.is_empty() || more == in_flight, "{what}: {} records that nobody wrote", more.len());
    *acknowledged = got;
}

#[test]
fn a_power_cut_at_any_sync_loses_nothing_acknowledged() {
    for seed in 0..crash_seeds() {
        seed_random(seed);
        let mut rng = Rng::new(seed);
        let storage = Arc::new(SimStorage::new(seed));
        let mut acknowledged = Vec::new();
        for life in 0..4 {
            storage.cut_at_sync(1 + rng.below(40));
            let in_flight = match Appender::open(storage.clone(), &opening(false, Offset(0))) {
                Ok(mut a) => run(&mut a, &mut rng, &mut acknowledged),
                Err(_) => Vec::new(),
            };
            storage.restart();
            let a = open(&storage, false);
            check(&a, &mut acknowledged, &in_flight, &format!("seed {seed}, life {life}"));
        }
    }
}

#[test]
fn a_failed_write_or_sync_stops_the_partition_and_loses_nothing_acknowledged() {
    for seed in 0..crash_seeds() {
        seed_random(seed);
        let mut rng = Rng::new(seed ^ 0xE10);
        let storage = Arc::new(SimStorage::new(seed));
        let mut acknowledged = Vec::new();
        let mut a = open(&storage, false);
        storage.fail_at_op(1 + rng.below(80));
        let in_flight = run(&mut a, &mut rng, &mut acknowledged);
        if rng.chance(50) {
            storage.restart();
        }
        drop(a);
        let a = open(&storage, false);
        check(&a, &mut acknowledged, &in_flight, &format!("seed {seed}"));
        // What was believed after a failed sync is on the disk, and not only in the page cache.
        drop(a);
        storage.restart();
        check(&open(&storage, false), &mut acknowledged, &[], &format!("seed {seed}, after a power cut"));
    }
}

/// Where the batches of the first segment stand.
fn batches(a: &mut Appender<SimStorage>, count: u64) -> Vec<u64> {
    let mut at = Vec::new();
    for n in 0..count {
        at.push(a.standing().at);
        a.commit(pending(&[message(n, 500)]), n).expect("commits");
    }
    at
}

#[test]
fn damage_before_the_tail_is_refused_with_file_and_byte() {
    for (byte, damaged) in [(0, 2), (20, 2), (4, 5), (60, 3), (300, 4)] {
        seed_random(byte);
        let storage = Arc::new(SimStorage::new(1));
        let mut a = open(&storage, true);
        let at = batches(&mut a, 10);
        storage.damage(Name::Segment(Offset(0)), (at[damaged] + byte) as usize);
        for clean in [true, false] {
            match Appender::open(storage.clone(), &opening(clean, Offset(0))) {
                Err(OpenError::Damaged { file, at: found, .. }) => {
                    assert_eq!((file.as_str(), found), ("sim/00000000000000000000.log", at[damaged]));
                }
                other => panic!("byte {byte}: {:?}", other.map(|a| a.next())),
            }
        }
    }
}

#[test]
fn a_reader_finds_damage_in_a_sealed_segment() {
    seed_random(5);
    let storage = Arc::new(SimStorage::new(1));
    let mut a = open(&storage, true);
    let at = batches(&mut a, 10);
    drop(a);
    let a = open(&storage, false);
    storage.damage(Name::Segment(Offset(0)), (at[4] + 200) as usize);
    let wanted = crate::Wanted::Range { from: Offset(0), to: a.next(), select: Arc::new(crate::Everything) };
    let fetch = crate::Fetch { partition: PartitionId(3), wanted, records_max: 100, bytes_max: u32::MAX };
    let fetched = fetch_from(&a, &fetch).expect("reads");
    assert_eq!((fetched.batch.len(), fetched.lost.clone(), fetched.next), (4, Offset(4)..Offset(5), Offset(5)));
    let damage = fetched.damage.expect("told");
    assert_eq!((damage.file.as_str(), damage.range), ("sim/00000000000000000000.log", fetched.lost));
}

#[test]
fn a_value_that_names_records_beyond_the_end_refuses_the_log() {
    seed_random(9);
    let storage = Arc::new(SimStorage::new(1));
    let mut a = open(&storage, true);
    batches(&mut a, 3);
    assert!(Appender::open(storage.clone(), &opening(false, Offset(3))).is_ok());
    let error = Appender::open(storage, &opening(false, Offset(4))).err().expect("refused");
    assert!(matches!(error, OpenError::Missing { end: Offset(3), named: Offset(4), .. }), "{error}");
}

#[test]
fn what_was_cut_never_comes_back() {
    // A torn batch, then shorter lives: its stale bytes must not be taken for records later.
    for seed in 0..crash_seeds() {
        seed_random(seed);
        let mut rng = Rng::new(seed ^ 0x57A1E);
        let storage = Arc::new(SimStorage::new(seed));
        let mut acknowledged = Vec::new();
        for life in 0..6 {
            // The segment header and its name take two syncs in each life.
            storage.cut_at_sync(3 + rng.below(3));
            let mut a = match Appender::open(storage.clone(), &opening(false, Offset(0))) {
                Ok(a) => a,
                Err(_) => {
                    storage.restart();
                    continue;
                }
            };
            let in_flight = run(&mut a, &mut rng, &mut acknowledged);
            storage.restart();
            let a = open(&storage, false);
            check(&a, &mut acknowledged, &in_flight, &format!("seed {seed}, life {life}"));
        }
    }
}

#[test]
fn after_an_unclean_stop_a_fresh_segment_and_after_a_clean_one_the_same() {
    seed_random(11);
    let storage = Arc::new(SimStorage::new(1));
    let mut a = open(&storage, true);
    batches(&mut a, 3);
    let end = a.standing().at;
    drop(a);
    let a = open(&storage, true);
    assert_eq!((a.segments().len(), a.standing().at), (1, end));
    let a = open(&storage, false);
    assert_eq!((a.segments().len(), a.standing().at, a.next()), (2, crate::segment::BATCHES_AT, Offset(3)));
    // A segment without records gives its name to the fresh one.
    let a = open(&storage, false);
    assert_eq!((a.segments().len(), a.next()), (2, Offset(3)));
}

/// Retention between commits: files are recycled with their old batches in them, or prepared with zeros, and a power cut comes at any sync of that too.
#[test]
fn retention_and_recycled_or_prepared_files_lose_nothing_above_the_start() {
    let (mut recycled, mut prepared) = (0, 0);
    for seed in 0..crash_seeds() {
        seed_random(seed);
        let mut rng = Rng::new(seed ^ 0x2E71);
        let storage = Arc::new(SimStorage::new(seed));
        let spares = || storage.names().map_or(0, |names| names.iter().filter(|name| matches!(name, Name::Spare(_))).count());
        let mut acknowledged: Vec<Stored> = Vec::new();
        // Durable before any file goes, as the state store sees to.
        let mut start = Offset(0);
        for life in 0..4 {
            storage.cut_at_sync(5 + rng.below(120));
            let open_at = |start| Appender::open(storage.clone(), &Opening { start, ..opening(false, Offset(0)) });
            let mut in_flight = Vec::new();
            if let Ok(mut a) = open_at(start) {
                for _ in 0..8 {
                    in_flight = run(&mut a, &mut rng, &mut acknowledged);
                    if !in_flight.is_empty() {
                        break;
                    }
                    // Given up in the middle now and then, as when the engine stops.
                    let stops = rng.below(4);
                    let before = spares();
                    if a.segments().prepare(&*storage, &|_| stops > 0).is_err() {
                        break;
                    }
                    prepared += usize::from(spares() > before);
                    let sealed: Vec<_> = a.segments().infos().expect("no fault in reading").into_iter().filter_map(|s| s.end).collect();
                    let below = sealed.get(rng.below(sealed.len() as u64) as usize).copied();
                    start = start.max(below.unwrap_or_default());
                    let before = spares();
                    if a.segments().retire(&*storage, start).is_err() {
                        break;
                    }
                    recycled += usize::from(spares() > before);
                }
            }
            storage.restart();
            let a = open_at(start).expect("opens without faults");
            let got = stored(&everything(&a));
            let from = a.segments().start();
            assert!(from <= start, "seed {seed}, life {life}: begins at {from}, retention took what is below {start}");
            let kept: Vec<_> = acknowledged.iter().filter(|(at, _)| *at >= from.0).cloned().collect();
            assert!(got.starts_with(&kept), "seed {seed}, life {life}: acknowledged records above {from}");
            let more = &got[kept.len()..];
            assert!(more.is_empty() || more == in_flight, "seed {seed}, life {life}: {} records that nobody wrote", more.len());
            acknowledged.extend(more.iter().cloned());
        }
    }
    assert!(recycled > 100 && prepared > 100, "hardly any file was recycled or prepared: {recycled}, {prepared}");
}

#[test]
fn a_prepared_file_takes_over_from_one_that_was_only_allocated() {
    seed_random(9);
    let storage = Arc::new(SimStorage::new(9));
    let mut a = open(&storage, true);
    let prepare = |a: &Appender<SimStorage>| a.segments().prepare(&*storage, &|_| true).expect("room");
    prepare(&a);
    assert!(!a.segments().spares.is_any(), "nothing was written: perhaps nothing ever is");
    for n in 0..3 {
        a.commit(pending(&[message(n, 500)]), 1_000 * n).expect("commits");
    }
    prepare(&a);
    assert!(a.segments().spares.is_any());
    for n in 3..6 {
        a.commit(pending(&[message(n, 500)]), 1_000 * n).expect("commits");
    }
    let ends: Vec<_> =
        a.segments().all().into_iter().map(|(s, end)| (crate::storage::File::bytes(&s.file).expect("a size"), end)).collect();
    assert_eq!(
        ends,
        [(4 * crate::segment::BLOCK, Some(Offset(3))), (u64::from(SMALL.segment_bytes), None)],
        "the first gives back what it did not need"
    );
    prepare(&a);
    assert!(a.segments().spares.is_any(), "one for the segment after it too");
    drop(a);
    storage.restart();
    assert_eq!(everything(&open(&storage, false)).len(), 6);
}

/// Batches of 500 bytes until there are so many segments; gives the bases.
fn fill(a: &mut Appender<SimStorage>, segments: usize) -> Vec<Offset> {
    while a.segments().len() < segments {
        let batch = a.commit(pending(&[message(a.next().0, 500)]), a.next().0).expect("commits");
        a.index(&batch);
    }
    a.segments().infos().expect("lists").iter().map(|s| s.base).collect()
}

#[test]
fn a_retired_file_of_another_size_becomes_no_segment() {
    seed_random(4);
    let storage = Arc::new(SimStorage::new(4));
    fill(&mut open(&storage, true), 4);
    let larger = Limits { segment_bytes: 256 * 1024, ..SMALL };
    let mut a = Appender::open(storage.clone(), &Opening { limits: larger, ..opening(false, Offset(0)) }).expect("opens");
    let bases = fill(&mut a, 5);
    a.segments().retire(&*storage, bases[3]).expect("retires");
    assert!(!a.segments().spares.is_any());
    fill(&mut a, 5);
    for (segment, _) in a.segments().all().iter().filter(|(s, _)| s.head.segment_bytes == larger.segment_bytes) {
        assert_eq!(crate::storage::File::bytes(&segment.file).expect("a size"), 256 * 1024);
    }
}

#[test]
fn a_missing_sidecar_or_a_failed_removal_does_not_end_retention() {
    seed_random(6);
    let storage = Arc::new(SimStorage::new(6));
    let mut a = open(&storage, true);
    let bases = fill(&mut a, 7);
    a.segments().sealed().iter().for_each(|(segment, end)| crate::index::seal(&*storage, segment, *end).expect("writes"));
    storage.remove(Name::Index(bases[0])).expect("it was there");
    a.segments().retire(&*storage, bases[3]).expect("retires");
    let old =
        || storage.names().expect("lists").into_iter().filter(|n| matches!(n, Name::Segment(b) | Name::Index(b) if *b < bases[5])).count();
    assert_eq!((a.segments().len(), old()), (4, 4), "two segments and their sidecars");
    // The removal fails once: the next retirement does what is left.
    storage.fail_removal();
    assert!(a.segments().retire(&*storage, bases[5]).is_err());
    assert!(old() > 0);
    a.segments().retire(&*storage, bases[5]).expect("retires");
    assert_eq!((a.segments().len(), old()), (2, 0));
}

/// The clock is set back while the log stands, and its newest segment is empty after the first of two starts.
#[test]
fn times_never_go_back_over_starts_without_records() {
    seed_random(9);
    let storage = Arc::new(SimStorage::new(9));
    let mut a = open(&storage, false);
    for n in 0..3 {
        a.commit(pending(&[message(n, 50)]), 1_000_000 + n).expect("commits");
    }
    drop(a);
    for clean in [false, false, true, false] {
        drop(open(&storage, clean));
    }
    let mut a = open(&storage, false);
    let batch = a.commit(pending(&[message(7, 50)]), 5).expect("commits");
    assert!(batch.get(0).time_ms >= 1_000_002, "{} ms", batch.get(0).time_ms);
    assert!(a.segments().infos().expect("lists").is_sorted_by_key(|s| s.created_ms));
    let indexes = crate::index::Cache::new(1 << 20);
    let source = crate::reader::Source { storage: &*storage, segments: a.segments(), indexes: &indexes, durable: a.next() };
    assert_eq!(crate::seek::seek(&source, PartitionId(3), &crate::Seek::Time(500_000), 3).expect("reads"), Offset(0));
}
