//! One connection in either version.
//!
//! Invariant: what the two libraries of `rumqttc` say is one `Heard`, with the codes of the protocol.
//! Must not know: what is published or printed.

use super::{Connection, Failure, ProtocolVersion, property::Properties, trace::Trace};
use rumqttc::{
    Outgoing,
    v5::{self, mqttbytes::v5::PublishProperties},
};
use std::time::Duration;

/// Requests that wait for the connection: more than are ever on their way.
const REQUESTS: usize = 1_024;
/// Time for the goodbye.
const GOODBYE: Duration = Duration::from_secs(2);
/// Exit codes of mosquitto's clients: a connection that was lost, and a broker that breaks the protocol.
pub const LOST: u8 = 7;
const MALFORMED: u8 = 2;
/// Messages on their way to the broker.
pub const INFLIGHT: u16 = 100;
/// As large as a broker of the field takes.
pub(crate) const PACKET_BYTES_MAX: usize = 256 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub retain: bool,
    pub packet_id: u16,
    /// Empty in version 3.1.1.
    pub properties: PublishProperties,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    Connected,
    /// Granted QoS, or a reason from 0x80 on, per filter; and what the broker says about it.
    Subscribed(Vec<u8>, Option<String>),
    Message(Message),
    /// A message that was published is done with, for this reason.
    Published(u8),
    /// Our goodbye has left.
    Goodbye,
    Nothing,
}

/// A connection, which may not be there yet.
pub struct Link {
    peer: Peer,
    trace: Trace,
}

enum Peer {
    V311(rumqttc::AsyncClient, Box<rumqttc::EventLoop>),
    V5(v5::AsyncClient, Box<v5::EventLoop>),
}

fn gone(e: impl std::fmt::Display) -> Failure {
    Failure::new(format!("no connection: {e}"))
}

/// The code of a CONNACK of version 5.
fn connack_code(code: v5::mqttbytes::v5::ConnectReturnCode) -> u8 {
    use v5::mqttbytes::v5::ConnectReturnCode as C;
    match code {
        C::Success => 0,
        C::RefusedProtocolVersion => 1,
        C::BadClientId => 2,
        C::ServiceUnavailable => 3,
        C::UnspecifiedError => 0x80,
        C::MalformedPacket => 0x81,
        C::ProtocolError => 0x82,
        C::ImplementationSpecificError => 0x83,
        C::UnsupportedProtocolVersion => 0x84,
        C::ClientIdentifierNotValid => 0x85,
        C::BadUserNamePassword => 0x86,
        C::NotAuthorized => 0x87,
        C::ServerUnavailable => 0x88,
        C::ServerBusy => 0x89,
        C::Banned => 0x8A,
        C::BadAuthenticationMethod => 0x8C,
        C::TopicNameInvalid => 0x90,
        C::PacketTooLarge => 0x95,
        C::QuotaExceeded => 0x97,
        C::PayloadFormatInvalid => 0x99,
        C::RetainNotSupported => 0x9A,
        C::QoSNotSupported => 0x9B,
        C::UseAnotherServer => 0x9C,
        C::ServerMoved => 0x9D,
        C::ConnectionRateExceeded => 0x9F,
    }
}

fn refused(code: u8, what: &dyn std::fmt::Debug) -> Failure {
    Failure { code, words: format!("the broker refused the connection: {what:?} ({code})") }
}

/// How messages of the past are asked for, and how the filters are set.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    pub qos: u8,
    /// Where to begin, if not now.
    pub from: Option<&'a str>,
    /// No retained messages; version 5 does not send them.
    pub no_retained: bool,
    /// Retain flags as they were published; version 5.
    pub retain_as_published: bool,
}

impl Link {
    /// Begins to connect. `clean`: nothing of an earlier session, and nothing is kept.
    pub fn new(c: &Connection, kind: &str, version: ProtocolVersion, clean: bool, properties: &Properties) -> Result<Self, Failure> {
        c.judge_id()?;
        let id = c.client_id(kind);
        let trace = Trace::new(c.debug, &id);
        let keep_alive = Duration::from_secs(u64::from(c.keepalive));
        // A unix socket has a path where others have a host.
        let host = c.unix.as_deref().unwrap_or(c.host());
        let peer = match version {
            ProtocolVersion::V311 => {
                let mut o = rumqttc::MqttOptions::new(id, host, c.port());
                o.set_keep_alive(keep_alive).set_clean_session(clean).set_inflight(c.max_inflight());
                o.set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX).set_transport(c.transport()?);
                c.credentials().map(|(user, password)| o.set_credentials(user, password));
                if let Some(topic) = &c.will_topic {
                    o.set_last_will(rumqttc::LastWill::new(topic, c.will_payload.clone(), qos_4(c.will_qos), c.will_retain));
                }
                let (client, mut connection) = rumqttc::AsyncClient::new(o, REQUESTS);
                connection.set_network_options(c.network());
                Peer::V311(client, Box::new(connection))
            }
            ProtocolVersion::V5 => {
                let mut o = v5::MqttOptions::new(id, host, c.port());
                let mut connect = properties.connect.clone();
                connect.max_packet_size = connect.max_packet_size.or(Some(PACKET_BYTES_MAX as u32));
                connect.receive_maximum = connect.receive_maximum.or(c.max_inflight);
                let expiry = c.session_expiry_interval.or((!clean).then_some(u32::MAX));
                connect.session_expiry_interval = connect.session_expiry_interval.or(expiry);
                o.set_connect_properties(connect).set_keep_alive(keep_alive).set_clean_start(clean);
                o.set_outgoing_inflight_upper_limit(c.max_inflight()).set_transport(c.transport()?);
                o.set_network_options(c.network());
                c.credentials().map(|(user, password)| o.set_credentials(user, password));
                if let Some(topic) = &c.will_topic {
                    let (payload, will) = (c.will_payload.clone(), Some(properties.will.clone()));
                    o.set_last_will(v5::mqttbytes::v5::LastWill::new(topic, payload, qos_5(c.will_qos), c.will_retain, will));
                }
                let (client, connection) = v5::AsyncClient::new(o, REQUESTS);
                Peer::V5(client, Box::new(connection))
            }
        };
        Ok(Self { peer, trace })
    }

    /// `properties`: in version 5.
    pub async fn publish(
        &mut self,
        topic: &str,
        qos: u8,
        retain: bool,
        payload: Vec<u8>,
        properties: &PublishProperties,
    ) -> Result<(), Failure> {
        self.trace.publishes(topic, qos, retain, payload.len());
        match &self.peer {
            Peer::V311(c, _) => c.publish(topic, qos_4(qos), retain, payload).await.map_err(gone),
            Peer::V5(c, _) => c.publish_with_properties(topic, qos_5(qos), retain, payload, properties.clone()).await.map_err(gone),
        }
    }

    /// Publishes an empty message; false: there is no room for it yet.
    pub fn offer(&mut self, topic: &str, qos: u8, retain: bool) -> bool {
        let is_taken = match &self.peer {
            Peer::V311(c, _) => c.try_publish(topic, qos_4(qos), retain, Vec::new()).is_ok(),
            Peer::V5(c, _) => c.try_publish(topic, qos_5(qos), retain, Vec::new()).is_ok(),
        };
        if is_taken {
            self.trace.publishes(topic, qos, retain, 0);
        }
        is_taken
    }

    /// Subscribes. With `wish.from` in version 5, messages say where they stand.
    pub async fn subscribe(&self, filters: &[String], wish: Wish<'_>, properties: &Properties) -> Result<(), Failure> {
        self.trace.subscribes(filters, wish.qos);
        match &self.peer {
            Peer::V311(c, _) => {
                let filter = |f: &String| wish.from.map_or_else(|| f.clone(), |from| format!("$replay/{from}/{f}"));
                let all = filters.iter().map(|f| rumqttc::SubscribeFilter::new(filter(f), qos_4(wish.qos)));
                c.subscribe_many(all).await.map_err(gone)
            }
            Peer::V5(c, _) => {
                let all = filters.iter().map(|f| {
                    let mut filter = v5::mqttbytes::v5::Filter::new(f.clone(), qos_5(wish.qos));
                    filter.preserve_retain = wish.retain_as_published;
                    if wish.no_retained {
                        filter.retain_forward_rule = v5::mqttbytes::v5::RetainForwardRule::Never;
                    }
                    filter
                });
                let mut properties = properties.subscribe.clone();
                if let Some(from) = wish.from {
                    properties.user_properties.extend([("from".into(), from.into()), ("position".into(), "true".into())]);
                }
                c.subscribe_many_with_properties(all, properties).await.map_err(gone)
            }
        }
    }

    /// Unsubscribes from one filter.
    pub async fn unsubscribe(&self, filter: &str, properties: &Properties) -> Result<(), Failure> {
        match &self.peer {
            Peer::V311(c, _) => c.unsubscribe(filter).await.map_err(gone),
            Peer::V5(c, _) => c.unsubscribe_with_properties(filter, properties.unsubscribe.clone()).await.map_err(gone),
        }
    }

    /// Says goodbye; returns when that has left, or the broker has hung up.
    pub async fn goodbye(&mut self) -> Result<(), Failure> {
        match &self.peer {
            Peer::V311(c, _) => c.disconnect().await.map_err(gone)?,
            Peer::V5(c, _) => c.disconnect().await.map_err(gone)?,
        }
        let left = async { while !matches!(self.hear().await, Ok(Heard::Goodbye) | Err(_)) {} };
        let _too_late = tokio::time::timeout(GOODBYE, left).await;
        Ok(())
    }

    /// The next thing that happens. May be dropped and called again.
    pub async fn hear(&mut self) -> Result<Heard, Failure> {
        match &mut self.peer {
            Peer::V311(_, connection) => match connection.poll().await {
                Ok(event) => Ok(heard_4(event, &mut self.trace)),
                Err(e) => Err(lost_4(e)),
            },
            Peer::V5(_, connection) => match connection.poll().await {
                Ok(event) => Ok(heard_5(event, &mut self.trace)),
                Err(e) => Err(lost_5(e)),
            },
        }
    }
}

/// What became of a connection that could not be made or read.
fn io_failed(e: &std::io::Error) -> Failure {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, InvalidData, UnexpectedEof};
    match e.kind() {
        UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe => lost(),
        // A certificate is judged while bytes are read.
        InvalidData => Failure::new(format!("TLS: {e}; --cafile names those who may vouch for the broker")),
        _ => Failure::new(format!("no connection: {e}")),
    }
}

fn lost() -> Failure {
    Failure { code: LOST, words: "the connection was lost".into() }
}

fn malformed(what: impl std::fmt::Display) -> Failure {
    Failure { code: MALFORMED, words: format!("the broker sent what is not MQTT: {what}") }
}

fn lost_4(e: rumqttc::ConnectionError) -> Failure {
    use rumqttc::{ConnectionError as C, StateError as S};
    match e {
        C::ConnectionRefused(code) => refused(code as u8, &code),
        C::MqttState(S::ConnectionAborted) => lost(),
        C::MqttState(S::Io(e)) | C::Io(e) => io_failed(&e),
        C::MqttState(S::Deserialization(rumqttc::mqttbytes::Error::Io(e))) => io_failed(&e),
        C::MqttState(S::Deserialization(e)) => malformed(format_args!("{e:?}")),
        C::NotConnAck(_) => malformed("a packet before CONNACK"),
        C::Tls(e) => Failure::new(format!("TLS: {e}")),
        C::NetworkTimeout | C::FlushTimeout => Failure::new("no connection: no answer in time"),
        other => gone(other),
    }
}

fn lost_5(e: v5::ConnectionError) -> Failure {
    use v5::{ConnectionError as C, StateError as S};
    match e {
        C::ConnectionRefused(code) => refused(connack_code(code), &code),
        C::MqttState(S::ConnectionAborted) => lost(),
        C::MqttState(S::Io(e)) | C::Io(e) => io_failed(&e),
        C::MqttState(S::Deserialization(v5::mqttbytes::Error::Io(e))) => io_failed(&e),
        C::MqttState(S::Deserialization(e)) => malformed(format_args!("{e:?}")),
        C::MqttState(S::OutgoingPacketTooLarge { pkt_size, max }) => {
            Failure::new(format!("a packet of {pkt_size} bytes; the broker takes at most {max}"))
        }
        C::MqttState(S::ServerDisconnect { reason_code, reason_string }) => {
            let words = reason_string.map_or_else(String::new, |words| format!(": {words}"));
            Failure { code: LOST, words: format!("the broker ended the connection: {reason_code:?}{words}") }
        }
        C::NotConnAck(_) => malformed("a packet before CONNACK"),
        C::Tls(e) => Failure::new(format!("TLS: {e}")),
        C::Timeout(_) => Failure::new("no connection: no answer in time"),
        other => gone(other),
    }
}

fn qos_4(qos: u8) -> rumqttc::QoS {
    rumqttc::qos(qos).unwrap_or(rumqttc::QoS::ExactlyOnce)
}

fn qos_5(qos: u8) -> v5::mqttbytes::QoS {
    v5::mqttbytes::qos(qos).unwrap_or(v5::mqttbytes::QoS::ExactlyOnce)
}

fn message_line(m: &Message) -> String {
    let retain = u8::from(m.retain);
    format!("PUBLISH (m{}, q{}, r{retain}, '{}', {} bytes)", m.packet_id, m.qos, m.topic, m.payload.len())
}

fn heard_4(event: rumqttc::Event, trace: &mut Trace) -> Heard {
    use rumqttc::{Event, Packet, SubscribeReasonCode};
    let packet = match event {
        Event::Outgoing(packet) => return left(&packet, trace),
        Event::Incoming(packet) => packet,
    };
    trace.received(|| match &packet {
        Packet::ConnAck(a) => format!("CONNACK ({})", a.code as u8),
        Packet::PubAck(a) => format!("PUBACK (m{})", a.pkid),
        Packet::PubRec(a) => format!("PUBREC (m{})", a.pkid),
        Packet::PubRel(a) => format!("PUBREL (m{})", a.pkid),
        Packet::PubComp(a) => format!("PUBCOMP (m{})", a.pkid),
        Packet::SubAck(a) => format!("SUBACK (m{})", a.pkid),
        Packet::UnsubAck(a) => format!("UNSUBACK (m{})", a.pkid),
        Packet::PingResp => "PINGRESP".into(),
        _ => String::new(),
    });
    match packet {
        Packet::ConnAck(_) => Heard::Connected,
        Packet::SubAck(a) => {
            let code = |code: &SubscribeReasonCode| if let SubscribeReasonCode::Success(qos) = code { *qos as u8 } else { 0x80 };
            Heard::Subscribed(a.return_codes.iter().map(code).collect(), None)
        }
        Packet::PubAck(_) | Packet::PubComp(_) => Heard::Published(0),
        Packet::Publish(p) => {
            let message = Message {
                topic: p.topic,
                payload: p.payload.to_vec(),
                qos: p.qos as u8,
                retain: p.retain,
                packet_id: p.pkid,
                properties: PublishProperties::default(),
            };
            trace.received(|| message_line(&message));
            Heard::Message(message)
        }
        _ => Heard::Nothing,
    }
}

fn left(packet: &Outgoing, trace: &mut Trace) -> Heard {
    trace.left(packet);
    match packet {
        // QoS 0 is done with when it has left.
        Outgoing::Publish(0) => Heard::Published(0),
        Outgoing::Disconnect => Heard::Goodbye,
        _ => Heard::Nothing,
    }
}

fn heard_5(event: v5::Event, trace: &mut Trace) -> Heard {
    use v5::{
        Event,
        mqttbytes::v5::{Packet, PubAckReason, PubCompReason, PubRecReason, SubscribeReasonCode},
    };
    let packet = match event {
        Event::Outgoing(packet) => return left(&packet, trace),
        Event::Incoming(packet) => packet,
    };
    trace.received(|| match &packet {
        Packet::ConnAck(a) => format!("CONNACK ({:?})", a.code),
        Packet::PubAck(a) => format!("PUBACK (m{}, {:?})", a.pkid, a.reason),
        Packet::PubRec(a) => format!("PUBREC (m{}, {:?})", a.pkid, a.reason),
        Packet::PubRel(a) => format!("PUBREL (m{}, {:?})", a.pkid, a.reason),
        Packet::PubComp(a) => format!("PUBCOMP (m{}, {:?})", a.pkid, a.reason),
        Packet::SubAck(a) => format!("SUBACK (m{})", a.pkid),
        Packet::UnsubAck(a) => format!("UNSUBACK (m{})", a.pkid),
        Packet::PingResp(_) => "PINGRESP".into(),
        Packet::Disconnect(d) => format!("DISCONNECT ({:?})", d.reason_code),
        _ => String::new(),
    });
    let failed = |failed: bool| if failed { 0x80 } else { 0 };
    match packet {
        Packet::ConnAck(_) => Heard::Connected,
        Packet::SubAck(a) => {
            let code = |code: &SubscribeReasonCode| if let SubscribeReasonCode::Success(qos) = code { *qos as u8 } else { 0x80 };
            let words = a.properties.and_then(|p| p.reason_string);
            Heard::Subscribed(a.return_codes.iter().map(code).collect(), words)
        }
        Packet::PubAck(a) => Heard::Published(failed(!matches!(a.reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers))),
        Packet::PubRec(a) if !matches!(a.reason, PubRecReason::Success | PubRecReason::NoMatchingSubscribers) => Heard::Published(0x80),
        Packet::PubComp(a) => Heard::Published(failed(a.reason != PubCompReason::Success)),
        Packet::Publish(p) => {
            let message = Message {
                topic: String::from_utf8_lossy(&p.topic).into_owned(),
                payload: p.payload.to_vec(),
                qos: p.qos as u8,
                retain: p.retain,
                packet_id: p.pkid,
                properties: p.properties.unwrap_or_default(),
            };
            trace.received(|| message_line(&message));
            Heard::Message(message)
        }
        _ => Heard::Nothing,
    }
}
