//! Where a subscription's messages go: a websocket that several share, or a stream of server-sent events.
//!
//! Invariant: one message at a time, whole; who takes nothing for too long is gone.
//! Must not know: what is said.

use crate::upgrade::Socket;
use futures_util::{SinkExt, stream::SplitSink};
use std::{sync::Arc, time::Duration};
use tokio::sync::{Mutex, mpsc};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

/// A browser that takes nothing for so long is gone.
const STALL: Duration = Duration::from_secs(30);

/// Nobody is there any more.
#[derive(Debug)]
pub struct Gone;

#[derive(Clone)]
pub enum Outlet {
    Socket(Arc<Mutex<SplitSink<Socket, Message>>>),
    Events(mpsc::Sender<String>),
}

impl Outlet {
    /// Every message goes with where it leads to.
    #[must_use]
    pub fn wants_positions(&self) -> bool {
        matches!(self, Self::Events(_))
    }

    /// `reached`: for who comes again.
    pub async fn say(&self, text: Utf8Bytes, reached: Option<String>) -> Result<(), Gone> {
        let sent = async {
            match self {
                Self::Socket(sink) => sink.lock().await.send(Message::Text(text)).await.map_err(|_| Gone),
                Self::Events(events) => {
                    let id = reached.map_or(String::new(), |r| format!("id: {r}\n"));
                    events.send(format!("{id}data: {}\n\n", text.as_str())).await.map_err(|_| Gone)
                }
            }
        };
        tokio::time::timeout(STALL, sent).await.unwrap_or(Err(Gone))
    }
}
