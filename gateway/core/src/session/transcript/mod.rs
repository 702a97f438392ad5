//! Whole sessions as transcripts, one script for both versions.
//!
//! `>` a packet from the client, `=` what the shell tells, `@` the time in ms; then what must follow: `<` packets to the client, `!`
//! actions. A line that begins with `4` or `5` is for that version only. Topic `w/a` lies in partition 1, the others in 0.

mod copies;
mod failures;
mod positions;
mod qos2;
mod scripts;

use super::*;
use crate::{
    codec::{Decoded, decode},
    message::{Stored, partition_of},
    packet::{Connect, Filters, PacketId, Publish, Qos, Subscribe, SubscriptionOptions, Unsubscribe, Will},
    property::{PropertiesBuf, Property},
};
use connect::Joining;
use std::{collections::HashMap, fmt::Write, sync::Arc};

struct World {
    version: Version,
    session: Session,
    now: u64,
    out: Vec<u8>,
    log: String,
    receipts: HashMap<Source, u64>,
    stored: Option<Vec<u8>>,
    ids: HashMap<String, SubscribeId>,
    /// What the log says of the session, and how far each partition is durable.
    facts: Vec<(PartitionId, Receipt, Fact)>,
    durable: HashMap<PartitionId, Receipt>,
    boot: u64,
    limits: Arc<Limits>,
}

const PARTITIONS: [PartitionId; 2] = [PartitionId(0), PartitionId(1)];

fn partition(topic: &str) -> PartitionId {
    PARTITIONS[partition_of(topic, 2)]
}

/// `key=value` among the words.
fn field<'a>(words: &[&'a str], key: &str) -> Option<&'a str> {
    words.iter().find_map(|w| w.strip_prefix(key)?.strip_prefix('='))
}

fn number(words: &[&str], key: &str) -> Option<u32> {
    field(words, key).map(|v| v.parse().expect("a number"))
}

fn id(words: &[&str]) -> Option<PacketId> {
    words.iter().find_map(|w| PacketId::new(w.strip_prefix('#')?.parse().ok()?))
}

fn qos(words: &[&str]) -> Qos {
    words.iter().find_map(|w| w.strip_prefix('q')).and_then(|n| Qos::from_bits(n.parse().ok()?)).unwrap_or_default()
}

/// The word in quotes.
fn payload<'a>(words: &[&'a str]) -> &'a [u8] {
    words.iter().find(|w| w.starts_with('"')).map_or(&[], |w| w.trim_matches('"').as_bytes())
}

impl World {
    fn new(version: Version) -> Self {
        Self {
            version,
            session: Session::new("a", 0),
            now: 0,
            out: Vec::new(),
            log: String::new(),
            receipts: HashMap::new(),
            stored: None,
            ids: HashMap::new(),
            facts: Vec::new(),
            durable: HashMap::new(),
            boot: 1,
            limits: DEFAULT_LIMITS.clone(),
        }
    }

    fn now(&self) -> Now {
        Now { monotonic_ms: self.now, wall_ms: self.now, steady_ms: self.now }
    }

    fn say(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.log, "{line}").expect("a string");
    }

    fn receipt(&mut self, source: Source) -> Receipt {
        let r = self.receipts.entry(source).or_default();
        *r += 1;
        Receipt(*r)
    }

    fn event(&mut self, event: Event) {
        let (now, mut out) = (self.now(), std::mem::take(&mut self.out));
        self.session.handle(now, event, &mut out);
        self.out = out;
    }

    fn properties(&self, words: &[&str]) -> PropertiesBuf {
        let mut buf = PropertiesBuf::default();
        if self.version == Version::V5 {
            if let Some(n) = number(words, "expiry") {
                buf.push(Property::SessionExpiryInterval(n));
            }
            if let Some(n) = number(words, "window") {
                buf.push(Property::ReceiveMaximum(n as u16));
            }
            if let Some(n) = number(words, "max") {
                buf.push(Property::MaximumPacketSize(n));
            }
            if let Some(n) = number(words, "sub") {
                buf.push(Property::SubscriptionIdentifier(n));
            }
            if let Some(n) = number(words, "ttl") {
                buf.push(Property::MessageExpiryInterval(n));
            }
            if let Some(n) = number(words, "alias") {
                buf.push(Property::TopicAlias(n as u16));
            }
            for name in ["from", "position"] {
                if let Some(value) = field(words, name) {
                    buf.push(Property::UserProperty((name, value)));
                }
            }
            if let Some(n) = number(words, "receive") {
                buf.push(Property::ReceiveMaximum(n as u16));
            }
            if let Some(n) = number(words, "aliases") {
                buf.push(Property::TopicAliasMaximum(n as u16));
            }
        }
        buf
    }

    fn connect(&mut self, words: &[&str]) {
        let clean = words.contains(&"clean");
        let properties = self.properties(words);
        let will = field(words, "will").map(|topic| Will {
            qos: qos(words),
            retain: words.contains(&"retain"),
            properties: Properties::default(),
            topic,
            payload: payload(words),
        });
        let packet = Packet::Connect(Connect {
            is_bridge: words.contains(&"bridge") && self.version == Version::V311,
            clean_start: clean,
            keep_alive_s: number(words, "keep").unwrap_or(0) as u16,
            properties: properties.as_properties(),
            will,
            ..Connect::new(self.version, field(words, "id").unwrap_or("a"))
        });
        let mut bytes = Vec::new();
        encode(&packet, self.version, &mut bytes);
        let Ok(Decoded::Packet(Packet::Connect(c), _)) = decode(&bytes, self.version, usize::MAX) else { panic!("a CONNECT") };
        match ConnectRequest::read(&c, &self.limits) {
            Err(refusal) => refuse(refusal, &mut self.out),
            Ok(request) => {
                let partitions =
                    PARTITIONS.map(|id| connect::Partition { id, stream: "s".into(), number: id.0, system: false, end: Offset(100) });
                let sid = self.boot << 40 | self.now;
                let resumed = self.stored.is_some();
                self.session = self.reloaded();
                let (boot, in_store, limits, fleet) = (self.boot, resumed, &self.limits, &UNBOUNDED);
                let joining = Joining { sid, boot, partitions: &partitions, resumed, in_store, limits, fleet };
                let (now, mut out) = (self.now(), std::mem::take(&mut self.out));
                self.session.connect(now, &request, &joining, &mut out);
                self.out = out;
            }
        }
    }

    /// As the shell does: the session moves through the store.
    fn reloaded(&self) -> Session {
        self.stored.as_ref().map_or_else(|| Session::new("a", 0), |v| Session::decode("a", v).expect("a value of ours"))
    }

    /// Encodes, decodes, and gives the packet to the session.
    fn packet(&mut self, packet: &Packet<'_>) {
        let mut bytes = Vec::new();
        encode(packet, self.version, &mut bytes);
        let (now, mut out) = (self.now(), std::mem::take(&mut self.out));
        let decoded = decode(&bytes, self.version, usize::MAX);
        let result = match decoded {
            Ok(Decoded::Packet(p, _)) => self.session.packet(now, &p, &mut out).map(|m| {
                m.map(|append| match append {
                    Append::Message(m) => {
                        let p = partition(&m.topic);
                        let line = format!("! append p{p} {} {:?}", &*m.topic, String::from_utf8_lossy(m.payload));
                        (line, p, m.qos, m.mark.map(|mark| Fact::Published(p, mark)))
                    }
                    Append::Release(p, r) => {
                        (format!("! note p{p} #{}", r.exchange.packet_id), p, Qos::AtLeastOnce, Some(Fact::Released(r.exchange)))
                    }
                })
            }),
            Ok(Decoded::Incomplete(_)) => panic!("whole packets only"),
            Err(e) => Err(Violation::from(e)),
        };
        self.out = out;
        match result {
            Ok(None) => {}
            Ok(Some((line, p, qos, fact))) => {
                self.say(format_args!("{line}"));
                let receipt = self.receipt(Source::Partition(p));
                self.facts.extend(fact.map(|f| (p, receipt, f)));
                if qos != Qos::AtMostOnce {
                    self.event(Event::Submitted(p, receipt, 1));
                }
            }
            Err(v) => self.event(Event::Closed(Cause::Violation(v))),
        }
    }

    fn client(&mut self, words: &[&str]) {
        let packet_id = id(words);
        let topic = words.get(1).copied().filter(|w| *w == "#" || !w.starts_with(['#', 'q', '"'])).unwrap_or("a/b");
        let topic = if topic == "-" { "" } else { topic };
        let properties = self.properties(words);
        let p = properties.as_properties();
        let ack = || bare(packet_id.expect("an id"));
        match words[0] {
            "CONNECT" => self.connect(words),
            "PUBLISH" => self.packet(&Packet::Publish(Publish {
                dup: words.contains(&"dup"),
                qos: qos(words),
                retain: words.contains(&"retain"),
                topic,
                packet_id,
                properties: p,
                payload: payload(words),
            })),
            "PUBACK" => self.packet(&Packet::PubAck(ack())),
            "PUBREC" => {
                let refused = words.contains(&"refused") && self.version == Version::V5;
                let reason = if refused { ReasonCode::QUOTA_EXCEEDED } else { ReasonCode::SUCCESS };
                self.packet(&Packet::PubRec(Ack { reason, ..ack() }));
            }
            "PUBREL" => self.packet(&Packet::PubRel(ack())),
            "PUBCOMP" => self.packet(&Packet::PubComp(ack())),
            "SUBSCRIBE" => {
                let options = SubscriptionOptions {
                    qos: qos(words),
                    no_local: words.contains(&"nolocal"),
                    retain_as_published: words.contains(&"rap"),
                    retain_handling: number(words, "rh").unwrap_or(0) as u8,
                };
                let mut raw = (topic.len() as u16).to_be_bytes().to_vec();
                raw.extend_from_slice(topic.as_bytes());
                raw.push(if self.version == Version::V5 { options.to_byte() } else { options.qos as u8 });
                let filters = Filters::from_validated(&raw, true);
                self.packet(&Packet::Subscribe(Subscribe { packet_id: packet_id.expect("an id"), properties: p, filters }));
            }
            "UNSUBSCRIBE" => {
                let mut raw = (topic.len() as u16).to_be_bytes().to_vec();
                raw.extend_from_slice(topic.as_bytes());
                let filters = Filters::from_validated(&raw, false);
                self.packet(&Packet::Unsubscribe(Unsubscribe { packet_id: packet_id.expect("an id"), properties: p, filters }));
            }
            "PINGREQ" => self.packet(&Packet::PingReq),
            "DISCONNECT" => {
                let reason = ReasonCode(if words.contains(&"will") && self.version == Version::V5 { 4 } else { 0 });
                self.packet(&Packet::Disconnect(Disconnect { reason, properties: p }));
            }
            other => panic!("unknown packet {other}"),
        }
    }

    fn shell(&mut self, words: &[&str]) {
        let place = |word: &str| PartitionId(word.trim_start_matches('p').parse().expect("a partition"));
        match words[0] {
            "appended" => {
                let id = place(words[1]);
                let p = Source::Partition(id);
                let receipt = Receipt(number(words, "up-to").map_or(self.receipts.get(&p).copied().unwrap_or(0), u64::from));
                self.durable.insert(id, receipt);
                self.event(Event::Appended(p, Watermark::Appended(receipt)));
            }
            "put" => {
                let receipt = Receipt(self.receipts[&Source::State]);
                self.event(Event::Appended(Source::State, Watermark::Appended(receipt)));
            }
            "lost" => {
                let at = |n: usize| Offset(words[n].parse().expect("an offset"));
                self.event(Event::Lost(place(words[1]), at(2)..at(3)));
            }
            "failed" => self.event(Event::Appended(Source::Partition(place(words[1])), Watermark::Failed)),
            "started" => {
                let id = self.ids[words[1]];
                self.event(Event::Started(id, place(words[2]), Offset(words[3].parse().expect("an offset"))));
            }
            "shared" => {
                let id = self.ids[words[1]];
                self.event(Event::Shared(id));
            }
            "given" => {
                let (now, mut out) = (self.now(), std::mem::take(&mut self.out));
                let r = Self::stored_record(words);
                let delivery = self.session.deliver_shared(now, self.ids[words[1]], PARTITIONS[0], r.offset, Some(&r), &mut out);
                self.out = out;
                if delivery == Delivery::NoRoom {
                    self.say(format_args!("! no room"));
                }
            }
            "record" | "retained" => self.record(words),
            // What the reader would do next: every record of this partition was durable up to 100.
            "step" => {
                let nth = words[1].trim_start_matches('p').parse().expect("a partition");
                let step = self.session.step(nth, &mut crate::fanout::Inbox::default(), Offset(100), Offset(100));
                self.say(format_args!("! {step:?}"));
            }
            // The inbox of this partition is full, or the tail has joined again.
            "behind" | "live" => {
                let nth = words[1].trim_start_matches('p').parse().expect("a partition");
                self.session.reader(nth).live_from = Offset(words.get(2).map_or(u64::MAX, |at| at.parse().expect("an offset")));
            }
            "page-ended" => self.event(Event::PageEnded(None)),
            // For the next connection.
            "merge" => self.limits = Arc::new(Limits { overlapping: crate::limits::Overlapping::Merge, ..(*self.limits).clone() }),
            "topic-bytes" => {
                let topic_bytes = words[1].parse().expect("a number");
                self.limits = Arc::new(Limits { topic_bytes, ..(*self.limits).clone() });
            }
            "resend" => self.resend(number(words, "lost-below").map_or(0, u64::from), words.contains(&"retain")),
            "timeout" => self.event(Event::Timeout),
            "socket" => self.event(Event::Closed(Cause::Socket)),
            "takeover" => self.event(Event::Closed(Cause::TakenOver)),
            "drain" => self.event(Event::Closed(Cause::Drain)),
            // The process is gone: what was put is all there is.
            "crash" => {
                self.boot += 1;
                self.session = self.reloaded();
                self.out.clear();
                // The start folds every partition from the first record, in any order.
                for p in PARTITIONS.iter().rev() {
                    let durable = self.durable.get(p).copied().unwrap_or_default();
                    self.facts.retain(|(q, r, _)| q != p || *r <= durable);
                    let facts = self.facts.iter().filter(|(q, ..)| q == p);
                    facts.for_each(|(_, _, f)| self.session.fold(f));
                }
                if self.stored.is_some() {
                    self.stored = Some(self.session.value());
                }
            }
            other => panic!("unknown event {other}"),
        }
    }

    fn stored_record<'a>(words: &[&'a str]) -> Stored<'a> {
        Stored {
            offset: Offset(words[2].parse().expect("an offset")),
            time_ms: 0,
            qos: qos(words),
            retain: words.contains(&"retain"),
            client_hash: if words.contains(&"own") { hash(b"a") } else { 1 },
            mark: None,
            expires_ms: number(words, "expires").map(u64::from),
            topic: words[3].as_bytes(),
            headers: Properties::default(),
            payload: payload(words),
        }
    }

    fn record(&mut self, words: &[&str]) {
        let nth = words[1].trim_start_matches('p').parse().expect("a partition");
        let (now, mut out) = (self.now(), std::mem::take(&mut self.out));
        let r = Self::stored_record(words);
        let delivery = match (self.session.may_deliver(), words[0]) {
            (false, _) => Delivery::NoRoom,
            (_, "retained") => {
                let page = self.session.page_next().cloned();
                let delivery = self.session.deliver_retained(now, &r, &mut out);
                assert_eq!(self.session.page_next(), page.as_ref(), "the shell goes on with the page that it has");
                delivery
            }
            _ => loop {
                let delivery = self.session.deliver(now, nth, &r, &mut out);
                if delivery != Delivery::More {
                    break delivery;
                }
            },
        };
        self.out = out;
        if delivery == Delivery::NoRoom {
            self.say(format_args!("! no room"));
        }
    }

    fn resend_next(&mut self) -> Option<(PartitionId, Vec<Offset>)> {
        self.session.resend_next(&mut self.out)
    }

    /// All that is to be sent again; the log has no longer what lies below `lost`.
    fn resend(&mut self, lost: u64, retain: bool) {
        while let Some((_, offsets)) = self.resend_next() {
            let texts: Vec<_> = offsets.iter().map(|o| format!("again-{o}")).collect();
            let records: Vec<Stored<'_>> = offsets
                .iter()
                .zip(&texts)
                .filter(|(o, _)| o.0 >= lost)
                .map(|(o, t)| Stored {
                    payload: t.as_bytes(),
                    offset: *o,
                    retain,
                    ..Self::stored_record(&["record", "p0", "0", "a/b", "q1"])
                })
                .collect();
            let (now, mut out) = (self.now(), std::mem::take(&mut self.out));
            self.session.resend(now, &offsets, records.into_iter(), &mut out);
            self.out = out;
        }
    }

    /// Writes down what the session said and asked.
    fn settle(&mut self) {
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::Refused(limit) => writeln!(self.log, "! refused {}", limit.key()).expect("a string"),
                Action::PutValue => {
                    let value = self.session.value();
                    let back = Session::decode("a", &value).expect("reads its own value");
                    assert_eq!(back.value(), value, "a value that comes back");
                    self.stored = Some(value);
                    self.say(format_args!("! put"));
                    let receipt = self.receipt(Source::State);
                    self.event(Event::PutSubmitted(receipt));
                }
                Action::DeleteValue => {
                    self.stored = None;
                    self.say(format_args!("! delete"));
                    let receipt = self.receipt(Source::State);
                    self.event(Event::PutSubmitted(receipt));
                }
                Action::AppendWill => {
                    let m = self.session.will_message(self.now()).expect("a will");
                    let line = format!("! append will {} {:?}", &*m.topic, String::from_utf8_lossy(m.payload));
                    let p = partition(&m.topic);
                    self.say(format_args!("{line}"));
                    let receipt = self.receipt(Source::Partition(p));
                    self.event(Event::WillSubmitted(p, receipt));
                }
                Action::Subscribe { id, filter, begin, .. } => {
                    self.ids.insert(filter.to_string(), id);
                    match begin {
                        Some(begin) => self.say(format_args!("! subscribe {filter} {begin:?}")),
                        None => self.say(format_args!("! subscribe {filter}")),
                    }
                }
                Action::Share { id, filter, .. } => {
                    self.ids.insert(filter.to_string(), id);
                    self.say(format_args!("! share {filter}"));
                }
                Action::Unshare(filter, _) => self.say(format_args!("! unshare {filter}")),
                Action::Settle(filter, p, at) => self.say(format_args!("! settle {filter} p{p} {at}")),
                Action::Unsubscribe(filter) => self.say(format_args!("! unsubscribe {filter}")),
                Action::Close(_) => self.say(format_args!("! close")),
                Action::HandOver => self.say(format_args!("! hand over")),
            }
        }
        let out = std::mem::take(&mut self.out);
        let mut rest = &out[..];
        while !rest.is_empty() {
            let Ok(Decoded::Packet(p, used)) = decode(rest, self.version, usize::MAX) else { panic!("not a packet: {rest:?}") };
            rest = &rest[used..];
            self.say(format_args!("< {}", show(&p)));
        }
    }
}

fn failure(a: &Ack<'_>) -> String {
    let reason = if a.reason == ReasonCode::SUCCESS { String::new() } else { format!(" {}", a.reason) };
    reason + &told(a.properties)
}

/// User properties and reasons in words.
fn told(properties: Properties<'_>) -> String {
    let words = properties.iter().filter_map(|p| match p {
        Property::UserProperty((name, value)) => Some(format!(" {name}={value}")),
        Property::ReasonString(text) => Some(format!(" {text:?}")),
        _ => None,
    });
    words.collect()
}

fn show(p: &Packet<'_>) -> String {
    match p {
        Packet::ConnAck(c) => format!("CONNACK {}{}", c.reason, if c.session_present { " present" } else { "" }),
        Packet::PubAck(a) => format!("PUBACK #{}{}", a.packet_id, failure(a)),
        Packet::PubRec(a) => format!("PUBREC #{}{}", a.packet_id, failure(a)),
        Packet::PubRel(a) => format!("PUBREL #{}{}", a.packet_id, failure(a)),
        Packet::PubComp(a) => format!("PUBCOMP #{}{}", a.packet_id, failure(a)),
        Packet::SubAck(s) => format!("SUBACK #{} {:?}{}", s.packet_id, s.reasons, told(s.properties)),
        Packet::UnsubAck(s) => format!("UNSUBACK #{}", s.packet_id),
        Packet::PingResp => "PINGRESP".into(),
        Packet::Disconnect(d) => format!("DISCONNECT {}", d.reason),
        Packet::Publish(p) => {
            let id = p.packet_id.map_or(String::new(), |id| format!(" #{id}"));
            let flags = format!("{}{}", if p.retain { " retain" } else { "" }, if p.dup { " dup" } else { "" });
            let properties: Vec<_> = p
                .properties
                .iter()
                .map(|p| match p {
                    Property::SubscriptionIdentifier(n) => format!(" sub={n}"),
                    Property::MessageExpiryInterval(n) => format!(" ttl={n}"),
                    Property::TopicAlias(n) => format!(" alias={n}"),
                    Property::UserProperty((name, value)) => format!(" {name}={value}"),
                    other => format!(" {other:?}"),
                })
                .collect();
            format!("PUBLISH{id} q{} {} {:?}{flags}{}", p.qos as u8, p.topic, String::from_utf8_lossy(p.payload), properties.concat())
        }
        other => format!("{other:?}"),
    }
}

fn check_version(version: Version, script: &str) -> World {
    check_world(World::new(version), script)
}

fn check_world(mut w: World, script: &str) -> World {
    let version = w.version;
    let mine = if version == Version::V5 { '5' } else { '4' };
    let mut want = String::new();
    for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let line = match line.split_once(' ') {
            Some((v, rest)) if v == "4" || v == "5" => {
                if !v.starts_with(mine) {
                    continue;
                }
                rest.trim()
            }
            _ => line,
        };
        want.push_str(line);
        want.push('\n');
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[0] {
            "<" | "!" => continue,
            "@" => w.now = words[1].parse().expect("ms"),
            ">" | "=" => {
                w.say(format_args!("{line}"));
                if words[0] == ">" {
                    w.client(&words[1..])
                } else {
                    w.shell(&words[1..])
                }
                w.settle();
                continue;
            }
            other => panic!("a line that begins with {other}"),
        }
        w.say(format_args!("{line}"));
    }
    // Actions and packets of one step come in groups; their order within the step is part of the promise only inside a group.
    assert_eq!(w.log, want, "version {version:?}");
    w
}

fn check(script: &str) {
    check_version(Version::V311, script);
    check_version(Version::V5, script);
}

fn check5(script: &str) {
    check_version(Version::V5, script);
}
