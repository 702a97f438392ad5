//! `weir sub`.
//!
//! Invariant: prints messages in the order in which they come, each once per delivery; a pipe that closes ends it quietly.
//! Must not know: versions of the protocol.

use super::{
    Connection, Failure, block_on, format,
    link::{Heard, Link, Message},
    parse_qos,
};
use clap::Args;
use std::{
    io::{ErrorKind, Write},
    time::Duration,
};
use weir_core::topic::{filter_is_valid, filter_matches};

/// After `-W`, as in mosquitto.
const TIMED_OUT: u8 = 27;
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Args, Clone, Debug)]
#[command(disable_help_flag = true)]
pub struct Subscribe {
    #[command(flatten)]
    connection: Connection,
    /// What to subscribe to; may be given several times.
    #[arg(short, long, required = true, value_name = "FILTER")]
    topic: Vec<String>,
    /// What not to print; may be given several times.
    #[arg(short = 'T', long, value_name = "FILTER")]
    filter_out: Vec<String>,
    #[arg(short, long, default_value = "0", value_parser = parse_qos)]
    qos: u8,
    /// End after so many messages.
    #[arg(short = 'C', value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after so many seconds, with exit code 27.
    #[arg(short = 'W', value_name = "SECONDS")]
    wait: Option<u64>,
    /// Print the topic too.
    #[arg(short, long)]
    verbose: bool,
    /// Print like this: %t topic, %p payload, %q QoS, %r retained, %l length, %j and %J JSON, %x and %X hex, %I and %U time, %P user properties, %m packet
    /// id, %% a percent sign; \n, \t and \\.
    #[arg(short = 'F', value_name = "FORMAT", conflicts_with = "verbose")]
    format: Option<String>,
    /// No line end after a message.
    #[arg(short = 'N')]
    no_line_end: bool,
    /// Not what was retained before.
    #[arg(short = 'R')]
    no_retained: bool,
    /// Only what was retained before.
    #[arg(long, conflicts_with = "no_retained")]
    retained_only: bool,
    /// Keep the session, and what comes for it meanwhile.
    #[arg(short = 'c', long, requires = "id")]
    disable_clean_session: bool,
}

/// Whether it goes on.
enum Then {
    More,
    Enough,
}

/// Prints what comes until there is enough.
pub fn subscribe(s: &Subscribe) -> Result<(), Failure> {
    for filter in s.topic.iter().chain(&s.filter_out) {
        if !filter_is_valid(filter) {
            return Err(Failure::new(format!("-t {filter}: not a topic filter; # stands alone at the end, + for one whole level")));
        }
    }
    let format = format::Format::parse(match (&s.format, s.verbose) {
        (Some(format), _) => format,
        (None, true) => "%t %p",
        (None, false) => "%p",
    })?;
    block_on(async {
        let time = async {
            match s.wait {
                Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
                None => std::future::pending().await,
            }
        };
        let mut signal = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).map_err(Failure::new)?;
        tokio::select! {
            ended = listen(s, &format) => ended,
            () = time => Err(Failure { code: TIMED_OUT, words: "timed out".into() }),
            _ = tokio::signal::ctrl_c() => Ok(()),
            _ = signal.recv() => Ok(()),
        }
    })
}

async fn listen(s: &Subscribe, format: &format::Format) -> Result<(), Failure> {
    let mut link = Link::new(&s.connection, "sub", !s.disable_clean_session);
    let (mut count, mut was_connected) = (0, false);
    loop {
        match link.hear().await {
            Ok(Heard::Connected) => {
                was_connected = true;
                link.subscribe(&s.topic, s.qos).await?;
            }
            Ok(Heard::Subscribed(codes)) => subscribed(s, &codes)?,
            Ok(Heard::Message(m)) => {
                if let Then::Enough = message(s, format, &m, &mut count)? {
                    link.goodbye().await?;
                    return Ok(());
                }
            }
            Ok(_) => {}
            Err(e) if was_connected && e.code == 1 => {
                eprintln!("weir: {}; it is tried again", e.words);
                tokio::time::sleep(AGAIN).await;
            }
            Err(e) => return Err(s.connection.unreachable(e)),
        }
    }
}

fn subscribed(s: &Subscribe, codes: &[u8]) -> Result<(), Failure> {
    let refused: Vec<&str> = codes.iter().zip(&s.topic).filter(|(code, _)| **code >= 0x80).map(|(_, filter)| &**filter).collect();
    if refused.is_empty() {
        if s.connection.debug {
            eprintln!("subscribed: {codes:?}");
        }
    } else if refused.len() == codes.len() {
        return Err(Failure::new("all subscriptions were refused"));
    } else {
        eprintln!("weir: refused: {}", refused.join(", "));
    }
    Ok(())
}

fn message(s: &Subscribe, format: &format::Format, m: &Message, count: &mut u64) -> Result<Then, Failure> {
    if s.no_retained && m.retain || s.filter_out.iter().any(|f| filter_matches(f, &m.topic)) {
        return Ok(Then::More);
    }
    if s.retained_only && !m.retain {
        return Ok(Then::Enough);
    }
    let mut line = format.print(m, std::time::SystemTime::now());
    if !s.no_line_end {
        line.push(b'\n');
    }
    let mut out = std::io::stdout().lock();
    match out.write_all(&line).and_then(|()| out.flush()) {
        Ok(()) => {}
        // Whoever read it has enough.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(Then::Enough),
        Err(e) => return Err(Failure::new(format!("standard output: {e}"))),
    }
    *count += 1;
    Ok(if s.count == Some(*count) { Then::Enough } else { Then::More })
}
