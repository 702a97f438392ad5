//! `weir log cat`: the messages of a log as lines, from its files or from the gateway that runs on it.

use crate::{
    api::{
        log::{PartitionInfo, StreamsInfo},
        records::RecordsPart,
    },
    ask,
    gateway::stored,
    terminal,
    terminal::shown,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::Args;
use serde_json::json;
use std::{
    borrow::Cow,
    io::{ErrorKind, StdoutLock, Write},
    path::PathBuf,
    time::{Duration, UNIX_EPOCH},
};
use weir_core::topic::{SYSTEM_STREAM, filter_is_valid, filter_matches, is_system};
use weir_log::{
    Offset,
    offline::{Found, Offline, behind},
};

#[derive(Args, Clone, Debug)]
pub struct Cat {
    /// The data directory; no gateway may run on it.
    #[arg(long, value_name = "DIR", default_value = "weir-data", conflicts_with = "admin")]
    data: PathBuf,
    /// Ask the gateway that runs, at its admin port, in place of reading files.
    #[arg(long, value_name = "ADDR:PORT")]
    admin: Option<String>,
    /// Only topics that match; without it all but those of the gateway's own ($SYS/…).
    #[arg(short, long, value_name = "FILTER")]
    topic: Option<String>,
    /// From this record on, in each partition.
    #[arg(long, value_name = "OFFSET", default_value_t = 0)]
    from: u64,
    /// Up to the one before this record, in each partition.
    #[arg(long, value_name = "OFFSET")]
    until: Option<u64>,
    /// A line of JSON per message: offset, time, topic, QoS, retain, payload (base64 in `payload64` where it is no text).
    #[arg(short, long)]
    json: bool,
}

/// A message to print.
struct Line<'a> {
    /// STREAM/PARTITION.
    partition: &'a str,
    offset: u64,
    time_ms: u64,
    topic: Cow<'a, str>,
    qos: u8,
    retain: bool,
    payload: Cow<'a, [u8]>,
}

/// Where lines go, and what was missing on the way.
struct Printer<'a> {
    cat: &'a Cat,
    out: std::io::BufWriter<StdoutLock<'static>>,
    failed: Option<std::io::Error>,
    lost: bool,
}

impl Cat {
    pub(crate) fn run(&self) -> Result<(), String> {
        if let Some(filter) = self.topic.as_ref().filter(|f| !filter_is_valid(f)) {
            return Err(format!("-t {filter}: not a topic filter; # stands alone at the end, + for one whole level"));
        }
        let mut printer = Printer { cat: self, out: std::io::BufWriter::new(std::io::stdout().lock()), failed: None, lost: false };
        match &self.admin {
            Some(admin) => printer.of_gateway(&ask::Admin::at(admin))?,
            None => printer.of_files()?,
        }
        printer.end()
    }

    fn wants(&self, offset: u64, topic: &str) -> bool {
        let in_range = offset >= self.from && self.until.is_none_or(|until| offset < until);
        in_range && self.topic.as_ref().map_or_else(|| !is_system(topic), |filter| filter_matches(filter, topic))
    }
}

impl Printer<'_> {
    fn of_files(&mut self) -> Result<(), String> {
        let log = Offline::open(&self.cat.data).map_err(|e| format!("{e}; --admin asks the gateway that runs"))?;
        for source in log.sources.iter().filter(|s| s.name != "state") {
            let mut each = |found: Found| {
                match found {
                    Found::Batch(batch) => {
                        return batch.iter().all(|r| {
                            // Notes are the log's own.
                            let Some(m) = stored(&r) else { return true };
                            self.line(&Line {
                                partition: &source.name,
                                offset: m.offset.0,
                                time_ms: r.time_ms,
                                topic: String::from_utf8_lossy(m.topic),
                                qos: m.qos as u8,
                                retain: m.retain,
                                payload: m.payload.into(),
                            })
                        });
                    }
                    Found::Head { name, why } => terminal::say(format_args!("weir: {name}: {why}")),
                    Found::Damage(d) => self.missing(d),
                    Found::Missing { name } => {
                        self.missing(format_args!("{name} is missing: restore the file from a copy to have its records back"))
                    }
                    Found::Behind { name, at, from } => self.missing(behind(&name, at, from)),
                    Found::File { .. } | Found::Torn { .. } => {}
                }
                true
            };
            source.read(&mut each).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    fn of_gateway(&mut self, admin: &ask::Admin) -> Result<(), String> {
        let wants_system = self.cat.topic.as_deref().is_some_and(is_system);
        let partitions = admin.get::<StreamsInfo>("streams")?.streams;
        for p in partitions.iter().filter(|p| (p.stream == SYSTEM_STREAM) == wants_system) {
            self.of_partition(admin, p)?;
        }
        Ok(())
    }

    /// Up to the end that the log had when it was asked: what is written meanwhile does not make it endless.
    fn of_partition(&mut self, admin: &ask::Admin, p: &PartitionInfo) -> Result<(), String> {
        let partition = format!("{}/{}", p.stream, p.partition);
        let until = self.cat.until.unwrap_or(u64::MAX).min(p.end);
        let filter = self.cat.topic.as_ref().map_or_else(String::new, |filter| format!("&filter={}", ask::escaped(filter)));
        let mut from = self.cat.from.max(p.start);
        while from < until {
            let part: RecordsPart = admin.get(&format!("records/{partition}?from={from}&until={until}{filter}"))?;
            for m in &part.records {
                let payload = match (&m.text, &m.base64) {
                    (Some(text), _) => text.as_bytes().into(),
                    (None, base64) => STANDARD.decode(base64.as_deref().unwrap_or_default()).map_err(|e| e.to_string())?.into(),
                };
                let (offset, time_ms, topic) = (m.offset, m.time_ms, m.topic.as_str().into());
                if !self.line(&Line { partition: &partition, offset, time_ms, topic, qos: m.qos, retain: m.retain, payload }) {
                    return Ok(());
                }
            }
            for lost in part.lost {
                self.missing(format_args!(
                    "{partition}: {} are lost: {}",
                    weir_log::records(&(Offset(lost.from)..Offset(lost.to))),
                    lost.reason
                ));
            }
            if part.next <= from {
                return Err(format!("{partition}: nothing was read at {from}"));
            }
            from = part.next;
        }
        Ok(())
    }

    fn missing(&mut self, what: impl std::fmt::Display) {
        self.lost = true;
        terminal::say(format_args!("weir: {what}"));
    }

    /// False: it cannot be printed, and nothing behind it can.
    fn line(&mut self, line: &Line<'_>) -> bool {
        if self.cat.wants(line.offset, &line.topic)
            && let Err(e) = self.print(line)
        {
            self.failed = Some(e);
        }
        self.failed.is_none()
    }

    fn print(&mut self, line: &Line<'_>) -> std::io::Result<()> {
        let time = humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(line.time_ms));
        if self.cat.json {
            return writeln!(self.out, "{}", as_json(line, &time.to_string()));
        }
        write!(self.out, "{}:{} {time} ", line.partition, line.offset)?;
        self.out.write_all(&shown(&[line.topic.as_bytes(), b" ", &line.payload].concat()))?;
        self.out.write_all(b"\n")
    }

    fn end(mut self) -> Result<(), String> {
        match self.failed.take().map_or_else(|| self.out.flush(), Err) {
            // Whoever read it has enough.
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
            Ok(()) if self.lost => Err("acknowledged records cannot be read; what is above is not all".into()),
            other => other.map_err(|e| format!("standard output: {e}")),
        }
    }
}

fn as_json(m: &Line<'_>, time: &str) -> serde_json::Value {
    let mut line = json!({
        "stream": m.partition, "offset": m.offset, "time": time, "topic": m.topic, "qos": m.qos, "retain": m.retain,
    });
    match std::str::from_utf8(&m.payload) {
        Ok(text) => line["payload"] = text.into(),
        Err(_) => line["payload64"] = STANDARD.encode(&m.payload).into(),
    }
    line
}
