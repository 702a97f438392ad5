//! Pure MQTT: bytes, records and `now` in; packets, records and actions out.
//!
//! Invariant: nothing here touches a clock, a file, a socket or a thread; the same inputs give the same outputs.
//! Must not know: the log, the shell, or that more than one session exists at a time.

pub mod codec;
pub mod directory;
pub mod fanout;
#[cfg(test)]
mod fuzz;
pub mod group;
pub mod ids;
pub mod interest;
pub mod limits;
pub mod message;
pub mod packet;
pub mod property;
pub mod retained;
pub mod session;
pub mod topic;
pub mod trie;
