//! Finding the kubelet, and whether this node runs a control plane, among all processes.
//!
//! A sweep reads the name of every process, so it is made rarely: a process that was found is only looked at again to
//! see that it is still there. The rest of `/proc/PID/cmdline` is read only where no process has the kubelet's name,
//! because reading it waits for the memory lock of that process, which a stuck one may hold.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Reason, Result};
use crate::host::pids::Pids;
use crate::host::{Deadline, Host};

/// How long a sweep holds, and how long while there is no kubelet: then one may be starting.
const SWEEP_HOLDS: Duration = Duration::from_secs(60);
const SWEEP_HOLDS_WITHOUT_KUBELET: Duration = Duration::from_secs(10);

/// Names of processes that only a control-plane node runs. k3s runs the apiserver inside itself.
const CONTROL_PLANE: [&str; 3] = ["kube-apiserver", "etcd", "k3s-server"];

/// A kubelet that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeletProcess {
    /// Its process.
    pub pid: u32,
    /// What follows the program's name on its command line.
    pub arguments: Vec<String>,
}

/// What a look at the processes found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The kubelet; of several the one with the lowest pid whose parent is not one of them.
    pub kubelet: Option<KubeletProcess>,
    /// Processes that look like kubelets as well (Kubernetes in containers on this machine).
    pub others: Vec<u32>,
    /// The apiserver or etcd runs here.
    pub control_plane: bool,
}

/// Finds them, and remembers where they were.
#[derive(Debug, Default)]
pub struct Finder {
    last: Mutex<Option<Sweep>>,
}

/// What the last sweep found.
#[derive(Clone, Debug)]
struct Sweep {
    at: Instant,
    kubelet: Option<Known>,
    others: Vec<u32>,
    control_plane: Option<Known>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    pid: u32,
    comm: String,
}

impl Known {
    fn is_there(&self, pids: &Pids) -> bool {
        pids.comm(self.pid).is_ok_and(|comm| comm == self.comm)
    }
}

impl Finder {
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
                let sweep = Sweep::make(&pids, &host.pids_since(since, deadline)?, deadline)?;
                sweep.tell(before.and_then(|sweep| sweep.kubelet));
                sweep
            }
        };
        let kubelet = match &sweep.kubelet {
            Some(known) => match pids.cmdline(known.pid) {
                // A zombie: it ended and nobody has noticed yet.
                Ok(argv) if argv.is_empty() => None,
                Ok(argv) => Some(KubeletProcess { pid: known.pid, arguments: arguments(&argv).to_vec() }),
                // It exited between two looks; the next scrape sweeps.
                Err(error) if error.is_gone() => None,
                Err(error) => {
                    *last = Some(sweep);
                    return Err(error);
                }
            },
            None => None,
        };
        let found = Found { kubelet, others: sweep.others.clone(), control_plane: sweep.control_plane.is_some() };
        *last = Some(sweep);
        Ok(found)
    }
}

impl Sweep {
    fn holds(&self, pids: &Pids) -> bool {
        let limit = if self.kubelet.is_some() { SWEEP_HOLDS } else { SWEEP_HOLDS_WITHOUT_KUBELET };
        self.at.elapsed() < limit && self.kubelet.iter().chain(&self.control_plane).all(|known| known.is_there(pids))
    }

    /// Says which kubelet counts, where that changed: there may be several.
    fn tell(&self, before: Option<Known>) {
        if let Some(Known { pid, comm }) = self.kubelet.as_ref().filter(|&known| before.as_ref() != Some(known)) {
            tracing::info!(pid, comm, others = ?self.others, "found the kubelet");
        }
    }

    fn make(pids: &Pids, all: &[u32], deadline: Deadline) -> Result<Self> {
        let mut named = Vec::new();
        let mut control_plane = None;
        let look = |index: usize| {
            if index.is_multiple_of(64) && deadline.expired() {
                return Err(Error::new(
                    Reason::Timeout,
                    format!("looking for the kubelet among {} processes", all.len()),
                ));
            }
            Ok(all[index])
        };
        for index in 0..all.len() {
            let pid = look(index)?;
            let Ok(comm) = pids.comm(pid) else { continue };
            if comm == "kubelet" {
                named.push(Known { pid, comm });
            } else if control_plane.is_none() && CONTROL_PLANE.contains(&comm.as_str()) {
                control_plane = Some(Known { pid, comm });
            }
        }
        // A zombie has a name and no arguments. An unreadable command line is an error to be told, later.
        named.retain(|known| !pids.cmdline(known.pid).is_ok_and(|argv| argv.is_empty()));
        if named.is_empty() {
            for index in 0..all.len() {
                let pid = look(index)?;
                if pids.cmdline(pid).is_ok_and(|argv| is_kubelet(&argv))
                    && let Ok(comm) = pids.comm(pid)
                {
                    named.push(Known { pid, comm });
                }
            }
        }
        let candidates: Vec<u32> = named.iter().map(|known| known.pid).collect();
        let is_child = |known: &Known| pids.parent(known.pid).is_ok_and(|parent| candidates.contains(&parent));
        let parents: Vec<Known> = named.into_iter().filter(|known| !is_child(known)).collect();
        let others = parents.iter().skip(1).map(|known| known.pid).collect::<Vec<_>>();
        let kubelet = parents.into_iter().next();
        Ok(Sweep { at: Instant::now(), kubelet, others, control_plane })
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
        assert_eq!(found.kubelet, Some(KubeletProcess { pid: 41, arguments: vec!["--config=/a".into()] }));
        assert_eq!(found.others, [90]);
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
        for comm in CONTROL_PLANE {
            let (_dir, host) = procfs(&[(5, 1, comm, comm)]);
            assert!(Finder::default().find(&host, soon(), Instant::now()).unwrap().control_plane, "{comm}");
        }
        let (_dir, host) = procfs(&[(5, 1, "kube-scheduler", "kube-scheduler")]);
        assert!(!Finder::default().find(&host, soon(), Instant::now()).unwrap().control_plane);
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
        assert_eq!(found.kubelet, Some(KubeletProcess { pid: 12, arguments: vec!["--b".into()] }));
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
