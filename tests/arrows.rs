//! The arrows between the crates point down only: core and log know neither each other nor anything above them.

use serde_json::Value;
use std::{collections::BTreeSet, process::Command};

/// Names of the packages that `package` depends on, outside tests.
fn dependencies(metadata: &Value, package: &str) -> BTreeSet<String> {
    let packages = metadata["packages"].as_array().unwrap();
    let p = packages.iter().find(|p| p["name"] == package).unwrap_or_else(|| panic!("no package {package}"));
    let all = p["dependencies"].as_array().unwrap().iter();
    all.filter(|d| d["kind"].is_null()).map(|d| d["name"].as_str().unwrap().to_owned()).collect()
}

fn metadata() -> Value {
    let out = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

#[test]
fn arrows_point_down_only() {
    let m = metadata();
    let ours = |package| dependencies(&m, package).into_iter().filter(|d| d.starts_with("weir")).collect::<Vec<_>>();
    assert_eq!(ours("weir-core"), Vec::<String>::new());
    assert_eq!(ours("weir-log"), Vec::<String>::new());
    assert_eq!(ours("weir-bridge"), ["weir-core", "weir-log"]);
    assert_eq!(ours("weir"), ["weir-bridge", "weir-core", "weir-log"]);
    assert_eq!(ours("weir-tests"), Vec::<String>::new());
}

#[test]
fn core_is_pure_and_the_log_knows_no_runtime() {
    let m = metadata();
    for shell in ["tokio", "axum", "mio", "parking_lot", "rand"] {
        assert!(!dependencies(&m, "weir-core").contains(shell), "weir-core must not depend on {shell}");
    }
    for above in ["tokio", "axum", "mio", "futures", "mqttbytes"] {
        assert!(!dependencies(&m, "weir-log").contains(above), "weir-log must not depend on {above}");
    }
}
