//! A group of subscribers that share the records of one filter: each record goes to one of them, and to another if that one goes without having
//! acknowledged it.
//!
//! Invariant: every record before `next` that matches was acknowledged, or is in `pending` of exactly one member, or is `owed`; what is owed is
//! given first, lowest offset first. So nothing is lost, whoever leaves; and the value, which holds `next` and what is pending or owed, never says
//! more than was acknowledged.
//! Must not know: payloads, sessions, the log. It deals in places; whoever is given a place reads it.

use crate::ids::{Offset, PartitionId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Records on the way to all members of one group: its value holds them all, about 6 B each.
pub const PENDING_MAX: usize = 10_000;
/// Records on the way to one member: enough to keep it busy, little enough that a slow one holds up few.
pub const CREDIT_MAX: usize = 128;

const FORMAT: u8 = 1;

/// Where a record is.
pub type Place = (PartitionId, Offset);

#[derive(Debug)]
struct Member {
    id: u64,
    credit: usize,
    pending: BTreeSet<Place>,
}

#[derive(Debug, Default)]
pub struct Group {
    /// Per partition: everything before was given or does not match.
    next: BTreeMap<PartitionId, Offset>,
    owed: BTreeSet<Place>,
    /// In turn: the first is next.
    members: VecDeque<Member>,
    pending: usize,
}

impl Group {
    #[must_use]
    pub fn next(&self, p: PartitionId) -> Option<Offset> {
        self.next.get(&p).copied()
    }

    /// The group begins here, if it has no place in this partition yet.
    pub fn begin(&mut self, p: PartitionId, at: Offset) {
        self.next.entry(p).or_insert(at);
    }

    pub fn join(&mut self, id: u64, credit: usize) {
        if !self.members.iter().any(|m| m.id == id) {
            self.members.push_back(Member { id, credit: credit.clamp(1, CREDIT_MAX), pending: BTreeSet::new() });
        }
    }

    /// What it had is owed again, at once.
    pub fn leave(&mut self, id: u64) {
        if let Some(i) = self.members.iter().position(|m| m.id == id)
            && let Some(m) = self.members.remove(i)
        {
            self.pending -= m.pending.len();
            self.owed.extend(m.pending);
        }
    }

    #[must_use]
    pub fn has_members(&self) -> bool {
        !self.members.is_empty()
    }

    /// The member has acknowledged it. False: it is not, or no longer, its own.
    pub fn settle(&mut self, id: u64, place: Place) -> bool {
        let settled = self.members.iter_mut().find(|m| m.id == id).is_some_and(|m| m.pending.remove(&place));
        self.pending -= usize::from(settled);
        settled
    }

    #[must_use]
    pub fn has_room(&self) -> bool {
        self.pending < PENDING_MAX && self.members.iter().any(|m| m.pending.len() < m.credit)
    }

    /// The next record of a partition that matches: gives it to the member whose turn it is. `None`: nobody has room, offer it again.
    pub fn offer(&mut self, place: Place) -> Option<u64> {
        let id = self.give(place)?;
        self.passed(place.0, Offset(place.1.0 + 1));
        Some(id)
    }

    /// Everything before `next` was offered, or does not match.
    pub fn passed(&mut self, p: PartitionId, next: Offset) {
        let known = self.next.entry(p).or_default();
        *known = next.max(*known);
    }

    /// What is owed, before anything new: place and member.
    pub fn next_owed(&mut self) -> Option<(Place, u64)> {
        let place = *self.owed.first()?;
        let id = self.give(place)?;
        self.owed.pop_first();
        Some((place, id))
    }

    #[must_use]
    pub fn owes(&self) -> bool {
        !self.owed.is_empty()
    }

    fn give(&mut self, place: Place) -> Option<u64> {
        if self.pending >= PENDING_MAX {
            return None;
        }
        let i = self.members.iter().position(|m| m.pending.len() < m.credit)?;
        let mut member = self.members.remove(i)?;
        member.pending.insert(place);
        self.pending += 1;
        let id = member.id;
        self.members.push_back(member);
        Some(id)
    }

    /// u8 format 1; LEB128: partitions: count, each partition and next; what is pending or owed: count, each partition and offset.
    #[must_use]
    pub fn value(&self) -> Vec<u8> {
        use crate::session::value::put;
        let mut b = vec![FORMAT];
        put(&mut b, self.next.len() as u64);
        self.next.iter().for_each(|(p, next)| [u64::from(p.0), next.0].iter().for_each(|n| put(&mut b, *n)));
        let open: BTreeSet<&Place> = self.owed.iter().chain(self.members.iter().flat_map(|m| &m.pending)).collect();
        put(&mut b, open.len() as u64);
        open.iter().for_each(|(p, at)| [u64::from(p.0), at.0].iter().for_each(|n| put(&mut b, *n)));
        b
    }

    /// Reads a value; `None`: malformed, or of another format.
    #[must_use]
    pub fn decode(value: &[u8]) -> Option<Self> {
        use crate::session::value::Fields;
        let mut f = Fields(value.strip_prefix(&[FORMAT])?);
        let next = f.list(Fields::place)?.into_iter().collect();
        let owed = f.list(Fields::place)?.into_iter().collect();
        Some(Self { next, owed, ..Self::default() })
    }

    /// End offsets that the value names: everything below them was durable when it was put.
    #[must_use]
    pub fn named(&self) -> Vec<Place> {
        self.next.iter().map(|(p, next)| (*p, *next)).collect()
    }

    /// The lowest place of a partition that somebody may still ask for.
    #[must_use]
    pub fn needs(&self, p: PartitionId) -> Option<Offset> {
        let open = self.owed.iter().chain(self.members.iter().flat_map(|m| &m.pending));
        open.filter(|(q, _)| *q == p).map(|(_, at)| *at).chain(self.next(p)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const P: PartitionId = PartitionId(0);

    #[test]
    fn records_go_round_and_what_a_member_had_goes_to_the_others_first() {
        let mut g = Group::default();
        g.begin(P, Offset(5));
        g.join(1, 2);
        g.join(2, 2);
        let given: Vec<_> = (5..10).map(|n| g.offer((P, Offset(n)))).collect();
        assert_eq!(given, [Some(1), Some(2), Some(1), Some(2), None]);
        assert!(g.settle(2, (P, Offset(6))) && !g.settle(2, (P, Offset(6))) && !g.settle(2, (P, Offset(5))));
        g.leave(1);
        assert_eq!(g.next_owed(), Some(((P, Offset(5)), 2)));
        assert_eq!(g.next_owed(), None, "no room");
        assert_eq!((g.owes(), g.next(P), g.needs(P)), (true, Some(Offset(9)), Some(Offset(5))));
        let mut back = Group::decode(&g.value()).expect("its own value");
        assert_eq!(back.value(), g.value());
        back.join(7, 100);
        let again: Vec<_> = std::iter::from_fn(|| back.next_owed()).map(|((_, at), _)| at.0).collect();
        assert_eq!(again, [5, 7, 8]);
    }

    #[derive(Clone, Debug)]
    enum Do {
        Join(u64),
        Leave(u64),
        Settle(u64, usize),
        Offer,
        Owed,
        Put,
        Crash,
    }

    fn steps() -> impl Strategy<Value = Vec<Do>> {
        let one = prop_oneof![
            (0..3u64).prop_map(Do::Join),
            (0..3u64).prop_map(Do::Leave),
            (0..3u64, 0..4usize).prop_map(|(m, i)| Do::Settle(m, i)),
            Just(Do::Offer),
            Just(Do::Owed),
            Just(Do::Put),
            Just(Do::Crash),
        ];
        proptest::collection::vec(one, 0..200)
    }

    proptest! {
        /// The checks of the model: nothing is lost, the durable value never claims more than was acknowledged, nobody has what another has.
        #[test]
        fn nothing_is_lost_whoever_leaves(steps in steps()) {
            let (mut g, mut durable, mut acknowledged) = (Group::default(), Group::default().value(), BTreeSet::new());
            let mut offered = 0;
            g.begin(P, Offset(0));
            for step in steps {
                match step {
                    Do::Join(m) => g.join(m, 2),
                    Do::Leave(m) => g.leave(m),
                    Do::Settle(m, i) => {
                        let had = g.members.iter().find(|x| x.id == m).and_then(|x| x.pending.iter().nth(i).copied());
                        if let Some(place) = had {
                            prop_assert!(g.settle(m, place));
                            acknowledged.insert(place.1.0);
                        }
                    }
                    Do::Offer => {
                        if !g.owes() && g.offer((P, Offset(offered))).is_some() {
                            offered += 1;
                        }
                    }
                    Do::Owed => drop(g.next_owed()),
                    Do::Put => durable = g.value(),
                    Do::Crash => {
                        g = Group::decode(&durable).expect("its own value");
                        g.begin(P, Offset(0));
                        offered = g.next(P).expect("it began").0;
                    }
                }
                for value in [g.value(), durable.clone()] {
                    let v = Group::decode(&value).expect("its own value");
                    let next = v.next(P).unwrap_or_default().0;
                    let open: BTreeSet<u64> = v.owed.iter().map(|(_, at)| at.0).collect();
                    prop_assert!((0..next).all(|n| open.contains(&n) || acknowledged.contains(&n)));
                }
                let pending: Vec<_> = g.members.iter().flat_map(|m| &m.pending).chain(&g.owed).collect();
                prop_assert_eq!(pending.iter().collect::<BTreeSet<_>>().len(), pending.len());
                prop_assert_eq!(g.pending, g.members.iter().map(|m| m.pending.len()).sum::<usize>());
                prop_assert!(g.members.iter().all(|m| m.pending.len() <= m.credit));
            }
        }
    }
}
