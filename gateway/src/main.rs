//! The command line.
//!
//! Must not know: how anything is done.

use bytesize::ByteSize;
use clap::{Args, Parser, Subcommand};
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
    Run(Run),
    /// Run the gateway with a small fleet of simulated devices, so that there is something to look at. Its data is thrown away at the end, unless you
    /// say where to keep it.
    Demo(Run),
    /// Publish, with the flags and exit codes of mosquitto_pub.
    Pub(weir::client::Publish),
    /// Subscribe and print what comes, with the flags and exit codes of mosquitto_sub.
    Sub(weir::client::Subscribe),
}

#[derive(Args)]
struct Run {
    /// MQTT over TCP, 3.1.1 and 5.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:1883")]
    mqtt: SocketAddr,
    /// The page `/`, its feed `/ws`, and MQTT over websocket `/mqtt`.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8080")]
    http: SocketAddr,
    /// `/metrics`, `/healthz` and `/readyz`.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9464")]
    admin: SocketAddr,
    /// The data directory; created if it is missing [default: weir-data].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
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
}

impl Run {
    fn options(self, data: impl FnOnce() -> PathBuf) -> weir::Options {
        let bytes = Some(self.retention_bytes.as_u64()).filter(|bytes| *bytes > 0);
        weir::Options {
            mqtt: self.mqtt,
            http: self.http,
            admin: self.admin,
            data: self.data.unwrap_or_else(data),
            retention: weir::Retention { bytes, age: self.retention_age.map(|age| *age) },
            max_deliveries: self.max_deliveries,
            allow_anonymous: self.allow_anonymous,
        }
    }
}

/// What is said about a run beside its answers.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("WEIR_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal).with_target(false).init();
}

fn ended(result: Result<(), impl std::fmt::Display>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("weir: {e}");
            ExitCode::FAILURE
        }
    }
}

fn told(result: Result<(), weir::client::Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("weir: {}", e.words);
            ExitCode::from(e.code)
        }
    }
}

fn demo(run: Run) -> ExitCode {
    let throw_away = run.data.is_none();
    let options = run.options(weir::demo::directory);
    let (page, mqtt) = (options.http, options.mqtt);
    let result = weir::run(&options, move || {
        weir::demo::start(mqtt);
        println!("\n  page   http://{page}/\n  mqtt   {mqtt}   (weir sub -p {} -t 'site/#' -v)\n\nCtrl-C ends it.", mqtt.port());
    });
    if throw_away && let Err(e) = std::fs::remove_dir_all(&options.data) {
        eprintln!("weir: {} stays: {e}", options.data.display());
    }
    ended(result)
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    if matches!(command, Command::Run(_) | Command::Demo(_)) {
        log_to_stderr();
    }
    match command {
        Command::Run(run) => ended(weir::run(&run.options(|| "weir-data".into()), || {})),
        Command::Demo(run) => demo(run),
        Command::Pub(p) => told(weir::client::publish(&p)),
        Command::Sub(s) => told(weir::client::subscribe(&s)),
    }
}
