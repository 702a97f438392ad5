//! `weir log`: a data directory that no gateway runs on, verified, printed and repaired.
//!
//! Invariant: only `repair` changes anything but the lock that it takes; exit code 1 of `verify` means that something acknowledged cannot be read.
//! Must not know: a gateway.

use crate::gateway::stored;
use crate::terminal::shown;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use std::{
    io::{ErrorKind, Write},
    path::PathBuf,
    time::{Duration, UNIX_EPOCH},
};
use weir_core::{
    message::Stored,
    topic::{filter_is_valid, filter_matches, is_system},
};
use weir_log::{
    Record,
    offline::{Found, Offline, Source, behind},
};

#[derive(Subcommand, Clone, Debug)]
pub enum Log {
    /// Read everything and check every checksum. Exit code 1: something that was acknowledged cannot be read.
    Verify(Verify),
    /// Print the messages of the log, oldest first.
    Cat(Cat),
    /// Write a damaged state store anew from what of it can be read, so that the gateway starts. Says what is lost; the old files stay beside it.
    Repair(Repair),
}

#[derive(Args, Clone, Debug)]
pub struct Repair {
    /// The data directory; no gateway may run on it.
    #[arg(long, value_name = "DIR", default_value = "weir-data")]
    data: PathBuf,
}

#[derive(Args, Clone, Debug)]
pub struct Verify {
    /// The data directory; no gateway may run on it.
    #[arg(long, value_name = "DIR", default_value = "weir-data")]
    data: PathBuf,
}

#[derive(Args, Clone, Debug)]
pub struct Cat {
    /// The data directory; no gateway may run on it.
    #[arg(long, value_name = "DIR", default_value = "weir-data")]
    data: PathBuf,
    /// Only topics that match; without it all but those of the gateway's own ($SYS/…).
    #[arg(short, long, value_name = "FILTER")]
    topic: Option<String>,
    /// From this record on, in each partition.
    #[arg(long, value_name = "OFFSET", default_value_t = 0)]
    from: u64,
    /// A line of JSON per message: offset, time, topic, QoS, retain, payload (base64 in `payload64` where it is no text).
    #[arg(short, long)]
    json: bool,
}

impl Log {
    pub fn run(&self) -> Result<(), String> {
        match self {
            Self::Verify(v) => v.run(),
            Self::Cat(c) => c.run(),
            Self::Repair(r) => r.run(),
        }
    }
}

impl Repair {
    fn run(&self) -> Result<(), String> {
        let repaired = weir_log::repair::repair(&self.data, &|key| key.starts_with(b"folded/")).map_err(|e| e.to_string())?;
        repaired.lost.iter().for_each(|lost| println!("{lost}"));
        match repaired.aside {
            None => println!(
                "state: {} values, and nothing to repair; damaged streams need no repair, the gateway starts on them",
                repaired.values
            ),
            Some(aside) => println!(
                "state: {} values are kept, and sessions and groups that stood in the damaged places are lost or older than they were, and what is retained is read from the log again; the old files are in {}",
                repaired.values,
                aside.display()
            ),
        }
        Ok(())
    }
}

/// What one source holds.
#[derive(Default)]
struct Sum {
    files: u64,
    batches: u64,
    records: u64,
    ends: Option<(u64, u64)>,
    damaged: u64,
}

impl Verify {
    fn run(&self) -> Result<(), String> {
        let log = Offline::open(&self.data).map_err(|e| e.to_string())?;
        let bar = ProgressBar::new(log.sources.iter().map(|s| s.bytes).sum());
        let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}").map_err(|e| e.to_string())?;
        bar.set_style(style);
        let mut damaged = 0;
        for source in log.sources.iter().filter(|s| s.name != "state") {
            damaged += verify(source, &bar)?;
        }
        bar.finish_and_clear();
        let mut state = log.sources.iter().find(|s| s.name == "state").map_or(Ok(0), |s| verify(s, &bar))?;
        for stream in &log.unknown {
            state += 1;
            println!(
                "the state store does not know the stream {stream}, which has records: its files are missing, or of another data directory"
            );
        }
        match (damaged, state) {
            (0, 0) => Ok(()),
            (0, _) => Err("the state store is damaged, and the gateway does not start on it: restore its files from a copy, or keep what can be read with weir log repair".into()),
            (n, 0) => Err(format!("acknowledged records cannot be read in places: {n}; the gateway serves the others")),
            (n, _) => Err(format!(
                "acknowledged records of streams cannot be read in places: {n}; and the state store is damaged, and the gateway does not start on it: restore its files from a copy, or keep what can be read with weir log repair"
            )),
        }
    }
}

/// Gives the number of damaged places.
fn verify(source: &Source, bar: &ProgressBar) -> Result<u64, String> {
    let mut sum = Sum::default();
    // The bar stands below what is said.
    let say = |line: String| bar.suspend(|| println!("{line}"));
    let mut each = |found: Found| {
        match found {
            Found::File { bytes, .. } => {
                sum.files += 1;
                bar.inc(bytes);
            }
            Found::Batch(b) => {
                sum.batches += 1;
                sum.records += b.len() as u64;
                let start = sum.ends.map_or(b.first().0, |(start, _)| start);
                sum.ends = Some((start, b.end().0));
            }
            Found::Head { name, why } => say(format!("{name}: {why}")),
            Found::Missing { name } => {
                sum.damaged += 1;
                say(format!("{name} is missing: restore the file from a copy to have its records back"));
            }
            Found::Damage(d) => {
                sum.damaged += 1;
                say(d.to_string());
            }
            Found::Behind { name, at, from } => {
                sum.damaged += 1;
                say(behind(&name, at, from));
            }
            Found::Torn { name, at, bytes } => {
                say(format!("{name}: {bytes} bytes at {at} were begun and never acknowledged; the next start cuts them"));
            }
        }
        true
    };
    source.read(&mut each).map_err(|e| e.to_string())?;
    let range = sum.ends.map_or_else(|| "empty".into(), |(start, end)| format!("records {start} to {}", end.saturating_sub(1)));
    say(format!("{}: files {}, batches {}, records {}, {range}", source.name, sum.files, sum.batches, sum.records));
    Ok(sum.damaged)
}

impl Cat {
    fn run(&self) -> Result<(), String> {
        if let Some(filter) = self.topic.as_ref().filter(|f| !filter_is_valid(f)) {
            return Err(format!("-t {filter}: not a topic filter; # stands alone at the end, + for one whole level"));
        }
        let log = Offline::open(&self.data).map_err(|e| e.to_string())?;
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        let (mut failed, mut lost) = (None, false);
        for source in log.sources.iter().filter(|s| s.name != "state") {
            let mut each = |found: Found| match found {
                Found::Batch(batch) => batch.iter().filter(|r| r.offset.0 >= self.from).all(|r| match self.print(source, &r, &mut out) {
                    Ok(()) => true,
                    Err(e) => {
                        failed = Some(e);
                        false
                    }
                }),
                Found::Head { name, why } => {
                    eprintln!("weir: {name}: {why}");
                    true
                }
                Found::Damage(d) => {
                    lost = true;
                    eprintln!("weir: {d}");
                    true
                }
                Found::Missing { name } => {
                    lost = true;
                    eprintln!("weir: {name} is missing: restore the file from a copy to have its records back");
                    true
                }
                Found::Behind { name, at, from } => {
                    lost = true;
                    eprintln!("weir: {}", behind(&name, at, from));
                    true
                }
                Found::File { .. } | Found::Torn { .. } => true,
            };
            source.read(&mut each).map_err(|e| e.to_string())?;
        }
        match failed.map_or_else(|| out.flush(), Err) {
            // Whoever read it has enough.
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
            Ok(()) if lost => Err("acknowledged records cannot be read; what is above is not all".into()),
            other => other.map_err(|e| format!("standard output: {e}")),
        }
    }

    fn print(&self, source: &Source, r: &Record<'_>, out: &mut impl Write) -> std::io::Result<()> {
        // Notes are the log's own.
        let Some(m) = stored(r) else { return Ok(()) };
        let topic = String::from_utf8_lossy(m.topic);
        if !self.topic.as_ref().map_or_else(|| !is_system(&topic), |f| filter_matches(f, &topic)) {
            return Ok(());
        }
        let time = humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(r.time_ms));
        if self.json {
            return writeln!(out, "{}", as_json(source, &m, &topic, &time.to_string()));
        }
        write!(out, "{}:{} {time} ", source.name, m.offset)?;
        out.write_all(&shown(&[topic.as_bytes(), b" ", m.payload].concat()))?;
        out.write_all(b"\n")
    }
}

fn as_json(source: &Source, m: &Stored<'_>, topic: &str, time: &str) -> serde_json::Value {
    let mut line = json!({
        "stream": source.name, "offset": m.offset.0, "time": time, "topic": topic, "qos": m.qos as u8, "retain": m.retain,
    });
    match std::str::from_utf8(m.payload) {
        Ok(text) => line["payload"] = text.into(),
        Err(_) => line["payload64"] = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, m.payload).into(),
    }
    line
}
