//! The driver of one connection: bytes in, bytes out. It carries out what the session asks, on the log and on the tails, and tells it what
//! became of it.
//!
//! ```text
//!   first packet ──▶ claim the client id ──▶ load its value ──▶ (publish a will that was due) ──▶ session connected ──▶ … ──▶ left
//! ```
//!
//! Invariant: never waits; whatever is not there yet comes through the mailbox and a ring. It outlives its socket until the session has ended.
//! Must not know: sockets, tasks. TCP and websocket are adapters (`tcp`, `websocket`).

use crate::{
    gateway::{Gateway, session_key, stored},
    peer::Peer,
    tail::Command,
};
use std::sync::{Arc, atomic::Ordering};
use weir_core::{
    codec::{Decoded, decode},
    fanout::Step,
    ids::{Now, Offset, PartitionId, Receipt, Source, Watermark},
    message::Message,
    packet::{Packet, ReasonCode, Version},
    session::{
        Action, Cause, ConnectRequest, Delivery, Event, PACKET_BYTES_MAX, Paging, Refusal, Session, Violation, connect::Joining, refuse,
        value::ValueError,
    },
    topic::filter_matches,
};
use weir_log::{AppendError, Batch, Fetch, Fetched, Kind, Put, ReadError, Records, Select, Wake, Wanted};

/// A first packet is a CONNECT with at most a will of 64 KiB, three names and properties.
const FIRST_PACKET_BYTES_MAX: usize = 512 * 1024;
/// Time for the first packet, as in mosquitto and others: a socket that says nothing costs a little memory for so long.
const FIRST_PACKET_MS: u64 = 10_000;
/// Unsent bytes beyond which nothing more is delivered.
const OUT_BYTES_HIGH: usize = 64 * 1024;
/// Unsent bytes beyond which nothing more is read: acknowledgements of what comes in pile up too.
const OUT_BYTES_STOP: usize = 256 * 1024;
/// One fetch: enough for a socket write, little enough for 10,000 at once.
const FETCH_BYTES: u32 = 64 * 1024;
const FETCH_RECORDS: u32 = 1_024;
/// Retained messages per page.
const PAGE_TOPICS: usize = 64;

/// Where the connection stands.
enum Phase {
    FirstPacket {
        deadline: u64,
    },
    Claiming(ConnectRequest),
    Loading(ConnectRequest),
    /// The session's last connection ended with the process, and its will is published first.
    Settling(ConnectRequest, Box<Session>, bool),
    Running(Box<Session>),
    /// Looking after a session without a connection.
    Offline(Option<Box<Session>>),
    Left,
}

/// Records that were read and are being sent.
struct Held {
    kind: Feed,
    batch: Batch,
    /// Next record of the batch.
    index: u32,
    /// Everything before it was examined.
    next: Offset,
}

#[derive(Clone)]
enum Feed {
    Resend(Vec<Offset>),
    Page(Page),
    /// Of the nth partition.
    Range(usize),
    /// A range that was asked for before a filter was added: read it again.
    Stale(usize),
}

/// A part of the retained messages that a filter asked for.
#[derive(Clone)]
struct Page {
    paging: Paging,
    /// Where it goes on.
    after: Option<Box<str>>,
    offsets: Vec<Offset>,
}

enum Feeding {
    Idle,
    Fetching(Feed),
    Held(Held),
}

pub(crate) struct Driver {
    gateway: Arc<Gateway>,
    peer: Arc<Peer>,
    /// The peer, as the log knows it.
    who: Arc<dyn Wake>,
    phase: Phase,
    client_id: Option<Box<str>>,
    version: Version,
    /// The beginning of a packet, or packets that wait for the session.
    rest: Vec<u8>,
    /// There are packets in `rest`.
    waiting: bool,
    pub out: Vec<u8>,
    /// Per partition: records of this pass.
    records: Vec<Records>,
    /// QoS 1 messages of this pass, in order: index of the partition and how many.
    runs: Vec<(usize, u32)>,
    /// Receipts of this pass, per partition.
    receipts: Vec<Option<Receipt>>,
    /// The will's partition, when its record is the one in `records`.
    will: Option<usize>,
    /// An append found no room.
    full: bool,
    /// A put found no room.
    put: Option<Action>,
    seen: Vec<Receipt>,
    seen_state: Receipt,
    feeding: Feeding,
    /// The partition to look at first.
    turn: usize,
    /// In the tails.
    entered: bool,
    close: Option<Cause>,
}

/// A selector for a fetch: the session's filters.
struct Filters(Vec<Box<str>>);

impl Select for Filters {
    fn matches(&self, key: &[u8]) -> bool {
        std::str::from_utf8(key).is_ok_and(|topic| self.0.iter().any(|f| filter_matches(f, topic)))
    }
}

impl Driver {
    pub fn new(gateway: Arc<Gateway>) -> Self {
        let deadline = gateway.now().monotonic_ms + FIRST_PACKET_MS;
        gateway.totals.connections.fetch_add(1, Ordering::Relaxed);
        Self::with_phase(gateway, Phase::FirstPacket { deadline })
    }

    /// Looks after a session that nobody is connected to; `None` if somebody is.
    pub fn offline(gateway: Arc<Gateway>, client_id: &str) -> Option<Self> {
        let mut driver = Self::with_phase(gateway, Phase::Offline(None));
        if !driver.gateway.directory.claim_if_free(client_id, &driver.peer) {
            driver.gateway.peers.remove(&driver.peer.id);
            return None;
        }
        driver.client_id = Some(client_id.into());
        Some(driver)
    }

    fn with_phase(gateway: Arc<Gateway>, phase: Phase) -> Self {
        let peer = gateway.peer();
        let n = gateway.partitions.len();
        let seen = gateway.partitions.iter().map(|p| Receipt(gateway.engine.span(log_id(*p)).durable.0)).collect();
        Self {
            who: peer.clone(),
            peer,
            phase,
            client_id: None,
            version: Version::V5,
            rest: Vec::new(),
            waiting: false,
            out: Vec::new(),
            records: (0..n).map(|_| Records::default()).collect(),
            runs: Vec::new(),
            receipts: vec![None; n],
            will: None,
            full: false,
            put: None,
            seen,
            seen_state: Receipt(0),
            feeding: Feeding::Idle,
            turn: 0,
            entered: false,
            close: None,
            gateway,
        }
    }

    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Everything is done: drop it.
    pub fn is_left(&self) -> bool {
        matches!(self.phase, Phase::Left)
    }

    /// The socket is to be closed once `out` is sent.
    pub fn close(&self) -> Option<Cause> {
        self.close
    }

    pub fn wants_read(&self) -> bool {
        let ready = match &self.phase {
            Phase::FirstPacket { .. } => true,
            Phase::Running(s) => s.wants_packets(),
            _ => false,
        };
        ready && self.close.is_none() && !self.full && self.put.is_none() && self.out.len() < OUT_BYTES_STOP
    }

    /// When `timeout` is due, in `Now::monotonic_ms`.
    pub fn deadline(&self) -> Option<u64> {
        match &self.phase {
            Phase::FirstPacket { deadline } => Some(*deadline),
            Phase::Running(s) => s.deadline(),
            _ => None,
        }
    }

    /// Has the deadline passed?
    pub fn is_due(&self) -> bool {
        self.deadline().is_some_and(|d| d <= self.gateway.now().monotonic_ms)
    }

    pub fn instant(&self, monotonic_ms: u64) -> tokio::time::Instant {
        self.gateway.instant(monotonic_ms)
    }

    /// The first `n` bytes of `out` have left.
    pub fn written(&mut self, n: usize) {
        let was_full = self.out.len() >= OUT_BYTES_HIGH;
        if n < self.out.len() {
            self.out.drain(..n);
        } else if self.out.capacity() > OUT_BYTES_STOP {
            // What one burst stretched is not kept for the life of an idle connection.
            self.out = Vec::new();
        } else {
            self.out.clear();
        }
        if was_full && self.out.len() < OUT_BYTES_HIGH {
            self.woken();
        }
    }

    /// Bytes from the peer.
    pub fn received(&mut self, bytes: &[u8]) {
        let now = self.gateway.now();
        if self.rest.is_empty() {
            let used = self.decode(now, bytes);
            self.rest.extend_from_slice(bytes.get(used..).unwrap_or_default());
        } else {
            let mut all = std::mem::take(&mut self.rest);
            all.extend_from_slice(bytes);
            let used = self.decode(now, &all);
            all.drain(..used.min(all.len()));
            // An idle connection holds no buffer.
            self.rest = if all.is_empty() { Vec::new() } else { all };
        }
        self.pump(now);
    }

    /// The bell rang.
    pub fn woken(&mut self) {
        let now = self.gateway.now();
        self.pump(now);
    }

    pub fn timeout(&mut self) {
        let now = self.gateway.now();
        match &self.phase {
            Phase::FirstPacket { .. } => self.closed(Cause::KeepAlive),
            Phase::Running(_) => self.event(now, Event::Timeout),
            _ => {}
        }
        self.pump(now);
    }

    /// The socket has ended, or must.
    pub fn closed(&mut self, cause: Cause) {
        let now = self.gateway.now();
        self.close.get_or_insert(cause);
        match &self.phase {
            Phase::FirstPacket { .. } => self.leave(),
            Phase::Claiming(_) | Phase::Loading(_) => self.leave(),
            Phase::Running(_) => self.event(now, Event::Closed(cause)),
            // These end by themselves.
            Phase::Settling(..) | Phase::Offline(_) | Phase::Left => {}
        }
        self.pump(now);
    }

    fn event(&mut self, now: Now, event: Event) {
        let session = match &mut self.phase {
            Phase::Running(s) | Phase::Settling(_, s, _) | Phase::Offline(Some(s)) => s,
            _ => return,
        };
        session.handle(now, event, &mut self.out);
    }

    /// One pass over whole packets; then one append per partition. Gives the bytes it took.
    fn decode(&mut self, now: Now, bytes: &[u8]) -> usize {
        let mut used = 0;
        while self.wants_more() {
            let max = if matches!(self.phase, Phase::FirstPacket { .. }) { FIRST_PACKET_BYTES_MAX } else { PACKET_BYTES_MAX };
            match decode(bytes.get(used..).unwrap_or_default(), self.version, max) {
                Ok(Decoded::Incomplete(_)) => break,
                Ok(Decoded::Packet(packet, n)) => {
                    used += n;
                    self.packet(now, packet);
                }
                Err(e) => {
                    self.violation(now, e.into());
                    break;
                }
            }
        }
        self.waiting = !self.wants_more() && used < bytes.len();
        self.submit(now);
        used
    }

    fn wants_more(&self) -> bool {
        self.close.is_none() && matches!(self.phase, Phase::FirstPacket { .. } | Phase::Running(_))
    }

    fn packet(&mut self, now: Now, packet: Packet<'_>) {
        match &mut self.phase {
            Phase::FirstPacket { .. } => self.first_packet(packet),
            Phase::Running(session) => match session.packet(now, packet, &mut self.out) {
                Ok(None) => {}
                Ok(Some(message)) => {
                    if self.append(&message).is_err() {
                        self.violation(now, Violation { reason: ReasonCode::PACKET_TOO_LARGE, statement: "a message that is no record" });
                    }
                }
                Err(v) => self.violation(now, v),
            },
            _ => {}
        }
    }

    fn violation(&mut self, now: Now, v: Violation) {
        self.gateway.totals.violations.fetch_add(1, Ordering::Relaxed);
        tracing::info!(client = self.client_id.as_deref().unwrap_or("?"), reason = %v.reason, "closed: {}", v.statement);
        // What came before it is still appended and acknowledged if it can be.
        self.submit(now);
        if matches!(self.phase, Phase::FirstPacket { .. }) {
            if v.reason == ReasonCode::UNSUPPORTED_PROTOCOL_VERSION {
                refuse(Refusal { version: Version::V311, reason: v.reason }, &mut self.out);
            }
            self.close = Some(Cause::Violation(v));
            self.leave();
        } else {
            self.event(now, Event::Closed(Cause::Violation(v)));
        }
    }

    fn first_packet(&mut self, packet: Packet<'_>) {
        let Packet::Connect(c) = packet else {
            let statement = "MQTT-3.1.0-1: the first packet is not a CONNECT";
            self.close = Some(Cause::Violation(Violation { reason: ReasonCode::PROTOCOL_ERROR, statement }));
            self.gateway.totals.violations.fetch_add(1, Ordering::Relaxed);
            return self.leave();
        };
        self.version = c.version;
        match ConnectRequest::read(&c) {
            Err(refusal) => self.refuse(refusal.reason),
            Ok(mut request) => {
                if request.client_id.is_empty() {
                    request.assign(format!("weir-{:x}", self.gateway.sid()));
                }
                self.client_id = Some(request.client_id.as_str().into());
                self.gateway.directory.claim(&request.client_id, &self.peer);
                self.phase = Phase::Claiming(request);
            }
        }
    }

    fn refuse(&mut self, reason: ReasonCode) {
        let statement = "the connection was refused";
        self.gateway.totals.refused.fetch_add(1, Ordering::Relaxed);
        tracing::info!(client = self.client_id.as_deref().unwrap_or("?"), %reason, statement);
        refuse(Refusal { version: self.version, reason }, &mut self.out);
        self.close = Some(Cause::Violation(Violation { reason, statement }));
        self.leave();
    }

    /// Encodes a message into the records of its partition.
    fn append(&mut self, m: &Message<'_>) -> Result<usize, weir_log::record::PushError> {
        let p = self.gateway.partition_of(m.topic);
        let meta = m.meta();
        self.records[p].push(Kind::Message, meta.flags, meta.bytes(), m.topic.as_bytes(), &m.headers, m.payload)?;
        if m.will.is_none() && m.qos != weir_core::packet::Qos::AtMostOnce {
            match self.runs.last_mut() {
                Some((q, n)) if *q == p => *n += 1,
                _ => self.runs.push((p, 1)),
            }
        }
        Ok(p)
    }

    /// Appends the records of this pass; all receipts are told in order when every partition has taken its part.
    fn submit(&mut self, now: Now) {
        self.full = false;
        let mut failed = None;
        for (p, records) in self.records.iter_mut().enumerate() {
            if records.is_empty() {
                continue;
            }
            match self.gateway.engine.append(log_id(self.gateway.partitions[p]), records, &self.who) {
                Ok(receipt) => {
                    records.clear();
                    self.receipts[p] = Some(Receipt(receipt.0));
                }
                Err(AppendError::Full) => self.full = true,
                Err(e) => failed = Some(e),
            }
        }
        if let Some(e) = failed {
            tracing::error!("append: {e}");
            self.records.iter_mut().for_each(Records::clear);
            self.runs.clear();
            self.close = Some(Cause::LogFailed);
            return self.event(now, Event::Appended(Source::State, Watermark::Failed));
        }
        if self.full {
            return;
        }
        for (p, n) in std::mem::take(&mut self.runs) {
            if let Some(receipt) = self.receipts[p] {
                self.event(now, Event::Submitted(self.gateway.partitions[p], receipt, n));
            }
        }
        if let Some(p) = self.will.take()
            && let Some(receipt) = self.receipts[p]
        {
            // Its watermark may have passed already: look again.
            self.seen[p] = Receipt(0);
            self.event(now, Event::WillSubmitted(self.gateway.partitions[p], receipt));
        }
        self.receipts.fill(None);
    }

    /// Does everything that can be done now.
    fn pump(&mut self, now: Now) {
        self.read_mail(now);
        if self.full {
            self.submit(now);
        }
        self.watermarks(now);
        self.act(now);
        self.advance(now);
        self.watermarks(now);
        self.feed(now);
        self.act(now);
        if self.waiting && matches!(self.phase, Phase::Running(_)) {
            let mut rest = std::mem::take(&mut self.rest);
            let used = self.decode(now, &rest);
            rest.drain(..used.min(rest.len()));
            self.rest = rest;
            self.act(now);
            self.feed(now);
        }
        if let Phase::Running(s) | Phase::Settling(_, s, _) | Phase::Offline(Some(s)) = &mut self.phase {
            self.gateway.totals.add(s.take_counts());
        }
    }

    fn read_mail(&mut self, now: Now) {
        let mail = self.peer.take();
        for (id, p, at) in mail.started {
            self.event(now, Event::Started(id, p, at));
        }
        if mail.replaced && matches!(self.phase, Phase::Claiming(_)) {
            self.refuse(ReasonCode::SERVER_BUSY);
        }
        if mail.owned {
            self.load();
        }
        if let Some(loaded) = mail.loaded {
            self.loaded(now, loaded);
        }
        if let Some(fetched) = mail.fetched {
            self.fetched(now, fetched);
        }
        if mail.taken_over {
            self.end(now, Cause::TakenOver);
        }
        if mail.drain {
            self.end(now, Cause::Drain);
        }
    }

    fn end(&mut self, now: Now, cause: Cause) {
        match &self.phase {
            Phase::Running(_) => self.event(now, Event::Closed(cause)),
            Phase::FirstPacket { .. } => {
                self.close = Some(cause);
                self.leave();
            }
            // The client id is not served yet: whoever asks for it gets it in turn. A CONNECT that waits is refused.
            Phase::Claiming(_) | Phase::Loading(_) => self.refuse(ReasonCode::SERVER_UNAVAILABLE),
            // Goes when the will is durable.
            Phase::Settling(..) => self.close = Some(cause),
            Phase::Offline(_) | Phase::Left => {}
        }
    }

    /// The client id is ours: get what is stored under it.
    fn load(&mut self) {
        let Some(client_id) = &self.client_id else { return };
        if self.is_left() {
            return;
        }
        let peer = self.peer.clone();
        self.gateway.engine.state().get(&session_key(client_id), Box::new(move |loaded| peer.tell(|m| m.loaded = Some(loaded))));
        if let Phase::Claiming(request) = std::mem::replace(&mut self.phase, Phase::Offline(None)) {
            self.phase = Phase::Loading(request);
        }
    }

    fn loaded(&mut self, now: Now, loaded: Result<Option<weir_log::Entry>, ReadError>) {
        let client_id = self.client_id.clone().unwrap_or_default();
        let session = match loaded {
            Err(e) => {
                tracing::error!("session {client_id}: {e}");
                return self.refuse(ReasonCode::SERVER_UNAVAILABLE);
            }
            Ok(entry) => entry.map(|e| Session::decode(&client_id, &e.value)).transpose(),
        };
        let session = match session {
            Err(e @ (ValueError::Format(_) | ValueError::Malformed)) => {
                tracing::error!("state store, key c/{client_id}: {e}");
                return self.refuse(ReasonCode::IMPLEMENTATION_SPECIFIC);
            }
            Ok(session) => session,
        };
        match std::mem::replace(&mut self.phase, Phase::Left) {
            Phase::Loading(request) => self.loaded_for(now, request, session),
            Phase::Offline(_) => self.loaded_offline(now, session),
            other => self.phase = other,
        }
    }

    /// When the session's last connection ended without a word: with the process that it was connected to, or, in this one, when the
    /// log failed: now. In ms since 1970.
    fn ended(&self, now: Now, s: &Session) -> u64 {
        if s.boot() == self.gateway.boot { now.wall_ms } else { self.gateway.boots.ended(s.boot()) }
    }

    fn settle(&self, s: &mut Session) {
        if s.will_mark().is_some_and(|mark| self.gateway.published_wills.contains(&mark)) {
            s.forget_will();
        }
    }

    fn loaded_for(&mut self, now: Now, request: ConnectRequest, session: Option<Session>) {
        let Some(mut session) = session else { return self.run(now, &request, None, false) };
        let alive = session.expires_at(self.ended(now, &session)).is_none_or(|at| at > now.wall_ms);
        if session.was_connected() && session.has_will() {
            self.settle(&mut session);
            let ended = self.ended(now, &session);
            session.end_after_restart(ended);
            self.phase = Phase::Settling(request, Box::new(session), alive);
        } else {
            self.run(now, &request, Some(session).filter(|_| alive), true);
        }
    }

    fn loaded_offline(&mut self, now: Now, session: Option<Session>) {
        let Some(mut session) = session else {
            self.phase = Phase::Offline(None);
            return self.leave();
        };
        let ended = self.ended(now, &session);
        let expired = session.expires_at(ended).is_some_and(|at| at <= now.wall_ms);
        let will_due = session.was_connected() && session.has_will();
        self.settle(&mut session);
        if expired {
            session.expire();
        }
        if expired || will_due {
            session.end_after_restart(ended);
            self.phase = Phase::Offline(Some(Box::new(session)));
        } else {
            // Whoever disconnects in order is looked at again by its own doing; who was connected at the end of the process is not.
            if session.was_connected()
                && let Some(at) = session.expires_at(ended)
            {
                self.gateway.offline.look(at, session.client_id());
            }
            self.phase = Phase::Offline(None);
            self.leave();
        }
    }

    fn run(&mut self, now: Now, request: &ConnectRequest, session: Option<Session>, in_store: bool) {
        let resumed = session.is_some();
        let mut session = session.unwrap_or_else(|| Session::new(&request.client_id, 0));
        let span = |p: &PartitionId| (*p, Offset(self.gateway.engine.span(log_id(*p)).durable.0));
        let partitions: Vec<_> = self.gateway.partitions.iter().map(span).collect();
        let joining = Joining { sid: self.gateway.sid(), boot: self.gateway.boot, partitions: &partitions, resumed, in_store };
        session.connect(now, request, &joining, &mut self.out);
        self.phase = Phase::Running(Box::new(session));
    }

    /// Steps between phases that need nobody else.
    fn advance(&mut self, now: Now) {
        if !matches!(&self.phase, Phase::Settling(_, s, _) if s.is_ended()) {
            return;
        }
        if let Phase::Settling(request, session, alive) = std::mem::replace(&mut self.phase, Phase::Left) {
            if self.close.is_some() {
                // The peer is gone meanwhile.
                self.leave_now();
                return;
            }
            self.run(now, &request, Some(*session).filter(|_| alive), true);
            self.act(now);
        }
    }

    /// Looks how far everything is durable.
    fn watermarks(&mut self, now: Now) {
        if !matches!(self.phase, Phase::Running(_) | Phase::Settling(..) | Phase::Offline(Some(_))) {
            return;
        }
        for i in 0..self.gateway.partitions.len() {
            let p = self.gateway.partitions[i];
            match self.gateway.engine.appended(log_id(p)) {
                weir_log::Watermark::Appended(r) if r.0 > self.seen[i].0 => {
                    self.seen[i] = Receipt(r.0);
                    self.event(now, Event::Appended(Source::Partition(p), Watermark::Appended(Receipt(r.0))));
                }
                weir_log::Watermark::Appended(_) => {}
                weir_log::Watermark::Failed(_) => self.event(now, Event::Appended(Source::Partition(p), Watermark::Failed)),
            }
        }
        match self.gateway.engine.state().appended() {
            weir_log::Watermark::Appended(r) if r.0 > self.seen_state.0 => {
                self.seen_state = Receipt(r.0);
                self.event(now, Event::Appended(Source::State, Watermark::Appended(Receipt(r.0))));
            }
            weir_log::Watermark::Appended(_) => {}
            weir_log::Watermark::Failed(f) => self.gateway.state_failed(&f),
        }
    }

    /// Carries out what the session asks.
    fn act(&mut self, now: Now) {
        if let Some(put) = self.put.take() {
            self.perform(now, put);
        }
        while self.put.is_none() {
            let session = match &mut self.phase {
                Phase::Running(s) | Phase::Settling(_, s, _) | Phase::Offline(Some(s)) => s,
                _ => return,
            };
            let Some(action) = session.poll_action() else { return };
            self.perform(now, action);
        }
    }

    fn perform(&mut self, now: Now, action: Action) {
        match action {
            Action::PutValue | Action::DeleteValue => self.put_value(now, action),
            Action::AppendWill => self.append_will(now),
            Action::Subscribe(id, filter) => {
                self.entered = true;
                self.read_again();
                self.tell_tails(|| Command::Subscribe(self.peer.clone(), id, filter.clone()));
            }
            Action::Unsubscribe(filter) => self.tell_tails(|| Command::Unsubscribe(self.peer.id, filter.clone())),
            Action::Close(cause) => {
                self.close.get_or_insert(cause);
                self.feeding = Feeding::Idle;
                self.leave_tails();
            }
            Action::HandOver => {
                if !matches!(self.phase, Phase::Settling(..)) {
                    self.hand_over();
                }
            }
        }
    }

    fn put_value(&mut self, now: Now, action: Action) {
        let ended = self.gateway.boots.ended(0);
        let session = match &self.phase {
            Phase::Running(s) | Phase::Settling(_, s, _) | Phase::Offline(Some(s)) => s,
            _ => return,
        };
        let value = (action == Action::PutValue).then(|| session.value());
        // The deadline, where it is known: while it is connected there is none.
        let deadline = if session.was_connected() { None } else { session.expires_at(ended) };
        let tag = deadline.map_or(0, |at| u32::try_from(at.div_ceil(1_000)).unwrap_or(u32::MAX));
        let key = session_key(session.client_id());
        match self.gateway.engine.state().put(&[Put { key: &key, tag, value: value.as_deref() }], &self.who) {
            Ok(receipt) => self.event(now, Event::PutSubmitted(Receipt(receipt.0))),
            Err(AppendError::Full) => self.put = Some(action),
            Err(AppendError::TooLarge { bytes, .. }) => {
                tracing::error!(client = session.client_id(), bytes, "the session's value is too large to be stored");
                self.event(now, Event::Closed(Cause::LogFailed));
            }
            Err(e @ AppendError::Failed(_)) => self.gateway.state_failed(&e),
            // The process ends, and this session with it: as in a crash, its last value counts.
            Err(AppendError::Stopping) => self.leave(),
        }
    }

    fn append_will(&mut self, now: Now) {
        let session = match &self.phase {
            Phase::Running(s) | Phase::Settling(_, s, _) | Phase::Offline(Some(s)) => s,
            _ => return,
        };
        let Some(m) = session.will_message(now) else { return };
        let p = self.gateway.partition_of(m.topic);
        let meta = m.meta();
        if let Err(e) = self.records[p].push(Kind::Message, meta.flags, meta.bytes(), m.topic.as_bytes(), &m.headers, m.payload) {
            tracing::error!(client = session.client_id(), "a will that is no record: {e}");
            return;
        }
        self.will = Some(p);
        self.submit(now);
        self.watermarks(now);
    }

    fn tell_tails(&self, command: impl Fn() -> Command) {
        for tail in &self.gateway.tails {
            // A tail that is gone means that the process ends.
            let _ = tail.send(command());
        }
    }

    fn leave_tails(&mut self) {
        if std::mem::take(&mut self.entered) {
            self.tell_tails(|| Command::Leave(self.peer.id));
        }
    }

    /// The session has ended here; the store has it, if anybody has.
    fn hand_over(&mut self) {
        if let Phase::Running(s) | Phase::Offline(Some(s)) = &mut self.phase {
            self.gateway.totals.add(s.take_counts());
            if s.is_stored()
                && !s.was_connected()
                && let Some(at) = s.expires_at(0)
            {
                self.gateway.offline.look(at, s.client_id());
            }
        }
        self.leave();
    }

    fn leave(&mut self) {
        self.phase = Phase::Left;
        self.leave_now();
    }

    fn leave_now(&mut self) {
        self.leave_tails();
        if let Some(client_id) = &self.client_id {
            self.gateway.directory.leave(client_id, &self.peer);
        }
        self.gateway.peers.remove(&self.peer.id);
    }

    /// Gives the session records while there is room: what must be sent again, then retained pages, then what is new.
    fn feed(&mut self, now: Now) {
        loop {
            let Phase::Running(session) = &mut self.phase else { return };
            if !session.may_deliver() || self.out.len() >= OUT_BYTES_HIGH {
                return;
            }
            match std::mem::replace(&mut self.feeding, Feeding::Idle) {
                Feeding::Fetching(feed) => {
                    self.feeding = Feeding::Fetching(feed);
                    return;
                }
                Feeding::Held(held) => {
                    if !self.send_held(now, held) {
                        return;
                    }
                }
                Feeding::Idle => {
                    if !self.next_feed(now) {
                        return;
                    }
                }
            }
        }
    }

    /// True: it is sent, go on.
    fn send_held(&mut self, now: Now, mut held: Held) -> bool {
        let Phase::Running(session) = &mut self.phase else { return false };
        if let Feed::Resend(offsets) = &held.kind {
            let records: Vec<_> = held.batch.iter().collect();
            // A fetch may end early: what it did not come to is asked for again.
            let examined = offsets.partition_point(|o| *o < held.next);
            session.resend(now, &offsets[..examined], records.iter().filter_map(stored), &mut self.out);
            return true;
        }
        if let Feed::Page(page) = &held.kind
            && session.page_next() != Some(&page.paging)
        {
            // Unsubscribed meanwhile.
            return true;
        }
        while held.index < held.batch.len() as u32 {
            let full = self.out.len() >= OUT_BYTES_HIGH;
            let delivery = match stored(&held.batch.get(held.index)) {
                Some(_) if full => Delivery::NoRoom,
                Some(r) => match held.kind {
                    Feed::Range(nth) => session.deliver(now, nth, &r, &mut self.out),
                    Feed::Page(_) | Feed::Stale(_) | Feed::Resend(_) => session.deliver_retained(now, &r, &mut self.out),
                },
                None => Delivery::Done,
            };
            if delivery == Delivery::NoRoom {
                self.feeding = Feeding::Held(held);
                return false;
            }
            held.index += 1;
        }
        match held.kind {
            Feed::Range(nth) => {
                session.reader(nth).sent(held.next);
                session.reader(nth).fetched();
            }
            Feed::Page(mut page) => {
                page.offsets.retain(|o| *o >= held.next);
                if !page.offsets.is_empty() {
                    self.fetch_page(page);
                    return false;
                }
                session.handle(now, Event::PageEnded(page.after), &mut self.out);
            }
            Feed::Resend(_) | Feed::Stale(_) => {}
        }
        true
    }

    /// True: something was sent at once, go on.
    fn next_feed(&mut self, now: Now) -> bool {
        let Phase::Running(session) = &mut self.phase else { return false };
        if let Some((p, offsets)) = session.resend_next() {
            self.fetch(Feed::Resend(offsets.clone()), p, exactly(offsets.into_iter()));
            return false;
        }
        if session.page_next().is_some() {
            return self.next_page(now);
        }
        let n = session.partitions();
        for i in 0..n {
            let nth = (self.turn + i) % n;
            if self.next_step(now, nth) {
                // Partitions in rotation.
                self.turn = (nth + 1) % n;
                return true;
            }
            if !matches!(self.feeding, Feeding::Idle) {
                return false;
            }
        }
        false
    }

    fn next_page(&mut self, now: Now) -> bool {
        let Phase::Running(session) = &mut self.phase else { return false };
        let Some(paging) = session.page_next().cloned() else { return false };
        let Some((_, limit)) = session.page_limit(&paging) else {
            session.handle(now, Event::PageEnded(None), &mut self.out);
            return true;
        };
        let page = self.gateway.retained[paging.partition].read().page(&paging.filter, paging.after.as_deref(), PAGE_TOPICS);
        let mut offsets: Vec<_> = page.found.into_iter().map(|(_, at)| at).filter(|at| *at < limit).collect();
        offsets.sort_unstable();
        if offsets.is_empty() {
            session.handle(now, Event::PageEnded(page.after), &mut self.out);
            return true;
        }
        self.fetch_page(Page { paging, after: page.after, offsets });
        false
    }

    fn fetch_page(&mut self, page: Page) {
        let Some(p) = self.gateway.partitions.get(page.paging.partition).copied() else { return };
        let wanted = exactly(page.offsets.iter().copied());
        self.fetch(Feed::Page(page), p, wanted);
    }

    /// A filter is about to be added: what is being read was chosen without it.
    fn read_again(&mut self) {
        let Phase::Running(session) = &mut self.phase else { return };
        self.feeding = match std::mem::replace(&mut self.feeding, Feeding::Idle) {
            Feeding::Fetching(Feed::Range(nth)) => Feeding::Fetching(Feed::Stale(nth)),
            Feeding::Held(Held { kind: Feed::Range(nth), .. }) => {
                session.reader(nth).fetched();
                Feeding::Idle
            }
            other => other,
        };
    }

    fn next_step(&mut self, now: Now, nth: usize) -> bool {
        let Phase::Running(session) = &mut self.phase else { return false };
        let p = log_id(self.gateway.partitions[nth]);
        let durable = Offset(self.gateway.engine.span(p).durable.0);
        let recent = Offset(self.gateway.engine.recent_start(p).0);
        let (_, step) = session.step(nth, &mut self.peer.inboxes[nth].lock(), durable, recent);
        match step {
            Step::Wait => false,
            Step::Join => {
                let _ = self.gateway.tails[nth].send(Command::Join(self.peer.id));
                false
            }
            Step::Fetch(range) => {
                let (from, to) = (weir_log::Offset(range.start.0), weir_log::Offset(range.end.0));
                let select = Arc::new(Filters(session.filters()));
                self.fetch(Feed::Range(nth), self.gateway.partitions[nth], Wanted::Range { from, to, select });
                false
            }
            Step::Send => self.send_entry(now, nth),
        }
    }

    /// Sends from memory what the tail offered.
    fn send_entry(&mut self, now: Now, nth: usize) -> bool {
        let Phase::Running(session) = &mut self.phase else { return false };
        let Some(entry) = session.reader(nth).entry().cloned() else { return false };
        let p = log_id(self.gateway.partitions[nth]);
        let batch = self.gateway.engine.recent(p, &[weir_log::Offset(entry.batch.start.0)]).pop().flatten();
        let Some(batch) = batch else {
            session.reader(nth).fall_behind(&mut self.peer.inboxes[nth].lock());
            return true;
        };
        let next = session.reader(nth).next;
        for i in entry.runs.into_iter().flatten() {
            if entry.batch.start.0 + u64::from(i) < next.0 {
                continue;
            }
            let Some(r) = stored(&batch.get(i)) else { continue };
            if self.out.len() >= OUT_BYTES_HIGH || session.deliver(now, nth, &r, &mut self.out) == Delivery::NoRoom {
                return false;
            }
        }
        session.reader(nth).sent(entry.batch.end);
        true
    }

    fn fetch(&mut self, feed: Feed, partition: PartitionId, wanted: Wanted) {
        self.feeding = Feeding::Fetching(feed);
        let peer = self.peer.clone();
        let fetch = Fetch { partition: log_id(partition), wanted, records_max: FETCH_RECORDS, bytes_max: FETCH_BYTES };
        self.gateway.engine.fetch(fetch, Box::new(move |fetched| peer.tell(|m| m.fetched = Some(fetched))));
    }

    fn fetched(&mut self, now: Now, fetched: Result<Fetched, ReadError>) {
        let Feeding::Fetching(kind) = std::mem::replace(&mut self.feeding, Feeding::Idle) else { return };
        if let (Feed::Stale(nth), Phase::Running(session)) = (&kind, &mut self.phase) {
            return session.reader(*nth).fetched();
        }
        match fetched {
            Ok(f) => self.feeding = Feeding::Held(Held { kind, batch: f.batch, index: 0, next: Offset(f.next.0) }),
            Err(e) => {
                // Acknowledged records that cannot be read: this reader is told by the end of its connection, the operator here.
                tracing::error!(client = self.client_id.as_deref().unwrap_or("?"), "reading the log: {e}");
                self.event(now, Event::Closed(Cause::LogFailed));
            }
        }
    }
}

fn log_id(p: PartitionId) -> weir_log::PartitionId {
    weir_log::PartitionId(p.0)
}

fn exactly(offsets: impl Iterator<Item = Offset>) -> Wanted {
    Wanted::Exactly(offsets.map(|o| weir_log::Offset(o.0)).collect())
}
