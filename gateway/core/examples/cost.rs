//! What the pure core does for messages of QoS 1, for an instruction counter: `cost publish|deliver N`. Inputs are fixed, so the count of N messages more is always the same.
//!
//! Invariant: nothing but the core, and no more output than one line.

use std::error::Error;
use weir_core::{
    codec::{Decoded, decode},
    ids::{Now, Offset, PartitionId, Receipt, Source, Watermark},
    message::{Message, Stored},
    packet::{Packet, Version},
    session::{
        Append, ConnectRequest, Event, Session,
        connect::{Joining, Partition},
    },
};

const NOW: Now = Now { monotonic_ms: 1_000, wall_ms: 1_790_000_000_000, steady_ms: 1_790_000_000_000 };
const P: PartitionId = PartitionId(0);
/// Messages of one read, and of one batch.
const BATCH: usize = 100;
const TOPIC: &str = "site/berlin/line/7/temperature";

fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u16).to_be_bytes()[..], s.as_bytes()].concat()
}

fn packet(bytes: &[u8]) -> Result<(Packet<'_>, usize), Box<dyn Error>> {
    match decode(bytes, Version::V311, usize::MAX) {
        Ok(Decoded::Packet(packet, n)) => Ok((packet, n)),
        other => Err(format!("{other:?}").into()),
    }
}

fn publish(id: u16) -> Vec<u8> {
    let body = [&text(TOPIC)[..], &id.to_be_bytes(), &[7; 200]].concat();
    [&[0x32, body.len() as u8 | 0x80, (body.len() >> 7) as u8][..], &body].concat()
}

/// Connected, with one filter if it is to receive.
fn session(filter: Option<&str>, out: &mut Vec<u8>) -> Result<Session, Box<dyn Error>> {
    let connect = [&[0x10, 18][..], &text("MQTT"), &[4, 2, 0, 0], &text("a-name")].concat();
    let Packet::Connect(c) = packet(&connect)?.0 else { return Err("a CONNECT".into()) };
    let limits = std::sync::Arc::default();
    let fleet: std::sync::Arc<dyn weir_core::limits::Fleet> = std::sync::Arc::new(weir_core::limits::Unbounded);
    let request = ConnectRequest::read(&c, &limits).map_err(|_| "a request")?;
    let mut session = Session::new("a-name", 0);
    let partitions = [Partition { id: P, stream: "default".into(), number: 0, system: false, end: Offset(0) }];
    session.connect(
        NOW,
        &request,
        &Joining { sid: 1, boot: 0, partitions: &partitions, resumed: false, in_store: false, limits: &limits, fleet: &fleet },
        out,
    );
    if let Some(filter) = filter {
        let body = [&[0, 1][..], &text(filter), &[1]].concat();
        let subscribe = [&[0x82, body.len() as u8][..], &body].concat();
        session.packet(NOW, &packet(&subscribe)?.0, out).map_err(|v| v.statement)?;
        let ids: Vec<_> = std::iter::from_fn(|| session.poll_action()).collect();
        for action in ids {
            if let weir_core::session::Action::Subscribe { id, .. } = action {
                session.handle(NOW, Event::Started(id, P, Offset(0)), out);
            }
        }
    }
    Ok(session)
}

/// Takes PUBLISH packets, and gives their PUBACKs when they are durable.
fn published(batches: usize) -> Result<usize, Box<dyn Error>> {
    let mut out = Vec::new();
    let mut session = session(None, &mut out)?;
    let read: Vec<u8> = (1..=BATCH as u16).flat_map(publish).collect();
    let (mut answered, mut appended) = (0, 0);
    for batch in 1..=batches as u64 {
        let mut rest = &read[..];
        while !rest.is_empty() {
            let (packet, n) = packet(rest)?;
            appended += usize::from(matches!(session.packet(NOW, &packet, &mut out), Ok(Some(Append::Message(_)))));
            rest = &rest[n..];
        }
        let receipt = Receipt(batch * BATCH as u64);
        session.handle(NOW, Event::Submitted(P, receipt, BATCH as u32), &mut out);
        session.handle(NOW, Event::Appended(Source::Partition(P), Watermark::Appended(receipt)), &mut out);
        answered += out.len();
        out.clear();
    }
    if appended != batches * BATCH {
        return Err(format!("{appended} records").into());
    }
    Ok(answered)
}

/// Gives records as PUBLISH packets, and takes their PUBACKs.
fn delivered(batches: usize) -> Result<usize, Box<dyn Error>> {
    let mut out = Vec::new();
    let mut session = session(Some("site/+/line/#"), &mut out)?;
    let bytes = publish(1);
    let Packet::Publish(p) = packet(&bytes)?.0 else { return Err("a PUBLISH".into()) };
    let message = Message::of_publish(&p, weir_core::message::Topic::Borrowed(TOPIC), None, 7, NOW.steady_ms);
    let meta = message.meta();
    let (mut sent, mut acks) = (0, Vec::new());
    for n in 0..(batches * BATCH) as u64 {
        if n % BATCH as u64 == 0 {
            out.clear();
        }
        let stored = Stored::parse(Offset(n), NOW.wall_ms, meta.flags, meta.bytes(), TOPIC.as_bytes(), &message.headers, message.payload);
        session.deliver(NOW, 0, &stored.ok_or("a record")?, &mut out);
        if n % BATCH as u64 == BATCH as u64 - 1 {
            sent += out.len();
            acks.clear();
            let mut rest = &out[..];
            while !rest.is_empty() {
                let (packet, n) = packet(rest)?;
                if let Packet::Publish(p) = packet {
                    let id = p.packet_id.ok_or("an id")?;
                    acks.extend_from_slice(&[0x40, 2, (id.get() >> 8) as u8, id.get() as u8]);
                }
                rest = &rest[n..];
            }
            let mut rest = &acks[..];
            while !rest.is_empty() {
                let (packet, n) = packet(rest)?;
                session.packet(NOW, &packet, &mut Vec::new()).map_err(|v| v.statement)?;
                rest = &rest[n..];
            }
        }
    }
    Ok(sent)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().collect();
    let [_, what, messages] = &arguments[..] else { return Err("usage: cost publish|deliver N".into()) };
    let batches = messages.parse::<usize>()? / BATCH;
    let bytes = if what == "publish" { published(batches)? } else { delivered(batches)? };
    println!("{bytes} bytes");
    Ok(())
}
