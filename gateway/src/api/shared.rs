//! One answer for all pages that ask the same within a second: ten thousand of them ask every few seconds.
//!
//! Invariant: an answer is at most a second old, and made once; only what is right is kept, and only so many.
//! Must not know: what is asked.

use axum::{
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, header::CONTENT_TYPE},
    middleware::Next,
    response::{IntoResponse, Response},
};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

const KEPT_FOR: Duration = Duration::from_secs(1);
/// Different questions at once.
const ANSWERS_MAX: usize = 64;
/// A longer answer is not kept.
const KEPT_BYTES_MAX: usize = 1 << 20;
/// A list of sessions is the longest.
const ANSWER_BYTES_MAX: usize = 16 << 20;
/// What pages ask again and again.
const SHARED: [&str; 6] = ["clients", "sessions", "streams", "segments", "rates", "history"];

type Answer = (Instant, Bytes);
/// An answer, and who makes it.
type Place = Arc<tokio::sync::Mutex<Option<Answer>>>;

#[derive(Clone, Default)]
pub(crate) struct Answers(Arc<Mutex<HashMap<String, Place>>>);

fn json(bytes: Bytes) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], bytes).into_response()
}

pub(crate) async fn share(State(Answers(answers)): State<Answers>, request: Request, next: Next) -> Response {
    let name = request.uri().path().strip_prefix("/api/v1/");
    if request.method() != Method::GET || !name.is_some_and(|name| SHARED.contains(&name)) {
        return next.run(request).await;
    }
    let place = {
        let mut answers = answers.lock();
        if answers.len() >= ANSWERS_MAX {
            answers.clear();
        }
        answers.entry(request.uri().to_string()).or_default().clone()
    };
    // Who comes while it is made waits for it.
    let mut kept = place.lock().await;
    if let Some((made, bytes)) = kept.as_ref()
        && made.elapsed() < KEPT_FOR
    {
        return json(bytes.clone());
    }
    let response = next.run(request).await;
    if response.status() != StatusCode::OK {
        return response;
    }
    match to_bytes(Body::new(response.into_body()), ANSWER_BYTES_MAX).await {
        Ok(bytes) => {
            *kept = (bytes.len() <= KEPT_BYTES_MAX).then(|| (Instant::now(), bytes.clone()));
            json(bytes)
        }
        Err(e) => super::unavailable(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{Router, middleware::from_fn_with_state, routing::get};
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn many_who_ask_at_once_are_given_one_answer_and_errors_are_not_kept() {
        static ASKED: AtomicU32 = AtomicU32::new(0);
        let count = || async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            match ASKED.fetch_add(1, Ordering::Relaxed) {
                0 => StatusCode::SERVICE_UNAVAILABLE.into_response(),
                n => n.to_string().into_response(),
            }
        };
        let router = Router::new()
            .route("/api/v1/clients", get(count))
            .route("/api/v1/other", get(count))
            .layer(from_fn_with_state(Answers::default(), share));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move { axum::serve(listener, router).await });
        let ask = async |path: &str| {
            let mut s = tokio::net::TcpStream::connect(address).await.expect("connects");
            s.write_all(format!("GET /api/v1/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.expect("sent");
            let mut answer = String::new();
            s.read_to_string(&mut answer).await.expect("an answer");
            answer
        };
        assert!(ask("clients").await.contains(" 503 "));
        let both = tokio::join!(ask("clients"), ask("clients"));
        assert!(both.0.ends_with("\r\n1") && both.1.ends_with("\r\n1"), "{both:?}");
        assert!(ask("clients?x").await.ends_with("\r\n2") && ask("other").await.ends_with("\r\n3"));
        tokio::time::sleep(KEPT_FOR).await;
        assert!(ask("clients").await.ends_with("\r\n4"));
    }
}
