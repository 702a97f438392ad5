#!/usr/bin/env bash
# Everything that proves Weir works. `./test.sh fast` (two minutes) is for every commit; `./test.sh` is what CI runs; `./test.sh nightly` is the same with
# more rounds of SIGKILL, more seeds, longer random input, 1,000 lives of each stress of the log and an hour of random clients against their model (WEIR_ROUNDS,
# WEIR_SEEDS, WEIR_FUZZ_SECONDS, WEIR_STRESS_LIVES, WEIR_MODEL_SECONDS), about three hours.
# `full` also runs the log's threads in orders that a scheduler chooses.
# Output goes to the terminal and to target/test.log; the last line counts what passed and what failed.
set -u
cd "$(dirname "$0")"
mode=${1:-full}
case "$mode" in
  fast) export WEIR_STRESS_SECONDS="${WEIR_STRESS_SECONDS:-2}" ;;
  full) ;;
  nightly)
    export WEIR_STRESS_LIVES="${WEIR_STRESS_LIVES:-1000}" WEIR_MODEL_SECONDS="${WEIR_MODEL_SECONDS:-3600}"
    export WEIR_ROUNDS="${WEIR_ROUNDS:-100}" WEIR_SEEDS="${WEIR_SEEDS:-3000}" WEIR_FUZZ_SECONDS="${WEIR_FUZZ_SECONDS:-600}" ;;
  *) echo "usage: ./test.sh [fast|nightly]" >&2; exit 2 ;;
esac
mkdir -p target
log=target/test.log
: >"$log"
passed=0
failed=0

# Runs one step, its output to a file (never a pipe: an orphan that holds one would hang us), then counts.
step() {
  local name=$1 out=target/step.log rc
  shift
  printf '== %s\n' "$name"
  "$@" >"$out" 2>&1 </dev/null
  rc=$?
  cat "$out" >>"$log"
  local p f
  p=$(awk '/^test result:/ {n += $4} END {print n + 0}' "$out")
  f=$(awk '/^test result:/ {n += $6} END {print n + 0}' "$out")
  if [ "$rc" -eq 0 ]; then
    # A step without tests of its own counts as one.
    [ "$p" -eq 0 ] && p=1
  else
    # What failed says why far above the end: the binaries after it run on.
    awk '/^failures:/ {on = 1} on {print} /^test result: FAILED/ {on = 0}' "$out" | head -n 200
    grep -vE '^test .* \.\.\. ok$|^ *(Compiling|Checking|Running|Fresh)' "$out" | tail -n 30
    [ "$f" -eq 0 ] && f=1
  fi
  passed=$((passed + p))
  failed=$((failed + f))
}

step "format" cargo fmt --all --check
step "lints" cargo clippy --workspace --all-targets --locked -- -D warnings
step "unit tests" cargo test --workspace --exclude weir-tests --locked
# The page's types; `fast` does not install what checks them.
types() { node target/npm/node_modules/typescript/bin/tsc -p bridge/web; }
if [ "$mode" = fast ]; then
  if [ -d target/npm ]; then step "types of the page" types; else echo "== types of the page: not checked, for tests/install.sh did not run"; fi
  step "arrows between crates" cargo test --locked -p weir-tests --test arrows
else
  step "schedules of the log's threads" cargo test --locked -p weir-log --lib --features schedules -- schedules::
  step "peers" ./tests/install.sh
  step "types of the page" types
  step "build" cargo build --locked -p weir
  step "examples" cargo build --locked -p weir-tests -p weir-core --examples
  step "system tests" cargo test --locked -p weir-tests --tests --no-fail-fast -- --test-threads 2
  if [ "$mode" = nightly ]; then
    step "programs of others" ./tests/peers/install.sh
    step "tests with them" cargo test --locked -p weir-tests --test peers -- --ignored --test-threads 1
  fi
fi
printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
