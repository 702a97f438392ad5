//! What a client may ask for, what all clients together may, and what one is told when it asks for more.
//!
//! Invariant: bytes are bounded where names and values enter, so nothing behind has to ask again.
//! Must not know: where the limits are set.

use crate::{
    property::{Properties, Property},
    session::KEY_BYTES_MAX,
};

/// Deliveries to a client of version 5 where filters with different Subscription Identifiers match
/// [MQTT 5, 3.3.4].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overlapping {
    /// A copy for each identifier: many clients look at one only.
    #[default]
    Copies,
    /// One copy with all of them.
    Merge,
}

/// Limits of one client. The defaults refuse attacks and no honest fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub client_id_bytes: usize,
    /// Of a topic name, and of a filter with whatever stands before it.
    pub topic_bytes: usize,
    /// Of a topic name and of a filter: the trie is walked level by level.
    pub topic_levels: usize,
    /// Of a will: topic, properties and payload, which lie in the session's value.
    pub will_bytes: usize,
    /// In one packet.
    pub user_properties: usize,
    pub user_properties_bytes: usize,
    /// Of one session, shared ones too.
    pub subscriptions: usize,
    /// Of one session.
    pub shared_subscriptions: usize,
    /// Of all filters of one session, and of its will.
    pub session_bytes: usize,
    /// Seconds; `0`: any, and none.
    pub keep_alive_s: u16,
    /// Seconds; `u32::MAX`: a session may last for ever.
    pub session_expiry_s: u32,
    /// A second; 0: as many as it can.
    pub publish_messages: u32,
    /// Of its messages, a second; 0: as many as it can.
    pub publish_bytes: u64,
    /// In-flight window of version 3.1.1, which cannot ask for less.
    pub in_flight_311: u16,
    pub overlapping: Overlapping,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            client_id_bytes: 1_024,
            topic_bytes: 4_096,
            topic_levels: 128,
            will_bytes: 64 << 10,
            user_properties: 64,
            user_properties_bytes: 16 << 10,
            subscriptions: 10_000,
            shared_subscriptions: 100,
            session_bytes: 256 << 10,
            keep_alive_s: 1_200,
            session_expiry_s: 30 * 86_400,
            publish_messages: 0,
            publish_bytes: 0,
            in_flight_311: 1_000,
            overlapping: Overlapping::Copies,
        }
    }
}

/// What all clients hold together, and whether there is room for more. Asked for what is new only, so whoever has something keeps it.
pub trait Fleet: Send + Sync {
    /// Why a session that does not have this filter may not subscribe to it. `stored`: it outlives its connection.
    fn refuses_filter(&self, filter: &str, stored: bool) -> Option<Limit>;
    /// Why no message of so many bytes is retained under this topic. Asked of every message that is to be.
    fn refuses_retained(&self, topic: &str, bytes: usize) -> Option<Limit>;
}

impl std::fmt::Debug for dyn Fleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fleet")
    }
}

/// Room for everything.
pub struct Unbounded;

impl Fleet for Unbounded {
    fn refuses_filter(&self, _: &str, _: bool) -> Option<Limit> {
        None
    }

    fn refuses_retained(&self, _: &str, _: usize) -> Option<Limit> {
        None
    }
}

macro_rules! limits {
    ($($variant:ident $key:literal;)*) => {
        /// A limit that a client has met.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Limit { $($variant),* }

        impl Limit {
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its key in the section `[limits]` of the configuration.
            #[must_use]
            pub fn key(self) -> &'static str {
                match self { $(Self::$variant => $key),* }
            }
        }
    };
}

limits! {
    ClientIdBytes "client_id_bytes";
    TopicBytes "topic_bytes";
    TopicLevels "topic_levels";
    WillBytes "will_bytes";
    UserProperties "user_properties";
    UserPropertiesBytes "user_properties_bytes";
    Subscriptions "subscriptions";
    SharedSubscriptions "shared_subscriptions";
    SessionBytes "session_bytes";
    Sessions "sessions";
    StoreBytes "store_bytes";
    Groups "groups";
    Retained "retained";
    RetainedBytes "retained_bytes";
    InboundBytes "inbound_bytes";
    OutboundBytes "outbound_bytes";
    ConnectionsPerAddress "connections_per_address";
    ConnectsPerAddress "connects_per_address";
    PublishMessages "publish_messages";
    PublishBytes "publish_bytes";
}

impl Limits {
    /// Why a topic name or filter is not taken. Asked of every message.
    #[must_use]
    pub fn refuses_name(&self, name: &str) -> Option<Limit> {
        if name.len() > self.topic_bytes.min(KEY_BYTES_MAX) {
            return Some(Limit::TopicBytes);
        }
        // A name has no more levels than it has bytes, and one.
        let deep = name.len() >= self.topic_levels && name.bytes().filter(|b| *b == b'/').count() >= self.topic_levels;
        deep.then_some(Limit::TopicLevels)
    }

    #[must_use]
    pub fn refuses_client_id(&self, client_id: &str) -> Option<Limit> {
        (client_id.len() > self.client_id_bytes.min(KEY_BYTES_MAX)).then_some(Limit::ClientIdBytes)
    }

    /// Why these properties are not taken. Asked of every message.
    #[must_use]
    pub fn refuses_properties(&self, properties: Properties<'_>) -> Option<Limit> {
        // The least of them has five bytes.
        let few = properties.raw().len() <= self.user_properties_bytes.min(self.user_properties * 5);
        if few {
            return None;
        }
        let (mut count, mut bytes) = (0, 0);
        for p in properties.iter() {
            if let Property::UserProperty((name, value)) = p {
                count += 1;
                bytes += name.len() + value.len();
            }
        }
        if count > self.user_properties {
            Some(Limit::UserProperties)
        } else {
            (bytes > self.user_properties_bytes).then_some(Limit::UserPropertiesBytes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::property::PropertiesBuf;

    #[test]
    fn names_are_taken_up_to_their_limit() {
        let l = Limits::default();
        assert_eq!((l.refuses_name(&"t".repeat(4_096)), l.refuses_name(&"t".repeat(4_097))), (None, Some(Limit::TopicBytes)));
        assert_eq!((l.refuses_name(&"/".repeat(127)), l.refuses_name(&"/".repeat(128))), (None, Some(Limit::TopicLevels)));
        assert_eq!((l.refuses_client_id(&"c".repeat(1_024)), l.refuses_client_id(&"c".repeat(1_025))), (None, Some(Limit::ClientIdBytes)));
        let all = Limits { topic_bytes: usize::MAX, ..l };
        assert_eq!(all.refuses_name(&"t".repeat(KEY_BYTES_MAX + 1)), Some(Limit::TopicBytes), "whatever is configured");
    }

    #[test]
    fn user_properties_are_counted_and_weighed() {
        let l = Limits::default();
        let of = |n: usize, value: &str| {
            let mut b = PropertiesBuf::default();
            for _ in 0..n {
                b.push(Property::UserProperty(("a", value)));
            }
            b
        };
        assert_eq!(l.refuses_properties(of(64, "").as_properties()), None);
        assert_eq!(l.refuses_properties(of(65, "").as_properties()), Some(Limit::UserProperties));
        assert_eq!(l.refuses_properties(of(1, &"v".repeat((16 << 10) - 1)).as_properties()), None);
        assert_eq!(l.refuses_properties(of(1, &"v".repeat(16 << 10)).as_properties()), Some(Limit::UserPropertiesBytes));
    }
}
