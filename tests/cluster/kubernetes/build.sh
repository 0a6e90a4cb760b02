#!/usr/bin/env bash
# Puts real Kubernetes into target/tools/kubernetes-<version>, for the tests of tests/cluster. A folder beside this
# script is one version: a Go module that pins every source by its sum and names as its tools the commands that the
# tests start. Go 1.25 or later fetches and builds them, once, the newest version only; `build.sh VERSION` builds that
# one, and `HEADROOM_TEST_KUBERNETES=target/tools/kubernetes-VERSION tests/run --cluster` runs the tests on it. What
# is missing says SKIP; the tests that need it then say it too.
set -euo pipefail

# With automatic groups of sessions (sched_autogroup) a session of its own has half of the machine, however nice it is:
# then its group has to be nice.
if [ "$(nice)" -gt 0 ] && [ "$(ps -o sid= -p $$ | tr -d ' ')" = $$ ]; then
    echo 19 >/proc/self/autogroup 2>/dev/null || true
fi

modules=$(cd "$(dirname "$0")" && pwd)
cd "$modules/../../.."
tools=$(realpath -m "${CARGO_TARGET_DIR:-target}")/tools

skip() { echo "SKIP: $1, so Kubernetes $2 cannot be put into target/tools" >&2; }

build() { # version
    local version=$1 target=$tools/kubernetes-$1 stamp minor variables= variable
    # What is built depends on the module and on how the go command is called.
    stamp=$( (cat "$modules/$version"/go.*; declare -f build) | sha256sum | cut -d' ' -f1)
    if [ "$(cat "$target/stamp" 2>/dev/null)" = "$stamp" ]; then return; fi
    if ! go version 2>/dev/null | grep -qE ' go1\.(2[5-9]|[3-9][0-9])'; then
        skip "no Go 1.25 or later" "$version"
        return
    fi
    echo "building Kubernetes $version"
    rm -rf "$target"
    mkdir -p "$target"
    # As its releases are, each command is linked with the version that it is: nodes and clients say it to each other.
    minor=${version#v1.}
    for variable in "gitVersion=$version" gitMajor=1 "gitMinor=${minor%%.*}" gitTreeState=clean; do
        variables+=" -X k8s.io/component-base/version.$variable -X k8s.io/client-go/pkg/version.$variable"
    done
    # Nobody debugs them: without debug information they are compiled faster.
    (cd "$modules/$version" && CGO_ENABLED=0 go build -buildvcs=false -trimpath -gcflags=all=-dwarf=false \
        -ldflags "-s -w$variables" -o "$target/" tool) ||
        { skip "go build failed" "$version"; return; }
    echo "$stamp" >"$target/stamp"
}

# Two who want it at once: the second finds what the first has made.
mkdir -p "$tools"
exec 9>"$tools/kubernetes.lock"
flock 9
if [ $# = 0 ]; then set -- "$(cd "$modules" && printf '%s\n' v*/ | tr -d / | sort -V | tail -n 1)"; fi
for version; do build "$version"; done
