//! What a driver owes to others whatever becomes of it, on a real log without sockets.

use super::*;
use crate::{
    boot::Boots,
    clock::{Clock, Reached},
    fleet::FleetLimits,
    gateway::{Limits, Parts},
    interests::Interests,
    metrics::Metrics,
    offline::{Due, Offline},
    retention::Retention,
};
use futures_util::FutureExt;
use parking_lot::RwLock;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};
use tokio::sync::mpsc::UnboundedReceiver;
use weir_core::retained::Retained;
use weir_log::{Engine, FileEngine, LogEngine, Options, storage::sim::SimStorage};

const KEEP: Retention = Retention { bytes: None, age: None, min_age: Duration::ZERO };

fn options(dir: &std::path::Path) -> Options {
    Options::new(dir.join("data"), &[("default", 1)])
}

/// A gateway whose tails are never heard; and what it is asked to look at later.
fn gateway(engine: Arc<dyn Engine>, boot: u64) -> (Arc<Gateway>, UnboundedReceiver<Due>) {
    let (tail, _) = tokio::sync::mpsc::unbounded_channel();
    let (offline, due) = Offline::new();
    let retained = vec![Arc::new(RwLock::new(Retained::default()))];
    let (interests, boots) = (Interests::default(), Boots::default());
    let gateway = Gateway::new(Parts {
        engine,
        tails: vec![tail],
        passed: vec![Arc::default()],
        retained,
        offline,
        interests,
        metrics: Arc::new(Metrics::new().expect("metrics")),
        stored: 0,
        boots,
        boot,
        limits: Limits { messages: KEEP, events: KEEP, max_deliveries: 0, client: Arc::default(), fleet: FleetLimits::default() },
        store_bytes_max: u64::MAX,
        clock: Clock::begin(|| 0, Reached::default()),
    });
    (Arc::new(gateway), due)
}

/// A log that only goes on when it is stepped, and its disks: of the state store, and of the partition.
fn stepped() -> (Arc<LogEngine<SimStorage>>, [Arc<SimStorage>; 2]) {
    let disks = [SimStorage::new(1), SimStorage::new(2)].map(Arc::new);
    let disk = |path: &std::path::Path| disks[usize::from(!path.ends_with("state"))].clone();
    let engine = Arc::new(LogEngine::open_stepped(&options("sim".as_ref()), &disk, &mut |_, _, _| Vec::new()).expect("opens"));
    engine.read_at_once(true);
    (engine, disks)
}

const CONNECT: &[u8] = b"\x10\x0D\x00\x04MQTT\x04\x02\x00\x00\x00\x01p";

#[test]
fn a_connection_that_panics_gives_its_client_id_back_and_is_counted() {
    let dir = tempfile::tempdir().expect("a directory");
    let engine: Arc<dyn Engine> = Arc::new(FileEngine::open(&options(dir.path()), &mut |_, _, _| Vec::new()).expect("opens"));
    let (gateway, _due) = gateway(engine, 1);
    let mut first = Driver::new(gateway.clone(), None);
    first.received(CONNECT);
    let mut second = Driver::new(gateway.clone(), None);
    second.received(CONNECT);
    assert!(matches!(second.phase, Phase::Claiming(..)), "the first one has the client id");
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _first = first;
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    second.woken();
    assert!(!matches!(second.phase, Phase::Claiming(..)), "the client id is its own now");
    assert_eq!(gateway.totals.get(Total::Panics), 1);
    drop(second);
    assert!(gateway.peers.is_empty());
    gateway.engine.stop();
}

#[test]
fn a_group_that_panics_ends_with_its_members_and_nobody_else() {
    let (engine, _disks) = stepped();
    let (gateway, _due) = gateway(engine, 1);
    let (member, other) = (gateway.peer(None), gateway.peer(None));
    let panicked = catch_unwind(AssertUnwindSafe(|| crate::group::panics(&gateway, "g/t", &member)));
    assert!(panicked.is_err());
    assert_eq!((member.take().is_some_and(|m| m.dismissed), other.take().is_some()), (true, false));
    assert_eq!((gateway.totals.get(Total::Panics), gateway.peers.len()), (1, 2), "its own peer is gone");
}

/// Version 5, a session of 60 s, and a will of QoS 1 on `w`.
const WITH_WILL: &[u8] = b"\x10\x1D\x00\x04MQTT\x05\x0E\x00\x00\x05\x11\x00\x00\x00\x3C\x00\x01p\x00\x00\x01w\x00\x04gone";

#[test]
fn a_due_will_that_the_log_cannot_take_waits_for_the_next_start_and_is_not_tried_again_and_again() {
    let (engine, disks) = stepped();
    let step = |driver: &mut Driver| {
        while engine.step_state() {}
        driver.woken();
    };
    let (first_life, _due) = gateway(engine.clone(), 1);
    let mut connected = Driver::new(first_life, None);
    connected.received(WITH_WILL);
    (0..4).for_each(|_| step(&mut connected));
    assert_eq!(connected.out.unsent().first(), Some(&0x20), "a CONNACK");
    drop(connected);

    let (second_life, mut due) = gateway(engine.clone(), 2);
    disks[1].fail_at_op(1);
    let mut offline = Driver::offline(second_life.clone(), "p").expect("nobody is connected");
    (0..4).for_each(|_| step(&mut offline));
    assert!(engine.step_partition(0), "the will is on its way");
    (0..4).for_each(|_| step(&mut offline));
    assert!(offline.is_left());
    assert!(due.try_recv().is_err(), "it would be looked at for ever");
    // Its client is refused: a session without the will would forget it.
    let mut back = Driver::new(second_life, None);
    back.received(WITH_WILL);
    (0..4).for_each(|_| step(&mut back));
    assert!(back.is_left());
    assert_eq!(back.out.unsent().get(..4), Some(&b"\x20\x03\x00\x88"[..]), "server unavailable");
}

/// A pass goes from one connection of a thread to the next: where an owner is registered for a wake-up does not.
#[test]
fn everybody_whose_record_is_in_a_batch_is_woken_when_it_is_durable() {
    let (engine, _disks) = stepped();
    let (gateway, _due) = gateway(engine.clone(), 1);
    let connected = |name: u8| {
        let mut connect = CONNECT.to_vec();
        if let Some(last) = connect.last_mut() {
            *last = name;
        }
        let mut driver = Driver::new(gateway.clone(), None);
        driver.received(&connect);
        for _ in 0..4 {
            while engine.step_state() {}
            driver.woken();
        }
        assert!(matches!(driver.phase, Phase::Running(_)));
        driver
    };
    let rung = |driver: &Driver| std::iter::from_fn(|| driver.peer.rung().now_or_never()).take(10).count() > 0;
    let mut drivers = [connected(b'a'), connected(b'b'), connected(b'c')];
    for round in 0..3 {
        drivers.iter().for_each(|d| _ = rung(d));
        for driver in &mut drivers {
            driver.received(b"\x32\x07\x00\x01t\x00\x01hi");
            assert!(driver.pass.is_none(), "an idle connection holds none");
        }
        assert!(engine.step_partition(0) && !engine.step_partition(0), "one batch");
        for (i, driver) in drivers.iter_mut().enumerate() {
            assert!(rung(driver), "connection {i} in round {round}");
            let before = driver.out.len();
            driver.woken();
            assert_eq!(driver.out.unsent().get(before..), Some(&b"\x40\x02\x00\x01"[..]), "its PUBACK");
        }
    }
}
