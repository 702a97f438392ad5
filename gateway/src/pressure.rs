//! Who publishes how much since retention last made room by bytes: whose bytes push out what others have not read.
//!
//! Invariant: a client that has gone is still known; the memory for it is bounded.
//! Must not know: what is published, what retention does.

use crate::{gateway::Gateway, metrics::Total, peer::Peer, refusals::short};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    ops::Range,
    time::{Duration, Instant},
};
use weir_core::ids::Offset;

/// Whoever published less than this and went is not remembered.
const BYTES_MIN: u64 = 1 << 20;
/// Clients that have gone.
const GONE_MAX: usize = 4_096;
/// Between two lines of the log.
const SAID_EVERY: Duration = Duration::from_secs(10);

/// Bytes of records, by client, of connections that have ended.
#[derive(Default)]
pub(crate) struct Pressure {
    gone: Mutex<HashMap<Box<str>, u64>>,
    /// When it stood in the log of the process last.
    said: Mutex<Option<Instant>>,
}

impl Pressure {
    /// Once in ten seconds.
    fn is_due(&self, now: Instant) -> bool {
        let mut said = self.said.lock();
        let due = said.is_none_or(|at| now.duration_since(at) >= SAID_EVERY);
        *said = if due { Some(now) } else { *said };
        due
    }

    /// A connection ends.
    pub fn gone(&self, peer: &Peer) {
        let bytes = peer.take_published();
        let Some(identity) = peer.identity().filter(|_| bytes >= BYTES_MIN) else { return };
        let mut gone = self.gone.lock();
        if gone.len() < GONE_MAX || gone.contains_key(&identity.client_id) {
            *gone.entry(identity.client_id.clone()).or_default() += bytes;
        }
    }
}

/// The client that published most of what pushed out what others had not read.
pub(crate) struct Loudest {
    pub client_id: Box<str>,
    /// Since retention last took something unread.
    pub bytes: u64,
}

impl Gateway {
    /// Retention by bytes has taken `range`, which some readers had not read.
    pub fn pushed_out(&self, nth: usize, range: Range<Offset>, readers: u64) {
        let records = range.end.0 - range.start.0;
        self.totals.add(Total::PushedOut, records);
        let Some(Loudest { client_id, bytes }) = self.loudest() else { return };
        self.metrics.loudest(&client_id, bytes);
        self.events.pushed_out(self, &client_id, nth, &range, (bytes, readers));
        if self.pressure.is_due(Instant::now()) {
            tracing::warn!(
                client = short(&client_id),
                "retention took records {} to {} before {readers} sessions or groups had read them; most bytes since then are of this client: {bytes}",
                range.start,
                range.end.0 - 1
            );
        }
    }

    /// The client that published most bytes since this was asked last, and how many.
    fn loudest(&self) -> Option<Loudest> {
        let mut all = std::mem::take(&mut *self.pressure.gone.lock());
        for peer in &self.peers {
            let bytes = peer.take_published();
            if let Some(identity) = peer.identity().filter(|_| bytes > 0) {
                *all.entry(identity.client_id.clone()).or_default() += bytes;
            }
        }
        let most = all.into_iter().max_by_key(|(_, bytes)| *bytes);
        most.map(|(client_id, bytes)| Loudest { client_id, bytes })
    }
}
