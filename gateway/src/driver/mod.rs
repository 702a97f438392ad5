//! The driver of one connection: bytes in, bytes out. It carries out what the session asks, on the log and on the tails, and tells it what
//! became of it.
//!
//! ```text
//!   first packet ──▶ claim the client id ──▶ load its value ──▶ (publish a will that was due) ──▶ session connected ──▶ … ──▶ left
//! ```
//!
//! Invariant: never waits, but for the sync of what it appends alone (`Engine::append_leading`); whatever is not there yet comes through the mailbox and a ring. It outlives its socket until the session has ended.
//! Must not know: sockets, tasks. TCP and websocket are adapters (`tcp`, `websocket`).

mod act;
mod feed;
mod groups;
mod life;
mod order;
mod out;
mod pace;
pub(crate) use pace::Debts;
mod room;
mod sending;
mod submit;
#[cfg(test)]
mod tests;
mod trace;

use crate::{
    cursors::Counted,
    gateway::Gateway,
    interests::Asked,
    metrics::Total,
    peer::{Identity, Peer},
    refusals::short,
};
use feed::Feeding;
pub(crate) use feed::LARGE_FETCHES;
use out::Out;
use std::{net::SocketAddr, sync::Arc};
use submit::Pass;
use tokio::sync::mpsc::UnboundedSender;
use trace::Traces;
use weir_bridge::filters::Filters;
use weir_core::{
    codec::{Decoded, decode_of},
    ids::{Now, Offset, PartitionId, Receipt, Source, Watermark},
    packet::{Packet, ReasonCode, Version},
    session::{Action, Append, Cause, ConnectRequest, Event, PACKET_BYTES_MAX, Refusal, Session, Violation, refuse},
};
use weir_log::{Asker, Wake, record::Registration};

/// A time that does not come. An idle connection holds little, and an `Option` is twice as long.
const NEVER: u64 = u64::MAX;
/// A first packet is a CONNECT: a will, and names, a password and properties in so many bytes.
const FIRST_PACKET_MORE: usize = 64 * 1024;
/// Time for the first packet, as in mosquitto and others: a socket that says nothing costs a little memory for so long.
const FIRST_PACKET_MS: u64 = 10_000;
/// Time in which a session is found: for another connection to leave it, and for the state store to read it.
const LOGIN_MS: u64 = 5_000;
/// A session's value may be rewritten so fast: ten times a second if it is as large as it may be by default, and with less in it as often as its client likes.
const PUT_BYTES_PER_MS: u64 = 2_560;
/// So far ahead.
const PUT_AHEAD_MS: u64 = 1_000;
/// Unsent bytes beyond which nothing more is delivered.
const OUT_BYTES_HIGH: usize = 64 * 1024;
/// Unsent bytes beyond which nothing more is read: acknowledgements of what comes in pile up too.
const OUT_BYTES_STOP: usize = 256 * 1024;

/// Where the connection stands.
enum Phase {
    FirstPacket {
        deadline: u64,
    },
    /// Its session is being found, until then (`Now::monotonic_ms`).
    Claiming(Box<ConnectRequest>, u64),
    Loading(Box<ConnectRequest>, u64),
    /// The session's last connection ended with the process, and its will is published first.
    Settling(Box<ConnectRequest>, Box<Session>, bool),
    Running(Box<Session>),
    /// Looking after a session without a connection.
    Offline(Option<Box<Session>>),
    Left,
}

impl Phase {
    fn session(&mut self) -> Option<&mut Session> {
        match self {
            Self::Running(s) | Self::Settling(_, s, _) | Self::Offline(Some(s)) => Some(s),
            _ => None,
        }
    }
}

/// A put that found no room, or came too soon after others.
struct DeferredPut {
    action: Action,
    /// In `Now::monotonic_ms`; `None`: when there is room.
    due: Option<u64>,
}

pub(crate) struct Driver {
    gateway: Arc<Gateway>,
    peer: Arc<Peer>,
    /// The peer, as the log knows it.
    who: Arc<dyn Wake>,
    phase: Phase,
    client_id: Option<Arc<str>>,
    version: Version,
    /// The beginning of a packet, or packets that wait for the session.
    rest: Vec<u8>,
    /// Bytes that the packet at the front of `rest` has, as far as they are known.
    needs: usize,
    /// For what is in `rest`, or will be; seldom any.
    room: Option<Box<room::For>>,
    /// For large messages that it is sent; seldom any.
    sending: Option<Box<sending::OutboundRoom>>,
    /// How fast it may publish, if that is limited.
    pace: Option<Box<pace::Pace>>,
    /// The peer has closed its side, while it was not read.
    pub hung_up: bool,
    /// There are packets in `rest`.
    waiting: bool,
    /// The first of them waits for what those before it began.
    blocked: bool,
    /// Filters were added or removed since its actions were carried out.
    filters_changed: bool,
    /// Tails that were asked to say when they have offered everything up to there, and whether they have.
    reached: Vec<(PartitionId, Offset, bool)>,
    /// Of a member of groups.
    groups: Option<Box<groups::Membership>>,
    /// There was no room for what was to be sent last.
    stuck: bool,
    /// Another connection has the client id, and was asked to leave.
    awaits_owner: bool,
    /// Bytes of `out` that are deliveries, or fewer.
    delivered: u32,
    /// The same of those that wait for the session's value.
    delivered_held: u32,
    pub out: Out,
    /// Of a publisher whose PUBACK says whether anybody subscribes.
    asked: Option<Box<Asked>>,
    /// Not counted yet.
    bytes_in: u64,
    packets_in: u64,
    /// It has published on this connection.
    publishes: bool,
    /// It speaks MQTT 3.1.
    is_31: bool,
    /// An operator's act goes this way: what happens to it is not what happens to a client.
    pub visit: Option<Box<Visit>>,
    /// Of the bytes that were received last: nothing in them is answered.
    unanswered: bool,
    /// What the value of its session in the store says of how far it has come.
    counted: Counted,
    /// What it appends.
    pass: Option<Box<Pass>>,
    /// Of its last pass.
    registered: Registration,
    /// An append found no room.
    full: bool,
    put: Option<Box<DeferredPut>>,
    /// Until when what it has put is paid for, in `Now::monotonic_ms`.
    paid_ms: u64,
    seen: Box<[Receipt]>,
    seen_state: Receipt,
    feeding: Feeding,
    /// Of a session with many filters: until when it may look at records, in `Now::monotonic_ms`, and whether it would have looked at more.
    turn_end: u64,
    turn_over: bool,
    /// Whoever reads the log for it.
    asker: Option<Box<Asker>>,
    /// Much of what was looked through last was wanted.
    dense: bool,
    /// What is read from the log; `None`: the filters have changed.
    filters: Option<Arc<Filters>>,
    /// The partition to look at first.
    turn: usize,
    /// In the tails.
    entered: bool,
    /// In `Gateway::marked`.
    marked: bool,
    /// Dropped when the value says all that is known.
    checkpoint: Option<UnboundedSender<()>>,
    /// Of watched topics.
    traces: Option<Box<Traces>>,
    close: Option<Cause>,
}

/// What an operator's act is about.
#[derive(Default)]
pub(crate) struct Visit {
    /// Only a session that nobody has, and had since then, by the steady clock.
    pub idle_since: Option<u64>,
}

impl Driver {
    fn idle_since(&self) -> Option<u64> {
        self.visit.as_ref().and_then(|visit| visit.idle_since)
    }

    pub fn new(gateway: Arc<Gateway>, address: Option<SocketAddr>) -> Self {
        let deadline = gateway.now().monotonic_ms + FIRST_PACKET_MS;
        let driver = Self::with_phase(gateway, address, Phase::FirstPacket { deadline });
        driver.peer.set_connected(true);
        driver
    }

    /// Looks after a session that nobody is connected to; `None` if somebody is.
    pub fn offline(gateway: Arc<Gateway>, client_id: &str) -> Option<Self> {
        let mut driver = Self::with_phase(gateway, None, Phase::Offline(None));
        let client_id: Arc<str> = client_id.into();
        if !driver.gateway.directory.claim_if_free(&client_id, &driver.peer) {
            driver.gateway.peers.remove(&driver.peer.id);
            return None;
        }
        driver.client_id = Some(client_id);
        Some(driver)
    }

    fn with_phase(gateway: Arc<Gateway>, address: Option<SocketAddr>, phase: Phase) -> Self {
        let peer = gateway.peer(address);
        let seen = gateway.partitions.iter().map(|p| Receipt(gateway.engine.span(log_id(*p)).durable.0)).collect();
        Self {
            who: peer.clone(),
            peer,
            phase,
            client_id: None,
            version: Version::V5,
            rest: Vec::new(),
            needs: 0,
            room: None,
            sending: None,
            pace: None,
            hung_up: false,
            waiting: false,
            blocked: false,
            filters_changed: false,
            reached: Vec::new(),
            groups: None,
            stuck: false,
            awaits_owner: false,
            delivered: 0,
            delivered_held: 0,
            out: Out::default(),
            asked: None,
            bytes_in: 0,
            packets_in: 0,
            publishes: false,
            is_31: false,
            visit: None,
            unanswered: false,
            counted: Counted::default(),
            pass: None,
            registered: Registration::default(),
            full: false,
            put: None,
            paid_ms: 0,
            seen,
            seen_state: Receipt(0),
            feeding: Feeding::Idle,
            turn_end: NEVER,
            turn_over: false,
            asker: None,
            dense: true,
            filters: None,
            turn: 0,
            entered: false,
            marked: false,
            checkpoint: None,
            traces: None,
            close: None,
            gateway,
        }
    }

    pub fn gateway(&self) -> &Arc<Gateway> {
        &self.gateway
    }

    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Its client id, as far as that stands in a line of the log.
    fn name(&self) -> &str {
        self.client_id.as_deref().map_or("?", short)
    }

    /// Everything is done: drop it.
    pub fn is_left(&self) -> bool {
        matches!(self.phase, Phase::Left)
    }

    /// Its session is being found; the peer waits for the gateway.
    pub fn is_entering(&self) -> bool {
        // A connection that waits for another to leave holds no turn.
        matches!(self.phase, Phase::Claiming(..)) && !self.awaits_owner || matches!(self.phase, Phase::Loading(..) | Phase::Settling(..))
    }

    /// The client id whose session it works on.
    #[cfg(test)]
    pub fn owns(&self) -> Option<&str> {
        let owner = matches!(self.phase, Phase::Running(_) | Phase::Settling(..) | Phase::Offline(Some(_)));
        self.client_id.as_deref().filter(|_| owner)
    }

    /// The socket is to be closed once `out` is sent.
    pub fn close(&self) -> Option<Cause> {
        self.close
    }

    pub fn wants_read(&self) -> bool {
        let ready = matches!(self.phase, Phase::FirstPacket { .. } | Phase::Running(_));
        ready
            && self.takes_packets()
            && self.close.is_none()
            && !self.waits_for_room()
            && !self.full
            && !self.waits_for_its_pace()
            && !self.blocked
            && self.put.is_none()
            && self.takes_answers()
    }

    /// Not too much of what was read waits for the disk.
    fn takes_packets(&self) -> bool {
        !matches!(&self.phase, Phase::Running(session) if !session.wants_packets())
    }

    /// Answers to what is read have room. What was delivered takes none of it: a client that is sent a large message goes on
    /// being heard, and one that sends and is sent at once does not wait for us while we wait for it.
    fn takes_answers(&self) -> bool {
        self.out.len() < OUT_BYTES_STOP + self.delivered as usize
    }

    /// When `timeout` is due, in `Now::monotonic_ms`.
    pub fn deadline(&self) -> Option<u64> {
        match &self.phase {
            Phase::FirstPacket { deadline } => Some(*deadline),
            Phase::Claiming(_, deadline) | Phase::Loading(_, deadline) => Some(*deadline),
            Phase::Running(s) => s
                .deadline()
                .into_iter()
                .chain(self.put.as_ref().and_then(|put| put.due))
                .chain(self.room_deadline())
                .chain(self.pace_deadline())
                .chain(self.sending_deadline())
                .min(),
            _ => None,
        }
    }

    /// It has more to look at, when others have had their turns.
    pub fn take_turn_over(&mut self) -> bool {
        std::mem::take(&mut self.turn_over)
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
        self.gateway.totals.add(Total::BytesOut, n as u64);
        let was_full = self.out.len() >= OUT_BYTES_HIGH;
        if !self.takes_answers() {
            // It is not read, and takes what it is sent: it is alive.
            self.heard(self.gateway.now());
        }
        self.out.written(n);
        self.delivered = self.delivered.saturating_sub(n as u32);
        self.give_room_back(n);
        self.was_sent(n);
        if was_full && self.out.len() < OUT_BYTES_HIGH {
            self.woken();
        }
    }

    /// Should TCP acknowledge the last bytes at once? A client that also publishes may hold its next small
    /// packet until then (RFC 896), and no answer carries the acknowledgement.
    pub fn waits_for_tcp(&self) -> bool {
        self.unanswered && self.publishes && self.out.is_empty()
    }

    /// Bytes from the peer.
    pub fn received(&mut self, bytes: &[u8]) {
        let now = self.gateway.now();
        self.unanswered = true;
        self.bytes_in += bytes.len() as u64;
        // Of a packet that takes longer than the keep-alive, too.
        self.heard(now);
        let (mut begun, mut bytes) = (std::mem::take(&mut self.rest), bytes);
        let mut ended = false;
        // Only the packet that has begun is put together; what is behind it is decoded where it is.
        while !begun.is_empty() && !bytes.is_empty() && self.wants_more() {
            let missing = self.needs.checked_sub(begun.len()).filter(|n| *n > 0).unwrap_or(bytes.len());
            let (part, behind) = bytes.split_at(missing.min(bytes.len()));
            begun.extend_from_slice(part);
            bytes = behind;
            let used = self.packets(now, &begun);
            begun.drain(..used.min(begun.len()));
            ended |= used > 0;
        }
        if begun.is_empty() {
            // What was begun may have been large, and what begins now has no room for so much. An
            // idle connection holds no buffer.
            begun = Vec::new();
        }
        let used = if begun.is_empty() { self.packets(now, bytes) } else { 0 };
        begun.extend_from_slice(bytes.get(used..).unwrap_or_default());
        self.rest = begun;
        self.end_pass(now);
        if ended {
            self.packet_ended();
        }
        self.make_room(now);
        self.pump(now);
    }

    /// The client is alive.
    fn heard(&mut self, now: Now) {
        if let Phase::Running(session) = &mut self.phase {
            session.heard(now);
        }
    }

    /// The bell rang.
    pub fn woken(&mut self) {
        let now = self.gateway.now();
        self.pump(now);
    }

    pub fn timeout(&mut self) {
        let now = self.gateway.now();
        if self.is_stuck_in_a_packet(now) {
            self.close_for_room(now);
            return self.pump(now);
        }
        match &self.phase {
            Phase::FirstPacket { .. } => self.closed(Cause::KeepAlive),
            Phase::Claiming(..) | Phase::Loading(..) => self.refuse(ReasonCode::SERVER_BUSY),
            Phase::Running(_) => {
                if !self.wants_read() && self.takes_answers() && !self.hung_up {
                    // The gateway does not read: that is no silence of the client.
                    self.heard(now);
                }
                self.go_on_at_its_pace(now);
                if !self.end_what_is_not_taken(now) {
                    self.event(now, Event::Timeout);
                }
            }
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
            Phase::Claiming(..) | Phase::Loading(..) => self.leave(),
            Phase::Running(_) => self.event(now, Event::Closed(cause)),
            // These end by themselves.
            Phase::Settling(..) | Phase::Offline(_) | Phase::Left => {}
        }
        self.pump(now);
    }

    fn event(&mut self, now: Now, event: Event) {
        if let Some(session) = self.phase.session() {
            session.handle(now, event, self.out.end());
        }
    }

    /// Takes whole packets. Gives their bytes.
    fn packets(&mut self, now: Now, bytes: &[u8]) -> usize {
        let mut used = 0;
        self.blocked = false;
        while self.wants_more() {
            if used < bytes.len() && !(self.takes_answers() && self.takes_packets()) {
                // It goes on when some answers have left.
                self.blocked = true;
                break;
            }
            let is_first = matches!(self.phase, Phase::FirstPacket { .. });
            let max = if is_first { self.gateway.client_limits().will_bytes + FIRST_PACKET_MORE } else { PACKET_BYTES_MAX };
            let rest = bytes.get(used..).unwrap_or_default();
            // Looked at where it is: moving it cost 3 % of a message.
            match &decode_of(rest, self.version, self.is_31, max) {
                Ok(Decoded::Incomplete(needs)) => {
                    self.needs = *needs;
                    break;
                }
                Ok(Decoded::Packet(packet, n)) => {
                    if matches!(packet, Packet::PubAck(_) | Packet::PubRec(_) | Packet::PubComp(_)) {
                        // There may be room now.
                        self.stuck = false;
                    }
                    if self.must_wait(now, packet) {
                        self.blocked = true;
                        break;
                    }
                    used += *n;
                    self.packets_in += 1;
                    self.unanswered &= matches!(packet, Packet::PubAck(_) | Packet::PubComp(_));
                    if matches!(packet, Packet::Publish(_)) {
                        self.publishes = true;
                        self.keep_pace(now, *n);
                    }
                    self.packet(now, packet);
                }
                Err(e) => {
                    self.violation(now, (*e).into());
                    break;
                }
            }
        }
        used
    }

    /// One append per partition for everything that the pass brought.
    fn end_pass(&mut self, now: Now) {
        let begins = matches!(self.phase, Phase::Claiming(..) | Phase::Loading(..) | Phase::Settling(..));
        self.waiting = !self.rest.is_empty() && (begins || self.blocked);
        self.submit(now);
        self.trace_taken();
    }

    /// Nothing is taken after a goodbye or a violation, whatever stands behind it [MQTT-3.14.4-1, MQTT-4.13.1-1].
    fn wants_more(&self) -> bool {
        match &self.phase {
            Phase::FirstPacket { .. } => self.close.is_none(),
            Phase::Running(s) => self.close.is_none() && s.is_connected() && !self.blocked,
            _ => false,
        }
    }

    fn packet(&mut self, now: Now, packet: &Packet<'_>) {
        match &mut self.phase {
            Phase::FirstPacket { .. } => self.first_packet(packet),
            Phase::Running(session) => match session.packet(now, packet, self.out.end()) {
                Ok(None) => {}
                Ok(Some(append)) => {
                    if self.append(&append).is_err() {
                        return self
                            .violation(now, Violation { reason: ReasonCode::PACKET_TOO_LARGE, statement: "a message that is no record" });
                    }
                    self.tell_interest(&append);
                }
                Err(v) => self.violation(now, v),
            },
            _ => {}
        }
    }

    fn tell_interest(&mut self, append: &Append<'_>) {
        if let (Phase::Running(session), Append::Message(m)) = (&mut self.phase, append)
            && session.tells_interest(m)
            && !self.gateway.interests.any(&m.topic, self.asked.get_or_insert_default())
        {
            session.nobody_subscribes();
        }
    }

    /// The peer broke a rule of what carries its packets.
    pub fn broke(&mut self, reason: ReasonCode, statement: &'static str) {
        let now = self.gateway.now();
        self.violation(now, Violation { reason, statement });
        self.pump(now);
    }

    /// Where it comes from, in a line of the log.
    fn from(&self) -> tracing::field::DisplayValue<String> {
        tracing::field::display(self.peer.address.map_or_else(|| "?".into(), |a| a.to_string()))
    }

    fn violation(&mut self, now: Now, v: Violation) {
        self.gateway.totals.add(Total::Violation, 1);
        tracing::info!(client = self.name(), address = self.from(), reason = %v.reason, "closed: {}", v.statement);
        // What came before it is still appended.
        self.submit(now);
        if matches!(self.phase, Phase::FirstPacket { .. }) {
            if matches!(v.reason, ReasonCode::UNSUPPORTED_PROTOCOL_VERSION | ReasonCode::CLIENT_IDENTIFIER_NOT_VALID) {
                refuse(Refusal { version: Version::V311, reason: v.reason, limit: None }, self.out.end());
            }
            self.close = Some(Cause::Violation(v));
            self.leave();
        } else {
            self.event(now, Event::Closed(Cause::Violation(v)));
        }
    }

    fn first_packet(&mut self, packet: &Packet<'_>) {
        let Packet::Connect(c) = packet else {
            let statement = "MQTT-3.1.0-1: the first packet is not a CONNECT";
            self.close = Some(Cause::Violation(Violation { reason: ReasonCode::PROTOCOL_ERROR, statement }));
            self.gateway.totals.add(Total::Violation, 1);
            return self.leave();
        };
        self.version = c.version;
        self.is_31 = c.is_31;
        self.gateway.totals.add(Total::Connects, 1);
        match ConnectRequest::read(c, &self.gateway.client_limits()) {
            Err(refusal) => {
                if let Some(limit) = refusal.limit {
                    self.gateway.refused(limit, c.client_id);
                }
                self.refuse(refusal.reason);
            }
            Ok(mut request) => {
                if request.client_id.is_empty() {
                    request.assign(format!("weir-{:x}", self.gateway.sid()));
                }
                // The connection, its identity and the directory keep the same one.
                let client_id: Arc<str> = request.client_id.as_str().into();
                self.client_id = Some(client_id.clone());
                let (version, connected_ms) = (request.version, self.gateway.now().wall_ms);
                self.peer.identify(Identity { client_id: client_id.clone(), version, connected_ms });
                if self.idle_since().is_some() {
                    if !self.gateway.directory.claim_if_free(&client_id, &self.peer) {
                        return self.refuse(ReasonCode::SESSION_TAKEN_OVER);
                    }
                } else {
                    self.awaits_owner = !self.gateway.directory.claim(&client_id, &self.peer);
                }
                self.phase = Phase::Claiming(Box::new(request), self.gateway.now().monotonic_ms + LOGIN_MS);
            }
        }
    }

    fn refuse(&mut self, reason: ReasonCode) {
        let statement = "the connection was refused";
        self.gateway.totals.add(Total::Connect, 1);
        let client_id = self.name();
        if self.visit.is_none() {
            self.gateway.events.refused(&self.gateway, client_id, self.peer.address.map(|a| a.to_string()), reason);
            tracing::info!(client = client_id, address = self.from(), %reason, "{statement}");
        }
        self.gateway.totals.add(Total::PacketsOut, 1);
        refuse(Refusal { version: self.version, reason, limit: None }, self.out.end());
        self.close = Some(Cause::Violation(Violation { reason, statement }));
        self.leave();
    }

    /// Does everything that can be done now.
    fn pump(&mut self, now: Now) {
        self.work(now);
        let mut stood = false;
        while self.waiting && matches!(self.phase, Phase::Running(_)) {
            let mut rest = std::mem::take(&mut self.rest);
            let used = self.packets(now, &rest);
            rest.drain(..used.min(rest.len()));
            self.rest = if rest.is_empty() { Vec::new() } else { rest };
            self.end_pass(now);
            // What they append may be durable already, and nobody says so again; a violation is to be told.
            self.work(now);
            // What the packet waits for may have been done just now, and nobody says so again.
            if used == 0 && std::mem::replace(&mut stood, true) {
                break;
            }
            stood &= used == 0;
        }
        if self.rest.is_empty() || self.close.is_some() {
            // Behind the end nothing more is taken, however long the session takes.
            (self.rest, self.waiting, self.room) = (Vec::new(), false, None);
        }
        self.tell();
    }

    fn work(&mut self, now: Now) {
        self.take_room(now);
        self.read_mail(now);
        if self.full {
            self.submit(now);
        }
        self.watermarks(now);
        if self.checkpoint.is_some() {
            self.pass();
            self.event(now, Event::Checkpoint { marked: self.marked });
        }
        self.act(now);
        if self.put.is_none() {
            self.checkpoint = None;
        }
        self.advance(now);
        self.watermarks(now);
        let (out, held) = (self.out.len(), self.held_bytes());
        self.feed(now);
        self.delivered += (self.out.len() - out) as u32;
        self.delivered_held += (self.held_bytes() - held) as u32;
        self.give_up_room();
        self.tell_sent();
        self.act(now);
    }

    /// What others may know of it.
    fn tell(&mut self) {
        self.gateway.totals.add(Total::BytesIn, std::mem::take(&mut self.bytes_in));
        self.gateway.totals.add(Total::PacketsIn, std::mem::take(&mut self.packets_in));
        let Some(session) = self.phase.session() else { return };
        let counts = session.take_counts();
        self.gateway.totals.add_counts(&counts);
        self.gateway.events.counted(&self.gateway, session.client_id(), &counts);
        (0..self.gateway.partitions.len()).for_each(|nth| self.peer.set_behind(nth, session.behind(nth)));
    }

    fn read_mail(&mut self, now: Now) {
        let Some(mail) = self.peer.take() else { return };
        for (id, p, at) in mail.started {
            self.event(now, Event::Started(id, p, at));
        }
        for (p, at) in mail.offered {
            self.reached.iter_mut().filter(|(q, asked, _)| *q == p && at >= *asked).for_each(|(_, _, offered)| *offered = true);
        }
        mail.groups_reached.iter().for_each(|at| self.group_reached(at));
        if let Some(e) = mail.unread {
            self.unreadable(now, &e);
        }
        for id in mail.shared {
            self.event(now, Event::Shared(id));
        }
        self.groups_gave(mail.given);
        if mail.replaced && matches!(self.phase, Phase::Claiming(..)) {
            self.refuse(ReasonCode::SERVER_BUSY);
        }
        if mail.owned {
            self.load();
        }
        if let Some(loaded) = mail.loaded {
            self.loaded(now, loaded);
        }
        if mail.checkpoint.is_some() {
            self.checkpoint = mail.checkpoint;
        }
        if let Some(fetched) = mail.fetched {
            self.fetched(now, fetched);
        }
        if let Some(kept) = mail.kept {
            self.kept(now, kept);
        }
        if mail.taken_over {
            self.gateway.totals.add(Total::Takeovers, 1);
            self.end(now, Cause::TakenOver);
        }
        if let Some(room) = mail.out_room {
            self.out_room_came(room);
        }
        if mail.drain {
            self.end(now, Cause::Drain);
        }
        if mail.dismissed {
            self.end(now, Cause::Dismissed);
        }
        for ask in mail.describe {
            if let Phase::Running(session) = &self.phase {
                // Who asked may have gone.
                let _ = ask.send(session.describe(now.steady_ms));
            }
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
            Phase::Claiming(..) | Phase::Loading(..) => self.refuse(ReasonCode::SERVER_UNAVAILABLE),
            // Goes when the will is durable.
            Phase::Settling(..) => self.close = Some(cause),
            Phase::Offline(_) | Phase::Left => {}
        }
    }

    /// Looks how far everything is durable.
    fn watermarks(&mut self, now: Now) {
        if self.phase.session().is_none() {
            return;
        }
        for i in 0..self.gateway.partitions.len() {
            let p = self.gateway.partitions[i];
            match self.gateway.engine.appended(log_id(p)) {
                weir_log::Watermark::Appended(r) if r.0 > self.seen[i].0 => {
                    self.seen[i] = Receipt(r.0);
                    self.event(now, Event::Appended(Source::Partition(p), Watermark::Appended(Receipt(r.0))));
                    self.trace_acknowledged(p, r.0);
                }
                weir_log::Watermark::Appended(_) => {}
                weir_log::Watermark::Failed(f) => {
                    self.gateway.partition_failed(&f);
                    self.event(now, Event::Appended(Source::Partition(p), Watermark::Failed));
                }
            }
        }
        match self.gateway.engine.state().appended() {
            weir_log::Watermark::Appended(r) if r.0 > self.seen_state.0 => {
                self.seen_state = Receipt(r.0);
                let held = self.held_bytes();
                self.event(now, Event::Appended(Source::State, Watermark::Appended(Receipt(r.0))));
                let released = held.saturating_sub(self.held_bytes()) as u32;
                let delivered = released.min(self.delivered_held);
                self.delivered_held -= delivered;
                self.delivered += delivered;
            }
            weir_log::Watermark::Appended(_) => {}
            weir_log::Watermark::Failed(f) => self.gateway.state_failed(&f),
        }
    }
}

fn log_id(p: PartitionId) -> weir_log::PartitionId {
    weir_log::PartitionId(p.0)
}
