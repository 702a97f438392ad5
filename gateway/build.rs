//! The commit that a binary was built from, for who runs it. Built from an archive, it has none.

use std::process::Command;

fn main() {
    let asked = Command::new("git").args(["rev-parse", "--short=9", "HEAD"]).output();
    let commit = asked.ok().filter(|o| o.status.success()).and_then(|o| String::from_utf8(o.stdout).ok()).unwrap_or_default();
    println!("cargo::rustc-env=WEIR_COMMIT={}", commit.trim());
    // Written by every commit and checkout.
    println!("cargo::rerun-if-changed=../.git/logs/HEAD");
}
