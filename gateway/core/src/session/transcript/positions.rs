//! Subscriptions that begin in the past, and clients that want to know where messages stand.

use super::*;

#[test]
fn a_subscription_begins_in_the_past_and_others_do_not_get_it_again() {
    check(
        r#"
        > CONNECT expiry=60
        4 ! put
        5 ! put
        = put
        < CONNACK 0x00
        > SUBSCRIBE a/# #1 q1
        ! subscribe a/#
        = started a/# p0 100
        = started a/# p1 100
        ! put
        = put
        < SUBACK #1 [1]
        = record p0 103 a/b q1 "103"
        < PUBLISH #1 q1 a/b "103"
        4 > SUBSCRIBE $replay/offset:7/a/b #2 q1
        5 > SUBSCRIBE a/b #2 q1 from=offset:7
        ! subscribe a/b Offset(Offset(7))
        = started a/b p1 100
        = record p0 104 a/b q1 "early"
        ! no room
        = started a/b p0 104
        = started a/b p0 7
        = started a/b p1 0
        ! put
        = put
        < SUBACK #2 [1]
        = step p0
        ! Fetch(Offset(7)..Offset(100))
        = record p0 7 a/b q0 "qos-0"
        < PUBLISH q0 a/b "qos-0"
        = record p0 50 a/c q1 "not-for-it"
        = record p0 103 a/b q1 "103"
        < PUBLISH #2 q1 a/b "103"
        = record p0 103 a/b q1 "103"
        = record p0 104 a/c q1 "104"
        < PUBLISH #3 q1 a/c "104"
        = record p0 105 a/b q1 "once"
        < PUBLISH #4 q1 a/b "once"
        4 > UNSUBSCRIBE $replay/offset:7/a/b #3
        5 > UNSUBSCRIBE a/b #3
        ! put
        ! unsubscribe a/b
        = put
        < UNSUBACK #3
        "#,
    );
}

#[test]
fn what_was_not_sent_yet_when_the_process_ended_comes_after_it() {
    check(
        r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        4 > SUBSCRIBE $replay/last:3/a #1 q1
        5 > SUBSCRIBE a #1 q1 from=last:3
        ! subscribe a Last(3)
        = started a p0 100
        = started a p0 40
        = started a p1 100
        = started a p1 90
        ! put
        = put
        < SUBACK #1 [1]
        = record p0 40 a q1 "40"
        < PUBLISH #1 q1 a "40"
        > PUBACK #1
        @ 300
        = timeout
        ! put
        = crash
        > CONNECT expiry=60
        ! put
        ! subscribe a
        = put
        < CONNACK 0x00 present
        = step p0
        ! Fetch(Offset(41)..Offset(100))
        = record p0 39 a q1 "before"
        = record p0 40 a q1 "acknowledged"
        = record p0 60 a q1 "60"
        < PUBLISH #2 q1 a "60"
        "#,
    );
}

#[test]
fn the_same_filter_again_with_a_place_begins_there() {
    check5(
        r#"
        > CONNECT clean
        < CONNACK 0x00
        > SUBSCRIBE a #1 q1
        ! subscribe a
        = started a p0 100
        = started a p1 100
        < SUBACK #1 [1]
        = record p0 100 a q1 "100"
        < PUBLISH #1 q1 a "100"
        > SUBSCRIBE a #2 q0 from=earliest
        ! unsubscribe a
        ! subscribe a Earliest
        = started a p0 101
        = started a p1 100
        = started a p0 0
        = started a p1 0
        < SUBACK #2 [0]
        = record p0 0 a q1 "0"
        < PUBLISH q0 a "0"
        > SUBSCRIBE a #3 q0 from=latest
        < SUBACK #3 [0]
        "#,
    );
}

#[test]
fn what_is_not_understood_is_refused_in_words() {
    check(
        r#"
        > CONNECT clean
        < CONNACK 0x00
        4 > SUBSCRIBE $replay/soon/a #1
        4 < SUBACK #1 [128]
        4 > SUBSCRIBE $replay/earliest #1
        4 < SUBACK #1 [128]
        4 > SUBSCRIBE $replay/earliest/$share/g/a #1
        4 < SUBACK #1 [128]
        5 > SUBSCRIBE a #1 from=soon
        5 < SUBACK #1 [131] "from \"soon\": none of earliest, latest, last:N (1 to 100000), offset:N, time:2026-01-31T08:00:00Z, -15m"
        5 > SUBSCRIBE $replay/earliest #1
        5 < SUBACK #1 [143] "a filter that is not well formed, or none behind $replay/FROM/"
        5 > SUBSCRIBE $share/g/a #1 from=earliest
        5 < SUBACK #1 [131] "from: a group has one place for all its members"
        "#,
    );
    // What may not be sent is left out.
    check5(
        r#"
        > CONNECT clean max=60
        < CONNACK 0x00
        > SUBSCRIBE a #1 from=soon
        < SUBACK #1 [131]
        "#,
    );
}

#[test]
fn who_asks_is_told_where_messages_stand() {
    check5(
        r#"
        > CONNECT expiry=60 position=true
        ! put
        = put
        < CONNACK 0x00
        > PUBLISH a/b #7 q1 "x"
        ! append p0 a/b "x"
        > PUBLISH a/b #8 q2 "y"
        ! append p0 a/b "y"
        = appended p0
        < PUBACK #7 stream=s partition=0 offset=0
        < PUBREC #8
        > PUBREL #8
        ! note p0 #8
        = appended p0
        < PUBCOMP #8 stream=s partition=0 offset=1
        > SUBSCRIBE a/# #1 q1 position=true
        ! subscribe a/#
        = started a/# p0 100
        = started a/# p1 100
        ! put
        = put
        < SUBACK #1 [1]
        = record p0 100 a/b q1 "x"
        < PUBLISH #1 q1 a/b "x" stream=s partition=0 offset=100 timestamp=1970-01-01T00:00:00.000Z
        = lost p0 101 200
        = lost p0 200 210
        = record p0 210 c q1 "not-for-it"
        = record p0 211 a/b q1 "y"
        < PUBLISH #2 q1 a/b "y" lost=s/0:101-210 stream=s partition=0 offset=211 timestamp=1970-01-01T00:00:00.000Z
        = record p0 212 a/b q1 "z"
        < PUBLISH #3 q1 a/b "z" stream=s partition=0 offset=212 timestamp=1970-01-01T00:00:00.000Z
        > DISCONNECT
        ! put
        ! close
        ! hand over
        = put
        > CONNECT expiry=60
        ! put
        ! subscribe a/#
        = put
        < CONNACK 0x00 present
        = resend
        < PUBLISH #1 q1 a/b "again-100" dup lost=s/0:101-210 stream=s partition=0 offset=100 timestamp=1970-01-01T00:00:00.000Z
        < PUBLISH #2 q1 a/b "again-211" dup stream=s partition=0 offset=211 timestamp=1970-01-01T00:00:00.000Z
        < PUBLISH #3 q1 a/b "again-212" dup stream=s partition=0 offset=212 timestamp=1970-01-01T00:00:00.000Z
        > PUBLISH a/b #9 q1 "x"
        ! append p0 a/b "x"
        = appended p0
        < PUBACK #9
        "#,
    );
}

#[test]
fn who_has_not_asked_is_told_nothing() {
    check5(
        r#"
        > CONNECT clean position=yes
        < CONNACK 0x00
        > PUBLISH a/b #7 q1 "x"
        ! append p0 a/b "x"
        = appended p0
        < PUBACK #7
        > SUBSCRIBE a/# #1 q1
        ! subscribe a/#
        = started a/# p0 100
        = started a/# p1 100
        < SUBACK #1 [1]
        = lost p0 0 5
        = record p0 100 a/b q1 "x"
        < PUBLISH #1 q1 a/b "x"
        "#,
    );
}

/// Whoever is told of a loss knows it when it acknowledges the message that said so, and not when that message left.
#[test]
fn a_loss_is_told_until_it_is_acknowledged_and_what_was_in_flight_is_told_too() {
    check5(
        r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > SUBSCRIBE a/# #1 q1 position=true
        ! subscribe a/#
        = started a/# p0 100
        = started a/# p1 100
        ! put
        = put
        < SUBACK #1 [1]
        = record p0 100 a/b q1 "x"
        < PUBLISH #1 q1 a/b "x" stream=s partition=0 offset=100 timestamp=1970-01-01T00:00:00.000Z
        = lost p0 101 110
        = record p0 110 a/b q1 "y"
        < PUBLISH #2 q1 a/b "y" lost=s/0:101-110 stream=s partition=0 offset=110 timestamp=1970-01-01T00:00:00.000Z
        > PUBACK #2
        = lost p0 111 115
        = record p0 115 a/b q1 "z"
        < PUBLISH #3 q1 a/b "z" lost=s/0:111-115 stream=s partition=0 offset=115 timestamp=1970-01-01T00:00:00.000Z
        > DISCONNECT
        ! put
        ! close
        ! hand over
        = put
        > CONNECT expiry=60
        ! put
        ! subscribe a/#
        = put
        < CONNACK 0x00 present
        = resend lost-below=101
        < PUBLISH #3 q1 a/b "again-115" dup lost=s/0:111-115 lost=s/0:100-101 stream=s partition=0 offset=115 timestamp=1970-01-01T00:00:00.000Z
        = record p0 116 a/b q1 "more"
        < PUBLISH #4 q1 a/b "more" stream=s partition=0 offset=116 timestamp=1970-01-01T00:00:00.000Z
        "#,
    );
}

/// Live messages of QoS 0 that a slow reader is not sent are told; those that a subscription asked for from the past are sent, however slow it is.
#[test]
fn the_past_that_was_asked_for_is_sent_and_what_is_dropped_live_is_told() {
    check5(
        r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > SUBSCRIBE a/# #1 q0 position=true from=earliest
        ! subscribe a/# Earliest
        = started a/# p0 0
        = started a/# p1 0
        = started a/# p0 103
        = started a/# p1 100
        ! put
        = put
        < SUBACK #1 [0]
        = record p0 0 a/b q0 "past"
        < PUBLISH q0 a/b "past" stream=s partition=0 offset=0 timestamp=1970-01-01T00:00:00.000Z
        = behind p0
        = record p0 102 a/b q0 "past"
        < PUBLISH q0 a/b "past" stream=s partition=0 offset=102 timestamp=1970-01-01T00:00:00.000Z
        = record p0 103 a/b q0 "late"
        = record p0 105 a/b q0 "late"
        = live p0 110
        = record p0 110 a/b q0 "live"
        < PUBLISH q0 a/b "live" lost=s/0:103-106 stream=s partition=0 offset=110 timestamp=1970-01-01T00:00:00.000Z
        "#,
    );
}

/// What is said beside a message gives way to the message.
#[test]
fn a_small_maximum_packet_size_costs_what_is_said_of_a_message_and_not_the_message() {
    check5(
        r#"
        > CONNECT expiry=60 max=100
        ! put
        = put
        < CONNACK 0x00
        > SUBSCRIBE a/# #1 q1 position=true
        ! subscribe a/#
        = started a/# p0 100
        = started a/# p1 100
        ! put
        = put
        < SUBACK #1 [1]
        = lost p0 100 110
        = lost p0 111 114
        = record p0 110 a/b q1 "x"
        < PUBLISH #1 q1 a/b "x" stream=s partition=0 offset=110 timestamp=1970-01-01T00:00:00.000Z
        = record p0 114 a/b q1 "longer"
        < PUBLISH #2 q1 a/b "longer"
        > PUBACK #1
        > PUBACK #2
        > DISCONNECT
        ! put
        ! close
        ! hand over
        = put
        > CONNECT expiry=60 max=122
        ! put
        ! subscribe a/#
        = put
        < CONNACK 0x00 present
        = record p0 115 a/b q1 "y"
        < PUBLISH #3 q1 a/b "y" lost=s/0:100-110 stream=s partition=0 offset=115 timestamp=1970-01-01T00:00:00.000Z
        = record p0 116 a/b q1 "z"
        < PUBLISH #4 q1 a/b "z" lost=s/0:111-114 stream=s partition=0 offset=116 timestamp=1970-01-01T00:00:00.000Z
        "#,
    );
}
