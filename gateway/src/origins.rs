//! Which pages may speak to the port for browsers: its own, and those of `listen.origins`.
//!
//! Invariant: a page of another origin gets no socket and no feed, and reads nothing; each refusal is counted, and one in ten
//! seconds is in the log and in the events.
//! Must not know: what is asked.

use crate::{gateway::Gateway, metrics::Total, refusals::short};
use axum::{
    extract::{ConnectInfo, Request, State},
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{ACCESS_CONTROL_ALLOW_ORIGIN, HOST, ORIGIN, UPGRADE, VARY},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use std::{net::SocketAddr, sync::Arc};

/// Any page, where this is listed.
const ANY: &str = "*";

/// Origins that are taken beside the port's own, as in `https://dash.example.org`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Origins(pub Arc<Vec<String>>);

/// Whose page asks.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Asker {
    /// Of this port, or no page.
    Own,
    Listed(HeaderValue),
    Other(String),
}

impl Origins {
    fn asker(&self, headers: &HeaderMap) -> Asker {
        let Some(origin) = headers.get(ORIGIN) else { return Asker::Own };
        let text = origin.to_str().unwrap_or_default();
        let host = headers.get(HOST).and_then(|h| h.to_str().ok());
        let own = text.split_once("://").map(|(_, host)| host);
        if own.is_some() && own == host {
            Asker::Own
        } else if self.0.iter().any(|o| o == ANY || o.trim_end_matches('/').eq_ignore_ascii_case(text)) {
            Asker::Listed(origin.clone())
        } else {
            Asker::Other(short(text).to_owned())
        }
    }
}

pub(crate) async fn may_ask(State((origins, gateway)): State<(Origins, Arc<Gateway>)>, request: Request, next: Next) -> Response {
    match origins.asker(request.headers()) {
        Asker::Own => next.run(request).await,
        Asker::Listed(origin) => {
            let mut response = next.run(request).await;
            response.headers_mut().insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            response.headers_mut().append(VARY, HeaderValue::from_static("origin"));
            response
        }
        // Its browser lets it read no answer, so only what goes on is refused.
        Asker::Other(_) if !request.headers().contains_key(UPGRADE) && request.uri().path() != "/events" => next.run(request).await,
        Asker::Other(origin) => {
            gateway.totals.add(Total::Origin, 1);
            if let Some(more) = gateway.foreign_origins.happened() {
                let address = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|from| from.0.to_string());
                let path = request.uri().path();
                tracing::info!(
                    origin,
                    address,
                    path,
                    more,
                    "refused: a page of another origin; those that may come stand in listen.origins"
                );
                gateway.events.refused_origin(&gateway, &origin, address, more);
            }
            let words = "a page of another origin may not speak to this port; those that may stand in listen.origins\n";
            (StatusCode::FORBIDDEN, words).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_our_own_listed_or_of_somebody_else() {
        let asker = |origins: &[&str], origin: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static("weir.local:8080"));
            headers.insert(ORIGIN, HeaderValue::from_static(origin));
            Origins(Arc::new(origins.iter().map(|o| (*o).to_owned()).collect())).asker(&headers)
        };
        let listed = |origin| Asker::Listed(HeaderValue::from_static(origin));
        assert_eq!(asker(&[], "http://weir.local:8080"), Asker::Own);
        for other in ["http://weir.local", "http://weir.local:8080.example", "null", "weir.local:8080", "https://dash.example"] {
            assert_eq!(asker(&["https://dash.example.org"], other), Asker::Other(other.into()));
        }
        assert_eq!(asker(&["https://Dash.example.org/"], "https://dash.example.org"), listed("https://dash.example.org"));
        assert_eq!(asker(&["*"], "null"), listed("null"));
        assert_eq!(Origins::default().asker(&HeaderMap::new()), Asker::Own);
    }
}
