//! What is mounted, in groups, and for which pod or container: of the machine's mount namespace, of the kubelet's if
//! that has one of its own, and of ours.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::host::mount_table::WatchedMounts;
use crate::host::{Deadline, Host};
use crate::metric::Samples;

/// Pods and containers that are told apart in one table; a node has a few hundred.
const MOST_OWNERS: usize = 20_000;

/// What a mount is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Group {
    /// Below the kubelet's `pods/`: volumes and what is in them.
    Pods,
    /// Below its `plugins/`: what CSI drivers stage for the whole node.
    Plugins,
    /// Root file systems of containers.
    Overlay,
    /// `/dev/shm` of sandboxes.
    Shm,
    /// Namespaces that are kept by name: of networks, mostly.
    Namespaces,
    /// Cgroup hierarchies.
    Cgroups,
    /// Anything else.
    Other,
}

impl Group {
    pub(super) const ALL: [Group; 7] =
        [Group::Pods, Group::Plugins, Group::Overlay, Group::Shm, Group::Namespaces, Group::Cgroups, Group::Other];
    /// Those of which it may be known whose they are.
    pub(super) const OWNED: [Group; 3] = [Group::Pods, Group::Overlay, Group::Shm];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Group::Pods => "pods",
            Group::Plugins => "plugins",
            Group::Overlay => "overlay",
            Group::Shm => "shm",
            Group::Namespaces => "nsfs",
            Group::Cgroups => "cgroup",
            Group::Other => "other",
        }
    }
}

/// Where things are on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Places {
    /// The kubelet's directory as it calls it, and where that really is: the kernel shows the latter.
    kubelet: [PathBuf; 2],
    /// Where the machine's root is in our namespace.
    rootfs: PathBuf,
}

/// What is mounted in one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    /// By [`Group::ALL`].
    counts: [u64; Group::ALL.len()],
    /// Mounts of each pod (by uid) and container or sandbox (by id).
    pub(super) owners: HashMap<(Group, String), u64>,
    /// Mounts of more owners than are told apart.
    pub(super) left_out: u64,
    /// Network namespaces that were made for pods, by name, with their numbers.
    pub(super) namespaces: HashMap<String, u64>,
}

impl Table {
    pub(super) fn count(&self, group: Group) -> u64 {
        self.counts[group as usize]
    }

    /// Takes in a row of mountinfo, `proc_pid_mountinfo(5)`.
    fn add(&mut self, row: &str, places: &Places) {
        let Some(mountpoint) = row.split(' ').nth(4) else { return };
        let fstype = row.split_once(" - ").and_then(|(_, after)| after.split(' ').next()).unwrap_or_default();
        let path = Path::new(mountpoint);
        let below_root = path.strip_prefix(&places.rootfs).map(|below| Path::new("/").join(below));
        let path = below_root.as_deref().unwrap_or(path);
        let (group, owner) = places.sort(path, fstype);
        self.counts[group as usize] += 1;
        if group == Group::Namespaces
            && let Some((name, number)) = namespace_of_pod(path, row.split(' ').nth(3).unwrap_or_default())
        {
            if self.namespaces.len() < MOST_OWNERS {
                self.namespaces.insert(name.to_owned(), number);
            } else {
                self.left_out += 1;
            }
        }
        let Some(owner) = owner else { return };
        if let Some(count) = self.owners.get_mut(&(group, owner.to_owned())) {
            *count += 1;
        } else if self.owners.len() < MOST_OWNERS {
            self.owners.insert((group, owner.to_owned()), 1);
        } else {
            self.left_out += 1;
        }
    }
}

impl Places {
    fn sort<'a>(&self, path: &'a Path, fstype: &str) -> (Group, Option<&'a str>) {
        // A path with a space is written with `\040`, and is none of those whose owner is known.
        if let Some(below) = self.kubelet.iter().find_map(|root| path.strip_prefix(root).ok()) {
            let mut parts = below.iter().map(|part| part.to_str().unwrap_or_default());
            match (parts.next(), parts.next()) {
                (Some("pods"), Some(uid)) if !uid.is_empty() && uid.len() <= 64 => return (Group::Pods, Some(uid)),
                (Some("plugins"), Some(_)) => return (Group::Plugins, None),
                _ => {}
            }
        }
        let group = match fstype {
            "nsfs" => Group::Namespaces,
            "cgroup" | "cgroup2" => Group::Cgroups,
            "overlay" | "fuse.fuse-overlayfs" => Group::Overlay,
            "tmpfs" if path.ends_with("shm") => Group::Shm,
            _ => Group::Other,
        };
        let owner = match group {
            Group::Overlay => of_containerd(path, &["io.containerd.runtime.v2.task", "k8s.io"], "rootfs"),
            Group::Shm => of_containerd(path, &["io.containerd.grpc.v1.cri", "sandboxes"], "shm"),
            _ => None,
        };
        (group, owner)
    }
}

/// The container or sandbox of `…/ABOVE/ABOVE/<id>/LAST`. Only of containerd: others name these mounts by layers. Its
/// other namespaces than `k8s.io` are other programs' (nerdctl, Docker).
fn of_containerd<'a>(path: &'a Path, above: &[&str; 2], last: &str) -> Option<&'a str> {
    let mut parts = path.iter().rev();
    let (end, id) = (parts.next()?, parts.next()?.to_str()?);
    let within = parts.next()? == above[1] && parts.next()? == above[0];
    (end == last && within && is_container_id(id)).then_some(id)
}

/// True of what Kubernetes' runtimes call a sandbox or a container.
pub(super) fn is_container_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The name and the number of a namespace that a runtime made for a pod, by a row of the machine's mount table:
/// `net:[4026532165]` at `/run/netns/cni-24b0ec5e-76e5-cd26-8c64-9d9279244df3`. The directory is root's alone, as is
/// every mount on the machine; `ip netns` and others choose other names.
fn namespace_of_pod<'a>(mountpoint: &'a Path, root: &str) -> Option<(&'a str, u64)> {
    let number = root.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()?;
    let name = mountpoint.file_name()?.to_str()?;
    let directory = mountpoint.parent()?.file_name()?;
    (directory == "netns" && is_uuid(name.strip_prefix("cni-").unwrap_or(name))).then_some((name, number))
}

fn is_uuid(text: &str) -> bool {
    let mut lengths = [8, 4, 4, 4, 12].into_iter();
    let group = |part: &str| lengths.next() == Some(part.len()) && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    text.len() == 36 && text.split('-').all(group)
}

/// Whose mount namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Whose {
    Machine,
    Kubelet,
    Exporter,
}

impl Whose {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Whose::Machine => "machine",
            Whose::Kubelet => "kubelet",
            Whose::Exporter => "exporter",
        }
    }
}

/// What is kept between scrapes of the tables that are watched.
#[derive(Debug, Default)]
pub(super) struct Memory {
    places: Places,
    machine: Watched,
    own: Watched,
}

#[derive(Debug, Default)]
struct Watched {
    file: WatchedMounts,
    table: Option<Arc<Table>>,
}

impl Watched {
    fn read(&mut self, host: &Host, process: &str, places: &Places, deadline: Deadline) -> Result<Arc<Table>> {
        let places = places.clone();
        let read = self.file.read(host, process, deadline, Table::default(), move |table, row| table.add(row, &places));
        if let Some(table) = read? {
            self.table = Some(Arc::new(table));
        }
        self.table.clone().ok_or_else(|| Error::malformed("a mount table that was never read has not changed"))
    }
}

/// The tables, and whether these are all.
pub(super) struct Tables {
    pub(super) of: Vec<(Whose, Arc<Table>)>,
    pub(super) whole: bool,
}

impl Tables {
    /// The machine's, if it could be read.
    pub(super) fn machine(&self) -> Option<&Table> {
        self.of.iter().find(|(whose, _)| *whose == Whose::Machine).map(|(_, table)| &**table)
    }
}

impl Memory {
    /// The mount namespaces that differ: of the machine's first process, of the kubelet, of ours.
    pub(super) fn read(
        &mut self,
        host: &Host,
        kubelet: Option<u32>,
        root_dir: &Path,
        deadline: Deadline,
        samples: &mut Samples,
    ) -> Tables {
        self.settle(host, root_dir, deadline, samples);
        let mut tables = Tables { of: Vec::new(), whole: true };
        let mut take = |whose: Whose, table: Result<Arc<Table>>| match table {
            Ok(table) => tables.of.push((whose, table)),
            Err(error) => {
                tables.whole = false;
                // Recorded files, or a process that has gone.
                if !error.is_gone() {
                    samples.fail(error.context("mount table"));
                }
            }
        };
        if let Err(error) = host.require_host_pid() {
            take(Whose::Machine, Err(error));
            return tables;
        }
        let of_kubelet = kubelet.map(|pid| pid.to_string()).unwrap_or_else(|| "self".to_owned());
        let [machine, first_of_kubelet, own] = host.first_mounts(["1", &of_kubelet, "self"], deadline);
        take(Whose::Machine, self.machine.read(host, "1", &self.places, deadline));
        if let Some(pid) = kubelet.filter(|_| machine.is_none() || first_of_kubelet != machine) {
            let places = self.places.clone();
            let table = host.fold_mounts(pid, deadline, Table::default(), move |table, row| table.add(row, &places));
            take(Whose::Kubelet, table.map(Arc::new));
        }
        if own != machine {
            take(Whose::Exporter, self.own.read(host, "self", &self.places, deadline));
        }
        tables
    }

    /// Finds out where things are, once for each place that the kubelet names: what was read before that is read again.
    fn settle(&mut self, host: &Host, root_dir: &Path, deadline: Deadline, samples: &mut Samples) {
        if self.places.kubelet[0] == root_dir {
            return;
        }
        let resolved = match host.resolve(root_dir, deadline) {
            Ok(resolved) => resolved,
            Err(error) => {
                if !error.is_gone() {
                    samples.fail(error.context("the kubelet's root directory"));
                }
                root_dir.to_owned()
            }
        };
        let rootfs = host.roots().root.clone();
        *self = Memory { places: Places { kubelet: [root_dir.to_owned(), resolved], rootfs }, ..Memory::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SANDBOX: &str = "55f765a8788dcccb46fae55db15b169605b66df347604a06a4f6ed7c15f879c6";

    fn sorted(path: &str, fstype: &str) -> (&'static str, Option<String>) {
        let places =
            Places { kubelet: ["/var/lib/kubelet".into(), "/data/kubelet".into()], rootfs: "/host/root".into() };
        let mut table = Table::default();
        table.add(&format!("36 35 0:52 / {path} rw,relatime shared:2 - {fstype} {fstype} rw"), &places);
        let group = Group::ALL.into_iter().find(|group| table.count(*group) == 1).unwrap();
        (group.as_str(), table.owners.into_keys().next().map(|(_, owner)| owner))
    }

    #[test]
    fn groups_and_owners() {
        let owned = |group, owner: &str| (group, Some(owner.to_owned()));
        let volume = "pods/0f1e/volumes/kubernetes.io~projected/token";
        for root in ["/var/lib/kubelet", "/data/kubelet", "/host/root/var/lib/kubelet"] {
            assert_eq!(sorted(&format!("{root}/{volume}"), "tmpfs"), owned("pods", "0f1e"), "{root}");
        }
        assert_eq!(sorted("/var/lib/kubelet/plugins/kubernetes.io/csi/x/globalmount", "ext4"), ("plugins", None));
        assert_eq!(sorted("/var/lib/kubelet", "ext4"), ("other", None));
        let task = format!("/run/containerd/io.containerd.runtime.v2.task/k8s.io/{SANDBOX}/rootfs");
        assert_eq!(sorted(&task, "overlay"), owned("overlay", SANDBOX));
        assert_eq!(sorted(&task.replace("k8s.io", "moby"), "overlay"), ("overlay", None));
        assert_eq!(sorted(&task.replace("55f7", "55g7"), "overlay"), ("overlay", None));
        let shm = format!("/run/k3s/containerd/io.containerd.grpc.v1.cri/sandboxes/{SANDBOX}/shm");
        assert_eq!(sorted(&shm, "tmpfs"), owned("shm", SANDBOX));
        assert_eq!(sorted("/dev/shm", "tmpfs"), ("shm", None));
        assert_eq!(sorted("/run/netns/cni-1", "nsfs"), ("nsfs", None));
        assert_eq!(sorted("/sys/fs/cgroup", "cgroup2"), ("cgroup", None));
        assert_eq!(sorted("/", "ext4"), ("other", None));
        assert_eq!(sorted("/a\\040b", "tmpfs"), ("other", None));
    }

    #[test]
    fn what_is_no_row_is_none_and_owners_are_bounded() {
        let places = Places { kubelet: ["/k".into(), "/k".into()], rootfs: "/".into() };
        let mut table = Table::default();
        table.add("", &places);
        table.add("36 35", &places);
        assert_eq!(table, Table::default());
        for number in 0..MOST_OWNERS + 5 {
            table.add(&format!("1 1 0:1 / /k/pods/{number}/volumes/x rw - tmpfs tmpfs rw"), &places);
        }
        assert_eq!((table.owners.len(), table.left_out), (MOST_OWNERS, 5));
        assert_eq!(table.count(Group::Pods), (MOST_OWNERS + 5) as u64);
    }

    #[test]
    fn which_are_made_for_pods() {
        let of = |path: &str, root: &str| namespace_of_pod(Path::new(path), root).map(|(_, number)| number);
        let uuid = "24b0ec5e-76e5-cd26-8c64-9d9279244df3";
        for path in [
            format!("/run/netns/cni-{uuid}"),
            format!("/run/netns/{uuid}"),
            format!("/run/containerd/io.containerd.grpc.v1.cri/netns/cni-{uuid}"),
        ] {
            assert_eq!(of(&path, "net:[4026532165]"), Some(4_026_532_165), "{path}");
        }
        for (path, root) in [
            (format!("/run/netns/cni-{uuid}"), "uts:[4026532165]"),
            (format!("/run/netns/cni-{uuid}"), "net:[]"),
            (format!("/run/netns/netns-{uuid}"), "net:[4026532165]"),
            (format!("/run/docker/netns/cni-{uuid}0"), "net:[4026532165]"),
            (format!("/run/elsewhere/cni-{uuid}"), "net:[4026532165]"),
            ("/run/netns/cni-blue".to_owned(), "net:[4026532165]"),
            ("/run/netns/foo".to_owned(), "net:[4026532165]"),
            ("/".to_owned(), "net:[4026532165]"),
        ] {
            assert_eq!(of(&path, root), None, "{path} {root}");
        }
        assert!(is_uuid(uuid) && !is_uuid(&uuid.replace('-', "0")) && !is_uuid(&uuid.replace('b', "g")));
    }
}
