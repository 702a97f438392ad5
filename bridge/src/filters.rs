//! Topic filters as a selector of the log.
//!
//! Invariant: chooses the topics that at least one filter matches; what it skips no filter matches.
//! Must not know: who subscribes.

use weir_core::topic::{self, filter_matches};
use weir_log::{Select, Skip};

pub struct Filters {
    /// Without wildcards, sorted.
    literal: Vec<Box<str>>,
    wild: Vec<Box<str>>,
    /// One of them takes everything but `$` topics.
    all: bool,
    /// Whoever reads wants to know when each was written.
    times: bool,
}

impl Filters {
    #[must_use]
    pub fn new(filters: impl IntoIterator<Item = Box<str>>) -> Self {
        let (wild, mut literal): (Vec<_>, Vec<_>) = filters.into_iter().partition(|f| f.contains(['+', '#']));
        literal.sort_unstable();
        Self { all: wild.iter().any(|f| &**f == "#"), literal, wild, times: false }
    }

    /// Whether whoever reads wants to know when each was written.
    #[must_use]
    pub fn with_times(self, times: bool) -> Self {
        Self { times, ..self }
    }
}

impl Select for Filters {
    fn matches(&self, key: &[u8]) -> bool {
        let Ok(topic) = std::str::from_utf8(key) else { return false };
        self.literal.binary_search_by(|f| (**f).cmp(topic)).is_ok() || self.wild.iter().any(|f| filter_matches(f, topic))
    }

    fn skip(&self, key: &[u8], to: &mut Vec<u8>) -> Skip {
        let Ok(topic) = std::str::from_utf8(key) else { return Skip::Next };
        let next = self.literal.partition_point(|f| &**f <= topic);
        let mut least = self.literal.get(next).map(|f| f.as_bytes().to_vec());
        for filter in &self.wild {
            match topic::skip(filter, topic, to) {
                topic::Skip::Next => return Skip::Next,
                topic::Skip::To if least.as_ref().is_none_or(|l| l > to) => least = Some(to.clone()),
                topic::Skip::To | topic::Skip::End => {}
            }
        }
        match least {
            Some(least) => {
                *to = least;
                Skip::To
            }
            None => Skip::End,
        }
    }

    fn wants_times(&self) -> bool {
        self.times
    }

    fn is_wide(&self) -> bool {
        self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_of_what_any_filter_may_match_is_next() {
        let filters = Filters::new(["m", "b/c", "a/+/x"].map(Into::into));
        let mut to = Vec::new();
        for (key, skip, at) in
            [("a", Skip::To, "a/"), ("a/b/y", Skip::To, "a/b0"), ("a0", Skip::To, "b/c"), ("b/d", Skip::To, "m"), ("n", Skip::End, "")]
        {
            assert!(!filters.matches(key.as_bytes()));
            assert_eq!(filters.skip(key.as_bytes(), &mut to), skip, "{key}");
            assert!(skip == Skip::End || to == at.as_bytes(), "{key}");
        }
        assert!(["m", "b/c", "a/b/x"].iter().all(|key| filters.matches(key.as_bytes())) && !filters.is_wide());
        assert!(Filters::new(["#".into()]).is_wide());
    }
}
