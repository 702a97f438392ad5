//! Clients of few words, over TCP and websocket: bytes that are written without a library, and read as slowly as a test likes.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

/// Version 3.1.1, clean session.
pub fn connect_packet(client_id: &str, keep_alive_s: u8) -> Vec<u8> {
    let length = 12 + client_id.len() as u8;
    [&[0x10, length][..], b"\0\x04MQTT\x04\x02\0", &[keep_alive_s, 0, client_id.len() as u8], client_id.as_bytes()].concat()
}

/// One filter of one letter, QoS 0.
pub const SUBSCRIBE: &[u8] = b"\x82\x06\0\x01\0\x01t\0";

/// A client of few words; the answers to CONNECT and SUBSCRIBE are read.
pub fn subscriber(port: u16, client_id: &str, keep_alive_s: u8) -> TcpStream {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.write_all(&connect_packet(client_id, keep_alive_s)).unwrap();
    socket.write_all(SUBSCRIBE).unwrap();
    socket.read_exact(&mut [0; 9]).unwrap();
    socket
}

/// A websocket for MQTT over which nothing was said.
pub fn websocket(port: u16) -> TcpStream {
    let mut c = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let request = "GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";
    c.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        c.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    c
}

/// A short packet in a frame of its own: binary, masked with zeros.
pub fn frame(packet: &[u8]) -> Vec<u8> {
    [&[0x82, 0x80 | packet.len() as u8, 0, 0, 0, 0][..], packet].concat()
}

/// The same as `subscriber` over websocket.
pub fn websocket_subscriber(port: u16, client_id: &str) -> TcpStream {
    let mut c = websocket(port);
    c.write_all(&frame(&connect_packet(client_id, 0))).unwrap();
    c.write_all(&frame(SUBSCRIBE)).unwrap();
    c.read_exact(&mut [0; 2 + 4 + 2 + 5]).unwrap();
    c
}
