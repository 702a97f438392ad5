//! One packet to bytes.
//!
//! Invariant: the shortest form that the specification allows; 3.1.1 drops properties and reason codes.
//! Must not know: whether the peer may be sent this packet.

use super::{Sink, decode::BRIDGE, varint};
use crate::packet::{Ack, Connect, Packet, PacketId, Publish, Qos, ReasonCode, SubAck, Version};
use crate::property::Properties;

/// Appends `packet` to `out`.
pub fn encode(packet: &Packet<'_>, version: Version, out: &mut Vec<u8>) {
    let mut length = 0usize;
    body(packet, version, &mut length);
    out.reserve(length + 5);
    out.u8(first_byte(packet));
    varint(out, length as u32);
    body(packet, version, out);
}

/// Appends everything of a PUBLISH that stands before its payload, for `payload_len` bytes that the caller appends.
/// `properties` is written in two parts so that stored ones need not be copied together with those of one subscriber.
#[expect(clippy::too_many_arguments, reason = "the parts of one packet; a struct would be built once per message to be taken apart here")]
pub fn publish_head(
    out: &mut Vec<u8>,
    version: Version,
    (dup, qos, retain): (bool, Qos, bool),
    topic: &[u8],
    packet_id: Option<PacketId>,
    own: Properties<'_>,
    stored: Properties<'_>,
    payload_len: usize,
) {
    let properties = own.raw().len() + stored.raw().len();
    let mut length = 2 + topic.len() + if packet_id.is_some() { 2 } else { 0 } + payload_len;
    if version == Version::V5 {
        length += properties;
        varint(&mut length, properties as u32);
    }
    out.u8(0x30 | u8::from(dup) << 3 | (qos as u8) << 1 | u8::from(retain));
    varint(out, length as u32);
    out.binary(topic);
    if let Some(id) = packet_id {
        out.u16(id.get());
    }
    if version == Version::V5 {
        varint(out, properties as u32);
        out.bytes(own.raw());
        out.bytes(stored.raw());
    }
}

fn first_byte(packet: &Packet<'_>) -> u8 {
    match packet {
        Packet::Connect(_) => 0x10,
        Packet::ConnAck(_) => 0x20,
        Packet::Publish(p) => 0x30 | u8::from(p.dup) << 3 | (p.qos as u8) << 1 | u8::from(p.retain),
        Packet::PubAck(_) => 0x40,
        Packet::PubRec(_) => 0x50,
        Packet::PubRel(_) => 0x62,
        Packet::PubComp(_) => 0x70,
        Packet::Subscribe(_) => 0x82,
        Packet::SubAck(_) => 0x90,
        Packet::Unsubscribe(_) => 0xA2,
        Packet::UnsubAck(_) => 0xB0,
        Packet::PingReq => 0xC0,
        Packet::PingResp => 0xD0,
        Packet::Disconnect(_) => 0xE0,
        Packet::Auth(_) => 0xF0,
    }
}

fn body(packet: &Packet<'_>, version: Version, s: &mut impl Sink) {
    match packet {
        Packet::Connect(p) => connect(p, s),
        Packet::ConnAck(p) => {
            s.u8(u8::from(p.session_present));
            s.u8(p.reason.0);
            properties(p.properties, version, s);
        }
        Packet::Publish(p) => publish(p, version, s),
        Packet::PubAck(p) | Packet::PubRec(p) | Packet::PubRel(p) | Packet::PubComp(p) => ack(p, version, s),
        Packet::Subscribe(p) => {
            s.u16(p.packet_id.get());
            properties(p.properties, version, s);
            s.bytes(p.filters.raw());
        }
        Packet::Unsubscribe(p) => {
            s.u16(p.packet_id.get());
            properties(p.properties, version, s);
            s.bytes(p.filters.raw());
        }
        Packet::SubAck(p) | Packet::UnsubAck(p) => suback(p, version, s),
        Packet::PingReq | Packet::PingResp => {}
        Packet::Disconnect(p) => short_form(p.reason, p.properties, version, s),
        Packet::Auth(p) => short_form(p.reason, p.properties, version, s),
    }
}

fn properties(p: Properties<'_>, version: Version, s: &mut impl Sink) {
    if version == Version::V5 {
        varint(s, p.raw().len() as u32);
        s.bytes(p.raw());
    }
}

fn connect(p: &Connect<'_>, s: &mut impl Sink) {
    let (name, level): (&[u8], u8) = match (p.version, p.is_31) {
        (Version::V5, _) => (b"MQTT", 5),
        (Version::V311, false) => (b"MQTT", 4),
        (Version::V311, true) => (b"MQIsdp", 3),
    };
    s.binary(name);
    s.u8(level | if p.is_bridge { BRIDGE } else { 0 });
    let will = p.will.map_or(0, |w| 0x04 | (w.qos as u8) << 3 | u8::from(w.retain) << 5);
    s.u8(u8::from(p.clean_start) << 1 | will | u8::from(p.password.is_some()) << 6 | u8::from(p.username.is_some()) << 7);
    s.u16(p.keep_alive_s);
    properties(p.properties, p.version, s);
    s.binary(p.client_id.as_bytes());
    if let Some(w) = p.will {
        properties(w.properties, p.version, s);
        s.binary(w.topic.as_bytes());
        s.binary(w.payload);
    }
    if let Some(u) = p.username {
        s.binary(u.as_bytes());
    }
    if let Some(password) = p.password {
        s.binary(password);
    }
}

fn publish(p: &Publish<'_>, version: Version, s: &mut impl Sink) {
    s.binary(p.topic.as_bytes());
    if let Some(id) = p.packet_id {
        s.u16(id.get());
    }
    properties(p.properties, version, s);
    s.bytes(p.payload);
}

fn ack(p: &Ack<'_>, version: Version, s: &mut impl Sink) {
    s.u16(p.packet_id.get());
    short_form(p.reason, p.properties, version, s);
}

fn suback(p: &SubAck<'_>, version: Version, s: &mut impl Sink) {
    s.u16(p.packet_id.get());
    properties(p.properties, version, s);
    s.bytes(p.reasons);
}

/// Version 5 leaves out an empty property list, and then a reason code of 0.
fn short_form(reason: ReasonCode, p: Properties<'_>, version: Version, s: &mut impl Sink) {
    if version == Version::V311 || (p.is_empty() && reason == ReasonCode::SUCCESS) {
        return;
    }
    s.u8(reason.0);
    if !p.is_empty() {
        properties(p, version, s);
    }
}
