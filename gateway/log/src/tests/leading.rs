//! Batches that a caller writes on its own thread, beside the writer's.

use super::*;
use crate::{
    Nobody, Receipt, Wake, Watermark,
    partition::{Beginning, Partition},
    storage::sim::SimStorage,
};
use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

/// Says by a message that it was woken.
struct Told(mpsc::Sender<()>);

impl Wake for Told {
    fn wake(&self) {
        let _ = self.0.send(());
    }
}

fn told() -> (Arc<dyn Wake>, mpsc::Receiver<()>) {
    let (tx, rx) = mpsc::channel();
    (Arc::new(Told(tx)), rx)
}

fn start(storage: &Arc<SimStorage>) -> Partition<SimStorage> {
    start_at(storage, || 1_000)
}

fn start_at(storage: &Arc<SimStorage>, now_ms: fn() -> u64) -> Partition<SimStorage> {
    seed_random(1);
    let beginning = Beginning {
        id: PartitionId(3),
        limits: SMALL,
        durability: Durability::Disk,
        name: "test",
        indexed: true,
        threads: true,
        now_ms,
        observe: Arc::new(Nobody),
    };
    Partition::start(beginning, open(storage, true)).expect("a thread")
}

fn durable(p: &Partition<SimStorage>) -> u64 {
    p.shared.durable().0
}

#[test]
fn what_is_appended_alone_is_durable_when_the_call_returns_and_nobody_is_woken() {
    let partition = start(&Arc::new(SimStorage::new(1)));
    let (who, rung) = told();
    let receipt = partition.append_leading(&mut message(0, 100), &who).expect("room");
    assert_eq!((receipt, durable(&partition)), (Receipt(1), 1));
    assert!(rung.try_recv().is_err(), "it is there itself");
    let following = partition.follow(who.clone());
    partition.append_leading(&mut message(1, 100), &who).expect("room");
    assert_eq!(durable(&partition), 2, "the same caller again, as soon as it likes");
    assert!(rung.try_recv().is_ok(), "followers are told as ever");
    drop(following);
    partition.stop();
    assert!(partition.append_leading(&mut message(2, 100), &who).is_err(), "stopped");
}

#[test]
fn what_is_large_is_left_to_the_writer() {
    let partition = start(&Arc::new(SimStorage::new(1)));
    let (who, rung) = told();
    let mut large = Records::default();
    (0..9).for_each(|_| large.push(Kind::Message, 0, &[], b"k", &[], &[7; 2_000]).expect("small"));
    let receipt = partition.append_leading(&mut large, &who).expect("room");
    rung.recv_timeout(Duration::from_secs(10)).expect("registered and woken, as by `append`");
    assert_eq!(durable(&partition), receipt.0);
}

#[test]
fn leaders_and_others_together_make_one_dense_order_and_everybody_hears_of_it() {
    for seed in 0..20 {
        let storage = Arc::new(SimStorage::new(seed));
        let partition = Arc::new(start(&storage));
        let (others, led) = (4, 300u64);
        let threads: Vec<_> = (0..others)
            .map(|t| {
                let partition = partition.clone();
                std::thread::spawn(move || {
                    let (who, rung) = told();
                    for n in 0..led {
                        let mut one = message(t << 32 | n, 40);
                        let appended =
                            if t == 0 { partition.shared.append(&mut one, &who) } else { partition.append_leading(&mut one, &who) };
                        let receipt = appended.expect("room");
                        let deadline = Instant::now() + Duration::from_secs(10);
                        while durable(&partition) < receipt.0 {
                            assert!(
                                rung.recv_timeout(Duration::from_secs(10)).is_ok() && Instant::now() < deadline,
                                "nobody woke it for {receipt:?}"
                            );
                        }
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().expect("no panic"));
        partition.stop();
        assert_eq!(durable(&partition), others * led);
        storage.restart();
        drop(partition);
        let all = everything(&open(&storage, false));
        assert_eq!(all.len() as u64, others * led, "what was durable is on disk");
        for t in 0..others {
            let mine: Vec<_> =
                all.iter().map(|r| u64::from_le_bytes(r.meta.try_into().expect("8 bytes"))).filter(|m| m >> 32 == t).collect();
            assert!(mine.is_sorted() && mine.len() as u64 == led, "each caller's records keep their order");
        }
    }
}

#[test]
fn a_leaders_failed_sync_ends_the_partition_for_everybody() {
    let storage = Arc::new(SimStorage::new(3));
    let partition = start(&storage);
    let (who, _rung) = told();
    let (follower, told) = told();
    let _following = partition.follow(follower);
    partition.append_leading(&mut message(0, 100), &who).expect("room");
    told.recv_timeout(Duration::from_secs(10)).expect("of the first");
    storage.fail_at_op(1);
    let receipt = partition.append_leading(&mut message(1, 100), &who).expect("taken, as by `append`");
    assert_eq!(receipt, Receipt(2));
    assert!(matches!(partition.shared.appended(), Watermark::Failed(_)));
    told.recv_timeout(Duration::from_secs(10)).expect("of the failure");
    assert!(partition.append_leading(&mut message(2, 100), &who).is_err());
    // Its writer ends though nothing waits for it.
    partition.stop();
    assert_eq!(durable(&partition), 1);
}

#[test]
fn whoever_waits_hears_of_a_writer_that_panics() {
    let partition = start_at(&Arc::new(SimStorage::new(4)), || panic!("a clock that fails, for the test"));
    let (who, rung) = told();
    partition.shared.append(&mut message(0, 100), &who).expect("room");
    rung.recv_timeout(Duration::from_secs(10)).expect("woken");
    assert!(matches!(partition.shared.appended(), Watermark::Failed(_)));
    assert!(partition.append_leading(&mut message(1, 100), &who).is_err());
    partition.stop();
}

/// A new segment takes a create and two syncs more than a batch: the caller has other things to do.
#[test]
fn what_begins_a_segment_is_left_to_the_writer() {
    let partition = start(&Arc::new(SimStorage::new(4)));
    let (who, rung) = told();
    for n in 0..14 {
        let before = partition.segments.len();
        let receipt = partition.append_leading(&mut message(n, 12_000), &who).expect("room");
        while durable(&partition) < receipt.0 {
            std::thread::yield_now();
        }
        if partition.segments.len() > before {
            rung.recv_timeout(Duration::from_secs(10)).expect("the writer wakes whoever waits");
        }
    }
    assert!(partition.segments.len() > 2);
    assert!(rung.try_recv().is_err(), "the others were written when the call returned");
}
