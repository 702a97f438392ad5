//! A client of version 5 some of whose filters overlap.

use super::{World, check_world, check5};
use crate::{
    limits::{Limits, Overlapping},
    packet::Version,
};
use std::sync::Arc;

/// Two identifiers, one of them with two filters, and a filter without.
const SUBSCRIBED: &str = r#"
    > CONNECT expiry=60 window=2
    ! put
    = put
    < CONNACK 0x00
    > SUBSCRIBE a/# #1 q1 sub=9 rap
    ! subscribe a/#
    = started a/# p0 100
    = started a/# p1 100
    ! put
    = put
    < SUBACK #1 [1]
    > SUBSCRIBE +/b #2 q2 sub=3
    ! subscribe +/b
    = started +/b p0 100
    = started +/b p1 100
    ! put
    = put
    < SUBACK #2 [2]
    > SUBSCRIBE a/b #3 q0 sub=9
    ! subscribe a/b
    = started a/b p0 100
    = started a/b p1 100
    ! put
    = put
    < SUBACK #3 [0]
    > SUBSCRIBE # #4 q0
    ! subscribe #
    = started # p0 100
    = started # p1 100
    ! put
    = put
    < SUBACK #4 [0]
"#;

fn subscribed(more: &str) {
    check5(&format!("{SUBSCRIBED}{more}"));
}

#[test]
fn each_identifier_has_a_copy_with_its_own_qos() {
    subscribed(
        r#"
        = record p0 100 a/b q2 "x" retain
        ! put
        = put
        < PUBLISH #1 q2 a/b "x" sub=3
        < PUBLISH #2 q1 a/b "x" retain sub=9
        "#,
    );
}

#[test]
fn a_copy_that_finds_no_room_follows_alone_and_over_a_crash_too() {
    subscribed(
        r#"
        = record p0 100 a/b q1 "x"
        < PUBLISH #1 q1 a/b "x" sub=3
        < PUBLISH #2 q1 a/b "x" sub=9
        > PUBACK #1
        = record p0 101 a/b q1 "y"
        ! no room
        < PUBLISH #3 q1 a/b "y" sub=3
        @ 300
        = timeout
        ! put
        = put
        = crash
        > CONNECT expiry=60 window=2
        ! put
        ! subscribe #
        ! subscribe +/b
        ! subscribe a/#
        ! subscribe a/b
        = put
        < CONNACK 0x00 present
        = resend
        < PUBLISH #2 q1 a/b "again-100" dup sub=9
        < PUBLISH #3 q1 a/b "again-101" dup sub=3
        > PUBACK #2
        = record p0 101 a/b q1 "y"
        < PUBLISH #4 q1 a/b "y" sub=9
        "#,
    );
}

/// Each copy has what its own filters give it, the second time too.
#[test]
fn a_copy_that_is_sent_again_has_the_flags_of_its_own_filters() {
    subscribed(
        r#"
        = record p0 100 a/b q1 "x" retain
        < PUBLISH #1 q1 a/b "x" sub=3
        < PUBLISH #2 q1 a/b "x" retain sub=9
        @ 300
        = timeout
        ! put
        = put
        = crash
        > CONNECT expiry=60 window=2
        ! put
        ! subscribe #
        ! subscribe +/b
        ! subscribe a/#
        ! subscribe a/b
        = put
        < CONNACK 0x00 present
        = resend retain
        < PUBLISH #1 q1 a/b "again-100" dup sub=3
        < PUBLISH #2 q1 a/b "again-100" retain dup sub=9
        "#,
    );
}

/// What was begun in copies ends in copies; what comes later is merged.
#[test]
fn a_record_between_two_copies_ends_in_copies_whatever_the_configuration_says() {
    subscribed(
        r#"
        = record p0 100 a/b q1 "x"
        < PUBLISH #1 q1 a/b "x" sub=3
        < PUBLISH #2 q1 a/b "x" sub=9
        = record p0 101 a/b q1 "y"
        ! no room
        > PUBACK #1
        = record p0 101 a/b q1 "y"
        ! no room
        < PUBLISH #3 q1 a/b "y" sub=3
        @ 300
        = timeout
        ! put
        = put
        = crash
        = merge
        > CONNECT expiry=60 window=2
        ! put
        ! subscribe #
        ! subscribe +/b
        ! subscribe a/#
        ! subscribe a/b
        = put
        < CONNACK 0x00 present
        = resend
        < PUBLISH #2 q1 a/b "again-100" dup sub=9
        < PUBLISH #3 q1 a/b "again-101" dup sub=3
        > PUBACK #2
        > PUBACK #3
        = record p0 101 a/b q1 "y"
        < PUBLISH #4 q1 a/b "y" sub=9
        = record p0 102 a/b q1 "z"
        < PUBLISH #5 q1 a/b "z" sub=3 sub=9
        "#,
    );
}

/// Between two copies the reader is sent to the past: what it finds there has all its copies.
#[test]
fn a_reader_that_goes_back_between_two_copies_begins_anew() {
    subscribed(
        r#"
        = record p0 101 a/b q1 "y"
        < PUBLISH #1 q1 a/b "y" sub=3
        < PUBLISH #2 q1 a/b "y" sub=9
        = record p0 102 a/b q1 "z"
        ! no room
        > PUBACK #1
        = record p0 102 a/b q1 "z"
        ! no room
        < PUBLISH #3 q1 a/b "z" sub=3
        > SUBSCRIBE +/b #5 q1 sub=3 from=earliest
        ! unsubscribe +/b
        ! subscribe +/b Earliest
        = started +/b p0 7
        = started +/b p1 7
        = started +/b p0 103
        = started +/b p1 103
        ! put
        = put
        < SUBACK #5 [1]
        > PUBACK #2
        > PUBACK #3
        = record p0 7 a/b q1 "old"
        < PUBLISH #4 q1 a/b "old" sub=3
        "#,
    );
}

#[test]
fn where_copies_are_merged_one_has_all_identifiers() {
    let mut w = World::new(Version::V5);
    w.limits = Arc::new(Limits { overlapping: Overlapping::Merge, ..Limits::default() });
    check_world(w, &format!("{SUBSCRIBED}{}", "= record p0 100 a/b q1 \"x\"\n< PUBLISH #1 q1 a/b \"x\" sub=3 sub=9"));
}

/// Version 3.1.1 is sent one, and no more of them than the configuration says.
#[test]
fn version_3_1_1_has_one_copy_and_a_window_of_the_configuration() {
    let mut w = World::new(Version::V311);
    w.limits = Arc::new(Limits { in_flight_311: 2, ..Limits::default() });
    let script = r#"
        > CONNECT clean
        < CONNACK 0x00
        > SUBSCRIBE a/# #1 q1
        ! subscribe a/#
        = started a/# p0 100
        = started a/# p1 100
        < SUBACK #1 [1]
        > SUBSCRIBE +/b #2 q1
        ! subscribe +/b
        = started +/b p0 100
        = started +/b p1 100
        < SUBACK #2 [1]
        = record p0 100 a/b q1 "x"
        < PUBLISH #1 q1 a/b "x"
        = record p0 101 a/b q1 "y"
        < PUBLISH #2 q1 a/b "y"
        = record p0 102 a/b q1 "z"
        ! no room
        > PUBACK #1
        = record p0 102 a/b q1 "z"
        < PUBLISH #3 q1 a/b "z"
    "#;
    check_world(w, script);
}
