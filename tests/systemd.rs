//! The unit file under the real systemd: as process 1 of namespaces of its own, with no unit but ours and those that stand for its world.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

mod common;
#[path = "common/containerd.rs"]
mod containerd;

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Page, eventually, get, has, is_root};
use containerd::Containerd;

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/systemd/headroom-exporter.service");
const SYSTEMD: &str = "/lib/systemd/systemd";

/// The exporter as root with all that root may do: what the unit's page is held against.
const UNRESTRICTED: &str =
    "[Service]\nEnvironment=HEADROOM_WEB_LISTEN_ADDRESS=127.0.0.1:@PORT@ HEADROOM_RUNTIME_ENDPOINT=@ENDPOINT@
ExecStart=/usr/local/bin/headroom-exporter\n";

/// Somebody else's process, near its limit of file descriptors.
const STRANGER: &str = "[Service]\nUser=nobody\nLimitNOFILE=20
ExecStart=/bin/sh -c 'exec 3</etc/passwd 4</etc/passwd 5</dev/null 6</etc/passwd 7</etc/passwd; exec sleep 1000000'\n";

/// What its mounts are like: the unit and the binary are where the unit file says, and nothing of the machine's own units is there.
const BOOT: &str = r#"
mount --make-rslave /
mount -t tmpfs tmpfs /usr/local/bin
cp "$EXPORTER" /usr/local/bin/headroom-exporter
mount -t tmpfs tmpfs /etc/default
printf 'HEADROOM_WEB_LISTEN_ADDRESS=127.0.0.1:%s\nHEADROOM_RUNTIME_ENDPOINT=%s\n' "$PORT" "$ENDPOINT" >/etc/default/headroom-exporter
mount --bind "$UNITS" /lib/systemd/system
mount -t tmpfs tmpfs /etc/systemd
mount -t tmpfs tmpfs /run
umount --lazy /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
export container=other
exec "$SYSTEMD" --system --unit=test.target --log-target=console --log-level=info --show-status=no </dev/null
"#;

/// systemd, and the cgroup that it takes for the root of all. Dropped, both go.
struct Machine {
    systemd: Child,
    cgroup: PathBuf,
    _units: tempfile::TempDir,
    unit: SocketAddr,
    unrestricted: SocketAddr,
}

impl Machine {
    fn boot(endpoint: &str) -> Result<Self, String> {
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

        let (unit, unrestricted) = (free_port(), free_port());
        let units = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(units.path().join(name), text).unwrap();
        for target in ["sysinit", "basic", "network", "multi-user", "shutdown"] {
            write(&format!("{target}.target"), "[Unit]\nDefaultDependencies=no\n");
        }
        write("headroom-exporter.service", &fs::read_to_string(UNIT).unwrap());
        write(
            "unrestricted.service",
            &UNRESTRICTED.replace("@PORT@", &unrestricted.port().to_string()).replace("@ENDPOINT@", endpoint),
        );
        write("stranger.service", STRANGER);
        write(
            "test.target",
            "[Unit]\nDefaultDependencies=no\nWants=stranger.service unrestricted.service headroom-exporter.service\n",
        );

        let cgroup = unified.join(format!("headroom-systemd-{}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        // systemd takes the cgroup that it finds itself in for its root. No cgroup namespace: in one the exporter rightly refuses to count.
        let script = r#"echo $$ >"$CGROUP/cgroup.procs"
            exec unshare --mount --pid --fork --kill-child --uts --ipc --mount-proc sh -ec "$BOOT""#;
        let systemd = Command::new("sh")
            .args(["-ec", script])
            .env("BOOT", BOOT)
            .env("CGROUP", &cgroup)
            .env("EXPORTER", env!("CARGO_BIN_EXE_headroom-exporter"))
            .env("UNITS", units.path())
            .env("PORT", unit.port().to_string())
            .env("ENDPOINT", endpoint)
            .env("SYSTEMD", SYSTEMD)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let machine = Machine { systemd, cgroup, _units: units, unit, unrestricted };
        for address in [machine.unit, machine.unrestricted] {
            eventually(&format!("systemd has started an exporter at {address}"), || {
                TcpStream::connect(address).is_ok()
            });
        }
        Ok(machine)
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

/// What there is on a page. Of the two exporters themselves each knows something else.
fn series(page: &Page) -> BTreeSet<&str> {
    let own = |series: &str| series.contains("comm=\"headroom-export\"") || series.starts_with("headroom_image");
    page.0.keys().map(String::as_str).filter(|series| !own(series)).collect()
}

#[test]
fn under_the_unit_the_page_is_complete() {
    let cgroups = format!("/headroom-systemd-pods-{}", std::process::id());
    let containerd = match Containerd::start_below(&cgroups) {
        Ok(containerd) => containerd,
        Err(why) => skip!("{why}"),
    };
    let machine = match Machine::boot(&containerd.endpoint()) {
        Ok(machine) => machine,
        Err(why) => skip!("{why}"),
    };

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
        let mount = mounts.lines().filter(|mount| mount.split(' ').nth(4) == Some(place)).next_back().unwrap();
        assert!(mount.split(' ').nth(5).unwrap().split(',').any(|option| option == "ro"), "{mount}");
    }

    // And it misses nothing that root with all its powers would see.
    let (mut unit, mut unrestricted) = (page(machine.unit), page(machine.unrestricted));
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
        (unit, unrestricted) = (page(machine.unit), page(machine.unrestricted));
    }
    for collector in ["cgroup_leak", "kmem", "eviction", "open_files", "memory_volume", "pod_interface"] {
        assert_eq!(unit.outcome(collector), "ok", "{collector}: {:?}: {unit:#?}", errors(&unit));
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
    eventually("systemd starts it again", || {
        machine.pid_of("headroom-exporter.service").is_some_and(|again| again != pid)
            && TcpStream::connect(machine.unit).is_ok()
    });
}

#[test]
fn systemd_finds_no_fault_in_it_and_little_exposure() {
    if !has("systemd-analyze") {
        skip!("no systemd-analyze here (Debian: systemd)");
    }
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("headroom-exporter.service");
    let text = fs::read_to_string(UNIT).unwrap();
    let here = text.replace("/usr/local/bin/headroom-exporter", env!("CARGO_BIN_EXE_headroom-exporter"));
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
