//! The manual pages: one per command, from what the command line says of itself, with examples and exit
//! codes; and weir.toml(5), which is the commented file itself.
//!
//! Invariant: every command has an example, and every example is a command line that is understood.

use clap::Command;
use roff::{Roff, bold, roman};
use std::{
    fs::{File, OpenOptions},
    io,
    path::Path,
};

/// What is done, and the command that does it.
type Example = (&'static str, &'static str);

/// By the words behind `weir`.
const EXAMPLES: &[(&str, &[Example])] = &[
    (
        "",
        &[
            ("Run a gateway on this machine, with its data in ./weir-data", "weir run"),
            ("Look at one that is busy", "weir demo"),
            ("Publish a message and read it again from the past", "weir pub -t hello/world -m 'it works' -q 1"),
            ("", "weir sub -t 'hello/#' --from earliest -C 1 -v"),
        ],
    ),
    (
        "run",
        &[
            ("With a configuration file", "weir run -c /etc/weir/weir.toml"),
            (
                "On other ports, with its data elsewhere",
                "weir run --mqtt 127.0.0.1:1884 --http 127.0.0.1:8081 --admin 127.0.0.1:9465 --data /srv/weir",
            ),
        ],
    ),
    (
        "demo",
        &[
            ("A gateway with a fleet, for as long as it runs", "weir demo"),
            ("The fleet alone, for a gateway that runs", "weir demo --join 127.0.0.1:1883"),
        ],
    ),
    ("check-config", &[("What is in force, and what is wrong", "weir check-config -c /etc/weir/weir.toml")]),
    ("clients", &[("Who is connected", "weir clients"), ("End a connection; its session stays", "weir clients --disconnect sensor-7")]),
    (
        "sessions",
        &[
            ("All of them", "weir sessions"),
            ("Whose filters match a topic", "weir sessions --topic site/faro/room-1/climate"),
            ("End those that nobody has used for a month", "weir sessions delete --idle 30days"),
        ],
    ),
    (
        "sessions delete",
        &[("End one, connected or not", "weir sessions delete sensor-7"), ("End idle ones", "weir sessions delete --idle 30days")],
    ),
    ("groups", &[("All groups", "weir groups list"), ("The members of one", "weir groups describe workers")]),
    ("groups list", &[("For programs", "weir groups list -o json")]),
    ("groups describe", &[("Members, lag, what is pending", "weir groups describe workers")]),
    ("retained", &[("Topics with a retained message", "weir retained list 'site/#'"), ("Clear them", "weir retained clear 'site/old/#'")]),
    ("retained list", &[("Below one branch", "weir retained list 'site/#'")]),
    ("retained clear", &[("Below one branch", "weir retained clear 'site/old/#'")]),
    (
        "topics",
        &[("The newest value of each", "weir topics 'site/#'"), ("As it was a quarter of an hour ago", "weir topics 'site/#' --at -15m")],
    ),
    ("streams", &[("How much is kept", "weir streams"), ("In which files", "weir streams --segments")]),
    ("top", &[("Every two seconds", "weir top"), ("Once, for programs", "weir top --once -o json")]),
    ("explain", &[("Why a client gets nothing", "weir explain historian")]),
    (
        "log",
        &[
            ("Is every acknowledged message there?", "weir log verify --data /var/lib/weir"),
            ("Messages of a gateway that runs", "weir log cat --admin 127.0.0.1:9464 -t 'site/#' --json"),
        ],
    ),
    ("log verify", &[("The result for programs", "weir log verify --data /var/lib/weir -o json")]),
    (
        "log cat",
        &[
            ("From the files, with the gateway stopped", "weir log cat --data /var/lib/weir -t 'site/#'"),
            ("From the gateway that runs", "weir log cat --admin 127.0.0.1:9464 --from 1000 --until 2000"),
        ],
    ),
    ("log repair", &[("A state store that the gateway refuses", "weir log repair --data /var/lib/weir")]),
    (
        "pub",
        &[
            ("A message that is on disk when this returns", "weir pub -t hello/world -m 'it works' -q 1"),
            ("A line of standard input per message", "weir pub -t hello/lines -l -q 1"),
            ("With TLS and a property of version 5", "weir pub -h broker --cafile ca.crt -t a -m x -D publish content-type text/plain"),
        ],
    ),
    (
        "sub",
        &[
            ("What comes, with its topic", "weir sub -t 'hello/#' -v"),
            ("What came in the last quarter of an hour, and then what comes", "weir sub -t 'hello/#' --from -15m"),
            ("Each message with its time", "weir sub -t 'hello/#' -F '@H:@M:@S %t %p'"),
        ],
    ),
    (
        "bench",
        &[
            ("Ten publishers, one subscriber, every message checked", "weir bench fan-in -p 1883 --seconds 10"),
            ("The same as JSON", "weir bench fan-in -p 1883 --json"),
        ],
    ),
    ("completions", &[("For bash", "weir completions bash")]),
    ("man", &[("Into the directory of man(1)", "weir man /usr/local/share/man/man1")]),
];

const DONE: (&str, &str) = ("0", "It is done.");
const FAILED: (&str, &str) = ("1", "It cannot be done; standard error says why.");
const USAGE: (&str, &str) = ("2", "The command line is not understood.");

/// Exit codes by the words behind `weir`; others have those of `ADMIN`.
const EXITS: &[(&str, &[(&str, &str)])] = &[
    (
        "run",
        &[
            ("0", "It was stopped by SIGTERM or SIGINT, and the log is whole."),
            ("1", "It cannot start as it is configured, or something is damaged."),
            USAGE,
            ("70", "A task that all others need has ended: a bug. What was acknowledged is on disk."),
            ("74", "The state store could not be written. Nothing more was acknowledged."),
            ("75", "It cannot start for want of room or descriptors; it may later."),
        ],
    ),
    (
        "check-config",
        &[("0", "A gateway would start with it."), ("1", "Something is wrong; each error names key, line and an example."), USAGE],
    ),
    (
        "log verify",
        &[("0", "Everything that was acknowledged can be read."), ("1", "Something cannot, or the directory cannot be read."), USAGE],
    ),
    (
        "pub",
        &[
            ("0", "Everything was acknowledged; with QoS 0, has left."),
            ("1", "Wrong usage, no connection, or a refused message."),
            ("2", "The broker sent something that is not MQTT."),
            ("CODE", "The broker refused the connection with this code of its CONNACK."),
            ("7", "The connection was lost."),
        ],
    ),
    (
        "sub",
        &[
            ("0", "The wanted number of messages was printed, or it was stopped."),
            ("1", "Wrong usage, no connection, or a refused subscription."),
            ("2", "The broker sent something that is not MQTT."),
            ("CODE", "The broker refused the connection with this code of its CONNACK."),
            ("7", "The connection was lost before it was there."),
            ("27", "The time of -W is over."),
        ],
    ),
    (
        "bench",
        &[
            ("0", "Every message arrived once and in order."),
            ("1", "One was lost, repeated or out of order, or there was no broker."),
            USAGE,
        ],
    ),
];

/// The configuration file with its comments.
const CONFIGURATION: &str = include_str!("../../weir.toml");

fn exits(path: &str) -> &'static [(&'static str, &'static str)] {
    let path = if path == "demo" { "run" } else { path.strip_prefix("bench").map_or(path, |_| "bench") };
    EXITS.iter().find(|(of, _)| *of == path).map_or(&[DONE, FAILED, USAGE], |(_, all)| all)
}

fn examples(path: &str) -> Vec<(String, String)> {
    let owned = |all: &[Example]| all.iter().map(|(what, line)| ((*what).into(), (*line).into())).collect();
    match EXAMPLES.iter().find(|(of, _)| *of == path) {
        Some((_, all)) => owned(all),
        // Those that measure are called alike.
        None => vec![("Against a broker on this machine".into(), format!("weir {path}"))],
    }
}

/// Writes all pages into `directory`, which is made.
///
/// # Errors
/// The directory or a file that cannot be written.
pub fn write(directory: &Path, command: Command) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(command.clone(), directory)?;
    each(&command.disable_help_subcommand(true), "", &mut |_, path| {
        let name = if path.is_empty() { "weir".into() } else { format!("weir-{}", path.replace(' ', "-")) };
        let mut page = OpenOptions::new().append(true).open(directory.join(format!("{name}.1")))?;
        sections(path).to_writer(&mut page)
    })?;
    configuration().to_writer(&mut File::create(directory.join("weir.toml.5"))?)
}

/// Calls `see` for a command and all below it, with the words behind `weir`.
fn each(command: &Command, path: &str, see: &mut impl FnMut(&Command, &str) -> io::Result<()>) -> io::Result<()> {
    see(command, path)?;
    for below in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        let path = format!("{path} {}", below.get_name());
        each(below, path.trim(), see)?;
    }
    Ok(())
}

fn sections(path: &str) -> Roff {
    let mut page = Roff::new();
    page.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in exits(path) {
        page.control("TP", []).text([bold(*code)]).text([roman(*meaning)]);
    }
    page.control("SH", ["EXAMPLES"]);
    for (what, line) in examples(path) {
        if !what.is_empty() {
            page.control("PP", []).text([roman(format!("{what}:"))]);
        }
        page.control("RS", ["4"]).control("nf", []).text([roman(line)]).control("fi", []).control("RE", []);
    }
    page.control("SH", ["SEE ALSO"]).text([bold("weir"), roman("(1), "), bold("weir.toml"), roman("(5)")]);
    page
}

fn configuration() -> Roff {
    let mut page = Roff::new();
    page.control("TH", ["weir.toml", "5", "", concat!("weir ", env!("CARGO_PKG_VERSION")), ""]);
    page.control("SH", ["NAME"]).text([roman("weir.toml - configuration of weir(1)")]);
    page.control("SH", ["DESCRIPTION"]).text([roman(
        "The file that weir run -c names. Every key with its default and what it means, as it stands in the file of the package. \
         weir check-config -c FILE says what is in force, and what is wrong.",
    )]);
    page.control("SH", ["KEYS"]).control("nf", []);
    for line in CONFIGURATION.lines() {
        page.text([roman(line)]);
    }
    page.control("fi", []);
    page.control("SH", ["SEE ALSO"]).text([
        bold("weir"),
        roman("(1), "),
        bold("weir-run"),
        roman("(1), "),
        bold("weir-check-config"),
        roman("(1)"),
    ]);
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    /// Words of a line as a shell takes them; single quotes alone are used.
    fn words(line: &str) -> Vec<String> {
        let parts = line.split('\'').enumerate();
        let split = |(i, part): (usize, &str)| match i % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect(),
            _ => vec![part.to_owned()],
        };
        parts.flat_map(split).collect()
    }

    #[test]
    fn every_example_is_understood_and_every_command_has_one() {
        let mut seen = Vec::new();
        each(&crate::Cli::command(), "", &mut |_, path| {
            for (_, line) in examples(path) {
                let parsed = crate::Cli::command().try_get_matches_from(words(&line));
                assert!(parsed.is_ok(), "{path}: {line}: {}", parsed.err().map(|e| e.to_string()).unwrap_or_default());
            }
            seen.push(path.to_owned());
            Ok(())
        })
        .expect("nothing is written");
        for (path, _) in EXAMPLES.iter() {
            assert!(seen.iter().any(|one| one == path), "{path}: there is no such command");
        }
        for (path, _) in EXITS {
            assert!(seen.iter().any(|one| one == path), "{path}: there is no such command");
        }
    }

    #[test]
    fn every_flag_and_command_has_help() {
        let mut without = Vec::new();
        each(&crate::Cli::command(), "", &mut |command, path| {
            let silent = command.get_arguments().filter(|a| a.get_help().is_none() && !a.is_hide_set());
            without.extend(silent.map(|a| format!("{path}: {}", a.get_id())));
            without.extend(command.get_about().is_none().then(|| path.to_owned()));
            Ok(())
        })
        .expect("nothing is written");
        assert!(without.is_empty(), "no help: {without:?}");
    }
}
