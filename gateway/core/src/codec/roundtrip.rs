//! Property tests: what is encoded comes back, in any number of pieces, and a second implementation agrees.
//! The strategies leak their strings: a packet borrows, and a test process is short.

use super::*;
use crate::packet::*;
use crate::property::{Properties, PropertiesBuf, Property, within};
use proptest::prelude::*;

fn leak(s: String) -> &'static str {
    String::leak(s)
}

fn text() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just(""), Just("a"), Just("ä€𝄞"), "[ -~]{0,20}".prop_map(leak)]
}

fn bytes() -> impl Strategy<Value = &'static [u8]> {
    proptest::collection::vec(any::<u8>(), 0..40).prop_map(|v| &*v.leak())
}

fn topic() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("a/b"), Just("/"), Just("$SYS/x"), "[a-z/ä]{1,12}".prop_map(leak)]
}

fn filter() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("a/+/b"), Just("#"), Just("+"), Just("$share/g/a/#"), "[a-z/]{1,12}".prop_map(leak)]
}

fn qos() -> impl Strategy<Value = Qos> {
    prop_oneof![Just(Qos::AtMostOnce), Just(Qos::AtLeastOnce), Just(Qos::ExactlyOnce)]
}

fn id() -> impl Strategy<Value = PacketId> {
    (1u16..).prop_map(|n| PacketId::new(n).expect("from 1"))
}

fn property() -> impl Strategy<Value = Property<'static>> {
    use Property as P;
    prop_oneof![
        any::<bool>().prop_map(P::PayloadFormatIndicator),
        any::<u32>().prop_map(P::MessageExpiryInterval),
        text().prop_map(P::ContentType),
        topic().prop_map(P::ResponseTopic),
        bytes().prop_map(P::CorrelationData),
        (1u32..=VARINT_MAX).prop_map(P::SubscriptionIdentifier),
        any::<u32>().prop_map(P::SessionExpiryInterval),
        text().prop_map(P::AssignedClientIdentifier),
        any::<u16>().prop_map(P::ServerKeepAlive),
        text().prop_map(P::AuthenticationMethod),
        bytes().prop_map(P::AuthenticationData),
        any::<bool>().prop_map(P::RequestProblemInformation),
        any::<u32>().prop_map(P::WillDelayInterval),
        any::<bool>().prop_map(P::RequestResponseInformation),
        text().prop_map(P::ResponseInformation),
        text().prop_map(P::ServerReference),
        text().prop_map(P::ReasonString),
        (1u16..).prop_map(P::ReceiveMaximum),
        any::<u16>().prop_map(P::TopicAliasMaximum),
        (1u16..).prop_map(P::TopicAlias),
        any::<bool>().prop_map(P::MaximumQos),
        any::<bool>().prop_map(P::RetainAvailable),
        (text(), text()).prop_map(P::UserProperty),
        (1u32..).prop_map(P::MaximumPacketSize),
        any::<bool>().prop_map(P::WildcardSubscriptionAvailable),
        any::<bool>().prop_map(P::SubscriptionIdentifierAvailable),
        any::<bool>().prop_map(P::SharedSubscriptionAvailable),
    ]
}

/// Properties that may stand in packets of the kind `within`.
fn properties(version: Version, within: u16) -> impl Strategy<Value = Properties<'static>> {
    proptest::collection::vec(property(), 0..12).prop_map(move |all| {
        let mut buf = PropertiesBuf::default();
        for p in all {
            let mut next = buf.clone();
            next.push(p);
            if version == Version::V5 && Properties::check(next.as_properties().raw(), within).is_ok() {
                buf = next;
            }
        }
        Properties::check(buf.as_properties().raw().to_vec().leak(), within).expect("checked")
    })
}

fn filters(version: Version, with_options: bool) -> impl Strategy<Value = Filters<'static>> {
    let options = (qos(), any::<bool>(), any::<bool>(), 0u8..3).prop_map(|(qos, no_local, retain_as_published, retain_handling)| {
        SubscriptionOptions { qos, no_local, retain_as_published, retain_handling }
    });
    proptest::collection::vec((filter(), options), 1..5).prop_map(move |all| {
        let mut raw = Vec::new();
        for (filter, mut o) in all {
            raw.binary(filter.as_bytes());
            o.no_local &= !filter.starts_with("$share");
            let byte = if version == Version::V5 { o.to_byte() } else { o.qos as u8 };
            raw.extend(with_options.then_some(byte));
        }
        Filters::from_validated(raw.leak(), with_options)
    })
}

fn connect(version: Version) -> impl Strategy<Value = Packet<'static>> {
    let will = (qos(), any::<bool>(), properties(version, within::WILL), topic(), bytes())
        .prop_map(|(qos, retain, properties, topic, payload)| Will { qos, retain, properties, topic, payload });
    let login = (proptest::option::of(text()), proptest::option::of(bytes()));
    (any::<bool>(), any::<u16>(), properties(version, within::CONNECT), text(), proptest::option::of(will), login).prop_filter_map(
        "method with data, user name with password",
        move |(clean_start, keep_alive_s, properties, client_id, will, (username, password))| {
            let method = properties.iter().any(|p| matches!(p, Property::AuthenticationMethod(_)));
            let data = properties.iter().any(|p| matches!(p, Property::AuthenticationData(_)));
            let login_ok = version == Version::V5 || username.is_some() || password.is_none();
            let whole = (method || !data) && login_ok;
            whole.then_some(Packet::Connect(Connect {
                version,
                is_31: false,
                is_bridge: false,
                clean_start,
                keep_alive_s,
                properties,
                client_id,
                will,
                username,
                password,
            }))
        },
    )
}

fn publish(version: Version) -> impl Strategy<Value = Packet<'static>> {
    (any::<bool>(), qos(), any::<bool>(), topic(), id(), properties(version, within::PUBLISH), bytes()).prop_map(
        |(dup, qos, retain, topic, id, properties, payload)| {
            let acknowledged = qos != Qos::AtMostOnce;
            Packet::Publish(Publish {
                dup: dup && acknowledged,
                qos,
                retain,
                topic,
                packet_id: acknowledged.then_some(id),
                properties,
                payload,
            })
        },
    )
}

fn ack(version: Version, reasons: &'static [u8]) -> impl Strategy<Value = Ack<'static>> {
    (id(), proptest::sample::select(reasons), properties(version, within::ACK)).prop_map(move |(packet_id, reason, properties)| Ack {
        packet_id,
        reason: if version == Version::V5 { ReasonCode(reason) } else { ReasonCode::SUCCESS },
        properties,
    })
}

fn suback(version: Version, reasons: &'static [u8]) -> impl Strategy<Value = SubAck<'static>> {
    let reasons = proptest::collection::vec(proptest::sample::select(reasons), 1..5);
    (id(), properties(version, within::SUBACK), reasons).prop_map(|(packet_id, properties, reasons)| SubAck {
        packet_id,
        properties,
        reasons: reasons.leak(),
    })
}

pub(super) fn packet(version: Version) -> BoxedStrategy<Packet<'static>> {
    let five = version == Version::V5;
    let connack = (any::<bool>(), properties(version, within::CONNACK), 0u8..2).prop_map(move |(present, properties, refused)| {
        let reason = if refused == 0 {
            0
        } else if five {
            0x87
        } else {
            5
        };
        Packet::ConnAck(ConnAck { session_present: present && refused == 0, reason: ReasonCode(reason), properties })
    });
    let subscribe = (id(), properties(version, within::SUBSCRIBE), filters(version, true))
        .prop_map(|(packet_id, properties, filters)| Packet::Subscribe(Subscribe { packet_id, properties, filters }));
    let unsubscribe = (id(), properties(version, within::UNSUBSCRIBE), filters(version, false))
        .prop_map(|(packet_id, properties, filters)| Packet::Unsubscribe(Unsubscribe { packet_id, properties, filters }));
    let disconnect = (proptest::sample::select(&[0u8, 4, 0x80, 0x8E][..]), properties(version, within::DISCONNECT))
        .prop_map(move |(r, properties)| Packet::Disconnect(Disconnect { reason: ReasonCode(if five { r } else { 0 }), properties }));
    let unsuback = suback(version, &[0, 0x11, 0x80]).prop_map(move |mut p| {
        if !five {
            p.reasons = &[];
        }
        Packet::UnsubAck(p)
    });
    let mut all = vec![
        connect(version).boxed(),
        connack.boxed(),
        publish(version).boxed(),
        ack(version, &[0, 0x10, 0x97]).prop_map(Packet::PubAck).boxed(),
        ack(version, &[0, 0x10, 0x97]).prop_map(Packet::PubRec).boxed(),
        ack(version, &[0, 0x92]).prop_map(Packet::PubRel).boxed(),
        ack(version, &[0, 0x92]).prop_map(Packet::PubComp).boxed(),
        subscribe.boxed(),
        suback(version, &[0, 1, 2, 0x80]).prop_map(Packet::SubAck).boxed(),
        unsubscribe.boxed(),
        unsuback.boxed(),
        Just(Packet::PingReq).boxed(),
        Just(Packet::PingResp).boxed(),
        disconnect.boxed(),
    ];
    if five {
        let auth = properties(version, within::AUTH).prop_map(|properties| {
            let method = properties.iter().any(|p| matches!(p, Property::AuthenticationMethod(_)));
            let properties = if method { properties } else { Properties::default() };
            Packet::Auth(Auth { reason: ReasonCode(if method { 0x18 } else { 0 }), properties })
        });
        all.push(auth.boxed());
    }
    proptest::strategy::Union::new(all).boxed()
}

fn any_packet() -> impl Strategy<Value = (Version, Packet<'static>)> {
    prop_oneof![Just(Version::V311), Just(Version::V5)].prop_flat_map(|v| packet(v).prop_map(move |p| (v, p)))
}

pub(super) fn encoded(p: &Packet<'_>, v: Version) -> Vec<u8> {
    let mut out = Vec::new();
    encode(p, v, &mut out);
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn comes_back((v, p) in any_packet()) {
        let bytes = encoded(&p, v);
        prop_assert_eq!(decode(&bytes, v, usize::MAX), Ok(Decoded::Packet(p, bytes.len())));
    }

    #[test]
    fn every_prefix_is_incomplete_and_asks_for_no_more_than_there_is((v, p) in any_packet()) {
        let bytes = encoded(&p, v);
        for cut in 0..bytes.len() {
            match decode(&bytes[..cut], v, usize::MAX) {
                Ok(Decoded::Incomplete(need)) => prop_assert!(need > cut && need <= bytes.len(), "need {} of {}", need, bytes.len()),
                other => prop_assert!(false, "{:?} at {}", other, cut),
            }
        }
    }

    #[test]
    fn noise_never_panics_and_accepted_noise_comes_back(noise in proptest::collection::vec(any::<u8>(), 0..60), five in any::<bool>()) {
        let v = if five { Version::V5 } else { Version::V311 };
        if let Ok(Decoded::Packet(p, used)) = decode(&noise, v, usize::MAX) {
            let version = if let Packet::Connect(c) = p { c.version } else { v };
            let again = encoded(&p, version);
            prop_assert!(again.len() <= used);
            prop_assert_eq!(decode(&again, version, usize::MAX), Ok(Decoded::Packet(p, again.len())));
        }
    }

    #[test]
    fn a_damaged_packet_is_refused_or_means_something_else(
        (v, p) in any_packet(),
        at in any::<prop::sample::Index>(),
        flip in 1u8..,
    ) {
        let mut bytes = encoded(&p, v);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        if let Ok(Decoded::Packet(other, used)) = decode(&bytes, v, usize::MAX) {
            prop_assert!(other != p || used != bytes.len());
        }
    }

    #[test]
    fn the_size_limit_is_exact((v, p) in any_packet()) {
        let bytes = encoded(&p, v);
        prop_assert!(decode(&bytes, v, bytes.len()).is_ok());
        let refused = decode(&bytes, v, bytes.len() - 1);
        prop_assert_eq!(refused.map_err(|e| e.reason), Err(ReasonCode::PACKET_TOO_LARGE));
    }

    #[test]
    fn the_head_of_a_publish_is_that_of_encode(p in publish(Version::V5), five in any::<bool>()) {
        let Packet::Publish(p) = p else { unreachable!() };
        let v = if five { Version::V5 } else { Version::V311 };
        let mut head = Vec::new();
        let (none, stored) = (Properties::default(), p.properties);
        publish_head(&mut head, v, (p.dup, p.qos, p.retain), p.topic.as_bytes(), p.packet_id, none, stored, p.payload.len());
        head.extend_from_slice(p.payload);
        prop_assert_eq!(head, encoded(&Packet::Publish(p), v));
    }

    /// mqtt-proto 0.4 reads what we write and writes what we read. Known faults of its own: it refuses repeated subscription
    /// identifiers in a PUBLISH, and writes the 3.1.1 SUBACK failure 0x80 as 0x03. It
    /// judges payloads that say they are UTF-8, which a receiver may do and we do not (MQTT 5, 3.3.2.3.2).
    #[test]
    fn a_second_implementation_agrees((v, p) in any_packet()) {
        let ids = |p: &Packet<'_>| match p {
            Packet::Publish(p) => p.properties.iter().filter(|p| matches!(p, Property::SubscriptionIdentifier(_))).count(),
            _ => 0,
        };
        let failure = matches!(&p, Packet::SubAck(s) if v == Version::V311 && s.reasons.contains(&0x80));
        let utf8 = |all: Properties<'_>| all.iter().any(|p| p == Property::PayloadFormatIndicator(true));
        let judged = match &p {
            Packet::Publish(p) => utf8(p.properties),
            Packet::Connect(c) => c.will.is_some_and(|w| utf8(w.properties)),
            _ => false,
        };
        prop_assume!(ids(&p) < 2 && !failure && !judged);
        let bytes = encoded(&p, v);
        let theirs = match v {
            Version::V5 => mqtt_proto::v5::Packet::decode(&bytes).map_err(|e| format!("{e:?}")).map(|p| p.expect("whole").encode().expect("encodes").as_ref().to_vec()),
            Version::V311 => mqtt_proto::v3::Packet::decode(&bytes).map_err(|e| format!("{e:?}")).map(|p| p.expect("whole").encode().expect("encodes").as_ref().to_vec()),
        };
        let theirs = theirs.map_err(|e| TestCaseError::fail(format!("{e}: {p:?}")))?;
        // They write properties in an order of their own: compare them as sets.
        prop_assert_eq!(theirs.len(), bytes.len());
        let Ok(Decoded::Packet(again, _)) = decode(&theirs, v, usize::MAX) else { return Err(TestCaseError::fail("not read back")) };
        let sorted = |b: &[u8]| { let mut b = b.to_vec(); b.sort_unstable(); b };
        prop_assert_eq!(std::mem::discriminant(&again), std::mem::discriminant(&p));
        prop_assert_eq!(sorted(&theirs), sorted(&bytes));
    }
}
