//! The process has no descriptor left when the log needs one. Alone in its process, because the limit is the process's.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{
    fs::File,
    sync::Arc,
    time::{Duration, Instant},
};
use weir_log::{AppendError, Engine, FileEngine, Kind, Limits, Nobody, Options, PartitionId, Put, Receipt, Records, Wake, Watermark};

const P: PartitionId = PartitionId(0);

/// Appends 20 kB; `None`: there is no room for it now.
fn append(engine: &FileEngine) -> Option<Receipt> {
    let mut records = Records::default();
    records.push(Kind::Message, 0, &[], b"k", b"", &[7; 20_000]).expect("small");
    let nobody: Arc<dyn Wake> = Arc::new(Nobody);
    match engine.append(P, &mut records, &nobody) {
        Ok(receipt) => Some(receipt),
        Err(AppendError::Full) => None,
        Err(e) => panic!("{e}"),
    }
}

fn appended(engine: &FileEngine) -> Receipt {
    match engine.appended(P) {
        Watermark::Appended(receipt) => receipt,
        Watermark::Failed(failure) => panic!("{failure}"),
    }
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}: not within 20 s");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_log_without_descriptors_waits_for_one_and_goes_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let limits = Limits { segment_bytes: 256 * 1024, pending_bytes_max: 128 * 1024, ring_bytes: 256 * 1024 };
    let engine =
        FileEngine::open(&Options { limits, ..Options::new(dir.path().join("data"), &[("default", 1)]) }, &mut |_, _, _| Vec::new());
    let engine = engine.expect("opens");
    let old = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), ..old }).expect("may be lowered");
    let mut held = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        held.push(file);
    }
    // A prepared file or two may still be there.
    let mut last = Receipt(0);
    wait("the log stalls", || {
        while let Some(receipt) = append(&engine) {
            last = receipt;
        }
        !engine.stalled().is_empty()
    });
    assert_eq!(engine.stalled().first().expect("a reason").1.error.raw_os_error(), Some(24));
    assert!(appended(&engine) < last, "nothing is acknowledged that is not there");
    // The state store has its file, and is not held up.
    let nobody: Arc<dyn Wake> = Arc::new(Nobody);
    let put = engine.state().put(&[Put { key: b"k", tag: 0, value: Some(b"v") }], &nobody).expect("takes it");
    wait("a put", || matches!(engine.state().appended(), Watermark::Appended(at) if at >= put));
    held.clear();
    wait("what had waited", || appended(&engine) >= last);
    assert!(engine.stalled().is_empty());
    setrlimit(Resource::Nofile, old).expect("may be raised again");
    engine.stop();
}
