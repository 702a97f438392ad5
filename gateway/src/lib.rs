//! The tokio shell and composition root: sockets, clocks and tasks around a pure core and a log.
//!
//! Invariant: what MQTT means is decided in `weir-core`, what is durable in `weir-log`; here one is told what the other did.
//! Must not know: packet formats, segment formats.

mod account;
mod addresses;
pub mod api;
pub mod ask;
pub mod bench;
mod boot;
mod broker;
mod burial;
pub mod cat;
mod checkpoint;
pub mod client;
mod clock;
pub mod config;
mod cursors;
pub mod demo;
mod departures;
mod directory;
mod driver;
mod events;
mod figures;
mod fleet;
mod fold;
mod foresight;
mod gateway;
mod group;
mod growth;
mod hosts;
mod http;
pub mod inspect;
mod interests;
pub mod judge;
pub mod lives;
mod metrics;
mod offline;
mod origins;
mod peer;
pub mod pressure;
mod process_memory;
mod rates;
pub(crate) mod refusals;
mod retention;
mod run;
#[cfg(test)]
mod sim;
pub(crate) mod sockets;
mod start;
mod tail;
mod tcp;
pub mod terminal;
mod visitor;
mod vital;
mod waiting;
mod websocket;

pub use fleet::FleetLimits;
pub use gateway::Limits;
pub use retention::Retention;
pub use run::{Hooks, Options, Reloaded, RunError, run, version};
pub use weir_core::limits::Limits as ClientLimits;
