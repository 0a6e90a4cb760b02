//! The unit file under the real systemd: as process 1 of namespaces of its own, with no unit but ours and those that
//! stand for its world.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use headroom::modes::MODES;

use crate::common::containerd::Containerd;
use crate::common::{self, Page, eventually, get, has, is_root};

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/systemd/headroom-exporter.service");
const SYSTEMD: &str = "/lib/systemd/systemd";
const EXPORTER: &str = env!("CARGO_BIN_EXE_headroom-exporter");

/// The exporter as root with all that root may do: what the unit's page is held against.
const UNRESTRICTED: &str =
    "[Service]\nEnvironment=HEADROOM_WEB_LISTEN_ADDRESS=@ADDRESS@ HEADROOM_RUNTIME_ENDPOINT=@ENDPOINT@
ExecStart=/usr/local/bin/headroom-exporter\n";

/// Somebody else's process, near its limit of file descriptors.
const STRANGER: &str = "[Service]\nUser=nobody\nLimitNOFILE=20
ExecStart=/bin/sh -c 'exec 3</etc/passwd 4</etc/passwd 5</dev/null 6</etc/passwd 7</etc/passwd; exec sleep 1000000'\n";

/// What its mounts are like: the unit and the binary are where the unit file says, and nothing of the machine's own
/// units is there.
const BOOT: &str = r#"
mount --make-rslave /
mount -t tmpfs tmpfs /usr/local/bin
mount -t tmpfs tmpfs /etc/default
mount --bind "$UNITS" /lib/systemd/system
mount -t tmpfs tmpfs /etc/systemd
mkdir /etc/systemd/system
eval "$INSTALL"
mount -t tmpfs tmpfs /run
umount --lazy /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
export container=other
exec "$SYSTEMD" --system --unit=test.target --log-target=console --log-level=info --show-status=no </dev/null
"#;

/// Where the unit file expects things, for the test that does not install them as the document says.
const INSTALL: &str = r#"
cp "$EXPORTER" /usr/local/bin/headroom-exporter
printf 'HEADROOM_WEB_LISTEN_ADDRESS=%s\nHEADROOM_RUNTIME_ENDPOINT=%s\n' "$ADDRESS" "$ENDPOINT" >/etc/default/headroom-exporter
"#;

/// systemd, and the cgroup that it takes for the root of all. Dropped, both go.
struct Machine {
    systemd: Child,
    cgroup: PathBuf,
    _units: tempfile::TempDir,
}

impl Machine {
    /// With these units, of which the services are started. `install` is a piece of shell, with these variables.
    fn boot(units: &[(&str, String)], install: &str, variables: &[(&str, &str)]) -> Result<Self, String> {
        if !is_root() {
            return Err("systemd as process 1 of a namespace needs root".to_owned());
        }
        if !Path::new(SYSTEMD).exists() {
            return Err(format!("no {SYSTEMD} here (Debian: systemd)"));
        }
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let unified = mounts.lines().find_map(|mount| {
            let mut words = mount.split(' ').skip(1);
            let folder = words.next()?;
            (words.next()? == "cgroup2").then(|| PathBuf::from(folder))
        });
        let Some(unified) = unified else { return Err("no cgroup2 is mounted here".to_owned()) };

        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        for target in ["sysinit", "basic", "network", "multi-user", "shutdown"] {
            write(&format!("{target}.target"), "[Unit]\nDefaultDependencies=no\n");
        }
        let mut target = "[Unit]\nDefaultDependencies=no\n".to_owned();
        for (name, text) in units {
            write(name, text);
            target.push_str(&format!("Wants={name}\n"));
        }
        write("test.target", &target);

        let cgroup = unified.join(format!("headroom-systemd-{}", common::unique()));
        fs::create_dir(&cgroup).unwrap();
        // systemd takes the cgroup that it finds itself in for its root. No cgroup namespace: in one the exporter
        // rightly refuses to count.
        let script = r#"echo $$ >"$CGROUP/cgroup.procs"
            exec unshare --mount --pid --fork --kill-child --uts --ipc --mount-proc sh -ec "$BOOT""#;
        let systemd = Command::new("sh")
            .args(["-ec", script])
            .envs([("BOOT", BOOT), ("INSTALL", install), ("SYSTEMD", SYSTEMD)])
            .envs(variables.iter().copied())
            .env("CGROUP", &cgroup)
            .env("UNITS", folder.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Ok(Machine { systemd, cgroup, _units: folder })
    }

    /// Runs a piece of shell among its processes and mounts, once systemd listens.
    fn run(&self, folder: &Path, script: &str) -> String {
        let children = format!("/proc/{0}/task/{0}/children", self.systemd.id());
        let init = || fs::read_to_string(&children).unwrap().trim().to_owned();
        eventually("systemd is there", || Path::new(&format!("/proc/{}/root/run/systemd/private", init())).exists());
        let output = Command::new("nsenter")
            .args(["--target", &init(), "--mount", "--pid", "--uts", "--ipc", "bash", "-euo", "pipefail", "-c"])
            .arg(format!("cd {}\n{script}", folder.display()))
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The main process of a unit, as it is numbered out here.
    fn pid_of(&self, unit: &str) -> Option<u32> {
        let pids = fs::read_to_string(self.cgroup.join("system.slice").join(unit).join("cgroup.procs")).ok()?;
        pids.lines().next()?.parse().ok()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // With process 1 its whole namespace ends.
        let _ = self.systemd.kill();
        let _ = self.systemd.wait();
        let until = Instant::now() + Duration::from_secs(5);
        while !remove_cgroups(&self.cgroup) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn remove_cgroups(folder: &Path) -> bool {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroups(&entry.path());
        }
    }
    fs::remove_dir(folder).is_ok()
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn page(address: SocketAddr) -> Page {
    let response = get(address, "/metrics", &[]);
    assert_eq!(response.status, 200);
    Page::parse(&response.text())
}

/// Modes of what a kubelet and its apiserver have with each other.
const APISERVER: [&str; 2] = ["apiserver_connection", "node_status"];

/// What there is on a page. Of the two exporters themselves each knows something else.
fn series(page: &Page) -> BTreeSet<&str> {
    let own = |series: &str| {
        series.contains("comm=\"headroom-export\"")
            || series.contains("mount_namespace=\"exporter\"")
            || series.starts_with("headroom_image")
    };
    page.0.keys().map(String::as_str).filter(|series| !own(series)).collect()
}

#[test]
fn under_the_unit_the_page_is_complete() {
    let cgroups = format!("/headroom-systemd-pods-{}", common::unique());
    let containerd = match Containerd::start_below(&cgroups) {
        Ok(containerd) => containerd,
        Err(why) => skip!("{why}"),
    };
    let (unit_address, unrestricted_address, endpoint) = (free_port(), free_port(), containerd.endpoint());
    let unrestricted =
        UNRESTRICTED.replace("@ADDRESS@", &unrestricted_address.to_string()).replace("@ENDPOINT@", &endpoint);
    let units = [
        ("headroom-exporter.service", fs::read_to_string(UNIT).unwrap()),
        ("unrestricted.service", unrestricted),
        ("stranger.service", STRANGER.to_owned()),
    ];
    let variables = [("EXPORTER", EXPORTER), ("ADDRESS", &unit_address.to_string()), ("ENDPOINT", &endpoint)];
    let machine = match Machine::boot(&units, INSTALL, &variables) {
        Ok(machine) => machine,
        Err(why) => skip!("{why}"),
    };
    for address in [unit_address, unrestricted_address] {
        eventually(&format!("systemd has started an exporter at {address}"), || TcpStream::connect(address).is_ok());
    }

    // It does run restricted.
    let pid = machine.pid_of("headroom-exporter.service").unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        line.unwrap_or_else(|| panic!("{name}: {status}"))
    };
    // CAP_DAC_READ_SEARCH is bit 2, CAP_SYS_PTRACE is bit 19 (capabilities(7)).
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(u64::from_str_radix(field(set), 16), Ok(1 << 2 | 1 << 19), "{set}: {status}");
    }
    assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1", "2"), "{status}");
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    for place in ["/", "/run", "/sys", "/sys/fs/cgroup"] {
        let mount = mounts.lines().rfind(|mount| mount.split(' ').nth(4) == Some(place)).unwrap();
        assert!(mount.split(' ').nth(5).unwrap().split(',').any(|option| option == "ro"), "{mount}");
    }

    let names = fs::read_to_string(format!("/proc/{pid}/root/etc/nsswitch.conf")).unwrap_or_default();
    assert_eq!(names, "", "it must not learn of modules that a static binary had better not load");

    // And it misses nothing that root with all its powers would see.
    let (mut unit, mut unrestricted) = (page(unit_address), page(unrestricted_address));
    let until = Instant::now() + Duration::from_secs(10);
    while series(&unit) != series(&unrestricted) {
        let (one, other) = (series(&unit), series(&unrestricted));
        let differ: Vec<_> = one.symmetric_difference(&other).collect();
        assert!(
            Instant::now() < until,
            "on one page only: {differ:#?} {:?} {:?}",
            errors(&unit),
            errors(&unrestricted)
        );
        (unit, unrestricted) = (page(unit_address), page(unrestricted_address));
    }
    for collector in MODES.iter().map(|mode| mode.id) {
        let outcome = unit.outcome(collector);
        assert_eq!(outcome, unrestricted.outcome(collector), "{collector}: {:?}: {unit:#?}", errors(&unit));
        // No kubelet runs here, so nobody has an apiserver.
        let expected = if APISERVER.contains(&collector) { "not_applicable" } else { "ok" };
        assert_eq!(outcome, expected, "{collector}: {:?}: {unit:#?}", errors(&unit));
    }
    for name in ["headroom_filesystem_readonly", "headroom_eviction_capacity_bytes", "headroom_inotify_instances_limit"]
    {
        let of = |page: &Page| page.family(name).map(|(series, value)| (series.to_owned(), value)).collect::<Vec<_>>();
        assert!(!of(&unit).is_empty(), "{name}");
        assert_eq!(of(&unit), of(&unrestricted));
    }
    let runtime = unit.family("headroom_runtime_info").any(|(series, _)| series.contains("runtime=\"containerd\""));
    assert!(runtime, "a socket of root's is reached without CAP_DAC_OVERRIDE: {unit:#?}");
    let has = |name: &str, label: &str, value: f64| {
        unit.family(name).any(|(series, found)| {
            series.contains("comm=\"sleep\"") && series.contains(label) && found.to_bits() == value.to_bits()
        })
    };
    assert!(has("headroom_process_fd_limit", "", 20.0), "somebody else's limit: {unit:#?}");
    assert!(has("headroom_process_fds", "kind=\"file\"", 4.0), "where somebody else's descriptors lead: {unit:#?}");

    // A crash lasts as long as RestartSec; the second time it is another process.
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    // RestartSec alone is 5 s.
    let until = Instant::now() + Duration::from_secs(30);
    let again = || machine.pid_of("headroom-exporter.service").is_some_and(|again| again != pid);
    while !(again() && TcpStream::connect(unit_address).is_ok()) {
        assert!(Instant::now() < until, "systemd does not start it again");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn systemd_finds_no_fault_in_it_and_little_exposure() {
    if !has("systemd-analyze") {
        skip!("no systemd-analyze here (Debian: systemd)");
    }
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("headroom-exporter.service");
    let text = fs::read_to_string(UNIT).unwrap();
    let here = text.replace("/usr/local/bin/headroom-exporter", EXPORTER);
    fs::write(&unit, &here).unwrap();
    let analyze = |arguments: &[&str]| {
        let output = Command::new("systemd-analyze").args(arguments).arg(&unit).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), said)
    };
    let (fine, said) = analyze(&["verify", "--man=no", "--recursive-errors=no"]);
    assert!(fine && !said.contains("headroom-exporter.service"), "{said}");
    // 2.7 of 10, where 10 is a service without any restriction; what is left is what reading a node takes.
    let (fine, said) = analyze(&["security", "--offline=true", "--no-pager", "--threshold=27"]);
    assert!(fine, "{said}");

    fs::write(&unit, here.replace("CapabilityBoundingSet=CAP_DAC_READ_SEARCH CAP_SYS_PTRACE", "Nonsense=yes")).unwrap();
    assert!(analyze(&["verify", "--man=no", "--recursive-errors=no"]).1.contains("Nonsense"), "what is wrong is told");
    assert!(
        !analyze(&["security", "--offline=true", "--no-pager", "--threshold=27"]).0,
        "all capabilities are too many"
    );
}

fn errors(page: &Page) -> Vec<&str> {
    let counted = page.family("headroom_collector_errors_total").filter(|(_, count)| *count > 0.0);
    counted.map(|(series, _)| series).collect()
}

/// `docs/quickstart.md`, a single machine under systemd: its commands as they stand there, but for the port.
#[test]
fn the_commands_of_the_quick_start_install_it_and_change_its_settings() {
    let text = fs::read_to_string("docs/quickstart.md").unwrap();
    let section = text.split("\n## A single machine under systemd\n").nth(1).expect("the section");
    let port = free_port().port().to_string();
    let blocks: Vec<String> = section
        .split("```sh\n")
        .skip(1)
        .map(|rest| rest.split("\n```").next().unwrap().replace("10843", &port))
        .collect();
    assert_eq!(blocks.len(), 2, "{blocks:#?}");
    // For the first of the two there are no settings yet, and the port is the default one: this stands for it.
    let default = format!("printf 'HEADROOM_WEB_LISTEN_ADDRESS=127.0.0.1:{port}\\n' >/etc/default/headroom-exporter");
    let machine = match Machine::boot(&[], &default, &[]) {
        Ok(machine) => machine,
        Err(why) => skip!("{why}"),
    };
    // What an unpacked release has.
    let folder = tempfile::tempdir().unwrap();
    fs::copy(EXPORTER, folder.path().join("headroom-exporter")).unwrap();
    fs::create_dir(folder.path().join("systemd")).unwrap();
    fs::copy(UNIT, folder.path().join("systemd/headroom-exporter.service")).unwrap();

    let said = machine.run(folder.path(), &blocks[0]);
    assert!(said.contains("headroom_collector_outcome{collector=\"kmem\",outcome=\"ok\"} 1"), "{said}");
    assert_eq!(machine.run(folder.path(), "systemctl is-enabled headroom-exporter.service").trim(), "enabled");

    machine.run(folder.path(), &blocks[1]);
    let address: SocketAddr = format!("127.0.0.1:{port}").parse().unwrap();
    eventually("it has started again, with one collector less", || {
        let Ok(_) = TcpStream::connect(address) else { return false };
        let page = page(address);
        page.outcome("eviction") == "ok" && !page.0.keys().any(|series| series.contains("collector=\"kmem\""))
    });
    machine.run(folder.path(), "systemctl stop headroom-exporter.service");
    assert!(TcpStream::connect(address).is_err(), "it has stopped");
}
