//! What a connection has to send.
//!
//! Invariant: what is unsent is moved seldom: no more bytes in all than were written.
//! Must not know: packets, sockets.

/// Of what has left, more than this is not kept behind what is unsent.
const SENT_BYTES: usize = 256 * 1024;
/// What one burst stretched is not kept for the life of an idle connection.
const KEPT_BYTES: usize = 256 * 1024;

#[derive(Default)]
pub(crate) struct Out {
    bytes: Vec<u8>,
    sent: usize,
}

impl Out {
    pub fn unsent(&self) -> &[u8] {
        self.bytes.get(self.sent..).unwrap_or_default()
    }

    pub fn len(&self) -> usize {
        self.unsent().len()
    }

    /// What it takes in memory.
    pub fn memory(&self) -> usize {
        self.bytes.capacity()
    }

    pub fn is_empty(&self) -> bool {
        self.unsent().is_empty()
    }

    /// To write more behind it.
    pub fn end(&mut self) -> &mut Vec<u8> {
        if self.sent > self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        &mut self.bytes
    }

    /// The first `n` of the unsent bytes have left.
    pub fn written(&mut self, n: usize) {
        self.sent += n;
        if self.is_empty() {
            self.sent = 0;
            self.bytes.clear();
            if self.bytes.capacity() > KEPT_BYTES {
                self.bytes = Vec::new();
            }
        } else if self.sent > SENT_BYTES && self.sent > self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.bytes.shrink_to_fit();
            self.sent = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_what_was_written_in_order_and_keeps_no_more_than_twice_what_is_unsent() {
        let (mut out, mut expected) = (Out::default(), std::collections::VecDeque::new());
        let mut seed = 1u32;
        let mut random = |n: usize| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as usize % n
        };
        for _ in 0..10_000 {
            let more: Vec<u8> = (0..random(50)).map(|_| random(256) as u8).collect();
            out.end().extend_from_slice(&more);
            assert!(out.sent <= out.bytes.len() - out.sent + more.len(), "{} sent of {}", out.sent, out.bytes.len());
            expected.extend(more);
            let n = random(out.len() + 1);
            assert!(out.unsent()[..n].iter().eq(expected.iter().take(n)));
            out.written(n);
            expected.drain(..n);
            assert_eq!((out.len(), out.is_empty()), (expected.len(), expected.is_empty()));
        }
        out.end().resize(8 << 20, 7);
        while out.len() > 1 << 20 {
            out.written(100_000);
            assert!(out.memory() <= 2 * out.len() + SENT_BYTES + 100_000, "{} for {}", out.memory(), out.len());
        }
        out.written(out.len());
        out.end().resize(KEPT_BYTES * 2, 7);
        out.written(out.len());
        assert_eq!(out.bytes.capacity(), 0);
    }
}
