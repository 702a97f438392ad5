//! Topic aliases, both ways: a number that stands for a topic on one connection [MQTT 5, 3.3.2.3.4].
//!
//! Invariant: an alias stands for the topic that it was last sent with on this connection, in the order of the bytes; a new connection begins
//! without any [MQTT-3.3.2-7].
//! Must not know: messages.

use super::Violation;
use crate::{packet::ReasonCode, property::Property};
use std::{collections::HashMap, sync::Arc};

/// Aliases in each direction, as in mosquitto: a topic of up to 65,000 bytes is kept for each, so a connection costs 650 kB a direction at most.
pub const TOPIC_ALIASES_MAX: u16 = 10;

/// What the peer calls topics.
#[derive(Debug, Default)]
pub(super) struct Inbound(Vec<Option<Arc<str>>>);

impl Inbound {
    /// The topic of a PUBLISH with this alias; `topic` as it stands in the packet.
    pub fn resolve(&mut self, alias: u16, topic: &str) -> Result<Arc<str>, Violation> {
        if alias > TOPIC_ALIASES_MAX {
            return Err(Violation::new(ReasonCode::TOPIC_ALIAS_INVALID, "MQTT-3.3.2-9: a topic alias above the maximum"));
        }
        let at = usize::from(alias).saturating_sub(1);
        if self.0.len() <= at {
            self.0.resize(at + 1, None);
        }
        let slot = &mut self.0[at];
        match slot {
            Some(known) if topic.is_empty() || &**known == topic => Ok(known.clone()),
            None if topic.is_empty() => {
                Err(Violation::new(ReasonCode::PROTOCOL_ERROR, "MQTT 5, 3.3.2.3.4: a topic alias that stands for nothing"))
            }
            _ => Ok(slot.insert(topic.into()).clone()),
        }
    }
}

/// What we call topics: the first ones that are sent, until there are as many as the peer takes.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    pub max: u16,
    /// Held once there are any.
    known: Option<Box<Known>>,
}

type Known = HashMap<Box<[u8]>, u16>;

impl Outbound {
    pub fn new(max: u16) -> Self {
        Self { max: max.min(TOPIC_ALIASES_MAX), known: None }
    }

    /// The alias to send with `topic`, and whether the peer knows it. Tell `sent` when it is.
    pub fn of(&self, topic: &[u8]) -> Option<(Property<'static>, bool)> {
        if self.max == 0 {
            return None;
        }
        let known = self.known.as_ref().and_then(|known| known.get(topic)).copied();
        let count = self.known.as_ref().map_or(0, |known| known.len());
        let free = (count < usize::from(self.max)).then_some(count as u16 + 1);
        known.or(free).map(|alias| (Property::TopicAlias(alias), known.is_some()))
    }

    pub fn sent(&mut self, topic: &[u8]) {
        let known = self.known.get_or_insert_default();
        known.insert(topic.into(), known.len() as u16 + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_stands_for_the_last_topic_it_came_with() {
        let mut inbound = Inbound::default();
        assert_eq!(inbound.resolve(2, "").map_err(|v| v.reason), Err(ReasonCode::PROTOCOL_ERROR));
        assert_eq!(inbound.resolve(11, "a").map_err(|v| v.reason), Err(ReasonCode::TOPIC_ALIAS_INVALID));
        for (alias, topic, stands_for) in [(2, "a", "a"), (2, "", "a"), (10, "b", "b"), (2, "c", "c"), (2, "", "c"), (10, "", "b")] {
            assert_eq!(inbound.resolve(alias, topic).as_deref(), Ok(stands_for));
        }
    }

    #[test]
    fn the_first_topics_get_the_aliases_that_the_peer_takes() {
        assert_eq!(Outbound::new(0).of(b"a"), None);
        let mut outbound = Outbound::new(2);
        assert_eq!(outbound.of(b"a"), Some((Property::TopicAlias(1), false)));
        assert_eq!(outbound.of(b"a"), Some((Property::TopicAlias(1), false)), "not sent: not known");
        outbound.sent(b"a");
        assert_eq!(outbound.of(b"a"), Some((Property::TopicAlias(1), true)));
        assert_eq!(outbound.of(b"b"), Some((Property::TopicAlias(2), false)));
        outbound.sent(b"b");
        assert_eq!(outbound.of(b"c"), None);
    }
}
