//! A state store that cannot be opened, written anew from what of it can be read.
//!
//! Invariant: the old files stay, under another name; the new ones take their place in one step. A store that can be opened is not changed.

use crate::{
    AppendError, Durability, Kind, Limits, Offset, OpenError, Put, Receipt,
    appender::{Appender, Opening},
    claim::create_directory,
    engine::{self, STATE},
    offline::{Found, Offline, Source, behind},
    pending::Pending,
    state::{Directory, tag},
    storage::FileStorage,
};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// What is put at once.
const PUT_BYTES: usize = 256 * 1024;
/// Where the new store is written, below the data directory.
const NEW: &str = "state.new";

/// What was done.
#[derive(Debug)]
pub struct Repaired {
    /// What cannot be read, with file and byte.
    pub lost: Vec<String>,
    /// Values that were kept.
    pub values: usize,
    /// Where the old files are; `None`: nothing was to be repaired.
    pub aside: Option<PathBuf>,
}

type Values = BTreeMap<Vec<u8>, (u32, Vec<u8>)>;

/// Repairs the state store of a data directory that no gateway runs on. `derived`: keys that say how far others hold what the log says; they go when something is lost, so that the next start
/// reads it from the log again.
///
/// # Errors
/// The directory is in use, or holds no log; the new files cannot be written. Nothing has changed then.
pub fn repair(directory: &Path, derived: &dyn Fn(&[u8]) -> bool) -> Result<Repaired, OpenError> {
    let log = Offline::open(directory)?;
    let state = directory.join("state");
    let (stores, streams): (Vec<_>, Vec<_>) = log.sources.iter().partition(|s| s.name == "state");
    let (mut values, mut lost) = stores.first().map_or_else(|| Ok(Default::default()), |source| read(source))?;
    lost.extend(log.unknown.iter().map(|stream| format!("the state store does not know the stream {stream}, which has records")));
    if lost.is_empty() {
        return Ok(Repaired { lost, values: values.len(), aside: None });
    }
    let kept = values.len();
    values.retain(|key, _| !derived(key));
    // The goodbye of the last run may be older than what is lost.
    values.remove(engine::CLEAN);
    // The new store begins at its first record.
    values.remove(&engine::start_key(STATE)[..]);
    name_streams(&streams, &mut values);
    let new = directory.join(NEW);
    write(&new, &values)?;
    like(directory, &new)?;
    if !state.is_dir() {
        create_directory(&state).map_err(OpenError::io(format!("creating {}", state.display())))?;
    }
    let aside = put_in_place(&state, &new)?;
    Ok(Repaired { lost, values: kept, aside: Some(aside) })
}

/// Who repairs is often another user than who runs the gateway: the new files belong to whom the data directory does, and are as private as it is.
fn like(directory: &Path, new: &Path) -> Result<(), OpenError> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let io = |what: &str| OpenError::io(format!("{what} {}", new.display()));
    let of = fs::metadata(directory).map_err(io("looking for the owner of"))?;
    let files: io::Result<Vec<_>> = fs::read_dir(new).map_err(io("listing"))?.map(|entry| entry.map(|e| e.path())).collect();
    for path in files.map_err(io("listing"))?.into_iter().chain([new.to_owned()]) {
        let mode = if path.is_dir() { of.mode() & 0o777 } else { of.mode() & 0o666 };
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(io("giving permissions to"))?;
        let now = fs::metadata(&path).map_err(io("looking at"))?;
        if (now.uid(), now.gid()) != (of.uid(), of.gid()) {
            std::os::unix::fs::chown(&path, Some(of.uid()), Some(of.gid())).map_err(io("giving an owner to"))?;
        }
    }
    Ok(())
}

/// The newest value of each key that can be read, and what cannot.
fn read(source: &Source) -> Result<(Values, Vec<String>), OpenError> {
    let (mut values, mut lost) = (Values::new(), Vec::new());
    // A damaged header alone loses nothing: the next start makes it again.
    let mut damaged_head = None;
    source.read(&mut |found| {
        match found {
            Found::Batch(batch) => batch.iter().for_each(|r| match r.kind {
                Kind::Tombstone => drop(values.remove(r.key)),
                _ => drop(values.insert(r.key.to_vec(), (tag(r.meta), r.value.to_vec()))),
            }),
            Found::Head { name, why } => damaged_head = Some(format!("{name}: {why}")),
            Found::Missing { name } => lost.push(format!("{name} is missing")),
            Found::Damage(damage) => lost.extend(damaged_head.take().into_iter().chain([damage.to_string()])),
            Found::Behind { name, at, from } => lost.extend(damaged_head.take().into_iter().chain([behind(&name, at, from)])),
            Found::File { .. } => damaged_head = None,
            Found::Torn { .. } => {}
        }
        true
    })?;
    Ok((values, lost))
}

/// A stream whose name is lost would get other partitions: its own are what its files say.
fn name_streams(streams: &[&Source], values: &mut Values) {
    let mut found: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
    for source in streams {
        let Some((name, number)) = source.name.split_once('/') else { continue };
        let (Ok(number), Some(partition)) = (number.parse::<u32>(), source.partition()) else { continue };
        let known = found.entry(name).or_insert((partition.0.saturating_sub(number), 0));
        known.1 = known.1.max(number + 1);
        if let Some(first) = source.first().filter(|first| first.0 > 0) {
            // What lies before it retention has taken, as far as anybody knows.
            values.entry(engine::start_key(partition)).or_insert_with(|| (0, first.0.to_le_bytes().to_vec()));
        }
    }
    for (name, (first, count)) in found {
        values.entry(engine::stream_key(name)).or_insert_with(|| (0, engine::stream_value(first, count)));
    }
}

fn write(new: &Path, values: &Values) -> Result<(), OpenError> {
    let io = |what: &str| OpenError::io(format!("{what} {}", new.display()));
    if new.exists() {
        // Of a repair that was broken off.
        fs::remove_dir_all(new).map_err(io("removing"))?;
    }
    let storage = Arc::new(FileStorage::new(new, Durability::Disk).map_err(io("creating"))?);
    let mut appender = Appender::open(storage, &opening())?;
    let mut directory = Directory::default();
    let (mut puts, mut bytes) = (Vec::new(), 0);
    for (key, (tag, value)) in values {
        if bytes + key.len() + value.len() > PUT_BYTES {
            commit(&mut appender, &mut directory, &std::mem::take(&mut puts))?;
            bytes = 0;
        }
        bytes += key.len() + value.len();
        puts.push(Put { key, tag: *tag, value: Some(value) });
    }
    commit(&mut appender, &mut directory, &puts)
}

fn commit(appender: &mut Appender<FileStorage>, directory: &mut Directory, puts: &[Put<'_>]) -> Result<(), OpenError> {
    if puts.is_empty() {
        return Ok(());
    }
    let mut pending = Pending::default();
    let put = directory.put(puts, |records| {
        pending.push(records);
        Ok(Receipt(0))
    });
    put.map_err(|e: AppendError| OpenError::Io { what: "writing the state store anew".into(), error: io::Error::other(e.to_string()) })?;
    appender.commit(pending, engine::now_ms())?;
    Ok(())
}

fn opening() -> Opening {
    Opening {
        partition: STATE,
        limits: Limits::default(),
        clean: false,
        named: Offset(0),
        start: Offset(0),
        begun: false,
        gaps_allowed: false,
        durability: Durability::Disk,
        unsynced: false,
        now_ms: engine::now_ms(),
        random: engine::random,
    }
}

/// Puts the new files in the place of the old ones, in one step: at any moment there is a store, and the old files have a name that no later repair takes. Gives that name.
fn put_in_place(state: &Path, new: &Path) -> Result<PathBuf, OpenError> {
    let io = |what: &str| OpenError::io(format!("{what} {}", state.display()));
    let names = (1..).map(|n| state.with_file_name(format!("state.damaged-{n}")));
    let aside = names.into_iter().find(|path| !path.exists()).unwrap_or_default();
    fs::rename(new, &aside).map_err(io("renaming the new files of"))?;
    let cwd = rustix::fs::CWD;
    let exchanged = rustix::fs::renameat_with(cwd, &aside, cwd, state, rustix::fs::RenameFlags::EXCHANGE);
    exchanged.map_err(|e| io("exchanging the new files with those in")(e.into()))?;
    let parent = state.parent().unwrap_or(Path::new("."));
    fs::File::open(parent).and_then(|d| d.sync_all()).map_err(io("syncing the directory of"))?;
    Ok(aside)
}
