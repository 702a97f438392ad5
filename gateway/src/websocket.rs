//! The adapter between a websocket and a driver: MQTT in binary messages [MQTT-6.0.0-1].
//!
//! Invariant: packets may be cut anywhere between messages [MQTT-6.0.0-2]; a text message ends the connection.
//! Must not know: MQTT.

use crate::{driver::Driver, gateway::Gateway, metrics::Total, tcp};
use futures_util::{SinkExt, StreamExt};
use std::{sync::Arc, time::Duration};
use tokio_tungstenite::tungstenite::{Bytes, Message};
use weir_bridge::upgrade::Socket;
use weir_core::{
    packet::ReasonCode,
    session::{Cause, Violation},
};

/// A peer that takes nothing for so long is gone.
const WRITE_STALL: Duration = Duration::from_secs(10);

pub(crate) async fn serve(mut socket: Socket, gateway: Arc<Gateway>) {
    gateway.totals.add(Total::ConnectionsWebsocket, 1);
    let mut driver = Box::new(Driver::new(gateway));
    let peer = driver.peer().clone();
    while driver.close().is_none() || !driver.out.is_empty() {
        if !driver.out.is_empty() {
            let bytes = Bytes::copy_from_slice(driver.out.unsent());
            let n = bytes.len();
            let sent = tokio::time::timeout(WRITE_STALL, socket.send(Message::Binary(bytes))).await;
            if !matches!(sent, Ok(Ok(()))) {
                driver.closed(Cause::Socket);
                break;
            }
            driver.written(n);
            continue;
        }
        let deadline = driver.deadline().map(|d| driver.instant(d));
        let due = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = peer.rung() => driver.woken(),
            message = socket.next(), if driver.wants_read() => match message {
                Some(Ok(Message::Binary(bytes))) => driver.received(&bytes),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Text(_))) => {
                    let statement = "MQTT-6.0.0-1: a text message";
                    driver.closed(Cause::Violation(Violation { reason: ReasonCode::MALFORMED_PACKET, statement }));
                }
                _ => driver.closed(Cause::Socket),
            },
            () = due => driver.timeout(),
        }
    }
    let _ = tokio::time::timeout(Duration::from_secs(1), socket.close(None)).await;
    drop(socket);
    tcp::outlive(driver).await;
}
