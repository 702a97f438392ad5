//! Does anybody subscribe to this topic, connected or not? Counts filters by 32 bits of their hash: a session costs 9 to 18 B a filter of its own.
//!
//! A filter's shape is where its wildcards stand. A topic meets every filter of one shape by one lookup: its levels, with the shape's wildcards in
//! their places, are the only filter of that shape that matches it.
//!
//! Invariant: never says no when somebody does. It may say yes when nobody does: beyond `SHAPES_MAX`, for a filter of more than 64 levels, and when the
//! hashes of two filters are the same (at a million filters, once in four thousand topics).
//! Must not know: who.

use crate::{message::hash, topic::shared};
use foldhash::fast::RandomState;
use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash},
};

/// Shapes that are looked up one by one. Users have a dozen; beyond it the answer is yes.
const SHAPES_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    /// Bit n: level n is `+`.
    plus: u64,
    /// Levels before a `#`, or all.
    levels: u8,
    rest: bool,
}

impl Shape {
    /// `None`: too deep to be told apart.
    fn of(filter: &str) -> Option<Self> {
        let mut shape = Self { plus: 0, levels: 0, rest: false };
        for level in filter.split('/') {
            if level == "#" {
                shape.rest = true;
                break;
            }
            if shape.levels == 64 {
                return None;
            }
            shape.plus |= u64::from(level == "+") << shape.levels;
            shape.levels += 1;
        }
        Some(shape)
    }

    /// The filter of this shape that matches `topic`; false: there is none.
    fn apply(self, topic: &str, filter: &mut String) -> bool {
        let leading = self.plus & 1 != 0 || self.levels == 0;
        if leading && topic.starts_with('$') {
            return false;
        }
        filter.clear();
        let mut levels = topic.split('/');
        for n in 0..self.levels {
            let Some(level) = levels.next() else { return false };
            if n > 0 {
                filter.push('/');
            }
            filter.push_str(if self.plus >> n & 1 != 0 { "+" } else { level });
        }
        if self.rest {
            filter.push_str(if self.levels == 0 { "#" } else { "/#" });
        }
        self.rest || levels.next().is_none()
    }
}

/// Counts of filters, each once per session that subscribes to it.
#[derive(Debug, Default)]
pub struct Interest {
    filters: HashMap<u32, u32, RandomState>,
    shapes: HashMap<Option<Shape>, u32>,
    /// How many of them are shared.
    shared: u64,
}

fn short_hash(filter: &str) -> u32 {
    hash(filter.as_bytes()) as u32
}

fn add<K: Hash + Eq>(counts: &mut HashMap<K, u32, impl BuildHasher>, key: K) {
    let n = counts.entry(key).or_default();
    *n = n.saturating_add(1);
}

/// False: it was not there.
fn remove<K: Hash + Eq>(counts: &mut HashMap<K, u32, impl BuildHasher>, key: &K) -> bool {
    let Some(n) = counts.get_mut(key) else { return false };
    *n -= 1;
    if *n == 0 {
        counts.remove(key);
    }
    true
}

impl Interest {
    /// A session subscribes to this filter, shared or not.
    pub fn add(&mut self, filter: &str) {
        let group = shared(filter);
        self.shared += u64::from(group.is_some());
        let filter = group.map_or(filter, |(_, filter)| filter);
        add(&mut self.filters, short_hash(filter));
        add(&mut self.shapes, Shape::of(filter));
    }

    /// It does no more.
    pub fn remove(&mut self, filter: &str) {
        let group = shared(filter);
        let filter = group.map_or(filter, |(_, filter)| filter);
        if remove(&mut self.filters, &short_hash(filter)) {
            self.shared = self.shared.saturating_sub(u64::from(group.is_some()));
            remove(&mut self.shapes, &Shape::of(filter));
        }
    }

    /// Subscriptions that are counted.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.shapes.values().map(|n| u64::from(*n)).sum()
    }

    /// Those of them that are shared.
    #[must_use]
    pub fn shared(&self) -> u64 {
        self.shared
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.filters.is_empty()
    }

    #[must_use]
    pub fn any(&self, topic: &str) -> bool {
        if self.shapes.len() > SHAPES_MAX {
            return true;
        }
        let mut filter = String::with_capacity(topic.len() + 2);
        self.shapes.keys().any(|shape| match shape {
            None => true,
            Some(shape) => shape.apply(topic, &mut filter) && self.filters.contains_key(&short_hash(&filter)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topic::filter_matches;
    use proptest::prelude::*;

    fn levels(of: &'static [&'static str]) -> impl Strategy<Value = String> {
        proptest::collection::vec(proptest::sample::select(of), 1..5).prop_map(|l| l.join("/"))
    }

    proptest! {
        #[test]
        fn says_what_the_plain_matcher_says_of_any_of_the_filters(
            filters in proptest::collection::vec((levels(&["a", "b", "", "+", "$x"]), any::<bool>()), 0..12),
            topics in proptest::collection::vec(levels(&["a", "b", "", "$x"]), 1..10),
            removed in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut filters: Vec<_> = filters.into_iter().map(|(f, rest)| if rest { format!("{f}/#") } else { f }).collect();
            let mut interest = Interest::default();
            filters.iter().for_each(|f| interest.add(f));
            for i in removed {
                if filters.is_empty() { break }
                let f = filters.swap_remove(i.index(filters.len()));
                interest.remove(&f);
            }
            for topic in topics {
                let want = filters.iter().any(|f| filter_matches(f, &topic));
                prop_assert_eq!(interest.any(&topic), want, "{} among {:?}", topic, filters);
            }
        }
    }

    #[test]
    fn groups_count_and_what_is_too_much_to_tell_is_yes() {
        let mut interest = Interest::default();
        interest.add("$share/g/a/+");
        interest.add("a/+");
        interest.remove("a/+");
        assert!(interest.any("a/b") && !interest.any("b") && (interest.len(), interest.shared()) == (1, 1));
        interest.remove("$share/g/a/+");
        interest.remove("never/there");
        assert!(!interest.any("a/b") && interest.is_empty() && interest.shapes.is_empty() && interest.shared() == 0);
        interest.add("#");
        assert!(interest.any("b/c") && !interest.any("$x"));
        interest.remove("#");
        let deep = ["x"; 65].join("/");
        interest.add(&deep);
        assert!(interest.any("b"));
        interest.remove(&deep);
        assert!(!interest.any("b"));
        (1..=SHAPES_MAX).for_each(|n| interest.add(&vec!["x"; n].join("/")));
        assert!(!interest.any("b"));
        interest.add("+/+");
        assert!(interest.any("b"), "too many shapes to look at");
    }
}
