//! `weir pub` and `weir sub`: mosquitto's clients by their flags and exit codes.
//!
//! Invariant: exit code 0 means that everything was acknowledged. A refused connection ends with the code of its CONNACK, everything else with 1, and a
//! time that is over with 27, as in mosquitto.
//! Must not know: how the gateway works; it speaks to any broker.

mod format;
mod link;
mod publish;
mod subscribe;

pub(crate) use link::PACKET_BYTES_MAX;
pub use publish::{Publish, publish};
pub(crate) use subscribe::parse_from;
pub use subscribe::{Subscribe, subscribe};

use clap::{Args, ValueEnum};
use rumqttc::TlsConfiguration;
use std::{fmt, path::PathBuf};

/// Where and as whom.
#[derive(Args, Clone, Debug)]
pub struct Connection {
    /// Host of the broker.
    #[arg(short = 'h', long, default_value = "127.0.0.1")]
    host: String,
    /// [default: 1883; 8883 with TLS]
    #[arg(short, long)]
    port: Option<u16>,
    /// Client id [default: one of its own].
    #[arg(short, long)]
    id: Option<String>,
    /// Client id: this, and the number of the process.
    #[arg(short = 'I', long, value_name = "PREFIX", conflicts_with = "id")]
    id_prefix: Option<String>,
    /// Keep-alive in seconds.
    #[arg(short, long, default_value_t = 60, value_parser = clap::value_parser!(u16).range(5..))]
    keepalive: u16,
    #[arg(short, long)]
    username: Option<String>,
    #[arg(short = 'P', long)]
    pw: Option<String>,
    /// TLS: the certificates, in PEM, of those who may vouch for the broker.
    #[arg(long, value_name = "FILE")]
    cafile: Option<PathBuf>,
    /// TLS: those that the operating system trusts may vouch for it.
    #[arg(long, conflicts_with = "cafile")]
    tls_use_os_certs: bool,
    /// Our own certificate, in PEM, for a broker that asks for one.
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Version of the protocol [default: 311; 5 with --from]
    #[arg(short = 'V', long, value_enum)]
    protocol_version: Option<ProtocolVersion>,
    /// Seconds that the session is kept behind the connection; version 5.
    #[arg(short = 'x', long, value_name = "SECONDS")]
    session_expiry_interval: Option<u32>,
    /// What the broker publishes if the connection ends without a goodbye.
    #[arg(long, value_name = "TOPIC")]
    will_topic: Option<String>,
    #[arg(long, requires = "will_topic", default_value = "")]
    will_payload: String,
    #[arg(long, requires = "will_topic", default_value = "0", value_parser = parse_qos)]
    will_qos: u8,
    #[arg(long, requires = "will_topic")]
    will_retain: bool,
    /// Say nothing on standard error; the exit code says it.
    #[arg(long)]
    quiet: bool,
    /// Say what happens on standard error.
    #[arg(short, long)]
    debug: bool,
    /// Help.
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ProtocolVersion {
    #[value(name = "311", alias = "mqttv311")]
    V311,
    #[value(name = "5", alias = "mqttv5")]
    V5,
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
    fn port(&self) -> u16 {
        self.port.unwrap_or(if self.cafile.is_some() || self.tls_use_os_certs { 8883 } else { 1883 })
    }

    /// `None`: without TLS.
    fn tls(&self) -> Result<Option<TlsConfiguration>, Failure> {
        let read = |path: &PathBuf| std::fs::read(path).map_err(|e| Failure::new(format!("{}: {e}", path.display())));
        let Some(ca) = self.cafile.as_ref().map(read).transpose()? else {
            if self.cert.is_some() && !self.tls_use_os_certs {
                return Err(Failure::new("--cert and --key are for TLS: say --cafile or --tls-use-os-certs too"));
            }
            return Ok(self.tls_use_os_certs.then(TlsConfiguration::default));
        };
        let client_auth = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
            _ => None,
        };
        Ok(Some(TlsConfiguration::Simple { ca, alpn: None, client_auth }))
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

    /// The version that is asked for, or `other`.
    fn version(&self, other: ProtocolVersion) -> Result<ProtocolVersion, Failure> {
        let version = self.protocol_version.unwrap_or(other);
        if self.session_expiry_interval.is_some() && version == ProtocolVersion::V311 {
            return Err(Failure::new("-x is for version 5: add -V 5"));
        }
        Ok(version)
    }

    /// It never got there.
    fn unreachable(&self, e: Failure) -> Failure {
        Failure { words: format!("{}:{}: {}", self.host, self.port(), e.words), ..e }
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
