//! rumqttc as a peer, 3.1.1 and 5: redelivery with DUP, large messages, retained storms, version 5 properties.

mod support;

use rumqttc::{Client, Event, MqttOptions, Packet, Publish, QoS, v5};
use std::time::{Duration, Instant};
use support::{Weir, dir};

fn options(id: &str, port: u16, clean: bool) -> MqttOptions {
    let mut o = MqttOptions::new(id, "127.0.0.1", port);
    o.set_keep_alive(Duration::from_secs(30)).set_clean_session(clean).set_max_packet_size(16 << 20, 16 << 20).set_manual_acks(true);
    o
}

/// Messages until there are `n`.
fn take(connection: &mut rumqttc::Connection, n: usize) -> Vec<Publish> {
    let end = Instant::now() + Duration::from_secs(20);
    let mut got = Vec::new();
    while got.len() < n {
        assert!(Instant::now() < end, "{} of {n} messages", got.len());
        match connection.recv_timeout(Duration::from_millis(100)) {
            Ok(Ok(Event::Incoming(Packet::Publish(m)))) => got.push(m),
            Ok(Ok(_)) | Err(rumqttc::RecvTimeoutError::Timeout) => {}
            other => panic!("{other:?}"),
        }
    }
    got
}

fn wait_for(connection: &mut rumqttc::Connection, wanted: impl Fn(&Packet) -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        assert!(Instant::now() < end, "it did not come");
        match connection.recv_timeout(Duration::from_millis(100)) {
            Ok(Ok(Event::Incoming(p))) if wanted(&p) => return,
            Ok(Ok(_)) | Err(rumqttc::RecvTimeoutError::Timeout) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn publish_all(port: u16, messages: impl IntoIterator<Item = (String, bool, Vec<u8>)>) {
    let (client, mut connection) = Client::new(options("publisher", port, true), 10_000);
    let mut n = 0;
    for (topic, retain, payload) in messages {
        client.publish(topic, QoS::AtLeastOnce, retain, payload).unwrap();
        n += 1;
    }
    for _ in 0..n {
        wait_for(&mut connection, |p| matches!(p, Packet::PubAck(_)));
    }
}

/// More than one fetch holds: none may be taken for gone because a fetch ended early.
#[test]
fn large_messages_in_flight_come_again_with_dup_in_order() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let (client, mut connection) = Client::new(options("keeper", weir.mqtt, false), 100);
    client.subscribe("big/#", QoS::AtLeastOnce).unwrap();
    wait_for(&mut connection, |p| matches!(p, Packet::SubAck(_)));
    let payload = |n: usize| [vec![n as u8; 20_000], n.to_string().into_bytes()].concat();
    publish_all(weir.mqtt, (0..40).map(|n| ("big/x".to_owned(), false, payload(n))));
    let first = take(&mut connection, 40);
    client.ack(&first[0]).unwrap();
    client.ack(&first[7]).unwrap();
    // Sent before the connection is dropped, and stored before the process is (every 250 ms).
    let end = Instant::now() + Duration::from_millis(700);
    while Instant::now() < end {
        let _ = connection.recv_timeout(Duration::from_millis(50));
    }
    drop((client, connection));
    let ports = weir.ports();
    weir.kill();
    let weir = Weir::start_on(dir.path(), ports);
    let (_client, mut connection) = Client::new(options("keeper", weir.mqtt, false), 100);
    let again = take(&mut connection, 38);
    let left: Vec<&Publish> = first.iter().enumerate().filter(|(i, _)| ![0, 7].contains(i)).map(|(_, m)| m).collect();
    for (a, b) in again.iter().zip(left) {
        assert!(a.dup);
        assert_eq!((a.pkid, &a.payload[20_000..], a.payload.len()), (b.pkid, &b.payload[20_000..], b.payload.len()));
    }
}

#[test]
fn large_retained_messages_all_come() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    publish_all(weir.mqtt, (0..150).map(|n| (format!("r/{n:03}"), true, vec![7; 10_000])));
    let (client, mut connection) = Client::new(options("looker", weir.mqtt, true), 1_000);
    client.subscribe("r/#", QoS::AtLeastOnce).unwrap();
    let mut topics: Vec<String> = take(&mut connection, 150).into_iter().map(|m| m.topic).collect();
    topics.sort();
    topics.dedup();
    assert_eq!(topics.len(), 150);
}

/// 300 messages of 1 MiB in all while nobody reads, then all of them.
#[test]
fn p3_a_reader_that_was_behind_gets_everything_in_order() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let (client, mut connection) = Client::new(options("slow", weir.mqtt, true), 10_000);
    client.subscribe("s/#", QoS::AtLeastOnce).unwrap();
    wait_for(&mut connection, |p| matches!(p, Packet::SubAck(_)));
    // Its socket fills, then its inbox; it goes on behind.
    publish_all(weir.mqtt, (0..3_000u32).map(|n| ("s/x".to_owned(), false, [n.to_be_bytes().to_vec(), vec![0; 4_000]].concat())));
    for n in 0..3_000u32 {
        let m = take(&mut connection, 1).remove(0);
        assert_eq!(m.payload[..4], n.to_be_bytes());
        client.try_ack(&m).unwrap();
    }
}

/// What is being read from the log for the old filter was chosen without the new one.
#[test]
fn a_filter_that_is_added_while_its_session_is_behind_misses_nothing_from_its_start() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let port = weir.mqtt;
    let (client, mut connection) = Client::new(options("adder", port, true), 100_000);
    client.subscribe("s/#", QoS::AtLeastOnce).unwrap();
    wait_for(&mut connection, |p| matches!(p, Packet::SubAck(_)));
    // Puts it behind while it does not read.
    publish_all(port, (0..3_000u32).map(|_| ("s/x".to_owned(), false, vec![0; 4_000])));
    let rounds = 15u32;
    let flood = std::thread::spawn(move || {
        for round in 0..rounds {
            publish_all(
                port,
                (0..2_000u32).map(move |n| {
                    let topic = if n % 2 == 0 { "s/x" } else { "n/x" };
                    (topic.to_owned(), false, [(round * 2_000 + n).to_be_bytes().to_vec(), vec![0; 500]].concat())
                }),
            );
        }
    });
    let mut seen: Vec<u32> = Vec::new();
    let mut asked = false;
    let end = Instant::now() + Duration::from_secs(60);
    let (mut got, mut last) = (0, 0);
    while last < rounds * 2_000 - 1 {
        assert!(Instant::now() < end, "{got} messages, {last} the newest");
        match connection.recv_timeout(Duration::from_millis(100)) {
            Ok(Ok(Event::Incoming(Packet::Publish(m)))) => {
                got += 1;
                client.try_ack(&m).unwrap();
                if m.payload.len() < 4_000 {
                    last = u32::from_be_bytes(m.payload[..4].try_into().unwrap());
                    if m.topic == "n/x" {
                        seen.push(last);
                    }
                }
            }
            Ok(Ok(_)) | Err(rumqttc::RecvTimeoutError::Timeout) => {}
            other => panic!("{other:?}"),
        }
        if got > 1_500 && !asked {
            asked = true;
            client.subscribe("n/#", QoS::AtLeastOnce).unwrap();
        }
    }
    flood.join().unwrap();
    assert!(seen.len() > 100, "hardly anything was published after the SUBACK: {}", seen.len());
    let gap = seen.windows(2).find(|w| w[1] != w[0] + 2);
    assert_eq!(gap, None, "of {} messages from {}", seen.len(), seen[0]);
}

#[test]
fn version_5_properties_travel() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let connect = |id: &str| {
        let mut o = v5::MqttOptions::new(id, "127.0.0.1", weir.mqtt);
        o.set_keep_alive(Duration::from_secs(30));
        o.set_outgoing_inflight_upper_limit(100);
        v5::Client::new(o, 10)
    };
    let (subscriber, mut from) = connect("s");
    let filter = v5::mqttbytes::v5::Filter::new("v/+", v5::mqttbytes::QoS::AtLeastOnce);
    let properties = v5::mqttbytes::v5::SubscribeProperties { id: Some(77), user_properties: Vec::new() };
    subscriber.subscribe_many_with_properties([filter], properties).unwrap();
    let (publisher, mut to) = connect("p");
    let drive = std::thread::spawn(move || to.iter().take(10).for_each(drop));
    let mut published = false;
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        assert!(Instant::now() < end, "no message");
        match from.recv_timeout(Duration::from_millis(100)) {
            Ok(Ok(v5::Event::Incoming(v5::mqttbytes::v5::Packet::SubAck(_)))) if !published => {
                published = true;
                let properties = v5::mqttbytes::v5::PublishProperties {
                    message_expiry_interval: Some(60),
                    response_topic: Some("answer".into()),
                    correlation_data: Some(vec![1, 2, 3].into()),
                    user_properties: vec![("a".into(), "b".into()), ("a".into(), "c".into())],
                    content_type: Some("text/plain".into()),
                    ..Default::default()
                };
                publisher.publish_with_properties("v/x", v5::mqttbytes::QoS::AtLeastOnce, false, "hello", properties).unwrap();
            }
            Ok(Ok(v5::Event::Incoming(v5::mqttbytes::v5::Packet::Publish(m)))) => {
                let p = m.properties.expect("properties");
                assert_eq!(p.subscription_identifiers, [77]);
                assert_eq!((p.response_topic.as_deref(), p.content_type.as_deref()), (Some("answer"), Some("text/plain")));
                assert_eq!(p.correlation_data.as_deref(), Some(&[1, 2, 3][..]));
                assert_eq!(p.user_properties, [("a".into(), "b".into()), ("a".into(), "c".into())]);
                assert!((58..=60).contains(&p.message_expiry_interval.expect("an interval")));
                break;
            }
            Ok(Ok(_)) | Err(_) => {}
            Ok(Err(e)) => panic!("{e}"),
        }
    }
    publisher.disconnect().unwrap();
    drop(drive);
}
