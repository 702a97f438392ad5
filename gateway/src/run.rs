//! `weir run`: from nothing to ready, and back.
//!
//! Invariant: nothing is accepted before the log is recovered and folded; on SIGTERM what was accepted is finished before the log stops.
//! Must not know: what a connection does.

use crate::{
    api::past::GatewayInfo,
    api::process::{Level, Process, SettingInfo},
    broker,
    checkpoint::Keeper,
    clock::wall_ms,
    events, figures,
    fleet::quarter_of_disk,
    foresight,
    gateway::{Gateway, Limits},
    hosts::Hosts,
    http,
    metrics::{Metrics, Total},
    origins::Origins,
    rates,
    sockets::Sockets,
    start::{Found, assemble},
    tcp, vital,
};
use parking_lot::RwLock;
use sd_notify::NotifyState;
use std::{
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
};
use weir_bridge::feed::Feed;
use weir_core::topic::SYSTEM_STREAM;
use weir_log::{Durability, Engine, FileEngine, OpenError, ReadError, Stream};

/// How often histograms are emptied into their buckets.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// What the gateway says is little: recovery reads one segment.
const SYSTEM_LIMITS: weir_log::Limits = weir_log::Limits { segment_bytes: 4 << 20, pending_bytes_max: 1 << 20, ring_bytes: 1 << 20 };

#[derive(Clone, Debug)]
pub struct Options {
    pub mqtt: SocketAddr,
    pub http: SocketAddr,
    pub admin: SocketAddr,
    pub data: PathBuf,
    /// Of the messages; sessions and events are always on the disk.
    pub durability: Durability,
    pub limits: Limits,
    /// How often `$SYS/broker` is written; `None`: never.
    pub sys_interval: Option<Duration>,
    /// All of it as it was said, and where.
    pub settings: Vec<SettingInfo>,
    /// Names that HTTP listeners answer to beside those of the local network.
    pub hosts: Vec<String>,
    /// Origins of pages that may speak to the port for browsers, beside its own.
    pub origins: Vec<String>,
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

impl RunError {
    /// EX_TEMPFAIL of sysexits.h for what may pass by itself, else 1: it is not to be started again as it is.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        if matches!(self, Self::Open(e) if e.is_shortage()) { 75 } else { 1 }
    }
}

impl std::error::Error for RunError {}

/// One descriptor per connection: the default limit of 1,024 would be the limit of clients.
pub(crate) fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let known = getrlimit(Resource::Nofile);
    if let Err(e) = setrlimit(Resource::Nofile, Rlimit { current: known.maximum, maximum: known.maximum }) {
        tracing::warn!("raising the limit of open files: {e}; it stays at {:?}", known.current);
    }
}

/// What somebody else does on the way.
pub struct Hooks<R, H> {
    /// Of the lines on standard error.
    pub level: Level,
    /// Called on the runtime once connections are taken.
    pub ready: R,
    /// SIGHUP: what can be changed while it runs, if the configuration could be read.
    pub reload: H,
}

/// What is in force after the configuration was read again.
pub struct Reloaded {
    pub limits: Limits,
    pub settings: Vec<SettingInfo>,
}

/// Runs until SIGTERM or SIGINT.
pub fn run<R: FnOnce(), H: Fn() -> Option<Reloaded>>(options: &Options, hooks: Hooks<R, H>) -> Result<(), RunError> {
    raise_descriptors();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| RunError::Io("starting threads", e))?;
    let result = runtime.block_on(main(options, hooks));
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

/// Where it listens.
struct At {
    mqtt: SocketAddr,
    http: SocketAddr,
    admin: SocketAddr,
}

fn listen(options: &Options, flag: &'static str, address: SocketAddr) -> Result<TcpListener, RunError> {
    if !address.ip().is_loopback() && !options.allow_anonymous {
        return Err(RunError::Public { flag, address });
    }
    tcp::listen(address).map_err(|error| RunError::Listen { flag, address, error })
}

async fn main<R: FnOnce(), H: Fn() -> Option<Reloaded>>(options: &Options, hooks: Hooks<R, H>) -> Result<(), RunError> {
    let begun = Instant::now();
    let mqtt = listen(options, "--mqtt", options.mqtt)?;
    let http = listen(options, "--http", options.http)?;
    let admin = listen(options, "--admin", options.admin)?;
    // Port 0 is another by now.
    let here = |listener: &TcpListener, asked| listener.local_addr().unwrap_or(asked);
    let at = At { mqtt: here(&mqtt, options.mqtt), http: here(&http, options.http), admin: here(&admin, options.admin) };
    let mut stop = Stop::new().map_err(|e| RunError::Io("catching signals", e))?;

    let metrics = Arc::new(Metrics::new().map_err(|e| RunError::Io("metrics", io::Error::other(e)))?);
    let (engine, found) = tokio::task::block_in_place(|| open(options, metrics.clone()))?;
    metrics.partitions(engine.partitions());
    let engine: Arc<dyn Engine> = Arc::new(engine);
    let limits = (options.limits.clone(), quarter_of_disk(&options.data));
    let gateway = tokio::task::block_in_place(|| assemble(engine.clone(), found, metrics.clone(), limits, wall_ms))?;
    let about = GatewayInfo {
        version: env!("CARGO_PKG_VERSION").into(),
        started_ms: wall_ms(),
        mqtt: at.mqtt.to_string(),
        http: at.http.to_string(),
        admin: at.admin.to_string(),
        data: options.data.display().to_string(),
        ..GatewayInfo::default()
    };
    let _only_once = gateway.about.set(about);
    let feed = Feed::new(engine.clone(), metrics.lives.watched.clone());
    vital::spawn("the writer of figures", figures::run(gateway.clone(), feed.clone()));
    metrics.feed(feed.clone());
    vital::spawn("the MQTT listener", tcp::accept(mqtt, gateway.clone()));
    let public = http::public(gateway.clone(), feed, Origins(Arc::new(options.origins.clone())), at.admin.port());
    let hosts = Hosts(Arc::new(options.hosts.clone()));
    vital::spawn("the HTTP listener", http::serve(http, "http", gateway.sockets.clone(), public, hosts.clone(), Some(gateway.clone())));
    let process = Arc::new(Process { settings: RwLock::new(options.settings.clone()), level: hooks.level });
    let admin_routes = http::admin(gateway.clone(), process.clone(), at.http.port());
    vital::spawn("the admin listener", http::serve(admin, "admin", Sockets::of_admin(), admin_routes, hosts, None));
    vital::spawn("the keeper of the metrics", async move {
        loop {
            tokio::time::sleep(UPKEEP_EVERY).await;
            metrics.upkeep();
        }
    });
    vital::spawn("the watch over groups", foresight::run(gateway.clone()));
    vital::spawn("the counter of rates", rates::run(gateway.clone()));
    vital::spawn("the writer of events", events::run(gateway.clone()));
    if let Some(every) = options.sys_interval {
        vital::spawn("the writer of $SYS/broker", broker::run(gateway.clone(), every));
    }
    let keeper = Keeper::start(gateway.clone());
    gateway.events.started(&gateway);
    tell_start(&at, &options.data, &gateway, begun.elapsed());
    println!("weir ready");
    tell_service_manager(&[NotifyState::Ready]);
    (hooks.ready)();

    let reload = || {
        if let Some(now) = (hooks.reload)() {
            *gateway.limits.write() = now.limits;
            *process.settings.write() = now.settings;
        }
    };
    stop.wait(&reload).await;
    tell_service_manager(&[NotifyState::Stopping]);
    tracing::info!("stopping: connections are closed, the log is finished");
    gateway.drain();
    let end = tokio::time::Instant::now() + Duration::from_secs(10);
    while !gateway.peers.is_empty() && tokio::time::Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    gateway.events.flush(&gateway).await;
    keeper.stop().await;
    let stopping = engine.clone();
    let stopped = tokio::task::spawn_blocking(move || stopping.stop()).await;
    tell_end(&gateway, begun.elapsed());
    stopped.map_err(|e| RunError::Io("stopping the log", io::Error::other(e)))
}

/// What runs, where, on what, and how long it took.
fn tell_start(At { mqtt, http, admin }: &At, data: &Path, gateway: &Gateway, took: Duration) {
    let partitions = gateway.engine.partitions().iter().filter(|p| gateway.system.is_none_or(|nth| gateway.partitions[nth].0 != p.id.0));
    let records: u64 = partitions.map(|p| gateway.engine.span(p.id)).map(|span| span.durable.0 - span.start.0).sum();
    let took = humantime::format_duration(Duration::from_millis(took.as_millis() as u64));
    tracing::info!("weir {}: mqtt {mqtt}, page http://{http}/, admin http://{admin}/", version());
    tracing::info!("the log in {} has {records} messages; read and ready after {took}", data.display());
    let open = [mqtt, http, admin].into_iter().filter(|address| !address.ip().is_loopback());
    let open: Vec<_> = open.map(ToString::to_string).collect();
    if !open.is_empty() {
        tracing::warn!("anybody who reaches {} is admitted, and may publish and read everything", open.join(", "));
    }
}

fn tell_end(gateway: &Gateway, ran: Duration) {
    let total = |all: [Total; 3]| all.iter().map(|t| gateway.totals.get(*t)).sum::<u64>();
    let taken = total([Total::In0, Total::In1, Total::In2]);
    let delivered = total([Total::Out0, Total::Out1, Total::Out2]);
    let ran = humantime::format_duration(Duration::from_secs(ran.as_secs()));
    let left = match gateway.peers.len() {
        0 => String::new(),
        n => format!("; {n} connections did not end in time"),
    };
    tracing::info!("stopped after {ran}: {taken} messages taken, {delivered} delivered{left}");
}

/// With the commit, if that is known.
#[must_use]
pub fn version() -> &'static str {
    const COMMIT: &str = env!("WEIR_COMMIT");
    if COMMIT.is_empty() { env!("CARGO_PKG_VERSION") } else { concat!(env!("CARGO_PKG_VERSION"), " (", env!("WEIR_COMMIT"), ")") }
}

/// Without one, nobody listens.
fn tell_service_manager(state: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(false, state) {
        tracing::warn!("telling the service manager: {e}");
    }
}

/// SIGTERM or SIGINT, and SIGHUP on the way.
struct Stop {
    term: Signal,
    int: Signal,
    hup: Signal,
}

impl Stop {
    fn new() -> io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())?, hup: signal(SignalKind::hangup())? })
    }

    async fn wait(&mut self, reload: &impl Fn()) {
        loop {
            tokio::select! {
                _ = self.term.recv() => return,
                _ = self.int.recv() => return,
                _ = self.hup.recv() => reload(),
            }
        }
    }
}

fn open(options: &Options, observe: Arc<Metrics>) -> Result<(FileEngine, Found), RunError> {
    let mut o = weir_log::Options { observe, ..weir_log::Options::new(&options.data, &[]) };
    let durability = options.durability;
    if durability == Durability::Os {
        tracing::warn!("log.durability is \"os\": the newest acknowledged messages do not outlive a power cut");
    }
    o.streams.push(Stream { name: "default".into(), partitions: 1, limits: None, durability });
    o.streams.push(Stream { name: SYSTEM_STREAM.into(), partitions: 1, limits: Some(SYSTEM_LIMITS), durability: Durability::Disk });
    let mut found = Found::default();
    let engine = FileEngine::open(&o, &mut |key, tag, value| found.take(key, tag, value)).map_err(RunError::Open)?;
    found.check()?;
    if engine.torn_bytes() > 0 {
        tracing::warn!(bytes = engine.torn_bytes(), "cut a torn tail: a batch that was begun and never acknowledged");
    }
    Ok((engine, found))
}
