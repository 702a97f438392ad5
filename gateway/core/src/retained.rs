//! The newest retained message of each topic: a fold of the log.
//!
//! Invariant: applied in log order, so the position of a topic only grows; an empty payload removes it [MQTT-3.3.1-6].
//! Must not know: payloads. A topic has a position, the log has the message.

use crate::{ids::Offset, message::Stored, topic::filter_matches};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{Bound, Range},
};

/// Topics looked at in one step of a page: a lock is held that long.
const KEYS_PER_STEP: usize = 4_096;

/// One partition's retained messages.
#[derive(Debug, Default)]
pub struct Retained {
    topics: BTreeMap<Box<str>, Offset>,
    /// Topics that changed since they were taken.
    changed: BTreeSet<Box<str>>,
}

/// A part of what a filter finds, in topic order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub found: Vec<(Box<str>, Offset)>,
    /// Go on after this topic; `None`: this was the end.
    pub after: Option<Box<str>>,
}

impl Retained {
    /// Takes one record of the log.
    pub fn apply(&mut self, m: &Stored<'_>) {
        let Some(topic) = m.retain.then(|| std::str::from_utf8(m.topic).ok()).flatten() else { return };
        if !self.changed.contains(topic) {
            self.changed.insert(topic.into());
        }
        if m.payload.is_empty() {
            self.topics.remove(topic);
        } else if let Some(at) = self.topics.get_mut(topic) {
            *at = m.offset;
        } else {
            self.topics.insert(topic.into(), m.offset);
        }
    }

    /// A topic as it was when it was last taken.
    pub fn restore(&mut self, topic: &str, at: Offset) {
        self.topics.insert(topic.into(), at);
    }

    /// What changed since the last time, with the newest position; `None`: the topic has no retained message any more.
    pub fn take_changed(&mut self) -> Vec<(Box<str>, Option<Offset>)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|topic| (topic.clone(), self.topics.get(&topic).copied())).collect()
    }

    /// Topics whose message lies in `range`, after the topic `after`, in one step; `None`: that was the end.
    #[must_use]
    pub fn within(&self, range: &Range<Offset>, after: Option<&str>) -> Page {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut page = Page::default();
        for (i, (topic, at)) in self.topics.range::<str, _>((from, Bound::Unbounded)).enumerate() {
            if range.contains(at) {
                page.found.push((topic.clone(), *at));
            }
            if i + 1 >= KEYS_PER_STEP {
                page.after = Some(topic.clone());
                return page;
            }
        }
        page
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.topics.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.topics.is_empty()
    }

    /// Up to `max` topics that `filter` matches, after the topic `after`.
    #[must_use]
    pub fn page(&self, filter: &str, after: Option<&str>, max: usize) -> Page {
        let literal = filter.find(['+', '#']).map_or(filter, |i| &filter[..i]);
        // `a/#` matches `a` too.
        let prefix = literal.strip_suffix('/').unwrap_or(literal);
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut page = Page::default();
        for (i, (topic, offset)) in self.topics.range::<str, _>((from, Bound::Unbounded)).enumerate() {
            if !topic.starts_with(prefix) {
                return page;
            }
            if filter_matches(filter, topic) {
                page.found.push((topic.clone(), *offset));
            }
            if page.found.len() >= max || i + 1 >= KEYS_PER_STEP {
                page.after = Some(topic.clone());
                return page;
            }
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{packet::Qos, property::Properties};
    use proptest::prelude::*;

    fn stored<'a>(topic: &'a str, offset: u64, payload: &'a [u8], retain: bool) -> Stored<'a> {
        Stored {
            offset: Offset(offset),
            time_ms: 0,
            qos: Qos::AtMostOnce,
            retain,
            client_hash: 0,
            mark: None,
            expires_ms: None,
            topic: topic.as_bytes(),
            headers: Properties::default(),
            payload,
        }
    }

    #[test]
    fn what_changed_is_taken_once_with_its_newest_position() {
        let mut r = Retained::default();
        r.restore("old", Offset(1));
        assert_eq!(r.take_changed(), []);
        for (topic, at, payload) in [("a", 5, "x"), ("b", 6, "x"), ("a", 7, "y"), ("old", 8, "")] {
            r.apply(&stored(topic, at, payload.as_bytes(), true));
        }
        let changed = r.take_changed();
        assert_eq!(changed, [("a".into(), Some(Offset(7))), ("b".into(), Some(Offset(6))), ("old".into(), None)]);
        assert_eq!(r.take_changed(), []);
        assert_eq!(r.within(&(Offset(0)..Offset(7)), None).found, [("b".into(), Offset(6))]);
        assert_eq!(r.within(&(Offset(0)..Offset(8)), Some("a")).found, [("b".into(), Offset(6))]);
    }

    proptest! {
        #[test]
        fn pages_hold_what_the_filter_matches(
            puts in proptest::collection::vec(("[ab$/]{1,5}", any::<bool>()), 0..60),
            filter in prop_oneof!["[ab/]{1,3}", Just("#".to_owned()), Just("a/#".to_owned()), Just("+/b".to_owned()), Just("a/+".to_owned())],
            max in 1usize..5,
        ) {
            let mut retained = Retained::default();
            let mut plain = BTreeMap::new();
            for (i, (topic, delete)) in puts.iter().enumerate() {
                retained.apply(&stored(topic, i as u64, if *delete { b"" } else { b"x" }, true));
                if *delete { plain.remove(topic); } else { plain.insert(topic.clone(), i as u64); }
            }
            let mut got = Vec::new();
            let mut after: Option<Box<str>> = None;
            loop {
                let page = retained.page(&filter, after.as_deref(), max);
                prop_assert!(page.found.len() <= max);
                got.extend(page.found.into_iter().map(|(t, o)| (t.into_string(), o.0)));
                after = page.after;
                if after.is_none() { break; }
            }
            let want: Vec<_> = plain.into_iter().filter(|(t, _)| filter_matches(&filter, t)).collect();
            prop_assert_eq!(got, want);
        }
    }

    #[test]
    fn what_is_not_retained_changes_nothing() {
        let mut retained = Retained::default();
        retained.apply(&stored("a", 1, b"x", true));
        retained.apply(&stored("a", 2, b"y", false));
        retained.apply(&stored("a", 3, b"", false));
        assert_eq!(retained.page("a", None, 9).found, [("a".into(), Offset(1))]);
        assert_eq!(retained.len(), 1);
    }
}
