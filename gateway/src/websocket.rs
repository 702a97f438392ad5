//! The adapter between a websocket and a driver: MQTT in binary messages [MQTT-6.0.0-1].
//!
//! Invariant: packets may be cut anywhere between messages [MQTT-6.0.0-2]; a text message ends the connection.
//! Must not know: MQTT.

use crate::{account::SMALL_BYTES, driver::Driver, gateway::Gateway, metrics::Total, sockets::Probe, tcp};
use futures_util::{
    FutureExt, SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::{self, Bytes, Message, protocol::frame::coding::CloseCode};
use weir_bridge::upgrade::{Socket, broken, close};
use weir_core::{packet::ReasonCode, session::Cause};

/// What a websocket gives.
type Read = Option<Result<Message, tungstenite::Error>>;

/// Bytes of one message: what a slow line takes in less than `WRITE_STALL`.
const PIECE_BYTES: usize = 32 * 1024;
/// Written one behind the other, then others have their turn.
const PIECES_AT_ONCE: u64 = 8;
/// Taken at once, then others have their turn: 8 KiB hold a thousand frames of one byte.
const GATHERED_BYTES: usize = 64 * 1024;
const GATHERED_MESSAGES: usize = 1_024;
/// A peer that takes not even one message for so long is gone.
const WRITE_STALL: Duration = Duration::from_secs(10);
/// For what it has taken while the gateway stood still, and nobody has seen yet.
const LATE: Duration = Duration::from_secs(1);

pub(crate) async fn serve(socket: Socket, address: Option<SocketAddr>, probe: Probe, gateway: Arc<Gateway>) {
    gateway.totals.add(Total::ConnectionsWebsocket, 1);
    let mut driver = Box::new(Driver::new(gateway, address));
    let (mut to, mut from) = socket.split();
    let end = converse(&mut to, &mut from, &probe, &mut driver).await;
    let farewell = async move {
        match end {
            End::Gone => {}
            End::Goodbye => close(to, from, None).await,
            End::Ours(code) => close(to, from, Some(code)).await,
            End::TakenOver(words) => {
                let _in_time = tokio::time::timeout(tcp::LAST_WORDS, to.send(Message::Binary(words))).await;
                close(to, from, Some(CloseCode::Policy)).await;
            }
        }
    };
    // The session is handed over whether or not the peer answers.
    tokio::join!(farewell, tcp::outlive(driver));
}

/// How a conversation ends.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    /// Nobody hears anything any more.
    Gone,
    /// The peer said goodbye.
    Goodbye,
    Ours(CloseCode),
    /// Another connection waits for its session, and not for these last words.
    TakenOver(Bytes),
}

/// The close code of a cause (RFC 6455, 7.4.1).
fn code(cause: Cause) -> End {
    End::Ours(match cause {
        Cause::Socket => return End::Gone,
        Cause::Disconnect { .. } => CloseCode::Normal,
        Cause::Violation(v) if v.reason == ReasonCode::PACKET_TOO_LARGE => CloseCode::Size,
        Cause::Violation(v) if matches!(v.reason, ReasonCode::SERVER_BUSY | ReasonCode::SERVER_UNAVAILABLE) => CloseCode::Again,
        // It broke no rule of the protocol.
        Cause::Violation(v) if matches!(v.reason, ReasonCode::QUOTA_EXCEEDED | ReasonCode::SESSION_TAKEN_OVER) => CloseCode::Policy,
        Cause::Violation(_) => CloseCode::Protocol,
        Cause::KeepAlive | Cause::TakenOver | Cause::Dismissed => CloseCode::Policy,
        Cause::Drain => CloseCode::Away,
        Cause::LogFailed => CloseCode::Error,
    })
}

/// Both ways at once: a peer that is sent much is heard meanwhile.
async fn converse(to: &mut SplitSink<Socket, Message>, from: &mut SplitStream<Socket>, probe: &Probe, driver: &mut Driver) -> End {
    let peer = driver.peer().clone();
    // Bytes that are on the way, and until when they must have left.
    let mut piece: Option<(usize, Instant)> = None;
    let (mut last_words, mut end, mut looked, mut pieces) = (None, None, 0, 0_u64);
    while driver.close().is_none() || !driver.out.is_empty() {
        match driver.close() {
            Some(Cause::TakenOver) => {
                let behind = driver.out.unsent().get(piece.map_or(0, |(bytes, _)| bytes)..).unwrap_or_default();
                // A peer that has so much unread does not take it now.
                return End::TakenOver(Bytes::copy_from_slice(if behind.len() > PIECE_BYTES { &[] } else { behind }));
            }
            Some(_) if last_words.is_none() => last_words = Some(Instant::now() + tcp::LAST_WORDS),
            _ => {}
        }
        let mut more = false;
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
        // In this order: after a pause of the gateway a time that is over says nothing of a peer
        // that has sent or taken something meanwhile.
        tokio::select! {
            biased;
            left = to.flush(), if piece.is_some() => {
                let Ok(()) = left else { return gone(driver) };
                driver.written(piece.take().map_or(0, |(bytes, _)| bytes));
                pieces += 1;
                more = pieces.is_multiple_of(PIECES_AT_ONCE);
                // A peer that takes as fast as it is written to is read all the same.
                if driver.wants_read()
                    && let Some(message) = from.next().now_or_never()
                {
                    (end, more) = hear(message, from, driver);
                }
            }
            message = from.next(), if driver.wants_read() => {
                (end, more) = hear(message, from, driver);
            }
            () = peer.rung() => driver.woken(),
            () = at(until) => match &mut piece {
                // Nobody has seen yet that it has taken it.
                Some((_, until)) if last_words.is_none() && probe.has_room() => *until = Instant::now() + LATE,
                _ => return gone(driver),
            },
            () = at(deadline) => {}
        }
        if end == Some(End::Goodbye) {
            // Nothing may be said behind the answer to its close frame.
            return End::Goodbye;
        }
        // Looked at whatever else there was.
        if driver.close().is_none() && driver.is_due() {
            if looked < tcp::LOOKS && driver.wants_read() && probe.has_unread() {
                looked += 1;
                tokio::task::yield_now().await;
                continue;
            }
            driver.hung_up = !driver.wants_read() && probe.has_hung_up();
            driver.timeout();
        }
        looked = 0;
        if driver.take_turn_over() || more {
            tokio::task::yield_now().await;
        }
    }
    end.or(driver.close().map(code)).unwrap_or(End::Gone)
}

fn gone(driver: &mut Driver) -> End {
    driver.closed(Cause::Socket);
    End::Gone
}

/// Takes a message, and what has come behind it already. Gives how it ends, if it does with this,
/// and whether there may be more.
fn hear(message: Read, from: &mut SplitStream<Socket>, driver: &mut Driver) -> (Option<End>, bool) {
    let (bytes, other, more) = gather(message, from, driver);
    if bytes.is_empty() {
        // Control frames are no pass of the driver, and do not hide the bell.
        driver.woken();
    } else {
        driver.received(&bytes);
    }
    (other.and_then(|other| take(other, driver)), more)
}

/// Binary messages that have come already, as one: a pass of the driver costs more than a short
/// one. Then what comes behind them, and whether
/// there may be more.
fn gather(first: Read, from: &mut SplitStream<Socket>, driver: &Driver) -> (Bytes, Option<Read>, bool) {
    let Some(Ok(Message::Binary(first))) = first else { return (Bytes::new(), Some(first), true) };
    let most = if driver.gateway().inbound.is_short() { SMALL_BYTES } else { GATHERED_BYTES };
    let (mut all, mut other, mut more) = (Vec::new(), None, true);
    for _ in 0..GATHERED_MESSAGES {
        if first.len() + all.len() >= most {
            break;
        }
        match from.next().now_or_never() {
            Some(Some(Ok(Message::Binary(next)))) if all.is_empty() => all = [first.as_ref(), next.as_ref()].concat(),
            Some(Some(Ok(Message::Binary(next)))) => all.extend_from_slice(&next),
            next => {
                more = next.is_some();
                other = next;
                break;
            }
        }
    }
    (if all.is_empty() { first } else { all.into() }, other, more)
}

/// Never, where there is no time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Gives how it ends, if it does with this.
fn take(message: Read, driver: &mut Driver) -> Option<End> {
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
