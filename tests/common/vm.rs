//! A machine with a kernel and a cgroup layout of its own: a Debian made by `tests/vm/image.sh`, booted by qemu.
//!
//! Its disk is the image, and what is written to it is thrown away. A second disk holds the files of the test. It has
//! no network. A shell in it reads commands from a virtio-serial port and answers there. It ends with the value, and
//! with this process, however that ends.
#![allow(unreachable_pub, missing_docs, reason = "shared by several test binaries")]
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// From the start of qemu to the answer of the shell, on a machine that has more to do.
const BOOT: Duration = Duration::from_secs(240);

/// Where the files of the test are, in the machine; their places are links to there.
const SHARE: &str = "/share";

/// Set in the machine.
pub const INSIDE: &str = "HEADROOM_TEST_VM";

/// True in such a machine.
pub fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// What there is in `target/tools`, for machines of a suite.
fn image(suite: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    Path::new(env!("CARGO_MANIFEST_DIR")).join(target).join("tools").join(format!("vm-{suite}"))
}

/// Why this machine cannot boot one of this suite.
pub fn lacking(suite: &str) -> Option<String> {
    let programs = ["qemu-system-x86_64", "setpriv", "mke2fs", "strip"];
    if let Some(program) = programs.into_iter().find(|program| !crate::common::has(program)) {
        return Some(format!("no {program}, so no machine of Debian {suite}"));
    }
    let missing = !image(suite).join("version").exists();
    missing.then(|| format!("no machine of Debian {suite}: `tests/vm/image.sh {suite}` makes it"))
}

/// How a command ended, and all that it printed.
#[derive(Debug)]
pub struct Outcome {
    pub status: i32,
    pub output: String,
}

pub struct Vm {
    port: UnixStream,
    directory: tempfile::TempDir,
    /// Dropped, it ends qemu.
    end: Option<Sender<()>>,
    keeper: Option<JoinHandle<()>>,
}

impl Vm {
    /// One of this suite with further words on the kernel's command line, and with these files and directories: what is
    /// here, and where it is there. Programs come without debug information.
    ///
    /// # Panics
    /// If it does not come up. [`lacking`] says whether it can.
    pub fn boot(suite: &str, words: &str, files: &[(&Path, &Path)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let links = share(directory.path(), files);
        let socket = directory.path().join("port");
        let (end, ended) = channel();
        let (say, hear) = channel();
        let command = qemu(&image(suite), directory.path(), words);
        let keeper = std::thread::spawn(move || keep(command, &say, &ended));
        hear.recv().unwrap();
        let mut port = None;
        let connected = Instant::now() + Duration::from_secs(20);
        while port.is_none() && Instant::now() < connected && !keeper.is_finished() {
            std::thread::sleep(Duration::from_millis(20));
            port = UnixStream::connect(&socket).ok();
        }
        let said = fs::read_to_string(directory.path().join("qemu.log")).unwrap_or_default();
        let port = port.unwrap_or_else(|| panic!("qemu did not start: {said}"));
        let mut vm = Vm { port, directory, end: Some(end), keeper: Some(keeper) };
        let script = format!("mkdir -p {SHARE}; mount /dev/vdb {SHARE}; {links}");
        let outcome = vm.run(&script, BOOT);
        assert_eq!(outcome.status, 0, "{}", outcome.output);
        vm
    }

    /// Runs a command of the shell as root, with nothing to read. Its output goes to this test's too, as it comes. What
    /// it leaves in the background should print nothing.
    ///
    /// # Panics
    /// If it takes longer, with what it printed and what the machine's console shows.
    pub fn run(&mut self, command: &str, patience: Duration) -> Outcome {
        let until = Instant::now() + patience;
        let mark = format!("end-{}", crate::common::unique());
        // The mark is put together there: a shell that prints its commands does not print it.
        let line = format!("( {command}\n) </dev/null 2>&1; printf '\\n%s-%s %s\\n' end '{}' $?\n", &mark[4..]);
        self.port.write_all(line.as_bytes()).unwrap();
        let (mut output, mut buffer) = (Vec::new(), [0; 1 << 16]);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            self.port.set_read_timeout(Some(left.max(Duration::from_millis(1)))).unwrap();
            let count = self.port.read(&mut buffer).unwrap_or(0);
            output.extend_from_slice(&buffer[..count]);
            let text = String::from_utf8_lossy(&output);
            if let Some((before, status)) = text.rsplit_once(&format!("\n{mark} "))
                && let Some(status) = status.strip_suffix('\n')
            {
                return Outcome { status: status.parse().unwrap(), output: before.to_owned() };
            }
            eprint!("{}", String::from_utf8_lossy(&buffer[..count]));
            let why = if left.is_zero() { "no end" } else { "the machine ended" };
            assert!(count > 0, "{why} after {patience:?} of: {command}\n{text}\non its console:\n{}", self.console());
        }
    }

    /// The last that the kernel and systemd said.
    fn console(&self) -> String {
        let console = fs::read(self.directory.path().join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&console[console.len().saturating_sub(4000)..]).into_owned()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        drop(self.end.take());
        let _ = self.keeper.take().unwrap().join();
    }
}

/// The thread that starts qemu lives as long as it: the kernel ends a child with the thread that made it.
fn keep(mut command: Command, say: &Sender<()>, ended: &Receiver<()>) {
    let mut child: Child = command.spawn().unwrap();
    let _ = say.send(());
    while let Err(std::sync::mpsc::RecvTimeoutError::Timeout) = ended.recv_timeout(Duration::from_millis(100)) {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
    }
    let _ = child.kill();
    let _ = child.wait();
}

fn qemu(image: &Path, directory: &Path, words: &str) -> Command {
    // A hypervisor in user space (kvm_pvm) has the device and does not start a kernel as distributions have it.
    let hardware = fs::OpenOptions::new().write(true).open("/dev/kvm").is_ok();
    let accelerated = hardware && !Path::new("/sys/module/kvm_pvm").exists();
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"]);
    if accelerated {
        command.args(["-accel", "kvm", "-cpu", "host"]);
    } else {
        // What has AVX to emulate takes a third longer to come up, and qemu 7.2 fails mounts with EBUSY now and then.
        // Without RDRAND dbus waits for randomness for two minutes.
        command.args(["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "Nehalem,+rdrand"]);
    }
    command.args(["-smp", "2", "-m", "3072", "-nodefaults", "-no-reboot", "-display", "none"]);
    command.args(["-chardev", "socket,id=port,path=port,server=on,wait=off", "-device", "virtio-serial-pci"]);
    command.args(["-device", "virtserialport,chardev=port,name=headroom", "-serial", "file:console.log"]);
    let disk = |file: &str| format!("file={file},format=raw,if=virtio,snapshot=on");
    command.args(["-drive", &disk(&image.join("root.img").display().to_string()), "-drive", &disk("share.img")]);
    command.arg("-kernel").arg(image.join("vmlinuz")).arg("-initrd").arg(image.join("initrd.img"));
    let words = format!("root=/dev/vda rw console=ttyS0 mitigations=off net.ifnames=0 {words}");
    command.args(["-append", &words]);
    let log = fs::File::create(directory.join("qemu.log")).unwrap();
    command.current_dir(directory).env("TMPDIR", directory);
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command
}

/// Makes the disk with the files, and gives the command that links their places to it.
fn share(directory: &Path, files: &[(&Path, &Path)]) -> String {
    let staging = directory.join("share");
    fs::create_dir(&staging).unwrap();
    fs::set_permissions(&staging, fs::Permissions::from_mode(0o755)).unwrap();
    let mut links = String::new();
    for (here, there) in files {
        let staged = staging.join(there.strip_prefix("/").expect("a path from the root on"));
        fs::create_dir_all(staged.parent().unwrap()).unwrap();
        let strip = |command: &mut Command| command.stderr(Stdio::null()).status().unwrap().success();
        if here.is_dir() || !strip(Command::new("strip").arg("--strip-debug").arg("-o").arg(&staged).arg(here)) {
            let copied = Command::new("cp").args(["-a", "-L", "--reflink=auto", "-T"]).arg(here).arg(&staged).status();
            assert!(copied.unwrap().success(), "{} could not be copied", here.display());
        }
        let there = there.display();
        write!(links, "mkdir -p \"$(dirname {there})\" && ln -sfn {SHARE}{there} {there} || exit 1; ").unwrap();
    }
    let image = directory.join("share.img");
    fs::File::create(&image).unwrap().set_len(8 << 30).unwrap();
    let mut make = Command::new("mke2fs");
    make.args(["-q", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=1", "-d"]).arg(&staging).arg(&image);
    assert!(make.status().unwrap().success(), "no disk could be made of {}", staging.display());
    fs::remove_dir_all(&staging).unwrap();
    links
}
