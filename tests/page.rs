//! The page in a real browser: `tests/page/scenarios.mjs`, one scenario at a time, each with a gateway of its own.

mod support;

use std::{
    fs::File,
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};
use support::{Guard, binary};

/// A browser takes both cores.
static ONE: Mutex<()> = Mutex::new(());

/// Runs it; its output is shown when it fails.
fn scenario(name: &str) {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let root = env!("CARGO_MANIFEST_DIR");
    let dir = support::dir();
    let (path, said) = (dir.path().join("said"), File::create(dir.path().join("said")).unwrap());
    let mut node = Command::new("node");
    node.arg(format!("{root}/tests/page/scenarios.mjs")).arg(name).current_dir(root);
    node.env("WEIR", binary()).env("SHOTS", format!("{root}/target/page"));
    node.stdin(Stdio::null()).stdout(said.try_clone().unwrap()).stderr(said);
    let status = Guard(node.spawn().unwrap()).wait(Duration::from_secs(420));
    let said = std::fs::read_to_string(path).unwrap();
    assert!(status.success(), "{said}");
    print!("{said}");
}

#[test]
fn what_is_shown_is_what_the_log_says_now_and_at_any_moment() {
    scenario("demo");
}

#[test]
fn what_a_press_changes_is_changed_and_what_is_exported_is_in_the_log() {
    scenario("changes");
}

#[test]
fn the_first_message_and_one_by_hand() {
    scenario("first");
}

#[test]
fn sigkill_loses_and_doubles_nothing_on_the_page() {
    scenario("killed");
}

#[test]
fn a_moment_that_retention_takes_is_said_to_be_gone() {
    scenario("retention");
}

#[test]
fn what_retention_took_while_the_gateway_was_away_is_said_to_be_lost() {
    scenario("lost");
}

#[test]
fn hostile_payloads_topics_feeds_and_clocks_do_nothing() {
    scenario("hostile");
}

#[test]
fn ten_thousand_topics_cost_little() {
    scenario("many");
}

#[test]
fn every_control_does_what_it_is_for_by_mouse_touch_and_keys() {
    scenario("controls");
}
