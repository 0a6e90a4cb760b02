//! The few fields of CRI v1 that we read, declared by hand so that a build needs no `protoc`: numbers and types as in
//! `api.proto` of k8s.io/cri-api. Protobuf skips every field that is not declared, which is also what keeps a poll
//! small: annotations (a pod's whole manifest, at times) are never copied. Of what is there several times `bounds.rs`
//! bounds how much is kept.

use prost::DecodeError;
use prost::bytes::{Buf, BufMut};
use prost::encoding::{DecodeContext, WireType, bool, message, skip_field, string, uint64};

use super::bounds::{List, PodLabels, merge_some};

/// Asks; every call that lists may be made with an empty filter: an empty message is the same bytes for all of them.
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
pub(super) type Sandboxes = List<Sandbox>;

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

/// `PodSandboxStatusRequest`
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct SandboxStatusRequest {
    /// Of this sandbox.
    #[prost(string, tag = "1")]
    pub(super) pod_sandbox_id: String,
    /// With what the runtime has to say for debugging.
    #[prost(bool, tag = "2")]
    pub(super) verbose: bool,
}

/// `PodSandboxStatusResponse`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SandboxStatus {
    /// The value of `info` in the map `info` (2): JSON, which `sandbox_status.rs` reads.
    pub(super) info: String,
}

/// An entry of a map of strings.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct Entry {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

/// `ListContainersResponse`
pub(super) type Containers = List<Container>;

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
    #[prost(message, optional, tag = "8")]
    pub(super) labels: Option<PodLabels>,
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

/// `ListImagesResponse`
pub(super) type Images = List<Image>;

/// `Image`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Image {
    /// `sha256:…` (1)
    pub(super) id: String,
    /// `docker.io/library/busybox@sha256:…` (3)
    pub(super) repo_digests: Vec<String>,
    /// Bytes (4).
    pub(super) size: u64,
    /// Never to be garbage-collected (8; Kubernetes 1.26, containerd 1.7 and later).
    pub(super) pinned: bool,
}

/// `ImageFsInfoResponse`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ImageFilesystems {
    /// In the runtime's order (1).
    pub(super) image_filesystems: Vec<FilesystemUsage>,
    /// Since CRI of Kubernetes 1.29 (2).
    pub(super) container_filesystems: Vec<FilesystemUsage>,
}

/// By hand, because derived code keeps however many there are. Nobody sends these.
macro_rules! read_only {
    ($message:ty, |$self:ident, $at:ident, $buffer:ident, $context:ident| $merge:expr) => {
        impl prost::Message for $message {
            fn encode_raw(&self, _: &mut impl BufMut) {}

            fn merge_field(
                &mut self,
                tag: u32,
                wire_type: WireType,
                $buffer: &mut impl Buf,
                $context: DecodeContext,
            ) -> Result<(), DecodeError> {
                let ($self, $at) = (self, (wire_type, tag));
                $merge
            }

            fn encoded_len(&self) -> usize {
                0
            }

            fn clear(&mut self) {
                *self = Self::default();
            }
        }
    };
}

read_only!(Image, |image, at, buffer, context| match at {
    (wire_type, 1) => string::merge(wire_type, &mut image.id, buffer, context),
    (_, 3) => merge_some(&mut image.repo_digests, string::merge_repeated, at, buffer, context),
    (wire_type, 4) => uint64::merge(wire_type, &mut image.size, buffer, context),
    (wire_type, 8) => bool::merge(wire_type, &mut image.pinned, buffer, context),
    (wire_type, tag) => skip_field(wire_type, tag, buffer, context),
});

read_only!(SandboxStatus, |status, at, buffer, context| match at {
    (wire_type, 2) => {
        let mut entry = Entry::default();
        message::merge(wire_type, &mut entry, buffer, context)?;
        if entry.key == "info" {
            status.info = entry.value;
        }
        Ok(())
    }
    (wire_type, tag) => skip_field(wire_type, tag, buffer, context),
});

read_only!(ImageFilesystems, |all, at, buffer, context| match at {
    (_, 1) => merge_some(&mut all.image_filesystems, message::merge_repeated, at, buffer, context),
    (_, 2) => merge_some(&mut all.container_filesystems, message::merge_repeated, at, buffer, context),
    (wire_type, tag) => skip_field(wire_type, tag, buffer, context),
});

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
