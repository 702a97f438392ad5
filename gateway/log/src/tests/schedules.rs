//! The protocols between appenders, the writer, retention and readers, in orders that a scheduler chooses: every lock, atomic and wake-up is a point where another
//! thread may go on. A thread that waits for ever ends a test. Only with the feature `schedules`, and then nothing else.

use super::*;
use crate::{
    AppendError, Nobody, Wake, Watermark,
    partition::{Beginning, Partition},
    readers::{Progress, Readers, Turn},
    storage::sim::SimStorage,
    sync::{
        Condvar, Mutex,
        atomic::{AtomicU64, Ordering},
        thread,
    },
};

/// Orders of each test; more with WEIR_SEEDS.
fn orders() -> usize {
    crash_seeds() as usize * 5
}

#[derive(Default)]
struct Bell(Mutex<bool>, Condvar);

impl Wake for Bell {
    fn wake(&self) {
        *self.0.lock() = true;
        self.1.notify_all();
    }
}

impl Bell {
    fn wait(&self) {
        let mut rung = self.0.lock();
        while !*rung {
            self.1.wait(&mut rung);
        }
        *rung = false;
    }
}

fn start(storage: &Arc<SimStorage>) -> Arc<Partition<SimStorage>> {
    let beginning = Beginning {
        id: PartitionId(3),
        limits: SMALL,
        durability: Durability::Disk,
        name: "test",
        indexed: true,
        threads: true,
        now_ms: || 5,
        observe: Arc::new(Nobody),
    };
    Arc::new(Partition::start(beginning, open(storage, false)).expect("a thread"))
}

/// Appends and waits until it is durable: registers, then looks, as everybody must.
fn append(partition: &Partition<SimStorage>, records: &mut Records, leads: bool) -> u64 {
    let bell = Arc::new(Bell::default());
    let who: Arc<dyn Wake> = bell.clone();
    let receipt = loop {
        let appended = if leads { partition.append_leading(records, &who) } else { partition.shared.append(records, &who) };
        match appended {
            Ok(receipt) => break receipt,
            Err(AppendError::Full) => bell.wait(),
            Err(e) => panic!("{e}"),
        }
    };
    while !matches!(partition.shared.appended(), Watermark::Appended(at) if at >= receipt) {
        bell.wait();
    }
    receipt.0
}

#[test]
fn whoever_appends_is_woken_and_a_follower_sees_every_record_once() {
    shuttle::check_random(
        || {
            seed_random(1);
            let storage = Arc::new(SimStorage::new(1));
            let partition = start(&storage);
            let bell = Arc::new(Bell::default());
            let following = partition.follow(bell.clone());
            let appenders: Vec<_> = (0..3u64)
                .map(|n| {
                    let partition = partition.clone();
                    thread::spawn(move || (0..2).map(|i| append(&partition, &mut message(n * 10 + i, 300), n == 0)).collect::<Vec<u64>>())
                })
                .collect();
            let mut next = 0;
            while next < 6 {
                match crate::Follow::poll(&following) {
                    Some(batch) => {
                        assert_eq!(batch.first().0, next);
                        next = batch.end().0;
                    }
                    None => bell.wait(),
                }
            }
            let mut ends: Vec<u64> = appenders.into_iter().flat_map(|t| t.join().expect("no panic")).collect();
            ends.sort_unstable();
            assert_eq!(ends, [1, 2, 3, 4, 5, 6], "each has its own offset");
            partition.stop();
        },
        orders(),
    );
}

/// Nobody makes room: a stop during the stall answers whoever waits.
#[test]
fn a_stop_during_a_stall_answers_everybody() {
    let stalls = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = stalls.clone();
    shuttle::check_random(
        move || {
            seed_random(2);
            let storage = Arc::new(SimStorage::new(2));
            let partition = start(&storage);
            append(&partition, &mut message(0, 40_000), false);
            storage.no_room(true);
            let waiting: Vec<_> = (1..3u64)
                .map(|n| {
                    let partition = partition.clone();
                    thread::spawn(move || {
                        let bell = Arc::new(Bell::default());
                        let who: Arc<dyn Wake> = bell.clone();
                        let mut records = message(n, if n == 1 { 40_000 } else { 100 });
                        // Or the stop came first.
                        let Ok(receipt) = partition.append_leading(&mut records, &who) else { return };
                        loop {
                            match partition.shared.appended() {
                                Watermark::Appended(at) if at < receipt => bell.wait(),
                                Watermark::Appended(_) | Watermark::Failed(_) => return,
                            }
                        }
                    })
                })
                .collect();
            // In many orders it has stalled by then.
            for _ in 0..20 {
                thread::yield_now();
            }
            stalls.fetch_add(u64::from(partition.shared.stalled().is_some()), std::sync::atomic::Ordering::Relaxed);
            partition.stop();
            waiting.into_iter().for_each(|t| t.join().expect("no panic"));
        },
        orders(),
    );
    let stalls = counted.load(std::sync::atomic::Ordering::Relaxed);
    assert!(stalls > orders() as u64 / 20, "in {stalls} orders only");
}

#[test]
fn a_stalled_batch_goes_on() {
    shuttle::check_random(
        || {
            seed_random(2);
            let storage = Arc::new(SimStorage::new(2));
            let partition = start(&storage);
            // The next segment is begun by somebody who may find no room for it.
            append(&partition, &mut message(0, 40_000), false);
            storage.no_room(true);
            let rolls = {
                let partition = partition.clone();
                thread::spawn(move || append(&partition, &mut message(1, 40_000), true))
            };
            let other = {
                let partition = partition.clone();
                thread::spawn(move || append(&partition, &mut message(2, 100), true))
            };
            storage.no_room(false);
            let mut ends = [rolls.join().expect("no panic"), other.join().expect("no panic")];
            ends.sort_unstable();
            assert_eq!(ends, [2, 3]);
            assert!(partition.shared.stalled().is_none());
            partition.stop();
        },
        orders(),
    );
}

/// Each fills more than half of a segment.
const RECORDS: u64 = 12;

#[test]
fn no_record_is_lost_while_files_are_retired_and_used_again() {
    shuttle::check_random(
        || {
            seed_random(3);
            let storage = Arc::new(SimStorage::new(3));
            let partition = start(&storage);
            let start = Arc::new(AtomicU64::new(0));
            let retiring: Vec<_> = (0..2)
                .map(|_| {
                    let (partition, storage, start) = (partition.clone(), storage.clone(), start.clone());
                    thread::spawn(move || {
                        // Until the last record but one is there.
                        while partition.shared.durable() < Offset(RECORDS - 1) {
                            let bases: Vec<_> = partition.segments.all().iter().map(|(s, _)| s.head.base).collect();
                            if let [.., below, _] = bases[..] {
                                start.fetch_max(below.0, Ordering::SeqCst);
                                partition.segments.retire(&*storage, below).expect("retires");
                            }
                            thread::yield_now();
                        }
                    })
                })
                .collect();
            for n in 0..RECORDS {
                append(&partition, &mut message(n, 40_000), n % 2 == 0);
            }
            retiring.into_iter().for_each(|t| t.join().expect("no panic"));
            partition.stop();
            drop(partition);
            storage.restart();
            let start = Offset(start.load(Ordering::SeqCst));
            let a = Appender::open(storage, &Opening { start, ..opening(false, Offset(0)) }).expect("opens");
            assert!(a.segments().start() <= start && a.next() == Offset(RECORDS), "{} to {}", a.segments().start(), a.next());
            assert_eq!(everything_from(&a, start), (start.0..RECORDS).collect::<Vec<_>>());
        },
        orders(),
    );
}

fn everything_from(a: &Appender<SimStorage>, from: Offset) -> Vec<u64> {
    let wanted = crate::Wanted::Range { from, to: a.next(), select: Arc::new(crate::Everything) };
    let fetch = crate::Fetch { partition: PartitionId(3), wanted, records_max: u32::MAX, bytes_max: u32::MAX };
    fetch_from(a, &fetch).expect("reads").batch.iter().map(|r| r.offset.0).collect()
}

/// Of so many steps; whatever comes, it is answered once.
fn job(mut steps: u64, answered: &Arc<AtomicU64>) -> crate::readers::Job {
    let answered = answered.clone();
    Box::new(move |turn| {
        steps -= 1;
        if steps > 0 && turn == Turn::Read {
            return Progress::More;
        }
        answered.fetch_add(1, Ordering::SeqCst);
        // Another call would be one too many.
        steps = 1;
        Progress::Answered
    })
}

#[test]
fn every_job_is_answered_once_whenever_the_readers_stop() {
    shuttle::check_random(
        || {
            let readers = Arc::new(Readers::default());
            let threads = Readers::start(&readers).expect("threads");
            let answered = Arc::new(AtomicU64::new(0));
            let submitting: Vec<_> = (0..2)
                .map(|_| {
                    let (readers, answered) = (readers.clone(), answered.clone());
                    thread::spawn(move || {
                        let by = crate::Asker::default();
                        (1..3).for_each(|steps| readers.submit(&by, job(steps, &answered)));
                        readers.submit_state(job(1, &answered));
                    })
                })
                .collect();
            readers.stop();
            submitting.into_iter().for_each(|t| t.join().expect("no panic"));
            threads.into_iter().for_each(|t| t.join().expect("no panic"));
            assert_eq!(answered.load(Ordering::SeqCst), 6);
        },
        orders(),
    );
}
