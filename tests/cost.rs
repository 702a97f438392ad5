//! What the pure core costs a message, in instructions, on fixed inputs (`gateway/core/examples/cost.rs`): a change that makes it dearer shows here, on the noisiest machine.

use std::{path::Path, process::Command};

/// Instructions per message in this profile with rustc 1.95, and what may be added before somebody has to say why: other compilers count a little differently.
const PUBLISH: u64 = 1_514;
const DELIVER: u64 = 2_581;
const MORE_PERCENT: u64 = 10;

fn instructions(what: &str, messages: u64) -> u64 {
    let cost = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/debug/examples/cost");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(&cost)
        .args([what, &messages.to_string()])
        .output()
        .expect("valgrind is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", cost.display());
    let count = said.split("Collected : ").nth(1).and_then(|rest| rest.split_whitespace().next());
    count.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no count in {said}"))
}

/// Of a message more: what starting costs is in both.
fn per_message(what: &str) -> u64 {
    (instructions(what, 4_000) - instructions(what, 2_000)) / 2_000
}

#[test]
fn a_message_costs_the_core_no_more_than_it_did() {
    for (what, known) in [("publish", PUBLISH), ("deliver", DELIVER)] {
        let now = per_message(what);
        println!("{what}: {now} instructions a message; {known} were known");
        assert!(
            now <= known + known * MORE_PERCENT / 100,
            "{what}: {now} instructions a message, {known} before: find out why, or write the new figure here"
        );
        assert!(
            now >= known - known * MORE_PERCENT / 100,
            "{what}: {now} instructions a message, {known} before: write the new figure here, so that it stays"
        );
    }
}
