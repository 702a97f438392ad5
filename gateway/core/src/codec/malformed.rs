//! A table of bytes that must be refused, each with the statement it breaks and the reason code it earns.

use super::*;
use crate::packet::Version::{self, V5, V311};

/// `version, reason code, part of the statement, bytes in hex` (text in quotes).
#[rustfmt::skip]
const TABLE: &[(Version, u8, &str, &str)] = &[
    (V5, 0x81, "type 0", "00 00"),
    (V311, 0x81, "type 15", "F0 00"),
    (V5, 0x81, "2.1.3-1", "C1 00"),
    (V311, 0x81, "2.1.3-1", "E2 00"),
    (V5, 0x81, "2.1.3-1", "60 02 00 01"),
    (V5, 0x81, "2.1.3-1", "80 08 00 01 00 00 02 'a/' 00"),
    (V311, 0x81, "2.1.3-1", "A0 05 00 01 00 01 'a'"),
    (V5, 0x81, "longer than 4", "30 FF FF FF FF 01"),
    (V5, 0x81, "shortest", "C0 80 00"),
    (V5, 0x81, "ends inside", "30 01 00"),
    (V5, 0x81, "after the end", "C0 01 00"),
    (V311, 0x81, "after the end", "40 03 00 01 00"),
    (V311, 0x81, "after the end", "E0 01 00"),
    // CONNECT
    (V5, 0x84, "3.1.2-1", "10 0D 00 04 'MQTX' 05 02 00 3C 00 00 00"),
    (V5, 0x84, "3.1.2-1", "10 0D 00 04 'MQTT' 06 02 00 3C 00 00 00"),
    (V5, 0x84, "3.1.2-1", "10 0E 00 06 'MQIsdp' 04 02 00 3C 00 00"),
    (V5, 0x81, "3.1.2-3", "10 0C 00 04 'MQTT' 04 03 00 3C 00 00"),
    (V5, 0x81, "3.1.2-12", "10 0C 00 04 'MQTT' 04 1E 00 3C 00 00"),
    (V5, 0x81, "3.1.2-11", "10 0C 00 04 'MQTT' 04 0A 00 3C 00 00"),
    (V5, 0x81, "3.1.2-11", "10 0C 00 04 'MQTT' 04 22 00 3C 00 00"),
    (V311, 0x81, "3.1.2-22", "10 0F 00 04 'MQTT' 04 42 00 3C 00 00 00 01 'p'"),
    (V5, 0x81, "after the end", "10 0F 00 04 'MQTT' 04 02 00 3C 00 00 00 01 'p'"),
    (V5, 0x81, "ends inside", "10 0C 00 04 'MQTT' 04 82 00 3C 00 00"),
    (V5, 0x81, "1.5.4-1", "10 0E 00 04 'MQTT' 04 02 00 3C 00 02 C3 28"),
    (V5, 0x81, "1.5.4-1", "10 0F 00 04 'MQTT' 04 02 00 3C 00 03 ED A0 80"),
    (V5, 0x81, "1.5.4-2", "10 0D 00 04 'MQTT' 04 02 00 3C 00 01 00"),
    (V5, 0x81, "2.1.3-1", "14 0C 00 04 'MQTT' 04 02 00 3C 00 00"),
    (V5, 0x85, "no client identifier", "10 0E 00 06 'MQIsdp' 03 02 00 3C 00 00"),
    (V5, 0x86, "1.5.4", "10 0F 00 04 'MQTT' 04 82 00 3C 00 00 00 01 07"),
    (V5, 0x90, "3.3.2-2", "30 06 00 03 'a' 01 'b' 00"),
    (V5, 0x90, "3.3.2-2", "30 05 00 02 C2 9F 00"),
    (V311, 0x8F, "4.7.1-1", "82 07 00 01 00 02 'a' 7F 00"),
    (V5, 0x90, "4.7.1-1", "10 12 00 04 'MQTT' 04 06 00 3C 00 01 'c' 00 01 '#' 00 00"),
    (V5, 0x82, "more than once", "10 17 00 04 'MQTT' 05 02 00 3C 0A 11 00 00 00 01 11 00 00 00 01 00 00"),
    (V5, 0x82, "not allowed", "10 10 00 04 'MQTT' 05 02 00 3C 03 21 00 00 00 00"),
    (V5, 0x82, "not allowed", "10 12 00 04 'MQTT' 05 02 00 3C 05 27 00 00 00 00 00 00"),
    (V5, 0x82, "not allowed", "10 0F 00 04 'MQTT' 05 02 00 3C 02 17 02 00 00"),
    (V5, 0x81, "not of this packet", "10 10 00 04 'MQTT' 05 02 00 3C 03 23 00 01 00 00"),
    (V5, 0x81, "not of this packet", "10 0F 00 04 'MQTT' 05 02 00 3C 02 7F 00 00 00"),
    (V5, 0x82, "without a method", "10 11 00 04 'MQTT' 05 02 00 3C 04 16 00 01 'x' 00 00"),
    // PUBLISH
    (V5, 0x81, "QoS 3", "36 06 00 01 'a' 00 01 00"),
    (V311, 0x81, "3.3.1-2", "38 03 00 01 'a'"),
    (V5, 0x81, "identifier 0", "32 06 00 01 'a' 00 00 00"),
    (V5, 0x90, "3.3.2-2", "30 04 00 01 '#' 00"),
    (V5, 0x90, "3.3.2-2", "30 06 00 03 'a/+' 00"),
    (V311, 0x82, "3.3.2-1", "30 02 00 00"),
    (V5, 0x82, "3.3.2-1", "30 03 00 00 00"),
    (V5, 0x82, "not allowed", "30 07 00 01 'a' 03 23 00 00"),
    (V5, 0x82, "not allowed", "30 06 00 01 'a' 02 0B 00"),
    (V5, 0x82, "not allowed", "30 06 00 01 'a' 02 01 02"),
    (V5, 0x90, "3.3.2-14", "30 08 00 01 'a' 04 08 00 01 '+'"),
    (V5, 0x82, "more than once", "30 08 00 01 'a' 04 01 00 01 00"),
    (V5, 0x81, "not of this packet", "30 07 00 01 'a' 03 21 00 01"),
    (V5, 0x81, "ends inside", "30 05 00 01 'a' 05 01"),
    (V5, 0x81, "1.5.4-1", "30 04 00 01 FF 00"),
    (V5, 0x81, "1.5.4-2", "30 04 00 01 00 00"),
    // Acknowledgements
    (V5, 0x81, "identifier 0", "40 02 00 00"),
    (V5, 0x81, "not of this packet", "40 03 00 01 01"),
    (V5, 0x81, "not of this packet", "62 03 00 01 10"),
    (V5, 0x81, "ends inside", "50 01 00"),
    (V5, 0x81, "not of this packet", "40 07 00 01 00 03 21 00 01"),
    // SUBSCRIBE, UNSUBSCRIBE
    (V311, 0x82, "3.8.3-2", "82 02 00 01"),
    (V5, 0x82, "3.8.3-2", "82 03 00 01 00"),
    (V5, 0x81, "3.8.3-5", "82 07 00 01 00 00 01 'a' 03"),
    (V5, 0x81, "3.8.3-5", "82 07 00 01 00 00 01 'a' 30"),
    (V5, 0x81, "3.8.3-5", "82 07 00 01 00 00 01 'a' 40"),
    (V311, 0x81, "3-8.3-4", "82 06 00 01 00 01 'a' 04"),
    (V5, 0x81, "1.5.4-2", "82 07 00 01 00 00 01 00 00"),
    (V5, 0x8F, "4.7.1-1", "82 06 00 01 00 00 00 00"),
    (V5, 0x8F, "4.7.1-1", "82 08 00 01 00 00 02 'a#' 00"),
    (V311, 0x8F, "4.7.1-1", "82 09 00 01 00 04 '#/+a' 00"),
    (V5, 0x82, "3.8.3-4", "82 10 00 01 00 00 0A '$share/g/a' 04"),
    (V5, 0x8F, "4.7.1-1", "82 0E 00 01 00 00 08 '$share/g' 00"),
    (V5, 0x82, "not allowed", "82 09 00 01 02 0B 00 00 01 'a' 00"),
    (V5, 0x82, "more than once", "82 0B 00 01 04 0B 01 0B 01 00 01 'a' 00"),
    (V311, 0x82, "3.10.3-2", "A2 02 00 01"),
    (V5, 0x81, "identifier 0", "A2 06 00 00 00 00 01 'a'"),
    // What a server sends
    (V5, 0x81, "3.2.2-1", "20 03 02 00 00"),
    (V5, 0x82, "3.2.2-6", "20 03 01 87 00"),
    (V311, 0x81, "not of this packet", "20 02 00 06"),
    (V5, 0x81, "3.9.3-1", "90 04 00 01 00 03"),
    (V311, 0x81, "3.9.3-1", "90 02 00 01"),
    (V311, 0x81, "3.9.3-1", "B0 03 00 01 00"),
    // DISCONNECT, AUTH
    (V5, 0x81, "not of this packet", "E0 01 01"),
    (V5, 0x81, "not of this packet", "E0 05 00 03 21 00 01"),
    (V5, 0x82, "3.15.2.2.2", "F0 01 18"),
    (V5, 0x81, "not of this packet", "F0 01 01"),
];

fn bytes_of(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for (i, part) in text.split('\'').enumerate() {
        if i % 2 == 1 {
            out.extend_from_slice(part.as_bytes());
        } else {
            out.extend(part.split_whitespace().map(|h| u8::from_str_radix(h, 16).expect("hex")));
        }
    }
    out
}

#[test]
fn refused_for_the_right_reason() {
    for (version, reason, statement, text) in TABLE {
        match decode(&bytes_of(text), *version, usize::MAX) {
            Err(e) => {
                assert_eq!(e.reason.0, *reason, "{text}: {e}");
                assert!(e.statement.contains(statement), "{text}: {e}, expected {statement}");
            }
            other => panic!("{text}: {other:?}"),
        }
    }
}

#[test]
fn a_length_beyond_the_limit_is_refused_before_its_bytes_arrive() {
    let error = decode(&bytes_of("30 FF FF FF 7F"), V5, 1 << 20).expect_err("256 MiB");
    assert_eq!(error.reason.0, 0x95);
}

#[test]
fn only_version_31_repeats_with_dup_what_is_no_publish() {
    let packets: [&[u8]; 3] = [&[0x6A, 2, 0, 1], &[0x8A, 6, 0, 1, 0, 1, b'a', 1], &[0xAA, 5, 0, 1, 0, 1, b'a']];
    for packet in packets {
        assert!(matches!(decode_of(packet, Version::V311, true, 100), Ok(Decoded::Packet(_, n)) if n == packet.len()), "{packet:02x?}");
        for version in [Version::V311, Version::V5] {
            assert!(decode(packet, version, 100).is_err_and(|e| e.statement.starts_with("MQTT-2.1.3-1")), "{packet:02x?}");
        }
    }
    // Every other flag is as reserved as before.
    for packet in [[0x6B, 2, 0, 1], [0x68, 2, 0, 1], [0x48, 2, 0, 1]] {
        assert!(decode_of(&packet, Version::V311, true, 100).is_err(), "{packet:02x?}");
    }
}
