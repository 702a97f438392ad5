//! The key index of a segment: where the records of each key stand. In memory while the segment is written, in a sidecar file afterwards.
//!
//! Invariant: for records before `end` it gives exactly the positions that a scan with the same selector would choose; whatever is not in it is scanned.
//! A sidecar that is missing or wrong is no fault: it is built again.
//! Must not know: what a key means.
//!
//! Sidecar, little-endian:
//!
//! | at | field |
//! |---|---|
//! | 0 | magic `WEII`, u16 version 1, u16 zero |
//! | 8 | u64 `salt` of the segment, u64 base offset, u64 end offset |
//! | 32 | u32 records, u32 keys, u32 bytes of the dictionary, u32 bytes of the postings |
//! | 48 | u32 CRC-32C of everything but itself, zeros to 64 |
//! | 64 | restarts: u32 place in the dictionary of every 16th key |
//! | … | dictionary, sorted: varint bytes shared with the key before (0 at a restart), varint rest, rest, varint place in the postings, varint count |
//! | … | postings: positions in the segment, ascending, as varint differences |

use crate::sync::{Mutex, RwLock};
use crate::{
    Batch, Kind, Offset, ReadError,
    batch::parse,
    reader::{Select, Skip},
    record::crc,
    segment::{BATCHES_AT, Scan, Segment},
    storage::{File, Name, Storage},
};
use std::{
    collections::{BTreeMap, HashMap},
    io,
    ops::Bound,
    sync::Arc,
};

const HEAD: usize = 64;
const CRC_AT: usize = 48;
const BLOCK_KEYS: usize = 16;
/// Keys of one segment beyond which it is not indexed but scanned: an index of more would take more memory than the records are worth.
const KEYS_MAX: usize = 1 << 18;
/// Chosen records above this share of a segment are scanned: reading them one by one is slower.
const SCAN_SHARE: usize = 16;

/// The index of a segment that is being written.
#[derive(Debug, Default)]
pub(crate) struct Building {
    ids: HashMap<Arc<[u8]>, u32>,
    sorted: BTreeMap<Arc<[u8]>, u32>,
    positions: Vec<Vec<u32>>,
    /// The key of the record before.
    last: Option<(Arc<[u8]>, u32)>,
    records: u32,
    end: Offset,
    /// Too many keys.
    abandoned: bool,
}

impl Building {
    pub fn new(base: Offset) -> Self {
        Self { end: base, ..Self::default() }
    }

    fn id(&mut self, key: &[u8]) -> Option<u32> {
        if let Some((last, id)) = &self.last
            && **last == *key
        {
            return Some(*id);
        }
        let (key, id) = match self.ids.get_key_value(key) {
            Some((key, id)) => (key.clone(), *id),
            None if self.ids.len() >= KEYS_MAX => return None,
            None => {
                let (key, id): (Arc<[u8]>, u32) = (key.into(), self.positions.len() as u32);
                self.positions.push(Vec::new());
                self.ids.insert(key.clone(), id);
                self.sorted.insert(key.clone(), id);
                (key, id)
            }
        };
        self.last = Some((key, id));
        Some(id)
    }

    fn add(&mut self, key: &[u8], positions: impl IntoIterator<Item = u32>) {
        if self.abandoned {
            return;
        }
        match self.id(key) {
            Some(id) => {
                let known = &mut self.positions[id as usize];
                let before = known.len();
                known.extend(positions);
                self.records += (known.len() - before) as u32;
            }
            None => *self = Self { abandoned: true, end: self.end, ..Self::default() },
        }
    }

    /// The records of a batch that stands at `at`.
    pub fn batch(&mut self, batch: &Batch, at: u64) {
        if batch.first() != self.end {
            // Something before it is missing.
            self.abandoned = true;
        }
        for run in batch.runs().filter(|run| run.kind == Kind::Message) {
            let starts = batch.starts().get(run.records.start as usize..run.records.end as usize).unwrap_or_default();
            self.add(run.key, starts.iter().map(|start| at as u32 + start));
        }
        self.end = batch.end();
    }

    /// Of a segment that was written before, up to `end`.
    pub fn of<F: File>(segment: &Segment<F>, end: Offset) -> Result<Self, ReadError> {
        let mut building = Self::new(segment.head.base);
        if segment.head.base < end {
            let place = segment.place(segment.head.base, end)?.filter(|place| place.delta == 0);
            let place = place.ok_or_else(|| segment.damaged(BATCHES_AT, segment.head.base))?;
            let mut scan = Scan::new(segment, place);
            while scan.next() < end {
                let (raw, _) = scan.step()?;
                let len = raw.len();
                if let Some((Kind::Message, _, [_, key, ..])) = parse(raw) {
                    let key = key.to_vec();
                    building.add(&key, [(scan.position() - len as u64) as u32]);
                }
            }
        }
        building.end = end;
        Ok(building)
    }

    fn encode(&self, salt: u64, base: Offset) -> Vec<u8> {
        let (mut restarts, mut dictionary, mut postings): (Vec<u8>, Vec<u8>, Vec<u8>) = Default::default();
        let mut before: &[u8] = &[];
        for (i, (key, id)) in self.sorted.iter().enumerate() {
            let shared = if i % BLOCK_KEYS == 0 {
                restarts.extend_from_slice(&(dictionary.len() as u32).to_le_bytes());
                0
            } else {
                key.iter().zip(before).take_while(|(a, b)| a == b).count()
            };
            let positions = &self.positions[*id as usize];
            put(&mut dictionary, shared as u32);
            put(&mut dictionary, (key.len() - shared) as u32);
            dictionary.extend_from_slice(&key[shared..]);
            put(&mut dictionary, postings.len() as u32);
            put(&mut dictionary, positions.len() as u32);
            let mut last = 0;
            for p in positions {
                put(&mut postings, p - last);
                last = *p;
            }
            before = key;
        }
        let mut b = vec![0; HEAD];
        b[..4].copy_from_slice(b"WEII");
        b[4] = 1;
        b[8..16].copy_from_slice(&salt.to_le_bytes());
        b[16..24].copy_from_slice(&base.0.to_le_bytes());
        b[24..32].copy_from_slice(&self.end.0.to_le_bytes());
        for (at, n) in [(32, self.records), (36, self.sorted.len() as u32), (40, dictionary.len() as u32), (44, postings.len() as u32)] {
            b[at..at + 4].copy_from_slice(&n.to_le_bytes());
        }
        [restarts, dictionary, postings].iter().for_each(|part| b.extend_from_slice(part));
        let sum = crc(&b);
        b[CRC_AT..CRC_AT + 4].copy_from_slice(&sum.to_le_bytes());
        b
    }
}

fn put(b: &mut Vec<u8>, mut n: u32) {
    while n >= 0x80 {
        b.push(n as u8 | 0x80);
        n >>= 7;
    }
    b.push(n as u8);
}

fn take(b: &mut &[u8]) -> Option<u32> {
    let mut n = 0u32;
    for shift in (0..35).step_by(7) {
        let (byte, rest) = b.split_first()?;
        *b = rest;
        n |= u32::from(byte & 0x7F).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}

/// The index of a sealed segment, as its file has it.
#[derive(Debug)]
pub(crate) struct Sidecar {
    bytes: Vec<u8>,
    end: Offset,
    records: u32,
    restarts: usize,
    /// Where the dictionary and the postings begin.
    dictionary: usize,
    postings: usize,
}

impl Sidecar {
    /// `None`: not the sidecar of this segment, or damaged.
    fn decode(mut bytes: Vec<u8>, salt: u64, base: Offset) -> Option<Self> {
        let word = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let half = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let whole = bytes.starts_with(b"WEII\x01\0") && word(8)? == salt && word(16)? == base.0;
        let (end, records, keys) = (Offset(word(24)?), half(32)?, half(36)? as usize);
        let (dictionary_len, postings_len, sum) = (half(40)? as usize, half(44)? as usize, half(CRC_AT)?);
        let restarts = keys.div_ceil(BLOCK_KEYS);
        let dictionary = HEAD + restarts * 4;
        let postings = dictionary + dictionary_len;
        if !whole || bytes.len() != postings + postings_len {
            return None;
        }
        bytes[CRC_AT..CRC_AT + 4].fill(0);
        (crc(&bytes) == sum).then_some(Self { bytes, end, records, restarts, dictionary, postings })
    }

    fn restart(&self, i: usize) -> Option<&[u8]> {
        let at = u32::from_le_bytes(*self.bytes.get(HEAD + i * 4..)?.first_chunk()?) as usize;
        self.bytes.get(self.dictionary + at..self.postings)
    }

    /// Reads one entry: the key is built from the one before.
    fn entry(rest: &mut &[u8], key: &mut Vec<u8>) -> Option<(u32, u32)> {
        let (shared, n) = (take(rest)? as usize, take(rest)? as usize);
        let (suffix, after) = rest.split_at_checked(n)?;
        *rest = after;
        key.truncate(shared);
        key.extend_from_slice(suffix);
        Some((take(rest)?, take(rest)?))
    }

    fn positions(&self, at: u32, count: u32, from: u32, into: &mut Vec<u32>) {
        let mut rest = self.bytes.get(self.postings + at as usize..).unwrap_or_default();
        let mut position = 0u32;
        for _ in 0..count {
            let Some(delta) = take(&mut rest) else { return };
            position = position.saturating_add(delta);
            if position >= from {
                into.push(position);
            }
        }
    }
}

/// Appends the positions of one key from a place on.
type Positions<'a> = dyn Fn(u32, &mut Vec<u32>) + 'a;
/// Takes a key and its positions.
type EachKey<'a> = dyn FnMut(&[u8], &Positions<'_>) -> Walk + 'a;

/// Sorted keys with their positions.
trait Keys {
    fn records(&self) -> u32;
    /// From the first key at or after `at` on: calls `each` with key and a way to its positions until it says where to go on; `None`: no further.
    fn walk(&self, at: &[u8], each: &mut EachKey<'_>) -> Option<Vec<u8>>;
}

enum Walk {
    Next,
    /// Go on at this key, which is not near.
    Seek(Vec<u8>),
    End,
}

impl Keys for Building {
    fn records(&self) -> u32 {
        self.records
    }

    fn walk(&self, at: &[u8], each: &mut EachKey<'_>) -> Option<Vec<u8>> {
        for (key, id) in self.sorted.range::<[u8], _>((Bound::Included(at), Bound::Unbounded)) {
            let positions = |from: u32, into: &mut Vec<u32>| {
                let all = &self.positions[*id as usize];
                into.extend_from_slice(&all[all.partition_point(|p| *p < from)..]);
            };
            match each(key, &positions) {
                Walk::Next => {}
                Walk::Seek(to) => return Some(to),
                Walk::End => return None,
            }
        }
        None
    }
}

impl Keys for Sidecar {
    fn records(&self) -> u32 {
        self.records
    }

    fn walk(&self, at: &[u8], each: &mut EachKey<'_>) -> Option<Vec<u8>> {
        let mut key = Vec::new();
        // The last restart whose key is not after `at`.
        let (mut low, mut high) = (0, self.restarts);
        while low < high {
            let middle = low.midpoint(high);
            Self::entry(&mut self.restart(middle)?, &mut key)?;
            if key.as_slice() <= at { low = middle + 1 } else { high = middle }
        }
        let mut rest = self.restart(low.saturating_sub(1))?;
        key.clear();
        while !rest.is_empty() {
            let (place, count) = Self::entry(&mut rest, &mut key)?;
            if key.as_slice() < at {
                continue;
            }
            match each(&key, &|from, into| self.positions(place, count, from, into)) {
                Walk::Next => {}
                Walk::Seek(to) => return Some(to),
                Walk::End => return None,
            }
        }
        None
    }
}

/// Positions from `from` on of the keys that `select` chooses, ascending; `None`: so many that a scan is better.
fn choose(keys: &impl Keys, select: &dyn Select, from: u32) -> Option<Vec<u32>> {
    let most = (keys.records() as usize / SCAN_SHARE).max(64);
    let (mut found, mut to) = (Vec::new(), Vec::new());
    let mut lists = 0;
    let mut too_many = false;
    let mut at = Some(Vec::new());
    while let Some(start) = at {
        at = keys.walk(&start, &mut |key, positions| {
            if select.matches(key) {
                positions(from, &mut found);
                lists += 1;
                too_many = found.len() > most;
                return if too_many { Walk::End } else { Walk::Next };
            }
            match select.skip(key, &mut to) {
                Skip::Next => Walk::Next,
                Skip::To => Walk::Seek(to.clone()),
                Skip::End => Walk::End,
            }
        });
    }
    if lists > 1 {
        found.sort_unstable();
    }
    (!too_many).then_some(found)
}

/// The last position before `before` of each key behind `after` that `select` chooses, in the order of keys, while `each` wants more.
fn last_of(keys: &impl Keys, select: &dyn Select, after: &[u8], before: u32, each: &mut dyn FnMut(&[u8], u32) -> bool) {
    let (mut positions, mut to) = (Vec::new(), Vec::new());
    let mut at = Some(after.to_vec());
    while let Some(start) = at {
        at = keys.walk(&start, &mut |key, give| {
            if key <= after {
                return Walk::Next;
            }
            if select.matches(key) {
                positions.clear();
                give(0, &mut positions);
                let last = positions.partition_point(|p| *p < before).checked_sub(1).and_then(|i| positions.get(i));
                return if last.is_none_or(|p| each(key, *p)) { Walk::Next } else { Walk::End };
            }
            match select.skip(key, &mut to) {
                Skip::Next => Walk::Next,
                Skip::To => Walk::Seek(to.clone()),
                Skip::End => Walk::End,
            }
        });
    }
}

/// Where the index of a segment is.
pub(crate) enum Indexed {
    Building(RwLock<Building>),
    /// In its file.
    Sealed,
    /// Nowhere; it is scanned until somebody builds it.
    Missing,
    /// It has too many keys, or cannot be read: it is scanned.
    Never,
}

/// Sidecars that were read, by the salt of their segments (random at every use of a file), newest use last.
pub(crate) struct Cache {
    read: Mutex<(lru::LruCache<u64, Arc<Sidecar>>, usize)>,
    bytes_max: usize,
}

impl Cache {
    pub fn new(bytes_max: usize) -> Self {
        Self { read: Mutex::new((lru::LruCache::unbounded(), 0)), bytes_max }
    }

    fn get<S: Storage>(&self, storage: &S, segment: &Segment<S::File>) -> Option<Arc<Sidecar>> {
        if let Some(known) = self.read.lock().0.get(&segment.head.salt) {
            return Some(known.clone());
        }
        let read = || -> io::Result<Vec<u8>> {
            let file = storage.open(Name::Index(segment.head.base))?;
            let mut bytes = vec![0; file.bytes()? as usize];
            let n = file.read_at(&mut bytes, 0)?;
            bytes.truncate(n);
            Ok(bytes)
        };
        let sidecar = Arc::new(Sidecar::decode(read().ok()?, segment.head.salt, segment.head.base)?);
        let mut cache = self.read.lock();
        let (known, bytes) = &mut *cache;
        *bytes += sidecar.bytes.len();
        if let Some(old) = known.put(segment.head.salt, sidecar.clone()) {
            *bytes -= old.bytes.len();
        }
        while *bytes > self.bytes_max && known.len() > 1 {
            let Some((_, old)) = known.pop_lru() else { break };
            *bytes -= old.bytes.len();
        }
        Some(sidecar)
    }
}

/// Positions that were chosen, for records before `end`.
pub(crate) struct Chosen {
    pub positions: Vec<u32>,
    pub end: Offset,
}

/// The same of a segment. Gives the end of what it covers; `None`: scan it.
pub(crate) fn newest<S: Storage>(
    storage: &S,
    cache: &Cache,
    segment: &Segment<S::File>,
    select: &dyn Select,
    after: &[u8],
    before: u32,
    each: &mut dyn FnMut(&[u8], u32) -> bool,
) -> Option<Offset> {
    let indexed = segment.indexed.read();
    match &*indexed {
        Indexed::Building(building) => {
            let building = building.read();
            if building.abandoned {
                return None;
            }
            last_of(&*building, select, after, before, each);
            Some(building.end)
        }
        Indexed::Sealed => {
            let sidecar = cache.get(storage, segment)?;
            last_of(&*sidecar, select, after, before, each);
            Some(sidecar.end)
        }
        Indexed::Missing | Indexed::Never => None,
    }
}

/// Asks the index of a segment; `None`: scan it.
pub(crate) fn ask<S: Storage>(storage: &S, cache: &Cache, segment: &Segment<S::File>, select: &dyn Select, from: u32) -> Option<Chosen> {
    let indexed = segment.indexed.read();
    match &*indexed {
        Indexed::Building(building) => {
            let building = building.read();
            let usable = !building.abandoned;
            usable.then(|| choose(&*building, select, from))?.map(|positions| Chosen { positions, end: building.end })
        }
        Indexed::Sealed => match cache.get(storage, segment) {
            Some(sidecar) => choose(&*sidecar, select, from).map(|positions| Chosen { positions, end: sidecar.end }),
            None => {
                drop(indexed);
                *segment.indexed.write() = Indexed::Missing;
                None
            }
        },
        Indexed::Missing | Indexed::Never => None,
    }
}

/// Writes what a sealed segment lacks: its sidecar, built first if it has to be. `end`: of the segment.
pub(crate) fn seal<S: Storage>(storage: &S, segment: &Segment<S::File>, end: Offset) -> io::Result<()> {
    let bytes = match &*segment.indexed.read() {
        Indexed::Building(b) => {
            Some(b.read()).filter(|b| !b.abandoned && b.end == end).map(|b| b.encode(segment.head.salt, segment.head.base))
        }
        Indexed::Missing => {
            let built = Building::of(segment, end).ok().filter(|b| !b.abandoned);
            built.map(|b| b.encode(segment.head.salt, segment.head.base))
        }
        Indexed::Sealed | Indexed::Never => return Ok(()),
    };
    let next = match bytes {
        Some(bytes) => {
            let file = storage.create(Name::Index(segment.head.base), bytes.len() as u64)?;
            // Not synced: a sidecar that a crash leaves torn is built again.
            file.write_at(&[io::IoSlice::new(&bytes)], 0)?;
            Indexed::Sealed
        }
        None => Indexed::Never,
    };
    *segment.indexed.write() = next;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Wanted(Vec<Vec<u8>>);

    impl Select for Wanted {
        fn matches(&self, key: &[u8]) -> bool {
            self.0.iter().any(|k| k == key)
        }

        fn skip(&self, key: &[u8], to: &mut Vec<u8>) -> Skip {
            match self.0.iter().filter(|k| k.as_slice() > key).min() {
                Some(next) => {
                    to.clone_from(next);
                    Skip::To
                }
                None => Skip::End,
            }
        }
    }

    proptest! {
        #[test]
        fn both_forms_choose_what_a_scan_chooses(
            keys in proptest::collection::vec("[ab/]{0,4}", 0..200),
            wanted in proptest::collection::vec("[ab/]{0,4}", 0..4),
            from in 0..2_100u32,
        ) {
            let wanted = Wanted(wanted.into_iter().map(String::into_bytes).collect());
            let mut building = Building::new(Offset(7));
            for (i, key) in keys.iter().enumerate() {
                building.add(key.as_bytes(), [i as u32 * 10]);
            }
            let scan: Vec<u32> = (0..keys.len() as u32).map(|i| i * 10)
                .filter(|p| *p >= from && wanted.matches(keys[*p as usize / 10].as_bytes())).collect();
            let sidecar = Sidecar::decode(building.encode(5, Offset(7)), 5, Offset(7)).expect("its own bytes");
            prop_assert_eq!(choose(&sidecar, &wanted, from), choose(&building, &wanted, from));
            match choose(&building, &wanted, from) {
                Some(found) => prop_assert_eq!(found, scan),
                None => prop_assert!(scan.len() > 64),
            }
        }

        #[test]
        fn a_damaged_sidecar_is_no_sidecar(at in 0..400usize, bit in 0..8) {
            let mut building = Building::new(Offset(0));
            (0..40u32).for_each(|n| building.add(format!("key/{}", n % 20).as_bytes(), [n]));
            let mut bytes = building.encode(1, Offset(0));
            let at = at % bytes.len();
            bytes[at] ^= 1u8 << bit;
            prop_assert!(Sidecar::decode(bytes, 1, Offset(0)).is_none());
        }
    }
}
