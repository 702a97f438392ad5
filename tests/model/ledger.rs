//! What was published, as the log has it, and what a session is owed of it.

use serde_json::Value;
use std::{collections::BTreeMap, path::Path, process::Command};

/// A record of the log.
#[derive(Clone, Debug)]
pub struct Published {
    pub offset: u64,
    pub topic: String,
    pub qos: u8,
    pub retain: bool,
    pub payload: String,
}

/// All records of the messages' stream, in order.
pub fn published(program: &Path, data: &Path) -> Vec<Published> {
    let out = Command::new(program).args(["log", "cat", "--json", "--data"]).arg(data).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let record = |line: &str| {
        let v: Value = serde_json::from_str(line).unwrap();
        let text = |key: &str| v[key].as_str().unwrap_or_default().to_owned();
        let (offset, qos) = (v["offset"].as_u64().unwrap(), v["qos"].as_u64().unwrap() as u8);
        Published { offset, topic: text("topic"), qos, retain: v["retain"].as_bool().unwrap(), payload: text("payload") }
    };
    String::from_utf8(out.stdout).unwrap().lines().map(record).collect()
}

/// As in MQTT 4.7, for filters and topics without `$`.
pub fn matches(filter: &str, topic: &str) -> bool {
    let (mut f, mut t) = (filter.split('/'), topic.split('/'));
    loop {
        match (f.next(), t.next()) {
            (Some("#"), _) => return true,
            (Some("+"), Some(_)) => {}
            (Some(a), Some(b)) if a == b => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

/// A subscription from its SUBSCRIBE to its UNSUBSCRIBE, by the numbers of the messages that were published before and after each.
#[derive(Clone, Debug)]
pub struct Interval {
    pub filter: String,
    pub qos: u8,
    /// Acknowledged messages below are not its own.
    pub after: u64,
    /// Messages from here on are its own.
    pub from: u64,
    /// Messages from here on are not any more; `None`: it lasts.
    pub end: Option<u64>,
}

/// The log, with the numbers of its messages.
pub struct Truth {
    pub all: Vec<Published>,
}

impl Published {
    /// Messages are numbered by their payload; a will or the end of a retained message has no number.
    fn number(&self) -> Option<u64> {
        self.payload.parse().ok()
    }
}

impl Truth {
    /// One past the last record that was acknowledged before number `n` was given out.
    pub fn behind(&self, n: u64) -> u64 {
        let before = self.all.iter().filter(|r| r.qos > 0 && r.number().is_some_and(|m| m < n));
        before.map(|r| r.offset + 1).max().unwrap_or(0)
    }

    /// The first record of number `n` or a later one.
    pub fn first(&self, n: u64) -> u64 {
        let behind = self.all.iter().filter(|r| r.number().is_some_and(|m| m >= n));
        behind.map(|r| r.offset).min().unwrap_or(u64::MAX)
    }

    pub fn may_have(&self, i: &Interval, r: &Published) -> bool {
        matches(&i.filter, &r.topic) && r.offset >= self.behind(i.after) && i.end.is_none_or(|end| r.offset < self.first(end))
    }

    /// What it is owed in the end, whatever happened to its connections.
    pub fn owed(&self, i: &Interval) -> impl Iterator<Item = &Published> {
        let (from, qos, filter) = (self.first(i.from), i.qos, i.filter.clone());
        self.all.iter().filter(move |r| qos > 0 && r.qos > 0 && r.offset >= from && matches(&filter, &r.topic))
    }
}

/// Retained messages at an offset, by topic.
pub fn retained(all: &[Published], below: u64) -> BTreeMap<&str, &Published> {
    let mut view = BTreeMap::new();
    for r in all.iter().filter(|r| r.retain && r.offset < below) {
        if r.payload.is_empty() {
            view.remove(&*r.topic);
        } else {
            view.insert(&*r.topic, r);
        }
    }
    view
}
