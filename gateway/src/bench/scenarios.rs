//! What is asked of a broker.
//!
//! Invariant: a run has topics and client ids of its own, and one that comes to its end leaves no session and no retained message behind.
//! Must not know: packets.

use super::{
    Load,
    fill::{fill, forget},
    flow,
    flow::{Got, Pace, Published, Run, Times, times},
    message::Template,
    name, progress,
    report::{Cost, Latency, Report},
    wire::{Conn, Target},
};
use crate::client::Failure;
use indicatif::ProgressBar;
use serde_json::json;
use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::{
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use weir_core::packet::Qos;

/// Time for the broker to come to its end.
const WARM_UP: Duration = Duration::from_secs(1);

/// Subscriptions of one client, and of one packet.
/// Fewer than fit in the value of a session by default.
const FILTERS_EACH: usize = 5_000;
const FILTERS_AT_ONCE: usize = 500;

/// A subscriber at work.
type Listening = JoinHandle<Result<Got, Failure>>;
/// A publisher at work.
type Publishing = JoinHandle<Result<Published, Failure>>;

/// Subscribers at work: whose messages each is to get, and how it is told to stop.
pub struct Subscribers {
    tasks: Vec<(Vec<u32>, Listening)>,
    stop: watch::Sender<bool>,
}

impl Subscribers {
    pub fn new() -> Self {
        Self { tasks: Vec::new(), stop: watch::channel(false).0 }
    }

    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    pub fn push(&mut self, publishers: Vec<u32>, task: Listening) {
        self.tasks.push((publishers, task));
    }

    /// Everything has come that will: they stop, and what each has got is judged by what each publisher has sent. Gives their times.
    async fn judge(self, report: &mut Report, sent: impl Fn(u32) -> u64) -> Result<Times, Failure> {
        let _who_has_failed_is_gone = self.stop.send(true);
        let (mut all, mut marks, mut to_group) = (times(), Vec::new(), 0);
        for (who, task) in self.tasks {
            let got = ended(task.await)?;
            let published: Vec<_> = who.into_iter().map(|p| (p, sent(p))).collect();
            all.add(got.times.all()).map_err(Failure::new)?;
            report.repeated += got.seen.repeated;
            report.out_of_order += got.seen.out_of_order;
            if let Some(mut of_member) = got.marks {
                marks.append(&mut of_member);
                to_group += published.iter().map(|(_, sent)| sent).sum::<u64>();
                continue;
            }
            report.delivered += got.seen.received;
            report.lost += got.seen.lost(&published);
        }
        // What one member of a group does not have another must.
        let given = marks.len() as u64;
        marks.sort_unstable();
        marks.dedup();
        let once = marks.len() as u64;
        report.repeated += given - once;
        report.delivered += once;
        report.lost += to_group.saturating_sub(once);
        Ok(all)
    }
}

pub fn ended<T>(joined: Result<Result<T, Failure>, tokio::task::JoinError>) -> Result<T, Failure> {
    joined.map_err(Failure::new)?
}

/// Publishes and measures; then waits until everything has come, and judges. What fails on the way ends the run.
pub async fn measure(
    load: &Load,
    run: &Arc<Run>,
    mut report: Report,
    publishers: Vec<Publishing>,
    mut subscribers: Subscribers,
) -> Result<Report, Failure> {
    let bar = progress();
    let (measured, cost) = {
        let work = timed(load, run, &bar);
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => break done?,
                () = tokio::time::sleep(Duration::from_millis(100)) => {
                    // Whoever ends now has failed.
                    if let Some((_, task)) = subscribers.tasks.iter_mut().find(|(_, task)| task.is_finished()) {
                        ended(task.await)?;
                    }
                    if publishers.iter().any(JoinHandle::is_finished) {
                        break (Measured::default(), None);
                    }
                }
            }
        }
    };
    run.stop_publishing();
    let (mut sent, mut acknowledged, mut done) = (BTreeMap::new(), times(), Vec::new());
    for publisher in publishers {
        let p = ended(publisher.await)?;
        acknowledged.add(&p.times).map_err(Failure::new)?;
        sent.insert(p.publisher, p.sent);
        done.push(p);
    }
    let of = |p: u32| sent.get(&p).copied().unwrap_or(0);
    let expected: u64 = subscribers.tasks.iter().flat_map(|(who, _)| who).map(|p| of(*p)).sum();
    wait_for(load, run, expected, &bar).await;
    let latency = subscribers.judge(&mut report, of).await?;
    bar.finish_and_clear();
    report.published = sent.values().sum();
    report.seconds = measured.seconds;
    report.acknowledged_per_second = (load.qos != Qos::AtMostOnce).then_some(measured.acknowledged);
    report.delivered_per_second = Some(measured.delivered);
    report.latency_us = Latency::of(&latency);
    report.acknowledged_us = Latency::of(&acknowledged);
    charge(&mut report, cost, measured.seconds);
    Ok(report)
}

#[derive(Default)]
pub struct Measured {
    pub seconds: f64,
    pub acknowledged: f64,
    pub delivered: f64,
}

/// Costs before and after.
pub type Costs = Option<(Cost, Cost)>;

pub fn charge(report: &mut Report, costs: Costs, seconds: f64) {
    if let Some((before, after)) = costs {
        report.cpu_percent = Some((after.cpu.saturating_sub(before.cpu)).as_secs_f64() * 100.0 / seconds);
        report.resident_bytes = Some(after.resident_bytes);
    }
}

pub async fn timed(load: &Load, run: &Run, bar: &ProgressBar) -> Result<(Measured, Costs), Failure> {
    tokio::time::sleep(WARM_UP).await;
    let counts = || (run.acknowledged.load(Ordering::Relaxed) as f64, run.delivered.load(Ordering::Relaxed) as f64);
    let before = load.pid.map(Cost::of).transpose()?;
    let (start, (acknowledged, delivered)) = (Instant::now(), counts());
    run.measure(true);
    let mut last = delivered;
    for _ in 0..load.seconds {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (_, now) = counts();
        bar.set_message(format!("{:.0} delivered/s", now - last));
        last = now;
    }
    run.measure(false);
    let (seconds, (a, d)) = (start.elapsed().as_secs_f64(), counts());
    let after = load.pid.map(Cost::of).transpose()?;
    let measured = Measured { seconds, acknowledged: (a - acknowledged) / seconds, delivered: (d - delivered) / seconds };
    Ok((measured, before.zip(after)))
}

/// Waits until so many have come, or nothing has for a while.
pub async fn wait_for(load: &Load, run: &Run, expected: u64, bar: &ProgressBar) {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let now = run.delivered.load(Ordering::Relaxed);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        if now >= expected || since.elapsed() > load.patience() {
            return;
        }
        bar.set_message(format!("{} still to come", expected - now));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Publisher `n` publishes to `NAME/n`.
pub async fn publishers(
    load: &Load,
    target: &Target,
    run: &Arc<Run>,
    name: &str,
    count: u32,
    pace: Pace,
) -> Result<Vec<Publishing>, Failure> {
    publishers_to(load, target, run, name, count, pace, |n| format!("{name}/{n}")).await
}

async fn publishers_to(
    load: &Load,
    target: &Target,
    run: &Arc<Run>,
    name: &str,
    count: u32,
    pace: Pace,
    topic: impl Fn(u32) -> String,
) -> Result<Vec<Publishing>, Failure> {
    let mut all = Vec::new();
    for n in 0..count {
        let conn = Conn::open(target, &format!("{name}-pub-{n}"), false).await?;
        let template = Template::new(load.protocol_version, &topic(n), load.qos, false, load.size as usize);
        all.push((n, conn, template));
    }
    Ok(all
        .into_iter()
        .map(|(n, conn, template)| {
            let pace = Pace { phase: f64::from(n) / f64::from(count), ..pace };
            tokio::spawn(flow::publish(run.clone(), conn, n, template, pace))
        })
        .collect())
}

pub async fn subscriber(target: &Target, client_id: &str, filter: &str, load: &Load) -> Result<Conn, Failure> {
    let mut conn = Conn::open(target, client_id, load.persistent).await?;
    conn.subscribe(filter, load.qos, |_| ()).await?;
    Ok(conn)
}

/// Publishers and subscribers, each with the publishers that it reads; `None`: all.
async fn flow_of(load: &Load, report: Report, publishers_of: Vec<Option<u32>>, count: u32, pace: Pace) -> Result<Report, Failure> {
    let (run, target, name) = (Run::new(), load.target(), name());
    let (mut subscribers, ids) = (Subscribers::new(), publishers_of.len() as u32);
    for (n, of) in publishers_of.into_iter().enumerate() {
        let filter = of.map_or_else(|| format!("{name}/#"), |p| format!("{name}/{p}"));
        let conn = subscriber(&target, &format!("{name}-sub-{n}"), &filter, load).await?;
        let who = of.map_or_else(|| (0..count).collect(), |p| vec![p]);
        let stopping = subscribers.stopping();
        subscribers.push(who, tokio::spawn(flow::subscribe(run.clone(), conn, Got::new(), stopping)));
    }
    let publishers = publishers(load, &target, &run, &name, count, pace).await?;
    let report = measure(load, &run, report, publishers, subscribers).await?;
    end_sessions(load, &target, &name, ids).await?;
    Ok(report)
}

/// A clean start ends the session of each subscriber, where it outlives its connection.
async fn end_sessions(load: &Load, target: &Target, name: &str, count: u32) -> Result<(), Failure> {
    for n in (0..count).take_while(|_| load.persistent) {
        Conn::open(target, &format!("{name}-sub-{n}"), false).await?.send(&[0xE0, 0]).await?;
    }
    Ok(())
}

pub async fn fan_in(load: &Load, publishers: u32) -> Result<Report, Failure> {
    flow_of(load, load.report("fan-in"), vec![None], publishers, load.pace(publishers)).await
}

pub async fn pairs(load: &Load, pairs: u32) -> Result<Report, Failure> {
    flow_of(load, load.report("pairs"), (0..pairs).map(Some).collect(), pairs, load.pace(pairs)).await
}

pub async fn fan_out(load: &Load, publishers: u32, subscribers: u32) -> Result<Report, Failure> {
    flow_of(load, load.report("fan-out"), vec![None; subscribers as usize], publishers, load.pace(publishers)).await
}

pub async fn window_one(load: &Load) -> Result<Report, Failure> {
    flow_of(load, load.report("window-one"), vec![None], 1, Pace { window: 1, ..load.pace(1) }).await
}

/// Shared subscriptions of many members together, each with as many publishers: each message goes to one member.
pub async fn shared(load: &Load, publishers_count: u32, members: u32, groups: u32) -> Result<Report, Failure> {
    let (run, target, name) = (Run::new(), load.target(), name());
    let mut subscribers = Subscribers::new();
    for n in 0..members {
        let group = n % groups;
        let filter = format!("$share/{name}-{group}/{name}/{group}/#");
        let conn = subscriber(&target, &format!("{name}-sub-{n}"), &filter, load).await?;
        // All members together get what is published for their group: it is asked of the first.
        let of_group = (group..publishers_count).step_by(groups as usize);
        let who = if n == group { of_group.collect() } else { Vec::new() };
        let stopping = subscribers.stopping();
        subscribers.push(who, tokio::spawn(flow::subscribe(run.clone(), conn, Got::of_group(), stopping)));
    }
    let (pace, topic) = (load.pace(publishers_count), |n| format!("{name}/{}/{n}", n % groups));
    let publishers = publishers_to(load, &target, &run, &name, publishers_count, pace, topic).await?;
    let report = measure(load, &run, load.report("shared"), publishers, subscribers).await?;
    end_sessions(load, &target, &name, members).await?;
    Ok(report)
}

/// Fan-in beside many subscriptions of others, none of which matches.
pub async fn filters(load: &Load, publishers_count: u32, count: u32) -> Result<Report, Failure> {
    let (target, name, bar) = (load.target(), name(), progress());
    let empty = load.pid.map(Cost::of).transpose()?;
    let start = Instant::now();
    let mut open = Vec::new();
    for first in (0..count).step_by(FILTERS_EACH) {
        let mut conn = Conn::open(&target, &format!("{name}-holds-{first}"), false).await?;
        let last = count.min(first + FILTERS_EACH as u32);
        for part in (first..last).step_by(FILTERS_AT_ONCE) {
            // Topics that are published have two levels; half of these have a wildcard.
            let filter = |n: u32| if n.is_multiple_of(2) { format!("{name}/+/{n}/x") } else { format!("{name}/{n}/y") };
            let filters: Vec<String> = (part..last.min(part + FILTERS_AT_ONCE as u32)).map(filter).collect();
            conn.subscribe_all(&filters, load.qos, |_| ()).await?;
        }
        open.push(conn);
        bar.set_message(format!("{last} of {count} filters"));
    }
    let (seconds, held) = (start.elapsed().as_secs_f64(), load.pid.map(Cost::of).transpose()?);
    bar.finish_and_clear();
    let mut report = load.report("filters");
    report.more.insert("filters", count.into());
    report.more.insert("filters_per_second", json!((f64::from(count) / seconds).round()));
    report.more.extend(Cost::each(empty, held, count).map(|each| ("resident_bytes_per_filter", each.into())));
    flow_of(load, report, vec![None], publishers_count, load.pace(publishers_count)).await
}

/// One session per topic, and what each gets when it comes back after all was published.
pub async fn resume(load: &Load, scenario: &str, messages: u64, topics: u32) -> Result<Report, Failure> {
    let (target, name, bar) = (load.target(), name(), progress());
    let id = |n: u32| format!("{name}-sub-{n}");
    for n in 0..topics {
        let mut conn = Conn::open(&target, &id(n), true).await?;
        conn.subscribe(&format!("{name}/{n}"), load.qos, |_| ()).await?;
        conn.send(&[0xE0, 0]).await?;
        bar.set_message(format!("{n} of {topics} sessions"));
    }
    fill(load, &target, &name, (messages, topics), false, &bar).await?;
    let run = Run::new();
    let before = load.pid.map(Cost::of).transpose()?;
    let start = Instant::now();
    let mut subscribers = Subscribers::new();
    let (mut firsts, mut tasks) = (times(), JoinSet::new());
    for n in 0..topics {
        let (target, id, run, stop) = (target.clone(), id(n), run.clone(), subscribers.stopping());
        tasks.spawn(async move {
            let began = Instant::now();
            let conn = Conn::open(&target, &id, true).await?;
            let (conn, got, first) = flow::first(&run, conn, began).await?;
            Ok::<_, Failure>((n, first, tokio::spawn(flow::subscribe(run, conn, got, stop))))
        });
    }
    while let Some(one) =
        tokio::time::timeout(load.patience(), tasks.join_next()).await.map_err(|_| Failure::new("a session got nothing"))?
    {
        let (n, first, task) = ended(one)?;
        firsts.saturating_record(first.as_micros() as u64);
        subscribers.push(vec![n], task);
    }
    wait_for(load, &run, messages, &bar).await;
    let seconds = start.elapsed().as_secs_f64();
    let mut report = Report { seconds, published: messages, ..load.report(scenario) };
    charge(&mut report, before.zip(load.pid.map(Cost::of).transpose()?), seconds);
    let each = |p: u32| messages / u64::from(topics) + u64::from(u64::from(p) < messages % u64::from(topics));
    subscribers.judge(&mut report, each).await?;
    report.delivered_per_second = Some(report.delivered as f64 / seconds);
    report.more.insert("sessions", topics.into());
    report.more.insert("first_message_us", json!(Latency::of(&firsts)));
    report.more.insert("all_after_ms", json!((seconds * 1_000.0).round()));
    for n in 0..topics {
        // A clean start ends the session.
        Conn::open(&target, &id(n), false).await?.send(&[0xE0, 0]).await?;
    }
    bar.finish_and_clear();
    Ok(report)
}

/// Everybody gets every retained message, once.
pub async fn retained(load: &Load, topics: u32, subscribers: u32) -> Result<Report, Failure> {
    let (target, name, bar) = (load.target(), name(), progress());
    let empty = load.pid.map(Cost::of).transpose()?;
    fill(load, &target, &name, (topics.into(), topics), true, &bar).await?;
    let (run, before, start) = (Run::new(), load.pid.map(Cost::of).transpose()?, Instant::now());
    let each = Cost::each(empty, before, topics);
    let mut all = Subscribers::new();
    for n in 0..subscribers {
        let mut conn = Conn::open(&target, &format!("{name}-sub-{n}"), false).await?;
        let mut got = Got::new();
        conn.subscribe(&format!("{name}/#"), load.qos, |p| {
            run.delivered.fetch_add(got.packet(&p, 0, false), Ordering::Relaxed);
        })
        .await?;
        let stopping = all.stopping();
        all.push((0..topics).collect(), tokio::spawn(flow::subscribe(run.clone(), conn, got, stopping)));
    }
    let expected = u64::from(topics) * u64::from(subscribers);
    wait_for(load, &run, expected, &bar).await;
    let seconds = start.elapsed().as_secs_f64();
    let mut report = Report { seconds, published: u64::from(topics), ..load.report("retained") };
    charge(&mut report, before.zip(load.pid.map(Cost::of).transpose()?), seconds);
    all.judge(&mut report, |_| 1).await?;
    report.delivered_per_second = Some(report.delivered as f64 / seconds);
    report.more.extend(each.map(|each| ("resident_bytes_per_message", each.into())));
    forget(load, &target, &name, topics, &bar).await?;
    bar.finish_and_clear();
    Ok(report)
}
