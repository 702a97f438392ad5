//! A backend that resumes by position: each message says where it stands in the log, the place is stored together with the result, and after any crash the work goes on behind
//! it. So each message has its effect once, without a session in the broker. With rumqttc, version 5.
//!
//! ```text
//! cargo run --example consumer -- 127.0.0.1:1883 'devices/#' total.json
//! ```
//!
//! Sums up numbers. Ends with SIGINT, or SIGKILL: that is the point.

use rumqttc::v5::{
    AsyncClient, Event, MqttOptions,
    mqttbytes::{
        QoS,
        v5::{Filter, Packet, Publish, SubscribeProperties},
    },
};
use serde_json::{Value, json};
use std::{fs, io::Write, path::Path, time::Duration};

/// What came of the messages, and the first offset that is not in it: one file, so that they cannot part.
struct Result {
    sum: u64,
    count: u64,
    next: u64,
}

impl Result {
    fn load(path: &Path) -> Self {
        let stored: Value = fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let number = |key: &str| stored[key].as_u64().unwrap_or(0);
        Self { sum: number("sum"), count: number("count"), next: number("next") }
    }

    /// Whole or not at all, whatever happens: a new file takes the place of the old one.
    fn store(&self, path: &Path) {
        let new = path.with_extension("new");
        let mut file = fs::File::create(&new).expect("a file");
        write!(file, "{}", json!({ "sum": self.sum, "count": self.count, "next": self.next })).expect("written");
        file.sync_all().expect("synced");
        fs::rename(new, path).expect("renamed");
    }
}

fn offset(p: &Publish) -> Option<u64> {
    let properties = &p.properties.as_ref()?.user_properties;
    properties.iter().find(|(name, _)| name == "offset")?.1.parse().ok()
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, broker, filter, file] = &args[..] else { panic!("usage: consumer HOST:PORT FILTER FILE") };
    let (host, port) = broker.split_once(':').expect("HOST:PORT");
    let path = Path::new(file);
    let mut result = Result::load(path);

    let mut options = MqttOptions::new(format!("consumer-{}", std::process::id()), host, port.parse().expect("a port"));
    // The library would take no more than 10 KiB.
    options.set_keep_alive(Duration::from_secs(5)).set_clean_start(true).set_max_packet_size(Some(8 << 20));
    let (client, mut connection) = AsyncClient::new(options, 10);
    loop {
        match connection.poll().await {
            Ok(Event::Incoming(Packet::ConnAck(_))) => {
                let from = ("from".into(), format!("offset:{}", result.next));
                let properties = SubscribeProperties { id: None, user_properties: vec![from, ("position".into(), "true".into())] };
                let filters = [Filter::new(filter.clone(), QoS::AtLeastOnce)];
                client.subscribe_many_with_properties(filters, properties).await.expect("a connection loop");
            }
            Ok(Event::Incoming(Packet::Publish(p))) => {
                let Some(offset) = offset(&p).filter(|offset| *offset >= result.next) else { continue };
                let number: u64 = std::str::from_utf8(&p.payload).ok().and_then(|text| text.parse().ok()).unwrap_or(0);
                (result.sum, result.count, result.next) = (result.sum + number, result.count + 1, offset + 1);
                result.store(path);
            }
            Ok(_) => {}
            Err(e) => {
                eprintln!("{e}; again in 200 ms");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}
