//! Partitions that fail: who waits for one is told, and everything else goes on.

use super::*;

#[test]
fn when_the_log_fails_nothing_more_is_acknowledged() {
    check(
        r#"
        > CONNECT clean
        < CONNACK 0x00
        > PUBLISH a/b #7 q1 "x"
        ! append p0 a/b "x"
        = failed p0
        ! close
        ! hand over
        5 < DISCONNECT 0x83
        "#,
    );
}

#[test]
fn who_only_reads_goes_on_when_the_log_has_failed() {
    check(
        r#"
        > CONNECT clean
        < CONNACK 0x00
        > SUBSCRIBE # #1 q1
        ! subscribe #
        = started # p0 100
        = started # p1 100
        < SUBACK #1 [1]
        = failed p0
        = record p0 100 a q1 "still"
        < PUBLISH #1 q1 a "still"
        > PUBACK #1
        = failed p0
        "#,
    );
}

#[test]
fn a_message_that_waits_for_another_partition_goes_on() {
    check(
        r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > PUBLISH w/a #1 q2 "x"
        ! append p1 w/a "x"
        = failed p0
        = appended p1
        < PUBREC #1
        > PUBREL #1
        ! note p1 #1
        = failed p0
        = appended p1
        < PUBCOMP #1
        "#,
    );
}

/// The session could not end else, and whoever wants its client id would wait for ever.
#[test]
fn an_end_waits_for_the_partitions_that_can_still_answer() {
    check(
        r#"
        > CONNECT expiry=60
        ! put
        = put
        < CONNACK 0x00
        > PUBLISH w/a #1 q2 "x"
        ! append p1 w/a "x"
        > PUBLISH a/b #2 q2 "y"
        ! append p0 a/b "y"
        = socket
        ! close
        = failed p0
        = appended p1
        ! put
        ! hand over
        "#,
    );
}

#[test]
fn a_will_is_given_up_by_its_own_partition_only_and_the_value_keeps_it() {
    for (fails, then) in [("p0", "= appended p1"), ("p1", "")] {
        let script = format!(
            r#"
            > CONNECT expiry=60 will=w/a "gone"
            ! put
            = put
            < CONNACK 0x00
            = socket
            ! close
            ! append will w/a "gone"
            = failed {fails}
            {then}
            ! put
            ! hand over
            "#
        );
        for version in [Version::V311, Version::V5] {
            let w = check_version(version, &script);
            assert_eq!((w.session.gave_up(), w.session.has_will()), (fails == "p1", fails == "p1"), "{fails}");
        }
    }
}
