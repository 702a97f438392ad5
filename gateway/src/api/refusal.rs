//! What is wrong with a request, as JSON: `{"error": "…"}`, whoever found it.
//!
//! Invariant: a parameter that nothing reads is an error, for a filter that is spelled wrong would answer with
//! everything.
//! Must not know: what is asked.

use super::Api;
use axum::{
    Json,
    body::to_bytes,
    extract::{MatchedPath, Request},
    http::{
        Method, StatusCode,
        header::{CONTENT_LENGTH, CONTENT_TYPE},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde_json::json;
use std::{
    collections::{BTreeSet, HashMap},
    sync::LazyLock,
};
use utoipa::{
    OpenApi,
    openapi::path::{Operation, ParameterIn, PathItem},
};

/// Words are short.
const WORDS_BYTES_MAX: usize = 64 * 1024;

/// Query parameters by method and path, as the document has them.
static KNOWN: LazyLock<HashMap<(Method, String), BTreeSet<String>>> = LazyLock::new(|| {
    let of = |operation: Operation| {
        let all = operation.parameters.unwrap_or_default().into_iter();
        all.filter(|p| matches!(p.parameter_in, ParameterIn::Query)).map(|p| p.name).collect()
    };
    let each = |(path, item): (String, PathItem)| {
        let all = [(Method::GET, item.get), (Method::PUT, item.put), (Method::POST, item.post), (Method::DELETE, item.delete)];
        all.into_iter().filter_map(move |(method, operation)| Some(((method, path.clone()), of(operation?))))
    };
    Api::openapi().paths.paths.into_iter().flat_map(each).collect()
});

fn unknown(request: &Request) -> Option<String> {
    // What a browser asks before is about the request that it wants to make.
    let query = request.uri().query().filter(|_| request.method() != Method::OPTIONS)?;
    let matched = request.extensions().get::<MatchedPath>();
    let path = matched.map_or(request.uri().path(), MatchedPath::as_str);
    // HEAD is answered as GET (RFC 9110, 9.3.2).
    let method = if request.method() == Method::HEAD { Method::GET } else { request.method().clone() };
    let known: Vec<&str> = KNOWN.get(&(method, path.to_owned())).into_iter().flatten().map(String::as_str).collect();
    let names = query.split('&').filter_map(|pair| pair.split('=').next());
    let name = names.filter(|name| !name.is_empty()).find(|name| !known.contains(name))?;
    let there_are = if known.is_empty() { "it has none".into() } else { format!("there are {}", known.join(", ")) };
    Some(format!("{}: no parameter {name}; {there_are}", request.uri().path()))
}

pub(super) async fn in_json(request: Request, next: Next) -> Response {
    if let Some(words) = unknown(&request) {
        return (StatusCode::BAD_REQUEST, Json(json!({ "error": words }))).into_response();
    }
    let response = next.run(request).await;
    let is_text = response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/plain"));
    if !is_text || response.status().is_success() {
        return response;
    }
    let (mut head, body) = response.into_parts();
    let words = to_bytes(body, WORDS_BYTES_MAX).await.unwrap_or_default();
    head.headers.remove(CONTENT_TYPE);
    head.headers.remove(CONTENT_LENGTH);
    (head, Json(json!({ "error": String::from_utf8_lossy(&words).trim_end() }))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    #[test]
    fn a_parameter_that_nothing_reads_is_named() {
        let by = |method: &str, uri: &str| unknown(&Request::builder().method(method).uri(uri).body(Body::empty()).expect("a request"));
        let asked = |uri: &str| by("GET", uri);
        for good in ["/api/v1/topics", "/api/v1/topics?filter=a%2F%23&limit=3", "/api/v1/streams?", "/api/v1/sessions?topic=a&after=b"] {
            assert_eq!(asked(good), None, "{good}");
        }
        let words = asked("/api/v1/topics?filtre=a/b").expect("refused");
        assert!(words.contains("no parameter filtre") && words.contains("at, filter"), "{words}");
        // What lists in parts is cleared as a whole.
        assert_eq!(by("DELETE", "/api/v1/retained?filter=a"), None);
        assert_eq!(by("HEAD", "/api/v1/retained?filter=a&limit=1"), None);
        assert!(by("DELETE", "/api/v1/retained?filter=a&limit=1").is_some_and(|words| words.ends_with("there are filter")));
        assert!(asked("/api/v1/clients?limit=1").is_some_and(|words| words.ends_with("it has none")));
    }
}
