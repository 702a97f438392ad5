//! Connections and sessions themselves, without messages.
//!
//! Invariant: a run that comes to its end leaves no session behind.
//! Must not know: packets.

use super::{
    Load,
    flow::{Times, times},
    name, progress,
    report::{Cost, Latency, Report},
    scenarios::{charge, ended},
    wire::{Conn, Target},
};
use crate::client::Failure;
use indicatif::ProgressBar;
use serde_json::json;
use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// Connections from one address: it has 28,000 ports as Linux comes, and the search for a free one is slow long before.
const PORTS: u32 = 1_000;

/// The address of the nth connection; on loopback there are as many as wanted.
fn source(target: &Target, nth: u32) -> Option<IpAddr> {
    let host: Ipv4Addr = target.host.parse().ok()?;
    host.is_loopback().then(|| Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + nth / PORTS).into())
}

pub async fn connects(load: &Load, at_once: u32) -> Result<Report, Failure> {
    let (target, name, bar) = (load.target(), name(), progress());
    let end = Instant::now() + Duration::from_secs(load.seconds);
    let before = load.pid.map(Cost::of).transpose()?;
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for n in 0..at_once {
        let (target, name) = (target.clone(), format!("{name}-{n}"));
        tasks.spawn(async move {
            let mut times = times();
            // Ports that were used are free again after a minute only, and the search for others is slow: so the addresses change.
            for nth in (n..).step_by(at_once as usize).take_while(|_| Instant::now() < end) {
                let target = Target { from: source(&target, nth), ..target.clone() };
                let began = Instant::now();
                let mut conn = Conn::open(&target, &name, false).await?;
                times.saturating_record(began.elapsed().as_micros() as u64);
                conn.send(&[0xE0, 0]).await?;
            }
            Ok::<Times, Failure>(times)
        });
    }
    let mut all = times();
    while let Some(one) = tasks.join_next().await {
        all.add(&ended(one)?).map_err(Failure::new)?;
    }
    bar.finish_and_clear();
    let seconds = start.elapsed().as_secs_f64();
    let mut report = Report { seconds, ..load.report("connects") };
    report.more.insert("connects", all.len().into());
    report.more.insert("connects_per_second", json!((all.len() as f64 / seconds).round()));
    report.more.insert("connect_us", json!(Latency::of(&all)));
    charge(&mut report, before.zip(load.pid.map(Cost::of).transpose()?), seconds);
    Ok(report)
}

pub async fn idle(load: &Load, connections: u32) -> Result<Report, Failure> {
    crate::run::raise_descriptors();
    let (target, name, bar) = (load.target(), name(), progress());
    let empty = load.pid.map(Cost::of).transpose()?;
    let mut open = Vec::new();
    for n in 0..connections {
        let target = Target { from: source(&target, n), ..target.clone() };
        open.push(Conn::open(&target, &format!("{name}-{n}"), false).await?);
        bar.set_message(format!("{n} of {connections} connections"));
    }
    let (before, start) = (load.pid.map(Cost::of).transpose()?, Instant::now());
    tokio::time::sleep(Duration::from_secs(load.seconds)).await;
    let (after, seconds) = (load.pid.map(Cost::of).transpose()?, start.elapsed().as_secs_f64());
    bar.finish_and_clear();
    let mut report = Report { seconds, ..load.report("idle") };
    report.more.insert("connections", open.len().into());
    report.more.extend(Cost::each(empty, after, connections).map(|each| ("resident_bytes_per_connection", each.into())));
    charge(&mut report, before.zip(after), seconds);
    Ok(report)
}

/// Clients at work at once: each waits for syncs.
const AT_ONCE: u32 = 100;

/// Sessions whose clients have gone, with a subscription each: what each costs the process named by --pid.
pub async fn sessions(load: &Load, count: u32) -> Result<Report, Failure> {
    let (target, name, bar) = (load.target(), name(), progress());
    let empty = load.pid.map(Cost::of).transpose()?;
    let start = Instant::now();
    let qos = load.qos;
    each(count, &bar, "sessions", |n| {
        let (target, id, filter) = (target.clone(), format!("{name}-{n}"), format!("{name}/{n}"));
        async move {
            let mut conn = Conn::open(&target, &id, true).await?;
            conn.subscribe(&filter, qos, |_| ()).await?;
            conn.send(&[0xE0, 0]).await
        }
    })
    .await?;
    let seconds = start.elapsed().as_secs_f64();
    let held = load.pid.map(Cost::of).transpose()?;
    each(count, &bar, "sessions ended", |n| {
        let (target, id) = (target.clone(), format!("{name}-{n}"));
        // A clean start ends the session.
        async move { Conn::open(&target, &id, false).await?.send(&[0xE0, 0]).await }
    })
    .await?;
    bar.finish_and_clear();
    let mut report = Report { seconds, ..load.report("sessions") };
    report.more.insert("sessions", count.into());
    report.more.insert("sessions_per_second", json!((f64::from(count) / seconds).round()));
    report.more.extend(Cost::each(empty, held, count).map(|each| ("resident_bytes_per_session", each.into())));
    charge(&mut report, empty.zip(held), seconds);
    Ok(report)
}

/// Does it for every number below `count`, some at once.
async fn each<F>(count: u32, bar: &ProgressBar, what: &str, mut one: impl FnMut(u32) -> F) -> Result<(), Failure>
where
    F: Future<Output = Result<(), Failure>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for n in 0..count {
        tasks.spawn(one(n));
        if tasks.len() as u32 >= AT_ONCE
            && let Some(done) = tasks.join_next().await
        {
            ended(done)?;
            bar.set_message(format!("{n} of {count} {what}"));
        }
    }
    while let Some(done) = tasks.join_next().await {
        ended(done)?;
    }
    Ok(())
}
