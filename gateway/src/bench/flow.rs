//! Publishers and subscribers at work: each message is marked, timed, and checked where it arrives.
//!
//! Invariant: with a rate, publishers take turns at even distances, and a message's time is when it was to be sent, whatever held it up, so a broker that stalls is not spared (no coordinated omission). Without
//! one it is when it was written: the load then follows the broker.
//! Must not know: scenarios.

use super::{
    clock::Clock,
    message::{Mark, Seen, Template},
    wire::Conn,
};
use crate::client::Failure;
use hdrhistogram::Histogram;
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::sync::watch;
use weir_core::packet::{Packet, PacketId, Qos};

/// Messages in one write.
const BURST: u64 = 256;

/// What all of a run share.
pub struct Run {
    start: Instant,
    /// Publishers go on.
    publishing: AtomicBool,
    /// Times are taken.
    measuring: AtomicBool,
    pub acknowledged: AtomicU64,
    pub delivered: AtomicU64,
}

/// Microseconds.
pub type Times = Histogram<u64>;

pub fn times() -> Times {
    // Up to a minute, two digits.
    Histogram::new_with_bounds(1, 60_000_000, 2).expect("bounds that are constants")
}

/// Times of messages as they come. Those of one read were often sent together, and are recorded together.
pub struct Timed {
    times: Times,
    /// Not recorded yet: so often this many microseconds.
    count: u64,
    us: u64,
}

impl Timed {
    fn new() -> Self {
        Self { times: times(), count: 0, us: 0 }
    }

    fn take(&mut self, ns: u64) {
        let us = (ns / 1_000).max(1);
        if us != self.us {
            self.record();
            self.us = us;
        }
        self.count += 1;
    }

    fn record(&mut self) {
        self.times.saturating_record_n(self.us, std::mem::take(&mut self.count));
    }

    pub fn all(mut self) -> Times {
        self.record();
        self.times
    }
}

impl Run {
    pub fn new() -> Arc<Self> {
        let (publishing, measuring) = (AtomicBool::new(true), AtomicBool::new(false));
        Arc::new(Self { start: Instant::now(), publishing, measuring, acknowledged: AtomicU64::new(0), delivered: AtomicU64::new(0) })
    }

    pub fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    pub fn measure(&self, on: bool) {
        self.measuring.store(on, Ordering::Relaxed);
    }

    pub fn is_measuring(&self) -> bool {
        self.measuring.load(Ordering::Relaxed)
    }

    pub fn stop_publishing(&self) {
        self.publishing.store(false, Ordering::Relaxed);
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub qos: Qos,
    /// On their way at once, with QoS 1 and 2.
    pub window: u64,
    /// Messages per second of one publisher; `None`: as fast as they go.
    pub rate: Option<f64>,
    /// It begins so much of its own period late.
    pub phase: f64,
}

pub struct Published {
    pub publisher: u32,
    pub sent: u64,
    /// From when it was to be sent to its acknowledgement.
    pub times: Times,
    /// It stays connected until everything has been judged.
    _conn: Conn,
}

struct Publisher {
    run: Arc<Run>,
    conn: Conn,
    pace: Pace,
    began_ns: u64,
    sent: u64,
    /// When those that are not acknowledged were to be sent.
    open: VecDeque<u64>,
    times: Timed,
    refused: u64,
}

/// Publishes until it is told to stop; then waits for what is on its way.
pub async fn publish(run: Arc<Run>, conn: Conn, publisher: u32, template: Template, pace: Pace) -> Result<Published, Failure> {
    let late = pace.rate.map_or(0.0, |rate| pace.phase / rate * 1e9);
    let began_ns = run.now_ns() + late as u64;
    let mut p = Publisher { run, conn, pace, began_ns, sent: 0, open: VecDeque::new(), times: Timed::new(), refused: 0 };
    let clock = Clock::new().map_err(Failure::new)?;
    let mut out = Vec::new();
    loop {
        let on = p.run.publishing.load(Ordering::Relaxed);
        let (room, due) = (p.room(), p.due());
        if on && room.min(due) > 0 {
            out.clear();
            let now_ns = p.run.now_ns();
            for _ in 0..room.min(due) {
                let at_ns = p.time_of_next(now_ns);
                template.push(&mut out, p.sent, Mark { publisher, seq: p.sent, at_ns });
                p.sent += 1;
                if pace.qos != Qos::AtMostOnce {
                    p.open.push_back(at_ns);
                }
            }
            p.conn.send(&out).await?;
            p.hear(false).await?;
        } else if !on && p.open.is_empty() {
            break;
        } else if due == 0 && on {
            let now_ns = p.run.now_ns();
            let next = Duration::from_nanos(p.time_of_next(now_ns).saturating_sub(now_ns));
            tokio::select! {
                slept = clock.sleep(next) => slept.map_err(Failure::new)?,
                heard = p.hear(true), if !p.open.is_empty() => heard?,
            }
        } else {
            p.hear(true).await?;
        }
        if p.refused > 0 {
            return Err(Failure::new("the broker refused a message"));
        }
    }
    Ok(Published { publisher, sent: p.sent, times: p.times.all(), _conn: p.conn })
}

impl Publisher {
    fn room(&self) -> u64 {
        if self.pace.qos == Qos::AtMostOnce { BURST } else { self.pace.window.saturating_sub(self.open.len() as u64) }
    }

    /// Messages whose time has come.
    fn due(&self) -> u64 {
        let due = self.pace.rate.map_or(BURST, |rate| {
            let passed = self.run.now_ns().checked_sub(self.began_ns);
            passed.map_or(0, |ns| ((ns as f64 / 1e9 * rate) as u64 + 1).saturating_sub(self.sent))
        });
        due.min(BURST)
    }

    /// Without a rate that is now.
    fn time_of_next(&self, now_ns: u64) -> u64 {
        self.pace.rate.map_or(now_ns, |rate| self.began_ns + (self.sent as f64 / rate * 1e9) as u64)
    }

    /// Takes acknowledgements.
    async fn hear(&mut self, wait: bool) -> Result<(), Failure> {
        let (mut done, mut refused, mut release) = (0, 0, Vec::new());
        let each = |p: Packet<'_>| match p {
            Packet::PubAck(a) | Packet::PubComp(a) => {
                done += 1;
                refused += u64::from(a.reason.is_error());
            }
            Packet::PubRec(a) => {
                refused += u64::from(a.reason.is_error());
                release.extend_from_slice(&acknowledgement(0x62, a.packet_id));
            }
            _ => {}
        };
        if wait {
            self.conn.read(each).await?
        } else {
            self.conn.try_read(each)?
        }
        if !release.is_empty() {
            self.conn.send(&release).await?;
        }
        let (now, measuring) = (self.run.now_ns(), self.run.is_measuring());
        for at in self.open.drain(..done) {
            if measuring {
                self.times.take(now.saturating_sub(at));
            }
        }
        self.refused += refused;
        self.run.acknowledged.fetch_add(done as u64, Ordering::Relaxed);
        Ok(())
    }
}

fn acknowledgement(first: u8, id: PacketId) -> [u8; 4] {
    let [high, low] = id.get().to_be_bytes();
    [first, 2, high, low]
}

/// What one subscriber has got.
pub struct Got {
    pub seen: Seen,
    /// From when it was to be sent to its arrival.
    pub times: Timed,
    /// Of a member of a group, whose messages are known only together with those of the others: publisher and sequence number of each.
    pub marks: Option<Vec<(u32, u64)>>,
    acks: Vec<u8>,
}

impl Got {
    pub fn of_group() -> Self {
        Self { marks: Some(Vec::new()), ..Self::new() }
    }

    pub fn new() -> Self {
        Self { seen: Seen::default(), times: Timed::new(), marks: None, acks: Vec::new() }
    }

    /// Gives 1 for a message that is new.
    pub fn packet(&mut self, p: &Packet<'_>, now_ns: u64, measuring: bool) -> u64 {
        match p {
            Packet::Publish(p) => {
                match (p.qos, p.packet_id) {
                    (Qos::AtLeastOnce, Some(id)) => self.acks.extend_from_slice(&acknowledgement(0x40, id)),
                    (Qos::ExactlyOnce, Some(id)) => self.acks.extend_from_slice(&acknowledgement(0x50, id)),
                    _ => {}
                }
                let Some(mark) = Mark::parse(p.payload) else { return 0 };
                self.see(mark, p.dup, now_ns, measuring)
            }
            Packet::PubRel(a) => {
                self.acks.extend_from_slice(&acknowledgement(0x70, a.packet_id));
                0
            }
            _ => 0,
        }
    }

    /// Gives 1 for a message that is new.
    pub fn see(&mut self, mark: Mark, dup: bool, now_ns: u64, measuring: bool) -> u64 {
        let before = self.seen.received;
        self.seen.see(mark, dup);
        if let Some(marks) = &mut self.marks {
            marks.push((mark.publisher, mark.seq));
        }
        if measuring {
            self.times.take(now_ns.saturating_sub(mark.at_ns));
        }
        self.seen.received - before
    }
}

/// Takes and acknowledges messages until it is told to stop.
pub async fn subscribe(run: Arc<Run>, mut conn: Conn, mut got: Got, mut stop: watch::Receiver<bool>) -> Result<Got, Failure> {
    loop {
        if !got.acks.is_empty() {
            let acks = std::mem::take(&mut got.acks);
            conn.send(&acks).await?;
        }
        let (mut news, measuring) = (0, run.is_measuring());
        let mut now_ns = None;
        let mut each = |p: Packet<'_>| news += got.packet(&p, *now_ns.get_or_insert_with(|| run.now_ns()), measuring);
        tokio::select! {
            read = conn.read(&mut each) => read?,
            _ = stop.wait_for(|stop| *stop) => return Ok(got),
        }
        run.delivered.fetch_add(news, Ordering::Relaxed);
    }
}

/// Waits for the first message; gives how long after `began` it came.
pub async fn first(run: &Run, mut conn: Conn, began: Instant) -> Result<(Conn, Got, Duration), Failure> {
    let (mut got, mut news) = (Got::new(), 0);
    while news == 0 {
        conn.read(|p| news += got.packet(&p, 0, false)).await?;
    }
    run.delivered.fetch_add(news, Ordering::Relaxed);
    Ok((conn, got, began.elapsed()))
}
