//! What a browser meets: the page's files, MQTT over websocket.

mod support;

use futures_util::{SinkExt, StreamExt};
use std::{
    io::{Read, Write},
    process::Command,
    time::Duration,
};
use support::{Weir, dir, http_get};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Message, client::IntoClientRequest},
};

type Socket = WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>;

fn publish(weir: &Weir, topic: &str, payload: &str) {
    let port = weir.mqtt.to_string();
    let status = Command::new("mosquitto_pub").args(["-p", &port, "-q", "1", "-t", topic, "-m", payload]).status().unwrap();
    assert!(status.success());
}

#[test]
fn the_page_loads_from_its_own_origin_only() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let page = http_get(weir.http, "/");
    assert!(page.contains("200 OK") && page.contains("<title>Weir</title>"));
    assert!(page.to_lowercase().contains("content-security-policy: default-src 'self'"));
    for path in ["/app.js", "/client.js", "/page.css", "/vendor/uplot.js", "/vendor/LICENSE.uplot"] {
        assert!(http_get(weir.http, path).contains("200 OK"), "{path}");
    }
    assert!(http_get(weir.http, "/readyz").contains("404"), "the admin port's paths are not here");
}

async fn open(weir: &Weir) -> Socket {
    let mut request = format!("ws://127.0.0.1:{}/mqtt", weir.http).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "mqtt".parse().unwrap());
    let (socket, response) = connect_async(request).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "mqtt");
    socket
}

/// These bytes come next, in any number of messages.
async fn expect(socket: &mut Socket, wanted: &[u8]) {
    let mut bytes = Vec::new();
    while bytes.len() < wanted.len() {
        let message = tokio::time::timeout(Duration::from_secs(10), socket.next()).await.expect("bytes").unwrap().unwrap();
        bytes.extend_from_slice(&message.into_data());
    }
    assert_eq!(bytes, wanted);
}

/// [MQTT-6.0.0-3]; `mqttv3.1` is what clients of version 3.1 offer.
#[test]
fn one_of_the_offered_subprotocols_is_chosen() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let answer = |offered: &str| {
        let mut socket = std::net::TcpStream::connect(("127.0.0.1", weir.http)).unwrap();
        let offered = if offered.is_empty() { String::new() } else { format!("Sec-WebSocket-Protocol: {offered}\r\n") };
        let request = format!(
            "GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{offered}\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).unwrap();
        let mut answer = vec![0; 1_000];
        let n = socket.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..n]).to_lowercase();
        let chosen = answer.lines().find_map(|l| l.strip_prefix("sec-websocket-protocol: ")).map(str::to_owned);
        (answer.starts_with("http/1.1 101"), chosen)
    };
    for (offered, chosen) in [("mqtt", "mqtt"), ("mqttv3.1", "mqttv3.1"), ("mqttv3.1, mqtt", "mqtt"), ("x-other,mqttv3.1", "mqttv3.1")] {
        assert_eq!(answer(offered), (true, Some(chosen.to_owned())), "{offered}");
    }
    for offered in ["", "x-other"] {
        assert_eq!(answer(offered), (false, None), "{offered}");
    }
}

/// A page whose name was bound to this machine has an origin that is its host: only the name tells it from ours.
#[test]
fn a_listener_on_loopback_answers_to_no_foreign_name() {
    let dir = dir();
    let ports = [support::free_port(), support::free_port(), support::free_port()];
    let mut run = support::command(&support::binary(), dir.path(), ports);
    run.env("WEIR__LISTEN__HOSTS", "[\"proxy.example.org\"]");
    let weir = Weir::spawn(run, ports);
    let status = |port: u16, path: &str, host: &str| {
        let mut socket = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nOrigin: http://{host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).unwrap();
        let mut answer = [0; 12];
        socket.read_exact(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[9..]).into_owned()
    };
    for (port, path, ours) in [
        (weir.http, "/mqtt", "101"),
        (weir.http, "/ws", "101"),
        (weir.http, "/api/v1/clients", "200"),
        (weir.http, "/", "200"),
        (weir.admin, "/metrics", "200"),
    ] {
        assert_eq!(status(port, path, "rebound.example.org"), "421", "{path}");
        for host in ["localhost", "127.0.0.1", "proxy.example.org"] {
            assert_eq!(status(port, path, host), ours, "{path} {host}");
        }
    }
}

/// `tests/order.rs` has the whole of it, over TCP.
#[tokio::test]
async fn packets_over_websocket_take_effect_in_the_order_sent() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    for together in [true, false] {
        for _ in 0..20 {
            let mut socket = open(&weir).await;
            let packets: [&[u8]; 5] = [
                b"\x30\x04\x00\x01a0",
                b"\x82\x06\x00\x01\x00\x01a\x01",
                b"\x30\x04\x00\x01a1",
                b"\xA2\x05\x00\x02\x00\x01a",
                b"\x32\x06\x00\x01a\x00\x032",
            ];
            socket.send(Message::binary(&b"\x10\x0D\x00\x04MQTT\x04\x02\x00\x3C\x00\x01w"[..])).await.unwrap();
            expect(&mut socket, b"\x20\x02\x00\x00").await;
            if together {
                socket.send(Message::binary(packets.concat())).await.unwrap();
            } else {
                for packet in packets {
                    socket.send(Message::binary(packet)).await.unwrap();
                }
            }
            let suback_message_unsuback_puback = b"\x90\x03\x00\x01\x01\x30\x04\x00\x01a1\xB0\x02\x00\x02\x40\x02\x00\x03";
            expect(&mut socket, suback_message_unsuback_puback).await;
        }
    }
}

/// CONNECT, SUBSCRIBE, and a PUBLISH cut over three messages; the other side is mosquitto_pub.
#[tokio::test]
async fn mqtt_over_websocket() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let address = format!("ws://127.0.0.1:{}/mqtt", weir.http);
    assert!(connect_async(&address).await.is_err(), "without the subprotocol");
    let mut socket = open(&weir).await;
    socket.send(Message::binary(&b"\x10\x0D\x00\x04MQTT\x04\x02\x00\x3C\x00\x01w\x82\x06\x00\x01\x00\x01a\x01"[..])).await.unwrap();
    expect(&mut socket, b"\x20\x02\x00\x00\x90\x03\x00\x01\x01").await;
    publish(&weir, "a", "hi");
    expect(&mut socket, b"\x32\x07\x00\x01a\x00\x01hi").await;
    for part in [&b"\x32\x07\x00"[..], b"\x01b\x00\x09", b"ho"] {
        socket.send(Message::binary(part)).await.unwrap();
    }
    expect(&mut socket, b"\x40\x02\x00\x09").await;
    socket.send(Message::text("not MQTT")).await.unwrap();
    while let Ok(Some(Ok(message))) = tokio::time::timeout(Duration::from_secs(10), socket.next()).await {
        assert!(message.is_close() || message.is_empty());
    }
    assert!(http_get(weir.admin, "/readyz").contains("200 OK"));
}
