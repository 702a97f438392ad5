//! Real files in a real directory.
//!
//! Invariant: an error of the operating system is passed on as it is, never retried.

use super::{File, Name, Storage};
use std::{
    fs, io,
    os::{fd::AsFd, unix::fs::FileExt},
    path::{Path, PathBuf},
};

pub struct FileStorage {
    directory: PathBuf,
}

impl FileStorage {
    /// Creates the directory if it is missing; its own name is durable when this returns.
    pub fn new(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        for parent in directory.ancestors().skip(1).take(4).filter(|p| !p.as_os_str().is_empty()) {
            fs::File::open(parent)?.sync_all()?;
        }
        Ok(Self { directory: directory.to_owned() })
    }

    fn path(&self, name: Name) -> PathBuf {
        self.directory.join(name.to_string())
    }
}

impl Storage for FileStorage {
    type File = fs::File;

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

    fn create(&self, name: Name, bytes: u64) -> io::Result<fs::File> {
        let file = fs::File::options().read(true).write(true).create(true).truncate(true).open(self.path(name))?;
        // The blocks are taken now, so that a full disk shows here and never in the write of a batch.
        rustix::fs::fallocate(file.as_fd(), rustix::fs::FallocateFlags::empty(), 0, bytes)?;
        Ok(file)
    }

    fn open(&self, name: Name) -> io::Result<fs::File> {
        fs::File::options().read(true).write(true).open(self.path(name))
    }

    fn rename(&self, from: Name, to: Name) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: Name) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        fs::File::open(&self.directory)?.sync_all()
    }
}

impl File for fs::File {
    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < into.len() {
            match FileExt::read_at(self, &mut into[done..], at + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn write_at(&self, parts: &[io::IoSlice<'_>], at: u64) -> io::Result<()> {
        let total: usize = parts.iter().map(|p| p.len()).sum();
        let mut done = rustix::io::pwritev(self.as_fd(), parts, at)?;
        // A short write is rare (a signal, a limit of 2 GiB): the rest follows part by part.
        let mut start = 0;
        for part in parts {
            let end = start + part.len();
            if done < end {
                let from = done - start;
                self.write_all_at(&part[from..], at + done as u64)?;
                done = end;
            }
            start = end;
        }
        debug_assert_eq!(done, total);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        fs::File::sync_data(self)
    }

    fn drop_cache(&self) -> io::Result<()> {
        // Only clean pages are dropped.
        fs::File::sync_data(self)?;
        Ok(rustix::fs::fadvise(self.as_fd(), 0, None, rustix::fs::Advice::DontNeed)?)
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }
}
