//! Which names an HTTP port answers to. A page whose name was bound anew to this address (DNS rebinding)
//! is of the same origin as what it finds there: only the name tells it from ours.
//!
//! Invariant: a request for a name that can be owned on the internet is refused, unless it is configured.
//! Must not know: what is asked.

use axum::{
    extract::{Request, State},
    http::{StatusCode, header::HOST},
    middleware::Next,
    response::{IntoResponse, Response},
};
use std::{net::IpAddr, sync::Arc};

/// Names that are accepted too: of a proxy in front.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hosts(pub Arc<Vec<String>>);

/// Names that the internet does not have: RFC 6761, 6762, 8375, and what ICANN keeps for private use.
const LOCAL: [&str; 4] = [".localhost", ".local", ".home.arpa", ".internal"];

/// Without its port.
pub(crate) fn name(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(v6) => v6.split_once(']').map_or(v6, |(v6, _)| v6),
        None => host.split_once(':').map_or(host, |(name, _)| name),
    }
}

impl Hosts {
    fn accept(&self, host: &str) -> bool {
        let name = name(host).trim_end_matches('.').to_ascii_lowercase();
        // An address is nobody's name, and a name without a dot is that of a machine nearby.
        (!name.is_empty() && !name.contains('.'))
            || LOCAL.iter().any(|end| name.ends_with(end))
            || name.parse::<IpAddr>().is_ok()
            || self.0.iter().any(|h| h.eq_ignore_ascii_case(&name))
    }
}

pub(crate) async fn ours(State(hosts): State<Hosts>, request: Request, next: Next) -> Response {
    let asked = request.headers().get(HOST).map(|host| host.to_str().is_ok_and(|host| hosts.accept(host)));
    // Who names none is no browser.
    if asked == Some(false) {
        let words = "this port answers to addresses, names without a dot, and names of the local network; others, as of a proxy in front, stand in listen.hosts\n";
        return (StatusCode::MISDIRECTED_REQUEST, words).into_response();
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_machine_are_told_from_others() {
        let hosts = Hosts(Arc::new(vec!["weir.example".into()]));
        for ours in [
            "localhost",
            "LOCALHOST:8080",
            "a.localhost",
            "127.0.0.1",
            "127.0.0.1:80",
            "[::1]:8080",
            "[::1]",
            "10.1.2.3:1",
            "Weir.Example:443",
            "localhost.",
            "weir:9464",
            "plant-7.local",
            "weir.internal",
        ] {
            assert!(hosts.accept(ours), "{ours}");
        }
        for other in ["rebound.example.org:8080", "localhost.example", "weir.example.org", "", ".", "127.0.0.1.example", "x.notlocal"] {
            assert!(!hosts.accept(other), "{other}");
        }
    }
}
