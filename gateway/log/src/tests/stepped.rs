//! The whole engine on simulated disks, where nothing happens unless a test steps it.

use super::*;
use crate::{Engine, Fetched, LogEngine, Nobody, Options, Put, ReadError, Stream, Wake, Wanted, storage::sim::SimStorage};
use std::{collections::BTreeMap, path::Path, sync::mpsc};

/// The disks of an engine with one partition. They outlive it.
pub(super) struct Disks {
    all: BTreeMap<String, Arc<SimStorage>>,
    pub limits: Limits,
    pub durability: Durability,
    pub boot: &'static str,
}

pub(super) const P: PartitionId = PartitionId(0);

impl Disks {
    pub fn new(seed: u64) -> Self {
        seed_random(seed);
        let all = ["state", "streams/default/0"].map(|path| (path.to_owned(), Arc::new(SimStorage::new(seed))));
        Self { all: all.into(), limits: SMALL, durability: Durability::Disk, boot: "a" }
    }

    pub fn open(&self) -> LogEngine<SimStorage> {
        let streams = vec![Stream { name: "default".into(), partitions: 1, limits: None, durability: self.durability }];
        let boot = Some(self.boot.to_owned());
        let o = Options { limits: self.limits, streams, random, now_ms: || 5, boot, ..Options::new("x", &[]) };
        let disk = |path: &Path| self.all[path.to_str().expect("text")].clone();
        let engine = LogEngine::open_stepped(&o, &disk, &mut |_, _, _| Vec::new()).expect("opens");
        engine.read_at_once(true);
        engine
    }

    pub fn state(&self) -> &SimStorage {
        &self.all["state"]
    }

    pub fn data(&self) -> &SimStorage {
        &self.all["streams/default/0"]
    }

    pub fn cut_power(&self) {
        self.all.values().for_each(|disk| disk.restart());
    }
}

pub(super) fn nobody() -> Arc<dyn Wake> {
    Arc::new(Nobody)
}

pub(super) fn put(e: &LogEngine<SimStorage>, key: &[u8], value: &[u8]) {
    e.state().put(&[Put { key, tag: 1, value: Some(value) }], &nobody()).expect("takes it");
}

pub(super) fn get(e: &LogEngine<SimStorage>, key: &[u8]) -> Result<Option<Vec<u8>>, ReadError> {
    let (tx, rx) = mpsc::channel();
    e.state().get(key, Box::new(move |entry| tx.send(entry).expect("somebody waits")));
    rx.try_recv().expect("an answer at once").map(|entry| entry.map(|e| e.value))
}

pub(super) fn fetch(e: &LogEngine<SimStorage>, from: u64, to: u64) -> Fetched {
    let (tx, rx) = mpsc::channel();
    let wanted = Wanted::Range { from: Offset(from), to: Offset(to), select: Arc::new(crate::Everything) };
    let fetch = crate::Fetch { partition: P, wanted, records_max: u32::MAX, bytes_max: u32::MAX };
    e.fetch(&ASKER, fetch, Box::new(move |fetched| tx.send(fetched).expect("somebody waits")));
    rx.try_recv().expect("an answer at once").expect("reads")
}

#[test]
fn cleaning_takes_no_value_whose_successor_is_not_durable_yet() {
    let disks = Disks::new(7);
    let e = disks.open();
    put(&e, b"c/one", b"acknowledged");
    while e.step_state() {}
    let segments = || disks.state().names().expect("lists").iter().filter(|n| matches!(n, crate::storage::Name::Segment(_))).count();
    // Everything else in the oldest segment has a durable successor elsewhere, so no copy is made that cleaning would wait for.
    while segments() < 3 {
        put(&e, b"c/other", &[1; 900]);
        put(&e, b"stream/default", &[1, 0, 0, 0, 0, 1, 0, 0, 0]);
        put(&e, b"clean", b"x");
        while e.step_state() {}
    }
    put(&e, b"c/one", b"a newer one");
    disks.state().cut_at_sync(1);
    e.step_clean();
    drop(e);
    disks.cut_power();
    let value = get(&disks.open(), b"c/one").expect("reads").expect("was acknowledged");
    assert!(value == b"acknowledged" || value == b"a newer one");
    // Without a cut it does clean.
    let (e, before) = (disks.open(), segments());
    e.step_clean();
    assert!(segments() < before, "{before} segments, {} after", segments());
    assert_eq!(get(&e, b"c/one").expect("reads").expect("still there"), value);
}

#[test]
fn a_value_that_rots_while_the_store_runs_is_damaged_and_nothing_spins() {
    let disks = Disks::new(5);
    let e = disks.open();
    put(&e, b"c/one", &[9; 300]);
    while e.step_state() {}
    // Out of memory: it is read from the file.
    for n in 0..2_000u64 {
        put(&e, format!("c/other {}", n % 5).as_bytes(), &[1; 900]);
        while e.step_state() {}
    }
    let first = disks.state().names().expect("lists").into_iter().find(|n| matches!(n, crate::storage::Name::Segment(Offset(0))));
    let first = first.expect("the segment that holds it");
    (12_288..14_000).step_by(16).for_each(|at| disks.state().damage(first, at));
    assert!(matches!(get(&e, b"c/one"), Err(ReadError::Damaged { .. })));
    assert!(get(&e, b"c/other 1").expect("reads").is_some(), "the others are read");
}

#[test]
fn damage_is_one_key_wherever_readers_begin_in_it() {
    let mut disks = Disks::new(8);
    disks.durability = Durability::Os;
    let e = disks.open();
    for n in 0..5 {
        e.append(P, &mut message(n, 10), &nobody()).expect("takes it");
        e.step_partition(0);
    }
    drop(e);
    disks.cut_power();
    disks.boot = "b";
    let e = disks.open();
    let (damaged, end) = (e.damaged(), e.span(P).durable.0);
    assert_eq!(damaged, 1);
    let keys = || e.state().keys(b"damage/", b"", usize::MAX).len();
    // The power cut may have left some of the five.
    for from in (5..end).rev() {
        assert_eq!(fetch(&e, from, end).lost, Offset(from)..Offset(end));
        while e.step_state() {}
    }
    assert_eq!((e.damaged(), keys()), (1, 1));
}

/// What a reader finds piece by piece, from behind, is one range in the end, and the same after a restart.
#[test]
fn damage_that_touches_is_joined() {
    let disks = Disks::new(9);
    let e = disks.open();
    for n in 0..200 {
        e.append(P, &mut message(n, 900), &nobody()).expect("takes it");
        e.step_partition(0);
    }
    let first = crate::storage::Name::Segment(Offset(0));
    (12_288..60_000).step_by(16).for_each(|at| disks.data().damage(first, at));
    e.stop();
    drop(e);
    let e = disks.open();
    let end = e.segments(P).expect("lists")[0].end.expect("it is sealed").0;
    for (from, to) in [(40, end), (30, end), (10, 20), (20, 31), (0, 11), (5, end)] {
        assert!(!fetch(&e, from, to).lost.is_empty());
        while e.step_state() {}
    }
    let keys = e.state().keys(b"damage/", b"", usize::MAX);
    assert_eq!((e.damaged(), keys.len(), &*keys[0]), (1, 1, &b"damage/0/0"[..]));
}

#[test]
fn a_log_without_room_goes_on_when_there_is_some() {
    let disks = Disks::new(3);
    let e = disks.open();
    let mut taken = 0;
    disks.data().no_room(true);
    let stalled = loop {
        if e.append(P, &mut message(taken, 900), &nobody()).is_err() {
            break e.stalled().pop().expect("a reason").1;
        }
        taken += 1;
        e.step_partition(0);
        assert!(taken < 1_000, "the segment is full long before");
    };
    assert_eq!(stalled.error.raw_os_error(), Some(28), "{stalled}");
    let durable = e.span(P).durable.0;
    assert!(durable > 0 && durable < taken);
    assert_eq!(fetch(&e, 0, durable).batch.len() as u64, durable, "what is there is read meanwhile");
    for _ in 0..10 {
        e.step_partition(0);
        assert_eq!(e.span(P).durable.0, durable);
    }
    disks.data().no_room(false);
    while e.step_partition(0) {}
    assert!(e.stalled().is_empty());
    assert_eq!(e.span(P).durable.0, taken);
    drop(e);
    disks.cut_power();
    assert_eq!(fetch(&disks.open(), 0, taken).batch.len() as u64, taken);
}
