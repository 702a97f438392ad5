//! HTTP: MQTT over websocket beside the browser's page and feed, and the admin port.
//!
//! Invariant: what changes or reveals something about the process is on the admin port only.
//! Must not know: what the page shows.

use crate::{
    api::{
        self, OwnPage,
        heavy::{Heavy, few},
        process::Process,
        shared::{Answers, share},
    },
    gateway::Gateway,
    hosts::{self, Hosts, ours},
    origins::{Origins, may_ask},
    sockets::{self, Browser, HttpSocket, Probe, Sockets},
    websocket,
};
use axum::{
    Extension, Json, Router,
    body::{HttpBody, to_bytes},
    extract::{ConnectInfo, Request, State},
    http::{
        HeaderValue, StatusCode,
        header::{
            CONNECTION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, SEC_WEBSOCKET_PROTOCOL, UPGRADE, X_CONTENT_TYPE_OPTIONS,
            X_FRAME_OPTIONS,
        },
    },
    middleware::{Next, from_fn, from_fn_with_state, map_response},
    response::{IntoResponse, Response},
    routing::get,
};
use http_body_util::LengthLimitError;
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde_json::json;
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::net::TcpListener;
use weir_bridge::{
    feed::Feed,
    upgrade::{Messages, has, upgrade},
    web,
};
/// Of MQTT over websocket [MQTT-6.0.0-3]; the second is what clients of version 3.1 offer.
const SUBPROTOCOLS: [&str; 2] = ["mqtt", "mqttv3.1"];
/// Sockets of the port for browsers: pages with their feeds, and people. MQTT over websocket is no part of them.
const SOCKETS_MAX: usize = 2_000;
/// More of them, whose first request shows whether they speak MQTT; others get 503.
const BEYOND_MAX: usize = 256;
/// Between two requests of a socket. The head of one has less: see `sockets::HttpSocket`.
const IDLE: Duration = Duration::from_secs(60);
/// For the body of a request, which is a setting or two.
const BODY: Duration = Duration::from_secs(10);
const BODY_BYTES_MAX: usize = 64 * 1024;

/// Serves a port for as long as the process lives. `gateway`: whose limits of addresses it has.
pub(crate) async fn serve(
    listener: TcpListener,
    name: &'static str,
    places: Sockets,
    router: Router,
    hosts: Hosts,
    gateway: Option<Arc<Gateway>>,
) {
    let router = router.fallback(unknown).layer(from_fn(whole)).layer(from_fn_with_state(hosts, ours)).layer(map_response(guarded));
    let (browsers, beyond) = (Sockets::exactly(SOCKETS_MAX), Sockets::exactly(BEYOND_MAX));
    loop {
        let browser = match browsers.try_place() {
            Some(place) => Browser::new(place, false),
            None => Browser::new(beyond.place(name).await, true),
        };
        let place = places.place(name).await;
        let (stream, address) = sockets::accept(&listener).await;
        let Ok(open) = gateway.as_ref().map_or(Ok(None), |gateway| gateway.admit(address)) else { continue };
        let routes = TowerToHyperService::new(router.clone());
        let socket = HttpSocket::new(stream, (place, open), browser.clone());
        let probe = socket.probe();
        tokio::spawn(async move {
            let service = service_fn(move |mut request: hyper::Request<Incoming>| {
                request.extensions_mut().insert(browser.clone());
                request.extensions_mut().insert(probe.clone());
                request.extensions_mut().insert(ConnectInfo(address));
                let refused = browser.is_beyond() && !is_mqtt(&request);
                let answer = routes.call(request);
                async move { if refused { Ok(full()) } else { answer.await } }
            });
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(IDLE);
            // Who leaves, says nothing or breaks the protocol is nobody's trouble.
            let _ended = http.serve_connection(TokioIo::new(socket), service).with_upgrades().await;
        });
    }
}

fn full() -> Response {
    let words = format!("{SOCKETS_MAX} sockets of browsers are open, and that is as many as there may be\n");
    (StatusCode::SERVICE_UNAVAILABLE, [(CONNECTION, "close")], words).into_response()
}

async fn unknown(request: Request) -> Response {
    let words = format!("there is nothing at {}", request.uri().path());
    (StatusCode::NOT_FOUND, Json(json!({ "error": words }))).into_response()
}

/// No answer is taken for another kind, shown inside another page, or read by one that may not.
async fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.entry(CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    response
}

/// Has the body of a request read before anything is done with it, and not for ever.
async fn whole(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    if body.is_end_stream() {
        return next.run(Request::from_parts(head, body)).await;
    }
    match tokio::time::timeout(BODY, to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(Ok(bytes)) => next.run(Request::from_parts(head, bytes.into())).await,
        Ok(Err(e)) if is_too_long(&e) => {
            (StatusCode::PAYLOAD_TOO_LARGE, format!("a body of at most {BODY_BYTES_MAX} bytes is read\n")).into_response()
        }
        Ok(Err(e)) => (StatusCode::BAD_REQUEST, format!("the body: {e}\n")).into_response(),
        Err(_) => (StatusCode::REQUEST_TIMEOUT, format!("the body did not come within {} s\n", BODY.as_secs())).into_response(),
    }
}

fn is_too_long(e: &axum::Error) -> bool {
    std::error::Error::source(e).is_some_and(|e| e.is::<LengthLimitError>())
}

/// The port for browsers.
///
/// `admin`: the port that the page asks when it changes something.
pub(crate) fn public(gateway: Arc<Gateway>, feed: Arc<Feed>, origins: Origins, admin: u16) -> Router {
    let reading = api::reading().layer(from_fn_with_state(Answers::default(), share)).layer(from_fn_with_state(Heavy::default(), few));
    let mqtt = get(mqtt);
    Router::new()
        .route("/mqtt", mqtt.clone())
        .route("/mqtt/", mqtt)
        .merge(reading)
        .with_state(gateway.clone())
        .merge(web::router(feed).layer(from_fn_with_state(admin, may_ask_admin)))
        .layer(from_fn_with_state(gateway.clone(), by_subprotocol))
        .layer(from_fn_with_state((origins, gateway), may_ask))
}

/// Lets the page ask the admin port of the same host, beside its own port (CSP Level 3, 6.1.2). Not every
/// browser takes a websocket of the page's own origin for `'self'`.
async fn may_ask_admin(State(admin): State<u16>, request: Request, next: Next) -> Response {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let is_plain = |host: &str| host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':'));
    let source = host.and_then(|host| match host {
        // A policy cannot name an address of version 6 (CSP Level 3, 2.3.1, host-part): any host, then, at these ports.
        _ if host.starts_with('[') => Some(format!("; connect-src 'self' ws: wss: http://*:{admin}")),
        _ if is_plain(host) => {
            let name = hosts::name(host);
            Some(format!("; connect-src 'self' ws://{host} wss://{host} http://{name}:{admin}"))
        }
        _ => None,
    });
    let mut response = next.run(request).await;
    if let Some(source) = source
        && let Some(policy) = response.headers().get(CONTENT_SECURITY_POLICY)
        && let Ok(policy) = HeaderValue::from_bytes(&[policy.as_bytes(), source.as_bytes()].concat())
    {
        response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// It becomes MQTT over websocket, if all is as it should be.
fn is_mqtt<B>(request: &hyper::Request<B>) -> bool {
    matches!(request.uri().path(), "/mqtt" | "/mqtt/") || offers_mqtt(request)
}

fn offers_mqtt<B>(request: &hyper::Request<B>) -> bool {
    let headers = request.headers();
    matches!(request.uri().path(), "/" | "/ws")
        && has(headers, UPGRADE, "websocket")
        && SUBPROTOCOLS.iter().any(|p| has(headers, SEC_WEBSOCKET_PROTOCOL, p))
}

/// A client that offers MQTT speaks it, also where its library asks by itself (`/`) and where the feed is.
async fn by_subprotocol(
    State(gateway): State<Arc<Gateway>>,
    Extension(browser): Extension<Browser>,
    Extension(probe): Extension<Probe>,
    request: Request,
    next: Next,
) -> Response {
    if offers_mqtt(&request) {
        return mqtt(State(gateway), Extension(browser), Extension(probe), request).await;
    }
    next.run(request).await
}

async fn mqtt(
    State(gateway): State<Arc<Gateway>>,
    Extension(browser): Extension<Browser>,
    Extension(probe): Extension<Probe>,
    request: Request,
) -> Response {
    if gateway.is_draining() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let address = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|from| from.0);
    upgrade(request, &SUBPROTOCOLS, Messages::Stream, move |socket| {
        browser.give_back();
        websocket::serve(socket, address, probe, gateway)
    })
}

/// The port for those who run it.
///
/// `page`: the port of the page that may change something here.
pub(crate) fn admin(gateway: Arc<Gateway>, process: Arc<Process>, page: u16) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(gateway.clone())
        .merge(api::running(gateway, process, OwnPage(page)))
}

/// In the text format of Prometheus.
async fn metrics(State(gateway): State<Arc<Gateway>>) -> Response {
    let text = gateway.metrics.render(&gateway);
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// Ready: takes connections and can acknowledge.
async fn ready(State(gateway): State<Arc<Gateway>>) -> Response {
    if gateway.is_draining() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response();
    }
    match gateway.log_trouble() {
        Some(trouble) => (StatusCode::SERVICE_UNAVAILABLE, format!("{trouble}\n")).into_response(),
        None => "ready\n".into_response(),
    }
}
