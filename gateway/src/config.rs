//! What can be set, and where it is set: command line before environment before file before default.
//!
//! Invariant: a key that nothing reads is an error that names the nearest one that something reads; `weir.toml` in the root says the defaults.
//! Must not know: what the settings do.

use crate::{ClientLimits, FleetLimits, Limits, Options, Retention, api::process::SettingInfo, judge};
use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use figment::{
    Figment, Metadata, Profile, Provider,
    error::Result as FigmentResult,
    providers::{Env, Format, Serialized, Toml},
    value::{Dict, Map, Value},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{borrow::Cow, fmt, net::SocketAddr, path::PathBuf, str::FromStr, sync::Arc, time::Duration};
use tracing_subscriber::EnvFilter;
use weir_core::{limits::Overlapping, session::INFLIGHT_MAX};
use weir_log::Durability;

/// Bytes, as in `8GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(u64);

/// As in `7days`, or `forever`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Age(Option<Duration>);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<ByteSize>().map(|size| Self(size.as_u64())).map_err(|_| format!("{text}: not a size; as in 8GiB, 500MB or 0"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (n, unit) = [("GiB", 30), ("MiB", 20), ("KiB", 10)]
            .iter()
            .find(|(_, bits)| self.0 > 0 && self.0.trailing_zeros() >= *bits)
            .map_or((self.0, ""), |(unit, bits)| (self.0 >> bits, *unit));
        write!(f, "{n}{unit}")
    }
}

impl FromStr for Age {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "forever" {
            return Ok(Self(None));
        }
        humantime::parse_duration(text).map(|age| Self(Some(age))).map_err(|_| format!("{text}: not a time; as in 7days, 12h or forever"))
    }
}

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("forever"),
            Some(age) => humantime::format_duration(age).fmt(f),
        }
    }
}

macro_rules! as_text {
    ($($name:ident)*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                // A number without a unit is one too.
                #[derive(Deserialize)]
                #[serde(untagged)]
                enum Text {
                    Number(u64),
                    Text(String),
                }
                let text = match Text::deserialize(d)? {
                    Text::Number(n) => n.to_string(),
                    Text::Text(text) => text,
                };
                text.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

as_text!(Size Age);

/// `weir_log::Durability`, as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Durable {
    /// An acknowledged message outlives a power cut.
    Disk,
    /// It outlives the process; a power cut may take the newest.
    Os,
}

impl From<Durable> for Durability {
    fn from(d: Durable) -> Self {
        match d {
            Durable::Disk => Self::Disk,
            Durable::Os => Self::Os,
        }
    }
}

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// An object a line.
    Json,
}

/// `weir_core::limits::Overlapping`, as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Overlap {
    Copies,
    Merge,
}

impl From<Overlap> for Overlapping {
    fn from(overlap: Overlap) -> Self {
        match overlap {
            Overlap::Copies => Self::Copies,
            Overlap::Merge => Self::Merge,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listen {
    mqtt: SocketAddr,
    http: SocketAddr,
    admin: SocketAddr,
    hosts: Vec<String>,
    origins: Vec<String>,
    allow_anonymous: bool,
    overlapping: Overlap,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Log {
    data: PathBuf,
    durability: Durable,
    retention_bytes: Size,
    retention_age: Age,
    retention_min_age: Age,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Groups {
    max_deliveries: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Events {
    retention_age: Age,
    sys_interval: Age,
}

/// A number with a least and a greatest value: what lies outside is an error that says both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
struct Within<const MIN: u64, const MAX: u64>(u64);

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Within<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let n = u64::deserialize(d)?;
        if (MIN..=MAX).contains(&n) { Ok(Self(n)) } else { Err(de::Error::custom(format!("{n} is not between {MIN} and {MAX}"))) }
    }
}

/// The same of a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
struct SizeWithin<const MIN: u64, const MAX: u64>(Size);

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for SizeWithin<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let size = Size::deserialize(d)?;
        let is_within = (MIN..=MAX).contains(&size.0);
        let error = || de::Error::custom(format!("{size} is not between {} and {}", Size(MIN), Size(MAX)));
        if is_within { Ok(Self(size)) } else { Err(error()) }
    }
}

/// A session's value is put in one piece, and read whenever its client comes: with its will it stays far below a segment.
const WILL_BYTES_MAX: u64 = 256 << 10;
const SESSION_BYTES_MAX: u64 = 8 << 20;
const FILTERS_MAX: u64 = 1_000_000;
/// What the gateway itself keeps there must have room.
const STORE_BYTES_MIN: u64 = 1 << 20;
/// Two of the longest packets; and what a machine may have.
const ACCOUNT_BYTES_MIN: u64 = 16 << 20;
const ACCOUNT_BYTES_MAX: u64 = 64 << 30;

/// The log's keys hold names with a prefix in front.
const NAME_BYTES_MAX: u64 = weir_core::session::KEY_BYTES_MAX as u64;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Clients {
    client_id_bytes: Within<23, NAME_BYTES_MAX>,
    topic_bytes: Within<1, NAME_BYTES_MAX>,
    topic_levels: Within<1, 1_024>,
    will_bytes: SizeWithin<0, WILL_BYTES_MAX>,
    user_properties: u32,
    user_properties_bytes: Size,
    subscriptions: Within<0, FILTERS_MAX>,
    shared_subscriptions: Within<0, FILTERS_MAX>,
    session_bytes: SizeWithin<0, SESSION_BYTES_MAX>,
    keep_alive: Age,
    session_expiry: Age,
    sessions: u64,
    store_bytes: SizeWithin<STORE_BYTES_MIN, { u64::MAX }>,
    groups: Within<0, FILTERS_MAX>,
    retained: u64,
    retained_bytes: Size,
    inbound_bytes: SizeWithin<ACCOUNT_BYTES_MIN, ACCOUNT_BYTES_MAX>,
    outbound_bytes: SizeWithin<ACCOUNT_BYTES_MIN, ACCOUNT_BYTES_MAX>,
    connections_per_address: u32,
    connects_per_address: u32,
    publish_messages: u32,
    publish_bytes: Size,
    in_flight_311: Within<1, { INFLIGHT_MAX as u64 }>,
}

impl Default for Clients {
    fn default() -> Self {
        let (l, fleet) = (ClientLimits::default(), FleetLimits::default());
        let seconds = |s: u64| Age(Some(Duration::from_secs(s)));
        Self {
            client_id_bytes: Within(l.client_id_bytes as u64),
            topic_bytes: Within(l.topic_bytes as u64),
            topic_levels: Within(l.topic_levels as u64),
            will_bytes: SizeWithin(Size(l.will_bytes as u64)),
            user_properties: l.user_properties as u32,
            user_properties_bytes: Size(l.user_properties_bytes as u64),
            subscriptions: Within(l.subscriptions as u64),
            shared_subscriptions: Within(l.shared_subscriptions as u64),
            session_bytes: SizeWithin(Size(l.session_bytes as u64)),
            keep_alive: seconds(l.keep_alive_s.into()),
            session_expiry: seconds(l.session_expiry_s.into()),
            sessions: fleet.sessions,
            store_bytes: SizeWithin(Size(fleet.store_bytes)),
            groups: Within(fleet.groups as u64),
            retained: fleet.retained,
            retained_bytes: Size(fleet.retained_bytes),
            inbound_bytes: SizeWithin(Size(fleet.inbound_bytes as u64)),
            outbound_bytes: SizeWithin(Size(fleet.outbound_bytes as u64)),
            connections_per_address: fleet.connections_per_address,
            connects_per_address: fleet.connects_per_address,
            publish_messages: l.publish_messages,
            publish_bytes: Size(l.publish_bytes),
            in_flight_311: Within(l.in_flight_311.into()),
        }
    }
}

impl From<&Clients> for FleetLimits {
    fn from(c: &Clients) -> Self {
        Self {
            sessions: c.sessions,
            store_bytes: c.store_bytes.0.0,
            groups: c.groups.0 as usize,
            retained: c.retained,
            retained_bytes: c.retained_bytes.0,
            inbound_bytes: c.inbound_bytes.0.0 as usize,
            outbound_bytes: c.outbound_bytes.0.0 as usize,
            connections_per_address: c.connections_per_address,
            connects_per_address: c.connects_per_address,
        }
    }
}

impl From<&Clients> for ClientLimits {
    fn from(c: &Clients) -> Self {
        Self {
            client_id_bytes: c.client_id_bytes.0 as usize,
            topic_bytes: c.topic_bytes.0 as usize,
            topic_levels: c.topic_levels.0 as usize,
            will_bytes: c.will_bytes.0.0 as usize,
            user_properties: c.user_properties as usize,
            user_properties_bytes: c.user_properties_bytes.0 as usize,
            subscriptions: c.subscriptions.0 as usize,
            shared_subscriptions: c.shared_subscriptions.0 as usize,
            session_bytes: c.session_bytes.0.0 as usize,
            keep_alive_s: c.keep_alive.0.map_or(0, |age| age.as_secs().clamp(1, u16::MAX.into()) as u16),
            session_expiry_s: c.session_expiry.0.map_or(u32::MAX, |age| age.as_secs().clamp(1, u32::MAX.into()) as u32),
            publish_messages: c.publish_messages,
            publish_bytes: c.publish_bytes.0,
            in_flight_311: c.in_flight_311.0 as u16,
            overlapping: Overlapping::default(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Diagnostics {
    log_level: String,
    log_format: LogFormat,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    listen: Listen,
    log: Log,
    groups: Groups,
    events: Events,
    limits: Clients,
    diagnostics: Diagnostics,
}

impl Default for Config {
    fn default() -> Self {
        let days = |n: u64| Age(Some(Duration::from_secs(n * 86_400)));
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            listen: Listen {
                mqtt: loopback(1883),
                http: loopback(8080),
                admin: loopback(9464),
                hosts: Vec::new(),
                origins: Vec::new(),
                allow_anonymous: false,
                overlapping: Overlap::Copies,
            },
            log: Log {
                data: "weir-data".into(),
                durability: Durable::Disk,
                retention_bytes: Size(8 << 30),
                retention_age: Age(None),
                retention_min_age: Age(Some(Duration::ZERO)),
            },
            groups: Groups { max_deliveries: 20 },
            events: Events { retention_age: days(7), sys_interval: Age(Some(Duration::from_secs(10))) },
            limits: Clients::default(),
            diagnostics: Diagnostics { log_level: "info".into(), log_format: LogFormat::Text },
        }
    }
}

impl Config {
    /// What each key alone may be, and both together cannot mean.
    fn wrong(&self) -> Vec<String> {
        let (will, session) = (self.limits.will_bytes.0, self.limits.session_bytes.0);
        let Log { retention_bytes, retention_age, retention_min_age, .. } = &self.log;
        let min_age = retention_min_age.0.unwrap_or(Duration::MAX);
        let wrong = [
            (will.0 >= session.0).then(|| {
                format!("limits.session_bytes: {session} has no room for filters beside a will (limits.will_bytes, {will}); raise it, or lower that")
            }),
            (!min_age.is_zero() && retention_bytes.0 == 0)
                .then(|| "log.retention_min_age: it keeps what log.retention_bytes would take, and that is 0; set both, or neither".into()),
            retention_age.0.filter(|age| *age < min_age).map(|_| {
                format!(
                    "log.retention_min_age: {retention_min_age} is longer than log.retention_age ({retention_age}), which takes what is older whoever has not read it; lower it, or raise that"
                )
            }),
        ];
        let Listen { mqtt, http, admin, allow_anonymous, .. } = self.listen;
        let addresses = judge::addresses([("mqtt", mqtt), ("http", http), ("admin", admin)], allow_anonymous);
        let often = self.events.sys_interval.0.filter(|every| !every.is_zero() && *every < SYS_INTERVAL_MIN);
        let often = often.map(|_| {
            format!(
                "events.sys_interval: {} is less than a second, and each is a sync; 1s at least, or 0s: never",
                self.events.sys_interval
            )
        });
        let level = judge::levels(&self.diagnostics.log_level).err().map(|words| format!("diagnostics.log_level: {words}"));
        let more = [level, often, judge::directory(&self.log.data)];
        let names = judge::names(&self.listen.origins, &self.listen.hosts);
        wrong.into_iter().chain(more).flatten().chain(addresses).chain(names).collect()
    }
}

/// The same on the command line. Without a flag the next place says it.
#[derive(Args, Clone, Debug, Default)]
pub struct Flags {
    /// Configuration file; `weir.toml` in the source tree has every key, with its default and what it means.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// MQTT over TCP, 3.1.1 and 5 [default: 127.0.0.1:1883].
    #[arg(long, value_name = "ADDR:PORT")]
    mqtt: Option<SocketAddr>,
    /// The page `/`, its feed `/ws`, and MQTT over websocket `/mqtt` [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDR:PORT")]
    http: Option<SocketAddr>,
    /// `/metrics`, `/healthz`, `/readyz` and the admin API `/api/v1` [default: 127.0.0.1:9464].
    #[arg(long, value_name = "ADDR:PORT")]
    admin: Option<SocketAddr>,
    /// The data directory; created if it is missing [default: weir-data].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// What an acknowledged message outlives: `disk` waits for the disk and outlives a power cut; `os` waits for the operating system only, so a power cut may take the newest
    /// [default: disk].
    #[arg(long, value_name = "WHAT")]
    durability: Option<Durable>,
    /// Keep this much of the log; what is older goes, 64 MiB at a time. `0`: keep everything until the disk is full [default: 8GiB].
    #[arg(long, value_name = "SIZE")]
    retention_bytes: Option<Size>,
    /// Keep nothing that is older than this, as in `7days` or `12h` [default: forever].
    #[arg(long, value_name = "TIME")]
    retention_age: Option<Age>,
    /// `--retention-bytes` does not take what is younger than this and some stored session or group has not read: publishers wait [default: 0s].
    #[arg(long, value_name = "TIME")]
    retention_min_age: Option<Age>,
    /// Deliveries of a message of a shared subscription that end without an acknowledgement, before it goes to `$dead/GROUP/TOPIC`. `0`: it is
    /// delivered for ever [default: 20].
    #[arg(long, value_name = "N")]
    max_deliveries: Option<u32>,
    /// What a line of the log is, on standard error: `text` or `json` [default: text].
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// Admit anybody on addresses that can be reached from elsewhere.
    #[arg(long)]
    allow_anonymous: bool,
}

/// A provider under a name that people know.
struct Named<P>(Cow<'static, str>, P);

impl<P: Provider> Provider for Named<P> {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.0.clone())
    }

    fn data(&self) -> FigmentResult<Map<Profile, Dict>> {
        self.1.data()
    }
}

const PREFIX: &str = "WEIR__";
/// The log level for short.
const LOG_VARIABLE: &str = "WEIR_LOG";
const DEFAULT: &str = "default";
const COMMAND_LINE: &str = "command line";
const ENVIRONMENT: &str = "environment";

/// `WEIR__LOG__DATA_FILE=PATH`: the value stands in that file, for what is not to be seen in the environment. Gives the variable, the key, the value.
fn from_files() -> Result<Vec<(String, String, Value)>, ConfigError> {
    let named = std::env::vars().filter_map(|(name, path)| {
        let key = name.strip_prefix(PREFIX)?.strip_suffix("_FILE")?.to_lowercase().replace("__", ".");
        Some((name, key, path))
    });
    let read = |(name, key, path): (String, String, String)| {
        let text = std::fs::read_to_string(&path).map_err(|e| ConfigError(vec![format!("{name}: {path}: {e}")]))?;
        let Ok(value) = text.trim_end().parse::<Value>();
        Ok((name, key, value))
    };
    named.map(read).collect()
}

impl Flags {
    /// No data directory was named.
    #[must_use]
    pub fn names_no_data(&self) -> bool {
        self.data.is_none()
    }

    #[must_use]
    pub fn with_data(self, data: PathBuf) -> Self {
        Self { data: Some(data), ..self }
    }

    fn layers(&self) -> Result<Figment, ConfigError> {
        let mut layers = Figment::from(Named(DEFAULT.into(), Serialized::defaults(Config::default())));
        if let Some(file) = &self.config {
            if !file.is_file() {
                let what = match file {
                    file if file.is_dir() => "a directory; name the file in it",
                    file if file.exists() => "not a regular file, and SIGHUP reads it again; save it as one",
                    _ => "there is no such file",
                };
                return Err(ConfigError(vec![format!("{}: {what}", file.display())]));
            }
            layers = layers.merge(Toml::file_exact(file));
        }
        layers = layers.merge(Named(
            ENVIRONMENT.into(),
            Env::prefixed(PREFIX).filter(|key| !key.as_str().to_lowercase().ends_with("_file")).split("__"),
        ));
        if let Some(level) = std::env::var(LOG_VARIABLE).ok().filter(|level| !level.is_empty()) {
            layers = layers.merge(Named(LOG_VARIABLE.into(), Serialized::default("diagnostics.log_level", level)));
        }
        for (name, key, value) in from_files()? {
            layers = layers.merge(Named(name.into(), Serialized::default(&key, value)));
        }
        fn set<T: Serialize>(layers: Figment, key: &str, value: Option<T>) -> Figment {
            match value {
                Some(value) => layers.merge(Named(COMMAND_LINE.into(), Serialized::default(key, value))),
                None => layers,
            }
        }
        layers = set(layers, "listen.mqtt", self.mqtt);
        layers = set(layers, "listen.http", self.http);
        layers = set(layers, "listen.admin", self.admin);
        layers = set(layers, "listen.allow_anonymous", self.allow_anonymous.then_some(true));
        layers = set(layers, "log.data", self.data.as_ref());
        layers = set(layers, "log.durability", self.durability);
        layers = set(layers, "log.retention_bytes", self.retention_bytes);
        layers = set(layers, "log.retention_age", self.retention_age);
        layers = set(layers, "log.retention_min_age", self.retention_min_age);
        layers = set(layers, "diagnostics.log_format", self.log_format);
        Ok(set(layers, "groups.max_deliveries", self.max_deliveries))
    }

    pub fn read(&self) -> Result<Config, ConfigError> {
        let layers = self.layers()?;
        let mut wrong = judge::variables(std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()), &defaults());
        match layers.extract::<Config>() {
            Ok(config) if wrong.is_empty() && config.wrong().is_empty() => return Ok(config),
            Ok(config) => wrong.extend(config.wrong().into_iter().map(|words| judge::placed(&layers, words))),
            Err(e) => wrong.extend(each(&layers, e)),
        }
        Err(ConfigError(wrong))
    }

    /// Every key with its value and the place that says it, as a file that says the same.
    pub fn explain(&self) -> Result<String, ConfigError> {
        let (mut text, mut last) = (String::new(), String::new());
        for SettingInfo { key, value, source } in self.settings(&self.read()?)? {
            let (section, key) = key.split_once('.').unwrap_or(("", &key));
            if section != last {
                text += &format!("{}[{section}]\n", if text.is_empty() { "" } else { "\n" });
                section.clone_into(&mut last);
            }
            text += &format!("{:<40} # {source}\n", format!("{key} = {value}"));
        }
        Ok(text)
    }

    fn settings(&self, config: &Config) -> Result<Vec<SettingInfo>, ConfigError> {
        let layers = self.layers()?;
        // Strings, numbers and booleans are written alike in JSON and TOML.
        let sections = serde_json::to_value(config).map_err(|e| ConfigError(vec![e.to_string()]))?;
        let sections = sections.as_object().into_iter().flatten();
        let keys =
            sections.flat_map(|(section, values)| values.as_object().into_iter().flatten().map(move |(key, value)| (section, key, value)));
        let setting = |(section, key, value): (&String, &String, &serde_json::Value)| {
            let key = format!("{section}.{key}");
            SettingInfo { source: layers.find_metadata(&key).map(judge::source).unwrap_or_default(), key, value: value.to_string() }
        };
        Ok(keys.map(setting).collect())
    }

    /// What is to run.
    pub fn options(&self) -> Result<(Config, Options), ConfigError> {
        let config = self.read()?;
        let settings = self.settings(&config)?;
        let options = Options { settings, ..Options::from(config.clone()) };
        Ok((config, options))
    }
}

/// What is wrong, a line each.
#[derive(Debug)]
pub struct ConfigError(Vec<String>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl From<figment::Error> for ConfigError {
    fn from(all: figment::Error) -> Self {
        Self(all.into_iter().map(|e| format!("{}: {}", judge::place(e.metadata.as_ref(), &e.path.join(".")), e.kind)).collect())
    }
}

/// Sections and keys, with their defaults.
fn defaults() -> Dict {
    Figment::from(Serialized::defaults(Config::default())).extract().unwrap_or_default()
}

/// Everything that is wrong with what could not be read.
fn each(layers: &Figment, e: figment::Error) -> Vec<String> {
    let defaults = Figment::from(Serialized::defaults(Config::default()));
    let (Ok(said), known) = (layers.extract::<Dict>(), self::defaults()) else { return ConfigError::from(e).0 };
    let mut wrong = judge::unknown(layers, &said, &known);
    // What the good keys mean together is judged too.
    let mut good = defaults.clone();
    for (section, values) in &known {
        for (key, default) in values.as_dict().into_iter().flatten() {
            let full = format!("{section}.{key}");
            let Ok(value) = layers.find_value(&full) else { continue };
            // Alone over the defaults: it is right or wrong by itself.
            let alone = Serialized::default(&full, value);
            match defaults.clone().merge(&alone).extract::<Config>() {
                Ok(_) => good = good.merge(&alone),
                Err(e) => {
                    let place = judge::place(layers.find_metadata(&full), &full);
                    wrong.extend(e.into_iter().map(|e| format!("{place}: {full}: {}", judge::words(&e.kind, default))));
                }
            }
        }
    }
    if let Ok(config) = good.extract::<Config>() {
        wrong.extend(config.wrong().into_iter().map(|words| judge::placed(layers, words)));
    }
    if wrong.is_empty() { ConfigError::from(e).0 } else { wrong }
}

impl Config {
    #[must_use]
    pub fn log_level(&self) -> EnvFilter {
        // It was read before anything else was done with it.
        judge::levels(&self.diagnostics.log_level).unwrap_or_else(|_| EnvFilter::new("info"))
    }

    #[must_use]
    pub fn log_format(&self) -> LogFormat {
        self.diagnostics.log_format
    }
}

/// What is taken without a restart.
const LIVE: [&str; 7] = [
    "listen.overlapping",
    "log.retention_bytes",
    "log.retention_age",
    "log.retention_min_age",
    "groups.max_deliveries",
    "events.retention_age",
    "diagnostics.log_level",
];
/// All keys of this section too, for connections that begin later.
const LIVE_SECTION: &str = "limits.";
/// But for these.
const FIXED: [&str; 2] = ["limits.inbound_bytes", "limits.outbound_bytes"];

/// What was read again.
pub struct Reread {
    /// In force from now on: the new values of what is taken, the old ones of the rest.
    pub settings: Vec<SettingInfo>,
    /// Keys whose values have changed and are taken.
    pub taken: Vec<String>,
    /// Keys whose values have changed and wait for a restart.
    pub waits: Vec<String>,
}

/// `before` and `now` have the same keys in the same order.
#[must_use]
pub fn reread(before: &[SettingInfo], now: &[SettingInfo]) -> Reread {
    let mut reread = Reread { settings: Vec::new(), taken: Vec::new(), waits: Vec::new() };
    for (before, now) in before.iter().zip(now) {
        let live = LIVE.contains(&now.key.as_str()) || (now.key.starts_with(LIVE_SECTION) && !FIXED.contains(&now.key.as_str()));
        if before.value != now.value {
            (if live { &mut reread.taken } else { &mut reread.waits }).push(now.key.clone());
        }
        reread.settings.push(if live { now } else { before }.clone());
    }
    reread
}

/// A storm of connections must not take the disk.
const EVENTS_BYTES_MAX: u64 = 256 << 20;
/// Each is a sync.
const SYS_INTERVAL_MIN: Duration = Duration::from_secs(1);

impl From<Config> for Options {
    fn from(c: Config) -> Self {
        Self {
            mqtt: c.listen.mqtt,
            http: c.listen.http,
            admin: c.listen.admin,
            data: c.log.data,
            durability: c.log.durability.into(),
            limits: Limits {
                messages: Retention {
                    bytes: Some(c.log.retention_bytes.0).filter(|bytes| *bytes > 0),
                    age: c.log.retention_age.0,
                    min_age: c.log.retention_min_age.0.unwrap_or(Duration::MAX),
                },
                events: Retention { bytes: Some(EVENTS_BYTES_MAX), age: c.events.retention_age.0, min_age: Duration::ZERO },
                max_deliveries: c.groups.max_deliveries,
                client: Arc::new(ClientLimits { overlapping: c.listen.overlapping.into(), ..(&c.limits).into() }),
                fleet: (&c.limits).into(),
            },
            sys_interval: c.events.sys_interval.0.filter(|every| !every.is_zero()),
            settings: Vec::new(),
            hosts: c.listen.hosts,
            origins: c.listen.origins,
            allow_anonymous: c.listen.allow_anonymous,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../weir.toml");

    #[test]
    fn the_annotated_file_says_every_default_and_nothing_else() {
        let said: Config = Figment::from(Toml::file_exact(FILE)).extract().expect("whole, without the defaults behind it");
        assert_eq!(said, Config::default());
    }

    #[test]
    fn a_limit_outside_its_range_is_an_error_that_says_the_range() {
        let read = |line: &str| {
            let file = format!("[limits]\n{line}");
            Figment::from(Serialized::defaults(Config::default())).merge(Toml::string(&file)).extract::<Config>().map_err(|e| e.to_string())
        };
        for (line, says) in [
            ("will_bytes = \"1MiB\"", "1MiB is not between 0 and 256KiB"),
            ("session_bytes = \"1GiB\"", "1GiB is not between 0 and 8MiB"),
            ("subscriptions = 4000000000", "4000000000 is not between 0 and 1000000"),
            ("topic_bytes = 65536", "65536 is not between 1 and 65000"),
        ] {
            assert!(read(line).is_err_and(|e| e.contains(says)), "{line}: {:?}", read(line));
        }
        assert!(read("will_bytes = \"256KiB\"\nsession_bytes = \"8MiB\"").is_ok());
    }

    #[test]
    fn sizes_and_ages_are_read_as_they_are_written() {
        for text in ["0", "8GiB", "3MiB", "1000"] {
            assert_eq!(text.parse::<Size>().map(|s| s.to_string()), Ok(text.into()));
        }
        for text in ["forever", "7days", "12h"] {
            assert_eq!(text.parse::<Age>().map(|a| a.to_string()), Ok(text.into()));
        }
        assert!("much".parse::<Size>().is_err_and(|e| e.contains("8GiB")) && "soon".parse::<Age>().is_err_and(|e| e.contains("7days")));
    }
}
