//! Any storage, with a hook before and after everything that it does: a test pauses there, or kills the process.
//!
//! Invariant: what is done and what comes back are the storage's own.

use super::{File, Identity, Name, Storage};
use std::{io, sync::Arc};

/// What a storage is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Op {
    Create,
    Open,
    Rename,
    Remove,
    SyncNames,
    Read,
    Write,
    SyncData,
    Truncate,
}

impl Op {
    pub const ALL: [Self; 9] =
        [Self::Create, Self::Open, Self::Rename, Self::Remove, Self::SyncNames, Self::Read, Self::Write, Self::SyncData, Self::Truncate];
}

/// Called on the thread that asks, before an operation and after it.
pub type Hook = Arc<dyn Fn(Op) + Send + Sync>;

pub struct ChaosStorage<S> {
    storage: S,
    hook: Hook,
}

pub struct ChaosFile<F> {
    file: F,
    hook: Hook,
}

impl<S: Storage> ChaosStorage<S> {
    pub fn new(storage: S, hook: Hook) -> Self {
        Self { storage, hook }
    }

    fn file(&self, file: S::File) -> ChaosFile<S::File> {
        ChaosFile { file, hook: self.hook.clone() }
    }
}

fn around<T>(hook: &Hook, op: Op, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    hook(op);
    let done = work();
    hook(op);
    done
}

impl<S: Storage> Storage for ChaosStorage<S> {
    type File = ChaosFile<S::File>;

    fn describe(&self) -> String {
        self.storage.describe()
    }

    fn names(&self) -> io::Result<Vec<Name>> {
        self.storage.names()
    }

    fn create(&self, name: Name, bytes: u64) -> io::Result<Self::File> {
        around(&self.hook, Op::Create, || self.storage.create(name, bytes)).map(|file| self.file(file))
    }

    fn open(&self, name: Name) -> io::Result<Self::File> {
        around(&self.hook, Op::Open, || self.storage.open(name)).map(|file| self.file(file))
    }

    fn rename(&self, from: Name, to: Name) -> io::Result<()> {
        around(&self.hook, Op::Rename, || self.storage.rename(from, to))
    }

    fn remove(&self, name: Name) -> io::Result<()> {
        around(&self.hook, Op::Remove, || self.storage.remove(name))
    }

    fn identity(&self, name: Name) -> io::Result<Identity> {
        self.storage.identity(name)
    }

    fn sync_names(&self) -> io::Result<()> {
        around(&self.hook, Op::SyncNames, || self.storage.sync_names())
    }
}

impl<F: File> File for ChaosFile<F> {
    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
        around(&self.hook, Op::Read, || self.file.read_at(into, at))
    }

    fn write_at(&self, parts: &[io::IoSlice<'_>], at: u64) -> io::Result<()> {
        around(&self.hook, Op::Write, || self.file.write_at(parts, at))
    }

    fn sync_data(&self) -> io::Result<()> {
        around(&self.hook, Op::SyncData, || self.file.sync_data())
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.file.drop_cache()
    }

    fn finish(&self) {
        self.file.finish();
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        around(&self.hook, Op::Truncate, || self.file.truncate(bytes))
    }

    fn bytes(&self) -> io::Result<u64> {
        self.file.bytes()
    }

    fn identity(&self) -> io::Result<Identity> {
        self.file.identity()
    }
}
