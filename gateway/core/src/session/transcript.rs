//! Whole sessions as transcripts, one script for both versions.
//!
//! `>` a packet from the client, `=` what the shell tells, `@` the time in ms; then what must follow: `<` packets to the client, `!`
//! actions. A line that begins with `4` or `5` is for that version only. Topic `w/a` lies in partition 1, the others in 0.

use super::*;
use crate::{
    codec::{Decoded, decode},
    message::{Stored, partition_of},
    packet::{Connect, Filters, PacketId, Publish, Qos, Subscribe, SubscriptionOptions, Unsubscribe, Will},
    property::{PropertiesBuf, Property},
};
use connect::Joining;
use std::{collections::HashMap, fmt::Write};

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
        }
    }

    fn now(&self) -> Now {
        Now { monotonic_ms: self.now, wall_ms: self.now }
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
            version: self.version,
            is_31: false,
            clean_start: clean,
            keep_alive_s: number(words, "keep").unwrap_or(0) as u16,
            properties: properties.as_properties(),
            client_id: field(words, "id").unwrap_or("a"),
            will,
            username: None,
            password: None,
        });
        let mut bytes = Vec::new();
        encode(&packet, self.version, &mut bytes);
        let Ok(Decoded::Packet(Packet::Connect(c), _)) = decode(&bytes, self.version, usize::MAX) else { panic!("a CONNECT") };
        match ConnectRequest::read(&c) {
            Err(refusal) => refuse(refusal, &mut self.out),
            Ok(request) => {
                let partitions = PARTITIONS.map(|p| (p, Offset(100)));
                let sid = self.boot << 40 | self.now;
                let resumed = self.stored.is_some();
                self.session = self.reloaded();
                let joining = Joining { sid, boot: self.boot, partitions: &partitions, resumed, in_store: resumed };
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
            Ok(Decoded::Packet(p, _)) => self.session.packet(now, p, &mut out).map(|m| {
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
            "page-ended" => self.event(Event::PageEnded(None)),
            "resend" => self.resend(number(words, "lost-below").map_or(0, u64::from)),
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
            (_, "retained") => self.session.deliver_retained(now, &r, &mut out),
            _ => self.session.deliver(now, nth, &r, &mut out),
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
    fn resend(&mut self, lost: u64) {
        while let Some((_, offsets)) = self.resend_next() {
            let texts: Vec<_> = offsets.iter().map(|o| format!("again-{o}")).collect();
            let records: Vec<Stored<'_>> = offsets
                .iter()
                .zip(&texts)
                .filter(|(o, _)| o.0 >= lost)
                .map(|(o, t)| Stored { payload: t.as_bytes(), offset: *o, ..Self::stored_record(&["record", "p0", "0", "a/b", "q1"]) })
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
                Action::Subscribe(id, filter) => {
                    self.ids.insert(filter.to_string(), id);
                    self.say(format_args!("! subscribe {filter}"));
                }
                Action::Share(id, filter) => {
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
    if a.reason == ReasonCode::SUCCESS { String::new() } else { format!(" {}", a.reason) }
}

fn show(p: &Packet<'_>) -> String {
    match p {
        Packet::ConnAck(c) => format!("CONNACK {}{}", c.reason, if c.session_present { " present" } else { "" }),
        Packet::PubAck(a) => format!("PUBACK #{}{}", a.packet_id, failure(a)),
        Packet::PubRec(a) => format!("PUBREC #{}{}", a.packet_id, failure(a)),
        Packet::PubRel(a) => format!("PUBREL #{}{}", a.packet_id, failure(a)),
        Packet::PubComp(a) => format!("PUBCOMP #{}{}", a.packet_id, failure(a)),
        Packet::SubAck(s) => format!("SUBACK #{} {:?}", s.packet_id, s.reasons),
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
                    other => format!(" {other:?}"),
                })
                .collect();
            format!("PUBLISH{id} q{} {} {:?}{flags}{}", p.qos as u8, p.topic, String::from_utf8_lossy(p.payload), properties.concat())
        }
        other => format!("{other:?}"),
    }
}

fn check_version(version: Version, script: &str) -> World {
    let mut w = World::new(version);
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

#[test]
fn acknowledgements_wait_for_the_disk_and_keep_their_order_over_partitions() {
    check(
        r#"
        > CONNECT clean
        < CONNACK 0x00
        > PUBLISH a/b #7 q1 "x"
        ! append p0 a/b "x"
        > PUBLISH w/a #8 q1 "y"
        ! append p1 w/a "y"
        = appended p1
        = appended p0
        < PUBACK #7
        < PUBACK #8
        > PUBLISH a/b "qos0"
        ! append p0 a/b "qos0"
        > PUBLISH a/b #9 q1 dup "z"
        ! append p0 a/b "z"
        = appended p0 up-to=2
        = appended p0
        < PUBACK #9
        "#,
    );
}

#[test]
fn the_connack_of_a_persistent_session_waits_for_its_value() {
    check(
        r#"
        > CONNECT expiry=60
        ! put
        > PUBLISH a/b #1 q1 "early"
        ! append p0 a/b "early"
        = appended p0
        = put
        < CONNACK 0x00
        < PUBACK #1
        > DISCONNECT
        ! put
        ! close
        ! hand over
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00 present
        = socket
        ! put
        ! close
        ! hand over
        > CONNECT clean
        ! delete
        = put
        < CONNACK 0x00
        "#,
    );
}

#[test]
fn a_subscription_begins_where_the_tail_says_and_is_durable_before_its_suback() {
    check(
        r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > SUBSCRIBE a/+ #1 q1
        ! subscribe a/+
        = started a/+ p0 120
        = record p0 120 a/b q1 "held"
        ! no room
        = started a/+ p1 10
        ! put
        = record p0 120 a/b q1 "held"
        ! no room
        = put
        < SUBACK #1 [1]
        = record p0 119 a/b q1 "before"
        = record p0 120 a/b q1 "first"
        < PUBLISH #1 q1 a/b "first"
        = record p0 121 x/y q1 "other"
        = record p0 122 a/c q0 "zero"
        < PUBLISH q0 a/c "zero"
        = record p0 123 a/c q1 "second"
        < PUBLISH #2 q1 a/c "second"
        > PUBACK #1
        > UNSUBSCRIBE a/+ #2
        ! put
        ! unsubscribe a/+
        = put
        < UNSUBACK #2
        = record p0 124 a/c q1 "gone"
        "#,
    );
}

#[test]
fn what_was_not_acknowledged_comes_again_after_a_crash_with_its_id_and_dup() {
    check(
        r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > SUBSCRIBE a/b #1 q1
        ! subscribe a/b
        = started a/b p0 100
        = started a/b p1 100
        ! put
        = put
        < SUBACK #1 [1]
        = record p0 100 a/b q1 "one"
        < PUBLISH #1 q1 a/b "one"
        = record p0 101 a/b q1 "two"
        < PUBLISH #2 q1 a/b "two"
        > PUBACK #1
        @ 300
        = timeout
        ! put
        = put
        = record p0 102 a/b q1 "three"
        < PUBLISH #3 q1 a/b "three"
        = crash
        > CONNECT expiry=60
        ! put
        ! subscribe a/b
        = put
        < CONNACK 0x00 present
        = resend
        < PUBLISH #2 q1 a/b "again-101" dup
        = record p0 102 a/b q1 "three"
        < PUBLISH #3 q1 a/b "three"
        = record p0 102 a/b q1 "three"
        = resend
        > PUBACK #2
        = resend
        "#,
    );
}

#[test]
fn the_window_is_the_clients_receive_maximum() {
    check5(
        r#"
        > CONNECT clean window=2
        < CONNACK 0x00
        > SUBSCRIBE # #1 q1
        ! subscribe #
        = started # p0 100
        = started # p1 100
        < SUBACK #1 [1]
        = record p0 100 a q1 "1"
        < PUBLISH #1 q1 a "1"
        = record p0 101 a q1 "2"
        < PUBLISH #2 q1 a "2"
        = record p0 102 a q1 "3"
        ! no room
        = record p0 102 a q0 "QoS-0-needs-no-window"
        < PUBLISH q0 a "QoS-0-needs-no-window"
        > PUBACK #2
        = record p0 103 a q1 "4"
        < PUBLISH #3 q1 a "4"
        > PUBACK #9
        = record p0 104 a q1 "5"
        ! no room
        "#,
    );
}

#[test]
fn subscription_options() {
    check5(
        r#"
        > CONNECT clean
        < CONNACK 0x00
        > SUBSCRIBE a/# #1 q0 sub=5 rap
        ! subscribe a/#
        = started a/# p0 100
        = started a/# p1 100
        < SUBACK #1 [0]
        > SUBSCRIBE a/b #2 q2 sub=6 nolocal
        ! subscribe a/b
        = started a/b p0 102
        = started a/b p1 102
        < SUBACK #2 [2]
        = record p0 100 a/b q1 retain "only-the-first"
        < PUBLISH q0 a/b "only-the-first" retain sub=5
        = record p0 102 a/b q1 retain "both"
        < PUBLISH #1 q1 a/b "both" retain sub=5 sub=6
        = record p0 103 a/b q1 own "mine"
        < PUBLISH q0 a/b "mine" sub=5
        "#,
    );
}

#[test]
fn retained_messages_follow_the_suback_through_the_window() {
    check(
        r#"
        > CONNECT clean
        < CONNACK 0x00
        > SUBSCRIBE a/# #1 q1
        ! subscribe a/#
        = started a/# p0 100
        = started a/# p1 100
        < SUBACK #1 [1]
        = retained p0 7 a/b q1 retain "old"
        < PUBLISH #1 q1 a/b "old" retain
        = retained p0 9 a/c q0 retain "zero"
        < PUBLISH q0 a/c "zero" retain
        = page-ended
        = page-ended
        = record p0 100 a/b q1 retain "new"
        < PUBLISH #2 q1 a/b "new"
        "#,
    );
}

#[test]
fn a_will_is_appended_before_the_value_forgets_it() {
    check(
        r#"
        > CONNECT clean will=w/a q1 "gone"
        ! put
        = put
        < CONNACK 0x00
        = socket
        ! close
        ! append will w/a "gone"
        = appended p1
        ! delete
        ! hand over
        > CONNECT clean will=w/a q1 "gone"
        ! delete
        "#
        .rsplit_once("> CONNECT")
        .expect("the last line only shows that the client id is free again")
        .0,
    );
    check(
        r#"
        > CONNECT expiry=60 will=w/a "gone"
        ! put
        = put
        < CONNACK 0x00
        > DISCONNECT
        ! put
        ! close
        ! hand over
        "#,
    );
    check5(
        r#"
        > CONNECT clean will=w/a "gone"
        ! put
        = put
        < CONNACK 0x00
        > DISCONNECT will
        ! close
        ! append will w/a "gone"
        = appended p1
        ! delete
        ! hand over
        "#,
    );
}

#[test]
fn a_takeover_tells_the_old_connection_publishes_its_will_and_then_hands_over() {
    check(
        r#"
        > CONNECT expiry=60 will=w/a "gone"
        ! put
        = put
        < CONNACK 0x00
        = takeover
        ! close
        ! append will w/a "gone"
        5 < DISCONNECT 0x8E
        = appended p1
        ! put
        ! hand over
        "#,
    );
}

#[test]
fn a_client_that_is_silent_for_one_and_a_half_keep_alives_is_closed() {
    check(
        r#"
        > CONNECT clean keep=10
        < CONNACK 0x00
        @ 14000
        = timeout
        > PINGREQ
        < PINGRESP
        @ 28999
        = timeout
        @ 29000
        = timeout
        ! close
        ! hand over
        5 < DISCONNECT 0x8D
        "#,
    );
}

#[test]
fn a_drain_puts_what_is_stored_and_keeps_wills_for_the_next_start() {
    check(
        r#"
        > CONNECT expiry=60 will=w/a "gone"
        ! put
        = put
        < CONNACK 0x00
        = drain
        ! put
        ! close
        ! hand over
        5 < DISCONNECT 0x8B
        "#,
    );
}

#[test]
fn when_the_log_fails_nothing_more_is_acknowledged() {
    check(
        r#"
        > CONNECT clean
        < CONNACK 0x00
        > PUBLISH a/b #7 q1 "x"
        ! append p0 a/b "x"
        = failed p0
        ! close
        ! hand over
        5 < DISCONNECT 0x83
        "#,
    );
}

#[test]
fn violations_close_the_connection_with_their_reason() {
    let cases = [("PUBLISH a/b sub=3", "0x82"), ("PUBLISH a/b alias=11", "0x94"), ("PUBLISH - alias=3", "0x82")];
    for (packet, reason) in cases {
        let v5_only = packet.contains('=');
        let script = format!("> CONNECT clean\n< CONNACK 0x00\n> {packet}\n! close\n! hand over\n5 < DISCONNECT {reason}");
        if v5_only { check5(&script) } else { check(&script) }
    }
}

#[test]
fn expiry_counts_down_and_ends_a_message() {
    check(
        r#"
        > CONNECT clean
        < CONNACK 0x00
        > SUBSCRIBE # #1 q1
        ! subscribe #
        = started # p0 100
        = started # p1 100
        < SUBACK #1 [1]
        @ 4000
        = record p0 100 a q0 expires=10000 "six-left"
        4 < PUBLISH q0 a "six-left"
        5 < PUBLISH q0 a "six-left" ttl=6
        @ 10000
        = record p0 101 a q0 expires=10000 "late"
        "#,
    );
}

#[test]
fn qos_0_of_the_time_while_it_was_away_is_not_sent() {
    check(
        r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > SUBSCRIBE # #1 q1
        ! subscribe #
        = started # p0 50
        = started # p1 50
        ! put
        = put
        < SUBACK #1 [1]
        = socket
        ! put
        ! close
        ! hand over
        > CONNECT expiry=60
        ! put
        ! subscribe #
        = put
        < CONNACK 0x00 present
        = record p0 99 a q0 "away"
        = record p0 100 a q0 "back"
        < PUBLISH q0 a "back"
        "#,
    );
}

#[test]
fn refusals_speak_the_peers_version() {
    check(
        r#"
        > CONNECT id= will=$SYS/x clean
        4 < CONNACK 0x03
        5 < CONNACK 0x90
        "#,
    );
    check_version(Version::V311, "> CONNECT id=\n< CONNACK 0x02");
}

#[test]
fn a_topic_of_the_gateway_is_refused() {
    check(
        r#"
        > CONNECT clean
        < CONNACK 0x00
        > PUBLISH $SYS/x "zero"
        > PUBLISH $SYS/x #1 q1 "one"
        5 < PUBACK #1 0x87
        4 ! close
        4 ! hand over
        "#,
    );
}

/// Found by random packets: 0x84 belongs to CONNACK alone.
#[test]
fn a_second_connect_of_an_unknown_version_is_a_protocol_error() {
    let mut w = World::new(Version::V5);
    w.client(&["CONNECT", "clean"]);
    w.settle();
    let Err(e) = decode(b"\x10\x0D\x00\x04MQTT\x06\x02\x00\x00\x00\x01p", Version::V5, 100) else { panic!("no such version") };
    w.event(Event::Closed(Cause::Violation(e.into())));
    w.settle();
    assert!(w.log.ends_with("DISCONNECT 0x82\n"), "{}", w.log);
}

#[test]
fn a_second_connect_and_packets_of_servers_are_violations() {
    let mut w = World::new(Version::V5);
    w.client(&["CONNECT", "clean"]);
    w.settle();
    let connect = Packet::Connect(Connect {
        version: Version::V5,
        is_31: false,
        clean_start: true,
        keep_alive_s: 0,
        properties: Properties::default(),
        client_id: "a",
        will: None,
        username: None,
        password: None,
    });
    for p in [connect, Packet::PingResp] {
        let v = w.session.packet(w.now(), p, &mut Vec::new()).expect_err("refused");
        assert_eq!(v.reason, ReasonCode::PROTOCOL_ERROR);
    }
}

#[test]
fn a_message_with_qos_2_and_its_release_leave_when_the_value_says_so() {
    check(
        r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > SUBSCRIBE # #1 q2
        ! subscribe #
        = started # p0 100
        = started # p1 100
        ! put
        = put
        < SUBACK #1 [2]
        = record p0 100 a q2 "one"
        ! put
        = record p0 101 a q1 "behind-it"
        = record p0 102 a q0 "too"
        = record p0 103 a q2 "and-this"
        = put
        ! put
        < PUBLISH #1 q2 a "one"
        = put
        < PUBLISH #2 q1 a "behind-it"
        < PUBLISH q0 a "too"
        < PUBLISH #3 q2 a "and-this"
        > PUBREC #3
        ! put
        = put
        < PUBREL #3
        > PUBREC #3
        < PUBREL #3
        > PUBCOMP #3
        > PUBCOMP #3
        > PUBREC #9
        < PUBREL #9
        "#,
    );
    // What dies with the connection waits for nothing.
    check(
        r#"
        > CONNECT clean
        < CONNACK 0x00
        > SUBSCRIBE # #1 q2
        ! subscribe #
        = started # p0 100
        = started # p1 100
        < SUBACK #1 [2]
        = record p0 100 a q2 "one"
        < PUBLISH #1 q2 a "one"
        > PUBREC #1
        < PUBREL #1
        > PUBCOMP #1
        "#,
    );
}

#[test]
fn qos_2_goes_on_after_a_crash_with_the_step_that_was_durable() {
    check(
        r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > SUBSCRIBE # #1 q2
        ! subscribe #
        = started # p0 100
        = started # p1 100
        ! put
        = put
        < SUBACK #1 [2]
        = record p0 100 a/b q2 "one"
        ! put
        = put
        < PUBLISH #1 q2 a/b "one"
        = record p0 101 a/b q2 "two"
        ! put
        = put
        < PUBLISH #2 q2 a/b "two"
        = record p0 102 a/b q2 "three"
        ! put
        = put
        < PUBLISH #3 q2 a/b "three"
        > PUBREC #1
        ! put
        = put
        < PUBREL #1
        = crash
        > CONNECT expiry=60
        ! put
        ! subscribe #
        = put
        < CONNACK 0x00 present
        = resend
        < PUBREL #1
        < PUBLISH #2 q2 a/b "again-101" dup
        < PUBLISH #3 q2 a/b "again-102" dup
        > PUBCOMP #1
        > PUBREC #2
        ! put
        = crash
        > CONNECT expiry=60
        ! put
        ! subscribe #
        = put
        < CONNACK 0x00 present
        = resend
        < PUBREL #2
        < PUBLISH #3 q2 a/b "again-102" dup
        "#,
    );
}

/// The model's variant `dropgone`: an id that is dropped without a release is taken for a repeat when it comes round.
#[test]
fn what_retention_took_is_released_all_the_same() {
    let script = r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > SUBSCRIBE # #1 q2
        ! subscribe #
        = started # p0 100
        = started # p1 100
        ! put
        = put
        < SUBACK #1 [2]
        = record p0 100 a/b q2 "two"
        ! put
        = put
        < PUBLISH #1 q2 a/b "two"
        = record p0 101 a/b q1 "one"
        < PUBLISH #2 q1 a/b "one"
        = record p0 102 a/b q1 "one"
        < PUBLISH #3 q1 a/b "one"
        = socket
        ! put
        ! close
        ! hand over
        > CONNECT expiry=60
        ! put
        ! subscribe #
        = put
        < CONNACK 0x00 present
        = resend lost-below=102
        ! put
        = put
        < PUBREL #1
        < PUBLISH #3 q1 a/b "again-102" dup
        > PUBCOMP #1
        "#;
    for version in [Version::V311, Version::V5] {
        // The one with QoS 2 that was released, and the one with QoS 1 that was given up.
        assert_eq!(check_version(version, script).session.take_counts().lost, 2);
    }
}

#[test]
fn a_client_may_refuse_a_message_with_qos_2() {
    check5(
        r#"
        > CONNECT clean window=1
        < CONNACK 0x00
        > SUBSCRIBE # #1 q2
        ! subscribe #
        = started # p0 100
        = started # p1 100
        < SUBACK #1 [2]
        = record p0 100 a q2 "one"
        < PUBLISH #1 q2 a "one"
        = record p0 101 a q2 "two"
        ! no room
        > PUBREC #1 refused
        = record p0 101 a q2 "two"
        < PUBLISH #2 q2 a "two"
        > PUBREC #1 refused
        "#,
    );
}

#[test]
fn an_acknowledgement_that_is_not_the_next_step_is_a_violation() {
    for (qos, packet) in [("q1", "PUBREC"), ("q1", "PUBCOMP"), ("q2", "PUBACK"), ("q2", "PUBCOMP")] {
        let script = format!(
            r#"
            > CONNECT clean
            < CONNACK 0x00
            > SUBSCRIBE # #1 q2
            ! subscribe #
            = started # p0 100
            = started # p1 100
            < SUBACK #1 [2]
            = record p0 100 a {qos} "one"
            < PUBLISH #1 {qos} a "one"
            > {packet} #1
            ! close
            ! hand over
            5 < DISCONNECT 0x82
            "#
        );
        check(&script);
    }
}

#[test]
fn qos_2_inbound_is_appended_once_and_released_by_a_note() {
    check(
        r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > PUBLISH a/b #1 q2 "x"
        ! append p0 a/b "x"
        > PUBLISH a/b #1 q2 dup "x"
        > PUBLISH w/a #2 q2 "y"
        ! append p1 w/a "y"
        = appended p1
        = appended p0
        < PUBREC #1
        < PUBREC #2
        > PUBLISH a/b #1 q2 dup "x"
        < PUBREC #1
        > PUBREL #2
        ! note p1 #2
        > PUBREL #2
        > PUBREL #1
        ! note p0 #1
        = appended p0
        = appended p1
        < PUBCOMP #2
        < PUBCOMP #1
        > PUBREL #1
        < PUBCOMP #1
        > PUBLISH a/b #1 q2 "new"
        ! append p0 a/b "new"
        "#,
    );
    // What dies with the connection needs no note.
    check(
        r#"
        > CONNECT clean
        < CONNACK 0x00
        > PUBLISH a/b #1 q2 "x"
        ! append p0 a/b "x"
        = appended p0
        < PUBREC #1
        > PUBREL #1
        < PUBCOMP #1
        "#,
    );
}

#[test]
fn who_reconnects_finds_every_step_of_qos_2_that_was_on_its_way() {
    for end in ["= socket", "= takeover", "= drain"] {
        let says = if end == "= socket" {
            ""
        } else if end == "= drain" {
            "5 < DISCONNECT 0x8B"
        } else {
            "5 < DISCONNECT 0x8E"
        };
        check(&format!(
            r#"
            > CONNECT expiry=60
            ! put
            = put
            < CONNACK 0x00
            > PUBLISH a/b #1 q2 "x"
            ! append p0 a/b "x"
            > PUBLISH w/a #2 q2 "y"
            ! append p1 w/a "y"
            = appended p1
            > PUBREL #2
            ! note p1 #2
            {end}
            ! close
            {says}
            = appended p1
            = appended p0
            ! put
            ! hand over
            > CONNECT expiry=60
            ! put
            = put
            < CONNACK 0x00 present
            > PUBLISH a/b #1 q2 dup "x"
            < PUBREC #1
            > PUBREL #2
            < PUBCOMP #2
            "#
        ));
    }
}

#[test]
fn a_crash_at_any_step_of_qos_2_neither_repeats_nor_loses() {
    // Nothing was durable: it is new when it comes again.
    check(
        r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > PUBLISH a/b #1 q2 "x"
        ! append p0 a/b "x"
        = crash
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00 present
        > PUBLISH a/b #1 q2 dup "x"
        ! append p0 a/b "x"
        "#,
    );
    // The record was durable and the PUBREC did not come; then the note was not; then it was.
    check(
        r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > PUBLISH a/b #1 q2 "x"
        ! append p0 a/b "x"
        = appended p0
        < PUBREC #1
        = crash
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00 present
        > PUBLISH a/b #1 q2 dup "x"
        < PUBREC #1
        > PUBREL #1
        ! note p0 #1
        = crash
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00 present
        > PUBREL #1
        ! note p0 #1
        = appended p0
        < PUBCOMP #1
        = crash
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00 present
        > PUBREL #1
        < PUBCOMP #1
        > PUBLISH w/a #1 q2 "next"
        ! append p1 w/a "next"
        = appended p1
        < PUBREC #1
        = crash
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00 present
        > PUBLISH w/a #1 q2 dup "next"
        < PUBREC #1
        "#,
    );
}

#[test]
fn a_clean_start_forgets_what_was_open() {
    check5(
        r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > PUBLISH a/b #1 q2 "x"
        ! append p0 a/b "x"
        = appended p0
        < PUBREC #1
        = socket
        ! put
        ! close
        ! hand over
        @ 5
        > CONNECT clean expiry=60
        ! put
        = put
        < CONNACK 0x00
        = crash
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00 present
        > PUBLISH a/b #1 q2 "another"
        ! append p0 a/b "another"
        "#,
    );
}

#[test]
fn open_exchanges_count_against_the_receive_maximum() {
    let mut w = World::new(Version::V5);
    w.client(&["CONNECT", "clean"]);
    w.settle();
    for n in 1..=RECEIVE_MAXIMUM {
        w.client(&["PUBLISH", "a/b", &format!("#{n}"), "q2"]);
    }
    w.shell(&["appended", "p0"]);
    w.client(&["PUBLISH", "a/b", "#1", "q2", "dup"]);
    w.client(&["PUBLISH", "a/b", "q0"]);
    w.log.clear();
    w.settle();
    assert!(!w.log.contains("DISCONNECT") && w.log.contains("PUBREC #1024"), "{}", w.log);
    w.client(&["PUBREL", "#7"]);
    w.client(&["PUBLISH", "a/b", "#2000", "q1"]);
    w.client(&["PUBLISH", "a/b", "#2001", "q1"]);
    w.settle();
    assert!(w.log.contains("DISCONNECT 0x93"), "{}", w.log);
}

#[test]
fn topic_aliases_both_ways() {
    check5(
        r#"
        > CONNECT clean aliases=1
        < CONNACK 0x00
        > PUBLISH a/b alias=1 "x"
        ! append p0 a/b "x"
        > PUBLISH - alias=1 "y"
        ! append p0 a/b "y"
        > PUBLISH - alias=1 q2 #3 "z"
        ! append p0 a/b "z"
        = appended p0
        < PUBREC #3
        > SUBSCRIBE # #1 q1
        ! subscribe #
        = started # p0 100
        = started # p1 100
        < SUBACK #1 [1]
        = record p0 100 a/b q0 "1"
        < PUBLISH q0 a/b "1" alias=1
        = record p0 101 a/b q0 "2"
        < PUBLISH q0  "2" alias=1
        = record p0 102 c q0 "3"
        < PUBLISH q0 c "3"
        "#,
    );
}

#[test]
fn a_connack_that_may_not_be_sent_ends_the_connection() {
    check5("> CONNECT clean max=10\n! close\n! hand over");
}

#[test]
fn a_shared_subscription_takes_what_its_group_gives_and_tells_when_it_is_done() {
    check(
        r#"
        > CONNECT expiry=60 window=2
        ! put
        = put
        < CONNACK 0x00
        > SUBSCRIBE $share/g/a/# #1 q2 sub=4
        ! share $share/g/a/#
        = shared $share/g/a/#
        ! put
        = put
        < SUBACK #1 [1]
        = given $share/g/a/# 100 a/b q2 "one"
        4 < PUBLISH #1 q1 a/b "one"
        5 < PUBLISH #1 q1 a/b "one" sub=4
        = given $share/g/a/# 101 a/b q0 "zero"
        ! settle $share/g/a/# p0 101
        4 < PUBLISH q0 a/b "zero"
        5 < PUBLISH q0 a/b "zero" sub=4
        > PUBACK #1
        ! settle $share/g/a/# p0 100
        = given $share/g/a/# 102 a/b q1 "two"
        4 < PUBLISH #2 q1 a/b "two"
        5 < PUBLISH #2 q1 a/b "two" sub=4
        = socket
        ! put
        ! close
        ! hand over
        > CONNECT expiry=60
        ! put
        ! share $share/g/a/#
        = put
        < CONNACK 0x00 present
        = resend
        > UNSUBSCRIBE $share/g/a/# #2
        ! put
        ! unshare $share/g/a/#
        = put
        < UNSUBACK #2
        "#,
    );
    check(
        r#"
        > CONNECT clean
        < CONNACK 0x00
        > SUBSCRIBE $share/g/a/# #1 q1
        ! share $share/g/a/#
        = shared $share/g/a/#
        < SUBACK #1 [1]
        = socket
        ! close
        ! unshare $share/g/a/#
        ! hand over
        "#,
    );
}

#[test]
fn who_only_reads_goes_on_when_the_log_has_failed() {
    check(
        r#"
        > CONNECT clean
        < CONNACK 0x00
        > SUBSCRIBE # #1 q1
        ! subscribe #
        = started # p0 100
        = started # p1 100
        < SUBACK #1 [1]
        = failed p0
        = record p0 100 a q1 "still"
        < PUBLISH #1 q1 a "still"
        > PUBACK #1
        = failed p0
        "#,
    );
}

#[test]
fn a_session_expiry_that_connect_did_not_ask_for_cannot_come_with_disconnect() {
    check5(
        r#"
        > CONNECT clean
        < CONNACK 0x00
        > DISCONNECT expiry=5
        ! close
        ! hand over
        < DISCONNECT 0x82
        "#,
    );
    // One that is there can be changed, and ended.
    check5(
        r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > DISCONNECT expiry=0
        ! delete
        ! close
        ! hand over
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        "#,
    );
}

#[test]
fn auth_and_topics_that_are_no_keys_are_violations() {
    let mut w = World::new(Version::V5);
    w.client(&["CONNECT", "clean"]);
    w.settle();
    let auth = Packet::Auth(crate::packet::Auth { reason: ReasonCode::SUCCESS, properties: Properties::default() });
    let v = w.session.packet(w.now(), auth, &mut Vec::new()).expect_err("refused");
    assert_eq!((v.reason, &v.statement[..13]), (ReasonCode::PROTOCOL_ERROR, "MQTT-4.12.0-6"));
    let topic = "t".repeat(KEY_BYTES_MAX + 1);
    let publish = Publish {
        dup: false,
        qos: Qos::AtMostOnce,
        retain: false,
        topic: &topic,
        packet_id: None,
        properties: Properties::default(),
        payload: b"",
    };
    let v = w.session.packet(w.now(), Packet::Publish(publish), &mut Vec::new()).expect_err("refused");
    assert_eq!(v.reason, ReasonCode::TOPIC_NAME_INVALID);
}
