//! Topics that somebody looks at closely: the life of their messages is kept while he does.
//!
//! Invariant: with nobody there, asking costs one load.
//! Must not know: what is kept.

use parking_lot::RwLock;
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// More topics are not watched at once.
const TOPICS_MAX: usize = 1_024;

#[derive(Debug, Default)]
pub struct Watched {
    any: AtomicBool,
    topics: RwLock<HashMap<Box<str>, usize>>,
}

/// Watches until it is dropped.
#[derive(Debug)]
pub struct Watch(Arc<Watched>, Box<str>);

impl Watched {
    /// Is anything watched?
    #[must_use]
    pub fn any(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn has(&self, topic: &str) -> bool {
        self.any() && self.topics.read().contains_key(topic)
    }

    /// `None`: too many are watched already.
    #[must_use]
    pub fn watch(self: &Arc<Self>, topic: &str) -> Option<Watch> {
        let mut topics = self.topics.write();
        if topics.len() >= TOPICS_MAX && !topics.contains_key(topic) {
            return None;
        }
        *topics.entry(topic.into()).or_default() += 1;
        self.any.store(true, Ordering::Relaxed);
        Some(Watch(self.clone(), topic.into()))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let Self(watched, topic) = self;
        let mut topics = watched.topics.write();
        if let Some(n) = topics.get_mut(topic) {
            *n -= 1;
            if *n == 0 {
                topics.remove(topic);
            }
        }
        watched.any.store(!topics.is_empty(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_watched_as_long_as_one_watches() {
        let watched = Arc::new(Watched::default());
        assert!(!watched.any() && !watched.has("a"));
        let (first, second) = (watched.watch("a"), watched.watch("a"));
        assert!(watched.has("a") && !watched.has("b"));
        drop(first);
        assert!(watched.has("a"));
        drop(second);
        assert!(!watched.any() && !watched.has("a"));
        let all: Vec<_> = (0..TOPICS_MAX).map(|n| watched.watch(&n.to_string())).collect();
        assert!(watched.watch("one more").is_none() && watched.watch("0").is_some());
        drop(all);
    }
}
