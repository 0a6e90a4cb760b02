//! Whose processes a procfs shows: the machine's, or those of our own container.
//!
//! Every sum over a container's own processes would be true of the container and be taken for the node's. There is no
//! flag to ask; what tells is, in this order:
//!
//! - Process 2 is `kthreadd`: it is so in the machine's process namespace and in no other.
//! - `/proc/self/ns/pid` is the first process namespace, whose inode is fixed (`PROC_PID_INIT_INO`, since Linux 3.8):
//!   for a machine that hides its kernel threads.
//! - We are process 1: a container of our own.
//! - In a pod, process 1 is in our own cgroup or one beside it: an init of our container, or the pause container of a
//!   shared process namespace. With hostPID it is the `init` of the machine, and far from the pods. (A Kubernetes node
//!   in a container, as of kind, is a machine with a process namespace that is not the first.)
//!
//! Whatever else there is counts as a machine: what sandboxes (gVisor) or containers show that are used as machines.

use std::path::Path;

use rustix::io::Errno;

use super::Host;
use crate::error::{Error, Reason, Result};

/// The first process namespace as `/proc/self/ns/pid` names it (`include/linux/proc_ns.h`).
const FIRST_NAMESPACE: &[u8] = b"pid:[4026531836]";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProcfsScope {
    Machine,
    /// A procfs mounted for a process namespace that we are not in.
    Elsewhere,
    /// `hidepid`
    Hidden,
    OurContainer,
}

impl Host {
    /// Fails if the procfs can only have processes of our own container, or hides those of others.
    ///
    /// # Errors
    /// Denied.
    pub fn require_host_pid(&self) -> Result<()> {
        let what = match self.view(self.in_a_pod) {
            ProcfsScope::Machine | ProcfsScope::Elsewhere => return Ok(()),
            ProcfsScope::OurContainer => {
                "shows only the processes of this exporter's own container or pod: it needs hostPID: true"
            }
            ProcfsScope::Hidden => "other users' processes are hidden (hidepid): give the exporter CAP_SYS_PTRACE",
        };
        Err(Error::new(Reason::Denied, format!("{}: {what}", self.proc("").display())))
    }

    /// Fails if the kernel leaves out processes of others where it names them to *us*, whatever procfs is mounted:
    /// `cgroup.procs` of v1 is as empty for processes of another namespace as if there were none.
    ///
    /// # Errors
    /// Denied.
    pub fn is_told_of_the_machines_processes(&self) -> Result<()> {
        match self.view(self.in_a_pod) {
            // cgroupfs knows no hidepid.
            ProcfsScope::Machine | ProcfsScope::Hidden => Ok(()),
            ProcfsScope::OurContainer | ProcfsScope::Elsewhere => Err(Error::new(
                Reason::Denied,
                "cgroup.procs (v1) names no process outside this exporter's pid namespace: it needs hostPID: true",
            )),
        }
    }

    fn view(&self, in_a_pod: bool) -> ProcfsScope {
        let link = |name: &str| rustix::fs::readlink(self.proc(name), Vec::new()).map(std::ffi::CString::into_bytes);
        let Ok(me) = link("self") else {
            // Or recorded files.
            let procfs = rustix::fs::statfs(&self.roots().proc)
                .is_ok_and(|statfs| statfs.f_type == rustix::fs::PROC_SUPER_MAGIC);
            return if procfs { ProcfsScope::Elsewhere } else { ProcfsScope::Machine };
        };
        if self.read(self.proc("2/comm")).is_ok_and(|comm| comm.trim_end() == "kthreadd") {
            return ProcfsScope::Machine;
        }
        let first = link("self/ns/pid").is_ok_and(|namespace| namespace == FIRST_NAMESPACE);
        if !first && me == b"1" {
            return ProcfsScope::OurContainer;
        }
        // There always is a first process.
        if rustix::fs::lstat(self.proc("1")).is_err_and(|errno| errno == Errno::NOENT) {
            return ProcfsScope::Hidden;
        }
        let cgroups = |pid: &str| self.read(self.proc(format!("{pid}/cgroup")));
        match (cgroups("self"), cgroups("1")) {
            (Ok(ours), Ok(theirs)) if !first && in_a_pod && of_one_pod(&ours, &theirs) => ProcfsScope::OurContainer,
            _ => ProcfsScope::Machine,
        }
    }
}

/// True if the second `/proc/PID/cgroup` is that of the same container as the first, or of one beside it.
fn of_one_pod(ours: &str, theirs: &str) -> bool {
    let rows = |text: &str| -> Vec<(String, String)> {
        let parts = text.lines().filter_map(|line| {
            let mut parts = line.splitn(3, ':');
            Some((parts.next()?.to_owned(), parts.nth(1)?.to_owned()))
        });
        parts.collect()
    };
    let theirs = rows(theirs);
    let pairs: Vec<_> = rows(ours)
        .into_iter()
        .filter_map(|(hierarchy, ours)| {
            let (_, theirs) = theirs.iter().find(|(other, _)| *other == hierarchy)?;
            Some((ours, theirs.clone()))
        })
        .collect();
    !pairs.is_empty() && pairs.iter().all(|(ours, theirs)| is_beside(Path::new(ours), Path::new(theirs)))
}

/// In a cgroup namespace of ours we are at `/`, and what is beside us at `/../NAME`.
fn is_beside(ours: &Path, theirs: &Path) -> bool {
    let above = Path::new("/..");
    ours == theirs
        || (ours.parent().is_some() && ours.parent() == theirs.parent())
        || (ours == Path::new("/") && theirs.parent() == Some(above) && !theirs.ends_with(".."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Roots;

    /// A procfs: where `self` leads, and files.
    fn view(me: &str, files: &[(&str, &str)], in_a_pod: bool) -> ProcfsScope {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [&[(&*format!("{me}/stat"), "")], files].concat() {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            match name.ends_with("ns/pid") {
                true => std::os::unix::fs::symlink(text, path).unwrap(),
                false => std::fs::write(path, text).unwrap(),
            }
        }
        std::os::unix::fs::symlink(me, dir.path().join("self")).unwrap();
        Host::new(Roots { proc: dir.path().into(), ..Roots::default() }).view(in_a_pod)
    }

    const FIRST: (&str, &str) = ("77/ns/pid", "pid:[4026531836]");
    const OTHER: (&str, &str) = ("77/ns/pid", "pid:[4026532577]");
    const INIT: (&str, &str) = ("1/comm", "systemd\n");
    const KTHREADD: (&str, &str) = ("2/comm", "kthreadd\n");

    #[test]
    fn the_machine() {
        assert_eq!(view("77", &[INIT, KTHREADD, FIRST], true), ProcfsScope::Machine, "a pod with hostPID");
        assert_eq!(
            view("77", &[INIT, KTHREADD, OTHER], true),
            ProcfsScope::Machine,
            "its procfs, mounted in a container"
        );
        assert_eq!(view("77", &[INIT, FIRST], false), ProcfsScope::Machine, "kernel threads are hidden");
        assert_eq!(
            view("77", &[INIT, ("2/comm", "bash\n"), OTHER], false),
            ProcfsScope::Machine,
            "a container is the machine"
        );
        assert_eq!(view("77", &[INIT], false), ProcfsScope::Machine, "a sandbox without namespaces to be seen");
        assert_eq!(view("1", &[("1/ns/pid", "pid:[4026531836]")], false), ProcfsScope::Machine, "we are its init");
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(Roots { proc: dir.path().into(), ..Roots::default() });
        assert_eq!(host.view(true), ProcfsScope::Machine, "recorded files");
    }

    #[test]
    fn a_container_of_our_own() {
        assert_eq!(view("1", &[], false), ProcfsScope::OurContainer);
        let pod = |ours: &'static str, theirs: &'static str, in_a_pod| {
            view("77", &[INIT, OTHER, ("77/cgroup", ours), ("1/cgroup", theirs)], in_a_pod)
        };
        let v1 = "4:memory:/kubepods/burstable/podA/c1\n1:name=systemd:/kubepods/burstable/podA/c1\n0::/\n";
        let pause = "4:memory:/kubepods/burstable/podA/p0\n1:name=systemd:/kubepods/burstable/podA/p0\n0::/\n";
        let systemd = "4:memory:/\n1:name=systemd:/init.scope\n0::/\n";
        assert_eq!(pod(v1, v1, true), ProcfsScope::OurContainer, "an init of the container");
        assert_eq!(pod(v1, pause, true), ProcfsScope::OurContainer, "shareProcessNamespace");
        assert_eq!(pod(v1, systemd, true), ProcfsScope::Machine, "hostPID in a node that is a container");
        assert_eq!(pod("0::/\n", "0::/\n", true), ProcfsScope::OurContainer);
        assert_eq!(pod("0::/\n", "0::/../cri-containerd-1.scope\n", true), ProcfsScope::OurContainer);
        assert_eq!(pod("0::/\n", "0::/../../../../init.scope\n", true), ProcfsScope::Machine);
        assert_eq!(pod("0::/\n", "0::/../..\n", true), ProcfsScope::Machine);
        assert_eq!(pod("0::/a.service\n", "0::/init.scope\n", false), ProcfsScope::Machine, "a service of a container");
        assert_eq!(pod("", "", true), ProcfsScope::Machine, "nothing is known");
    }

    #[test]
    fn hidden_processes() {
        assert_eq!(view("77", &[FIRST], false), ProcfsScope::Hidden);
        assert_eq!(view("77", &[OTHER], true), ProcfsScope::Hidden);
        assert_eq!(view("77", &[FIRST, KTHREADD], true), ProcfsScope::Machine, "what we may look at all the same");
    }

    #[test]
    fn here() {
        // Whatever this runs in, no machine or container of its tests is a pod of ours.
        let host = Host::new(Roots::default());
        assert!(matches!(host.view(false), ProcfsScope::Machine | ProcfsScope::OurContainer | ProcfsScope::Hidden));
        let first = std::fs::read_link("/proc/self/ns/pid").unwrap() == Path::new("pid:[4026531836]");
        if first {
            assert_eq!(host.view(true), ProcfsScope::Machine);
        }
    }

    #[test]
    fn what_each_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(Roots { proc: dir.path().into(), ..Roots::default() });
        let is = |link: &str| {
            let _ = std::fs::remove_file(dir.path().join("self"));
            std::os::unix::fs::symlink(link, dir.path().join("self")).unwrap();
            let reason = |result: Result<()>| result.map_err(|error| error.reason());
            (reason(host.require_host_pid()), reason(host.is_told_of_the_machines_processes()))
        };
        assert_eq!(is("77"), (Err(Reason::Denied), Ok(())), "hidden, and a cgroup names them all the same");
        std::fs::create_dir(dir.path().join("1")).unwrap();
        assert_eq!(is("77"), (Ok(()), Ok(())));
        assert_eq!(is("1"), (Err(Reason::Denied), Err(Reason::Denied)));
    }
}
