//! Who works on the log in a life, each on a thread of its own.

use crate::{
    facts::{Fact, KEYS},
    world::{Bell, One, P, World, key_of, push, state_key, state_value},
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    thread::JoinHandle,
    time::{Duration, Instant},
};
use weir_log::{AppendError, Everything, LAST_MAX, Newest, Offset, Put, Records, Seek, Select, Wake, Wanted, Watermark, storage::sim::Rng};

pub struct Load {
    world: Arc<World>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    pub fn start(world: &Arc<World>, life: u64, seed: u64) -> Self {
        let mut load = Self { world: world.clone(), threads: Vec::new() };
        for n in 0..4 {
            load.run(move |w| append(w, n << 56 | life << 32, Rng::new(seed + n)));
        }
        for slow in [false, true] {
            load.run(move |w| follow(w, slow, Rng::new(seed + 10 + u64::from(slow))));
        }
        for n in 0..3 {
            load.run(move |w| read(w, Rng::new(seed + 20 + n)));
        }
        for n in 0..2 {
            load.run(move |w| retire(w, Rng::new(seed + 30 + n)));
            load.run(move |w| put(w, n, Rng::new(seed + 40 + n)));
        }
        load.run(move |w| get(w, Rng::new(seed + 50)));
        load
    }

    fn run(&mut self, work: impl FnOnce(&World) + Send + 'static) {
        let world = self.world.clone();
        self.threads.push(std::thread::spawn(move || work(&world)));
    }

    pub fn end(self) {
        self.world.stop();
        self.threads.into_iter().for_each(|t| t.join().expect("no panic"));
    }
}

fn append(w: &World, first: u64, mut rng: Rng) {
    let bell = Arc::new(Bell::default());
    let who: Arc<dyn Wake> = bell.clone();
    let (mut records, mut next) = (Records::default(), first);
    let mut waiting: VecDeque<Fact> = VecDeque::new();
    let leads = first >> 56 & 1 == 0;
    let window = if first >> 56 == 3 { 20 } else { 1 + rng.below(3) as usize };
    while !w.is_over() {
        records.clear();
        let count = if rng.chance(30) { 1 + rng.below(40) } else { 1 };
        let longest = [30, 200, 2_000, 60_000][rng.below(if count > 1 { 3 } else { 4 }) as usize];
        (0..count).for_each(|i| push(&mut records, next + i, rng.below(longest) as usize));
        let end = loop {
            let appended = if leads || rng.chance(30) {
                w.engine.append_leading(P, &mut records, &who)
            } else {
                w.engine.append(P, &mut records, &who)
            };
            match appended {
                Ok(receipt) => break receipt.0,
                Err(AppendError::Full) => w.wait(&bell, "the batch was full"),
                Err(AppendError::Stopping) => return,
                Err(e) => return w.wrong(&format!("an append: {e}")),
            }
            if w.is_over() {
                return;
            }
        };
        waiting.push_back(Fact::Appended { id: next, count, end });
        next += count;
        loop {
            let durable = match w.engine.appended(P) {
                Watermark::Appended(receipt) => receipt.0,
                Watermark::Failed(failure) => return w.wrong(&failure.to_string()),
            };
            while let Some(fact) = waiting.pop_front_if(|fact| matches!(fact, Fact::Appended { end, .. } if *end <= durable)) {
                if let Fact::Appended { id, count, end } = fact {
                    (0..count).for_each(|i| w.see(end - count + i, id + i, "acknowledgement"));
                }
                w.note(fact);
            }
            if waiting.len() < window || w.is_over() {
                break;
            }
            w.wait(&bell, "an append");
        }
        if rng.chance(10) {
            std::thread::sleep(Duration::from_micros(rng.below(2_000)));
        }
    }
}

fn follow(w: &World, slow: bool, mut rng: Rng) {
    let bell = Arc::new(Bell::default());
    while !w.is_over() {
        let following = w.engine.follow(P, bell.clone());
        let mut next = following.start().0;
        let until = Instant::now() + Duration::from_millis(rng.below(400));
        while !w.is_over() && Instant::now() < until {
            let Some(batch) = following.poll() else {
                bell.wait(Duration::from_millis(50));
                continue;
            };
            assert_eq!((batch.first().0, batch.end().0), (next, next + batch.len() as u64), "a follower");
            for r in batch.iter() {
                assert_eq!(r.offset.0, next, "a follower");
                w.check(&r, "follower");
                next += 1;
            }
            for run in batch.runs() {
                assert!(run.records.clone().all(|i| batch.get(i).key == run.key), "a run of several keys");
            }
            w.note(Fact::Followed { end: next });
            let again = w.engine.recent(P, &[batch.first()]).swap_remove(0);
            assert!(again.is_none_or(|again| again.first() == batch.first()), "another batch than the one that was asked for");
            if slow && rng.chance(10) {
                std::thread::sleep(Duration::from_millis(rng.below(15)));
            }
        }
    }
}

fn read(w: &World, mut rng: Rng) {
    let everything: Arc<dyn Select> = Arc::new(Everything);
    while !w.is_over() {
        let span = w.engine.span(P);
        let len = span.durable.0.saturating_sub(span.start.0);
        if len == 0 {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        // Now and then from before the start.
        let from = if rng.chance(5) { span.start.0.saturating_sub(rng.below(50)) } else { span.start.0 + rng.below(len) };
        let far = if rng.chance(80) { 60 } else { 1_000 };
        let to = (from + 1 + rng.below(far)).min(span.durable.0);
        let (records_max, bytes_max) = (1 + rng.below(200) as u32, 1 + rng.below(200_000) as u32);
        let one = key_of(rng.next_u64());
        let select: Arc<dyn Select> = Arc::new(One(one.clone()));
        match rng.below(10) {
            0..4 => drop(w.range(from, to, &everything, records_max, bytes_max)),
            // What an index finds is what a scan finds.
            4..7 => {
                let Some((begun, all)) = w.range(from, to, &everything, u32::MAX, u32::MAX) else { continue };
                let Some((later, chosen)) = w.range(from, to, &select, records_max, bytes_max) else { continue };
                let same = all.range(begun.max(later)..).filter(|(_, id)| key_of(**id) == one);
                assert!(same.eq(chosen.range(begun.max(later)..)), "{from}..{to}: index and scan differ");
            }
            7 => exactly(w, (from..to).filter(|_| rng.chance(20)).map(Offset).collect(), bytes_max),
            8 => last(w, &select, &one, to, 1 + rng.below(u64::from(LAST_MAX.min(30))) as u32),
            _ => newest(w, to),
        }
    }
}

/// Each of these is read, or told lost, or retention has it.
fn exactly(w: &World, mut offsets: Vec<Offset>, bytes_max: u32) {
    while !offsets.is_empty() {
        let Some(fetched) = w.fetch(Wanted::Exactly(offsets.clone()), u32::MAX, bytes_max) else { return };
        let found: Vec<_> = fetched.batch.iter().map(|r| r.offset).collect();
        fetched.batch.iter().for_each(|r| {
            w.check(&r, "exactly");
        });
        let start = w.engine.span(P).start;
        let (examined, rest): (Vec<_>, Vec<_>) = offsets.iter().partition(|o| **o < fetched.next);
        assert!(!examined.is_empty(), "a fetch of {offsets:?} stays where it is");
        let told = |o: &Offset| found.contains(o) || *o < start || fetched.lost.contains(o);
        assert!(examined.iter().all(told), "{examined:?} wanted, {found:?} found, {:?} lost", fetched.lost);
        offsets = rest;
    }
}

/// `Seek::Last` stands where a scan from behind stands.
fn last(w: &World, select: &Arc<dyn Select>, one: &[u8], below: u64, count: u32) {
    let seek = Seek::Last { count, select: select.clone(), below: Offset(below) };
    let Some(at) = w.seek(seek) else { return };
    let everything: Arc<dyn Select> = Arc::new(Everything);
    let from = w.engine.span(P).start.0;
    let Some((begun, all)) = w.range(from.min(at), below, &everything, u32::MAX, 1 << 20) else { return };
    let chosen: Vec<_> = all.iter().filter(|(_, id)| key_of(**id) == one).map(|(offset, _)| *offset).collect();
    let expected = chosen.len().checked_sub(count as usize).map(|i| chosen[i]);
    // With fewer it is the first of them, or what retention took meanwhile.
    if let Some(expected) = expected.filter(|_| at >= begun) {
        assert_eq!(at, expected, "the last {count} below {below}");
    }
}

/// The newest of each key is what a fold of everything gives.
fn newest(w: &World, below: u64) {
    let everything: Arc<dyn Select> = Arc::new(Everything);
    let wanted = Newest { below: Offset(below), select: everything.clone(), after: Vec::new(), keys_max: 100, bytes_max: 64 << 20 };
    let Some(page) = w.newest(wanted) else { return };
    let found: BTreeMap<Vec<u8>, u64> = page.batch.iter().map(|r| (r.key.to_vec(), w.check(&r, "newest"))).collect();
    let Some((begun, all)) = w.range(w.engine.span(P).start.0, below, &everything, u32::MAX, 1 << 20) else { return };
    let folded: BTreeMap<Vec<u8>, u64> = all.values().map(|id| (key_of(*id), *id)).collect();
    for (key, id) in &folded {
        let found = found.get(key);
        // An index knows of a record that is lost, and a scan does not: then there is no newest one to be had.
        assert!(
            found == Some(id) || found.is_none() && w.has_lost(),
            "{found:x?} is the newest of {key:?} below {below}, and not {id:x}, of a log from {begun}"
        );
    }
}

/// About: what the next life has to read.
const SEGMENTS_KEPT: usize = 100;

fn retire(w: &World, mut rng: Rng) {
    while !w.is_over() {
        std::thread::sleep(Duration::from_millis(rng.below(40)));
        let Ok(segments) = w.engine.segments(P) else { continue };
        let bases: Vec<_> = segments.iter().map(|s| s.base).collect();
        assert!(bases.is_sorted() && segments.is_sorted_by_key(|s| s.created_ms), "segments out of order: {segments:?}");
        if segments.len() < 3 + rng.below(4) as usize {
            continue;
        }
        // Each life reads all that there is, so a log of thousands of lives does not grow with them.
        let excess = bases.len().saturating_sub(SEGMENTS_KEPT);
        let below = bases[excess + 1 + rng.below(2) as usize];
        w.note(Fact::Retiring { below: below.0 });
        let (tx, rx) = std::sync::mpsc::channel();
        w.engine.retire(P, below, Box::new(move |done| drop(tx.send(done))));
        match rx.recv_timeout(Duration::from_secs(20)).expect("an answer") {
            Ok(()) => assert!(w.engine.span(P).start >= below),
            Err(e) if w.is_over() => drop(e),
            Err(e) => w.wrong(&format!("retire: {e}")),
        }
    }
}

/// Puts the keys that are its own, so that their versions ascend.
fn put(w: &World, n: u64, mut rng: Rng) {
    let bell = Arc::new(Bell::default());
    let who: Arc<dyn Wake> = bell.clone();
    while !w.is_over() {
        let count = 1 + rng.below(3);
        let keys: Vec<u64> = (0..count).map(|_| rng.below(KEYS / 2) * 2 + n).collect();
        let puts: Vec<_> = keys
            .iter()
            .map(|key| {
                let version = w.putting[*key as usize].fetch_add(1, Ordering::SeqCst) + 1;
                let value = (!rng.chance(15)).then(|| state_value(*key, version, rng.below(6_000) as usize));
                w.note(Fact::Putting { key: *key, version, deletes: value.is_none() });
                (state_key(*key), *key, version, value)
            })
            .collect();
        let asked: Vec<_> = puts.iter().map(|(key, _, _, value)| Put { key, tag: 7, value: value.as_deref() }).collect();
        let receipt = loop {
            match w.engine.state().put(&asked, &who) {
                Ok(receipt) => break receipt,
                Err(AppendError::Full) => w.wait(&bell, "the state store was full"),
                Err(AppendError::Stopping) => return,
                Err(e) => return w.wrong(&format!("a put: {e}")),
            }
            if w.is_over() {
                return;
            }
        };
        loop {
            match w.engine.state().appended() {
                Watermark::Appended(at) if at >= receipt => break,
                Watermark::Appended(_) => w.wait(&bell, "a put"),
                Watermark::Failed(failure) => return w.wrong(&failure.to_string()),
            }
            if w.is_over() {
                return;
            }
        }
        for (_, key, version, _) in &puts {
            w.put[*key as usize].fetch_max(*version, Ordering::SeqCst);
            w.note(Fact::Put { key: *key, version: *version });
        }
        if rng.chance(20) {
            std::thread::sleep(Duration::from_micros(rng.below(3_000)));
        }
    }
}

fn get(w: &World, mut rng: Rng) {
    while !w.is_over() {
        let key = rng.below(KEYS);
        let known = w.put[key as usize].load(Ordering::SeqCst);
        let Some(found) = w.get(key) else { continue };
        let latest = w.putting[key as usize].load(Ordering::SeqCst);
        // 0: it is deleted, which a version above what was known may have done.
        assert!(
            found <= latest && (found == 0 || found >= known),
            "key {key}: version {found}, at least {known} was put, {latest} asked for"
        );
        if found > 0 {
            w.note(Fact::Put { key, version: found });
        }
    }
}
