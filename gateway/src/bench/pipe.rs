//! The load generator measured by itself: what a publisher writes goes to its subscriber byte for byte, and the acknowledgements back. No broker can be faster.
//!
//! Invariant: both ends do everything that they do with a broker.
//! Must not know: what is measured.

use super::{Load, report::Report, scenarios, wire::Target};
use crate::client::Failure;
use std::{collections::HashMap, sync::Arc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Mutex, oneshot},
};
use weir_core::{
    codec::{Decoded, decode, encode},
    packet::{ConnAck, Packet, ReasonCode, SubAck, Version},
    property::Properties,
};

const BUFFER_BYTES: usize = 256 * 1024;

/// Subscribers that wait for their publishers, by number.
type Waiting = Arc<Mutex<HashMap<String, oneshot::Sender<TcpStream>>>>;

/// The next packet, and what it says of interest: the client id of a CONNECT.
async fn packet(socket: &mut TcpStream, version: Version) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        match decode(&bytes, version, usize::MAX) {
            Ok(Decoded::Packet(Packet::Connect(c), _)) => return Some(c.client_id.to_owned()),
            Ok(Decoded::Packet(..)) => return Some(String::new()),
            Ok(Decoded::Incomplete(_)) => {}
            Err(_) => return None,
        }
        bytes.push(socket.read_u8().await.ok()?);
    }
}

async fn serve(mut socket: TcpStream, version: Version, waiting: Waiting) -> Option<()> {
    socket.set_nodelay(true).ok()?;
    let id = packet(&mut socket, version).await?;
    let mut out = Vec::new();
    let none = Properties::default();
    encode(&Packet::ConnAck(ConnAck { session_present: false, reason: ReasonCode::SUCCESS, properties: none }), version, &mut out);
    let (_, rest) = id.split_once("-bench-")?;
    let mut parts = rest.split('-');
    let (_, kind, number) = (parts.next()?, parts.next()?, parts.next()?.to_owned());
    if kind == "pub" {
        socket.write_all(&out).await.ok()?;
        // Its subscriber has come before.
        return waiting.lock().await.remove(&number)?.send(socket).ok();
    }
    let (tx, publisher) = oneshot::channel();
    waiting.lock().await.insert(number, tx);
    socket.write_all(&out).await.ok()?;
    packet(&mut socket, version).await?;
    out.clear();
    encode(&Packet::SubAck(SubAck { packet_id: std::num::NonZeroU16::MIN, properties: none, reasons: &[0] }), version, &mut out);
    socket.write_all(&out).await.ok()?;
    let mut publisher = publisher.await.ok()?;
    tokio::io::copy_bidirectional_with_sizes(&mut publisher, &mut socket, BUFFER_BYTES, BUFFER_BYTES).await.ok().map(drop)
}

pub async fn run(load: &Load, pairs: u32) -> Result<Report, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(Failure::new)?;
    let Target { version, .. } = load.target();
    let port = listener.local_addr().map_err(Failure::new)?.port();
    let waiting = Waiting::default();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(serve(socket, version, waiting.clone()));
        }
    });
    let load = &Load { host: "127.0.0.1".into(), port, pid: load.pid.or(Some(std::process::id())), ..load.clone() };
    let report = scenarios::pairs(load, pairs).await?;
    Ok(Report { scenario: "generator".into(), target: "a pipe in this process".into(), ..report })
}
