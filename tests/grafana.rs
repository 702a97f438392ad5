//! Dashboards and rules against Debian's Prometheus and a gateway that has something to do: every expression has an answer, every metric has a name that
//! somebody uses, and every rule fires when it should.

mod support;

use serde_json::Value;
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};
use support::{
    Guard, Weir, binary, command, dir, eventually, free_port, http_get,
    raw::{PUBACK, Raw, Version},
};

fn grafana() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("grafana")
}

/// Where it stands, and the expression as Prometheus takes it.
type Expression = (String, String);

fn of_panels(name: &str, panels: &Value, into: &mut Vec<Expression>) {
    for panel in panels.as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        for target in panel["targets"].as_array().into_iter().flatten() {
            let expr = target["expr"].as_str().unwrap();
            let expr = expr.replace("$__rate_interval", "30s").replace("\"$instance\"", "\".*\"");
            // What is not foreseen is 0, and not shown; here it is to have an answer all the same.
            let expr = expr.replace(" > 0)", " >= 0)");
            assert!(!expr.contains('$'), "{name}, {title}: {expr}");
            into.push((format!("{name}, {title}"), expr));
        }
        assert!(panel["type"] == "row" || panel["description"].as_str().is_some_and(|d| d.len() > 3), "{name}, {title} says what it shows");
    }
}

fn dashboards() -> Vec<Expression> {
    let mut all = Vec::new();
    for file in std::fs::read_dir(grafana().join("dashboards")).unwrap() {
        let file = file.unwrap().path();
        let dashboard: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert!(dashboard.get("__inputs").is_none());
        of_panels(dashboard["title"].as_str().unwrap(), &dashboard["panels"], &mut all);
    }
    assert!(all.len() > 30);
    all
}

/// `EXPRESSION > NUMBER` and the like.
fn without_threshold(expr: &str) -> &str {
    let (left, number) = expr.rsplit_once(' ').unwrap_or((expr, ""));
    let signs = [" >", " <", " =="];
    let compared = signs.iter().find_map(|sign| left.strip_suffix(sign)).filter(|_| number.parse::<f64>().is_ok());
    compared.unwrap_or(expr)
}

/// Expressions of the rules without their thresholds: a rule that does not fire has no answer.
fn rules() -> Vec<Expression> {
    let text = std::fs::read_to_string(grafana().join("prometheus/rules/weir.yml")).unwrap();
    let exprs = text.lines().filter_map(|l| l.trim().strip_prefix("expr: "));
    let all: Vec<_> = exprs.map(without_threshold).collect();
    assert!(all.len() > 8);
    all.into_iter()
        .map(|e| (format!("rule {e}"), e.replace("[5m]", "[30s]").replace("[15m]", "[30s]").replace(" > 0)", " >= 0)")))
        .collect()
}

/// Names that begin with `weir_`, without what Prometheus adds to histograms.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|w| w.starts_with("weir_"));
    let plain = |w: &str| ["_bucket", "_sum", "_count"].iter().find_map(|s| w.strip_suffix(s)).unwrap_or(w).to_owned();
    words.map(plain).collect()
}

fn promtool(args: &[&str], input: &str) {
    let mut child =
        Command::new("promtool").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "promtool {args:?}: {}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
}

#[test]
fn rules_fire_when_they_should_and_say_what_to_do() {
    let rules = grafana().join("prometheus/rules");
    promtool(&["test", "rules", rules.join("weir_test.yml").to_str().unwrap()], "");
    for config in ["prometheus.yml", "compose.yml"] {
        promtool(&["check", "config", grafana().join("prometheus").join(config).to_str().unwrap()], "");
    }
    let (text, tests) =
        (std::fs::read_to_string(rules.join("weir.yml")).unwrap(), std::fs::read_to_string(rules.join("weir_test.yml")).unwrap());
    for alert in text.lines().filter_map(|l| l.trim().strip_prefix("- alert: ")) {
        assert!(tests.contains(alert), "{alert} has a test");
    }
    assert_eq!(text.matches("runbook: ").count(), text.matches("- alert: ").count());
}

/// What moves every counter that can be moved from outside.
fn load(port: u16) {
    let mut c = Raw::connect(port, Version::V5, "reader");
    c.subscribe("load/#", 1);
    let mut p = Raw::connect_with(port, Version::V311, "writer", true, &[]);
    for n in 0..200u16 {
        p.publish(1, false, n + 1, &format!("load/{}", n % 7), "payload");
        p.expect_ack(PUBACK, n + 1);
        let m = c.expect_publish();
        c.ack(PUBACK, m.id);
    }
}

/// A session that nobody reads, and more messages than are kept: one client is named.
fn push_out(weir: &Weir) {
    Raw::connect(weir.mqtt, Version::V311, "away").subscribe("much", 1);
    let mut p = Raw::connect_with(weir.mqtt, Version::V311, "loud", true, &[]);
    let payload = "x".repeat(1 << 20);
    let mut publish = |n: u16| {
        p.publish(1, false, n, "much", &payload);
        p.expect_ack(PUBACK, n);
    };
    (1..=140).for_each(&mut publish);
    eventually("it is named", Duration::from_secs(20), || {
        publish(1);
        http_get(weir.admin, "/metrics").contains("weir_retention_pushing_bytes{client=\"loud\"}")
    });
}

/// The samples that a query answers.
fn query(port: u16, expr: &str) -> Value {
    let encoded: String =
        expr.bytes().map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") }).collect();
    let answer = http_get(port, &format!("/api/v1/query?query={encoded}"));
    let body = answer.split_once("\r\n\r\n").map_or(&*answer, |(_, body)| body);
    let json: Value = serde_json::from_str(&body[body.find('{').expect("json")..=body.rfind('}').expect("json")]).unwrap();
    assert_eq!(json["status"], "success", "{expr}: {json}");
    json["data"]["result"].clone()
}

#[test]
fn every_expression_has_an_answer_and_every_metric_is_used() {
    let dir = dir();
    let ports = [free_port(), free_port(), free_port()];
    let mut command = command(&binary(), &dir.path().join("data"), ports);
    command.args(["--retention-bytes", "64MiB"]);
    let weir = Weir::spawn(command, ports);
    load(weir.mqtt);
    push_out(&weir);
    let scrape = http_get(weir.admin, "/metrics");
    let scrape = scrape.split_once("\r\n\r\n").map_or(&*scrape, |(_, body)| body);
    promtool(&["check", "metrics"], scrape);

    let expressions: Vec<_> = dashboards().into_iter().chain(rules()).collect();
    let all: String = expressions.iter().map(|(_, e)| format!("{e}\n")).collect();
    // From the lines that describe, so that the help of one that names another counts for nothing.
    let described: BTreeSet<String> =
        scrape.lines().filter_map(|l| l.strip_prefix("# TYPE weir_")).map(|l| format!("weir_{}", l.split(' ').next().unwrap())).collect();
    let used = names(&all);
    assert_eq!(used.difference(&described).collect::<Vec<_>>(), Vec::<&String>::new(), "named by a dashboard or a rule, and not there");
    assert_eq!(described.difference(&used).collect::<Vec<_>>(), Vec::<&String>::new(), "there, and nobody looks at it");

    let (port, config) = (free_port(), dir.path().join("prometheus.yml"));
    let target = format!("127.0.0.1:{}", weir.admin);
    std::fs::write(
        &config,
        format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs:\n  - job_name: weir\n    static_configs:\n      - targets: [\"{target}\"]\n"
        ),
    )
    .unwrap();
    let mut prometheus = Command::new("prometheus");
    prometheus.arg(format!("--config.file={}", config.display())).arg(format!("--storage.tsdb.path={}", dir.path().join("tsdb").display()));
    prometheus.arg(format!("--web.listen-address=127.0.0.1:{port}")).arg("--log.level=error");
    let _prometheus = Guard(prometheus.spawn().unwrap());
    let listens = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
    eventually("Prometheus listens", Duration::from_secs(20), listens);
    let scraped = || query(port, "count_over_time(up{job=\"weir\"}[30s]) > 2").as_array().is_some_and(|r| !r.is_empty());
    eventually("Prometheus scrapes", Duration::from_secs(20), || {
        load(weir.mqtt);
        scraped()
    });
    for (place, expr) in expressions {
        let result = query(port, &expr);
        let values = result.as_array().unwrap();
        assert!(!values.is_empty(), "{place}: {expr} has no answer");
        assert!(values.iter().all(|v| v["value"][1] != "NaN"), "{place}: {expr} is no number: {result}");
    }
}
