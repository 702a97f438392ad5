//! What came in and waits: one queue per connection, acknowledged in order of receipt over all partitions.
//!
//! Invariant: an acknowledgement leaves only when its receipt, and every one before it, is durable (P1) [MQTT-4.6.0-2].
//! Must not know: how anything becomes durable.

use super::{Action, Append, Paging, RECEIVE_MAXIMUM, Session, Violation, exchanges::Exchanges};
use crate::{
    ids::{Now, Offset, PartitionId, Receipt, Source, SubscribeId},
    limits::Limit,
    message::{Message, Topic},
    packet::{PacketId, Publish, Qos, ReasonCode, Version},
    property::Property,
    topic::{is_bridge_state, is_reserved},
};
use std::collections::VecDeque;

/// An acknowledgement to come. Most are of messages: what is larger, and seldom, lies beside the queue.
#[derive(Debug)]
pub(super) enum Reply {
    /// PUBACK.
    Publish(PacketId, ReasonCode),
    /// PUBREC.
    Received(PacketId, ReasonCode),
    /// PUBCOMP, and where the message is.
    Completed(PacketId, Option<(PartitionId, Offset)>),
    Connect(Box<[u8]>),
    Subscribe(Box<Subscribed>),
    Unsubscribe(Box<[u8]>),
}

/// A SUBACK, the filters that are new with it (ascending), and what is sent of retained messages after it.
#[derive(Debug)]
pub(super) struct Subscribed {
    pub bytes: Vec<u8>,
    pub new: Vec<SubscribeId>,
    pub retained: Vec<Paging>,
}

/// What it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// Its message is on the way into a partition.
    Appended,
    /// So many tails have yet to start.
    Started(usize),
    /// The session's value is to be put.
    Put,
    Durable(Source, Receipt),
    Ready,
}

#[derive(Debug, Default)]
pub(super) struct Inbound {
    queue: VecDeque<(Until, Reply)>,
    /// How far each source is durable.
    durable: Vec<(Source, Receipt)>,
    /// Entries from here on wait for `Submitted`.
    submitted: u32,
    /// SUBACKs in the queue: no PUBLISH is sent meanwhile.
    pub subscribing: u32,
}

impl Inbound {
    pub fn push(&mut self, until: Until, ack: Reply) {
        self.subscribing += u32::from(matches!(ack, Reply::Subscribe(_)));
        self.queue.push_back((until, ack));
    }

    /// Nobody subscribes to the message that came last.
    pub fn nobody(&mut self) {
        if let Some((Until::Appended, Reply::Publish(_, reason))) = self.queue.back_mut() {
            *reason = ReasonCode::NO_MATCHING_SUBSCRIBERS;
        }
    }

    /// A SUBSCRIBE waits for its tails or groups.
    pub fn is_starting(&self) -> bool {
        self.subscribing > 0 && self.queue.iter().any(|(until, _)| matches!(until, Until::Started(_)))
    }

    /// What SUBSCRIBEs that are not answered yet ask of the retained messages.
    pub fn pages(&self) -> impl Iterator<Item = &Paging> {
        self.queue.iter().flat_map(|(_, reply)| if let Reply::Subscribe(s) = reply { &s.retained[..] } else { &[] })
    }

    /// Acknowledgements that have not left.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// The next `n` records have `receipt`.
    pub fn submitted(&mut self, p: PartitionId, receipt: Receipt, n: u32, exchanges: &mut Exchanges) {
        let mut left = n;
        while left > 0 {
            let Some((until, reply)) = self.queue.get_mut(self.submitted as usize) else { return };
            if *until == Until::Appended {
                *until = Until::Durable(Source::Partition(p), receipt);
                left -= 1;
                if let Reply::Received(id, _) | Reply::Completed(id, _) = reply {
                    exchanges.submitted(*id, receipt);
                }
            }
            self.submitted += 1;
        }
    }

    /// One put holds everything that was to be put.
    pub fn put_submitted(&mut self, receipt: Receipt) {
        for (until, _) in &mut self.queue {
            if *until == Until::Put {
                *until = Until::Durable(Source::State, receipt);
            }
        }
    }

    /// Gives back the memory that is not used.
    pub fn shrink(&mut self) {
        self.queue.shrink_to_fit();
        self.durable.shrink_to_fit();
    }

    pub fn appended(&mut self, source: Source, receipt: Receipt) {
        match self.durable.iter_mut().find(|(s, _)| *s == source) {
            Some((_, r)) => *r = receipt.max(*r),
            None => self.durable.push((source, receipt)),
        }
    }

    /// One tail has taken the filter `id`. True: a value is to be put.
    pub fn started(&mut self, id: SubscribeId, stored: bool) -> bool {
        let waits = |a: &Reply| matches!(a, Reply::Subscribe(s) if s.new.binary_search(&id).is_ok());
        let Some((until, _)) = self.queue.iter_mut().find(|(_, a)| waits(a)) else { return false };
        let Until::Started(left) = *until else { return false };
        *until = match left {
            0 | 1 if stored => Until::Put,
            0 | 1 => Until::Ready,
            _ => Until::Started(left - 1),
        };
        *until == Until::Put
    }

    /// Something waits for what `source` will not do any more.
    pub fn waits_for(&self, source: Source) -> bool {
        self.queue.iter().any(|(until, _)| match until {
            Until::Appended => source != Source::State,
            Until::Durable(s, receipt) => *s == source && !self.is_durable(*s, *receipt),
            _ => false,
        })
    }

    pub fn is_durable(&self, source: Source, receipt: Receipt) -> bool {
        self.durable.iter().any(|(s, r)| *s == source && *r >= receipt)
    }

    /// The next acknowledgement that may leave, and the place of its record, if it waited for one that has its own receipt.
    pub fn pop_ready(&mut self) -> Option<(Option<(PartitionId, Offset)>, Reply)> {
        let until = self.queue.front()?.0;
        let ready = match until {
            Until::Ready => true,
            Until::Durable(source, receipt) => self.is_durable(source, receipt),
            Until::Appended | Until::Started(_) | Until::Put => false,
        };
        if !ready {
            return None;
        }
        let (_, ack) = self.queue.pop_front()?;
        self.submitted = self.submitted.saturating_sub(1);
        self.subscribing -= u32::from(matches!(ack, Reply::Subscribe(_)));
        let place = match until {
            Until::Durable(Source::Partition(p), receipt) => Some((p, place_of(receipt))),
            _ => None,
        };
        Some((place, ack))
    }
}

/// The place of a record that was given this receipt, which is the end of its append.
pub(super) fn place_of(receipt: Receipt) -> Offset {
    Offset(receipt.0.saturating_sub(1))
}

/// Of one connection, which is two events itself: what the gateway says there is not to be pushed out.
const BRIDGE_STATES_MAX: u8 = 4;

impl Session {
    /// Its record is made where it is returned: on its way from hand to hand it would cost more than all that is looked at here.
    #[inline]
    pub(super) fn publish<'a>(&mut self, now: Now, p: &Publish<'a>, out: &mut Vec<u8>) -> Result<Option<Append<'a>>, Violation> {
        self.counts.received[p.qos as usize] += 1;
        self.counts.received_payload += p.payload.len() as u64;
        let mut topic = Topic::Borrowed(p.topic);
        for property in p.properties.iter() {
            match property {
                Property::SubscriptionIdentifier(_) => {
                    return Err(Violation::new(ReasonCode::PROTOCOL_ERROR, "MQTT-3.3.4-6: a subscription identifier from a client"));
                }
                Property::TopicAlias(alias) => {
                    topic = Topic::Shared(self.aliases_in.resolve(alias, p.topic)?);
                }
                _ => {}
            }
        }
        // What was accepted once is not judged again: a refusal would say that its packet id is
        // free, and that it is not in the log.
        if let Some(id) = p.packet_id.filter(|id| p.qos == Qos::ExactlyOnce && self.exchanges.is_open(*id)) {
            self.repeat_exchange(id);
            self.release(out);
            return Ok(None);
        }
        // Behind its alias: that stands for this topic from now on, whatever becomes of the message.
        if let Some(limit) = self.limits.refuses_name(&topic) {
            return self.refuse_limit(p, limit, ReasonCode::TOPIC_NAME_INVALID, out);
        }
        if let Some(limit) = self.limits.refuses_properties(p.properties) {
            return self.refuse_limit(p, limit, ReasonCode::QUOTA_EXCEEDED, out);
        }
        if p.retain
            && !p.payload.is_empty()
            && let Some(limit) = self.fleet.refuses_retained(&topic, p.payload.len())
        {
            return self.refuse_limit(p, limit, ReasonCode::QUOTA_EXCEEDED, out);
        }
        // Too many of QoS 1 wait unread, for the disk ends that. An exchange of QoS 2 ends with the client's
        // PUBREL, which may stand behind this.
        if self.version == Version::V5 && p.qos == Qos::ExactlyOnce && self.exchanges.len() >= usize::from(RECEIVE_MAXIMUM) {
            return Err(Violation::new(
                ReasonCode::RECEIVE_MAXIMUM_EXCEEDED,
                "MQTT-3.3.4-9: more messages of QoS 2 in flight than the receive maximum",
            ));
        }
        if is_reserved(&topic) && !self.may_say(&topic, p) {
            self.counts.refused_topic += 1;
            // Version 3.1.1 gets a positive acknowledgement, which its MQTT-3.3.5-2 allows: many programs
            // publish there.
            let reason = if self.version == Version::V5 { ReasonCode::NOT_AUTHORIZED } else { ReasonCode::SUCCESS };
            self.answer_publish(p, reason);
            self.release(out);
            return Ok(None);
        }
        let mark = match p.packet_id {
            Some(id) if p.qos == Qos::ExactlyOnce => self.begin_exchange(&topic, id),
            Some(id) => {
                self.inbound.push(Until::Appended, Reply::Publish(id, ReasonCode::SUCCESS));
                None
            }
            None => None,
        };
        Ok(Some(Append::Message(Message::of_publish(p, topic, mark, self.client_hash, now.steady_ms))))
    }

    /// Is the publisher told when nobody subscribes to its message? Only version 5 can say it, and only a PUBACK does, as in mosquitto.
    #[must_use]
    pub fn tells_interest(&self, m: &Message<'_>) -> bool {
        self.version == Version::V5 && m.qos == Qos::AtLeastOnce
    }

    /// Nobody subscribes to the topic of the message with QoS 1 that `packet` gave last. It is in the log all the same.
    pub fn nobody_subscribes(&mut self) {
        self.inbound.nobody();
    }

    /// A bridge says that it is connected: seldom, and with no more than that.
    fn may_say(&mut self, topic: &str, p: &Publish<'_>) -> bool {
        let may = p.qos != Qos::ExactlyOnce && is_bridge_state(topic, p.payload) && self.bridge_states < BRIDGE_STATES_MAX;
        self.bridge_states += u8::from(may);
        may
    }

    #[cold]
    fn refuse_limit<'a>(
        &mut self,
        p: &Publish<'_>,
        limit: Limit,
        reason: ReasonCode,
        out: &mut Vec<u8>,
    ) -> Result<Option<Append<'a>>, Violation> {
        self.actions.push_back(Action::Refused(limit));
        self.refuse_publish(p, reason, limit.key())?;
        self.release(out);
        Ok(None)
    }

    /// Version 5 is told; 3.1.1 has no way to be told but the end of its connection [MQTT-3.3.5-2]. QoS 0 waits for no answer.
    fn refuse_publish(&mut self, p: &Publish<'_>, reason: ReasonCode, statement: &'static str) -> Result<(), Violation> {
        if self.version == Version::V311 && p.packet_id.is_some() {
            return Err(Violation::new(reason, statement));
        }
        self.answer_publish(p, reason);
        Ok(())
    }

    /// In its turn, without a record.
    fn answer_publish(&mut self, p: &Publish<'_>, reason: ReasonCode) {
        if let Some(id) = p.packet_id {
            let reply = if p.qos == Qos::ExactlyOnce { Reply::Received } else { Reply::Publish };
            self.inbound.push(Until::Ready, reply(id, reason));
        }
    }
}
