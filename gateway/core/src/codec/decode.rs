//! Bytes to one packet.
//!
//! Invariant: reads no further than the packet's own length, borrows everything, allocates nothing.
//! Must not know: what came before on the connection, but for the protocol version.

use super::{Cursor, DecodeError};
use crate::packet::{
    Ack, Auth, ConnAck, Connect, Disconnect, Filters, Packet, PacketId, Publish, Qos, ReasonCode, SubAck, Subscribe, SubscriptionOptions,
    Unsubscribe, Version, Will,
};
use crate::property::{Properties, Property, within};
use crate::topic::{filter_is_valid, has_controls, topic_is_valid};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// A packet and the bytes it took.
    Packet(Packet<'a>, usize),
    /// At least this many bytes in all are needed to go on.
    Incomplete(usize),
}

type Result<T> = std::result::Result<T, DecodeError>;

fn malformed<T>(statement: &'static str) -> Result<T> {
    Err(DecodeError::malformed(statement))
}

fn protocol_error<T>(statement: &'static str) -> Result<T> {
    Err(DecodeError::new(ReasonCode::PROTOCOL_ERROR, statement))
}

/// Decodes the packet at the front of `bytes`. A CONNECT says its version itself; every other packet is read as `version`.
/// A packet longer than `packet_bytes_max` (fixed header included) is refused as soon as its length is known.
pub fn decode(bytes: &[u8], version: Version, packet_bytes_max: usize) -> Result<Decoded<'_>> {
    decode_of(bytes, version, false, packet_bytes_max)
}

const DUP: u8 = 0x08;

/// The same of a client that may speak MQTT 3.1. Where that repeats a PUBREL, a SUBSCRIBE or an
/// UNSUBSCRIBE it sets DUP (MQTT 3.1, 2.1), which later versions reserve.
pub fn decode_of(bytes: &[u8], version: Version, is_31: bool, packet_bytes_max: usize) -> Result<Decoded<'_>> {
    let Some((&first, rest)) = bytes.split_first() else { return Ok(Decoded::Incomplete(2)) };
    let repeats = is_31 && matches!(first >> 4, 6 | 8 | 10);
    check_flags(if repeats { first & !DUP } else { first }, version)?;
    let mut c = Cursor::new(rest);
    let length = match c.varint() {
        Ok(n) => n as usize,
        // Four bytes without an end are an error; fewer may still go on.
        Err(_) if rest.len() < 4 && rest.iter().all(|b| b & 0x80 != 0) => return Ok(Decoded::Incomplete(bytes.len() + 1)),
        Err(e) => return Err(e),
    };
    let head = bytes.len() - c.rest().len();
    let total = head + length;
    if total > packet_bytes_max {
        return Err(DecodeError::new(ReasonCode::PACKET_TOO_LARGE, "MQTT-3.2.2-15: packet larger than the maximum packet size"));
    }
    if bytes.len() < total {
        return Ok(Decoded::Incomplete(total));
    }
    let mut body = Cursor::new(c.take(length)?);
    let c = &mut body;
    let packet = match first >> 4 {
        1 => Packet::Connect(connect(first, c)?),
        2 => Packet::ConnAck(connack(c, version)?),
        // What comes by the million is made where it is returned: moved from hand to hand, it costs more than the rest.
        3 => return Ok(Decoded::Packet(Packet::Publish(publish(first, c, version)?), total)),
        4 => Packet::PubAck(ack(c, version, REASONS_PUBACK)?),
        5 => Packet::PubRec(ack(c, version, REASONS_PUBACK)?),
        6 => Packet::PubRel(ack(c, version, REASONS_PUBREL)?),
        7 => Packet::PubComp(ack(c, version, REASONS_PUBREL)?),
        8 => Packet::Subscribe(subscribe(c, version)?),
        9 => Packet::SubAck(suback(c, version, true)?),
        10 => Packet::Unsubscribe(unsubscribe(c, version)?),
        11 => Packet::UnsubAck(suback(c, version, false)?),
        12 => Packet::PingReq,
        13 => Packet::PingResp,
        14 => Packet::Disconnect(disconnect(c, version)?),
        _ => Packet::Auth(auth(c)?),
    };
    if !body.is_empty() {
        return malformed("MQTT 5, 2.1.4: bytes after the end of the packet's content");
    }
    Ok(Decoded::Packet(packet, total))
}

fn check_flags(first: u8, version: Version) -> Result<()> {
    let flags = first & 0x0F;
    let right = match first >> 4 {
        0 => return malformed("MQTT 5, 2.1.2: packet type 0 is reserved"),
        15 if version == Version::V311 => return malformed("MQTT 3.1.1, 2.2.1: packet type 15 is reserved"),
        3 => {
            if flags & 0x06 == 0x06 {
                return malformed("MQTT-3.3.1-4: QoS 3");
            }
            if flags & 0x0E == 0x08 {
                return malformed("MQTT-3.3.1-2: DUP with QoS 0");
            }
            flags
        }
        // Version 3.1 has bits there; `connect` knows which it is.
        1 => flags,
        6 | 8 | 10 => 2,
        _ => 0,
    };
    if flags == right { Ok(()) } else { malformed("MQTT-2.1.3-1: reserved flag bits") }
}

fn properties<'a>(c: &mut Cursor<'a>, version: Version, within: u16) -> Result<Properties<'a>> {
    if version == Version::V311 {
        return Ok(Properties::default());
    }
    let n = c.varint()?;
    Properties::check(c.take(n as usize)?, within)
}

fn packet_id(c: &mut Cursor<'_>) -> Result<PacketId> {
    PacketId::new(c.u16()?).ok_or(DecodeError::malformed("MQTT-2.2.1-3: packet identifier 0"))
}

fn reason(c: &mut Cursor<'_>, allowed: &[u8]) -> Result<ReasonCode> {
    let code = c.u8()?;
    if allowed.contains(&code) { Ok(ReasonCode(code)) } else { malformed("MQTT 5, 2.4: reason code not of this packet") }
}

fn auth_is_whole(properties: Properties<'_>) -> bool {
    let has = |wanted: fn(&Property<'_>) -> bool| properties.iter().any(|p| wanted(&p));
    has(|p| matches!(p, Property::AuthenticationMethod(_))) || !has(|p| matches!(p, Property::AuthenticationData(_)))
}

/// Bit of the protocol level of a bridge of version 3.1 or 3.1.1: mosquitto's `try_private`, which is
/// its default.
pub(super) const BRIDGE: u8 = 0x80;

fn connect<'a>(first: u8, c: &mut Cursor<'a>) -> Result<Connect<'a>> {
    let unsupported = DecodeError::new(ReasonCode::UNSUPPORTED_PROTOCOL_VERSION, "MQTT-3.1.2-1: protocol name or version not supported");
    let name = c.binary()?;
    let level = c.u8()?;
    let version = match (name, level & !BRIDGE) {
        // 3.1 differs in nothing else that matters here.
        (b"MQTT", 4) | (b"MQIsdp", 3) => Version::V311,
        (b"MQTT", 5) if level & BRIDGE == 0 => Version::V5,
        _ => return Err(unsupported),
    };
    if first & 0x0F != 0 && name != b"MQIsdp" {
        return malformed("MQTT-2.1.3-1: reserved flag bits");
    }
    let flags = c.u8()?;
    // Version 3.1 does not say that it must be 0.
    if flags & 1 != 0 && name != b"MQIsdp" {
        return malformed("MQTT-3.1.2-3: reserved connect flag");
    }
    let (has_will, has_password, has_username) = (flags & 0x04 != 0, flags & 0x40 != 0, flags & 0x80 != 0);
    let Some(will_qos) = Qos::from_bits((flags >> 3) & 3) else { return malformed("MQTT-3.1.2-12: will QoS 3") };
    let will_retain = flags & 0x20 != 0;
    if !has_will && (will_qos != Qos::AtMostOnce || will_retain) {
        return malformed("MQTT-3.1.2-11: will QoS or retain without a will");
    }
    if version == Version::V311 && has_password && !has_username {
        return malformed("MQTT-3.1.2-22 (3.1.1): password without a user name");
    }
    let keep_alive_s = c.u16()?;
    let properties = self::properties(c, version, within::CONNECT)?;
    if !auth_is_whole(properties) {
        return protocol_error("MQTT 5, 3.1.2.11.10: authentication data without a method");
    }
    let client_id = c.text()?;
    if client_id.is_empty() && name == b"MQIsdp" {
        return Err(DecodeError::new(ReasonCode::CLIENT_IDENTIFIER_NOT_VALID, "MQTT 3.1, 3.1: no client identifier"));
    }
    let will = if has_will { Some(will(c, version, will_qos, will_retain)?) } else { None };
    let username = if has_username { Some(c.text()?) } else { None };
    if username.is_some_and(has_controls) {
        return Err(DecodeError::new(ReasonCode::BAD_USER_NAME_OR_PASSWORD, "MQTT 5, 1.5.4: a control character in the user name"));
    }
    let password = if has_password { Some(c.binary()?) } else { None };
    Ok(Connect {
        version,
        is_31: name == b"MQIsdp",
        is_bridge: level & BRIDGE != 0,
        clean_start: flags & 2 != 0,
        keep_alive_s,
        properties,
        client_id,
        will,
        username,
        password,
    })
}

fn will<'a>(c: &mut Cursor<'a>, version: Version, qos: Qos, retain: bool) -> Result<Will<'a>> {
    let properties = properties(c, version, within::WILL)?;
    let topic = c.text()?;
    if !topic_is_valid(topic) {
        return Err(DecodeError::new(ReasonCode::TOPIC_NAME_INVALID, "MQTT-4.7.1-1: will topic empty or with a wildcard"));
    }
    Ok(Will { qos, retain, properties, topic, payload: c.binary()? })
}

fn connack<'a>(c: &mut Cursor<'a>, version: Version) -> Result<ConnAck<'a>> {
    let flags = c.u8()?;
    if flags & 0xFE != 0 {
        return malformed("MQTT-3.2.2-1: reserved connect acknowledge flags");
    }
    let reason = reason(c, if version == Version::V5 { REASONS_CONNACK } else { &[0, 1, 2, 3, 4, 5] })?;
    if flags != 0 && reason != ReasonCode::SUCCESS {
        return protocol_error("MQTT-3.2.2-6: session present in a refusal");
    }
    Ok(ConnAck { session_present: flags != 0, reason, properties: properties(c, version, within::CONNACK)? })
}

/// Takes the rest.
#[inline(always)]
fn publish<'a>(first: u8, c: &mut Cursor<'a>, version: Version) -> Result<Publish<'a>> {
    let qos = Qos::from_bits((first >> 1) & 3).unwrap_or_default();
    let (topic, plain) = c.text_that_may_be_plain()?;
    let packet_id = if qos == Qos::AtMostOnce { None } else { Some(packet_id(c)?) };
    let properties = properties(c, version, within::PUBLISH)?;
    if topic.is_empty() {
        let aliased = properties.iter().any(|p| matches!(p, Property::TopicAlias(_)));
        if !aliased {
            return protocol_error("MQTT-3.3.2-1: PUBLISH without a topic name");
        }
    } else if !plain && !topic_is_valid(topic) {
        return Err(DecodeError::new(ReasonCode::TOPIC_NAME_INVALID, "MQTT-3.3.2-2: wildcard in a topic name"));
    }
    let payload = c.take(c.rest().len())?;
    Ok(Publish { dup: first & 8 != 0, qos, retain: first & 1 != 0, topic, packet_id, properties, payload })
}

fn ack<'a>(c: &mut Cursor<'a>, version: Version, allowed: &[u8]) -> Result<Ack<'a>> {
    let packet_id = packet_id(c)?;
    let (reason, properties) = short_form(c, version, allowed, within::ACK)?;
    Ok(Ack { packet_id, reason, properties })
}

/// Version 5 leaves out a reason code of 0 and an empty property list at the end of a packet.
fn short_form<'a>(c: &mut Cursor<'a>, version: Version, allowed: &[u8], within: u16) -> Result<(ReasonCode, Properties<'a>)> {
    if version == Version::V311 || c.is_empty() {
        return Ok((ReasonCode::SUCCESS, Properties::default()));
    }
    let reason = reason(c, allowed)?;
    let properties = if c.is_empty() { Properties::default() } else { properties(c, version, within)? };
    Ok((reason, properties))
}

fn subscribe<'a>(c: &mut Cursor<'a>, version: Version) -> Result<Subscribe<'a>> {
    let packet_id = packet_id(c)?;
    let properties = properties(c, version, within::SUBSCRIBE)?;
    let raw = c.rest();
    if c.is_empty() {
        return protocol_error("MQTT-3.8.3-2: SUBSCRIBE without a topic filter");
    }
    while !c.is_empty() {
        let text = filter(c)?;
        let byte = c.u8()?;
        let Some(options) = SubscriptionOptions::from_byte(byte) else {
            return malformed("MQTT-3.8.3-5: reserved subscription option bits");
        };
        if version == Version::V311 && byte & 0xFC != 0 {
            return malformed("MQTT-3-8.3-4 (3.1.1): reserved bits beside the requested QoS");
        }
        if options.no_local && (text.starts_with("$share/") || text.starts_with("$queue/")) {
            return protocol_error("MQTT-3.8.3-4: no local on a shared subscription");
        }
    }
    Ok(Subscribe { packet_id, properties, filters: Filters::from_validated(raw, true) })
}

fn unsubscribe<'a>(c: &mut Cursor<'a>, version: Version) -> Result<Unsubscribe<'a>> {
    let packet_id = packet_id(c)?;
    let properties = properties(c, version, within::UNSUBSCRIBE)?;
    let raw = c.rest();
    if c.is_empty() {
        return protocol_error("MQTT-3.10.3-2: UNSUBSCRIBE without a topic filter");
    }
    while !c.is_empty() {
        filter(c)?;
    }
    Ok(Unsubscribe { packet_id, properties, filters: Filters::from_validated(raw, false) })
}

fn filter<'a>(c: &mut Cursor<'a>) -> Result<&'a str> {
    let text = c.text()?;
    if filter_is_valid(text) {
        Ok(text)
    } else {
        Err(DecodeError::new(ReasonCode::TOPIC_FILTER_INVALID, "MQTT-4.7.1-1: topic filter empty or a wildcard out of place"))
    }
}

fn suback<'a>(c: &mut Cursor<'a>, version: Version, of_subscribe: bool) -> Result<SubAck<'a>> {
    let packet_id = packet_id(c)?;
    let properties = properties(c, version, within::SUBACK)?;
    let reasons = c.take(c.rest().len())?;
    let allowed: &[u8] = match (version, of_subscribe) {
        (Version::V5, true) => &[0x00, 0x01, 0x02, 0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2],
        (Version::V5, false) => &[0x00, 0x11, 0x80, 0x83, 0x87, 0x8F, 0x91],
        (Version::V311, true) => &[0x00, 0x01, 0x02, 0x80],
        (Version::V311, false) => &[],
    };
    let one_each = version == Version::V5 || of_subscribe;
    if reasons.iter().any(|r| !allowed.contains(r)) || one_each == reasons.is_empty() {
        return malformed("MQTT-3.9.3-1: reason codes of a SUBACK or UNSUBACK");
    }
    Ok(SubAck { packet_id, properties, reasons })
}

fn disconnect<'a>(c: &mut Cursor<'a>, version: Version) -> Result<Disconnect<'a>> {
    let (reason, properties) = short_form(c, version, REASONS_DISCONNECT, within::DISCONNECT)?;
    Ok(Disconnect { reason, properties })
}

fn auth<'a>(c: &mut Cursor<'a>) -> Result<Auth<'a>> {
    let whole = !c.is_empty();
    let (reason, properties) = short_form(c, Version::V5, &[0x00, 0x18, 0x19], within::AUTH)?;
    // The empty form means success without properties [MQTT 5, 3.15.2.1]; any other names its method.
    if whole && !properties.iter().any(|p| matches!(p, Property::AuthenticationMethod(_))) {
        return protocol_error("MQTT 5, 3.15.2.2.2: AUTH without an authentication method");
    }
    Ok(Auth { reason, properties })
}

const REASONS_PUBACK: &[u8] = &[0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99];
const REASONS_PUBREL: &[u8] = &[0x00, 0x92];
const REASONS_CONNACK: &[u8] =
    &[0x00, 0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8C, 0x90, 0x95, 0x97, 0x99, 0x9A, 0x9B, 0x9C, 0x9D, 0x9F];
/// A reason as a DISCONNECT may say it: some belong to CONNACK alone, and a second CONNECT is a protocol error whatever is wrong with it.
#[must_use]
pub fn disconnect_reason(reason: ReasonCode) -> ReasonCode {
    if REASONS_DISCONNECT.contains(&reason.0) { reason } else { ReasonCode::PROTOCOL_ERROR }
}

const REASONS_DISCONNECT: &[u8] = &[
    0x00, 0x04, 0x80, 0x81, 0x82, 0x83, 0x87, 0x89, 0x8B, 0x8D, 0x8E, 0x8F, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9A, 0x9B,
    0x9C, 0x9D, 0x9E, 0x9F, 0xA0, 0xA1, 0xA2,
];
