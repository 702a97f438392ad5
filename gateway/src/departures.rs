//! Where clients stood when they left: one that leaves at the same record again and again cannot take it.
//!
//! Invariant: at most so many clients are noted; those that come later are not.
//! Must not know: why a connection ended.

use parking_lot::Mutex;
use std::collections::HashMap;
use weir_core::ids::{Offset, PartitionId};

/// Some hundred bytes each.
const CLIENTS_MAX: usize = 10_000;

/// A client left with this record unacknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Departure {
    pub at: (PartitionId, Offset),
    /// How often in a row.
    pub times: u32,
}

/// The last departure of each client that left with something unacknowledged.
#[derive(Default)]
pub(crate) struct Departures(Mutex<HashMap<Box<str>, Departure>>);

impl Departures {
    /// The client has left; `at`: its oldest message that it was sent and did not acknowledge.
    pub fn note(&self, client_id: &str, at: Option<(PartitionId, Offset)>) {
        let mut all = self.0.lock();
        let is_full = all.len() >= CLIENTS_MAX;
        let Some(at) = at else {
            all.remove(client_id);
            return;
        };
        match all.get_mut(client_id) {
            Some(last) if last.at == at => last.times = last.times.saturating_add(1),
            Some(last) => *last = Departure { at, times: 1 },
            None if is_full => {}
            None => drop(all.insert(client_id.into(), Departure { at, times: 1 })),
        }
    }

    /// The last one, if nothing else is the oldest by now.
    pub fn of(&self, client_id: &str, oldest: Option<(PartitionId, Offset)>) -> Option<Departure> {
        self.0.lock().get(client_id).copied().filter(|d| oldest == Some(d.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_record_counts() {
        let (departures, at) = (Departures::default(), |n| Some((PartitionId(0), Offset(n))));
        let times = |n| departures.of("a", at(n)).map(|d| d.times);
        departures.note("a", at(7));
        departures.note("a", at(7));
        departures.note("b", at(7));
        assert_eq!((times(7), times(8)), (Some(2), None));
        departures.note("a", at(8));
        assert_eq!((times(7), times(8)), (None, Some(1)));
        departures.note("a", None);
        assert_eq!(times(8), None);
        (0..CLIENTS_MAX).for_each(|n| departures.note(&n.to_string(), at(1)));
        departures.note("late", at(1));
        departures.note("b", at(7));
        assert!(departures.of("late", at(1)).is_none() && departures.of("b", at(7)).is_some_and(|d| d.times == 2));
    }
}
