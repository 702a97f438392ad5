//! The adapter between a websocket and a driver: MQTT in binary messages [MQTT-6.0.0-1].
//!
//! Invariant: packets may be cut anywhere between messages [MQTT-6.0.0-2]; a text message ends the connection.
//! Must not know: MQTT.

use crate::{driver::Driver, gateway::Gateway, inbound::Meter, metrics::Total, tcp};
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::{self, Bytes, Message};
use weir_bridge::upgrade::Socket;
use weir_core::{
    packet::ReasonCode,
    session::{Cause, Violation},
};

/// Bytes of one message: what a slow line takes in less than `WRITE_STALL`.
const PIECE_BYTES: usize = 32 * 1024;
/// A peer that takes not even one message for so long is gone.
const WRITE_STALL: Duration = Duration::from_secs(10);

/// `meter`: of the bytes of its messages.
pub(crate) async fn serve(socket: Socket, gateway: Arc<Gateway>, meter: Arc<Meter>) {
    gateway.totals.add(Total::ConnectionsWebsocket, 1);
    let mut driver = Box::new(Driver::new(gateway));
    let (mut to, mut from) = socket.split();
    converse(&mut to, &mut from, &mut driver, &meter).await;
    let _ = tokio::time::timeout(Duration::from_secs(1), to.close()).await;
    drop((to, from));
    tcp::outlive(driver).await;
}

/// Both ways at once: a peer that is sent much is heard meanwhile.
async fn converse(to: &mut SplitSink<Socket, Message>, from: &mut SplitStream<Socket>, driver: &mut Driver, meter: &Meter) {
    let peer = driver.peer().clone();
    // Bytes that are on the way, and until when they must have left.
    let mut piece: Option<(usize, Instant)> = None;
    let mut last_words = None;
    while driver.close().is_none() || !driver.out.is_empty() {
        match driver.close() {
            // Another connection waits for its session.
            Some(Cause::TakenOver) => return,
            Some(_) if last_words.is_none() => last_words = Some(Instant::now() + tcp::LAST_WORDS),
            _ => {}
        }
        if piece.is_none() && !driver.out.is_empty() {
            let unsent = driver.out.unsent();
            let bytes = unsent.get(..PIECE_BYTES).unwrap_or(unsent);
            piece = Some((bytes.len(), Instant::now() + WRITE_STALL));
            // The one before has left, so this one is taken at once.
            if to.feed(Message::Binary(Bytes::copy_from_slice(bytes))).await.is_err() {
                return driver.closed(Cause::Socket);
            }
        }
        let until = last_words.into_iter().chain(piece.map(|(_, until)| until)).min();
        let deadline = driver.deadline().map(|d| driver.instant(d)).filter(|_| driver.close().is_none());
        tokio::select! {
            left = to.flush(), if piece.is_some() => {
                let Ok(()) = left else { return driver.closed(Cause::Socket) };
                driver.written(piece.take().map_or(0, |(bytes, _)| bytes));
            }
            () = at(until) => return driver.closed(Cause::Socket),
            () = meter.stalled(), if driver.wants_read() => return driver.half_way(Cause::Socket),
            () = peer.rung() => driver.woken(),
            message = from.next(), if driver.wants_read() => {
                take(message, driver);
                meter.reset();
            }
            () = at(deadline) => driver.timeout(),
        }
        if driver.take_turn_over() {
            tokio::task::yield_now().await;
        }
    }
}

/// Never, where there is no time.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

fn take(message: Option<Result<Message, tungstenite::Error>>, driver: &mut Driver) {
    match message {
        Some(Ok(Message::Binary(bytes))) => driver.received(&bytes),
        Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
        Some(Ok(Message::Text(_))) => {
            let statement = "MQTT-6.0.0-1: a text message";
            driver.closed(Cause::Violation(Violation { reason: ReasonCode::MALFORMED_PACKET, statement }));
        }
        _ => driver.closed(Cause::Socket),
    }
}
