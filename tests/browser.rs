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
    tungstenite::{Error, Message, client::IntoClientRequest},
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
fn no_listener_answers_to_a_foreign_name() {
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
        (weir.http, "/", "101"),
        (weir.http, "/app.js", "200"),
        (weir.admin, "/metrics", "200"),
    ] {
        assert_eq!(status(port, path, "rebound.example.org"), "421", "{path}");
        for host in ["localhost", "127.0.0.1", "proxy.example.org", "plant-7.local", "weir"] {
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

/// Asks for a socket at `path`; the status and the head of the answer.
async fn refused(port: u16, path: &str, more: &[(&'static str, &str)]) -> (u16, String) {
    let mut request = format!("ws://127.0.0.1:{port}{path}").into_client_request().unwrap();
    for (name, value) in more {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    match connect_async(request).await {
        Ok((_, response)) => (response.status().as_u16(), String::new()),
        Err(Error::Http(response)) => (response.status().as_u16(), format!("{:?}", response.headers())),
        Err(e) => panic!("{e}"),
    }
}

const CONNECT: &[u8] = b"\x10\x0D\x00\x04MQTT\x04\x02\x00\x00\x00\x01w";
const CONNACK: &[u8] = b"\x20\x02\x00\x00";

async fn open_at(weir: &Weir, path: &str, protocol: &str) -> Socket {
    let mut request = format!("ws://127.0.0.1:{}{path}", weir.http).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
    connect_async(request).await.unwrap().0
}

#[tokio::test]
async fn who_offers_mqtt_speaks_it_wherever_its_library_asks() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    for path in ["/", "/mqtt", "/mqtt/", "/ws"] {
        for protocol in ["mqtt", "mqttv3.1", "other, mqtt"] {
            let mut socket = open_at(&weir, path, protocol).await;
            socket.send(Message::binary(CONNECT)).await.unwrap();
            expect(&mut socket, CONNACK).await;
        }
    }
    // Without that subprotocol `/ws` is the feed.
    let (mut feed, _) = connect_async(format!("ws://127.0.0.1:{}/ws", weir.http)).await.unwrap();
    assert!(matches!(feed.next().await, Some(Ok(Message::Text(_)))));
    let (status, head) = refused(weir.http, "/mqtt", &[("sec-websocket-protocol", "mqtt"), ("sec-websocket-version", "8")]).await;
    assert!(status == 426 && head.contains(r#""sec-websocket-version": "13""#), "{status} {head}");
    for key in ["dGhlIHNhbXBsZQ==", "not base64", ""] {
        assert_eq!(refused(weir.http, "/ws", &[("sec-websocket-key", key)]).await.0, 400, "{key}");
    }
}

/// The code of the close frame that comes next, whatever else comes before it.
async fn close_code(socket: &mut Socket) -> Option<u16> {
    while let Some(Ok(message)) = tokio::time::timeout(Duration::from_secs(10), socket.next()).await.expect("an end") {
        if let Message::Close(frame) = message {
            return Some(frame.map_or(1005, |f| f.code.into()));
        }
    }
    None
}

/// RFC 6455, 5.5.1 and 7.4.1.
#[tokio::test]
async fn sockets_end_with_a_close_frame_that_says_why() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    for path in ["/mqtt", "/feed"] {
        let mut socket =
            if path == "/mqtt" { open(&weir).await } else { connect_async(format!("ws://127.0.0.1:{}/ws", weir.http)).await.unwrap().0 };
        socket.send(Message::Close(None)).await.unwrap();
        assert!(close_code(&mut socket).await.is_some(), "{path}: a close frame is answered");
    }
    let mut mqtt = open(&weir).await;
    mqtt.send(Message::binary(CONNECT)).await.unwrap();
    mqtt.send(Message::binary(&b"\xE0\x00"[..])).await.unwrap();
    assert_eq!(close_code(&mut mqtt).await, Some(1000), "behind a DISCONNECT");
    for (wrong, code) in [(Message::binary(&b"\xF0\x00"[..]), 1002), (Message::text("hello"), 1003)] {
        let mut socket = open(&weir).await;
        socket.send(Message::binary(CONNECT)).await.unwrap();
        expect(&mut socket, CONNACK).await;
        socket.send(wrong).await.unwrap();
        assert_eq!(close_code(&mut socket).await, Some(code));
    }
    let (mut feed, _) = connect_async(format!("ws://127.0.0.1:{}/ws", weir.http)).await.unwrap();
    feed.send(Message::binary(&b"x"[..])).await.unwrap();
    assert_eq!(close_code(&mut feed).await, Some(1003));
    let (mut feed, _) = connect_async(format!("ws://127.0.0.1:{}/ws", weir.http)).await.unwrap();
    feed.send(Message::text("x".repeat(65 << 10))).await.unwrap();
    assert_eq!(close_code(&mut feed).await, Some(1009));
}

#[test]
fn who_is_taken_over_is_told_over_a_websocket_too() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    // Version 5.
    let connect = support::slow::frame(b"\x10\x0E\0\x04MQTT\x05\x02\0\0\0\0\x01w");
    let open = || {
        let mut socket = support::slow::websocket(weir.http);
        socket.write_all(&connect).unwrap();
        let mut head = [0; 2];
        socket.read_exact(&mut head).unwrap();
        socket.read_exact(&mut vec![0; head[1].into()]).unwrap();
        socket
    };
    let mut first = open();
    let _second = open();
    let mut said = Vec::new();
    first.read_to_end(&mut said).unwrap();
    assert_eq!(said, [0x82, 3, 0xE0, 1, 0x8E, 0x88, 2, 3, 0xF0], "DISCONNECT, and close 1008");
}

/// What stands behind a broken frame is not read; the close frame arrives all the same, and the end
/// is no reset.
#[test]
fn a_broken_frame_with_much_behind_it_is_told() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    for header in [&[0x83, 0x80, 0, 0, 0, 0][..], &[0x89, 0xFE, 0x23, 0x28, 0, 0, 0, 0], &[0x82, 0]] {
        let mut socket = support::slow::websocket_subscriber(weir.http, "breaks a rule");
        socket.write_all(&[header, &vec![0; 300_000]].concat()).unwrap();
        let mut said = Vec::new();
        socket.read_to_end(&mut said).unwrap_or_else(|e| panic!("{header:x?}: {e}"));
        assert!(said.ends_with(&[0x88, 2, 3, 0xEA]), "{header:x?}: {said:x?}");
    }
}

#[tokio::test]
async fn two_large_packets_in_one_message_are_taken_and_one_above_the_limit_is_told() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut socket = open(&weir).await;
    socket.send(Message::binary(&b"\x10\x0E\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x01w"[..])).await.unwrap();
    assert!(matches!(socket.next().await, Some(Ok(Message::Binary(connack))) if connack[3] == 0));
    let publish = |id: u8, bytes: usize| {
        let (mut packet, mut n) = (vec![0x32], bytes + 6);
        while n > 0 {
            packet.push((n & 0x7F) as u8 | if n > 0x7F { 0x80 } else { 0 });
            n >>= 7;
        }
        packet.extend_from_slice(&[0, 1, b'a', 0, id, 0]);
        packet.resize(packet.len() + bytes, 7);
        packet
    };
    socket.send(Message::binary([publish(1, 5_000_000), publish(2, 5_000_000)].concat())).await.unwrap();
    expect(&mut socket, &[0x40, 3, 0, 1, 0x10, 0x40, 3, 0, 2, 0x10]).await;
    let _ = socket.send(Message::binary(publish(3, 9 << 20))).await;
    expect(&mut socket, &[0xE0, 1, 0x95]).await;
    assert_eq!(close_code(&mut socket).await, Some(1009));
}

#[tokio::test]
async fn pages_of_other_origins_are_refused_unless_they_are_listed() {
    let dir = dir();
    let ports = [support::free_port(), support::free_port(), support::free_port()];
    let mut run = support::command(&support::binary(), dir.path(), ports);
    run.env("WEIR__LISTEN__ORIGINS", "[\"https://dash.example.org\"]");
    let weir = Weir::spawn(run, ports);
    let mqtt = ("sec-websocket-protocol", "mqtt");
    for path in ["/", "/mqtt", "/ws"] {
        assert_eq!(refused(weir.http, path, &[mqtt, ("origin", "https://elsewhere.example")]).await.0, 403, "{path}");
        assert_eq!(refused(weir.http, path, &[mqtt, ("origin", "https://dash.example.org")]).await.0, 101, "{path}");
    }
    let get = |origin: &str| {
        let mut socket = std::net::TcpStream::connect(("127.0.0.1", weir.http)).unwrap();
        let request = format!("GET /api/v1/streams HTTP/1.1\r\nHost: localhost\r\nOrigin: {origin}\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(get("https://dash.example.org").contains("access-control-allow-origin: https://dash.example.org"));
    let other = get("https://elsewhere.example");
    assert!(other.starts_with("HTTP/1.1 200") && !other.contains("access-control"), "its browser keeps it from it");
    for header in
        ["x-content-type-options: nosniff", "x-frame-options: DENY", "cross-origin-resource-policy: same-origin", "frame-ancestors 'none'"]
    {
        assert!(
            other.contains(header) && http_get(weir.http, "/").contains(header) && http_get(weir.admin, "/metrics").contains(header),
            "{header}"
        );
    }
    // It is in the events.
    let port = weir.mqtt.to_string();
    let sub = Command::new(support::binary())
        .args(["sub", "-p", &port, "-t", "$SYS/events/refused/#", "--from", "earliest", "-C", "1"])
        .output()
        .unwrap();
    let event = String::from_utf8(sub.stdout).unwrap();
    assert!(event.contains("https://elsewhere.example") && event.contains("127.0.0.1:"), "{event}");
}

#[test]
fn what_is_wrong_with_a_request_is_said_in_json() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    for (port, path, status, words) in [
        (weir.http, "/nothing", "404", "there is nothing at /nothing"),
        (weir.admin, "/api/v1/nothing", "404", "there is nothing at /api/v1/nothing"),
        (weir.http, "/api/v1/sessions/nobody", "404", "there is no session of nobody"),
        (weir.http, "/api/v1/topics?filtre=a", "400", "no parameter filtre"),
        (weir.admin, "/api/v1/topics?limit=some", "400", "limit"),
        (weir.http, "/api/v1/history", "400", "from_ms"),
    ] {
        let answer = http_get(port, path);
        assert!(
            answer.contains(&format!("HTTP/1.1 {status}")) && answer.contains(r#"{"error":""#) && answer.contains(words),
            "{path}: {answer}"
        );
    }
}
