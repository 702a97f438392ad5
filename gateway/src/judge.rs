//! What is wrong with a configuration: every key that is, each with its place, what it may be, and an example.
//!
//! Invariant: what starts a gateway passes here, and what passes here starts one, as far as that can be known before.
//! Must not know: what the settings do, or how they are laid over each other.

use figment::{
    Figment, Metadata,
    error::Kind,
    value::{Dict, Value},
};
use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpListener},
    path::Path,
};
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// The file, or the name of what says it.
pub(crate) fn source(metadata: &Metadata) -> String {
    let file = metadata.source.as_ref().and_then(|s| s.file_path());
    file.map_or_else(|| metadata.name.to_string(), |path| path.display().to_string())
}

/// `SECTION.KEY: words`, with the place that sets the key in front.
pub(crate) fn placed(layers: &Figment, words: String) -> String {
    let key = words.split(':').next().unwrap_or_default();
    match place(layers.find_metadata(key), key) {
        place if place.is_empty() => words,
        place => format!("{place}: {words}"),
    }
}

/// Where something is said: a file and a line of it, or a name.
pub(crate) fn place(metadata: Option<&Metadata>, key: &str) -> String {
    let Some(metadata) = metadata else { return String::new() };
    let file = metadata.source.as_ref().and_then(|s| s.file_path());
    let line = file.and_then(|path| line_of(&std::fs::read_to_string(path).ok()?, key));
    line.map_or_else(|| source(metadata), |line| format!("{}:{line}", source(metadata)))
}

/// The line of a TOML file that sets `section.key`, or begins `section`.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let (wanted, name) = key.split_once('.').unwrap_or((key, ""));
    let mut section = "";
    for (n, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(begun) = line.strip_prefix('[') {
            section = begun.split(']').next().unwrap_or_default().trim();
            if name.is_empty() && section == wanted {
                return Some(n + 1);
            }
        }
        let set = line.split('=').next().unwrap_or_default().trim().trim_matches('"');
        let inline = section.is_empty() && set == wanted && line.split_once('=').is_some_and(|(_, v)| v.trim().starts_with('{'));
        if !name.is_empty() && (section == wanted && set == name || section.is_empty() && set == key || inline) {
            return Some(n + 1);
        }
    }
    None
}

/// Keys of `said` that `known` has not, in words.
pub(crate) fn unknown(layers: &Figment, said: &Dict, known: &Dict) -> Vec<String> {
    let mut wrong = Vec::new();
    for (section, values) in said {
        let at = |key: &str| place(layers.find_metadata(key), key);
        let Some(Value::Dict(_, there)) = known.get(section) else {
            wrong.push(format!("{}: no key {section}; {}", at(section), nearest(section, "", known.keys())));
            continue;
        };
        let Value::Dict(_, values) = values else {
            wrong.push(format!("{}: {section}: a section, as in [{section}]", at(section)));
            continue;
        };
        for key in values.keys().filter(|key| !there.contains_key(*key)) {
            let full = format!("{section}.{key}");
            wrong.push(format!("{}: no key {full}; {}", at(&full), nearest(key, section, there.keys())));
        }
    }
    wrong
}

fn nearest<'a>(name: &str, section: &str, known: impl Iterator<Item = &'a String> + Clone) -> String {
    let full = |key: &str| if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
    let near = known.clone().map(|k| (strsim::jaro_winkler(k, name), k)).max_by(|a, b| a.0.total_cmp(&b.0));
    match near {
        Some((likeness, key)) if likeness > 0.75 => format!("did you mean {}?", full(key)),
        _ => format!("there are {}", known.map(|k| full(k)).collect::<Vec<_>>().join(", ")),
    }
}

/// Why a key does not take a value. `default`: what it is without one.
pub(crate) fn words(kind: &Kind, default: &Value) -> String {
    let example = match default {
        Value::String(_, text) => format!("{text:?}"),
        Value::Num(_, n) => n.to_u128().map_or_else(String::new, |n| n.to_string()),
        Value::Bool(..) => "true or false".into(),
        Value::Array(..) => "[\"name\"]".into(),
        _ => String::new(),
    };
    match kind {
        Kind::UnknownVariant(name, there_are) => format!("{name} is none of {}", there_are.join(", ")),
        Kind::Message(words) if words.contains("socket address") => format!("not an address and a port; as in {example}"),
        // Ours, which say what there may be.
        Kind::Message(words) if !words.contains("untagged") => words.clone(),
        Kind::InvalidType(actual, _) | Kind::InvalidValue(actual, _) => {
            // As in `signed int `-1``, whose first words are of Rust.
            let said = actual.to_string();
            let said = said.split_once(' ').map_or(&*said, |(kind, value)| if kind == "string" { value } else { &*said });
            let said = said.split_once('`').map_or(said, |(_, value)| value.trim_end_matches('`'));
            format!("not {said}; as in {example}")
        }
        _ => format!("not a value of its kind; as in {example}"),
    }
}

/// What lines of Weir's own come from.
const CRATES: [&str; 4] = ["weir", "weir_log", "weir_core", "weir_bridge"];

/// Levels of log lines. A module without a level would silence all others.
pub fn levels(text: &str) -> Result<EnvFilter, String> {
    let hint = "as in info, or info,weir_log=debug; there are error, warn, info, debug, trace, off";
    let wrong = |part: &str| format!("{part}: not a level; {hint}");
    // A name with a slip would silence nothing and show nothing.
    let is_alien = |name: &str| name.starts_with("weir") && !CRATES.contains(&name.split("::").next().unwrap_or(name));
    let parts: Vec<_> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    let mut has_one = false;
    for part in &parts {
        let (name, level) = part.rsplit_once('=').unwrap_or(("", part));
        if is_alien(name) {
            return Err(format!("{part}: no module of Weir has this name; there are {}; {hint}", CRATES.join(", ")));
        }
        level.parse::<LevelFilter>().map_err(|_| wrong(part))?;
        has_one |= !part.contains('=');
    }
    if !has_one {
        return Err(format!("{text}: no level for all other modules; {hint}"));
    }
    EnvFilter::try_new(parts.join(",")).map_err(|e| format!("{text}: {e}; {hint}"))
}

/// Addresses that cannot be listened on, or may not.
pub(crate) fn addresses(all: [(&str, SocketAddr); 3], allow_anonymous: bool) -> Vec<String> {
    let (mut wrong, mut taken) = (Vec::new(), Vec::new());
    for (key, address) in all {
        if !address.ip().is_loopback() && !allow_anonymous {
            wrong.push(format!(
                "listen.{key}: {address} can be reached from elsewhere, and anybody would be admitted: listen on 127.0.0.1 or [::1], or say \
                 listen.allow_anonymous = true (--allow-anonymous)"
            ));
        }
        if taken.iter().any(|other| is_same(*other, address)) {
            wrong.push(format!("listen.{key}: {address} is that of another listener too; each needs a port of its own"));
        }
        taken.push(address);
        wrong.extend(cannot_listen(address).map(|why| format!("listen.{key}: {address}: {why}")));
    }
    wrong
}

/// Would both be asked for at once? All addresses of version 6 are those of version 4 too.
fn is_same(a: SocketAddr, b: SocketAddr) -> bool {
    let covers = |a: SocketAddr, b: SocketAddr| a.ip().is_unspecified() && (a.is_ipv6() || b.is_ipv4());
    a.port() == b.port() && a.port() != 0 && (a.ip() == b.ip() || covers(a, b) || covers(b, a))
}

/// Why nobody may listen there, whether or not somebody does.
fn cannot_listen(address: SocketAddr) -> Option<&'static str> {
    let refused = |port| TcpListener::bind((address.ip(), port)).err().map(|e| e.kind());
    match refused(0) {
        Some(ErrorKind::AddrNotAvailable) => return Some("no address of this machine; `ip address` lists them"),
        Some(_) => return None,
        None => {}
    }
    let is_privileged = (1..1_024).contains(&address.port()) && refused(address.port()) == Some(ErrorKind::PermissionDenied);
    is_privileged.then_some("listening below port 1024 needs root or CAP_NET_BIND_SERVICE")
}

/// Names of pages and hosts that nothing could ever match.
pub(crate) fn names(origins: &[String], hosts: &[String]) -> Vec<String> {
    let is_origin = |o: &String| {
        o == "*" || o.split_once("://").is_some_and(|(scheme, host)| !scheme.is_empty() && !host.trim_end_matches('/').contains('/'))
    };
    let is_host = |h: &String| !h.is_empty() && !h.contains(['/', ':', ' ']);
    let origins = origins.iter().filter(|o| !is_origin(o));
    let origins =
        origins.map(|o| format!("listen.origins: {o} is no origin, which has a scheme and no path; as in https://dash.example.org"));
    let hosts = hosts.iter().filter(|h| !is_host(h));
    origins
        .chain(hosts.map(|h| format!("listen.hosts: {h} is no name of a host, without scheme and port; as in weir.example.org")))
        .collect()
}

/// proc and sysfs, in statfs(2).
const NO_FILES: [rustix::fs::FsWord; 2] = [0x9FA0, 0x6265_6572];

/// Why no data directory can be here, as far as that shows without making one.
pub(crate) fn directory(path: &Path) -> Option<String> {
    if path.as_os_str().is_empty() {
        return Some("log.data: empty; name the data directory (--data)".into());
    }
    let there = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("."));
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    let what = |why: &str| Some(format!("log.data: {} cannot be the data directory: {why}; name another (--data)", path.display()));
    if !there.is_dir() {
        return what(&format!("{} is no directory", there.display()));
    }
    // One that is there may belong to the user of the service.
    if there == path {
        return None;
    }
    if rustix::fs::statfs(there).is_ok_and(|fs| NO_FILES.contains(&fs.f_type)) {
        return what(&format!("{} is the kernel's, and takes no files", there.display()));
    }
    match rustix::fs::access(there, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK) {
        Ok(()) => None,
        Err(e) => what(&format!("{} cannot be written to: {}", there.display(), std::io::Error::from(e))),
    }
}

/// Variables that look like keys and are none: with one underscore where there are two.
pub(crate) fn variables(names: impl Iterator<Item = String>, known: &Dict) -> Vec<String> {
    let keys = known.iter().flat_map(|(section, values)| values.as_dict().into_iter().flatten().map(move |(key, _)| (section, key)));
    let keys: Vec<_> = keys.map(|(section, key)| [section, key].map(|word| word.to_uppercase())).collect();
    let flat = |name: &str| name.trim_start_matches("WEIR").trim_start_matches('_').replace("__", "_");
    let meant = |name: &str| keys.iter().find(|[section, key]| flat(name) == format!("{section}_{key}"));
    let is_read = |name: &str| meant(name).is_some_and(|[section, key]| name == format!("WEIR__{section}__{key}"));
    let words = |name: String| match meant(&name) {
        Some([section, key]) if !is_read(&name) => Some(format!("environment: nothing reads {name}; did you mean WEIR__{section}__{key}?")),
        None if !name.starts_with("WEIR__") && name.contains("__") => {
            Some(format!("environment: nothing reads {name}; did you mean WEIR_{}?", &name[4..]))
        }
        _ => None,
    };
    names.filter(|name| name.starts_with("WEIR_")).filter_map(words).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_that_of_its_section() {
        let text = "# mqtt\n[log]\nmqtt = 1\n\n[ listen ] # ports\n mqtt=\"x\"\n\"http\" = 2\n";
        assert_eq!(
            ["listen.mqtt", "log.mqtt", "listen.http", "listen", "listen.admin"].map(|k| line_of(text, k)),
            [Some(6), Some(3), Some(7), Some(5), None]
        );
    }

    #[test]
    fn a_level_is_one_and_not_the_name_of_a_module() {
        for good in ["info", "off", "warn,weir_log=debug", " debug , weir=trace", "info,weir::driver=debug,hyper=warn"] {
            assert!(levels(good).is_ok(), "{good}");
        }
        for bad in ["loud", "", "weir_log=debug", "info,weir_log", "info,weir_log=loud", "a=b=c", "info,weir_lgo=debug"] {
            assert!(levels(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn one_address_is_not_for_two_and_none_is_open_unsaid() {
        let at = |a: &str| a.parse().expect("an address");
        let wrong = addresses([("mqtt", at("0.0.0.0:1883")), ("http", at("127.0.0.1:1")), ("admin", at("127.0.0.1:1"))], false);
        assert!(wrong.len() == 2 && wrong[0].contains("listen.mqtt: 0.0.0.0:1883") && wrong[1].contains("listen.admin"), "{wrong:?}");
        assert!(addresses([("mqtt", at("[::]:1")), ("http", at("127.0.0.1:0")), ("admin", at("127.0.0.1:0"))], true).is_empty());
    }
}
