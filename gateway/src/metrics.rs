//! What Weir counts and measures, for Prometheus. One table of names; what is counted is added to plain atomics, once a batch, and looked at when
//! somebody asks.
//!
//! Invariant: whatever is dropped, refused or lost has a counter with a reason; labels are few and never a client id or a topic.
//! Must not know: when anything happens.

use crate::foresight;
use crate::gateway::{Connected, Gateway};
use crate::lives::Lives;
use crate::refusals::short;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use metrics_util::MetricKindMask;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use weir_bridge::feed::{Counts as Told, Feed};
use weir_core::{limits::Limit, session::Counts};
use weir_log::{Commit, Observe, PartitionId, STATE, Watermark};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

macro_rules! names {
    ($($variant:ident $kind:ident $name:literal $help:literal;)*) => {
        /// Every metric of Weir's own.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Name { $($variant),* }

        impl Name {
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            #[must_use]
            pub fn help(self) -> &'static str {
                match self { $(Self::$variant => $help),* }
            }

            #[must_use]
            pub fn kind(self) -> Kind {
                match self { $(Self::$variant => Kind::$kind),* }
            }
        }
    };
}

names! {
    Messages Counter "weir_messages_total" "MQTT messages, from clients (in) and to clients (out), by QoS.";
    Bytes Counter "weir_bytes_total" "Bytes of MQTT packets, from clients (in) and to clients (out).";
    Packets Counter "weir_packets_total" "MQTT control packets of every type, from clients (in) and to clients (out).";
    PayloadBytes Counter "weir_payload_bytes_total" "Bytes of the payloads of messages, from clients (in) and to clients (out).";
    Connects Counter "weir_connects_total" "CONNECT packets that were received.";
    SessionsExpired Counter "weir_sessions_expired_total" "Sessions that ended because nobody came back within their expiry interval.";
    ConnectionsTotal Counter "weir_connections_total" "Connections that were accepted.";
    Connections Gauge "weir_connections" "Connections now.";
    Sockets Gauge "weir_sockets" "Sockets that are open, of all ports but the admin port, and one that each listener keeps for the next; at their limit others wait to be accepted.";
    SocketsLimit Gauge "weir_sockets_limit" "How many sockets may be open: the limit of descriptors, less what the log and the admin port keep for themselves.";
    Sessions Gauge "weir_sessions" "Sessions that outlive their connections, connected or not.";
    Subscriptions Gauge "weir_subscriptions" "Subscriptions of all sessions, connected or not, shared ones too.";
    Retained Gauge "weir_retained_messages" "Topics with a retained message.";
    SessionsBehind Gauge "weir_sessions_behind" "Connected sessions that read from the log, for they came late or read slowly.";
    LagMax Gauge "weir_session_lag_records_max" "Records between the slowest connected session and the end of the log.";
    Dropped Counter "weir_dropped_messages_total" "Messages that were not sent to a subscriber: QoS 0 while it was behind, too large for it, expired.";
    Lost Counter "weir_lost_records_total" "Records that retention or damage took before a reader had come to them, once per reader.";
    Refused Counter "weir_refused_total" "Connections that were refused, connections closed for a violation of the protocol, publishes to topics of the gateway's own, and what was asked beyond a limit, by its key in [limits].";
    Slowed Counter "weir_slowed_total" "How often a client was not read for a while, for it published faster than a limit allows, by its key in [limits].";
    PushedOut Counter "weir_retention_unread_records_total" "Records that retention by bytes took before some session or group had read them.";
    Pushing Gauge "weir_retention_pushing_bytes" "Of the client that published most while that happened; for ten minutes.";
    PublishersHeld Gauge "weir_publishers_held" "1 while publishers wait, for log.retention_min_age keeps what somebody has not read; 2 while those who read wait too.";
    Takeovers Counter "weir_takeovers_total" "Connections that ended because another came with their client id.";
    DeadLetters Counter "weir_dead_letters_total" "Messages that no member of a group acknowledged, now under $dead/GROUP/TOPIC.";
    EventsDropped Counter "weir_events_dropped_total" "Events under $SYS/events that were not written: too many at once, or the log has failed.";
    Panics Counter "weir_panics_total" "Connections that ended with a bug in the gateway.";
    AppendSeconds Histogram "weir_log_append_seconds" "From the acceptance of the first record of a batch until the batch is durable.";
    SyncSeconds Histogram "weir_log_sync_seconds" "What the sync of a batch took.";
    CommitRecords Histogram "weir_log_commit_records" "Records in one batch: one sync makes them all durable.";
    CommitBytes Histogram "weir_log_commit_bytes" "Bytes in one batch.";
    DiskFree Gauge "weir_disk_free_bytes" "Free bytes of the disk that the data directory is on.";
    DiskSize Gauge "weir_disk_size_bytes" "Bytes of that disk.";
    GroupLagMax Gauge "weir_group_lag_records_max" "Records that the slowest group has not read or has not had acknowledged; asked every 15 s.";
    LogOldest Gauge "weir_log_oldest_timestamp_seconds" "When the oldest file that is kept was begun; 0: there is no record.";
    LogLeaves Gauge "weir_log_leaves_timestamp_seconds" "When the oldest file leaves if the log grows on as in the last minutes; 0: not foreseen.";
    LossAt Gauge "weir_loss_timestamp_seconds" "When retention takes the first record that a stored session or group has not read; 0: not foreseen, or there is none.";
    LogStart Gauge "weir_log_start_offset" "The oldest record that is kept.";
    LogEnd Gauge "weir_log_end_offset" "One past the newest durable record.";
    LogBytes Gauge "weir_log_size_bytes" "Bytes of the files of the log.";
    LogSegments Gauge "weir_log_segments" "Files of the log.";
    LogPending Gauge "weir_log_pending_bytes" "Bytes that wait for the writer; at their limit publishers are not read.";
    LogPendingLimit Gauge "weir_log_pending_limit_bytes" "What may wait for the writer.";
    LogRecent Gauge "weir_log_recent_bytes" "Bytes of the newest records in memory, from which live readers are served.";
    LogRecentLimit Gauge "weir_log_recent_limit_bytes" "What may be held of the newest records; a tail that lags beyond it holds the writer.";
    LogFailed Gauge "weir_log_failed" "1 when a write or sync has failed: nothing more is acknowledged until a restart.";
    LogStalled Gauge "weir_log_stalled" "1 while a segment cannot be begun, for want of room or descriptors: nothing is acknowledged there until that passes.";
    StateBytes Gauge "weir_state_live_bytes" "Of the newest values of the state store: sessions, groups, retained messages. Its files are up to twice as large.";
    StateShort Gauge "weir_state_short" "1 while there is no room for a file of the state store in reserve: what is new is refused.";
    InboundBytes Gauge "weir_inbound_bytes" "Room that is taken by packets that have begun and are not whole yet.";
    OutboundBytes Gauge "weir_outbound_bytes" "Room that is taken by messages above 64 KiB on their way to clients.";
    InboundLimit Gauge "weir_inbound_limit_bytes" "limits.inbound_bytes.";
    OutboundLimit Gauge "weir_outbound_limit_bytes" "limits.outbound_bytes.";
    RetainedBytes Gauge "weir_retained_bytes" "Of topics with a retained message, and of their payloads.";
    ReadsWaiting Gauge "weir_log_reads_waiting" "Fetches and searches that wait for their turn of a reader.";
    ReadWait Gauge "weir_log_read_wait_seconds" "How long the one that has its turn next has waited.";
    Quarantined Gauge "weir_log_quarantined_ranges" "Places of the log where acknowledged records cannot be read.";
    Browsers Gauge "weir_feed_browsers" "Browsers on the dashboard feed.";
    FeedRecords Counter "weir_feed_records_total" "Records that were told to browsers, once per browser.";
    FeedBytes Counter "weir_feed_bytes_total" "Bytes of JSON that were told to browsers.";
    FeedThinned Counter "weir_feed_thinned_total" "Records that browsers were not told because newer ones of their topics stood for them; once per browser.";
    FeedLost Counter "weir_feed_lost_total" "Records that retention or damage took before a browser had them; once per browser.";
    FeedRestarts Counter "weir_feed_restarts_total" "Browsers that were too slow and were given a new snapshot instead of the records between.";
    FeedChannels Gauge "weir_feed_channels" "Different wishes of browsers; those who wish the same share one.";
    FeedFrameBytes Gauge "weir_feed_frame_bytes" "Of frames that are kept for browsers that come a little late.";
    FeedRefused Counter "weir_feed_refused_total" "Browsers that were refused because there were too many.";
    BuildInfo Gauge "weir_build_info" "1, with the version as a label.";
}

macro_rules! totals {
    ($($variant:ident $name:ident $($label:literal $value:literal)*;)*) => {
        /// What is counted, each with its labels.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Total { $($variant),* }

        impl Total {
            const ALL: &[Self] = &[$(Self::$variant),*];

            fn name(self) -> Name {
                match self { $(Self::$variant => Name::$name),* }
            }

            fn labels(self) -> &'static [(&'static str, &'static str)] {
                match self { $(Self::$variant => &[$(($label, $value)),*]),* }
            }
        }
    };
}

totals! {
    In0 Messages "direction" "in" "qos" "0";
    In1 Messages "direction" "in" "qos" "1";
    In2 Messages "direction" "in" "qos" "2";
    Out0 Messages "direction" "out" "qos" "0";
    Out1 Messages "direction" "out" "qos" "1";
    Out2 Messages "direction" "out" "qos" "2";
    BytesIn Bytes "direction" "in";
    BytesOut Bytes "direction" "out";
    PacketsIn Packets "direction" "in";
    PacketsOut Packets "direction" "out";
    PayloadIn PayloadBytes "direction" "in";
    PayloadOut PayloadBytes "direction" "out";
    Connects Connects;
    SessionsExpired SessionsExpired;
    ConnectionsTcp ConnectionsTotal "listener" "mqtt";
    ConnectionsWebsocket ConnectionsTotal "listener" "websocket";
    Behind Dropped "reason" "behind";
    TooLarge Dropped "reason" "too_large";
    Expired Dropped "reason" "expired";
    Lost Lost;
    Connect Refused "reason" "connect";
    Violation Refused "reason" "violation";
    Topic Refused "reason" "topic";
    Origin Refused "reason" "origin";
    ClientIdBytes Refused "reason" "client_id_bytes";
    TopicBytes Refused "reason" "topic_bytes";
    TopicLevels Refused "reason" "topic_levels";
    WillBytes Refused "reason" "will_bytes";
    UserProperties Refused "reason" "user_properties";
    UserPropertiesBytes Refused "reason" "user_properties_bytes";
    Subscriptions Refused "reason" "subscriptions";
    SharedSubscriptions Refused "reason" "shared_subscriptions";
    SessionBytes Refused "reason" "session_bytes";
    Sessions Refused "reason" "sessions";
    StoreBytes Refused "reason" "store_bytes";
    Groups Refused "reason" "groups";
    Retained Refused "reason" "retained";
    RetainedBytes Refused "reason" "retained_bytes";
    InboundBytes Refused "reason" "inbound_bytes";
    OutboundBytes Refused "reason" "outbound_bytes";
    ConnectionsPerAddress Refused "reason" "connections_per_address";
    ConnectsPerAddress Refused "reason" "connects_per_address";
    PublishMessages Slowed "reason" "publish_messages";
    PublishBytes Slowed "reason" "publish_bytes";
    Takeovers Takeovers;
    PushedOut PushedOut;
    DeadLetters DeadLetters;
    EventsDropped EventsDropped;
    Panics Panics;
}

macro_rules! by_limit {
    ($($name:ident)*) => {
        impl From<Limit> for Total {
            fn from(limit: Limit) -> Self {
                match limit { $(Limit::$name => Self::$name),* }
            }
        }
    };
}

by_limit! {
    ClientIdBytes TopicBytes TopicLevels WillBytes UserProperties UserPropertiesBytes Subscriptions SharedSubscriptions SessionBytes Sessions StoreBytes
    Groups Retained RetainedBytes InboundBytes OutboundBytes ConnectionsPerAddress ConnectsPerAddress PublishMessages PublishBytes
}

/// Messages from clients, of any QoS.
pub const RECEIVED: &[Total] = &[Total::In0, Total::In1, Total::In2];
/// Messages to clients.
pub const SENT: &[Total] = &[Total::Out0, Total::Out1, Total::Out2];
/// Messages that were not sent to a subscriber, but those that are lost.
/// What was asked and not done. Limits that end a connection or refuse one are in `Connect` and `Violation`.
pub const REFUSED: &[Total] = &[
    Total::Connect,
    Total::Violation,
    Total::Topic,
    Total::Origin,
    Total::TopicBytes,
    Total::TopicLevels,
    Total::UserProperties,
    Total::UserPropertiesBytes,
    Total::Subscriptions,
    Total::SharedSubscriptions,
    Total::Groups,
    Total::Retained,
    Total::RetainedBytes,
    Total::ConnectionsPerAddress,
    Total::ConnectsPerAddress,
];
pub const DROPPED: &[Total] = &[Total::Behind, Total::TooLarge, Total::Expired];
/// Connections that were accepted, on any listener.
pub const CONNECTIONS: &[Total] = &[Total::ConnectionsTcp, Total::ConnectionsWebsocket];

/// Threads that add without sharing a cache line; more of them share.
const SHARDS: usize = 8;

/// What some threads have added, on cache lines of its own: two threads that add to one line wait for
/// each other (fan-out lost 5 % by three more counters).
#[repr(align(128))]
struct Shard([AtomicU64; Total::ALL.len()]);

thread_local! {
    static SHARD: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS
    };
}

/// Sums since the start.
pub(crate) struct Totals(Box<[Shard; SHARDS]>);

impl Default for Totals {
    fn default() -> Self {
        Self(Box::new([const { Shard([const { AtomicU64::new(0) }; Total::ALL.len()]) }; SHARDS]))
    }
}

impl Totals {
    pub fn add(&self, total: Total, n: u64) {
        if n > 0 {
            let shard = SHARD.with(|shard| *shard);
            self.0[shard].0[total as usize].fetch_add(n, Ordering::Relaxed);
        }
    }

    pub fn get(&self, total: Total) -> u64 {
        self.0.iter().map(|shard| shard.0[total as usize].load(Ordering::Relaxed)).sum()
    }

    pub fn sum(&self, all: &[Total]) -> u64 {
        all.iter().map(|t| self.get(*t)).sum()
    }

    pub fn add_counts(&self, c: &Counts) {
        let [in_0, in_1, in_2] = c.received.map(u64::from);
        let [out_0, out_1, out_2] = c.sent.map(u64::from);
        let pairs = [
            (Total::In0, in_0),
            (Total::In1, in_1),
            (Total::In2, in_2),
            (Total::Out0, out_0),
            (Total::Out1, out_1),
            (Total::Out2, out_2),
            (Total::PacketsOut, out_0 + out_1 + out_2 + u64::from(c.answers)),
            (Total::PayloadIn, c.received_payload),
            (Total::PayloadOut, c.sent_payload),
            (Total::Behind, c.dropped_behind.into()),
            (Total::TooLarge, c.dropped_too_large.into()),
            (Total::Expired, c.dropped_expired.into()),
            (Total::Lost, c.lost),
            (Total::Topic, c.refused_topic.into()),
        ];
        pairs.iter().for_each(|(total, n)| self.add(*total, *n));
    }
}

/// From 50 us, where a fast disk syncs, to 10 s, where somebody is paged.
const SECONDS: &[f64] = &[0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
const RECORDS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0, 50_000.0];
const BYTES: &[f64] = &[512.0, 4_096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 8_388_608.0];

/// Batches of messages since somebody looked last.
pub(crate) struct Commits {
    /// Microseconds from the first record's acceptance.
    append: hdrhistogram::Histogram<u64>,
    /// Up to 1, 2, 4 … 64 records, and more.
    pub sizes: [u64; 8],
}

impl Default for Commits {
    fn default() -> Self {
        // Two digits up to a minute; these bounds are right, so it never fails.
        #[expect(clippy::expect_used)]
        let append = hdrhistogram::Histogram::new_with_bounds(1, 60_000_000, 2).expect("right bounds");
        Self { append, sizes: [0; 8] }
    }
}

impl Commits {
    fn add(&mut self, commit: &Commit) {
        self.append.saturating_record(commit.append.as_micros() as u64);
        let at = commit.records.max(1).next_power_of_two().trailing_zeros() as usize;
        if let Some(n) = self.sizes.get_mut(at.min(7)) {
            *n += 1;
        }
    }

    pub fn quantile(&self, q: f64) -> Option<u64> {
        (!self.append.is_empty()).then(|| self.append.value_at_quantile(q))
    }
}

/// Of one partition.
struct Meters {
    append: Histogram,
    sync: Histogram,
    records: Histogram,
    bytes: Histogram,
}

/// Partitions by id, with their labels.
type Labels = Vec<(PartitionId, [Label; 2])>;

pub(crate) struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    counters: Vec<Counter>,
    meters: OnceLock<HashMap<PartitionId, Meters>>,
    labels: OnceLock<Labels>,
    feed: OnceLock<Arc<Feed>>,
    commits: Mutex<Commits>,
    /// Of messages of watched topics.
    pub lives: Lives,
    /// When the last batch of messages was durable, ms since 1970; 0: never.
    synced_ms: AtomicU64,
    /// Of the group that is furthest behind.
    pub group_lag: AtomicU64,
    process: metrics_process::Collector,
}

/// A gauge of a client that is not set again is forgotten then.
const IDLE: Duration = Duration::from_secs(600);

static METADATA: Metadata<'_> = Metadata::new("weir", Level::INFO, None);

impl Metrics {
    pub fn new() -> Result<Self, BuildError> {
        let mut builder = PrometheusBuilder::new();
        for (name, buckets) in
            [(Name::AppendSeconds, SECONDS), (Name::SyncSeconds, SECONDS), (Name::CommitRecords, RECORDS), (Name::CommitBytes, BYTES)]
        {
            builder = builder.set_buckets_for_metric(Matcher::Full(name.name().into()), buckets)?;
        }
        // Of gauges that name a client; all others are set whenever somebody looks.
        builder = builder.idle_timeout(MetricKindMask::GAUGE, Some(IDLE));
        let recorder = builder.build_recorder();
        for name in Name::ALL {
            let (key, help) = (KeyName::from_const_str(name.name()), name.help().into());
            match name.kind() {
                Kind::Counter => recorder.describe_counter(key, None, help),
                Kind::Gauge => recorder.describe_gauge(key, None, help),
                Kind::Histogram => recorder.describe_histogram(key, None, help),
            }
        }
        let counter = |t: &Total| {
            let labels: Vec<Label> = t.labels().iter().map(|(k, v)| Label::from_static_parts(k, v)).collect();
            recorder.register_counter(&Key::from_parts(t.name().name(), labels), &METADATA)
        };
        let counters = Total::ALL.iter().map(counter).collect();
        let process = metrics_process::Collector::default();
        metrics::with_local_recorder(&recorder, || process.describe());
        Ok(Self {
            handle: recorder.handle(),
            recorder,
            counters,
            meters: OnceLock::new(),
            labels: OnceLock::new(),
            feed: OnceLock::new(),
            commits: Mutex::default(),
            lives: Lives::default(),
            synced_ms: AtomicU64::new(0),
            group_lag: AtomicU64::new(0),
            process,
        })
    }

    /// Batches since the last time, all partitions together.
    pub fn take_commits(&self) -> Commits {
        std::mem::take(&mut *self.commits.lock())
    }

    /// When the last batch was durable, ms since 1970; `None`: none was yet.
    pub fn synced_ms(&self) -> Option<u64> {
        Some(self.synced_ms.load(Ordering::Relaxed)).filter(|ms| *ms > 0)
    }

    /// The browsers' feed counts here.
    pub fn feed(&self, feed: Arc<Feed>) {
        let _only_once = self.feed.set(feed);
    }

    /// The partitions are known now; the state store is one more.
    pub fn partitions(&self, partitions: &[weir_log::Partition]) {
        let labels = |stream: &str, number: u32| [Label::new("stream", stream.to_owned()), Label::new("partition", number.to_string())];
        let known: Labels = partitions.iter().map(|p| (p.id, labels(&p.stream, p.number))).collect();
        let histogram =
            |name: Name, labels: &[Label; 2]| self.recorder.register_histogram(&Key::from_parts(name.name(), labels.to_vec()), &METADATA);
        let meters = |labels: &[Label; 2]| Meters {
            append: histogram(Name::AppendSeconds, labels),
            sync: histogram(Name::SyncSeconds, labels),
            records: histogram(Name::CommitRecords, labels),
            bytes: histogram(Name::CommitBytes, labels),
        };
        let state = (STATE, labels("state", 0));
        let all = known.iter().chain([&state]).map(|(id, labels)| (*id, meters(labels))).collect();
        let _only_once = (self.meters.set(all), self.labels.set(known));
    }

    fn gauge(&self, name: Name, labels: &[Label]) -> Gauge {
        self.recorder.register_gauge(&Key::from_parts(name.name(), labels.to_vec()), &METADATA)
    }

    /// Whose messages push out what others have not read, and how many bytes.
    pub fn loudest(&self, client_id: &str, bytes: u64) {
        let client = Label::new("client", short(client_id).to_owned());
        self.gauge(Name::Pushing, &[client]).set(bytes as f64);
    }

    /// What histograms have taken is put into their buckets: every few seconds, or memory grows.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    /// The text that Prometheus reads.
    pub fn render(&self, gateway: &Gateway) -> String {
        for (total, counter) in Total::ALL.iter().zip(&self.counters) {
            counter.absolute(gateway.totals.get(*total));
        }
        let set = |name: Name, value: u64| self.gauge(name, &[]).set(value as f64);
        let feed = self.feed.get();
        let told = |count: fn(&Told) -> &AtomicU64| feed.map_or(0, |feed| count(&feed.counts).load(Ordering::Relaxed));
        set(Name::Browsers, told(|t| &t.browsers));
        let sizes: Vec<_> = feed.iter().flat_map(|feed| feed.tails.iter().map(|tail| tail.size())).collect();
        set(Name::FeedChannels, sizes.iter().map(|(channels, _)| *channels as u64).sum());
        set(Name::FeedFrameBytes, sizes.iter().map(|(_, bytes)| *bytes as u64).sum());
        for (name, value) in [
            (Name::FeedRecords, told(|t| &t.records)),
            (Name::FeedBytes, told(|t| &t.bytes)),
            (Name::FeedThinned, told(|t| &t.thinned)),
            (Name::FeedLost, told(|t| &t.lost)),
            (Name::FeedRestarts, told(|t| &t.restarts)),
            (Name::FeedRefused, told(|t| &t.refused)),
        ] {
            self.recorder.register_counter(&Key::from_name(name.name()), &METADATA).absolute(value);
        }
        let Connected { connections, behind, lag_max: lag, .. } = gateway.connected();
        set(Name::Connections, connections);
        set(Name::SessionsBehind, behind);
        set(Name::LagMax, lag);
        set(Name::Sessions, gateway.sessions());
        set(Name::Subscriptions, gateway.interests.len());
        set(Name::Retained, gateway.retained.iter().map(|view| view.read().len() as u64).sum());
        set(Name::Sockets, gateway.sockets.open() as u64);
        set(Name::SocketsLimit, gateway.sockets.most() as u64);
        set(Name::PublishersHeld, gateway.hold() as u64);
        set(Name::LogStalled, u64::from(!gateway.engine.stalled().is_empty()));
        let store = gateway.engine.state().size();
        set(Name::StateBytes, store.live_bytes);
        set(Name::StateShort, u64::from(store.is_short));
        set(Name::InboundBytes, gateway.inbound.taken() as u64);
        set(Name::OutboundBytes, gateway.outbound.taken() as u64);
        set(Name::InboundLimit, gateway.inbound.bytes() as u64);
        set(Name::OutboundLimit, gateway.outbound.bytes() as u64);
        set(Name::RetainedBytes, gateway.retained.iter().map(|view| view.read().bytes()).sum());
        let waiting = gateway.engine.waiting();
        set(Name::ReadsWaiting, waiting.jobs as u64);
        self.gauge(Name::ReadWait, &[]).set(waiting.longest.as_secs_f64());
        set(Name::Quarantined, gateway.engine.damaged() as u64);
        self.gauge(Name::BuildInfo, &[Label::from_static_parts("version", env!("CARGO_PKG_VERSION"))]).set(1.0);
        foresight::gauges(gateway, |name, value| self.gauge(name, &[]).set(value));
        for (nth, (p, labels)) in self.labels.get().into_iter().flatten().enumerate() {
            let span = gateway.engine.span(*p);
            let set = |name: Name, value: u64| self.gauge(name, labels).set(value as f64);
            set(Name::LogStart, span.start.0);
            set(Name::LogEnd, span.durable.0);
            let memory = gateway.engine.memory(*p);
            set(Name::LogPending, memory.pending_bytes as u64);
            set(Name::LogPendingLimit, memory.pending_bytes_max as u64);
            set(Name::LogRecent, memory.recent_bytes as u64);
            set(Name::LogRecentLimit, memory.recent_bytes_max as u64);
            set(Name::LogFailed, u64::from(matches!(gateway.engine.appended(*p), Watermark::Failed(_))));
            // A directory that cannot be listed keeps its last numbers.
            if let Ok(segments) = gateway.engine.segments(*p) {
                if let Some(foreseen) = foresight::of_partition(gateway, nth, &segments) {
                    self.gauge(Name::LogOldest, labels).set(foreseen.oldest_s);
                    self.gauge(Name::LogLeaves, labels).set(foreseen.leaves_s);
                    self.gauge(Name::LossAt, labels).set(foreseen.loss_s);
                }
                set(Name::LogSegments, segments.len() as u64);
                set(Name::LogBytes, segments.iter().map(|s| s.bytes).sum());
            }
        }
        metrics::with_local_recorder(&self.recorder, || self.process.collect());
        self.upkeep();
        self.handle.render()
    }
}

impl Observe for Metrics {
    fn committed(&self, p: PartitionId, commit: &Commit) {
        self.lives.committed(p, commit);
        let Some(meters) = self.meters.get().and_then(|meters| meters.get(&p)) else { return };
        meters.append.record(commit.append);
        meters.sync.record(commit.sync);
        meters.records.record(commit.records as f64);
        meters.bytes.record(commit.bytes as f64);
        if p != STATE {
            self.commits.lock().add(commit);
            self.synced_ms.store(crate::clock::wall_ms(), Ordering::Relaxed);
        }
    }
}
