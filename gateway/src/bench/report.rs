//! What a run found, for people and for programs; and what a process cost meanwhile.
//!
//! Invariant: a run that lost a message, or got one out of order, has failed, and says so.
//! Must not know: how anything was measured.

use super::flow::Times;
use crate::client::Failure;
use serde::Serialize;
use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};

/// Microseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Latency {
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
    /// Measured.
    pub count: u64,
}

impl Latency {
    pub fn of(t: &Times) -> Option<Self> {
        let at = |q: f64| t.value_at_quantile(q);
        (!t.is_empty()).then(|| Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: t.max(), count: t.len() })
    }
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub scenario: String,
    pub target: String,
    /// Measured for so long.
    pub seconds: f64,
    /// Over the whole run.
    pub published: u64,
    pub delivered: u64,
    pub lost: u64,
    /// Sent again and marked so, as QoS 1 may after a reconnect.
    pub repeated: u64,
    pub out_of_order: u64,
    /// While it was measured.
    pub acknowledged_per_second: Option<f64>,
    pub delivered_per_second: Option<f64>,
    /// From when a message was to be sent to its arrival.
    pub latency_us: Option<Latency>,
    /// To its acknowledgement.
    pub acknowledged_us: Option<Latency>,
    /// Of the process named by `--pid`: of one core, while it was measured.
    pub cpu_percent: Option<f64>,
    pub resident_bytes: Option<u64>,
    /// What only this scenario has.
    #[serde(flatten)]
    pub more: BTreeMap<&'static str, Value>,
}

impl Report {
    pub fn failed(&self) -> bool {
        self.lost > 0 || self.out_of_order > 0
    }

    pub fn print(&self, json: bool) -> Result<(), Failure> {
        if json {
            println!("{}", serde_json::to_string(self).map_err(Failure::new)?);
            return Ok(());
        }
        println!("{} on {}, {:.1} s measured", self.scenario, self.target, self.seconds);
        if self.published + self.delivered > 0 {
            println!(
                "  {} published, {} delivered; {} lost, {} repeated, {} out of order",
                self.published, self.delivered, self.lost, self.repeated, self.out_of_order
            );
        }
        for (what, rate) in [("acknowledged", self.acknowledged_per_second), ("delivered", self.delivered_per_second)] {
            if let Some(rate) = rate {
                println!("  {rate:.0}/s {what}");
            }
        }
        for (what, latency) in [("acknowledged", &self.acknowledged_us), ("delivered", &self.latency_us)] {
            if let Some(l) = latency {
                println!("  {what} after p50 {} us, p90 {}, p99 {}, p99.9 {}, max {}", l.p50, l.p90, l.p99, l.p999, l.max);
            }
        }
        for (name, value) in &self.more {
            let name = name.replace('_', " ");
            match value.as_object() {
                Some(l) => {
                    println!("  {name}: p50 {}, p90 {}, p99 {}, p99.9 {}, max {}", l["p50"], l["p90"], l["p99"], l["p999"], l["max"])
                }
                None => println!("  {name}: {value}"),
            }
        }
        if let Some(cpu) = self.cpu_percent {
            println!("  {cpu:.0} % of a core, {} KiB resident", self.resident_bytes.unwrap_or_default() / 1024);
        }
        Ok(())
    }
}

/// CPU time and memory of a process, as the kernel counts them.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub cpu: Duration,
    pub resident_bytes: u64,
}

impl Cost {
    pub fn of(pid: u32) -> Result<Self, Failure> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            std::fs::read_to_string(&path).map_err(|e| Failure::new(format!("--pid {pid}: {path}: {e}")))
        };
        let (stat, statm) = (read("stat")?, read("statm")?);
        let odd = || Failure::new(format!("--pid {pid}: /proc says what is not understood"));
        // Behind the name, which may hold anything: fields 14 and 15, the first behind it being the third.
        let fields: Vec<&str> = stat.rsplit_once(')').ok_or_else(odd)?.1.split_whitespace().collect();
        let ticks = |n: usize| fields.get(n).and_then(|t| t.parse::<u64>().ok()).ok_or_else(odd);
        let ticks = ticks(11)? + ticks(12)?;
        let pages: u64 = statm.split_whitespace().nth(1).and_then(|n| n.parse().ok()).ok_or_else(odd)?;
        let per_second = rustix::param::clock_ticks_per_second();
        let resident_bytes = pages * rustix::param::page_size() as u64;
        Ok(Self { cpu: Duration::from_millis(ticks * 1_000 / per_second), resident_bytes })
    }

    /// Bytes of memory that each of `count` has taken, where both are known.
    pub fn each(before: Option<Self>, after: Option<Self>, count: u32) -> Option<u64> {
        let (before, after) = before.zip(after)?;
        Some(after.resident_bytes.saturating_sub(before.resident_bytes) / u64::from(count.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_costs_what_it_does() {
        let before = Cost::of(std::process::id()).expect("this process");
        // However little of the machine others leave.
        let begun = std::time::Instant::now();
        let after = loop {
            let after = Cost::of(std::process::id()).expect("this process");
            if after.cpu - before.cpu >= Duration::from_millis(100) {
                break after;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{before:?} {after:?}");
        };
        assert!(after.cpu - before.cpu <= 4 * begun.elapsed() + Duration::from_secs(1));
        assert!(after.resident_bytes > 1 << 20);
        assert!(Cost::of(u32::MAX).is_err_and(|e| e.words.contains("--pid 4294967295")));
    }
}
