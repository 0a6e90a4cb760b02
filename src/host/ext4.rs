//! An ext4 that has stopped itself after an error, where its mount options say nothing of it.
//!
//! Since Linux 6.12 `ext4_handle_error` leaves the superblock's read-only flag alone and only refuses writes, and
//! stable kernels of older lines have that change as well (Debian's 6.1.0-56); since 6.15 the mount options say so
//! (`emergency_ro`). In between, what shows is that the file system has met an error since this machine booted, and
//! that it is told to take no writes from then on.
//!
//! One that was mounted again after such an error, without the `fsck` that clears its count, writes again and is taken
//! for stopped until the next boot.

use std::path::Path;

use super::{Kernel, Roots, read, text};

/// The first kernel with the option. Which one has no flag any more, its number does not tell.
const TELLS: (u32, u32) = (6, 15);

/// True if the ext4 on the device with this number (major, minor), mounted from this one by name, shows that it has
/// stopped itself. False as well where that cannot be read, and on other kernels, where its mount options tell.
pub(super) fn has_stopped_itself(roots: &Roots, number: (u32, u32), device: &str) -> bool {
    stopped_itself(roots, number, device).unwrap_or(false)
}

fn stopped_itself(roots: &Roots, (major, minor): (u32, u32), device: &str) -> Option<bool> {
    let some = |path: &Path| read::text(path).ok();
    let kernel = Kernel::parse(&some(&roots.proc.join("sys/kernel/osrelease"))?)?;
    if kernel.version >= TELLS {
        return Some(false);
    }
    // The kernel's own name: of a device that is mapped, `/dev/mapper/x` is another one.
    let link = std::fs::read_link(roots.sys.join(format!("dev/block/{major}:{minor}")));
    let link = link.unwrap_or_else(|_| device.into());
    let name = link.file_name()?;
    let number = |file: &str| some(&roots.sys.join("fs/ext4").join(name).join(file))?.trim().parse::<u64>().ok();
    if number("errors_count")? == 0 {
        return Some(false);
    }
    let booted = text::keyed(&some(&roots.proc.join("stat"))?, "btime")?;
    if number("last_error_time")? < booted {
        return Some(false);
    }
    // The list in effect, which the superblock and defaults are part of; a mount table shows what differs from them.
    let options = some(&roots.proc.join("fs/ext4").join(name).join("options"))?;
    Some(options.lines().any(|option| option == "errors=remount-ro"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOTED: u64 = 1_700_000_000;

    /// A machine whose ext4 on `/dev/mapper/data`, which is `dm-3`, has met an error an hour after the boot.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Self {
            let machine = Machine(tempfile::tempdir().unwrap());
            machine.write("proc/sys/kernel/osrelease", "6.12.48+deb13-amd64\n");
            machine.write("proc/stat", &format!("cpu  1 2 3 4\nctxt 5\nbtime {BOOTED}\nprocesses 6\n"));
            machine.write("proc/fs/ext4/dm-3/options", "rw\nbsddf\nerrors=remount-ro\ncommit=5\n");
            machine.write("sys/fs/ext4/dm-3/errors_count", "1\n");
            machine.write("sys/fs/ext4/dm-3/last_error_time", &format!("{}\n", BOOTED + 3600));
            machine.write("sys/devices/virtual/block/dm-3/x", "");
            std::fs::create_dir_all(machine.0.path().join("sys/dev/block")).unwrap();
            let target = "../../devices/virtual/block/dm-3";
            std::os::unix::fs::symlink(target, machine.0.path().join("sys/dev/block/254:3")).unwrap();
            machine
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        fn stopped(&self, device: &str) -> bool {
            let at = |name: &str| self.0.path().join(name);
            let roots = Roots { proc: at("proc"), sys: at("sys"), root: at("root") };
            has_stopped_itself(&roots, (254, 3), device)
        }
    }

    #[test]
    fn an_error_since_the_boot_has_stopped_it() {
        let machine = Machine::new();
        assert!(machine.stopped("/dev/mapper/data"));
        // The second in which it booted counts, whatever the clock was set by since.
        machine.write("sys/fs/ext4/dm-3/last_error_time", &BOOTED.to_string());
        assert!(machine.stopped("/dev/mapper/data"));
        machine.write("sys/fs/ext4/dm-3/last_error_time", &(BOOTED - 1).to_string());
        assert!(!machine.stopped("/dev/mapper/data"), "an error of another life");
        machine.write("sys/fs/ext4/dm-3/last_error_time", &(BOOTED + 1).to_string());
        machine.write("sys/fs/ext4/dm-3/errors_count", "0\n");
        assert!(!machine.stopped("/dev/mapper/data"));
    }

    #[test]
    fn one_that_goes_on_after_errors_does_so() {
        let machine = Machine::new();
        for options in ["rw\nerrors=continue\n", "rw\nerrors=panic\n", "rw\n"] {
            machine.write("proc/fs/ext4/dm-3/options", options);
            assert!(!machine.stopped("/dev/mapper/data"), "{options}");
        }
    }

    #[test]
    fn only_on_kernels_that_do_not_say_so_themselves() {
        let machine = Machine::new();
        for (release, expected) in [
            ("6.1.0-56-cloud-amd64", true),
            ("6.12.0", true),
            ("6.13.7-200.fc41.x86_64", true),
            ("6.14.0-37-generic", true),
            ("6.15.0", false),
            ("6.18.44", false),
            ("5.14.0-570.el9.x86_64", true),
            ("7.0.0", false),
            ("none", false),
        ] {
            machine.write("proc/sys/kernel/osrelease", release);
            assert_eq!(machine.stopped("/dev/mapper/data"), expected, "{release}");
        }
    }

    #[test]
    fn what_is_not_there_is_no_word_on_the_disk() {
        let every = [
            "proc/sys/kernel/osrelease",
            "proc/stat",
            "proc/fs/ext4/dm-3/options",
            "sys/fs/ext4/dm-3/errors_count",
            "sys/fs/ext4/dm-3/last_error_time",
        ];
        for missing in every {
            let machine = Machine::new();
            std::fs::remove_file(machine.0.path().join(missing)).unwrap();
            assert!(!machine.stopped("/dev/mapper/data"), "{missing}");
            machine.write(missing, "odd\n");
            assert!(!machine.stopped("/dev/mapper/data"), "{missing}");
        }
        // Without the link the device's own name may be the kernel's.
        let machine = Machine::new();
        std::fs::remove_file(machine.0.path().join("sys/dev/block/254:3")).unwrap();
        assert!(machine.stopped("/dev/dm-3"));
        assert!(!machine.stopped("/dev/mapper/data"));
        assert!(!machine.stopped(""));
    }
}
