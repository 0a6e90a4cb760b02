//! What the interfaces inside a container sit on, where that can be found out without entering its network namespace.
//!
//! A container mostly has a sysfs of its own network namespace at `/sys`. There `class/net/NAME/iflink` is the number
//! of the interface below (of a macvlan: its parent) or, for a veth, of its other end, as the namespace *that* one is
//! in counts. A container that has no such mount, and one of a recorded machine, has nothing to tell.
//!
//! To look takes `CAP_SYS_PTRACE`. The path leads through a file system that the container has made: it is resolved
//! below its root, nothing on it is opened before it is proven to be a sysfs, nothing that was mounted over a part of
//! it is opened at all, and each container is looked at on a thread that only it can hold up.
//!
//! **What it proves.** That an interface here sits on nothing *here*: the kernel gives it a link `lower_NAME` to what
//! it sits on in its own namespace, and those are left out. Not in which namespace the other one is. A pod with
//! namespaces of its own (Docker in Docker) has veth pairs and VLANs whose numbers mean nothing to the machine, and can
//! have any number. So what is told here is a claim, for whoever can hold it against the machine's own interfaces.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Dir, Mode, OFlags};

use super::links::{Mac, mac};
use super::{CallBudget, Deadline, Host, read};
use crate::error::{Error, Reason, Result};

/// `SYSFS_MAGIC` of `include/uapi/linux/magic.h`.
const SYSFS: i64 = 0x6265_6572;
/// Interfaces that are looked at in one container.
const MOST_INTERFACES: usize = 32;

/// An interface that sits on another one in another namespace, or has its other end there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkPeer {
    /// Its number in its own namespace.
    pub index: u32,
    /// The number of the other one, in the namespace that that one is in.
    pub lower: u32,
    /// Its hardware address.
    pub address: Option<Mac>,
    /// `vlan`, `ipvlan`, …; nothing for many kinds, macvlan and veth among them.
    pub devtype: Option<String>,
}

impl Host {
    /// The interfaces with one below them (or another end) in another namespace, as each of these processes sees them
    /// in its `/sys`: one answer each. One that keeps us waiting costs a thread, once, and its own answer.
    ///
    /// # Errors
    /// Of each process: denied without `CAP_SYS_PTRACE`, absent if it exited, vanished if its `/sys` is the machine's;
    /// `timeout` if it hangs, `busy` while it does.
    pub fn iflinks(&self, pids: &[u32], deadline: Deadline) -> Vec<Result<Vec<LinkPeer>>> {
        // Each network namespace has sysfs mounts of its own, each of which is a device.
        let machines = rustix::fs::stat(self.sys("class/net")).ok().map(|stat| stat.st_dev);
        let roots =
            pids.iter().map(|pid| (format!("sysfs of process {pid}"), (self.proc(format!("{pid}/root")), machines)));
        self.containers.run_each(roots.collect(), &mut CallBudget::new(deadline), of_root)
    }
}

fn of_root((root, machines): (PathBuf, Option<u64>)) -> Result<Vec<LinkPeer>> {
    let os = |error: std::io::Error| Error::os(root.display(), &error);
    let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // By itself, so that a root that we may not enter is not taken for one without a sysfs.
    rustix::fs::open(&root, path, Mode::empty()).map_err(|errno| os(errno.into()))?;
    let Ok(class) = read::open_in_root(&root, "sys/class/net".as_ref(), path) else { return Ok(Vec::new()) };
    if !rustix::fs::fstatfs(&class).is_ok_and(|fs| i128::from(fs.f_type) == i128::from(SYSFS)) {
        return Ok(Vec::new());
    }
    // The container's first process is still the runtime's, with the machine's root: what is there is not the pod's.
    // Some pods have the machine's /sys for good.
    if machines.is_some() && rustix::fs::fstat(&class).ok().map(|stat| stat.st_dev) == machines {
        return Err(Error::new(Reason::Vanished, format!("{}: its /sys is the machine's", root.display())));
    }
    Ok(of_class(&class))
}

/// Of a `class/net`.
fn of_class(class: &OwnedFd) -> Vec<LinkPeer> {
    let names = names(class, b".").unwrap_or_default().into_iter();
    let names = names.filter(|name| !name.starts_with(b".") && name != b"lo");
    names.take(MOST_INTERFACES).filter_map(|name| of_interface(class, &name)).collect()
}

/// The names in a directory of the same sysfs.
fn names(class: &OwnedFd, path: &[u8]) -> Option<Vec<Vec<u8>>> {
    let fd = read::open_beside(class.as_fd(), path, OFlags::RDONLY | OFlags::DIRECTORY).ok()?;
    Some(Dir::new(fd).ok()?.flatten().map(|entry| entry.file_name().to_bytes().to_owned()).collect())
}

/// `None` for one that stands alone or sits on another one here, or went away.
fn of_interface(class: &OwnedFd, name: &[u8]) -> Option<LinkPeer> {
    let file = |file: &str| read::small_beside(class.as_fd(), &[name, b"/", file.as_bytes()].concat());
    let (index, lower) = stacked(&file("ifindex")?, &file("iflink")?)?;
    if names(class, name)?.iter().any(|name| name.starts_with(b"lower_")) {
        return None;
    }
    let uevent = file("uevent").unwrap_or_default();
    let devtype = uevent.lines().find_map(|line| line.strip_prefix("DEVTYPE=")).map(str::to_owned);
    Some(LinkPeer { index, lower, address: file("address").and_then(|text| address(&text)), devtype })
}

fn stacked(ifindex: &str, iflink: &str) -> Option<(u32, u32)> {
    let (index, lower) = (ifindex.trim().parse().ok()?, iflink.trim().parse().ok()?);
    // One that stands alone says its own number, some tunnels 0. A macvlan may by chance have its parent's number; that
    // is as good as unknown.
    (lower != index && lower != 0).then_some((index, lower))
}

/// `02:42:ac:11:00:02`
fn address(text: &str) -> Option<Mac> {
    let bytes = text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).ok());
    mac(&bytes.collect::<Option<Vec<u8>>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Roots;
    use std::time::Duration;

    /// A folder in the shape of a `class/net`.
    fn class(interfaces: &[(&str, &[(&str, &str)])]) -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        for (name, files) in interfaces {
            let device = dir.path().join(name);
            std::fs::create_dir(&device).unwrap();
            files.iter().for_each(|(file, text)| std::fs::write(device.join(file), text).unwrap());
        }
        let fd = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        (dir, fd)
    }

    #[test]
    fn files_of_an_interface() {
        let (_dir, class) = class(&[
            ("v", &[("ifindex", "7\n"), ("iflink", "4\n"), ("uevent", "DEVTYPE=vlan\nINTERFACE=eth0.3\nIFINDEX=7\n")]),
            ("m", &[("ifindex", "10\n"), ("iflink", "9\n"), ("address", "02:42:ac:11:00:fF\n")]),
            ("own", &[("ifindex", "8\n"), ("iflink", "10\n"), ("lower_m", "")]),
            ("alone", &[("ifindex", "2\n"), ("iflink", "2\n")]),
            ("tunl0", &[("ifindex", "2\n"), ("iflink", "0\n")]),
            ("odd", &[("ifindex", "x"), ("iflink", "1")]),
            ("lo", &[("ifindex", "1"), ("iflink", "5")]),
        ]);
        let mut found = of_class(&class);
        found.sort_by_key(|peer| peer.index);
        let vlan = LinkPeer { index: 7, lower: 4, address: None, devtype: Some("vlan".into()) };
        let macvlan = LinkPeer { index: 10, lower: 9, address: Some([2, 0x42, 0xac, 0x11, 0, 0xff]), devtype: None };
        assert_eq!(found, [vlan, macvlan]);
    }

    #[test]
    fn addresses() {
        assert_eq!(address("aa:bb:cc:dd:ee:01\n"), Some([0xaa, 0xbb, 0xcc, 0xdd, 0xee, 1]));
        for none in ["", "00:00:00:00:00:00", "aa:bb", "aa:bb:cc:dd:ee:01:02", "x"] {
            assert_eq!(address(none), None, "{none}");
        }
    }

    #[test]
    fn what_is_no_file_of_a_sysfs_is_neither_waited_for_nor_read() {
        let (dir, class) = class(&[("e", &[("iflink", "4\n")])]);
        let fifo = dir.path().join("e/ifindex");
        let mode = Mode::from_raw_mode(0o644);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert_eq!(of_class(&class), []);
        std::fs::remove_file(&fifo).unwrap();
        // A directory and a link that leads to another file system.
        std::fs::create_dir(&fifo).unwrap();
        assert_eq!(of_class(&class), []);
        std::fs::remove_dir(&fifo).unwrap();
        std::os::unix::fs::symlink("/proc/sys/kernel/pid_max", &fifo).unwrap();
        assert_eq!(of_class(&class), []);
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
        let answers = host.iflinks(&[7, 8, 9], Deadline::after(Duration::from_secs(10)));
        assert_eq!(answers[..2], [Ok(vec![]), Ok(vec![])]);
        assert!(answers[2].as_ref().unwrap_err().is_gone());
    }
}
