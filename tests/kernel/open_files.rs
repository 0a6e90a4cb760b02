//! Mode `open_files` on the running kernel: real processes holding known fds, against independent witnesses.
//!
//! Helpers are this same test binary, started again with a role in the environment.
#![allow(clippy::disallowed_methods, reason = "witnesses read the machine themselves")]
#![allow(clippy::print_stdout, reason = "how a helper answers")]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use headroom::error::Reason;
use headroom::host::process::{Processes, known};
use headroom::host::{Deadline, Host, Roots};
use headroom::metric::Samples;
use headroom::modes::{Collector, Context, Settings, open_files};
use headroom::services::Services;
use rustix::fs::inotify::{self, CreateFlags};

use crate::common;
use crate::common::helper::{self, Helper};

const HELPER: &str = concat!(module_path!(), "::helper");
const INOTIFY_USER: u32 = 64_321;
/// Who makes a user namespace, and who its root is to the machine.
const OWNING_USER: u32 = 64_323;
const MAPPED_USER: u32 = 64_324;

fn root_or_skip(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        common::say_skip(format_args!("{test}: needs root"));
    }
    root
}

fn host() -> Host {
    Host::new(Roots::default())
}

fn mode(change: impl FnOnce(&mut open_files::Settings)) -> Box<dyn Collector> {
    let mut settings = Settings::default();
    change(&mut settings.open_files);
    (open_files::MODE.build)(&settings, &Services::default())
}

fn collect(mode: &dyn Collector) -> Samples {
    let host = host();
    let mut samples = mode.collect(Context::new(&host, Deadline::after(Duration::from_secs(60)))).unwrap();
    samples.refuse_duplicates();
    samples
}

/// Collects until inotify is known: the first pass over a machine with many fds takes several scrapes.
fn collect_warm(mode: &dyn Collector, there: impl Fn(&Samples) -> bool) -> Samples {
    let mut samples = collect(mode);
    for _ in 0..200 {
        if there(&samples) {
            break;
        }
        samples = collect(mode);
    }
    samples
}

fn value(samples: &Samples, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let wanted = |row: &&headroom::metric::Sample| {
        row.metric.name == name
            && labels.iter().all(|(label, value)| {
                let at = row.metric.labels.iter().position(|name| name == label).unwrap();
                &*row.labels[at] == *value
            })
    };
    let mut rows = samples.rows().iter().filter(wanted);
    let first = rows.next().map(|row| row.value);
    assert!(rows.next().is_none(), "{name}{labels:?} names more than one series");
    first
}

fn sum(samples: &Samples, name: &str) -> f64 {
    samples.rows().iter().filter(|row| row.metric.name == name).map(|row| row.value).sum()
}

/// A helper, of another user if one is given.
fn start(role: &str, user: Option<u32>) -> Helper {
    let user = user.map(|user| [format!("--reuid={user}"), format!("--regid={user}")]);
    match &user {
        Some([uid, gid]) => Helper::start(HELPER, &["setpriv", uid, gid, "--clear-groups"], role, ""),
        None => Helper::start(HELPER, &[], role, ""),
    }
}

fn holding(role: &str, user: Option<u32>) -> Helper {
    let mut helper = start(role, user);
    helper.ready();
    helper
}

/// What a helper does. As a test without a role it does nothing.
#[test]
fn helper() {
    let Some((role, _)) = helper::role() else { return };
    let mut held: Vec<Box<dyn std::any::Any>> = Vec::new();
    match role.as_str() {
        "thousand" => {
            for i in 0..100 {
                held.push(Box::new([UnixDatagram::unbound().unwrap(), UnixDatagram::unbound().unwrap()]));
                held.push(Box::new(std::io::pipe().unwrap()));
                held.push(Box::new([std::fs::File::open("/proc/self/exe"), std::fs::File::open("/etc")]));
                held.push(Box::new(std::fs::File::open("/dev/null").unwrap()));
                held.push(Box::new(rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap()));
                held.push(Box::new(rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap()));
                if i < 80 {
                    held.push(Box::new(rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap()));
                } else {
                    held.push(Box::new(inotify(0)));
                }
            }
        }
        "inotify" => held.extend((0..5).map(|i| Box::new(inotify(3 * i)) as Box<dyn std::any::Any>)),
        "exhaust" => {
            rlimit::increase_nofile_limit(u64::MAX).unwrap();
            let instances = std::iter::repeat_with(|| inotify::init(CreateFlags::CLOEXEC));
            held.extend(instances.map_while(Result::ok).map(|one| Box::new(one) as Box<dyn std::any::Any>));
            println!("\n{}", held.len());
        }
        "unprivileged" => {
            held.push(Box::new(inotify(4)));
            let mode = mode(|settings| settings.top = 50);
            let samples = collect_warm(&*mode, |samples| {
                value(samples, "headroom_inotify_instances", &[("uid", "65534")]).is_some()
            });
            for error in samples.errors() {
                println!("\nerror {}", error.reason());
            }
            for row in samples.rows() {
                println!("{} {:?} {}", row.metric.name, row.labels, row.value);
            }
        }
        _ => {
            let files = role.parse().unwrap();
            held.extend(
                (0..files).map(|_| Box::new(std::fs::File::open("/dev/null").unwrap()) as Box<dyn std::any::Any>),
            );
        }
    }
    println!("\nready");
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read(&mut [0]);
}

/// An inotify instance with so many watches, each on a directory of its own.
fn inotify(watches: usize) -> rustix::fd::OwnedFd {
    let instance = inotify::init(CreateFlags::CLOEXEC).unwrap();
    let places = [
        "/",
        "/etc",
        "/usr",
        "/usr/bin",
        "/usr/lib",
        "/usr/share",
        "/var",
        "/var/lib",
        "/dev",
        "/proc",
        "/sys",
        "/tmp",
    ];
    for place in &places[..watches] {
        inotify::add_watch(&instance, *place, inotify::WatchFlags::DELETE_SELF).unwrap();
    }
    instance
}

fn shell(script: &str) -> String {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_thousand_fds_of_known_kinds() {
    alone!();
    let helper = holding("thousand", None);
    let pid = helper.pid().to_string();
    let samples = collect(&*mode(|settings| settings.top = 50));
    let listed: f64 = shell(&format!("ls /proc/{pid}/fd | wc -l")).trim().parse().unwrap();
    assert!(listed >= 1000.0, "{listed}");
    assert_eq!(value(&samples, "headroom_process_open_fds", &[("pid", &pid)]), Some(listed));

    // find's words for the same links, sorted by sed into our kinds.
    let witness = shell(&format!(
        "find /proc/{pid}/fd -mindepth 1 -printf '%l\\n' | sed -E 's,^(socket|pipe):.*,\\1,; s,^anon_inode:\\[?([a-z]+)\\]?$,\\1,;
         s,^/memfd:.*,memfd,; s,^/dev/.*,device,; s,^/.*,file,' | sort | uniq -c"
    ));
    let mut kinds = 0.0;
    for line in witness.lines() {
        let (count, kind) = line.trim().split_once(' ').unwrap();
        let ours = value(&samples, "headroom_process_fds", &[("pid", &pid), ("kind", kind)]);
        assert_eq!(ours, Some(count.parse().unwrap()), "{kind} in\n{witness}");
        kinds += ours.unwrap();
    }
    assert_eq!(kinds, listed);
    for (kind, least) in [("socket", 200.0), ("pipe", 200.0), ("file", 200.0), ("device", 100.0), ("eventfd", 100.0)] {
        let ours = value(&samples, "headroom_process_fds", &[("pid", &pid), ("kind", kind)]);
        assert!(ours >= Some(least), "{kind}: {ours:?}");
    }
    for (kind, exactly) in [("eventpoll", 100.0), ("memfd", 80.0), ("inotify", 20.0)] {
        let ours = value(&samples, "headroom_process_fds", &[("pid", &pid), ("kind", kind)]);
        assert_eq!(ours, Some(exactly), "{kind}");
    }
}

#[test]
fn the_process_nearest_its_limit_is_shown() {
    alone!();
    let helper = holding("400", None);
    let pid = helper.pid().to_string();
    let held: u64 = shell(&format!("ls /proc/{pid}/fd | wc -l")).trim().parse().unwrap();
    let limit = held * 10 / 9;
    let of = rustix::process::Pid::from_child(&helper.0);
    let now = rustix::process::Rlimit { current: Some(limit), maximum: Some(limit) };
    rustix::process::prlimit(Some(of), rustix::process::Resource::Nofile, now).unwrap();
    let samples = collect(&*mode(|settings| (settings.top, settings.daemons) = (1, Vec::new())));
    assert_eq!(value(&samples, "headroom_process_open_fds", &[("pid", &pid)]), Some(held as f64));
    assert_eq!(value(&samples, "headroom_process_fd_limit", &[("pid", &pid)]), Some(limit as f64));
    let ratios = samples.rows().iter().filter(|row| row.metric.name == "headroom_command_fd_worst_ratio");
    let worst = ratios.map(|row| row.value).fold(0.0, f64::max);
    assert_eq!(worst, held as f64 / limit as f64, "another process of this machine is nearer its limit");
}

/// Fds of every process but ourselves, by listing each fd directory.
fn count_by_listing() -> u64 {
    let own = std::process::id().to_string();
    let mut fds = 0;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if name.bytes().all(|byte| byte.is_ascii_digit()) && name != own {
            fds += std::fs::read_dir(entry.path().join("fd")).map_or(0, |entries| entries.count() as u64);
        }
    }
    fds
}

#[test]
fn sums_equal_a_listing_of_everything() {
    alone!();
    if !root_or_skip("sums_equal_a_listing_of_everything") {
        return;
    }
    let own = std::process::id().to_string();
    let mode = mode(|_| {});
    let mut seen = Vec::new();
    // The machine moves. That nothing moved between two equal listings is likely, not certain: hence several attempts.
    for _ in 0..200 {
        let before = count_by_listing();
        let samples = collect(&*mode);
        let after = count_by_listing();
        let total = value(&samples, "headroom_open_fds", &[]).unwrap();
        assert_eq!(sum(&samples, "headroom_command_open_fds"), total);
        assert_eq!(Some(sum(&samples, "headroom_command_processes")), value(&samples, "headroom_processes", &[]));
        let others = total - value(&samples, "headroom_process_open_fds", &[("pid", &own)]).unwrap();
        if before == after && others == before as f64 {
            return;
        }
        seen.push((before, others, after));
    }
    panic!("never equal: (listed, ours, listed) {seen:?}");
}

#[test]
fn inotify_of_another_user() {
    alone!();
    if !root_or_skip("inotify_of_another_user") {
        return;
    }
    let mode = mode(|_| {});
    let user = INOTIFY_USER.to_string();
    let of = |samples: &Samples, name| value(samples, name, &[("uid", &user)]);
    let helper = holding("inotify", Some(INOTIFY_USER));
    let samples = collect_warm(&*mode, |samples| of(samples, "headroom_inotify_instances").is_some());
    assert_eq!(of(&samples, "headroom_inotify_instances"), Some(5.0));
    assert_eq!(of(&samples, "headroom_inotify_watches"), Some(30.0), "0 + 3 + 6 + 9 + 12");
    let limit: f64 = shell("cat /proc/sys/fs/inotify/max_user_watches").trim().parse().unwrap();
    assert_eq!(of(&samples, "headroom_inotify_watches_limit"), Some(limit));
    // A second process of the same user, seen by an index that is warm.
    let second = holding("inotify", Some(INOTIFY_USER));
    let samples = collect(&*mode);
    assert_eq!(of(&samples, "headroom_inotify_instances"), Some(10.0));
    drop(helper);
    let samples = collect(&*mode);
    assert_eq!(of(&samples, "headroom_inotify_instances"), Some(5.0));
    drop(second);
    assert_eq!(of(&collect(&*mode), "headroom_inotify_instances"), None);
}

/// Becomes root of the user namespace that its user made, once somebody has mapped that namespace's users.
const ROOT_OF_A_NAMESPACE: &str =
    "until grep -q . /proc/self/uid_map; do sleep 0.05; done; exec setpriv --reuid=0 \"$@\"";

#[test]
fn what_a_user_namespace_holds_is_charged_to_its_owner() {
    alone!();
    if !root_or_skip("what_a_user_namespace_holds_is_charged_to_its_owner") {
        return;
    }
    if !std::path::Path::new("/proc/self/ns/user").exists() {
        skip!("a kernel with user namespaces");
    }
    let mode = mode(|_| {});
    let (owner, mapped) = (OWNING_USER.to_string(), MAPPED_USER.to_string());
    let reuid = format!("--reuid={owner}");
    let within = ["unshare", "--user", "--keep-caps", "sh", "-c", ROOT_OF_A_NAMESPACE, "sh"];
    let mut inside = Helper::start(HELPER, &[&["setpriv", &*reuid], &within[..]].concat(), "inotify", "");
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
    common::eventually("a user namespace of its own", || namespace(&inside.pid().to_string()) != namespace("self"));
    std::fs::write(format!("/proc/{}/uid_map", inside.pid()), format!("0 {mapped} 1")).unwrap();
    inside.ready();

    let used = |samples: &Samples, uid: &str| value(samples, "headroom_inotify_instances", &[("uid", uid)]);
    let samples = collect_warm(&*mode, |samples| used(samples, &owner).is_some());
    assert_eq!((used(&samples, &owner), used(&samples, &mapped)), (Some(5.0), None));
    assert_eq!(value(&samples, "headroom_inotify_watches", &[("uid", &owner)]), Some(30.0));
    // The kernel's own count: so many are left to the owner, and to the user it is mapped to all of them.
    let limit = value(&samples, "headroom_inotify_instances_limit", &[("uid", &owner)]).unwrap();
    for (user, left) in [(OWNING_USER, limit - 5.0), (MAPPED_USER, limit)] {
        let made = start("exhaust", Some(user)).ready().into_iter().find_map(|line| line.parse::<f64>().ok());
        assert_eq!(made, Some(left), "by {user}");
    }
}

#[test]
fn processes_that_come_and_go_are_no_errors() {
    alone!();
    struct Churn(Child);
    impl Drop for Churn {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
    let forks = || -> u64 { shell("awk '/^processes/ {print $2}' /proc/stat").trim().parse().unwrap() };
    let own_fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mode = mode(|settings| settings.top = 50);
    let first = forks();
    let _churn = Churn(Command::new("sh").args(["-c", "while :; do (:) & (:) & (:) & wait; done"]).spawn().unwrap());
    let (mut collected, give_up, fds) = (0, Instant::now() + Duration::from_secs(120), own_fds());
    let (looks, enough) = if crate::common::vm::inside() { (50, 300) } else { (200, 3000) };
    while collected < looks || forks() - first < enough {
        assert!(Instant::now() < give_up, "{} forks in two minutes", forks() - first);
        let samples = collect(&*mode);
        let errors: Vec<_> = samples.errors().iter().filter(|error| error.reason() != Reason::Denied).collect();
        assert!(errors.is_empty(), "{errors:?}");
        if value(&samples, "headroom_open_fds", &[]).is_some() {
            assert_eq!(Some(sum(&samples, "headroom_command_open_fds")), value(&samples, "headroom_open_fds", &[]));
        }
        collected += 1;
    }
    assert_eq!(own_fds(), fds, "a collector leaks none of what it opens");
}

#[test]
fn without_privileges_what_can_be_read_is_there() {
    alone!();
    if !root_or_skip("without_privileges_what_can_be_read_is_there") {
        return;
    }
    let target = holding("700", None);
    let mut helper = start("unprivileged", Some(65_534));
    let pid = helper.pid().to_string();
    let page = helper.ready();
    let has = |start: &str| page.iter().any(|line| line.starts_with(start));
    assert_eq!(page.iter().filter(|line| line.starts_with("error ")).collect::<Vec<_>>(), ["error denied"], "once");
    assert!(has("headroom_processes "));
    assert!(has(&format!("headroom_process_fds [\"{pid}\"")), "our own kinds");
    assert!(!has(&format!("headroom_process_fds [\"{}\"", target.pid())), "another user's kinds");
    assert!(has("headroom_inotify_instances [\"65534\"] 1"));
    assert!(has("headroom_inotify_watches [\"65534\"] 4"));
    assert!(!has("headroom_inotify_instances [\"0\"]"), "root's cannot be known");
    assert!(has("headroom_inotify_unexamined_fds ") && !has("headroom_inotify_unexamined_fds [] 0"));
    // Counting another user's fds takes no privilege since Linux 6.2, and CAP_DAC_READ_SEARCH before.
    let counted = Processes::open(&host()).unwrap().counts_by_size();
    assert_eq!(has("headroom_open_fds "), counted);
    assert_eq!(has(&format!("headroom_process_open_fds [\"{}\"", target.pid())), counted);
}

/// A shell that is `sh`, and becomes `name` with the same fds and pid when it is told to.
struct Program {
    shell: Child,
    _folder: tempfile::TempDir,
}

impl Program {
    fn start(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let cat = folder.path().join(name);
        std::fs::copy("/bin/cat", &cat).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("read line; exec {}", cat.display())]).stdin(std::process::Stdio::piped());
        let shell = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        Program { shell, _folder: folder }
    }

    fn pid(&self) -> String {
        self.shell.id().to_string()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// What a sweep does not read each time is at most [`known::AGAIN`] scrapes old, and another process is never taken for
/// the one before it.
#[test]
fn what_is_known_of_a_process_is_not_believed_for_long() {
    alone!();
    if !root_or_skip("what_is_known_of_a_process_is_not_believed_for_long") {
        return;
    }
    // Nobody is shown in detail, so names and limits are those of the sweep.
    let mode = mode(|settings| (settings.top, settings.daemons) = (0, Vec::new()));
    let commands = |samples: &Samples, name: &str| value(samples, "headroom_command_processes", &[("comm", name)]);
    let until = |what: &str, so: &dyn Fn(&Samples) -> bool| {
        let scrapes = (1..=known::AGAIN).find(|_| so(&collect(&*mode)));
        assert!(scrapes.is_some(), "{what}: not within {} scrapes", known::AGAIN);
    };
    let settled = || (0..3).for_each(|_| drop(collect(&*mode)));

    let mut program = Program::start("hr-execed");
    settled();
    program.shell.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    common::eventually("it is another program", || {
        std::fs::read_to_string(format!("/proc/{}/comm", program.pid())).unwrap() == "hr-execed\n"
    });
    until("the name after exec", &|samples| commands(samples, "hr-execed") == Some(1.0));

    let worst = |samples: &Samples| value(samples, "headroom_command_fd_worst_ratio", &[("comm", "hr-execed")]);
    settled();
    let fds = std::fs::read_dir(format!("/proc/{}/fd", program.pid())).unwrap().count();
    common::shell(&format!("prlimit --pid {} --nofile=10:10", program.pid()));
    until("a limit that was set from outside", &|samples| worst(samples) == Some(fds as f64 / 10.0));

    // The next process of this pid namespace takes the number that is free again.
    let pid = program.shell.id();
    let number = program.pid();
    drop(program);
    std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
    let heir = Program::start("hr-heir");
    assert_eq!(heir.pid(), number, "the test did not get the same number");
    let samples = collect(&*mode);
    assert_eq!((commands(&samples, "hr-execed"), worst(&samples)), (None, None), "at once");
}
