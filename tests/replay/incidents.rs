//! Every incident replayed: the fault made for real, by `headroom-drill` wherever it can, the exporter, a real
//! Prometheus with the project's rules and a real Alertmanager; the right page arrives, nothing else does, and when the
//! fault is gone it is resolved. `docs/detection.md` says what is replayed how.
//!
//! One half of them runs with Prometheus 2 and its Alertmanager, the other with 3 and its own.
//!
//! Time goes 30 times as fast (`incidents/pace.rs` says for what); `HEADROOM_REPLAY_FACTOR=1` replays at real
//! intervals.

#![cfg(feature = "drill")]
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]
#![allow(clippy::print_stdout, reason = "times to notification, for whoever reads them")]
#![allow(unreachable_pub, missing_docs, reason = "modules of one test binary")]

mod addresses;
mod connection;
mod disk;
mod drill;
mod files;
mod kernel;
mod kubepods;
mod machine;
mod pace;
mod stack;
mod status;
mod system_filesystem;
mod webhook;

use std::time::Instant;

use pace::Pace;
use webhook::Notice;

use crate::common;
use crate::common::netns;
use crate::common::prometheus::Release;

fn possible() -> bool {
    let lacking = netns::lacking().map(|lacking| format!("no {lacking}")).or_else(stack::lacking);
    if let Some(lacking) = &lacking {
        common::say_skip(format_args!("a replay needs namespaces, Prometheus and Alertmanager: {lacking}"));
    }
    lacking.is_none()
}

/// For `docs/detection.md`.
fn tell(incident: &str, pace: Pace, fault: Instant, notice: &Notice) {
    let after = (notice.at - fault).as_secs_f64();
    println!(
        "{incident}: {} ({}) {after:.1} s after the fault, at {} times real pace: {}",
        notice.name(),
        notice.label("severity"),
        pace.factor(),
        notice.text("description")
    );
}

/// Replays that do not disturb each other at the same time: they mostly wait.
fn together(replays: &[fn()]) {
    std::thread::scope(|scope| {
        let running: Vec<_> = replays.iter().map(|replay| scope.spawn(replay)).collect();
        let failed = running.into_iter().filter_map(|one| one.join().err()).last();
        if let Some(panic) = failed {
            std::panic::resume_unwind(panic);
        }
    });
}

/// I5 and I8.
#[test]
fn the_connection_to_the_apiserver_and_what_it_holds() {
    together(&[
        connection::i5_the_connection_that_was_dead_but_in_use,
        connection::i5_a_kubelet_that_never_lets_go,
        connection::i5_the_connection_behind_a_balancer,
        status::i8_a_condition_that_nobody_owns,
        status::i8_the_apiserver_is_out_of_seats,
        status::i8_an_outage_of_the_apiserver_is_one_page,
        status::i8_a_lease_that_is_not_renewed,
    ]);
}

/// I2 to I4.
#[test]
fn the_machine_itself() {
    together(&[
        kernel::i2_a_kernel_that_leaks,
        disk::i3_disk_pressure_evicts_the_control_plane,
        disk::i3_a_disk_without_inodes,
        system_filesystem::i3_etcd_on_a_disk_that_other_things_fill,
        system_filesystem::a_run_without_inodes,
        addresses::host_local_has_no_address_left,
        files::i4_a_client_that_leaks_connections_to_the_runtime,
    ]);
}

/// I1, I6, I7 and a pod at its limit of tasks, one after the other: the machine has one tree of a kubelet's cgroups.
#[test]
fn the_pods() {
    kubepods::i1_cgroups_leak();
    kubepods::i6_a_memory_volume_over_its_limit();
    kubepods::i7_a_pods_interface_vanishes();
    kubepods::a_pod_at_its_limit_of_tasks();
}

/// What Prometheus says of the rules as they are rewritten.
#[test]
fn rules_at_another_pace_are_rules() {
    let directory = tempfile::tempdir().unwrap();
    let files = stack::write_rules(Pace::of_this_run(), directory.path());
    assert!(!files.is_empty());
    for release in Release::with(&["promtool"]) {
        let (good, text) = release.run("promtool", &["check", "rules"], &files);
        assert!(good, "{release:?}: {text}");
    }
}
