//! How far durable sessions and groups have come in the messages: what retention would take from them.
//!
//! Invariant: whoever owns a session or a group knows what it counts for, and that is what its value in the store says; so nobody is counted twice, and a restart counts the same.
//! Must not know: sessions, groups.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use weir_core::ids::Offset;

/// What somebody has not read below an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unread {
    pub from: Offset,
    pub readers: u64,
}

/// Of one partition: how many need everything from an offset on. A fleet that went at one time shares its entries.
#[derive(Default)]
pub(crate) struct Cursors(Mutex<BTreeMap<Offset, u64>>);

/// What one reader counts for, per partition. Most have nothing.
#[derive(Default)]
pub(crate) struct Counted(Option<Box<[Option<Offset>]>>);

impl Cursors {
    /// `None`: it reads nothing here.
    fn replace(&self, before: Option<Offset>, now: Option<Offset>) {
        let mut all = self.0.lock();
        if let Some(at) = now {
            *all.entry(at).or_default() += 1;
        }
        if let Some(at) = before {
            let count = all.get_mut(&at);
            debug_assert!(count.is_some(), "nobody is counted at {at}");
            if let Some(count) = count {
                *count -= 1;
                if *count == 0 {
                    all.remove(&at);
                }
            }
        }
    }

    /// So many more, whose owners come later.
    pub fn add(&self, at: Offset, readers: u64) {
        *self.0.lock().entry(at).or_default() += readers;
    }

    /// `None`: everybody has read everything below `below`.
    pub fn unread(&self, below: Offset) -> Option<Unread> {
        let all = self.0.lock();
        let mut behind = all.range(..below);
        let (from, first) = behind.next().map(|(at, n)| (*at, *n))?;
        Some(Unread { from, readers: behind.fold(first, |sum, (_, n)| sum + n) })
    }
}

impl Counted {
    /// Of a reader that is counted, and has an owner now.
    pub fn of(needs: impl Iterator<Item = Option<Offset>>) -> Self {
        let all: Box<[_]> = needs.collect();
        Self(all.iter().any(Option::is_some).then_some(all))
    }

    /// What it counts for from now on.
    pub fn replace(&mut self, cursors: &[Cursors], needs: impl Iterator<Item = Option<Offset>>) {
        let now = Self::of(needs);
        let at = |counted: &Self, nth: usize| counted.0.as_ref().and_then(|all| all.get(nth).copied().flatten());
        for (nth, cursors) in cursors.iter().enumerate() {
            let (before, now) = (at(self, nth), at(&now, nth));
            if before != now {
                cursors.replace(before, now);
            }
        }
        *self = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_reader_says_what_is_unread() {
        let cursors = [Cursors::default(), Cursors::default()];
        let unread = |below| cursors[0].unread(Offset(below)).map(|u| (u.from.0, u.readers));
        let (mut a, mut b) = (Counted::default(), Counted::default());
        let set = |reader: &mut Counted, at: Option<u64>| reader.replace(&cursors, [at.map(Offset), None].into_iter());
        assert_eq!(unread(100), None);
        set(&mut a, Some(10));
        set(&mut b, Some(5));
        assert_eq!((unread(100), unread(10), unread(5)), (Some((5, 2)), Some((5, 1)), None));
        set(&mut b, Some(20));
        assert_eq!(unread(10), None, "what is read up to there");
        set(&mut a, None);
        assert_eq!(unread(21), Some((20, 1)));
        // One of a restart is counted before it has an owner.
        cursors[0].add(Offset(7), 1);
        let mut c = Counted::of([Some(Offset(7)), None].into_iter());
        assert_eq!(unread(21), Some((7, 2)));
        set(&mut c, Some(30));
        set(&mut b, None);
        assert_eq!((unread(30), unread(31)), (None, Some((30, 1))));
        assert_eq!(cursors[1].unread(Offset(u64::MAX)), None);
    }
}
