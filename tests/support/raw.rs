//! A client that sends exactly what a test says, and no more: packets by hand, no library that answers by itself.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::Duration,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V311,
    V5,
}

/// A packet from the gateway.
#[derive(Clone, PartialEq, Eq)]
pub struct Packet {
    /// Type and flags.
    pub head: u8,
    pub body: Vec<u8>,
}

/// Of a long one the beginning.
impl std::fmt::Debug for Packet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:02x} {:02x?} of {} bytes", self.head, &self.body[..self.body.len().min(64)], self.body.len())
    }
}

pub const PUBACK: u8 = 0x40;
pub const PUBREC: u8 = 0x50;
pub const PUBREL: u8 = 0x62;
pub const PUBCOMP: u8 = 0x70;

pub struct Raw {
    socket: TcpStream,
    version: Version,
    pub session_present: bool,
    closed: bool,
    /// What is sent is gathered here, for one write.
    gathered: Option<Vec<u8>>,
}

/// A variable byte integer.
fn varint(mut n: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n >= 0x80 {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}

fn text(s: &str) -> Vec<u8> {
    [&(s.len() as u16).to_be_bytes()[..], s.as_bytes()].concat()
}

impl Raw {
    /// Connects with a session that outlives the connection, and waits for the CONNACK.
    pub fn connect(port: u16, version: Version, client_id: &str) -> Self {
        Self::connect_with(port, version, client_id, false, &[0x11, 0, 0, 0x0E, 0x10])
    }

    /// `properties`: those of CONNECT, for version 5.
    pub fn connect_with(port: u16, version: Version, client_id: &str, clean: bool, properties: &[u8]) -> Self {
        Self::connect_will(port, version, client_id, clean, properties, None).expect("a CONNACK")
    }

    /// Version 5, with a will of QoS 1 that says `gone` after `delay_s`, and a session that lasts `expiry_s`.
    pub fn with_will(port: u16, client_id: &str, clean: bool, expiry_s: u8, topic: &str, delay_s: u8) -> Self {
        Self::connect_will(port, Version::V5, client_id, clean, &[0x11, 0, 0, 0, expiry_s], Some((topic, delay_s))).expect("a CONNACK")
    }

    /// `None` where nobody listens or the connection breaks.
    pub fn try_with_will(port: u16, client_id: &str, expiry_s: u8, topic: &str) -> Option<Self> {
        Self::connect_will(port, Version::V5, client_id, true, &[0x11, 0, 0, 0, expiry_s], Some((topic, 0)))
    }

    /// Version 3.1.1; `None` where nobody listens or the connection breaks.
    pub fn try_connect(port: u16, client_id: &str, clean: bool) -> Option<Self> {
        Self::connect_will(port, Version::V311, client_id, clean, &[], None)
    }

    fn connect_will(
        port: u16,
        version: Version,
        client_id: &str,
        clean: bool,
        properties: &[u8],
        will: Option<(&str, u8)>,
    ) -> Option<Self> {
        let socket = TcpStream::connect(("127.0.0.1", port)).ok()?;
        socket.set_nodelay(true).unwrap();
        let mut c = Self { socket, version, session_present: false, closed: false, gathered: None };
        let level = if version == Version::V5 { 5 } else { 4 };
        let flags = u8::from(clean) << 1 | if will.is_some() { 0x0C } else { 0 };
        let mut body = [&text("MQTT")[..], &[level, flags, 0, 0]].concat();
        if version == Version::V5 {
            body.push(properties.len() as u8);
            body.extend_from_slice(properties);
        }
        body.extend(text(client_id));
        if let Some((topic, delay_s)) = will {
            body.extend([&[5, 0x18, 0, 0, 0, delay_s][..], &text(topic), &text("gone")].concat());
        }
        c.try_send(0x10, &body);
        let connack = c.next(Duration::from_secs(10))?;
        assert_eq!((connack.head, connack.body[1]), (0x20, 0), "{connack:02x?}");
        c.session_present = connack.body[0] == 1;
        Some(c)
    }

    /// False: the connection is broken.
    pub fn try_send(&mut self, head: u8, body: &[u8]) -> bool {
        let packet = [&[head][..], &varint(body.len()), body].concat();
        if let Some(gathered) = &mut self.gathered {
            gathered.extend(packet);
            return true;
        }
        self.socket.write_all(&packet).is_ok()
    }

    /// Everything that `send` sends leaves in one write.
    pub fn in_one_write(&mut self, send: impl FnOnce(&mut Self)) {
        self.gathered = Some(Vec::new());
        send(self);
        let gathered = self.gathered.take().unwrap();
        self.socket.write_all(&gathered).unwrap();
    }

    pub fn send(&mut self, head: u8, body: &[u8]) {
        assert!(self.try_send(head, body), "the connection is broken");
    }

    /// Bytes as they are.
    pub fn write(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    pub fn is_closed(&self) -> bool {
        self.closed
    }

    pub fn publish(&mut self, qos: u8, dup: bool, id: u16, topic: &str, payload: &str) {
        self.publish_with(qos << 1 | u8::from(dup) << 3, id, topic, &[], payload);
    }

    /// `flags`: of the fixed header; `properties` for version 5.
    pub fn publish_with(&mut self, flags: u8, id: u16, topic: &str, properties: &[u8], payload: &str) {
        let body = self.publish_body(flags, id, topic, properties, payload);
        self.send(0x30 | flags, &body);
    }

    pub fn try_publish(&mut self, flags: u8, id: u16, topic: &str, payload: &str) -> bool {
        let body = self.publish_body(flags, id, topic, &[], payload);
        self.try_send(0x30 | flags, &body)
    }

    fn publish_body(&self, flags: u8, id: u16, topic: &str, properties: &[u8], payload: &str) -> Vec<u8> {
        let mut body = text(topic);
        if flags & 6 != 0 {
            body.extend(id.to_be_bytes());
        }
        if self.version == Version::V5 {
            body.extend(varint(properties.len()));
            body.extend_from_slice(properties);
        }
        body.extend_from_slice(payload.as_bytes());
        body
    }

    /// False: the connection is broken.
    pub fn try_ack(&mut self, head: u8, id: u16) -> bool {
        self.try_send(head, &id.to_be_bytes())
    }

    pub fn ack(&mut self, head: u8, id: u16) {
        self.send(head, &id.to_be_bytes());
    }

    /// As most libraries leave their sockets: small packets are gathered while one is not acknowledged.
    pub fn gather_small_packets(&self) {
        self.socket.set_nodelay(false).unwrap();
    }

    /// Subscribes and waits for the SUBACK; gives its reason.
    pub fn subscribe(&mut self, filter: &str, options: u8) -> u8 {
        self.subscribe_or_break(filter, options).expect("a SUBACK")
    }

    /// False: the connection broke before the SUBACK.
    pub fn try_subscribe(&mut self, filter: &str, options: u8) -> bool {
        self.subscribe_or_break(filter, options) == Some(options)
    }

    /// SUBSCRIBE with packet id 9, without waiting.
    pub fn send_subscribe(&mut self, filter: &str, options: u8) -> bool {
        let mut body = vec![0, 9];
        if self.version == Version::V5 {
            body.push(0);
        }
        body.extend(text(filter));
        body.push(options);
        self.try_send(0x82, &body)
    }

    /// UNSUBSCRIBE with packet id 8, without waiting.
    pub fn send_unsubscribe(&mut self, filter: &str) {
        let mut body = vec![0, 8];
        if self.version == Version::V5 {
            body.push(0);
        }
        body.extend(text(filter));
        self.send(0xA2, &body);
    }

    fn subscribe_or_break(&mut self, filter: &str, options: u8) -> Option<u8> {
        self.send_subscribe(filter, options);
        let suback = self.next(Duration::from_secs(10))?;
        assert_eq!(suback.head, 0x90, "{suback:02x?}");
        suback.body.last().copied()
    }

    pub fn disconnect(&mut self) {
        self.send(0xE0, &[]);
    }

    /// The next packet; panics when none comes for 10 s.
    pub fn read(&mut self) -> Packet {
        self.next(Duration::from_secs(10)).expect("a packet within 10 s")
    }

    /// The next packet, if one begins within that time; `is_closed` tells the end of the connection from silence.
    pub fn next(&mut self, wait: Duration) -> Option<Packet> {
        self.socket.set_read_timeout(Some(wait)).unwrap();
        let mut head = [0];
        match self.socket.read(&mut head) {
            Ok(1) => {}
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return None,
            Ok(_) | Err(_) => {
                self.closed = true;
                return None;
            }
        }
        let rest = self.rest();
        self.closed = rest.is_err();
        rest.ok().map(|body| Packet { head: head[0], body })
    }

    fn rest(&mut self) -> std::io::Result<Vec<u8>> {
        self.socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        let (mut n, mut shift, mut byte) = (0usize, 0, [0x80]);
        while byte[0] & 0x80 != 0 {
            self.socket.read_exact(&mut byte)?;
            n |= usize::from(byte[0] & 0x7F) << shift;
            shift += 7;
        }
        let mut body = vec![0; n];
        self.socket.read_exact(&mut body)?;
        Ok(body)
    }

    /// Reads an acknowledgement of this kind for this id; gives its reason.
    pub fn expect_ack(&mut self, head: u8, id: u16) -> u8 {
        let p = self.read();
        assert_eq!((p.head, p.id()), (head, id), "{p:02x?}");
        p.body.get(2).copied().unwrap_or(0)
    }

    /// Reads a PUBLISH: id, DUP, payload.
    pub fn expect_publish(&mut self) -> Publish {
        self.read().publish(self.version)
    }

    /// Nothing comes, and the connection stays.
    pub fn expect_silence(&mut self) {
        self.send(0xC0, &[]);
        let p = self.read();
        assert_eq!(p.head, 0xD0, "nothing but a PINGRESP: {p:02x?}");
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    pub qos: u8,
    pub dup: bool,
    pub retain: bool,
    pub topic: String,
    pub id: u16,
    pub properties: Vec<u8>,
    pub payload: String,
}

impl Packet {
    /// Of an acknowledgement.
    pub fn id(&self) -> u16 {
        u16::from_be_bytes([self.body[0], self.body[1]])
    }

    /// Packet id of a PUBLISH with QoS 1 or 2.
    pub fn publish_id(&self) -> u16 {
        assert_eq!(self.head & 0xF0, 0x30, "a PUBLISH: {:02x}", self.head);
        let n = 2 + usize::from(u16::from_be_bytes([self.body[0], self.body[1]]));
        u16::from_be_bytes([self.body[n], self.body[n + 1]])
    }

    pub fn publish(&self, version: Version) -> Publish {
        assert_eq!(self.head & 0xF0, 0x30, "a PUBLISH: {self:02x?}");
        let qos = self.head >> 1 & 3;
        let n = usize::from(u16::from_be_bytes([self.body[0], self.body[1]]));
        let topic = String::from_utf8(self.body[2..2 + n].to_vec()).unwrap();
        let mut rest = &self.body[2 + n..];
        let mut id = 0;
        if qos > 0 {
            id = u16::from_be_bytes([rest[0], rest[1]]);
            rest = &rest[2..];
        }
        let mut properties = Vec::new();
        if version == Version::V5 {
            let n = usize::from(rest[0]);
            properties = rest[1..=n].to_vec();
            rest = &rest[1 + n..];
        }
        let payload = String::from_utf8(rest.to_vec()).unwrap();
        Publish { qos, dup: self.head & 8 != 0, retain: self.head & 1 != 0, topic, id, properties, payload }
    }
}
