//! The kubelet that runs here, as far as a drill must know it: where it keeps its pods, on disk and among the cgroups.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::paths::real;
use super::{Result, failed, refused, tried};
use crate::host::{Deadline, Host, Roots};
use crate::kubelet::handle::Kubelet;
use crate::kubelet::sources::DEFAULT_ROOT_DIR;

/// To find it among all processes, and to read its configuration.
const PATIENCE: Duration = Duration::from_secs(10);

const BY_FLAG: &str = "--kubelet-root-dir names its root directory";

/// What one look showed.
struct Seen {
    /// `None`: none runs.
    pid: Option<u32>,
    /// Who looks like this node's kubelet as well.
    others: Vec<u32>,
    root_dir: PathBuf,
    cgroup_root: String,
}

fn look() -> Result<Seen> {
    let host = Host::new(Roots::default());
    let deadline = Deadline::after(PATIENCE);
    let look = tried("the kubelet", Kubelet::default().look(&host, deadline, Instant::now()))?;
    let found = tried("looking for the kubelet", look.found())?;
    let configuration = &look.effective(&host, deadline).configuration;
    Ok(Seen {
        pid: found.kubelet.as_ref().map(|kubelet| kubelet.pid),
        others: found.passed_over.iter().map(|passed| passed.pid).collect(),
        root_dir: tried("the kubelet's root directory", look.root_dir())?,
        cgroup_root: configuration.as_ref().map(|(one, _)| one.cgroup_root.clone()).unwrap_or_default(),
    })
}

/// The running kubelet's `cgroupRoot`; empty for the hierarchy's root, and where none runs.
pub(super) fn cgroup_root() -> Result<String> {
    Ok(tell_how_to_name(look(), "--kubepods names its cgroup")?.cgroup_root)
}

/// The directory in which pods have theirs.
pub(super) struct RootDir {
    /// As mount tables name it, without links.
    pub(super) path: PathBuf,
    /// Whose it is; `None` if it was named to us, or if no kubelet runs.
    pub(super) kubelet: Option<u32>,
    /// How it was chosen.
    pub(super) why: String,
}

impl RootDir {
    /// What `--kubelet-root-dir` names; else the running kubelet's; else, where none runs, the default.
    pub(super) fn find(named: Option<&Path>) -> Result<Self> {
        match named {
            Some(named) => Self::at(named, None, "as --kubelet-root-dir says".to_owned()),
            None => {
                let seen = tell_how_to_name(look(), BY_FLAG)?;
                let Seen { pid: Some(pid), .. } = seen else {
                    return Self::at(Path::new(DEFAULT_ROOT_DIR), None, "the default: no kubelet runs here".to_owned());
                };
                Self::of(pid, &seen)
            }
        }
    }

    /// As [`RootDir::find`]; `None` where nobody named one and no kubelet runs.
    pub(super) fn if_any(named: Option<&Path>) -> Result<Option<Self>> {
        let runs = || Ok(tell_how_to_name(look(), BY_FLAG)?.pid.is_some());
        if named.is_some() || runs()? { Self::find(named).map(Some) } else { Ok(None) }
    }

    fn at(path: &Path, kubelet: Option<u32>, why: String) -> Result<Self> {
        if !path.is_dir() {
            return refused(format_args!("{}: no such directory ({why})", path.display()));
        }
        Ok(RootDir { path: real(path)?, kubelet, why })
    }

    fn of(pid: u32, seen: &Seen) -> Result<Self> {
        let beside = match seen.others.as_slice() {
            [] => String::new(),
            others => format!("; processes {others:?} look like kubelets as well"),
        };
        let why = format!("the root directory of the kubelet, process {pid}{beside}");
        let root = Self::at(&seen.root_dir, Some(pid), why)?;
        // What we make in a directory of that name must be what the kubelet finds there.
        let number = |path: &Path| fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
        let theirs = Path::new("/proc")
            .join(pid.to_string())
            .join("root")
            .join(root.path.strip_prefix("/").unwrap_or(&root.path));
        if number(&theirs).ok() != number(&root.path).ok() {
            return refused(format_args!(
                "the kubelet, process {pid}, has another {} than this shell: run the drill among its mounts (nsenter --mount \
                 --target {pid}), or name its root directory as it is called here by --kubelet-root-dir",
                root.path.display()
            ));
        }
        Ok(root)
    }
}

fn tell_how_to_name(seen: Result<Seen>, how: &str) -> Result<Seen> {
    seen.or_else(|trouble| failed(format_args!("{}; {how}", trouble.why())))
}
