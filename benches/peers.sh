#!/usr/bin/env bash
# Builds the newest node_exporter that a Go module proxy has for the benchmarks, into target/tools. Without it, or
# without Go, they take Debian's package, which is years older.
set -euo pipefail
cd "$(dirname "$0")/.."

node_exporter=v1.12.1

tools=$(realpath -m "${CARGO_TARGET_DIR:-target}")/tools
mkdir -p "$tools"
CGO_ENABLED=0 GOBIN="$tools" go install -trimpath -ldflags \
    "-s -w -X github.com/prometheus/common/version.Version=${node_exporter#v}" \
    "github.com/prometheus/node_exporter@$node_exporter"
