//! Readers of any speed over one channel: nothing twice, nothing left out that is not told, the newest of each topic in the end.

use crate::{
    channel::{Channel, Next, Wish, weight},
    frame::{Frame, Head, joined},
};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};
use weir_log::{Offset, Partition, PartitionId};

/// xorshift64*.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % n
    }
}

fn channel(conflate: Option<Duration>) -> Channel {
    Channel::new(Wish { filter: "#".into(), conflate }, Offset(0))
}

/// Bytes of frames that are kept.
const KEPT: usize = 1_000;

fn message(frame: &Arc<Frame>) -> String {
    let partition = Partition { id: PartitionId(0), stream: "s".into(), number: 0, log_id: 1 };
    joined(&Head::new(0, &partition), std::slice::from_ref(frame), 0).to_string()
}

/// What a frame says: its records are their offsets.
fn said(frame: &Arc<Frame>) -> Vec<u64> {
    let json: serde_json::Value = serde_json::from_str(&message(frame)).expect("JSON");
    json["records"].as_array().expect("records").iter().map(|r| r.as_u64().expect("an offset")).collect()
}

/// A log of topics; only even ones are wanted.
fn wanted(log: &[u64], from: u64, to: u64) -> Vec<u64> {
    (from..to).filter(|at| log[*at as usize].is_multiple_of(2)).collect()
}

#[derive(Default)]
struct Reader {
    next: u64,
    got: Vec<u64>,
    thinned: i64,
    /// Where it came, or a snapshot put it.
    began: u64,
}

impl Reader {
    fn at(next: u64) -> Self {
        Self { next, began: next, ..Self::default() }
    }

    /// One step; false: there is nothing now.
    fn step(&mut self, channel: &Channel, log: &[u64]) -> bool {
        match channel.next(Offset(self.next)) {
            Next::Nothing(at) => {
                assert!(wanted(log, self.next, at.0).is_empty(), "passed over {:?}", wanted(log, self.next, at.0));
                self.next = at.0;
                return false;
            }
            Next::Frames(frames) => {
                for f in frames {
                    self.got.extend(said(&f));
                    self.thinned += f.thinned as i64 + f.owed;
                    self.next = f.end.0;
                }
            }
            Next::Read(to) => {
                assert!(to.0 > self.next, "it goes on");
                self.got.extend(wanted(log, self.next, to.0));
                self.next = to.0;
            }
            Next::Newest { places, end, matched } => {
                assert!(end.0 > self.next, "it goes on");
                let topics: HashSet<_> = places.iter().map(|at| log[at.0 as usize]).collect();
                assert_eq!(topics.len(), places.len(), "one of each topic");
                self.got.extend(places.iter().map(|at| at.0));
                self.thinned += matched as i64 - places.len() as i64;
                self.next = end.0;
            }
            Next::Beyond => {
                let position = channel.said().0;
                assert!(position > self.next, "it goes on");
                *self = Self::at(position);
            }
            Next::Stopped => panic!("nobody stopped it"),
        }
        true
    }
}

fn push(channel: &Channel, log: &[u64], from: u64) {
    let offsets = wanted(log, from, log.len() as u64);
    let end = Offset(log.len() as u64);
    if let Some(first) = offsets.first() {
        let records: Vec<_> = offsets.iter().map(|at| (Offset(*at), at.to_string())).collect();
        channel.push(Frame::several(channel.said()..end, Offset(*first), 0, &records), KEPT);
    } else {
        channel.advance(end);
    }
}

#[test]
fn every_reader_of_every_record_gets_each_once_in_order() {
    for seed in 1..200 {
        let (mut dice, channel) = (Dice(seed), channel(None));
        let mut log: Vec<u64> = Vec::new();
        let mut readers: Vec<Reader> = (0..5).map(|_| Reader::default()).collect();
        for _ in 0..1_000 {
            let from = log.len() as u64;
            (0..=dice.below(3)).for_each(|_| log.push(dice.below(6)));
            if dice.below(40) == 0 {
                channel.skip(Offset(log.len() as u64));
            } else {
                push(&channel, &log, from);
            }
            if dice.below(100) == 0 {
                // One that wants to begin anywhere.
                readers.push(Reader::at(dice.below(log.len() as u64 + 1)));
            }
            for (nth, r) in readers.iter_mut().enumerate() {
                // The first keeps up, the last hardly ever looks.
                if dice.below(1 << (2 * nth % 9)) == 0 {
                    while dice.below(8) > 0 && r.step(&channel, &log) {}
                }
            }
        }
        for r in &mut readers {
            while r.step(&channel, &log) {}
            assert_eq!(r.got, wanted(&log, r.began, log.len() as u64), "seed {seed}");
            assert_eq!(r.next, log.len() as u64);
        }
    }
}

#[test]
fn a_reader_of_the_newest_ends_with_the_newest_and_knows_how_many_it_did_not_see() {
    for seed in 1..200 {
        let (mut dice, channel) = (Dice(seed), channel(Some(Duration::ZERO)));
        // Of each other seed, for five of ten topics.
        let noted_max = if seed % 2 == 0 { KEPT } else { 5 * weight("0") };
        let topics: Vec<Arc<str>> = (0..10).map(|t: u64| t.to_string().into()).collect();
        let mut log: Vec<u64> = Vec::new();
        let mut readers: Vec<Reader> = (0..5).map(|_| Reader::default()).collect();
        let mut making = None;
        for _ in 0..3_000 {
            let from = log.len() as u64;
            (0..dice.below(4)).for_each(|_| log.push(dice.below(10)));
            for at in wanted(&log, from, log.len() as u64) {
                channel.mark(&topics[log[at as usize] as usize], (Offset(at), Offset(at)), 1, noted_max);
            }
            channel.advance(Offset(log.len() as u64));
            if channel.is_over() || dice.below(60) == 0 {
                // Perhaps while a frame is being made.
                channel.skip(Offset(log.len() as u64));
            }
            // A frame may take its time.
            if making.is_none() && channel.due().is_some() && dice.below(2) == 0 {
                let after = channel.said();
                making = channel.take(Instant::now(), noted_max).map(|taken| (after, taken));
            }
            if dice.below(3) > 0
                && let Some((after, (places, first, matched, end))) = making.take()
            {
                let records: Vec<_> = places.iter().map(|at| (*at, at.0.to_string())).collect();
                channel.push(Frame::several(after..end, first, matched - places.len() as u64, &records), KEPT);
            }
            if dice.below(300) == 0 {
                readers.push(Reader::at(channel.said().0));
            }
            for (nth, r) in readers.iter_mut().enumerate() {
                if dice.below(1 << (3 * nth % 13)) == 0 {
                    while dice.below(8) > 0 && r.step(&channel, &log) {}
                }
            }
        }
        if let Some((after, (places, first, matched, end))) = making.take() {
            let records: Vec<_> = places.iter().map(|at| (*at, at.0.to_string())).collect();
            channel.push(Frame::several(after..end, first, matched - places.len() as u64, &records), KEPT);
        }
        let said = channel.said().0;
        for (nth, r) in readers.iter_mut().enumerate() {
            while r.step(&channel, &log) {}
            let all = wanted(&log, r.began, said);
            let newest: HashMap<u64, u64> = all.iter().map(|at| (log[*at as usize], *at)).collect();
            let mut last: HashMap<u64, u64> = HashMap::new();
            for at in &r.got {
                assert!(last.insert(log[*at as usize], *at).is_none_or(|before| before < *at), "seed {seed}: a step back");
            }
            assert_eq!(last, newest, "seed {seed}, reader {nth}");
            assert_eq!(r.got.len() as i64 + r.thinned, all.len() as i64, "seed {seed}, reader {nth}");
        }
    }
}

#[tokio::test]
async fn who_missed_a_step_gets_it_again_and_who_missed_more_gets_what_is_newest_now() {
    let (channel, topic) = (channel(Some(Duration::ZERO)), Arc::from("t"));
    let step = |at: u64| {
        channel.mark(&topic, (Offset(at), Offset(at)), 1, KEPT);
        channel.advance(Offset(at + 1));
        let (places, first, _, end) = channel.take(Instant::now(), KEPT).expect("a step");
        channel.push(Frame::several(channel.said()..end, first, 0, &[(places[0], "0")]), KEPT);
    };
    (0..2).for_each(step);
    assert!(matches!(channel.next(Offset(0)), Next::Frames(f) if f.len() == 1 && f[0].end == Offset(1)), "the first of two");
    step(2);
    assert!(matches!(channel.next(Offset(0)), Next::Newest { places, matched: 3, .. } if places == [Offset(2)]));
}

#[tokio::test]
async fn many_readers_are_woken_each_in_its_turn() {
    let step = Duration::from_millis(100);
    let channel = channel(Some(step));
    let bells: Vec<Arc<Notify>> = (0..1_000).map(|_| Arc::default()).collect();
    bells.iter().for_each(|b| channel.join(b));
    for end in 1..3 {
        channel.push(Frame::several(channel.said()..Offset(end), Offset(end - 1), 0, &[(Offset(0), "0")]), KEPT);
        let pushed = Instant::now();
        for bell in &bells {
            timeout(step * 50, bell.notified()).await.expect("woken");
        }
        assert!(pushed.elapsed() >= step / 4, "over half a step, not all at once: {:?}", pushed.elapsed());
    }
}

/// However many topics change, and however long no step is taken.
#[test]
fn what_is_noted_of_changes_is_bounded_in_bytes() {
    let channel = channel(Some(Duration::ZERO));
    let bytes_max = 100 * weight("topic/000");
    let mut at = 0;
    let mut mark = |n: u64| {
        channel.mark(&format!("topic/{n:03}").into(), (Offset(at), Offset(at)), 1, bytes_max);
        at += 1;
        channel.advance(Offset(at));
    };
    (0..100).for_each(&mut mark);
    assert!(!channel.is_over());
    (0..200).for_each(&mut mark);
    assert!(channel.is_over());
    channel.skip(Offset(300));
    assert!(!channel.is_over() && channel.due().is_none());
    // In steps: the first ones are forgotten.
    for step in 0..10 {
        (step * 50..step * 50 + 50).for_each(&mut mark);
        let after = channel.said();
        let (places, first, _, end) = channel.take(Instant::now(), bytes_max).expect("a step");
        assert_eq!(places.len(), 50);
        channel.push(Frame::several(after..end, first, 0, &[(places[0], "0")]), KEPT);
    }
    assert!(channel.changed_bytes() <= bytes_max);
    assert!(matches!(channel.next(Offset(300)), Next::Beyond), "only a new snapshot helps");
}
