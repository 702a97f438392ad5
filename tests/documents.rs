//! Every command of the documents, as it is written there: on a machine of its own, where the default
//! ports are free and nothing else can be reached. A command that has no line here fails.

mod support;

use std::{
    collections::BTreeMap,
    fs::{File, read_to_string},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};
use support::{Guard, binary, eventually, signal};

const DOCUMENTS: [&str; 10] = [
    "README.md",
    "ARCHITECTURE.md",
    "docs/clients.md",
    "docs/feed.md",
    "docs/messages.md",
    "docs/operating.md",
    "docs/page.md",
    "docs/performance.md",
    "docs/weir-with.md",
    "grafana/README.md",
];

/// What a line begins with that is to be typed.
const PROGRAMS: [&str; 12] = [
    "weir",
    "cargo",
    "curl",
    "docker",
    "examples/measure.py",
    "grafana-server",
    "journalctl",
    "mosquitto_pub",
    "mosquitto_sub",
    "prometheus",
    "promtool",
    "./test.sh",
];

/// What is said by the gateway, or names a flag whose command stands elsewhere.
const NO_COMMANDS: [&str; 4] = ["weir ready", "weir VERSION (COMMIT): mqtt …", "weir clients --disconnect", "weir log cat --admin"];

/// Words that stand for something of the reader's.
const STAND_INS: [(&str, &str); 9] = [
    ("CLIENT…", "sensor-8"),
    ("CLIENT", "sensor-7"),
    ("GROUP", "workers"),
    ("FILTER", "'site/#'"),
    ("COPY", "stopped"),
    ("DIRECTORY", "manual"),
    ("DIR", "stopped"),
    ("--topic T", "--topic site/a"),
    ("cargo run --release -- ", "weir "),
];

/// A command, and what it is to print. In this order.
const RUN: &[(&str, &str)] = &[
    (
        "mosquitto_sub -t 'hello/#' -v &\nmosquitto_pub -t hello/world -m 'it is on disk when this returns' -q 1",
        "hello/world it is on disk when this returns",
    ),
    (
        "weir sub -t 'hello/#' -v -C 1 &\nweir pub -t hello/world -m 'on disk' -q 1\n\
         weir sub -t 'hello/#' --from earliest -C 1 -F '@H:@M:@S %t %p'",
        " hello/there acknowledged since",
    ),
    ("mosquitto_sub -i ID -t x -E", ""),
    // What came while it was away, once it has been there.
    ("mosquitto_sub -t 'hello/#' -q 1 -c -i me", "acknowledged since"),
    ("weir sub -t 'hello/#' --from -15m", "on disk"),
    ("weir sub -t '$SYS/events/+/CLIENT' --from -1h", "sensor-7"),
    ("weir sub -t '$SYS/events/+/sensor-7' --from -1h", "sensor-7"),
    ("weir sub -t 'spBv1.0/plant/#' --from -1h -F '@H:@M:@S %t %l bytes'", " spBv1.0/plant/NBIRTH/a 5 bytes"),
    ("curl -N 'http://127.0.0.1:8080/events?filter=site/%23&latest_only=true'", "site/a"),
    ("weir explain CLIENT", "sensor-7"),
    ("weir clients", "sensor-7"),
    ("weir sessions --topic T", "sensor-7"),
    ("weir topics --at -15m", ""),
    ("weir groups list", "workers"),
    ("weir groups describe GROUP", "workers"),
    ("weir retained list", "site/a"),
    ("weir streams", "default/0"),
    ("weir log cat --admin 127.0.0.1:9464", "hello/world"),
    ("weir log verify --data DIR", "records [0, 1)"),
    ("weir log verify --data COPY", "records [0, 1)"),
    ("weir log cat --data DIR", "before"),
    ("weir log repair --data DIR", ""),
    ("weir completions bash", "_weir"),
    ("weir man DIRECTORY", ""),
    ("weir run --help", "--allow-anonymous"),
    ("weir check-config", "retention_bytes = "),
    ("weir demo --join", "speak to 127.0.0.1:1883"),
    ("weir clients --disconnect CLIENT", "is told to go"),
    ("weir sessions delete CLIENT", "sessions ended: 1"),
    ("weir sessions delete CLIENT…", "sessions ended: 1"),
    ("weir retained clear FILTER", "retained messages cleared: "),
];

/// Commands that another test runs, or why none does.
const ELSEWHERE: &[(&str, &str)] = &[
    ("cargo run --release -- demo", "tests/demo.rs"),
    ("weir demo", "tests/demo.rs"),
    ("cargo run --release -- run", "this test: the gateway that is asked"),
    ("weir run -c weir.toml", "tests/config.rs"),
    ("cargo run --example device -- 127.0.0.1:1883 sensor-7 100", "tests/examples.rs"),
    ("./test.sh fast", "itself"),
    ("./test.sh", "itself"),
    ("./test.sh nightly", "itself"),
    ("cargo test -p weir-tests --test memory", "tests/memory.rs"),
    ("cargo install cargo-deb && cargo deb -p weir --profile dist", "tests/package.rs"),
    ("docker compose up", "no Docker where the tests run"),
    ("promtool test rules grafana/prometheus/rules/weir_test.yml", "tests/grafana.rs"),
    ("prometheus --config.file=grafana/prometheus/prometheus.yml", "tests/grafana.rs"),
    ("grafana-server", "no Grafana in the registries that tests use"),
    ("examples/measure.py --rounds 3 --out docs", "an hour of figures"),
    ("weir bench", "tests/bench.rs"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn is_command(line: &str) -> bool {
    PROGRAMS.iter().any(|p| line.strip_prefix(p).is_some_and(|rest| rest.is_empty() || rest.starts_with(' ')))
}

/// All commands of a document: blocks line by line in one, and what stands between backquotes.
fn commands(document: &str) -> Vec<String> {
    let (mut found, mut block, mut prose) = (Vec::new(), None::<Vec<String>>, String::new());
    for line in read_to_string(root().join(document)).unwrap().lines() {
        if line.starts_with("```") {
            match block.take() {
                Some(lines) => found.push(lines.join("\n")),
                None => block = Some(Vec::new()),
            }
            continue;
        }
        match &mut block {
            Some(lines) => {
                // Without a comment behind it, and without what is set for it alone.
                let line = line.split("  #").next().unwrap_or_default().trim();
                let line = line.trim_start_matches(|c: char| c.is_ascii_uppercase() || c == '_');
                let line = if line.starts_with('=') { line.rsplit_once("\" ").map_or(line, |(_, rest)| rest) } else { line };
                lines.extend(is_command(line).then(|| line.to_owned()));
            }
            None => prose += &(line.to_owned() + "\n"),
        }
    }
    let spans = prose.split('`').skip(1).step_by(2).map(|span| span.split_whitespace().collect::<Vec<_>>().join(" "));
    found.extend(spans.filter(|span| is_command(span)));
    found.retain(|one| !one.is_empty());
    found
}

/// A gateway with default ports, in a network that has nothing else; and something in its log.
struct Machine {
    dir: tempfile::TempDir,
    weir: Guard,
}

/// Clients, and a log of a gateway that has ended.
const OTHERS: &str = "mosquitto_pub -t site/a -r -m 20.5
mosquitto_pub -t spBv1.0/plant/NBIRTH/a -m birth
mkdir manual
weir run --data stopped --mqtt 127.0.0.1:2883 --http 127.0.0.1:2880 --admin 127.0.0.1:2890 > second &
until grep -q ready second; do sleep 0.1; done
mosquitto_pub -p 2883 -t before -m x -q 1
kill $!
wait $!
mosquitto_sub -t '$share/workers/jobs' &
mosquitto_sub -i sensor-8 -c -q 1 -t x -E
mosquitto_sub -i me -c -q 1 -t 'hello/#' -E
mosquitto_pub -t hello/there -m 'acknowledged since' -q 1
mosquitto_sub -i sensor-7 -c -q 1 -t 'site/#' &
touch ready
wait";

/// Brings the loopback up without a tool that a small system may lack: SIOCSIFFLAGS, IFF_UP.
const LOOPBACK: &str =
    "python3 -c \"import fcntl, socket, struct; fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sH22x', b'lo', 1))\"";

impl Machine {
    fn start() -> Self {
        let dir = support::dir();
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        std::os::unix::fs::symlink(binary(), dir.path().join("bin/weir")).unwrap();
        let begin = format!("{LOOPBACK} && exec {} run --durability os", binary().display());
        let mut weir = Command::new("unshare");
        weir.args(["--net", "bash", "-c", &begin]).current_dir(dir.path()).stdin(Stdio::null());
        weir.stdout(File::create(dir.path().join("said")).unwrap());
        let machine = Self { weir: Guard(weir.spawn().unwrap()), dir };
        eventually("it is ready", Duration::from_secs(30), || {
            read_to_string(machine.dir.path().join("said")).unwrap().contains("weir ready")
        });
        machine
    }

    fn command(&self, script: &str, said: &Path) -> Guard {
        let mut command = Command::new("nsenter");
        let path = format!("{}:{}", self.dir.path().join("bin").display(), std::env::var("PATH").unwrap());
        command.arg("--net").arg("--target").arg(self.weir.0.id().to_string()).args(["bash", "-c", script]);
        command.env("PATH", path).current_dir(self.dir.path()).stdin(Stdio::null()).process_group(0);
        let out = File::create(said).unwrap();
        command.stdout(out.try_clone().unwrap()).stderr(out);
        Guard(command.spawn().unwrap())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Prints what is wanted, and ends well or goes on until it is interrupted.
    fn run(&self, written: &str, wanted: &str) -> Result<(), String> {
        let typed = STAND_INS.iter().fold(written.to_owned(), |line, (word, real)| line.replace(word, real));
        // A person types one line after the other.
        let typed = typed.replace('\n', "\nsleep 1\n");
        let said = self.file("out");
        let mut process = self.command(&typed, &said);
        let mut ended = None;
        for _ in 0..400 {
            std::thread::sleep(Duration::from_millis(25));
            ended = process.0.try_wait().unwrap();
            let is_printed = read_to_string(&said).unwrap_or_default().contains(wanted);
            if ended.is_some_and(|status| !status.success()) || (is_printed && (ended.is_some() || !wanted.is_empty())) {
                break;
            }
        }
        let group = format!("-{}", process.0.id());
        let _ = Command::new("kill").args(["-INT", "--", &group]).stderr(Stdio::null()).status();
        if ended.is_none() {
            process.wait(Duration::from_secs(10));
        }
        let text = read_to_string(&said).unwrap_or_default();
        let is_well = ended.is_none_or(|status| status.success()) && text.contains(wanted);
        if is_well { Ok(()) } else { Err(format!("{typed}: ended {ended:?}, wanted {wanted:?}:\n{text}")) }
    }
}

#[test]
fn every_command_of_the_documents_does_what_it_is_for() {
    let mut written: BTreeMap<String, &str> = BTreeMap::new();
    for document in DOCUMENTS {
        written.extend(commands(document).into_iter().map(|one| (one, document)));
    }
    assert!(written.len() > 40, "{written:?}");
    let machine = Machine::start();
    let _others = machine.command(OTHERS, &machine.file("others"));
    eventually("the others are there", Duration::from_secs(20), || machine.file("ready").exists());
    let mut failed = Vec::new();
    for (command, wanted) in RUN {
        if written.remove(*command).is_none() {
            failed.push(format!("{command}: no document has it"));
        }
        failed.extend(machine.run(command, wanted).err());
    }
    for (command, document) in written.iter().flat_map(|(block, document)| block.lines().map(move |line| (line, document))) {
        let is_there = |(known, test): &(&str, &str)| {
            let is_meant = command == *known || command.starts_with(&format!("{known} "));
            is_meant && (!test.starts_with("tests/") || root().join(test).exists())
        };
        if NO_COMMANDS.contains(&command) || ELSEWHERE.iter().any(is_there) || PROGRAMS[1..].contains(&command) {
            continue;
        }
        // The name of a command.
        let is_name = command.chars().all(|c| c.is_ascii_lowercase() || c == ' ' || c == '-');
        if is_name {
            failed.extend(machine.run(&format!("{command} --help"), "Usage: weir").err());
        } else {
            failed.push(format!("{document}: `{command}` has no line in this test"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    signal(machine.weir.0.id(), "TERM");
}
