//! paho-mqtt as a peer, in both versions; the script says what it does.

mod support;

use std::process::Command;
use support::{Collected, Weir, dir};

#[test]
fn paho_in_both_versions() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    for version in ["4", "5"] {
        let mut command = Command::new(root.join("target/venv/bin/python"));
        command.arg(root.join("tests/paho_peer.py")).args([&weir.mqtt.to_string(), version]);
        assert_eq!(Collected::spawn(&mut command).rest(), ["ok"], "version {version}");
    }
}
