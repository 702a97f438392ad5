//! A small fleet that makes something to look at: fifty devices over real MQTT, as a user's own would come.
//!
//! Invariant: speaks to the gateway over its port only, like anybody else.
//! Must not know: the gateway's insides.

use crate::client::PACKET_BYTES_MAX;
use rumqttc::{AsyncClient, EventLoop, LastWill, MqttOptions, QoS, v5};
use std::{
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// For a gateway to answer.
const REACH: Duration = Duration::from_secs(5);
const THERMOMETERS: u64 = 30;
const DOORS: u64 = 10;
const TRUCKS: u64 = 8;
/// A fleet is in Porto.
const HOME: (f64, f64) = (41.15, -8.62);
/// Of the flaky device: it says nothing and is gone.
const FLAKY_LIFE: Duration = Duration::from_secs(8);
/// What the slow consumer takes at once, and what it needs for one message.
const SLOW_WINDOW: u16 = 10;
const SLOW_WORK: Duration = Duration::from_millis(400);

/// xorshift64*: the fleet is the same every day.
struct Dice(u64);

impl Dice {
    fn of(n: u64) -> Self {
        Self((n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// In [0, 1).
    fn roll(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn between(&mut self, from: f64, to: f64) -> f64 {
        from + self.roll() * (to - from)
    }

    fn pause(&mut self, from_ms: f64, to_ms: f64) -> Duration {
        Duration::from_millis(self.between(from_ms, to_ms) as u64)
    }
}

fn options(id: &str, mqtt: SocketAddr) -> MqttOptions {
    let mut options = MqttOptions::new(id, mqtt.ip().to_string(), mqtt.port());
    options.set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX);
    options.set_keep_alive(Duration::from_secs(30)).set_clean_session(true);
    options
}

/// Keeps a client's connection alive, and comes back a second after it broke.
async fn keep(mut connection: EventLoop) {
    loop {
        if connection.poll().await.is_err() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// One device: publishes what `next` gives, after the pause that it gives.
async fn device(id: String, mqtt: SocketAddr, mut next: impl FnMut() -> (Duration, String, QoS, bool, String)) {
    let (client, connection) = AsyncClient::new(options(&id, mqtt), 10);
    tokio::spawn(keep(connection));
    loop {
        let (pause, topic, qos, retain, payload) = next();
        tokio::time::sleep(pause).await;
        if client.publish(topic, qos, retain, payload).await.is_err() {
            return;
        }
    }
}

fn thermometer(n: u64, mqtt: SocketAddr) {
    let (site, room, mut dice) = (["lisbon", "porto", "faro"][n as usize % 3], n / 3 + 1, Dice::of(n));
    let mut celsius = dice.between(18.0, 24.0);
    tokio::spawn(device(format!("thermometer-{n}"), mqtt, move || {
        celsius += dice.between(-0.15, 0.15) + (21.0 - celsius) * 0.01;
        let payload = format!(r#"{{"celsius":{celsius:.2},"humidity":{:.0}}}"#, dice.between(38.0, 46.0));
        (dice.pause(800.0, 1_600.0), format!("site/{site}/room-{room}/climate"), QoS::AtLeastOnce, false, payload)
    }));
}

fn door(n: u64, mqtt: SocketAddr) {
    let mut dice = Dice::of(100 + n);
    let mut open = false;
    // Everybody is seen within two seconds, and then now and then.
    let mut first = true;
    tokio::spawn(device(format!("door-{n}"), mqtt, move || {
        open = !open;
        let pause = if std::mem::take(&mut first) { dice.pause(0.0, 2_000.0) } else { dice.pause(3_000.0, 15_000.0) };
        let payload = if open { "open" } else { "closed" };
        (pause, format!("site/porto/door-{n}/state"), QoS::AtLeastOnce, true, payload.into())
    }));
}

fn truck(n: u64, mqtt: SocketAddr) {
    let mut dice = Dice::of(200 + n);
    let (mut lat, mut lon, mut heading) =
        (HOME.0 + dice.between(-0.2, 0.2), HOME.1 + dice.between(-0.2, 0.2), dice.between(0.0, std::f64::consts::TAU));
    tokio::spawn(device(format!("truck-{n}"), mqtt, move || {
        heading += dice.between(-0.3, 0.3);
        let km_h = dice.between(40.0, 70.0);
        (lat, lon) = (lat + heading.cos() * km_h / 400_000.0, lon + heading.sin() * km_h / 300_000.0);
        let payload = format!(r#"{{"lat":{lat:.5},"lon":{lon:.5},"km_h":{km_h:.0}}}"#);
        (Duration::from_secs(1), format!("fleet/truck-{n}/position"), QoS::AtMostOnce, false, payload)
    }));
}

/// Its connection breaks every few seconds without a word, and its will says so.
async fn flaky(mqtt: SocketAddr) {
    let topic = "site/faro/flaky/status";
    for life in 1u64.. {
        let mut options = options("flaky", mqtt);
        options.set_last_will(LastWill::new(topic, "gone", QoS::AtLeastOnce, true));
        let (client, connection) = AsyncClient::new(options, 10);
        let alive = tokio::spawn(keep(connection));
        // Refused only when the connection has ended.
        let _ = client.publish(topic, QoS::AtLeastOnce, true, format!("alive, for the {life}. time")).await;
        tokio::time::sleep(FLAKY_LIFE).await;
        alive.abort();
        tokio::time::sleep(FLAKY_LIFE / 4).await;
    }
}

/// A session that takes messages: so many at once, and so long for each.
struct Reader {
    id: &'static str,
    filter: &'static str,
    window: u16,
    work: Duration,
}

/// One takes everything as it comes, two share the doors, and one needs too long for each of a few: it falls behind, and nobody else feels it.
const READERS: [Reader; 4] = [
    Reader { id: "historian", filter: "#", window: 100, work: Duration::ZERO },
    Reader { id: "alarm-a", filter: "$share/alarms/site/+/+/state", window: 20, work: Duration::from_millis(2) },
    Reader { id: "alarm-b", filter: "$share/alarms/site/+/+/state", window: 20, work: Duration::from_millis(2) },
    Reader { id: "slow-consumer", filter: "site/#", window: SLOW_WINDOW, work: SLOW_WORK },
];

async fn read(reader: Reader, mqtt: SocketAddr) {
    let mut options = v5::MqttOptions::new(reader.id, mqtt.ip().to_string(), mqtt.port());
    options.set_keep_alive(Duration::from_secs(30)).set_clean_start(false).set_session_expiry_interval(Some(3_600));
    options.set_receive_maximum(Some(reader.window)).set_manual_acks(true);
    // Other programs may publish beside the fleet: a reader of all takes what the gateway takes.
    options.set_max_packet_size(Some(PACKET_BYTES_MAX as u32));
    let (client, mut connection) = v5::AsyncClient::new(options, 10);
    loop {
        match connection.poll().await {
            Ok(v5::Event::Incoming(v5::mqttbytes::v5::Packet::ConnAck(_))) => {
                drop(client.try_subscribe(reader.filter, v5::mqttbytes::QoS::AtLeastOnce));
            }
            Ok(v5::Event::Incoming(v5::mqttbytes::v5::Packet::Publish(p))) => {
                tokio::time::sleep(reader.work).await;
                drop(client.try_ack(&p));
            }
            Ok(_) => {}
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

/// Sends the fleet out, on the runtime that it is called on.
pub fn start(mqtt: SocketAddr) {
    (0..THERMOMETERS).for_each(|n| thermometer(n, mqtt));
    (0..DOORS).for_each(|n| door(n, mqtt));
    (0..TRUCKS).for_each(|n| truck(n, mqtt));
    tokio::spawn(flaky(mqtt));
    READERS.into_iter().for_each(|reader| drop(tokio::spawn(read(reader, mqtt))));
}

/// Sends a fleet to a gateway that runs, until Ctrl-C.
pub fn join(gateway: &str) -> Result<(), String> {
    let unreachable = |e: std::io::Error| format!("{gateway}: {e}; is a gateway running there?");
    let all: Vec<SocketAddr> = gateway.to_socket_addrs().map_err(unreachable)?.collect();
    let reach = |address: &SocketAddr| TcpStream::connect_timeout(address, REACH).map(|_| *address);
    let first = all.iter().map(reach).reduce(|found, next| found.or(next));
    let address = first.unwrap_or_else(|| Err(std::io::ErrorKind::NotFound.into())).map_err(unreachable)?;
    let runtime = tokio::runtime::Runtime::new().map_err(|e| format!("starting threads: {e}"))?;
    runtime.block_on(async {
        start(address);
        println!("{} devices and readers speak to {address}; Ctrl-C ends them", THERMOMETERS + DOORS + TRUCKS + 1 + READERS.len() as u64);
        tokio::signal::ctrl_c().await.map_err(|e| format!("waiting for Ctrl-C: {e}"))
    })
}

/// A directory for one demonstration, in the place for such things.
#[must_use]
pub fn directory() -> std::path::PathBuf {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    std::env::temp_dir().join(format!("weir-demo-{now}-{}", std::process::id()))
}
