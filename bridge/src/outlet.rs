//! Where a subscription's messages go: a websocket that several share, or a stream of server-sent events.
//!
//! Invariant: one message at a time, whole; who takes nothing for too long is gone. What a subscription has to say is made when it has its turn, so what waits for a slow
//! socket is no more than one message.
//! Must not know: what is said.

use crate::upgrade::Socket;
use futures_util::{SinkExt, stream::SplitSink};
use std::{sync::Arc, time::Duration};
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

/// A browser that has not taken a message after so long is gone; one that takes nothing of it is closed earlier, by its socket.
const STALL: Duration = Duration::from_secs(30);

/// Nobody is there any more.
#[derive(Debug)]
pub struct Gone;

type Sink = SplitSink<Socket, Message>;

#[derive(Clone)]
pub enum Outlet {
    Socket(Arc<Mutex<Sink>>),
    /// Of one subscription.
    Events(mpsc::Sender<String>),
}

/// Nobody else says anything meanwhile.
pub enum Turn {
    Socket(OwnedMutexGuard<Sink>),
    Events(mpsc::Sender<String>),
}

impl Outlet {
    /// Every message goes with where it leads to.
    #[must_use]
    pub fn wants_positions(&self) -> bool {
        matches!(self, Self::Events(_))
    }

    /// When others have said what they are saying.
    pub async fn turn(&self) -> Turn {
        match self {
            Self::Socket(sink) => Turn::Socket(sink.clone().lock_owned().await),
            Self::Events(events) => Turn::Events(events.clone()),
        }
    }

    /// `reached`: for who comes again.
    pub async fn say(&self, text: Utf8Bytes, reached: Option<String>) -> Result<(), Gone> {
        self.turn().await.say(text, reached).await
    }
}

impl Turn {
    /// `reached`: for who comes again.
    pub async fn say(&mut self, text: Utf8Bytes, reached: Option<String>) -> Result<(), Gone> {
        let sent = async {
            match self {
                Self::Socket(sink) => sink.send(Message::Text(text)).await.map_err(|_| Gone),
                Self::Events(events) => {
                    let id = reached.map_or(String::new(), |r| format!("id: {r}\n"));
                    events.send(format!("{id}data: {}\n\n", text.as_str())).await.map_err(|_| Gone)
                }
            }
        };
        tokio::time::timeout(STALL, sent).await.unwrap_or(Err(Gone))
    }
}
