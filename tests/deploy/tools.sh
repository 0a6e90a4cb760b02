#!/usr/bin/env bash
# Puts into target/tools what the tests of this folder use and Debian does not have, unless it is there: helm,
# kustomize, jsonnet and a reader of the Prometheus operator's objects, built by Go from its modules (Go 1.25 or later),
# and kubernetes-validate, the schemas of Kubernetes, from PyPI (python3-venv). What is missing says SKIP; the tests
# that need it then say it too.
set -euo pipefail
cd "$(dirname "$0")/../.."

helm=v3.18.6
kustomize=v5.7.1
jsonnet=v0.21.0
schemas=1.37.0

tools=$(realpath -m "${CARGO_TARGET_DIR:-target}")/tools
mkdir -p "$tools"

skip() { echo "SKIP: $1, so $2 cannot be put into target/tools" >&2; }

# Go compiles again what it compiled with other flags: with those of tests/cluster/kubernetes/build.sh its own library,
# and what else is in both, is compiled once.
export CGO_ENABLED=0 GOFLAGS="-buildvcs=false -trimpath -gcflags=all=-dwarf=false"

# A stamp holds the version that is there.
present() { [ -e "$tools/$1" ] && [ "$(cat "$tools/$1.version" 2>/dev/null)" = "$2" ]; }

go_install() { # name, version, package, flags of the linker
    if present "$1" "$2"; then return; fi
    echo "building $1 $2"
    GOBIN="$tools" go install -ldflags "-s -w ${4-}" "$3@$2" || { skip "go install failed" "$1"; return; }
    echo "$2" >"$tools/$1.version"
}

if go version 2>/dev/null | grep -qE ' go1\.(2[5-9]|[3-9][0-9])'; then
    # Without a cluster Helm renders for the Kubernetes that it was linked for: as its releases do, the one of its
    # client libraries.
    linked=helm.sh/helm/v3/pkg/chartutil
    go_install helm "$helm" helm.sh/helm/v3/cmd/helm "-X $linked.k8sVersionMajor=1 -X $linked.k8sVersionMinor=33"
    go_install kustomize "$kustomize" sigs.k8s.io/kustomize/kustomize/v5
    go_install jsonnet "$jsonnet" github.com/google/go-jsonnet/cmd/jsonnet
    operator=$(cat tests/deploy/operator/* | sha256sum | cut -d' ' -f1)
    if ! present operator "$operator"; then
        echo "building the reader of the operator's objects"
        (cd tests/deploy/operator && go build -ldflags "-s -w" -o "$tools/operator" .) &&
            echo "$operator" >"$tools/operator.version" ||
            skip "go build failed" "the reader of the operator's objects"
    fi
else
    skip "no Go 1.25 or later" "helm, kustomize, jsonnet and the reader of the operator's objects"
fi

if ! present schemas "$schemas"; then
    echo "installing kubernetes-validate $schemas"
    rm -rf "$tools/schemas"
    { python3 -m venv "$tools/schemas" && "$tools/schemas/bin/pip" install -q --disable-pip-version-check "kubernetes-validate==$schemas"; } &&
        echo "$schemas" >"$tools/schemas.version" || skip "no python3-venv, or no PyPI" "kubernetes-validate"
fi
