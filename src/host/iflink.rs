//! What the interfaces inside a container sit on, where that can be found out without entering its network namespace.
//!
//! A container mostly has a sysfs of its own network namespace at `/sys`. There `class/net/NAME/iflink` is the number
//! of the interface below (of a macvlan: its parent) or, for a veth, of its other end, as the namespace *that* one is
//! in counts. A container that has no such mount, and one of a recorded machine, has nothing to tell.
//!
//! To look takes `CAP_SYS_PTRACE`. The path leads through a file system that the container has made: it is resolved
//! below its root, nothing on it is opened before it is proven to be a sysfs, and all of it is done on a thread of its
//! own.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Dir, Mode, OFlags};

use super::{Deadline, Host, read};
use crate::error::{Error, Result};

/// `SYSFS_MAGIC` of `include/uapi/linux/magic.h`.
const SYSFS: i64 = 0x6265_6572;
/// Interfaces that are looked at in one container.
const MOST_INTERFACES: usize = 32;

/// An interface that sits on another one, or has another end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkPeer {
    /// Its number in its own namespace.
    pub index: u32,
    /// The number of the other one, in the namespace that that one is in.
    pub lower: u32,
    /// `vlan`, `ipvlan`, …; nothing for many kinds, macvlan and veth among them.
    pub devtype: Option<String>,
}

impl Host {
    /// The interfaces with one below them (or another end), as each of these processes sees them in its `/sys`: in
    /// their order, one answer each. Those that were not reached before the deadline have no answer.
    ///
    /// # Errors
    /// `timeout` if it hangs, `busy` while an earlier call does. Of each process: denied without `CAP_SYS_PTRACE`, gone
    /// if it exited.
    pub fn iflinks(&self, pids: Vec<u32>, deadline: Deadline) -> Result<Vec<Result<Vec<LinkPeer>>>> {
        let roots: Vec<PathBuf> = pids.into_iter().map(|pid| self.proc(format!("{pid}/root"))).collect();
        self.network.run("sysfs of containers", deadline, move || {
            Ok(roots.iter().take_while(|_| !deadline.expired()).map(of_root).collect())
        })
    }
}

fn of_root(root: &PathBuf) -> Result<Vec<LinkPeer>> {
    let os = |error: std::io::Error| Error::os(root.display(), &error);
    let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // By itself, so that a root that we may not enter is not taken for one without a sysfs.
    rustix::fs::open(root, path, Mode::empty()).map_err(|errno| os(errno.into()))?;
    let Ok(class) = read::open_in_root(root, "sys/class/net".as_ref(), path) else { return Ok(Vec::new()) };
    if !rustix::fs::fstatfs(&class).is_ok_and(|fs| i128::from(fs.f_type) == i128::from(SYSFS)) {
        return Ok(Vec::new());
    }
    let list = rustix::fs::openat(&class, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let entries = list.and_then(Dir::new).map_err(|errno| os(errno.into()))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_owned());
    let names = names.filter(|name| !name.to_bytes().starts_with(b".") && name.to_bytes() != b"lo");
    Ok(names.take(MOST_INTERFACES).filter_map(|name| of_interface(&class, name.to_bytes())).collect())
}

/// `None` for one that stands alone, or went away.
fn of_interface(class: &OwnedFd, name: &[u8]) -> Option<LinkPeer> {
    let file = |file: &str| small([name, b"/", file.as_bytes()].concat(), class);
    stacked(&file("ifindex")?, &file("iflink")?, &file("uevent").unwrap_or_default())
}

fn small(path: Vec<u8>, class: impl AsFd) -> Option<String> {
    let fd = rustix::fs::openat(class, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut buffer = [0; 1024];
    let length = rustix::io::read(&fd, &mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn stacked(ifindex: &str, iflink: &str, uevent: &str) -> Option<LinkPeer> {
    let (index, lower) = (ifindex.trim().parse().ok()?, iflink.trim().parse().ok()?);
    let devtype = uevent.lines().find_map(|line| line.strip_prefix("DEVTYPE=")).map(str::to_owned);
    // One that stands alone says its own number, some tunnels 0. A macvlan may by chance have its parent's number; that
    // is as good as unknown.
    (lower != index && lower != 0).then_some(LinkPeer { index, lower, devtype })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Roots;
    use std::time::Duration;

    #[test]
    fn files_of_an_interface() {
        let vlan = stacked("7\n", "4\n", "DEVTYPE=vlan\nINTERFACE=eth0.3\nIFINDEX=7\n");
        assert_eq!(vlan, Some(LinkPeer { index: 7, lower: 4, devtype: Some("vlan".into()) }));
        let macvlan = stacked("10\n", "9\n", "INTERFACE=eth0\nIFINDEX=10\n");
        assert_eq!(macvlan, Some(LinkPeer { index: 10, lower: 9, devtype: None }));
        assert_eq!(stacked("2\n", "2\n", ""), None);
        assert_eq!(stacked("2\n", "0\n", "INTERFACE=tunl0\n"), None);
        assert_eq!(stacked("x", "1", ""), None);
    }

    #[test]
    fn only_a_sysfs_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        let fake = dir.path().join("7/root/sys/class/net/eth0");
        std::fs::create_dir_all(&fake).unwrap();
        std::fs::write(fake.join("ifindex"), "2\n").unwrap();
        std::fs::write(fake.join("iflink"), "1\n").unwrap();
        std::fs::create_dir_all(dir.path().join("8/root")).unwrap();
        let host = Host::new(Roots { proc: dir.path().into(), ..Roots::default() });
        let answers = host.iflinks(vec![7, 8, 9], Deadline::after(Duration::from_secs(10))).unwrap();
        assert_eq!(answers[..2], [Ok(vec![]), Ok(vec![])]);
        assert!(answers[2].as_ref().unwrap_err().is_gone());
    }
}
