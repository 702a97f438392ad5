//! `weir pub` and `weir sub` in the place of mosquitto's clients: the same lines, the same exit codes, against the same broker.

mod support;

use std::{
    io::Write,
    process::{Command, Output, Stdio},
    time::Duration,
};
use support::{
    Guard, Weir, binary, dir,
    raw::{PUBACK, Raw, Version},
};

const VERSIONS: [&str; 2] = ["311", "5"];

/// `weir pub` or `mosquitto_pub`, `weir sub` or `mosquitto_sub`.
fn client(ours: bool, kind: &str, port: u16, version: &str) -> Command {
    let mut command = if ours {
        let mut command = Command::new(binary());
        command.arg(kind);
        command
    } else {
        Command::new(format!("mosquitto_{kind}"))
    };
    let version = if ours { version.to_owned() } else { format!("mqttv{version}") };
    command.args(["-p", &port.to_string(), "-V", &version]);
    command
}

fn run(mut command: Command, args: &[&str], input: &str) -> Output {
    let mut child = command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn prints_and_publishes_what_mosquitto_does() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    for version in VERSIONS {
        // What one publishes both print alike, and the other way round.
        for ours in [true, false] {
            let publish = |args: &[&str], input: &str| {
                let out = run(client(ours, "pub", weir.mqtt, version), args, input);
                assert!(out.status.success() && out.stdout.is_empty(), "{args:?}: {}", text(&out.stderr));
            };
            publish(&["-t", "r/one", "-m", "first é", "-q", "1", "-r"], "");
            publish(&["-t", "r/two", "-l", "-q", "2", "-r"], "line 1\nline 2\n");
            publish(&["-t", "r/three", "-s", "-r"], "all\nof it\n");
            publish(&["-t", "r/four", "-m", "gone", "-r", "-q", "1"], "");
            publish(&["-t", "r/four", "-n", "-r", "-q", "1"], "");
            // Acknowledged, and QoS 0 has left: a later one with QoS 1 is behind it.
            publish(&["-t", "r/last", "-m", "last", "-r", "-q", "1"], "");
            for args in [
                &["-t", "r/#", "-C", "4"][..],
                &["-t", "r/#", "-C", "4", "-v"],
                &["-t", "r/one", "-t", "r/two", "-C", "2", "-q", "2", "-F", "%t|%p|%q|%r|%l|%x|%X|%%|\\t"],
                &["-t", "r/#", "-T", "r/t+", "-T", "r/two", "-C", "3", "-N"],
                &["-t", "r/#", "--retained-only", "-C", "3"],
            ] {
                let both = [true, false].map(|ours| run(client(ours, "sub", weir.mqtt, version), args, ""));
                let [mine, theirs] = both.each_ref().map(|out| (out.status.code(), text(&out.stdout)));
                if args.contains(&"r/t+") {
                    // Not a filter; mosquitto says so in its own words.
                    assert_eq!((mine.0, mine.1.is_empty()), (Some(1), true), "{}", text(&both[0].stderr));
                } else {
                    assert_eq!(mine, theirs, "{args:?}, {version}");
                }
            }
        }
    }
}

#[test]
fn a_session_is_kept_and_ten_thousand_lines_come_in_order() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    for version in VERSIONS {
        let session = ["-t", "n/#", "-q", "1", "-c", "-i", "keeper"];
        let first = run(client(true, "sub", weir.mqtt, version), &[&session[..], &["-W", "1"]].concat(), "");
        assert_eq!((first.status.code(), text(&first.stderr)), (Some(27), "weir: timed out\n".into()));
        let lines: String = (0..10_000).map(|n| format!("{n}\n")).collect();
        assert!(run(client(true, "pub", weir.mqtt, version), &["-t", "n/x", "-l", "-q", "1"], &lines).status.success());
        let all = run(client(true, "sub", weir.mqtt, version), &[&session[..], &["-C", "10000"]].concat(), "");
        assert!(all.status.success() && text(&all.stdout) == lines, "{version}");
        // Ends its session.
        run(client(true, "sub", weir.mqtt, version), &["-t", "x", "-i", "keeper", "-W", "1"], "");
    }
}

#[test]
fn every_end_has_its_code_and_its_words() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let nobody = support::free_port();
    let cases: [(&str, u16, &[&str], i32, &str); 7] = [
        ("pub", nobody, &["-t", "a", "-m", "x"], 1, "127.0.0.1:"),
        ("sub", nobody, &["-t", "a"], 1, "Connection refused"),
        ("pub", weir.mqtt, &["-t", "a"], 1, "--message"),
        ("pub", weir.mqtt, &["-t", "a", "-f", "/nowhere/at/all"], 1, "/nowhere/at/all"),
        ("sub", weir.mqtt, &["-t", "a/#/b"], 1, "a/#/b"),
        ("sub", weir.mqtt, &["-t", "a", "-q", "3"], 1, "0, 1 or 2"),
        ("sub", weir.mqtt, &["-t", "a", "-c"], 1, "--id"),
    ];
    for (kind, port, args, code, words) in cases {
        let out = run(client(true, kind, port, "311"), args, "");
        assert_eq!(out.status.code(), Some(code), "{kind} {args:?}: {}", text(&out.stderr));
        assert!(text(&out.stderr).contains(words), "{kind} {args:?}: {}", text(&out.stderr));
    }
    // $SYS is the gateway's own: version 5 is told so.
    let refused = run(client(true, "pub", weir.mqtt, "5"), &["-t", "$SYS/x", "-m", "x", "-q", "1"], "");
    assert_eq!((refused.status.code(), text(&refused.stderr)), (Some(1), "weir: 1 of 1 messages were refused\n".into()));
    // A pipe that closes.
    let mut sub = Guard(
        client(true, "sub", weir.mqtt, "5").args(["-t", "pipe", "-q", "1"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap(),
    );
    drop(sub.0.stdout.take());
    let ended = (0..50).any(|_| {
        run(client(true, "pub", weir.mqtt, "5"), &["-t", "pipe", "-m", "x", "-q", "1"], "");
        std::thread::sleep(Duration::from_millis(100));
        sub.0.try_wait().unwrap().is_some()
    });
    assert!(ended && sub.0.wait().unwrap().success(), "nobody reads, so it ends");
}

/// A broker that takes messages, acknowledges a few, and is gone.
#[test]
fn what_was_not_acknowledged_is_an_error() {
    let broker = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = broker.local_addr().unwrap().port();
    let serve = std::thread::spawn(move || {
        let (mut socket, _) = broker.accept().unwrap();
        let mut bytes = [0; 65_536];
        std::io::Read::read(&mut socket, &mut bytes).unwrap();
        socket.write_all(&[0x20, 2, 0, 0]).unwrap();
        std::io::Read::read(&mut socket, &mut bytes).unwrap();
        socket.write_all(&[PUBACK, 2, 0, 1]).unwrap();
        std::thread::sleep(Duration::from_millis(300));
    });
    let out = run(client(true, "pub", port, "311"), &["-t", "a", "-l", "-q", "1"], "1\n2\n3\n");
    serve.join().unwrap();
    assert_eq!(out.status.code(), Some(7));
    assert!(text(&out.stderr).contains("2 of 3 messages were not acknowledged"), "{}", text(&out.stderr));
}

#[test]
fn sub_comes_back_when_the_broker_does() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let ports = weir.ports();
    let mut command = client(true, "sub", weir.mqtt, "5");
    command.args(["-t", "back", "-q", "1", "-c", "-i", "back", "-C", "1"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let sub = command.spawn().unwrap();
    support::eventually("it subscribes", Duration::from_secs(5), || {
        let mut p = Raw::connect_with(ports[0], Version::V5, "asks", true, &[]);
        p.publish(1, false, 1, "other", "x");
        p.expect_ack(PUBACK, 1) == 0x10 && support::http_get(ports[2], "/metrics").contains("weir_subscriptions 1\n")
    });
    weir.kill();
    let weir = Weir::start_on(dir.path(), ports);
    assert!(run(client(true, "pub", weir.mqtt, "5"), &["-t", "back", "-m", "again", "-q", "1"], "").status.success());
    let out = sub.wait_with_output().unwrap();
    assert_eq!((out.status.code(), text(&out.stdout)), (Some(0), "again\n".into()));
    assert!(text(&out.stderr).contains("tried again"), "{}", text(&out.stderr));
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    let run = |args: &[&str]| Command::new(binary()).args(args).output().unwrap();
    let help = text(&run(&["--help"]).stdout);
    let commands: Vec<&str> =
        help.lines().filter_map(|l| l.strip_prefix("  ")?.split_whitespace().next()).filter(|w| w.len() > 2).collect();
    let commands: Vec<&str> = commands.into_iter().filter(|c| c.starts_with(|c: char| c.is_ascii_lowercase())).collect();
    assert!(commands.contains(&"run") && commands.contains(&"explain"), "{help}");
    let script = run(&["completions", "bash"]);
    let dir = dir();
    std::fs::write(dir.path().join("completions"), &script.stdout).unwrap();
    let syntax = Command::new("bash").arg("-n").arg(dir.path().join("completions")).status().unwrap();
    assert!(script.status.success() && syntax.success());
    let man = run(&["man", dir.path().to_str().unwrap()]);
    assert!(man.status.success(), "{}", text(&man.stderr));
    for command in commands.iter().filter(|c| **c != "help") {
        assert!(text(&script.stdout).contains(&format!("weir,{command})")), "{command} is not completed");
        let page = std::fs::read_to_string(dir.path().join(format!("weir-{command}.1"))).unwrap();
        assert!(page.contains(".SH NAME") && page.contains(command), "{command}");
        assert!(page.contains(".SH EXAMPLES") && page.contains(".SH \"EXIT STATUS\""), "{command}");
    }
    let keys = std::fs::read_to_string(dir.path().join("weir.toml.5")).unwrap();
    assert!(keys.contains(".TH weir.toml 5") && keys.contains("retention_bytes"));
    assert_eq!(run(&["man", "/proc/nowhere"]).status.code(), Some(1));
}

#[test]
fn wills_properties_and_the_rest_are_what_mosquittos_are() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let port = weir.mqtt;
    // A session that is there when it ends, by either.
    for ours in [true, false] {
        let made = run(client(ours, "sub", port, "5"), &["-t", "p/#", "-q", "1", "-c", "-i", "kept", "-x", "60", "-E"], "");
        assert!(made.status.success(), "{ours}: {}", text(&made.stderr));
    }
    // What one says of a message the other prints.
    let said =
        ["-t", "p/x", "-m", "x", "-q", "1", "-D", "publish", "user-property", "k", "v", "-D", "publish", "content-type", "text/plain"];
    for ours in [true, false] {
        let sent = run(client(ours, "pub", port, "5"), &said, "");
        assert!(sent.status.success(), "{}", text(&sent.stderr));
    }
    let got =
        run(client(false, "sub", port, "5"), &["-t", "p/#", "-q", "1", "-c", "-i", "kept", "-x", "60", "-C", "2", "-F", "%p %P %C"], "");
    assert_eq!(text(&got.stdout), "x k:v text/plain\nx k:v text/plain\n");
    // Wills: the connection is killed without a goodbye.
    for version in VERSIONS {
        let mut listener = client(false, "sub", port, version);
        listener.args(["-t", "will/#", "-v", "-q", "1", "-C", "1", "-W", "10", "-F", "%t %p %q %r"]).stdout(Stdio::piped());
        let listener = listener.spawn().unwrap();
        let mut dying = client(true, "sub", port, version);
        dying.args(["-t", "x", "-I", "dying-", "--will-topic", "will/x", "--will-payload", "gone", "--will-qos", "1"]);
        let mut dying = Guard(dying.spawn().unwrap());
        let all = |n: &str| support::http_get(weir.admin, "/metrics").contains(n);
        support::eventually("both are there", Duration::from_secs(5), || all("weir_connections 2\n") && all("weir_subscriptions 3\n"));
        dying.0.kill().unwrap();
        let heard = listener.wait_with_output().unwrap();
        assert_eq!(text(&heard.stdout), "will/x gone 1 0\n", "{version}");
    }
    // Retained messages go as they come.
    let removed = [true, false].map(|ours| {
        run(client(ours, "pub", port, "311"), &["-t", "r/x", "-m", "x", "-r", "-q", "1"], "");
        let out = run(client(ours, "sub", port, "311"), &["-t", "r/x", "-W", "1", "--remove-retained"], "");
        (text(&out.stdout), out.status.code())
    });
    assert!(removed[0] == removed[1] && removed[0].0.starts_with("x\n"), "{removed:?}");
    // Large messages: the bytes are counted.
    let large = dir.path().join("large");
    std::fs::write(&large, "x".repeat(3 << 20)).unwrap();
    for version in VERSIONS {
        let sent = run(client(true, "pub", port, version), &["-t", "large", "-f", large.to_str().unwrap(), "-r", "-q", "1"], "");
        assert!(sent.status.success(), "{}", text(&sent.stderr));
        let got = run(client(true, "sub", port, version), &["-t", "large", "-C", "1", "-W", "10", "-N"], "");
        assert_eq!(got.stdout.len(), 3 << 20, "{version}: {}", text(&got.stderr));
    }
    // A message that holds nothing.
    for args in [&["-v"][..], &[], &["-F", "%t %p"], &["-F", "%p"]] {
        let printed = [true, false].map(|ours| {
            let mut sub = client(ours, "sub", port, "311");
            sub.args(["-t", "n/#", "-C", "2", "-q", "1", "-c", "-i", "nothing"]).args(args);
            run(client(ours, "sub", port, "311"), &["-t", "n/#", "-q", "1", "-c", "-i", "nothing", "-E"], "");
            run(client(ours, "pub", port, "311"), &["-t", "n/x", "-n", "-q", "1"], "");
            run(client(ours, "pub", port, "311"), &["-t", "n/x", "-m", "y", "-q", "1"], "");
            text(&sub.output().unwrap().stdout)
        });
        assert_eq!(printed[0], printed[1], "{args:?}");
    }
    let after = run(client(true, "sub", port, "311"), &["-t", "r/x", "-W", "1", "--quiet"], "");
    assert_eq!((text(&after.stdout), text(&after.stderr), after.status.code()), (String::new(), String::new(), Some(27)));
    for (args, words) in [
        (&["-D", "publish", "will-delay-interval", "1"][..], "publish has content-type, correlation-data"),
        (&["-D", "publish", "user-property", "k"], "a NAME and a VALUE"),
        (&["-x", "-1"], "add -i ID"),
        (&["-V", "311", "-D", "publish", "content-type", "x"], "add -V 5"),
    ] {
        let args = [&["-t", "a", "-m", "x"], args].concat();
        let mut command = Command::new(binary());
        command.args(["pub", "-p", &port.to_string()]);
        let out = run(command, &args, "");
        assert!(out.status.code() == Some(1) && text(&out.stderr).contains(words), "{args:?}: {}", text(&out.stderr));
    }
}

/// What both are called with; `PORT` is that of the gateway.
const CALLS: &[(&str, &[&str])] = &[
    ("pub", &["-t", "a", "-m", "x", "-x", "10"]),
    ("pub", &["-t", "a"]),
    ("pub", &["-m", "x"]),
    ("pub", &["-t", "a/#", "-m", "x"]),
    ("pub", &["-t", "a", "-m", "x", "-q", "3"]),
    ("pub", &["-t", "a", "-m", "x", "-V", "4"]),
    ("pub", &["-t", "a", "-m", "x", "-k", "1"]),
    ("pub", &["-t", "a", "-m", "x", "-c"]),
    ("pub", &["-t", "a", "-m", "x", "-n"]),
    ("pub", &["-t", "a", "-m", "x", "--nope"]),
    ("pub", &["-t", "a", "-m", "x", "-h", "nowhere.invalid"]),
    ("pub", &["-t", "a", "-m", "x", "--unix", "/nowhere"]),
    ("pub", &["-t", "a", "-m", "x", "-D", "publish", "foo", "bar"]),
    ("pub", &["-t", "a", "-m", "x", "-D", "connect", "will-delay-interval", "1"]),
    ("pub", &["-t", "a", "-m", "x", "-V", "mqttv5", "-D", "PUBLISH", "Content-Type", "bar"]),
    ("pub", &["-t", "a", "-m", "x", "-V", "mqttv5", "-D", "publish", "topic-alias", "1"]),
    ("pub", &["-t", "a", "-m", "-5", "-M", "1", "-A", "127.0.0.1", "--nodelay"]),
    ("pub", &["-L", "mqtt://127.0.0.1:PORT/l/x/y", "-m", "x"]),
    ("pub", &["-L", "http://127.0.0.1/l", "-m", "x"]),
    ("pub", &["-t", "a", "-f", "/nowhere"]),
    ("sub", &["-W", "1"]),
    ("sub", &["-t", "a/#/b", "-W", "1"]),
    ("sub", &["-t", "a", "-U", "b", "-E"]),
    ("sub", &["-t", "a", "-U", "b/#/c", "-E"]),
    ("sub", &["-t", "a", "-C", "0"]),
    ("sub", &["-t", "a", "-c"]),
    ("sub", &["-t", "a", "-E", "-V", "mqttv5", "-x", "-1"]),
    ("sub", &["-t", "a", "-W", "1", "-M", "1"]),
    ("sub", &["-t", "p/x", "-W", "1", "-R"]),
    ("sub", &["-t", "p/x", "-W", "1", "-R", "-V", "mqttv5"]),
    ("sub", &["-t", "p/x", "-C", "1", "--nodelay", "-A", "127.0.0.1"]),
    ("sub", &["-t", "p/x", "-C", "1", "--retain-as-published", "-V", "mqttv5", "-F", "%r"]),
    ("sub", &["-L", "mqtt://127.0.0.1:PORT/p/x", "-C", "1", "-v"]),
    ("sub", &["-t", "a", "-F", "%"]),
    ("sub", &["-t", "a", "-F", "%5"]),
    ("sub", &["-t", "a", "-F", "%y"]),
    ("sub", &["-t", "a", "-F", "%+t"]),
    ("sub", &["-t", "a", "-F", "@"]),
    ("sub", &["-t", "a", "-F", "\\"]),
    ("sub", &["-t", "a", "-F", "\\q"]),
];

/// Formats of a message with every property.
const FORMATS: &[&str] = &[
    "%t|%A|%C|%D|%E|%F|%P|%R|%S|%q|%r|%l",
    "%10t|%-10t|%.2t|%10.2t|%-10.2t|%010t|",
    "%05l|%5l|%-5l|%.1l|%3m|",
    "%10p|%-60p|%10x|%X|%2X",
    "%20C|%05C|%.1C|%-5C|%-8R|",
    "@Y-@m-@d @H @@ %%",
    "a\\ab\\ec\\vd\\te\\nf\\rg\\\\h",
];

#[test]
fn every_call_ends_as_mosquittos_does() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let port = weir.mqtt.to_string();
    let mut full = vec!["-t", "p/x", "-m", r#"{"a": 15, "b": [true, "é"]}"#, "-q", "1", "-r"];
    for (name, value) in [
        ("content-type", "007"),
        ("correlation-data", "abc"),
        ("message-expiry-interval", "1000"),
        ("payload-format-indicator", "1"),
        ("response-topic", "r/t"),
    ] {
        full.extend(["-D", "publish", name, value]);
    }
    full.extend(["-D", "publish", "user-property", "k", "v", "-D", "publish", "user-property", "k2", "v 2"]);
    let both = |kind: &str, args: &[&str]| {
        [true, false].map(|ours| {
            let mut command = if ours { Command::new(binary()) } else { Command::new(format!("mosquitto_{kind}")) };
            if ours {
                command.arg(kind);
            }
            if !args.iter().any(|arg| matches!(*arg, "-L" | "--unix")) {
                command.args(["-p", &port]);
            }
            let args: Vec<String> = args.iter().map(|arg| arg.replace("PORT", &port)).collect();
            let out = command.args(&args).stdin(Stdio::null()).output().unwrap();
            (out.status.code(), out.stdout, text(&out.stderr))
        })
    };
    for ours in [true, false] {
        let sent = run(client(ours, "pub", weir.mqtt, "5"), &full, "");
        assert!(sent.status.success(), "{}", text(&sent.stderr));
    }
    for (kind, args) in CALLS {
        let [mine, theirs] = both(kind, args);
        // Their help goes to standard output when a call makes no sense.
        let printed = if theirs.0 == Some(1) { Vec::new() } else { theirs.1 };
        assert_eq!((mine.0, text(&mine.1)), (theirs.0, text(&printed)), "{kind} {args:?}: {} / {}", mine.2, theirs.2);
    }
    let asked = ["-t", "p/x", "-C", "1", "-q", "1", "-V", "mqttv5", "-D", "subscribe", "subscription-identifier", "5", "-F"];
    for format in FORMATS {
        let [mine, theirs] = both("sub", &[&asked[..], &[format]].concat());
        assert_eq!(text(&mine.1), text(&theirs.1), "{format}: {} / {}", mine.2, theirs.2);
    }
    for args in [&["%j"][..], &["%J"], &["%j", "--pretty"], &["%J", "--pretty"]] {
        let [mine, theirs] = both("sub", &[&asked[..], args].concat()).map(|out| {
            let mut json: serde_json::Value = serde_json::from_slice(&out.1).unwrap_or_else(|e| panic!("{args:?}: {e}: {}", text(&out.1)));
            assert!(json["tst"].take().is_string() && out.1.iter().filter(|b| **b == b'\n').count() > args.len() * 3 - 3);
            json
        });
        assert_eq!(mine, theirs, "{args:?}");
    }
}

/// A broker that hangs up, or breaks the protocol, at some point.
#[test]
fn a_connection_that_is_lost_has_a_code_of_its_own() {
    let connack: &[u8] = &[0x20, 2, 0, 0];
    for (answers, code) in [(&[][..], 7), (&[connack], 7), (&[&[0x20, 2, 0, 5]], 5), (&[connack, &[0xFF; 9]], 2), (&[&[0xFF; 9]], 2)] {
        for ours in [true, false] {
            let broker = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = broker.local_addr().unwrap().port();
            let answers: Vec<Vec<u8>> = answers.iter().map(|a| a.to_vec()).collect();
            let serve = std::thread::spawn(move || {
                let (mut socket, _) = broker.accept().unwrap();
                let mut bytes = [0; 65_536];
                for answer in &answers {
                    std::io::Read::read(&mut socket, &mut bytes).unwrap();
                    socket.write_all(answer).unwrap();
                }
                std::io::Read::read(&mut socket, &mut bytes).unwrap_or(0)
            });
            let out = run(client(ours, "pub", port, "311"), &["-t", "a", "-m", "x", "-q", "1"], "");
            serve.join().unwrap();
            assert_eq!(out.status.code(), Some(code), "{ours}, {code}: {}", text(&out.stderr));
        }
    }
}

#[test]
fn a_line_keeps_its_carriage_return_and_packets_are_traced() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let subscriber = ["-t", "cr/#", "-q", "1", "-c", "-i", "cr"];
    run(client(true, "sub", weir.mqtt, "311"), &[&subscriber[..], &["-E"]].concat(), "");
    for ours in [true, false] {
        assert!(run(client(ours, "pub", weir.mqtt, "311"), &["-t", "cr/x", "-l", "-q", "1"], "a\r\nb\n").status.success());
    }
    let got = run(client(true, "sub", weir.mqtt, "311"), &[&subscriber[..], &["-C", "4"]].concat(), "");
    assert_eq!(text(&got.stdout), "a\r\nb\na\r\nb\n");
    // Half of two thousand, by chance: their client of 2.0.11 prints none.
    let half = ["-t", "half", "-q", "1", "-c", "-i", "half"];
    run(client(true, "sub", weir.mqtt, "311"), &[&half[..], &["-E"]].concat(), "");
    run(client(true, "pub", weir.mqtt, "311"), &["-t", "half", "-m", "x", "--repeat", "2000", "-q", "1"], "");
    let got = run(client(true, "sub", weir.mqtt, "311"), &[&half[..], &["-W", "2", "--random-filter", "50"]].concat(), "");
    let printed = text(&got.stdout).lines().count();
    assert!((700..1_300).contains(&printed), "{printed}");
    for version in VERSIONS {
        let out = run(client(true, "pub", weir.mqtt, version), &["-i", "tracer", "-t", "tr", "-m", "xyz", "-q", "2", "-d"], "");
        let lines = text(&out.stderr);
        let mut rest = &*lines;
        for part in [
            "Client tracer sending CONNECT",
            "received CONNACK",
            "sending PUBLISH (m1, q2, r0, 'tr', 3 bytes)",
            "received PUBREC (m1",
            "sending PUBREL (m1)",
            "received PUBCOMP (m1",
            "sending DISCONNECT",
        ] {
            rest = rest.split_once(part).unwrap_or_else(|| panic!("{part} in {lines}")).1;
        }
    }
}

/// What a publisher writes is a publisher's word, and on a terminal it is shown as text, on standard error too.
#[test]
fn nothing_that_others_write_moves_the_cursor_or_says_what_the_gateway_says() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let evil = "\u{1b}[31mRED\u{7}";
    let publish = |topic: &str, args: &[&str]| {
        let more = [&["-t", topic, "-q", "1"][..], args].concat();
        assert!(run(client(true, "pub", weir.mqtt, "5"), &more, "").status.success());
    };
    publish("t", &["-m", "x", "-D", "publish", "user-property", "lost", "default/0:5-9"]);
    publish("t", &["-m", "x", "-D", "publish", "user-property", "lost", evil]);
    // Without positions asked for, no property is the gateway's.
    publish(
        "kept",
        &["-m", "x", "-r", "-D", "publish", "user-property", "lost", "default/0:5-9", "-D", "publish", "user-property", "stream", "x"],
    );
    let kept = run(client(true, "sub", weir.mqtt, "5"), &["-t", "kept", "-C", "1", "-v", "-F", "%t=%p"], "");
    assert_eq!((text(&kept.stdout), text(&kept.stderr)), ("kept=x\n".into(), String::new()));
    for args in [&["-t", "t", "-i", "", "-c"][..], &["-t", "t", "-i", ""]] {
        let out = run(client(true, "sub", weir.mqtt, "311"), args, "");
        assert!(out.status.code() == Some(1) && text(&out.stderr).contains("the client id is empty"), "{}", text(&out.stderr));
    }
    let out = run(client(true, "sub", weir.mqtt, "5"), &["-t", "t", "--from", "earliest", "-C", "2"], "");
    assert_eq!((text(&out.stdout), text(&out.stderr)), ("x\nx\n".into(), String::new()), "nothing is lost");
    let shown = |more: &str| {
        let call = format!("{} sub -p {} -V 5 -t 't/#' --from earliest {more}", binary().display(), weir.mqtt);
        let out = Command::new("script").args(["-q", "-e", "-c", &call, "/dev/null"]).stdin(Stdio::null()).output().unwrap();
        text(&out.stdout)
    };
    publish("t/empty", &["-n"]);
    for more in ["-v -C 3", "-d -C 3"] {
        let all = shown(more);
        assert!(all.contains("t/empty") && !all.contains('\u{1b}'), "{all:?}");
    }
}

/// More than the client can have on its way at once.
#[test]
fn thousands_of_retained_messages_are_removed() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut p = Raw::connect_with(weir.mqtt, Version::V5, "p", true, &[]);
    for n in 0..4_000_u16 {
        p.publish_with(1, 1, &format!("r/{n}"), &[], "x");
    }
    p.publish(1, false, 1, "last", "x");
    p.expect_ack(PUBACK, 1);
    let out = run(client(true, "sub", weir.mqtt, "5"), &["-t", "r/#", "--remove-retained", "-C", "4000", "-W", "30"], "");
    assert_eq!((out.status.code(), text(&out.stdout).lines().count()), (Some(0), 4_000), "{}", text(&out.stderr));
    let left = run(client(true, "sub", weir.mqtt, "5"), &["-t", "r/#", "--retained-only", "-W", "1"], "");
    assert_eq!(text(&left.stdout).lines().count(), 0);
}
