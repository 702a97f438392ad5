//! What was promised to somebody outside the log, and how it is remembered beyond the end of a process.

use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    fs::File,
    io::Write,
    path::Path,
};

/// Keys that are put, by their number.
pub const KEYS: u64 = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// The records `id`, `id + 1` and so on are acknowledged; the last of them ends at `end`.
    Appended { id: u64, count: u64, end: u64 },
    /// A follower was given everything below.
    Followed { end: u64 },
    /// Retention was asked to take what is below, so it may be gone.
    Retiring { below: u64 },
    /// A put was asked for, so it may be there.
    Putting { key: u64, version: u64, deletes: bool },
    /// Acknowledged, or given to somebody.
    Put { key: u64, version: u64 },
    /// The life ended in order.
    Stopped,
}

const BYTES: usize = 32;

impl Fact {
    fn encode(self) -> [u8; BYTES] {
        let words = match self {
            Self::Appended { id, count, end } => [1, id, count, end],
            Self::Followed { end } => [2, end, 0, 0],
            Self::Retiring { below } => [3, below, 0, 0],
            Self::Putting { key, version, deletes } => [4, key, version, u64::from(deletes)],
            Self::Put { key, version } => [5, key, version, 0],
            Self::Stopped => [6, 0, 0, 0],
        };
        let mut bytes = [0; BYTES];
        bytes.chunks_exact_mut(8).zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_le_bytes()));
        bytes
    }

    fn decode(bytes: &[u8]) -> Self {
        let word = |i: usize| u64::from_le_bytes(bytes[i * 8..][..8].try_into().expect("8 bytes"));
        match word(0) {
            1 => Self::Appended { id: word(1), count: word(2), end: word(3) },
            2 => Self::Followed { end: word(1) },
            3 => Self::Retiring { below: word(1) },
            4 => Self::Putting { key: word(1), version: word(2), deletes: word(3) != 0 },
            5 => Self::Put { key: word(1), version: word(2) },
            6 => Self::Stopped,
            other => panic!("fact {other}"),
        }
    }
}

/// Facts of a process that is killed: each is with the operating system before anybody acts on it.
pub struct Journal(Mutex<File>);

impl Journal {
    pub fn append_to(path: &Path) -> Self {
        Self(Mutex::new(File::options().create(true).append(true).open(path).expect("opens the journal")))
    }

    pub fn note(&self, fact: Fact) {
        self.0.lock().write_all(&fact.encode()).expect("writes the journal");
    }
}

/// What must hold.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// The record at each offset that somebody knows of.
    pub records: BTreeMap<u64, u64>,
    /// No offset below is given out again.
    pub end: u64,
    /// Retention may have taken everything below.
    pub retired: u64,
    /// Versions that may be there, and whether each deletes the key.
    pub putting: HashMap<u64, Vec<(u64, bool)>>,
    /// The greatest version that somebody knows of.
    pub put: HashMap<u64, u64>,
    pub acknowledged: u64,
    pub puts: u64,
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} records and {} puts acknowledged, {} taken by retention", self.acknowledged, self.puts, self.retired)
    }
}

impl Ledger {
    pub fn note(&mut self, fact: Fact) {
        match fact {
            Fact::Appended { id, count, end } => {
                self.acknowledged += count;
                self.end = self.end.max(end);
                for i in 0..count {
                    let (offset, id) = (end - count + i, id + i);
                    if let Some(other) = self.records.insert(offset, id) {
                        assert_eq!(other, id, "offset {offset} was given out twice");
                    }
                }
            }
            Fact::Followed { end } => self.end = self.end.max(end),
            Fact::Retiring { below } => self.retired = self.retired.max(below),
            Fact::Putting { key, version, deletes } => self.putting.entry(key).or_default().push((version, deletes)),
            Fact::Put { key, version } => {
                self.puts += 1;
                let known = self.put.entry(key).or_default();
                *known = version.max(*known);
            }
            Fact::Stopped => {}
        }
    }

    /// Takes what a life that has ended left in its journal.
    pub fn take(&mut self, journal: &Path, what: &str) {
        let bytes = std::fs::read(journal).unwrap_or_default();
        assert_eq!(bytes.len() % BYTES, 0, "{what}: a part of a fact");
        bytes.chunks_exact(BYTES).for_each(|fact| self.note(Fact::decode(fact)));
        std::fs::write(journal, []).expect("empties the journal");
        self.forget();
    }

    /// What the log holds after a start is all that has to be there from now on.
    pub fn settle(&mut self, there: BTreeMap<u64, u64>) {
        self.records = there;
        self.forget();
    }

    fn forget(&mut self) {
        self.records = self.records.split_off(&self.retired);
        for (key, putting) in &mut self.putting {
            let known = self.put.get(key).copied().unwrap_or_default();
            putting.retain(|(version, _)| *version >= known);
        }
    }

    /// The greatest version that may be there.
    pub fn latest(&self, key: u64) -> u64 {
        let putting = self.putting.get(&key).into_iter().flatten().map(|(version, _)| *version);
        putting.chain(self.put.get(&key).copied()).max().unwrap_or_default()
    }

    pub fn write(&self, path: &Path) {
        let records = self.records.iter().map(|(offset, id)| Fact::Appended { id: *id, count: 1, end: offset + 1 });
        let putting = self
            .putting
            .iter()
            .flat_map(|(key, all)| all.iter().map(|(version, deletes)| Fact::Putting { key: *key, version: *version, deletes: *deletes }));
        let put = self.put.iter().map(|(key, version)| Fact::Put { key: *key, version: *version });
        let bounds = [Fact::Followed { end: self.end }, Fact::Retiring { below: self.retired }];
        let bytes: Vec<u8> = records.chain(bounds).chain(putting).chain(put).flat_map(Fact::encode).collect();
        std::fs::write(path, bytes).expect("writes the ledger");
    }

    pub fn read(path: &Path) -> Self {
        let mut ledger = Self::default();
        let bytes = std::fs::read(path).expect("reads the ledger");
        bytes.chunks_exact(BYTES).for_each(|fact| ledger.note(Fact::decode(fact)));
        ledger
    }
}
