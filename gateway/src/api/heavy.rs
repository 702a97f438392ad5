//! Answers that may be large: few are made at once, and what is on its way to those who read slowly is bounded.
//!
//! Invariant: whatever is asked, and by however many, it holds no more memory than this, and no thread that serves devices for long.
//! Must not know: what is asked.

use super::unavailable;
use axum::{
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use std::{sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Answers that are made at once, on one port.
const AT_ONCE: usize = 4;
/// Of all answers on their way, on one port; one of them is never longer. A record of 8 MiB is at most six times as long in JSON.
pub(crate) const BYTES: usize = 64 << 20;
/// Whoever has no turn by then is told to come again.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub(crate) struct Heavy {
    making: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
}

impl Default for Heavy {
    fn default() -> Self {
        Self { making: Arc::new(Semaphore::new(AT_ONCE)), bytes: Arc::new(Semaphore::new(BYTES)) }
    }
}

/// An answer and its room, which it has until it has left.
struct WithRoom {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for WithRoom {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

async fn turn(of: &Arc<Semaphore>, n: usize) -> Option<OwnedSemaphorePermit> {
    tokio::time::timeout(PATIENCE, of.clone().acquire_many_owned(n as u32)).await.ok()?.ok()
}

pub(crate) async fn few(State(heavy): State<Heavy>, request: Request, next: Next) -> Response {
    let busy = || unavailable("many ask for much at once; come again");
    let Some(making) = turn(&heavy.making, 1).await else { return busy() };
    let (head, body) = next.run(request).await.into_parts();
    let bytes = match to_bytes(body, BYTES).await {
        Ok(bytes) => bytes,
        Err(e) => return unavailable(e),
    };
    let Some(room) = turn(&heavy.bytes, bytes.len()).await else { return busy() };
    drop(making);
    Response::from_parts(head, Body::from(Bytes::from_owner(WithRoom { bytes, _room: room })))
}

/// A value as JSON, written where nobody waits for this thread.
pub(super) fn json<T: Serialize>(value: &T) -> Response {
    match tokio::task::block_in_place(|| serde_json::to_vec(value)) {
        Ok(bytes) => ([(axum::http::header::CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(e) => unavailable(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{Router, middleware::from_fn_with_state, routing::get};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn answers_that_nobody_reads_hold_no_more_than_their_room() {
        let heavy = Heavy::default();
        let large = || async { vec![b'x'; 24 << 20] };
        let router = Router::new().route("/", get(large)).layer(from_fn_with_state(heavy.clone(), few));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move { axum::serve(listener, router).await });
        let ask = async || {
            let mut s = tokio::net::TcpStream::connect(address).await.expect("connects");
            s.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.expect("sent");
            s
        };
        let (a, b, mut third) = (ask().await, ask().await, ask().await);
        let mut byte = [0];
        let waits = tokio::time::timeout(Duration::from_secs(1), third.read_exact(&mut byte)).await;
        assert!(waits.is_err(), "two are on their way, and there is no room for a third");
        drop((a, b));
        let mut answer = Vec::new();
        third.read_to_end(&mut answer).await.expect("an answer");
        assert!(answer.len() > 24 << 20);
        drop(third);
        while heavy.bytes.available_permits() < BYTES {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
