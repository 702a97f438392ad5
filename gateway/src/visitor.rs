//! A client without a socket: what the admin API changes goes the way that a device's packets go, so nothing has a second
//! way in.
//!
//! Invariant: what it was answered is durable, as for any client; limits and rights are those of any client.
//! Must not know: what it is for.

use crate::{
    driver::{Driver, Visit},
    gateway::Gateway,
    tcp,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use weir_core::{
    codec::{Decoded, decode, encode},
    packet::{Ack, Connect, Disconnect, Packet, PacketId, Publish, Qos, ReasonCode, Version},
    property::{Properties, PropertiesBuf, Property},
    session::Cause,
};

/// For one answer: the disk may be slow, and another connection may have to leave first.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Visitor(Box<Driver>);

/// Where a message went: as its acknowledgement says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Went {
    pub stream: String,
    pub partition: u32,
    pub offset: u64,
}

/// Why it is not done; `None`: no answer came.
pub(crate) type Refused = Option<ReasonCode>;

impl Visitor {
    /// Comes with a session that ends with it. An empty id: any.
    pub async fn come(gateway: Arc<Gateway>, client_id: &str) -> Result<Self, Refused> {
        Self::come_to(gateway, client_id, Visit::default()).await
    }

    /// The same, as far as `visit` allows: else it is refused with `SESSION_TAKEN_OVER`.
    pub async fn come_to(gateway: Arc<Gateway>, client_id: &str, visit: Visit) -> Result<Self, Refused> {
        let mut visitor = Self(Box::new(Driver::new(gateway, None)));
        visitor.0.visit = Some(Box::new(visit));
        let mut properties = PropertiesBuf::default();
        properties.push(Property::UserProperty(("position", "true")));
        let connect = Connect { properties: properties.as_properties(), ..Connect::new(Version::V5, client_id) };
        visitor.say(&Packet::Connect(connect));
        let reason = visitor.answer(|p| if let Packet::ConnAck(c) = p { Some(c.reason) } else { None }).await;
        match reason {
            Some(ReasonCode::SUCCESS) => Ok(visitor),
            refused => {
                visitor.leave().await;
                Err(refused)
            }
        }
    }

    fn say(&mut self, packet: &Packet<'_>) {
        let mut bytes = Vec::new();
        encode(packet, Version::V5, &mut bytes);
        self.0.received(&bytes);
    }

    /// The answer that `wanted` finds; what else comes is passed over.
    async fn answer<T>(&mut self, wanted: impl Fn(&Packet<'_>) -> Option<T>) -> Option<T> {
        let end = Instant::now() + PATIENCE;
        loop {
            while let Ok(Decoded::Packet(packet, n)) = decode(self.0.out.unsent(), Version::V5, usize::MAX) {
                let found = wanted(&packet);
                self.0.written(n);
                if found.is_some() {
                    return found;
                }
            }
            if self.0.close().is_some() {
                return None;
            }
            let peer = self.0.peer().clone();
            let due = self.0.deadline().map_or(end, |at| self.0.instant(at).min(end));
            tokio::select! {
                () = peer.rung() => self.0.woken(),
                () = tokio::time::sleep_until(due) => {
                    if Instant::now() >= end {
                        return None;
                    }
                    self.0.timeout();
                }
            }
        }
    }

    /// With QoS 1, of topic, payload and RETAIN, one wait for the disk: fewer than the Receive Maximum. The places are in the same order,
    /// and then why no more were taken.
    pub async fn publish<'a>(&mut self, messages: impl Iterator<Item = (&'a str, &'a [u8], bool)>) -> (Vec<Went>, Option<Refused>) {
        let (mut bytes, mut ids) = (Vec::new(), Vec::new());
        for (nth, (topic, payload, retain)) in messages.enumerate() {
            let id = PacketId::MIN.saturating_add(nth as u16);
            ids.push(id);
            let (packet_id, properties) = (Some(id), Properties::default());
            let publish = Publish { dup: false, qos: Qos::AtLeastOnce, retain, topic, packet_id, properties, payload };
            encode(&Packet::Publish(publish), Version::V5, &mut bytes);
        }
        self.0.received(&bytes);
        let mut all = Vec::new();
        for id in ids {
            let answer = |p: &Packet<'_>| if let Packet::PubAck(a) = p { Some((a.packet_id, a.reason, went(a))) } else { None };
            match self.answer(answer).await {
                Some((acknowledged, reason, went)) if acknowledged == id && reason.0 < 0x80 => all.push(went),
                refused => return (all, Some(refused.map(|(_, reason, _)| reason))),
            }
        }
        (all, None)
    }

    pub async fn leave(mut self) {
        if self.0.close().is_none() {
            self.say(&Packet::Disconnect(Disconnect { reason: ReasonCode::SUCCESS, properties: Properties::default() }));
        }
        // What it said waits behind something that does not end: it goes all the same.
        if self.0.close().is_none() {
            self.0.closed(Cause::Socket);
        }
        tcp::outlive(self.0).await;
    }
}

fn went(a: &Ack<'_>) -> Went {
    let mut went = Went::default();
    for property in a.properties.iter() {
        match property {
            Property::UserProperty(("stream", name)) => went.stream = name.into(),
            Property::UserProperty(("partition", n)) => went.partition = n.parse().unwrap_or_default(),
            Property::UserProperty(("offset", n)) => went.offset = n.parse().unwrap_or_default(),
            _ => {}
        }
    }
    went
}
