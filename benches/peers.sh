#!/usr/bin/env bash
# Builds the newest exporters that a Go module proxy has for the benchmarks, into target/tools. Without them, or
# without Go, they take Debian's packages, which are years older.
set -euo pipefail
cd "$(dirname "$0")/.."

node_exporter=v1.12.1
process_exporter=v0.8.7

tools=$(realpath -m "${CARGO_TARGET_DIR:-target}")/tools
mkdir -p "$tools"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# build MODULE VERSION PACKAGE VARIABLE_OF_ITS_VERSION. By a module of our own: `go install` also asks for the list of
# versions, which not every proxy has.
build() {
    printf 'module peers\n\nrequire %s %s\n' "$1" "$2" >go.mod
    CGO_ENABLED=0 go build -mod=mod -trimpath -o "$tools/${1##*/}" -ldflags \
        "-s -w -X $4=${2#v}" "$3"
}
build github.com/prometheus/node_exporter "$node_exporter" github.com/prometheus/node_exporter \
    github.com/prometheus/common/version.Version
build github.com/ncabatoff/process-exporter "$process_exporter" github.com/ncabatoff/process-exporter/cmd/process-exporter \
    main.version
