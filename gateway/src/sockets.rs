//! How many sockets are open at once. The log keeps descriptors of its own: listeners stop accepting before it runs out.
//!
//! Invariant: a socket holds its place until its descriptor is closed, whatever it has become meanwhile.
//! Must not know: what is spoken over them.

use parking_lot::Mutex;
use rustix::process::{Resource, getrlimit};
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};

/// Descriptors that are the log's: segments that are open for readers, one that is begun, its directory.
const RESERVED: u64 = 256;
/// A line about sockets that wait, at most.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Places for sockets.
#[derive(Clone, Debug)]
pub(crate) struct Sockets {
    all: Arc<Semaphore>,
    pub most: usize,
    /// When it was said last that sockets wait.
    said: Arc<Mutex<Option<Instant>>>,
}

/// A socket's place.
#[derive(Debug)]
pub(crate) struct Place(#[expect(dead_code, reason = "given back when it is dropped")] OwnedSemaphorePermit);

impl Sockets {
    fn of(most: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(most)), most, said: Arc::default() }
    }

    /// Below this limit of descriptors.
    pub fn within(descriptors: u64) -> Self {
        let most = descriptors.saturating_sub(RESERVED.min(descriptors / 2)).clamp(1, Semaphore::MAX_PERMITS as u64) as usize;
        Self::of(most)
    }

    /// Below the limit of this process.
    pub fn of_process() -> Self {
        Self::within(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX))
    }

    /// Some of them, which must be had too.
    pub fn part(&self, most: usize) -> Self {
        Self::of(most.min(self.most))
    }

    pub fn open(&self) -> usize {
        self.most.saturating_sub(self.all.available_permits())
    }

    /// Waits for a place.
    pub async fn place(&self, listener: &'static str) -> Place {
        if let Ok(place) = self.all.clone().try_acquire_owned() {
            return Place(place);
        }
        loop {
            self.say(listener);
            match tokio::time::timeout(SAY_EVERY, self.all.clone().acquire_owned()).await {
                Ok(Ok(place)) => return Place(place),
                // Nobody closes it.
                Ok(Err(_)) => std::future::pending().await,
                Err(_) => {}
            }
        }
    }

    /// Warns that sockets wait, unless that was said a short while ago.
    fn say(&self, listener: &'static str) {
        let mut said = self.said.lock();
        if said.is_none_or(|at| at.elapsed() >= SAY_EVERY) {
            *said = Some(Instant::now());
            let most = self.most;
            tracing::warn!(
                listener,
                most,
                "as many sockets are open as may be: others wait. Raise the limit of open files (LimitNOFILE) for more"
            );
        }
    }
}

/// Accepts a connection, and waits where there is no descriptor: others have taken them, in this process or in the whole machine.
pub(crate) async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let mut said = None::<tokio::time::Instant>;
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(e) => {
                if said.is_none_or(|at| at.elapsed() > SAY_EVERY) {
                    tracing::warn!("accepting a connection: {e}; it is tried again");
                    said = Some(tokio::time::Instant::now());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// A socket with its places.
pub(crate) struct Held {
    pub stream: TcpStream,
    /// Given back behind it.
    pub _places: [Place; 2],
}

impl AsyncRead for Held {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Held {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_keeps_256_descriptors_or_half_of_few() {
        for (limit, most) in [(1_024, 768), (1 << 20, (1 << 20) - 256), (512, 256), (120, 60), (1, 1), (0, 1)] {
            assert_eq!(Sockets::within(limit).most, most, "{limit}");
        }
    }

    #[tokio::test]
    async fn who_comes_beyond_waits_for_a_place() {
        let sockets = Sockets::within(4);
        let (a, _b) = (sockets.place("test").await, sockets.place("test").await);
        assert_eq!(sockets.open(), 2);
        let waiting = tokio::time::timeout(Duration::from_millis(50), sockets.place("test")).await;
        assert!(waiting.is_err());
        drop(a);
        let _c = tokio::time::timeout(Duration::from_secs(5), sockets.place("test")).await.expect("a place");
    }
}
