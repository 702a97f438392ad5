//! Everything that carries the log elsewhere, or elsewhere into the log.
//!
//! Must not know: MQTT connections and sessions. A bridge is a reader with a filter and a cursor, like any other.
