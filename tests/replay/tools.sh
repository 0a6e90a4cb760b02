#!/usr/bin/env bash
# Puts Prometheus 3 and its Alertmanager into target/tools/prometheus-3, unless they are there: the tests hold rules,
# queries and pages to them beside the older ones of this machine's own packages (tests/common/prometheus.rs). They are
# packages of Debian forky, from where this machine's apt gets its own, verified by the same keys; apt's own lists and
# settings stay as they are. What is missing says SKIP; the tests that need it then say it too.
set -euo pipefail
cd "$(dirname "$0")/../.."

suite=forky
# Forky may have newer ones by now: good, since they are what users upgrade to. Older ones would test nothing.
prometheus=3.5
alertmanager=0.33

tools=$(realpath -m "${CARGO_TARGET_DIR:-target}")/tools
home=$tools/prometheus-3
# They are fetched again when this script changes.
script=$(sha256sum "$0" | cut -d' ' -f1)
if [ "$(cat "$home/script" 2>/dev/null)" = "$script" ]; then exit; fi

skip() { echo "SKIP: $1, so Prometheus 3 cannot be put into target/tools" >&2; exit 0; }

command -v apt-get >/dev/null || skip "no apt"
mirror=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI) $(COMPONENT) $(RELEASE)' 'Created-By: Packages' |
    sed -nE 's#^Debian ([^ ]+) main [a-z]+$#\1#p' | sort -u | head -n 1)
if [ -z "$mirror" ]; then skip "this machine's apt has no Debian sources"; fi

mkdir -p "$tools"
work=$(mktemp -d "$tools/.prometheus-XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists,archives}/partial "$work/root"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg option=
if [ -e "$keyring" ]; then option="[signed-by=$keyring] "; fi
echo "deb $option$mirror $suite main" >"$work/sources.list"
touch "$work/status"

# On the command line they are stronger than this machine's own files, of which proxies count. Signatures count; a
# mirror that has fallen behind is good enough.
apt() {
    apt-get -q -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null \
        -o Dir::State::Lists="$work/lists" -o Dir::State::Status="$work/status" -o Dir::Cache="$work" \
        -o APT::Sandbox::User=root -o APT::Default-Release= -o APT::Get::AllowUnauthenticated=false \
        -o Acquire::AllowInsecureRepositories=false -o Acquire::Check-Valid-Until=false \
        -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false \
        -o Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false -o APT::Update::Post-Invoke-Success::= "$@"
}

echo "fetching Prometheus 3 and its Alertmanager from Debian $suite"
apt update -o APT::Update::Error-Mode=any >"$work/log" 2>&1 ||
    { cat "$work/log" >&2; skip "apt has no verified list of Debian $suite"; }
(cd "$work" && apt download prometheus promtool prometheus-alertmanager) >"$work/log" 2>&1 ||
    { cat "$work/log" >&2; skip "apt could not fetch it"; }
for package in "$work"/*.deb; do dpkg-deb --fsys-tarfile "$package" | tar -x -C "$work/root" ./usr/bin; done

found=
for wanted in "prometheus $prometheus" "promtool $prometheus" "prometheus-alertmanager $alertmanager" \
    "amtool $alertmanager"; do
    read -r program least <<<"$wanted"
    # Also whether it runs here at all: it was linked with that suite's C library.
    version=$("$work/root/usr/bin/$program" --version 2>&1 | sed -nE 's/^[a-z]+, version ([0-9.]+).*/\1/p') || true
    if [ -z "$version" ]; then skip "$program of Debian $suite does not run here"; fi
    dpkg --compare-versions "$version" ge "$least" || skip "$program of Debian $suite is $version, not $least or later"
    found="$found$program $version"$'\n'
done
printf %s "$found" | tee "$work/root/usr/bin/versions"
echo "$script" >"$work/root/usr/bin/script"
rm -rf "$home"
mv "$work/root/usr/bin" "$home"
