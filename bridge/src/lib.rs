//! Everything that carries the log elsewhere, or elsewhere into the log: here the browser's page and its feed.
//!
//! Must not know: MQTT connections and sessions. A bridge is a reader with a filter and a cursor, like any other.

pub mod ask;
pub mod channel;
#[cfg(test)]
mod channel_tests;
pub mod events;
pub mod feed;
pub mod filters;
mod fragmenter;
pub mod frame;
pub mod outlet;
pub mod record;
pub mod snapshot;
pub mod socket;
pub mod steps;
pub mod subscription;
pub mod tail;
pub mod upgrade;
pub mod watched;
pub mod web;
