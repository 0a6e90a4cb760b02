//! What the runtime of a recorded node said (`tests/fixtures/node/*/cri`), as an [`Inventory`]. Made without the CRI
//! client, so that what the modes make of it does not hang on that.

use serde_json::Value;

use crate::runtime::{Container, ContainerState, Identity, Images, Inventory, Pod, Protocol, Sandbox, SandboxNetwork};

/// The inventory of the node in this folder of `tests/fixtures/node`.
pub(crate) fn recorded(node: &str) -> Inventory {
    let folder = super::fixtures().join("node").join(node).join("cri");
    let json = |call: &str| -> Value {
        serde_json::from_str(&std::fs::read_to_string(folder.join(format!("{call}.json"))).unwrap()).unwrap()
    };
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let list = |call: &str, field: &str| json(call)[field].as_array().unwrap().clone();

    let sandboxes = list("ListPodSandbox", "items").into_iter().map(|one| {
        let metadata = &one["metadata"];
        let pod = Pod {
            namespace: text(&metadata["namespace"]),
            name: text(&metadata["name"]),
            // A static pod's cgroup is named by the hash; on these nodes the uid is that, too.
            uid: one["annotations"]["kubernetes.io/config.hash"]
                .as_str()
                .map_or_else(|| text(&metadata["uid"]), str::to_owned),
        };
        // Default values are left out of the recording, and SANDBOX_READY is one.
        let (ready, network) = (one.get("state").is_none(), SandboxNetwork::Unasked);
        Sandbox { id: text(&one["id"]), ready, pod, network }
    });
    let sandboxes: Vec<Sandbox> = sandboxes.collect();
    let containers = list("ListContainers", "containers").into_iter().map(|one| Container {
        id: text(&one["id"]),
        name: text(&one["metadata"]["name"]),
        state: match one["state"].as_str() {
            Some("CONTAINER_RUNNING") => ContainerState::Running,
            Some("CONTAINER_EXITED") => ContainerState::Exited,
            other => panic!("{other:?}"),
        },
        pod: sandboxes.iter().find(|sandbox| sandbox.id == one["pod_sandbox_id"]).unwrap().pod.clone(),
        image: text(&one["image_ref"]),
    });
    let containers: Vec<Container> = containers.collect();
    let mut images = Images::default();
    for image in list("ListImages", "images") {
        let bytes: u64 = text(&image["size"]).parse().unwrap();
        images.count += 1;
        images.bytes += bytes;
        if !containers.iter().any(|container| container.image == image["id"]) {
            images.unused_bytes += bytes;
        }
    }
    let version = json("Version");
    Inventory {
        identity: Identity {
            protocol: Protocol::Cri,
            name: text(&version["runtime_name"]),
            version: text(&version["runtime_version"]),
            endpoint: "unix:///run/containerd/containerd.sock".to_owned(),
        },
        containers,
        sandboxes,
        images: Some(images),
        image_filesystems: list("ImageFsInfo", "image_filesystems")
            .iter()
            .map(|one| text(&one["fs_id"]["mountpoint"]))
            .collect(),
        container_filesystem: None,
        errors: Vec::new(),
    }
}
