//! The exporter on a real Kubernetes node: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, containerd
//! and a kubelet, all of them real, in namespaces of the test's own.
//!
//! Debian's `etcd-server`, `containerd`, `runc`, `containernetworking-plugins`, `busybox-static`, `iptables` and
//! `iproute2`, and Kubernetes as `tests/cluster/kubernetes/build.sh` makes it; root. Each test brings its cluster up
//! once and makes many checks in it.
//!
//! The same binary runs on another machine, in a virtual one with systemd and a pure cgroup v2 for instance. It reads
//! nothing of the source tree there, and takes its surroundings from the environment:
//!
//! - `HEADROOM_TEST_KUBERNETES`: the folder with Kubernetes' commands [default: `target/tools/kubernetes-<version>`];
//! - `HEADROOM_TEST_EXPORTER`: the exporter [default: cargo's];
//! - `HEADROOM_TEST_DRILL`: `headroom-drill`, by a file of that name [default: cargo's];
//! - `HEADROOM_TEST_DEPLOY`: a copy of `deploy/`, for the test `deployed` [default: the source tree's];
//! - `HEADROOM_TEST_PATIENCE=<factor>`: how many times longer everything may take than on a machine of metal;
//! - `HEADROOM_TEST_ALONE=<test>`: run this test right here, in no namespaces: the machine is its own. With
//!   `--exact <test>`.

#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

#[macro_use]
#[path = "../common/mod.rs"]
mod common;

mod bed;
mod checks;
mod churn;
mod deployed;
mod drills;
mod faults;
mod page;
mod pages;
mod truth;
mod vm;
