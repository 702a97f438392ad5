//! `weir log`: a data directory that no gateway runs on, verified and repaired.
//!
//! Invariant: only `repair` changes anything but the lock that it takes; exit code 1 of `verify` means that something acknowledged cannot be read.
//! Must not know: a gateway.

use crate::cat::Cat;
use clap::{Args, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::path::PathBuf;
use weir_log::{
    Offset,
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
    /// How the result is printed.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
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

/// Something that is not as it should be.
#[derive(Clone, Debug, Serialize)]
struct Problem {
    /// `damage`, `missing`, `behind`, or, where nothing that was acknowledged is lost, `head`, `torn`.
    kind: &'static str,
    /// For people: the file, the byte, the records, and what helps.
    words: String,
    /// Records that are lost, where they are known; `to` is one past the last.
    from: Option<u64>,
    to: Option<u64>,
}

impl Problem {
    fn new(kind: &'static str, words: impl ToString) -> Self {
        Self { kind, words: words.to_string(), from: None, to: None }
    }

    fn is_loss(&self) -> bool {
        !matches!(self.kind, "head" | "torn")
    }
}

/// What one source holds.
#[derive(Debug, Default, Serialize)]
struct Sum {
    /// STREAM/PARTITION, or `state`.
    name: String,
    files: u64,
    batches: u64,
    records: u64,
    /// The first record, and one past the last; missing: there is none.
    from: Option<u64>,
    to: Option<u64>,
    problems: Vec<Problem>,
}

impl Sum {
    fn losses(&self) -> usize {
        self.problems.iter().filter(|p| p.is_loss()).count()
    }
}

impl Verify {
    fn run(&self) -> Result<(), String> {
        let log = Offline::open(&self.data).map_err(|e| e.to_string())?;
        let bar = ProgressBar::new(log.sources.iter().map(|s| s.bytes).sum());
        let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}").map_err(|e| e.to_string())?;
        bar.set_style(style);
        let mut sums = Vec::new();
        // The state store is the last.
        for is_state in [false, true] {
            for source in log.sources.iter().filter(|s| (s.name == "state") == is_state) {
                sums.push(verify(source, &bar, self.output)?);
            }
        }
        bar.finish_and_clear();
        let damaged: usize = sums.iter().filter(|s| s.name != "state").map(Sum::losses).sum();
        let state = sums.iter().filter(|s| s.name == "state").map(Sum::losses).sum::<usize>() + log.unknown.len();
        for stream in &log.unknown {
            let words = format!(
                "the state store does not know the stream {stream}, which has records: its files are missing, or of another data directory"
            );
            match self.output {
                Output::Text => println!("{words}"),
                Output::Json => sums.push(Sum { name: stream.clone(), problems: vec![Problem::new("unknown", words)], ..Sum::default() }),
            }
        }
        if self.output == Output::Json {
            println!("{}", serde_json::to_string_pretty(&sums).map_err(|e| e.to_string())?);
        }
        match (damaged, state) {
            (0, 0) => Ok(()),
            (0, _) => Err(STATE_IS_DAMAGED.into()),
            (n, 0) => Err(format!("acknowledged records cannot be read in places: {n}; the gateway serves the others")),
            (n, _) => Err(format!("acknowledged records of streams cannot be read in places: {n}; and {STATE_IS_DAMAGED}")),
        }
    }
}

const STATE_IS_DAMAGED: &str = "the state store is damaged, and the gateway does not start on it: restore its files from a copy, \
     or keep what can be read with weir log repair";

fn verify(source: &Source, bar: &ProgressBar, output: Output) -> Result<Sum, String> {
    let mut sum = Sum { name: source.name.clone(), ..Sum::default() };
    // The bar stands below what is said.
    let say = |line: &str| {
        if output == Output::Text {
            bar.suspend(|| println!("{line}"));
        }
    };
    let mut each = |found: Found| {
        let problem = match found {
            Found::File { bytes, .. } => {
                sum.files += 1;
                bar.inc(bytes);
                return true;
            }
            Found::Batch(b) => {
                sum.batches += 1;
                sum.records += b.len() as u64;
                sum.from = sum.from.or(Some(b.first().0));
                sum.to = Some(b.end().0);
                return true;
            }
            Found::Head { name, why } => Problem::new("head", format_args!("{name}: {why}")),
            Found::Missing { name } => {
                Problem::new("missing", format_args!("{name} is missing: restore the file from a copy to have its records back"))
            }
            Found::Damage(d) => {
                let (from, to) = (Some(d.range.start.0), Some(d.range.end.0));
                Problem { from, to, ..Problem::new("damage", d) }
            }
            Found::Behind { name, at, from } => Problem::new("behind", behind(&name, at, from)),
            Found::Torn { name, at, bytes } => {
                let words = format!("{name}: {bytes} bytes at {at} were begun and never acknowledged; the next start cuts them");
                Problem::new("torn", words)
            }
        };
        say(&problem.words);
        sum.problems.push(problem);
        true
    };
    source.read(&mut each).map_err(|e| e.to_string())?;
    let range = match (sum.from, sum.to) {
        (Some(from), Some(to)) => weir_log::records(&(Offset(from)..Offset(to))),
        _ => "empty".into(),
    };
    say(&format!("{}: files {}, batches {}, records {}, {range}", source.name, sum.files, sum.batches, sum.records));
    Ok(sum)
}
