//! `weir bench`: a load generator for any MQTT broker that checks every message.
//!
//! Invariant: exit code 0 means that nothing was lost and every publisher's order was kept; otherwise 1, and the report says what.
//! Must not know: the gateway's inside; it speaks to any broker.

mod browsers;
mod clock;
mod connections;
mod disk;
mod feed;
mod fill;
mod flow;
mod message;
mod pipe;
mod report;
mod scenarios;
mod wire;

use crate::client::Failure;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use message::{MARK_BYTES, SECONDS_MAX};
use report::Report;
use std::{path::PathBuf, time::Duration};
use weir_core::packet::{Qos, Version};
use wire::Target;

#[derive(Args, Clone, Debug)]
#[command(disable_help_flag = true)]
pub struct Load {
    /// Host of the broker.
    #[arg(short = 'h', long, default_value = "127.0.0.1")]
    host: String,
    /// Port of the broker.
    #[arg(short, long, default_value_t = 1883)]
    port: u16,
    /// Version of the protocol: 311 or 5.
    #[arg(short = 'V', long, default_value = "311", value_parser = version)]
    protocol_version: Version,
    /// QoS of publishers and subscribers.
    #[arg(short, long, default_value = "1", value_parser = qos)]
    qos: Qos,
    /// Messages with QoS 1 and 2 on the way of one publisher.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=65_535))]
    window: u64,
    /// Bytes of a payload, 16 at least.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(MARK_BYTES as i64..=1_048_576))]
    size: u32,
    /// Messages per second of all publishers together; without it as fast as they go.
    #[arg(long)]
    rate: Option<f64>,
    /// Sessions of subscribers outlive their connections, until the run ends.
    #[arg(long)]
    persistent: bool,
    /// Measured for so long, after one second of warming up.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=SECONDS_MAX))]
    seconds: u64,
    /// Seconds without any message after which what has not come is lost.
    #[arg(long, default_value_t = 30)]
    patience: u64,
    /// The broker's process: what it costs is measured too.
    #[arg(long)]
    pid: Option<u32>,
    /// The report as one line of JSON.
    #[arg(long)]
    json: bool,
    /// Help.
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

#[derive(Subcommand, Clone, Debug)]
pub enum Bench {
    /// Many publishers, one subscriber of everything.
    FanIn {
        /// Publishers.
        #[arg(long, default_value_t = 10)]
        publishers: u32,
        #[command(flatten)]
        load: Load,
    },
    /// Publishers with a subscriber each.
    Pairs {
        /// Pairs of a publisher and a subscriber.
        #[arg(long, default_value_t = 10)]
        pairs: u32,
        #[command(flatten)]
        load: Load,
    },
    /// One publisher or some, many subscribers of everything.
    FanOut {
        /// Publishers.
        #[arg(long, default_value_t = 1)]
        publishers: u32,
        /// Subscribers.
        #[arg(long, default_value_t = 100)]
        subscribers: u32,
        #[command(flatten)]
        load: Load,
    },
    /// Many publishers, one shared subscription of many members or several: each message goes to one of them.
    Shared {
        /// Publishers.
        #[arg(long, default_value_t = 10)]
        publishers: u32,
        /// Of all groups together.
        #[arg(long, default_value_t = 10)]
        members: u32,
        /// Groups; each gets every message once.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        groups: u32,
        #[command(flatten)]
        load: Load,
    },
    /// Fan-in beside many subscriptions of others, none of which matches.
    Filters {
        /// Filters that match nothing.
        #[arg(long, default_value_t = 100_000)]
        filters: u32,
        /// Publishers.
        #[arg(long, default_value_t = 10)]
        publishers: u32,
        #[command(flatten)]
        load: Load,
    },
    /// One publisher that waits for each acknowledgement, and a subscriber.
    WindowOne {
        #[command(flatten)]
        load: Load,
    },
    /// Connections that come and go.
    Connects {
        /// At once.
        #[arg(long, default_value_t = 50)]
        at_once: u32,
        #[command(flatten)]
        load: Load,
    },
    /// Connections that say nothing: what each costs the process named by --pid.
    Idle {
        /// Connections.
        #[arg(long, default_value_t = 1_000)]
        connections: u32,
        #[command(flatten)]
        load: Load,
    },
    /// Sessions whose clients have gone, with a subscription each: what each costs the process named by --pid.
    Sessions {
        /// Sessions.
        #[arg(long, default_value_t = 10_000)]
        sessions: u32,
        #[command(flatten)]
        load: Load,
    },
    /// A session comes back to messages that wait for it.
    Backlog {
        /// Messages.
        #[arg(long, default_value_t = 100_000)]
        messages: u64,
        #[command(flatten)]
        load: Load,
    },
    /// Sessions with one topic of many each come back after many messages.
    Resume {
        /// Messages.
        #[arg(long, default_value_t = 100_000)]
        messages: u64,
        /// One session each.
        #[arg(long, default_value_t = 1_000)]
        topics: u32,
        #[command(flatten)]
        load: Load,
    },
    /// Subscribers come to many retained messages.
    Retained {
        /// Topics.
        #[arg(long, default_value_t = 10_000)]
        topics: u32,
        /// Subscribers.
        #[arg(long, default_value_t = 10)]
        subscribers: u32,
        #[command(flatten)]
        load: Load,
    },
    /// Browsers on Weir's dashboard feed.
    Feed {
        /// Browsers.
        #[arg(long, default_value_t = 10)]
        browsers: u32,
        /// Where the feed is.
        #[arg(long, default_value = "ws://127.0.0.1:8080/ws")]
        url: String,
        /// Publishers.
        #[arg(long, default_value_t = 1)]
        publishers: u32,
        #[command(flatten)]
        load: Load,
    },
    /// Many browsers on Weir's dashboard feed that take only the newest of each topic, some frames a second: everything is told or counted as thinned
    Browsers {
        /// Browsers.
        #[arg(long, default_value_t = 1_000)]
        browsers: u32,
        /// Where the feed is.
        #[arg(long, default_value = "ws://127.0.0.1:8080/ws")]
        url: String,
        /// Frames per second and browser at most.
        #[arg(long, default_value_t = 10.0)]
        rate_max: f64,
        /// Each with a topic of its own.
        #[arg(long, default_value_t = 1)]
        publishers: u32,
        #[command(flatten)]
        load: Load,
    },
    /// One small write and fdatasync after the other, without any broker: what a lone publish cannot be faster than.
    Disk {
        /// A file that does not exist yet, on the disk in question; it is removed.
        #[arg(long, default_value = "weir-bench-disk")]
        file: PathBuf,
        /// Syncs.
        #[arg(long, default_value_t = 3_000)]
        count: u64,
        /// Print the result as JSON.
        #[arg(long)]
        json: bool,
    },
    /// How fast the load generator itself is: pairs against a pipe in this process instead of a broker.
    Generator {
        /// Pairs of a publisher and a subscriber.
        #[arg(long, default_value_t = 2)]
        pairs: u32,
        #[command(flatten)]
        load: Load,
    },
}

fn qos(text: &str) -> Result<Qos, String> {
    text.parse().ok().and_then(Qos::from_bits).ok_or_else(|| "0, 1 or 2".into())
}

fn version(text: &str) -> Result<Version, String> {
    match text {
        "311" | "mqttv311" => Ok(Version::V311),
        "5" | "mqttv5" => Ok(Version::V5),
        _ => Err("311 or 5".into()),
    }
}

impl Load {
    fn target(&self) -> Target {
        Target { host: self.host.clone(), port: self.port, version: self.protocol_version, from: None }
    }

    /// Of one of so many publishers.
    fn pace(&self, publishers: u32) -> flow::Pace {
        let rate = self.rate.map(|rate| rate / f64::from(publishers.max(1)));
        flow::Pace { qos: self.qos, window: self.window, rate, phase: 0.0 }
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(self.patience)
    }

    fn report(&self, scenario: &str) -> Report {
        Report { scenario: scenario.into(), target: format!("{}:{}", self.host, self.port), ..Report::default() }
    }
}

/// What is done, on a terminal only.
fn progress() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// A name that no other run has.
fn name() -> String {
    use std::hash::{BuildHasher, Hasher};
    format!("weir-bench-{:08x}", std::collections::hash_map::RandomState::new().build_hasher().finish() as u32)
}

/// Runs a scenario and prints what it found.
pub fn run(bench: &Bench) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(Failure::new)?;
    let (load, found) = match bench {
        Bench::Disk { file, count, json } => return disk::run(file, *count)?.print(*json),
        Bench::FanIn { publishers, load } => (load, runtime.block_on(scenarios::fan_in(load, *publishers))),
        Bench::Pairs { pairs, load } => (load, runtime.block_on(scenarios::pairs(load, *pairs))),
        Bench::FanOut { publishers, subscribers, load } => (load, runtime.block_on(scenarios::fan_out(load, *publishers, *subscribers))),
        Bench::Shared { publishers, members, groups, load } => {
            (load, runtime.block_on(scenarios::shared(load, *publishers, *members, *groups)))
        }
        Bench::Filters { filters, publishers, load } => (load, runtime.block_on(scenarios::filters(load, *publishers, *filters))),
        Bench::WindowOne { load } => (load, runtime.block_on(scenarios::window_one(load))),
        Bench::Connects { at_once, load } => (load, runtime.block_on(connections::connects(load, *at_once))),
        Bench::Idle { connections, load } => (load, runtime.block_on(connections::idle(load, *connections))),
        Bench::Sessions { sessions, load } => (load, runtime.block_on(connections::sessions(load, *sessions))),
        Bench::Backlog { messages, load } => (load, runtime.block_on(scenarios::resume(load, "backlog", *messages, 1))),
        Bench::Resume { messages, topics, load } => (load, runtime.block_on(scenarios::resume(load, "resume", *messages, *topics))),
        Bench::Retained { topics, subscribers, load } => (load, runtime.block_on(scenarios::retained(load, *topics, *subscribers))),
        Bench::Feed { browsers, url, publishers, load } => (load, runtime.block_on(feed::run(load, url, *browsers, *publishers))),
        Bench::Browsers { browsers, url, rate_max, publishers, load } => {
            (load, runtime.block_on(browsers::run(load, url, *browsers, *rate_max, *publishers)))
        }
        Bench::Generator { pairs, load } => (load, runtime.block_on(pipe::run(load, *pairs))),
    };
    runtime.shutdown_background();
    let report = found?;
    report.print(load.json)?;
    if report.failed() {
        return Err(Failure::new(format!("{} messages lost, {} out of order", report.lost, report.out_of_order)));
    }
    Ok(())
}
