//! `Durability::Os`: what a power cut takes is told, what is left is right, and no offset is given out twice.

use super::*;
use crate::{Engine, Fetch, Fetched, FileEngine, LogEngine, Nobody, Options, Stream, Wanted, Watermark, storage::sim::SimStorage};
use std::{collections::BTreeMap, ops::Range, path::Path};

fn os(unsynced: bool, clean: bool, named: Offset) -> Opening {
    Opening { gaps_allowed: true, durability: Durability::Os, unsynced, ..opening(clean, named) }
}

/// What can be read, and what readers are told is not there.
fn read(a: &Appender<SimStorage>) -> (BTreeMap<u64, Vec<u8>>, Vec<Range<u64>>) {
    let (mut records, mut lost, mut from) = (BTreeMap::new(), Vec::new(), Offset(0));
    while from < a.next() {
        let wanted = Wanted::Range { from, to: a.next(), select: Arc::new(crate::Everything) };
        let fetch = Fetch { partition: PartitionId(3), wanted, records_max: u32::MAX, bytes_max: u32::MAX };
        let f: Fetched = fetch_from(a, &fetch).expect("reads");
        records.extend(f.batch.iter().map(|r| (r.offset.0, r.value.to_vec())));
        if !f.lost.is_empty() {
            lost.push(f.lost.start.0..f.lost.end.0);
        }
        assert!(f.next > from, "goes on");
        from = f.next;
    }
    (records, lost)
}

#[test]
fn after_a_power_cut_what_is_there_is_right_and_what_is_not_is_told() {
    let (mut lost_some, mut kept_some) = (0, 0);
    for seed in 0..crash_seeds() {
        seed_random(seed);
        let mut rng = Rng::new(seed ^ 0x05);
        let storage = Arc::new(SimStorage::new(seed));
        let mut a = Appender::open(storage.clone(), &os(false, false, Offset(0))).expect("opens");
        // Every record whose offset was given out.
        let mut given: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for life in 0..4 {
            let what = format!("seed {seed}, life {life}");
            for _ in 0..rng.below(60) {
                let n = a.next().0;
                let longest = if rng.chance(20) { 6_000 } else { 300 };
                let batch = a.commit(pending(&[message(n, rng.below(longest) as usize)]), 5).expect("commits");
                for r in batch.iter() {
                    assert_eq!(given.insert(r.offset.0, r.value.to_vec()), None, "{what}: offset {} was given out before", r.offset);
                }
            }
            storage.restart();
            // Something that is durable may name the end, or what is before it.
            let named = Offset(rng.below(a.next().0 + 1));
            drop(a);
            a = Appender::open(storage.clone(), &os(true, false, named)).expect("opens after a power cut");
            assert!(given.keys().all(|known| *known < a.next().0), "{what}: goes on at {}", a.next());
            let (records, lost) = read(&a);
            for (offset, value) in &given {
                match records.get(offset) {
                    Some(there) => assert_eq!(there, value, "{what}: record {offset}"),
                    None => assert!(lost.iter().any(|l| l.contains(offset)), "{what}: record {offset} is gone, and {lost:?} was told"),
                }
            }
            assert!(records.keys().all(|offset| given.contains_key(offset)), "{what}: a record that nobody wrote");
            (kept_some, lost_some) = (kept_some + records.len(), lost_some + given.len() - records.len());
        }
    }
    assert!(kept_some > 1_000 && lost_some > 1_000, "{kept_some} kept, {lost_some} lost: both are to be seen");
}

/// Records of one size, so that an old one stands wherever a new one is missing. Retention, restarts and a change from `Disk` leave files that held others before.
#[test]
fn old_records_in_a_file_never_pass_for_new_ones() {
    let (mut right, mut lost) = (0, 0);
    for seed in 0..crash_seeds() {
        seed_random(seed);
        let mut rng = Rng::new(seed ^ 0x0505);
        let storage = Arc::new(SimStorage::new(seed));
        let mut given: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let (per, size) = (1 + rng.below(40), 40 + rng.below(200) as usize);
        let mut start = Offset(0);
        // First with a sync for every batch: its retired files may be recycled.
        for durability in [Durability::Disk, Durability::Os] {
            let clean = durability == Durability::Os;
            let mut a = Appender::open(storage.clone(), &Opening { durability, start, ..os(false, clean, Offset(0)) }).expect("opens");
            for round in 0..150 {
                let first = a.next().0;
                let batch: Vec<_> = (0..per).map(|i| sized(first + i, size)).collect();
                let batch = a.commit(pending(&batch), 5).expect("commits");
                given.extend(batch.iter().map(|r| (r.offset.0, r.value.to_vec())));
                let infos = a.segments().infos().expect("lists");
                if round % 10 == 0 && infos.len() > 2 {
                    start = infos[infos.len() - 2].base;
                    a.segments().retire(&*storage, start).expect("retires");
                }
            }
            if durability == Durability::Disk {
                a.finish().expect("syncs");
            }
        }
        storage.restart();
        let a = Appender::open(storage.clone(), &Opening { start, ..os(true, false, Offset(0)) }).expect("opens after a power cut");
        let (records, _) = read(&a);
        for (offset, value) in &records {
            assert_eq!(given.get(offset), Some(value), "seed {seed}: record {offset} is another's");
        }
        let from = a.segments().start().0;
        (right, lost) = (right + records.len(), lost + given.range(from..).count() - records.len());
    }
    assert!(right > 1_000 && lost > 1_000, "{right} right, {lost} lost: both are to be seen");
}

/// A record of one key whose value is `n` over and over.
fn sized(n: u64, size: usize) -> Records {
    let mut r = Records::default();
    let value: Vec<u8> = n.to_le_bytes().into_iter().cycle().take(size).collect();
    r.push(Kind::Message, 1, &n.to_le_bytes(), b"k", b"", &value).expect("small");
    r
}

#[test]
fn a_clean_end_has_everything_on_the_disk() {
    for seed in 0..20 {
        seed_random(seed);
        let mut rng = Rng::new(seed);
        let storage = Arc::new(SimStorage::new(seed));
        let mut a = Appender::open(storage.clone(), &os(false, false, Offset(0))).expect("opens");
        for n in 0..100 {
            a.commit(pending(&[message(n, rng.below(4_000) as usize)]), 5).expect("commits");
        }
        let (end, before) = (a.next(), read(&a));
        a.finish().expect("syncs");
        drop(a);
        storage.restart();
        let a = Appender::open(storage, &os(true, true, end)).expect("opens");
        assert_eq!((a.next(), read(&a)), (end, before));
    }
}

fn options(dir: &Path, boot: Option<&str>, durability: Durability) -> Options {
    let streams = vec![Stream { name: "default".into(), partitions: 1, limits: None, durability }];
    Options { limits: SMALL, streams, boot: boot.map(Into::into), ..Options::new(dir, &[]) }
}

/// Appends so many records and waits for them. Gives the end, and whether a gap is known.
fn life(dir: &Path, boot: Option<&str>, durability: Durability, records: u64, clean: bool) -> (Offset, usize) {
    let engine: FileEngine = LogEngine::open(&options(dir, boot, durability), &mut |_, _, _| Vec::new()).expect("opens");
    let p = engine.partitions()[0].id;
    for n in 0..records {
        let receipt = engine.append(p, &mut message(n, 10), &(Arc::new(Nobody) as Arc<dyn crate::Wake>)).expect("takes it");
        while !matches!(engine.appended(p), Watermark::Appended(r) if r >= receipt) {
            std::thread::yield_now();
        }
    }
    let (end, damaged) = (engine.span(p).durable, engine.damaged());
    let all = fetched(&engine, p, Offset(end.0 - records)..end);
    assert_eq!(all.iter().map(|f| f.batch.len() as u64).sum::<u64>(), records);
    if clean {
        engine.stop();
    }
    (end, damaged)
}

#[test]
fn offsets_are_passed_over_only_where_the_power_may_have_gone() {
    let dir = tempfile::tempdir().expect("a directory");
    let life = |boot, durability, clean| life(dir.path(), boot, durability, 5, clean);
    assert_eq!(life(Some("a"), Durability::Os, false), (Offset(5), 0));
    assert_eq!(life(Some("a"), Durability::Os, true), (Offset(10), 0), "the process alone has ended");
    assert_eq!(life(Some("b"), Durability::Os, false), (Offset(15), 0), "it had ended cleanly");
    let (end, gaps) = life(Some("c"), Durability::Os, false);
    assert!(end > Offset(20) && gaps == 1, "the machine was started again: {end}");
    // What the run before did counts, and not what this one does.
    let (later, gaps) = life(None, Durability::Disk, false);
    assert!(later > end.plus(5) && gaps == 2, "nobody knows: {later}");
    assert_eq!(life(Some("d"), Durability::Disk, false), (later.plus(5), 2));
    assert_eq!(life(None, Durability::Os, false), (later.plus(10), 2));
    let (last, gaps) = life(None, Durability::Os, false);
    assert!(last > later.plus(15) && gaps == 3, "a start that is not known is never the same: {last}");
}
