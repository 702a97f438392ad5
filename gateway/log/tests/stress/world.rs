//! One life of an engine, and what everybody in it agrees on.

use crate::facts::{Fact, KEYS, Ledger};
use parking_lot::{Condvar, Mutex};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};
use weir_log::{
    Engine, Everything, Fetch, Fetched, Kind, Newest, Offset, Page, PartitionId, ReadError, Record, Records, Seek, Select, Skip, Wake,
    Wanted,
};

pub const P: PartitionId = PartitionId(0);
/// Whoever waits longer waits for ever.
const HANGS: Duration = Duration::from_secs(20);
const RECORD_KEYS: u64 = 23;
/// One for all threads: each of its reads has its turn.
static ASKER: std::sync::LazyLock<weir_log::Asker> = std::sync::LazyLock::new(weir_log::Asker::default);

fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    x ^ x >> 33
}

/// All of a record follows from its id and its length.
fn value(id: u64, len: usize) -> Vec<u8> {
    let head = [id.to_le_bytes(), (len as u64).to_le_bytes()].concat();
    let rest = (0..).flat_map(|i| mix(id ^ i << 48).to_le_bytes());
    head.into_iter().chain(rest).take(len.max(16)).collect()
}

pub fn key_of(id: u64) -> Vec<u8> {
    format!("k/{}", mix(id) % RECORD_KEYS).into_bytes()
}

pub fn push(records: &mut Records, id: u64, len: usize) {
    records.push(Kind::Message, 1, &id.to_be_bytes(), &key_of(id), b"", &value(id, len)).expect("small");
}

/// The id, if all of the record is what was appended.
fn id_of(r: &Record<'_>) -> Option<u64> {
    let id = u64::from_le_bytes(r.value.get(..8)?.try_into().ok()?);
    let len = u64::from_le_bytes(r.value.get(8..16)?.try_into().ok()?);
    (r.value == value(id, len as usize) && r.key == key_of(id) && r.meta == id.to_be_bytes()).then_some(id)
}

/// What stands under a state key.
pub fn state_value(key: u64, version: u64, len: usize) -> Vec<u8> {
    [key.to_le_bytes(), version.to_le_bytes()].concat().into_iter().chain(std::iter::repeat_n(key as u8, len)).collect()
}

pub fn state_key(key: u64) -> Vec<u8> {
    format!("s/{key}").into_bytes()
}

/// Records with this key only: through the index.
pub struct One(pub Vec<u8>);

impl Select for One {
    fn matches(&self, key: &[u8]) -> bool {
        key == self.0
    }

    fn skip(&self, key: &[u8], to: &mut Vec<u8>) -> Skip {
        if *key < *self.0 {
            to.clone_from(&self.0);
            Skip::To
        } else {
            Skip::End
        }
    }
}

#[derive(Default)]
pub struct Bell(Mutex<bool>, Condvar);

impl Wake for Bell {
    fn wake(&self) {
        *self.0.lock() = true;
        self.1.notify_all();
    }
}

impl Bell {
    /// False: nobody rang for so long.
    pub fn wait(&self, time: Duration) -> bool {
        let mut rung = self.0.lock();
        if !*rung {
            self.1.wait_for(&mut rung, time);
        }
        std::mem::take(&mut *rung)
    }
}

pub struct World {
    pub engine: Arc<dyn Engine>,
    tell: Box<dyn Fn(Fact) + Send + Sync>,
    stopping: AtomicBool,
    /// The disks are about to fail: what is told now is believed by nobody.
    off: AtomicBool,
    may_have_lost: AtomicBool,
    /// The id at each offset that somebody saw.
    seen: Mutex<HashMap<u64, u64>>,
    /// Per key, the greatest version that was put or given to somebody, and that was asked for.
    pub put: Vec<AtomicU64>,
    pub putting: Vec<AtomicU64>,
}

impl World {
    pub fn new(engine: Arc<dyn Engine>, ledger: &Ledger, tell: Box<dyn Fn(Fact) + Send + Sync>) -> Self {
        Self {
            engine,
            tell,
            stopping: AtomicBool::new(false),
            off: AtomicBool::new(false),
            may_have_lost: AtomicBool::new(false),
            seen: Mutex::default(),
            put: (0..KEYS).map(|key| AtomicU64::new(ledger.put.get(&key).copied().unwrap_or_default())).collect(),
            putting: (0..KEYS).map(|key| AtomicU64::new(ledger.latest(key))).collect(),
        }
    }

    pub fn note(&self, fact: Fact) {
        // What may be there is not a promise, and counts to the end.
        if matches!(fact, Fact::Retiring { .. } | Fact::Putting { .. }) || !self.off.load(Ordering::SeqCst) {
            (self.tell)(fact);
        }
    }

    pub fn is_over(&self) -> bool {
        self.stopping.load(Ordering::SeqCst) || self.off.load(Ordering::SeqCst)
    }

    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    pub fn turn_off(&self) {
        self.off.store(true, Ordering::SeqCst);
    }

    pub fn may_have_lost(&self, lost: bool) {
        self.may_have_lost.store(lost, Ordering::SeqCst);
    }

    pub fn has_lost(&self) -> bool {
        self.may_have_lost.load(Ordering::SeqCst)
    }

    /// Something went wrong, which it may once the disks are off.
    pub fn wrong(&self, what: &str) {
        assert!(self.off.load(Ordering::SeqCst), "{what}");
    }

    /// Waits to be woken, as whoever registered must be.
    pub fn wait(&self, bell: &Bell, what: &str) {
        if !bell.wait(HANGS) && !self.is_over() {
            panic!("{what}: nobody was woken in {HANGS:?}");
        }
    }

    pub fn see(&self, offset: u64, id: u64, who: &str) {
        let before = self.seen.lock().insert(offset, id);
        assert!(before.is_none_or(|before| before == id), "{who}: offset {offset} is {id:x}, and was {before:x?}");
    }

    /// The id of a record that was read.
    pub fn check(&self, r: &Record<'_>, who: &str) -> u64 {
        let id = id_of(r)
            .unwrap_or_else(|| panic!("{who}: record {} is not what was appended: {:?}", r.offset, &r.value[..r.value.len().min(16)]));
        self.see(r.offset.0, id, who);
        id
    }

    fn ask<T: Send + 'static>(&self, ask: impl FnOnce(Box<dyn FnOnce(Result<T, ReadError>) + Send>)) -> Option<T> {
        let (tx, rx) = mpsc::channel();
        ask(Box::new(move |answer| drop(tx.send(answer))));
        match rx.recv_timeout(HANGS) {
            Ok(Ok(answer)) => Some(answer),
            Ok(Err(ReadError::Stopping)) if self.is_over() => None,
            Ok(Err(e)) => {
                self.wrong(&format!("a read: {e}"));
                None
            }
            Err(e) => panic!("a read is not answered: {e}"),
        }
    }

    pub fn fetch(&self, wanted: Wanted, records_max: u32, bytes_max: u32) -> Option<Fetched> {
        self.ask(|done| self.engine.fetch(&ASKER, Fetch { partition: P, wanted, records_max, bytes_max }, done))
    }

    pub fn seek(&self, seek: Seek) -> Option<u64> {
        self.ask(|done| self.engine.seek(&ASKER, P, seek, done)).map(|at: Offset| at.0)
    }

    pub fn newest(&self, newest: Newest) -> Option<Page> {
        self.ask(|done| self.engine.newest(&ASKER, P, newest, done))
    }

    /// The version under a key; `Some(0)`: there is none.
    pub fn get(&self, key: u64) -> Option<u64> {
        let entry = self.ask(|done| self.engine.state().get(&state_key(key), done))?;
        Some(entry.map_or(0, |entry| {
            let word = |i: usize| u64::from_le_bytes(entry.value[i * 8..][..8].try_into().expect("8 bytes"));
            assert_eq!(word(0), key, "a value of another key");
            word(1)
        }))
    }

    /// Reads a range in pieces. Gives where it began, because retention may have passed its start, and the offsets with their ids.
    pub fn range(
        &self,
        from: u64,
        to: u64,
        select: &Arc<dyn Select>,
        records_max: u32,
        bytes_max: u32,
    ) -> Option<(u64, BTreeMap<u64, u64>)> {
        let (mut at, mut begun, mut all, wide) = (from, from, BTreeMap::new(), select.is_wide());
        while at < to {
            let wanted = Wanted::Range { from: Offset(at), to: Offset(to), select: select.clone() };
            let fetched = self.fetch(wanted, records_max, bytes_max)?;
            let lost = &fetched.lost;
            if let Some(damage) = &fetched.damage {
                assert!(self.has_lost(), "{damage}");
            } else if !lost.is_empty() {
                let start = self.engine.span(P).start;
                assert!(lost.start.0 == at && lost.end <= start, "{lost:?} lost at {at}, and the log begins at {start}");
                begun = lost.end.0;
                all.clear();
            }
            for r in fetched.batch.iter() {
                assert!(select.matches(r.key), "a record that was not chosen");
                assert!((at..to).contains(&r.offset.0), "record {} of {at}..{to}", r.offset);
                let twice = all.insert(r.offset.0, self.check(&r, "fetch"));
                assert_eq!(twice, None, "record {} came twice", r.offset);
            }
            assert!(fetched.next.0 > at, "a fetch from {at} stays there");
            if wide && fetched.damage.is_none() {
                let dense = fetched.batch.len() as u64 == fetched.next.0 - at.max(lost.end.0);
                assert!(dense, "{} records of {at}..{}, lost {lost:?}", fetched.batch.len(), fetched.next);
            }
            at = fetched.next.0;
        }
        Some((begun, all))
    }

    /// Compares all that is there after a start with what was promised. Gives the records.
    pub fn compare(&self, ledger: &Ledger) -> BTreeMap<u64, u64> {
        let span = self.engine.span(P);
        assert!(span.start.0 <= ledger.retired, "begins at {}, retention was asked to take what is below {}", span.start, ledger.retired);
        assert!(span.durable.0 >= ledger.end, "ends at {}, and offsets below {} were given out", span.durable, ledger.end);
        let everything: Arc<dyn Select> = Arc::new(Everything);
        let (_, there) = self.range(span.start.0, span.durable.0, &everything, u32::MAX, 1 << 20).expect("reads");
        for (offset, id) in ledger.records.range(span.start.0..) {
            match there.get(offset) {
                Some(found) => assert_eq!(found, id, "offset {offset} holds another record"),
                None => assert!(self.has_lost(), "record {id:x} at {offset} is lost"),
            }
        }
        for (offset, id) in &there {
            if !ledger.records.contains_key(offset) {
                // Whoever reads it now finds it after the next start.
                self.note(Fact::Appended { id: *id, count: 1, end: offset + 1 });
            }
        }
        for key in 0..KEYS {
            let (found, known) = (self.get(key).expect("reads"), ledger.put.get(&key).copied().unwrap_or_default());
            let putting = ledger.putting.get(&key).map_or(&[][..], Vec::as_slice);
            if found == 0 {
                let deleted = putting.iter().any(|(version, deletes)| *deletes && *version >= known);
                assert!(known == 0 || deleted, "key {key} is gone; version {known} was put, {putting:?} asked for");
            } else {
                assert!(
                    found >= known && putting.contains(&(found, false)),
                    "key {key} has version {found}; {known} was put, {putting:?} asked for"
                );
                self.note(Fact::Put { key, version: found });
            }
        }
        there
    }
}
