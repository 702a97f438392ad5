//! The command line.
//!
//! Must not know: how anything is done.

use clap::{Parser, Subcommand};
use std::{io::IsTerminal, process::ExitCode};
use tracing_subscriber::EnvFilter;
use weir::{
    ask,
    config::{Config, Flags},
    inspect,
};

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
    Run(Flags),
    /// Run the gateway with a small fleet of simulated devices, so that there is something to look at. Its data is thrown away at the end, unless you
    /// say where to keep it.
    Demo(Flags),
    /// Check the configuration: says every key, its value and where that comes from, or what is wrong. Exit code 1 when something is.
    CheckConfig(Flags),
    /// Who is connected, from where, since when, and how far behind.
    Clients(ask::Clients),
    /// What the log holds.
    Streams(ask::Streams),
    /// Where the messages of one client are: what its session reads, how far it has come, and what it waits for. Connected or not.
    Explain(ask::Explain),
    /// Verify or print a log that no gateway runs on.
    #[command(subcommand)]
    Log(inspect::Log),
    /// Publish, with the flags and exit codes of mosquitto_pub.
    Pub(weir::client::Publish),
    /// Subscribe and print what comes, with the flags and exit codes of mosquitto_sub.
    Sub(weir::client::Subscribe),
}

/// What is said about a run beside its answers. WEIR_LOG goes before the configuration.
fn log_to_stderr(config: &Config) {
    let filter = EnvFilter::try_from_env("WEIR_LOG").unwrap_or_else(|_| EnvFilter::new(config.log_level()));
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

/// Exit code 1: it is not to be started again as it is.
fn configured(flags: &Flags, run: impl FnOnce(weir::Options) -> ExitCode) -> ExitCode {
    match flags.read() {
        Ok(config) => {
            log_to_stderr(&config);
            run(config.into())
        }
        Err(e) => ended(Err(e)),
    }
}

fn demo(flags: Flags) -> ExitCode {
    let throw_away = flags.names_no_data();
    let flags = if throw_away { flags.with_data(weir::demo::directory()) } else { flags };
    configured(&flags, |options| {
        let (page, mqtt) = (options.http, options.mqtt);
        let result = weir::run(&options, move || {
            weir::demo::start(mqtt);
            println!("\n  page   http://{page}/\n  mqtt   {mqtt}   (weir sub -p {} -t 'site/#' -v)\n\nCtrl-C ends it.", mqtt.port());
        });
        if throw_away && let Err(e) = std::fs::remove_dir_all(&options.data) {
            eprintln!("weir: {} stays: {e}", options.data.display());
        }
        ended(result)
    })
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(flags) => configured(&flags, |options| ended(weir::run(&options, || {}))),
        Command::Demo(flags) => demo(flags),
        Command::CheckConfig(flags) => ended(flags.explain().map(|text| print!("{text}"))),
        Command::Clients(c) => ended(c.ask().map(|text| print!("{text}"))),
        Command::Streams(s) => ended(s.ask().map(|text| print!("{text}"))),
        Command::Explain(e) => ended(e.ask().map(|text| print!("{text}"))),
        Command::Log(log) => ended(log.run()),
        Command::Pub(p) => told(weir::client::publish(&p)),
        Command::Sub(s) => told(weir::client::subscribe(&s)),
    }
}
