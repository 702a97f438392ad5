//! What a browser meets: the page, its feed `/ws` (a snapshot at a position and then every record after it), MQTT over websocket.

mod support;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::{process::Command, time::Duration};
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

async fn next(socket: &mut Socket) -> Value {
    let message = tokio::time::timeout(Duration::from_secs(10), socket.next()).await.expect("a message").unwrap().unwrap();
    serde_json::from_str(message.to_text().unwrap()).unwrap()
}

async fn feed(weir: &Weir, filter: &str) -> Socket {
    let (mut socket, _) = connect_async(format!("ws://127.0.0.1:{}/ws", weir.http)).await.unwrap();
    socket.send(Message::text(json!({"filter": filter}).to_string())).await.unwrap();
    socket
}

fn pairs(told: &Value) -> Vec<(&str, &str)> {
    told["records"].as_array().unwrap().iter().map(|r| (r["topic"].as_str().unwrap(), r["text"].as_str().unwrap())).collect()
}

#[test]
fn the_page_loads_from_its_own_origin_only() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let page = http_get(weir.http, "/");
    assert!(page.contains("200 OK") && page.contains("<title>Weir</title>"));
    assert!(page.to_lowercase().contains("content-security-policy: default-src 'self'"));
    for path in ["/page.js", "/page.css"] {
        assert!(http_get(weir.http, path).contains("200 OK"), "{path}");
    }
    assert!(http_get(weir.http, "/readyz").contains("404"), "the admin port's paths are not here");
}

#[tokio::test]
async fn newest_values_at_a_position_and_then_every_record_after_it() {
    let dir = dir();
    let mut weir = Weir::start(dir.path());
    for n in 0..5 {
        publish(&weir, "a/x", &format!("x{n}"));
        publish(&weir, "a/y", &format!("y{n}"));
        publish(&weir, "b/z", "elsewhere");
    }
    for round in 0..2 {
        let mut socket = feed(&weir, "a/+").await;
        let snapshot = next(&mut socket).await;
        assert_eq!(snapshot["type"], "snapshot");
        assert_eq!((&snapshot["stream"], &snapshot["partition"], &snapshot["done"]), (&json!("default"), &json!(0), &json!(true)));
        let position = snapshot["position"].as_u64().unwrap();
        assert_eq!(pairs(&snapshot), if round == 0 { [("a/x", "x4"), ("a/y", "y4")] } else { [("a/y", "y4"), ("a/x", "late9")] });
        if round == 1 {
            break;
        }
        assert_eq!(position, 15);
        let mut got = Vec::new();
        for n in 0..10 {
            publish(&weir, "a/x", &format!("late{n}"));
            publish(&weir, "b/z", "elsewhere");
        }
        while got.len() < 10 {
            let told = next(&mut socket).await;
            assert_eq!(told["type"], "records");
            got.extend(
                told["records"].as_array().unwrap().iter().map(|r| (r["offset"].as_u64().unwrap(), r["text"].as_str().unwrap().to_owned())),
            );
        }
        let want: Vec<_> = (0..10).map(|n| (position + 2 * n, format!("late{n}"))).collect();
        assert_eq!(got, want);
        // After SIGKILL the values are those that were acknowledged.
        let ports = weir.ports();
        weir.kill();
        weir = Weir::start_on(dir.path(), ports);
    }
}

#[tokio::test]
async fn a_wrong_filter_and_another_origin_are_told_so() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut socket = feed(&weir, "a/#/b").await;
    assert!(next(&mut socket).await["message"].as_str().unwrap().contains("not a topic filter"));
    socket.send(Message::text("hello")).await.unwrap();
    assert!(next(&mut socket).await["message"].as_str().unwrap().contains("expected"));
    socket.send(Message::text(json!({"filter": "#"}).to_string())).await.unwrap();
    assert_eq!(next(&mut socket).await["type"], "snapshot", "the socket lives on");

    let mut request = format!("ws://127.0.0.1:{}/ws", weir.http).into_client_request().unwrap();
    request.headers_mut().insert("origin", "http://elsewhere.example".parse().unwrap());
    match connect_async(request).await {
        Err(Error::Http(response)) => assert_eq!(response.status(), 403),
        other => panic!("{other:?}"),
    }
}

/// CONNECT, SUBSCRIBE, and a PUBLISH cut over three messages; the other side is mosquitto_pub.
#[tokio::test]
async fn mqtt_over_websocket() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let address = format!("ws://127.0.0.1:{}/mqtt", weir.http);
    assert!(connect_async(&address).await.is_err(), "without the subprotocol");
    let mut request = address.into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "mqtt".parse().unwrap());
    let (mut socket, response) = connect_async(request).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], "mqtt");
    socket.send(Message::binary(&b"\x10\x0D\x00\x04MQTT\x04\x02\x00\x3C\x00\x01w\x82\x06\x00\x01\x00\x01a\x01"[..])).await.unwrap();
    let mut bytes = Vec::new();
    let mut expect = async |socket: &mut Socket, wanted: &[u8]| {
        while bytes.len() < wanted.len() {
            let message = tokio::time::timeout(Duration::from_secs(10), socket.next()).await.expect("bytes").unwrap().unwrap();
            bytes.extend_from_slice(&message.into_data());
        }
        assert_eq!(bytes, wanted);
        bytes.clear();
    };
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
