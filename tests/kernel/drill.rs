//! `headroom-drill` on the running kernel: each fault is made (seen by the test's own eyes), and nothing is left after
//! SIGTERM, nor after SIGKILL of the drill, nor after `clean` where its watchdog was killed too. Needs root and a
//! cgroup hierarchy with the memory controller, v1 or v2.
#![cfg(feature = "drill")]
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::common::{self, eventually, hierarchies, shell};

const HEX: &str = "68656164726f6f6d2d6472696c6c2d";

/// Directories of a test's own.
struct Lab {
    dir: tempfile::TempDir,
    memory: &'static Path,
    cgroup: String,
}

impl Lab {
    fn open(name: &str) -> Option<Self> {
        if !common::is_root() {
            common::say_skip("not root: a drill needs it");
            return None;
        }
        let memory = Path::new(hierarchies::memory()?);
        let cgroup = format!("headroom-test-drill-{}-{name}", common::unique());
        Some(Lab { dir: tempfile::tempdir().unwrap(), memory, cgroup })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_headroom-drill"));
        command.arg("--state-dir").arg(self.path("state")).args(arguments.split_whitespace());
        command
    }

    fn kubepods(&self) -> String {
        format!("--kubepods {}/kubepods --make-kubepods", self.cgroup)
    }

    fn output(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn start(&self, arguments: &str) -> Drill {
        let mut command = self.command(&format!("--i-know-this-node --for 2m {arguments}"));
        let said = fs::File::create(self.path("said")).unwrap();
        Drill(command.stdin(Stdio::null()).stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap())
    }

    fn orphans(&self) -> usize {
        let qos = self.memory.join(&self.cgroup).join("kubepods/besteffort");
        let names = fs::read_dir(qos).into_iter().flatten().flatten();
        names.filter(|entry| entry.file_name().to_string_lossy().starts_with(HEX)).count()
    }

    fn journals(&self) -> usize {
        fs::read_dir(self.path("state")).map_or(0, Iterator::count)
    }

    /// No journal, no cgroup, no pod's directory, nothing mounted in the test's directory.
    fn nothing_left(&self) {
        eventually("nothing is left", || {
            let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let pods = fs::read_dir(self.path("kubelet/pods")).map_or(0, Iterator::count);
            self.journals() == 0
                && pods == 0
                && !self.memory.join(&self.cgroup).exists()
                && !mounts.contains(self.dir.path().to_str().unwrap())
        });
    }
}

struct Drill(Child);

impl Drill {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    fn end(mut self, signal: Signal) -> Option<i32> {
        self.signal(signal);
        self.0.wait().unwrap().code()
    }

    /// How it ended by itself.
    fn ended(mut self) -> Option<i32> {
        eventually("it ends", || self.0.try_wait().unwrap().is_some());
        self.0.wait().unwrap().code()
    }

    fn children(&self) -> Vec<i32> {
        let text = shell(&format!("cat /proc/{0}/task/{0}/children", self.0.id()));
        text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    }
}

impl Drop for Drill {
    fn drop(&mut self) {
        // Orderly: what it made must go also when the test fails.
        if matches!(self.0.try_wait(), Ok(None)) {
            self.signal(Signal::TERM);
            let _ = self.0.wait();
        }
    }
}

#[test]
fn refusals_and_a_dry_run_change_nothing() {
    let Some(lab) = Lab::open("dry") else { return };
    let leak = format!("cgroup-leak --count 20 {}", lab.kubepods());
    let output = lab.output(&leak);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--i-know-this-node"));
    let output = lab.output(&format!("--dry-run {leak}"));
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).contains("20 empty container-like cgroups"));
    for beyond in [
        "cgroup-leak --count 20001".to_owned(),
        format!("disk --path {} --leave 1", lab.dir.path().display()),
        "open-files --runtime-socket /x --count 2001".to_owned(),
        "cgroup-leak --kubepods ../escape --make-kubepods".to_owned(),
        "disk --mount /proc".to_owned(),
        "system-filesystem --mount /run".to_owned(),
        "orphaned-mounts --count 1001".to_owned(),
        format!("system-filesystem --mount {}/x --size 2Gi", lab.dir.path().display()),
    ] {
        assert_eq!(lab.output(&format!("--i-know-this-node {beyond}")).status.code(), Some(2), "{beyond}");
    }
    assert!(!lab.memory.join(&lab.cgroup).exists());
    lab.nothing_left();
}

#[test]
fn orphaned_cgroups_go_with_the_drill_however_it_ends() {
    let Some(lab) = Lab::open("leak") else { return };
    let leak = format!("cgroup-leak --count 30 {}", lab.kubepods());
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::KILL] {
        let drill = lab.start(&leak);
        eventually("the orphans are there", || lab.orphans() == 30);
        let code = drill.end(signal);
        assert_eq!(code, (signal != Signal::KILL).then_some(0), "{signal:?}");
        // After SIGKILL this is the watchdog's work.
        lab.nothing_left();
    }
}

#[test]
fn clean_removes_what_a_drill_and_its_watchdog_left() {
    let Some(lab) = Lab::open("clean") else { return };
    let drill = lab.start(&format!("cgroup-leak --count 30 {}", lab.kubepods()));
    eventually("the orphans are there", || lab.orphans() == 30);
    let output = lab.output("clean");
    assert_eq!((output.status.code(), lab.orphans()), (Some(0), 30), "one that runs is left alone");
    // Stopped, or it would see that its watchdog is gone.
    drill.signal(Signal::STOP);
    for child in drill.children() {
        kill_process(Pid::from_raw(child).unwrap(), Signal::KILL).unwrap();
    }
    assert_eq!(drill.end(Signal::KILL), None);
    assert_eq!(lab.orphans(), 30);
    assert!(lab.output("clean --dry-run").status.success());
    assert_eq!(lab.orphans(), 30, "a dry run");
    assert_eq!(lab.output("clean").status.code(), Some(0));
    lab.nothing_left();
}

/// What cannot be seen is not gone: its journal stays until `clean` is run where it is.
#[test]
fn clean_leaves_what_is_in_another_network_namespace() {
    alone!();
    let Some(lab) = Lab::open("elsewhere") else { return };
    if !common::has("python3") || !common::has("iptables") {
        skip!("no python3 or no iptables");
    }
    shell("ip netns add elsewhere; ip -n elsewhere link set lo up");
    let there = |command: &Command| {
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", "elsewhere"]).arg(command.get_program()).args(command.get_args());
        inside
    };
    let mut listener = Command::new("python3");
    let listen =
        "import socket, sys; s = socket.create_server(('127.0.0.1', 7001)); print(flush=True); sys.stdin.read()";
    listener.args(["-c", listen]);
    let mut listener = there(&listener).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Read::read_exact(listener.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    let words = "--i-know-this-node stalled-connection --connect 127.0.0.1:7001";
    let drill = Drill(there(&lab.command(words)).stdout(Stdio::null()).spawn().unwrap());
    let rules = || shell("ip netns exec elsewhere iptables -w -S INPUT").matches("headroom-drill").count();
    eventually("the rule is there", || rules() == 1);
    drill.signal(Signal::STOP);
    for child in drill.children() {
        kill_process(Pid::from_raw(child).unwrap(), Signal::KILL).unwrap();
    }
    drill.end(Signal::KILL);
    let output = lab.output("clean");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(3) && said.contains("in another network namespace net:["), "{said}");
    assert_eq!((rules(), lab.journals()), (1, 1));
    let output = there(&lab.command("clean")).output().unwrap();
    assert_eq!((output.status.code(), rules()), (Some(0), 0), "{}", String::from_utf8_lossy(&output.stderr));
    lab.nothing_left();
    drop(listener.stdin.take());
    listener.wait().unwrap();
    shell("ip netns del elsewhere");
}

#[test]
fn dying_cgroups_are_held_by_pages_and_go_with_them() {
    let Some(lab) = Lab::open("dying") else { return };
    let drill = lab.start(&format!("cgroup-leak --dying --count 20 {}", lab.kubepods()));
    if !hierarchies::pages_hold_cgroups() {
        let said = Said::of(&lab);
        assert_eq!(drill.ended(), Some(1), "{}", said.text());
        assert!(said.text().contains("this kernel lets go of one whose pages are still there"), "{}", said.text());
        return lab.nothing_left();
    }
    let pages = PathBuf::from(format!("/run/headroom-drill-{}-pages", drill.0.id()));
    let named = format!("headroom-drill-{}-", drill.0.id());
    let directories = || {
        let memory = lab.memory.display();
        let text = shell(&format!("find {memory} -maxdepth 1 -name '{named}*' | wc -l; find {memory} -type d | wc -l"));
        let counts: Vec<u64> = text.lines().map(|line| line.trim().parse().unwrap()).collect();
        (counts[0], counts[1])
    };
    eventually("pages without directories", || {
        let (own, all) = directories();
        let held = if *hierarchies::PURE_V2 {
            format!("awk '$1 == \"nr_dying_descendants\" {{ print $2 + {all} }}' {}/cgroup.stat", lab.memory.display())
        } else {
            "awk '$1 == \"memory\" { print $3 }' /proc/cgroups".to_owned()
        };
        let held: u64 = shell(&held).trim().parse().unwrap();
        fs::read_dir(&pages).is_ok_and(|files| files.count() == 20) && own == 0 && held >= all + 20
    });
    drill.end(Signal::KILL);
    lab.nothing_left();
    eventually("the pages are gone", || !pages.exists());
}

#[test]
fn a_process_near_its_limit_of_open_files() {
    let Some(lab) = Lab::open("files") else { return };
    let drill = lab.start("open-files --limit 200");
    let near = |pid: &i32| fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|fds| fds.count() >= 190);
    eventually("a child holds 190 of 200", || drill.children().iter().any(near));
    let pid = *drill.children().iter().find(|pid| near(pid)).unwrap();
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    assert!(limits.lines().any(|line| line.starts_with("Max open files") && line.contains(" 200 ")), "{limits}");
    drill.end(Signal::KILL);
    // Or dead and not yet waited for: who its parent is now, and whether that one waits, is not ours.
    let gone = |stat: String| stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'));
    eventually("it is gone", || fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, gone));
    lab.nothing_left();
}

/// A server that says nothing, of which nothing is known, and the first connection that asks which protocol it has.
#[test]
fn connections_that_leak() {
    let Some(lab) = Lab::open("socket") else { return };
    let listener = std::os::unix::net::UnixListener::bind(lab.path("docker.sock")).unwrap();
    let socket = lab.path("docker.sock");
    let drill = lab.start(&format!("open-files --runtime-socket {} --count 5 --every 20ms", socket.display()));
    let said = Said::of(&lab);
    let held: Vec<_> = (0..7).map(|_| listener.accept().unwrap()).collect();
    said.soon(" holds 5 of 5 connections");
    // One that the server closes is made anew.
    drop(held);
    let again: Vec<_> = (0..5).map(|_| listener.accept().unwrap()).collect();
    assert_eq!(again.len(), 5);
    said.soon("5 were lost, the last because the server closed it");
    assert_eq!(drill.end(Signal::TERM), Some(0));
    lab.nothing_left();
}

/// gRPC closes what has not said the preface of HTTP/2; a server of HTTP/1.1 what asked nothing. Both keep a drill's.
#[test]
fn connections_that_a_server_keeps() {
    let Some(lab) = Lab::open("kept") else { return };
    if !common::has("python3") {
        skip!("no python3");
    }
    for (protocol, says) in [("h2", "(HTTP/2)"), ("h1", "(HTTP/1.1)")] {
        let socket = lab.path(protocol);
        let mut server = Command::new("python3");
        server.args(["-c", SERVER, protocol]).arg(&socket).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut server = server.spawn().unwrap();
        eventually("the server listens", || socket.exists());
        let drill = lab.start(&format!("open-files --runtime-socket {} --count 20 --every 5ms", socket.display()));
        let said = Said::of(&lab);
        said.soon(&format!(" holds 20 of 20 connections to {} {says}", socket.display()));
        // Four times as long as this server waits for a first word.
        std::thread::sleep(std::time::Duration::from_secs(4));
        let last = said.last();
        assert!(last.contains("holds 20 of 20") && !last.contains("lost"), "{last}");
        assert_eq!(drill.end(Signal::TERM), Some(0));
        drop(server.stdin.take());
        server.wait().unwrap();
        lab.nothing_left();
    }
}

/// Closes each connection that has said nothing for a second, as grpc-go does after 120, and asks by SETTINGS and PING
/// who speaks HTTP/2: three pings without an answer end it too.
const SERVER: &str = r"
import select, socket, sys, threading, time
protocol, path = sys.argv[1:]
server = socket.socket(socket.AF_UNIX)
server.bind(path)
server.listen(64)
def h2(one):
    one.settimeout(1)
    got = b''
    while len(got) < 24:
        more = one.recv(4096)
        if not more: return
        got += more
    if not got.startswith(b'PRI * HTTP/2.0'): return
    one.sendall(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    while True:
        one.sendall(bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + b'headroom')
        until, got = time.time() + 2, b''
        while bytes([0, 0, 8, 6, 1, 0, 0, 0, 0]) + b'headroom' not in got:
            one.settimeout(max(0.01, until - time.time()))
            more = one.recv(4096)
            if not more: return
            got += more
        time.sleep(0.3)
def h1(one):
    one.settimeout(1)
    got = one.recv(4096)
    if got.startswith(b'PRI'):
        one.sendall(b'HTTP/1.1 505 HTTP Version Not Supported\r\nConnection: close\r\n\r\n')
        return
    if not got.startswith(b'HEAD '): return
    one.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n')
    one.settimeout(None)
    one.recv(1)
def serve(one):
    try: globals()[protocol](one)
    except OSError: pass
    one.close()
def accept():
    while True: threading.Thread(target=serve, args=server.accept()[:1], daemon=True).start()
threading.Thread(target=accept, daemon=True).start()
sys.stdin.read()
";

/// What the drill of a lab said.
struct Said(PathBuf);

impl Said {
    fn of(lab: &Lab) -> Self {
        Said(lab.path("said"))
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.0).unwrap_or_default()
    }

    fn last(&self) -> String {
        self.text().lines().last().unwrap_or_default().to_owned()
    }

    /// `t=2s` is said with the first look that is so late.
    fn has(&self, what: &str) -> bool {
        let seconds = |text: &str| text.strip_prefix("t=")?.split_once('s')?.0.parse::<u64>().ok();
        let text = self.text();
        text.contains(what) || seconds(what).is_some_and(|least| text.lines().filter_map(seconds).any(|at| at >= least))
    }

    fn soon(&self, what: &str) {
        let until = std::time::Instant::now() + common::patience(15);
        while !self.has(what) {
            assert!(std::time::Instant::now() < until, "{what:?} was not said: {}", self.text());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

/// Each drill once it stands, what takes from it, and what it says of that: it ends, with everything else cleaned up.
#[test]
fn what_is_taken_from_a_drill_ends_it() {
    alone!();
    let Some(lab) = Lab::open("taken") else { return };
    let (dir, memory) = (lab.dir.path().display().to_string(), lab.memory.display().to_string());
    let (kubepods, cgroup) = (lab.kubepods(), lab.cgroup.clone());
    let root = lab.path("kubelet");
    fs::create_dir(&root).unwrap();
    let root = format!("--kubelet-root-dir {}", root.display());
    let qos = format!("{memory}/{cgroup}/kubepods/besteffort");
    let fill = format!("{dir}/headroom-drill-$DRILL.fill");
    let helper = "kill -9 $(tr ' ' '\\n' </proc/$DRILL/task/$DRILL/children | tail -n 1)";
    let unmount = format!("umount -l {dir}/kubelet/pods/*/volumes/kubernetes.io~empty-dir/headroom-drill-cache");
    let pages = "rm /run/headroom-drill-$DRILL-pages/3".to_owned();
    // As a kubelet does it.
    let pod = format!(
        "for path in {qos}/pod*/6*; do kill -9 $(cat $path/cgroup.procs); done; sleep 0.3
         rmdir {qos}/pod*/6* {qos}/pod* 2>/dev/null || true"
    );
    let cases: Vec<(String, &str, String, &str)> = vec![
        (format!("cgroup-leak --count 9 {kubepods}"), "t=0s", format!("rmdir {qos}/*4"), "1 of the 9 cgroups"),
        (format!("cgroup-leak --dying --count 9 {kubepods}"), "t=0s", pages, "8 of the 9 pages"),
        ("open-files --limit 100".to_owned(), "t=1s", helper.to_owned(), "has ended (signal: 9"),
        (
            format!("inotify --instances 2 --watches 4 --scratch {dir}"),
            "t=1s",
            format!("rm {dir}/headroom-drill-$DRILL/1"),
            "1 of the 2 watched files",
        ),
        (format!("memory-volume {root} {kubepods}"), " starts, ", unmount.clone(), "was unmounted"),
        (format!("pod-interface {root} {kubepods}"), "has 1 interfaces", unmount, "was unmounted"),
        (format!("pod-interface {root} {kubepods}"), "has 1 interfaces", pod, "of the drill has ended"),
        (
            format!("pod-interface {root} {kubepods}"),
            "has 1 interfaces",
            "ip link del hrdrill-$(printf %x $DRILL)a".to_owned(),
            "the pod lost its interface before|was deleted by somebody else",
        ),
        (
            format!("disk --mount {dir}/full --size 16Mi --image-dir {dir}"),
            "t=1s",
            format!("umount -l {dir}/full"),
            "was unmounted by somebody else",
        ),
        (
            format!("inodes --mount {dir}/full --size 16Mi --image-dir {dir}"),
            "t=1s",
            format!("rm -r {}", fill.replace(&dir, &format!("{dir}/full"))),
            "was removed or cut",
        ),
        (
            format!("system-filesystem --mount {dir}/full"),
            "t=1s",
            format!("umount -l {dir}/full"),
            "was unmounted by somebody else",
        ),
        ("open-files --limit 100".to_owned(), "t=1s", format!("rm {dir}/state/*"), "the journal"),
        (
            "open-files --limit 100".to_owned(),
            "t=1s",
            "kill -9 $(cut -d' ' -f1 /proc/$DRILL/task/$DRILL/children)".to_owned(),
            "the watchdog",
        ),
    ];
    for (words, stands, take, says) in &cases {
        if words.contains("--dying") && !hierarchies::pages_hold_cgroups() {
            continue;
        }
        let drill = lab.start(words);
        let said = Said::of(&lab);
        said.soon(stands);
        shell(&format!("DRILL={}; {take}", drill.0.id()));
        assert_eq!(drill.ended(), Some(1), "{words}: {}", said.text());
        let text = said.text();
        assert!(
            text.contains("FAILED: ") && says.split('|').any(|says| text.contains(says)),
            "{words}: {says:?}: {text}"
        );
        assert!(text.contains("all cleaned up") && !text.contains("NOT all"), "{words}: {text}");
        lab.nothing_left();
    }
}

/// The rule that drops the replies.
#[test]
fn a_rule_that_is_flushed_ends_the_drill() {
    alone!();
    let Some(lab) = Lab::open("flushed") else { return };
    if !common::has("iptables") {
        skip!("no iptables");
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut kept = Vec::new();
    for (take, says) in [
        ("iptables -w -F INPUT", "1 of the 1 rules"),
        ("iptables -w -I INPUT -p tcp -j ACCEPT", "replies still arrive"),
    ] {
        let drill = lab.start(&format!("stalled-connection --connect {address}"));
        kept.push(listener.accept().unwrap());
        let said = Said::of(&lab);
        said.soon("t=2s");
        shell(take);
        assert_eq!(drill.ended(), Some(1), "{take}: {}", said.text());
        assert!(said.text().contains(says), "{says:?}: {}", said.text());
        lab.nothing_left();
        shell("iptables -w -F INPUT");
    }
    // What is given up is no loss: the drill has done what it should.
    let own = std::net::TcpStream::connect(address).unwrap();
    let drill = lab.start(&format!("stalled-connection --pid {} --port {}", std::process::id(), address.port()));
    let said = Said::of(&lab);
    said.soon("t=1s");
    drop((own, kept));
    assert_eq!(drill.ended(), Some(0), "{}", said.text());
    assert!(said.text().contains("gave up every stalled connection"), "{}", said.text());
    lab.nothing_left();
}

#[test]
fn a_drill_that_panics_cleans_up() {
    let Some(lab) = Lab::open("panic") else { return };
    let drill = lab.start("panic");
    let (said, file) = (Said::of(&lab), std::env::temp_dir().join(format!("headroom-drill-{}-panic", drill.0.id())));
    assert_eq!(drill.ended(), Some(101), "{}", said.text());
    let text = said.text();
    assert!(text.contains(&format!("with {} and process", file.display())), "{text}");
    let pid = text.split("and process ").nth(1).unwrap().lines().next().unwrap();
    assert!(!file.exists() && !Path::new("/proc").join(pid).exists(), "{text}");
    lab.nothing_left();
}

/// Where the kubelet keeps its pods is asked of the one that runs.
#[test]
fn the_running_kubelet_says_where() {
    alone!();
    let Some(lab) = Lab::open("where") else { return };
    let (root, link, fake) = (lab.path("root"), lab.path("link"), lab.path("kubelet"));
    fs::create_dir(&root).unwrap();
    std::os::unix::fs::symlink(&root, &link).unwrap();
    fs::write(&fake, "#!/bin/sh\nread word\n").unwrap();
    fs::set_permissions(&fake, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let plan = |flag: &str| {
        let output = lab.output(&format!("--dry-run memory-volume {flag}{}", lab.kubepods()));
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    assert!(plan("").contains("/var/lib/kubelet") && plan("").contains("no kubelet runs here"), "{}", plan(""));
    let mut kubelet = Command::new(&fake);
    let mut kubelet = kubelet.arg(format!("--root-dir={}", link.display())).stdin(Stdio::piped()).spawn().unwrap();
    let of_it = format!("at {}/pods/", root.display());
    eventually("the kubelet's root directory, without links", || plan("").contains(&of_it));
    assert!(plan("").contains(&format!("of the kubelet, process {}", kubelet.id())), "{}", plan(""));
    let named = plan(&format!("--kubelet-root-dir {} ", lab.dir.path().display()));
    assert!(named.contains(&format!("at {}/pods/", lab.dir.path().display())), "{named}");
    // What is below a link is found again where mount tables have it.
    let drill = lab.start(&format!("memory-volume {}", lab.kubepods()));
    let mounted = || fs::read_to_string("/proc/self/mountinfo").unwrap().contains(root.to_str().unwrap());
    eventually("it is mounted there", mounted);
    drill.end(Signal::KILL);
    lab.nothing_left();
    eventually("its directories are gone", || fs::read_dir(&root).unwrap().count() == 0);
    drop(kubelet.stdin.take());
    kubelet.wait().unwrap();
}

#[test]
fn inotify_instances_and_watches_of_a_user() {
    let Some(lab) = Lab::open("inotify") else { return };
    let (uid, scratch) = (300_000 + fastrand::u32(..100_000), lab.path("scratch"));
    fs::create_dir(&scratch).unwrap();
    fs::set_permissions(lab.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let drill = lab.start(&format!("inotify --uid {uid} --instances 10 --watches 45 --scratch {}", scratch.display()));
    let of = |pid: &i32| {
        let lines = shell(&format!("cat /proc/{pid}/fdinfo/* 2>/dev/null | grep -c '^inotify' || true"));
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        lines.trim() == "45" && status.contains(&format!("Uid:\t{uid}"))
    };
    eventually("45 watches", || drill.children().iter().any(of));
    assert_eq!(drill.end(Signal::TERM), Some(0));
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
    lab.nothing_left();
}

#[test]
fn a_volume_whose_writer_is_killed_again_and_again() {
    let Some(lab) = Lab::open("volume") else { return };
    let root = lab.path("kubelet");
    fs::create_dir(&root).unwrap();
    let drill = lab.start(&format!(
        "memory-volume --kubelet-root-dir {} --limit 16Mi --size 32Mi --restart-after 200ms {}",
        root.display(),
        lab.kubepods()
    ));
    let base = lab.memory.join(&lab.cgroup);
    eventually("two kills", || {
        let file = if *hierarchies::PURE_V2 { "memory.events" } else { "memory.oom_control" };
        let script = format!("find {} -name {file} -exec grep -h '^oom_kill ' {{}} + || true", base.display());
        let text = shell(&script);
        text.lines().any(|line| line.split(' ').nth(1).unwrap().parse::<u64>().unwrap() >= 2)
    });
    drill.end(Signal::KILL);
    lab.nothing_left();
    eventually("its directories are gone", || fs::read_dir(&root).unwrap().count() == 0);
}

#[test]
fn a_pod_at_its_limit_of_tasks() {
    let Some(lab) = Lab::open("tasks") else { return };
    let root = lab.path("kubelet");
    fs::create_dir(&root).unwrap();
    let words = format!("task-limit --kubelet-root-dir {} --limit 30 {}", root.display(), lab.kubepods());
    let pids = if *hierarchies::PURE_V2 { lab.memory } else { Path::new("/sys/fs/cgroup/pids") };
    let base = pids.join(&lab.cgroup);
    // Of the pod and of its container.
    let read = |file: &str| {
        let find = format!("find {} -path '*pod{}*' -name {file}", base.display(), &HEX[..8]);
        shell(&format!("{find} 2>/dev/null | xargs -r cat || true"))
    };
    let have = |tasks: &str| read("pids.current").lines().filter(|line| *line == tasks).count() == 2;
    let drill = lab.start(&format!("{words} --near-for 1h"));
    eventually("nine tenths", || have("27"));
    assert_eq!(read("pids.events").replace("max 0", "").trim(), "", "nothing was refused");
    assert_eq!(drill.end(Signal::TERM), Some(0));
    lab.nothing_left();

    let drill = lab.start(&words);
    eventually("forks were refused, again and again", || {
        let counts = read("pids.events");
        counts.lines().any(|line| line.strip_prefix("max ").is_some_and(|count| count.parse::<u64>().unwrap() >= 2))
    });
    assert!(have("30"));
    drill.end(Signal::KILL);
    lab.nothing_left();
    eventually("its directories are gone", || !base.exists() && fs::read_dir(&root).unwrap().count() == 0);
}

#[test]
fn a_full_disk_and_one_without_inodes() {
    let Some(lab) = Lab::open("disk") else { return };
    let at = lab.path("full");
    for (drill, signal) in [("disk", Signal::TERM), ("inodes", Signal::KILL)] {
        let arguments =
            format!("{drill} --mount {} --size 32Mi --image-dir {}", at.display(), lab.dir.path().display());
        let running = lab.start(&arguments);
        eventually("it is full", || {
            let mounted = fs::read_to_string("/proc/self/mountinfo").unwrap().contains(at.to_str().unwrap());
            let stat = rustix::fs::statvfs(&at);
            mounted
                && stat.is_ok_and(|stat| match drill {
                    "disk" => stat.f_bavail * 40 < stat.f_blocks,
                    _ => stat.f_favail * 40 < stat.f_files,
                })
        });
        running.end(signal);
        lab.nothing_left();
        eventually("image and directory are gone", || {
            !at.exists() && !shell("losetup -a").contains(lab.dir.path().to_str().unwrap())
        });
        let images = fs::read_dir(lab.dir.path()).unwrap().flatten();
        assert!(!images.into_iter().any(|entry| entry.file_name().to_string_lossy().ends_with(".img")));
    }
}

#[test]
fn a_system_file_system_of_its_own_that_is_full() {
    let Some(lab) = Lab::open("system") else { return };
    let at = lab.path("run");
    for (more, signal) in [("", Signal::TERM), (" --inodes", Signal::KILL)] {
        let running = lab.start(&format!("system-filesystem --mount {}{more}", at.display()));
        eventually("it is full", || {
            let mounted = fs::read_to_string("/proc/self/mountinfo").unwrap().contains(at.to_str().unwrap());
            let few = |left: u64, of: u64| left > 0 && left * 40 < of;
            mounted
                && rustix::fs::statvfs(&at).is_ok_and(|stat| {
                    if more.is_empty() { few(stat.f_bavail, stat.f_blocks) } else { few(stat.f_favail, stat.f_files) }
                })
        });
        running.end(signal);
        lab.nothing_left();
        eventually("mount and directory are gone", || !at.exists());
    }
}

#[test]
fn mounts_of_a_pod_that_nobody_knows() {
    let Some(lab) = Lab::open("mounts") else { return };
    let root = lab.path("kubelet");
    fs::create_dir(&root).unwrap();
    for signal in [Signal::TERM, Signal::KILL] {
        let running = lab.start(&format!("orphaned-mounts --count 5 --kubelet-root-dir {}", root.display()));
        let mounted = || {
            let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
            table.lines().filter(|row| row.contains(&format!("{}/pods/", root.display()))).count()
        };
        eventually("all are mounted", || mounted() == 6);
        running.end(signal);
        lab.nothing_left();
        eventually("its directories are gone", || mounted() == 0 && fs::read_dir(&root).unwrap().count() == 0);
    }
}

#[test]
fn one_connection_stalls_and_new_ones_work() {
    let Some(lab) = Lab::open("stall") else { return };
    if !common::has("iptables") {
        skip!("no iptables");
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let rules = || {
        let text = shell("iptables -w -S INPUT");
        text.lines().filter(|line| line.contains(&format!("--sport {}", address.port()))).count()
    };
    for signal in [Signal::TERM, Signal::KILL] {
        let drill = lab.start(&format!("stalled-connection --connect {address}"));
        let (_held, peer) = listener.accept().unwrap();
        let queue = format!("ss -tnH state established sport = :{} dport = :{}", peer.port(), address.port());
        eventually("something stays unacknowledged", || {
            let text = shell(&queue);
            text.split_whitespace().nth(1).is_some_and(|bytes| bytes.parse::<u64>().unwrap() > 0)
        });
        assert_eq!(rules(), 1);
        let mut fresh = std::net::TcpStream::connect(address).unwrap();
        let (mut other, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut other, b"x").unwrap();
        std::io::Read::read_exact(&mut fresh, &mut [0]).unwrap();
        drill.end(signal);
        eventually("the rule is gone", || rules() == 0);
        lab.nothing_left();
    }
}

#[test]
fn a_pod_loses_its_interface() {
    alone!();
    let Some(lab) = Lab::open("link") else { return };
    let drill = lab.start(&format!("pod-interface --after 1s {}", lab.kubepods()));
    let namespace = format!("headroom-drill-{}", drill.0.id());
    let links = || Command::new("ip").args(["-n", &namespace, "-o", "link"]).output().unwrap();
    let has = || String::from_utf8_lossy(&links().stdout).contains("eth0");
    eventually("it has eth0", has);
    eventually("it has none", || links().status.success() && !has());
    drill.end(Signal::KILL);
    lab.nothing_left();
    assert!(!Path::new("/run/netns").join(&namespace).exists());
    assert!(!shell("ip -o link").contains("hrdrill-"));
}

/// Alert names in a text.
fn alert_names(text: &str) -> std::collections::BTreeSet<String> {
    let word = |c: char| !c.is_ascii_alphanumeric();
    text.split(word).filter(|word| word.len() > 8 && word.starts_with("Headroom")).map(str::to_owned).collect()
}

/// What a drill says must page exists, and `docs/drill.md` says the same.
#[test]
fn the_pages_that_drills_promise_are_alerts_and_documented() {
    let Some(lab) = Lab::open("pages") else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut rules = String::new();
    for folder in fs::read_dir(root.join("alerts")).unwrap() {
        rules += &fs::read_to_string(folder.unwrap().path().join("rules.yaml")).unwrap_or_default();
    }
    let known: std::collections::BTreeSet<String> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).map(str::to_owned).collect();
    let (kubepods, dir) = (lab.kubepods(), lab.dir.path().display());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let _held = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut promised = std::collections::BTreeSet::new();
    for drill in [
        format!("cgroup-leak {kubepods}"),
        format!("cgroup-leak --dying --over 5h {kubepods}"),
        "open-files".to_owned(),
        "open-files --runtime-socket /run/none.sock".to_owned(),
        format!("inotify --scratch {dir}"),
        format!("memory-volume --near-for 2m --kubelet-root-dir {dir} {kubepods}"),
        format!("task-limit --near-for 4m --kubelet-root-dir {dir} {kubepods}"),
        format!("disk --mount {dir}/disk --image-dir {dir}"),
        format!("inodes --mount {dir}/disk --image-dir {dir}"),
        format!("system-filesystem --mount {dir}/run"),
        format!("orphaned-mounts --kubelet-root-dir {dir}"),
        format!("stalled-connection --pid {} --port {port}", std::process::id()),
        format!("pod-interface --kubelet-root-dir {dir} {kubepods}"),
    ] {
        let output = lab.output(&format!("--dry-run --for 6h {drill}"));
        let said = String::from_utf8(output.stdout).unwrap();
        let expected: Vec<&str> = said.lines().filter(|line| line.starts_with("expect Headroom")).collect();
        assert!(!expected.is_empty(), "{drill}: {said}{}", String::from_utf8_lossy(&output.stderr));
        assert!(expected.iter().all(|line| line.contains(" within ") && !line.contains("too short")), "{said}");
        promised.extend(expected.iter().flat_map(|line| alert_names(line)));
    }
    assert!(promised.is_subset(&known), "no such alert: {:?}", promised.difference(&known));
    let documented = fs::read_to_string(root.join("docs/drill.md")).unwrap();
    assert_eq!(alert_names(&documented), promised, "docs/drill.md, and what the drills say");
    let short = lab.output(&format!("--dry-run cgroup-leak {kubepods}"));
    assert!(String::from_utf8_lossy(&short.stdout).contains("--for is too short"));
}

/// The systemd driver's names.
#[test]
fn orphans_in_slices() {
    let Some(lab) = Lab::open("slice") else { return };
    let top = format!("{}/kubepods.slice", lab.cgroup);
    let drill = lab.start(&format!("cgroup-leak --count 5 --kubepods {top} --make-kubepods"));
    let qos = lab.memory.join(&top).join("kubepods-besteffort.slice");
    let scopes = || {
        let names = fs::read_dir(&qos).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let names = names.filter_map(|name| name.into_string().ok());
        names.filter(|name| name.starts_with("cri-containerd-") && name.ends_with(".scope")).collect::<Vec<_>>()
    };
    eventually("five scopes", || scopes().len() == 5);
    let id = |name: &String| name["cri-containerd-".len()..name.len() - ".scope".len()].to_owned();
    assert!(scopes().iter().map(id).all(|id| id.len() == 64 && id.starts_with(HEX)), "{:?}", scopes());
    assert_eq!(drill.end(Signal::TERM), Some(0));
    lab.nothing_left();
    let root = lab.dir.path().display();
    let pod =
        lab.start(&format!("pod-interface --after 1m --kubelet-root-dir {root} --kubepods {top} --make-kubepods"));
    let named = || {
        fs::read_dir(&qos).into_iter().flatten().flatten().any(|entry| {
            let name = entry.file_name().into_string().unwrap();
            name.starts_with("kubepods-besteffort-pod68656164_726f_") && name.ends_with(".slice")
        })
    };
    eventually("the slice of a pod", named);
    pod.end(Signal::KILL);
    lab.nothing_left();
}

/// A disk that fills over a time: in many steps, none of which is all.
#[test]
fn a_disk_that_fills_slowly() {
    let Some(lab) = Lab::open("slowly") else { return };
    let at = lab.path("full");
    let arguments =
        format!("disk --mount {} --size 64Mi --over 8s --image-dir {}", at.display(), lab.dir.path().display());
    let running = lab.start(&arguments);
    let mounted = || fs::read_to_string("/proc/self/mountinfo").unwrap().contains(at.to_str().unwrap());
    eventually("it is mounted", mounted);
    let (mut seen, begin) = (std::collections::BTreeSet::new(), std::time::Instant::now());
    while begin.elapsed() < std::time::Duration::from_secs(30) {
        let stat = rustix::fs::statvfs(&at).unwrap();
        seen.insert(stat.f_bavail * 10 / stat.f_blocks);
        if stat.f_bavail * 40 < stat.f_blocks {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert!(seen.contains(&0) && seen.len() >= 5, "tenths that were seen to be free: {seen:?}");
    running.end(Signal::TERM);
    lab.nothing_left();
}

/// Each connection that the process makes afterwards, over IPv6.
#[test]
fn a_connection_stalls_again_over_ipv6() {
    let Some(lab) = Lab::open("again") else { return };
    if !common::has("ip6tables") {
        skip!("no ip6tables");
    }
    let Ok(listener) = std::net::TcpListener::bind("[::1]:0") else { skip!("no IPv6 on the loopback") };
    let address = listener.local_addr().unwrap();
    let rules = || {
        let text = shell("ip6tables -w -S INPUT");
        text.lines().filter(|line| line.contains(&format!("--sport {} ", address.port()))).count()
    };
    // The drill looks at a process's descriptors: this test's own.
    let first = std::net::TcpStream::connect(address).unwrap();
    let drill =
        lab.start(&format!("stalled-connection --pid {} --port {} --again", std::process::id(), address.port()));
    eventually("one rule", || rules() == 1);
    let second = std::net::TcpStream::connect(address).unwrap();
    eventually("a rule for the second", || rules() == 2);
    drop((first, second));
    drill.end(Signal::KILL);
    eventually("the rules are gone", || rules() == 0);
    lab.nothing_left();
}
