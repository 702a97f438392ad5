//! `-L mqtt[s]://[USER[:PASSWORD]@]HOST[:PORT]/TOPIC`.

use std::str::FromStr;

/// Where, as whom, and what about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    pub tls: bool,
    pub username: Option<String>,
    pub password: Option<String>,
    pub host: String,
    pub port: Option<u16>,
    pub topic: String,
}

const SHAPE: &str = "mqtt://[USER[:PASSWORD]@]HOST[:PORT]/TOPIC, or mqtts:// for TLS";

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = || SHAPE.to_owned();
        let (scheme, rest) = text.split_once("://").ok_or_else(shape)?;
        let tls = match scheme {
            "mqtt" => false,
            "mqtts" => true,
            _ => return Err(shape()),
        };
        let (authority, topic) = rest.split_once('/').filter(|(_, topic)| !topic.is_empty()).ok_or_else(shape)?;
        let (user, place) = authority.rsplit_once('@').map_or((None, authority), |(user, place)| (Some(user), place));
        let (username, password) = match user.map(|user| user.split_once(':').map_or((user, None), |(u, p)| (u, Some(p)))) {
            Some((username, password)) => (Some(username.to_owned()), password.map(str::to_owned)),
            None => (None, None),
        };
        let (host, port) = host_and_port(place).ok_or_else(shape)?;
        Ok(Self { tls, username, password, host, port, topic: topic.into() })
    }
}

fn host_and_port(place: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match place.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, rest)) => (address, rest.strip_prefix(':').or(rest.is_empty().then_some(""))?),
        None => place.split_once(':').unwrap_or((place, "")),
    };
    let port = if port.is_empty() { None } else { Some(port.parse().ok()?) };
    (!host.is_empty()).then(|| (host.into(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_has_all_its_parts_or_none_but_host_and_topic() {
        let parse = |text: &str| text.parse::<Url>().expect(text);
        let all = parse("mqtts://u:p@w@[::1]:99/a/b/#");
        assert_eq!((all.tls, &*all.host, all.port, &*all.topic), (true, "::1", Some(99), "a/b/#"));
        assert_eq!((all.username.as_deref(), all.password.as_deref()), (Some("u"), Some("p@w")));
        let few = parse("mqtt://broker//a");
        assert_eq!((few.tls, &*few.host, few.port, &*few.topic, few.username), (false, "broker", None, "/a", None));
        for bad in ["broker/a", "http://b/a", "mqtt://b", "mqtt://b/", "mqtt:///a", "mqtt://b:x/a", "mqtt://b:70000/a"] {
            assert!(bad.parse::<Url>().is_err_and(|e| e == SHAPE), "{bad}");
        }
    }
}
