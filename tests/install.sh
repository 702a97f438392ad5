#!/usr/bin/env bash
# Installs the real peers that the system tests speak to, by name. Not root: says what to install and stops.
set -eu
cd "$(dirname "$0")/.."
need=""
command -v mosquitto_sub >/dev/null || need="$need mosquitto-clients"
[ -x /usr/sbin/mosquitto ] || need="$need mosquitto"
command -v strace >/dev/null || need="$need strace"
command -v openssl >/dev/null || need="$need openssl"
command -v valgrind >/dev/null || need="$need valgrind"
command -v promtool >/dev/null || need="$need prometheus"
command -v chromium >/dev/null || need="$need chromium"
[ -e "$(echo /usr/lib/*/faketime/libfaketimeMT.so.1)" ] || need="$need faketime"
if [ -n "$need" ]; then
  if [ "$(id -u)" -ne 0 ]; then
    echo "missing packages; install them with: apt-get install$need" >&2
    exit 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -q
  # shellcheck disable=SC2086
  apt-get install -q -y --no-install-recommends $need
fi
# paho-mqtt, in an environment of the project's own.
if ! target/venv/bin/python -c 'import paho.mqtt' 2>/dev/null; then
  python3 -m venv target/venv
  target/venv/bin/pip install --quiet 'paho-mqtt==2.1.0'
fi
# What drives the browser, and what checks the page's types; where the page's tests find them.
if ! grep -qs '"version": "1.65.1"' target/npm/node_modules/playwright-core/package.json ||
  ! grep -qs '"version": "5.9.3"' target/npm/node_modules/typescript/package.json; then
  npm install --silent --no-save --no-package-lock --no-audit --no-fund --prefix target/npm 'playwright-core@1.65.1' 'typescript@5.9.3'
fi
ln -sfn ../../target/npm/node_modules tests/page/node_modules
# Packs the Debian package; in a place of the project's own.
if [ ! -x target/tools/bin/cargo-deb ]; then
  cargo install --quiet --locked --root target/tools --version 3.8.0 cargo-deb
fi
