//! Which directories a node needs, and what each is for.

use std::path::{Path, PathBuf};

/// What of the node lies in a directory, in the order in which it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Holds {
    /// State and sockets of the container runtime and of runc: no container starts or stops without it.
    RuntimeState,
    /// etcd's data, or of what stands for it.
    Datastore,
    /// Images, snapshots and metadata of the runtime.
    RuntimeRoot,
    /// Addresses that CNI plugins gave out, and what they need to take them back.
    Cni,
    /// Logs of containers and of the node.
    Logs,
    /// Temporary files of whatever runs on the node.
    Tmp,
}

impl Holds {
    /// The label value.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Holds::RuntimeState => "runtime_state",
            Holds::Datastore => "datastore",
            Holds::RuntimeRoot => "runtime_root",
            Holds::Cni => "cni",
            Holds::Logs => "logs",
            Holds::Tmp => "tmp",
        }
    }
}

/// Where runtimes, CNI plugins and the node keep these unless they are told otherwise. Those that are there count. None
/// below a directory that only root may look into.
const KNOWN: [(&str, Holds); 22] = [
    ("/run", Holds::RuntimeState),
    ("/run/containerd", Holds::RuntimeState),
    ("/run/runc", Holds::RuntimeState),
    ("/run/crio", Holds::RuntimeState),
    ("/run/containers", Holds::RuntimeState),
    ("/run/docker", Holds::RuntimeState),
    ("/run/k3s", Holds::RuntimeState),
    ("/run/k0s", Holds::RuntimeState),
    ("/var/snap/microk8s/common/run", Holds::RuntimeState),
    ("/var/lib/containerd", Holds::RuntimeRoot),
    ("/var/lib/containers", Holds::RuntimeRoot),
    ("/var/lib/crio", Holds::RuntimeRoot),
    ("/var/lib/docker", Holds::RuntimeRoot),
    ("/var/lib/rancher/k3s/agent/containerd", Holds::RuntimeRoot),
    ("/var/lib/rancher/rke2/agent/containerd", Holds::RuntimeRoot),
    ("/var/lib/k0s/containerd", Holds::RuntimeRoot),
    ("/var/snap/microk8s/common/var/lib/containerd", Holds::RuntimeRoot),
    ("/var/lib/cni", Holds::Cni),
    ("/run/flannel", Holds::Cni),
    ("/var/log", Holds::Logs),
    ("/var/log/pods", Holds::Logs),
    ("/tmp", Holds::Tmp),
];

/// What a runtime names for its images is this directory in its root: containerd's snapshotter, CRI-O's overlays.
const IMAGES: [&str; 2] = ["io.containerd.snapshotter.v1.", "overlay-images"];

/// Every directory to look at, each once: those that are known, where this runtime has its socket and its images, and
/// `datastores`.
pub(super) fn candidates<'a>(
    endpoint: Option<&str>,
    image_store: Option<&Path>,
    datastores: impl IntoIterator<Item = &'a Path>,
) -> Vec<(PathBuf, Holds)> {
    let mut all: Vec<(PathBuf, Holds)> = KNOWN.iter().map(|&(path, holds)| (path.into(), holds)).collect();
    let socket = endpoint.map(|endpoint| endpoint.strip_prefix("unix://").unwrap_or(endpoint));
    let state = socket.map(Path::new).filter(|socket| socket.is_absolute()).and_then(Path::parent);
    let is_images = |store: &&Path| {
        let name = store.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| IMAGES.iter().any(|images| name.starts_with(images)))
    };
    let root = image_store.filter(is_images).and_then(Path::parent);
    let more = state.map(|path| (path, Holds::RuntimeState)).into_iter();
    let more = more.chain(root.map(|path| (path, Holds::RuntimeRoot)));
    for (path, holds) in more.chain(datastores.into_iter().map(|path| (path, Holds::Datastore))) {
        // `/var/run` is a link to `/run` everywhere.
        let path =
            path.strip_prefix("/var/run").map_or_else(|_| path.to_owned(), |below| Path::new("/run").join(below));
        let path = path.components().collect::<PathBuf>();
        if path.parent().is_some() && !all.iter().any(|(known, of)| *known == path && *of == holds) {
            all.push((path, holds));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn more(endpoint: Option<&str>, store: Option<&str>, datastores: &[&str]) -> Vec<(String, &'static str)> {
        let all = candidates(endpoint, store.map(Path::new), datastores.iter().map(Path::new));
        all[KNOWN.len()..].iter().map(|(path, holds)| (path.display().to_string(), holds.as_str())).collect()
    }

    #[test]
    fn what_this_node_has_elsewhere_is_looked_at_too() {
        assert_eq!(more(Some("unix:///run/containerd/containerd.sock"), None, &[]), []);
        let crio = more(Some("/var/run/crio/crio.sock"), Some("/var/lib/containers/storage/overlay-images"), &[]);
        assert_eq!(crio, [("/var/lib/containers/storage".to_owned(), "runtime_root")]);
        assert_eq!(
            more(
                Some("unix:///srv/cri/sock"),
                Some("/data/io.containerd.snapshotter.v1.overlayfs"),
                &["/var/lib/etcd"]
            ),
            [
                ("/srv/cri".to_owned(), "runtime_state"),
                ("/data".to_owned(), "runtime_root"),
                ("/var/lib/etcd".to_owned(), "datastore")
            ]
        );
        assert_eq!(more(Some("tcp://127.0.0.1:2375"), None, &["/var/lib/etcd", "/var/lib/etcd"]).len(), 1);
        assert_eq!(more(Some("/sock"), None, &[]), [], "the root is nobody's state");
    }
}
