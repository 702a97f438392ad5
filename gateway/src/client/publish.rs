//! `weir pub`.
//!
//! Invariant: ends with 0 only when everything that was read has left (QoS 0) or was acknowledged.
//! Must not know: versions of the protocol.

use super::{
    Connection, Failure, ProtocolVersion, block_on,
    link::{Heard, INFLIGHT, Link},
    parse_qos,
};
use clap::{ArgGroup, Args};
use rumqttc::v5::mqttbytes::v5::PublishProperties;
use std::{
    io::{BufRead, Read},
    path::PathBuf,
    time::Duration,
};
use tokio::sync::mpsc::{Receiver, Sender, channel};

#[derive(Args, Clone, Debug)]
#[command(disable_help_flag = true, group = ArgGroup::new("what").required(true))]
pub struct Publish {
    #[command(flatten)]
    connection: Connection,
    /// Topic to publish to.
    #[arg(short, long)]
    topic: String,
    /// The message.
    #[arg(short, long, group = "what")]
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
    #[arg(short, long, default_value = "0", value_parser = parse_qos)]
    qos: u8,
    /// Keep it for who subscribes later.
    #[arg(short, long)]
    retain: bool,
    /// Keep the session.
    #[arg(short = 'c', long, requires = "id")]
    disable_clean_session: bool,
    /// Publish it so many times.
    #[arg(long, default_value_t = 1, conflicts_with_all = ["stdin_line"], value_name = "COUNT")]
    repeat: u64,
    /// A property of version 5: `publish` and user-property NAME VALUE, content-type VALUE, response-topic VALUE, or message-expiry-interval SECONDS; may be given
    /// several times.
    #[arg(short = 'D', long, num_args = 3..=4, action = clap::ArgAction::Append, value_names = ["COMMAND", "PROPERTY", "VALUE", "VALUE"])]
    property: Vec<String>,
    /// Seconds between, as in 0.5.
    #[arg(long, default_value_t = 0.0, value_name = "SECONDS")]
    repeat_delay: f64,
}

impl Publish {
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.connection.is_quiet()
    }
}

/// Publishes, and ends.
pub fn publish(p: &Publish) -> Result<(), Failure> {
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
        let line = line.map(|mut line| {
            line.pop_if(|last| *last == b'\r');
            line
        });
        if tx.blocking_send(line.map_err(|e| Failure::new(format!("standard input: {e}")))).is_err() {
            return;
        }
    }
}

/// What `-D` says, the values of all of them in a row.
fn properties(said: &[String]) -> Result<PublishProperties, Failure> {
    let mut all = PublishProperties::default();
    let mut rest = said.iter().map(String::as_str);
    while let (Some(command), Some(property), Some(value)) = (rest.next(), rest.next(), rest.next()) {
        match (command, property) {
            ("publish", "user-property") => {
                let named = rest.next().ok_or_else(|| Failure::new(format!("-D publish user-property {value}: NAME and VALUE")))?;
                all.user_properties.push((value.into(), named.into()));
            }
            ("publish", "content-type") => all.content_type = Some(value.into()),
            ("publish", "response-topic") => all.response_topic = Some(value.into()),
            ("publish", "message-expiry-interval") => {
                let seconds = value.parse().map_err(|e| Failure::new(format!("-D publish message-expiry-interval {value}: {e}")))?;
                all.message_expiry_interval = Some(seconds);
            }
            _ => {
                let known = "publish user-property, content-type, response-topic, message-expiry-interval";
                return Err(Failure::new(format!("-D {command} {property}: there are {known}")));
            }
        }
    }
    Ok(all)
}

async fn send(p: &Publish, mut payloads: Receiver<Result<Vec<u8>, Failure>>) -> Result<(), Failure> {
    let properties = properties(&p.property)?;
    let version = p.connection.version(if p.property.is_empty() { ProtocolVersion::V311 } else { ProtocolVersion::V5 })?;
    if version == ProtocolVersion::V311 && !p.property.is_empty() {
        return Err(Failure::new("-D is for version 5: add -V 5"));
    }
    let mut link = Link::new(&p.connection, "pub", version, !p.disable_clean_session)?;
    let (mut connected, mut more, mut sent, mut done, mut refused) = (false, true, 0u64, 0u64, 0u64);
    while more || done < sent {
        let room = connected && more && sent - done < u64::from(INFLIGHT);
        tokio::select! {
            heard = link.hear() => match heard {
                Ok(Heard::Connected) => connected = true,
                Ok(Heard::Published(reason)) => {
                    done += 1;
                    refused += u64::from(reason >= 0x80);
                }
                Ok(_) => {}
                Err(e) if done < sent => return Err(Failure::new(format!("{}; {} of {sent} messages were not acknowledged", e.words, sent - done))),
                Err(e) if !connected => return Err(p.connection.unreachable(e)),
                Err(e) => return Err(e),
            },
            payload = payloads.recv(), if room => match payload {
                Some(payload) => {
                    link.publish(&p.topic, p.qos, p.retain, payload?, &properties).await?;
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
