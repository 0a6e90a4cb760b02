//! The runtime's word, asked of a real containerd.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::time::Duration;

use headroom::error::Reason;
use headroom::host::{Deadline, Host, Roots};
use headroom::runtime::{ContainerState, Protocol, Runtime, Settings};

use crate::common;
use crate::common::containerd::Containerd;

fn runtime(containerd: &Containerd) -> Runtime {
    Runtime::new(Settings {
        endpoint: Some(containerd.endpoint()),
        fresh: Duration::ZERO,
        store_fresh: Duration::ZERO,
        ..Settings::default()
    })
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

#[test]
fn what_was_made_is_what_is_listed() {
    alone!();
    let containerd = match Containerd::start() {
        Ok(containerd) => containerd,
        Err(why) => skip!("{why}"),
    };
    let (host, runtime) = (Host::new(Roots::default()), runtime(&containerd));
    let empty = runtime.inventory(&host, soon()).unwrap();
    assert_eq!((empty.identity.protocol, empty.identity.name.as_str()), (Protocol::Cri, "containerd"));
    assert_eq!(empty.identity.endpoint, containerd.endpoint());
    assert_eq!(runtime.inventory_and_when(&host, soon()).unwrap().server, containerd.pid(), "by the kernel's word");
    // As the exporter asks: for the image store once a minute, and when a container runs another image.
    let sparing =
        Runtime::new(Settings { endpoint: Some(containerd.endpoint()), fresh: Duration::ZERO, ..Settings::default() });
    let sparingly = || sparing.inventory(&host, soon()).unwrap().images.unwrap();
    assert_eq!(sparingly(), empty.images.unwrap());
    assert!(empty.containers.is_empty() && empty.sandboxes.is_empty() && empty.errors.is_empty(), "{empty:?}");
    let images = empty.images.unwrap();
    assert_eq!((images.count, images.bytes), (1, images.unused_bytes), "nothing uses it yet");
    assert!(images.bytes > 500_000, "{images:?}");
    assert!(std::path::Path::new(&empty.image_filesystems[0]).starts_with(containerd.root()), "{empty:?}");

    let uid = "6ae71c5f-858e-4bfd-976d-43c5b79937a0";
    let pod = containerd.run_sandbox("web", uid);
    let running = containerd.run_container(&pod, "sleep", &["sleep", "1000000"]);
    let exited = containerd.run_container(&pod, "ended", &["sleep", "1000000"]);
    containerd.stop_container(&exited).unwrap();
    let created = containerd.create_container(&pod, "never", &["true"]).unwrap();
    let inventory = runtime.inventory(&host, soon()).unwrap();
    assert_eq!(inventory.sandboxes.len(), 1);
    assert_eq!((inventory.sandboxes[0].id.as_str(), inventory.sandboxes[0].ready), (pod.id.as_str(), true));
    let state = |id: &str| inventory.containers.iter().find(|container| container.id == id).map(|found| found.state);
    assert_eq!(state(&running), Some(ContainerState::Running));
    assert_eq!(state(&exited), Some(ContainerState::Exited));
    assert_eq!(state(&created), Some(ContainerState::Created));
    for container in &inventory.containers {
        assert_eq!((container.pod.namespace.as_str(), container.pod.name.as_str()), ("default", "web"));
        assert_eq!(container.pod.uid, uid);
    }
    assert_eq!(inventory.images.unwrap().unused_bytes, 0);

    containerd.import_image("localhost/other:test").unwrap();
    common::eventually("the second image is listed, and unused", || {
        let images = runtime.inventory(&host, soon()).unwrap().images.unwrap();
        images.count == 2 && images.unused_bytes > 0 && images.unused_bytes < images.bytes
    });
    assert_eq!(sparingly(), runtime.inventory(&host, soon()).unwrap().images.unwrap(), "a container runs a new one");
    containerd.import_image("localhost/third:test").unwrap();
    common::eventually("the third image is listed", || {
        runtime.inventory(&host, soon()).unwrap().images.unwrap().count == 3
    });
    assert_eq!(sparingly().count, 2, "within the minute");

    containerd.remove_container(&created).unwrap();
    containerd.stop_sandbox(&pod.id).unwrap();
    let inventory = runtime.inventory(&host, soon()).unwrap();
    assert!(!inventory.sandboxes[0].ready);
    assert!(inventory.containers.iter().all(|container| container.state == ContainerState::Exited), "{inventory:?}");
    containerd.remove_sandbox(&pod.id).unwrap();
    let inventory = runtime.inventory(&host, soon()).unwrap();
    assert!(inventory.containers.is_empty() && inventory.sandboxes.is_empty());
}

#[test]
fn a_restart_is_an_error_and_then_an_answer() {
    alone!();
    let containerd = match Containerd::start() {
        Ok(containerd) => containerd,
        Err(why) => skip!("{why}"),
    };
    // Found at its well-known place in another root, not named.
    let host = Host::new(Roots { root: containerd.root().to_owned(), ..Roots::default() });
    let runtime = Runtime::new(Settings { fresh: Duration::ZERO, store_fresh: Duration::ZERO, ..Settings::default() });
    let pod = containerd.run_sandbox("web", "6ae71c5f-858e-4bfd-976d-43c5b79937a0");
    let before = runtime.inventory(&host, soon()).unwrap();
    assert_eq!(before.identity.endpoint, "unix:///run/containerd/containerd.sock");
    assert_eq!(before.sandboxes[0].id, pod.id);

    containerd.kill();
    let error = runtime.inventory(&host, soon()).unwrap_err();
    assert_eq!(error.reason(), Reason::Io, "the socket's file is there, and nobody listens: {error}");
    std::fs::remove_file(containerd.socket()).unwrap();
    let error = runtime.inventory(&host, soon()).unwrap_err();
    assert_eq!(error.reason(), Reason::Vanished, "there was one: {error}");

    containerd.launch().unwrap();
    let after = runtime.inventory(&host, soon()).unwrap();
    assert_eq!(after.sandboxes, before.sandboxes);
    assert_eq!(runtime.inventory_and_when(&host, soon()).unwrap().server, containerd.pid(), "another process");

    // And a restart between two polls goes unnoticed.
    containerd.kill();
    containerd.launch().unwrap();
    assert_eq!(runtime.inventory(&host, soon()).unwrap().sandboxes, before.sandboxes);
}

#[test]
fn hundreds_of_polls_leave_no_descriptor() {
    alone!();
    let containerd = match Containerd::start() {
        Ok(containerd) => containerd,
        Err(why) => skip!("{why}"),
    };
    let (host, runtime) = (Host::new(Roots::default()), runtime(&containerd));
    let _pod = containerd.run_sandbox("web", "6ae71c5f-858e-4bfd-976d-43c5b79937a0");
    let daemons = || std::fs::read_dir(format!("/proc/{}/fd", containerd.pid().unwrap())).unwrap().count();
    let ours = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    runtime.inventory(&host, soon()).unwrap();
    let before = ours();
    let daemon_before = daemons();
    for _ in 0..500 {
        assert_eq!(runtime.inventory(&host, soon()).unwrap().sandboxes.len(), 1);
    }
    assert_eq!(ours(), before);
    // The daemon opens and closes files of its own; 500 connections would show.
    assert!(daemons() < daemon_before + 50, "{} and then {}", daemon_before, daemons());
}
