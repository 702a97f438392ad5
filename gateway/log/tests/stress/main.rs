//! The engine with its real threads against everything that was promised by it, over many lives.
//!
//! Four appenders, two followers, three that fetch, search and ask for the newest, two that put, one that gets and one that retires work on
//! 256 KiB segments. Each life ends by SIGKILL at any moment, by SIGKILL at a chosen system call, by a power cut of simulated disks, or in
//! order. What was acknowledged or seen stands in a ledger outside, and after each start everything in the log is compared with it.
//!
//! A test runs for `WEIR_STRESS_SECONDS` (7), or for `WEIR_STRESS_LIVES` lives if that is set. `WEIR_SEED` repeats a seed; threads are not repeated by it.

mod facts;
mod load;
mod pauses;
mod world;

use facts::{Fact, Journal, Ledger};
use load::Load;
use pauses::Pauses;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::Arc,
    time::{Duration, Instant},
};
use weir_log::{
    Durability, Engine, FileEngine, Limits, LogEngine, Options,
    storage::{
        FileStorage,
        chaos::{ChaosStorage, Op},
        sim::{Rng, SimStorage},
    },
};
use world::World;

/// How long a test goes on, in lives or in time.
struct Until {
    begun: Instant,
    seconds: u64,
    lives: Option<u64>,
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

impl Until {
    fn from_environment() -> Self {
        Self { begun: Instant::now(), seconds: number("WEIR_STRESS_SECONDS").unwrap_or(7), lives: number("WEIR_STRESS_LIVES") }
    }

    fn goes_on(&self, lives: u64) -> bool {
        self.lives.map_or(self.begun.elapsed().as_secs() < self.seconds, |max| lives < max)
    }
}

fn seed() -> u64 {
    let seed = number("WEIR_SEED").unwrap_or_else(|| u64::from(std::process::id()) * 7_919 + pauses::random() % 1_000_000);
    eprintln!("WEIR_SEED={seed}");
    seed
}

fn options(directory: &Path, durability: Durability) -> Options {
    let mut o = Options::new(directory, &[("main", 1)]);
    o.limits = Limits { segment_bytes: 256 * 1024, pending_bytes_max: 128 * 1024, ring_bytes: 256 * 1024 };
    o.streams[0].durability = durability;
    o.observe = Arc::new(Pauses::default());
    o
}

#[test]
fn disk_with_kills() {
    killed(Durability::Disk);
}

#[test]
fn os_with_kills() {
    killed(Durability::Os);
}

#[test]
fn disk_with_power_cuts() {
    cut(Durability::Disk);
}

#[test]
fn os_with_power_cuts() {
    cut(Durability::Os);
}

/// One life on real files. Run by `killed` in a process of its own.
#[test]
#[ignore = "a part of the tests with kills"]
fn life() {
    let Some(life) = number("WEIR_STRESS_LIFE") else { return };
    let directory = PathBuf::from(std::env::var_os("WEIR_STRESS_DIR").expect("a directory"));
    let durability = if number("WEIR_STRESS_OS") == Some(1) { Durability::Os } else { Durability::Disk };
    // A panic on any thread ends the life, and its parent sees it.
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("{panic}\n{}", std::backtrace::Backtrace::force_capture());
        std::process::exit(101);
    }));
    let ledger = Ledger::read(&directory.join("ledger"));
    let journal = Arc::new(Journal::append_to(&directory.join("journal")));
    let pauses = Arc::new(Pauses::default());
    if let Some(nth) = number("WEIR_STRESS_KILL_OP") {
        pauses.kill_at(Op::ALL[nth as usize], number("WEIR_STRESS_KILL_IN").expect("a count"));
    }
    let data = directory.join("data");
    let disk = |path: &Path, durability| {
        let storage = FileStorage::new(&data.join(path), durability).expect("creates the directory");
        Ok(Arc::new(ChaosStorage::new(storage, pauses.hook())))
    };
    let o = Options { observe: pauses.clone(), ..options(&data, durability) };
    let engine = LogEngine::open_on_disks(&o, &disk, &mut |_, _, _| Vec::new()).unwrap_or_else(|e| panic!("does not open: {e}"));
    assert_eq!(engine.damaged(), 0);
    let world = Arc::new(World::new(Arc::new(engine), &ledger, Box::new(move |fact| journal.note(fact))));
    world.compare(&ledger);
    let load = Load::start(&world, life, number("WEIR_STRESS_LIFE_SEED").expect("a seed"));
    std::thread::sleep(Duration::from_millis(number("WEIR_STRESS_MS").expect("a time")));
    load.end();
    world.engine.stop();
    world.note(Fact::Stopped);
}

fn killed(durability: Durability) {
    let (until, seed) = (Until::from_environment(), seed());
    let directory = tempfile::tempdir().expect("a directory");
    let (mut lives, mut in_order, mut at_ops) = (0, 0, HashMap::<Op, u64>::new());
    let mut ledger = Ledger::default();
    while until.goes_on(lives) {
        ledger.write(&directory.path().join("ledger"));
        let mut rng = Rng::new(seed ^ lives << 20);
        let mut child = Command::new(std::env::current_exe().expect("this test"));
        child.args(["life", "--exact", "--ignored", "--nocapture"]).env("WEIR_STRESS_DIR", directory.path());
        child.env("WEIR_STRESS_LIFE", lives.to_string()).env("WEIR_STRESS_LIFE_SEED", rng.next_u64().to_string());
        child.env("WEIR_STRESS_OS", u64::from(durability == Durability::Os).to_string());
        let ends_itself = rng.chance(15);
        let ms = 50 + rng.below(500);
        child.env("WEIR_STRESS_MS", if ends_itself { ms } else { 60_000 }.to_string());
        let op = rng.chance(50).then(|| Op::ALL[rng.below(Op::ALL.len() as u64) as usize]);
        if let Some(op) = op {
            let nth = Op::ALL.iter().position(|o| *o == op).expect("one of them");
            let often = matches!(op, Op::Read | Op::Write | Op::SyncData);
            child.env("WEIR_STRESS_KILL_OP", nth.to_string());
            child.env("WEIR_STRESS_KILL_IN", (1 + rng.below(if often { 400 } else { 24 })).to_string());
        }
        child.stdout(std::process::Stdio::null());
        let mut child = child.spawn().expect("starts");
        if !ends_itself {
            let end = Instant::now() + Duration::from_millis(ms);
            while Instant::now() < end && child.try_wait().expect("a child").is_none() {
                std::thread::sleep(Duration::from_millis(2));
            }
            let _may_have_ended = child.kill();
        }
        let what = format!("WEIR_SEED={seed}, life {lives}");
        let status = wait(&mut child, &what);
        let what = format!("{what}, {status}");
        use std::os::unix::process::ExitStatusExt;
        assert!(status.success() || status.signal() == Some(9), "{what}; its words are above");
        ledger.take(&directory.path().join("journal"), &what);
        in_order += u64::from(status.success());
        if let Some(op) = op.filter(|_| !status.success()) {
            *at_ops.entry(op).or_default() += 1;
        }
        lives += 1;
    }
    // What the lives left is opened by the engine that ships, on its own files, with its lock.
    let engine = FileEngine::open(&options(&directory.path().join("data"), durability), &mut |_, _, _| Vec::new()).expect("opens");
    World::new(Arc::new(engine), &ledger, Box::new(|_| ())).compare(&ledger);
    eprintln!("{durability:?}: {lives} lives, {in_order} ended in order, perhaps at {at_ops:?}; {ledger}");
    assert!(ledger.acknowledged > lives * 10 && ledger.puts > lives, "hardly anything was tried: {ledger}");
}

fn wait(child: &mut std::process::Child, what: &str) -> ExitStatus {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("a child") {
            return status;
        }
        if begun.elapsed() > Duration::from_secs(120) {
            let threads = threads(child.id());
            let _it_hangs = child.kill();
            panic!("{what}: it does not end by itself within two minutes; its threads: {threads}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Name, state, processor time (hundredths of a second) and system call of each thread, as the kernel has them.
fn threads(process: u32) -> String {
    let of = |task: std::path::PathBuf| {
        let read = |file: &str| std::fs::read_to_string(task.join(file)).unwrap_or_default();
        let stat = read("stat");
        let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, behind)| behind).split_whitespace().collect();
        let field = |n: usize| fields.get(n).copied().unwrap_or("?").to_owned();
        let time: u64 = [11, 12].iter().filter_map(|n| field(*n).parse::<u64>().ok()).sum();
        format!("\n{} {} {time} {} {}", read("comm").trim(), field(0), read("wchan"), read("syscall").trim())
    };
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    tasks.map(|task| of(task.path())).collect()
}

fn cut(durability: Durability) {
    let (until, seed) = (Until::from_environment(), seed());
    let disks: HashMap<PathBuf, SimStorage> =
        ["state", "streams/main/0"].into_iter().map(|path| (PathBuf::from(path), SimStorage::new(seed))).collect();
    let all = |what: &dyn Fn(&SimStorage)| disks.values().for_each(what);
    let (mut lives, mut unopened) = (0, 0);
    let ledger = Arc::new(parking_lot::Mutex::new(Ledger::default()));
    while until.goes_on(lives) {
        let mut rng = Rng::new(seed ^ lives << 20);
        let pauses = Arc::new(Pauses::default());
        let o = Options { boot: Some(format!("boot {lives}")), observe: pauses.clone(), ..options(Path::new("/sim"), durability) };
        let open = || {
            let disk = |path: &Path, _| Ok(Arc::new(ChaosStorage::new(disks[path].clone(), pauses.hook())));
            LogEngine::open_on_disks(&o, &disk, &mut |_, _, _| Vec::new())
        };
        // The power goes while it starts, too.
        if rng.chance(20) {
            all(&|disk| disk.cut_at_sync(1 + pauses::random() % 8));
            unopened += u64::from(open().is_err());
            all(&|disk| disk.restart());
        }
        let what = format!("WEIR_SEED={seed}, life {lives}");
        let engine = open().unwrap_or_else(|e| panic!("{what}: does not open: {e}"));
        assert!(engine.damaged() == 0 || durability == Durability::Os, "{what}: damage");
        let before = ledger.lock().clone();
        let noted = ledger.clone();
        let world = Arc::new(World::new(Arc::new(engine), &before, Box::new(move |fact| noted.lock().note(fact))));
        world.may_have_lost(durability == Durability::Os);
        let there = world.compare(&before);
        ledger.lock().settle(there);
        let load = Load::start(&world, lives, rng.next_u64());
        std::thread::sleep(Duration::from_millis(20 + rng.below(200)));
        // What is told from here on is believed by nobody.
        world.turn_off();
        all(&|disk| disk.cut_at_sync(1 + pauses::random() % 3));
        std::thread::sleep(Duration::from_millis(15));
        all(&|disk| disk.cut_at_sync(1));
        load.end();
        world.engine.stop();
        drop(world);
        all(&|disk| disk.restart());
        lives += 1;
    }
    let ledger = ledger.lock();
    eprintln!("{durability:?}: {lives} power cuts, {unopened} more while it started; {ledger}");
    assert!(ledger.acknowledged > lives * 10 && ledger.puts > lives, "hardly anything was tried: {ledger}");
}
