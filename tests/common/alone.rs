//! A test that needs the machine for itself: it counts what its own process has open, it starts something called
//! kubelet or looks for one, it listens on a kubelet's port, or it changes or counts the machine's interfaces, mounts
//! or processes.
//!
//! `alone!()` at its beginning runs it once more in a process of its own. As root that process is in a pid, a network
//! and a mount namespace of its own, in which nothing else runs: neither the other tests of this binary, nor another
//! run of the tests on this machine, nor a real kubelet. Without root it waits until no other such test of this user
//! runs. Cgroups are still those of the machine: see `machine_lock`.

use std::fs::File;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

/// The test that this process was started for.
const TEST: &str = "HEADROOM_TEST_ALONE";

/// Where names of network namespaces are, they are the test's own as well: programs take their process id for a unique
/// one.
const NAMESPACES: &str = "mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns && ip link set lo up || exit 1";

/// Runs the test in which this is the path of a function, unless this process is there for it.
///
/// # Panics
/// If it fails.
pub fn ran_elsewhere(here: &str) -> bool {
    // Without the crate's name and the function's own; a test that is async is a closure in the function.
    let path = here.replace("::{{closure}}", "");
    let (test, _) = path.split_once("::").unwrap().1.rsplit_once("::").unwrap();
    if std::env::var_os(TEST).is_some_and(|name| name == test) {
        return false;
    }
    let exe = std::env::current_exe().unwrap();
    let (mut command, _lock) = if *NAMESPACES_CAN_BE_MADE {
        (in_namespaces("\"$@\""), None)
    } else {
        let lock = File::create(
            std::env::temp_dir().join(format!("headroom-alone-{}.lock", rustix::process::geteuid().as_raw())),
        );
        let lock = lock.unwrap();
        lock.lock().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "\"$@\"", "sh"]);
        (command, Some(lock))
    };
    command.arg(exe).args(["--exact", test, "--test-threads=1"]).env(TEST, test).stdin(Stdio::null());
    let loud = std::env::args().any(|argument| argument == "--nocapture" || argument == "--no-capture");
    if loud {
        command.arg("--nocapture");
    }
    // What goes past the harness to stderr, as a SKIP does, is not ours to keep.
    let output = command.stdout(if loud { Stdio::inherit() } else { Stdio::piped() }).stderr(Stdio::inherit()).output();
    let output = output.unwrap();
    assert!(output.status.success(), "in a process of its own:\n{}", String::from_utf8_lossy(&output.stdout));
    true
}

/// A shell command in namespaces of its own. The shell is their first process and buries whoever is left by its parent.
fn in_namespaces(script: &str) -> Command {
    // With --kill-child they end with unshare; and unshare ends with us, also when we are killed.
    let mut command = Command::new("setpriv");
    command.args([
        "--pdeathsig",
        "KILL",
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--net",
        "--mount",
    ]);
    command.args(["sh", "-c", &format!("{NAMESPACES}; {script}; exit $?"), "sh"]);
    command
}

static NAMESPACES_CAN_BE_MADE: LazyLock<bool> = LazyLock::new(|| {
    if !super::is_root() {
        return false;
    }
    let tried = in_namespaces("true").output();
    let made = tried.as_ref().is_ok_and(|output| output.status.success());
    if !made {
        let _ = writeln!(std::io::stderr(), "no namespaces of their own for the tests that want them: {tried:?}");
    }
    made
});
