//! Who has a data directory: one process, by a lock on a file in it that names its pid.
//!
//! Invariant: nothing in the directory has changed when it is refused.
//! Must not know: what is in the log.

use crate::OpenError;
use std::{
    fs,
    io::{Read, Seek, Write},
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::Path,
};

/// What was published is for the gateway's own user alone.
const DIRECTORY_MODE: u32 = 0o700;
pub(crate) const FILE_MODE: u32 = 0o600;

pub(crate) fn create_directory(path: &Path) -> std::io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)
}

/// Takes the directory for this process, or says who has it and what else is wrong with it.
pub(crate) fn claim(directory: &Path) -> Result<fs::File, OpenError> {
    let io = |what: &str| OpenError::io(format!("{what} data directory {}", directory.display()));
    create_directory(directory).map_err(io("creating"))?;
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(io("reading"))? {
        found.push(entry.map_err(io("reading"))?.file_name().to_string_lossy().into_owned());
    }
    // What others have left in a data directory, an editor or a file system, is theirs. A log begins where there is nothing but
    // what every volume has.
    let is_ours = found.iter().any(|f| ["lock", "state", "streams"].contains(&f.as_str()));
    let foreign = found.iter().find(|f| *f != "lost+found" && !f.starts_with('.'));
    if let Some(foreign) = foreign.filter(|_| !is_ours) {
        return Err(OpenError::Foreign { directory: directory.into(), found: foreign.clone() });
    }
    let path = directory.join("lock");
    let mut file = fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(FILE_MODE)
        // It is emptied and written: never what somebody else has linked here.
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
        .open(&path)
        .map_err(OpenError::io(format!("opening {}", path.display())))?;
    if rustix::fs::flock(file.as_fd(), rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut pid = String::new();
        let read = file.read_to_string(&mut pid);
        let pid = read.ok().and_then(|_| pid.trim().parse().ok());
        return Err(OpenError::Locked { directory: directory.into(), pid });
    }
    let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(OpenError::io(format!("writing {}", path.display())))?;
    Ok(file)
}
