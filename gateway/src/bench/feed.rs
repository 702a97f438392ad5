//! Browsers on Weir's dashboard feed, without a browser: each gets every message as JSON over a websocket.
//!
//! Invariant: the same checks as for MQTT subscribers; a browser that is given a new snapshot instead of records has lost what lay between.
//! Must not know: MQTT.

use super::{
    Load,
    flow::{Got, Run},
    message::Mark,
    name,
    report::Report,
    scenarios::{Subscribers, measure, publishers},
};
use crate::client::Failure;
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use std::{borrow::Cow, sync::Arc, sync::atomic::Ordering};
use tokio::{net::TcpStream, sync::watch};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, Utf8Bytes},
};

/// Messages per second if nothing is said: more than a screen shows.
const RATE: f64 = 1_000.0;

#[derive(Deserialize)]
pub struct Shown<'a> {
    #[serde(borrow)]
    pub text: Option<Cow<'a, str>>,
}

/// A message of the feed.
#[derive(Deserialize)]
pub struct Told<'a> {
    #[serde(rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    pub records: Vec<Shown<'a>>,
    #[serde(default)]
    done: bool,
    message: Option<String>,
}

pub type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// The next message, as it is written.
pub async fn next(socket: &mut Socket) -> Result<Utf8Bytes, Failure> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Text(text))) => return Ok(text),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Err(e)) => return Err(Failure::new(e)),
            _ => return Err(Failure::new("the feed closed the connection")),
        }
    }
}

pub fn understood(text: &str) -> Result<Told<'_>, Failure> {
    let told: Told<'_> = serde_json::from_str(text).map_err(|e| Failure::new(format!("the feed says what is not understood: {e}")))?;
    match told.message {
        Some(message) => Err(Failure::new(format!("the feed says: {message}"))),
        None => Ok(told),
    }
}

/// A browser that has its snapshot: what is published from now on it is told.
pub async fn open(url: &str, mut ask: serde_json::Value) -> Result<Socket, Failure> {
    let failed = |e| Failure::new(format!("{url}: {e}"));
    let (mut socket, _) = connect_async(url).await.map_err(failed)?;
    (ask["type"], ask["id"]) = ("subscribe".into(), 1.into());
    socket.send(Message::text(ask.to_string())).await.map_err(failed)?;
    loop {
        let text = next(&mut socket).await?;
        let told = understood(&text)?;
        if told.kind == "snapshot" && told.done {
            return Ok(socket);
        }
    }
}

struct Browser {
    socket: Socket,
    run: Arc<Run>,
    got: Got,
}

impl Browser {
    async fn hear(&mut self) -> Result<(), Failure> {
        let text = next(&mut self.socket).await?;
        let told = understood(&text)?;
        let (now, measuring) = (self.run.now_ns(), self.run.is_measuring());
        let marks = told.records.iter().filter_map(|r| Mark::parse(r.text.as_ref()?.as_bytes()));
        let news: u64 = marks.map(|mark| self.got.see(mark, false, now, measuring)).sum();
        self.run.delivered.fetch_add(news, Ordering::Relaxed);
        Ok(())
    }

    async fn listen(mut self, mut stop: watch::Receiver<bool>) -> Result<Got, Failure> {
        loop {
            tokio::select! {
                heard = self.hear() => heard?,
                _ = stop.wait_for(|stop| *stop) => return Ok(self.got),
            };
        }
    }
}

pub async fn run(load: &Load, url: &str, browsers: u32, count: u32) -> Result<Report, Failure> {
    let load = &Load { rate: load.rate.or(Some(RATE)), ..load.clone() };
    let (run, target, name) = (Run::new(), load.target(), name());
    let mut subscribers = Subscribers::new();
    for _ in 0..browsers {
        let socket = open(url, serde_json::json!({ "filter": format!("{name}/#") })).await?;
        let browser = Browser { socket, run: run.clone(), got: Got::new() };
        let stopping = subscribers.stopping();
        subscribers.push((0..count).collect(), tokio::spawn(browser.listen(stopping)));
    }
    let publishers = publishers(load, &target, &run, &name, count, load.pace(count)).await?;
    measure(load, &run, load.report("feed"), publishers, subscribers).await
}
