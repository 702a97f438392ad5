//! From an HTTP request to a websocket (RFC 6455, 4.2).
//!
//! Invariant: messages above the limit are refused before they are in memory; a page of another origin gets no socket.
//! Must not know: what is said over it.

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::derive_accept_key,
        protocol::{Role, WebSocketConfig},
    },
};

pub type Socket = WebSocketStream<Gated>;

/// Whether more is read of a message that is not whole yet.
pub trait Gate: Send + Sync {
    fn poll_open(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// What was read in a buffer that held `before` bytes.
    fn passed(&self, read: &ReadBuf<'_>, before: usize);
}

/// Everything is read: messages are small.
pub struct Open;

impl Gate for Open {
    fn poll_open(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn passed(&self, _: &ReadBuf<'_>, _: usize) {}
}

/// A connection that is read only while its gate is open.
pub struct Gated {
    io: TokioIo<Upgraded>,
    gate: Arc<dyn Gate>,
}

impl AsyncRead for Gated {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.gate.poll_open(cx))?;
        let before = into.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, into);
        self.gate.passed(into, before);
        read
    }
}

impl AsyncWrite for Gated {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Unsent bytes of one socket before it counts as broken; the library's default is unbounded. No message of the feed is so large (`MESSAGE_BYTES`, `steps`).
const WRITE_BYTES_MAX: usize = 2 << 20;
/// Read at once, and held by every socket: the library's default is 128 KiB, which ten thousand browsers that say nothing would hold too.
const READ_BUFFER_BYTES: usize = 8 * 1024;

fn has(headers: &HeaderMap, name: header::HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|v| v.trim().eq_ignore_ascii_case(wanted))
}

/// A browser names the page's origin; it must be the host that it speaks to. Other clients name none.
pub fn origin_is_ours(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok());
    let origin = origin.to_str().ok().and_then(|o| o.split_once("://")).map(|(_, host)| host);
    origin.is_some() && origin == host
}

/// Answers the request and calls `serve` with the socket. `protocols`: the subprotocols of which the client must offer one, the
/// preferred one first; none: it need not.
pub fn upgrade<F>(
    mut request: Request,
    protocols: &[&'static str],
    message_bytes_max: usize,
    gate: Arc<dyn Gate>,
    serve: impl FnOnce(Socket) -> F + Send + 'static,
) -> Response
where
    F: Future<Output = ()> + Send,
{
    let headers = request.headers();
    let refuse = |status: StatusCode, why: &'static str| (status, why).into_response();
    if !has(headers, header::UPGRADE, "websocket") || !has(headers, header::CONNECTION, "upgrade") {
        return refuse(StatusCode::UPGRADE_REQUIRED, "this address speaks websocket\n");
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|v| v != "13") {
        return refuse(StatusCode::BAD_REQUEST, "websocket version 13 is spoken here\n");
    }
    if !origin_is_ours(headers) {
        return refuse(StatusCode::FORBIDDEN, "a page of another origin may not speak to this one\n");
    }
    let protocol = protocols.iter().find(|p| has(headers, header::SEC_WEBSOCKET_PROTOCOL, p)).copied();
    if protocol.is_none() && !protocols.is_empty() {
        return refuse(StatusCode::BAD_REQUEST, "offer the subprotocol \"mqtt\" [MQTT-6.0.0-3]\n");
    }
    let Some(accept) = headers.get(header::SEC_WEBSOCKET_KEY).map(|k| derive_accept_key(k.as_bytes())) else {
        return refuse(StatusCode::BAD_REQUEST, "the websocket key is missing\n");
    };
    let Some(upgrade) = request.extensions_mut().remove::<OnUpgrade>() else {
        return refuse(StatusCode::BAD_REQUEST, "this connection cannot become a websocket\n");
    };
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let config = WebSocketConfig::default()
            .max_message_size(Some(message_bytes_max))
            .max_frame_size(Some(message_bytes_max))
            .read_buffer_size(READ_BUFFER_BYTES)
            // A message is written when it is said.
            .write_buffer_size(0)
            .max_write_buffer_size(WRITE_BYTES_MAX + message_bytes_max);
        let io = Gated { io: TokioIo::new(upgraded), gate };
        serve(WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await).await;
    });
    let mut response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::UPGRADE, "websocket")
        .header(header::CONNECTION, "Upgrade")
        .header(header::SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(p) = protocol {
        response = response.header(header::SEC_WEBSOCKET_PROTOCOL, p);
    }
    response.body(Body::empty()).unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}
