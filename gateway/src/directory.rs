//! Who owns which client id, shared by all connections.
//!
//! Invariant: as in `weir_core::directory`; nobody is told anything while a shard is locked.
//! Must not know: sessions. Ownership moves, the session is in the store.

use crate::peer::Peer;
use dashmap::{DashMap, Entry};
use std::sync::Arc;
use weir_core::directory::{Left, Slot};

#[derive(Default)]
pub(crate) struct Directory {
    slots: DashMap<Arc<str>, Slot<Arc<Peer>>>,
}

impl Directory {
    /// Asks for a client id; `Mail::owned` follows. False: another connection has it, and is asked to leave.
    pub fn claim(&self, client_id: &Arc<str>, peer: &Arc<Peer>) -> bool {
        let told = match self.slots.entry(client_id.clone()) {
            Entry::Vacant(v) => {
                v.insert(Slot::new(peer.clone()));
                None
            }
            Entry::Occupied(mut o) => {
                let replaced = o.get_mut().claim(peer.clone());
                Some((o.get().owner().clone(), replaced))
            }
        };
        let Some((owner, replaced)) = told else {
            peer.tell(|m| m.owned = true);
            return true;
        };
        owner.tell(|m| m.taken_over = true);
        if let Some(replaced) = replaced {
            replaced.tell(|m| m.replaced = true);
        }
        false
    }

    /// Who has a client id.
    pub fn owner(&self, client_id: &str) -> Option<Arc<Peer>> {
        self.slots.get(client_id).map(|slot| slot.owner().clone())
    }

    /// Takes a client id that nobody has; false: somebody has it.
    pub fn claim_if_free(&self, client_id: &Arc<str>, peer: &Arc<Peer>) -> bool {
        match self.slots.entry(client_id.clone()) {
            Entry::Occupied(_) => return false,
            Entry::Vacant(v) => drop(v.insert(Slot::new(peer.clone()))),
        }
        peer.tell(|m| m.owned = true);
        true
    }

    /// Gives it up, as owner or while waiting.
    pub fn leave(&self, client_id: &Arc<str>, peer: &Arc<Peer>) {
        let Entry::Occupied(mut o) = self.slots.entry(client_id.clone()) else { return };
        let left = o.get_mut().leave(peer);
        match left {
            Left::NotOwner => {}
            Left::Free => {
                o.remove();
            }
            Left::To(next) => {
                drop(o);
                next.tell(|m| m.owned = true);
            }
        }
    }
}
