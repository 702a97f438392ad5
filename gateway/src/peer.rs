//! What the rest of the gateway may tell one connection: its mailbox, its inboxes, and its bell.
//!
//! Invariant: whoever puts something here rings afterwards; the connection empties everything when it is rung. So no wake-up is lost.
//! Must not know: sessions, sockets.

use crate::account::Room;
use parking_lot::{Mutex, MutexGuard};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
};
use tokio::sync::{Notify, mpsc::UnboundedSender, oneshot};
use weir_core::{
    fanout::Inbox,
    group::Place,
    ids::{Offset, PartitionId, SubscribeId},
    packet::Version,
    session::describe::Description,
};
use weir_log::{Entry, Fetched, ReadError, Wake};

/// Answers and orders that wait to be looked at.
#[derive(Default)]
pub(crate) struct Mail {
    pub started: Vec<(SubscribeId, PartitionId, Offset)>,
    /// Tails that have offered everything before this offset.
    pub offered: Vec<(PartitionId, Offset)>,
    /// Offsets that groups have come to.
    pub groups_reached: Vec<Vec<Offset>>,
    /// Shared subscriptions whose groups are durable.
    pub shared: Vec<SubscribeId>,
    /// Records that groups gave.
    pub given: Vec<(SubscribeId, Place)>,
    /// Put what is stored, then drop it.
    pub checkpoint: Option<UnboundedSender<()>>,
    /// A retained message that the log no longer has, from the state store.
    pub kept: Option<Result<Option<Entry>, ReadError>>,
    pub fetched: Option<Result<Fetched, ReadError>>,
    /// The log could not be read where a subscription was to begin.
    pub unread: Option<ReadError>,
    /// A record that becomes a dead letter.
    pub dying: Option<Result<Fetched, ReadError>>,
    pub loaded: Option<Result<Option<Entry>, ReadError>>,
    /// The client id is this connection's now.
    pub owned: bool,
    /// Another connection asks for the client id.
    pub taken_over: bool,
    /// While it waited for the client id, another came after it.
    pub replaced: bool,
    /// Somebody who runs the gateway wants it gone.
    pub dismissed: bool,
    /// Who wants to know what its session does.
    pub describe: Vec<oneshot::Sender<Description>>,
    pub drain: bool,
    /// Room for a large message that it is sent.
    pub out_room: Option<Room>,
}

/// Who a connection is, once it has said so.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub client_id: Arc<str>,
    pub version: Version,
    pub connected_ms: u64,
}

pub(crate) struct Peer {
    pub id: u64,
    /// Where it comes from, if that is known.
    pub address: Option<SocketAddr>,
    identity: OnceLock<Identity>,
    bell: Notify,
    /// Held only while there is any: most connections are told nothing most of the time.
    mail: Mutex<Option<Box<Mail>>>,
    /// One per partition, in the order of the engine.
    partitions: Box<[OfPartition]>,
    /// It has a socket.
    connected: AtomicBool,
    /// Its session is in the state store.
    stored: AtomicBool,
    /// Bytes of the messages that it published, since they were taken last.
    published: AtomicU64,
}

struct OfPartition {
    inbox: Mutex<Inbox>,
    /// What it reads next while it is behind, else `LIVE`.
    behind: AtomicU64,
}

const LIVE: u64 = u64::MAX;

impl PartialEq for Peer {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Peer {
    pub fn new(id: u64, partitions: usize, address: Option<SocketAddr>) -> Self {
        Self {
            id,
            address,
            identity: OnceLock::new(),
            bell: Notify::new(),
            mail: Mutex::default(),
            partitions: (0..partitions).map(|_| OfPartition { inbox: Mutex::default(), behind: AtomicU64::new(LIVE) }).collect(),
            connected: AtomicBool::new(false),
            stored: AtomicBool::new(false),
            published: AtomicU64::new(0),
        }
    }

    /// Of the nth partition.
    pub fn inbox(&self, nth: usize) -> MutexGuard<'_, Inbox> {
        self.partitions[nth].inbox.lock()
    }

    pub fn tell(&self, write: impl FnOnce(&mut Mail)) {
        write(self.mail.lock().get_or_insert_default());
        self.wake();
    }

    pub fn take(&self) -> Option<Box<Mail>> {
        self.mail.lock().take()
    }

    pub fn identify(&self, identity: Identity) {
        let _said_once = self.identity.set(identity);
    }

    pub fn identity(&self) -> Option<&Identity> {
        self.identity.get()
    }

    pub fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Relaxed);
    }

    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Gives what it was before.
    pub fn set_stored(&self, stored: bool) -> bool {
        self.stored.swap(stored, Ordering::Relaxed)
    }

    pub fn is_stored(&self) -> bool {
        self.stored.load(Ordering::Relaxed)
    }

    pub fn add_published(&self, bytes: u64) {
        self.published.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn take_published(&self) -> u64 {
        self.published.swap(0, Ordering::Relaxed)
    }

    /// What it reads next in the nth partition while it is behind; `None`: it is live, or reads nothing.
    pub fn set_behind(&self, nth: usize, next: Option<Offset>) {
        if let Some(partition) = self.partitions.get(nth) {
            partition.behind.store(next.map_or(LIVE, |at| at.0), Ordering::Relaxed);
        }
    }

    /// Records that it is behind, over all partitions; `None`: it is not.
    pub fn lag(&self, ends: &[u64]) -> Option<u64> {
        let next = self.partitions.iter().map(|p| p.behind.load(Ordering::Relaxed));
        let lags = next.zip(ends).filter(|(next, _)| *next != LIVE).map(|(next, end)| end.saturating_sub(next));
        lags.reduce(|a, b| a + b).filter(|lag| *lag > 0)
    }

    pub async fn rung(&self) {
        self.bell.notified().await;
    }
}

impl Wake for Peer {
    fn wake(&self) {
        // Keeps one permit: rung before somebody waits is rung all the same.
        self.bell.notify_one();
    }
}
