//! Which page in a browser may change something on the admin port: the gateway's own, and no other.
//!
//! Invariant: a request that carries an Origin runs only if that origin is this gateway's page, at the
//! host name by which the admin port was asked. Names that the internet may own are refused before.

use axum::{
    extract::{Request, State},
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{
            ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE, HOST, ORIGIN,
            VARY,
        },
    },
    middleware::Next,
    response::{IntoResponse, Response},
};

/// The port of the gateway's page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OwnPage(pub u16);

/// Splits `HOST[:PORT]`; without a port it is that of `http`.
fn host_and_port(authority: &str) -> (&str, u16) {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()),
        _ => (authority, None),
    };
    (host, port.unwrap_or(80))
}

impl OwnPage {
    fn is(self, headers: &HeaderMap) -> bool {
        let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let origin = text(ORIGIN).and_then(|origin| origin.strip_prefix("http://")).map(host_and_port);
        let asked = text(HOST).map(host_and_port);
        matches!((origin, asked), (Some((page, port)), Some((host, _))) if port == self.0 && page.eq_ignore_ascii_case(host))
    }
}

/// Runs what the gateway's own page or no page asks for.
pub(super) async fn own_page(State(page): State<OwnPage>, request: Request, next: Next) -> Response {
    let Some(origin) = request.headers().get(ORIGIN).cloned() else { return next.run(request).await };
    if !page.is(request.headers()) {
        let words = "of all pages in a browser only the gateway's own may ask here\n";
        return (StatusCode::FORBIDDEN, words).into_response();
    }
    let mut response = next.run(request).await;
    response.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    response.headers_mut().append(VARY, HeaderValue::from_static("origin"));
    response
}

/// What a browser asks before it changes something (Fetch standard, CORS-preflight request).
pub(super) async fn preflight() -> impl IntoResponse {
    let headers = [
        (ACCESS_CONTROL_ALLOW_METHODS, "DELETE, POST, PUT"),
        (ACCESS_CONTROL_ALLOW_HEADERS, "content-type"),
        (ACCESS_CONTROL_MAX_AGE, "600"),
    ];
    (StatusCode::NO_CONTENT, headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_page_at_the_same_host_is_the_own_one() {
        let is = |origin: &'static str, host: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ORIGIN, HeaderValue::from_static(origin));
            headers.insert(HOST, HeaderValue::from_static(host));
            OwnPage(8080).is(&headers)
        };
        for (origin, host) in [
            ("http://127.0.0.1:8080", "127.0.0.1:9464"),
            ("http://Plant.local:8080", "plant.local:9464"),
            ("http://[::1]:8080", "[::1]:9464"),
        ] {
            assert!(is(origin, host), "{origin} {host}");
        }
        for (origin, host) in [
            ("http://127.0.0.1:8081", "127.0.0.1:9464"),
            ("http://127.0.0.1", "127.0.0.1:9464"),
            ("https://127.0.0.1:8080", "127.0.0.1:9464"),
            ("http://localhost:8080", "127.0.0.1:9464"),
            ("http://evil.example:8080", "127.0.0.1:9464"),
            ("http://127.0.0.1:8080.evil.example", "127.0.0.1:9464"),
            ("null", "127.0.0.1:9464"),
            ("http://[::1]:8080", "[::2]:9464"),
        ] {
            assert!(!is(origin, host), "{origin} {host}");
        }
        let mut none = HeaderMap::new();
        none.insert(ORIGIN, HeaderValue::from_static("http://a:8080"));
        assert!(!OwnPage(8080).is(&none));
    }
}
