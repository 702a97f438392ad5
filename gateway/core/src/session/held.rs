//! Bytes that may leave only when the session's value is durable: PUBLISH and PUBREL of QoS 2, and whatever is sent after them.
//!
//! Invariant: bytes leave in the order in which they came, and only when a put that was submitted after them is durable: the peer never knows
//! more of an exchange than the store (P1).
//! Must not know: packets.

use crate::ids::Receipt;
use std::collections::VecDeque;

/// Held bytes beyond which nothing more is delivered: one put carries them all.
const HELD_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug, Default)]
pub(super) struct Held {
    pub bytes: Vec<u8>,
    /// Bytes up to here wait for this put.
    puts: VecDeque<(usize, Receipt)>,
}

impl Held {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.bytes.len() >= HELD_BYTES_MAX
    }

    /// One put at a time, so that each carries what came during the one before.
    pub fn wants_put(&self) -> bool {
        !self.bytes.is_empty() && self.puts.is_empty()
    }

    pub fn put_submitted(&mut self, receipt: Receipt) {
        let known = self.puts.back().map_or(0, |(end, _)| *end);
        if self.bytes.len() > known {
            self.puts.push_back((self.bytes.len(), receipt));
        }
    }

    /// The state store is durable up to `receipt`.
    pub fn appended(&mut self, receipt: Receipt, out: &mut Vec<u8>) {
        let mut free = 0;
        while let Some((end, _)) = self.puts.front().filter(|(_, r)| *r <= receipt) {
            free = *end;
            self.puts.pop_front();
        }
        if free > 0 {
            out.extend(self.bytes.drain(..free));
            self.puts.iter_mut().for_each(|(end, _)| *end -= free);
        }
        if self.bytes.is_empty() {
            // An idle connection holds no buffer.
            self.bytes = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_wait_for_a_put_that_came_after_them() {
        let (mut held, mut out) = (Held::default(), Vec::new());
        assert!(!held.wants_put());
        held.bytes.extend(b"ab");
        assert!(held.wants_put());
        held.put_submitted(Receipt(3));
        held.bytes.extend(b"cd");
        assert!(!held.wants_put(), "the next put waits for this one");
        held.appended(Receipt(2), &mut out);
        assert_eq!(out, b"");
        held.appended(Receipt(3), &mut out);
        assert_eq!(out, b"ab");
        assert!(held.wants_put());
        held.put_submitted(Receipt(5));
        held.put_submitted(Receipt(6));
        held.bytes.extend(b"e");
        held.put_submitted(Receipt(7));
        held.appended(Receipt(5), &mut out);
        assert_eq!(out, b"abcd");
        held.appended(Receipt(9), &mut out);
        assert!(held.is_empty() && out == b"abcde");
    }
}
