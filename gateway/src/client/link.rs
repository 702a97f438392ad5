//! One connection in either version.
//!
//! Invariant: what the two libraries of `rumqttc` say is one `Heard`, with the codes of the protocol.
//! Must not know: what is published or printed.

use super::{Connection, Failure, ProtocolVersion};
use rumqttc::{
    Transport,
    v5::{self, mqttbytes::v5::PublishProperties},
};
use std::time::Duration;

/// Requests that wait for the connection: more than are ever on their way.
const REQUESTS: usize = 1_024;
/// Time for the goodbye.
const GOODBYE: Duration = Duration::from_secs(2);
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
    /// Name and value; version 5.
    pub user_properties: Vec<(String, String)>,
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

pub enum Link {
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

impl Link {
    /// Begins to connect. `clean`: nothing of an earlier session, and nothing is kept.
    pub fn new(c: &Connection, kind: &str, version: ProtocolVersion, clean: bool) -> Result<Self, Failure> {
        let id = c.client_id(kind);
        let transport = c.tls()?.map(|tls| {
            // Another caller may have said the same.
            let _ = rustls::crypto::ring::default_provider().install_default();
            Transport::Tls(tls)
        });
        let keep_alive = Duration::from_secs(u64::from(c.keepalive));
        let credentials = c.username.clone().map(|user| (user, c.pw.clone().unwrap_or_default()));
        match version {
            ProtocolVersion::V311 => {
                let mut o = rumqttc::MqttOptions::new(id, &c.host, c.port());
                o.set_keep_alive(keep_alive).set_clean_session(clean).set_inflight(INFLIGHT);
                o.set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX);
                credentials.map(|(user, password)| o.set_credentials(user, password));
                transport.map(|tls| o.set_transport(tls));
                if let Some(topic) = &c.will_topic {
                    o.set_last_will(rumqttc::LastWill::new(topic, c.will_payload.clone(), qos_4(c.will_qos), c.will_retain));
                }
                let (client, connection) = rumqttc::AsyncClient::new(o, REQUESTS);
                Ok(Self::V311(client, Box::new(connection)))
            }
            ProtocolVersion::V5 => {
                let mut o = v5::MqttOptions::new(id, &c.host, c.port());
                o.set_keep_alive(keep_alive).set_clean_start(clean).set_outgoing_inflight_upper_limit(INFLIGHT);
                o.set_max_packet_size(Some(PACKET_BYTES_MAX as u32));
                o.set_session_expiry_interval(c.session_expiry_interval.or((!clean).then_some(u32::MAX)));
                credentials.map(|(user, password)| o.set_credentials(user, password));
                transport.map(|tls| o.set_transport(tls));
                if let Some(topic) = &c.will_topic {
                    let payload = c.will_payload.clone();
                    o.set_last_will(v5::mqttbytes::v5::LastWill::new(topic, payload, qos_5(c.will_qos), c.will_retain, None));
                }
                let (client, connection) = v5::AsyncClient::new(o, REQUESTS);
                Ok(Self::V5(client, Box::new(connection)))
            }
        }
    }

    /// `properties`: in version 5.
    pub async fn publish(
        &self,
        topic: &str,
        qos: u8,
        retain: bool,
        payload: Vec<u8>,
        properties: &PublishProperties,
    ) -> Result<(), Failure> {
        match self {
            Self::V311(c, _) => c.publish(topic, qos_4(qos), retain, payload).await.map_err(gone),
            Self::V5(c, _) => c.publish_with_properties(topic, qos_5(qos), retain, payload, properties.clone()).await.map_err(gone),
        }
    }

    /// `from`: where to begin, if not now; then, in version 5, messages say where they stand.
    pub async fn subscribe(&self, filters: &[String], qos: u8, from: Option<&str>) -> Result<(), Failure> {
        match self {
            Self::V311(c, _) => {
                let filter = |f: &String| from.map_or_else(|| f.clone(), |from| format!("$replay/{from}/{f}"));
                let all = filters.iter().map(|f| rumqttc::SubscribeFilter::new(filter(f), qos_4(qos)));
                c.subscribe_many(all).await.map_err(gone)
            }
            Self::V5(c, _) => {
                let all = filters.iter().map(|f| v5::mqttbytes::v5::Filter::new(f.clone(), qos_5(qos)));
                let Some(from) = from else { return c.subscribe_many(all).await.map_err(gone) };
                let user_properties = vec![("from".into(), from.into()), ("position".into(), "true".into())];
                let properties = v5::mqttbytes::v5::SubscribeProperties { id: None, user_properties };
                c.subscribe_many_with_properties(all, properties).await.map_err(gone)
            }
        }
    }

    /// Says goodbye; returns when that has left, or the broker has hung up.
    pub async fn goodbye(&mut self) -> Result<(), Failure> {
        match self {
            Self::V311(c, _) => c.disconnect().await.map_err(gone)?,
            Self::V5(c, _) => c.disconnect().await.map_err(gone)?,
        }
        let left = async { while !matches!(self.hear().await, Ok(Heard::Goodbye) | Err(_)) {} };
        let _too_late = tokio::time::timeout(GOODBYE, left).await;
        Ok(())
    }

    /// The next thing that happens. May be dropped and called again.
    pub async fn hear(&mut self) -> Result<Heard, Failure> {
        match self {
            Self::V311(_, connection) => match connection.poll().await {
                Ok(event) => Ok(heard_4(event)),
                Err(rumqttc::ConnectionError::ConnectionRefused(code)) => Err(refused(code as u8, &code)),
                Err(e) => Err(gone(e)),
            },
            Self::V5(_, connection) => match connection.poll().await {
                Ok(event) => Ok(heard_5(event)),
                Err(v5::ConnectionError::ConnectionRefused(code)) => Err(refused(connack_code(code), &code)),
                Err(e) => Err(gone(e)),
            },
        }
    }
}

fn qos_4(qos: u8) -> rumqttc::QoS {
    rumqttc::qos(qos).unwrap_or(rumqttc::QoS::ExactlyOnce)
}

fn qos_5(qos: u8) -> v5::mqttbytes::QoS {
    v5::mqttbytes::qos(qos).unwrap_or(v5::mqttbytes::QoS::ExactlyOnce)
}

fn heard_4(event: rumqttc::Event) -> Heard {
    use rumqttc::{Event, Outgoing, Packet, SubscribeReasonCode};
    match event {
        Event::Incoming(Packet::ConnAck(_)) => Heard::Connected,
        Event::Incoming(Packet::SubAck(a)) => {
            let code = |code: &SubscribeReasonCode| if let SubscribeReasonCode::Success(qos) = code { *qos as u8 } else { 0x80 };
            Heard::Subscribed(a.return_codes.iter().map(code).collect(), None)
        }
        Event::Incoming(Packet::PubAck(_) | Packet::PubComp(_)) | Event::Outgoing(Outgoing::Publish(0)) => Heard::Published(0),
        Event::Incoming(Packet::Publish(p)) => Heard::Message(Message {
            topic: p.topic,
            payload: p.payload.to_vec(),
            qos: p.qos as u8,
            retain: p.retain,
            packet_id: p.pkid,
            user_properties: Vec::new(),
        }),
        Event::Outgoing(Outgoing::Disconnect) => Heard::Goodbye,
        _ => Heard::Nothing,
    }
}

fn heard_5(event: v5::Event) -> Heard {
    use rumqttc::Outgoing;
    use v5::{
        Event,
        mqttbytes::v5::{Packet, PubAckReason, PubCompReason, PubRecReason, SubscribeReasonCode},
    };
    let failed = |failed: bool| if failed { 0x80 } else { 0 };
    match event {
        Event::Incoming(Packet::ConnAck(_)) => Heard::Connected,
        Event::Incoming(Packet::SubAck(a)) => {
            let code = |code: &SubscribeReasonCode| if let SubscribeReasonCode::Success(qos) = code { *qos as u8 } else { 0x80 };
            let words = a.properties.and_then(|p| p.reason_string);
            Heard::Subscribed(a.return_codes.iter().map(code).collect(), words)
        }
        Event::Incoming(Packet::PubAck(a)) => {
            Heard::Published(failed(!matches!(a.reason, PubAckReason::Success | PubAckReason::NoMatchingSubscribers)))
        }
        Event::Incoming(Packet::PubRec(a)) if !matches!(a.reason, PubRecReason::Success | PubRecReason::NoMatchingSubscribers) => {
            Heard::Published(0x80)
        }
        Event::Incoming(Packet::PubComp(a)) => Heard::Published(failed(a.reason != PubCompReason::Success)),
        Event::Outgoing(Outgoing::Publish(0)) => Heard::Published(0),
        Event::Incoming(Packet::Publish(p)) => Heard::Message(Message {
            topic: String::from_utf8_lossy(&p.topic).into_owned(),
            payload: p.payload.to_vec(),
            qos: p.qos as u8,
            retain: p.retain,
            packet_id: p.pkid,
            user_properties: p.properties.map(|p| p.user_properties).unwrap_or_default(),
        }),
        Event::Outgoing(Outgoing::Disconnect) => Heard::Goodbye,
        _ => Heard::Nothing,
    }
}
