//! Binary messages of a websocket as a stream of bytes: what has come of one is passed on as a
//! message of its own.
//!
//! Invariant: the bytes of binary messages come out in order and unchanged, and nothing waits for
//! the rest of a message. So no message is kept, and nothing is reserved for what a peer has only
//! announced. Control frames stay whole.
//! Must not know: what is in a message. Whose messages may be cut: MQTT's [MQTT-6.0.0-2].

use std::io::Cursor;
use tokio::io::ReadBuf;
use tokio_tungstenite::tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Control, Data, OpCode},
};

/// RFC 6455, 5.2: two bytes, eight of length, a mask.
const HEADER_BYTES_MAX: usize = 14;
/// RFC 6455, 5.5.
const CONTROL_BYTES_MAX: u64 = 125;

/// The state of one connection.
#[derive(Default)]
pub(crate) struct Fragmenter {
    /// The bytes of a frame's header until it is complete.
    header: Vec<u8>,
    frame: Frame,
    /// Bytes of its payload that have not come.
    left: u64,
    /// The last frame of a binary message has not come.
    is_open: bool,
    /// Output that did not fit into the caller's buffer.
    ready: Vec<u8>,
}

/// What becomes of a frame's payload.
#[derive(Default)]
enum Frame {
    /// It belongs to a binary message. The header of what is passed on next, with the mask turned
    /// to where the payload is.
    Binary(FrameHeader),
    /// It is passed on as it came.
    Whole,
    /// The message was refused by its first header.
    #[default]
    Refused,
}

impl Fragmenter {
    /// Passes on output that did not fit before; false: there is none.
    pub fn drain_into(&mut self, into: &mut ReadBuf<'_>) -> bool {
        let ready = std::mem::take(&mut self.ready);
        self.write(&ready, into);
        !ready.is_empty()
    }

    /// Passes on what was read.
    pub fn push(&mut self, mut read: &[u8], into: &mut ReadBuf<'_>) {
        while !read.is_empty() {
            read = if self.left == 0 { self.push_header(read, into) } else { self.push_payload(read, into) };
        }
    }

    /// Takes the header of a frame from the front; gives what stands behind it.
    fn push_header<'r>(&mut self, read: &'r [u8], into: &mut ReadBuf<'_>) -> &'r [u8] {
        let known = self.header.len();
        let (bytes, behind) = read.split_at(read.len().min(HEADER_BYTES_MAX - known));
        self.header.extend_from_slice(bytes);
        let mut header = Cursor::new(&self.header);
        match FrameHeader::parse(&mut header) {
            // Fewer bytes than the longest header has: there are no more.
            Ok(None) => behind,
            Ok(Some((frame, length))) => {
                let used = (header.position() as usize).saturating_sub(known);
                self.header.clear();
                self.begin(frame, length, into);
                read.get(used..).unwrap_or_default()
            }
            Err(_) => {
                // The websocket library fails at the same header, and reads no further.
                let header = std::mem::take(&mut self.header);
                self.write(&header, into);
                (self.frame, self.left) = (Frame::Refused, u64::MAX);
                behind
            }
        }
    }

    fn begin(&mut self, mut header: FrameHeader, length: u64, into: &mut ReadBuf<'_>) {
        self.left = length;
        self.frame = match header.opcode {
            OpCode::Data(Data::Binary) if !self.is_open => self.go_on(header, into),
            OpCode::Data(Data::Continue) if self.is_open => self.go_on(header, into),
            OpCode::Data(Data::Text) if !self.is_open => {
                // That it is text is enough.
                header.is_final = true;
                self.write_header(&header, 0, into);
                Frame::Refused
            }
            OpCode::Data(_) => {
                // A message within another one, or the rest of none (5.4). Either is refused as a
                // continuation: the websocket library knows of no message that it goes on with.
                header.opcode = OpCode::Data(Data::Continue);
                self.write_header(&header, 0, into);
                Frame::Refused
            }
            OpCode::Control(_) if length > CONTROL_BYTES_MAX => {
                // The library looks at the length when it has all of it, and refuses an unknown
                // frame before.
                header.opcode = OpCode::Control(Control::Reserved(0xB));
                self.write_header(&header, 0, into);
                Frame::Refused
            }
            OpCode::Control(_) => {
                self.write_header(&header, length, into);
                Frame::Whole
            }
        };
    }

    fn go_on(&mut self, header: FrameHeader, into: &mut ReadBuf<'_>) -> Frame {
        self.is_open = !header.is_final;
        let header = FrameHeader { is_final: true, opcode: OpCode::Data(Data::Binary), ..header };
        if self.left == 0 {
            // It may break a rule though it is empty.
            self.write_header(&header, 0, into);
        }
        Frame::Binary(header)
    }

    /// Takes payload from the front; gives what stands behind it.
    fn push_payload<'r>(&mut self, read: &'r [u8], into: &mut ReadBuf<'_>) -> &'r [u8] {
        let bytes = read.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let (payload, behind) = read.split_at(bytes);
        self.left -= bytes as u64;
        let mut frame = std::mem::take(&mut self.frame);
        match &mut frame {
            Frame::Binary(header) => {
                self.write_header(header, bytes as u64, into);
                self.write(payload, into);
                if let Some(mask) = &mut header.mask {
                    // The mask of the rest begins where this one ends (5.3).
                    mask.rotate_left(bytes % 4);
                }
            }
            Frame::Whole => self.write(payload, into),
            Frame::Refused => {}
        }
        self.frame = frame;
        behind
    }

    fn write_header(&mut self, header: &FrameHeader, length: u64, into: &mut ReadBuf<'_>) {
        let mut bytes = [0; HEADER_BYTES_MAX];
        let mut out = Cursor::new(&mut bytes[..]);
        if header.format(length, &mut out).is_ok() {
            let end = out.position() as usize;
            self.write(bytes.get(..end).unwrap_or_default(), into);
        }
    }

    fn write(&mut self, bytes: &[u8], into: &mut ReadBuf<'_>) {
        let fits = if self.ready.is_empty() { bytes.len().min(into.remaining()) } else { 0 };
        let (now, later) = bytes.split_at(fits);
        into.put_slice(now);
        self.ready.extend_from_slice(later);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use tokio_tungstenite::tungstenite::{
        Error, Message, WebSocket,
        error::ProtocolError,
        protocol::{Role, WebSocketConfig},
    };

    const BINARY: u8 = 0x82;
    const TEXT: u8 = 0x81;
    const PING: u8 = 0x89;
    const CONTINUE: u8 = 0x80;
    const NOT_FINAL: u8 = 0x7F;

    /// A client's frame, masked with something.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [0x12, 0x34, 0x56, 0x78];
        let length = match payload.len() {
            n @ 0..126 => vec![n as u8],
            n @ 126..65_536 => [&[126][..], &(n as u16).to_be_bytes()].concat(),
            n => [&[127][..], &(n as u64).to_be_bytes()].concat(),
        };
        let masked = payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m).collect();
        [vec![first, length[0] | 0x80], length[1..].to_vec(), mask.to_vec(), masked].concat()
    }

    fn payload(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|n| (n * 7 % 251) as u8).collect()
    }

    /// Reads `stream` in pieces of `piece` bytes, and passes it on into room for `room`.
    fn fragmented(stream: &[u8], piece: usize, room: usize) -> Vec<u8> {
        let (mut fragmenter, mut buffer, mut all) = (Fragmenter::default(), vec![0; room], vec![]);
        for bytes in stream.chunks(piece) {
            let mut into = ReadBuf::new(&mut buffer);
            fragmenter.push(bytes, &mut into);
            all.extend_from_slice(into.filled());
            loop {
                let mut into = ReadBuf::new(&mut buffer);
                if !fragmenter.drain_into(&mut into) {
                    break;
                }
                all.extend_from_slice(into.filled());
            }
        }
        all
    }

    /// Answers go nowhere.
    struct Peer(Cursor<Vec<u8>>);

    impl io::Read for Peer {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.0.read(into)
        }
    }

    impl io::Write for Peer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What a library reads that takes frames of at most `frame_bytes_max`.
    fn read(stream: Vec<u8>, frame_bytes_max: usize) -> (Vec<Message>, Error) {
        let config = WebSocketConfig::default().max_frame_size(Some(frame_bytes_max)).max_message_size(Some(frame_bytes_max));
        let mut socket = WebSocket::from_raw_socket(Peer(Cursor::new(stream)), Role::Server, Some(config));
        let mut messages = vec![];
        loop {
            match socket.read() {
                Ok(message) => messages.push(message),
                Err(e) => return (messages, e),
            }
        }
    }

    #[test]
    fn the_bytes_of_binary_messages_come_out_in_order_and_unchanged() {
        let sizes = [0, 1, 125, 126, 127, 65_535, 65_536, 200_003];
        let mut stream: Vec<u8> = sizes.iter().flat_map(|n| frame(BINARY, &payload(*n))).collect();
        // A message that is in frames already, with pings between them.
        let parts = [frame(BINARY & NOT_FINAL, &payload(70_000)), frame(PING, b"one"), frame(CONTINUE & NOT_FINAL, &payload(3))];
        stream.extend(parts.concat());
        stream.extend([frame(PING, b"two"), frame(CONTINUE, &payload(140_001)), frame(PING, &payload(125))].concat());
        let expected: Vec<u8> = sizes.into_iter().chain([70_000, 3, 140_001]).flat_map(payload).collect();
        for (piece, room) in [(1, 1), (1, 100), (13, 5), (8_192, 8_192), (8_192, 100)] {
            let (messages, end) = read(fragmented(&stream, piece, room), 8_192);
            assert!(matches!(end, Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)), "{end}");
            let bytes: Vec<u8> = messages.iter().filter(|m| m.is_binary()).flat_map(|m| m.clone().into_data()).collect();
            assert!(bytes == expected, "pieces of {piece} bytes, room for {room}");
            let pings: Vec<usize> = messages.iter().filter(|m| m.is_ping()).map(Message::len).collect();
            assert_eq!(pings, [3, 3, 125]);
        }
    }

    #[test]
    fn what_has_come_is_passed_on_before_the_rest() {
        let stream = frame(BINARY, &payload(1 << 20));
        let (messages, _) = read(fragmented(&stream[..14 + 1_001], 1_001, 8_192), 8_192);
        let bytes: Vec<u8> = messages.into_iter().flat_map(Message::into_data).collect();
        assert!(bytes == payload(1_001));
    }

    #[test]
    fn what_breaks_a_rule_is_refused_by_its_header() {
        let begun = frame(BINARY & NOT_FINAL, b"x");
        let within = |first: u8| [begun.clone(), frame(first, b"y")].concat();
        // Reserved opcode and bit, without a mask, a long control frame, a message within another one, the rest of none.
        let broken = [
            frame(0x83, b"x"),
            frame(0xC2, b"x"),
            vec![BINARY, 1, b'x'],
            // The same without a payload.
            frame(0xC2, b""),
            vec![BINARY, 0],
            vec![CONTINUE, 0],
            frame(PING, &payload(126)),
            frame(PING, &payload(9_000)),
            vec![PING, 0xFF, 0x7F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0],
            within(BINARY),
            within(TEXT),
            frame(CONTINUE, b"x"),
        ];
        for stream in broken {
            let (_, end) = read(fragmented(&stream, 1, 100), 8_192);
            assert!(matches!(&end, Error::Protocol(e) if !matches!(e, ProtocolError::ResetWithoutClosingHandshake)), "{end} of {stream:?}");
        }
        let (messages, _) = read(fragmented(&frame(TEXT, "gr\u{fc}n".repeat(30_000).as_bytes()), 1_000, 8_192), 8_192);
        assert_eq!(messages, [Message::text("")], "that it is text");
    }
}
