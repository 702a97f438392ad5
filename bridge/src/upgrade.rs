//! From an HTTP request to a websocket (RFC 6455, 4.2).
//!
//! Invariant: no more of a whole message is in memory than its limit, and of a stream no more than
//! one
//! read; a socket ends with a close frame of each side (5.5.1, 7.1).
//! Must not know: what is said over it, or whose page may ask (`origins`).

use crate::fragmenter::Fragmenter;
use axum::{
    body::Body,
    extract::Request,
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message, Utf8Bytes,
        error::ProtocolError,
        handshake::derive_accept_key,
        protocol::{CloseFrame, Role, WebSocketConfig, frame::coding::CloseCode},
    },
};

pub type Socket = WebSocketStream<Io>;

/// How the messages of a socket are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Messages {
    /// Whole, of so many bytes at most.
    Whole(usize),
    /// As their bytes come: see `fragmenter`. A text message arrives empty: that it is text is
    /// enough to refuse it.
    Stream,
}

/// The connection below a websocket.
pub struct Io {
    io: TokioIo<Upgraded>,
    fragmenter: Option<Fragmenter>,
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(fragmenter) = &mut this.fragmenter else { return Pin::new(&mut this.io).poll_read(cx, into) };
        if fragmenter.drain_into(into) {
            return Poll::Ready(Ok(()));
        }
        let mut buffer = [MaybeUninit::uninit(); READ_BUFFER_BYTES];
        let (buffer, _) = buffer.split_at_mut(into.remaining().min(READ_BUFFER_BYTES));
        let before = into.filled().len();
        // The first bytes of a header are nothing yet.
        while into.filled().len() == before {
            let mut read = ReadBuf::uninit(buffer);
            ready!(Pin::new(&mut this.io).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                break;
            }
            fragmenter.push(read.filled(), into);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
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

/// Unsent bytes of one socket before it counts as broken; the library's default is unbounded, and
/// it
/// answers pings whether or not anybody reads. No message of the feed is so large (`MESSAGE_BYTES`,
/// `steps`).
const WRITE_BYTES_MAX: usize = 2 << 20;
/// The same where one message is on its way at a time, of 32 KiB at most.
const STREAM_WRITE_BYTES_MAX: usize = 128 * 1024;
/// Read at once, and held by every socket: the library's default is 128 KiB, which ten thousand browsers that say nothing would hold too.
const READ_BUFFER_BYTES: usize = 8 * 1024;

/// How long a peer has to say goodbye too.
const GOODBYE: Duration = Duration::from_secs(1);

/// A list in a header names this.
#[must_use]
pub fn has(headers: &HeaderMap, name: header::HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).any(|v| v.trim().eq_ignore_ascii_case(wanted))
}

/// The close code of a broken connection; `None`: the peer has gone.
#[must_use]
pub fn broken(e: &Error) -> Option<CloseCode> {
    match e {
        Error::Capacity(_) => Some(CloseCode::Size),
        // It left without a word.
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => None,
        Error::Protocol(_) => Some(CloseCode::Protocol),
        Error::Utf8(_) => Some(CloseCode::Invalid),
        _ => None,
    }
}

/// Ends a socket. `code`: why; `None`: the peer has sent a close frame, and the library answers it.
pub async fn close(to: SplitSink<Socket, Message>, from: SplitStream<Socket>, code: Option<CloseCode>) {
    let Ok(mut socket) = to.reunite(from) else { return };
    let goodbyes = async {
        match code {
            Some(code) => socket.send(Message::Close(Some(CloseFrame { code, reason: Utf8Bytes::default() }))).await?,
            None => socket.flush().await?,
        }
        while let Some(Ok(_)) = socket.next().await {}
        // Unread bytes would end the connection with a reset, before the close frame has arrived;
        // behind a broken frame the library reads none.
        let io = socket.get_mut();
        io.shutdown().await?;
        tokio::io::copy(io, &mut tokio::io::sink()).await?;
        Ok::<_, Error>(())
    };
    let _in_time = tokio::time::timeout(GOODBYE, goodbyes).await;
}

/// Answers the request and calls `serve` with the socket. `protocols`: the subprotocols of which the client must offer one, the
/// preferred one first; none: it need not.
pub fn upgrade<F>(
    mut request: Request,
    protocols: &[&'static str],
    messages: Messages,
    serve: impl FnOnce(Socket) -> F + Send + 'static,
) -> Response
where
    F: Future<Output = ()> + Send,
{
    let headers = request.headers();
    let refuse = |status: StatusCode, why: &'static str| (status, why).into_response();
    if request.method() != Method::GET {
        // RFC 6455, 4.1.
        return (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET")], "a websocket begins with GET\n").into_response();
    }
    if !has(headers, header::UPGRADE, "websocket") || !has(headers, header::CONNECTION, "upgrade") {
        return refuse(StatusCode::UPGRADE_REQUIRED, "this address speaks websocket\n");
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|v| v != "13") {
        // RFC 6455, 4.2.2.
        let version = [(header::SEC_WEBSOCKET_VERSION, "13")];
        return (StatusCode::UPGRADE_REQUIRED, version, "websocket version 13 is spoken here\n").into_response();
    }
    let protocol = protocols.iter().find(|p| has(headers, header::SEC_WEBSOCKET_PROTOCOL, p)).copied();
    if protocol.is_none() && !protocols.is_empty() {
        return refuse(StatusCode::BAD_REQUEST, "offer the subprotocol \"mqtt\" [MQTT-6.0.0-3]\n");
    }
    // 4.2.1: sixteen bytes.
    let key = headers.get(header::SEC_WEBSOCKET_KEY).filter(|k| STANDARD.decode(k).is_ok_and(|bytes| bytes.len() == 16));
    let Some(accept) = key.map(|k| derive_accept_key(k.as_bytes())) else {
        return refuse(StatusCode::BAD_REQUEST, "the websocket key is missing, or not 16 bytes in base64\n");
    };
    let Some(upgrade) = request.extensions_mut().remove::<OnUpgrade>() else {
        return refuse(StatusCode::BAD_REQUEST, "this connection cannot become a websocket\n");
    };
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let (message_bytes_max, write_bytes_max, fragmenter) = match messages {
            Messages::Whole(bytes_max) => (bytes_max, WRITE_BYTES_MAX, None),
            // As long as what is read at once.
            Messages::Stream => (READ_BUFFER_BYTES, STREAM_WRITE_BYTES_MAX, Some(Fragmenter::default())),
        };
        let config = WebSocketConfig::default()
            .max_message_size(Some(message_bytes_max))
            .max_frame_size(Some(message_bytes_max))
            .read_buffer_size(READ_BUFFER_BYTES)
            // A message is written when it is said.
            .write_buffer_size(0)
            .max_write_buffer_size(write_bytes_max);
        let io = Io { io: TokioIo::new(upgraded), fragmenter };
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
