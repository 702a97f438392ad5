//! Programs of others against a gateway: what they are and what they do is in `tests/peers/`. Nightly, for
//! they are large; `tests/peers/install.sh` installs them.

mod support;

use std::{
    fs::File,
    process::{Command, Stdio},
    time::Duration,
};
use support::{Guard, Weir, dir};

fn ends_well(mut program: Command, name: &str) {
    let dir = dir();
    let (path, said) = (dir.path().join("said"), File::create(dir.path().join("said")).unwrap());
    program.stdin(Stdio::null()).stdout(said.try_clone().unwrap()).stderr(said);
    let status = Guard(program.spawn().unwrap()).wait(Duration::from_secs(300));
    assert!(status.success(), "{name}: {}", std::fs::read_to_string(path).unwrap());
}

fn node(name: &str) {
    let root = env!("CARGO_MANIFEST_DIR");
    let (data, its) = (dir(), dir());
    let weir = Weir::start(data.path());
    let mut node = Command::new("node");
    node.arg(format!("{root}/tests/peers/peers.cjs")).args([name, &weir.mqtt.to_string(), &weir.http.to_string()]).arg(its.path());
    node.env("NODE_PATH", format!("{root}/target/peers/node_modules"));
    ends_well(node, name);
}

#[test]
#[ignore = "nightly: needs tests/peers/install.sh"]
fn node_red_gets_a_copy_for_each_filter_and_bursts_in_order() {
    node("node-red");
}

#[test]
#[ignore = "nightly: needs tests/peers/install.sh"]
fn zigbee2mqtt_keeps_its_states_gets_its_commands_and_dies_by_its_will() {
    node("zigbee2mqtt");
}

#[test]
#[ignore = "nightly: needs tests/peers/install.sh"]
fn a_sparkplug_node_is_born_sends_and_dies() {
    node("sparkplug");
}

#[test]
#[ignore = "nightly: needs tests/peers/install.sh"]
fn mqtt_js_speaks_over_tcp_and_websocket_at_every_path() {
    node("mqttjs");
}

#[test]
#[ignore = "nightly: needs tests/peers/install.sh"]
fn aiomqtt_publishes_and_reads_on_one_connection() {
    let root = env!("CARGO_MANIFEST_DIR");
    let data = dir();
    let weir = Weir::start(data.path());
    let mut python = Command::new(format!("{root}/target/venv/bin/python"));
    python.arg(format!("{root}/tests/peers/clients.py")).arg(weir.mqtt.to_string());
    ends_well(python, "aiomqtt");
}
