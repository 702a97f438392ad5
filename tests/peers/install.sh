#!/usr/bin/env bash
# Installs the programs of others that `./test.sh nightly` runs against the gateway, by name and version. They need tests/install.sh before.
set -eu
cd "$(dirname "$0")/../.."
wanted='node-red@4.1.15 zigbee2mqtt@2.14.1 sparkplug-client@3.2.4 mqtt@5.16.0'
stamp=target/peers/installed
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  mkdir -p target/peers
  # shellcheck disable=SC2086
  npm install --silent --no-save --no-package-lock --no-audit --no-fund --prefix target/peers $wanted
  echo "$wanted" >"$stamp"
fi
target/venv/bin/python -c 'import aiomqtt' 2>/dev/null || target/venv/bin/pip install --quiet 'aiomqtt==2.5.1'
