//! `weir sub`.
//!
//! Invariant: prints messages in the order in which they come, each once per delivery; a pipe that closes ends it quietly.
//! Must not know: versions of the protocol.

use super::{
    Connection, Failure, ProtocolVersion, block_on, format,
    link::{Heard, INFLIGHT, LOST, Link, Message, Wish},
    parse_qos,
    property::Properties,
};
use crate::terminal::{say, shown};
use clap::Args;
use std::{
    collections::VecDeque,
    io::{ErrorKind, Write},
    time::Duration,
};
use weir_core::{
    session::begin::Begin,
    topic::{filter_is_valid, filter_matches},
};

/// After `-W`, as in mosquitto.
const TIMED_OUT: u8 = 27;
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Args, Clone, Debug)]
#[command(disable_help_flag = true, disable_version_flag = true, version = crate::version())]
pub struct Subscribe {
    #[command(flatten)]
    connection: Connection,
    /// What to subscribe to; may be given several times.
    #[arg(short, long, required_unless_present = "url", value_name = "FILTER", allow_hyphen_values = true)]
    topic: Vec<String>,
    /// What to unsubscribe from, as soon as it is connected; may be given several times.
    #[arg(short = 'U', long, value_name = "FILTER")]
    unsubscribe: Vec<String>,
    /// What not to print; may be given several times.
    #[arg(short = 'T', long, value_name = "FILTER")]
    filter_out: Vec<String>,
    /// The highest QoS that messages may have.
    #[arg(short, long, default_value = "0", value_parser = parse_qos)]
    qos: u8,
    /// End after so many messages.
    #[arg(short = 'C', value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after so many seconds, with exit code 27.
    #[arg(short = 'W', value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    wait: Option<u64>,
    /// Print the topic too.
    #[arg(short, long)]
    verbose: bool,
    /// Print like this: %t topic, %p payload, %q QoS, %r retained, %l length, %m packet id, %j and %J
    /// JSON, %x and %X hex, %I and %U time; of version 5 %A topic alias, %C content type, %D
    /// correlation data, %E expiry, %F payload format, %P user properties, %R response topic, %S
    /// subscription identifier; %% a percent sign. %-10.5t has a width and a precision; @Y-@m-@d are
    /// those of strftime(3), @N nanoseconds; \n \t \r \0 \a \e \v \\.
    #[arg(short = 'F', value_name = "FORMAT")]
    format: Option<String>,
    /// JSON of %j and %J over several lines.
    #[arg(long)]
    pretty: bool,
    /// Print about this percentage of the messages, by chance.
    #[arg(long, value_name = "PERCENT", default_value_t = 100.0, hide_default_value = true)]
    random_filter: f64,
    /// Ask for retain flags as they were published; version 5.
    #[arg(long)]
    retain_as_published: bool,
    /// No line end after a message.
    #[arg(short = 'N')]
    no_line_end: bool,
    /// Not what was retained before.
    #[arg(short = 'R')]
    no_retained: bool,
    /// Only what was retained before.
    #[arg(long, conflicts_with = "no_retained")]
    retained_only: bool,
    /// End when the broker has acknowledged the subscriptions: with -c, the session is there then.
    #[arg(short = 'E')]
    exit_subscribed: bool,
    /// Delete what was retained before, as it comes.
    #[arg(long, conflicts_with = "no_retained")]
    remove_retained: bool,
    /// Keep the session, and what comes for it meanwhile.
    #[arg(short = 'c', long, requires = "id")]
    disable_clean_session: bool,
    /// Begin in the past of Weir's log: earliest, -15m, last:20 (that match), an offset, or a time like 2026-01-31T08:00:00Z. In version 5 %P and %j then say where
    /// each message stands.
    #[arg(long, value_name = "FROM", allow_hyphen_values = true, value_parser = parse_from)]
    from: Option<String>,
}

/// As the gateway has it: an offset and a time are also known without their names.
pub(crate) fn parse_from(text: &str) -> Result<String, String> {
    let bare = text.starts_with(|c: char| c.is_ascii_digit());
    let from = match text.contains([':', '-']) {
        true if bare => format!("time:{text}"),
        false if bare => format!("offset:{text}"),
        _ => text.to_owned(),
    };
    // The gateway tells the time.
    Begin::parse(&from, 0).map(|_| from).map_err(|e| e.to_string())
}

/// `STREAM/PARTITION:FROM-END` as people read it: with its last offset, where `END` is the one behind that.
fn words(lost: &str) -> String {
    let parts = || {
        let (partition, range) = lost.split_once(':')?;
        let (from, end) = range.split_once('-')?;
        Some((partition, from.parse().ok()?, end.parse().ok()?))
    };
    parts().map_or_else(
        || lost.to_owned(),
        |(partition, from, end)| format!("{} of {partition}", weir_log::records(&(weir_log::Offset(from)..weir_log::Offset(end)))),
    )
}

/// What the gateway says is lost, asked for positions: it stands before the place. Behind the place are the publisher's properties, whatever they say.
fn lost(properties: &[(String, String)]) -> impl Iterator<Item = &str> {
    let before = properties.iter().position(|(name, _)| name == "stream").unwrap_or(0);
    properties.iter().take(before).filter(|(name, _)| name == "lost").map(|(_, range)| &**range)
}

/// Where to go on when the connection has broken: a session that is kept knows by itself.
struct Place<'a> {
    s: &'a Subscribe,
    from: Option<String>,
}

impl Place<'_> {
    fn came(&mut self, m: &Message) {
        if self.s.from.is_some() && !self.s.connection.is_quiet() {
            lost(&m.properties.user_properties).for_each(|range| say(format_args!("weir: lost, by retention or damage: {}", words(range))));
        }
        let offset = m.properties.user_properties.iter().find(|(name, _)| name == "offset").and_then(|(_, at)| at.parse::<u64>().ok());
        if let Some(offset) = offset.filter(|_| self.from.is_some() && !m.retain) {
            self.from = Some(format!("offset:{}", offset + 1));
        }
    }

    fn subscribed(&mut self) {
        if self.s.disable_clean_session {
            self.from = None;
        }
    }
}

impl Subscribe {
    /// Those of `-t` and that of the URL.
    fn filters(&self) -> Vec<String> {
        self.connection.topic().into_iter().map(str::to_owned).chain(self.topic.iter().cloned()).collect()
    }

    fn wish<'a>(&self, from: Option<&'a str>) -> Wish<'a> {
        Wish { qos: self.qos, from, no_retained: self.no_retained, retain_as_published: self.retain_as_published }
    }

    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.connection.is_quiet()
    }
}

/// Whether it goes on.
enum Then {
    More,
    Enough,
}

/// Prints what comes until there is enough.
pub fn subscribe(s: &Subscribe) -> Result<(), Failure> {
    let filters = s.filters();
    let named = |flag: &'static str| move |f: &String| (flag, f.clone());
    let out = s.filter_out.iter().map(named("-T")).chain(s.unsubscribe.iter().map(named("-U")));
    for (flag, filter) in filters.iter().map(named("-t")).chain(out) {
        if !filter_is_valid(&filter) {
            return Err(Failure::new(format!("{flag} {filter}: not a topic filter; # stands alone at the end, + for one whole level")));
        }
    }
    let format = match (&s.format, s.verbose) {
        (Some(format), _) => format,
        (None, true) => "%t %p",
        (None, false) => "%p",
    };
    let format = format::Format::parse(format, s.pretty)?;
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
    let version = s.connection.version(if s.from.is_some() { ProtocolVersion::V5 } else { ProtocolVersion::V311 })?;
    let properties = Properties::parse(&s.connection.property)?;
    let filters = s.filters();
    let mut link = Link::new(&s.connection, "sub", version, !s.disable_clean_session, &properties)?;
    let (mut count, mut was_connected) = (0, false);
    let mut place = Place { s, from: s.from.clone() };
    let mut clearing = Clearing::default();
    let mut is_enough = false;
    loop {
        clearing.go_on(&mut link);
        if is_enough && clearing.is_done() {
            link.goodbye().await?;
            return Ok(());
        }
        match link.hear().await {
            Ok(Heard::Connected) => {
                was_connected = true;
                link.subscribe(&filters, s.wish(place.from.as_deref()), &properties).await?;
                for filter in &s.unsubscribe {
                    link.unsubscribe(filter, &properties).await?;
                }
            }
            Ok(Heard::Subscribed(codes, words)) => {
                subscribed(&filters, &codes, words)?;
                place.subscribed();
                if s.exit_subscribed {
                    link.goodbye().await?;
                    return Ok(());
                }
            }
            Ok(Heard::Message(m)) if !is_enough => {
                place.came(&m);
                is_enough = matches!(message(s, format, &m, &mut count)?, Then::Enough);
                if s.remove_retained && m.retain {
                    clearing.topics.push_back(m.topic);
                }
            }
            Ok(Heard::Published(_)) => clearing.asked = clearing.asked.saturating_sub(1),
            Ok(_) => {}
            Err(e) if was_connected && matches!(e.code, 1 | LOST) => {
                if !s.connection.is_quiet() {
                    say(format_args!("weir: {}; it is tried again", e.words));
                }
                tokio::time::sleep(AGAIN).await;
            }
            Err(e) => return Err(s.connection.unreachable(e)),
        }
    }
}

/// Topics whose retained messages are to be cleared, and how many were asked for and are not acknowledged.
#[derive(Default)]
struct Clearing {
    topics: VecDeque<String>,
    asked: u16,
}

impl Clearing {
    /// Asks for some more: whoever waits for room in the connection hears nothing, and nothing leaves.
    fn go_on(&mut self, link: &mut Link) {
        while self.asked < INFLIGHT
            && let Some(topic) = self.topics.front()
            && link.offer(topic, 1, true)
        {
            self.topics.pop_front();
            self.asked += 1;
        }
    }

    fn is_done(&self) -> bool {
        self.topics.is_empty() && self.asked == 0
    }
}

fn subscribed(filters: &[String], codes: &[u8], words: Option<String>) -> Result<(), Failure> {
    let words = words.map_or_else(String::new, |w| format!(": {w}"));
    let refused: Vec<&str> = codes.iter().zip(filters).filter(|(code, _)| **code >= 0x80).map(|(_, filter)| &**filter).collect();
    if refused.is_empty() {
        return Ok(());
    }
    if refused.len() == codes.len() {
        return Err(Failure::new(format!("all subscriptions were refused{words}")));
    }
    say(format_args!("weir: refused: {}{words}", refused.join(", ")));
    Ok(())
}

fn message(s: &Subscribe, format: &format::Format, m: &Message, count: &mut u64) -> Result<Then, Failure> {
    if s.no_retained && m.retain || s.filter_out.iter().any(|f| filter_matches(f, &m.topic)) {
        return Ok(Then::More);
    }
    if s.retained_only && !m.retain {
        return Ok(Then::Enough);
    }
    if s.random_filter < 100.0 && fastrand::f64() * 100.0 >= s.random_filter {
        return Ok(Then::More);
    }
    let mut line = match (m.payload.is_empty() && s.format.is_none(), s.verbose) {
        (false, _) => format.print(m, &jiff::ZonedDateTime::now()),
        // As mosquitto_sub prints what holds nothing.
        (true, true) => [&*shown(m.topic.as_bytes()), b" (null)"].concat(),
        (true, false) => Vec::new(),
    };
    let ends = s.format.is_some() || !line.is_empty();
    if ends && !s.no_line_end {
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
