//! `weir pub` and `weir sub`: mosquitto's clients by their flags and exit codes.
//!
//! Invariant: the exit codes are mosquitto's. 0 means that everything was acknowledged. A refused
//! connection ends with the code of its CONNACK, a lost one with 7, one whose packets make no sense
//! with 2, a time that is over with 27, everything else with 1.

mod format;
mod link;
mod pieces;
mod property;
mod publish;
mod subscribe;
mod tls;
mod trace;
mod url;

pub(crate) use link::PACKET_BYTES_MAX;
pub use publish::{Publish, publish};
pub(crate) use subscribe::parse_from;
pub use subscribe::{Subscribe, subscribe};

use clap::{Args, ValueEnum};
use link::INFLIGHT;
use rumqttc::Transport;
use std::fmt;
use tls::Tls;
use url::Url;

/// Where and as whom.
#[derive(Args, Clone, Debug)]
pub struct Connection {
    /// Host of the broker.
    #[arg(short = 'h', long, default_value = "127.0.0.1", conflicts_with_all = ["url", "unix"])]
    host: String,
    /// [default: 1883; 8883 with TLS]
    #[arg(short, long, conflicts_with_all = ["url", "unix"])]
    port: Option<u16>,
    /// All in one: mqtt[s]://[USER[:PASSWORD]@]HOST[:PORT]/TOPIC.
    #[arg(short = 'L', long)]
    url: Option<Url>,
    /// Connect through this unix socket.
    #[arg(long, value_name = "PATH", conflicts_with = "url")]
    unix: Option<String>,
    /// Connect through the network interface that has this address.
    #[arg(short = 'A', long, value_name = "ADDRESS", value_parser = interface)]
    bind: Option<Interface>,
    /// Send each packet at once (TCP_NODELAY).
    #[arg(long)]
    nodelay: bool,
    /// Client id [default: one of its own].
    #[arg(short, long)]
    id: Option<String>,
    /// Client id: this, and the number of the process.
    #[arg(short = 'I', long, value_name = "PREFIX", conflicts_with = "id")]
    id_prefix: Option<String>,
    /// Keep-alive in seconds, at least 5.
    #[arg(short, long, default_value_t = 60, value_parser = clap::value_parser!(u16).range(5..))]
    keepalive: u16,
    /// Messages of QoS 1 and 2 that may be on their way at once [default: 100].
    #[arg(short = 'M', long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
    max_inflight: Option<u16>,
    /// User name.
    #[arg(short, long, allow_hyphen_values = true)]
    username: Option<String>,
    /// Password.
    #[arg(short = 'P', long, allow_hyphen_values = true)]
    pw: Option<String>,
    #[command(flatten)]
    tls: Tls,
    /// Version of the protocol [default: mqttv311; mqttv5 with -D, -x or --from].
    #[arg(short = 'V', long, value_enum)]
    protocol_version: Option<ProtocolVersion>,
    /// Seconds that the session is kept behind the connection, -1 for ever; version 5.
    #[arg(short = 'x', long, value_name = "SECONDS", allow_hyphen_values = true, value_parser = parse_expiry)]
    session_expiry_interval: Option<u32>,
    /// A property of MQTT 5: connect, publish, subscribe, unsubscribe or will; its name; its value.
    /// A user-property has a name and a value. May be given several times.
    #[arg(short = 'D', long, num_args = 3..=4, action = clap::ArgAction::Append, value_names = ["PACKET", "PROPERTY", "VALUE", "VALUE"])]
    property: Vec<String>,
    /// What the broker publishes if the connection ends without a goodbye.
    #[arg(long, value_name = "TOPIC")]
    will_topic: Option<String>,
    /// The payload of that message.
    #[arg(long, requires = "will_topic", default_value = "", allow_hyphen_values = true)]
    will_payload: String,
    /// Its QoS.
    #[arg(long, requires = "will_topic", default_value = "0", value_parser = parse_qos)]
    will_qos: u8,
    /// Retain it.
    #[arg(long, requires = "will_topic")]
    will_retain: bool,
    /// Say nothing on standard error; the exit code says it.
    #[arg(long)]
    quiet: bool,
    /// Say what is sent and received on standard error.
    #[arg(short, long)]
    debug: bool,
    /// Help.
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// Version of the program.
    #[arg(long, action = clap::ArgAction::Version)]
    version: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ProtocolVersion {
    #[value(name = "mqttv311", alias = "311")]
    V311,
    #[value(name = "mqttv5", alias = "5")]
    V5,
}

/// A network interface, by its name.
#[derive(Clone, Debug)]
struct Interface(String);

/// The interface that has the address `text`.
fn interface(text: &str) -> Result<Interface, String> {
    let address: std::net::IpAddr = text.parse().map_err(|_| "an address, as in 192.168.1.7".to_owned())?;
    let all = if_addrs::get_if_addrs().map_err(|e| e.to_string())?;
    let found = all.iter().find(|i| i.ip() == address).map(|i| Interface(i.name.clone()));
    let there: Vec<String> = all.iter().map(|i| i.ip().to_string()).collect();
    found.ok_or_else(|| format!("no interface of this machine has it; there are {}", there.join(", ")))
}

/// Seconds; -1 and its other spellings mean for ever (MQTT 5.0, 3.1.2.11.2).
fn parse_expiry(text: &str) -> Result<u32, String> {
    match text {
        "-1" | "∞" => Ok(u32::MAX),
        _ => text.parse().map_err(|_| "seconds up to 4294967295, or -1 for ever".into()),
    }
}

/// Why it ends, and with which code.
#[derive(Debug)]
pub struct Failure {
    pub code: u8,
    pub words: String,
}

impl Failure {
    pub(crate) fn new(words: impl fmt::Display) -> Self {
        Self { code: 1, words: words.to_string() }
    }
}

impl Connection {
    fn host(&self) -> &str {
        self.url.as_ref().map_or(&self.host, |url| &url.host)
    }

    fn port(&self) -> u16 {
        let named = self.url.as_ref().map_or(self.port, |url| url.port);
        named.unwrap_or(if self.tls.is_asked_for() || self.wants_tls() { 8883 } else { 1883 })
    }

    fn wants_tls(&self) -> bool {
        self.url.as_ref().is_some_and(|url| url.tls)
    }

    /// The topic of the URL.
    fn topic(&self) -> Option<&str> {
        self.url.as_ref().map(|url| &*url.topic)
    }

    fn credentials(&self) -> Option<(String, String)> {
        let url = self.url.as_ref();
        let username = self.username.clone().or_else(|| url.and_then(|u| u.username.clone()))?;
        let password = self.pw.clone().or_else(|| url.and_then(|u| u.password.clone()));
        Some((username, password.unwrap_or_default()))
    }

    fn max_inflight(&self) -> u16 {
        self.max_inflight.unwrap_or(INFLIGHT)
    }

    fn transport(&self) -> Result<Transport, Failure> {
        if self.unix.is_some() {
            return Ok(Transport::Unix);
        }
        let tls = self.tls.config(self.wants_tls())?;
        Ok(tls.map_or(Transport::Tcp, |config| Transport::Tls(config.into())))
    }

    fn network(&self) -> rumqttc::NetworkOptions {
        let mut options = rumqttc::NetworkOptions::new();
        options.set_tcp_nodelay(self.nodelay);
        if let Some(Interface(name)) = &self.bind {
            options.set_bind_device(name);
        }
        options
    }

    /// Nothing is to be said, but by the exit code.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    fn client_id(&self, kind: &str) -> String {
        let number = std::process::id();
        let prefixed = self.id_prefix.as_ref().map(|prefix| format!("{prefix}{number}"));
        self.id.clone().or(prefixed).unwrap_or_else(|| format!("weir-{kind}-{number}"))
    }

    /// An id that mosquitto's clients do not take either.
    ///
    /// # Errors
    /// It is empty: no session could be found again by it.
    fn judge_id(&self) -> Result<(), Failure> {
        match self.id.as_deref() {
            Some("") => Err(Failure::new("-i: the client id is empty; leave -i out for one that is made up")),
            _ => Ok(()),
        }
    }

    /// The version that is asked for; without one, what the flags need, else `other`.
    ///
    /// # Errors
    /// Properties in a version that has none.
    fn version(&self, other: ProtocolVersion) -> Result<ProtocolVersion, Failure> {
        let needs_5 = !self.property.is_empty() || self.session_expiry_interval.is_some();
        let version = self.protocol_version.unwrap_or(if needs_5 { ProtocolVersion::V5 } else { other });
        if !self.property.is_empty() && version == ProtocolVersion::V311 {
            return Err(Failure::new("-D is for version 5: add -V 5"));
        }
        if self.session_expiry_interval == Some(u32::MAX) && self.id.is_none() {
            return Err(Failure::new("-x: a session that is kept for ever needs a client id that returns: add -i ID"));
        }
        Ok(version)
    }

    /// Names the broker in a failure to reach it.
    fn unreachable(&self, e: Failure) -> Failure {
        let place = match &self.unix {
            Some(path) => path.clone(),
            None => format!("{}:{}", self.host(), self.port()),
        };
        Failure { words: format!("{place}: {}", e.words), ..e }
    }
}

fn parse_qos(text: &str) -> Result<u8, String> {
    text.parse().ok().filter(|qos| *qos <= 2).ok_or_else(|| "0, 1 or 2".into())
}

/// Does it on a runtime of its own. Nobody else is here, so one thread is enough.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::new)?;
    let result = runtime.block_on(work);
    // A thread that waits for standard input is not waited for.
    runtime.shutdown_background();
    result
}
