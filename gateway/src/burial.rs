//! Records that a group's members did not acknowledge become dead letters: read, appended to `$dead/GROUP/TOPIC`, and forgotten by the group when that is
//! durable.
//!
//! Invariant: the group forgets a record only when its dead letter is durable; a crash between makes it one twice. One at a time.
//! Must not know: members, how the group counts.

use crate::{
    gateway::{Gateway, encode, stored},
    metrics::Total,
    peer::Peer,
};
use std::{collections::VecDeque, sync::Arc};
use weir_core::{
    group::Place,
    ids::{Offset, PartitionId},
};
use weir_log::{AppendError, Asker, Fetch, Fetched, ReadError, Receipt, Records, Wake, Wanted, Watermark};

#[derive(Default)]
enum State {
    #[default]
    Idle,
    Reading(Place, u32),
    /// On its way into a partition.
    Read(Place, weir_log::PartitionId, Records),
    Appended(Place, weir_log::PartitionId, Receipt),
    /// There is nothing to append.
    Gone(Place),
    /// The log fails: the next start tries again.
    Stopped,
}

#[derive(Default)]
pub(crate) struct Burials {
    waiting: VecDeque<(Place, u32)>,
    state: State,
    asker: Asker,
}

impl Burials {
    /// After so many deliveries.
    pub fn push(&mut self, place: Place, deliveries: u32) {
        self.waiting.push_back((place, deliveries));
    }

    /// Goes on. Gives the place that is done with; `None`: it waits until the peer is rung.
    pub fn step(&mut self, gateway: &Gateway, peer: &Arc<Peer>, who: &Arc<dyn Wake>) -> Option<Place> {
        loop {
            match std::mem::take(&mut self.state) {
                State::Idle => {
                    let (place, deliveries) = self.waiting.pop_front()?;
                    self.state = State::Reading(place, deliveries);
                    let wanted = Wanted::Exactly(vec![weir_log::Offset(place.1.0)]);
                    let fetch = Fetch { partition: weir_log::PartitionId(place.0.0), wanted, records_max: 1, bytes_max: u32::MAX };
                    let peer = peer.clone();
                    gateway.engine.fetch(&self.asker, fetch, Box::new(move |f| peer.tell(|m| m.dying = Some(f))));
                    return None;
                }
                State::Read(place, p, mut records) => match gateway.engine.append(p, &mut records, who) {
                    Ok(receipt) => self.state = State::Appended(place, p, receipt),
                    Err(AppendError::Full) => {
                        self.state = State::Read(place, p, records);
                        return None;
                    }
                    Err(e) => self.fail(&e),
                },
                State::Appended(place, p, receipt) => match gateway.engine.appended(p) {
                    Watermark::Appended(r) if r >= receipt => {
                        gateway.totals.add(Total::DeadLetters, 1);
                        return Some(place);
                    }
                    Watermark::Appended(_) => {
                        self.state = State::Appended(place, p, receipt);
                        return None;
                    }
                    Watermark::Failed(f) => self.fail(&f),
                },
                State::Gone(place) => return Some(place),
                waits @ (State::Reading(..) | State::Stopped) => {
                    self.state = waits;
                    return None;
                }
            }
        }
    }

    fn fail(&mut self, why: &dyn std::fmt::Display) {
        tracing::error!("a dead letter is not written: {why}; the next start tries again");
        self.state = State::Stopped;
    }

    /// The record that it waited for.
    pub fn read(&mut self, gateway: &Gateway, group: &str, fetched: Result<Fetched, ReadError>) {
        let State::Reading(place, deliveries) = self.state else { return };
        let fetched = match fetched {
            Ok(fetched) => fetched,
            Err(e) => return self.fail(&e),
        };
        let Some(m) = fetched.batch.iter().find_map(|r| stored(&r)) else {
            tracing::warn!(group, partition = place.0.0, "record {} is lost for the group: taken by retention, or damaged", place.1);
            gateway.totals.add(Total::Lost, 1);
            self.state = State::Gone(place);
            return;
        };
        let (name, _) = group.split_once('/').unwrap_or((group, ""));
        let letter = m.dead_letter(name, deliveries, &position(gateway, place));
        let p = weir_log::PartitionId(gateway.partitions[gateway.partition_of(&letter.topic)].0);
        let mut records = Records::default();
        self.state = match encode(&letter, &mut records) {
            Ok(()) => {
                tracing::warn!(group, topic = &*letter.topic, deliveries, "a dead letter: nobody acknowledges it");
                State::Read(place, p, records)
            }
            Err(e) => return self.fail(&format!("it is no record: {e:?}")),
        };
    }
}

/// `STREAM/PARTITION:OFFSET`.
fn position(gateway: &Gateway, (p, at): (PartitionId, Offset)) -> String {
    let known = gateway.engine.partitions().iter().find(|known| known.id.0 == p.0);
    known.map_or_else(|| format!("{}:{at}", p.0), |known| format!("{}/{}:{at}", known.stream, known.number))
}
