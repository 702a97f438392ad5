//! Bits that flip anywhere in the segments of a log: it opens, every acknowledged record is either read unchanged or told lost, the damage names its
//! place, what is far from it is read, and no offset is given out twice.

use super::*;
use crate::{
    Fetch, Select, Wanted,
    storage::{Name, Storage, sim::SimStorage},
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
        if rng.chance(70) {
            for (segment, end) in a.segments().sealed() {
                crate::index::seal(&*storage, &segment, end).expect("writes");
            }
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
        // An index leads to whole records of a batch that is damaged elsewhere.
        let of_key = |all: &[(u64, usize)]| all.iter().copied().filter(|(at, _)| at % 7 == 3).collect::<Vec<_>>();
        assert!(
            of_key(&kept).iter().all(|r| one.contains(r)),
            "seed {seed}, by key: {one:?} {:?} lost {lost:?} by key {lost_by_key:?}",
            of_key(&kept)
        );
        assert!(one.iter().all(|r| of_key(&written).contains(r)) && one.is_sorted(), "seed {seed}, by key: {one:?}");
        // By key, damage to others is not noticed; what is noticed is lost.
        assert!(written.iter().all(|(at, len)| !is_lost(*at) || !one.contains(&(*at, *len))));
        let untold = written.iter().find(|r| r.0 % 7 == 3 && !one.contains(r) && !is_lost(r.0));
        assert_eq!(untold, None, "seed {seed}: missing, and not told; lost {lost_by_key:?}");
        a.commit(pending(&[message(0, 10)]), 6).expect("takes more");
        assert_eq!(a.next(), end.plus(1));
    }
    assert!(told > 50 && untouched > 5, "{told} of {} logs lost something, {untouched} nothing", crash_seeds());
}

/// Whatever stands in the files, opening and reading them ends, in an error or in records with a right checksum; for as long as WEIR_FUZZ_SECONDS says.
#[test]
fn recovery_of_random_bytes() {
    let seconds = std::env::var("WEIR_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let end = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
    let (mut seed, mut opened) = (0u64, 0);
    while std::time::Instant::now() < end {
        seed += 1;
        seed_random(seed);
        let mut rng = Rng::new(seed ^ 0xF0221);
        let storage = Arc::new(SimStorage::new(seed));
        let mut a = open(&storage, true);
        for _ in 0..20 {
            let records: Vec<_> = (0..1 + rng.below(8)).map(|i| message(a.next().0 + i, rng.below(900) as usize)).collect();
            a.commit(pending(&records), 5).expect("commits");
        }
        let (named, bases) = (a.next(), a.segments().infos().expect("lists").iter().map(|s| s.base).collect::<Vec<_>>());
        drop(a);
        for _ in 0..1 + rng.below(6) {
            let base = bases[rng.below(bases.len() as u64) as usize];
            // Noise, zeros, or a piece of the log in another place.
            let n = rng.below(600) as usize;
            let bytes: Vec<u8> = match rng.below(3) {
                0 => (0..n).map(|_| rng.next_u64() as u8).collect(),
                1 => vec![0; n],
                _ => {
                    let mut piece = vec![0; n];
                    let file = storage.open(Name::Segment(base)).expect("opens");
                    let read = crate::storage::File::read_at(&file, &mut piece, 12_288 + rng.below(6_000) * 8).expect("reads");
                    piece.truncate(read);
                    piece
                }
            };
            let at = if rng.chance(10) { rng.below(64) } else { 12_288 + rng.below(6_000) * if rng.chance(50) { 8 } else { 1 } };
            storage.scribble(Name::Segment(base), at as usize, &bytes);
        }
        let named = if rng.chance(50) { named } else { Offset(0) };
        let opening = Opening { gaps_allowed: rng.chance(80), ..opening(rng.chance(50), named) };
        if let Ok(a) = Appender::open(storage, &opening) {
            opened += 1;
            let (all, _) = read(&a, Arc::new(crate::Everything));
            let (one, _) = read(&a, Arc::new(One));
            assert!(all.len() as u64 <= a.next().0 && one.iter().all(|r| all.contains(r)), "seed {seed}");
        }
    }
    println!("{seed} rounds, {opened} opened");
    assert!(opened > 20, "{opened} of {seed}");
}

/// A log of several segments, written in single records; gives its end and the base of the newest file.
fn several(storage: &Arc<SimStorage>) -> (Offset, Offset) {
    let mut a = open(storage, true);
    while a.segments().len() < 4 || a.next().0 % 50 != 7 {
        a.commit(pending(&[message(a.next().0, 700)]), 1_000).expect("commits");
    }
    (a.next(), a.segments().infos().expect("lists").last().expect("some").base)
}

fn tolerant(clean: bool, named: Offset) -> Opening {
    Opening { gaps_allowed: true, ..opening(clean, named) }
}

#[test]
fn a_damaged_head_is_made_again_and_no_batch_is_lost() {
    for byte in [0, 4, 5, 9, 20, 30, 44, 50] {
        for (state, clean) in [(false, false), (false, true), (true, false)] {
            seed_random(byte as u64);
            let storage = Arc::new(SimStorage::new(1));
            let (end, newest) = several(&storage);
            storage.damage(Name::Segment(newest), byte);
            storage.damage(Name::Segment(Offset(0)), byte);
            let what = format!("byte {byte}, state store {state}, clean {clean}");
            // In a file that has rotted nobody knows whether something was acknowledged behind its last whole batch, unless it was ended in order.
            let gap = !state && !clean;
            let mut last = end;
            for clean in [clean, false] {
                let o = Opening { gaps_allowed: !state, ..opening(clean, end) };
                let a = Appender::open(storage.clone(), &o).expect("opens");
                assert!(if gap { a.next() > end } else { a.next() == end }, "{what}: goes on at {}, ended at {end}", a.next());
                let (all, lost) = read(&a, Arc::new(crate::Everything));
                assert_eq!(all.len() as u64, end.0, "{what}");
                assert_eq!(lost.len(), usize::from(gap), "{what}: {lost:?}");
                assert!(last == end || last == a.next(), "{what}: a second start changes nothing");
                last = a.next();
            }
        }
    }
}

/// The newest file is not a segment at all, is empty, belongs to another partition, or is gone.
#[test]
fn a_newest_file_that_cannot_be_read_is_set_aside_and_the_log_goes_on_behind_it() {
    type Spoil<'a> = &'a dyn Fn(&SimStorage, Name);
    let spoil: [Spoil<'_>; 4] = [
        &|disk, name| disk.scribble(name, 0, &[b'x'; 20_000]),
        &|disk, name| drop(disk.create(name, 0).expect("creates")),
        &|disk, name| {
            let other = SimStorage::new(9);
            let alien = Opening { partition: PartitionId(77), ..opening(true, Offset(0)) };
            let mut a = Appender::open(Arc::new(other.clone()), &alien).expect("opens");
            a.commit(pending(&[message(1, 700)]), 5).expect("commits");
            let mut bytes = vec![0; 64 * 1024];
            crate::storage::File::read_at(&other.open(Name::Segment(Offset(0))).expect("opens"), &mut bytes, 0).expect("reads");
            disk.scribble(name, 0, &bytes);
        },
        &|disk, name| disk.remove(name).expect("it was there"),
    ];
    for (how, spoil) in spoil.iter().enumerate() {
        for clean in [false, true] {
            seed_random(how as u64);
            let storage = Arc::new(SimStorage::new(how as u64));
            let (end, newest) = several(&storage);
            spoil(&storage, Name::Segment(newest));
            storage.sync_names().expect("syncs");
            // In order, the end is known; else something may name less than there was.
            let named = if clean { end } else { Offset(3) };
            let mut a = Appender::open(storage.clone(), &tolerant(clean, named)).expect("opens");
            let what = format!("way {how}, clean {clean}");
            assert!(if clean { a.next() == end } else { a.next() > end }, "{what}: goes on at {}, ended at {end}", a.next());
            let next = a.next();
            assert_eq!(a.gaps().iter().map(|gap| gap.range.clone()).collect::<Vec<_>>(), [newest..next], "{what}");
            let aside = storage.names().expect("lists").contains(&Name::Damaged(newest));
            assert_eq!(aside, how < 3, "{what}: kept for whoever looks into it");
            a.commit(pending(&[message(next.0, 50)]), 1_000).expect("commits");
            drop(a);
            for _ in 0..2 {
                let a = Appender::open(storage.clone(), &tolerant(false, next)).expect("opens again");
                let (all, lost) = read(&a, Arc::new(crate::Everything));
                assert_eq!((all.len() as u64, a.next()), (newest.0 + 1, next.plus(1)), "{what}");
                assert_eq!(lost, [newest..next], "{what}: readers are told");
            }
        }
    }
}

#[test]
fn a_log_of_one_file_that_cannot_be_read_begins_behind_it() {
    seed_random(1);
    let storage = Arc::new(SimStorage::new(1));
    let mut a = open(&storage, true);
    a.commit(pending(&[message(0, 700)]), 5).expect("commits");
    drop(a);
    storage.scribble(Name::Segment(Offset(0)), 0, &[7; 30_000]);
    let a = Appender::open(storage.clone(), &tolerant(false, Offset(1))).expect("opens");
    assert!(a.next() > Offset(1) && a.gaps().len() == 1);
    assert_eq!(a.segments().start(), a.next());
}

/// Its only file is gone, without a trace in any value: that there was one is known from the stream's own key.
#[test]
fn a_log_whose_files_are_all_missing_goes_on_behind_what_they_can_have_held() {
    for (start, named, clean) in [(0, 0, false), (0, 3, false), (0, 40, true), (20, 20, false), (20, 40, true), (0, 0, true)] {
        seed_random(1);
        let storage = Arc::new(SimStorage::new(1));
        let o = Opening { begun: true, start: Offset(start), ..tolerant(clean, Offset(named)) };
        let a = Appender::open(storage.clone(), &o).expect("opens");
        let gaps: Vec<_> = a.gaps().iter().map(|gap| gap.range.clone()).collect();
        let what = format!("{start} {named} {clean}: {gaps:?}");
        if clean && start == named {
            assert!(gaps.is_empty() && a.next() == Offset(named), "{what}: nothing was in them");
            continue;
        }
        assert!(gaps == [Offset(start)..a.next()] && a.next() >= Offset(named), "{what}");
        assert!(clean || a.next() > Offset(named.max(start) + 1_000), "{what}: nobody knows how many there were");
        assert!(!clean || a.next() == Offset(named), "{what}: how many there were is known");
    }
}

/// There is no room: what is there is opened, the first batch is stalled, and that ends by itself. `None`: nothing is there.
fn open_without_room(storage: &Arc<SimStorage>, o: &Opening) -> Option<Appender<SimStorage>> {
    storage.no_room(true);
    let opened = Appender::open(storage.clone(), o);
    let stalled = |mut a: Appender<SimStorage>| {
        let batch = pending(&[message(1, 100)]);
        let stalled = a.commit(batch, 5).err();
        assert!(matches!(stalled, Some(crate::appender::CommitError::Stalled { .. })), "{stalled:?}");
        a
    };
    match opened {
        Ok(a) => Some(stalled(a)),
        Err(e) => {
            assert!(e.to_string().contains("No space left"), "{e}");
            None
        }
    }
}

/// The start that set it aside came no further, twice: the next one knows of it all the same.
#[test]
fn what_was_set_aside_is_not_forgotten_when_there_is_no_room() {
    for files in [1, 4] {
        seed_random(1);
        let storage = Arc::new(SimStorage::new(1));
        let (end, newest) = if files == 1 {
            let mut a = open(&storage, true);
            a.commit(pending(&[message(0, 700)]), 5).expect("commits");
            (a.next(), Offset(0))
        } else {
            several(&storage)
        };
        storage.scribble(Name::Segment(newest), 0, &[7; 30_000]);
        let o = Opening { begun: true, ..tolerant(false, Offset(0)) };
        for _ in 0..2 {
            assert_eq!(open_without_room(&storage, &o).is_some(), files > 1);
        }
        storage.no_room(false);
        let a = Appender::open(storage.clone(), &o).expect("opens");
        assert!(a.next().0 > end.0 + 1_000, "goes on at {}, ended at {end}", a.next());
        assert_eq!(a.gaps().iter().map(|gap| gap.range.clone()).collect::<Vec<_>>(), [newest..a.next()]);
    }
}

/// Acknowledged records that somebody cut off are not a batch that was never acknowledged.
#[test]
fn a_newest_file_that_was_cut_is_told_and_one_that_a_start_has_cut_is_not() {
    for at in [13_000, 12_288, 8_192, 4_096 + 12_288] {
        seed_random(1);
        let storage = Arc::new(SimStorage::new(1));
        let (end, newest) = several(&storage);
        storage.cut(Name::Segment(newest), at);
        let error = Appender::open(storage.clone(), &opening(false, Offset(0))).err().expect("refused").to_string();
        assert!(error.contains("cut") && error.contains("weir log repair"), "{error}");
        let a = Appender::open(storage.clone(), &tolerant(false, Offset(0))).expect("opens");
        assert!(a.next() > end, "cut at {at}: goes on at {}, ended at {end}", a.next());
        assert_eq!(a.gaps().len(), 1, "cut at {at}");
    }
    // A start that was broken off behind its own cut, with and without records that are missing behind it.
    for missing in [0, 3] {
        seed_random(1);
        let storage = Arc::new(SimStorage::new(1));
        let (end, _) = several(&storage);
        let named = end.plus(missing);
        for _ in 0..2 {
            let a = open_without_room(&storage, &tolerant(false, named)).expect("opens");
            assert_eq!(a.next(), named);
        }
        storage.no_room(false);
        let a = Appender::open(storage.clone(), &tolerant(false, named)).expect("opens");
        let lost: Vec<_> = a.gaps().iter().map(|gap| gap.range.clone()).collect();
        assert_eq!((a.next(), lost), (named, if missing == 0 { Vec::new() } else { vec![end..named] }));
    }
}

/// A start without room serves what is there and takes what comes when there is room, whether something stood in its newest file or not.
#[test]
fn a_log_that_was_opened_without_room_goes_on_when_there_is_some() {
    for again in [false, true] {
        seed_random(1);
        let storage = Arc::new(SimStorage::new(1));
        let (end, _) = several(&storage);
        // Its newest file is a fresh one then.
        let opened = again.then(|| Appender::open(storage.clone(), &tolerant(false, Offset(0))).expect("opens"));
        drop(opened);
        let mut a = open_without_room(&storage, &tolerant(false, Offset(0))).expect("opens");
        assert_eq!((everything(&a).len() as u64, a.next()), (end.0, end));
        storage.no_room(false);
        let batch = a.commit(pending(&[message(2, 100)]), 6).expect("commits");
        assert_eq!((batch.first(), everything(&a).len() as u64), (end, end.0 + 1));
        drop(a);
        let a = Appender::open(storage.clone(), &tolerant(false, Offset(0))).expect("opens");
        assert_eq!((everything(&a).len() as u64, a.gaps().len()), (end.0 + 1, 0));
    }
}

/// A sector that the device cannot read costs what stands in it.
#[test]
fn a_block_that_cannot_be_read_is_damage_and_no_reason_not_to_start() {
    let at_of = |file: usize| [0, 12_288, 20_480, 40_960].map(|at| (file, at));
    for (file, at) in [at_of(0), at_of(1), at_of(3)].concat() {
        seed_random(1);
        let storage = Arc::new(SimStorage::new(1));
        let (end, _) = several(&storage);
        let bases: Vec<_> = storage.names().expect("lists").into_iter().filter(|n| matches!(n, Name::Segment(_))).collect();
        storage.rot_away(bases[file], at);
        let what = format!("file {file}, byte {at}");
        let a = Appender::open(storage.clone(), &tolerant(false, end)).unwrap_or_else(|e| panic!("{what}: {e}"));
        let (all, lost) = read(&a, Arc::new(crate::Everything));
        let missing: u64 = lost.iter().map(|l| l.end.0.min(end.0).saturating_sub(l.start.0)).sum();
        assert_eq!(all.iter().filter(|(n, _)| *n < end.0).count() as u64 + missing, end.0, "{what}: {lost:?}");
        // Each batch is a block or two; a header is made again.
        assert!(missing <= 8, "{what}: {missing} of {end} are lost");
        assert!(at > 0 || missing == 0, "{what}: {lost:?}");
    }
}

#[test]
fn a_missing_oldest_file_is_told() {
    seed_random(1);
    let storage = Arc::new(SimStorage::new(1));
    let (end, _) = several(&storage);
    storage.remove(Name::Segment(Offset(0))).expect("it was there");
    let a = Appender::open(storage.clone(), &Opening { begun: true, ..tolerant(false, end) }).expect("opens");
    assert_eq!(a.gaps().iter().map(|gap| gap.range.clone()).collect::<Vec<_>>(), [Offset(0)..a.segments().start()]);
    let start = a.segments().start();
    let a = Appender::open(storage, &Opening { begun: true, start, ..tolerant(false, end) }).expect("opens");
    assert!(a.gaps().is_empty(), "retention has taken it");
}

/// A name is a number that anybody can write.
#[test]
fn a_file_whose_name_no_segment_can_have_had_is_set_aside_and_moves_nothing() {
    for bases in [&[1 << 40][..], &[u64::MAX - 5], &[u64::MAX], &[900_000_000, 1 << 50, u64::MAX]] {
        seed_random(1);
        let storage = Arc::new(SimStorage::new(1));
        let (end, _) = several(&storage);
        for base in bases {
            storage.create(Name::Segment(Offset(*base)), 0).expect("creates");
            storage.scribble(Name::Segment(Offset(*base)), 0, &[7; 500]);
        }
        for _ in 0..2 {
            let a = Appender::open(storage.clone(), &tolerant(false, end)).expect("opens");
            assert!(a.next() == end && a.gaps().is_empty(), "{bases:?}: goes on at {}, ended at {end}, {:?}", a.next(), a.gaps());
        }
    }
}

/// Where there are no gaps, a missing file is refused and not passed over.
#[test]
fn a_missing_newest_segment_of_the_state_store_is_refused() {
    seed_random(1);
    let storage = Arc::new(SimStorage::new(1));
    let (_, newest) = several(&storage);
    storage.remove(Name::Segment(newest)).expect("it was there");
    let error = Appender::open(storage, &opening(false, Offset(0))).err().expect("refused").to_string();
    assert!(error.contains("missing") && error.contains("weir log repair"), "{error}");
}

/// A number where the version stands, and other damage: what stands behind the header knows whose it is.
#[test]
fn a_head_that_has_rotted_in_several_places_is_made_again() {
    for (from, to) in [(4, 12), (5, 9), (4, 16), (0, 52), (0, 4_096)] {
        for with in [0, 0x5A, 2] {
            seed_random(1);
            let storage = Arc::new(SimStorage::new(1));
            let (end, newest) = several(&storage);
            for name in [Name::Segment(newest), Name::Segment(Offset(0))] {
                storage.scribble(name, from, &vec![with; to - from]);
            }
            let a = Appender::open(storage.clone(), &tolerant(true, end)).unwrap_or_else(|e| panic!("{from} to {to}, {with}: {e}"));
            assert_eq!(read(&a, Arc::new(crate::Everything)).0.len() as u64, end.0, "{from} to {to}, {with}");
        }
    }
}

#[test]
fn a_segment_of_another_version_is_refused_and_not_set_aside() {
    seed_random(1);
    let storage = Arc::new(SimStorage::new(1));
    let (_, newest) = several(&storage);
    let mut head = crate::segment::SegmentHead {
        salt: 1,
        log_id: 2,
        base: newest,
        partition: PartitionId(3),
        segment_bytes: 65_536,
        created_ms: 4,
        first: None,
    }
    .encode();
    head[4] = 2;
    let sum = crate::record::crc(&head[..48]);
    head[48..52].copy_from_slice(&sum.to_le_bytes());
    storage.scribble(Name::Segment(newest), 0, &head);
    let error = Appender::open(storage.clone(), &tolerant(false, Offset(0))).err().expect("refused").to_string();
    assert!(error.contains("version 2"), "{error}");
    assert!(storage.names().expect("lists").contains(&Name::Segment(newest)));
}
