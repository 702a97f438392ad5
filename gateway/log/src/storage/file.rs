//! Real files in a real directory.
//!
//! Whole blocks go to the device past the page cache, where the file system has that: what is written is in the ring while somebody wants it soon, and a page of the cache
//! for every block costs more than the write (`docs/performance.md`). Reads go through the cache; so does everything where nobody waits for the device.
//!
//! Invariant: an error of the operating system is passed on as it is, never retried.

use super::{File, Identity, Name, Storage};
use crate::sync::Mutex;
use crate::{
    Durability,
    claim::{FILE_MODE, create_directory},
    segment::BLOCK,
};
use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

/// Blocks that are copied and written at once: one device write.
const DIRECT_BYTES: usize = 1 << 20;

pub struct FileStorage {
    directory: PathBuf,
    /// Held open: its names are synced without another descriptor.
    names: fs::File,
    durability: Durability,
}

impl FileStorage {
    /// Creates the directory if it is missing; its own name is durable when this returns.
    pub fn new(directory: &Path, durability: Durability) -> io::Result<Self> {
        create_directory(directory)?;
        for parent in directory.ancestors().skip(1).take(4).filter(|p| !p.as_os_str().is_empty()) {
            fs::File::open(parent)?.sync_all()?;
        }
        Ok(Self { directory: directory.to_owned(), names: fs::File::open(directory)?, durability })
    }

    fn path(&self, name: Name) -> PathBuf {
        self.directory.join(name.to_string())
    }
}

impl Storage for FileStorage {
    type File = DiskFile;

    fn describe(&self) -> String {
        self.directory.display().to_string()
    }

    fn names(&self) -> io::Result<Vec<Name>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            names.extend(entry?.file_name().to_str().and_then(Name::parse));
        }
        Ok(names)
    }

    fn create(&self, name: Name, bytes: u64) -> io::Result<DiskFile> {
        let file = fs::File::options().read(true).write(true).create(true).truncate(true).mode(FILE_MODE).open(self.path(name))?;
        // The blocks are taken now, so that a full disk shows here and never in the write of a batch.
        match rustix::fs::fallocate(file.as_fd(), rustix::fs::FallocateFlags::empty(), 0, bytes) {
            // NFS before 4.2, ext3, and others that cannot.
            Err(rustix::io::Errno::OPNOTSUPP) => write_zeros(&file, bytes)?,
            taken => taken?,
        }
        Ok(DiskFile::new(file, self.durability))
    }

    fn open(&self, name: Name) -> io::Result<DiskFile> {
        fs::File::options().read(true).write(true).open(self.path(name)).map(|file| DiskFile::new(file, self.durability))
    }

    fn rename(&self, from: Name, to: Name) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: Name) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        self.names.sync_all()
    }

    fn identity(&self, name: Name) -> io::Result<Identity> {
        fs::symlink_metadata(self.path(name)).map(|m| identity(&m))
    }
}

/// Takes blocks on a file system that can only be written to.
fn write_zeros(file: &fs::File, bytes: u64) -> io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let mut at = 0;
    while at < bytes {
        let piece = &zeros[..zeros.len().min((bytes - at) as usize)];
        file.write_all_at(piece, at)?;
        at += piece.len() as u64;
    }
    Ok(())
}

pub struct DiskFile {
    file: fs::File,
    direct: Mutex<Direct>,
}

/// The way past the page cache.
#[derive(Default)]
struct Direct {
    way: Way,
    /// What is written, at a multiple of the block in memory too; `DIRECT_BYTES` and a block at most.
    blocks: Vec<u8>,
}

#[derive(Default)]
enum Way {
    #[default]
    Untried,
    Open(fs::File),
    /// The file system has none, or it is not wanted.
    None,
}

impl DiskFile {
    fn new(file: fs::File, durability: Durability) -> Self {
        let way = if durability == Durability::Os { Way::None } else { Way::Untried };
        Self { file, direct: Mutex::new(Direct { way, blocks: Vec::new() }) }
    }

    fn write_cached(&self, parts: &[io::IoSlice<'_>], at: u64) -> io::Result<()> {
        let mut done = rustix::io::pwritev(self.file.as_fd(), parts, at)?;
        // A short write is rare (a signal, a limit of 2 GiB): the rest follows part by part.
        let mut start = 0;
        for part in parts {
            let end = start + part.len();
            if done < end {
                let from = done - start;
                self.file.write_all_at(&part[from..], at + done as u64)?;
                done = end;
            }
            start = end;
        }
        Ok(())
    }
}

impl Direct {
    /// False: there is no such way, and nothing was written.
    fn write(&mut self, file: &fs::File, parts: &[io::IoSlice<'_>], at: u64) -> io::Result<bool> {
        let first = matches!(self.way, Way::Untried);
        if first {
            self.way = open_direct(file);
        }
        let Way::Open(direct) = &self.way else { return Ok(false) };
        if !first
            && let [part] = parts
            && part.as_ptr().align_offset(BLOCK as usize) == 0
        {
            return direct.write_all_at(part, at).map(|()| true);
        }
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let blocks = aligned(&mut self.blocks, bytes.min(DIRECT_BYTES));
        let mut rest = parts.iter().map(|part| &part[..]);
        let (mut part, mut done) = (rest.next().unwrap_or_default(), 0);
        loop {
            let mut filled = 0;
            while filled < blocks.len() {
                if part.is_empty() {
                    let Some(next) = rest.next() else { break };
                    part = next;
                    continue;
                }
                let n = part.len().min(blocks.len() - filled);
                blocks[filled..filled + n].copy_from_slice(&part[..n]);
                (part, filled) = (&part[n..], filled + n);
            }
            if filled == 0 {
                return Ok(true);
            }
            match direct.write_all_at(&blocks[..filled], at + done) {
                // It was opened, and is not meant all the same.
                Err(e) if first && done == 0 && e.kind() == io::ErrorKind::InvalidInput => {
                    self.way = Way::None;
                    return Ok(false);
                }
                written => written?,
            }
            done += filled as u64;
        }
    }
}

fn identity(metadata: &fs::Metadata) -> Identity {
    Identity { device: metadata.dev(), inode: metadata.ino() }
}

fn open_direct(file: &fs::File) -> Way {
    // By its descriptor: its name may have changed.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let direct = fs::File::options().write(true).custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32).open(path);
    direct.map_or(Way::None, Way::Open)
}

/// So many bytes of `room` that begin at a multiple of the block: such are written without another copy.
pub(crate) fn aligned(room: &mut Vec<u8>, bytes: usize) -> &mut [u8] {
    let block = BLOCK as usize;
    if room.len() < bytes + block {
        room.resize(bytes + block, 0);
    }
    let from = room.as_ptr().align_offset(block).min(block);
    &mut room[from..from + bytes]
}

impl File for DiskFile {
    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < into.len() {
            match self.file.read_at(&mut into[done..], at + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn write_at(&self, parts: &[io::IoSlice<'_>], at: u64) -> io::Result<()> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let whole = at.is_multiple_of(BLOCK) && (bytes as u64).is_multiple_of(BLOCK);
        if whole && self.direct.lock().write(&self.file, parts, at)? { Ok(()) } else { self.write_cached(parts, at) }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn drop_cache(&self) -> io::Result<()> {
        // Only clean pages are dropped.
        self.file.sync_data()?;
        Ok(rustix::fs::fadvise(self.file.as_fd(), 0, None, rustix::fs::Advice::DontNeed)?)
    }

    fn finish(&self) {
        *self.direct.lock() = Direct::default();
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn identity(&self) -> io::Result<Identity> {
        self.file.metadata().map(|m| identity(&m))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_take_the_blocks_of_a_file() {
        let file = tempfile::tempfile().expect("a file");
        let bytes = (2 << 20) + 5;
        write_zeros(&file, bytes).expect("written");
        let found = file.metadata().expect("a file");
        assert_eq!((found.len(), found.blocks() * 512 >= bytes), (bytes, true));
    }
}
