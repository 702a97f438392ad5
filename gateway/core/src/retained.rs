//! The newest retained message of each topic: a fold of the log.
//!
//! Invariant: applied in log order, so the position of a topic only grows; an empty payload removes it [MQTT-3.3.1-6].
//! Must not know: payloads. A topic has a position, the log has the message.

use crate::{ids::Offset, limits::Limit, message::Stored, topic::filter_matches};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{Bound, Range},
};

/// Topics looked at in one step of a page: a lock is held that long.
const KEYS_PER_STEP: usize = 4_096;

/// Where the retained message of a topic is, and when it expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub at: Offset,
    pub expires: Option<Expiry>,
    /// Of its payload; 0: as the state store of an older program has it, not known.
    pub bytes: u32,
}

/// A second of the steady clock, since 1970. Whole seconds are what a client asks for, and a million of them are held.
pub type Expiry = std::num::NonZeroU32;

/// When a message expires, rounded up.
#[must_use]
pub fn expiry(m: &Stored<'_>) -> Option<Expiry> {
    let seconds = m.expires_ms?.div_ceil(1_000);
    Expiry::new(u32::try_from(seconds).unwrap_or(u32::MAX).max(1))
}

/// One partition's retained messages.
#[derive(Debug, Default)]
pub struct Retained {
    topics: BTreeMap<Box<str>, Position>,
    /// Topics that changed since they were taken.
    changed: BTreeSet<Box<str>>,
    /// How many of them expire.
    expiring: usize,
    /// Of topics and payloads.
    bytes: u64,
    /// The last topic that was looked at for its expiry; `None`: the next is the first.
    swept: Option<Box<str>>,
}

fn weight(topic: &str, position: Position) -> u64 {
    topic.len() as u64 + u64::from(position.bytes)
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
        self.touch(topic);
        if m.payload.is_empty() {
            self.remove(topic);
        } else {
            self.restore(topic, Position { at: m.offset, expires: expiry(m), bytes: m.payload.len() as u32 });
        }
    }

    fn remove(&mut self, topic: &str) {
        if let Some(before) = self.topics.remove(topic) {
            self.expiring -= usize::from(before.expires.is_some());
            self.bytes -= weight(topic, before);
        }
    }

    /// A topic as it was when it was last taken.
    pub fn restore(&mut self, topic: &str, position: Position) {
        self.expiring += usize::from(position.expires.is_some());
        self.bytes += weight(topic, position);
        let before = if let Some(known) = self.topics.get_mut(topic) {
            Some(std::mem::replace(known, position))
        } else {
            self.topics.insert(topic.into(), position)
        };
        if let Some(before) = before {
            self.expiring -= usize::from(before.expires.is_some());
            self.bytes -= weight(topic, before);
        }
    }

    /// Removes topics whose message has expired, in one step: the next goes on where this one ended. `now_ms`: of the steady clock.
    pub fn expire(&mut self, now_ms: u64) {
        if self.expiring == 0 {
            return;
        }
        let from = self.swept.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let (mut looked_at, mut last, mut expired) = (0, None, Vec::new());
        for (topic, position) in self.topics.range::<str, _>((from, Bound::Unbounded)).take(KEYS_PER_STEP) {
            (looked_at, last) = (looked_at + 1, Some(topic));
            if position.expires.is_some_and(|at| u64::from(at.get()) * 1_000 <= now_ms) {
                expired.push(topic.clone());
            }
        }
        self.swept = last.filter(|_| looked_at == KEYS_PER_STEP).cloned();
        for topic in expired {
            self.remove(&topic);
            self.changed.insert(topic);
        }
    }

    /// It is to be taken again.
    pub fn touch(&mut self, topic: &str) {
        if !self.changed.contains(topic) {
            self.changed.insert(topic.into());
        }
    }

    /// What changed since the last time, with the newest position; `None`: the topic has no retained message any more.
    pub fn take_changed(&mut self) -> Vec<(Box<str>, Option<Position>)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|topic| (topic.clone(), self.topics.get(&topic).copied())).collect()
    }

    /// Topics whose message lies in `range`, after the topic `after`, in one step; `None`: that was the end.
    #[must_use]
    pub fn within(&self, range: &Range<Offset>, after: Option<&str>) -> Page {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut page = Page::default();
        for (i, (topic, position)) in self.topics.range::<str, _>((from, Bound::Unbounded)).enumerate() {
            if range.contains(&position.at) {
                page.found.push((topic.clone(), position.at));
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

    /// Of all topics and payloads.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Would there be more than so many topics, or bytes, with this message?
    #[must_use]
    pub fn is_beyond(&self, topic: &str, bytes: usize, topics_max: u64, bytes_max: u64) -> Option<Limit> {
        // A topic that is here is looked for only where it matters.
        let more = (topic.len() + bytes) as u64;
        if (self.topics.len() as u64) < topics_max && self.bytes + more <= bytes_max {
            return None;
        }
        let known = self.topics.get(topic).map(|p| weight(topic, *p));
        if known.is_none() && self.topics.len() as u64 >= topics_max {
            return Some(Limit::Retained);
        }
        (self.bytes - known.unwrap_or(0) + more > bytes_max).then_some(Limit::RetainedBytes)
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
        for (i, (topic, position)) in self.topics.range::<str, _>((from, Bound::Unbounded)).enumerate() {
            if !topic.starts_with(prefix) {
                return page;
            }
            if filter_matches(filter, topic) {
                page.found.push((topic.clone(), position.at));
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

    fn position(at: u64) -> Position {
        Position { at: Offset(at), expires: None, bytes: 1 }
    }

    #[test]
    fn what_has_expired_goes_in_steps_and_what_came_later_stays() {
        let mut r = Retained::default();
        let topic = |n: usize| format!("t/{n:05}");
        let some = KEYS_PER_STEP + 100;
        for n in 0..some {
            let of = |expires_ms| Stored { expires_ms, ..stored("", n as u64, b"x", true) };
            let name = topic(n);
            r.apply(&Stored { topic: name.as_bytes(), ..of((n % 2 == 0).then_some(1_000 + n as u64)) });
        }
        // Taken away, replaced by one that stays, and by one that goes later.
        r.apply(&stored(&topic(0), 1, b"", true));
        r.apply(&stored(&topic(2), 2, b"y", true));
        r.apply(&Stored { expires_ms: Some(90_000), ..stored(&topic(4), 3, b"y", true) });
        r.take_changed();
        r.expire(1_000);
        assert_eq!((r.len(), r.take_changed().len()), (some - 1, 0));
        r.expire(80_000);
        r.expire(80_000);
        let gone = r.take_changed();
        assert_eq!((r.len(), gone.len()), (some / 2 + 2, some / 2 - 3));
        assert!(gone.iter().all(|(_, position)| position.is_none()));
        for now in [89_999, 90_000] {
            r.expire(now);
            r.expire(now);
        }
        assert_eq!((r.len(), r.expiring), (some / 2 + 1, 0));
        assert_eq!(r.bytes(), (some as u64 / 2 + 1) * (topic(0).len() as u64 + 1));
    }

    #[test]
    fn what_changed_is_taken_once_with_its_newest_position() {
        let mut r = Retained::default();
        r.restore("old", position(1));
        assert_eq!(r.take_changed(), []);
        for (topic, at, payload) in [("a", 5, "x"), ("b", 6, "x"), ("a", 7, "y"), ("old", 8, "")] {
            r.apply(&stored(topic, at, payload.as_bytes(), true));
        }
        let changed = r.take_changed();
        assert_eq!(changed, [("a".into(), Some(position(7))), ("b".into(), Some(position(6))), ("old".into(), None)]);
        assert_eq!(r.take_changed(), []);
        r.touch("a");
        assert_eq!(r.take_changed(), [("a".into(), Some(position(7)))]);
        assert_eq!(r.within(&(Offset(0)..Offset(7)), None).found, [("b".into(), Offset(6))]);
        assert_eq!(r.within(&(Offset(0)..Offset(8)), Some("a")).found, [("b".into(), Offset(6))]);
    }

    #[test]
    fn who_has_a_topic_keeps_it_at_the_limit() {
        let mut r = Retained::default();
        r.apply(&stored("a", 1, b"xx", true));
        r.apply(&stored("b", 2, b"xx", true));
        assert_eq!(r.bytes(), 6);
        assert_eq!(r.is_beyond("c", 2, 3, 9), None);
        assert_eq!(r.is_beyond("c", 2, 2, 9), Some(Limit::Retained));
        assert_eq!(r.is_beyond("c", 3, 3, 9), Some(Limit::RetainedBytes));
        assert_eq!((r.is_beyond("a", 2, 2, 6), r.is_beyond("a", 3, 2, 6)), (None, Some(Limit::RetainedBytes)));
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
