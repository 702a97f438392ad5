//! `weir pub` and `weir sub`: mosquitto's clients by their flags and exit codes.
//!
//! Invariant: exit code 0 means that everything was acknowledged. A refused connection ends with the code of its CONNACK, everything else with 1, and a
//! time that is over with 27, as in mosquitto.
//! Must not know: how the gateway works; it speaks to any broker.

mod format;
mod link;
mod publish;
mod subscribe;

pub use publish::{Publish, publish};
pub(crate) use subscribe::parse_from;
pub use subscribe::{Subscribe, subscribe};

use clap::{Args, ValueEnum};
use std::fmt;

/// Where and as whom.
#[derive(Args, Clone, Debug)]
pub struct Connection {
    /// Host of the broker.
    #[arg(short = 'h', long, default_value = "127.0.0.1")]
    host: String,
    #[arg(short, long, default_value_t = 1883)]
    port: u16,
    /// Client id [default: one of its own].
    #[arg(short, long)]
    id: Option<String>,
    /// Keep-alive in seconds.
    #[arg(short, long, default_value_t = 60, value_parser = clap::value_parser!(u16).range(5..))]
    keepalive: u16,
    #[arg(short, long)]
    username: Option<String>,
    #[arg(short = 'P', long)]
    pw: Option<String>,
    /// Version of the protocol.
    /// Version of the protocol [default: 311; 5 with --from]
    #[arg(short = 'V', long, value_enum)]
    protocol_version: Option<ProtocolVersion>,
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
    /// It never got there.
    fn unreachable(&self, e: Failure) -> Failure {
        Failure { words: format!("{}:{}: {}", self.host, self.port, e.words), ..e }
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
