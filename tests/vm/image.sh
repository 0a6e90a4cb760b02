#!/usr/bin/env bash
# Makes what tests/common/vm.rs boots: for each Debian suite named (bullseye … forky), a root file system with
# systemd and what the tests use, as an ext4 image, its kernel and its initramfs, in target/tools/vm-<suite>. Packages
# come from where this machine's apt gets its own. Needs root. What is missing says SKIP; the tests that need it then
# say it too.
set -euo pipefail
cd "$(dirname "$0")/../.."

packages=(linux-image-cloud-amd64 tiny-initramfs systemd systemd-sysv udev dbus kmod procps util-linux mount
          curl iproute2 iptables python3-minimal strace e2fsprogs btrfs-progs xfsprogs
          containerd runc containernetworking-plugins busybox-static etcd-server)

# The root file system is many small files: made in memory, in a mount namespace that takes it along, it takes half the
# time.
if [ "$(id -u)" = 0 ] && [ -z "${HEADROOM_IMAGE_NAMESPACE:-}" ]; then
    HEADROOM_IMAGE_NAMESPACE=1 exec unshare --mount "$0" "$@"
fi

tools=$(realpath -m "${CARGO_TARGET_DIR:-target}")/tools
# An image is made anew when this script changes.
version=$(sha256sum "$0" | cut -d' ' -f1)

skip() { echo "SKIP: $1, so there is no machine of Debian $suite" >&2; }

# This machine's sources of Debian, as apt reads them, for another suite.
sources() {
    local keyring=/usr/share/keyrings/debian-archive-keyring.gpg option=
    if [ -e "$keyring" ]; then option="[signed-by=$keyring]"; fi
    apt-get indextargets --format '$(ORIGIN) $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        sed -nE "s#^Debian ([^ ]+) [a-z]+(-updates|-security)? main\$#deb $option \1 $suite\2 main#p" | sort -u
}

configure() { # the root file system
    echo "$suite" >"$1/etc/hostname"
    echo "127.0.0.1 localhost $suite" >"$1/etc/hosts"
    # With an id it is no first boot: nothing is preset.
    echo 6865616472006f6f6d20766d20746573 | tr ' ' 0 >"$1/etc/machine-id"
    # The tests start these themselves; the others have nothing to do in a machine of minutes.
    for unit in containerd.service etcd.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
        e2scrub_all.timer e2scrub_reap.service fstrim.timer xfs_scrub_all.timer getty@tty1.service \
        serial-getty@ttyS0.service systemd-timesyncd.service systemd-logind.service systemd-user-sessions.service \
        systemd-binfmt.service systemd-pstore.service systemd-journal-flush.service ldconfig.service \
        systemd-update-utmp.service systemd-random-seed.service systemd-hwdb-update.service systemd-update-done.service \
        systemd-journal-catalog-update.service xfs_healer_start.service \
        proc-sys-fs-binfmt_misc.automount sys-kernel-debug.mount sys-kernel-tracing.mount \
        sys-fs-fuse-connections.mount; do
        ln -sf /dev/null "$1/etc/systemd/system/$unit"
    done
    # A shell that reads from the test and answers it: no terminal between, bytes are bytes.
    cat >"$1/etc/systemd/system/headroom-test.service" <<'UNIT'
[Unit]
Description=Commands of a test on the host

[Service]
Environment=HOME=/root
WorkingDirectory=/root
LimitNOFILE=1024:524288
ExecStart=/bin/bash -c 'P=/dev/virtio-ports/headroom; until [ -e $P ]; do sleep 0.1; done; exec /bin/bash <>$P >&0 2>&0'
UNIT
    mkdir -p "$1/etc/systemd/system/multi-user.target.wants"
    ln -sf ../headroom-test.service "$1/etc/systemd/system/multi-user.target.wants/headroom-test.service"
}

# The tests are linked with this machine's C library. Where the suite's is older, this machine's takes its place: what
# was linked with the older one runs with the newer.
newer_libc() { # the root file system
    local ours theirs folder
    ours=$(dpkg-query -W -f '${Version}' libc6)
    theirs=$(chroot "$1" dpkg-query -W -f '${Version}' libc6)
    if dpkg --compare-versions "$theirs" ge "$ours"; then return; fi
    folder=$(mktemp -d)
    (cd "$folder" && apt-get download -q -o APT::Sandbox::User=root libc6 >/dev/null && dpkg-deb -x libc6_*.deb "$1")
    rm -rf "$folder"
}

bootstrap() { # sources
    find "$root" -mindepth 1 -delete
    mmdebstrap --quiet --mode=root --variant=minbase --include="${packages[*]}" "${options[@]}" \
        --dpkgopt=force-unsafe-io "$suite" "$root" - <<<"$1"
}

make() {
    local image=$tools/vm-$suite root list
    # Signatures count. A mirror that has fallen behind is good enough for a machine without a network.
    local options=(--aptopt='Acquire::Check-Valid-Until "false"')
    if [ "$(cat "$image/version" 2>/dev/null)" = "$version" ]; then return; fi
    if [ "$(id -u)" != 0 ]; then skip "not root"; return; fi
    for program in mmdebstrap mke2fs; do
        command -v "$program" >/dev/null || { skip "no $program"; return; }
    done
    list=$(sources)
    if [ -z "$list" ]; then skip "this machine's apt has no Debian sources"; return; fi
    echo "making a machine of Debian $suite"
    rm -rf "$image"
    mkdir -p "$image/root"
    root=$image/root
    while read -r option; do options+=(--aptopt="$option"); done < <(apt-config dump | grep -E '^Acquire::https?::Prox')
    for kind in doc man locale info; do options+=(--dpkgopt="path-exclude=/usr/share/$kind/*"); done
    mount -t tmpfs -o mode=755 tmpfs "$root"
    # A mirror may have lost a package of its updates: the release itself is complete.
    bootstrap "$list" || bootstrap "$(grep " $suite main" <<<"$list")" ||
        { umount "$root"; rm -rf "$image"; skip "mmdebstrap failed"; return; }
    # The one that the kernel's package makes is for this machine. The disk's modules are all that is needed to come up.
    mv "$root"/boot/vmlinuz-* "$image/vmlinuz"
    chroot "$root" mktirfs -o /boot/initrd.img --auto-modules=no --microcode=no \
        --include-modules=virtio_pci,virtio_blk,ext4 "$(ls "$root/lib/modules")"
    mv "$root/boot/initrd.img" "$image/initrd.img"
    newer_libc "$root"
    configure "$root"
    truncate -s 8G "$image/root.img"
    mke2fs -q -t ext4 -O ^has_journal -E lazy_itable_init=1 -d "$root" "$image/root.img"
    umount "$root"
    rmdir "$root"
    echo "$version" >"$image/version"
}

for suite in "$@"; do make; done
