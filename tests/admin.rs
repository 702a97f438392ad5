//! The admin API and the commands that ask it: who is connected, what a session waits for, what the log holds; and the document that says so is true.

mod support;

use serde_json::Value;
use std::{
    io::{Read, Write},
    net::TcpStream,
    process::{Command, Output},
    time::Duration,
};
use support::{
    Weir, binary, dir, eventually, free_port,
    raw::{PUBACK, Raw, Version},
};

/// Status and body.
fn request(port: u16, method: &str, path: &str, headers: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(socket, "{method} {path} HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n{headers}\r\n").unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

fn json(port: u16, path: &str) -> Value {
    let (status, body) = request(port, "GET", path, "");
    assert_eq!(status, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

fn ask(admin: u16, args: &[&str]) -> Output {
    Command::new(binary()).args(args).env("WEIR_ADMIN", format!("127.0.0.1:{admin}")).output().unwrap()
}

fn said(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// What the document says of an answer is what was answered: every property, of its type, and no other.
fn matches(api: &Value, schema: &Value, value: &Value, place: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        return matches(api, api.pointer(name.trim_start_matches('#')).unwrap(), value, place);
    }
    let types: Vec<&str> = match &schema["type"] {
        Value::String(one) => vec![one],
        Value::Array(all) => all.iter().map(|t| t.as_str().unwrap()).collect(),
        other => panic!("{place}: a schema of type {other}"),
    };
    let is = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(all) => {
            all.iter().for_each(|one| matches(api, &schema["items"], one, place));
            "array"
        }
        Value::Object(fields) => {
            let known = schema["properties"].as_object().unwrap();
            assert!(fields.keys().eq(known.keys()), "{place}: {fields:?}");
            fields.iter().for_each(|(k, v)| matches(api, &known[k], v, &format!("{place}.{k}")));
            "object"
        }
    };
    assert!(types.contains(&is), "{place}: {value} is not of {types:?}");
}

#[test]
fn the_document_is_true() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut c = Raw::connect(weir.mqtt, Version::V5, "a client/with: odd Ünicode");
    c.subscribe("x/#", 1);
    c.publish(1, false, 1, "x/y", "x");
    let api = json(weir.admin, "/api/v1/openapi.json");
    let mut seen = 0;
    for (path, methods) in api["paths"].as_object().unwrap() {
        let path_of = path.replace("{client_id}", "a%20client%2Fwith%3A%20odd%20%C3%9Cnicode");
        if let Some(get) = methods.get("get") {
            let answer = json(weir.admin, &path_of);
            matches(&api, &get["responses"]["200"]["content"]["application/json"]["schema"], &answer, path);
            assert!(answer.as_array().is_none_or(|all| !all.is_empty()), "{path} has something to say");
            seen += 1;
        }
        if methods.get("delete").is_some() {
            assert_eq!(request(weir.admin, "DELETE", &path_of, "Origin: http://elsewhere\r\n").0, 403);
            assert_eq!(request(weir.admin, "DELETE", &path_of, "").0, 204);
            seen += 1;
        }
    }
    assert_eq!(seen, 4);
    // Not on the port that browsers reach.
    assert_eq!(request(weir.http, "GET", "/api/v1/clients", "").0, 404);
}

#[test]
fn who_is_connected_and_who_is_told_to_go() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut five = Raw::connect(weir.mqtt, Version::V5, "five");
    let old = Raw::connect(weir.mqtt, Version::V311, "three");
    let text = said(&ask(weir.admin, &["clients"]));
    let lines: Vec<_> = text.lines().map(|l| l.split_whitespace().take(2).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(lines, ["CLIENT MQTT", "five 5", "three 3.1.1"], "{text}");
    let all: Value = serde_json::from_slice(&ask(weir.admin, &["clients", "-o", "json"]).stdout).unwrap();
    assert!(all[0]["client_id"] == "five" && all[0]["address"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert!(ask(weir.admin, &["clients", "--disconnect", "five"]).status.success());
    let goodbye = five.read();
    assert_eq!((goodbye.head, goodbye.body.first()), (0xE0, Some(&0x98)), "administrative action");
    eventually("it is gone", Duration::from_secs(5), || !said(&ask(weir.admin, &["clients"])).contains("five"));
    let nobody = ask(weir.admin, &["clients", "--disconnect", "five"]);
    assert_eq!((nobody.status.code(), said(&nobody)), (Some(1), "weir: nobody with client id five is connected\n".into()));
    // Its session has stayed.
    assert!(Raw::connect(weir.mqtt, Version::V5, "five").session_present);
    drop(old);
    let unreachable = ask(free_port(), &["streams"]);
    assert!(unreachable.status.code() == Some(1) && said(&unreachable).contains("--admin says another"), "{}", said(&unreachable));
}

#[test]
fn explain_says_where_the_messages_of_a_client_are() {
    let dir = dir();
    let mut weir = Weir::start(dir.path());
    let explain = |admin: u16, client: &str| said(&ask(admin, &["explain", client]));
    // A client of version 5 that takes two at a time and acknowledges none.
    let mut slow = Raw::connect_with(weir.mqtt, Version::V5, "slow", false, &[0x11, 0, 0, 0x0E, 0x10, 0x21, 0, 2]);
    slow.subscribe("jobs/#", 1);
    assert!(explain(weir.admin, "slow").contains("live, it is given what comes"), "{}", explain(weir.admin, "slow"));
    let mut p = Raw::connect_with(weir.mqtt, Version::V311, "p", true, &[]);
    for n in 1..=20 {
        p.publish(1, false, n, "jobs/x", "x");
        p.expect_ack(PUBACK, n);
    }
    slow.expect_publish();
    slow.expect_publish();
    let text = explain(weir.admin, "slow");
    assert!(
        text.starts_with("slow, MQTT 5: connected; its session outlives the connection by 3600 s\n  subscribes to jobs/# with QoS 1\n"),
        "{text}"
    );
    assert!(
        text.contains("2 of at most 2 messages are on their way to it and not acknowledged, the oldest is record 0; it gets no more until"),
        "{text}"
    );
    drop(slow);
    eventually("it is offline", Duration::from_secs(5), || {
        explain(weir.admin, "slow").contains("not connected; its session ends 3600 s after")
    });
    // After a crash the store says the same.
    let ports = weir.ports();
    weir.kill();
    weir = Weir::start_on(dir.path(), ports);
    let text = explain(weir.admin, "slow");
    assert!(text.contains("not connected") && text.contains("before the end; retention is at 0"), "{text}");
    let streams = said(&ask(weir.admin, &["streams"]));
    let row: Vec<_> = streams.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((row[0], row[1], row[2], row.last()), ("default/0", "0", "20", Some(&"ok")), "{streams}");
    assert_eq!(explain(weir.admin, "nobody"), "weir: there is no session of nobody\n");
}
