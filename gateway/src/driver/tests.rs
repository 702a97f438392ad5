//! What a driver owes to others whatever becomes of it, on a real log without sockets.

use super::*;
use crate::{boot::Boots, gateway::Parts, interests::Interests, offline::Offline};
use parking_lot::RwLock;
use std::panic::{AssertUnwindSafe, catch_unwind};
use weir_core::retained::Retained;
use weir_log::{Engine, FileEngine, Limits, Options};

/// A gateway whose tails are never heard.
fn gateway(dir: &std::path::Path) -> Arc<Gateway> {
    let options = Options { directory: dir.join("data"), limits: Limits::default(), streams: vec![("default".into(), 1)] };
    let engine: Arc<dyn Engine> = Arc::new(FileEngine::open(&options, &mut |_, _, _| Vec::new()).expect("opens"));
    let (tail, _) = tokio::sync::mpsc::unbounded_channel();
    let (offline, _) = Offline::new();
    let retained = vec![Arc::new(RwLock::new(Retained::default()))];
    Arc::new(Gateway::new(Parts {
        engine,
        tails: vec![tail],
        retained,
        offline,
        interests: Interests::default(),
        boots: Boots::default(),
        boot: 1,
        wall_ms: || 0,
    }))
}

const CONNECT: &[u8] = b"\x10\x0D\x00\x04MQTT\x04\x02\x00\x00\x00\x01p";

#[test]
fn a_connection_that_panics_gives_its_client_id_back_and_is_counted() {
    let dir = tempfile::tempdir().expect("a directory");
    let gateway = gateway(dir.path());
    let mut first = Driver::new(gateway.clone());
    first.received(CONNECT);
    let mut second = Driver::new(gateway.clone());
    second.received(CONNECT);
    assert!(matches!(second.phase, Phase::Claiming(_)), "the first one has the client id");
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _first = first;
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    second.woken();
    assert!(!matches!(second.phase, Phase::Claiming(_)), "the client id is its own now");
    assert_eq!(gateway.totals.panics.load(Ordering::Relaxed), 1);
    drop(second);
    assert!(gateway.peers.is_empty());
    gateway.engine.stop();
}
