//! Which subscribers does a topic have? A trie over filter levels.
//!
//! Invariant: finds exactly what `topic::filter_matches` says, each (filter, subscriber) once.
//! Must not know: subscription options, sessions, or how a subscriber is reached.

use std::collections::HashMap;

/// Values of `T` under filters. The same value may stand under several filters and is then found several times.
#[derive(Debug)]
pub struct Trie<T> {
    root: Node<T>,
    len: usize,
}

#[derive(Debug)]
struct Node<T> {
    children: HashMap<Box<str>, Node<T>>,
    /// The level `+`.
    plus: Option<Box<Node<T>>>,
    /// Filters that end here.
    here: Vec<T>,
    /// Filters that end here in `#`: they match this level too [MQTT 5, 4.7.1.2].
    hash: Vec<T>,
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self { children: HashMap::new(), plus: None, here: Vec::new(), hash: Vec::new() }
    }
}

impl<T> Default for Trie<T> {
    fn default() -> Self {
        Self { root: Node::default(), len: 0 }
    }
}

impl<T> Node<T> {
    fn is_empty(&self) -> bool {
        self.children.is_empty() && self.plus.is_none() && self.here.is_empty() && self.hash.is_empty()
    }
}

impl<T: PartialEq> Trie<T> {
    /// Entries in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds `value` under `filter`; false if it stood there already.
    pub fn insert(&mut self, filter: &str, value: T) -> bool {
        let mut node = &mut self.root;
        let mut hash = false;
        for level in filter.split('/') {
            match level {
                "#" => {
                    hash = true;
                    break;
                }
                "+" => node = node.plus.get_or_insert_default(),
                _ => node = node.children.entry(level.into()).or_default(),
            }
        }
        let list = if hash { &mut node.hash } else { &mut node.here };
        if list.contains(&value) {
            return false;
        }
        list.push(value);
        self.len += 1;
        true
    }

    /// Removes `value` from under `filter`, and levels that hold nothing more; false if it did not stand there.
    pub fn remove(&mut self, filter: &str, value: &T) -> bool {
        fn remove<T: PartialEq>(node: &mut Node<T>, mut levels: std::str::Split<'_, char>, value: &T) -> bool {
            let take = |list: &mut Vec<T>| list.iter().position(|v| v == value).map(|i| list.swap_remove(i)).is_some();
            match levels.next() {
                None => take(&mut node.here),
                Some("#") => take(&mut node.hash),
                Some("+") => {
                    let Some(child) = &mut node.plus else { return false };
                    let removed = remove(child, levels, value);
                    if child.is_empty() {
                        node.plus = None;
                    }
                    removed
                }
                Some(level) => {
                    let Some(child) = node.children.get_mut(level) else { return false };
                    let removed = remove(child, levels, value);
                    if child.is_empty() {
                        node.children.remove(level);
                    }
                    removed
                }
            }
        }
        let removed = remove(&mut self.root, filter.split('/'), value);
        self.len -= usize::from(removed);
        removed
    }

    /// Calls `found` for each value whose filter matches `topic`.
    pub fn find<'t>(&'t self, topic: &str, found: &mut impl FnMut(&'t T)) {
        self.find_within(topic, usize::MAX, found);
    }

    /// The same, with so many nodes at most: filters that overlap level by level can have a topic visit most of them. False: there are more.
    pub fn find_within<'t>(&'t self, topic: &str, mut nodes_max: usize, found: &mut impl FnMut(&'t T)) -> bool {
        // A leading wildcard does not match a topic that begins with `$` [MQTT-4.7.2-1].
        let wild = !topic.starts_with('$');
        find(&self.root, topic.split('/'), wild, &mut nodes_max, found)
    }
}

/// False: there are more nodes than may be visited.
fn find<'t, T>(
    node: &'t Node<T>,
    mut levels: std::str::Split<'_, char>,
    wild: bool,
    nodes_left: &mut usize,
    found: &mut impl FnMut(&'t T),
) -> bool {
    let Some(left) = nodes_left.checked_sub(1) else { return false };
    *nodes_left = left;
    if wild {
        node.hash.iter().for_each(&mut *found);
    }
    let Some(level) = levels.next() else {
        node.here.iter().for_each(found);
        return true;
    };
    let child = node.children.get(level).is_none_or(|child| find(child, levels.clone(), true, nodes_left, found));
    child && (!wild || node.plus.as_ref().is_none_or(|child| find(child, levels, true, nodes_left, found)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topic::{filter_is_valid, filter_matches, shared};
    use proptest::prelude::*;

    fn level() -> impl Strategy<Value = &'static str> {
        prop_oneof![Just("a"), Just("b"), Just(""), Just("$x"), Just("ab")]
    }

    fn topic() -> impl Strategy<Value = String> {
        proptest::collection::vec(level(), 1..5).prop_map(|l| l.join("/")).prop_filter("not empty", |t| !t.is_empty())
    }

    fn filter() -> impl Strategy<Value = String> {
        let any = prop_oneof![4 => level(), 2 => Just("+"), 1 => Just("#")];
        proptest::collection::vec(any, 1..5)
            .prop_map(|l| l.join("/"))
            .prop_filter("well formed", |f| filter_is_valid(f) && shared(f).is_none())
    }

    proptest! {
        #[test]
        fn finds_what_the_plain_matcher_says(
            filters in proptest::collection::vec((filter(), 0u8..4), 0..40),
            removed in proptest::collection::vec(any::<prop::sample::Index>(), 0..20),
            topics in proptest::collection::vec(topic(), 1..10),
        ) {
            let mut trie = Trie::default();
            let mut plain: Vec<(String, u8)> = Vec::new();
            for (f, v) in filters {
                let new = !plain.contains(&(f.clone(), v));
                prop_assert_eq!(trie.insert(&f, v), new);
                if new { plain.push((f, v)); }
            }
            for i in removed {
                if plain.is_empty() { break; }
                let (f, v) = plain.swap_remove(i.index(plain.len()));
                prop_assert!(trie.remove(&f, &v));
                prop_assert!(!trie.remove(&f, &v));
            }
            prop_assert_eq!(trie.len(), plain.len());
            for t in topics {
                let mut got = Vec::new();
                trie.find(&t, &mut |v| got.push(*v));
                let mut want: Vec<u8> = plain.iter().filter(|(f, _)| filter_matches(f, &t)).map(|(_, v)| *v).collect();
                got.sort_unstable();
                want.sort_unstable();
                prop_assert_eq!(got, want, "{}", t);
            }
        }
    }

    #[test]
    fn a_walk_ends_where_it_may_go_no_further() {
        let mut trie = Trie::default();
        // All filters of eight levels that are `a` or `+`.
        for bits in 0..256u32 {
            let levels: Vec<_> = (0..8).map(|n| if bits >> n & 1 == 0 { "a" } else { "+" }).collect();
            trie.insert(&levels.join("/"), bits);
        }
        let find = |nodes| {
            let mut found = 0;
            (trie.find_within("a/a/a/a/a/a/a/a", nodes, &mut |_| found += 1), found)
        };
        assert_eq!((find(511), find(510).0, find(1)), ((true, 256), false, (false, 0)));
    }

    #[test]
    fn removing_everything_leaves_an_empty_root() {
        let mut trie = Trie::default();
        for f in ["a/b/c", "a/+/c", "a/#", "+/+", "#"] {
            trie.insert(f, 1);
        }
        for f in ["a/b/c", "a/+/c", "a/#", "+/+", "#"] {
            assert!(trie.remove(f, &1));
        }
        assert!(trie.root.is_empty() && trie.is_empty());
    }
}
