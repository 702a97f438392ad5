//! Random input, for as long as WEIR_FUZZ_SECONDS says (1 by default), from seeds that a failure names: bytes to the decoder, packets and events to a
//! session.

use crate::{
    codec::{Decoded, decode, encode},
    fanout::Inbox,
    ids::{Now, Offset, PartitionId, Receipt, Source, SubscribeId, Watermark},
    message::Stored,
    packet::{Packet, Qos, Version},
    property::Properties,
    session::{Action, Append, Cause, ConnectRequest, Event, Session, connect, connect::Joining},
};
use std::time::{Duration, Instant};

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n.max(1)
    }
}

/// Calls `one` with a new seed until the time is over; gives how often.
#[expect(clippy::disallowed_methods, reason = "how long to go on, not what core is told")]
fn rounds(mut one: impl FnMut(&mut Rng)) -> u64 {
    let seconds = std::env::var("WEIR_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let first: u64 = std::env::var("WEIR_FUZZ_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut seed = first;
    while Instant::now() < end {
        let named = NamedSeed(seed);
        one(&mut Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1));
        drop(named);
        seed += 1;
    }
    println!("{} rounds", seed - first);
    seed - first
}

/// Says which seed it was when its round panics.
struct NamedSeed(u64);

impl Drop for NamedSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("WEIR_FUZZ_SEED={}", self.0);
        }
    }
}

/// Whole packets of every kind, to be damaged.
fn samples() -> Vec<Vec<u8>> {
    let texts: [&[u8]; 18] = [
        b"\x10\x0F\x00\x06MQIsdp\x03\x02\x00\x00\x00\x01p",
        b"\x10\x17\x00\x04MQTT\x05\xC6\x00\x3C\x05\x11\x00\x00\x00\x0A\x00\x01a\x02\x01\x01\x00\x01w\x00\x01!\x00\x01u\x00\x01p",
        b"\x10\x0D\x00\x04MQTT\x04\x02\x00\x00\x00\x01p",
        b"\x20\x03\x00\x00\x00",
        b"\x30\x09\x00\x03a/b\x00hey",
        b"\x32\x0F\x00\x03a/b\x00\x07\x03\x23\x00\x01hello",
        b"\x3D\x0A\x00\x01a\xFF\xFF\x02\x01\x01xy",
        b"\x40\x04\x00\x07\x10\x00",
        b"\x50\x02\x00\x07",
        b"\x62\x03\x00\x07\x92",
        b"\x70\x02\x00\x07",
        b"\x82\x0B\x00\x01\x02\x0B\x07\x00\x03a/+\x2D",
        b"\x82\x13\x00\x01\x00\x00\x0D$share/g/a/#/\x01",
        b"\x90\x05\x00\x01\x00\x01\x80",
        b"\xA2\x08\x00\x01\x00\x00\x03a/+",
        b"\xC0\x00",
        b"\xE0\x07\x04\x05\x11\x00\x00\x00\x05",
        b"\xF0\x08\x18\x06\x15\x00\x01m\x16\x00",
    ];
    texts.iter().map(|t| t.to_vec()).collect()
}

/// One or several packets, with bytes changed, added, taken away.
fn damaged(rng: &mut Rng, samples: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..1 + rng.below(3) {
        bytes.extend_from_slice(&samples[rng.below(samples.len() as u64) as usize]);
    }
    for _ in 0..rng.below(4) {
        let at = rng.below(bytes.len() as u64 + 1) as usize;
        match rng.below(4) {
            0 if at < bytes.len() => bytes[at] = rng.next() as u8,
            1 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            2 => bytes.insert(at, rng.next() as u8),
            3 => bytes.truncate(at),
            _ => {}
        }
    }
    bytes
}

#[test]
fn bytes_to_the_decoder() {
    let samples = samples();
    let n = rounds(|rng| {
        let bytes = damaged(rng, &samples);
        let version = if rng.below(2) == 0 { Version::V311 } else { Version::V5 };
        let mut rest = &bytes[..];
        while let Ok(Decoded::Packet(packet, used)) = decode(rest, version, 1 << 20) {
            assert!(used > 1 && used <= rest.len());
            // What is taken for a packet is one: written again it says the same.
            let said = if let Packet::Connect(c) = &packet { c.version } else { version };
            let mut again = Vec::new();
            encode(&packet, said, &mut again);
            match decode(&again, said, 1 << 20) {
                Ok(Decoded::Packet(p, n)) => assert!(n == again.len() && p == packet),
                other => panic!("{packet:?} became {other:?}"),
            }
            rest = &rest[used..];
        }
    });
    assert!(n > 1_000);
}

struct World {
    version: Version,
    session: Session,
    now: u64,
    out: Vec<u8>,
    receipts: u64,
    stored: Option<Vec<u8>>,
    subscribes: Vec<SubscribeId>,
    inbox: Inbox,
}

const P: PartitionId = PartitionId(0);

impl World {
    fn now(&self) -> Now {
        Now { monotonic_ms: self.now, wall_ms: self.now, steady_ms: self.now }
    }

    fn event(&mut self, event: Event) {
        self.session.handle(self.now(), event, &mut self.out);
    }

    fn connect(&mut self, rng: &mut Rng) {
        self.session = self.stored.as_ref().map_or_else(|| Session::new("a", 0), |v| Session::decode("a", v).expect("its own value"));
        let clean = rng.below(3) == 0;
        let bytes: Vec<u8> = match self.version {
            Version::V311 => vec![0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 4, u8::from(clean) << 1, 0, 0, 0, 1, b'a'],
            Version::V5 => {
                let expiry = rng.below(3) as u8;
                let mut b = vec![0x10, 25, 0, 4, b'M', b'Q', b'T', b'T', 5, u8::from(clean) << 1, 0, 0, 11, 0x11, 0, 0, 0, expiry];
                b.extend([0x22, 0, 2, 0x21, 0, 1 + rng.below(4) as u8, 0, 1, b'a']);
                b
            }
        };
        let Ok(Decoded::Packet(Packet::Connect(c), _)) = decode(&bytes, self.version, 1 << 20) else { panic!("a CONNECT") };
        let limits = std::sync::Arc::default();
        let fleet: std::sync::Arc<dyn crate::limits::Fleet> = std::sync::Arc::new(crate::limits::Unbounded);
        let request = ConnectRequest::read(&c, &limits).expect("a request");
        let joining = Joining {
            sid: self.now,
            boot: 1,
            partitions: &[connect::Partition { id: P, stream: "default".into(), number: 0, system: false, end: Offset(50) }],
            resumed: self.stored.is_some(),
            in_store: self.stored.is_some(),
            limits: &limits,
            fleet: &fleet,
        };
        self.session.connect(self.now(), &request, &joining, &mut self.out);
    }

    fn packets(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while self.session.is_connected() {
            match decode(rest, self.version, 1 << 20) {
                Ok(Decoded::Packet(packet, used)) => {
                    rest = &rest[used..];
                    match self.session.packet(self.now(), &packet, &mut self.out) {
                        Ok(None) => {}
                        Ok(Some(append)) => {
                            self.receipts += 1;
                            let acknowledged = !matches!(append, Append::Message(m) if m.qos == Qos::AtMostOnce);
                            if acknowledged {
                                self.event(Event::Submitted(P, Receipt(self.receipts), 1));
                            }
                        }
                        Err(v) => self.event(Event::Closed(Cause::Violation(v))),
                    }
                }
                Ok(Decoded::Incomplete(_)) => return,
                Err(e) => self.event(Event::Closed(Cause::Violation(e.into()))),
            }
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::PutValue => {
                    let value = self.session.value();
                    assert_eq!(Session::decode("a", &value).expect("its own value").value(), value);
                    self.stored = Some(value);
                    self.receipts += 1;
                    self.event(Event::PutSubmitted(Receipt(self.receipts)));
                }
                Action::DeleteValue => {
                    self.stored = None;
                    self.receipts += 1;
                    self.event(Event::PutSubmitted(Receipt(self.receipts)));
                }
                Action::AppendWill => {
                    self.receipts += 1;
                    self.event(Event::WillSubmitted(P, Receipt(self.receipts)));
                }
                Action::Subscribe { id, .. } => self.subscribes.push(id),
                Action::Share { id, .. } => self.event(Event::Shared(id)),
                _ => {}
            }
        }
    }

    /// What was said is packets, in this version, and nothing is said after a goodbye.
    fn check_out(&mut self) {
        let out = std::mem::take(&mut self.out);
        let mut rest = &out[..];
        while !rest.is_empty() {
            match decode(rest, self.version, usize::MAX) {
                Ok(Decoded::Packet(p, used)) => {
                    rest = &rest[used..];
                    assert!(rest.is_empty() || !matches!(p, Packet::Disconnect(_)), "something behind a DISCONNECT");
                }
                other => panic!("said {other:?} of {rest:02x?}"),
            }
        }
    }

    fn step(&mut self, rng: &mut Rng, samples: &[Vec<u8>]) {
        match rng.below(14) {
            0..4 => {
                let bytes = if rng.below(3) == 0 { damaged(rng, samples) } else { self.plausible(rng) };
                self.packets(&bytes);
            }
            4 => self.event(Event::Appended(Source::Partition(P), Watermark::Appended(Receipt(rng.below(self.receipts + 1))))),
            5 => self.event(Event::Appended(Source::State, Watermark::Appended(Receipt(rng.below(self.receipts + 1))))),
            6 => {
                if let Some(id) = self.subscribes.pop() {
                    let (tail, begin) = (Offset(rng.below(60)), Offset(rng.below(60)));
                    self.event(Event::Started(id, P, tail));
                    self.event(Event::Started(id, P, begin));
                }
            }
            7..10 if self.session.may_deliver() => self.record(rng),
            10 => self.event(Event::Timeout),
            11 if rng.below(8) == 0 => self.event(Event::Closed([Cause::Socket, Cause::TakenOver, Cause::Drain][rng.below(3) as usize])),
            12 if rng.below(20) == 0 => self.event(Event::Appended(Source::Partition(P), Watermark::Failed)),
            13 => drop(self.session.resend_next(&mut self.out)),
            _ => self.now += rng.below(400),
        }
        self.act();
        self.check_out();
        if self.session.is_ended() || (!self.session.is_connected() && rng.below(4) == 0) {
            self.connect(rng);
            self.act();
        }
    }

    /// A packet that a client could send.
    fn plausible(&self, rng: &mut Rng) -> Vec<u8> {
        let id = 1 + rng.below(3) as u8;
        let properties: &[u8] = if self.version == Version::V5 { &[0] } else { &[] };
        let packet = |head: u8, body: &[&[u8]]| [&[head, body.iter().map(|b| b.len()).sum::<usize>() as u8][..], &body.concat()].concat();
        match rng.below(8) {
            0 => packet(0x30, &[b"\0\x01a", properties, b"x"]),
            1 => packet(0x32, &[b"\0\x01a\0", &[id], properties, b"x"]),
            2 => packet(0x34 | (rng.below(2) as u8) << 3, &[b"\0\x01a\0", &[id], properties, b"x"]),
            3 => packet(0x62, &[&[0, id]]),
            4 => packet(0x82, &[&[0, id], properties, b"\0\x01#", &[rng.below(3) as u8]]),
            5 => packet(0x40, &[&[0, id]]),
            6 => packet(0x50, &[&[0, id]]),
            _ => packet(0x70, &[&[0, id]]),
        }
    }

    fn record(&mut self, rng: &mut Rng) {
        let _ = self.session.step(0, &mut self.inbox, Offset(100), Offset(0));
        let offset = Offset(self.session.reader(0).next.0 + rng.below(3));
        let stored = Stored {
            offset,
            time_ms: 0,
            qos: Qos::from_bits(rng.below(3) as u8).unwrap_or_default(),
            retain: rng.below(4) == 0,
            client_hash: 1,
            mark: None,
            expires_ms: (rng.below(5) == 0).then(|| rng.below(2_000)),
            topic: b"a",
            headers: Properties::default(),
            payload: b"payload",
        };
        let _ = self.session.deliver(self.now(), 0, &stored, &mut self.out);
    }
}

#[test]
fn packets_and_events_to_a_session() {
    let samples = samples();
    let n = rounds(|rng| {
        let version = if rng.below(2) == 0 { Version::V311 } else { Version::V5 };
        let session = Session::new("a", 0);
        let mut w = World {
            version,
            session,
            now: 1_000,
            out: Vec::new(),
            receipts: 1,
            stored: None,
            subscribes: Vec::new(),
            inbox: Inbox::default(),
        };
        w.connect(rng);
        w.act();
        (0..200).for_each(|_| w.step(rng, &samples));
    });
    assert!(n > 50);
}
