//! One connection to a broker, as cheap as it can be: packets are written many at a time and read many at a time.
//!
//! Invariant: every byte from the broker is decoded as strictly as the gateway decodes its clients.
//! Must not know: what is measured.

use crate::client::Failure;
use std::{net::IpAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};
use weir_core::{
    codec::{Decoded, decode, encode},
    packet::{Connect, Filters, Packet, PacketId, Qos, ReasonCode, Subscribe, SubscriptionOptions, Version},
    property::{Properties, PropertiesBuf, Property},
};

/// Read at once, once a read has shown that there is much.
const READ_BYTES: usize = 256 * 1024;
/// Room for the first answers: whoever connects thousands of times a second has no use for more.
const FIRST_BYTES: usize = 1_024;
/// A broker that takes longer for its first answer is not there.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where, and in which version.
#[derive(Clone, Debug)]
pub struct Target {
    pub host: String,
    pub port: u16,
    pub version: Version,
    /// The address to connect from, where that is not the system's to choose.
    pub from: Option<IpAddr>,
}

pub struct Conn {
    socket: TcpStream,
    version: Version,
    /// Bytes that are no whole packet yet.
    rest: Vec<u8>,
    /// For the next read.
    room: usize,
}

impl Target {
    fn failed(&self, e: impl std::fmt::Display) -> Failure {
        Failure::new(format!("{}:{}: {e}", self.host, self.port))
    }

    async fn connect(&self) -> std::io::Result<TcpStream> {
        let Some(from) = self.from else { return TcpStream::connect((self.host.as_str(), self.port)).await };
        let to: IpAddr = self.host.parse().map_err(std::io::Error::other)?;
        let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        socket.bind((from, 0).into())?;
        socket.connect((to, self.port).into()).await
    }
}

impl Conn {
    /// `keep`: the session outlives the connection.
    pub async fn open(target: &Target, client_id: &str, keep: bool) -> Result<Self, Failure> {
        let opened = tokio::time::timeout(PATIENCE, Self::try_open(target, client_id, keep)).await;
        opened.unwrap_or_else(|_| Err(target.failed("no answer to CONNECT within 10 s")))
    }

    async fn try_open(target: &Target, client_id: &str, keep: bool) -> Result<Self, Failure> {
        let socket = target.connect().await.map_err(|e| target.failed(e))?;
        socket.set_nodelay(true).map_err(|e| target.failed(e))?;
        let mut conn = Self { socket, version: target.version, rest: Vec::new(), room: FIRST_BYTES };
        let mut properties = PropertiesBuf::default();
        if keep && target.version == Version::V5 {
            properties.push(Property::SessionExpiryInterval(u32::MAX));
        }
        let properties = properties.as_properties();
        let connect = Connect { clean_start: !keep, properties, ..Connect::new(target.version, client_id) };
        conn.send_packet(&Packet::Connect(connect)).await?;
        // What a session has waiting may stand right behind it: one packet only.
        let (reason, used) = loop {
            match decode(&conn.rest, conn.version, usize::MAX) {
                Ok(Decoded::Packet(Packet::ConnAck(c), used)) => break (c.reason, used),
                Ok(Decoded::Incomplete(_)) => conn.fill().await?,
                _ => return Err(target.failed("its first packet is no CONNACK")),
            }
        };
        conn.rest.drain(..used);
        if reason == ReasonCode::SUCCESS { Ok(conn) } else { Err(target.failed(format!("refused the connection: {reason}"))) }
    }

    async fn fill(&mut self) -> Result<(), Failure> {
        self.rest.reserve(self.room);
        match self.socket.read_buf(&mut self.rest).await {
            Ok(0) => Err(Failure::new("the broker closed the connection")),
            Ok(_) => {
                self.has_read();
                Ok(())
            }
            Err(e) => Err(Failure::new(e)),
        }
    }

    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.socket.write_all(bytes).await.map_err(Failure::new)
    }

    pub async fn send_packet(&mut self, packet: &Packet<'_>) -> Result<(), Failure> {
        let mut bytes = Vec::new();
        encode(packet, self.version, &mut bytes);
        self.send(&bytes).await
    }

    /// Returns with the SUBACK; what comes before it goes to `each`.
    pub async fn subscribe(&mut self, filter: &str, qos: Qos, each: impl FnMut(Packet<'_>)) -> Result<(), Failure> {
        self.subscribe_all(&[filter.to_owned()], qos, each).await
    }

    /// The same, of several.
    pub async fn subscribe_all(&mut self, filters: &[String], qos: Qos, mut each: impl FnMut(Packet<'_>)) -> Result<(), Failure> {
        let mut raw = Vec::new();
        for filter in filters {
            raw.extend_from_slice(&(filter.len() as u16).to_be_bytes());
            raw.extend_from_slice(filter.as_bytes());
            raw.push(SubscriptionOptions { qos, ..SubscriptionOptions::default() }.to_byte());
        }
        let packet =
            Subscribe { packet_id: PacketId::MIN, properties: Properties::default(), filters: Filters::from_validated(&raw, true) };
        self.send_packet(&Packet::Subscribe(packet)).await?;
        let mut granted = None;
        while granted.is_none() {
            self.read(|p| if let Packet::SubAck(s) = p { granted = Some(s.reasons.to_vec()) } else { each(p) }).await?;
        }
        let granted = granted.unwrap_or_default();
        match filters.iter().enumerate().find(|(n, _)| !matches!(granted.get(*n), Some(0..=2))) {
            None => Ok(()),
            Some((n, filter)) => Err(Failure::new(format!(
                "the broker refused the subscription {filter}: {}",
                granted.get(n).map_or_else(|| "no reason".into(), |reason| format!("0x{reason:02x}"))
            ))),
        }
    }

    /// Gives every whole packet; waits for bytes if there is none. May be dropped and called again.
    pub async fn read(&mut self, mut each: impl FnMut(Packet<'_>)) -> Result<(), Failure> {
        if self.packets(&mut each)? == 0 {
            self.fill().await?;
            self.packets(each)?;
        }
        Ok(())
    }

    /// The same without waiting.
    pub fn try_read(&mut self, each: impl FnMut(Packet<'_>)) -> Result<(), Failure> {
        self.rest.reserve(self.room);
        match self.socket.try_read_buf(&mut self.rest) {
            Ok(0) => Err(Failure::new("the broker closed the connection")),
            Ok(_) => {
                self.has_read();
                self.packets(each).map(drop)
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(e) => Err(Failure::new(e)),
        }
    }

    /// A read has filled all its room: there is more.
    fn has_read(&mut self) {
        if self.rest.len() == self.rest.capacity() {
            self.room = READ_BYTES;
        }
    }

    /// How many there were.
    fn packets(&mut self, mut each: impl FnMut(Packet<'_>)) -> Result<usize, Failure> {
        let (mut used, mut count) = (0, 0);
        loop {
            match decode(&self.rest[used..], self.version, usize::MAX) {
                Ok(Decoded::Packet(packet, n)) => {
                    (used, count) = (used + n, count + 1);
                    each(packet);
                }
                Ok(Decoded::Incomplete(_)) => break,
                Err(e) => return Err(Failure::new(format!("the broker sends what is no MQTT: {e}"))),
            }
        }
        self.rest.drain(..used);
        Ok(count)
    }
}
