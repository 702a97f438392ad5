#!/usr/bin/env bash
# Fan-in of Weir and of Debian's mosquitto without persistence, interleaved in the same minutes; then the lone round trip beside
# a bare fdatasync. Needs `apt-get install mosquitto`. Usage: examples/compare.sh [ROUNDS] [SECONDS]
set -eu
cd "$(dirname "$0")/.."
rounds=${1:-5} seconds=${2:-5}
cargo build --release -q -p weir
weir=target/release/weir
work=$(mktemp -d -p target)
trap 'kill $pids 2>/dev/null || true; rm -rf "$work"' EXIT
printf 'listener 11998 127.0.0.1\nallow_anonymous true\npersistence false\nmax_queued_messages 0\n' >"$work/mosquitto.conf"
mosquitto -c "$work/mosquitto.conf" >"$work/mosquitto.log" 2>&1 </dev/null &
pids=$!
$weir run --mqtt 127.0.0.1:11997 --http 127.0.0.1:11996 --admin 127.0.0.1:11995 --data "$work/data" >"$work/weir.out" 2>&1 </dev/null &
pids="$pids $!"
until grep -q 'weir ready' "$work/weir.out" && (: </dev/tcp/127.0.0.1/11998) 2>/dev/null; do sleep 0.1; done
for _ in $(seq "$rounds"); do
  printf 'mosquitto: '; $weir bench fan-in -p 11998 --seconds "$seconds"
  printf 'weir: '; $weir bench fan-in -p 11997 --seconds "$seconds"
done
for _ in 1 2 3; do
  $weir bench disk --file "$work/blocks"
  $weir bench window-one -p 11997 --seconds 3
done
