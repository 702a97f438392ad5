//! A long frame of a websocket becomes a message of several (RFC 6455, 5.4), as its bytes come.
//!
//! Invariant: what comes out is the messages that went in, and no frame of it announces more than a part; so nobody makes room for what a
//! peer has only announced.
//! Must not know: what is in a message.

use tokio::io::ReadBuf;

/// A multiple of four: the mask goes on where it was (5.3).
const PART_BYTES: u64 = 64 * 1024;

const CONTINUATION: u8 = 0;
const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;
const LENGTH: u8 = 0x7F;
const LENGTH_OF_2_BYTES: u8 = 126;
const LENGTH_OF_8_BYTES: u8 = 127;

/// Of one connection.
pub(crate) struct Parts {
    /// A longer frame is not cut: who reads its head refuses it.
    frame_bytes_max: u64,
    /// The head that is not whole yet.
    head: Vec<u8>,
    is_final: bool,
    mask: Option<[u8; 4]>,
    /// Payload of the frame that is being passed on, and how much of it has been announced.
    left: u64,
    announced: u64,
    /// For which there was no room.
    ready: Vec<u8>,
}

/// What a frame begins with (5.2).
struct Head {
    payload: u64,
    mask: Option<[u8; 4]>,
}

impl Head {
    /// `None`: it is not whole.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let second = *bytes.get(1)?;
        let length = match second & LENGTH {
            LENGTH_OF_2_BYTES => bytes.get(2..4)?,
            LENGTH_OF_8_BYTES => bytes.get(2..10)?,
            _ => &[second & LENGTH],
        };
        let payload = length.iter().fold(0, |n, b| n << 8 | u64::from(*b));
        let bytes_before_mask = if second & LENGTH < LENGTH_OF_2_BYTES { 2 } else { 2 + length.len() };
        let mask = match second & MASKED {
            0 => None,
            _ => Some(*bytes.get(bytes_before_mask..)?.first_chunk()?),
        };
        Some(Self { payload, mask })
    }
}

impl Parts {
    pub fn new(frame_bytes_max: usize) -> Self {
        let (head, ready) = (Vec::new(), Vec::new());
        Self { frame_bytes_max: frame_bytes_max as u64, head, is_final: false, mask: None, left: 0, announced: 0, ready }
    }

    /// Gives what there was no room for; false: there is none.
    pub fn give(&mut self, into: &mut ReadBuf<'_>) -> bool {
        let ready = std::mem::take(&mut self.ready);
        self.put(&ready, into);
        !ready.is_empty()
    }

    pub fn pass(&mut self, mut read: &[u8], into: &mut ReadBuf<'_>) {
        while !read.is_empty() {
            if self.announced > 0 {
                let bytes = read.len().min(usize::try_from(self.announced).unwrap_or(usize::MAX));
                let (payload, rest) = read.split_at(bytes);
                self.put(payload, into);
                (self.announced, self.left) = (self.announced - bytes as u64, self.left - bytes as u64);
                read = rest;
            } else if self.left > 0 {
                self.announce(CONTINUATION, into);
            } else {
                read = self.begin(read, into);
            }
        }
    }

    /// Gives what stands behind the byte that it has looked at.
    fn begin<'r>(&mut self, read: &'r [u8], into: &mut ReadBuf<'_>) -> &'r [u8] {
        let Some((byte, rest)) = read.split_first() else { return read };
        self.head.push(*byte);
        if let (Some(head), Some(first)) = (Head::parse(&self.head), self.head.first().copied()) {
            self.head.clear();
            (self.is_final, self.mask, self.left) = (first & FINAL != 0, head.mask, head.payload);
            self.announce(first & !FINAL, into);
        }
        rest
    }

    /// `first`: a frame's first byte, without the bit that says that it is the last.
    fn announce(&mut self, first: u8, into: &mut ReadBuf<'_>) {
        let part = if self.left > self.frame_bytes_max { self.left } else { self.left.min(PART_BYTES) };
        let is_last = self.is_final && part == self.left;
        self.put(&[first | if is_last { FINAL } else { 0 }], into);
        let masked = if self.mask.is_some() { MASKED } else { 0 };
        match (u8::try_from(part), u16::try_from(part)) {
            (Ok(length @ ..LENGTH_OF_2_BYTES), _) => self.put(&[masked | length], into),
            (_, Ok(length)) => {
                self.put(&[masked | LENGTH_OF_2_BYTES], into);
                self.put(&length.to_be_bytes(), into);
            }
            _ => {
                self.put(&[masked | LENGTH_OF_8_BYTES], into);
                self.put(&part.to_be_bytes(), into);
            }
        }
        self.put(&self.mask.map_or(vec![], Vec::from), into);
        self.announced = part;
    }

    fn put(&mut self, bytes: &[u8], into: &mut ReadBuf<'_>) {
        let fits = if self.ready.is_empty() { bytes.len().min(into.remaining()) } else { 0 };
        let (now, later) = bytes.split_at(fits);
        into.put_slice(now);
        self.ready.extend_from_slice(later);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_tungstenite::tungstenite::{
        Error, Message, WebSocket,
        error::CapacityError,
        protocol::{Role, WebSocketConfig},
    };

    /// A client's frame, masked with something.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [0x12, 0x34, 0x56, 0x78];
        let length = match payload.len() {
            n @ 0..126 => vec![n as u8],
            n @ 126..65_536 => [&[126][..], &(n as u16).to_be_bytes()].concat(),
            n => [&[127][..], &(n as u64).to_be_bytes()].concat(),
        };
        let masked = payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m).collect();
        [vec![first], vec![length[0] | MASKED], length[1..].to_vec(), mask.to_vec(), masked].concat()
    }

    fn payload(bytes: usize) -> Vec<u8> {
        (0..bytes).map(|n| (n * 7 % 251) as u8).collect()
    }

    /// What comes of `stream`, read in pieces of `piece` into room for `room`; and the longest frame that was announced.
    fn passed(stream: &[u8], piece: usize, room: usize) -> (Vec<u8>, u64) {
        let (mut parts, mut all, mut longest) = (Parts::new(1 << 20), vec![], 0);
        let mut buffer = vec![0; room];
        for bytes in stream.chunks(piece) {
            let mut into = ReadBuf::new(&mut buffer);
            parts.pass(bytes, &mut into);
            longest = longest.max(parts.announced);
            all.extend_from_slice(into.filled());
            loop {
                let mut into = ReadBuf::new(&mut buffer);
                if !parts.give(&mut into) {
                    break;
                }
                all.extend_from_slice(into.filled());
            }
        }
        assert!(parts.head.is_empty() && parts.left == 0);
        (all, longest)
    }

    fn messages(stream: Vec<u8>) -> Vec<Message> {
        let stream = Both(std::io::Cursor::new(stream));
        let mut socket = WebSocket::from_raw_socket(stream, Role::Server, Some(WebSocketConfig::default()));
        std::iter::from_fn(|| socket.read().ok()).collect()
    }

    /// Answers go nowhere.
    struct Both(std::io::Cursor<Vec<u8>>);

    impl std::io::Read for Both {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            self.0.read(into)
        }
    }

    impl std::io::Write for Both {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn messages_stay_what_they_are_and_no_frame_announces_more_than_a_part() {
        let sizes = [0, 1, 125, 126, 65_535, 65_536, 65_537, 131_072, 200_003];
        let mut stream: Vec<u8> = sizes.iter().flat_map(|n| frame(0x82, &payload(*n))).collect();
        // A message that is in frames already, with a ping between them; and text.
        stream.extend([frame(0x02, &payload(70_000)), frame(0x89, b"ping"), frame(0x80, &payload(140_000))].concat());
        stream.extend(frame(0x81, "gr\u{fc}n".repeat(30_000).as_bytes()));
        let expected = messages(stream.clone());
        assert_eq!(expected.len(), sizes.len() + 3);
        for (piece, room) in [(1, 1), (1, 100), (13, 5), (8_192, 8_192), (8_192, 100), (1_000_000, 8_192)] {
            let (out, longest) = passed(&stream, piece, room);
            assert!(messages(out) == expected, "pieces of {piece} bytes, room for {room}");
            assert!(longest <= PART_BYTES, "{longest} announced");
        }
    }

    #[test]
    fn what_is_too_long_or_broken_is_refused_by_its_head() {
        let refused = |head: &[u8]| {
            let (mut parts, mut buffer) = (Parts::new(1 << 20), vec![0; 100_000]);
            let mut into = ReadBuf::new(&mut buffer);
            parts.pass(&[head, &payload(70_000)].concat(), &mut into);
            let config = WebSocketConfig::default().max_frame_size(Some(1 << 20)).max_message_size(Some(1 << 20));
            let stream = Both(std::io::Cursor::new(into.filled().to_vec()));
            WebSocket::from_raw_socket(stream, Role::Server, Some(config)).read().expect_err("refused")
        };
        let too_long = refused(&[0x82, 0xFF, 0, 0, 0, 0, 0, 0x10, 0, 1, 0, 0, 0, 0]);
        assert!(matches!(too_long, Error::Capacity(CapacityError::MessageTooLong { .. })), "{too_long}");
        let endless = refused(&[0x82, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0]);
        assert!(matches!(endless, Error::Capacity(_)), "{endless}");
        // Of another sort, a long control frame, and without a mask.
        for head in
            [&[0x83, 0xFF, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &[0x89, 0xFE, 1, 0, 0, 0, 0, 0], &[0x82, 0x7F, 0, 0, 0, 0, 0, 1, 0, 0]]
        {
            assert!(matches!(refused(head), Error::Protocol(_)), "{head:?}");
        }
    }
}
