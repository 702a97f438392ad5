//! The command line.
//!
//! Must not know: how anything is done.

mod manual;

use clap::{CommandFactory, Parser, Subcommand};
use std::{
    cell::RefCell,
    io::{IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};
use tracing_subscriber::{EnvFilter, Layer, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt};
use weir::{
    api,
    api::process::SettingInfo,
    ask,
    config::{Config, Flags, LogFormat, reread},
    inspect, judge, terminal,
};

/// MQTT gateway whose queue is a durable log.
#[derive(Parser)]
#[command(name = "weir", version = weir::version())]
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
    Demo {
        #[command(flatten)]
        flags: Flags,
        /// Send the fleet to a gateway that runs, instead of starting one [default address: 127.0.0.1:1883].
        #[arg(long, value_name = "ADDR:PORT", num_args = 0..=1, default_missing_value = "127.0.0.1:1883", exclusive = true)]
        join: Option<String>,
    },
    /// Check the configuration: says every key, its value and where that comes from, or what is wrong. Exit code 1 when something is.
    CheckConfig(Flags),
    /// Who is connected, from where, since when, and how far behind.
    Clients(ask::Clients),
    /// All sessions, connected or not; who gets the messages of a topic; or end some.
    Sessions(ask::Sessions),
    /// Groups of shared subscriptions: members, lag, what is pending.
    #[command(subcommand)]
    Groups(ask::Groups),
    /// Retained messages: list them, or clear them.
    #[command(subcommand)]
    Retained(ask::Retained),
    /// The newest message of each topic, now or at a moment in the past.
    Topics(ask::Topics),
    /// What the log holds.
    Streams(ask::Streams),
    /// Rates, and who is furthest behind, every two seconds.
    Top(ask::Top),
    /// Where the messages of one client are: what its session reads, how far it has come, and what it waits for. Connected or not.
    Explain(ask::Explain),
    /// Verify, print or repair a log that no gateway runs on.
    #[command(subcommand)]
    Log(inspect::Log),
    /// Publish, with the flags and exit codes of mosquitto_pub.
    Pub(weir::client::Publish),
    /// Subscribe and print what comes, with the flags and exit codes of mosquitto_sub.
    Sub(weir::client::Subscribe),
    /// Put load on an MQTT broker, any broker, and check every message. Exit code 1 when one is lost or out of order.
    #[command(subcommand)]
    Bench(weir::bench::Bench),
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages, one per command, into a directory.
    Man {
        /// Where they are written; it is made.
        directory: PathBuf,
    },
}

/// What is said about a run beside its answers can be changed while it runs.
type Level = reload::Handle<EnvFilter, Registry>;

fn log_to_stderr(config: &Config) -> Level {
    let (level, handle) = reload::Layer::new(config.log_level());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let lines = match config.log_format() {
        LogFormat::Text => lines.with_ansi(weir::terminal::is_coloured(std::io::stderr().is_terminal())).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(level).with(lines).init();
    handle
}

/// SIGHUP: reads the configuration again, takes what can be taken, and says what cannot.
fn reload(flags: &Flags, running: &RefCell<Vec<SettingInfo>>, level: &Level) -> Option<weir::Reloaded> {
    let (config, now) = match flags.options() {
        Ok(now) => now,
        Err(e) => {
            tracing::error!("the configuration is not read again: {e}");
            return None;
        }
    };
    if let Err(e) = level.reload(config.log_level()) {
        tracing::error!("the log level stays: {e}");
    }
    let reread = reread(&running.borrow(), &now.settings);
    let list = |keys: &[String]| if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") };
    tracing::warn!("the configuration was read again: {} changed", list(&reread.taken));
    if !reread.waits.is_empty() {
        tracing::warn!("these wait for a restart: {}", list(&reread.waits));
    }
    running.replace(reread.settings.clone());
    Some(weir::Reloaded { limits: now.limits, settings: reread.settings })
}

/// The same for the admin API.
fn by_api(level: &Level) -> api::process::Level {
    let (read, write) = (level.clone(), level.clone());
    api::process::Level {
        get: Box::new(move || read.with_current(ToString::to_string).unwrap_or_default()),
        set: Box::new(move |text| write.reload(judge::levels(text)?).map_err(|e| e.to_string())),
    }
}

fn ended(result: Result<(), impl std::fmt::Display>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            terminal::say(format_args!("weir: {e}"));
            ExitCode::FAILURE
        }
    }
}

/// Prints what was answered.
fn said(result: Result<String, impl std::fmt::Display>) -> ExitCode {
    match result {
        Ok(text) => ended(print(&terminal::shown(text.as_bytes()))),
        Err(e) => ended(Err(e)),
    }
}

fn told(result: Result<(), weir::client::Failure>, quiet: bool) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            if !quiet {
                terminal::say(format_args!("weir: {}", e.words));
            }
            ExitCode::from(e.code)
        }
    }
}

fn run(flags: &Flags, ready: impl FnOnce(&weir::Options)) -> ExitCode {
    let (config, options) = match flags.options() {
        Ok(both) => both,
        Err(e) => return ended(Err(e)),
    };
    let level = log_to_stderr(&config);
    let running = RefCell::new(options.settings.clone());
    let hooks = weir::Hooks { ready: || ready(&options), reload: || reload(flags, &running, &level), level: by_api(&level) };
    weir::run(&options, hooks).map_or_else(
        |e| {
            eprintln!("weir: {e}");
            ExitCode::from(e.exit_code())
        },
        |()| ExitCode::SUCCESS,
    )
}

/// Whoever closes the pipe has enough.
fn print(text: &[u8]) -> std::io::Result<()> {
    match std::io::stdout().write_all(text) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn demo(flags: Flags) -> ExitCode {
    let temporary = flags.names_no_data().then(weir::demo::directory);
    let flags = temporary.iter().fold(flags, |flags, data| flags.with_data(data.clone()));
    let code = run(&flags, |options| {
        weir::demo::start(options.mqtt);
        let (page, mqtt) = (options.http, options.mqtt);
        println!("\n  page   http://{page}/\n  mqtt   {mqtt}   (weir sub -p {} -t 'site/#' -v)\n\nCtrl-C ends it.", mqtt.port());
    });
    if let Some(data) = temporary.filter(|data| data.exists())
        && let Err(e) = std::fs::remove_dir_all(&data)
    {
        eprintln!("weir: {} stays: {e}", data.display());
    }
    code
}

/// Reads the command line; a mistake ends the program, with mosquitto's code for its clients.
fn parse() -> Cli {
    Cli::try_parse().unwrap_or_else(|e| {
        let is_client = std::env::args().nth(1).is_some_and(|command| matches!(&*command, "pub" | "sub"));
        if e.use_stderr() && is_client {
            let _stderr_is_gone = e.print();
            std::process::exit(1);
        }
        e.exit()
    })
}

fn main() -> ExitCode {
    match parse().command {
        Command::Run(flags) => run(&flags, |_| {}),
        Command::Demo { join: Some(gateway), .. } => ended(weir::demo::join(&gateway)),
        Command::Demo { flags, join: None } => demo(flags),
        Command::CheckConfig(flags) => said(flags.explain()),
        Command::Clients(c) => said(c.ask()),
        Command::Streams(s) => said(s.ask()),
        Command::Sessions(s) => said(s.ask()),
        Command::Groups(g) => said(g.ask()),
        Command::Retained(r) => said(r.ask()),
        Command::Topics(t) => said(t.ask()),
        Command::Top(t) => ended(t.run()),
        Command::Explain(e) => said(e.ask()),
        Command::Log(log) => ended(log.run()),
        Command::Pub(p) => told(weir::client::publish(&p), p.is_quiet()),
        Command::Sub(s) => told(weir::client::subscribe(&s), s.is_quiet()),
        Command::Bench(bench) => told(weir::bench::run(&bench), false),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "weir", &mut script);
            ended(print(&script))
        }
        Command::Man { directory } => {
            let pages = manual::write(&directory, Cli::command());
            ended(pages.map_err(|e| format!("{}: {e}", directory.display())))
        }
    }
}
