//! Everything but QoS 2: connections, subscriptions, deliveries, wills, ends, violations.

use super::*;

#[test]
fn acknowledgements_wait_for_the_disk_and_keep_their_order_over_partitions() {
    check(
        r#"
        > CONNECT clean
        < CONNACK 0x00
        > PUBLISH a/b #7 q1 "x"
        ! append p0 a/b "x"
        > PUBLISH w/a #8 q1 "y"
        ! append p1 w/a "y"
        = appended p1
        = appended p0
        < PUBACK #7
        < PUBACK #8
        > PUBLISH a/b "qos0"
        ! append p0 a/b "qos0"
        > PUBLISH a/b #9 q1 dup "z"
        ! append p0 a/b "z"
        = appended p0 up-to=2
        = appended p0
        < PUBACK #9
        "#,
    );
}

#[test]
fn the_connack_of_a_persistent_session_waits_for_its_value() {
    check(
        r#"
        > CONNECT expiry=60
        ! put
        > PUBLISH a/b #1 q1 "early"
        ! append p0 a/b "early"
        = appended p0
        = put
        < CONNACK 0x00
        < PUBACK #1
        > DISCONNECT
        ! put
        ! close
        ! hand over
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00 present
        = socket
        ! put
        ! close
        ! hand over
        > CONNECT clean
        ! delete
        = put
        < CONNACK 0x00
        "#,
    );
}

#[test]
fn a_subscription_begins_where_the_tail_says_and_is_durable_before_its_suback() {
    check(
        r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > SUBSCRIBE a/+ #1 q1
        ! subscribe a/+
        = started a/+ p0 120
        = record p0 120 a/b q1 "held"
        ! no room
        = started a/+ p1 10
        ! put
        = record p0 120 a/b q1 "held"
        ! no room
        = put
        < SUBACK #1 [1]
        = record p0 119 a/b q1 "before"
        = record p0 120 a/b q1 "first"
        < PUBLISH #1 q1 a/b "first"
        = record p0 121 x/y q1 "other"
        = record p0 122 a/c q0 "zero"
        < PUBLISH q0 a/c "zero"
        = record p0 123 a/c q1 "second"
        < PUBLISH #2 q1 a/c "second"
        > PUBACK #1
        > UNSUBSCRIBE a/+ #2
        ! put
        ! unsubscribe a/+
        = put
        < UNSUBACK #2
        = record p0 124 a/c q1 "gone"
        "#,
    );
}

#[test]
fn what_was_not_acknowledged_comes_again_after_a_crash_with_its_id_and_dup() {
    check(
        r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > SUBSCRIBE a/b #1 q1
        ! subscribe a/b
        = started a/b p0 100
        = started a/b p1 100
        ! put
        = put
        < SUBACK #1 [1]
        = record p0 100 a/b q1 "one"
        < PUBLISH #1 q1 a/b "one"
        = record p0 101 a/b q1 "two"
        < PUBLISH #2 q1 a/b "two"
        > PUBACK #1
        @ 300
        = timeout
        ! put
        = put
        = record p0 102 a/b q1 "three"
        < PUBLISH #3 q1 a/b "three"
        = crash
        > CONNECT expiry=60
        ! put
        ! subscribe a/b
        = put
        < CONNACK 0x00 present
        = resend
        < PUBLISH #2 q1 a/b "again-101" dup
        = record p0 102 a/b q1 "three"
        < PUBLISH #3 q1 a/b "three"
        = record p0 102 a/b q1 "three"
        = resend
        > PUBACK #2
        = resend
        "#,
    );
}

#[test]
fn the_window_is_the_clients_receive_maximum() {
    check5(
        r#"
        > CONNECT clean window=2
        < CONNACK 0x00
        > SUBSCRIBE # #1 q1
        ! subscribe #
        = started # p0 100
        = started # p1 100
        < SUBACK #1 [1]
        = record p0 100 a q1 "1"
        < PUBLISH #1 q1 a "1"
        = record p0 101 a q1 "2"
        < PUBLISH #2 q1 a "2"
        = record p0 102 a q1 "3"
        ! no room
        = record p0 102 a q0 "QoS-0-needs-no-window"
        < PUBLISH q0 a "QoS-0-needs-no-window"
        > PUBACK #2
        = record p0 103 a q1 "4"
        < PUBLISH #3 q1 a "4"
        > PUBACK #9
        = record p0 104 a q1 "5"
        ! no room
        "#,
    );
}

#[test]
fn subscription_options() {
    check5(
        r#"
        > CONNECT clean
        < CONNACK 0x00
        > SUBSCRIBE a/# #1 q0 sub=5 rap
        ! subscribe a/#
        = started a/# p0 100
        = started a/# p1 100
        < SUBACK #1 [0]
        > SUBSCRIBE a/b #2 q2 sub=6 nolocal
        ! subscribe a/b
        = started a/b p0 102
        = started a/b p1 102
        < SUBACK #2 [2]
        = record p0 100 a/b q1 retain "only-the-first"
        < PUBLISH q0 a/b "only-the-first" retain sub=5
        = record p0 102 a/b q1 retain "both"
        < PUBLISH q0 a/b "both" retain sub=5
        < PUBLISH #1 q1 a/b "both" sub=6
        = record p0 103 a/b q1 own "mine"
        < PUBLISH q0 a/b "mine" sub=5
        "#,
    );
}

#[test]
fn retained_messages_follow_the_suback_through_the_window() {
    check(
        r#"
        > CONNECT clean
        < CONNACK 0x00
        > SUBSCRIBE a/# #1 q1
        ! subscribe a/#
        = started a/# p0 100
        = started a/# p1 100
        < SUBACK #1 [1]
        = retained p0 7 a/b q1 retain "old"
        < PUBLISH #1 q1 a/b "old" retain
        = retained p0 9 a/c q0 retain "zero"
        < PUBLISH q0 a/c "zero" retain
        = page-ended
        = page-ended
        = record p0 100 a/b q1 retain "new"
        < PUBLISH #2 q1 a/b "new"
        "#,
    );
}

#[test]
fn a_will_is_appended_before_the_value_forgets_it() {
    check(
        r#"
        > CONNECT clean will=w/a q1 "gone"
        ! put
        = put
        < CONNACK 0x00
        = socket
        ! close
        ! append will w/a "gone"
        = appended p1
        ! delete
        ! hand over
        > CONNECT clean will=w/a q1 "gone"
        ! delete
        "#
        .rsplit_once("> CONNECT")
        .expect("the last line only shows that the client id is free again")
        .0,
    );
    check(
        r#"
        > CONNECT expiry=60 will=w/a "gone"
        ! put
        = put
        < CONNACK 0x00
        > DISCONNECT
        ! put
        ! close
        ! hand over
        "#,
    );
    check5(
        r#"
        > CONNECT clean will=w/a "gone"
        ! put
        = put
        < CONNACK 0x00
        > DISCONNECT will
        ! close
        ! append will w/a "gone"
        = appended p1
        ! delete
        ! hand over
        "#,
    );
}

#[test]
fn a_takeover_tells_the_old_connection_publishes_its_will_and_then_hands_over() {
    check(
        r#"
        > CONNECT expiry=60 will=w/a "gone"
        ! put
        = put
        < CONNACK 0x00
        = takeover
        ! close
        ! append will w/a "gone"
        5 < DISCONNECT 0x8E
        = appended p1
        ! put
        ! hand over
        "#,
    );
}

#[test]
fn a_client_that_is_silent_for_one_and_a_half_keep_alives_is_closed() {
    check(
        r#"
        > CONNECT clean keep=10
        < CONNACK 0x00
        @ 14000
        = timeout
        > PINGREQ
        < PINGRESP
        @ 28999
        = timeout
        @ 29000
        = timeout
        ! close
        ! hand over
        5 < DISCONNECT 0x8D
        "#,
    );
}

#[test]
fn a_drain_puts_what_is_stored_and_keeps_wills_for_the_next_start() {
    check(
        r#"
        > CONNECT expiry=60 will=w/a "gone"
        ! put
        = put
        < CONNACK 0x00
        = drain
        ! put
        ! close
        ! hand over
        5 < DISCONNECT 0x8B
        "#,
    );
}

#[test]
fn violations_close_the_connection_with_their_reason() {
    let cases = [("PUBLISH a/b sub=3", "0x82"), ("PUBLISH a/b alias=11", "0x94"), ("PUBLISH - alias=3", "0x82")];
    for (packet, reason) in cases {
        let v5_only = packet.contains('=');
        let script = format!("> CONNECT clean\n< CONNACK 0x00\n> {packet}\n! close\n! hand over\n5 < DISCONNECT {reason}");
        if v5_only { check5(&script) } else { check(&script) }
    }
}

#[test]
fn expiry_counts_down_and_ends_a_message() {
    check(
        r#"
        > CONNECT clean
        < CONNACK 0x00
        > SUBSCRIBE # #1 q1
        ! subscribe #
        = started # p0 100
        = started # p1 100
        < SUBACK #1 [1]
        @ 4000
        = record p0 100 a q0 expires=10000 "six-left"
        4 < PUBLISH q0 a "six-left"
        5 < PUBLISH q0 a "six-left" ttl=6
        @ 10000
        = record p0 101 a q0 expires=10000 "late"
        "#,
    );
}

#[test]
fn qos_0_of_the_time_while_it_was_away_is_not_sent() {
    check(
        r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > SUBSCRIBE # #1 q1
        ! subscribe #
        = started # p0 50
        = started # p1 50
        ! put
        = put
        < SUBACK #1 [1]
        = socket
        ! put
        ! close
        ! hand over
        > CONNECT expiry=60
        ! put
        ! subscribe #
        = put
        < CONNACK 0x00 present
        = record p0 99 a q0 "away"
        = record p0 100 a q0 "back"
        < PUBLISH q0 a "back"
        "#,
    );
}

#[test]
fn refusals_speak_the_peers_version() {
    check(
        r#"
        > CONNECT id= will=$SYS/x clean
        4 < CONNACK 0x03
        5 < CONNACK 0x90
        "#,
    );
    check_version(Version::V311, "> CONNECT id=\n< CONNACK 0x02");
}

#[test]
fn a_topic_of_the_gateway_is_refused() {
    check(
        r#"
        > CONNECT clean
        < CONNACK 0x00
        > PUBLISH $SYS/x "zero"
        > PUBLISH $SYS/x #1 q1 "one"
        5 < PUBACK #1 0x87
        4 < PUBACK #1
        > PUBLISH $SYS/x #2 q2 "two"
        5 < PUBREC #2 0x87
        4 < PUBREC #2
        4 > PUBREL #2
        4 < PUBCOMP #2
        "#,
    );
}

/// No Local and Retain As Published, which 3.1.1 cannot ask for.
#[test]
fn filters_of_a_bridge_of_3_1_1_are_without_its_own_and_retain_as_published() {
    check_version(
        Version::V311,
        r#"
        > CONNECT clean bridge
        < CONNACK 0x00
        > SUBSCRIBE a/# #1 q1
        ! subscribe a/#
        = started a/# p0 100
        = started a/# p1 100
        < SUBACK #1 [1]
        = record p0 100 a/b q1 own "mine"
        = record p0 101 a/b q1 retain "kept"
        < PUBLISH #1 q1 a/b "kept" retain
        "#,
    );
}

/// Found by random packets: 0x84 belongs to CONNACK alone.
#[test]
fn a_second_connect_of_an_unknown_version_is_a_protocol_error() {
    let mut w = World::new(Version::V5);
    w.client(&["CONNECT", "clean"]);
    w.settle();
    let Err(e) = decode(b"\x10\x0D\x00\x04MQTT\x06\x02\x00\x00\x00\x01p", Version::V5, 100) else { panic!("no such version") };
    w.event(Event::Closed(Cause::Violation(e.into())));
    w.settle();
    assert!(w.log.ends_with("DISCONNECT 0x82\n"), "{}", w.log);
}

#[test]
fn a_second_connect_and_packets_of_servers_are_violations() {
    let mut w = World::new(Version::V5);
    w.client(&["CONNECT", "clean"]);
    w.settle();
    let connect = Packet::Connect(Connect::new(Version::V5, "a"));
    for p in [connect, Packet::PingResp] {
        let v = w.session.packet(w.now(), &p, &mut Vec::new()).expect_err("refused");
        assert_eq!(v.reason, ReasonCode::PROTOCOL_ERROR);
    }
}

#[test]
fn topic_aliases_both_ways() {
    check5(
        r#"
        > CONNECT clean aliases=1
        < CONNACK 0x00
        > PUBLISH a/b alias=1 "x"
        ! append p0 a/b "x"
        > PUBLISH - alias=1 "y"
        ! append p0 a/b "y"
        > PUBLISH - alias=1 q2 #3 "z"
        ! append p0 a/b "z"
        = appended p0
        < PUBREC #3
        > SUBSCRIBE # #1 q1
        ! subscribe #
        = started # p0 100
        = started # p1 100
        < SUBACK #1 [1]
        = record p0 100 a/b q0 "1"
        < PUBLISH q0 a/b "1" alias=1
        = record p0 101 a/b q0 "2"
        < PUBLISH q0  "2" alias=1
        = record p0 102 c q0 "3"
        < PUBLISH q0 c "3"
        "#,
    );
}

#[test]
fn a_connack_that_may_not_be_sent_ends_the_connection() {
    check5("> CONNECT clean max=10\n! close\n! hand over");
}

#[test]
fn a_shared_subscription_takes_what_its_group_gives_and_tells_when_it_is_done() {
    check(
        r#"
        > CONNECT expiry=60 window=2
        ! put
        = put
        < CONNACK 0x00
        > SUBSCRIBE $share/g/a/# #1 q2 sub=4
        ! share $share/g/a/#
        = shared $share/g/a/#
        ! put
        = put
        < SUBACK #1 [1]
        = given $share/g/a/# 100 a/b q2 "one"
        4 < PUBLISH #1 q1 a/b "one"
        5 < PUBLISH #1 q1 a/b "one" sub=4
        = given $share/g/a/# 101 a/b q0 "zero"
        ! settle $share/g/a/# p0 101
        4 < PUBLISH q0 a/b "zero"
        5 < PUBLISH q0 a/b "zero" sub=4
        > PUBACK #1
        ! settle $share/g/a/# p0 100
        = given $share/g/a/# 102 a/b q1 "two"
        4 < PUBLISH #2 q1 a/b "two"
        5 < PUBLISH #2 q1 a/b "two" sub=4
        = socket
        ! put
        ! close
        ! hand over
        > CONNECT expiry=60
        ! put
        ! share $share/g/a/#
        = put
        < CONNACK 0x00 present
        = resend
        > UNSUBSCRIBE $share/g/a/# #2
        ! put
        ! unshare $share/g/a/#
        = put
        < UNSUBACK #2
        "#,
    );
    check(
        r#"
        > CONNECT clean
        < CONNACK 0x00
        > SUBSCRIBE $share/g/a/# #1 q1
        ! share $share/g/a/#
        = shared $share/g/a/#
        < SUBACK #1 [1]
        = socket
        ! close
        ! unshare $share/g/a/#
        ! hand over
        "#,
    );
}

#[test]
fn a_session_expiry_that_connect_did_not_ask_for_cannot_come_with_disconnect() {
    check5(
        r#"
        > CONNECT clean
        < CONNACK 0x00
        > DISCONNECT expiry=5
        ! close
        ! hand over
        < DISCONNECT 0x82
        "#,
    );
    // One that is there can be changed, and ended.
    check5(
        r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > DISCONNECT expiry=0
        ! delete
        ! close
        ! hand over
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        "#,
    );
}

#[test]
fn auth_and_topics_that_are_no_keys_are_violations() {
    let mut w = World::new(Version::V5);
    w.client(&["CONNECT", "clean"]);
    w.settle();
    let auth = Packet::Auth(crate::packet::Auth { reason: ReasonCode::SUCCESS, properties: Properties::default() });
    let v = w.session.packet(w.now(), &auth, &mut Vec::new()).expect_err("refused");
    assert_eq!((v.reason, &v.statement[..13]), (ReasonCode::PROTOCOL_ERROR, "MQTT-4.12.0-6"));
    let topic = "t".repeat(KEY_BYTES_MAX + 1);
    let publish = Publish {
        dup: false,
        qos: Qos::AtMostOnce,
        retain: false,
        topic: &topic,
        packet_id: None,
        properties: Properties::default(),
        payload: b"",
    };
    let mut out = Vec::new();
    for (version, qos, answer) in [
        (Version::V5, Qos::AtMostOnce, Ok(&b""[..])),
        (Version::V5, Qos::AtLeastOnce, Ok(&b"\x40\x03\x00\x07\x90"[..])),
        (Version::V5, Qos::ExactlyOnce, Ok(&b"\x50\x03\x00\x07\x90"[..])),
        (Version::V311, Qos::AtMostOnce, Ok(&b""[..])),
        (Version::V311, Qos::AtLeastOnce, Err(ReasonCode::TOPIC_NAME_INVALID)),
    ] {
        let mut w = World::new(version);
        w.client(&["CONNECT", "clean"]);
        w.settle();
        out.clear();
        let packet_id = (qos != Qos::AtMostOnce).then(|| PacketId::new(7).expect("an id"));
        let got = w.session.packet(w.now(), &Packet::Publish(Publish { qos, packet_id, ..publish }), &mut out);
        assert_eq!(got.map_err(|v| v.reason), answer.map(|_| None), "{version} {qos:?}");
        assert!(answer.is_err() || answer == Ok(&out), "{version} {qos:?}: {out:02x?}");
        assert_eq!(w.session.poll_action(), Some(Action::Refused(Limit::TopicBytes)), "{version} {qos:?}");
    }
}

/// With a smaller Receive Maximum than it has in flight, a session sends again as its window opens, and nothing new before that is done.
#[test]
fn what_is_sent_again_goes_on_in_a_smaller_window_before_anything_new() {
    check5(
        r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > SUBSCRIBE a/# #1 q1
        ! subscribe a/#
        = started a/# p0 100
        = started a/# p1 100
        ! put
        = put
        < SUBACK #1 [1]
        = record p0 100 a/b q1 "1"
        < PUBLISH #1 q1 a/b "1"
        = record p0 101 a/b q1 "2"
        < PUBLISH #2 q1 a/b "2"
        = record p0 102 a/b q1 "3"
        < PUBLISH #3 q1 a/b "3"
        > DISCONNECT
        ! put
        ! close
        ! hand over
        = put
        > CONNECT expiry=60 receive=1
        ! put
        ! subscribe a/#
        = put
        < CONNACK 0x00 present
        = resend
        < PUBLISH #1 q1 a/b "again-100" dup
        = record p0 103 a/b q0 "new"
        ! no room
        = resend
        > PUBACK #1
        = resend
        < PUBLISH #2 q1 a/b "again-101" dup
        > PUBACK #2
        = record p0 103 a/b q0 "new"
        ! no room
        = resend
        < PUBLISH #3 q1 a/b "again-102" dup
        = record p0 103 a/b q0 "new"
        < PUBLISH q0 a/b "new"
        = record p0 104 a/b q1 "new"
        ! no room
        > PUBACK #3
        = record p0 104 a/b q1 "new"
        < PUBLISH #4 q1 a/b "new"
        "#,
    );
}
