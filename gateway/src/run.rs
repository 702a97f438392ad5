//! `weir run`: from nothing to ready, and back.
//!
//! Invariant: nothing is accepted before the log is recovered and folded; on SIGTERM what was accepted is finished before the log stops.
//! Must not know: what a connection does.

use crate::{
    boot::Boots,
    checkpoint::{self, Keeper, Retention},
    driver::Driver,
    fold::{Base, fold},
    gateway::{Gateway, Parts, wall_ms},
    group::{self, Groups},
    http,
    offline::{self, Offline},
    tail::{Bell, Tail},
    tcp, vital,
};
use std::{
    collections::{HashMap, HashSet},
    fmt, io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpListener, sync::mpsc::unbounded_channel};
use weir_bridge::feed::Feed;
use weir_core::{group::Group, ids::PartitionId, session::Session};
use weir_log::{Engine, FileEngine, Limits, Nobody, OpenError, Put, ReadError, Wake, Watermark};

#[derive(Clone, Debug)]
pub struct Options {
    pub mqtt: SocketAddr,
    pub http: SocketAddr,
    pub admin: SocketAddr,
    pub data: PathBuf,
    pub retention: Retention,
    /// Listen on public addresses without knowing who comes.
    pub allow_anonymous: bool,
}

/// Why it does not start, in words that say what to do.
#[derive(Debug)]
pub enum RunError {
    Public { flag: &'static str, address: SocketAddr },
    Listen { flag: &'static str, address: SocketAddr, error: io::Error },
    Open(OpenError),
    Read(ReadError),
    Value(String),
    Io(&'static str, io::Error),
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Public { flag, address } => write!(
                f,
                "{flag} {address} can be reached from elsewhere, and anybody would be admitted: listen on 127.0.0.1 or [::1], or say --allow-anonymous"
            ),
            Self::Listen { flag, address, error } if error.kind() == io::ErrorKind::AddrInUse => {
                write!(f, "{flag} {address}: the port is in use by another process; stop it, or choose another with {flag}")
            }
            Self::Listen { flag, address, error } => write!(f, "{flag} {address}: {error}"),
            Self::Open(e) => e.fmt(f),
            Self::Read(e) => write!(f, "reading the log at the start: {e}"),
            Self::Value(e) => write!(f, "the state store: {e}"),
            Self::Io(what, e) => write!(f, "{what}: {e}"),
        }
    }
}

impl std::error::Error for RunError {}

/// One descriptor per connection: the default limit of 1,024 would be the limit of clients.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let known = getrlimit(Resource::Nofile);
    if let Err(e) = setrlimit(Resource::Nofile, Rlimit { current: known.maximum, maximum: known.maximum }) {
        tracing::warn!("raising the limit of open files: {e}; it stays at {:?}", known.current);
    }
}

/// Runs until SIGTERM or SIGINT.
pub fn run(options: &Options) -> Result<(), RunError> {
    raise_descriptors();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| RunError::Io("starting threads", e))?;
    let result = runtime.block_on(main(options));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn listen(options: &Options, flag: &'static str, address: SocketAddr) -> Result<TcpListener, RunError> {
    if !address.ip().is_loopback() && !options.allow_anonymous {
        return Err(RunError::Public { flag, address });
    }
    tcp::listen(address).map_err(|error| RunError::Listen { flag, address, error })
}

async fn main(options: &Options) -> Result<(), RunError> {
    let mqtt = listen(options, "--mqtt", options.mqtt)?;
    let http = listen(options, "--http", options.http)?;
    let admin = listen(options, "--admin", options.admin)?;
    let mut stop = Stop::new().map_err(|e| RunError::Io("catching signals", e))?;

    let (engine, mut found) = tokio::task::block_in_place(|| open(options))?;
    let engine: Arc<dyn Engine> = Arc::new(engine);
    let retained = tokio::task::block_in_place(|| fold(&*engine, std::mem::take(&mut found.bases)))?;
    let boot = found.boots.current();
    let mut boots = std::mem::take(&mut found.boots);
    let (key, value) = boots.begin(boot, wall_ms());
    tokio::task::block_in_place(|| put_durably(&*engine, key.as_bytes(), &value));

    let mut tails = Vec::new();
    for (nth, p) in engine.partitions().iter().enumerate() {
        let bell = Arc::new(Bell::default());
        let (tx, rx) = unbounded_channel();
        let following = engine.follow(p.id, bell.clone());
        vital::spawn("a tail", Tail::new(PartitionId(p.id.0), nth, following, bell, rx, retained[nth].clone()).run());
        tails.push(tx);
    }
    let feed = Feed::start(engine.clone());
    let (offline, due) = Offline::new();
    std::mem::take(&mut found.due).into_iter().for_each(|(at, client_id)| offline.look(at, &client_id));
    let gateway = Arc::new(Gateway::new(Parts { engine: engine.clone(), tails, retained, offline, boots, boot }));
    Groups::restore(&gateway, found.take_groups());
    let looking = gateway.clone();
    vital::spawn(
        "the clock of offline sessions",
        offline::run(due, wall_ms, async move |client_id: Box<str>| {
            if let Some(driver) = Driver::offline(looking.clone(), &client_id) {
                // A task of its own: if it panics, the others still have their turn.
                let _ = tokio::spawn(tcp::outlive(driver)).await;
            }
        }),
    );
    vital::spawn("the MQTT listener", tcp::accept(mqtt, gateway.clone()));
    let public = http::public(gateway.clone(), feed);
    vital::spawn("the HTTP listener", async move { axum::serve(http, public).await });
    let admin_routes = http::admin(gateway.clone());
    vital::spawn("the admin listener", async move { axum::serve(admin, admin_routes).await });
    let keeper = Keeper::start(gateway.clone(), options.retention);
    println!("weir ready");

    stop.wait().await;
    tracing::info!("stopping: connections are closed, the log is finished");
    gateway.drain();
    let end = tokio::time::Instant::now() + Duration::from_secs(10);
    while !gateway.peers.is_empty() && tokio::time::Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    keeper.stop().await;
    let stopping = engine.clone();
    let stopped = tokio::task::spawn_blocking(move || stopping.stop()).await;
    tracing::info!(totals = ?gateway.totals, left = gateway.peers.len(), "stopped");
    stopped.map_err(|e| RunError::Io("stopping the log", io::Error::other(e)))
}

/// SIGTERM or SIGINT.
struct Stop(tokio::signal::unix::Signal, tokio::signal::unix::Signal);

impl Stop {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self(signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }
}

/// What the state store held.
#[derive(Default)]
struct Found {
    boots: Boots,
    due: Vec<(u64, Box<str>)>,
    /// Where the last checkpoint left each partition.
    bases: HashMap<PartitionId, Base>,
    groups: HashMap<Box<str>, Group>,
    /// Which sessions subscribe to which group.
    subscribers: HashMap<Box<str>, HashSet<u64>>,
}

impl Found {
    /// Groups with their subscribers; one without ends at once.
    fn take_groups(&mut self) -> HashMap<Box<str>, (Group, HashSet<u64>)> {
        let (mut groups, mut subscribers) = (std::mem::take(&mut self.groups), std::mem::take(&mut self.subscribers));
        let names: HashSet<Box<str>> = groups.keys().chain(subscribers.keys()).cloned().collect();
        let both = |name: Box<str>| {
            let both = (groups.remove(&name).unwrap_or_default(), subscribers.remove(&name).unwrap_or_default());
            (name, both)
        };
        names.into_iter().map(both).collect()
    }
}

fn open(options: &Options) -> Result<(FileEngine, Found), RunError> {
    let o = weir_log::Options { directory: options.data.clone(), limits: Limits::default(), streams: vec![("default".into(), 1)] };
    let (mut found, mut bad) = (Found::default(), None);
    let mut each = |key: &[u8], tag: u32, value: &[u8]| match session(key, value) {
        None => match read_group(key, value) {
            None => match checkpoint::read(key, value, &mut found.bases) {
                Some(Ok(named)) => places(vec![named]),
                Some(Err(e)) => {
                    bad = Some(e);
                    Vec::new()
                }
                None => {
                    found.boots.read(key, value);
                    Vec::new()
                }
            },
            Some(Ok((name, group))) => {
                let named = places(group.named());
                found.groups.insert(name, group);
                named
            }
            Some(Err(e)) => {
                bad = Some(e);
                Vec::new()
            }
        },
        Some(Ok(s)) => {
            group::subscribed(s.shared_filters(), s.sid(), &mut found.subscribers);
            // Connected when the process ended: at once. Else when the tag says, if it ever ends.
            let at = if s.was_connected() { Some(0) } else { (tag != 0).then(|| u64::from(tag) * 1_000) };
            found.due.extend(at.map(|at| (at, s.client_id().into())));
            places(s.named())
        }
        Some(Err(e)) => {
            bad = Some(e);
            Vec::new()
        }
    };
    let engine = FileEngine::open(&o, &mut each).map_err(RunError::Open)?;
    if let Some(bad) = bad {
        return Err(RunError::Value(bad));
    }
    if engine.torn_bytes() > 0 {
        tracing::warn!(bytes = engine.torn_bytes(), "cut a torn tail: a batch that was begun and never acknowledged");
    }
    Ok((engine, found))
}

fn places(named: Vec<(PartitionId, weir_core::ids::Offset)>) -> Vec<(weir_log::PartitionId, weir_log::Offset)> {
    named.into_iter().map(|(p, at)| (weir_log::PartitionId(p.0), weir_log::Offset(at.0))).collect()
}

fn read_group(key: &[u8], value: &[u8]) -> Option<Result<(Box<str>, Group), String>> {
    let name = std::str::from_utf8(key.strip_prefix(b"g/")?).ok()?;
    let error = || format!("key g/{name}: a group's value that this program cannot read");
    Some(Group::decode(value).map(|g| (name.into(), g)).ok_or_else(error))
}

fn session(key: &[u8], value: &[u8]) -> Option<Result<Session, String>> {
    let client_id = std::str::from_utf8(key.strip_prefix(b"c/")?).ok()?;
    Some(Session::decode(client_id, value).map_err(|e| format!("key c/{client_id}: {e}")))
}

/// For the start only: waits on the spot.
fn put_durably(engine: &dyn Engine, key: &[u8], value: &[u8]) {
    let nobody: Arc<dyn Wake> = Arc::new(Nobody);
    let receipt = engine.state().put(&[Put { key, tag: 0, value: Some(value) }], &nobody);
    while let (Ok(receipt), Watermark::Appended(at)) = (&receipt, engine.state().appended()) {
        if at >= *receipt {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    // The first connection's put finds out why.
}
