//! The dashboard feed, `/ws` and `/events`: a snapshot at a position and every record after it, resumed, conflated, from the past, in steps.

mod support;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    process::Command,
    time::Duration,
};
use support::{
    Weir, command, dir, free_port, http_get,
    raw::{PUBACK, Raw, Version},
};
use tokio::net::TcpSocket;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, client_async, connect_async,
    tungstenite::{Error, Message, client::IntoClientRequest},
};

struct Browser(WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>);

impl Browser {
    async fn open(weir: &Weir) -> Self {
        Self(connect_async(format!("ws://127.0.0.1:{}/ws", weir.http)).await.unwrap().0)
    }

    /// With little room between, so that it is soon behind when it reads nothing.
    async fn narrow(weir: &Weir) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 * 1024).unwrap();
        let stream = socket.connect(([127, 0, 0, 1], weir.http).into()).await.unwrap();
        Self(client_async(format!("ws://127.0.0.1:{}/ws", weir.http), MaybeTlsStream::Plain(stream)).await.unwrap().0)
    }

    async fn subscribed(weir: &Weir, ask: Value) -> Self {
        let mut browser = Self::open(weir).await;
        browser.subscribe(ask).await;
        browser
    }

    async fn subscribe(&mut self, mut ask: Value) {
        ask["type"] = "subscribe".into();
        self.say(&ask.to_string()).await;
    }

    async fn say(&mut self, text: &str) {
        self.0.send(Message::text(text)).await.unwrap();
    }

    /// The next message but for those that only say where it is.
    async fn next(&mut self) -> Value {
        loop {
            let message = tokio::time::timeout(Duration::from_secs(20), self.0.next()).await.expect("a message").unwrap().unwrap();
            let told: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
            if told["type"] != "beat" && told["type"] != "position" {
                return told;
            }
        }
    }

    async fn expect(&mut self, kind: &str) -> Value {
        let told = self.next().await;
        assert_eq!(told["type"], kind, "{told}");
        told
    }

    /// Offsets and payloads of the next records, until there are so many.
    async fn records(&mut self, count: usize) -> Vec<(u64, String)> {
        let mut got = Vec::new();
        while got.len() < count {
            let told = self.expect("records").await;
            got.extend(records(&told).map(|r| (r["offset"].as_u64().unwrap(), r["text"].as_str().unwrap().to_owned())));
        }
        got
    }
}

fn records(told: &Value) -> impl Iterator<Item = &Value> {
    told["records"].as_array().unwrap().iter()
}

fn pairs(told: &Value) -> Vec<(&str, &str)> {
    records(told).map(|r| (r["topic"].as_str().unwrap(), r["text"].as_str().unwrap())).collect()
}

struct Publisher(Raw, u16);

impl Publisher {
    fn new(weir: &Weir) -> Self {
        Self(Raw::connect_with(weir.mqtt, Version::V311, "p", true, &[]), 0)
    }

    fn publish(&mut self, topic: &str, payload: &str) {
        self.1 = self.1 % 60_000 + 1;
        self.0.publish(1, false, self.1, topic, payload);
        self.0.expect_ack(PUBACK, self.1);
    }
}

/// Many messages in a short time.
async fn load(weir: &Weir, args: &[&str]) {
    let mut bench = Command::new(support::binary());
    bench.args(["bench", "fan-in", "-p", &weir.mqtt.to_string()]).args(args);
    let out = tokio::task::spawn_blocking(move || bench.output().unwrap()).await.unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

#[tokio::test]
async fn newest_values_at_a_position_and_then_every_record_after_it() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut p = Publisher::new(&weir);
    for n in 0..5 {
        p.publish("a/x", &format!("x{n}"));
        p.publish("a/y", &format!("y{n}"));
        p.publish("b/z", "elsewhere");
    }
    let mut browser = Browser::subscribed(&weir, json!({"id": 3, "filter": "a/+"})).await;
    let start = browser.expect("start").await;
    assert_eq!((&start["id"], &start["stream"], &start["position"]), (&json!(3), &json!("default"), &json!(15)));
    let snapshot = browser.expect("snapshot").await;
    assert_eq!((&snapshot["position"], &snapshot["done"], &snapshot["epoch"]), (&json!(15), &json!(true), &start["epoch"]));
    assert_eq!(pairs(&snapshot), [("a/x", "x4"), ("a/y", "y4")]);
    // A second one with the same wish shares what the first is told.
    let mut other = Browser::subscribed(&weir, json!({"id": 3, "filter": "a/+"})).await;
    other.expect("start").await;
    assert_eq!(pairs(&other.expect("snapshot").await).len(), 2);
    for n in 0..10 {
        p.publish("a/x", &format!("late{n}"));
        p.publish("b/z", "elsewhere");
    }
    let want: Vec<_> = (0..10).map(|n| (15 + 2 * n, format!("late{n}"))).collect();
    assert_eq!(browser.records(10).await, want);
    assert_eq!(other.records(10).await, want);
    // Two subscriptions on one socket; one that ends leaves the other.
    browser.subscribe(json!({"id": 4, "filter": "b/z", "snapshot": false})).await;
    assert_eq!(browser.expect("start").await["id"], 4);
    browser.say(r#"{"type":"unsubscribe","id":3}"#).await;
    drop(other);
    browser.say("hello").await;
    assert!(browser.expect("error").await["message"].as_str().unwrap().contains("expected"));
    for payload in ["somebody", "and again, with the other one forgotten"] {
        p.publish("a/x", "nobody");
        p.publish("b/z", payload);
        let told = browser.expect("records").await;
        assert_eq!((&told["id"], pairs(&told)), (&json!(4), vec![("b/z", payload)]));
    }
}

#[tokio::test]
async fn who_comes_again_misses_nothing_after_sigkill_too() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut p = Publisher::new(&weir);
    let mut browser = Browser::subscribed(&weir, json!({"filter": "#"})).await;
    browser.expect("start").await;
    let epoch = browser.expect("snapshot").await["epoch"].clone();
    p.publish("a", "0");
    let told = browser.expect("records").await;
    assert_eq!(told["position"], 1);
    drop(browser);
    (1..400).for_each(|n| p.publish("a", &n.to_string()));
    let ports = weir.ports();
    weir.kill();
    let weir = Weir::start_on(dir.path(), ports);
    let mut p = Publisher::new(&weir);
    for latest_only in [false, true] {
        let ask = json!({"filter": "#", "latest_only": latest_only, "resume": {"default/0": {"position": 1, "epoch": epoch}}});
        let mut browser = Browser::subscribed(&weir, ask).await;
        let start = browser.expect("start").await;
        assert_eq!((&start["recovered"], &start["position"], &start["lost"]), (&json!(true), &json!(1), &Value::Null));
        assert!(start["end"].as_u64() >= Some(400), "{start}");
        p.publish("a", &(400 + u64::from(latest_only)).to_string());
        let count = 400 + usize::from(latest_only);
        let want: Vec<_> = (1..=count as u64).map(|n| (n, n.to_string())).collect();
        assert_eq!(browser.records(count).await, want, "latest_only: {latest_only}");
    }
    // A position of another log is worth nothing.
    for reached in [json!({"position": 1, "epoch": "00"}), json!({"position": 9_999, "epoch": epoch})] {
        let mut browser = Browser::subscribed(&weir, json!({"filter": "#", "resume": {"default/0": reached}})).await;
        assert_eq!(browser.expect("start").await["recovered"], false);
        assert_eq!(pairs(&browser.expect("snapshot").await), [("a", "401")]);
    }
}

/// A browser that wants two frames a second and every record is told all that there is each time, in as many messages as that takes.
#[tokio::test]
async fn a_pace_without_conflation_falls_behind_by_no_more_than_its_pause() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut browser = Browser::subscribed(&weir, json!({"filter": "#", "snapshot": false, "rate_max": 2})).await;
    browser.expect("start").await;
    // Twelve messages of 1,000 records: with a pause after each they took six seconds.
    let mut p = Publisher::new(&weir);
    tokio::task::spawn_blocking(move || (0..12_000).for_each(|n| p.0.publish(0, false, 0, &format!("t/{}", n % 9), &n.to_string())))
        .await
        .unwrap();
    let told = tokio::time::timeout(Duration::from_secs(3), browser.records(12_000)).await.expect("all of it soon after");
    assert!(told.iter().map(|(offset, _)| *offset).eq(told[0].0..told[0].0 + 12_000), "each once, in order");
}

/// While others publish, `start` says where the snapshot stands, and every record from there on is told.
#[tokio::test]
async fn a_snapshot_stands_where_start_says() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut p = Publisher::new(&weir);
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let publisher = tokio::task::spawn_blocking(move || {
        let mut n = 0;
        while stopped.try_recv().is_err() {
            p.publish(&format!("t/{}", n % 50), &n.to_string());
            n += 1;
        }
    });
    let mut browser = Browser::open(&weir).await;
    for id in 1..=150 {
        browser.subscribe(json!({"id": id, "filter": "t/#", "snapshot": true})).await;
        let mut of_it = async || loop {
            let told = browser.next().await;
            if told["id"] == id {
                return told;
            }
        };
        let start = of_it().await;
        assert_eq!((&start["type"], &start["snapshot"]), (&"start".into(), &true.into()), "{start}");
        let position = start["position"].as_u64().unwrap();
        let snapshot = of_it().await;
        assert_eq!((&snapshot["type"], snapshot["position"].as_u64()), (&"snapshot".into(), Some(position)), "{snapshot}");
        assert!(records(&snapshot).all(|r| r["offset"].as_u64() < Some(position)));
        let first = of_it().await;
        assert_eq!(records(&first).next().unwrap()["offset"], position, "the first record behind it");
        browser.say(&json!({"type": "unsubscribe", "id": id}).to_string()).await;
    }
    stop.send(()).unwrap();
    publisher.await.unwrap();
}

/// 400 messages of 20 topics as fast as they go, beside a browser that takes two frames a second.
#[tokio::test]
async fn the_newest_of_each_topic_stands_for_those_it_thinned() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut p = Publisher::new(&weir);
    let mut browser = Browser::subscribed(&weir, json!({"filter": "#", "latest_only": true, "rate_max": 2})).await;
    browser.expect("start").await;
    browser.expect("snapshot").await;
    tokio::task::spawn_blocking(move || (0..4_000).for_each(|n| p.publish(&format!("t/{}", n % 20), &n.to_string()))).await.unwrap();
    let (mut seen, mut told, mut thinned, mut position) = (HashMap::new(), 0, 0, 0);
    while position < 4_000 {
        let frame = browser.expect("records").await;
        let (before, mut topics) = (told, Vec::new());
        for r in records(&frame) {
            let offset = r["offset"].as_u64().unwrap();
            topics.push(r["topic"].as_str().unwrap().to_owned());
            assert!(seen.insert(topics.last().cloned(), offset).is_none_or(|before| before < offset), "no step back");
            told += 1;
        }
        topics.sort_unstable();
        topics.dedup();
        assert_eq!(topics.len(), told - before, "each topic once in a frame");
        thinned += frame["thinned"].as_u64().unwrap_or(0);
        position = frame["position"].as_u64().unwrap();
    }
    assert_eq!(told as u64 + thinned, 4_000);
    assert!(thinned > 2_000, "{thinned}");
    assert!((0..20).all(|t| seen[&Some(format!("t/{t}"))] == 3_980 + t), "the last of each");
    assert!(http_get(weir.admin, "/metrics").contains(&format!("weir_feed_thinned_total {thinned}")));
}

/// A browser that now and then reads nothing, so that it misses whole frames: what stands for them is one list of the newest, and the count is right.
#[tokio::test]
async fn who_misses_frames_knows_how_many_records_were_in_them() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut p = Publisher::new(&weir);
    let mut browser = Browser::narrow(&weir).await;
    browser.subscribe(json!({"filter": "#", "latest_only": true, "rate_max": 100})).await;
    browser.expect("start").await;
    browser.expect("snapshot").await;
    let publisher = tokio::task::spawn_blocking(move || {
        let payload = "x".repeat(4_000);
        (0..20_000).for_each(|n| p.publish(&format!("t/{}", n % 500), &payload));
    });
    let (mut told, mut thinned, mut position, mut frames) = (0, 0, 0, 0);
    while position < 20_000 {
        let frame = browser.expect("records").await;
        told += records(&frame).count() as u64;
        thinned += frame["thinned"].as_u64().unwrap_or(0);
        position = frame["position"].as_u64().unwrap();
        frames += 1;
        if frames % 3 == 0 && !publisher.is_finished() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
    publisher.await.unwrap();
    assert_eq!(told + thinned, 20_000);
    assert!(thinned > 0, "{frames} frames had everything");
}

/// A browser that reads nothing while more is published than any buffer between holds.
#[tokio::test]
async fn a_slow_browser_is_read_to_from_the_log_and_gets_every_record() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut every = Browser::subscribed(&weir, json!({"filter": "#"})).await;
    let mut newest = Browser::subscribed(&weir, json!({"filter": "#", "latest_only": true})).await;
    for browser in [&mut every, &mut newest] {
        browser.expect("start").await;
        browser.expect("snapshot").await;
    }
    load(&weir, &["--rate", "20000", "--seconds", "2"]).await;
    Publisher::new(&weir).publish("last", "x");
    let mut next = 0;
    loop {
        let told = every.expect("records").await;
        for r in records(&told) {
            assert_eq!(r["offset"], next, "no gap, no repeat");
            next += 1;
        }
        if records(&told).any(|r| r["topic"] == "last") {
            break;
        }
    }
    assert!(next > 10_000, "{next} were published");
    let mut told = 0;
    while newest.expect("records").await["records"].as_array().unwrap().iter().inspect(|_| told += 1).all(|r| r["topic"] != "last") {}
    assert!(told < next / 10, "{told} of {next}");
}

#[tokio::test]
async fn the_past_in_ranges_moments_and_steps() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut p = Publisher::new(&weir);
    for n in 0..50 {
        p.publish("t/a", &format!(r#"{{"c":{n},"on":{}}}"#, n < 30));
        p.publish("t/b", &n.to_string());
    }
    let mut browser = Browser::open(&weir).await;
    // The last five before a record, and no more.
    browser.subscribe(json!({"id": 1, "filter": "t/b", "from": "last:5", "until": "offset:41"})).await;
    browser.expect("start").await;
    let got = browser.records(5).await;
    assert_eq!(got, (15..20).map(|n| (2 * n + 1, n.to_string())).collect::<Vec<_>>());
    assert_eq!(browser.expect("end").await["id"], 1);
    browser.subscribe(json!({"id": 1, "filter": "t/b", "from": "offset:41", "until": "offset:42"})).await;
    browser.expect("start").await;
    assert_eq!(browser.records(1).await, [(41, "20".to_owned())], "a range of one");
    browser.expect("end").await;
    // As it was before a record.
    browser.subscribe(json!({"id": 2, "filter": "t/+", "at": "offset:10"})).await;
    browser.expect("start").await;
    let then = browser.expect("snapshot").await;
    assert_eq!((&then["position"], pairs(&then)), (&json!(10), vec![("t/a", r#"{"c":4,"on":true}"#), ("t/b", "4")]));
    browser.expect("end").await;
    // Everything, and on.
    browser.subscribe(json!({"id": 3, "filter": "t/b", "from": "earliest"})).await;
    browser.expect("start").await;
    assert_eq!(browser.records(50).await.len(), 50);
    p.publish("t/b", "51");
    assert_eq!(browser.records(1).await, [(100, "51".to_owned())]);
    browser.say(r#"{"type":"unsubscribe","id":3}"#).await;
    // One step over all of it.
    browser.subscribe(json!({"id": 4, "filter": "t/+", "from": "earliest", "step": "1h"})).await;
    browser.expect("start").await;
    let steps = browser.expect("steps").await;
    assert_eq!((&steps["complete"], &steps["step"]), (&json!(true), &json!(3_600_000)));
    let series = |topic: &str, field: &str| {
        let all = steps["series"].as_array().unwrap();
        all.iter().find(|s| s["topic"] == topic && s["field"] == field).unwrap_or_else(|| panic!("{topic} {field}: {steps}")).clone()
    };
    let sum = |s: &Value, at: usize| s["points"].as_array().unwrap().iter().map(|p| p[at].as_f64().unwrap()).collect::<Vec<_>>();
    let c = series("t/a", "c");
    assert_eq!((sum(&c, 1)[0], *sum(&c, 2).last().unwrap(), sum(&c, 4).iter().sum::<f64>()), (0.0, 49.0, 50.0));
    let on = series("t/a", "on");
    assert_eq!(on["states"].as_array().unwrap().iter().map(|s| s[1].as_str().unwrap()).collect::<Vec<_>>(), ["true", "false"]);
    assert_eq!(*sum(&series("t/b", ""), 3).last().unwrap(), 51.0);
    browser.expect("end").await;
    // What was before the last restart is there as well; what is asked wrong is said.
    browser.subscribe(json!({"id": 5, "filter": "t/+", "at": "yesterday"})).await;
    let error = browser.expect("error").await;
    assert!(error["id"] == 5 && error["message"].as_str().unwrap().contains("at: from \"yesterday\""), "{error}");
}

/// Six times as long in JSON as on the wire: it comes in several messages, steps say where to ask on.
#[tokio::test]
async fn no_message_is_longer_than_a_browser_should_have() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut p = Publisher::new(&weir);
    let mut browser = Browser::subscribed(&weir, json!({"id": 1, "filter": "t/+", "latest_only": true, "rate_max": 0.5})).await;
    browser.expect("start").await;
    browser.expect("snapshot").await;
    let long = "\u{1}".repeat(4_000);
    p.publish("t/x", "now");
    assert_eq!(browser.records(1).await.len(), 1);
    (0..100).for_each(|n| p.publish(&format!("t/{n}"), &long));
    let whole = |told: &Value| told.to_string().len() < 300_000;
    // As they came, conflated; from the log; as a snapshot.
    let mut messages = 0;
    let mut all = Vec::new();
    while all.len() < 100 {
        let told = browser.expect("records").await;
        assert!(whole(&told));
        all.extend(records(&told).map(|r| r["offset"].as_u64().unwrap()));
        messages += 1;
    }
    assert!(messages > 5 && all == (1..=100).collect::<Vec<u64>>(), "{messages} messages: {all:?}");
    browser.say(r#"{"type":"unsubscribe","id":1}"#).await;
    browser.subscribe(json!({"id": 2, "filter": "t/+", "from": "offset:1", "until": "latest"})).await;
    browser.expect("start").await;
    let mut next = 1;
    while next < 101 {
        let told = browser.expect("records").await;
        assert!(whole(&told));
        for r in records(&told) {
            assert_eq!(r["offset"], next);
            next += 1;
        }
        assert_eq!(told["position"], next);
    }
    browser.expect("end").await;
    // 2,000 states of 64 control characters.
    for n in 0..2_000 {
        p.publish(&format!("s/{}", n % 100), &char::from(1 + (n / 100) as u8).to_string().repeat(64));
    }
    let (mut states, mut from, mut answers) = (0, 0, 0);
    loop {
        browser.subscribe(json!({"id": 3, "filter": "s/+", "from": format!("offset:{from}"), "until": "latest", "step": "1s"})).await;
        browser.expect("start").await;
        let steps = browser.expect("steps").await;
        assert!(steps.to_string().len() < 800_000);
        states += steps["series"].as_array().unwrap().iter().map(|s| s["states"].as_array().unwrap().len()).sum::<usize>();
        browser.expect("end").await;
        answers += 1;
        if steps["complete"] == true {
            break;
        }
        from = steps["position"].as_u64().unwrap();
    }
    assert!(states == 2_000 && answers > 1, "{states} states in {answers} answers");
}

/// A segment more than is kept: what a browser had not read is taken, and it is told which.
#[tokio::test]
async fn what_retention_took_is_named() {
    let dir = dir();
    let ports = [free_port(), free_port(), free_port()];
    let mut c = command(&support::binary(), &dir.path().join("data"), ports);
    c.args(["--retention-bytes", "64MiB"]);
    let weir = Weir::spawn(c, ports);
    let mut browser = Browser::subscribed(&weir, json!({"filter": "#"})).await;
    let epoch = browser.expect("start").await["epoch"].clone();
    drop(browser);
    let mut slow = Browser::narrow(&weir).await;
    slow.subscribe(json!({"filter": "#"})).await;
    slow.expect("start").await;
    slow.expect("snapshot").await;
    load(&weir, &["--size", "65536", "--rate", "1500", "--seconds", "2"]).await;
    let start = || http_get(weir.admin, "/api/v1/streams");
    let first = || {
        let answer = start();
        let streams: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        streams["streams"].as_array().unwrap().iter().find(|s| s["stream"] == "default").unwrap()["start"].as_u64().unwrap()
    };
    support::eventually("retention takes some", Duration::from_secs(30), || first() > 0);
    let ask = json!({"filter": "#", "resume": {"default/0": {"position": 0, "epoch": epoch}}});
    let mut browser = Browser::subscribed(&weir, ask).await;
    let told = browser.expect("start").await;
    let lost = &told["lost"];
    assert_eq!((&told["recovered"], &lost["from"], &lost["reason"]), (&json!(false), &json!(0), &json!("retention")), "{told}");
    let records_from = records(&browser.expect("records").await).next().unwrap()["offset"].clone();
    assert_eq!(lost["to"], records_from);
    // One that was there all the time and read nothing: what it was told and what is lost are everything.
    Publisher::new(&weir).publish("last", "x");
    let (mut next, mut lost, mut is_last) = (0, 0, false);
    while !is_last {
        let told = slow.next().await;
        if told["type"] == "lost" {
            assert_eq!(told["lost"]["from"], next);
            let to = told["lost"]["to"].as_u64().unwrap();
            (lost, next) = (lost + to - next, to);
            continue;
        }
        for r in records(&told) {
            assert_eq!(r["offset"], next);
            (next, is_last) = (next + 1, r["topic"] == "last");
        }
    }
    assert!(lost > 0, "all of {next} were read");
    assert!(http_get(weir.admin, "/metrics").contains(&format!("weir_feed_lost_total {lost}\n")));
}

#[test]
fn server_sent_events_go_on_where_they_were() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut p = Publisher::new(&weir);
    p.publish("a", "0");
    let open = |more: &str, header: &str| {
        let mut s = TcpStream::connect(("127.0.0.1", weir.http)).unwrap();
        s.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        write!(s, "GET /events?filter=%23{more} HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}\r\n").unwrap();
        BufReader::new(s)
    };
    // Id and data.
    let event = |s: &mut BufReader<TcpStream>| {
        let (mut id, mut line) = (String::new(), String::new());
        loop {
            line.clear();
            assert!(s.read_line(&mut line).unwrap() > 0, "it ended");
            if let Some(text) = line.strip_prefix("id: ") {
                id = text.trim().to_owned();
            } else if let Some(json) = line.strip_prefix("data: ") {
                return (id, serde_json::from_str::<Value>(json).unwrap());
            }
        }
    };
    let mut first = open("", "");
    assert_eq!(event(&mut first).1["type"], "start");
    assert_eq!(pairs(&event(&mut first).1), [("a", "0")]);
    p.publish("a", "1");
    let (id, told) = event(&mut first);
    assert_eq!(pairs(&told), [("a", "1")]);
    drop(first);
    (2..5).for_each(|n| p.publish("a", &n.to_string()));
    let mut again = open("&snapshot=true", &format!("Last-Event-ID: {id}\r\n"));
    assert_eq!(event(&mut again).1["recovered"], true);
    let mut got = Vec::new();
    while got.len() < 3 {
        got.extend(records(&event(&mut again).1).map(|r| r["text"].as_str().unwrap().to_owned()));
    }
    assert_eq!(got, ["2", "3", "4"]);
    let mut past = open("&from=earliest&until=latest&step=366d&field=", "");
    assert_eq!(event(&mut past).1["type"], "start");
    let steps = event(&mut past).1;
    let point = &steps["series"][0]["points"][0];
    assert_eq!(
        (&steps["complete"], &point[1], &point[2], &point[3], &point[4]),
        (&json!(true), &json!(0.0), &json!(4.0), &json!(4.0), &json!(5))
    );
    assert_eq!(event(&mut past).1["type"], "end");
    let status = |mut s: BufReader<TcpStream>| {
        let mut line = String::new();
        s.read_line(&mut line).unwrap();
        line.split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!(status(open("", "Last-Event-ID: 7\r\n")), "400");
    assert_eq!(status(open("&rate_max=0", "")), "400");
    assert_eq!(status(open("", "Origin: http://elsewhere.example\r\n")), "403");
}

#[tokio::test]
async fn a_wrong_filter_and_another_origin_are_told_so() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    let mut browser = Browser::subscribed(&weir, json!({"id": 1, "filter": "a/#/b"})).await;
    assert!(browser.expect("error").await["message"].as_str().unwrap().contains("not a topic filter"));
    for id in 0..64 {
        browser.subscribe(json!({"id": id, "filter": "#", "snapshot": false})).await;
        browser.expect("start").await;
    }
    browser.subscribe(json!({"id": 64, "filter": "#"})).await;
    assert!(browser.expect("error").await["message"].as_str().unwrap().contains("64 subscriptions"));
    browser.subscribe(json!({"id": 63, "filter": "#"})).await;
    browser.expect("start").await;

    let mut request = format!("ws://127.0.0.1:{}/ws", weir.http).into_client_request().unwrap();
    request.headers_mut().insert("origin", "http://elsewhere.example".parse().unwrap());
    match connect_async(request).await {
        Err(Error::Http(response)) => assert_eq!(response.status(), 403),
        other => panic!("{other:?}"),
    }
}
