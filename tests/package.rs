//! The Debian package: what is in it, and, as root, that it installs, runs from its own configuration and leaves nothing behind.

mod support;

use std::{
    path::Path,
    process::{Command, Stdio},
};
use support::{Weir, dir, free_port};

fn run(command: &mut Command) -> String {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{command:?}: {said}");
    said
}

/// Of the binary that is built already: packing is what is tested.
fn package(to: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), Into::into);
    let tools = root.join("target/tools/bin");
    assert!(tools.join("cargo-deb").exists(), "cargo-deb is missing: ./tests/install.sh");
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("cargo");
    command.args(["deb", "-p", "weir", "--profile", "dev", "--no-build", "--no-strip", "--locked", "--output"]).arg(to);
    run(command.current_dir(root).env("PATH", path).env("CARGO_TARGET_DIR", target));
}

#[test]
fn the_package_installs_runs_and_goes() {
    let dir = dir();
    let deb = dir.path().join("weir.deb");
    package(&deb);
    let unpacked = dir.path().join("unpacked");
    run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&unpacked));
    for file in ["usr/share/doc/weir/README.md", "usr/share/doc/weir/copyright", "usr/share/weir/prometheus/weir.yml"] {
        assert!(unpacked.join(file).is_file(), "{file}");
    }
    let unit = std::fs::read_to_string(unpacked.join("usr/lib/systemd/system/weir.service")).unwrap();
    for line in [
        "Type=notify",
        "ExecStart=/usr/bin/weir run -c /etc/weir/weir.toml",
        "DynamicUser=yes",
        "StateDirectory=weir",
        "NoNewPrivileges=yes",
    ] {
        assert!(unit.lines().any(|l| l == line), "{line}");
    }
    // Its configuration is one that its binary takes, and where the unit may write.
    let binary = unpacked.join("usr/bin/weir");
    let says = run(Command::new(&binary).args(["check-config", "-c"]).arg(unpacked.join("etc/weir/weir.toml")));
    assert!(says.contains("data = \"/var/lib/weir\""), "{says}");

    if run(Command::new("id").arg("-u")).trim() != "0" {
        println!("not root: the package was unpacked and not installed");
        return;
    }
    run(Command::new("dpkg").arg("-i").arg(&deb));
    let installed = Path::new("/usr/bin/weir");
    assert!(run(Command::new(installed).arg("--version")).starts_with("weir "));
    let ports = [free_port(), free_port(), free_port()];
    let mut command = Command::new(installed);
    command.args(["run", "-c", "/etc/weir/weir.toml"]).arg("--data").arg(dir.path().join("data")).stdout(Stdio::piped());
    for (flag, port) in ["--mqtt", "--http", "--admin"].iter().zip(ports) {
        command.args([(*flag).to_owned(), format!("127.0.0.1:{port}")]);
    }
    let weir = Weir::spawn(command, ports);
    assert_eq!(weir.terminate(), Some(0));
    run(Command::new("dpkg").args(["--purge", "weir"]));
    for gone in ["/usr/bin/weir", "/etc/weir", "/usr/lib/systemd/system/weir.service", "/usr/share/weir"] {
        assert!(!Path::new(gone).exists(), "{gone} has stayed");
    }
}

/// Nothing is built here; but what the files name is there, and the gateway takes what they ask of it.
#[test]
fn the_files_for_containers_name_what_there_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docker = std::fs::read_to_string(root.join("Dockerfile")).unwrap();
    let command = docker.lines().find_map(|l| l.strip_prefix("CMD ")).unwrap();
    let args: Vec<String> = serde_json::from_str(command).unwrap();
    assert_eq!(args[0], "run");
    let says = run(Command::new(support::binary()).arg("check-config").args(&args[1..]));
    assert!(says.contains("mqtt = \"0.0.0.0:1883\"") && says.contains("allow_anonymous = true"), "{says}");
    let compose = std::fs::read_to_string(root.join("compose.yaml")).unwrap();
    let mounts: Vec<&str> = compose.lines().filter_map(|l| l.trim().strip_prefix("- ./")?.split(':').next()).collect();
    assert_eq!(mounts, ["grafana/prometheus", "grafana/provisioning", "grafana/dashboards"]);
    assert!(mounts.iter().all(|path| root.join(path).is_dir()));
    for (name, file) in [("WEIR_DASHBOARDS", "dashboards"), ("WEIR_PROMETHEUS", "datasources")] {
        let provisioning = std::fs::read_to_string(root.join(format!("grafana/provisioning/{file}/weir.yml"))).unwrap();
        assert!(compose.contains(&format!("{name}: ")) && provisioning.contains(&format!("${name}\n")), "{name}");
    }
}
