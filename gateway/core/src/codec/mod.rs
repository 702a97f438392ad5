//! Bytes to packets and back, for MQTT 3.1.1 and 5.
//!
//! Invariant: strict, and the same in both directions: what `decode` accepts, `encode` gives back byte for byte but for short
//! forms that the specification allows in two lengths. Nothing is allocated before its length was checked.
//! Must not know: connections, sessions, or what a packet does.

mod decode;
mod encode;
#[cfg(test)]
mod malformed;
#[cfg(test)]
mod roundtrip;

pub use decode::{Decoded, decode, decode_of, disconnect_reason};
pub use encode::{encode, publish_head};

use crate::{packet::ReasonCode, topic::is_plain};
use std::fmt;

/// Bytes that are not MQTT: what to answer, and the statement of the specification that they break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeError {
    pub reason: ReasonCode,
    pub statement: &'static str,
}

impl DecodeError {
    #[must_use]
    pub const fn new(reason: ReasonCode, statement: &'static str) -> Self {
        Self { reason, statement }
    }

    const fn malformed(statement: &'static str) -> Self {
        Self::new(ReasonCode::MALFORMED_PACKET, statement)
    }
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.statement, self.reason)
    }
}

impl std::error::Error for DecodeError {}

/// Greatest value of a variable byte integer [MQTT 5, 1.5.5].
pub const VARINT_MAX: u32 = 268_435_455;

/// What is left to read of a packet.
#[derive(Clone, Copy)]
pub(crate) struct Cursor<'a>(&'a [u8]);

const SHORT: DecodeError = DecodeError::malformed("MQTT 5, 2.1.4: packet ends inside a field");

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(SHORT)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(SHORT)?;
        self.0 = tail;
        Ok(*head)
    }

    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array::<1>().map(|[b]| b)
    }

    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    /// A variable byte integer in its shortest form.
    pub fn varint(&mut self) -> Result<u32, DecodeError> {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.u8()?;
            value |= u32::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                let shortest = byte != 0 || shift == 0;
                return if shortest { Ok(value) } else { Err(DecodeError::malformed("MQTT-1.5.5-1: integer not in its shortest form")) };
            }
        }
        Err(DecodeError::malformed("MQTT 5, 1.5.5: variable byte integer longer than 4 bytes"))
    }

    pub fn binary(&mut self) -> Result<&'a [u8], DecodeError> {
        let n = self.u16()?;
        self.take(usize::from(n))
    }

    pub fn text(&mut self) -> Result<&'a str, DecodeError> {
        self.text_that_may_be_plain().map(|(text, _)| text)
    }

    /// True: it is printable ASCII without wildcards, and needs no other check.
    pub fn text_that_may_be_plain(&mut self) -> Result<(&'a str, bool), DecodeError> {
        let bytes = self.binary()?;
        let text = std::str::from_utf8(bytes).map_err(|_| DecodeError::malformed("MQTT-1.5.4-1: string is not UTF-8"))?;
        let plain = is_plain(bytes);
        if !plain && bytes.contains(&0) {
            return Err(DecodeError::malformed("MQTT-1.5.4-2: U+0000 in a string"));
        }
        Ok((text, plain))
    }
}

/// Where encoded bytes go: a counter gives the length, a `Vec` takes the bytes, one function serves both.
pub(crate) trait Sink {
    fn bytes(&mut self, bytes: &[u8]);

    fn u8(&mut self, v: u8) {
        self.bytes(&[v]);
    }
    fn u16(&mut self, v: u16) {
        self.bytes(&v.to_be_bytes());
    }
    fn u32(&mut self, v: u32) {
        self.bytes(&v.to_be_bytes());
    }
    /// With its length in front; what is longer than 65,535 bytes was refused where it entered.
    fn binary(&mut self, bytes: &[u8]) {
        debug_assert!(bytes.len() <= usize::from(u16::MAX));
        self.u16(bytes.len() as u16);
        self.bytes(bytes);
    }
}

impl Sink for Vec<u8> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Counts.
impl Sink for usize {
    fn bytes(&mut self, bytes: &[u8]) {
        *self += bytes.len();
    }
}

pub(crate) fn varint(s: &mut impl Sink, mut v: u32) {
    debug_assert!(v <= VARINT_MAX);
    while v >= 0x80 {
        s.u8(v as u8 | 0x80);
        v >>= 7;
    }
    s.u8(v as u8);
}
