//! Sessions without a connection that something is due for: they expire, or their will must be published after a restart.
//!
//! Invariant: a due session is owned like any other while it is worked on, so a client that connects meanwhile waits its turn.
//! Must not know: what is due; the driver looks into the session.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// When (ms since 1970) and who.
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

/// Calls `look` for each when it is due; ends when `due` is closed.
pub(crate) async fn run(mut due: UnboundedReceiver<Due>, wall_ms: impl Fn() -> u64, mut look: impl AsyncFnMut(Box<str>)) {
    let mut heap: BinaryHeap<Reverse<Due>> = BinaryHeap::new();
    loop {
        let now = wall_ms();
        while heap.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            if let Some(Reverse((_, client_id))) = heap.pop() {
                look(client_id).await;
            }
        }
        let wait = heap
            .peek()
            .map_or(Duration::from_secs(3_600), |Reverse((at, _))| Duration::from_millis(at - now).min(Duration::from_secs(3_600)));
        tokio::select! {
            next = due.recv() => match next {
                Some(next) => heap.push(Reverse(next)),
                None => return,
            },
            () = tokio::time::sleep(wait) => {}
        }
    }
}
