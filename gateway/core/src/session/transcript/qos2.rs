//! QoS 2, both ways: every step, and a crash at each.

use super::*;

#[test]
fn a_message_with_qos_2_and_its_release_leave_when_the_value_says_so() {
    check(
        r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > SUBSCRIBE # #1 q2
        ! subscribe #
        = started # p0 100
        = started # p1 100
        ! put
        = put
        < SUBACK #1 [2]
        = record p0 100 a q2 "one"
        ! put
        = record p0 101 a q1 "behind-it"
        = record p0 102 a q0 "too"
        = record p0 103 a q2 "and-this"
        = put
        ! put
        < PUBLISH #1 q2 a "one"
        = put
        < PUBLISH #2 q1 a "behind-it"
        < PUBLISH q0 a "too"
        < PUBLISH #3 q2 a "and-this"
        > PUBREC #3
        ! put
        = put
        < PUBREL #3
        > PUBREC #3
        < PUBREL #3
        > PUBCOMP #3
        > PUBCOMP #3
        > PUBREC #9
        < PUBREL #9
        "#,
    );
    // What dies with the connection waits for nothing.
    check(
        r#"
        > CONNECT clean
        < CONNACK 0x00
        > SUBSCRIBE # #1 q2
        ! subscribe #
        = started # p0 100
        = started # p1 100
        < SUBACK #1 [2]
        = record p0 100 a q2 "one"
        < PUBLISH #1 q2 a "one"
        > PUBREC #1
        < PUBREL #1
        > PUBCOMP #1
        "#,
    );
}

#[test]
fn qos_2_goes_on_after_a_crash_with_the_step_that_was_durable() {
    check(
        r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > SUBSCRIBE # #1 q2
        ! subscribe #
        = started # p0 100
        = started # p1 100
        ! put
        = put
        < SUBACK #1 [2]
        = record p0 100 a/b q2 "one"
        ! put
        = put
        < PUBLISH #1 q2 a/b "one"
        = record p0 101 a/b q2 "two"
        ! put
        = put
        < PUBLISH #2 q2 a/b "two"
        = record p0 102 a/b q2 "three"
        ! put
        = put
        < PUBLISH #3 q2 a/b "three"
        > PUBREC #1
        ! put
        = put
        < PUBREL #1
        = crash
        > CONNECT expiry=60
        ! put
        ! subscribe #
        = put
        < CONNACK 0x00 present
        = resend
        < PUBREL #1
        < PUBLISH #2 q2 a/b "again-101" dup
        < PUBLISH #3 q2 a/b "again-102" dup
        > PUBCOMP #1
        > PUBREC #2
        ! put
        = crash
        > CONNECT expiry=60
        ! put
        ! subscribe #
        = put
        < CONNACK 0x00 present
        = resend
        < PUBREL #2
        < PUBLISH #3 q2 a/b "again-102" dup
        "#,
    );
}

/// The model's variant `dropgone`: an id that is dropped without a release is taken for a repeat when it comes round.
#[test]
fn what_retention_took_is_released_all_the_same() {
    let script = r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > SUBSCRIBE # #1 q2
        ! subscribe #
        = started # p0 100
        = started # p1 100
        ! put
        = put
        < SUBACK #1 [2]
        = record p0 100 a/b q2 "two"
        ! put
        = put
        < PUBLISH #1 q2 a/b "two"
        = record p0 101 a/b q1 "one"
        < PUBLISH #2 q1 a/b "one"
        = record p0 102 a/b q1 "one"
        < PUBLISH #3 q1 a/b "one"
        = socket
        ! put
        ! close
        ! hand over
        > CONNECT expiry=60
        ! put
        ! subscribe #
        = put
        < CONNACK 0x00 present
        = resend lost-below=102
        ! put
        = put
        < PUBREL #1
        < PUBLISH #3 q1 a/b "again-102" dup
        > PUBCOMP #1
        "#;
    for version in [Version::V311, Version::V5] {
        // The one with QoS 2 that was released, and the one with QoS 1 that was given up.
        assert_eq!(check_version(version, script).session.take_counts().lost, 2);
    }
}

#[test]
fn a_client_may_refuse_a_message_with_qos_2() {
    check5(
        r#"
        > CONNECT clean window=1
        < CONNACK 0x00
        > SUBSCRIBE # #1 q2
        ! subscribe #
        = started # p0 100
        = started # p1 100
        < SUBACK #1 [2]
        = record p0 100 a q2 "one"
        < PUBLISH #1 q2 a "one"
        = record p0 101 a q2 "two"
        ! no room
        > PUBREC #1 refused
        = record p0 101 a q2 "two"
        < PUBLISH #2 q2 a "two"
        > PUBREC #1 refused
        "#,
    );
}

#[test]
fn an_acknowledgement_that_is_not_the_next_step_is_a_violation() {
    for (qos, packet) in [("q1", "PUBREC"), ("q1", "PUBCOMP"), ("q2", "PUBACK"), ("q2", "PUBCOMP")] {
        let script = format!(
            r#"
            > CONNECT clean
            < CONNACK 0x00
            > SUBSCRIBE # #1 q2
            ! subscribe #
            = started # p0 100
            = started # p1 100
            < SUBACK #1 [2]
            = record p0 100 a {qos} "one"
            < PUBLISH #1 {qos} a "one"
            > {packet} #1
            ! close
            ! hand over
            5 < DISCONNECT 0x82
            "#
        );
        check(&script);
    }
}

#[test]
fn qos_2_inbound_is_appended_once_and_released_by_a_note() {
    check(
        r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > PUBLISH a/b #1 q2 "x"
        ! append p0 a/b "x"
        > PUBLISH a/b #1 q2 dup "x"
        > PUBLISH w/a #2 q2 "y"
        ! append p1 w/a "y"
        = appended p1
        = appended p0
        < PUBREC #1
        < PUBREC #2
        > PUBLISH a/b #1 q2 dup "x"
        < PUBREC #1
        > PUBREL #2
        ! note p1 #2
        > PUBREL #2
        > PUBREL #1
        ! note p0 #1
        = appended p0
        = appended p1
        < PUBCOMP #2
        < PUBCOMP #1
        > PUBREL #1
        < PUBCOMP #1
        > PUBLISH a/b #1 q2 "new"
        ! append p0 a/b "new"
        "#,
    );
    // What dies with the connection needs no note.
    check(
        r#"
        > CONNECT clean
        < CONNACK 0x00
        > PUBLISH a/b #1 q2 "x"
        ! append p0 a/b "x"
        = appended p0
        < PUBREC #1
        > PUBREL #1
        < PUBCOMP #1
        "#,
    );
}

/// A refusal would say that its packet id is free: the next message with it would be taken for the
/// first one.
#[test]
fn what_was_accepted_is_not_judged_again_by_limits_that_came_later() {
    check5(
        r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > PUBLISH a/b #1 q2 "x"
        ! append p0 a/b "x"
        = appended p0
        < PUBREC #1
        = socket
        ! put
        ! close
        ! hand over
        = topic-bytes 2
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00 present
        > PUBLISH a/b #1 q2 dup "x"
        < PUBREC #1
        > PUBLISH a/b #2 q2 "y"
        ! refused topic_bytes
        < PUBREC #2 0x90
        > PUBREL #1
        ! note p0 #1
        = appended p0
        < PUBCOMP #1
        > PUBLISH z #1 q2 "new"
        ! append p0 z "new"
        "#,
    );
}

#[test]
fn who_reconnects_finds_every_step_of_qos_2_that_was_on_its_way() {
    for end in ["= socket", "= takeover", "= drain"] {
        let says = if end == "= socket" {
            ""
        } else if end == "= drain" {
            "5 < DISCONNECT 0x8B"
        } else {
            "5 < DISCONNECT 0x8E"
        };
        check(&format!(
            r#"
            > CONNECT expiry=60
            ! put
            = put
            < CONNACK 0x00
            > PUBLISH a/b #1 q2 "x"
            ! append p0 a/b "x"
            > PUBLISH w/a #2 q2 "y"
            ! append p1 w/a "y"
            = appended p1
            > PUBREL #2
            ! note p1 #2
            {end}
            ! close
            {says}
            = appended p1
            = appended p0
            ! put
            ! hand over
            > CONNECT expiry=60
            ! put
            = put
            < CONNACK 0x00 present
            > PUBLISH a/b #1 q2 dup "x"
            < PUBREC #1
            > PUBREL #2
            < PUBCOMP #2
            "#
        ));
    }
}

#[test]
fn a_crash_at_any_step_of_qos_2_neither_repeats_nor_loses() {
    // Nothing was durable: it is new when it comes again.
    check(
        r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > PUBLISH a/b #1 q2 "x"
        ! append p0 a/b "x"
        = crash
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00 present
        > PUBLISH a/b #1 q2 dup "x"
        ! append p0 a/b "x"
        "#,
    );
    // The record was durable and the PUBREC did not come; then the note was not; then it was.
    check(
        r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > PUBLISH a/b #1 q2 "x"
        ! append p0 a/b "x"
        = appended p0
        < PUBREC #1
        = crash
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00 present
        > PUBLISH a/b #1 q2 dup "x"
        < PUBREC #1
        > PUBREL #1
        ! note p0 #1
        = crash
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00 present
        > PUBREL #1
        ! note p0 #1
        = appended p0
        < PUBCOMP #1
        = crash
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00 present
        > PUBREL #1
        < PUBCOMP #1
        > PUBLISH w/a #1 q2 "next"
        ! append p1 w/a "next"
        = appended p1
        < PUBREC #1
        = crash
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00 present
        > PUBLISH w/a #1 q2 dup "next"
        < PUBREC #1
        "#,
    );
}

#[test]
fn a_clean_start_forgets_what_was_open() {
    check5(
        r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > PUBLISH a/b #1 q2 "x"
        ! append p0 a/b "x"
        = appended p0
        < PUBREC #1
        = socket
        ! put
        ! close
        ! hand over
        @ 5
        > CONNECT clean expiry=60
        ! put
        = put
        < CONNACK 0x00
        = crash
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00 present
        > PUBLISH a/b #1 q2 "another"
        ! append p0 a/b "another"
        "#,
    );
}

#[test]
fn open_exchanges_count_against_the_receive_maximum() {
    let mut w = World::new(Version::V5);
    w.client(&["CONNECT", "clean"]);
    w.settle();
    for n in 1..=RECEIVE_MAXIMUM {
        w.client(&["PUBLISH", "a/b", &format!("#{n}"), "q2"]);
    }
    w.shell(&["appended", "p0"]);
    w.client(&["PUBLISH", "a/b", "#1", "q2", "dup"]);
    w.client(&["PUBLISH", "a/b", "q0"]);
    w.log.clear();
    w.settle();
    assert!(!w.log.contains("DISCONNECT") && w.log.contains("PUBREC #1024"), "{}", w.log);
    w.client(&["PUBREL", "#7"]);
    w.client(&["PUBLISH", "a/b", "#2000", "q2"]);
    w.client(&["PUBLISH", "a/b", "#2001", "q1"]);
    w.client(&["PUBLISH", "a/b", "#2002", "q1"]);
    w.shell(&["appended", "p0"]);
    w.settle();
    assert!(!w.log.contains("DISCONNECT") && w.log.contains("PUBACK #2002"), "{}", w.log);
    w.client(&["PUBLISH", "a/b", "#2003", "q2"]);
    w.settle();
    assert!(w.log.contains("DISCONNECT 0x93"), "{}", w.log);
}
