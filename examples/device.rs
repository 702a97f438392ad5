//! A device that survives restarts, its own connection's and the broker's: with QoS 1 and a session that is kept, what was not acknowledged is sent again after the
//! reconnect. With rumqttc, version 3.1.1.
//!
//! ```text
//! cargo run --example device -- 127.0.0.1:1883 sensor-7 100      100 readings under devices/sensor-7/temperature
//! ```
//!
//! Exit code 0 when every reading was acknowledged.

use rumqttc::{AsyncClient, Event, MqttOptions, Outgoing, Packet, QoS};
use std::time::Duration;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, broker, id, count] = &args[..] else { panic!("usage: device HOST:PORT ID COUNT") };
    let (host, port) = broker.split_once(':').expect("HOST:PORT");
    let count: u64 = count.parse().expect("a number");

    let mut options = MqttOptions::new(id, host, port.parse().expect("a port"));
    // The session outlives the connection: the broker knows what it has acknowledged, and so does the client.
    options.set_clean_session(false).set_keep_alive(Duration::from_secs(5));
    let (client, mut connection) = AsyncClient::new(options, 10);

    let topic = format!("devices/{id}/temperature");
    tokio::spawn(async move {
        for n in 0..count {
            // Waits while the broker is away and ten readings wait already; a real device would drop or store here.
            client.publish(&topic, QoS::AtLeastOnce, false, n.to_string()).await.expect("a connection loop");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // The requests that wait are in this handle: it must live until they are done.
        std::future::pending::<()>().await;
    });

    let (mut acknowledged, mut sent) = (0, 0);
    while acknowledged < count {
        match connection.poll().await {
            Ok(Event::Incoming(Packet::PubAck(_))) => acknowledged += 1,
            Ok(Event::Outgoing(Outgoing::Publish(_))) => sent += 1,
            Ok(Event::Incoming(Packet::ConnAck(a))) => {
                eprintln!("connected, the session was {}", if a.session_present { "kept" } else { "new" })
            }
            Ok(_) => {}
            Err(e) => {
                eprintln!("{e}; again in 200 ms");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
    println!("{count} readings acknowledged, {sent} sent");
}
