//! The runtime's word, asked of a real Docker daemon.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::time::Duration;

use headroom::error::Reason;
use headroom::host::{Deadline, Host, Roots};
use headroom::runtime::{ContainerState, Protocol, Runtime, Settings};

use crate::common::containerd;
use crate::common::docker::Docker;

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

#[test]
fn what_docker_runs_is_what_is_listed() {
    let docker = match Docker::start() {
        Ok(docker) => docker,
        Err(why) => skip!("{why}"),
    };
    // Not named: found at its well-known place in another root.
    let host = Host::new(Roots { root: docker.root().to_owned(), ..Roots::default() });
    let runtime = Runtime::new(Settings { fresh: Duration::ZERO, store_fresh: Duration::ZERO, ..Settings::default() });
    let empty = runtime.inventory(&host, soon()).unwrap();
    assert_eq!((empty.identity.protocol, empty.identity.name.as_str()), (Protocol::Docker, "docker"));
    assert!(docker.docker(&["version", "--format", "{{.Server.Version}}"]).unwrap() == empty.identity.version);
    assert_eq!(empty.identity.endpoint, "unix:///run/docker.sock");
    assert_eq!(empty.image_filesystems, [docker.root().join("root").to_str().unwrap()]);
    let images = empty.images.unwrap();
    assert_eq!((images.count, images.bytes), (1, images.unused_bytes), "nothing uses it yet");

    let labels = |kind| {
        [
            ("io.kubernetes.docker.type", kind),
            ("io.kubernetes.pod.namespace", "default"),
            ("io.kubernetes.pod.name", "web"),
            ("io.kubernetes.pod.uid", "6ae71c5f-858e-4bfd-976d-43c5b79937a0"),
            ("io.kubernetes.container.name", "nginx"),
        ]
    };
    let sandbox = docker.run("k8s_POD_web", &labels("podsandbox"));
    let container = docker.run("k8s_nginx_web", &labels("container"));
    let plain = docker.run("plain", &[]);
    docker.docker(&["kill", &plain]).unwrap();
    let paused = docker.run("paused", &[]);
    docker.docker(&["pause", &paused]).unwrap();
    let created = docker.docker(&["create", "--network=none", containerd::IMAGE]).unwrap();
    let inventory = runtime.inventory(&host, soon()).unwrap();
    assert!(inventory.errors.is_empty(), "{inventory:?}");
    let [only] = inventory.sandboxes.as_slice() else { panic!("{:?}", inventory.sandboxes) };
    assert_eq!((only.id.as_str(), only.ready, only.pod.name.as_str()), (sandbox.as_str(), true, "web"));
    assert_eq!(inventory.containers.len(), 4);
    let find = |id: &str| inventory.containers.iter().find(|container| container.id == id).unwrap();
    let labelled = find(&container);
    assert_eq!((labelled.name.as_str(), labelled.state), ("nginx", ContainerState::Running));
    assert_eq!(labelled.pod, only.pod);
    assert_eq!(labelled.pod.uid, "6ae71c5f-858e-4bfd-976d-43c5b79937a0");
    assert_eq!((find(&plain).name.as_str(), find(&plain).state), ("plain", ContainerState::Exited));
    assert_eq!(find(&plain).pod.uid, "");
    assert_eq!(find(&paused).state, ContainerState::Running);
    assert_eq!(find(&created).state, ContainerState::Created);
    assert_eq!(inventory.images.unwrap().unused_bytes, 0);
    docker.load_image("localhost/other:test").unwrap();
    let images = runtime.inventory(&host, soon()).unwrap().images.unwrap();
    assert_eq!(images.count, 2);
    assert!(images.unused_bytes > 0 && images.unused_bytes < images.bytes, "{images:?}");

    // The daemon dies and comes back.
    docker.docker(&["unpause", &paused]).unwrap();
    docker.kill();
    let error = runtime.inventory(&host, soon()).unwrap_err();
    assert_eq!(error.reason(), Reason::Io, "{error}");
    docker.launch().unwrap();
    let after = runtime.inventory(&host, soon()).unwrap();
    assert_eq!(after.containers.len(), 4, "{after:?}");
}
