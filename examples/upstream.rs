//! Weir in front of another broker: what devices publish is safe in Weir's log, and is carried to a rumqttd as fast as that takes it. A message is acknowledged to Weir
//! only when the other broker has acknowledged it, so nothing is lost while either is away (at least once: after a break some come twice).
//! The rumqttd runs in this process, to have a remote side at hand; it listens like any other.
//!
//! ```text
//! cargo run --example upstream -- 127.0.0.1:1883 'devices/#' 127.0.0.1:1884
//! ```

use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, Publish, QoS};
use serde_json::json;
use std::{collections::VecDeque, time::Duration};

/// As large as Weir takes them; the library would take no more than 10 KiB.
const PACKET_BYTES_MAX: usize = 8 << 20;
/// Messages on their way to the other broker.
const WINDOW: u16 = 100;

fn remote_broker(listen: &str) {
    let config = json!({
        "id": 0,
        "router": { "max_connections": 100, "max_outgoing_packet_count": 200, "max_segment_size": 10_485_760, "max_segment_count": 10 },
        "v4": { "1": {
            "name": "v4", "listen": listen, "next_connection_delay_ms": 1,
            "connections": { "connection_timeout_ms": 5_000, "max_payload_size": PACKET_BYTES_MAX, "max_inflight_count": 200, "dynamic_filters": true },
        } },
    });
    let mut broker = rumqttd::Broker::new(serde_json::from_value(config).expect("a configuration"));
    std::thread::spawn(move || broker.start().expect("a broker"));
}

fn connect(address: &str, id: &str, manual: bool) -> (AsyncClient, EventLoop) {
    let (host, port) = address.split_once(':').expect("HOST:PORT");
    let mut options = MqttOptions::new(id, host, port.parse().expect("a port"));
    options.set_clean_session(false).set_manual_acks(manual).set_inflight(WINDOW).set_keep_alive(Duration::from_secs(5));
    options.set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX);
    // No more can wait than there are packet ids: as many acknowledgements when Weir delivers faster than they leave.
    AsyncClient::new(options, usize::from(u16::MAX))
}

async fn again(what: &str, e: rumqttc::ConnectionError) {
    eprintln!("{what}: {e}; again in 200 ms");
    tokio::time::sleep(Duration::from_millis(200)).await;
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, weir, filter, listen] = &args[..] else { panic!("usage: upstream HOST:PORT FILTER LISTEN") };
    remote_broker(listen);
    let (weir, mut from_weir) = connect(weir, "upstream", true);
    let (remote, mut from_remote) = connect(listen, "weir", false);
    // Carried, in order, and not acknowledged by the other broker yet; before them those of an earlier connection to Weir, which delivers them again.
    let (mut open, mut stale): (VecDeque<Publish>, usize) = (VecDeque::new(), 0);
    loop {
        let room = stale + open.len() < usize::from(WINDOW);
        tokio::select! {
            event = from_weir.poll(), if room => match event {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    stale += open.len();
                    open.clear();
                    weir.try_subscribe(filter, QoS::AtLeastOnce).expect("room");
                }
                Ok(Event::Incoming(Packet::Publish(p))) => {
                    remote.try_publish(&p.topic, QoS::AtLeastOnce, p.retain, p.payload.clone()).expect("room for a window");
                    open.push_back(p);
                }
                Ok(_) => {}
                Err(e) => again("Weir", e).await,
            },
            event = from_remote.poll() => match event {
                Ok(Event::Incoming(Packet::PubAck(_))) if stale > 0 => stale -= 1,
                Ok(Event::Incoming(Packet::PubAck(_))) => {
                    if let Some(done) = open.pop_front() {
                        weir.try_ack(&done).expect("room for every packet id");
                    }
                }
                Ok(_) => {}
                Err(e) => again("the other broker", e).await,
            },
        }
    }
}
