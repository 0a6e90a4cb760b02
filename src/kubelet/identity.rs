//! Whether a process that looks like the kubelet, or like a control plane, is this node's: a name proves nothing, since
//! a pod can give any name to its processes, and a whole Kubernetes may run in a pod.
//!
//! Three things that nobody in a pod can choose for itself tell: the pid namespaces that a process is in (`NSpid` of
//! `/proc/PID/status`), its cgroup, and its user as this procfs shows it. None of them blocks to be read, unlike its
//! command line.

use std::fmt;

use super::cgroup_name;
use crate::error::Result;
use crate::host::pids::{Pids, Standing};

/// Why a process is not this node's kubelet, though it looks like one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// It is in the cgroup of a pod, with this uid.
    InAPod(String),
    /// It is in a pid namespace of its own: a container, a Kubernetes that runs in one.
    PidNamespace,
    /// It is this user's.
    User(u32),
    /// Another one was there before it.
    Another(u32),
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::InAPod(uid) => write!(f, "it runs in pod {uid}, by its cgroup"),
            Why::PidNamespace => f.write_str("it runs in a container (its own pid namespace)"),
            Why::User(uid) => {
                write!(f, "it runs as uid {uid}: set --kubelet.uid={uid} if this node's kubelet is rootless")
            }
            Why::Another(pid) => write!(f, "pid {pid}, which started first, counts as the kubelet"),
        }
    }
}

/// What speaks against this process as the kubelet of the machine that `pids` shows, which runs as `uid`.
///
/// # Errors
/// The operating system's; gone if it exited.
pub fn against_a_kubelet(pids: &Pids, pid: u32, uid: u32) -> Result<Option<Why>> {
    let Standing { uid: user, namespaces, cgroup } = pids.standing(pid)?;
    Ok(match (pod_of(&cgroup), namespaces, user) {
        (Some(pod), ..) => Some(Why::InAPod(pod)),
        (None, Some(2..), _) => Some(Why::PidNamespace),
        (None, _, Some(user)) if user != uid => Some(Why::User(user)),
        _ => None,
    })
}

/// True of a process of the machine's own that is root's: outside of any pod, and of containers with pids of their own.
///
/// # Errors
/// The operating system's; gone if it exited.
pub fn is_of_the_machine(pids: &Pids, pid: u32) -> Result<bool> {
    Ok(against_a_kubelet(pids, pid, 0)?.is_none())
}

/// True if an apiserver or an etcd is the node's: outside of any pod, or in a static pod of this machine's kubelet.
/// What is in other pods is a workload (a database's etcd, the control plane of another cluster).
///
/// # Errors
/// The operating system's; gone if it exited.
pub fn is_of_the_control_plane(pids: &Pids, pid: u32) -> Result<bool> {
    let Standing { namespaces, cgroup, .. } = pids.standing(pid)?;
    Ok(is_of_the_node(namespaces, &cgroup))
}

/// The same of any daemon, by the number of its pid namespaces and its `/proc/PID/cgroup`.
pub fn is_of_the_node(namespaces: Option<usize>, cgroup: &str) -> bool {
    // In a pod there is one namespace more than the machine's, or none.
    let near = namespaces.is_none_or(|count| count <= 2);
    near && pod_of(cgroup).is_none_or(|uid| is_static(&uid))
}

/// The uid of a pod that a kubelet made from a file is a hash: 32 hexadecimal digits without the dashes of the API's.
fn is_static(uid: &str) -> bool {
    uid.len() == 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The pod in whose cgroup this is, by `/proc/PID/cgroup`. From within a cgroup namespace, as most pods on cgroup v2
/// have one, other pods are seen at `/../…`, where the kubelet's directories above them have no names.
fn pod_of(cgroup: &str) -> Option<String> {
    let paths = cgroup.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.into_iter().find_map(|path| {
        let known = cgroup_name::of_path(path, cgroup_name::SEARCHED_LEVELS).map(|place| place.pod_uid);
        known.or_else(|| {
            let outside = path.strip_prefix("/..")?;
            outside.split('/').find_map(cgroup_name::pod_uid)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Host, Roots};

    const POD: &str = "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod11111111_2222_3333_4444_555555555555.slice/cri-containerd-abc.scope";
    const STATIC: &str = "4:memory:/kubepods/burstable/pod55a0906791c86e41cb268c3f20fa8205/x";

    fn pids(status: &str, cgroup: &str) -> (tempfile::TempDir, Pids) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("7")).unwrap();
        std::fs::write(dir.path().join("7/status"), status).unwrap();
        std::fs::write(dir.path().join("7/cgroup"), format!("{cgroup}\n")).unwrap();
        let pids = Host::new(Roots { proc: dir.path().into(), ..Roots::default() }).pids().unwrap();
        (dir, pids)
    }

    fn status(uid: u32, pids: &str) -> String {
        format!("Name:\tkubelet\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nNSpid:\t{pids}\nNSpgid:\t1\n")
    }

    #[test]
    fn each_way_to_look_like_the_kubelet_and_not_to_be_it() {
        let pod = Some(Why::InAPod("11111111-2222-3333-4444-555555555555".to_owned()));
        for (status, cgroup, expected) in [
            (status(0, "7"), "0::/system.slice/kubelet.service", None),
            // RKE1: a container of Docker's on the machine's pids.
            (status(0, "7"), "0::/docker/55f765a8788dcccb46fae55db15b169605b66df347604a06a4f6ed7c15f879c6", None),
            // A kernel without cgroups, or before 4.1.
            ("Name:\tkubelet\nUid:\t0\t0\t0\t0\n".to_owned(), "", None),
            (status(0, "7\t1"), "0::/docker/abc", Some(Why::PidNamespace)),
            (status(0, "7"), POD, pod.clone()),
            (status(0, "7\t1"), POD, pod.clone()),
            (status(1000, "7"), "0::/user.slice/user-1000.slice", Some(Why::User(1000))),
            // Of several hierarchies one is enough.
            (status(0, "7"), "9:name=systemd:/\n4:memory:/kubepods/pod0-1/x", Some(Why::InAPod("0-1".to_owned()))),
            // As a pod with a cgroup namespace sees others.
            (status(0, "7"), "0::/../../pod0-1/abc", Some(Why::InAPod("0-1".to_owned()))),
            (status(0, "7"), "0::/../../../kubepods-pod0_1.slice/x", Some(Why::InAPod("0-1".to_owned()))),
            (status(0, "7"), "0::/../../../../system.slice/kubelet.service", None),
        ] {
            let (_dir, pids) = pids(&status, cgroup);
            assert_eq!(against_a_kubelet(&pids, 7, 0).unwrap(), expected, "{status} {cgroup}");
        }
        let (_dir, pids) = pids(&status(1000, "7"), "0::/user.slice");
        assert_eq!(against_a_kubelet(&pids, 7, 1000).unwrap(), None, "rootless, and said so");
        assert!(against_a_kubelet(&pids, 8, 0).unwrap_err().is_gone());
    }

    #[test]
    fn whose_etcd_it_is() {
        for (namespaces, cgroup, expected) in [
            ("7", "0::/system.slice/etcd.service", true),
            ("7", STATIC, true),
            ("7\t1", STATIC, true),
            ("7\t1", POD, false),
            // The static pod of a Kubernetes in a container, and in a pod.
            ("7\t3\t1", "0::/docker/abc/kubelet/kubepods/pod55a0906791c86e41cb268c3f20fa8205/x", false),
            ("7\t1", &format!("{POD}/kubepods/pod55a0906791c86e41cb268c3f20fa8205/x"), false),
        ] {
            let (_dir, pids) = pids(&status(0, namespaces), cgroup);
            assert_eq!(is_of_the_control_plane(&pids, 7).unwrap(), expected, "{namespaces} {cgroup}");
        }
    }
}
