//! The configuration as its user meets it: what is in force and where it is said, and words for everything that is wrong.

mod support;

use std::process::{Command, Output};
use support::{Weir, binary, dir, free_port, http_get};

fn check(args: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(binary()).arg("check-config").args(args).envs(environment.iter().copied()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_nearest_place_wins_and_is_named() {
    let dir = dir();
    let file = dir.path().join("mine.toml");
    std::fs::write(&file, "[log]\nretention_bytes = \"1GiB\"\nretention_age = \"7days\"\ndata = \"from-file\"\n").unwrap();
    let file = file.to_str().unwrap();
    let environment = [("WEIR__LOG__RETENTION_AGE", "12h"), ("WEIR__LOG__DATA", "from-environment"), ("WEIR__GROUPS__MAX_DELIVERIES", "7")];
    let out = check(&["-c", file, "--data", "from-flag"], &environment);
    let said = text(&out.stdout);
    assert!(out.status.success(), "{}", text(&out.stderr));
    for (line, place) in [
        ("retention_bytes = \"1GiB\"", file),
        ("retention_age = \"12h\"", "environment"),
        ("data = \"from-flag\"", "command line"),
        ("max_deliveries = 7", "environment"),
        ("mqtt = \"127.0.0.1:1883\"", "default"),
    ] {
        let found = said.lines().find(|l| l.starts_with(line)).unwrap_or_else(|| panic!("{line} in\n{said}"));
        assert!(found.ends_with(&format!("# {place}")), "{found}");
    }
    // A value may stand in a file, whose name is what the environment has.
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "3GiB\n").unwrap();
    let from_file = check(&[], &[("WEIR__LOG__RETENTION_BYTES_FILE", secret.to_str().unwrap())]);
    let line = text(&from_file.stdout).lines().find(|l| l.starts_with("retention_bytes")).map(str::to_owned).unwrap();
    assert!(line.contains("\"3GiB\"") && line.ends_with("# WEIR__LOG__RETENTION_BYTES_FILE"), "{line}");
    let missing = text(&check(&[], &[("WEIR__LOG__DATA_FILE", "/nowhere")]).stderr);
    assert!(missing.contains("WEIR__LOG__DATA_FILE: /nowhere: "), "{missing}");
    // What it says is a file that says the same.
    let again = dir.path().join("again.toml");
    std::fs::write(&again, &said).unwrap();
    let again = text(&check(&["-c", again.to_str().unwrap()], &[]).stdout);
    let values = |text: &str| text.lines().map(|l| l.split('#').next().unwrap().trim().to_owned()).collect::<Vec<_>>();
    assert_eq!(values(&again), values(&said));
}

#[test]
fn what_is_wrong_is_said_with_its_place_and_the_way_out() {
    let dir = dir();
    let file = dir.path().join("bad.toml");
    for (wrong, words) in [
        ("[limits]\nwill_bytes = \"256KiB\"\n", "limits.session_bytes: 256KiB has no room for filters beside a will"),
        ("[log]\nretention_age = \"1h\"\nretention_min_age = \"2h\"\n", "log.retention_min_age: 2h is longer than log.retention_age (1h)"),
        ("[log]\nretention_bytes = 0\nretention_min_age = \"2h\"\n", "log.retention_min_age: it keeps what log.retention_bytes would take"),
        ("[log]\nretention_byts = \"1GiB\"\n", "bad.toml:2: no key log.retention_byts; did you mean log.retention_bytes?"),
        ("[logs]\n", "did you mean log?"),
        ("[listen]\nzzz = 1\n", "there are listen.admin, listen.allow_anonymous, listen.hosts, listen.http, listen.mqtt"),
        ("[listen]\nmqtt = \"x\"\n", "bad.toml:2: listen.mqtt: not an address and a port; as in \"127.0.0.1:1883\""),
        ("[log]\nretention_bytes = \"much\"\n", "log.retention_bytes: much: not a size; as in 8GiB"),
        ("[log]\ndurability = \"ram\"\n", "bad.toml:2: log.durability: ram is none of disk, os"),
        ("[diagnostics]\nlog_level = \"a=b=c\"\n", "diagnostics.log_level: "),
        ("[diagnostics]\nlog_level = \"loud\"\n", "diagnostics.log_level: loud: not a level; as in info"),
        ("[events]\nsys_interval = \"100ms\"\n", "events.sys_interval: 100ms is less than a second"),
        ("[groups]\nmax_deliveries = \"x\"\n", "bad.toml:2: groups.max_deliveries: not \"x\"; as in 20"),
        ("[groups]\nmax_deliveries = -1\n", "groups.max_deliveries: not "),
        ("[listen]\nallow_anonymous = 1\n", "as in true or false"),
        ("[log]\nretention_bytes = true\n", "log.retention_bytes: not a value of its kind; as in \"8GiB\""),
        ("[listen]\nmqtt = \"0.0.0.0:1883\"\n", "listen.mqtt: 0.0.0.0:1883 can be reached from elsewhere"),
        ("[listen]\nhttp = \"127.0.0.1:1883\"\n", "listen.http: 127.0.0.1:1883 is that of another listener too"),
        (
            "[log]\ndata = \"/proc/version/data\"\n",
            "log.data: /proc/version/data cannot be the data directory: /proc/version is no directory",
        ),
        ("[log]\ndata = \"/proc/nope\"\n", "log.data: /proc/nope cannot be the data directory: /proc is the kernel's"),
        (
            "[listen]\nmqtt = \"0.0.0.0:1883\"\nhttp = \"127.0.0.1:1883\"\nallow_anonymous = true\n",
            "bad.toml:3: listen.http: 127.0.0.1:1883 is that of another listener too",
        ),
        ("[listen]\nmqtt = \"192.0.2.7:1883\"\nallow_anonymous = true\n", "listen.mqtt: 192.0.2.7:1883: no address of this machine"),
        ("[listen]\norigins = [\"dash.example.org\"]\n", "bad.toml:2: listen.origins: dash.example.org is no origin"),
        ("[listen]\nhosts = [\"weir.example.org:80\"]\n", "bad.toml:2: listen.hosts: weir.example.org:80 is no name of a host"),
        ("listen = { mqtt = \"x\" }\n", "bad.toml:1: listen.mqtt: not an address and a port"),
        ("[log\n", "line 1"),
    ] {
        std::fs::write(&file, wrong).unwrap();
        for command in ["check-config", "run"] {
            let out = Command::new(binary()).args([command, "-c", file.to_str().unwrap()]).output().unwrap();
            assert_eq!((out.status.code(), text(&out.stdout)), (Some(1), String::new()), "{wrong}");
            assert!(text(&out.stderr).contains(words), "{wrong}: {}", text(&out.stderr));
        }
    }
    // All that is wrong is said at once, and nothing of how it is read.
    std::fs::write(&file, "[log]\nretention_bytes = \"much\"\nzzz = 1\n[limits]\ntopic_levels = 9999\nretained = \"all\"\n").unwrap();
    let all = text(&check(&["-c", file.to_str().unwrap()], &[]).stderr);
    for words in [
        "bad.toml:2: log.retention_bytes: much",
        "bad.toml:3: no key log.zzz",
        "bad.toml:5: limits.topic_levels: 9999 is not between 1 and 1024",
        "bad.toml:6: limits.retained: not \"all\"",
    ] {
        assert!(all.contains(words), "{words}: {all}");
    }
    // What keys mean together is judged beside those that cannot be read, and has its line too.
    std::fs::write(&file, "[listen]\nmqtt = \"0.0.0.0:1883\"\n[log]\nretention_bytes = \"much\"\n").unwrap();
    let both = text(&check(&["-c", file.to_str().unwrap()], &[]).stderr);
    assert!(both.contains("bad.toml:2: listen.mqtt: 0.0.0.0:1883 can be") && both.contains("bad.toml:4: log.retention_bytes"), "{both}");
    let spaced = check(&[], &[("WEIR_LOG", " debug , weir_log=trace")]);
    assert!(spaced.status.success(), "{}", text(&spaced.stderr));
    assert!(!["u64", "u32", "i64", "enum", "struct"].iter().any(|rust| all.contains(rust)), "{all}");
    assert!(text(&check(&["-c", dir.path().to_str().unwrap()], &[]).stderr).contains(": a directory; name the file in it"));
    let once = text(&check(&[], &[("WEIR_LOG__RETENTION_BYTES", "1GiB")]).stderr);
    assert!(once.contains("nothing reads WEIR_LOG__RETENTION_BYTES; did you mean WEIR__LOG__RETENTION_BYTES?"), "{once}");
    let flat = text(&check(&[], &[("WEIR_LOG_DATA", "x"), ("WEIR_LISTEN_MQTT", "y"), ("WEIR_ROUNDS", "3")]).stderr);
    let meant = ["WEIR_LOG_DATA; did you mean WEIR__LOG__DATA?", "WEIR_LISTEN_MQTT; did you mean WEIR__LISTEN__MQTT?"];
    assert!(meant.iter().all(|words| flat.contains(words)) && !flat.contains("ROUNDS"), "{flat}");
    assert!(check(&[], &[("WEIR_LOG", "")]).status.success(), "empty is unset");
    let level = text(&check(&[], &[("WEIR_LOG", "debug")]).stdout);
    assert!(level.lines().any(|l| l.starts_with("log_level = \"debug\"") && l.ends_with("# WEIR_LOG")), "{level}");
    assert!(text(&check(&["-c", "/nowhere.toml"], &[]).stderr).contains("/nowhere.toml: there is no such file"));
    assert!(text(&check(&[], &[("WEIR__LOG__DTA", "x")]).stderr).contains("environment: no key log.dta; did you mean log.data?"));
}

#[test]
fn a_gateway_runs_from_a_file_alone() {
    let dir = dir();
    let ports = [free_port(), free_port(), free_port()];
    let file = dir.path().join("weir.toml");
    let [mqtt, http, admin] = ports;
    let data = dir.path().join("data");
    std::fs::write(
        &file,
        format!(
            "[listen]\nmqtt = \"127.0.0.1:{mqtt}\"\nhttp = \"127.0.0.1:{http}\"\nadmin = \"127.0.0.1:{admin}\"\n[log]\ndata = {data:?}\n"
        ),
    )
    .unwrap();
    let mut command = Command::new(binary());
    command.arg("run").arg("-c").arg(&file).stdout(std::process::Stdio::piped());
    let weir = Weir::spawn(command, ports);
    assert!(http_get(admin, "/readyz").contains("ready"));
    assert_eq!(weir.terminate(), Some(0));
    assert!(data.is_dir());
}

/// What runs, where, on what; then "weir ready". And what it did, at the end.
#[test]
fn a_start_and_a_stop_say_what_runs_and_what_was_done() {
    for format in ["text", "json"] {
        let dir = dir();
        let ports = [free_port(), free_port(), free_port()];
        let mut command = support::command(&binary(), &dir.path().join("data"), ports);
        let said = dir.path().join("said");
        command.args(["--log-format", format]).env("WEIR_LOG", "info").stderr(std::fs::File::create(&said).unwrap());
        let weir = Weir::spawn(command, ports);
        let sent = Command::new(binary()).args(["pub", "-p", &weir.mqtt.to_string(), "-t", "a", "-m", "x", "-q", "1"]).status().unwrap();
        assert!(sent.success());
        assert_eq!(weir.terminate(), Some(0));
        let said = std::fs::read_to_string(said).unwrap();
        let [mqtt, http, admin] = ports;
        for words in [
            format!("weir {}", env!("CARGO_PKG_VERSION")),
            format!(": mqtt 127.0.0.1:{mqtt}, page http://127.0.0.1:{http}/, admin http://127.0.0.1:{admin}/"),
            "has 0 messages; read and ready after ".into(),
            "stopped after 0s: 1 messages taken, 0 delivered".into(),
        ] {
            assert!(said.contains(&words), "{words}: {said}");
        }
        for line in said.lines().filter(|_| format == "json") {
            let line: serde_json::Value = serde_json::from_str(line).expect("an object a line");
            assert!(line["level"].is_string() && line["message"].is_string() && line["timestamp"].is_string(), "{line}");
        }
    }
}
