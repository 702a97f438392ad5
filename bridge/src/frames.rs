//! Where the frames of a websocket end (RFC 6455, 5.2), before anybody makes room for them.
//!
//! Invariant: after any bytes it says how many more the frame has that is not whole yet.
//! Must not know: what is in a frame.

/// Two bytes, and up to eight of length.
const HEAD_BYTES_MAX: usize = 10;
const MASK_BYTES: u64 = 4;

#[derive(Default)]
pub(crate) struct Frames {
    head: [u8; HEAD_BYTES_MAX],
    has: usize,
    to_come: u64,
}

impl Frames {
    /// What is known to come of the frame that is not whole yet.
    pub fn to_come(&self) -> u64 {
        self.to_come
    }

    pub fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.to_come > 0 {
                let n = bytes.len().min(usize::try_from(self.to_come).unwrap_or(usize::MAX));
                self.to_come -= n as u64;
                bytes = &bytes[n..];
                continue;
            }
            self.head[self.has] = *first;
            self.has += 1;
            bytes = rest;
            let [_, second, length @ ..] = &self.head;
            let more = match (self.has, second & 0x7F) {
                (1, _) => continue,
                (_, 126) => 2,
                (_, 127) => 8,
                _ => 0,
            };
            if self.has == 2 + more {
                let payload = match more {
                    0 => u64::from(second & 0x7F),
                    _ => length[..more].iter().fold(0, |n, b| n << 8 | u64::from(*b)),
                };
                let mask = if second & 0x80 == 0 { 0 } else { MASK_BYTES };
                (self.to_come, self.has) = (payload.saturating_add(mask), 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_every_length_are_followed_in_parts_of_any_size() {
        let frame = |payload: usize, masked: bool| {
            let mask = if masked { 0x80 } else { 0 };
            let mut bytes = vec![0x82];
            match payload {
                0..126 => bytes.push(mask | payload as u8),
                126..65_536 => bytes.extend([&[mask | 126][..], &(payload as u16).to_be_bytes()].concat()),
                _ => bytes.extend([&[mask | 127][..], &(payload as u64).to_be_bytes()].concat()),
            }
            bytes.extend(vec![0xFF; payload + if masked { 4 } else { 0 }]);
            bytes
        };
        let all: Vec<_> = [0, 1, 125, 126, 127, 65_535, 65_536, 70_000].map(|n| [frame(n, true), frame(n, false)]).concat();
        let stream = all.concat();
        let mut ends: Vec<usize> = all
            .iter()
            .scan(0, |at, f| {
                *at += f.len();
                Some(*at)
            })
            .collect();
        for part in [1, 2, 3, 7, 1_000, 8_192, stream.len()] {
            let (mut frames, mut at) = (Frames::default(), 0);
            for bytes in stream.chunks(part) {
                frames.pass(bytes);
                at += bytes.len();
                if frames.to_come() > 0 {
                    let end = at + frames.to_come() as usize;
                    assert!(ends.contains(&end), "{part}: {at} and {} more", frames.to_come());
                }
            }
            assert_eq!((frames.to_come(), frames.has), (0, 0));
        }
        ends.clear();
        let mut frames = Frames::default();
        frames.pass(&[0x82, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]);
        assert_eq!(frames.to_come(), u64::MAX);
    }
}
