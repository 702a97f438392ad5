//! The commit that a binary was built from. Built from an archive, it has none.

use std::{path::Path, process::Command};

fn main() {
    let asked = Command::new("git").args(["rev-parse", "--short=9", "HEAD"]).output();
    let commit = asked.ok().filter(|o| o.status.success()).and_then(|o| String::from_utf8(o.stdout).ok()).unwrap_or_default();
    println!("cargo::rustc-env=WEIR_COMMIT={}", commit.trim());
    // Written by every commit and checkout. A file that is missing would be built again each time.
    let log = "../.git/logs/HEAD";
    if Path::new(log).exists() {
        println!("cargo::rerun-if-changed={log}");
    } else {
        println!("cargo::rerun-if-changed=build.rs");
    }
}
