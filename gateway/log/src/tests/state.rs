//! The state store against a plain map: puts, deletes, cleaning and power cuts, from one seed each.

use super::*;
use crate::{
    AppendError, Put, Receipt,
    state::{CleanError, Directory, clean_oldest, remove_oldest, scan},
    storage::sim::SimStorage,
};
use std::collections::BTreeMap;

type Value = Option<(u32, Vec<u8>)>;
type Map = BTreeMap<Vec<u8>, (u32, Vec<u8>)>;

/// The store without threads: each call appends and commits.
struct Store {
    storage: Arc<SimStorage>,
    appender: Appender<SimStorage>,
    directory: Directory,
}

impl Store {
    fn open(storage: &Arc<SimStorage>) -> Option<Self> {
        let appender = Appender::open(storage.clone(), &opening(false, Offset(0))).ok()?;
        let directory = Directory::load(appender.segments(), appender.next()).ok()?;
        Some(Self { storage: storage.clone(), appender, directory })
    }

    fn put(&mut self, puts: &[Put<'_>]) -> bool {
        let mut p = Pending::default();
        let put = self.directory.put(puts, |r| {
            p.push(r);
            Ok(Receipt(0))
        });
        put.is_ok() && self.appender.commit(p, 0).is_ok()
    }

    fn clean(&mut self) -> bool {
        let segments = self.appender.segments().clone();
        let (directory, appender) = (&mut self.directory, &mut self.appender);
        let done = clean_oldest(&segments, 16 * 1024, &mut |piece| {
            let mut p = Pending::default();
            directory.copy(piece, |r| {
                p.push(r);
                Ok(Receipt(0))
            })?;
            if !p.is_empty() {
                appender.commit(p, 0).map_err(|e| AppendError::Failed(Arc::new(e.into())))?;
            }
            Ok(())
        });
        match done {
            Ok(_) => remove_oldest(&*self.storage, &segments).is_ok(),
            Err(CleanError::Append(_) | CleanError::Read(_)) => false,
        }
    }

    fn map(&self) -> Map {
        let mut map = Map::new();
        scan(&self.directory, self.appender.segments(), self.appender.next(), &mut |key, tag, value| {
            let new = map.insert(key.to_vec(), (tag, value.to_vec())).is_none();
            assert!(new, "each key once");
        })
        .expect("scans without faults");
        map
    }
}

fn key(rng: &mut Rng) -> Vec<u8> {
    format!("c/{}", rng.below(40)).into_bytes()
}

#[test]
fn holds_what_a_plain_map_holds_through_cleaning_and_power_cuts() {
    let mut cleaned = 0;
    for seed in 0..super::crash_seeds() {
        seed_random(seed);
        let mut rng = Rng::new(seed ^ 0x57A7E);
        let storage = Arc::new(SimStorage::new(seed));
        let mut model = Map::new();
        for life in 0..4 {
            storage.cut_at_sync(1 + rng.below(120));
            let mut unsure: Option<(Vec<u8>, Value)> = None;
            if let Some(mut store) = Store::open(&storage) {
                for _ in 0..100 {
                    if store.directory.wants_cleaning(store.appender.segments().len(), &SMALL) && rng.chance(50) {
                        if !store.clean() {
                            break;
                        }
                        cleaned += 1;
                        assert_eq!(store.map(), model, "seed {seed}: after cleaning");
                    }
                    let (key, tag) = (key(&mut rng), rng.below(1000) as u32);
                    let value = rng.chance(70).then(|| vec![tag as u8; rng.below(2_000) as usize]);
                    let put = Put { key: &key, tag, value: value.as_deref() };
                    if !store.put(&[put]) {
                        unsure = Some((key, value.map(|v| (tag, v))));
                        break;
                    }
                    match value {
                        Some(v) => model.insert(key, (tag, v)),
                        None => model.remove(&key),
                    };
                }
            }
            storage.restart();
            let store = Store::open(&storage).expect("opens without faults");
            let got = store.map();
            // The put in flight may have become durable or not.
            if let Some((key, value)) = unsure
                && got != model
            {
                match value {
                    Some(v) => model.insert(key, v),
                    None => model.remove(&key),
                };
            }
            assert_eq!(got, model, "seed {seed}, life {life}");
        }
    }
    assert!(cleaned > 50, "cleaning was hardly tried: {cleaned} times");
}

/// Whoever asks for a key that is absent waits for its own deletion alone, and for none that was refused.
#[test]
fn an_absent_key_waits_for_its_own_deletion() {
    seed_random(1);
    let mut store = Store::open(&Arc::new(SimStorage::new(1))).expect("opens");
    let delete = |key| [Put { key, tag: 0, value: None }];
    assert!(store.put(&[Put { key: b"a", tag: 0, value: Some(b"x") }]));
    assert!(store.directory.put(&delete(b"a"), |_| Err(AppendError::Full)).is_err());
    assert_eq!(store.directory.deleted.end_of(b"a"), Offset(0), "it was refused");
    let end = store.appender.next().plus(1);
    assert!(store.put(&delete(b"a")));
    assert_eq!((store.directory.deleted.end_of(b"a"), store.directory.deleted.end_of(b"b")), (end, Offset(0)));
    store.directory.deleted.forget(Offset(end.0 - 1));
    assert_eq!(store.directory.deleted.end_of(b"a"), end);
    assert!(store.put(&delete(b"a")));
    store.directory.deleted.forget(end);
    assert_eq!(store.directory.deleted.end_of(b"a"), end.plus(1), "deleted again");
    store.directory.deleted.forget(end.plus(1));
    assert_eq!(store.directory.deleted.end_of(b"a"), Offset(0));
}

#[test]
fn the_puts_of_one_call_stay_in_order_and_the_last_wins() {
    seed_random(1);
    let storage = Arc::new(SimStorage::new(1));
    let mut store = Store::open(&storage).expect("opens");
    let put = |value| Put { key: b"c/x", tag: 0, value };
    assert!(store.put(&[put(Some(b"1")), put(None), put(Some(b"2"))]));
    assert_eq!(store.directory.located(b"c/x"), Some(Offset(2)));
    assert_eq!(store.map().into_values().collect::<Vec<_>>(), [(0, b"2".to_vec())]);
}
