//! Who publishes how much between two times that retention makes room by bytes: whose bytes push out what others have not read.
//!
//! Invariant: a client that has gone is still known, whatever its connections; beyond some thousands those with least are forgotten.
//! Must not know: what is published, what retention does.

use crate::{
    gateway::Gateway,
    metrics::Total,
    peer::Peer,
    refusals::{is_due, short},
};
use parking_lot::Mutex;
use std::{collections::HashMap, ops::Range, sync::Arc, time::Instant};
use weir_core::ids::Offset;

/// Clients that have gone.
const GONE_MAX: usize = 4_096;

/// Bytes of records, by client, of connections that have ended.
#[derive(Default)]
pub(crate) struct Pressure {
    gone: Mutex<HashMap<Arc<str>, u64>>,
    /// When it stood in the log of the process last.
    said: Mutex<Option<Instant>>,
}

impl Pressure {
    /// A connection ends.
    pub fn gone(&self, peer: &Peer) {
        let bytes = peer.take_published();
        let Some(identity) = peer.identity().filter(|_| bytes > 0) else { return };
        let mut gone = self.gone.lock();
        *gone.entry(identity.client_id.clone()).or_default() += bytes;
        if gone.len() > GONE_MAX {
            // Half of them, so that it is seldom done.
            let mut all: Vec<u64> = gone.values().copied().collect();
            let (_, median, _) = all.select_nth_unstable(GONE_MAX / 2);
            let least = *median;
            gone.retain(|_, bytes| *bytes > least);
        }
    }
}

/// The client that published most of what pushed out what others had not read.
pub(crate) struct Loudest {
    pub client_id: Arc<str>,
    /// Since retention last made room by bytes.
    pub bytes: u64,
}

impl Gateway {
    /// Retention by bytes has made room. `unread`: some of what it took, that so many readers had not read.
    pub fn made_room(&self, nth: usize, unread: Option<(Range<Offset>, u64)>) {
        let loudest = self.loudest();
        let Some((range, readers)) = unread else { return };
        self.totals.add(Total::PushedOut, range.end.0 - range.start.0);
        let Some(Loudest { client_id, bytes }) = loudest else { return };
        self.metrics.loudest(&client_id, bytes);
        self.events.pushed_out(self, &client_id, nth, &range, (bytes, readers));
        if is_due(&self.pressure.said) {
            tracing::warn!(
                client = short(&client_id),
                "retention took {} before all had come to them (sessions and groups: {readers}); most since room was made last is of this client, {bytes} bytes",
                weir_log::records(&(weir_log::Offset(range.start.0)..weir_log::Offset(range.end.0)))
            );
        }
    }

    /// The client that published most since this was asked last.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::Identity;
    use weir_core::packet::Version;

    fn went(pressure: &Pressure, client_id: &str, bytes: u64) {
        let peer = Peer::new(1, 1, None);
        peer.identify(Identity { client_id: client_id.into(), version: Version::V5, connected_ms: 0 });
        peer.add_published(bytes);
        pressure.gone(&peer);
    }

    #[test]
    fn many_short_connections_of_one_client_are_added_and_many_clients_are_bounded() {
        let pressure = Pressure::default();
        for n in 0..20_000 {
            went(&pressure, &format!("small {n}"), 1_000 + n % 100);
            went(&pressure, "loud", 900);
        }
        let gone = pressure.gone.lock();
        assert_eq!(gone.get("loud"), Some(&(900 * 20_000)));
        assert!(gone.len() <= GONE_MAX + 1, "{}", gone.len());
    }
}
