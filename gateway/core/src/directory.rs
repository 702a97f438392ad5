//! Who owns which client id: one connection at a time, the newest next.
//!
//! Invariant: a client id has one owner; whoever waits is replaced by whoever comes after, and is told.
//! Must not know: sessions (the owner hands one over), sockets, locks.

/// The owner of one client id and who comes after. `C` tells connections apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot<C> {
    owner: C,
    next: Option<C>,
}

/// What leaving made of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left<C> {
    /// Nobody waits: the slot ends.
    Free,
    /// This one owns it now.
    To(C),
    /// Somebody left that was not the owner: nothing to hand over.
    NotOwner,
}

impl<C: Clone + PartialEq> Slot<C> {
    /// The first to ask owns it.
    pub fn new(owner: C) -> Self {
        Self { owner, next: None }
    }

    pub fn owner(&self) -> &C {
        &self.owner
    }

    /// Another asks: the owner shall go. Gives whoever waited until now: it will never be served.
    pub fn claim(&mut self, by: C) -> Option<C> {
        self.next.replace(by)
    }

    /// The owner goes, or one that waits gives up.
    pub fn leave(&mut self, who: &C) -> Left<C> {
        if self.owner != *who {
            if self.next.as_ref() == Some(who) {
                self.next = None;
            }
            return Left::NotOwner;
        }
        match self.next.take() {
            Some(next) => {
                self.owner = next.clone();
                Left::To(next)
            }
            None => Left::Free,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_next_and_those_between_are_told() {
        let mut slot = Slot::new(1);
        assert_eq!(slot.claim(2), None);
        assert_eq!(slot.claim(3), Some(2), "2 is replaced");
        assert_eq!(slot.leave(&2), Left::NotOwner);
        assert_eq!(slot.leave(&1), Left::To(3));
        assert_eq!(*slot.owner(), 3);
        assert_eq!(slot.claim(4), None);
        assert_eq!(slot.leave(&4), Left::NotOwner, "4 gives up");
        assert_eq!(slot.leave(&3), Left::Free);
    }
}
