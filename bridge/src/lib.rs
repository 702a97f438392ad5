//! Everything that carries the log elsewhere, or elsewhere into the log: here the browser's page and its feed.
//!
//! Must not know: MQTT connections and sessions. A bridge is a reader with a filter and a cursor, like any other.

pub mod feed;
pub mod upgrade;
pub mod web;
