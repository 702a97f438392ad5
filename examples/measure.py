#!/usr/bin/env python3
"""Weir beside other brokers, in turn and in the same minutes, over every row below; every message is checked.

    examples/measure.py [--rounds 5] [--seconds 3] [--only REGEX] [--out docs] [--mosquitto PATH] [--broker NAME=COMMAND]...
    examples/measure.py --profile [--seconds 3] [--only REGEX] [--out docs/profiles] [--weir PATH]

Weir syncs every message to disk before its PUBACK. mosquitto is Debian's, without persistence and without a limit of its queues (`apt-get install mosquitto`; left out where it is not found).
COMMAND starts another broker in the foreground; in it {port} and {dir} are replaced, as in --broker 'rumqttd=rumqttd -c {dir}/../rumqttd.toml'.

It builds Weir, starts a new broker with an empty directory for every run, takes the medians, and writes measured.md and measured.svg into the directory of --out. A run in which a message was
lost or out of order is no figure: it is shown as failed, and the exit code is 1. What anybody else did with the cores meanwhile is measured too.

With --profile it runs Weir alone, once over every row of a flow, under `perf`, and writes where the time went into a file each in --out. --weir takes another program, an older one say.
"""

import argparse, datetime, functools, json, math, os, platform, re, resource, shutil, signal, socket, statistics, subprocess, sys, time
from collections import namedtuple
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WEIR = ROOT / "target/dist/weir"
WORK = ROOT / "target/measure"
TICKS = os.sysconf("SC_CLK_TCK")

# `of` takes the figure out of a report of `weir bench`; `more`: more is better.
Figure = namedtuple("Figure", "title unit of more")
# `beside` runs against the same broker meanwhile; `options` are Weir's; `rounds`: fewer than asked, of what takes long.
Row = namedtuple("Row", "name args figures only seconds beside options rounds", defaults=[None, None, None, "", None])

per_second = Figure("delivered", "/s", lambda r: r["delivered_per_second"], True)
cpu = Figure("CPU of the broker", "µs/message", lambda r: r["cpu_percent"] * 1e4 / r["delivered_per_second"], False)


def acknowledged(q):
    return Figure(f"PUBLISH to PUBACK {q.replace('p999', 'p99.9')}", "µs", lambda r: r["acknowledged_us"][q], False)


def arrived(q):
    return Figure(f"PUBLISH to subscriber {q.replace('p999', 'p99.9')}", "µs", lambda r: r["latency_us"][q], False)


def more(title, unit, key, better):
    return Figure(title, unit, lambda r: r[key], better)


FLOW = [per_second, cpu]
TIMES = [acknowledged("p50"), acknowledged("p99"), acknowledged("p999"), arrived("p50"), arrived("p99")]

def many():
    """Connections that a process may have here, up to 100,000."""
    for limit in (100_500, resource.getrlimit(resource.RLIMIT_NOFILE)[1]):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            return limit - 500
        except ValueError:
            pass


MANY = many()

ROWS = [
    Row("fan-in, QoS 1", "fan-in", FLOW),
    # As fast as they go, a reader falls behind, and what is dropped for it is no figure.
    Row("fan-in, QoS 0, 50,000 a second", "fan-in -q 0 --rate 50000", FLOW),
    Row("fan-in, QoS 2", "fan-in -q 2", FLOW),
    Row("fan-in, QoS 1, MQTT 5", "fan-in -V 5", FLOW),
    Row("fan-in, 16 B", "fan-in --size 16", FLOW),
    Row("fan-in, 1 KiB", "fan-in --size 1024", FLOW),
    Row("fan-in, 16 KiB", "fan-in --size 16384", FLOW),
    Row("fan-in, 64 KiB", "fan-in --size 65536 --window 20", FLOW),
    Row("50 publishers, window 1", "fan-in --publishers 50 --window 1", FLOW + [acknowledged("p50"), acknowledged("p99")]),
    Row("1 publisher, window 1", "window-one", [acknowledged("p50"), acknowledged("p99")]),
    Row("one write and fdatasync, no broker", "disk", [Figure("4 KiB into zeroed blocks p50", "µs", lambda r: r["write_and_fdatasync_us"]["p50"], False),
                                                       Figure("4 KiB into zeroed blocks p99", "µs", lambda r: r["write_and_fdatasync_us"]["p99"], False)], "weir"),
    Row("2,000 messages a second", "fan-in --rate 2000", TIMES),
    Row("10,000 messages a second", "fan-in --rate 10000", TIMES),
    # Beside them the log gets a new segment every three seconds, and retention and a checkpoint at each; then 10,000 sessions are made and come back.
    Row("2,000 messages a second beside 20,000 of 1 KiB", "fan-in --rate 2000", TIMES, None, 12, "fan-in --rate 20000 --size 1024 --seconds 12", "--retention-bytes 128MiB"),
    Row("10,000 messages a second beside 20,000 of 1 KiB", "fan-in --rate 10000", TIMES, None, 12, "fan-in --rate 20000 --size 1024 --seconds 12", "--retention-bytes 128MiB"),
    Row("2,000 messages a second beside 10,000 sessions that come back", "fan-in --rate 2000", TIMES, None, 12, "resume --messages 100000 --topics 10000"),
    Row("10,000 messages a second beside 10,000 sessions that come back", "fan-in --rate 10000", TIMES, None, 12, "resume --messages 100000 --topics 10000"),
    # Weir acknowledges when the operating system has a message, as a database does without its sync; mosquitto has no disk at all here.
    Row('fan-in, QoS 1, durability = "os"', "fan-in", FLOW, options="--durability os"),
    Row('50 publishers, window 1, durability = "os"', "fan-in --publishers 50 --window 1", FLOW + [acknowledged("p50"), acknowledged("p99")], options="--durability os"),
    Row('1 publisher, window 1, durability = "os"', "window-one", [acknowledged("p50"), acknowledged("p99")], options="--durability os"),
    Row('2,000 messages a second, durability = "os"', "fan-in --rate 2000", TIMES, options="--durability os"),
    Row("pairs, QoS 1", "pairs", FLOW),
    Row("fan-out to 100, QoS 1", "fan-out", FLOW),
    Row("fan-out to 100, QoS 0", "fan-out -q 0 --rate 20000", FLOW),
    # ThingsBoard's TBMQ publishes 100 publishers × 10 a second to 3,000 subscribers of everything, QoS 0, 66 B: 3 M/s at 7.4 ms mean on 32 virtual cores. Here is a sixteenth of it.
    Row("188 subscribers of everything, 1,000 messages a second, QoS 0, 66 B", "fan-out --publishers 100 --subscribers 188 -q 0 --size 66 --rate 1000", FLOW + [arrived("p50"), arrived("p99")]),
    # HiveMQ's blog of release 4.28, "HiveMQ Increases MQTT Per-Core Throughput With the New Client Queue": 3,900 messages a second and core, in and out, with queues on disk.
    Row("1,000 pairs, persistent sessions, QoS 1, 3,900 messages a second in and out", "pairs --pairs 1000 --persistent --rate 3900", FLOW + [arrived("p50"), arrived("p99")]),
    Row("1,000 pairs, persistent sessions, QoS 1, window 1", "pairs --pairs 1000 --persistent --window 1", FLOW),
    # EMQX's performance reference, 5.1.6 on 4 virtual cores: 2,000 publishers, 20 shared subscriptions of 5 for 100 publishers each, QoS 1, 128 B: 15,000 messages a second in and as many out at
    # 75 % of the cores, p99 7.7 ms. Here is half of it.
    Row("1,000 publishers, 10 shared subscriptions of 5, QoS 1, 128 B, 7,500 messages a second", "shared --publishers 1000 --groups 10 --members 50 --size 128 --rate 7500", FLOW + [arrived("p50"), arrived("p99")]),
    Row("shared subscription of 10", "shared", FLOW),
    Row("fan-in beside 1 M filters", "filters --filters 1000000", [per_second, more("memory of a filter", "B", "resident_bytes_per_filter", False),
                                                                  more("subscribed", "/s", "filters_per_second", True)]),
    Row("connects", "connects", [more("CONNECT to CONNACK and gone", "/s", "connects_per_second", True)]),
    Row("9,000 idle connections", "idle --connections 9000", [more("memory of one", "B", "resident_bytes_per_connection", False)]),
    Row(f"{MANY:,} idle connections", f"idle --connections {MANY}", [more("memory of one", "B", "resident_bytes_per_connection", False)], rounds=1),
    Row("1 M stored sessions", "sessions --sessions 1000000", [more("memory of one", "B", "resident_bytes_per_session", False), more("connected, subscribed and gone", "/s", "sessions_per_second", True)], rounds=1),
    Row("backlog of 200,000 to one session", "backlog --messages 200000", [per_second]),
    Row("1,000 sessions come back to 1 of 1,000 topics", "resume --messages 200000 --topics 1000",
        [Figure("first message p50", "µs", lambda r: r["first_message_us"]["p50"], False), more("all have everything after", "ms", "all_after_ms", False)]),
    Row("10,000 sessions come back to 1 of 10,000 topics after 1 M messages", "resume --messages 1000000 --topics 10000",
        [Figure("first message p50", "µs", lambda r: r["first_message_us"]["p50"], False), more("all have everything after", "ms", "all_after_ms", False)], rounds=3),
    Row("10,000 retained messages to 10 subscribers", "retained", [per_second]),
    Row("100,000 retained messages to 10 subscribers", "retained --topics 100000", [per_second]),
    Row("1 M retained messages to 2 subscribers", "retained --topics 1000000 --subscribers 2", [per_second, more("memory of one", "B", "resident_bytes_per_message", False)], rounds=2),
    Row("1,000 browsers at 10 Hz", "browsers", [more("frames", "/s", "frames_per_second", True), arrived("p50"), arrived("p99"),
                                               Figure("CPU of the gateway", "% of a core", lambda r: r["cpu_percent"], False)], "weir"),
    Row("1,000 browsers of 30 topics at 10 Hz", "browsers --publishers 30 --rate 3000", [more("messages told", "/s", "told_per_second", True), arrived("p99"),
                                               Figure("CPU of the gateway", "% of a core", lambda r: r["cpu_percent"], False)], "weir"),
    Row("start with an empty log", "start", [more("ready after", "ms", "ready_ms", False)]),
    Row("start with 10 GiB of log", "restart", [more("ready after SIGTERM", "ms", "after_term_ms", False), more("ready after SIGKILL", "ms", "after_kill_ms", False)], "weir", None, None,
        "--retention-bytes 0", 1),
]


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Broker:
    """One that is new: `with` starts and ends it."""

    def __init__(self, name, command):
        self.name, self.command, self.options = name, command, ""

    def __enter__(self):
        self.dir = WORK / "broker"
        shutil.rmtree(self.dir, ignore_errors=True)
        self.dir.mkdir(parents=True)
        self.start()
        return self

    def start(self):
        """Gives the milliseconds until it takes connections."""
        self.port, self.http, admin = free_ports(3)
        if self.name == "weir":
            command = [self.command or WEIR, "run", "--mqtt", f"127.0.0.1:{self.port}", "--http", f"127.0.0.1:{self.http}", "--admin", f"127.0.0.1:{admin}", "--data", self.dir / "data", *self.options.split()]
        elif self.name == "mosquitto":
            lines = [f"listener {self.port} 127.0.0.1", "allow_anonymous true", "persistence false", "max_queued_messages 0", "max_inflight_messages 0", "set_tcp_nodelay true"]
            (self.dir / "mosquitto.conf").write_text("\n".join(lines) + "\n")
            command = [self.command, "-c", self.dir / "mosquitto.conf"]
        else:
            command = self.command.replace("{port}", str(self.port)).replace("{dir}", str(self.dir)).split()
        log = open(self.dir / "log", "w")
        began = time.monotonic()
        self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        while True:
            if self.process.poll() is not None or time.monotonic() > began + 20:
                words = (self.dir / "log").read_text()
                self.__exit__()
                sys.exit(f"{self.name} does not run: {command}\n{words}")
            try:
                # Its port may take a connection long before it answers on it.
                with socket.create_connection(("127.0.0.1", self.port), 1) as s:
                    s.settimeout(20)
                    s.sendall(b"\x10\x11\x00\x04MQTT\x04\x02\x00\x00\x00\x05ready")
                    if s.recv(4) == b"\x20\x02\x00\x00":
                        break
            except OSError:
                time.sleep(0.002)
        self.ready_ms = (time.monotonic() - began) * 1000
        return self.ready_ms

    def stop(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __exit__(self, *_):
        self.stop()
        shutil.rmtree(self.dir, ignore_errors=True)


def busy():
    """Seconds of all cores that somebody used, or another machine took."""
    fields = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _idle, _wait, irq, softirq, steal = fields[:8]
    return (user + nice + system + irq + softirq + steal) / TICKS


def ours(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (int(fields[11]) + int(fields[12])) / TICKS + children.ru_utime + children.ru_stime


def bench(b, args, seconds):
    """The command of one load on this broker."""
    scenario, *args = args.split()
    command = [WEIR, "bench", scenario, "--json"]
    if scenario == "disk":
        return command + ["--file", WORK / "blocks", *args]
    command += ["-p", str(b.port), "--pid", str(b.process.pid)]
    if scenario == "browsers":
        command += ["--url", f"ws://127.0.0.1:{b.http}/ws"]
    return command + args + ([] if "--seconds" in args else ["--seconds", str(seconds)])


def restart(b):
    """Fills the log with 10 GiB, and starts it again."""
    while sum(f.stat().st_blocks * 512 for f in b.dir.rglob("*.log")) < 10 << 30:
        subprocess.run(bench(b, "fan-in --size 1024", 5), capture_output=True, check=True)
    report = {}
    for how, key in [(signal.SIGTERM, "after_term_ms"), (signal.SIGKILL, "after_kill_ms")]:
        # What it has to find is new, and not only what lies there.
        subprocess.run(bench(b, "fan-in --size 1024", 1), capture_output=True, check=True)
        b.stop(how)
        report[key] = b.start()
    return report


def last(words):
    """What the load generator said last."""
    return words.strip().split("\n")[-1].removeprefix("weir: ")[:120]


def run(row, broker, seconds):
    """The report of one run, with what others did with the cores; a text says why there is none."""
    broker.options = row.options
    with broker as b:
        before, own, start = busy(), ours(b.process.pid), time.monotonic()
        if row.args == "start":
            report = {"ready_ms": b.ready_ms}
        elif row.args == "restart":
            # The processes that have ended are not told from others.
            return restart(b)
        else:
            beside = row.beside and subprocess.Popen(bench(b, row.beside, seconds), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            try:
                done = subprocess.run(bench(b, row.args, seconds), capture_output=True, text=True, timeout=600)
                if beside:
                    _, words = beside.communicate(timeout=120)
                    if beside.returncode != 0:
                        return f"beside it: {last(words)}"
            except subprocess.TimeoutExpired:
                return "no end within 10 minutes"
            finally:
                if beside:
                    beside.kill()
                    beside.wait()
            if done.returncode != 0:
                return last(done.stderr) or f"exit code {done.returncode}"
            report = json.loads(done.stdout)
        passed = max(time.monotonic() - start, 0.01)
        report["foreign"] = max(0.0, (busy() - before - (ours(b.process.pid) - own)) / passed / os.cpu_count())
        return report


def profile(row, broker, seconds, out):
    """Where the gateway's time goes in one run: a table of threads and functions."""
    broker.options = row.options
    with broker as b:
        load = subprocess.Popen(bench(b, row.args, seconds + 1), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(0.7)
        subprocess.run(["perf", "record", "-q", "-F", "999", "-p", str(b.process.pid), "-o", WORK / "perf.data", "--", "sleep", str(seconds)], check=True)
        report, words = load.communicate(timeout=120)
        if load.returncode != 0:
            sys.exit(f"{row.name}: {words}")
    report = json.loads(report)
    lines = []
    for sort in ["comm", "comm,dso", "comm,dso,symbol"]:
        table = subprocess.run(["perf", "report", "-i", WORK / "perf.data", "--stdio", "--no-children", "--sort", sort, "--percent-limit", "0.7"], capture_output=True, text=True, check=True)
        lines += [line.rstrip() for line in table.stdout.split("\n") if line.strip() and not line.startswith("#")] + [""]
    head = f"{row.name}: {short(report['delivered_per_second'])}/s, {report['cpu_percent']:.0f} % of a core; {machine()}; perf, {seconds} s, {broker.command or WEIR.relative_to(ROOT)}"
    out.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", row.name.lower()).strip("-")
    (out / f"{name}.txt").write_text("\n".join([head, "", *lines]))
    print(head, flush=True)


def short(n):
    if n >= 1e6:
        return f"{n / 1e6:.2f} M"
    if n >= 1000:
        return f"{n:,.0f}"
    return f"{n:.3g}" if n < 10 else f"{n:.0f}"


@functools.cache
def machine():
    """As it was at the beginning: what is written on the way is no change."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    kind = subprocess.run(["findmnt", "-no", "FSTYPE", "-T", str(ROOT)], capture_output=True, text=True).stdout.strip()
    return f"{datetime.date.today()}, commit {commit}{' with changes' if changed else ''}, {os.cpu_count()} cores of {model.group(1) if model else platform.machine()}, Linux {platform.release()}, {kind}"


def table(lines, others):
    out = ["| | | Weir |" + "".join(f" {o} | ratio |" for o in others) + " others on the cores |", "|---|---|---|" + "---|---|" * len(others) + "---|"]
    for line in lines:
        cells = [line["row"], f"{line['title']}, {line['unit']}", line["cells"].get("weir", "")]
        for o in others:
            ratio = line["ratios"].get(o)
            cells += [line["cells"].get(o, ""), f"{statistics.median(ratio):.2f}" if ratio else ""]
        out.append("| " + " | ".join(cells) + f" | {line['foreign'] * 100:.0f} % |")
    return "\n".join(out)


def plot(lines, other, path):
    """Ratios of each round on a logarithmic scale: right of 1 Weir is better."""
    lines = [line for line in lines if line["ratios"].get(other)]
    if not lines:
        return
    # About as wide as the longest of them is in most fonts.
    left = 8 + round(6.2 * max(len(f"{line['row']}: {line['title']}") for line in lines))
    width, step, top = 420, 20, 44
    low, high = 0.05, 50
    x = lambda r: left + width * (math.log(min(max(r, low), high)) - math.log(low)) / (math.log(high) - math.log(low))
    height = top + step * len(lines) + 20
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 90} {height}" font-family="sans-serif" font-size="12">',
           f'<rect width="100%" height="100%" fill="#fff"/><text x="8" y="20" font-weight="600" fill="#111">Weir beside {escape(other)}: how many times better, each round</text>']
    for mark in [0.1, 0.2, 0.5, 1, 2, 5, 10, 20]:
        out.append(f'<line x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{top - 8}" y2="{height - 12}" stroke="{"#555" if mark == 1 else "#ddd"}"/>'
                   f'<text x="{x(mark):.1f}" y="{top - 12}" text-anchor="middle" fill="#555">{mark:g}</text>')
    for nth, line in enumerate(lines):
        y = top + step * nth + 8
        better = line["ratios"][other]
        out.append(f'<text x="8" y="{y + 4}" fill="#111">{escape(line["row"])}: {escape(line["title"])}</text>')
        out += [f'<circle cx="{x(r):.1f}" cy="{y}" r="3" fill="#0b6e66" fill-opacity=".35"/>' for r in better]
        middle = statistics.median(better)
        out.append(f'<circle cx="{x(middle):.1f}" cy="{y}" r="4.5" fill="{"#0b6e66" if middle >= 1 else "#b3261e"}"/><text x="{left + width + 12}" y="{y + 4}" fill="#111">{middle:.2f}</text>')
    path.write_text("\n".join(out) + "\n</svg>\n")


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--rounds", type=int, default=5)
    ask.add_argument("--seconds", type=int, default=3)
    ask.add_argument("--only", default="")
    ask.add_argument("--out", type=Path, default=WORK)
    ask.add_argument("--mosquitto", default=shutil.which("mosquitto") or "/usr/sbin/mosquitto")
    ask.add_argument("--profile", action="store_true")
    ask.add_argument("--weir", type=Path)
    ask.add_argument("--broker", action="append", default=[], metavar="NAME=COMMAND")
    asked = ask.parse_args()
    rows = [row for row in ROWS if re.search(asked.only, row.name)]
    if not rows:
        sys.exit(f"--only {asked.only}: no row is named so; they are: " + "; ".join(row.name for row in ROWS))
    subprocess.run(["cargo", "build", "--profile", "dist", "-q", "-p", "weir"], cwd=ROOT, check=True)
    WORK.mkdir(parents=True, exist_ok=True)
    if asked.profile:
        for row in rows:
            if row.figures[:1] == FLOW[:1] and row.args.split()[0] in ("fan-in", "fan-out", "pairs", "shared"):
                profile(row, Broker("weir", asked.weir), asked.seconds, asked.out)
        return
    brokers = [Broker("weir", asked.weir)]
    if os.access(asked.mosquitto, os.X_OK):
        brokers.append(Broker("mosquitto", asked.mosquitto))
    for text in asked.broker:
        name, found, command = text.partition("=")
        if not found:
            sys.exit(f"--broker {text}: NAME=COMMAND")
        brokers.append(Broker(name, command))
    others = [b.name for b in brokers[1:]]
    about = f"{machine()}; medians of {asked.rounds} rounds of {asked.seconds} s, brokers in turn"
    print(about, flush=True)
    lines, failures = [], 0
    for row in rows:
        there = [b for b in brokers if row.only in (None, b.name)]
        reports = {b.name: [] for b in there}
        for nth in range(min(asked.rounds, row.rounds or asked.rounds)):
            # Nobody is always first.
            for b in there[nth % len(there):] + there[:nth % len(there)]:
                reports[b.name].append(run(row, b, row.seconds or asked.seconds))
        for figure in row.figures:
            good = {name: [figure.of(r) if isinstance(r, dict) else None for r in all] for name, all in reports.items()}
            cells = {}
            for name, values in good.items():
                known = [v for v in values if v is not None]
                cells[name] = f"{short(statistics.median(known))} ({short(min(known))} to {short(max(known))})" if known else ""
                if len(known) < len(values):
                    failed = next(r for r in reports[name] if isinstance(r, str))
                    cells[name] += f" {len(values) - len(known)} of {len(values)} failed: {failed}"
                    failures += name == "weir"
            ratios = {}
            for o in others:
                pairs = zip(good["weir"], good.get(o, []))
                ratios[o] = [(w / t if figure.more else t / w) for w, t in pairs if w and t]
            foreign = statistics.median([r["foreign"] for all in reports.values() for r in all if isinstance(r, dict) and "foreign" in r] or [0])
            line = {"row": row.name, "title": figure.title, "unit": figure.unit, "cells": cells, "ratios": ratios, "foreign": foreign}
            lines.append(line)
            print(" · ".join([row.name, f"{figure.title}, {figure.unit}"] + [f"{n} {c}" for n, c in cells.items()] + [f"{statistics.median(r):.2f} times {o}" for o, r in ratios.items() if r]
                             + [f"others {foreign * 100:.0f} %"]), flush=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    text = f"# Measured\n\n`examples/measure.py` wrote this: {about}. In brackets the least and the greatest. Weir acknowledges after its sync; mosquitto has no persistence and waits for no disk. A ratio above 1 is in Weir's favour, whatever the unit; it is the median of the rounds' ratios.\n\n"
    plots = []
    for o in others:
        name = "measured.svg" if o == others[0] else f"measured-{o}.svg"
        plot(lines, o, asked.out / name)
        if (asked.out / name).exists():
            plots.append(f"![Ratios of Weir to {o}]({name})\n\n")
    (asked.out / "measured.md").write_text(text + "".join(plots) + table(lines, others) + "\n")
    (WORK / "measured.json").write_text(json.dumps(lines, indent=1))
    sys.exit(1 if failures else 0)


main()
