//! The engine with its threads, on real files.

use super::*;
use crate::{AppendError, Engine, Everything, Fetch, FileEngine, OpenError, Options, Put, Receipt, Stream, Wake, Wanted, Watermark};
use parking_lot::{Condvar, Mutex};
use std::{
    path::{Path, PathBuf},
    sync::mpsc,
    time::{Duration, Instant},
};

#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    change: Condvar,
}

impl Wake for Bell {
    fn wake(&self) {
        *self.rung.lock() = true;
        self.change.notify_all();
    }
}

impl Bell {
    fn wait(&self) {
        let mut rung = self.rung.lock();
        if !*rung {
            assert!(!self.change.wait_for(&mut rung, Duration::from_secs(10)).timed_out(), "nobody rang");
        }
        *rung = false;
    }
}

fn options(dir: &Path) -> Options {
    Options { limits: SMALL, ..Options::new(dir.join("data"), &[("default", 1)]) }
}

fn open(dir: &Path) -> FileEngine {
    FileEngine::open(&options(dir), &mut |_, _, _| Vec::new()).expect("opens")
}

const P: PartitionId = PartitionId(0);

/// Registers, then looks: as everybody must who waits.
fn wait_for(engine: &FileEngine, bell: &Bell, receipt: Receipt) {
    loop {
        match engine.appended(P) {
            Watermark::Appended(at) if at >= receipt => return,
            Watermark::Failed(f) => panic!("{f}"),
            Watermark::Appended(_) => bell.wait(),
        }
    }
}

fn read_all(engine: &FileEngine) -> Vec<(u64, Vec<u8>)> {
    let all = fetched(engine, P, Offset(0)..engine.span(P).durable);
    all.iter().flat_map(|f| f.batch.iter().map(|r| (r.offset.0, r.meta.to_vec())).collect::<Vec<_>>()).collect()
}

#[test]
fn many_appenders_one_order_and_a_follower_sees_it_all() {
    let dir = tempfile::tempdir().expect("a directory");
    let engine = Arc::new(open(dir.path()));
    let bell = Arc::new(Bell::default());
    let following = engine.follow(P, bell.clone());
    let threads: Vec<_> = (0..4u64)
        .map(|t| {
            let engine = engine.clone();
            std::thread::spawn(move || {
                let bell = Arc::new(Bell::default());
                let who: Arc<dyn Wake> = bell.clone();
                let mut records = Records::default();
                for n in 0..500u64 {
                    records.clear();
                    let meta = (t << 32 | n).to_le_bytes();
                    records.push(Kind::Message, 0, &meta, b"k", &[], &[7; 100]).expect("small");
                    let receipt = loop {
                        match engine.append(P, &mut records, &who) {
                            Ok(receipt) => break receipt,
                            Err(AppendError::Full) => bell.wait(),
                            Err(e) => panic!("{e}"),
                        }
                    };
                    if n % 50 == 49 {
                        wait_for(&engine, &bell, receipt);
                    }
                }
            })
        })
        .collect();
    let mut seen = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(30);
    while seen.len() < 2_000 {
        while let Some(batch) = following.poll() {
            seen.extend(batch.iter().map(|r| (r.offset.0, r.meta.to_vec())));
            let first = batch.first();
            let recent = engine.recent(P, &[first]).swap_remove(0);
            // What every follower has may have left the ring meanwhile.
            assert!(recent.map_or(engine.recent_start(P) > first, |b| b.first() == first));
        }
        assert!(Instant::now() < deadline, "only {} records followed", seen.len());
        if seen.len() < 2_000 {
            bell.wait();
        }
    }
    threads.into_iter().for_each(|t| t.join().expect("no panic"));
    assert!(seen.iter().enumerate().all(|(i, (offset, _))| *offset == i as u64), "dense");
    for t in 0..4u64 {
        let mine: Vec<u64> =
            seen.iter().map(|(_, m)| u64::from_le_bytes(m[..].try_into().expect("8 bytes"))).filter(|m| m >> 32 == t).collect();
        assert!(mine.is_sorted() && mine.len() == 500, "each appender's records keep their order");
    }
    assert_eq!(read_all(&engine), seen);
    engine.stop();
    drop(following);
    drop(engine);
    assert_eq!(read_all(&open(dir.path())), seen);
}

#[test]
fn a_follower_that_takes_nothing_holds_the_writer_and_memory_stays_bounded() {
    let dir = tempfile::tempdir().expect("a directory");
    let engine = open(dir.path());
    let bell = Arc::new(Bell::default());
    let who: Arc<dyn Wake> = bell.clone();
    let following = engine.follow(P, bell.clone());
    let mut records = Records::default();
    records.push(Kind::Message, 0, &[], b"k", &[], &[7; 2_000]).expect("small");
    let mut accepted = 0u64;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(600) {
        match engine.append(P, &mut records, &who) {
            Ok(_) => accepted += 1,
            Err(AppendError::Full) => std::thread::sleep(Duration::from_millis(5)),
            Err(e) => panic!("{e}"),
        }
    }
    // A ring that had room for one batch more, that batch, one in the writer's hands, and one that gathers.
    let bound = (SMALL.ring_bytes + 3 * SMALL.pending_bytes_max) as u64 / 2_000 + 1;
    assert!(accepted <= bound, "{accepted} records taken, at most {bound} fit");
    let mut followed = 0;
    while followed < accepted {
        match following.poll() {
            Some(batch) => followed += batch.len() as u64,
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    assert_eq!(followed, accepted);
}

#[test]
fn state_is_put_got_scanned_and_survives_an_end_without_goodbye() {
    let dir = tempfile::tempdir().expect("a directory");
    let engine = open(dir.path());
    let who: Arc<dyn Wake> = Arc::new(Bell::default());
    for n in 0..2_000u32 {
        let (key, value) = (format!("c/{}", n % 50), n.to_le_bytes());
        let put = [Put { key: key.as_bytes(), tag: n, value: (n % 7 != 0).then_some(&value[..]) }];
        while let Err(AppendError::Full) = engine.state().put(&put, &who) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let get = |engine: &FileEngine, key: &str| {
        let (tx, rx) = mpsc::channel();
        engine.state().get(key.as_bytes(), Box::new(move |r| tx.send(r.expect("reads")).expect("somebody waits")));
        rx.recv_timeout(Duration::from_secs(10)).expect("an answer").map(|e| e.tag)
    };
    let newest = |k: u32| (0..2_000).rev().find(|n| n % 50 == k).filter(|n| n % 7 != 0);
    for k in 0..50 {
        assert_eq!(get(&engine, &format!("c/{k}")), newest(k), "c/{k}");
    }
    assert_eq!(get(&engine, "c/none"), None);
    drop(engine);
    let mut scanned = std::collections::BTreeMap::new();
    let mut each = |key: &[u8], tag: u32, _: &[u8]| {
        scanned.insert(String::from_utf8_lossy(key).into_owned(), tag);
        Vec::new()
    };
    FileEngine::open(&options(dir.path()), &mut each).expect("opens");
    let want: std::collections::BTreeMap<_, _> = (0..50).filter_map(|k| newest(k).map(|n| (format!("c/{k}"), n))).collect();
    assert_eq!(scanned, want);
}

#[test]
fn refusals_name_the_thing_and_the_way_out() {
    let dir = tempfile::tempdir().expect("a directory");
    let engine = open(dir.path());
    let again = FileEngine::open(&options(dir.path()), &mut |_, _, _| Vec::new()).err().expect("held by this process");
    assert!(matches!(&again, OpenError::Locked { pid: Some(pid), .. } if *pid == std::process::id()), "{again}");
    assert!(again.to_string().contains("--data"));
    drop(engine);

    let other = Options {
        streams: vec![Stream { name: "default".into(), partitions: 4, limits: None, durability: Durability::Disk }],
        ..options(dir.path())
    };
    let error = FileEngine::open(&other, &mut |_, _, _| Vec::new()).err().expect("other partitions");
    assert!(matches!(error, OpenError::Streams { stored: 1, wanted: 4, .. }), "{error}");

    let foreign = Options { directory: dir.path().join("foreign"), ..options(dir.path()) };
    std::fs::create_dir(&foreign.directory).expect("creates");
    std::fs::write(foreign.directory.join("holiday.jpg"), b"x").expect("writes");
    let error = FileEngine::open(&foreign, &mut |_, _, _| Vec::new()).err().expect("foreign").to_string();
    assert!(error.contains("holiday.jpg") && error.contains("--data"), "{error}");
}

#[test]
fn a_clean_end_says_how_far_the_log_went() {
    let dir = tempfile::tempdir().expect("a directory");
    let engine = open(dir.path());
    let bell = Arc::new(Bell::default());
    let who: Arc<dyn Wake> = bell.clone();
    let mut records = message(1, 100);
    let receipt = engine.append(P, &mut records, &who).expect("room");
    wait_for(&engine, &bell, receipt);
    engine.stop();
    drop(engine);
    // Somebody removes the newest records while the process is down.
    let segment = dir.path().join("data/streams/default/0/00000000000000000000.log");
    let mut bytes = std::fs::read(&segment).expect("reads");
    bytes[12_288..].fill(0);
    std::fs::write(&segment, bytes).expect("writes");
    // Its offset is not given out again, and who reads is told.
    for next in [1, 2] {
        let engine = open(dir.path());
        assert_eq!((engine.span(P).durable, engine.damaged()), (Offset(next), 1));
        let (tx, rx) = mpsc::channel();
        let wanted = Wanted::Range { from: Offset(0), to: Offset(u64::MAX), select: Arc::new(Everything) };
        let fetch = Fetch { partition: P, wanted, records_max: 10, bytes_max: u32::MAX };
        engine.fetch(&ASKER, fetch, Box::new(move |r| tx.send(r.expect("reads")).expect("somebody waits")));
        let fetched = rx.recv().expect("an answer");
        assert_eq!((fetched.lost, fetched.next), (Offset(0)..Offset(1), Offset(1)));
        let receipt = engine.append(P, &mut message(1, 100), &who).expect("room");
        wait_for(&engine, &bell, receipt);
        engine.stop();
    }
}

/// A buffer that all putters share once registered only the first of a batch: the others were never woken.
#[test]
fn everybody_who_puts_into_one_batch_is_woken() {
    let dir = tempfile::tempdir().expect("a directory");
    let engine = open(dir.path());
    let bells: Vec<Arc<Bell>> = (0..8).map(|_| Arc::default()).collect();
    let state = engine.state();
    for round in 0..50u8 {
        let put = |bell: &Arc<Bell>| {
            let who: Arc<dyn Wake> = bell.clone();
            state.put(&[Put { key: b"k", tag: 0, value: Some(&[round]) }], &who).expect("taken")
        };
        for bell in &bells {
            put(bell);
        }
        for bell in &bells {
            bell.wait();
        }
    }
}

#[test]
fn retention_tells_readers_what_they_lost_and_stays_after_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let engine = open(dir.path());
    let (bell, mut n) = (Arc::new(Bell::default()), 0u64);
    while engine.segments(P).expect("lists").len() < 5 {
        let who: Arc<dyn Wake> = bell.clone();
        let receipt = engine.append(P, &mut message(n, 5_000), &who).expect("room");
        wait_for(&engine, &bell, receipt);
        n += 1;
    }
    let segments = engine.segments(P).expect("lists");
    let start = segments[2].base;
    // Not a whole segment: nothing goes.
    let retire = |below| {
        let (tx, rx) = mpsc::channel();
        engine.retire(P, below, Box::new(move |r| tx.send(r).expect("somebody waits")));
        rx.recv().expect("an answer").expect("retires");
    };
    retire(Offset(segments[1].base.0 - 1));
    assert_eq!(engine.span(P).start, Offset(0));
    retire(start);
    assert_eq!((engine.span(P).start, engine.segments(P).expect("lists").len()), (start, 3));
    let fetch = |engine: &FileEngine, wanted| {
        let (tx, rx) = mpsc::channel();
        let fetch = Fetch { partition: P, wanted, records_max: 10, bytes_max: u32::MAX };
        engine.fetch(&ASKER, fetch, Box::new(move |r| tx.send(r.expect("reads")).expect("somebody waits")));
        rx.recv().expect("an answer")
    };
    let range = |from| Wanted::Range { from: Offset(from), to: Offset(u64::MAX), select: Arc::new(Everything) };
    let fetched = fetch(&engine, range(1));
    assert_eq!((fetched.lost, fetched.batch.first(), fetched.next), (Offset(1)..start, start, start.plus(10)));
    assert!(fetch(&engine, range(start.0)).lost.is_empty());
    let found: Vec<u64> = fetch(&engine, Wanted::Exactly(vec![Offset(0), start])).batch.iter().map(|r| r.offset.0).collect();
    assert_eq!(found, [start.0]);
    engine.stop();
    drop(engine);
    let engine = open(dir.path());
    assert_eq!((engine.span(P).start, engine.span(P).durable), (start, Offset(n)));
    engine.stop();
}

struct Panics;

impl crate::Select for Panics {
    fn matches(&self, _: &[u8]) -> bool {
        panic!("a fault above the log")
    }

    fn is_wide(&self) -> bool {
        true
    }
}

fn fetch_with(engine: &FileEngine, select: Arc<dyn crate::Select>) -> Result<crate::Fetched, crate::ReadError> {
    let (tx, rx) = mpsc::channel();
    let wanted = Wanted::Range { from: Offset(0), to: Offset(u64::MAX), select };
    let fetch = Fetch { partition: P, wanted, records_max: 10, bytes_max: u32::MAX };
    engine.fetch(&ASKER, fetch, Box::new(move |r| tx.send(r).expect("somebody waits")));
    rx.recv_timeout(Duration::from_secs(10)).expect("an answer")
}

#[test]
fn a_read_that_panics_is_answered_and_takes_no_reader_with_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let engine = open(dir.path());
    let (bell, who) = {
        let bell = Arc::new(Bell::default());
        (bell.clone(), bell as Arc<dyn Wake>)
    };
    let receipt = engine.append(P, &mut message(1, 100), &who).expect("room");
    wait_for(&engine, &bell, receipt);
    // More than there are threads.
    for _ in 0..4 {
        assert!(matches!(fetch_with(&engine, Arc::new(Panics)), Err(crate::ReadError::Panicked)));
    }
    // And one whose answer panics.
    for _ in 0..4 {
        let wanted = Wanted::Exactly(vec![Offset(0)]);
        engine.fetch(&ASKER, Fetch { partition: P, wanted, records_max: 1, bytes_max: 1 }, Box::new(|_| panic!("a fault above the log")));
    }
    assert_eq!(fetch_with(&engine, Arc::new(Everything)).expect("reads").batch.len(), 1);
}

#[test]
fn whatever_is_asked_after_the_stop_is_answered() {
    let dir = tempfile::tempdir().expect("a directory");
    let engine = open(dir.path());
    let who: Arc<dyn Wake> = Arc::new(Bell::default());
    engine.append(P, &mut message(1, 100), &who).expect("room");
    engine.state().put(&[Put { key: b"c/one", tag: 0, value: Some(b"1") }], &who).expect("room");
    engine.stop();
    assert!(matches!(fetch_with(&engine, Arc::new(Everything)), Err(crate::ReadError::Stopping)));
    let (tx, rx) = mpsc::channel();
    let told = |what: &'static str| {
        let tx = tx.clone();
        move |failed: bool| tx.send((what, failed)).expect("somebody waits")
    };
    let (seek, newest, retire, get) = (told("seek"), told("newest"), told("retire"), told("get"));
    engine.seek(&ASKER, P, crate::Seek::Time(0), Box::new(move |r| seek(r.is_err())));
    let wanted = crate::Newest { below: Offset(1), select: Arc::new(Everything), after: Vec::new(), keys_max: 1, bytes_max: 1 };
    engine.newest(&ASKER, P, wanted, Box::new(move |r| newest(r.is_err())));
    engine.retire(P, Offset(1), Box::new(move |r| retire(r.is_err())));
    engine.state().get(b"c/one", Box::new(move |r| get(r.is_err())));
    for _ in 0..4 {
        let (what, failed) = rx.recv_timeout(Duration::from_secs(10)).expect("an answer");
        assert!(failed, "{what}");
    }
}

/// Spoils the state store in every way, repairs it, and finds everything that was not in the spoiled place.
#[test]
fn a_state_store_that_is_refused_is_repaired_from_what_can_be_read() {
    type Spoil = fn(&Path, &[PathBuf]);
    let ways: [(&str, Spoil); 10] = [
        ("a middle of a file", |_, files| {
            let mut bytes = std::fs::read(&files[1]).expect("reads");
            bytes[30_000..30_100].fill(7);
            std::fs::write(&files[1], bytes).expect("writes");
        }),
        ("a file that is none", |_, files| std::fs::write(&files[1], b"no segment").expect("writes")),
        ("a missing file", |_, files| std::fs::remove_file(&files[1]).expect("removes")),
        ("a missing newest file", |_, files| std::fs::remove_file(files.last().expect("some")).expect("removes")),
        ("a missing oldest file", |_, files| std::fs::remove_file(&files[0]).expect("removes")),
        ("a file of a stream", |state, files| {
            std::fs::copy(state.with_file_name("streams/default/0/00000000000000000000.log"), &files[1]).map(drop).expect("copies");
        }),
        ("another name", |_, files| std::fs::rename(&files[2], files[2].with_file_name("00000000000000000500.log")).expect("renames")),
        ("a newest file that was cut", |_, files| {
            std::fs::File::options().write(true).open(files.last().expect("some")).and_then(|f| f.set_len(12_288)).expect("cuts");
        }),
        ("nothing in it", |state, _| {
            std::fs::remove_dir_all(state).expect("removes");
            std::fs::create_dir(state).expect("creates");
        }),
        ("nothing at all", |state, _| std::fs::remove_dir_all(state).expect("removes")),
    ];
    for (what, spoil) in ways {
        let dir = tempfile::tempdir().expect("a directory");
        let engine = open(dir.path());
        let bell = Arc::new(Bell::default());
        let receipt = engine.append(P, &mut message(1, 100), &(bell.clone() as Arc<dyn Wake>)).expect("room");
        wait_for(&engine, &bell, receipt);
        let state = dir.path().join("data/state");
        let files = || {
            let mut files: Vec<_> = std::fs::read_dir(&state).expect("lists").map(|e| e.expect("an entry").path()).collect();
            files.retain(|f| f.extension().is_some_and(|e| e == "log"));
            files.sort();
            files
        };
        let mut n = 0u32;
        while files().len() < 4 {
            let key = format!("c/{n:05}");
            let put = [Put { key: key.as_bytes(), tag: n, value: Some(&[n as u8; 700]) }];
            while engine.state().put(&put, &(bell.clone() as Arc<dyn Wake>)).is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
            n += 1;
        }
        engine.stop();
        drop(engine);
        let oldest = files().remove(0);
        spoil(&state, &files());
        let refused = FileEngine::open(&options(dir.path()), &mut |_, _, _| Vec::new()).err().expect("refused").to_string();
        assert!(refused.contains("weir log repair"), "{what}: {refused}");
        // A start that is refused makes nothing worse, and nothing harder to find.
        let again = FileEngine::open(&options(dir.path()), &mut |_, _, _| Vec::new()).err().expect("refused again").to_string();
        assert_eq!(again, refused, "{what}");
        let repaired = crate::repair::repair(&dir.path().join("data"), &|_| false).expect("repairs");
        assert!(!repaired.lost.is_empty() && repaired.aside.as_ref().is_some_and(|aside| aside.is_dir()), "{what}: {repaired:?}");
        let named = |file: &PathBuf| repaired.lost.iter().any(|l| l.contains(&file.display().to_string()));
        assert!(what != "a missing oldest file" || named(&oldest), "{what}: {repaired:?}");
        let mut kept = 0;
        let mut each = |key: &[u8], _: u32, value: &[u8]| {
            if let Some(n) = std::str::from_utf8(key).ok().and_then(|k| k.strip_prefix("c/")?.parse::<u32>().ok()) {
                assert_eq!(value, [n as u8; 700], "{what}: {n}");
                kept += 1;
            }
            Vec::new()
        };
        let engine = FileEngine::open(&options(dir.path()), &mut each).unwrap_or_else(|e| panic!("{what}: {e}"));
        let all_gone = what.starts_with("nothing");
        assert!(if all_gone { kept == 0 } else { kept > n / 3 && kept <= n }, "{what}: {kept} of {n} kept");
        assert_eq!(read_all(&engine).len(), 1, "{what}: the stream is still the stream");
        engine.stop();
        drop(engine);
        // A second time there is nothing to do.
        assert!(crate::repair::repair(&dir.path().join("data"), &|_| false).expect("reads").aside.is_none(), "{what}");
    }
}

/// A volume has things of its own in its root, and so have editors and file systems; and what was published is not for everybody.
#[test]
fn strangers_in_a_data_directory_are_left_alone_and_nobody_else_reads_what_is_in_it() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    for before in [&["notes.txt"][..], &["lost+found", ".snapshot", ".nfs0000001"]] {
        before.iter().for_each(|name| std::fs::create_dir_all(data.join(name)).expect("creates"));
        let opened = FileEngine::open(&options(dir.path()), &mut |_, _, _| Vec::new());
        assert_eq!(opened.is_ok(), before.len() == 3, "{before:?}");
        if let Ok(engine) = opened {
            engine.stop();
        }
        std::fs::remove_dir_all(data.join("notes.txt")).ok();
    }
    for folder in ["", "state", "streams", "streams/default", "streams/default/0"] {
        for name in ["notes.txt", ".DS_Store", "00000000000000000000.log.swp"] {
            std::fs::write(data.join(folder).join(name), "x").expect("writes");
        }
        std::fs::create_dir_all(data.join(folder).join("lost+found")).expect("creates");
    }
    open(dir.path()).stop();
    let mode = |path: &str| std::fs::metadata(data.join(path)).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(["streams", "streams/default/0", "state"].map(mode), [0o700; 3]);
    assert_eq!(["streams/default/0/00000000000000000000.log", "lock"].map(mode), [0o600; 2]);
    // The lock is emptied and written: nothing that it leads to is.
    let mine = dir.path().join("mine");
    std::fs::write(&mine, "mine").expect("writes");
    std::fs::remove_file(data.join("lock")).expect("removes");
    std::os::unix::fs::symlink(&mine, data.join("lock")).expect("links");
    assert!(FileEngine::open(&options(dir.path()), &mut |_, _, _| Vec::new()).is_err());
    assert_eq!(std::fs::read_to_string(&mine).expect("there"), "mine");
}

/// No program does it: while one begins, it holds the locks of all other tests.
fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("creates");
    for entry in std::fs::read_dir(from).expect("lists") {
        let (from, to) = (entry.as_ref().expect("an entry").path(), to.join(entry.expect("an entry").file_name()));
        if from.is_dir() { copy_all(&from, &to) } else { std::fs::copy(&from, &to).map(drop).expect("copies") }
    }
}

/// The error says to restore the files; a start that was refused is not in the way of that.
#[test]
fn a_state_store_that_is_restored_after_a_refusal_is_as_it_was() {
    let dir = tempfile::tempdir().expect("a directory");
    let engine = open(dir.path());
    let bell = Arc::new(Bell::default());
    let receipt = engine.append(P, &mut message(1, 100), &(bell.clone() as Arc<dyn Wake>)).expect("room");
    wait_for(&engine, &bell, receipt);
    // Killed, so that the next start would seal what it finds.
    std::mem::forget(engine);
    let (data, copy) = (dir.path().join("data"), dir.path().join("copy"));
    copy_all(&data, &copy);
    for empty in [true, false] {
        std::fs::remove_dir_all(copy.join("state")).expect("removes");
        if empty {
            std::fs::create_dir(copy.join("state")).expect("creates");
        }
        let copied = Options { directory: copy.clone(), ..options(dir.path()) };
        let refused = FileEngine::open(&copied, &mut |_, _, _| Vec::new()).err().expect("refused").to_string();
        assert!(refused.contains("does not know it"), "{refused}");
        let left = std::fs::read_dir(copy.join("state")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "nothing stands where the files are to be restored");
        std::fs::remove_dir(copy.join("state")).expect("empty");
        copy_all(&data.join("state"), &copy.join("state"));
        let engine = FileEngine::open(&copied, &mut |_, _, _| Vec::new()).expect("opens");
        assert_eq!((read_all(&engine).len(), engine.damaged()), (1, 0));
        // Its threads make files.
        engine.stop();
        std::fs::remove_dir_all(&copy).expect("removes");
        copy_all(&data, &copy);
    }
}

#[test]
fn a_repair_leaves_a_state_store_whose_header_alone_has_rotted() {
    let dir = tempfile::tempdir().expect("a directory");
    open(dir.path()).stop();
    let file = dir.path().join("data/state/00000000000000000000.log");
    let mut bytes = std::fs::read(&file).expect("reads");
    bytes[16] ^= 1;
    std::fs::write(&file, &bytes).expect("writes");
    let repaired = crate::repair::repair(&dir.path().join("data"), &|_| false).expect("reads");
    assert!(repaired.lost.is_empty() && repaired.aside.is_none(), "{repaired:?}");
    assert_eq!(std::fs::read(&file).expect("reads"), bytes);
    open(dir.path()).stop();
}

/// Whoever reads what is missing restores that file, and no other.
#[test]
fn a_missing_file_in_the_middle_is_named_and_not_the_one_before_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let engine = open(dir.path());
    let bell = Arc::new(Bell::default());
    let files = || {
        let mut files: Vec<_> =
            std::fs::read_dir(dir.path().join("data/streams/default/0")).expect("lists").map(|e| e.expect("an entry").path()).collect();
        files.retain(|f| f.extension().is_some_and(|e| e == "log"));
        files.sort();
        files
    };
    let mut n = 0;
    while files().len() < 4 {
        let receipt = engine.append(P, &mut message(n, 700), &(bell.clone() as Arc<dyn Wake>)).expect("room");
        wait_for(&engine, &bell, receipt);
        n += 1;
    }
    engine.stop();
    drop(engine);
    let (missing, copy) = (files().remove(1), dir.path().join("copy"));
    std::fs::rename(&missing, &copy).expect("moves");
    let log = crate::offline::Offline::open(&dir.path().join("data")).expect("opens");
    let mut named = Vec::new();
    for source in &log.sources {
        let mut each = |found: crate::offline::Found| {
            if let crate::offline::Found::Damage(damage) = found {
                named.push(damage);
            }
            true
        };
        source.read(&mut each).expect("reads");
    }
    drop(log);
    let next = files()[1].file_stem().expect("a name").to_string_lossy().parse::<u64>().expect("a number");
    assert_eq!(named.len(), 1, "{named:?}");
    assert_eq!(named[0].range.end, Offset(next));
    let base = named[0].range.start.0;
    assert!(named[0].file.ends_with(&format!("{base:020}.log")) && base > 0, "{named:?}");
    // A read names the same file, and none when it is there again.
    let damage = |engine: &FileEngine| fetched(engine, P, Offset(0)..Offset(n)).into_iter().find_map(|f| f.damage);
    let engine = open(dir.path());
    let found = damage(&engine).expect("a file is missing");
    assert_eq!(found.to_string(), named[0].to_string());
    assert!(found.at.is_none() && found.to_string().contains(" is missing: "), "{found}");
    engine.stop();
    assert_eq!(engine.damaged(), 1);
    drop(engine);
    std::fs::rename(&copy, &missing).expect("moves");
    let engine = open(dir.path());
    assert_eq!((engine.damaged(), damage(&engine), read_all(&engine).len() as u64), (0, None, n));
    engine.stop();
}
