//! The commands that ask a running gateway over its admin API: tables for people, JSON for programs.
//!
//! Invariant: says what the gateway says, and nothing that it guesses.
//! Must not know: anything that the API does not tell.

use crate::api::{
    change::{ClearedInfo, RetainedInfo, RetainedPart},
    clients::{ClientInfo, ClientsInfo},
    groups::{GroupInfo, GroupsInfo},
    heavy,
    log::{MessageInfo, PartitionInfo, SegmentInfo, SegmentsInfo, StreamsInfo, TopicsInfo},
    past::RecordInfo,
    process::RatesInfo,
    sessions::{PlaceInfo, SessionInfo, SessionsInfo},
};
use clap::{Args, Subcommand, ValueEnum};
use comfy_table::{Table, presets};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fmt::Write as _,
    io::{IsTerminal, Write},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// A gateway that takes longer has other troubles: it gives up itself after 10 s for each thing that it waits for.
const PATIENCE: Duration = Duration::from_secs(40);

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "not a time; as in 30days, 12h or 90s".into())
}

/// `HOST:PORT`, also as the address that a start says.
fn place(text: &str) -> Result<String, String> {
    let place = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    let is_place = place.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    is_place.then(|| place.to_owned()).ok_or_else(|| "not a host and a port; as in 127.0.0.1:9464".into())
}

#[derive(Args, Clone, Debug)]
pub struct Admin {
    /// The admin port of the gateway.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:9464", env = "WEIR_ADMIN", value_parser = place)]
    admin: String,
    /// How the answer is printed.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Args, Clone, Debug)]
pub struct Clients {
    #[command(flatten)]
    admin: Admin,
    /// End the connection of this client; its session stays.
    #[arg(long, value_name = "CLIENT")]
    disconnect: Option<String>,
}

#[derive(Args, Clone, Debug)]
pub struct Streams {
    #[command(flatten)]
    admin: Admin,
    /// The files of each.
    #[arg(long)]
    segments: bool,
}

#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Sessions {
    #[command(flatten)]
    admin: Admin,
    /// Only sessions that get messages of this topic.
    #[arg(short, long, value_name = "TOPIC")]
    topic: Option<String>,
    #[command(subcommand)]
    change: Option<Change>,
}

#[derive(Subcommand, Clone, Debug)]
enum Change {
    /// End sessions, connected or not: what waits for them is forgotten.
    Delete(Delete),
}

#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
struct WhichSessions {
    /// Their client ids.
    clients: Vec<String>,
    /// All that have had no connection for so long, as in `30days`.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    idle: Option<Duration>,
}

#[derive(Args, Clone, Debug)]
struct Delete {
    #[command(flatten)]
    which: WhichSessions,
    #[command(flatten)]
    admin: Admin,
}

#[derive(Subcommand, Clone, Debug)]
pub enum Groups {
    /// All groups: members, lag, what is pending.
    List {
        #[command(flatten)]
        admin: Admin,
    },
    /// The groups of this name: where they are, and what each member has.
    Describe {
        /// Its name, as in $share/GROUP/FILTER.
        group: String,
        #[command(flatten)]
        admin: Admin,
    },
}

#[derive(Subcommand, Clone, Debug)]
pub enum Retained {
    /// Topics with a retained message.
    List {
        /// Those that match, as in `site/#`.
        #[arg(default_value = "#")]
        filter: String,
        #[command(flatten)]
        admin: Admin,
    },
    /// Clear retained messages: an empty one is published to each topic. What there was stays in the log.
    Clear {
        /// Topics that match, as in `site/#`.
        filter: String,
        #[command(flatten)]
        admin: Admin,
    },
}

#[derive(Args, Clone, Debug)]
pub struct Topics {
    /// Only topics that match; without it all but those of `$`.
    filter: Option<String>,
    #[command(flatten)]
    admin: Admin,
    /// As it was then: -15m, a time like 2026-01-31T08:00:00Z, or an offset.
    #[arg(long, value_name = "AT", allow_hyphen_values = true, value_parser = crate::client::parse_from)]
    at: Option<String>,
    /// So many at most.
    #[arg(short, long, default_value_t = 1_000)]
    limit: usize,
}

#[derive(Args, Clone, Debug)]
pub struct Top {
    #[command(flatten)]
    admin: Admin,
    /// Look once instead of every two seconds.
    #[arg(long)]
    once: bool,
}

#[derive(Args, Clone, Debug)]
pub struct Explain {
    /// Its client id.
    client: String,
    #[command(flatten)]
    admin: Admin,
}

/// What the gateway says when it does not do what is asked.
#[derive(Deserialize)]
struct Refusal {
    error: String,
}

/// A path segment of any client id.
pub(crate) fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |mut url, b| {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            url.push(char::from(b));
        } else {
            let _never_fails = write!(url, "%{b:02X}");
        }
        url
    })
}

impl Admin {
    /// The gateway at this address and port.
    pub(crate) fn at(address: &str) -> Self {
        Self { admin: address.into(), output: Output::Json }
    }

    fn agent(&self) -> ureq::Agent {
        ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false).build().into()
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/api/v1/{path}", self.admin)
    }

    /// What was answered, or what went wrong in the gateway's own words.
    fn answer<T>(
        &self,
        answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
        read: impl FnOnce(&mut ureq::Body) -> Result<T, ureq::Error>,
    ) -> Result<T, String> {
        let unreachable = |e| format!("{}: {e}; is the gateway running, and is this its admin port? --admin says another", self.admin);
        let mut answer = answer.map_err(unreachable)?;
        if answer.status().is_success() {
            return read(answer.body_mut()).map_err(|e| format!("{}: {e}", self.admin));
        }
        let said = answer.body_mut().read_json::<Refusal>();
        Err(said.map_or_else(|_| format!("{}: {}", self.admin, answer.status()), |said| said.error))
    }

    pub(crate) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, String> {
        self.answer(self.agent().get(self.url(path)).call(), |body| body.with_config().limit(heavy::BYTES as u64).read_json())
    }

    fn print<T: Serialize>(&self, value: &T, table: impl FnOnce(&T) -> String) -> Result<String, String> {
        match self.output {
            Output::Table => Ok(table(value)),
            Output::Json => serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(|e| e.to_string()),
        }
    }
}

fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(head);
    rows.into_iter().for_each(|row| {
        table.add_row(row);
    });
    table.lines().fold(String::new(), |text, line| text + line.trim() + "\n")
}

/// Records of consumer lag; `-`: it is live, or reads nothing.
fn lag(records: Option<u64>) -> String {
    records.map_or_else(|| "-".into(), |n| n.to_string())
}

/// How long ago, in words; nothing finer than a second.
fn ago(ms: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    humantime::format_duration(Duration::from_secs(now.saturating_sub(ms) / 1_000)).to_string()
}

impl Clients {
    pub fn ask(&self) -> Result<String, String> {
        if let Some(client) = &self.disconnect {
            let url = self.admin.url(&format!("clients/{}", escaped(client)));
            self.admin.answer(self.admin.agent().delete(url).call(), |_| Ok(()))?;
            return Ok(format!("{client} is told to go\n"));
        }
        let all = self.admin.get::<ClientsInfo>("clients")?.clients;
        self.admin.print(&all, |all| {
            let row = |c: &ClientInfo| {
                let address = c.address.clone().unwrap_or_else(|| "-".into());
                vec![c.client_id.clone(), c.version.clone(), address, ago(c.connected_ms), lag(c.behind_records)]
            };
            table(&["CLIENT", "MQTT", "ADDRESS", "CONNECTED", "BEHIND"], all.iter().map(row))
        })
    }
}

impl Streams {
    pub fn ask(&self) -> Result<String, String> {
        if self.segments {
            let all = self.admin.get::<SegmentsInfo>("segments")?.segments;
            return self.admin.print(&all, |all| {
                let row = |s: &SegmentInfo| {
                    let end = s.end.map_or_else(|| "(written)".into(), |end| end.to_string());
                    let sealed = s.sealed_ms.map_or_else(|| "-".into(), ago);
                    vec![format!("{}/{}", s.stream, s.partition), s.base.to_string(), end, bytesize::ByteSize(s.bytes).to_string(), sealed]
                };
                table(&["STREAM", "BASE", "END", "SIZE", "SEALED"], all.iter().map(row))
            });
        }
        let all = self.admin.get::<StreamsInfo>("streams")?.streams;
        self.admin.print(&all, |all| {
            let row = |p: &PartitionInfo| {
                let name = format!("{}/{}", p.stream, p.partition);
                let state = p.failed.as_ref().or(p.stalled.as_ref()).cloned().unwrap_or_else(|| "ok".into());
                vec![name, p.start.to_string(), p.end.to_string(), p.segments.to_string(), bytesize::ByteSize(p.bytes).to_string(), state]
            };
            table(&["STREAM", "OLDEST", "END", "SEGMENTS", "SIZE", "STATE"], all.iter().map(row))
        })
    }
}

/// Records, over all partitions that it reads; `None`: it reads nothing.
fn behind(s: &SessionInfo) -> Option<u64> {
    // Nothing of what it has not read may be for it.
    let lag = |p: &PlaceInfo| if p.behind_ms.is_none() { 0 } else { p.end.saturating_sub(p.next.max(p.start)) };
    (!s.places.is_empty()).then(|| s.places.iter().map(lag).sum())
}

impl Groups {
    pub fn ask(&self) -> Result<String, String> {
        match self {
            Self::List { admin } => admin.print(&admin.get::<GroupsInfo>("groups")?.groups, |all| {
                let row = |g: &GroupInfo| {
                    let numbers = [
                        g.members.len() as u64,
                        g.subscribers as u64,
                        g.lag,
                        g.pending as u64,
                        g.to_redeliver as u64,
                        g.dead_lettering as u64,
                    ];
                    [g.group.clone(), g.filter.clone()].into_iter().chain(numbers.map(|n| n.to_string())).collect()
                };
                table(
                    &["GROUP", "FILTER", "MEMBERS", "SUBSCRIBERS", "LAG", "PENDING", "TO REDELIVER", "DEAD LETTERING"],
                    all.iter().map(row),
                )
            }),
            Self::Describe { group, admin } => {
                let mut all = admin.get::<GroupsInfo>("groups")?.groups;
                all.retain(|g| g.group == *group);
                if all.is_empty() {
                    return Err(format!("there is no group {group}"));
                }
                admin.print(&all, |all| all.iter().map(describe_group).collect())
            }
        }
    }
}

fn describe_group(g: &GroupInfo) -> String {
    let mut text = format!(
        "{} of {}: lag {}, {} pending, {} to redeliver, {} dead lettering; {} sessions subscribe\n",
        g.group, g.filter, g.lag, g.pending, g.to_redeliver, g.dead_lettering, g.subscribers
    );
    for p in &g.places {
        let _never_fails = writeln!(text, "  {}/{}: at {} of {}", p.stream, p.partition, p.next, p.end);
    }
    for m in &g.members {
        let _never_fails = writeln!(text, "  member {}: {} pending", m.client_id, m.pending);
    }
    text
}

/// Everything in parts: `part` gives what there is behind one, and where to go on.
fn in_parts<T>(mut part: impl FnMut(&str) -> Result<(Vec<T>, Option<String>), String>) -> Result<Vec<T>, String> {
    let (mut all, mut after) = (Vec::new(), String::new());
    loop {
        let (some, last) = part(&escaped(&after))?;
        all.extend(some);
        match last {
            Some(last) => after = last,
            None => return Ok(all),
        }
    }
}

impl Retained {
    pub fn ask(&self) -> Result<String, String> {
        match self {
            Self::List { filter, admin } => {
                let path = format!("retained?limit=1000&filter={}", escaped(filter));
                let all = in_parts(|after| {
                    let part: RetainedPart = admin.get(&format!("{path}&after={after}"))?;
                    Ok((part.retained, part.after))
                })?;
                admin.print(&all, |all| {
                    let row = |r: &RetainedInfo| vec![r.topic.clone(), format!("{}/{}", r.stream, r.partition), r.offset.to_string()];
                    table(&["TOPIC", "STREAM", "OFFSET"], all.iter().map(row))
                })
            }
            Self::Clear { filter, admin } => {
                let (url, mut cleared) = (admin.url(&format!("retained?filter={}", escaped(filter))), 0);
                loop {
                    let part: ClearedInfo = admin.answer(admin.agent().delete(&url).call(), |body| body.read_json())?;
                    cleared += part.cleared;
                    if !part.more {
                        return Ok(format!("retained messages cleared: {cleared}\n"));
                    }
                }
            }
        }
    }
}

impl Delete {
    /// False: somebody has come back to it since then.
    fn delete(&self, client: &str, idle_since_ms: Option<u64>) -> Result<bool, String> {
        let idle = idle_since_ms.map_or_else(String::new, |ms| format!("?idle_since_ms={ms}"));
        let answer = self.admin.agent().delete(self.admin.url(&format!("sessions/{}{idle}", escaped(client)))).call();
        if idle_since_ms.is_some() && answer.as_ref().is_ok_and(|a| a.status() == ureq::http::StatusCode::CONFLICT) {
            return Ok(false);
        }
        self.admin.answer(answer, |_| Ok(true))
    }

    fn run(&self) -> Result<String, String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
        let since = self.which.idle.map(|than| now.saturating_sub(than.as_millis() as u64));
        let clients = match since {
            None => self.which.clients.clone(),
            Some(since) => {
                let is_idle = |s: &SessionInfo| s.since_ms.is_some_and(|away| away <= since);
                sessions(&self.admin, "")?.into_iter().filter(is_idle).map(|s| s.client_id).collect()
            }
        };
        let (mut ended, mut failed) = (0, Vec::new());
        for client in &clients {
            match self.delete(client, since) {
                Ok(is_ended) => ended += usize::from(is_ended),
                Err(words) => failed.push(words),
            }
        }
        let said = format!("sessions ended: {ended}\n");
        if failed.is_empty() { Ok(said) } else { Err(format!("{}\n{}", failed.join("\n"), said.trim_end())) }
    }
}

/// All, or those that get the messages of a topic.
fn sessions(admin: &Admin, topic: &str) -> Result<Vec<SessionInfo>, String> {
    in_parts(|after| {
        let part: SessionsInfo = admin.get(&format!("sessions?limit=1000&after={after}{topic}"))?;
        Ok((part.sessions, part.after))
    })
}

impl Sessions {
    pub fn ask(&self) -> Result<String, String> {
        if let Some(Change::Delete(delete)) = &self.change {
            return delete.run();
        }
        let topic = self.topic.as_ref().map_or_else(String::new, |t| format!("&topic={}", escaped(t)));
        self.admin.print(&sessions(&self.admin, &topic)?, |all| {
            let row = |s: &SessionInfo| {
                let connected = if s.connected { "yes" } else { "no" }.into();
                let filters: Vec<&str> = s.subscriptions.iter().map(|f| &*f.filter).collect();
                vec![s.client_id.clone(), s.version.clone(), connected, lag(behind(s)), s.in_flight.to_string(), filters.join(" ")]
            };
            table(&["CLIENT", "MQTT", "CONNECTED", "BEHIND", "IN FLIGHT", "SUBSCRIBES TO"], all.iter().map(row))
        })
    }
}

impl Topics {
    pub fn ask(&self) -> Result<String, String> {
        let (mut all, mut after, mut more) = (Vec::new(), String::new(), true);
        let mut path = "topics?".to_owned();
        for (name, value) in [("filter", &self.filter), ("at", &self.at)] {
            path += &value.as_ref().map_or_else(String::new, |v| format!("{name}={}&", escaped(v)));
        }
        while all.len() < self.limit {
            let limit = (self.limit - all.len()).min(1_000);
            let part: TopicsInfo = self.admin.get(&format!("{path}limit={limit}&after={}", escaped(&after)))?;
            all.extend(part.topics);
            more = part.after.is_some();
            match part.after {
                Some(last) => after = last,
                None => break,
            }
        }
        let rest = if more && !all.is_empty() {
            format!("there may be more: these are the first {}, --limit shows others\n", all.len())
        } else {
            String::new()
        };
        self.admin.print(&all, |all| {
            let row = |t: &MessageInfo| {
                let time = UNIX_EPOCH + Duration::from_millis(t.time_ms);
                let shown: String =
                    t.text.as_deref().unwrap_or("(bytes)").chars().take(60).map(|c| if c.is_control() { ' ' } else { c }).collect();
                let retained = if t.retain { "yes" } else { "" }.into();
                vec![t.topic.clone(), humantime::format_rfc3339_seconds(time).to_string(), retained, t.bytes.to_string(), shown]
            };
            table(&["TOPIC", "TIME", "RETAINED", "BYTES", "PAYLOAD"], all.iter().map(row)) + &rest
        })
    }
}

/// How often `top` looks.
const LOOK: Duration = Duration::from_secs(2);
/// Clients that it shows.
const SHOWN: usize = 15;

impl Top {
    pub fn run(&self) -> Result<(), String> {
        loop {
            let text = self.look()?;
            // The screen is cleared and the cursor goes home.
            let screen = if self.once || !std::io::stdout().is_terminal() { text } else { format!("\x1b[2J\x1b[H{text}") };
            match std::io::stdout().write_all(screen.as_bytes()) {
                Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                written => written.map_err(|e| e.to_string())?,
            }
            if self.once {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
    }

    fn look(&self) -> Result<String, String> {
        let rates = self.admin.get::<RatesInfo>("rates")?.rates;
        let mut clients = self.admin.get::<ClientsInfo>("clients")?.clients;
        let streams = self.admin.get::<StreamsInfo>("streams")?.streams;
        if self.admin.output == Output::Json {
            let all = serde_json::json!({ "rates": rates.last(), "streams": streams, "clients": clients });
            return Ok(all.to_string() + "\n");
        }
        let mut text = match rates.last() {
            None => format!("{} connections; rates in a moment\n", clients.len()),
            Some(r) => format!(
                "{} connections, {} connects/s; in {} messages/s, {}/s; out {} messages/s, {}/s; {} dropped/s\n",
                clients.len(),
                r.connects,
                r.messages_in,
                bytesize::ByteSize(r.bytes_in),
                r.messages_out,
                bytesize::ByteSize(r.bytes_out),
                r.dropped
            ),
        };
        for p in &streams {
            let state = p.failed.as_deref().or(p.stalled.as_deref()).unwrap_or("ok");
            text += &format!("{}/{}: {} records, {}, {state}\n", p.stream, p.partition, p.end - p.start, bytesize::ByteSize(p.bytes));
        }
        clients.sort_by_key(|c| std::cmp::Reverse(c.behind_records));
        let row = |c: &ClientInfo| vec![c.client_id.clone(), lag(c.behind_records), ago(c.connected_ms)];
        Ok(text + "\n" + &table(&["CLIENT", "BEHIND", "CONNECTED"], clients.iter().take(SHOWN).map(row)))
    }
}

impl Explain {
    /// The oldest record that the client was sent and has not acknowledged.
    fn oldest(&self, s: &SessionInfo) -> Option<RecordInfo> {
        let (partition, at) = (s.oldest_in_flight_in.as_ref()?, s.oldest_in_flight?);
        self.admin.get(&format!("records/{partition}/{at}")).ok()
    }

    pub fn ask(&self) -> Result<String, String> {
        let session: SessionInfo = self.admin.get(&format!("sessions/{}", escaped(&self.client)))?;
        let record = if session.left_there > 1 { self.oldest(&session) } else { None };
        self.admin.print(&session, |s| explain(s) + &record.map_or_else(String::new, |r| cannot_take(s, &r)))
    }
}

/// Why a client may leave again and again.
fn cannot_take(s: &SessionInfo, r: &RecordInfo) -> String {
    let m = &r.message;
    format!(
        "  it has left {} times in a row with record {} of {}/{} unacknowledged, {} bytes on topic {}: it may not be able to take it \
         (a maximum packet size of its library, or a payload that it cannot read)\n",
        s.left_there, m.offset, m.stream, m.partition, m.bytes, m.topic
    )
}

/// As they are configured: 30days, 12h, 90s.
fn seconds(n: u32) -> String {
    humantime::format_duration(Duration::from_secs(n.into())).to_string()
}

fn explain(s: &SessionInfo) -> String {
    let mut text = String::new();
    let mut say = |line: String| text += &(line + "\n");
    let life = match (s.connected, s.expiry_s) {
        (true, None) => "connected; its session never ends".into(),
        (true, Some(0)) => "connected; its session ends with the connection".into(),
        (true, Some(n)) => format!("connected; its session outlives the connection by {}", seconds(n)),
        (false, None) => "not connected; its session waits for ever".into(),
        (false, Some(n)) => format!("not connected; its session ends {} after its connection did", seconds(n)),
    };
    say(format!("{}, MQTT {}: {life}", s.client_id, s.version));
    for f in &s.subscriptions {
        say(format!("  subscribes to {} with QoS {}", f.filter, f.qos));
    }
    if s.subscriptions.is_empty() {
        say("  subscribes to nothing".into());
    }
    s.places.iter().for_each(|p| say(format!("  {}/{}: {}", p.stream, p.partition, whereabouts(p))));
    if s.in_flight > 0 {
        let full = if s.in_flight >= s.in_flight_max { "; it gets no more until it acknowledges one" } else { "" };
        let oldest = s.oldest_in_flight.map_or_else(String::new, |at| format!(", the oldest is record {at}"));
        say(format!("  {} of at most {} messages are on their way to it and not acknowledged{oldest}{full}", s.in_flight, s.in_flight_max));
    }
    if s.unacknowledged > 0 {
        say(format!("  {} answers to what it sent wait for the disk", s.unacknowledged));
    }
    if s.unreleased > 0 {
        say(format!("  {} messages with QoS 2 that it published are not released (PUBREL)", s.unreleased));
    }
    if s.has_will {
        say("  it has a will".into());
    }
    text
}

fn loss(p: &PlaceInfo) -> String {
    p.loss_at_ms.map_or_else(String::new, |at| {
        let at = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(at));
        format!("; if it reads no further, retention takes the first that waits for it about {at}")
    })
}

fn whereabouts(p: &PlaceInfo) -> String {
    if p.next < p.start {
        return format!(
            "{} are lost for it, retention has taken them; it goes on at {}, {} behind{}",
            weir_log::records(&(weir_log::Offset(p.next)..weir_log::Offset(p.start))),
            p.start,
            p.end - p.start,
            loss(p)
        );
    }
    if p.live {
        return "live, it is given what comes as it comes".into();
    }
    match p.end.saturating_sub(p.next) {
        0 => format!("at the end, record {}", p.end),
        behind if p.behind_ms.is_none() => format!("none of the {behind} records from {} to the end is for it", p.next),
        behind => format!("reads record {} next, {behind} before the end; retention is at {}{}", p.next, p.start, loss(p)),
    }
}
