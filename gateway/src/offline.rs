//! Sessions without a connection that something is due for: they expire, or their will must be
//! published after a restart.
//!
//! Invariant: one entry a session, the last one announced. A due session is owned like any other
//! while it is worked on, so a client that connects meanwhile waits its turn.
//! Must not know: what is due; the driver looks into the session.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// When (ms of the steady clock), and the client id.
pub(crate) type Due = (u64, Box<str>);

/// Where due sessions are announced.
#[derive(Clone)]
pub(crate) struct Offline(UnboundedSender<Due>);

impl Offline {
    pub fn new() -> (Self, UnboundedReceiver<Due>) {
        let (tx, rx) = unbounded_channel();
        (Self(tx), rx)
    }

    /// Look at this client's session then.
    pub fn look(&self, at_ms: u64, client_id: &str) {
        // Nobody listens only while the process ends.
        let _ = self.0.send((at_ms, client_id.into()));
    }
}

#[derive(Default)]
struct Schedule {
    at: HashMap<Arc<str>, u64>,
    order: BTreeSet<(u64, Arc<str>)>,
}

impl Schedule {
    fn set(&mut self, (at, client_id): Due) {
        let client_id: Arc<str> = client_id.into();
        if let Some(before) = self.at.insert(client_id.clone(), at) {
            self.order.remove(&(before, client_id.clone()));
        }
        self.order.insert((at, client_id));
    }

    /// The next that is due.
    fn take(&mut self, now: u64) -> Option<Arc<str>> {
        self.order.first().filter(|(at, _)| *at <= now)?;
        let (_, client_id) = self.order.pop_first()?;
        self.at.remove(&client_id);
        Some(client_id)
    }

    /// How long until the next is due: an hour if there is none.
    fn wait(&self, now: u64) -> Duration {
        let hour = Duration::from_secs(3_600);
        let next = self.order.first();
        next.map_or(hour, |(at, _)| Duration::from_millis(at.saturating_sub(now)).min(hour))
    }
}

/// Calls `look` for each when it is due; ends when `due` is closed.
pub(crate) async fn run(mut due: UnboundedReceiver<Due>, now_ms: impl Fn() -> u64, mut look: impl AsyncFnMut(Arc<str>)) {
    let mut schedule = Schedule::default();
    loop {
        while let Some(client_id) = schedule.take(now_ms()) {
            look(client_id).await;
        }
        tokio::select! {
            next = due.recv() => match next {
                Some(next) => schedule.set(next),
                None => return,
            },
            () = tokio::time::sleep(schedule.wait(now_ms())) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_has_one_entry_however_often_it_goes() {
        let mut schedule = Schedule::default();
        for at in (1..1_000).rev() {
            schedule.set((at, "a".into()));
            schedule.set((2_000 - at, "b".into()));
        }
        assert_eq!((schedule.at.len(), schedule.order.len()), (2, 2));
        assert_eq!(schedule.wait(0), Duration::from_millis(1));
        assert_eq!((schedule.take(0), schedule.take(1).as_deref()), (None, Some("a")));
        assert_eq!((schedule.take(1_998), schedule.take(1_999).as_deref()), (None, Some("b")));
        assert_eq!((schedule.at.len(), schedule.order.len()), (0, 0));
    }
}
