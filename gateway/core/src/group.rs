//! A group of subscribers that share the records of one filter: each record goes to one of them, and to another if that one goes without having
//! acknowledged it.
//!
//! Invariant: every record before `next` that matches was acknowledged, or is in `pending` of exactly one member, or is `owed`; what is owed is
//! given first, lowest offset first. So nothing is lost, whoever leaves; and the value, which holds `next` and what is pending or owed, never says
//! more than was acknowledged. What was sent `deliveries_max` times and never acknowledged is nobody's: it is `dying` until it is a dead letter.
//! Must not know: payloads, sessions, the log. It deals in places; whoever is given a place reads it.

use crate::ids::{Offset, PartitionId};
use std::collections::{BTreeMap, VecDeque};

/// Records on the way to all members of one group: its value holds them all, about 6 B each.
pub const PENDING_MAX: usize = 10_000;
/// Records on the way to one member: enough to keep it busy, little enough that a slow one holds up few.
pub const CREDIT_MAX: usize = 128;

const FORMAT: u8 = 2;

/// Where a record is.
pub type Place = (PartitionId, Offset);

#[derive(Debug)]
struct Member {
    id: u64,
    credit: usize,
    pending: BTreeMap<Place, Pending>,
}

/// A record on its way to a member.
#[derive(Clone, Copy, Debug)]
struct Pending {
    /// How often it was sent to anybody.
    deliveries: u32,
    /// This member was sent it.
    sent: bool,
}

#[derive(Debug, Default)]
pub struct Group {
    /// Per partition: everything before was given or does not match.
    next: BTreeMap<PartitionId, Offset>,
    /// With how often each was sent.
    owed: BTreeMap<Place, u32>,
    dying: BTreeMap<Place, u32>,
    /// In turn: the first is next.
    members: VecDeque<Member>,
    pending: usize,
}

/// What becomes of a record that is owed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owed {
    To(u64),
    /// Nobody acknowledges it: make it a dead letter, then `bury` it.
    Dead {
        deliveries: u32,
    },
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
        let credit = credit.clamp(1, CREDIT_MAX);
        match self.members.iter_mut().find(|m| m.id == id) {
            Some(member) => member.credit = credit,
            None => self.members.push_back(Member { id, credit, pending: BTreeMap::new() }),
        }
    }

    /// What it had is owed again, at once.
    pub fn leave(&mut self, id: u64) {
        if let Some(i) = self.members.iter().position(|m| m.id == id)
            && let Some(m) = self.members.remove(i)
        {
            self.pending -= m.pending.len();
            self.owed.extend(m.pending.into_iter().map(|(place, p)| (place, p.deliveries)));
        }
    }

    /// The member is given nothing more, and what it was not sent is owed again. What it was sent it may still acknowledge. True: there is nothing of that.
    pub fn retire(&mut self, id: u64) -> bool {
        let Some(member) = self.members.iter_mut().find(|m| m.id == id) else { return true };
        member.credit = 0;
        let (sent, unsent): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut member.pending).into_iter().partition(|(_, p)| p.sent);
        member.pending = sent;
        self.pending -= unsent.len();
        self.owed.extend(unsent.into_iter().map(|(place, p)| (place, p.deliveries)));
        self.is_idle(id)
    }

    /// Nothing is on its way to this member.
    #[must_use]
    pub fn is_idle(&self, id: u64) -> bool {
        self.members.iter().find(|m| m.id == id).is_none_or(|m| m.pending.is_empty())
    }

    /// The member was sent it: that counts. True: it is its own, and was not counted yet.
    pub fn sent(&mut self, id: u64, place: Place) -> bool {
        let pending = self.members.iter_mut().find(|m| m.id == id).and_then(|m| m.pending.get_mut(&place)).filter(|p| !p.sent);
        pending.map(|p| *p = Pending { deliveries: p.deliveries + 1, sent: true }).is_some()
    }

    /// Records on their way to this member.
    #[must_use]
    pub fn pending(&self, id: u64) -> usize {
        self.members.iter().find(|m| m.id == id).map_or(0, |m| m.pending.len())
    }

    /// Records that wait to be delivered again.
    #[must_use]
    pub fn to_redeliver(&self) -> usize {
        self.owed.len()
    }

    /// Records on their way to the dead letters.
    #[must_use]
    pub fn dead_lettering(&self) -> usize {
        self.dying.len()
    }

    #[must_use]
    pub fn has_members(&self) -> bool {
        !self.members.is_empty()
    }

    /// The member has acknowledged it. False: it is not, or no longer, its own.
    pub fn settle(&mut self, id: u64, place: Place) -> bool {
        let settled = self.members.iter_mut().find(|m| m.id == id).is_some_and(|m| m.pending.remove(&place).is_some());
        self.pending -= usize::from(settled);
        settled
    }

    #[must_use]
    pub fn has_room(&self) -> bool {
        self.pending < PENDING_MAX && self.members.iter().any(|m| m.pending.len() < m.credit)
    }

    /// The next record of a partition that matches: gives it to the member whose turn it is. `None`: nobody has room, offer it again.
    pub fn offer(&mut self, place: Place) -> Option<u64> {
        let id = self.give(place, 0)?;
        self.passed(place.0, Offset(place.1.0 + 1));
        Some(id)
    }

    /// Everything before `next` was offered, or does not match.
    pub fn passed(&mut self, p: PartitionId, next: Offset) {
        let known = self.next.entry(p).or_default();
        *known = next.max(*known);
    }

    /// What is owed, before anything new. `deliveries_max` 0: it is given for ever.
    pub fn next_owed(&mut self, deliveries_max: u32) -> Option<(Place, Owed)> {
        let (place, deliveries) = self.owed.first_key_value().map(|(place, n)| (*place, *n))?;
        if deliveries_max > 0 && deliveries >= deliveries_max {
            self.owed.pop_first();
            self.dying.insert(place, deliveries);
            return Some((place, Owed::Dead { deliveries }));
        }
        let id = self.give(place, deliveries)?;
        self.owed.pop_first();
        Some((place, Owed::To(id)))
    }

    /// Its dead letter is durable.
    pub fn bury(&mut self, place: Place) {
        self.dying.remove(&place);
    }

    #[must_use]
    pub fn owes(&self) -> bool {
        !self.owed.is_empty()
    }

    fn give(&mut self, place: Place, deliveries: u32) -> Option<u64> {
        if self.pending >= PENDING_MAX {
            return None;
        }
        let i = self.members.iter().position(|m| m.pending.len() < m.credit)?;
        let mut member = self.members.remove(i)?;
        member.pending.insert(place, Pending { deliveries, sent: false });
        self.pending += 1;
        let id = member.id;
        self.members.push_back(member);
        Some(id)
    }

    /// Every record that was given or is owed, with how often it was sent.
    fn open(&self) -> impl Iterator<Item = (&Place, u32)> {
        let pending = self.members.iter().flat_map(|m| m.pending.iter().map(|(place, p)| (place, p.deliveries)));
        self.owed.iter().chain(&self.dying).map(|(place, n)| (place, *n)).chain(pending)
    }

    /// u8 format 2; LEB128: partitions: count, each partition and next; what is pending, owed or dying: count, each partition, offset, deliveries.
    #[must_use]
    pub fn value(&self) -> Vec<u8> {
        use crate::session::value::put;
        let mut b = vec![FORMAT];
        put(&mut b, self.next.len() as u64);
        self.next.iter().for_each(|(p, next)| [u64::from(p.0), next.0].iter().for_each(|n| put(&mut b, *n)));
        let open: BTreeMap<_, _> = self.open().collect();
        put(&mut b, open.len() as u64);
        open.iter().for_each(|((p, at), n)| [u64::from(p.0), at.0, u64::from(*n)].iter().for_each(|n| put(&mut b, *n)));
        b
    }

    /// Reads a value; `None`: malformed, or of another format.
    #[must_use]
    pub fn decode(value: &[u8]) -> Option<Self> {
        use crate::session::value::Fields;
        let mut f = Fields(value.strip_prefix(&[FORMAT])?);
        let next = f.list(Fields::place)?.into_iter().collect();
        let owed = f.list(|f| Some((f.place()?, u32::try_from(f.int()?).ok()?)))?.into_iter().collect();
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
        self.open().map(|(place, _)| place).filter(|(q, _)| *q == p).map(|(_, at)| *at).chain(self.next(p)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

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
        assert_eq!(g.next_owed(0), Some(((P, Offset(5)), Owed::To(2))));
        assert_eq!(g.next_owed(0), None, "no room");
        assert_eq!((g.owes(), g.next(P), g.needs(P)), (true, Some(Offset(9)), Some(Offset(5))));
        let mut back = Group::decode(&g.value()).expect("its own value");
        assert_eq!(back.value(), g.value());
        back.join(7, 100);
        let again: Vec<_> = std::iter::from_fn(|| back.next_owed(0)).map(|((_, at), _)| at.0).collect();
        assert_eq!(again, [5, 7, 8]);
    }

    #[test]
    fn what_nobody_acknowledges_dies_and_what_was_not_sent_does_not_count() {
        let mut g = Group::default();
        g.begin(P, Offset(0));
        let (poison, unsent) = ((P, Offset(0)), (P, Offset(1)));
        for round in 0..3 {
            g.join(round, 5);
            while g.next_owed(3).is_some() {}
            if round == 0 {
                assert_eq!((g.offer(poison), g.offer(unsent)), (Some(0), Some(0)));
            }
            assert!(g.sent(round, poison) && !g.sent(round, poison));
            // The counts outlive the process.
            let value = g.value();
            match round {
                0 => g.leave(round),
                1 => g = Group::decode(&value).expect("its own value"),
                _ => {
                    assert!(!g.retire(round), "it may still acknowledge what it was sent");
                    assert_eq!(g.next_owed(3), None, "nobody has room");
                    g.leave(round);
                }
            }
        }
        g.join(9, 5);
        assert_eq!(g.next_owed(3), Some((poison, Owed::Dead { deliveries: 3 })));
        assert_eq!(g.next_owed(3), Some((unsent, Owed::To(9))), "never sent");
        assert_eq!(g.needs(P), Some(Offset(0)), "it is kept until it is buried");
        assert!(Group::decode(&g.value()).is_some_and(|g| g.owed.contains_key(&poison)));
        g.bury(poison);
        assert_eq!(g.needs(P), Some(Offset(1)));
    }

    #[derive(Clone, Debug)]
    enum Do {
        Join(u64),
        Leave(u64),
        Retire(u64),
        Sent(u64, usize),
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
            (0..3u64).prop_map(Do::Retire),
            (0..3u64, 0..4usize).prop_map(|(m, i)| Do::Sent(m, i)),
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
                    Do::Retire(m) => {
                        g.retire(m);
                        let unsent = g.members.iter().filter(|x| x.id == m).any(|x| x.pending.values().any(|p| !p.sent));
                        prop_assert!(!unsent);
                    }
                    Do::Sent(m, i) => {
                        let had = g.members.iter().find(|x| x.id == m).and_then(|x| x.pending.keys().nth(i).copied());
                        had.map(|place| g.sent(m, place));
                    }
                    Do::Settle(m, i) => {
                        let had = g.members.iter().find(|x| x.id == m).and_then(|x| x.pending.keys().nth(i).copied());
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
                    Do::Owed => {
                        if let Some((place, Owed::Dead { .. })) = g.next_owed(3) {
                            g.bury(place);
                            acknowledged.insert(place.1.0);
                        }
                    }
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
                    let open: BTreeSet<u64> = v.owed.keys().map(|(_, at)| at.0).collect();
                    prop_assert!((0..next).all(|n| open.contains(&n) || acknowledged.contains(&n)));
                }
                let pending: Vec<_> = g.open().map(|(place, _)| *place).collect();
                prop_assert_eq!(pending.iter().collect::<BTreeSet<_>>().len(), pending.len());
                prop_assert_eq!(g.pending, g.members.iter().map(|m| m.pending.len()).sum::<usize>());
                prop_assert!(g.members.iter().all(|m| m.pending.len() <= m.credit || m.credit == 0));
            }
        }
    }
}
