//! Many browsers on Weir's dashboard feed that take the newest of each topic only, without a browser.
//!
//! Invariant: what a browser is told and what is counted as thinned are together what was published; the last of each topic is told, and no topic goes back.
//! Must not know: MQTT.

use super::{
    Load,
    feed::{Socket, next, open, understood},
    flow::{Run, Times, times},
    message::Mark,
    name, progress,
    report::{Latency, Report},
    scenarios::{charge, ended, publishers, timed, wait_for},
};
use crate::client::Failure;
use futures_util::{StreamExt, stream};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{sync::watch, task::JoinHandle};

/// Messages per second if nothing is said.
const RATE: f64 = 100.0;
/// Opened at once.
const OPENING: usize = 64;
/// Every so many browsers one reads what it is told; the others count.
const READS: u32 = 50;

/// What one browser has got.
struct Got {
    times: Times,
    /// Newest of each publisher, of who reads.
    newest: BTreeMap<u32, u64>,
    went_back: u64,
    reads: bool,
}

/// What all browsers together are told.
#[derive(Default)]
struct Told {
    frames: AtomicU64,
    /// In those frames.
    messages: AtomicU64,
}

impl Told {
    fn read(&self) -> [u64; 2] {
        [&self.frames, &self.messages].map(|n| n.load(Ordering::Relaxed))
    }
}

/// A number that stands in the beginning of a message.
fn number(text: &str, name: &str) -> u64 {
    let head = text.get(..160).unwrap_or(text);
    let rest = head.split_once(name).map_or("", |(_, rest)| rest);
    rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

async fn listen(mut socket: Socket, run: Arc<Run>, all: Arc<Told>, reads: bool, mut stop: watch::Receiver<bool>) -> Result<Got, Failure> {
    let mut got = Got { times: times(), newest: BTreeMap::new(), went_back: 0, reads };
    loop {
        let text = tokio::select! {
            text = next(&mut socket) => text?,
            _ = stop.wait_for(|stop| *stop) => return Ok(got),
        };
        if !text.starts_with(r#"{"type":"records""#) {
            continue;
        }
        let told = text.matches(r#""topic":""#).count() as u64;
        all.frames.fetch_add(1, Ordering::Relaxed);
        all.messages.fetch_add(told, Ordering::Relaxed);
        run.delivered.fetch_add(told + number(&text, r#""thinned":"#), Ordering::Relaxed);
        if !reads {
            continue;
        }
        let told = understood(&text)?;
        for mark in told.records.iter().filter_map(|r| Mark::parse(r.text.as_ref()?.as_bytes())) {
            if run.is_measuring() {
                got.times.saturating_record(run.now_ns().saturating_sub(mark.at_ns) / 1_000);
            }
            if got.newest.insert(mark.publisher, mark.seq).is_some_and(|before| before >= mark.seq) {
                got.went_back += 1;
            }
        }
    }
}

pub async fn run(load: &Load, url: &str, browsers: u32, rate_max: f64, count: u32) -> Result<Report, Failure> {
    let load = &Load { rate: load.rate.or(Some(RATE)), ..load.clone() };
    let (run, target, name, told) = (Run::new(), load.target(), name(), Arc::new(Told::default()));
    let (stop, stopping) = watch::channel(false);
    let ask = serde_json::json!({ "filter": format!("{name}/#"), "latest_only": true, "rate_max": rate_max });
    let opened: Vec<_> = stream::iter(0..browsers).map(|_| open(url, ask.clone())).buffer_unordered(OPENING).collect().await;
    let mut tasks: Vec<JoinHandle<_>> = Vec::new();
    for (n, socket) in opened.into_iter().enumerate() {
        let reads = (n as u32).is_multiple_of(READS);
        tasks.push(tokio::spawn(listen(socket?, run.clone(), told.clone(), reads, stopping.clone())));
    }
    let publishers = publishers(load, &target, &run, &name, count, load.pace(count)).await?;
    let bar = progress();
    let before = told.read();
    let (measured, costs) = timed(load, &run, &bar).await?;
    let now = told.read();
    run.stop_publishing();
    let mut sent = BTreeMap::new();
    for publisher in publishers {
        let p = ended(publisher.await)?;
        sent.insert(p.publisher, p.sent);
    }
    let published: u64 = sent.values().sum();
    let expected = published * u64::from(browsers);
    wait_for(load, &run, expected, &bar).await;
    bar.finish_and_clear();
    let _who_has_failed_is_gone = stop.send(true);
    let mut report = load.report("browsers");
    let (mut all, delivered) = (times(), run.delivered.load(Ordering::Relaxed));
    report.lost = expected.saturating_sub(delivered);
    for task in tasks {
        let got: Got = ended(task.await)?;
        all.add(&got.times).map_err(Failure::new)?;
        report.out_of_order += got.went_back;
        if got.reads {
            report.lost += sent.iter().filter(|(p, n)| **n > 0 && got.newest.get(p) != Some(&(**n - 1))).count() as u64;
        }
    }
    (report.published, report.delivered, report.seconds) = (published, delivered, measured.seconds);
    report.delivered_per_second = Some(measured.delivered);
    report.latency_us = Latency::of(&all);
    // One second of warming up is in it.
    for (name, now, before) in [("frames_per_second", now[0], before[0]), ("told_per_second", now[1], before[1])] {
        report.more.insert(name, ((now - before) as f64 / (measured.seconds + 1.0)).round().into());
    }
    charge(&mut report, costs, measured.seconds);
    Ok(report)
}
