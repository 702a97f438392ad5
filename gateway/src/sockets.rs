//! How many sockets are open at once. The log keeps descriptors of its own: listeners stop accepting
//! before it runs out, and the admin port has places that no other port takes.
//!
//! Invariant: a socket holds its place until its descriptor is closed, whatever it has become meanwhile.
//! Must not know: what is spoken over them.

use crate::{
    addresses,
    refusals::{EVERY, is_due},
};
use parking_lot::Mutex;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{Shutdown, shutdown},
    process::{Resource, getrlimit},
};
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};

/// Descriptors that are the log's: segments that are open for readers, one that is begun, its directory.
const RESERVED: u64 = 256;
/// What the log may need more than it has: segments that are begun before retention has taken others.
const LOG_SPARE: u64 = 64;
/// Sockets of the admin port: whoever looks after the gateway finds it open when clients have taken all others.
const ADMIN: u64 = 64;

/// Places for sockets.
#[derive(Clone, Debug)]
pub(crate) struct Sockets(Arc<Places>);

#[derive(Debug)]
struct Places {
    free: Arc<Semaphore>,
    /// Descriptors of the process, less those of the admin port.
    descriptors: u64,
    most: Mutex<usize>,
    /// When it was said last that sockets wait.
    said: Mutex<Option<Instant>>,
}

/// A socket's place.
#[derive(Debug)]
pub(crate) struct Place(#[expect(dead_code, reason = "given back when it is dropped")] OwnedSemaphorePermit);

/// Below the limit of this process.
fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// How many of these descriptors are the admin port's.
fn of_admin(descriptors: u64) -> u64 {
    ADMIN.min(descriptors / 8)
}

/// How many sockets there may be beside a log that has so many files open.
fn most_beside(descriptors: u64, files: u64) -> usize {
    let log = RESERVED.min(descriptors / 2).max(files + LOG_SPARE.min(descriptors / 4));
    descriptors.saturating_sub(log).clamp(1, Semaphore::MAX_PERMITS as u64) as usize
}

impl Sockets {
    fn of(descriptors: u64, most: usize) -> Self {
        let free = Arc::new(Semaphore::new(most));
        Self(Arc::new(Places { free, descriptors, most: Mutex::new(most), said: Mutex::default() }))
    }

    /// Below this limit of descriptors.
    pub fn within(descriptors: u64) -> Self {
        let descriptors = descriptors - of_admin(descriptors);
        Self::of(descriptors, most_beside(descriptors, 0))
    }

    /// Below the limit of this process.
    pub fn of_process() -> Self {
        Self::within(limit())
    }

    /// Those of the admin port.
    pub fn of_admin() -> Self {
        Self::exactly(of_admin(limit()).max(1) as usize)
    }

    pub fn exactly(most: usize) -> Self {
        Self::of(most as u64, most)
    }

    /// The log has so many files open now: they are no sockets' descriptors. Sockets that are open stay.
    pub fn log_has(&self, files: usize) {
        let wanted = most_beside(self.0.descriptors, files as u64);
        let mut most = self.0.most.lock();
        if wanted > *most {
            self.0.free.add_permits(wanted - *most);
            *most = wanted;
        } else {
            *most -= self.0.free.forget_permits(*most - wanted);
        }
    }

    pub fn most(&self) -> usize {
        *self.0.most.lock()
    }

    pub fn open(&self) -> usize {
        self.most().saturating_sub(self.0.free.available_permits())
    }

    /// `None`: all are taken.
    pub fn try_place(&self) -> Option<Place> {
        self.0.free.clone().try_acquire_owned().ok().map(Place)
    }

    /// Waits for a place.
    pub async fn place(&self, listener: &'static str) -> Place {
        if let Some(place) = self.try_place() {
            return place;
        }
        loop {
            self.say(listener);
            match tokio::time::timeout(EVERY, self.0.free.clone().acquire_owned()).await {
                Ok(Ok(place)) => return Place(place),
                // Nobody closes it.
                Ok(Err(_)) => std::future::pending().await,
                Err(_) => {}
            }
        }
    }

    /// Warns that sockets wait, unless that was said a short while ago.
    fn say(&self, listener: &'static str) {
        if is_due(&self.0.said) {
            let most = self.most();
            tracing::warn!(listener, most, "as many sockets of this port are open as may be: others wait (see docs/operating.md)");
        }
    }
}

/// Accepts a connection, and waits where there is no descriptor: others have taken them, in this process or in the whole machine.
pub(crate) async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    static SAID: Mutex<Option<Instant>> = Mutex::new(None);
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(e) => {
                if is_due(&SAID) {
                    tracing::warn!("accepting a connection: {e}; it is tried again");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// A peer that takes not a byte for so long is gone.
const WRITE_STALL: Duration = Duration::from_secs(10);

/// For the head of a request that has begun, and for the first.
const HEAD: Duration = Duration::from_secs(10);

/// What a socket for HTTP is read for.
enum Reading {
    /// The first head, or one that has begun, with what was seen of its end. `None`: nobody has waited for more of it.
    Head(Ends, Option<Pin<Box<Sleep>>>),
    /// A request is here; its body, if it has one, is not looked at.
    Request,
    /// Between two requests.
    Idle,
    /// It is a websocket.
    Frames,
}

/// How much of the two line ends behind a head was seen; lines in front of it are none of it.
#[derive(Clone, Copy, Default)]
struct Ends {
    begun: bool,
    seen: usize,
}

const HEAD_END: &[u8] = b"\r\n\r\n";

impl Ends {
    /// True: these bytes end the head.
    fn take(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            self.begun |= !b"\r\n".contains(byte);
            self.seen = match HEAD_END.get(self.seen) {
                _ if !self.begun => 0,
                Some(next) if next == byte => self.seen + 1,
                _ => usize::from(*byte == b'\r'),
            };
            if self.seen == HEAD_END.len() {
                return true;
            }
        }
        false
    }
}

impl Reading {
    fn first() -> Self {
        Self::Head(Ends::default(), None)
    }

    /// What was read.
    fn took(&mut self, bytes: &[u8]) {
        if matches!(self, Self::Idle) && !bytes.is_empty() {
            *self = Self::first();
        }
        if let Self::Head(ends, _) = self
            && ends.take(bytes)
        {
            *self = Self::Request;
        }
    }

    /// What is answered.
    fn answers(&mut self, bytes: &[u8]) {
        match self {
            Self::Frames => {}
            _ if bytes.starts_with(b"HTTP/1.1 101") => *self = Self::Frames,
            // It goes on with the body.
            _ if bytes.starts_with(b"HTTP/1.1 1") => *self = Self::Request,
            _ => *self = Self::Idle,
        }
    }

    /// Nothing has come; true: for too long.
    fn waits(&mut self, cx: &mut Context<'_>) -> bool {
        let Self::Head(_, deadline) = self else { return false };
        deadline.get_or_insert_with(|| Box::pin(sleep(HEAD))).as_mut().poll(cx).is_ready()
    }
}

/// A socket with its place.
pub(crate) struct HttpSocket {
    /// Whoever serves it may look at it: `Probe`.
    stream: Arc<TcpStream>,
    reading: Reading,
    /// Until when the peer must have taken something; `None`: it has taken all there was.
    stall: Option<Pin<Box<Sleep>>>,
    /// Given back behind it.
    _place: (Place, addresses::Place),
    _browser: Browser,
}

impl HttpSocket {
    pub fn new(stream: TcpStream, place: (Place, addresses::Place), browser: Browser) -> Self {
        Self { stream: Arc::new(stream), reading: Reading::first(), stall: None, _place: place, _browser: browser }
    }

    pub fn probe(&self) -> Probe {
        Probe(Arc::downgrade(&self.stream))
    }

    fn write(&self, cx: &mut Context<'_>, write: impl Fn(&TcpStream) -> io::Result<usize>) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match write(&self.stream) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    /// What became of a write; one that waits does not wait for ever.
    fn progress(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stall = None;
            return written;
        }
        let stall = self.stall.get_or_insert_with(|| Box::pin(sleep(WRITE_STALL)));
        stall.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

/// What is known of a socket without reading from it or writing to it.
#[derive(Clone)]
pub(crate) struct Probe(Weak<TcpStream>);

impl Probe {
    /// Something has come that nobody has read.
    pub fn has_unread(&self) -> bool {
        self.0.upgrade().is_some_and(|stream| is(&stream, PollFlags::IN))
    }

    /// The peer will send nothing more.
    pub fn has_hung_up(&self) -> bool {
        self.0.upgrade().is_none_or(|stream| is(&stream, PollFlags::RDHUP))
    }

    /// It would take more.
    pub fn has_room(&self) -> bool {
        self.0.upgrade().is_some_and(|stream| is(&stream, PollFlags::OUT))
    }
}

/// Asks the system: what the runtime knows of a socket may be old.
pub(crate) fn is(stream: &TcpStream, flags: PollFlags) -> bool {
    let mut asked = [PollFd::new(stream, flags)];
    let now = Timespec::default();
    poll(&mut asked, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// A place among browsers, until the socket turns out to be none.
#[derive(Clone)]
pub(crate) struct Browser {
    place: Arc<Mutex<Option<Place>>>,
    beyond: bool,
}

impl Browser {
    /// `beyond`: there are as many browsers as there may be.
    pub fn new(place: Place, beyond: bool) -> Self {
        Self { place: Arc::new(Mutex::new(Some(place))), beyond }
    }

    pub fn is_beyond(&self) -> bool {
        self.beyond
    }

    /// It speaks MQTT: its place is free.
    pub fn give_back(&self) {
        self.place.lock().take();
    }
}

impl AsyncRead for HttpSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = loop {
            match self.stream.poll_read_ready(cx) {
                Poll::Ready(Ok(())) => match self.stream.try_read_buf(into) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    read => break Poll::Ready(read.map(drop)),
                },
                other => break other,
            }
        };
        if read.is_ready() {
            self.reading.took(into.filled().get(before..).unwrap_or_default());
        } else if self.reading.waits(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for HttpSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.reading.answers(bytes);
        let written = self.write(cx, |stream| stream.try_write(bytes));
        self.progress(cx, written)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.reading.answers(bytes.first().map_or(&[], |first| &**first));
        let written = self.write(cx, |stream| stream.try_write_vectored(bytes));
        self.progress(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shutdown(&self.stream, Shutdown::Write).map_err(Into::into))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_keeps_256_descriptors_or_half_of_few_and_more_if_it_needs_them() {
        for (limit, most) in [(1_024, 704), (1 << 20, (1 << 20) - 320), (512, 224), (120, 53), (1, 1), (0, 1)] {
            assert_eq!(Sockets::within(limit).most(), most, "{limit}");
        }
        let sockets = Sockets::within(490);
        assert_eq!(sockets.most(), 215);
        for (files, most) in [(10, 215), (222, 143), (100, 215), (10_000, 1)] {
            sockets.log_has(files);
            assert_eq!(sockets.most(), most, "{files}");
        }
    }

    #[test]
    fn a_head_ends_wherever_it_is_cut() {
        let ends = |parts: &[&str]| {
            let mut ends = Ends::default();
            parts.iter().map(|part| ends.take(part.as_bytes())).collect::<Vec<_>>()
        };
        assert_eq!(ends(&["GET / HTTP/1.1\r\nHost: x\r\n\r\n"]), [true]);
        assert_eq!(ends(&["GET / HTTP/1.1\r\nHost: x\r", "\n\r", "\n"]), [false, false, true]);
        assert_eq!(ends(&["\r\n\r\n", "GET / HT", "TP/1.1\r\n\r\r\n\r\n"]), [false, false, true], "lines in front of it");
    }

    #[tokio::test]
    async fn who_comes_beyond_waits_for_a_place() {
        let sockets = Sockets::exactly(2);
        let (a, _b) = (sockets.place("test").await, sockets.place("test").await);
        assert_eq!(sockets.open(), 2);
        let waiting = tokio::time::timeout(Duration::from_millis(50), sockets.place("test")).await;
        assert!(waiting.is_err());
        // Those that are open stay.
        sockets.log_has(2);
        assert_eq!((sockets.most(), sockets.open()), (2, 2));
        drop(a);
        let _c = tokio::time::timeout(Duration::from_secs(5), sockets.place("test")).await.expect("a place");
    }
}
