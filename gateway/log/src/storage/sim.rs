//! A simulated disk that follows a seed.
//!
//! Fault model, in prose. Each file has a live image (what reads see) and a durable image (what a power cut leaves). A write goes to
//! the live image and remembers which 512-byte sectors it touched; `sync_data` copies them to the durable image. A power cut
//! keeps of every file a random subset of the touched sectors, so unsynced writes are lost, torn and reordered; a sector itself is
//! whole (assumption A1). Creations, renames and removals are journaled as ext4 and XFS do: after a cut a random prefix of those
//! since the last `sync_names` holds. A file's length goes with its creation; a truncation is kept or lost like a name.
//! The power is cut at the N-th sync: the sync does a random part of its work and fails, and so does everything after it. Beside that
//! one chosen write or sync may fail once with EIO, having done a random part of its work; what a failed sync did not write is forgotten by the next one,
//! and reads see it until the cache is dropped, as in Linux. A full disk refuses new files.
//! Not modelled: sectors that rot by themselves (tests flip bits by hand), a sync that lies, two processes.

use super::{File, Identity, Name, Storage};
use crate::sync::Mutex;
use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{Hash, Hasher},
    io,
    sync::Arc,
};

const SECTOR: usize = 512;

/// xorshift64*: small, seeded, good enough to choose faults.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Below `n`; 0 if `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.next_u64() >> 11) % n.max(1)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone, Debug, Default)]
struct Inode {
    live: Vec<u8>,
    durable: Vec<u8>,
    dirty: BTreeSet<usize>,
}

impl Inode {
    /// Makes sectors durable: all of them, or each with an even chance.
    fn settle(&mut self, mut keep: impl FnMut() -> bool) {
        for sector in std::mem::take(&mut self.dirty) {
            if !keep() {
                continue;
            }
            let range = sector * SECTOR..((sector + 1) * SECTOR).min(self.live.len());
            if let (Some(from), Some(to)) = (self.live.get(range.clone()), self.durable.get_mut(range)) {
                to.copy_from_slice(from);
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Set(Name, usize),
    Rename(Name, Name),
    Remove(Name),
    Truncate(usize, usize),
}

#[derive(Debug)]
struct Disk {
    rng: Rng,
    inodes: Vec<Inode>,
    names: BTreeMap<Name, usize>,
    durable_names: BTreeMap<Name, usize>,
    changes: Vec<Change>,
    syncs: u64,
    cut_at_sync: Option<u64>,
    ops: u64,
    fail_at_op: Option<u64>,
    no_room: bool,
    fail_removal: bool,
    /// Files, and bytes in them, whose block cannot be read.
    unreadable: Vec<(usize, u64)>,
    off: bool,
}

fn apply(names: &mut BTreeMap<Name, usize>, change: Change) {
    match change {
        Change::Set(name, inode) => {
            names.insert(name, inode);
        }
        Change::Rename(from, to) => {
            if let Some(inode) = names.remove(&from) {
                names.insert(to, inode);
            }
        }
        Change::Remove(name) => {
            names.remove(&name);
        }
        Change::Truncate(..) => {}
    }
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(5)
}

impl Disk {
    /// Applies the first `n` changes of names to the durable image.
    fn settle_names(&mut self, n: usize) {
        for change in self.changes.drain(..n) {
            apply(&mut self.durable_names, change);
            if let Change::Truncate(inode, bytes) = change {
                self.inodes[inode].durable.truncate(bytes);
            }
        }
    }

    fn change(&mut self, change: Change) {
        apply(&mut self.names, change);
        self.changes.push(change);
    }

    fn on(&self) -> io::Result<()> {
        if self.off { Err(eio()) } else { Ok(()) }
    }

    /// Counts an operation that can fail; true: this one must, after a part of its work.
    fn fails(&mut self, sync: bool) -> io::Result<bool> {
        self.on()?;
        self.ops += 1;
        self.syncs += u64::from(sync);
        if sync && self.cut_at_sync == Some(self.syncs) {
            self.off = true;
        }
        Ok(self.off || self.fail_at_op == Some(self.ops))
    }
}

/// One simulated directory. Clones see the same disk.
#[derive(Clone, Debug)]
pub struct SimStorage(Arc<Mutex<Disk>>);

pub struct SimFile {
    disk: Arc<Mutex<Disk>>,
    inode: usize,
}

impl SimStorage {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Disk {
            rng: Rng::new(seed),
            inodes: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            changes: Vec::new(),
            syncs: 0,
            cut_at_sync: None,
            ops: 0,
            fail_at_op: None,
            no_room: false,
            fail_removal: false,
            unreadable: Vec::new(),
            off: false,
        })))
    }

    /// The power goes at the `n`-th sync from now on.
    pub fn cut_at_sync(&self, n: u64) {
        let mut disk = self.0.lock();
        disk.cut_at_sync = Some(disk.syncs + n);
    }

    /// The `n`-th write or sync from now on fails once with EIO.
    pub fn fail_at_op(&self, n: u64) {
        let mut disk = self.0.lock();
        disk.fail_at_op = Some(disk.ops + n);
    }

    /// No file can be created (ENOSPC) until there is room again.
    pub fn no_room(&self, full: bool) {
        self.0.lock().no_room = full;
    }

    /// The next removal fails once with EIO and does nothing.
    pub fn fail_removal(&self) {
        self.0.lock().fail_removal = true;
    }

    /// Cuts the power now if it is still on, then turns it on again: the live image becomes what the cut left.
    pub fn restart(&self) {
        let disk = &mut *self.0.lock();
        let kept = disk.rng.below(disk.changes.len() as u64 + 1) as usize;
        disk.settle_names(kept);
        disk.changes.clear();
        let rng = &mut disk.rng;
        for inode in &mut disk.inodes {
            inode.settle(|| rng.chance(50));
            inode.live.clone_from(&inode.durable);
        }
        disk.names = disk.durable_names.clone();
        (disk.off, disk.cut_at_sync, disk.fail_at_op) = (false, None, None);
    }

    /// A number that stands for everything on the disk.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let disk = self.0.lock();
        let mut hasher = std::hash::DefaultHasher::new();
        for (name, inode) in &disk.names {
            (name, disk.inodes.get(*inode).map(|i| (&i.live, &i.durable))).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Changes one byte on the disk, as rot would.
    pub fn damage(&self, name: Name, at: usize) {
        let disk = &mut *self.0.lock();
        let Some(inode) = disk.names.get(&name).and_then(|i| disk.inodes.get_mut(*i)) else { return };
        for image in [&mut inode.live, &mut inode.durable] {
            if let Some(byte) = image.get_mut(at) {
                *byte ^= 0x10;
            }
        }
    }

    /// Overwrites bytes of a file on the disk.
    pub fn scribble(&self, name: Name, at: usize, bytes: &[u8]) {
        let disk = &mut *self.0.lock();
        let Some(inode) = disk.names.get(&name).and_then(|i| disk.inodes.get_mut(*i)) else { return };
        for image in [&mut inode.live, &mut inode.durable] {
            for (to, from) in image.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
        }
    }

    /// The block at this byte cannot be read any more (EIO), until it is written.
    pub fn rot_away(&self, name: Name, at: u64) {
        let disk = &mut *self.0.lock();
        let inode = disk.names.get(&name).copied();
        disk.unreadable.extend(inode.map(|inode| (inode, at - at % 4_096)));
    }

    /// Cuts a file short, as somebody might.
    pub fn cut(&self, name: Name, bytes: usize) {
        let disk = &mut *self.0.lock();
        let Some(inode) = disk.names.get(&name).and_then(|i| disk.inodes.get_mut(*i)) else { return };
        inode.live.truncate(bytes);
        inode.durable.truncate(bytes);
    }

    fn handle(&self, inode: usize) -> SimFile {
        SimFile { disk: self.0.clone(), inode }
    }
}

impl Storage for SimStorage {
    type File = SimFile;

    fn describe(&self) -> String {
        "sim".into()
    }

    fn names(&self) -> io::Result<Vec<Name>> {
        let disk = self.0.lock();
        disk.on()?;
        Ok(disk.names.keys().copied().collect())
    }

    fn create(&self, name: Name, bytes: u64) -> io::Result<SimFile> {
        let mut disk = self.0.lock();
        disk.on()?;
        if disk.no_room {
            return Err(io::Error::from_raw_os_error(28));
        }
        let zeros = vec![0; bytes as usize];
        disk.inodes.push(Inode { live: zeros.clone(), durable: zeros, dirty: BTreeSet::new() });
        let inode = disk.inodes.len() - 1;
        disk.change(Change::Set(name, inode));
        Ok(self.handle(inode))
    }

    fn open(&self, name: Name) -> io::Result<SimFile> {
        let disk = self.0.lock();
        disk.on()?;
        disk.names.get(&name).map(|i| self.handle(*i)).ok_or(io::ErrorKind::NotFound.into())
    }

    fn rename(&self, from: Name, to: Name) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.on()?;
        disk.names.get(&from).ok_or(io::ErrorKind::NotFound)?;
        disk.change(Change::Rename(from, to));
        Ok(())
    }

    fn remove(&self, name: Name) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.on()?;
        disk.names.get(&name).ok_or(io::ErrorKind::NotFound)?;
        if std::mem::take(&mut disk.fail_removal) {
            return Err(eio());
        }
        disk.change(Change::Remove(name));
        Ok(())
    }

    fn identity(&self, name: Name) -> io::Result<Identity> {
        let disk = self.0.lock();
        disk.on()?;
        let inode = *disk.names.get(&name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Identity { device: 0, inode: inode as u64 })
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut disk = self.0.lock();
        let all = disk.changes.len();
        if disk.fails(true)? {
            let part = disk.rng.below(all as u64 + 1) as usize;
            disk.settle_names(part);
            return Err(eio());
        }
        disk.settle_names(all);
        Ok(())
    }
}

impl File for SimFile {
    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
        let disk = self.disk.lock();
        disk.on()?;
        let bytes = disk.inodes[self.inode].live.get(at as usize..).unwrap_or(&[]);
        let n = into.len().min(bytes.len());
        let rotten = disk.unreadable.iter().any(|(inode, block)| *inode == self.inode && *block < at + n as u64 && *block + 4_096 > at);
        if rotten {
            return Err(eio());
        }
        into[..n].copy_from_slice(&bytes[..n]);
        Ok(n)
    }

    fn write_at(&self, parts: &[io::IoSlice<'_>], at: u64) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let fails = disk.fails(false)?;
        let all: Vec<u8> = parts.iter().flat_map(|p| p.iter().copied()).collect();
        let n = if fails { disk.rng.below(all.len() as u64 + 1) as usize } else { all.len() };
        let at = at as usize;
        disk.unreadable.retain(|(inode, block)| *inode != self.inode || *block + 4_096 <= at as u64 || *block >= (at + n) as u64);
        let inode = &mut disk.inodes[self.inode];
        if inode.live.len() < at + n {
            inode.live.resize(at + n, 0);
            inode.durable.resize(at + n, 0);
        }
        inode.live[at..at + n].copy_from_slice(&all[..n]);
        inode.dirty.extend(at / SECTOR..(at + n).div_ceil(SECTOR));
        if fails { Err(eio()) } else { Ok(()) }
    }

    fn sync_data(&self) -> io::Result<()> {
        let disk = &mut *self.disk.lock();
        let fails = disk.fails(true)?;
        let (rng, inode) = (&mut disk.rng, &mut disk.inodes[self.inode]);
        inode.settle(|| !fails || rng.chance(50));
        if fails { Err(eio()) } else { Ok(()) }
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.sync_data()?;
        let disk = &mut *self.disk.lock();
        let inode = &mut disk.inodes[self.inode];
        for (live, durable) in inode.live.iter_mut().zip(&inode.durable) {
            *live = *durable;
        }
        Ok(())
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        let mut disk = self.disk.lock();
        disk.on()?;
        disk.inodes[self.inode].live.truncate(bytes as usize);
        disk.change(Change::Truncate(self.inode, bytes as usize));
        Ok(())
    }

    fn bytes(&self) -> io::Result<u64> {
        let disk = self.disk.lock();
        disk.on()?;
        Ok(disk.inodes[self.inode].live.len() as u64)
    }

    fn identity(&self) -> io::Result<Identity> {
        Ok(Identity { device: 0, inode: self.inode as u64 })
    }
}
