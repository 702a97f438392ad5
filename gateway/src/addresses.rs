//! How many connections one address has, and how fast it begins new ones. Off unless it is configured: a fleet behind one router or proxy has one address.
//!
//! Invariant: an address is held for as long as one of its connections is open, or its last ones are so young that they count.
//! Must not know: what is spoken.

use crate::gateway::Gateway;
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};
use weir_core::limits::Limit;

/// So many seconds' worth of connections may come at once.
const BURST_S: u64 = 5;

#[derive(Clone, Copy, Default)]
struct Known {
    open: u32,
    /// Until when its connections are paid for, ms of the monotonic clock.
    paid_ms: u64,
}

#[derive(Clone, Default)]
pub(crate) struct Addresses(Arc<Mutex<HashMap<IpAddr, Known>>>);

/// A connection's place among those of its address, where they are limited: every connection has one.
pub(crate) type Place = Option<Box<Open>>;

/// A connection of an address; given back when it is dropped.
pub(crate) struct Open {
    all: Addresses,
    ip: IpAddr,
}

impl Addresses {
    /// `open_max` at once, and `begun_max` a second; 0: any.
    fn open(&self, ip: IpAddr, now_ms: u64, open_max: u32, begun_max: u32) -> Result<Open, Limit> {
        // A version 6 network has more addresses than anybody can count.
        let ip = match ip {
            IpAddr::V6(v6) if v6.to_ipv4_mapped().is_none() => IpAddr::V6((u128::from(v6) >> 64 << 64).into()),
            other => other.to_canonical(),
        };
        let mut all = self.0.lock();
        let mut known = all.get(&ip).copied().unwrap_or_default();
        if open_max > 0 && known.open >= open_max {
            return Err(Limit::ConnectionsPerAddress);
        }
        if begun_max > 0 {
            if known.paid_ms > now_ms + BURST_S * 1_000 {
                return Err(Limit::ConnectsPerAddress);
            }
            known.paid_ms = known.paid_ms.max(now_ms) + 1_000_u64.div_ceil(begun_max.into());
        }
        known.open += 1;
        all.insert(ip, known);
        if all.len().is_multiple_of(1_024) {
            all.retain(|_, known| known.open > 0 || known.paid_ms > now_ms);
        }
        Ok(Open { all: self.clone(), ip })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut all = self.all.0.lock();
        if let Some(known) = all.get_mut(&self.ip) {
            known.open -= 1;
            if known.open == 0 && known.paid_ms == 0 {
                all.remove(&self.ip);
            }
        }
    }
}

impl Gateway {
    /// The place of a connection among those of its address. `Err`: it is refused, and that is counted.
    pub fn admit(&self, from: SocketAddr) -> Result<Place, ()> {
        let fleet = self.limits.read().fleet;
        let (open_max, begun_max) = (fleet.connections_per_address, fleet.connects_per_address);
        if open_max == 0 && begun_max == 0 {
            return Ok(None);
        }
        let opened = self.addresses.open(from.ip(), self.now().monotonic_ms, open_max, begun_max);
        opened.map(|open| Some(Box::new(open))).map_err(|limit| self.refused(limit, &from.ip().to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_its_connections_and_others_theirs() {
        let (all, ip, other) = (Addresses::default(), IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let a = all.open(ip, 0, 2, 0).expect("the first");
        let _b = all.open("::ffff:10.0.0.1".parse().expect("an address"), 0, 2, 0).expect("the second");
        assert_eq!(all.open(ip, 0, 2, 0).err(), Some(Limit::ConnectionsPerAddress));
        assert!(all.open(other, 0, 2, 0).is_ok());
        drop(a);
        assert!(all.open(ip, 0, 2, 0).is_ok());
        let v6 = |text: &str| text.parse::<IpAddr>().expect("an address");
        let _c = all.open(v6("2001:db8::1"), 0, 1, 0).expect("the first of its network");
        assert!(all.open(v6("2001:db8::2"), 0, 1, 0).is_err() && all.open(v6("2001:db8:1::2"), 0, 1, 0).is_ok());
    }

    #[test]
    fn an_address_begins_so_many_a_second_after_a_burst() {
        let (all, ip) = (Addresses::default(), IpAddr::from([10, 0, 0, 1]));
        let begin = |now_ms, n: usize| (0..n).filter(|_| all.open(ip, now_ms, 0, 20).is_ok()).count();
        assert_eq!((begin(0, 500), begin(0, 1)), (101, 0));
        assert_eq!((begin(1_000, 500), begin(60_000, 500)), (20, 101));
    }
}
