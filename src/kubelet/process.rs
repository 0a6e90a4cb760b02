//! Finding the kubelet, and whether this node runs a control plane, among all processes.
//!
//! A sweep reads the name of every process, so it is made rarely: a process that was found is only looked at again to
//! see that it is still there. Of one that has the name of a kubelet, or of a program that has one inside
//! ([`super::embedded`]), is read whose it is ([`super::identity`]), and only of this machine's own what it was told:
//! reading a command line waits for the memory lock of that process, which a stuck one holds and a hostile one can
//! hold.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::embedded::{self, Embedder, Started};
use super::identity::{self, Why};
use crate::error::{Error, Reason, Result};
use crate::host::pids::Pids;
use crate::host::{Deadline, Host};

/// How long a sweep holds, and how long while there is no kubelet: then one may be starting.
const SWEEP_HOLDS: Duration = Duration::from_secs(60);
const SWEEP_HOLDS_WITHOUT_KUBELET: Duration = Duration::from_secs(10);

/// Names of processes that only a control-plane node runs, if they are its own.
const CONTROL_PLANE: [&str; 2] = ["kube-apiserver", "etcd"];

/// More who look like a kubelet are not told of.
const MOST_PASSED_OVER: usize = 16;

/// A kubelet that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KubeletProcess {
    /// Its process.
    pub pid: u32,
    /// What follows the program's name on its command line, or what stands for that where it is inside another program.
    pub arguments: Vec<String>,
    /// Why they are not all that it was told.
    pub untold: Option<Error>,
}

/// What a look at the processes found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The kubelet; of several the one with the lowest pid whose parent is not one of them.
    pub kubelet: Option<KubeletProcess>,
    /// Who looks like this node's kubelet as well, and is not.
    pub passed_over: Vec<PassedOver>,
    /// The apiserver or etcd runs here.
    pub control_plane: bool,
}

/// A process that looks like this node's kubelet, and is not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PassedOver {
    /// Its process.
    pub pid: u32,
    /// Its name.
    pub comm: String,
    /// What speaks against it.
    pub why: Why,
}

/// Finds them, and remembers where they were.
#[derive(Debug, Default)]
pub struct Finder {
    /// Whose the kubelet is: 0 unless it is rootless.
    uid: u32,
    last: Mutex<Option<Sweep>>,
}

/// What the last sweep found.
#[derive(Clone, Debug)]
struct Sweep {
    at: Instant,
    kubelet: Option<Candidate>,
    passed_over: Vec<PassedOver>,
    control_plane: Option<Known>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    pid: u32,
    comm: String,
}

/// The kubelet as a sweep saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Candidate {
    known: Known,
    /// What another program tells its kubelet: it is read once, as that program does.
    inside: Option<KubeletProcess>,
}

impl Known {
    fn is_there(&self, pids: &Pids) -> bool {
        pids.comm(self.pid).is_ok_and(|comm| comm == self.comm)
    }
}

impl Finder {
    /// One that looks for a kubelet of this user.
    pub fn of_user(uid: u32) -> Self {
        Finder { uid, ..Finder::default() }
    }

    /// The kubelet and the control plane as they are now. Where a sweep is needed it goes over the processes listed at
    /// `since` or later.
    ///
    /// # Errors
    /// Denied in a process namespace of our own; the operating system's if processes cannot be listed or the kubelet's
    /// command line not be read; timeout if there are too many to look at before the deadline.
    pub fn find(&self, host: &Host, deadline: Deadline, since: Instant) -> Result<Found> {
        host.require_host_pid()?;
        let pids = host.pids()?;
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let sweep = match last.take() {
            Some(sweep) if sweep.holds(&pids) => sweep,
            before => {
                let sweep = Sweep::make(host, &pids, &host.pids_since(since, deadline)?, self.uid, deadline)?;
                sweep.tell(before.as_ref());
                sweep
            }
        };
        let kubelet = match &sweep.kubelet {
            None => None,
            Some(Candidate { known: Known { pid, .. }, inside }) => match pids.cmdline(*pid) {
                // A zombie: it ended and nobody has noticed yet.
                Ok(argv) if argv.is_empty() => None,
                Ok(argv) => {
                    let own = || KubeletProcess { pid: *pid, arguments: arguments(&argv).to_vec(), untold: None };
                    Some(inside.clone().unwrap_or_else(own))
                }
                // It exited between two looks; the next scrape sweeps.
                Err(error) if error.is_gone() => None,
                Err(error) => {
                    *last = Some(sweep);
                    return Err(error);
                }
            },
        };
        let control_plane = sweep.control_plane.is_some();
        let found = Found { kubelet, passed_over: sweep.passed_over.clone(), control_plane };
        *last = Some(sweep);
        Ok(found)
    }
}

impl Sweep {
    fn holds(&self, pids: &Pids) -> bool {
        let limit = if self.kubelet.is_some() { SWEEP_HOLDS } else { SWEEP_HOLDS_WITHOUT_KUBELET };
        let known = self.kubelet.iter().map(|kubelet| &kubelet.known).chain(&self.control_plane);
        self.at.elapsed() < limit && known.into_iter().all(|known| known.is_there(pids))
    }

    /// Says which kubelet counts and which do not, where that changed.
    fn tell(&self, before: Option<&Sweep>) {
        if let Some(Candidate { known: Known { pid, comm }, inside }) = &self.kubelet
            && before.is_none_or(|before| before.kubelet != self.kubelet)
        {
            tracing::info!(pid, comm, embedded = inside.is_some(), "found the kubelet");
        }
        let known = |passed: &&PassedOver| before.is_some_and(|before| before.passed_over.contains(passed));
        for PassedOver { pid, comm, why } in self.passed_over.iter().filter(|passed| !known(passed)) {
            tracing::warn!(pid, comm, %why, "passed over: it looks like this node's kubelet");
        }
    }

    fn make(host: &Host, pids: &Pids, all: &[u32], uid: u32, deadline: Deadline) -> Result<Self> {
        let mut sweep = Sweep { at: Instant::now(), kubelet: None, passed_over: Vec::new(), control_plane: None };
        let (mut named, mut embedders) = (Vec::new(), Vec::new());
        for (index, &pid) in all.iter().enumerate() {
            if index.is_multiple_of(64) && deadline.expired() {
                return Err(Error::new(
                    Reason::Timeout,
                    format!("looking for the kubelet among {} processes", all.len()),
                ));
            }
            let Ok(comm) = pids.comm(pid) else { continue };
            if comm == "kubelet" {
                named.push(Known { pid, comm });
            } else if let Some(embedder) = Embedder::of_comm(&comm) {
                embedders.push((embedder, Known { pid, comm }));
            } else if sweep.control_plane.is_none()
                && CONTROL_PLANE.contains(&comm.as_str())
                && identity::is_of_the_control_plane(pids, pid).unwrap_or(false)
            {
                sweep.control_plane = Some(Known { pid, comm });
            }
        }
        let mut candidates = Vec::new();
        for known in named {
            // Who it is first: a command line can be made to block by its process.
            // A zombie has a name and no arguments. An unreadable command line is an error to be told, later.
            if sweep.admits(pids, &known, uid) && !pids.is_zombie(known.pid) {
                candidates.push(Candidate { known, inside: None });
            }
        }
        for (embedder, known) in embedders {
            if sweep.admits(pids, &known, uid)
                && let Some(candidate) = sweep.look_inside(host, pids, embedder, known, deadline)
            {
                candidates.push(candidate);
            }
        }
        if candidates.is_empty() {
            // By another name: a script's shell, the program of many commands.
            for (index, &pid) in all.iter().enumerate() {
                if index.is_multiple_of(64) && deadline.expired() {
                    break;
                }
                if identity::against_a_kubelet(pids, pid, uid).is_ok_and(|why| why.is_none())
                    && pids.cmdline(pid).is_ok_and(|argv| is_kubelet(&argv))
                    && let Ok(comm) = pids.comm(pid)
                {
                    candidates.push(Candidate { known: Known { pid, comm }, inside: None });
                }
            }
        }
        sweep.choose(pids, candidates);
        Ok(sweep)
    }

    /// True if nothing speaks against it. What does is remembered.
    fn admits(&mut self, pids: &Pids, known: &Known, uid: u32) -> bool {
        match identity::against_a_kubelet(pids, known.pid, uid) {
            Ok(None) => true,
            Ok(Some(why)) => {
                if self.passed_over.len() < MOST_PASSED_OVER {
                    self.passed_over.push(PassedOver { pid: known.pid, comm: known.comm.clone(), why });
                }
                false
            }
            // It exited.
            Err(_) => false,
        }
    }

    fn look_inside(
        &mut self,
        host: &Host,
        pids: &Pids,
        embedder: Embedder,
        known: Known,
        deadline: Deadline,
    ) -> Option<Candidate> {
        let argv = pids.cmdline(known.pid).ok().filter(|argv| !argv.is_empty())?;
        if self.control_plane.is_none() && embedder.is_control_plane(&known.comm, &argv) {
            self.control_plane = Some(known.clone());
        }
        let (environ, untold) = match pids.environ(known.pid) {
            Ok(environ) => (environ, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        let tree = host.tree();
        let told = host.bounded("what tells an embedded kubelet", deadline, move || {
            embedded::arguments(embedder, Started { argv: &argv, environ: &environ }, &tree)
        });
        let pid = known.pid;
        let inside = match told {
            Ok(None) => return None,
            Ok(Some(arguments)) => KubeletProcess { pid, arguments, untold },
            Err(error) => KubeletProcess { pid, arguments: Vec::new(), untold: Some(error) },
        };
        Some(Candidate { known, inside: Some(inside) })
    }

    /// The one with the lowest pid that is nobody's child of them.
    fn choose(&mut self, pids: &Pids, mut candidates: Vec<Candidate>) {
        candidates.sort_by_key(|candidate| candidate.known.pid);
        let all: Vec<u32> = candidates.iter().map(|candidate| candidate.known.pid).collect();
        candidates.retain(|candidate| !pids.parent(candidate.known.pid).is_ok_and(|parent| all.contains(&parent)));
        let mut candidates = candidates.into_iter();
        self.kubelet = candidates.next();
        let Some(first) = self.kubelet.as_ref().map(|first| first.known.pid) else { return };
        let others = candidates.map(|Candidate { known: Known { pid, comm }, .. }| PassedOver {
            pid,
            comm,
            why: Why::Another(first),
        });
        self.passed_over.extend(others.take(MOST_PASSED_OVER));
    }
}

/// True if this is a kubelet's command line: the program itself, `hyperkube kubelet`, or a shell that runs a script of
/// that name.
pub fn is_kubelet(argv: &[String]) -> bool {
    program(argv).is_some_and(|index| base_name(&argv[index]) == "kubelet")
}

/// The arguments of the program, without those of a shell or of hyperkube before it.
pub fn arguments(argv: &[String]) -> &[String] {
    program(argv).and_then(|index| argv.get(index + 1..)).unwrap_or(&[])
}

/// Where the name of the program that really runs is on a command line.
fn program(argv: &[String]) -> Option<usize> {
    let first = base_name(argv.first()?);
    let second = argv.get(1).map(|argument| base_name(argument));
    match first {
        "hyperkube" if second == Some("kubelet") => Some(1),
        "sh" | "bash" | "dash" | "ash" | "ksh" | "zsh" | "busybox" => {
            // `-c` and what follows is a text, not a script. Without a script the shell itself is the program.
            let operand = argv.iter().skip(1).position(|argument| !argument.starts_with('-')).map(|index| index + 1);
            let index = operand.filter(|&index| !argv[1..index].iter().any(|argument| argument == "-c"));
            Some(index.filter(|&index| base_name(&argv[index]) == "kubelet").unwrap_or(0))
        }
        _ => Some(0),
    }
}

fn base_name(path: &str) -> &str {
    Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Roots;

    fn argv(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn command_lines_of_kubelets() {
        for line in [
            "/usr/bin/kubelet --config=/x",
            "kubelet",
            "/bin/sh /usr/bin/kubelet --config=/x",
            "bash -x ./kubelet --config=/x",
            "/hyperkube kubelet --config=/x",
            "hyperkube /usr/local/bin/kubelet",
        ] {
            assert!(is_kubelet(&argv(line)), "{line}");
        }
        for line in
            ["", "vim kubelet", "sh -c kubelet", "hyperkube apiserver", "kubelet-wrapper", "/opt/kubelet/run", "sh"]
        {
            assert!(!is_kubelet(&argv(line)), "{line}");
        }
        assert!(!is_kubelet(&[]));
        assert_eq!(arguments(&argv("/bin/sh /usr/bin/kubelet --a --b")), ["--a", "--b"]);
        assert_eq!(arguments(&argv("/hyperkube kubelet --a")), ["--a"]);
        assert_eq!(arguments(&argv("kubelet --a")), ["--a"]);
        assert!(arguments(&argv("kubelet")).is_empty());
    }

    /// A procfs of these processes: pid, parent, name, arguments.
    fn procfs(processes: &[(u32, u32, &str, &str)]) -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        for &(pid, parent, comm, line) in processes {
            let at = dir.path().join(pid.to_string());
            std::fs::create_dir(&at).unwrap();
            std::fs::write(at.join("comm"), format!("{comm}\n")).unwrap();
            std::fs::write(at.join("stat"), format!("{pid} ({comm}) S {parent} 1 1")).unwrap();
            let line = if line.is_empty() { String::new() } else { line.replace(' ', "\0") + "\0" };
            std::fs::write(at.join("cmdline"), line).unwrap();
        }
        let host = Host::new(Roots { proc: dir.path().into(), ..Roots::default() });
        (dir, host)
    }

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(5))
    }

    #[test]
    fn of_several_the_oldest_that_is_nobodys_child() {
        let (_dir, host) = procfs(&[
            (1, 0, "systemd", "/sbin/init"),
            (40, 41, "kubelet", "/usr/bin/kubelet --child"),
            (41, 1, "kubelet", "/usr/bin/kubelet --config=/a"),
            (90, 80, "kubelet", "/usr/bin/kubelet --in-a-container"),
            (30, 1, "kubelet", ""),
        ]);
        let found = Finder::default().find(&host, soon(), Instant::now()).unwrap();
        assert_eq!(
            found.kubelet,
            Some(KubeletProcess { pid: 41, arguments: vec!["--config=/a".into()], untold: None })
        );
        assert_eq!(found.passed_over, [PassedOver { pid: 90, comm: "kubelet".into(), why: Why::Another(41) }]);
        assert!(!found.control_plane);
    }

    #[test]
    fn by_its_arguments_only_if_none_has_the_name() {
        let (_dir, host) = procfs(&[(5, 1, "sleep", "kubelet 60"), (7, 1, "kubelet", "/usr/bin/kubelet")]);
        assert_eq!(Finder::default().find(&host, soon(), Instant::now()).unwrap().kubelet.unwrap().pid, 7);
        let (_dir, host) = procfs(&[(5, 1, "hyperkube", "/hyperkube kubelet --v=2"), (7, 1, "vim", "vim kubelet")]);
        let kubelet = Finder::default().find(&host, soon(), Instant::now()).unwrap().kubelet.unwrap();
        assert_eq!((kubelet.pid, kubelet.arguments), (5, vec!["--v=2".to_owned()]));
    }

    #[test]
    fn the_control_plane() {
        for (comm, line, is) in [
            ("kube-apiserver", "kube-apiserver", true),
            ("etcd", "etcd", true),
            ("k3s-server", "/usr/local/bin/k3s server", true),
            ("k3s-agent", "/usr/local/bin/k3s agent", false),
            ("kubelite", "/snap/microk8s/1/kubelite --start-control-plane=true", true),
            ("kubelite", "/snap/microk8s/1/kubelite --start-control-plane=false", false),
            ("microshift", "microshift run", true),
            ("kube-scheduler", "kube-scheduler", false),
        ] {
            let (_dir, host) = procfs(&[(5, 1, comm, line)]);
            assert_eq!(Finder::default().find(&host, soon(), Instant::now()).unwrap().control_plane, is, "{line}");
        }
    }

    /// Whatever its pid: a pod's processes may be older than the kubelet that was restarted.
    #[test]
    fn who_is_in_a_pod_or_a_container_is_not_the_nodes() {
        let (dir, host) = procfs(&[
            (20, 1, "kubelet", "kubelet --config=/of-a-pod"),
            (21, 1, "kubelet", "kubelet --config=/of-a-container"),
            (22, 1, "k3s-server", "k3s server"),
            (23, 1, "etcd", "etcd"),
            (24, 1, "sh", "sh /usr/bin/kubelet"),
            (41, 1, "kubelet", "kubelet --config=/own"),
        ]);
        let stand = |pid: u32, pids: &str, cgroup: &str| {
            let status = format!("Name:\tx\nUid:\t0\t0\t0\t0\nNSpid:\t{pids}\nNSpgid:\t1\n");
            std::fs::write(dir.path().join(format!("{pid}/status")), status).unwrap();
            std::fs::write(dir.path().join(format!("{pid}/cgroup")), format!("0::{cgroup}\n")).unwrap();
        };
        let pod = "/kubepods/besteffort/pod11111111-2222-3333-4444-555555555555/x";
        for pid in [20, 22, 23, 24] {
            stand(pid, &pid.to_string(), pod);
        }
        stand(21, "21\t1", "/docker/x");
        stand(41, "41", "/system.slice/kubelet.service");
        let find = || Finder::default().find(&host, soon(), Instant::now()).unwrap();
        let found = find();
        assert_eq!(found.kubelet.unwrap().arguments, ["--config=/own"]);
        assert_eq!(found.passed_over.iter().map(|passed| passed.pid).collect::<Vec<_>>(), [20, 21, 22]);
        assert!(!found.control_plane);
        // The node's own stops: nobody takes its place.
        std::fs::remove_dir_all(dir.path().join("41")).unwrap();
        assert_eq!(find().kubelet, None);
    }

    #[test]
    fn what_was_found_is_only_looked_at_again() {
        let (dir, host) = procfs(&[(41, 1, "kubelet", "/usr/bin/kubelet --a")]);
        let finder = Finder::default();
        assert_eq!(finder.find(&host, soon(), Instant::now()).unwrap().kubelet.unwrap().pid, 41);
        // One that comes later is not seen while the first is there: no new sweep was made.
        let twin = |pid: u32| {
            let at = dir.path().join(pid.to_string());
            std::fs::create_dir(&at).unwrap();
            std::fs::write(at.join("comm"), "kubelet\n").unwrap();
            std::fs::write(at.join("stat"), format!("{pid} (kubelet) S 1 1 1")).unwrap();
            std::fs::write(at.join("cmdline"), "kubelet\0--b\0").unwrap();
        };
        twin(12);
        assert_eq!(finder.find(&host, soon(), Instant::now()).unwrap().kubelet.unwrap().pid, 41);
        // The first is gone, and another program got its pid.
        std::fs::write(dir.path().join("41/comm"), "bash\n").unwrap();
        let found = finder.find(&host, soon(), Instant::now()).unwrap();
        assert_eq!(found.kubelet, Some(KubeletProcess { pid: 12, arguments: vec!["--b".into()], untold: None }));
    }

    #[test]
    fn no_process_at_all() {
        let (_dir, host) = procfs(&[]);
        assert_eq!(Finder::default().find(&host, soon(), Instant::now()).unwrap(), Found::default());
        let host = Host::new(Roots { proc: "/nonexistent".into(), ..Roots::default() });
        assert_eq!(Finder::default().find(&host, soon(), Instant::now()).unwrap_err().reason(), Reason::Absent);
    }

    #[test]
    fn too_many_processes_for_the_time_left() {
        let (_dir, host) = procfs(&[(5, 1, "kubelet", "kubelet")]);
        let error = Finder::default().find(&host, Deadline::after(Duration::ZERO), Instant::now()).unwrap_err();
        assert_eq!(error.reason(), Reason::Timeout);
    }
}
