//! The adapter between a websocket and a driver: MQTT in binary messages [MQTT-6.0.0-1].
//!
//! Invariant: packets may be cut anywhere between messages [MQTT-6.0.0-2]; a text message ends the connection.
//! Must not know: MQTT.

use crate::{driver::Driver, gateway::Gateway, metrics::Total, tcp};
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::{self, Bytes, Message, protocol::frame::coding::CloseCode};
use weir_bridge::upgrade::{Socket, broken, close};
use weir_core::{packet::ReasonCode, session::Cause};

/// Bytes of one message: what a slow line takes in less than `WRITE_STALL`.
const PIECE_BYTES: usize = 32 * 1024;
/// A peer that takes not even one message for so long is gone.
const WRITE_STALL: Duration = Duration::from_secs(10);

pub(crate) async fn serve(socket: Socket, address: Option<SocketAddr>, gateway: Arc<Gateway>) {
    gateway.totals.add(Total::ConnectionsWebsocket, 1);
    let mut driver = Box::new(Driver::new(gateway, address));
    let (mut to, mut from) = socket.split();
    let end = converse(&mut to, &mut from, &mut driver).await;
    let farewell = async move {
        match end {
            End::Gone => {}
            End::Goodbye => close(&mut to, &mut from, None).await,
            End::Ours(code) => close(&mut to, &mut from, Some(code)).await,
        }
    };
    // The session is handed over whether or not the peer answers.
    tokio::join!(farewell, tcp::outlive(driver));
}

/// How a conversation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Nobody hears anything any more.
    Gone,
    /// The peer said goodbye.
    Goodbye,
    Ours(CloseCode),
}

/// The close code of a cause (RFC 6455, 7.4.1).
fn code(cause: Cause) -> End {
    End::Ours(match cause {
        Cause::Socket => return End::Gone,
        Cause::Disconnect { .. } => CloseCode::Normal,
        Cause::Violation(v) if v.reason == ReasonCode::PACKET_TOO_LARGE => CloseCode::Size,
        // It broke no rule of the protocol.
        Cause::Violation(v) if v.reason == ReasonCode::QUOTA_EXCEEDED => CloseCode::Policy,
        Cause::Violation(_) => CloseCode::Protocol,
        Cause::KeepAlive | Cause::TakenOver | Cause::Dismissed => CloseCode::Policy,
        Cause::Drain => CloseCode::Away,
        Cause::LogFailed => CloseCode::Error,
    })
}

/// Both ways at once: a peer that is sent much is heard meanwhile.
async fn converse(to: &mut SplitSink<Socket, Message>, from: &mut SplitStream<Socket>, driver: &mut Driver) -> End {
    let peer = driver.peer().clone();
    // Bytes that are on the way, and until when they must have left.
    let mut piece: Option<(usize, Instant)> = None;
    let (mut last_words, mut end) = (None, None);
    while driver.close().is_none() || !driver.out.is_empty() {
        match driver.close() {
            // Another connection waits for its session.
            Some(Cause::TakenOver) => return code(Cause::TakenOver),
            Some(_) if last_words.is_none() => last_words = Some(Instant::now() + tcp::LAST_WORDS),
            _ => {}
        }
        if piece.is_none() && !driver.out.is_empty() {
            let unsent = driver.out.unsent();
            let bytes = unsent.get(..PIECE_BYTES).unwrap_or(unsent);
            piece = Some((bytes.len(), Instant::now() + WRITE_STALL));
            // The one before has left, so this one is taken at once.
            if to.feed(Message::Binary(Bytes::copy_from_slice(bytes))).await.is_err() {
                return gone(driver);
            }
        }
        let until = last_words.into_iter().chain(piece.map(|(_, until)| until)).min();
        let deadline = driver.deadline().map(|d| driver.instant(d)).filter(|_| driver.close().is_none());
        tokio::select! {
            left = to.flush(), if piece.is_some() => {
                let Ok(()) = left else { return gone(driver) };
                driver.written(piece.take().map_or(0, |(bytes, _)| bytes));
            }
            () = at(until) => return gone(driver),
            () = peer.rung() => driver.woken(),
            message = from.next(), if driver.wants_read() => end = take(message, driver),
            () = at(deadline) => driver.timeout(),
        }
        if driver.take_turn_over() {
            tokio::task::yield_now().await;
        }
    }
    end.or(driver.close().map(code)).unwrap_or(End::Gone)
}

fn gone(driver: &mut Driver) -> End {
    driver.closed(Cause::Socket);
    End::Gone
}

/// Never, where there is no time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Gives how it ends, if it does with this.
fn take(message: Option<Result<Message, tungstenite::Error>>, driver: &mut Driver) -> Option<End> {
    match message {
        Some(Ok(Message::Binary(bytes))) => driver.received(&bytes),
        Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
        Some(Ok(Message::Text(_))) => {
            driver.broke(ReasonCode::MALFORMED_PACKET, "MQTT-6.0.0-1: a text message");
            return Some(End::Ours(CloseCode::Unsupported));
        }
        Some(Ok(Message::Close(_))) => {
            driver.closed(Cause::Socket);
            return Some(End::Goodbye);
        }
        Some(Err(e)) => {
            match broken(&e) {
                Some(_) => driver.broke(ReasonCode::PROTOCOL_ERROR, "RFC 6455: a broken frame"),
                None => driver.closed(Cause::Socket),
            }
            return broken(&e).map(End::Ours);
        }
        Some(Ok(Message::Frame(_))) | None => driver.closed(Cause::Socket),
    }
    None
}
