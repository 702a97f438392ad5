//! The dashboard feed from the command line: newest value per topic at a position, then every record after it, as JSON over a websocket.
//!
//! ```text
//! cargo run --example dashboard -- ws://127.0.0.1:8080/ws 'site/#' [COUNT]
//! ```
//!
//! Prints `TOPIC VALUE` for each; ends after COUNT, if that is said.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::{connect_async, tungstenite::Message};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let (url, filter) = match &args[..] {
        [_, url, filter] | [_, url, filter, _] => (url, filter),
        _ => panic!("usage: dashboard URL FILTER [COUNT]"),
    };
    let mut left: u64 = args.get(3).map_or(u64::MAX, |n| n.parse().expect("a number"));

    let (mut socket, _) = connect_async(url).await.expect("Weir's HTTP port");
    socket.send(Message::text(json!({ "type": "subscribe", "id": 1, "filter": filter }).to_string())).await.expect("sent");
    while let Some(Ok(message)) = socket.next().await {
        let Message::Text(text) = message else { continue };
        let told: Value = serde_json::from_str(&text).expect("JSON");
        if told["type"] == "error" {
            panic!("{}", told["message"]);
        }
        if told["type"] == "snapshot" {
            eprintln!("the newest of each topic before record {} of {}/{}", told["position"], told["stream"], told["partition"]);
        }
        for record in told["records"].as_array().into_iter().flatten() {
            // `text` for what is UTF-8, else `base64`.
            println!("{} {}", record["topic"].as_str().unwrap_or_default(), record["text"].as_str().unwrap_or("(bytes)"));
            left -= 1;
            if left == 0 {
                return;
            }
        }
    }
}
