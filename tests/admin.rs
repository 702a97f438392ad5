//! The admin API and the commands that ask it: who is connected, what a session waits for, what the log holds; and the document that says so is true.

mod support;

use serde_json::Value;
use std::{
    io::{Read, Write},
    net::TcpStream,
    process::{Command, Output},
    time::{Duration, Instant},
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
    let mut c = Raw::connect_with(weir.mqtt, Version::V5, "a client/with: odd Ünicode", true, &[0x11, 0, 0, 0x0E, 0x10]);
    c.subscribe("x/#", 1);
    c.subscribe("$share/g/x/#", 1);
    // While somebody watches a topic, the life of its messages is kept.
    let mut watcher = TcpStream::connect(("127.0.0.1", weir.http)).unwrap();
    write!(watcher, "GET /events?filter=x/y&trace=true HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").unwrap();
    watcher.read_exact(&mut [0; 300]).unwrap();
    c.publish(1, false, 1, "x/y", "x");
    c.publish_with(1 << 1 | 1, 2, "kept", &[], "x");
    let api = json(weir.admin, "/api/v1/openapi.json");
    let mut seen = 0;
    for (path, methods) in api["paths"].as_object().unwrap() {
        let path_of = path.replace("{client_id}", "a%20client%2Fwith%3A%20odd%20%C3%9Cnicode");
        let path_of = path_of
            .replace("{stream}/{partition}/{offset}", "default/0/0")
            .replace("{stream}/{partition}", "default/0?filter=x/%23&limit=1")
            .replace("retained", "retained?filter=%23")
            .replace("history", "history?from_ms=0&step_ms=1000000000000&steps=3");
        if let Some(get) = methods.get("get") {
            // A list stands under the name of what it lists. The first step of the rates is soon over.
            let list = path.rsplit('/').next().unwrap().replace("config", "settings");
            let is_empty = |answer: &Value| answer[&list].as_array().is_some_and(Vec::is_empty);
            eventually("it has something to say", Duration::from_secs(10), || !is_empty(&json(weir.admin, &path_of)));
            let answer = json(weir.admin, &path_of);
            assert!(answer.is_object(), "{path}: {answer}");
            matches(&api, &get["responses"]["200"]["content"]["application/json"]["schema"], &answer, path);
            seen += 1;
        }
        if methods.get("delete").is_some() {
            assert_eq!(request(weir.admin, "DELETE", &path_of, "Origin: http://elsewhere\r\n").0, 403);
            let (status, said) = request(weir.admin, "DELETE", &path_of, "");
            assert!(matches!((status, said.as_str()), (204, "") | (200, r#"{"cleared":1,"more":false}"#)), "{path}: {status} {said}");
            seen += 1;
        }
        if methods.get("post").is_some() {
            let body = r#"{"topic":"x/z","text":"y"}"#;
            let (status, said) = request_raw(
                weir.admin,
                "POST",
                &path_of,
                &format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
            );
            assert_eq!(status, 200, "{said}");
            let answer = serde_json::from_str(&said).unwrap();
            matches(&api, &methods["post"]["responses"]["200"]["content"]["application/json"]["schema"], &answer, path);
            seen += 1;
        }
    }
    assert_eq!(seen, 20);
    // What reads is on the port that browsers reach, what changes something or shows the configuration is not.
    assert_eq!(json(weir.http, "/api/v1/streams")["streams"][0]["stream"], "default");
    for (method, path) in [
        ("DELETE", "/api/v1/clients/x"),
        ("DELETE", "/api/v1/sessions/x"),
        ("DELETE", "/api/v1/retained?filter=x"),
        ("GET", "/api/v1/config"),
        ("GET", "/api/v1/log-level"),
        ("PUT", "/api/v1/log-level"),
    ] {
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
    let row = |key: &str| {
        config["settings"].as_array().unwrap().iter().find(|s| s["key"] == key).unwrap_or_else(|| panic!("{key}: {config}")).clone()
    };
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
    let all = json(weir.admin, "/api/v1/config");
    let row = all["settings"].as_array().unwrap().iter().find(|s| s["key"] == "diagnostics.log_level").unwrap();
    assert_eq!((row["value"].as_str(), row["source"].as_str()), (Some("\"debug\""), Some("admin API")), "what is in force");
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
        text.starts_with("slow, MQTT 5: connected; its session outlives the connection by 1h\n  subscribes to jobs/# with QoS 1\n"),
        "{text}"
    );
    assert!(
        text.contains("2 of at most 2 messages are on their way to it and not acknowledged, the oldest is record 0; it gets no more until"),
        "{text}"
    );
    // Whatever a client takes at once, the gateway sends no more than 1,024.
    let _wide = Raw::connect_with(weir.mqtt, Version::V5, "wide", true, &[0x21, 0xFF, 0xFF]);
    assert_eq!(json(weir.admin, "/api/v1/sessions/wide")["in_flight_max"], 1_024);
    drop(slow);
    eventually("it is offline", Duration::from_secs(5), || {
        explain(weir.admin, "slow").contains("not connected; its session ends 1h after")
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

/// The place of a session says from where on something may wait; most of what is there is not for
/// it.
#[test]
fn a_session_whose_filter_is_quiet_is_not_behind() {
    let dir = dir();
    let mut weir = Weir::start(dir.path());
    let connect = |port: u16, id: &str, qos: u8| {
        let mut c = Raw::connect_with(port, Version::V311, id, false, &[]);
        c.subscribe("quiet/#", qos);
        c
    };
    drop([connect(weir.mqtt, "quiet", 1), connect(weir.mqtt, "never", 0)]);
    let behind = |admin: u16, id: &str| json(admin, &format!("/api/v1/sessions/{id}"))["places"][0]["behind_ms"].as_u64();
    eventually("they have gone", Duration::from_secs(5), || {
        ["quiet", "never"].iter().all(|id| json(weir.admin, &format!("/api/v1/sessions/{id}"))["connected"] == false)
    });
    let mut p = Raw::connect_with(weir.mqtt, Version::V311, "p", true, &[]);
    let busy = |p: &mut Raw| {
        (1..=200).for_each(|n| p.publish(1, false, n, "busy/x", &"x".repeat(2_000)));
        (1..=200).for_each(|n| assert_eq!(p.expect_ack(PUBACK, n), 0));
    };
    busy(&mut p);
    // QoS 0 waits for nobody who is away.
    p.publish(0, false, 0, "quiet/x", "x");
    busy(&mut p);
    eventually("both were searched to the end", Duration::from_secs(5), || {
        (behind(weir.admin, "quiet"), behind(weir.admin, "never")) == (None, None)
    });
    let words = said(&ask(weir.admin, &["explain", "quiet"]));
    assert!(words.contains("none of the 401 records from 0 to the end is for it"), "{words}");
    p.publish(1, false, 1, "quiet/x", "x");
    p.expect_ack(PUBACK, 1);
    std::thread::sleep(Duration::from_millis(300));
    busy(&mut p);
    let waits = || {
        let ms = behind(weir.admin, "quiet").expect("a message waits");
        assert!((300..20_000).contains(&ms), "{ms}");
        eventually("nothing waits", Duration::from_secs(5), || behind(weir.admin, "never").is_none());
    };
    // The second time it is known.
    waits();
    waits();
    let ports = weir.ports();
    weir.kill();
    weir = Weir::start_on(dir.path(), ports);
    assert!(behind(weir.admin, "quiet").is_some_and(|ms| (300..60_000).contains(&ms)));
    let mut c = Raw::connect_with(weir.mqtt, Version::V311, "quiet", false, &[]);
    let m = c.expect_publish();
    c.ack(PUBACK, m.id);
    drop(c);
    eventually("nothing waits", Duration::from_secs(5), || {
        let session = json(weir.admin, "/api/v1/sessions/quiet");
        session["connected"] == false && session["places"][0]["behind_ms"].is_null()
    });
}

fn weir_says(weir: &Weir, args: &[&str]) -> (bool, String) {
    let out = Command::new(binary()).args(args).args(["--admin", &format!("127.0.0.1:{}", weir.admin)]).output().unwrap();
    (out.status.success(), String::from_utf8(out.stdout).unwrap() + &String::from_utf8(out.stderr).unwrap())
}

#[test]
fn a_message_by_hand_is_on_disk_and_goes_the_way_of_all_messages() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut reader = Raw::connect(weir.mqtt, Version::V5, "reader");
    reader.subscribe("by/hand/#", 1);
    let post = |body: &str, headers: &str| {
        request_raw(
            weir.admin,
            "POST",
            "/api/v1/publish",
            &format!("Content-Type: application/json\r\nContent-Length: {}\r\n{headers}\r\n{body}", body.len()),
        )
    };
    let (status, said) = post(r#"{"topic": "by/hand/1", "text": "on", "retain": true}"#, "");
    assert_eq!((status, said.as_str()), (200, r#"{"stream":"default","partition":0,"offset":0}"#));
    assert_eq!(reader.expect_publish().payload, "on");
    assert_eq!(post(r#"{"topic": "by/hand/2", "base64": "aGk="}"#, "").0, 200);
    assert_eq!(reader.expect_publish().payload, "hi");
    for (body, status, words) in [
        (r#"{"topic": "by/+/1", "text": "x"}"#, 400, "not a topic"),
        (r#"{"topic": "a", "text": "x", "base64": "eA=="}"#, 400, "not both"),
        (r#"{"topic": "a", "txt": "x"}"#, 422, "txt"),
        (r#"{"topic": "$SYS/x", "text": "x"}"#, 409, "0x87"),
    ] {
        let (got, said) = post(body, "");
        assert!(got == status && said.contains(words) && said.starts_with(r#"{"error":"#), "{body}: {got} {said}");
    }
    assert_eq!(post(r#"{"topic": "a", "text": "x"}"#, "Origin: http://elsewhere.example\r\n").0, 403);
    assert_eq!(request(weir.http, "POST", "/api/v1/publish", "").0, 404, "on the admin port only");
}

#[test]
fn retained_messages_are_listed_and_cleared() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut c = Raw::connect(weir.mqtt, Version::V5, "c");
    for n in 0..1_203_u16 {
        c.publish_with(1 << 1 | 1, n + 1, &format!("r/{n:04}"), &[], "x");
        c.expect_ack(PUBACK, n + 1);
    }
    c.publish_with(1 << 1 | 1, 1, "other", &[], "x");
    c.expect_ack(PUBACK, 1);
    eventually("all are listed", Duration::from_secs(5), || weir_says(&weir, &["retained", "list", "#"]).1.lines().count() == 1_205);
    let (is_well, said) = weir_says(&weir, &["retained", "list", "r/000+"]);
    assert_eq!((is_well, said.as_str()), (false, "weir: r/000+: not a topic filter\n"), "a filter, not a pattern");
    assert_eq!(weir_says(&weir, &["retained", "clear", "r/#"]), (true, "retained messages cleared: 1203\n".into()));
    eventually("one is left", Duration::from_secs(5), || {
        weir_says(&weir, &["retained", "list"]).1.lines().skip(1).eq(["other  default/0  1203"])
    });
    assert!(!weir_says(&weir, &["retained", "clear", "a/#/b"]).0);
    let mut late = Raw::connect(weir.mqtt, Version::V5, "late");
    late.subscribe("r/#", 1);
    late.expect_silence();
}

#[test]
fn sessions_end_by_id_or_by_how_long_nobody_came() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let expiry = [0x11, 0, 0, 0x0E, 0x10];
    let session = |id: &str| {
        let mut c = Raw::connect_with(weir.mqtt, Version::V5, id, true, &expiry);
        c.subscribe("a/#", 1);
        c
    };
    for id in ["away", "old-1", "old-2"] {
        session(id).disconnect();
    }
    let mut here = session("here");
    let names = || {
        let all: serde_json::Value = serde_json::from_str(&weir_says(&weir, &["sessions", "-o", "json"]).1).unwrap();
        all.as_array().unwrap().iter().map(|s| s["client_id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    eventually("all are there", Duration::from_secs(5), || names() == ["away", "here", "old-1", "old-2"]);
    assert_eq!(weir_says(&weir, &["sessions", "delete", "away", "here"]), (true, "sessions ended: 2\n".into()));
    // DISCONNECT of version 5: session taken over.
    assert_eq!((here.read().head, here.next(Duration::from_secs(5)).is_none() && here.is_closed()), (0xE0, true));
    assert_eq!(names(), ["old-1", "old-2"]);
    assert_eq!(weir_says(&weir, &["sessions", "delete", "away"]), (false, "weir: there is no session of away\nsessions ended: 0\n".into()));
    assert_eq!(weir_says(&weir, &["sessions", "delete", "--idle", "1h"]), (true, "sessions ended: 0\n".into()));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(weir_says(&weir, &["sessions", "delete", "--idle", "1s"]), (true, "sessions ended: 2\n".into()));
    assert!(names().is_empty());
    // One that is missing stands in nobody's way.
    session("last").disconnect();
    let said = "weir: there is no session of missing\nsessions ended: 1\n".to_owned();
    assert_eq!(weir_says(&weir, &["sessions", "delete", "missing", "last"]), (false, said));
    assert!(!weir_says(&weir, &["sessions", "delete"]).0, "of which?");
    assert!(!weir_says(&weir, &["sessions", "--topic", "a/b", "delete", "x"]).0, "nothing would read the topic");
    // Nothing waits for the same client id.
    let mut again = Raw::connect_with(weir.mqtt, Version::V5, "away", false, &expiry);
    again.publish(1, false, 1, "a/b", "x");
    again.expect_ack(PUBACK, 1);
    again.expect_silence();
    let port = weir.mqtt.to_string();
    let events = Command::new(binary())
        .args(["sub", "-p", &port, "-t", "$SYS/events/deleted/#", "--from", "earliest", "-C", "5", "-F", "%t"])
        .output()
        .unwrap();
    let events = String::from_utf8(events.stdout).unwrap();
    assert!(["away", "here", "old-1", "old-2"].iter().all(|id| events.contains(&format!("$SYS/events/deleted/{id}\n"))), "{events}");
}

/// A session is idle since its connection ended, also when the process ended it.
#[test]
fn a_session_that_was_in_use_until_the_gateway_ended_is_not_idle() {
    let dir = dir();
    let mut weir = Weir::start(dir.path());
    let expiry = [0x11, 0, 0, 0x0E, 0x10];
    let ended: [fn(Weir) -> (); 2] = [Weir::kill, |weir| assert_eq!(weir.terminate(), Some(0))];
    for end in ended {
        let mut c = Raw::connect_with(weir.mqtt, Version::V5, "device", false, &expiry);
        c.subscribe("a/#", 1);
        std::thread::sleep(Duration::from_secs(4));
        let ports = weir.ports();
        end(weir);
        weir = Weir::start_on(dir.path(), ports);
        assert_eq!(weir_says(&weir, &["sessions", "delete", "--idle", "3s"]), (true, "sessions ended: 0\n".into()));
    }
    let session = json(weir.admin, "/api/v1/sessions/device");
    for (admin, reaches) in [(format!("http://127.0.0.1:{}/", weir.admin), true), (weir.admin.to_string(), false)] {
        let out = Command::new(binary()).args(["sessions", "--admin", &admin]).output().unwrap();
        assert_eq!(out.status.success(), reaches, "{admin}: {}", String::from_utf8_lossy(&out.stderr));
    }
    // The gateway judges again when it ends the session.
    let since = session["since_ms"].as_u64().unwrap();
    let delete = |since: u64| request(weir.admin, "DELETE", &format!("/api/v1/sessions/device?idle_since_ms={since}"), "").0;
    assert_eq!((delete(since - 1_000), delete(since + 1_000)), (409, 204));
}

/// What was done is in the events, though whoever asked had gone; an operator's act is no client's.
#[test]
fn what_is_ended_is_evented_when_nobody_waits_for_the_answer() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let expiry = [0x11, 0, 0, 0x0E, 0x10];
    for n in 0..40 {
        Raw::connect_with(weir.mqtt, Version::V5, &format!("d-{n}"), true, &expiry).disconnect();
    }
    let of = |kind: &str| {
        let port = weir.mqtt.to_string();
        let topic = format!("$SYS/events/{kind}/#");
        let sub =
            Command::new(binary()).args(["sub", "-p", &port, "-t", &topic, "--from", "earliest", "-W", "1", "-F", "%t"]).output().unwrap();
        String::from_utf8(sub.stdout).unwrap().lines().filter(|l| l.contains("/d-")).count()
    };
    let connected = of("connected");
    let mut gone = Vec::new();
    for n in 0..40 {
        let mut s = TcpStream::connect(("127.0.0.1", weir.admin)).unwrap();
        write!(s, "DELETE /api/v1/sessions/d-{n} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        // Hung up while it is done, sooner or later.
        std::thread::sleep(Duration::from_micros(150 * (n % 8)));
        gone.push(s);
        gone.clear();
    }
    let ended = || 40 - json(weir.admin, "/api/v1/sessions")["sessions"].as_array().unwrap().len();
    std::thread::sleep(Duration::from_millis(500));
    let n = ended();
    assert!(n > 0, "none was asked for in time");
    eventually("each is evented", Duration::from_secs(5), || of("deleted") == n);
    assert_eq!((ended(), of("connected")), (n, connected));
}

/// What changes something waits for the disk, or for a rate: others are answered meanwhile, and each topic is counted once.
#[test]
fn changes_that_take_long_hold_up_no_question() {
    let dir = dir();
    let config = dir.path().join("weir.toml");
    let mut weir = Weir::start(dir.path());
    let mut c = Raw::connect(weir.mqtt, Version::V5, "c");
    for n in 0..320_u16 {
        c.publish_with(1 << 1 | 1, n + 1, &format!("r/{n:04}"), &[], "x");
        c.expect_ack(PUBACK, n + 1);
    }
    let ports = weir.ports();
    weir.terminate();
    std::fs::write(&config, "[limits]\npublish_messages = 50\n").unwrap();
    let mut command = support::command(&binary(), dir.path(), ports);
    command.arg("-c").arg(&config);
    weir = Weir::spawn(command, ports);
    let clear = || request(weir.admin, "DELETE", "/api/v1/retained?filter=r/%23", "");
    let cleared = std::thread::scope(|s| {
        let all: Vec<_> = (0..6).map(|_| s.spawn(clear)).collect();
        std::thread::sleep(Duration::from_millis(300));
        let begun = Instant::now();
        assert_eq!(request(weir.admin, "GET", "/api/v1/streams", "").0, 200);
        assert!(begun.elapsed() < Duration::from_secs(2), "it waited {:?}", begun.elapsed());
        let answers = all.into_iter().map(|one| one.join().unwrap());
        let counts = answers.filter(|(status, _)| *status == 200).map(|(_, said)| {
            let answer: Value = serde_json::from_str(&said).unwrap();
            answer["cleared"].as_u64().unwrap()
        });
        counts.sum::<u64>()
    });
    // Those that came too late for a turn may have left some.
    assert!(cleared > 0 && cleared <= 320, "{cleared}");
    assert_eq!(weir_says(&weir, &["retained", "clear", "r/#"]), (true, format!("retained messages cleared: {}\n", 320 - cleared)));
}

#[test]
fn groups_say_who_is_in_them_and_how_far_they_are() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut members: Vec<_> = ["m1", "m2"].iter().map(|id| Raw::connect(weir.mqtt, Version::V5, id)).collect();
    members.iter_mut().for_each(|m| assert_eq!(m.subscribe("$share/workers/jobs/#", 1), 1));
    let mut c = Raw::connect(weir.mqtt, Version::V5, "c");
    for n in 1..=10 {
        c.publish(1, false, n, "jobs/1", "x");
        c.expect_ack(PUBACK, n);
    }
    let group = || {
        let all: serde_json::Value = serde_json::from_str(&weir_says(&weir, &["groups", "list", "-o", "json"]).1).unwrap();
        all[0].clone()
    };
    eventually("all are given", Duration::from_secs(5), || group()["pending"] == 10 && group()["places"][0]["next"] == 10);
    assert_eq!(group()["lag"], 10, "{}", group());
    let (_, text) = weir_says(&weir, &["groups", "describe", "workers"]);
    for words in [
        "workers of jobs/#: lag 10, 10 pending, 0 to redeliver, 0 dead lettering",
        "2 sessions subscribe",
        "default/0: at 10 of 10",
        "member m1: 5 pending",
        "member m2: 5 pending",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    for m in &mut members {
        for _ in 0..5 {
            let p = m.expect_publish();
            m.ack(PUBACK, p.id);
        }
    }
    eventually("nothing is left", Duration::from_secs(5), || group()["lag"] == 0 && group()["pending"] == 0);
    assert_eq!(weir_says(&weir, &["groups", "describe", "nobody"]), (false, "weir: there is no group nobody\n".into()));
}

#[test]
fn lists_say_that_there_are_more_and_top_is_json_too() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut c = Raw::connect(weir.mqtt, Version::V5, "c");
    for n in 1..=5 {
        c.publish(1, false, n, &format!("t/{n}"), "x");
        c.expect_ack(PUBACK, n);
    }
    let more = "there may be more: these are the first 3, --limit shows others\n";
    eventually("five topics", Duration::from_secs(5), || !weir_says(&weir, &["topics", "-l", "5"]).1.is_empty());
    assert!(weir_says(&weir, &["topics", "-l", "3"]).1.ends_with(more));
    assert!(!weir_says(&weir, &["topics"]).1.contains("more"));
    let top: serde_json::Value = serde_json::from_str(&weir_says(&weir, &["top", "--once", "-o", "json"]).1).unwrap();
    assert_eq!((top["clients"][0]["client_id"].as_str(), top["streams"][0]["end"].as_u64()), (Some("c"), Some(5)), "{top}");
}

/// The page's own origin, at the host by which the admin port was asked.
#[test]
fn the_gateways_own_page_may_change_what_no_other_page_may() {
    let dir = support::dir();
    let weir = Weir::start(dir.path());
    let own = format!("Origin: http://127.0.0.1:{}\r\n", weir.http);
    let ask = |method: &str, host: &str, origin: &str| {
        let mut socket = std::net::TcpStream::connect(("127.0.0.1", weir.admin)).unwrap();
        let request = format!(
            "{method} /api/v1/retained?filter=a HTTP/1.1\r\nHost: {host}:{}\r\n{origin}Access-Control-Request-Method: DELETE\r\n\
             Connection: close\r\n\r\n",
            weir.admin
        );
        std::io::Write::write_all(&mut socket, request.as_bytes()).unwrap();
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut socket, &mut answer).unwrap();
        answer.to_ascii_lowercase()
    };
    let allowed = format!("access-control-allow-origin: http://127.0.0.1:{}", weir.http);
    for (method, status) in [("OPTIONS", "204"), ("DELETE", "200")] {
        let answer = ask(method, "127.0.0.1", &own);
        assert!(answer.starts_with(&format!("http/1.1 {status}")) && answer.contains(&allowed), "{method}: {answer}");
    }
    assert!(ask("OPTIONS", "127.0.0.1", &own).contains("access-control-allow-methods: delete, post"));
    // The same page under another name, the admin port itself, another port, another page.
    for (host, origin) in [
        ("localhost", own.clone()),
        ("127.0.0.1", format!("Origin: http://localhost:{}\r\n", weir.http)),
        ("127.0.0.1", format!("Origin: http://127.0.0.1:{}\r\n", weir.admin)),
        ("127.0.0.1", format!("Origin: https://127.0.0.1:{}\r\n", weir.http)),
        ("127.0.0.1", "Origin: null\r\n".into()),
    ] {
        for method in ["OPTIONS", "DELETE"] {
            let answer = ask(method, host, &origin);
            assert!(answer.starts_with("http/1.1 403") && !answer.contains("allow-origin"), "{method} {host} {origin}: {answer}");
        }
    }
    let page = support::http_get(weir.http, "/");
    assert!(page.contains("data-act=\"publish\""), "the body alone");
    let mut socket = std::net::TcpStream::connect(("127.0.0.1", weir.http)).unwrap();
    std::io::Write::write_all(&mut socket, b"GET / HTTP/1.1\r\nHost: plant.local:8080\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut socket, &mut answer).unwrap();
    assert!(
        answer.contains(&format!("; connect-src 'self' ws://plant.local:8080 wss://plant.local:8080 http://plant.local:{}", weir.admin)),
        "{}",
        &answer[..600]
    );
}

/// A client that closes its connection whenever it is sent a message that it cannot take.
#[test]
fn a_client_that_leaves_at_the_same_record_again_and_again_is_explained() {
    let dir = support::dir();
    let weir = Weir::start(dir.path());
    let connect = || Raw::connect_with(weir.mqtt, Version::V311, "small", false, &[]);
    connect().subscribe("large/#", 1);
    let mut p = Raw::connect_with(weir.mqtt, Version::V311, "p", true, &[]);
    for n in 1..=3 {
        p.publish(1, false, n, "large/x", &"x".repeat(12_000));
        p.expect_ack(PUBACK, n);
    }
    let explained = |times: u32| {
        let words = said(&ask(weir.admin, &["explain", "small"]));
        let told = format!("it has left {times} times in a row with record 0 of default/0 unacknowledged, 12000 bytes on topic large/x");
        (words.contains(&told), words)
    };
    for times in 1..=3 {
        connect().expect_publish();
        eventually("it has left", Duration::from_secs(5), || json(weir.admin, "/api/v1/sessions/small")["left_there"] == times);
    }
    let (told, words) = explained(3);
    assert!(told, "{words}");
    // It takes that one at last, and leaves at the next.
    let mut c = connect();
    let m = c.expect_publish();
    c.ack(PUBACK, m.id);
    drop(c);
    eventually("it has left", Duration::from_secs(5), || json(weir.admin, "/api/v1/sessions/small")["left_there"] == 1);
    assert!(!said(&ask(weir.admin, &["explain", "small"])).contains("it has left"));
}
