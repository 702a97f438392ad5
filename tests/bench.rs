//! `weir bench` finds nothing wrong with a broker that is right, and everything with one that is not.

mod support;

use serde_json::Value;
use std::{
    collections::HashMap,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::{Command, Output},
    sync::{Arc, Mutex},
    time::Duration,
};
use support::{Weir, binary, dir, eventually, free_port, http_get};

fn bench(port: u16, args: &[&str]) -> Output {
    Command::new(binary()).arg("bench").args(args).args(["-p", &port.to_string(), "--seconds", "1", "--json"]).output().unwrap()
}

fn report(out: &Output) -> Value {
    serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"))
}

#[test]
fn every_scenario_runs_and_finds_every_message() {
    let dir = dir();
    let weir = Weir::start(dir.path());
    // Those of $SYS/broker.
    let line = |metrics: String| metrics.lines().find(|l| l.starts_with("weir_retained_messages ")).map(|l| format!("{l}\n"));
    let mut retained = String::new();
    eventually("the broker's topics", Duration::from_secs(5), || {
        retained = line(http_get(weir.admin, "/metrics")).unwrap();
        retained != "weir_retained_messages 0\n"
    });
    let (pid, url) = (weir.process.0.id().to_string(), format!("ws://127.0.0.1:{}/ws", weir.http));
    let cases: [&[&str]; 21] = [
        &["fan-in", "--publishers", "3"],
        &["fan-in", "--publishers", "3", "-q", "0", "-V", "5", "--rate", "2000"],
        &["pairs", "--pairs", "3", "-q", "2", "-V", "5"],
        &["pairs", "--pairs", "3", "-V", "5", "--persistent"],
        &["fan-out", "--publishers", "2", "--subscribers", "5", "--rate", "1000"],
        &["shared", "--publishers", "3", "--members", "4"],
        &["shared", "--publishers", "7", "--members", "8", "--groups", "3", "--persistent"],
        &["shared", "--publishers", "2", "--members", "3", "-q", "2", "-V", "5"],
        &["filters", "--publishers", "2", "--filters", "1234"],
        &["window-one", "-V", "5"],
        &["backlog", "--messages", "2000"],
        &["backlog", "--messages", "2000", "-q", "2", "-V", "5"],
        &["resume", "--messages", "2001", "--topics", "20"],
        &["retained", "--topics", "300", "--subscribers", "3"],
        &["retained", "--topics", "300", "--subscribers", "3", "-q", "2"],
        &["feed", "--browsers", "3", "--url", &url],
        &["browsers", "--browsers", "60", "--rate", "500", "--publishers", "3", "--url", &url],
        &["generator"],
        &["connects", "--at-once", "3"],
        &["idle", "--connections", "1200"],
        &["sessions", "--sessions", "40"],
    ];
    for case in cases {
        let out = bench(weir.mqtt, &[case, &["--pid", &pid]].concat());
        assert!(out.status.success(), "{case:?}: {}", String::from_utf8_lossy(&out.stderr));
        let r = report(&out);
        assert!(r["lost"] == 0 && r["out_of_order"] == 0 && r["cpu_percent"].as_f64().is_some(), "{r}");
        match case[0] {
            "connects" => assert!(r["connects"].as_u64() > Some(10), "{r}"),
            "idle" => assert_eq!(r["connections"], 1_200),
            "sessions" => assert!(r["sessions"] == 40 && r["resident_bytes_per_session"].is_u64(), "{r}"),
            "retained" => assert_eq!((&r["published"], &r["delivered"]), (&300.into(), &900.into())),
            "resume" => assert_eq!((&r["published"], &r["delivered"]), (&2001.into(), &2001.into())),
            "fan-out" => assert_eq!(r["published"].as_u64().unwrap() * 5, r["delivered"].as_u64().unwrap()),
            "browsers" => assert_eq!(r["published"].as_u64().unwrap() * 60, r["delivered"].as_u64().unwrap()),
            "feed" => assert_eq!(r["published"].as_u64().unwrap() * 3, r["delivered"].as_u64().unwrap()),
            _ => assert!(r["published"].as_u64() > Some(100) && r["published"] == r["delivered"], "{r}"),
        }
    }
    // With a rate, times count from when a message was to be sent; the rate is kept.
    let r = report(&bench(weir.mqtt, &["fan-in", "--rate", "5000"]));
    let rate = r["acknowledged_per_second"].as_f64().unwrap();
    assert!((4_000.0..6_000.0).contains(&rate) && r["latency_us"]["count"].as_u64() > Some(3_000), "{r}");
    // It leaves nothing behind.
    for gone in ["weir_sessions 0\n", "weir_subscriptions 0\n", &retained] {
        eventually(gone, Duration::from_secs(5), || http_get(weir.admin, "/metrics").contains(gone));
    }
    let file = dir.path().join("blocks");
    let disk = Command::new(binary()).args(["bench", "disk", "--json", "--count", "20", "--file"]).arg(&file).output().unwrap();
    assert!(report(&disk)["write_and_fdatasync_us"]["count"] == 20 && !file.exists(), "{disk:?}");
}

/// Acknowledges everything and delivers all but every tenth message.
fn lossy(listener: &TcpListener) {
    let subscriber: Arc<Mutex<HashMap<u8, TcpStream>>> = Arc::default();
    for socket in listener.incoming() {
        let (mut socket, subscriber) = (socket.unwrap(), subscriber.clone());
        std::thread::spawn(move || {
            let mut count = 0u64;
            loop {
                let mut head = [0; 2];
                if socket.read_exact(&mut head).is_err() {
                    return;
                }
                let mut length = usize::from(head[1] & 0x7F);
                let mut whole = head.to_vec();
                if head[1] & 0x80 != 0 {
                    let mut more = [0];
                    socket.read_exact(&mut more).unwrap();
                    length |= usize::from(more[0]) << 7;
                    whole.push(more[0]);
                }
                let at = whole.len();
                whole.resize(at + length, 0);
                socket.read_exact(&mut whole[at..]).unwrap();
                match head[0] & 0xF0 {
                    0x10 => socket.write_all(&[0x20, 2, 0, 0]).unwrap(),
                    0x80 => {
                        subscriber.lock().unwrap().insert(0, socket.try_clone().unwrap());
                        socket.write_all(&[0x90, 3, 0, 1, 1]).unwrap();
                    }
                    0x30 => {
                        count += 1;
                        if !count.is_multiple_of(10) {
                            let mut all = subscriber.lock().unwrap();
                            all.get_mut(&0).unwrap().write_all(&whole).unwrap();
                        }
                        let topic = usize::from(whole[at]) << 8 | usize::from(whole[at + 1]);
                        let id = at + 2 + topic;
                        socket.write_all(&[0x40, 2, whole[id], whole[id + 1]]).unwrap();
                    }
                    _ => {}
                }
            }
        });
    }
}

#[test]
fn a_broker_that_loses_messages_or_is_not_there_is_told_of_by_the_exit_code() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || lossy(&listener));
    for case in [&["fan-in"][..], &["shared", "--members", "1"]] {
        let out = bench(port, &[case, &["--publishers", "1", "--rate", "1000", "--patience", "1"]].concat());
        let r = report(&out);
        let (published, lost) = (r["published"].as_u64().unwrap(), r["lost"].as_u64().unwrap());
        assert!(out.status.code() == Some(1) && lost == published / 10 && lost > 50, "{r}");
        assert!(String::from_utf8_lossy(&out.stderr).contains(&format!("{lost} messages lost")), "{out:?}");
    }

    for (port, args, words) in [
        (free_port(), &["fan-in"][..], "Connection refused"),
        (port, &["fan-in", "--pid", "4294967294"], "--pid 4294967294"),
        (port, &["feed", "--url", "ws://127.0.0.1:1/ws"], "ws://127.0.0.1:1/ws"),
    ] {
        let out = bench(port, args);
        assert!(out.status.code() == Some(1) && String::from_utf8_lossy(&out.stderr).contains(words), "{args:?}: {out:?}");
    }
    assert_eq!(bench(port, &["fan-in", "--size", "15"]).status.code(), Some(2));
}
