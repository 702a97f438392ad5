//! What all connections share: the engine, the tails, the retained views, the directory.
//!
//! Invariant: one way from a topic to its partition, one way from a client id to its key.
//! Must not know: sockets.

use crate::{
    account::Shared,
    addresses::Addresses,
    api::past::GatewayInfo,
    boot::Boots,
    clock::Clock,
    cursors::{Counted, Cursors},
    departures::Departures,
    directory::Directory,
    driver::{Debts, LARGE_FETCHES},
    events::Events,
    fleet::FleetLimits,
    group::Groups,
    growth::Growth,
    interests::Interests,
    metrics::{Metrics, Totals},
    offline::Offline,
    peer::Peer,
    pressure::Pressure,
    rates::Rates,
    refusals::{Refusals, Seldom},
    retention::{Hold, Retention},
    sockets::Sockets,
    tail, tcp,
    waiting::Waiting,
};
use dashmap::DashMap;
use parking_lot::RwLock;
use std::net::SocketAddr;
use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering},
};
use tokio::sync::{Semaphore, mpsc::UnboundedSender};
use weir_core::{
    ids::{Now, Offset, PartitionId},
    limits::{Limit, Limits as ClientLimits},
    message::{Message, Stored, partition_of},
    retained::Retained,
    topic::{SYSTEM_STREAM, is_system},
};
use weir_log::{Engine, Kind, Record, Records, SegmentInfo, Watermark, record::PushError};

/// Connections at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Connected {
    pub connections: u64,
    /// Those whose sessions outlive them.
    pub stored: u64,
    /// Those that read from the log.
    pub behind: u64,
    /// Records that the slowest of them is behind.
    pub lag_max: u64,
}

pub(crate) struct Gateway {
    pub engine: Arc<dyn Engine>,
    /// In the order of the engine, with their ids.
    pub partitions: Vec<PartitionId>,
    /// Their streams, and their numbers within them.
    pub streams: Vec<(Arc<str>, u32)>,
    /// Which of them holds what the gateway says; the last, if there is one.
    pub system: Option<usize>,
    pub events: Events,
    pub rates: Rates,
    pub limits: RwLock<Limits>,
    pub tails: Vec<UnboundedSender<tail::Command>>,
    pub passed: Vec<Arc<tail::Passed>>,
    pub retained: Vec<Arc<RwLock<Retained>>>,
    /// Per partition; nothing in the one of the gateway itself.
    pub cursors: Vec<Cursors>,
    pub departures: Departures,
    pub waiting: Waiting,
    /// Per partition.
    pub growth: Vec<Growth>,
    pub pressure: Pressure,
    /// Publishers wait: retention would take what somebody has not read.
    hold: AtomicU8,
    pub directory: Directory,
    pub groups: Groups,
    pub interests: Interests,
    pub offline: Offline,
    pub boots: Boots,
    pub boot: u64,
    /// Where it listens, once it does.
    pub about: OnceLock<GatewayInfo>,
    pub totals: Totals,
    refusals: Refusals,
    pub foreign_origins: Seldom,
    pub debts: Debts,
    pub metrics: Arc<Metrics>,
    /// Sessions in the store.
    stored: AtomicU64,
    /// Whatever is configured: of the disk that it is on.
    pub store_bytes_max: u64,
    pub peers: DashMap<u64, Arc<Peer>>,
    /// Those of whose sessions the log says something that a checkpoint must not pass before their values say it.
    pub marked: DashMap<u64, Arc<Peer>>,
    /// Connections that had more to send when their turn was over.
    pub sending: AtomicUsize,
    /// Permits to begin a session, and to leave one: see `tcp::AT_ONCE`. Two, for who begins may wait until another has left.
    pub entering: Semaphore,
    pub leaving: Semaphore,
    pub sockets: Sockets,
    /// Of packets that have begun, and of large messages on their way out.
    pub inbound: Shared,
    pub outbound: Shared,
    pub addresses: Addresses,
    /// Permits for them: see `driver::LARGE_FETCHES`.
    pub large_fetches: Arc<Semaphore>,
    /// Whoever lists the keys of the state store.
    pub listing: tokio::sync::Mutex<()>,
    draining: AtomicBool,
    /// A partition has failed, and it was said.
    failed: AtomicBool,
    next_peer: AtomicU64,
    next_sid: AtomicU64,
    pub clock: Clock,
}

/// What can be changed while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How much of messages is kept, and of events and `$SYS/broker`.
    pub messages: Retention,
    pub events: Retention,
    /// How often a member of a group may leave a message unacknowledged before it goes to `$dead/GROUP/TOPIC`; 0: for ever.
    pub max_deliveries: u32,
    /// Of each client.
    pub client: Arc<ClientLimits>,
    /// Of all together.
    pub fleet: FleetLimits,
}

/// What `Gateway` is made of.
pub(crate) struct Parts {
    pub engine: Arc<dyn Engine>,
    pub tails: Vec<UnboundedSender<tail::Command>>,
    pub passed: Vec<Arc<tail::Passed>>,
    pub retained: Vec<Arc<RwLock<Retained>>>,
    pub offline: Offline,
    pub interests: Interests,
    pub metrics: Arc<Metrics>,
    /// Sessions in the store.
    pub stored: u64,
    pub boots: Boots,
    pub boot: u64,
    pub limits: Limits,
    pub store_bytes_max: u64,
    pub clock: Clock,
}

/// The key of a client's session.
pub(crate) fn session_key(client_id: &str) -> Vec<u8> {
    [b"c/", client_id.as_bytes()].concat()
}

/// A record as core sees it; `None` for what is no message.
pub(crate) fn stored<'a>(r: &Record<'a>) -> Option<Stored<'a>> {
    if r.kind != Kind::Message {
        return None;
    }
    Stored::parse(weir_core::ids::Offset(r.offset.0), r.time_ms, r.flags, r.meta, r.key, r.headers, r.value)
}

/// A message as a record.
pub(crate) fn encode(m: &Message<'_>, records: &mut Records) -> Result<(), PushError> {
    let meta = m.meta();
    records.push(Kind::Message, meta.flags, meta.bytes(), m.topic.as_bytes(), &m.headers, m.payload)
}

impl Gateway {
    pub fn new(p: Parts) -> Self {
        let partitions = p.engine.partitions().iter().map(|p| PartitionId(p.id.0)).collect();
        let system = p.engine.partitions().iter().position(|p| p.stream == SYSTEM_STREAM);
        let cursors = p.engine.partitions().iter().map(|_| Cursors::default()).collect();
        let growth = p.engine.partitions().iter().map(|_| Growth::default()).collect();
        let (inbound_bytes, outbound_bytes) = (p.limits.fleet.inbound_bytes, p.limits.fleet.outbound_bytes);
        let streams = p.engine.partitions().iter().map(|p| (p.stream.as_str().into(), p.number)).collect();
        Self {
            engine: p.engine,
            partitions,
            streams,
            system,
            events: Events::default(),
            rates: Rates::default(),
            limits: RwLock::new(p.limits),
            tails: p.tails,
            passed: p.passed,
            retained: p.retained,
            cursors,
            departures: Departures::default(),
            waiting: Waiting::default(),
            growth,
            pressure: Pressure::default(),
            hold: AtomicU8::new(Hold::Nobody as u8),
            directory: Directory::default(),
            groups: Groups::default(),
            interests: p.interests,
            offline: p.offline,
            boots: p.boots,
            boot: p.boot,
            about: OnceLock::new(),
            totals: Totals::default(),
            refusals: Refusals::default(),
            foreign_origins: Seldom::default(),
            debts: Debts::default(),
            metrics: p.metrics,
            stored: AtomicU64::new(p.stored),
            store_bytes_max: p.store_bytes_max,
            peers: DashMap::new(),
            marked: DashMap::new(),
            sending: AtomicUsize::new(0),
            entering: Semaphore::new(tcp::AT_ONCE),
            leaving: Semaphore::new(tcp::AT_ONCE),
            sockets: Sockets::of_process(),
            inbound: Shared::new(inbound_bytes),
            outbound: Shared::new(outbound_bytes),
            addresses: Addresses::default(),
            large_fetches: Arc::new(Semaphore::new(LARGE_FETCHES)),
            listing: tokio::sync::Mutex::default(),
            draining: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            next_peer: AtomicU64::new(1),
            next_sid: AtomicU64::new(1),
            clock: p.clock,
        }
    }

    pub fn now(&self) -> Now {
        self.clock.now()
    }

    /// When the session's last connection ended without a word: with the process that it was connected to, or, in this one, when the
    /// log failed: now. In ms since 1970.
    pub fn ended(&self, s: &weir_core::session::Session) -> u64 {
        if s.boot() == self.boot { self.now().steady_ms } else { self.boots.ended(s.boot()) }
    }

    /// The moment of `Now::monotonic_ms`.
    pub fn instant(&self, monotonic_ms: u64) -> tokio::time::Instant {
        self.clock.instant(monotonic_ms)
    }

    /// Index of the topic's partition.
    pub fn partition_of(&self, topic: &str) -> usize {
        match self.system {
            Some(system) if is_system(topic) => system,
            system => partition_of(topic, self.partitions.len() - usize::from(system.is_some())),
        }
    }

    /// How much of this partition is kept.
    pub fn retention(&self, p: PartitionId) -> Retention {
        let limits = self.limits.read();
        if self.is_system(p) { limits.events } else { limits.messages }
    }

    pub fn is_system(&self, p: PartitionId) -> bool {
        self.system.is_some_and(|nth| self.partitions.get(nth) == Some(&p))
    }

    /// Indices of the partitions that a filter reads.
    pub fn read_by(&self, filter: &str) -> impl Iterator<Item = usize> + use<> {
        let (system, wanted) = (self.system, is_system(filter));
        (0..self.partitions.len()).filter(move |nth| (system == Some(*nth)) == wanted)
    }

    pub fn peer(&self, address: Option<SocketAddr>) -> Arc<Peer> {
        let id = self.next_peer.fetch_add(1, Ordering::Relaxed);
        let peer = Arc::new(Peer::new(id, self.partitions.len(), address));
        self.peers.insert(id, peer.clone());
        if self.is_draining() {
            peer.tell(|m| m.drain = true);
        }
        peer
    }

    pub fn client_limits(&self) -> Arc<ClientLimits> {
        self.limits.read().client.clone()
    }

    /// A client has met a limit.
    pub fn refused(&self, limit: Limit, client_id: &str) {
        self.totals.add(limit.into(), 1);
        self.refusals.say("refused", limit, client_id);
        self.events.limited(self, client_id, limit);
    }

    /// A client publishes faster than a limit allows.
    pub fn slowed(&self, limit: Limit, client_id: &str) {
        self.totals.add(limit.into(), 1);
        self.refusals.say("not read for a while", limit, client_id);
    }

    /// The connection that has a client's session.
    pub fn connection(&self, client_id: &str) -> Option<Arc<Peer>> {
        self.directory.owner(client_id).filter(|peer| peer.is_connected())
    }

    /// A session id that no session ever had: boot 24 bits, counter 40.
    pub fn sid(&self) -> u64 {
        self.boot << 40 | self.next_sid.fetch_add(1, Ordering::Relaxed)
    }

    pub fn sessions(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }

    /// A session is in the store that was not, or the other way round.
    pub fn stored(&self, is: bool) {
        if is {
            self.stored.fetch_add(1, Ordering::Relaxed);
        } else {
            self.stored.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Of each partition what `needs` says: only messages count.
    fn needs(&self, needs: impl Fn(PartitionId) -> Option<Offset>) -> impl Iterator<Item = Option<Offset>> {
        self.partitions.iter().map(move |p| needs(*p).filter(|_| !self.is_system(*p)))
    }

    /// When retention takes what is at `next` of a partition, if the log grows on as it does; ms since 1970.
    pub fn loss_at(&self, p: PartitionId, segments: &[SegmentInfo], next: weir_log::Offset) -> Option<u64> {
        let nth = self.partitions.iter().position(|q| *q == p)?;
        let rate = self.growth.get(nth).and_then(Growth::rate);
        self.retention(p).loss_at(segments, next, self.now().wall_ms, rate)
    }

    /// A durable reader has come to the places that its value in the store says.
    pub fn count(&self, counted: &mut Counted, needs: impl Fn(PartitionId) -> Option<Offset>) {
        counted.replace(&self.cursors, self.needs(needs));
    }

    /// What a reader counts for that was stored, and has an owner now.
    pub fn counted(&self, needs: impl Fn(PartitionId) -> Option<Offset>) -> Counted {
        Counted::of(self.needs(needs))
    }

    /// Whose publishes wait for readers.
    pub fn hold(&self) -> Hold {
        self.hold.load(Ordering::Relaxed).into()
    }

    pub fn is_held(&self) -> bool {
        self.hold() != Hold::Nobody
    }

    /// Returns what it was.
    pub fn set_hold(&self, hold: Hold) -> Hold {
        self.hold.swap(hold as u8, Ordering::Relaxed).into()
    }

    /// Per partition: one past the newest durable record.
    pub fn ends(&self) -> Vec<u64> {
        self.partitions.iter().map(|p| self.engine.span(weir_log::PartitionId(p.0)).durable.0).collect()
    }

    /// Why nothing is acknowledged in some part of the log, for good or until it passes.
    pub fn log_trouble(&self) -> Option<String> {
        let failed = self.engine.partitions().iter().find_map(|p| match self.engine.appended(p.id) {
            Watermark::Failed(failure) => Some(format!("{}/{}: {failure}", p.stream, p.number)),
            Watermark::Appended(_) => None,
        });
        failed.or_else(|| self.engine.stalled().first().map(|(_, stall)| stall.to_string()))
    }

    /// Looks at all connections.
    pub fn connected(&self) -> Connected {
        let ends = self.ends();
        let mut all = Connected::default();
        for peer in &self.peers {
            all.connections += u64::from(peer.is_connected());
            all.stored += u64::from(peer.is_connected() && peer.is_stored());
            if let Some(lag) = peer.lag(&ends) {
                all.behind += 1;
                all.lag_max = lag.max(all.lag_max);
            }
        }
        all
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Every connection is told to end, those that come later too.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        let all: Vec<_> = self.peers.iter().map(|p| p.value().clone()).collect();
        all.iter().for_each(|p| p.tell(|m| m.drain = true));
    }

    /// Says once why nothing is acknowledged any more; `/readyz` says it for as long as it lasts.
    pub fn partition_failed(&self, why: &dyn std::fmt::Display) {
        if !self.failed.swap(true, Ordering::AcqRel) {
            tracing::error!("the log stopped: {why}");
        }
    }

    /// Without the state store nothing can be acknowledged, so nothing is left to do.
    pub fn state_failed(&self, why: &dyn std::fmt::Display) -> ! {
        tracing::error!("the state store stopped: {why}");
        std::process::exit(74);
    }
}
