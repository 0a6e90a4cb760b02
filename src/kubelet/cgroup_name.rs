//! The names that the kubelet and the runtimes give to cgroups, read backwards: which pod, which container.
//!
//! The kubelet makes `kubepods/[burstable|besteffort]/pod<uid>` with the cgroupfs driver, and
//! `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid, - as _>.slice` with the systemd driver;
//! Guaranteed pods sit directly below the root (kubelet 1.36, `cm/cgroup_manager_linux.go`,
//! `cm/pod_container_manager_linux.go`). `--cgroup-root` puts a prefix in front: `/custom/kubepods/…`, or
//! `kubelet.slice/kubelet-kubepods.slice/…`. The container's directory is the runtime's: a bare id,
//! `cri-containerd-<id>.scope`, `crio-<id>.scope` or `docker-<id>.scope`.
//!
//! Only names are looked at here. Whether such a pod or container exists is another question.

use std::path::PathBuf;

/// The QoS class that a directory lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Qos {
    /// Directly below the kubepods root.
    Guaranteed,
    /// Below `burstable`.
    Burstable,
    /// Below `besteffort`.
    BestEffort,
}

impl Qos {
    /// Every class.
    pub const ALL: [Qos; 3] = [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Qos::Guaranteed => "guaranteed",
            Qos::Burstable => "burstable",
            Qos::BestEffort => "besteffort",
        }
    }

    /// The class of a QoS directory, by the last word of its name.
    fn of_word(word: &str) -> Option<Self> {
        match word {
            "burstable" => Some(Qos::Burstable),
            "besteffort" => Some(Qos::BestEffort),
            _ => None,
        }
    }
}

/// The pod, and the container where the path goes that deep, that a cgroup belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPlace {
    /// By the directory that the pod lies in.
    pub qos: Qos,
    /// As the API writes it: with dashes, also where the systemd driver wrote underscores. A static pod's has 32
    /// hexadecimal digits and none.
    pub pod_uid: String,
    /// The runtime's id; `None` for a process in the pod's own cgroup, or in one that is no container's (conmon).
    pub container_id: Option<String>,
}

/// What one directory of a kubepods tree is, by its name and its parent's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupRole {
    /// The kubepods root itself.
    Root,
    /// A QoS directory.
    Qos(Qos),
    /// A pod's directory.
    Pod(Qos),
    /// A container's: in its pod, or wrongly placed in a QoS directory or the root (nothing ever cleans those up).
    Container(Qos),
    /// Anything else, at any depth: cgroups that a container made inside its own, a monitor process's, a stray `mkdir`.
    Other(Qos),
}

impl CgroupRole {
    /// The place of the directory `name` in this one.
    #[must_use]
    pub fn child(self, name: &str) -> Self {
        match self {
            CgroupRole::Root => qos_of(name).map_or_else(|| member(Qos::Guaranteed, name), CgroupRole::Qos),
            CgroupRole::Qos(qos) => member(qos, name),
            CgroupRole::Pod(qos) if container_id(name).is_some() => CgroupRole::Container(qos),
            CgroupRole::Pod(qos) | CgroupRole::Container(qos) | CgroupRole::Other(qos) => CgroupRole::Other(qos),
        }
    }
}

/// A directory in the root or in a QoS directory.
fn member(qos: Qos, name: &str) -> CgroupRole {
    if pod_uid(name).is_some() {
        CgroupRole::Pod(qos)
    } else if container_id(name).is_some() {
        CgroupRole::Container(qos)
    } else {
        CgroupRole::Other(qos)
    }
}

/// Where the pods' cgroup may be below the kubelet's `cgroupRoot`, for both cgroup drivers. The driver is not asked: it
/// comes from the runtime these days.
pub fn pods_cgroups(cgroup_root: &str) -> [PathBuf; 2] {
    let parts: Vec<&str> = cgroup_root.split('/').filter(|part| !part.is_empty() && *part != "..").collect();
    let plain = parts.iter().copied().chain(["kubepods"]).collect();
    // systemd nests a.slice/a-b.slice/a-b-kubepods.slice; a dash within a name is written `_`.
    let mut slices = PathBuf::new();
    let mut name = String::new();
    for part in
        parts.iter().map(|part| part.trim_end_matches(".slice").replace('-', "_")).chain(["kubepods".to_owned()])
    {
        if !name.is_empty() {
            name.push('-');
        }
        name.push_str(&part);
        slices.push(format!("{name}.slice"));
    }
    [plain, slices]
}

/// True if a directory of this name is a kubepods root: `kubepods`, `kubepods.slice`, `<prefix>-kubepods.slice`.
pub fn is_root(name: &str) -> bool {
    name == "kubepods" || slice_words(name).is_some_and(|words| last(words).1 == "kubepods")
}

/// The QoS class if this is the name of a QoS directory.
fn qos_of(name: &str) -> Option<Qos> {
    Qos::of_word(name).or_else(|| {
        let (before, word) = last(slice_words(name)?);
        (last(before).1 == "kubepods").then(|| Qos::of_word(word)).flatten()
    })
}

/// The pod's uid if this is the name of a pod's directory: `pod<uid>`, `kubepods[-<qos>]-pod<uid>.slice`.
///
/// A uid is mostly a UUID, or 32 hexadecimal digits for a static pod, but a static pod's manifest may set any: so any
/// word of letters, digits and dashes will do, as it does for the kubelet.
pub fn pod_uid(name: &str) -> Option<String> {
    let uid = match slice_words(name) {
        None => name.strip_prefix("pod")?.to_owned(),
        Some(words) => {
            let (before, word) = last(words);
            let (above, parent) = last(before);
            if parent != "kubepods" && !(Qos::of_word(parent).is_some() && last(above).1 == "kubepods") {
                return None;
            }
            word.strip_prefix("pod")?.replace('_', "-")
        }
    };
    let valid = matches!(uid.len(), 1..=63) && uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    valid.then_some(uid)
}

/// The container's id if this is the name of a container's directory: 64 lower-case letters and digits, bare or behind
/// a runtime's prefix, with or without `.scope`. `crio-conmon-<id>` is the monitor beside a container, not one.
pub fn container_id(name: &str) -> Option<&str> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let (prefix, id) = name.rsplit_once(['-', ':']).unwrap_or(("", name));
    let valid = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    (valid && !prefix.ends_with("conmon")).then_some(id)
}

/// `--cgroup-root` may put the tree below other directories; further down than this it is not looked for.
pub const SEARCHED_LEVELS: usize = 3;

/// The pod and container of a cgroup path from the hierarchy's root, as in a line of `/proc/PID/cgroup` (the whole line
/// will do as well). `None` for a path outside of any pod.
///
/// A tree of pods is one only where a kubelet makes it, at most so many `levels` below the hierarchy's root: whoever
/// may make cgroups of his own can give them any name. What a Kubernetes inside a container calls its pods is nothing
/// that this node knows either.
pub fn of_path(cgroup_path: &str, levels: usize) -> Option<PodPlace> {
    let path = cgroup_path.trim_end().strip_suffix(" (deleted)").unwrap_or(cgroup_path.trim_end());
    let mut names = path.split('/').skip(1);
    let mut above: Option<&str> = None;
    for level in 1.. {
        let name = names.next()?;
        if level <= levels && is_root_in(above, name) {
            break;
        }
        if let Some(pod) = literal(name) {
            return Some(pod);
        }
        // Of what is not the kubelet's, a service may be the runtime, which has the literal names below it.
        if above.is_some_and(|above| !may_hold_pods(above)) || (!may_hold_pods(name) && !name.ends_with(".service")) {
            return None;
        }
        above = Some(name);
    }
    let mut place = CgroupRole::Root;
    let mut found: Option<PodPlace> = None;
    for name in names {
        place = place.child(name);
        match (place, &mut found) {
            (CgroupRole::Pod(qos), _) => found = Some(PodPlace { qos, pod_uid: pod_uid(name)?, container_id: None }),
            (CgroupRole::Container(_), Some(pod)) => pod.container_id = container_id(name).map(str::to_owned),
            _ => {}
        }
    }
    found
}

/// True if a kubepods root is called so in the directory `above`, `None` for the hierarchy's root. Systemd's slices
/// have the names of those above in their own.
pub fn is_root_in(above: Option<&str>, name: &str) -> bool {
    if !is_root(name) {
        return false;
    }
    let Some(words) = slice_words(name) else { return above.is_none_or(may_hold_pods) };
    above.map_or("", |above| above.strip_suffix(".slice").unwrap_or("/")) == last(words).0
}

/// False of directories in which no kubelet makes the cgroups of its pods: a container, and what systemd makes for a
/// service or a session. Those may be given to others to do with as they like.
pub fn may_hold_pods(name: &str) -> bool {
    name != ".." && container_id(name).is_none() && !name.ends_with(".scope") && !name.ends_with(".service")
}

/// `kubepods-burstable-pod<uid>.slice:cri-containerd:<id>` as one directory name: what comes out where the kubelet uses
/// the systemd driver and containerd does not (`SystemdCgroup = false`). Common enough, and the node works that way.
fn literal(name: &str) -> Option<PodPlace> {
    let (slice, rest) = name.split_once(".slice:")?;
    let slice = format!("{slice}.slice");
    let qos = slice_words(&slice).and_then(|words| Qos::of_word(last(last(words).0).1)).unwrap_or(Qos::Guaranteed);
    Some(PodPlace { qos, pod_uid: pod_uid(&slice)?, container_id: container_id(rest).map(str::to_owned) })
}

/// `a-b-c.slice` without its ending. Systemd's slices carry all their ancestors in their names.
fn slice_words(name: &str) -> Option<&str> {
    name.strip_suffix(".slice")
}

/// The words before the last dash, and the word behind it.
fn last(words: &str) -> (&str, &str) {
    words.rsplit_once('-').unwrap_or(("", words))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_path(path: &str) -> Option<PodPlace> {
        super::of_path(path, SEARCHED_LEVELS)
    }

    const ID: &str = "55f765a8788dcccb46fae55db15b169605b66df347604a06a4f6ed7c15f879c6";
    const UID: &str = "bcb1982f-2628-449a-accb-e40ecdefbb3b";

    fn place(qos: Qos, pod_uid: &str, container_id: Option<&str>) -> Option<PodPlace> {
        Some(PodPlace { qos, pod_uid: pod_uid.to_owned(), container_id: container_id.map(str::to_owned) })
    }

    #[test]
    fn recorded_cgroupfs_paths() {
        let pod = format!("/kubepods/burstable/pod{UID}");
        assert_eq!(of_path(&pod), place(Qos::Burstable, UID, None));
        assert_eq!(of_path(&format!("{pod}/{ID}")), place(Qos::Burstable, UID, Some(ID)));
        assert_eq!(of_path(&format!("4:memory:{pod}/{ID}\n")), place(Qos::Burstable, UID, Some(ID)));
        assert_eq!(of_path(&format!("{pod}/{ID} (deleted)")), place(Qos::Burstable, UID, Some(ID)));
        // A static pod (its uid is a hash) and a Guaranteed one.
        let uid = "55a0906791c86e41cb268c3f20fa8205";
        assert_eq!(of_path(&format!("/kubepods/besteffort/pod{uid}/{ID}")), place(Qos::BestEffort, uid, Some(ID)));
        assert_eq!(of_path(&format!("/kubepods/pod{UID}/{ID}")), place(Qos::Guaranteed, UID, Some(ID)));
    }

    #[test]
    fn recorded_systemd_paths() {
        let slice = "kubepods-burstable-pod739d586d_5948_40c9_b92b_95f27d4fc921.slice";
        let uid = "739d586d-5948-40c9-b92b-95f27d4fc921";
        let pod = format!("/kubepods.slice/kubepods-burstable.slice/{slice}");
        assert_eq!(of_path(&pod), place(Qos::Burstable, uid, None));
        for name in ["cri-containerd", "crio", "docker"] {
            let path = format!("0::{pod}/{name}-{ID}.scope");
            assert_eq!(of_path(&path), place(Qos::Burstable, uid, Some(ID)), "{name}");
        }
        let guaranteed = "/kubepods.slice/kubepods-pod020a8993_ffb4_499a_9de5_9cc87ef94d71.slice";
        assert_eq!(of_path(guaranteed), place(Qos::Guaranteed, "020a8993-ffb4-499a-9de5-9cc87ef94d71", None));
        let fixed =
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod8e27217630fd72e184db316e861ccccf.slice";
        assert_eq!(of_path(fixed), place(Qos::BestEffort, "8e27217630fd72e184db316e861ccccf", None));
    }

    #[test]
    fn pods_cgroups_of_both_drivers() {
        let of = |root: &str| pods_cgroups(root).map(|path| path.display().to_string());
        assert_eq!(of(""), ["kubepods", "kubepods.slice"]);
        assert_eq!(of("/"), ["kubepods", "kubepods.slice"]);
        assert_eq!(of("/a/b-c"), ["a/b-c/kubepods", "a.slice/a-b_c.slice/a-b_c-kubepods.slice"]);
        assert_eq!(of("/../etc"), ["etc/kubepods", "etc.slice/etc-kubepods.slice"]);
    }

    #[test]
    fn prefixes_of_a_cgroup_root() {
        let nested = format!("/custom/kubepods/besteffort/pod{UID}/{ID}");
        assert_eq!(of_path(&nested), place(Qos::BestEffort, UID, Some(ID)));
        let slice = format!(
            "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/\
             kubelet-kubepods-besteffort-pod{}.slice/cri-containerd-{ID}.scope",
            UID.replace('-', "_")
        );
        assert_eq!(of_path(&slice), place(Qos::BestEffort, UID, Some(ID)));
        let relative = format!("0::/../../kubepods/pod{UID}/{ID}");
        assert_eq!(of_path(&relative), None, "of whatever is two levels above us");
    }

    #[test]
    fn pods_are_only_where_a_kubelet_makes_them() {
        let pods = format!("kubepods/pod{UID}/{ID}");
        let container = "e".repeat(64);
        let slice = "user.slice/user-1000.slice";
        for made_by_others in [
            format!("/docker/{container}/{pods}"),
            format!("/system.slice/docker-{container}.scope/{pods}"),
            format!("/{slice}/user@1000.service/{pods}"),
            format!("/{slice}/session-1.scope/{pods}"),
            format!("/system.slice/own.service/{pods}"),
            format!("/a/b/c/{pods}"),
            format!("/user.slice/kubepods.slice/kubepods-pod{}.slice", UID.replace('-', "_")),
            format!("/a.slice/b-kubepods.slice/b-kubepods-pod{}.slice", UID.replace('-', "_")),
            format!("/docker/{container}/kubepods-pod{}.slice:cri-containerd:{ID}", UID.replace('-', "_")),
            format!("/a.service/b/kubepods-pod{}.slice:cri-containerd:{ID}", UID.replace('-', "_")),
        ] {
            assert_eq!(of_path(&made_by_others), None, "{made_by_others}");
        }
        assert_eq!(of_path(&format!("/a/b/{pods}")), place(Qos::Guaranteed, UID, Some(ID)));
        assert_eq!(super::of_path(&format!("/a/{pods}"), 1), None, "the node has a tree at the root");
        // Below a pod's own container whatever is made there is that pod's.
        let inside = format!("/kubepods/burstable/podown/{container}/{pods}");
        assert_eq!(of_path(&inside), place(Qos::Burstable, "own", Some(&container)));
    }

    #[test]
    fn a_driver_mismatch_is_read_too() {
        let name = format!("kubepods-burstable-pod{}.slice:cri-containerd:{ID}", UID.replace('-', "_"));
        assert_eq!(of_path(&format!("/system.slice/containerd.service/{name}")), place(Qos::Burstable, UID, Some(ID)));
        let name = format!("kubepods-pod{}.slice:cri-containerd:{ID}", UID.replace('-', "_"));
        assert_eq!(of_path(&format!("/{name}")), place(Qos::Guaranteed, UID, Some(ID)));
    }

    #[test]
    fn what_runs_inside_a_container_belongs_to_it() {
        let inside = format!("/kubepods/pod{UID}/{ID}/system.slice/ssh.service");
        assert_eq!(of_path(&inside), place(Qos::Guaranteed, UID, Some(ID)));
        let inner = "a".repeat(64);
        let nested = format!("/kubepods/pod{UID}/{ID}/kubepods/burstable/podinner/{inner}");
        assert_eq!(of_path(&nested), place(Qos::Guaranteed, UID, Some(ID)), "the outer Kubernetes is this node's");
    }

    #[test]
    fn what_is_no_container() {
        let pod = format!("/kubepods/pod{UID}");
        assert_eq!(of_path(&format!("{pod}/crio-conmon-{ID}.scope")), place(Qos::Guaranteed, UID, None));
        assert_eq!(of_path(&format!("{pod}/crio-conmon-{ID}")), place(Qos::Guaranteed, UID, None));
        assert_eq!(of_path(&format!("{pod}/run-{ID}.mount")), place(Qos::Guaranteed, UID, None));
        assert_eq!(of_path(&format!("{pod}/{}", &ID[1..])), place(Qos::Guaranteed, UID, None), "63 characters");
        assert_eq!(of_path(&format!("{pod}/{}", ID.to_uppercase())), place(Qos::Guaranteed, UID, None));
        for outside in ["/", "", "/system.slice/kubelet.service", "/kubepods", "/kubepods/burstable", "/kubepods/pod"] {
            assert_eq!(of_path(outside), None, "{outside}");
        }
        assert_eq!(of_path(&format!("/docker/{ID}")), None, "a container of no pod");
        assert_eq!(of_path("/user.slice/notkubepods/podx"), None);
        assert_eq!(of_path("/kubepods/pod\"quote"), None);
    }

    #[test]
    fn places_of_directories() {
        let (root, burstable) = (CgroupRole::Root, CgroupRole::Qos(Qos::Burstable));
        assert_eq!(root.child("burstable"), burstable);
        assert_eq!(root.child("kubepods-besteffort.slice"), CgroupRole::Qos(Qos::BestEffort));
        assert_eq!(root.child("x-kubepods-besteffort.slice"), CgroupRole::Qos(Qos::BestEffort));
        assert_eq!(root.child("guaranteed"), CgroupRole::Other(Qos::Guaranteed));
        assert_eq!(burstable.child("besteffort"), CgroupRole::Other(Qos::Burstable));
        assert_eq!(burstable.child(ID), CgroupRole::Container(Qos::Burstable), "stray, and nothing removes it");
        assert_eq!(root.child(&format!("crio-{ID}.scope")), CgroupRole::Container(Qos::Guaranteed));
        let container = burstable.child(&format!("pod{UID}")).child(ID);
        assert_eq!(container, CgroupRole::Container(Qos::Burstable));
        assert_eq!(container.child(ID), CgroupRole::Other(Qos::Burstable), "made by the container");
        assert_eq!(root.child("stray").child(&format!("pod{UID}")), CgroupRole::Other(Qos::Guaranteed));
        assert_eq!(root.child("user-podx.slice"), CgroupRole::Other(Qos::Guaranteed), "another slice that ends alike");
        assert!(is_root("kubelet-kubepods.slice") && !is_root("kubepods-burstable.slice") && !is_root("mykubepods"));
    }
}
