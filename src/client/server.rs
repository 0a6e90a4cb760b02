//! The servers of Kubernetes that are asked, and what is different between them.

use std::fmt;

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// kube-apiserver, or whatever stands before it.
    Apiserver,
    /// The kubelet of this node.
    Kubelet,
}

impl Server {
    /// The port of a URL that names none.
    pub(crate) fn default_port(self) -> u16 {
        match self {
            Server::Apiserver => 443,
            Server::Kubelet => 10250,
        }
    }

    /// The flag of ours with this setting of it, for advice: `--kubelet.ca-file`.
    pub(super) fn flag(self, setting: &str) -> String {
        format!("--{self}.{setting}")
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Server::Apiserver => "apiserver",
            Server::Kubelet => "kubelet",
        })
    }
}
