//! What a message of the load generator says, and whether all of them came.
//!
//! Invariant: a message that is lost, repeated, or out of the order of its publisher is counted as just that.
//! Must not know: connections.

use weir_core::{
    codec::publish_head,
    packet::{PacketId, Qos, Version},
    property::Properties,
};

/// Publisher, sequence number and time: 20, 36 and 40 bits, six to a character, so that a browser's feed shows it too.
pub const MARK_BYTES: usize = 16;
/// How far 40 bits go in steps of a tenth of a microsecond: a run is shorter.
pub const SECONDS_MAX: u64 = 100_000;
const STEP_NS: u64 = 100;
const DIGITS: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ-abcdefghijklmnopqrstuvwxyz_";
/// Values of digits; of what is none, more than any.
const VALUES: [u8; 256] = {
    let (mut all, mut n) = ([u8::MAX; 256], 0);
    while n < DIGITS.len() {
        all[DIGITS[n] as usize] = n as u8;
        n += 1;
    }
    all
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub publisher: u32,
    pub seq: u64,
    /// Nanoseconds since the start of the run, when it was to be sent.
    pub at_ns: u64,
}

/// 48 bits.
fn put(n: u64, to: &mut [u8; 8]) {
    for (i, b) in to.iter_mut().enumerate() {
        *b = DIGITS[(n >> (42 - 6 * i) & 63) as usize];
    }
}

fn take(from: &[u8; 8]) -> Option<u64> {
    let values = from.map(|b| VALUES[usize::from(b)]);
    let n = values.iter().fold(0, |n, v| n << 6 | u64::from(v & 63));
    values.iter().all(|v| *v < 64).then_some(n)
}

impl Mark {
    fn write(self, to: &mut [u8]) {
        let ([front, back], _) = to.as_chunks_mut() else { return };
        put(u64::from(self.publisher) << 28 | self.seq >> 8 & 0x0FFF_FFFF, front);
        put(((self.seq & 0xFF) << 40) | (self.at_ns / STEP_NS), back);
    }

    /// `None`: not a message of ours.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let (front, rest) = payload.split_first_chunk()?;
        let (front, back) = (take(front)?, take(rest.first_chunk()?)?);
        let seq = (front & 0x0FFF_FFFF) << 8 | back >> 40;
        Some(Self { publisher: (front >> 28) as u32, seq, at_ns: (back & 0xFF_FFFF_FFFF) * STEP_NS })
    }
}

/// That of the nth message of a connection; never 0.
fn packet_id(nth: u64) -> u16 {
    (nth % u64::from(u16::MAX)) as u16 + 1
}

/// A PUBLISH of which only the mark and the packet id change.
pub struct Template {
    bytes: Vec<u8>,
    id_at: Option<usize>,
    mark_at: usize,
}

impl Template {
    pub fn new(version: Version, topic: &str, qos: Qos, retain: bool, payload: usize) -> Self {
        let mut bytes = Vec::new();
        let id = (qos != Qos::AtMostOnce).then_some(PacketId::MIN);
        let none = Properties::default();
        publish_head(&mut bytes, version, (false, qos, retain), topic.as_bytes(), id, none, none, payload);
        let mark_at = bytes.len();
        // Behind the topic, before the properties.
        let id_at = id.map(|_| mark_at - 2 - usize::from(version == Version::V5));
        bytes.resize(mark_at + payload, b'.');
        Self { bytes, id_at, mark_at }
    }

    /// A retained message that takes the one before it away.
    pub fn empty(version: Version, topic: &str, nth: u64, out: &mut Vec<u8>) {
        let none = Properties::default();
        publish_head(out, version, (false, Qos::AtLeastOnce, true), topic.as_bytes(), PacketId::new(packet_id(nth)), none, none, 0);
    }

    /// `nth`: of its connection.
    pub fn push(&self, out: &mut Vec<u8>, nth: u64, mark: Mark) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        if let Some(at) = self.id_at {
            out[start + at..start + at + 2].copy_from_slice(&packet_id(nth).to_be_bytes());
        }
        mark.write(&mut out[start + self.mark_at..start + self.mark_at + MARK_BYTES]);
    }
}

/// What one subscriber has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Next sequence number per publisher.
    next: Vec<u64>,
    pub received: u64,
    skipped: u64,
    /// Again, and said so.
    pub repeated: u64,
    pub out_of_order: u64,
}

impl Seen {
    pub fn see(&mut self, mark: Mark, dup: bool) {
        let publisher = mark.publisher as usize;
        if self.next.len() <= publisher {
            self.next.resize(publisher + 1, 0);
        }
        let Some(next) = self.next.get_mut(publisher) else { return };
        if mark.seq >= *next {
            self.received += 1;
            self.skipped += mark.seq - *next;
            *next = mark.seq + 1;
        } else if dup {
            self.repeated += 1;
        } else {
            self.out_of_order += 1;
        }
    }

    /// Messages that did not come, of so many per publisher.
    pub fn lost(&self, published: &[(u32, u64)]) -> u64 {
        let missing = |(publisher, sent): &(u32, u64)| sent.saturating_sub(self.next.get(*publisher as usize).copied().unwrap_or(0));
        (self.skipped + published.iter().map(missing).sum::<u64>()).saturating_sub(self.out_of_order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_core::{
        codec::{Decoded, decode},
        packet::Packet,
    };

    #[test]
    fn a_template_is_the_packet_that_it_stands_for() {
        for version in [Version::V311, Version::V5] {
            for qos in [Qos::AtMostOnce, Qos::AtLeastOnce] {
                let template = Template::new(version, "bench/x", qos, true, 200);
                let mark = Mark { publisher: 0xF_EDCB, seq: 0x8_0001_0000, at_ns: SECONDS_MAX * 1_000_000_000 + 100 };
                let mut out = Vec::new();
                template.push(&mut out, mark.seq, mark);
                let Ok(Decoded::Packet(Packet::Publish(p), _)) = decode(&out, version, usize::MAX) else { panic!("a PUBLISH") };
                assert_eq!((p.topic, p.qos, p.retain, p.payload.len()), ("bench/x", qos, true, 200));
                assert_eq!(p.packet_id.map(PacketId::get), (qos != Qos::AtMostOnce).then_some(10));
                assert_eq!(Mark::parse(p.payload), Some(mark));
            }
        }
        assert_eq!((Mark::parse(b"somebody else's!"), Mark::parse(b"0123456789ABCDE")), (None, None));
    }

    #[test]
    fn what_is_lost_repeated_or_late_is_counted_as_that() {
        let mut seen = Seen::default();
        let mark = |publisher, seq| Mark { publisher, seq, at_ns: 0 };
        for seq in [0, 1, 3, 4] {
            seen.see(mark(1, seq), false);
        }
        assert_eq!(seen.lost(&[(1, 6), (0, 2)]), 1 + 1 + 2, "2 was skipped, 5 and both of publisher 0 have not come");
        seen.see(mark(1, 4), true);
        assert_eq!((seen.repeated, seen.out_of_order, seen.received), (1, 0, 4));
        seen.see(mark(1, 2), false);
        assert_eq!((seen.out_of_order, seen.lost(&[(1, 5)])), (1, 0), "late, not lost");
    }
}
