//! Which names a listener on loopback answers to. A page whose name was bound anew to this address (DNS rebinding) is of the same origin as what it finds there: only the name tells it
//! from ours.
//!
//! Invariant: on loopback nobody is served who asks for a name that is not of this machine, unless it is configured. Elsewhere names are whatever the network says.
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

/// Without its port.
fn name(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(v6) => v6.split_once(']').map_or(v6, |(v6, _)| v6),
        None => host.split_once(':').map_or(host, |(name, _)| name),
    }
}

impl Hosts {
    fn accept(&self, host: &str) -> bool {
        let name = name(host).trim_end_matches('.').to_ascii_lowercase();
        // An address is nobody's name.
        name == "localhost"
            || name.ends_with(".localhost")
            || name.parse::<IpAddr>().is_ok()
            || self.0.iter().any(|h| h.eq_ignore_ascii_case(&name))
    }
}

pub(crate) async fn ours(State(hosts): State<Hosts>, request: Request, next: Next) -> Response {
    let asked = request.headers().get(HOST).map(|host| host.to_str().is_ok_and(|host| hosts.accept(host)));
    // Who names none is no browser.
    if asked == Some(false) {
        let words = "this port listens on loopback and answers to localhost and addresses only; other names, as of a proxy in front, stand in listen.hosts\n";
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
        ] {
            assert!(hosts.accept(ours), "{ours}");
        }
        for other in ["rebound.example.org:8080", "localhost.example", "weir.example.org", "", "127.0.0.1.example", "xlocalhost"] {
            assert!(!hosts.accept(other), "{other}");
        }
    }
}
