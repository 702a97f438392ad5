//! The adapter between a TCP socket and a driver.
//!
//! Invariant: a socket that has nothing to say costs no buffer: bytes are read into one that belongs to the thread. What one wake-up
//! makes leaves in one write.
//! Must not know: MQTT.

use crate::{
    account::SMALL_BYTES,
    addresses,
    driver::Driver,
    gateway::Gateway,
    metrics::Total,
    peer::Peer,
    sockets::{self, Place, is},
};
use rustix::event::PollFlags;
use rustix::net::sockopt::set_tcp_quickack;
use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, ErrorKind},
    net::SocketAddr,
    ops::RangeInclusive,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::SemaphorePermit,
    time::Instant,
};
use weir_core::session::Cause;

/// Connections that wait to be accepted: a whole fleet comes back at once.
const BACKLOG: u32 = 4_096;
/// Connections that are accepted, and then others have their turn: each is a task more in the line in which every message of others waits.
const ACCEPTED_AT_ONCE: usize = 16;
/// Bytes that are read at once, and then others have their turn.
const READ_BYTES: usize = 256 * 1024;
/// Bytes that all connections with more to send may write in one round, and what one may at least and at most before others have their turn. A thousand that are sent
/// much do not hold up one that is sent little; and a single one is not left behind by ten that publish to it, each with a turn of its own.
const ROUND_BYTES: usize = 4 << 20;
const TURN_BYTES: RangeInclusive<usize> = 16 * 1024..=ROUND_BYTES;
/// Sessions that begin, or are left by a socket that has ended, at once. A fleet that comes back wakes ten thousand tasks, each with a session to load and to write; in one line with them, every message of everybody else
/// waited for all of them.
pub(crate) const AT_ONCE: usize = 32;
/// How long what was written last may take to leave before the socket is closed.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(2);
/// How often the runtime is asked again for what the system says has come, before a time that is
/// over counts.
pub(crate) const LOOKS: u32 = 20;

thread_local! {
    static READ: RefCell<Vec<u8>> = RefCell::new(vec![0; READ_BYTES]);
}

pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// With its places: one of all, and one of those that its address may have.
struct Socket {
    stream: TcpStream,
    _places: (Place, addresses::Place),
}

/// Accepts until the gateway drains.
pub(crate) async fn accept(listener: TcpListener, gateway: Arc<Gateway>) {
    let mut accepted = 0_usize;
    loop {
        let place = gateway.sockets.place("mqtt").await;
        let (stream, address) = sockets::accept(&listener).await;
        if gateway.is_draining() {
            return;
        }
        let Ok(open) = gateway.admit(address) else { continue };
        gateway.totals.add(Total::ConnectionsTcp, 1);
        // A task keeps a place for everything that it ever hands on by value: one pointer, then.
        let socket = Box::new(Socket { stream, _places: (place, open) });
        tokio::spawn(serve(socket, Box::new(Driver::new(gateway.clone(), Some(address)))));
        accepted += 1;
        if accepted.is_multiple_of(ACCEPTED_AT_ONCE) {
            // Others have their turn.
            tokio::task::yield_now().await;
        }
    }
}

async fn serve(mut socket: Box<Socket>, mut driver: Box<Driver>) {
    // A socket without it still works, only slower.
    let _ = socket.stream.set_nodelay(true);
    let gone = converse(&mut socket.stream, &mut driver).await;
    if gone {
        let gateway = driver.gateway().clone();
        // A fleet goes all at once too, and each has a session to leave and a socket to close.
        let _turn = Box::pin(gateway.leaving.acquire()).await;
        // With its turn taken, or there were no line: without a pause this ends at once, one after the other.
        tokio::task::yield_now().await;
        if driver.close().is_none() {
            driver.closed(Cause::Socket);
        }
        drop(socket);
    } else {
        tokio::spawn(linger(socket));
    }
    outlive(driver).await;
}

/// The session goes on to its end without a socket.
pub(crate) async fn outlive(mut driver: Box<Driver>) {
    while !driver.is_left() {
        driver.peer().clone().rung().await;
        driver.woken();
    }
}

/// Closes politely: a socket that is dropped with unread bytes sends a reset, and the peer never sees why it was closed.
async fn linger(mut socket: Box<Socket>) {
    let _ = socket.stream.shutdown().await;
    let mut sink = [0; 4096];
    let end = Instant::now() + Duration::from_secs(1);
    while let Ok(Ok(1..)) = tokio::time::timeout_at(end, socket.stream.read(&mut sink)).await {}
}

/// A connection's turn to write. It is one of `Gateway::sending` while it had more to send when its last turn was over.
struct Turn<'g> {
    gateway: &'g Gateway,
    waits: bool,
}

impl Turn<'_> {
    fn bytes(&self) -> usize {
        let sending = self.gateway.sending.load(Ordering::Relaxed);
        (ROUND_BYTES / sending.max(1)).clamp(*TURN_BYTES.start(), *TURN_BYTES.end())
    }

    fn over(&mut self, waits: bool) {
        match (self.waits, waits) {
            (false, true) => self.gateway.sending.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.gateway.sending.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
        self.waits = waits;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.over(false);
    }
}

/// What a connection wakes up for, all of it that is there.
struct Ready {
    rung: bool,
    /// What was read has been told.
    received: io::Result<usize>,
    writable: bool,
    due: bool,
}

/// Waits until the peer has said something, and then for its turn to begin a session. `None`: the gateway has something to say, or it took too long.
async fn enter<'g>(stream: &TcpStream, peer: &Peer, gateway: &'g Gateway, until: Option<Instant>) -> Option<SemaphorePermit<'g>> {
    let turn = async {
        stream.readable().await.ok()?;
        gateway.entering.acquire().await.ok()
    };
    let until = until.unwrap_or_else(Instant::now);
    tokio::select! {
        turn = tokio::time::timeout_at(until, turn) => turn.ok().flatten(),
        () = peer.rung() => None,
    }
}

/// Until the socket is to be closed; true: it is gone already.
async fn converse(stream: &mut TcpStream, driver: &mut Driver) -> bool {
    let (peer, gateway) = (driver.peer().clone(), driver.gateway().clone());
    let mut turn = Turn { gateway: &gateway, waits: false };
    let mut timer = pin!(tokio::time::sleep(Duration::ZERO));
    // What the timer is set to: seldom moved, since a deadline that only moves away is looked at again when the old one has come.
    let mut armed = None;
    let mut last_words = None;
    let (mut more, mut looked) = (false, 0);
    // Not a part of this future: an idle connection would keep its place.
    let mut entering = Box::pin(enter(stream, &peer, &gateway, driver.deadline().map(|d| driver.instant(d)))).await;
    if entering.is_none() {
        driver.woken();
    }
    loop {
        match flush(stream, driver, turn.bytes()) {
            Ok(waits) => {
                turn.over(waits);
                if waits || more {
                    // Others have theirs.
                    tokio::task::yield_now().await;
                }
            }
            Err(_) => return true,
        }
        if let Some(cause) = driver.close() {
            let until = *last_words.get_or_insert_with(|| Instant::now() + LAST_WORDS);
            if driver.out.is_empty() || cause == Cause::TakenOver || Instant::now() >= until {
                return cause == Cause::Socket;
            }
        }
        let deadline = last_words.or_else(|| driver.deadline().map(|d| driver.instant(d)));
        if let Some(deadline) = deadline.filter(|d| armed.is_none_or(|a| *d < a)) {
            armed = Some(deadline);
            timer.as_mut().reset(deadline);
        }
        let ready = {
            let mut rung = pin!(peer.rung());
            let (reads, writes) = (driver.wants_read(), !driver.out.is_empty());
            // The socket is asked without a future of its own: an idle connection would keep the place of two.
            poll_fn(|context| {
                let ready = Ready {
                    rung: rung.as_mut().poll(context).is_ready(),
                    received: if reads { read(stream, context, driver) } else { Ok(0) },
                    // Errors show in the read, and in the next flush.
                    writable: writes && stream.poll_write_ready(context).is_ready(),
                    due: armed.is_some() && timer.as_mut().poll(context).is_ready(),
                };
                let is_any = ready.rung || !matches!(ready.received, Ok(0)) || ready.writable || ready.due;
                if is_any { Poll::Ready(ready) } else { Poll::Pending }
            })
            .await
        };
        let Ok(received) = ready.received else { return true };
        if received > 0 && driver.waits_for_tcp() {
            // Else the system waits 40 ms for an answer to send its acknowledgement with; a socket without
            // the option is slower.
            let _ = set_tcp_quickack(&*stream, true);
        }
        more = received == READ_BYTES;
        // What was received looks at everything else too.
        if ready.rung && received == 0 {
            driver.woken();
        }
        if ready.due {
            armed = None;
            if driver.is_due() {
                // After a pause of the gateway the time is over, and nobody has seen yet what has
                // come meanwhile.
                if looked < LOOKS && driver.wants_read() && is(stream, PollFlags::IN) {
                    looked += 1;
                    tokio::task::yield_now().await;
                    continue;
                }
                driver.hung_up = !driver.wants_read() && is(stream, PollFlags::RDHUP);
                driver.timeout();
            }
            looked = 0;
        }
        more |= driver.take_turn_over();
        if !driver.is_entering() {
            drop(entering.take());
        }
    }
}

/// Tells the driver what there is, and gives how much. A read that did not fill the buffer is the last until there is news: it is not asked again for nothing, which
/// `try_read` would be.
fn read(stream: &mut TcpStream, context: &mut Context<'_>, driver: &mut Driver) -> io::Result<usize> {
    READ.with_borrow_mut(|buffer| {
        let bytes = if driver.gateway().inbound.is_short() { SMALL_BYTES } else { READ_BYTES };
        let mut buffer = ReadBuf::new(buffer.get_mut(..bytes).unwrap_or_default());
        match Pin::new(stream).poll_read(context, &mut buffer) {
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => Err(ErrorKind::UnexpectedEof.into()),
            Poll::Ready(Ok(())) => {
                driver.received(buffer.filled());
                Ok(buffer.filled().len())
            }
            Poll::Ready(Err(e)) => Err(e),
            Poll::Pending => Ok(0),
        }
    })
}

/// Writes what the socket takes; makes more when deliveries had stopped for want of room. True: it would take more, but had its turn.
fn flush(stream: &TcpStream, driver: &mut Driver, turn_bytes: usize) -> io::Result<bool> {
    let mut written = 0;
    while !driver.out.is_empty() {
        if written >= turn_bytes {
            return Ok(true);
        }
        match stream.try_write(driver.out.unsent()) {
            Ok(n) => {
                written += n;
                driver.written(n);
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}
