//! Version 5 properties: one table of them, a checked slice to read from, a buffer to write to.
//!
//! Invariant: `Properties` holds only bytes that were checked for their packet, so iterating over them cannot fail.
//! Must not know: what the properties do.

use crate::codec::{Cursor, DecodeError, Sink, varint};
use crate::packet::ReasonCode;

/// Packets that carry properties, one bit each; the will's stand in the CONNECT payload.
#[rustfmt::skip]
pub(crate) mod within {
    pub const CONNECT: u16 = 1;
    pub const CONNACK: u16 = 1 << 1;
    pub const PUBLISH: u16 = 1 << 2;
    /// PUBACK, PUBREC, PUBREL, PUBCOMP.
    pub const ACK: u16 = 1 << 3;
    pub const SUBSCRIBE: u16 = 1 << 4;
    /// SUBACK, UNSUBACK.
    pub const SUBACK: u16 = 1 << 5;
    pub const UNSUBSCRIBE: u16 = 1 << 6;
    pub const DISCONNECT: u16 = 1 << 7;
    pub const AUTH: u16 = 1 << 8;
    pub const WILL: u16 = 1 << 9;
    pub const ANY: u16 = u16::MAX;
}
use within::*;

/// The wire's types [MQTT 5, 1.5 and 2.2.2.2]: how each is read, and what its values may be.
macro_rules! wire {
    (type Bool, $l:lifetime) => { bool };
    (type Two, $l:lifetime) => { u16 };
    (type TwoNonZero, $l:lifetime) => { u16 };
    (type Four, $l:lifetime) => { u32 };
    (type FourNonZero, $l:lifetime) => { u32 };
    (type VarNonZero, $l:lifetime) => { u32 };
    (type Text, $l:lifetime) => { &$l str };
    (type Topic, $l:lifetime) => { &$l str };
    (type Binary, $l:lifetime) => { &$l [u8] };
    (type Pair, $l:lifetime) => { (&$l str, &$l str) };

    (read Bool, $c:ident) => { match $c.u8()? { 0 => false, 1 => true, _ => return Err(BAD_VALUE) } };
    (read Two, $c:ident) => { $c.u16()? };
    (read TwoNonZero, $c:ident) => { match $c.u16()? { 0 => return Err(BAD_VALUE), n => n } };
    (read Four, $c:ident) => { $c.u32()? };
    (read FourNonZero, $c:ident) => { match $c.u32()? { 0 => return Err(BAD_VALUE), n => n } };
    (read VarNonZero, $c:ident) => { match $c.varint()? { 0 => return Err(BAD_VALUE), n => n } };
    (read Text, $c:ident) => { $c.text()? };
    (read Topic, $c:ident) => { match $c.text()? { t if crate::topic::topic_is_valid(t) => t, _ => return Err(BAD_TOPIC) } };
    (read Binary, $c:ident) => { $c.binary()? };
    (read Pair, $c:ident) => { ($c.text()?, $c.text()?) };

    (write Bool, $v:ident, $s:ident) => { $s.u8(u8::from($v)) };
    (write Two, $v:ident, $s:ident) => { $s.u16($v) };
    (write TwoNonZero, $v:ident, $s:ident) => { $s.u16($v) };
    (write Four, $v:ident, $s:ident) => { $s.u32($v) };
    (write FourNonZero, $v:ident, $s:ident) => { $s.u32($v) };
    (write VarNonZero, $v:ident, $s:ident) => { varint($s, $v) };
    (write Text, $v:ident, $s:ident) => { $s.binary($v.as_bytes()) };
    (write Topic, $v:ident, $s:ident) => { $s.binary($v.as_bytes()) };
    (write Binary, $v:ident, $s:ident) => { $s.binary($v) };
    (write Pair, $v:ident, $s:ident) => {{ $s.binary($v.0.as_bytes()); $s.binary($v.1.as_bytes()) }};
}

const BAD_VALUE: DecodeError = DecodeError::new(ReasonCode::PROTOCOL_ERROR, "MQTT 5, 2.2.2.2: property value not allowed");
const BAD_TOPIC: DecodeError = DecodeError::new(ReasonCode::TOPIC_NAME_INVALID, "MQTT-3.3.2-14: wildcard in a response topic");
const UNKNOWN: DecodeError = DecodeError::new(ReasonCode::MALFORMED_PACKET, "MQTT 5, 2.2.2.2: property unknown or not of this packet");
const REPEATED: DecodeError = DecodeError::new(ReasonCode::PROTOCOL_ERROR, "MQTT 5, 2.2.2.2: property more than once");

macro_rules! table {
    ($($id:literal $name:ident $wire:ident $within:expr;)*) => {
        /// One property [MQTT 5, 2.2.2.2].
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Property<'a> { $($name(wire!(type $wire, 'a)),)* }

        impl<'a> Property<'a> {
            /// The identifier on the wire.
            #[must_use]
            pub fn id(&self) -> u8 {
                match self { $(Self::$name(_) => $id,)* }
            }

            /// Reads one property and the packets that it may stand in.
            fn read(c: &mut Cursor<'a>) -> Result<(Self, u16), DecodeError> {
                match c.varint()? {
                    $($id => Ok((Self::$name(wire!(read $wire, c)), $within)),)*
                    _ => Err(UNKNOWN),
                }
            }

            pub(crate) fn write(self, s: &mut impl Sink) {
                s.u8(self.id());
                match self { $(Self::$name(v) => wire!(write $wire, v, s),)* }
            }
        }
    };
}

table! {
    0x01 PayloadFormatIndicator Bool PUBLISH | WILL;
    0x02 MessageExpiryInterval Four PUBLISH | WILL;
    0x03 ContentType Text PUBLISH | WILL;
    0x08 ResponseTopic Topic PUBLISH | WILL;
    0x09 CorrelationData Binary PUBLISH | WILL;
    0x0B SubscriptionIdentifier VarNonZero PUBLISH | SUBSCRIBE;
    0x11 SessionExpiryInterval Four CONNECT | CONNACK | DISCONNECT;
    0x12 AssignedClientIdentifier Text CONNACK;
    0x13 ServerKeepAlive Two CONNACK;
    0x15 AuthenticationMethod Text CONNECT | CONNACK | AUTH;
    0x16 AuthenticationData Binary CONNECT | CONNACK | AUTH;
    0x17 RequestProblemInformation Bool CONNECT;
    0x18 WillDelayInterval Four WILL;
    0x19 RequestResponseInformation Bool CONNECT;
    0x1A ResponseInformation Text CONNACK;
    0x1C ServerReference Text CONNACK | DISCONNECT;
    0x1F ReasonString Text CONNACK | ACK | SUBACK | DISCONNECT | AUTH;
    0x21 ReceiveMaximum TwoNonZero CONNECT | CONNACK;
    0x22 TopicAliasMaximum Two CONNECT | CONNACK;
    0x23 TopicAlias TwoNonZero PUBLISH;
    0x24 MaximumQos Bool CONNACK;
    0x25 RetainAvailable Bool CONNACK;
    0x26 UserProperty Pair ANY;
    0x27 MaximumPacketSize FourNonZero CONNECT | CONNACK;
    0x28 WildcardSubscriptionAvailable Bool CONNACK;
    0x29 SubscriptionIdentifierAvailable Bool CONNACK;
    0x2A SharedSubscriptionAvailable Bool CONNACK;
}

/// The properties of one packet, without their length prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Properties<'a>(&'a [u8]);

impl<'a> Properties<'a> {
    /// Checks `raw` for a packet of the kind `within`.
    pub(crate) fn check(raw: &'a [u8], within: u16) -> Result<Self, DecodeError> {
        let mut c = Cursor::new(raw);
        let mut seen = 0u64;
        while !c.is_empty() {
            let (property, packets) = Property::read(&mut c)?;
            if packets & within == 0 {
                return Err(UNKNOWN);
            }
            // A user property may repeat anywhere, a subscription identifier in a PUBLISH [MQTT 5, 3.3.2.3.8].
            let repeats = matches!(property, Property::UserProperty(_))
                || within == PUBLISH && matches!(property, Property::SubscriptionIdentifier(_));
            let bit = 1u64 << property.id();
            if seen & bit != 0 && !repeats {
                return Err(REPEATED);
            }
            seen |= bit;
        }
        Ok(Self(raw))
    }

    /// Properties that stand in a record's headers: they were checked when the record was made.
    #[must_use]
    pub fn from_stored(raw: &'a [u8]) -> Self {
        Self(raw)
    }

    #[must_use]
    pub fn raw(&self) -> &'a [u8] {
        self.0
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = Property<'a>> + use<'a> {
        let mut c = Cursor::new(self.0);
        std::iter::from_fn(move || if c.is_empty() { None } else { Property::read(&mut c).ok().map(|(p, _)| p) })
    }
}

/// Properties in the making.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PropertiesBuf(Vec<u8>);

impl PropertiesBuf {
    pub fn push(&mut self, property: Property<'_>) -> &mut Self {
        property.write(&mut self.0);
        self
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes away what was pushed after it had `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    #[must_use]
    pub fn as_properties(&self) -> Properties<'_> {
        Properties(&self.0)
    }
}

impl<'a> FromIterator<Property<'a>> for PropertiesBuf {
    fn from_iter<I: IntoIterator<Item = Property<'a>>>(all: I) -> Self {
        let mut buf = Self::default();
        all.into_iter().for_each(|p| {
            buf.push(p);
        });
        buf
    }
}
