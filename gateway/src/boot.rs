//! Starts of the gateway, counted in the state store.
//!
//! Invariant: `boot/N` holds the time at which boot N had ended, put when boot N + 1 began; so session ids of different boots differ, and
//! who was connected when the process died counts as disconnected from then.
//! Must not know: how it ended.

use std::collections::HashMap;

#[derive(Debug, Default)]
pub(crate) struct Boots {
    ended: HashMap<u64, u64>,
}

impl Boots {
    /// Takes a key of the store; false: not one of these.
    pub fn read(&mut self, key: &[u8], value: &[u8]) -> bool {
        let number = key.strip_prefix(b"boot/").and_then(|n| std::str::from_utf8(n).ok()?.parse().ok());
        let (Some(number), Some(time)) = (number, value.first_chunk::<8>()) else { return false };
        self.ended.insert(number, u64::from_le_bytes(*time));
        true
    }

    /// The boot that begins: the first is 1. The last one noted the end of the one before it.
    pub fn current(&self) -> u64 {
        self.ended.keys().max().map_or(1, |n| n + 2)
    }

    /// Notes that the boot before `current` ended now. Gives key and value to put.
    pub fn begin(&mut self, current: u64, now_ms: u64) -> (String, [u8; 8]) {
        self.ended.insert(current - 1, now_ms);
        (format!("boot/{}", current - 1), now_ms.to_le_bytes())
    }

    /// When boot `n` ended; one that nobody knows has ended long ago.
    pub fn ended(&self, n: u64) -> u64 {
        self.ended.get(&n).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boots_count_on_and_remember_when_they_ended() {
        let mut store: Vec<(String, [u8; 8])> = Vec::new();
        for n in 1..4 {
            let mut boots = Boots::default();
            store.iter().for_each(|(k, v)| assert!(boots.read(k.as_bytes(), v)));
            assert_eq!(boots.current(), n);
            store.push(boots.begin(n, 100 * n));
            assert_eq!(boots.ended(n - 1), 100 * n);
        }
        assert!(!Boots::default().read(b"c/x", &[0; 8]));
    }
}
