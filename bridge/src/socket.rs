//! One browser on the feed `/ws`: several subscriptions, each a task of its own, on one websocket.
//!
//! Invariant: what a browser says wrong costs only itself; everything it has ends with its socket.
//! Must not know: what a subscription does.

use crate::{
    ask::Ask,
    feed::{Counts, Feed},
    frame,
    outlet::{Gone, Outlet},
    subscription,
    upgrade::{Messages, Socket, broken, close, upgrade},
};
use axum::{
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    sync::Mutex,
    task::{AbortHandle, JoinSet},
};
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};
use weir_log::Asker;

/// A subscription is one short line; `resume` names every partition.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// A page needs a handful; each is a task of about 1 KiB.
const SUBSCRIPTIONS_MAX: usize = 64;
/// About 30 KiB each.
pub const BROWSERS_MAX: u64 = 20_000;
/// So that a page knows a silent gateway from one that is gone.
const BEAT: Duration = Duration::from_secs(10);

#[must_use]
pub fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// A browser, as long as it is there.
pub struct Here(Arc<Feed>);

impl Here {
    /// `None`: there are too many.
    #[must_use]
    pub fn new(feed: &Arc<Feed>) -> Option<Self> {
        let Counts { browsers, refused, .. } = &feed.counts;
        if browsers.fetch_add(1, Ordering::Relaxed) >= BROWSERS_MAX {
            browsers.fetch_sub(1, Ordering::Relaxed);
            refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(Self(feed.clone()))
    }

    #[must_use]
    pub fn refused() -> Response {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{BROWSERS_MAX} browsers are here already\n")).into_response()
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        self.0.counts.browsers.fetch_sub(1, Ordering::Relaxed);
    }
}

pub async fn ws(State(feed): State<Arc<Feed>>, request: Request) -> Response {
    let Some(here) = Here::new(&feed) else { return Here::refused() };
    upgrade(request, &[], Messages::Whole(MESSAGE_BYTES_MAX), |socket| serve(socket, feed, here))
}

struct Browser {
    feed: Arc<Feed>,
    outlet: Outlet,
    tasks: JoinSet<Result<(), Gone>>,
    running: HashMap<u32, AbortHandle>,
    by: Asker,
}

impl Browser {
    async fn hear(&mut self, text: &str) -> Result<(), Gone> {
        let ask = match serde_json::from_str(text) {
            Ok(ask) => ask,
            Err(e) => {
                let words =
                    format!("expected {{\"type\":\"subscribe\",\"id\":1,\"filter\":\"…\"}} or {{\"type\":\"unsubscribe\",\"id\":1}}: {e}");
                return self.outlet.say(frame::error(None, &words), None).await;
            }
        };
        match ask {
            Ask::Figures { id } => {
                if let Err(words) = self.room(id) {
                    return self.outlet.say(frame::error(Some(id), &words), None).await;
                }
                let (mut figures, outlet) = (self.feed.figures.subscribe(), self.outlet.clone());
                let task = self.tasks.spawn(async move {
                    while figures.changed().await.is_ok() {
                        let text = figures.borrow_and_update().clone();
                        outlet.say(text, None).await?;
                    }
                    Ok(())
                });
                self.running.insert(id, task);
                Ok(())
            }
            Ask::Unsubscribe { id } => {
                self.end(id);
                Ok(())
            }
            Ask::Subscribe(wanted) => {
                let id = wanted.id;
                match self.room(id).and_then(|()| wanted.wish(wall_ms())) {
                    Ok(wish) => {
                        let task = self.tasks.spawn(subscription::run(self.feed.clone(), wish, self.outlet.clone(), self.by.part()));
                        self.running.insert(id, task);
                        Ok(())
                    }
                    Err(words) => self.outlet.say(frame::error(Some(id), &words), None).await,
                }
            }
        }
    }

    /// Room for a subscription of this name; one that has it ends.
    fn room(&mut self, id: u32) -> Result<(), String> {
        self.end(id);
        self.running.retain(|_, task| !task.is_finished());
        if self.running.len() < SUBSCRIPTIONS_MAX {
            return Ok(());
        }
        Err(format!("{SUBSCRIPTIONS_MAX} subscriptions are the most of one socket"))
    }

    fn end(&mut self, id: u32) {
        if let Some(task) = self.running.remove(&id) {
            task.abort();
        }
    }
}

/// Ends when the socket does.
async fn serve(socket: Socket, feed: Arc<Feed>, _here: Here) {
    let (sink, mut stream) = socket.split();
    let sink = Arc::new(Mutex::new(sink));
    let outlet = Outlet::Socket(sink.clone());
    let mut browser = Browser { feed, outlet, tasks: JoinSet::new(), running: HashMap::new(), by: Asker::browser() };
    let mut beat = tokio::time::interval(BEAT);
    let code = loop {
        let done = tokio::select! {
            message = stream.next() => match message {
                Some(Ok(Message::Text(text))) => browser.hear(&text).await,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(()),
                Some(Ok(Message::Close(_))) => break None,
                Some(Ok(Message::Binary(_) | Message::Frame(_))) => break Some(CloseCode::Unsupported),
                Some(Err(e)) => match broken(&e) {
                    Some(code) => break Some(code),
                    None => return,
                },
                None => return,
            },
            Some(ended) = browser.tasks.join_next() => match ended {
                // One that was ended by its browser is no error.
                Err(e) if e.is_cancelled() => Ok(()),
                Err(_) => Err(Gone),
                Ok(ended) => ended,
            },
            _ = beat.tick() => browser.outlet.say(frame::beat(wall_ms()), None).await,
        };
        if done.is_err() {
            return;
        }
    };
    // With its tasks ends whatever they were sending.
    browser.tasks.shutdown().await;
    drop(browser);
    if let Some(sink) = Arc::into_inner(sink) {
        close(sink.into_inner(), stream, code).await;
    }
}
