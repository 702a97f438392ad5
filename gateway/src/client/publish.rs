//! `weir pub`.
//!
//! Invariant: ends with 0 only when everything that was read has left (QoS 0) or was acknowledged.
//! Must not know: versions of the protocol.

use super::{
    Connection, Failure, ProtocolVersion, block_on,
    link::{Heard, INFLIGHT, Link},
    parse_qos,
    property::Properties,
};
use clap::{ArgGroup, Args};
use std::{
    io::{BufRead, Read},
    path::PathBuf,
    time::Duration,
};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use weir_core::topic::topic_is_valid;

#[derive(Args, Clone, Debug)]
#[command(disable_help_flag = true, disable_version_flag = true, version = crate::version(), group = ArgGroup::new("what").required(true))]
pub struct Publish {
    #[command(flatten)]
    connection: Connection,
    /// Topic to publish to.
    #[arg(short, long, required_unless_present = "url", allow_hyphen_values = true)]
    topic: Option<String>,
    /// The message.
    #[arg(short, long, group = "what", allow_hyphen_values = true)]
    message: Option<String>,
    /// The message is what this file holds.
    #[arg(short, long, group = "what", value_name = "FILE")]
    file: Option<PathBuf>,
    /// A message per line of standard input.
    #[arg(short = 'l', long, group = "what")]
    stdin_line: bool,
    /// The message is what standard input gives.
    #[arg(short = 's', long, group = "what")]
    stdin_file: bool,
    /// A message of no bytes; with `-r` it deletes what is retained.
    #[arg(short, long, group = "what")]
    null_message: bool,
    /// QoS of the messages.
    #[arg(short, long, default_value = "0", value_parser = parse_qos)]
    qos: u8,
    /// Keep it for those who subscribe later.
    #[arg(short, long)]
    retain: bool,
    /// Keep the session.
    #[arg(short = 'c', long, requires = "id")]
    disable_clean_session: bool,
    /// Publish it so many times.
    #[arg(long, default_value_t = 1, conflicts_with_all = ["stdin_line"], value_name = "COUNT")]
    repeat: u64,
    /// Seconds between, as in 0.5.
    #[arg(long, default_value_t = 0.0, value_name = "SECONDS")]
    repeat_delay: f64,
}

impl Publish {
    fn topic(&self) -> &str {
        self.topic.as_deref().or(self.connection.topic()).unwrap_or_default()
    }

    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.connection.is_quiet()
    }
}

/// Publishes, and ends.
pub fn publish(p: &Publish) -> Result<(), Failure> {
    let topic = p.topic();
    if !topic_is_valid(topic) {
        return Err(Failure::new(format!("-t {topic:?}: not a topic; it has 1 to 65535 bytes and neither # nor +")));
    }
    let pause = Duration::try_from_secs_f64(p.repeat_delay).map_err(|e| Failure::new(format!("--repeat-delay: {e}")))?;
    let whole = whole(p)?;
    block_on(async {
        // A little ahead: what is read waits for acknowledgements, not the other way round.
        let (tx, rx) = channel(usize::from(INFLIGHT));
        match whole {
            Some(payload) => drop(tokio::spawn(repeat(payload, p.repeat, pause, tx))),
            None => drop(std::thread::spawn(move || lines(&tx))),
        }
        send(p, rx).await
    })
}

/// The one message; `None`: a message per line.
fn whole(p: &Publish) -> Result<Option<Vec<u8>>, Failure> {
    if let Some(message) = &p.message {
        return Ok(Some(message.clone().into_bytes()));
    }
    if let Some(file) = &p.file {
        return std::fs::read(file).map(Some).map_err(|e| Failure::new(format!("{}: {e}", file.display())));
    }
    if p.stdin_file {
        let mut payload = Vec::new();
        std::io::stdin().read_to_end(&mut payload).map_err(|e| Failure::new(format!("standard input: {e}")))?;
        return Ok(Some(payload));
    }
    Ok(p.null_message.then(Vec::new))
}

async fn repeat(payload: Vec<u8>, times: u64, pause: Duration, tx: Sender<Result<Vec<u8>, Failure>>) {
    for n in 0..times {
        if n > 0 {
            tokio::time::sleep(pause).await;
        }
        if tx.send(Ok(payload.clone())).await.is_err() {
            return;
        }
    }
}

fn lines(tx: &Sender<Result<Vec<u8>, Failure>>) {
    for line in std::io::stdin().lock().split(b'\n') {
        if tx.blocking_send(line.map_err(|e| Failure::new(format!("standard input: {e}")))).is_err() {
            return;
        }
    }
}

async fn send(p: &Publish, mut payloads: Receiver<Result<Vec<u8>, Failure>>) -> Result<(), Failure> {
    let properties = Properties::parse(&p.connection.property)?;
    let version = p.connection.version(ProtocolVersion::V311)?;
    let topic = p.topic();
    let most = u64::from(p.connection.max_inflight());
    let mut link = Link::new(&p.connection, "pub", version, !p.disable_clean_session, &properties)?;
    let (mut connected, mut more, mut sent, mut done, mut refused) = (false, true, 0u64, 0u64, 0u64);
    while more || done < sent {
        let room = connected && more && sent - done < most;
        tokio::select! {
            heard = link.hear() => match heard {
                Ok(Heard::Connected) => connected = true,
                Ok(Heard::Published(reason)) => {
                    done += 1;
                    refused += u64::from(reason >= 0x80);
                }
                Ok(_) => {}
                Err(e) if done < sent => {
                    let words = format!("{}; {} of {sent} messages were not acknowledged", e.words, sent - done);
                    return Err(Failure { words, ..e });
                }
                Err(e) if !connected => return Err(p.connection.unreachable(e)),
                Err(e) => return Err(e),
            },
            payload = payloads.recv(), if room => match payload {
                Some(payload) => {
                    link.publish(topic, p.qos, p.retain, payload?, &properties.publish).await?;
                    sent += 1;
                }
                None => more = false,
            }
        }
    }
    link.goodbye().await?;
    if p.connection.debug {
        eprintln!("{sent} messages, {refused} refused");
    }
    if refused > 0 {
        return Err(Failure::new(format!("{refused} of {sent} messages were refused")));
    }
    Ok(())
}
