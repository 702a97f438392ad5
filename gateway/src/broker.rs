//! `$SYS/broker/…` under mosquitto's names, for the dashboards and scripts that know them: retained, and written again when they have changed.
//!
//! Invariant: every name of mosquitto 2.0 is there, and its number is measured. Where a thing has no
//! counterpart here, the nearest one is written: the message store is the log, the heap is what of the
//! process is in memory.

use crate::{
    events,
    gateway::Gateway,
    metrics::{CONNECTIONS, DROPPED, RECEIVED, SENT, Total},
    process_memory,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use weir_core::topic::SYSTEM_STREAM;

/// Rates per minute over so many minutes, as mosquitto has them.
const LOADS: [(&str, f64); 3] = [("1min", 60.0), ("5min", 300.0), ("15min", 900.0)];

/// What has a load.
const LOADED: [(&str, &[Total]); 9] = [
    ("connections", &[Total::Connects]),
    ("sockets", CONNECTIONS),
    ("messages/received", &[Total::PacketsIn]),
    ("messages/sent", &[Total::PacketsOut]),
    ("bytes/received", &[Total::BytesIn]),
    ("bytes/sent", &[Total::BytesOut]),
    ("publish/received", RECEIVED),
    ("publish/sent", SENT),
    ("publish/dropped", DROPPED),
];

/// A rate that follows slowly.
#[derive(Clone, Copy, Default)]
struct Load {
    before: u64,
    per_minute: [f64; LOADS.len()],
}

impl Load {
    fn step(&mut self, total: u64, seconds: f64) {
        let now = (total - self.before) as f64 * 60.0 / seconds;
        self.before = total;
        for (load, (_, over)) in self.per_minute.iter_mut().zip(LOADS) {
            *load = now + (-seconds / over).exp() * (*load - now);
        }
    }
}

/// Records that clients' streams keep, and the bytes of their files.
fn stored(gateway: &Gateway) -> (u64, u64) {
    let clients = gateway.engine.partitions().iter().filter(|p| p.stream != SYSTEM_STREAM);
    clients.fold((0, 0), |(records, bytes), p| {
        let span = gateway.engine.span(p.id);
        let files = gateway.engine.segments(p.id).unwrap_or_default();
        (records + (span.durable.0 - span.start.0), bytes + files.iter().map(|s| s.bytes).sum::<u64>())
    })
}

#[derive(Default)]
struct Broker {
    loads: [Load; LOADED.len()],
    most_clients: u64,
    /// As they were written.
    said: BTreeMap<String, String>,
}

impl Broker {
    fn values(&mut self, gateway: &Gateway, seconds: f64) -> Vec<(String, String)> {
        let sum = |totals: &[Total]| gateway.totals.sum(totals);
        let all = gateway.connected();
        let connected = all.connections;
        // A session may be put or end meanwhile.
        let disconnected = gateway.sessions().saturating_sub(all.stored);
        let total = connected + disconnected;
        self.most_clients = self.most_clients.max(total);
        let (records, bytes) = stored(gateway);
        let memory = process_memory::read();
        let mut all: Vec<(String, String)> = Vec::new();
        let mut say = |name: &str, value: String| all.push((format!("$SYS/broker/{name}"), value));
        say("version", format!("weir version {}", env!("CARGO_PKG_VERSION")));
        say("uptime", format!("{} seconds", gateway.now().monotonic_ms / 1_000));
        for (name, value) in [
            ("clients/connected", connected),
            ("clients/disconnected", disconnected),
            ("clients/active", connected),
            ("clients/inactive", disconnected),
            ("clients/expired", sum(&[Total::SessionsExpired])),
            ("clients/total", total),
            ("clients/maximum", self.most_clients),
            ("subscriptions/count", gateway.interests.len()),
            ("shared_subscriptions/count", gateway.interests.shared()),
            ("messages/received", sum(&[Total::PacketsIn])),
            ("messages/sent", sum(&[Total::PacketsOut])),
            ("messages/stored", records),
            ("store/messages/count", records),
            ("store/messages/bytes", bytes),
            ("heap/current", memory.now),
            ("heap/maximum", memory.most),
            ("retained messages/count", gateway.retained.iter().map(|view| view.read().len() as u64).sum()),
            ("bytes/received", sum(&[Total::BytesIn])),
            ("bytes/sent", sum(&[Total::BytesOut])),
            ("publish/bytes/received", sum(&[Total::PayloadIn])),
            ("publish/bytes/sent", sum(&[Total::PayloadOut])),
            ("publish/messages/received", sum(RECEIVED)),
            ("publish/messages/sent", sum(SENT)),
            ("publish/messages/dropped", sum(DROPPED)),
        ] {
            say(name, value.to_string());
        }
        for ((name, totals), load) in LOADED.iter().zip(&mut self.loads) {
            load.step(sum(totals), seconds);
            for ((over, _), per_minute) in LOADS.iter().zip(load.per_minute) {
                say(&format!("load/{name}/{over}"), format!("{per_minute:.2}"));
            }
        }
        all
    }

    /// Those that have changed.
    fn news(&mut self, gateway: &Gateway, seconds: f64) -> Vec<(String, String)> {
        let mut values = self.values(gateway, seconds);
        values.retain(|(topic, value)| self.said.insert(topic.clone(), value.clone()).as_ref() != Some(value));
        values
    }
}

/// Until the process ends.
pub(crate) async fn run(gateway: Arc<Gateway>, every: Duration) {
    let mut broker = Broker::default();
    loop {
        let news = broker.news(&gateway, every.as_secs_f64());
        let news = news.iter().map(|(topic, value)| (topic.as_str(), value.clone(), true));
        events::append(&gateway, news).await;
        tokio::time::sleep(every).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_comes_near_the_rate_and_forgets_it() {
        let mut load = Load::default();
        // 100 a second.
        (1..=60).for_each(|n| load.step(n * 1_000, 10.0));
        let [one, five, fifteen] = load.per_minute;
        assert!(one > 5_990.0 && five > 5_000.0 && five < one && fifteen > 2_500.0 && fifteen < five, "{one} {five} {fifteen}");
        (0..60).for_each(|_| load.step(60_000, 10.0));
        assert!(load.per_minute[0] < 1.0);
    }
}
