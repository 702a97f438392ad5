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
    request_raw(port, method, path, &format!("{headers}\r\n"))
}

/// With whatever stands behind the first headers.
fn request_raw(port: u16, method: &str, path: &str, rest: &str) -> (u16, String) {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(socket, "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{rest}").unwrap();
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

/// A schema without references; of several that hold together, one with the properties of all.
fn whole(api: &Value, schema: &Value) -> Value {
    if let Some(name) = schema["$ref"].as_str() {
        return whole(api, api.pointer(name.trim_start_matches('#')).unwrap());
    }
    let Some(parts) = schema["allOf"].as_array() else { return schema.clone() };
    let parts = parts.iter().map(|part| whole(api, part)["properties"].as_object().unwrap().clone());
    let properties: serde_json::Map<String, Value> = parts.flatten().collect();
    serde_json::json!({ "type": "object", "properties": properties })
}

/// What the document says of an answer is what was answered: every property, of its type, and no other.
fn matches(api: &Value, schema: &Value, value: &Value, place: &str) {
    let schema = &whole(api, schema);
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
    // While somebody watches a topic, the life of its messages is kept.
    let mut watcher = TcpStream::connect(("127.0.0.1", weir.http)).unwrap();
    write!(watcher, "GET /events?filter=x/y&trace=true HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").unwrap();
    watcher.read_exact(&mut [0; 300]).unwrap();
    c.publish(1, false, 1, "x/y", "x");
    let api = json(weir.admin, "/api/v1/openapi.json");
    let mut seen = 0;
    for (path, methods) in api["paths"].as_object().unwrap() {
        let path_of = path.replace("{client_id}", "a%20client%2Fwith%3A%20odd%20%C3%9Cnicode");
        let path_of = path_of
            .replace("{stream}/{partition}/{offset}", "default/0/0")
            .replace("history", "history?from_ms=0&step_ms=1000000000000&steps=3");
        if let Some(get) = methods.get("get") {
            // The first step of the rates is soon over.
            eventually("it answers", Duration::from_secs(10), || json(weir.admin, &path_of) != Value::Array(Vec::new()));
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
    assert_eq!(seen, 14);
    // What reads is on the port that browsers reach, what changes something or shows the configuration is not.
    assert_eq!(json(weir.http, "/api/v1/streams")[0]["stream"], "default");
    for (method, path) in
        [("DELETE", "/api/v1/clients/x"), ("GET", "/api/v1/config"), ("GET", "/api/v1/log-level"), ("PUT", "/api/v1/log-level")]
    {
        let (status, body) = request(weir.http, method, path, "");
        assert!(matches!(status, 404 | 405), "{method} {path}: {status} {body}");
    }
}

#[test]
fn the_configuration_is_shown_and_the_log_level_set() {
    let dir = dir();
    let ports = [free_port(), free_port(), free_port()];
    let mut command = support::command(&binary(), dir.path(), ports);
    command.env("WEIR__LOG__RETENTION_BYTES", "1GiB");
    let weir = Weir::spawn(command, ports);
    let config = json(weir.admin, "/api/v1/config");
    let row = |key: &str| config.as_array().unwrap().iter().find(|s| s["key"] == key).unwrap_or_else(|| panic!("{key}: {config}")).clone();
    assert_eq!(
        row("log.retention_bytes"),
        serde_json::json!({ "key": "log.retention_bytes", "value": "\"1GiB\"", "source": "environment" })
    );
    assert_eq!(row("listen.mqtt")["source"], "command line");
    assert_eq!(row("groups.max_deliveries")["source"], "default");
    let level = || json(weir.admin, "/api/v1/log-level")["level"].clone();
    assert_eq!(level(), "info");
    let put = |headers: &str, body: &str| {
        let headers = format!("Content-Type: application/json\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len());
        request_raw(weir.admin, "PUT", "/api/v1/log-level", &headers)
    };
    assert_eq!(put("", r#"{"level":"debug"}"#).0, 204);
    assert_eq!(level(), "debug");
    let (status, words) = put("", r#"{"level":"=,="}"#);
    assert!(status == 400 && words.contains("as in info"), "{status} {words}");
    assert_eq!(put("Origin: http://elsewhere\r\n", r#"{"level":"trace"}"#).0, 403);
    assert_eq!(level(), "debug");
}

#[test]
fn topics_now_and_then_and_who_gets_them() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut p = Raw::connect_with(weir.mqtt, Version::V311, "p", true, &[]);
    let mut publish = |topic: &str, payload: &str| {
        p.publish(1, false, 1, topic, payload);
        p.expect_ack(PUBACK, 1);
    };
    for n in 0..30 {
        publish(&format!("site/{:02}/temp", n % 10), &n.to_string());
    }
    publish("odd/\u{e9} ?&%", "x");
    std::thread::sleep(Duration::from_millis(20));
    let moment = humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string();
    std::thread::sleep(Duration::from_millis(20));
    publish("site/00/temp", "new");
    let values = |args: &[&str]| -> Vec<(String, String)> {
        let out = ask(weir.admin, &[&["topics", "-o", "json"], args].concat());
        let all: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", said(&out)));
        all.as_array().unwrap().iter().map(|t| (t["topic"].as_str().unwrap().into(), t["text"].as_str().unwrap().into())).collect()
    };
    let site = |first: &str| -> Vec<(String, String)> {
        (0..10).map(|n| (format!("site/{n:02}/temp"), if n == 0 { first.into() } else { (20 + n).to_string() })).collect()
    };
    assert_eq!(values(&["site/#"]), site("new"));
    assert_eq!(values(&["site/#", "--at", &moment]), site("20"));
    assert_eq!(values(&["site/+/temp", "--at", "10"]), (0..10).map(|n| (format!("site/{n:02}/temp"), n.to_string())).collect::<Vec<_>>());
    assert_eq!(values(&["site/#", "--at", "-1h"]), []);
    assert_eq!(values(&["site/#", "-l", "3"]), site("new")[..3]);
    assert_eq!(values(&["odd/\u{e9} ?&%"]), [("odd/\u{e9} ?&%".to_owned(), "x".to_owned())]);
    // Parts of any size are the whole.
    let (mut all, mut after) = (Vec::new(), String::new());
    loop {
        let part = json(weir.admin, &format!("/api/v1/topics?limit=4&after={after}&filter=site/%23"));
        all.extend(part["topics"].as_array().unwrap().iter().map(|t| t["topic"].as_str().unwrap().to_owned()));
        let Some(last) = part["after"].as_str() else { break };
        after = last.to_owned();
    }
    assert_eq!(all, site("").into_iter().map(|(topic, _)| topic).collect::<Vec<_>>());
    for (path, words) in [("filter=a/%23/b", "not a topic filter"), ("at=soon", "none of earliest"), ("at=earliest", "a time or an offset")]
    {
        let (status, body) = request(weir.admin, "GET", &format!("/api/v1/topics?{path}"), "");
        assert!(status == 400 && body.contains(words), "{path}: {status} {body}");
    }

    // Who gets a topic: a connected client, a member of a group, and a session that waits.
    let mut here = Raw::connect_with(weir.mqtt, Version::V311, "here", true, &[]);
    here.subscribe("site/+/temp", 0);
    let mut member = Raw::connect_with(weir.mqtt, Version::V5, "member", true, &[]);
    member.subscribe("$share/g/site/00/#", 1);
    let mut waits = Raw::connect_with(weir.mqtt, Version::V311, "waits", false, &[]);
    waits.subscribe("site/#", 1);
    drop(waits);
    let mut other = Raw::connect_with(weir.mqtt, Version::V311, "other", false, &[]);
    other.subscribe("elsewhere/#", 1);
    let names = |args: &[&str]| -> Vec<String> {
        let text = said(&ask(weir.admin, &[&["sessions"], args].concat()));
        text.lines().skip(1).map(|l| l.split_whitespace().next().unwrap().to_owned()).collect()
    };
    eventually("it waits", Duration::from_secs(5), || {
        said(&ask(weir.admin, &["sessions"])).lines().any(|l| l.starts_with("waits") && l.contains(" no "))
    });
    assert_eq!(names(&["--topic", "site/00/temp"]), ["here", "member", "waits"]);
    assert_eq!(names(&["--topic", "site/01/temp"]), ["here", "waits"]);
    assert_eq!(names(&[]), ["here", "member", "other", "p", "waits"]);
    let part = json(weir.admin, "/api/v1/sessions?limit=2&after=here");
    let ids: Vec<_> = part["sessions"].as_array().unwrap().iter().map(|s| s["client_id"].clone()).collect();
    assert_eq!((ids, part["after"].as_str()), (vec!["member".into(), "other".into()], Some("other")));

    let top = said(&ask(weir.admin, &["top", "--once"]));
    assert!(top.contains("connections") && top.contains("default/0: 32 records") && top.contains("CLIENT"), "{top}");
    let segments = said(&ask(weir.admin, &["streams", "--segments"]));
    assert!(segments.lines().any(|l| l.starts_with("default/0") && l.contains("(written)")), "{segments}");
    // A pipe that closes is nobody's fault.
    let line = format!("set -o pipefail; {} topics --admin 127.0.0.1:{} | true", binary().display(), weir.admin);
    let quiet = Command::new("bash").args(["-c", &line]).output().unwrap();
    assert!(quiet.status.success() && quiet.stderr.is_empty(), "{quiet:?}");
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
