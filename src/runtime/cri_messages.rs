//! The few fields of CRI v1 that we read, declared by hand so that a build needs no `protoc`: numbers and types as in
//! `api.proto` of k8s.io/cri-api. Protobuf skips every field that is not declared, which is also what keeps a poll
//! small: annotations (a pod's whole manifest, at times) are never copied.

/// Asks; every call of ours may be made with an empty filter, and an empty message is the same bytes for all of them.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(super) struct Empty {}

/// `VersionResponse`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Version {
    /// `containerd`, `cri-o`, …
    #[prost(string, tag = "2")]
    pub(super) runtime_name: String,
    /// `1.6.20~ds1`
    #[prost(string, tag = "3")]
    pub(super) runtime_version: String,
}

/// `ListPodSandboxResponse`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Sandboxes {
    /// Every sandbox.
    #[prost(message, repeated, tag = "1")]
    pub(super) items: Vec<Sandbox>,
}

/// `PodSandbox`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Sandbox {
    /// 64 hexadecimal digits.
    #[prost(string, tag = "1")]
    pub(super) id: String,
    /// Which pod.
    #[prost(message, optional, tag = "2")]
    pub(super) metadata: Option<SandboxMetadata>,
    /// `PodSandboxState`: 0 is ready, 1 is not.
    #[prost(int32, tag = "3")]
    pub(super) state: i32,
}

/// `PodSandboxMetadata`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct SandboxMetadata {
    /// Pod name.
    #[prost(string, tag = "1")]
    pub(super) name: String,
    /// Pod uid.
    #[prost(string, tag = "2")]
    pub(super) uid: String,
    /// Namespace.
    #[prost(string, tag = "3")]
    pub(super) namespace: String,
}

/// `ListContainersResponse`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Containers {
    /// Every container.
    #[prost(message, repeated, tag = "1")]
    pub(super) containers: Vec<Container>,
}

/// `Container`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Container {
    /// 64 hexadecimal digits.
    #[prost(string, tag = "1")]
    pub(super) id: String,
    /// The sandbox that it was made in.
    #[prost(string, tag = "2")]
    pub(super) pod_sandbox_id: String,
    /// Its name.
    #[prost(message, optional, tag = "3")]
    pub(super) metadata: Option<ContainerMetadata>,
    /// What the image is known by on this node: an id, or a digest.
    #[prost(string, tag = "5")]
    pub(super) image_ref: String,
    /// `ContainerState`: 0 created, 1 running, 2 exited, 3 unknown.
    #[prost(int32, tag = "6")]
    pub(super) state: i32,
    /// The kubelet's labels: the pod, for a container whose sandbox is gone. A protobuf map is a list of entries.
    #[prost(message, repeated, tag = "8")]
    pub(super) labels: Vec<Label>,
    /// The id of the image (Kubernetes 1.29 and later).
    #[prost(string, tag = "10")]
    pub(super) image_id: String,
}

/// `ContainerMetadata`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct ContainerMetadata {
    /// Name in the pod.
    #[prost(string, tag = "1")]
    pub(super) name: String,
}

/// One entry of a `map<string, string>`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Label {
    /// Key.
    #[prost(string, tag = "1")]
    pub(super) key: String,
    /// Value.
    #[prost(string, tag = "2")]
    pub(super) value: String,
}

/// `ListImagesResponse`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Images {
    /// Every image.
    #[prost(message, repeated, tag = "1")]
    pub(super) images: Vec<Image>,
}

/// `Image`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Image {
    /// `sha256:…`
    #[prost(string, tag = "1")]
    pub(super) id: String,
    /// `docker.io/library/busybox@sha256:…`
    #[prost(string, repeated, tag = "3")]
    pub(super) repo_digests: Vec<String>,
    /// Bytes.
    #[prost(uint64, tag = "4")]
    pub(super) size: u64,
    /// Never to be garbage-collected (Kubernetes 1.26, containerd 1.7 and later).
    #[prost(bool, tag = "8")]
    pub(super) pinned: bool,
}

/// `ImageFsInfoResponse`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct ImageFilesystems {
    /// In the runtime's order.
    #[prost(message, repeated, tag = "1")]
    pub(super) image_filesystems: Vec<FilesystemUsage>,
    /// Since CRI of Kubernetes 1.29.
    #[prost(message, repeated, tag = "2")]
    pub(super) container_filesystems: Vec<FilesystemUsage>,
}

/// `FilesystemUsage`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct FilesystemUsage {
    /// Where.
    #[prost(message, optional, tag = "2")]
    pub(super) fs_id: Option<FilesystemIdentifier>,
}

/// `FilesystemIdentifier`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct FilesystemIdentifier {
    /// A directory on it.
    #[prost(string, tag = "1")]
    pub(super) mountpoint: String,
}
