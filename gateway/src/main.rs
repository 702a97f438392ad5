//! The command line.
//!
//! Must not know: how anything is done.

use bytesize::ByteSize;
use clap::{Parser, Subcommand};
use std::{io::IsTerminal, net::SocketAddr, path::PathBuf, process::ExitCode};
use tracing_subscriber::EnvFilter;

/// MQTT gateway whose queue is a durable log.
#[derive(Parser)]
#[command(name = "weir", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway. It says "weir ready" on standard output when it takes connections, and stops in order on SIGTERM.
    Run {
        /// MQTT over TCP, 3.1.1 and 5.
        #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:1883")]
        mqtt: SocketAddr,
        /// The page `/`, its feed `/ws`, and MQTT over websocket `/mqtt`.
        #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8080")]
        http: SocketAddr,
        /// `/metrics`, `/healthz` and `/readyz`.
        #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9464")]
        admin: SocketAddr,
        /// The data directory; created if it is missing.
        #[arg(long, value_name = "DIR", default_value = "weir-data")]
        data: PathBuf,
        /// Keep this much of the log; what is older goes, 64 MiB at a time. `0`: keep everything until the disk is full.
        #[arg(long, value_name = "SIZE", default_value = "8GiB")]
        retention_bytes: ByteSize,
        /// Keep nothing that is older than this, as in `7days` or `12h`; without it, age does not matter.
        #[arg(long, value_name = "TIME")]
        retention_age: Option<humantime::Duration>,
        /// Deliveries of a message of a shared subscription that end without an acknowledgement, before it goes to `$dead/GROUP/TOPIC`. `0`: it is
        /// delivered for ever.
        #[arg(long, value_name = "N", default_value_t = 20)]
        max_deliveries: u32,
        /// Admit anybody on addresses that can be reached from elsewhere.
        #[arg(long)]
        allow_anonymous: bool,
    },
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("WEIR_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal).with_target(false).init();
    let Command::Run { mqtt, http, admin, data, retention_bytes, retention_age, max_deliveries, allow_anonymous } = Cli::parse().command;
    let retention =
        weir::Retention { bytes: Some(retention_bytes.as_u64()).filter(|bytes| *bytes > 0), age: retention_age.map(|age| *age) };
    match weir::run(&weir::Options { mqtt, http, admin, data, retention, max_deliveries, allow_anonymous }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("weir: {e}");
            ExitCode::FAILURE
        }
    }
}
