//! Addresses beside Debian's host-local and a real containerd: what we say is free is what host-local hands out; fifty
//! pods on a bridge come and go and none of their addresses, mounts and network namespaces is ever leaked; a containerd
//! that is killed again and again while pods are made and removed leaks some, and these are what is counted.
#![allow(clippy::disallowed_methods, reason = "tests make the files that the library may only read through `host`")]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use headroom::host::{Deadline, Host, Roots};
use headroom::kubelet::handle;
use headroom::metric::Samples;
use headroom::modes::cni_leak::{
    CniLeak, FREE, LEAKED, MOUNTS, NAMED_NAMESPACES, ORPHANED_MOUNTS, ORPHANED_NAMESPACES, ORPHANED_SHIMS, Settings,
    USED,
};
use headroom::modes::{Collector as _, Context};
use headroom::runtime::{self, Runtime};
use headroom::services::Services;

use crate::common;
use crate::common::containerd::{self, Containerd};

/// Debian's, of containernetworking-plugins.
const PLUGINS: &str = "/usr/lib/cni";
const PODS: u64 = 50;

fn collect(mode: &CniLeak) -> Samples {
    let host = Host::new(Roots::default());
    mode.collect(Context::new(&host, Deadline::after(Duration::from_secs(20)))).unwrap()
}

/// A directory of configuration and one of reservations.
struct Cni(tempfile::TempDir);

impl Cni {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("hr-cni").tempdir().unwrap();
        fs::create_dir(folder.path().join("net.d")).unwrap();
        Cni(folder)
    }

    fn configuration(&self) -> String {
        self.0.path().join("net.d").display().to_string()
    }

    fn reservations(&self, network: &str) -> PathBuf {
        self.0.path().join("ipam").join(network)
    }

    fn settings(&self) -> Settings {
        // A pod takes its time on a machine that compiles: until it is listed it has an address that nobody knows.
        Settings { leak_grace: Duration::from_secs(12), configuration_dirs: vec![self.configuration()] }
    }
}

/// Asks host-local for an address until it has none. Before each request the mode must say how many are left, and at
/// the end that none is.
fn exhaust(ipam: &str, expected: &[u64]) {
    let cni = Cni::new();
    let network = format!("hr{}", common::unique());
    let data_dir = cni.0.path().join("ipam").display().to_string();
    let configuration = format!(
        r#"{{"cniVersion":"0.4.0","name":"{network}","type":"bridge","ipam":{{"type":"host-local","dataDir":"{data_dir}",{ipam}}}}}"#
    );
    fs::write(cni.0.path().join("net.d/10.conf"), &configuration).unwrap();
    let mode = CniLeak::new(cni.settings(), &Services::with_runtime(Runtime::default()));
    let host_local = |pod: u64| {
        let mut command = Command::new(Path::new(PLUGINS).join("host-local"));
        command.env_clear().env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", format!("{pod:064x}"));
        command.env("CNI_NETNS", "/none").env("CNI_IFNAME", "eth0").env("CNI_PATH", PLUGINS);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(configuration.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let left = || {
        let samples = collect(&mode);
        assert_eq!(samples.errors(), [], "{ipam}");
        let rows: Vec<_> = samples.rows().iter().filter(|row| std::ptr::eq(row.metric, &FREE)).collect();
        let mut left: Vec<(String, u64)> =
            rows.iter().map(|row| (row.labels[1].to_string(), row.value as u64)).collect();
        left.sort();
        left
    };
    let of = |left: &[(String, u64)]| {
        let mut counts: Vec<u64> = left.iter().map(|(_, count)| *count).collect();
        counts.sort_unstable();
        counts
    };
    assert_eq!(of(&left()), expected, "{ipam}");
    let nearest = expected.iter().min().unwrap();
    for pod in 0..*nearest {
        let (given, answer) = host_local(pod);
        assert!(given, "{ipam}: {answer}, and {:?} were left", left());
        let so_many: Vec<u64> = expected.iter().map(|count| count - pod - 1).collect();
        assert_eq!(of(&left()), so_many, "{ipam}");
    }
    let (given, answer) = host_local(*nearest);
    assert!(!given && answer.contains("no IP addresses available in range set"), "{ipam}: {answer}");
    // It names the set as we do.
    let left = left();
    let exhausted = left.iter().find(|(_, count)| *count == 0).unwrap();
    assert!(answer.contains(&format!("range set: {}", exhausted.0)), "{answer}: {left:?}");
}

#[test]
fn what_we_say_is_free_is_what_host_local_hands_out() {
    if !Path::new(PLUGINS).join("host-local").exists() {
        skip!("no {PLUGINS}/host-local (Debian: containernetworking-plugins)");
    }
    exhaust(r#""subnet":"10.77.1.0/29""#, &[5]);
    exhaust(r#""subnet":"10.77.1.0/29","gateway":"10.77.1.6""#, &[5]);
    exhaust(r#""subnet":"10.77.1.0/29","gateway":"10.9.9.9""#, &[6]);
    exhaust(r#""subnet":"10.77.1.0/29","rangeStart":"10.77.1.3","rangeEnd":"10.77.1.4""#, &[2]);
    exhaust(r#""subnet":"10.77.1.0/30","rangeStart":"10.77.1.0","rangeEnd":"10.77.1.3""#, &[3]);
    exhaust(r#""subnet":"fd00:77::/125""#, &[6]);
    exhaust(r#""ranges":[[{"subnet":"10.77.1.0/30"},{"subnet":"10.77.1.4/30"}]]"#, &[2]);
    exhaust(r#""ranges":[[{"subnet":"10.77.1.0/29"}],[{"subnet":"fd00:77::/124"}]]"#, &[5, 14]);
    exhaust(r#""subnet":"10.77.1.0/29","ranges":[[{"subnet":"10.77.2.0/28"}]]"#, &[5, 13]);
}

/// A containerd whose pods are on a bridge of their own. Dropped, everything of it goes.
struct Lab {
    containerd: Containerd,
    cni: Cni,
    cgroups: String,
    network: String,
    bridge: String,
    kubelet: tempfile::TempDir,
    /// What others left in the directories of CNI.
    before: BTreeSet<PathBuf>,
    /// Which of libcni's own directories were not there: what is left of them counts as a place of the machine's.
    made: Vec<&'static str>,
}

/// What libcni makes, the innermost first.
const LIBCNI: [&str; 2] = ["/var/lib/cni/results", "/var/lib/cni"];

/// Named network namespaces, and what libcni remembers of each sandbox.
fn of_cni() -> BTreeSet<PathBuf> {
    let list = |directory| fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    list("/run/netns").chain(list("/var/lib/cni/results")).collect()
}

impl Lab {
    fn open() -> Result<Self, String> {
        for plugin in ["bridge", "host-local"] {
            if !Path::new(PLUGINS).join(plugin).exists() {
                return Err(format!("no {PLUGINS}/{plugin} (Debian: containernetworking-plugins)"));
            }
        }
        if !common::has("ip") {
            return Err("no ip (Debian: iproute2)".to_owned());
        }
        let (unique, before) = (common::unique(), of_cni());
        let made = LIBCNI.into_iter().filter(|directory| !Path::new(directory).exists()).collect();
        let cgroups = format!("headroom-cni-{unique}");
        let containerd = Containerd::start_with_network(&format!("/{cgroups}/kubepods/besteffort"))?;
        let tag: String = unique.chars().rev().take(8).collect();
        let lab = Lab {
            cni: Cni::new(),
            cgroups,
            network: format!("hr{tag}"),
            bridge: format!("hr{tag}"),
            kubelet: tempfile::tempdir().unwrap(),
            before,
            made,
            containerd,
        };
        // Its own plugins in place of the one that leads nowhere; loopback stays.
        let own = lab.containerd.root().join("cni");
        for plugin in ["bridge", "host-local"] {
            std::os::unix::fs::symlink(Path::new(PLUGINS).join(plugin), own.join("bin").join(plugin)).unwrap();
        }
        let list = format!(
            r#"{{"cniVersion":"0.4.0","name":"{}","plugins":[{{"type":"bridge","bridge":"{}","ipMasq":false,
                "ipam":{{"type":"host-local","dataDir":"{}","subnet":"10.211.0.0/24"}}}}]}}"#,
            lab.network,
            lab.bridge,
            lab.cni.0.path().join("ipam").display()
        );
        fs::remove_file(own.join("net.d/10-nowhere.conflist")).unwrap();
        for directory in [own.join("net.d"), lab.cni.0.path().join("net.d")] {
            fs::write(directory.join("10-bridge.conflist"), &list).unwrap();
        }
        lab.containerd.kill();
        lab.containerd.launch()?;
        Ok(lab)
    }

    fn mode(&self) -> CniLeak {
        let settings = runtime::Settings {
            endpoint: Some(self.containerd.endpoint()),
            fresh: Duration::from_millis(50),
            ..Default::default()
        };
        let mut kubelet = handle::Settings::default();
        kubelet.overrides.root_dir = Some(self.kubelet.path().to_owned());
        let services = Services { runtime: Runtime::new(settings), ..Services::with_kubelet(kubelet) };
        CniLeak::new(self.cni.settings(), &services)
    }

    fn set(&self) -> [&str; 2] {
        [&self.network, "10.211.0.1-10.211.0.254"]
    }

    /// The files that host-local has, by the id in each.
    fn reserved(&self) -> Vec<(String, String)> {
        let files = fs::read_dir(self.cni.reservations(&self.network)).into_iter().flatten().flatten();
        let addresses = files.filter(|file| file.file_name().to_string_lossy().starts_with("10.211."));
        let read = addresses.filter_map(|file| {
            let text = fs::read_to_string(file.path()).ok()?;
            Some((file.file_name().into_string().ok()?, text.lines().next().unwrap_or_default().to_owned()))
        });
        read.collect()
    }

    /// What `ctr` lists: sandboxes are containers to it.
    fn listed(&self) -> BTreeSet<String> {
        let socket = self.containerd.socket();
        let list = common::shell(&format!("ctr --address {} --namespace k8s.io containers list -q", socket.display()));
        list.lines().map(str::to_owned).collect()
    }

    /// Network namespaces of ours that `ip netns` finds nobody in: the pause process of a sandbox is in its own.
    fn empty_namespaces(&self) -> BTreeSet<String> {
        let ours = of_cni().difference(&self.before).filter(|path| path.starts_with("/run/netns")).cloned().collect();
        let ours: Vec<PathBuf> = ours;
        let names = ours.iter().filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()));
        names.filter(|name| common::shell(&format!("ip netns pids {name}")).trim().is_empty()).collect()
    }

    /// What `ps` shows of the shims of this containerd: number and container.
    fn shims(&self) -> Vec<(u32, String)> {
        let address = self.containerd.socket().display().to_string();
        let all = common::shell("ps -ww -eo pid=,args=");
        let ours = all.lines().filter(|line| line.contains("/containerd-shim-runc-v2 ") && line.contains(&address));
        let shim = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let id = words.iter().position(|word| *word == "-id").and_then(|at| words.get(at + 1))?;
            Some((words[0].parse().ok()?, (*id).to_owned()))
        };
        ours.filter_map(shim).collect()
    }

    /// Host ends of veth pairs: ports of the bridge.
    fn ports(&self) -> usize {
        common::shell(&format!("ip -o link show master {}", self.bridge)).lines().count()
    }

    /// Removes a pod's directories once they are empty, as the kubelet does.
    fn remove_cgroup(&self, uid: &str) {
        for root in [Path::new("/sys/fs/cgroup").to_owned()]
            .into_iter()
            .chain(fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path()))
        {
            let directory = root.join(format!("{}/kubepods/besteffort/pod{uid}", self.cgroups));
            if directory.is_dir() {
                common::eventually("the pod's cgroup is empty", || fs::remove_dir(&directory).is_ok());
            }
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for id in self.listed() {
            let _ = self.containerd.remove_sandbox(&id);
        }
        self.containerd.kill();
        containerd::remove_cgroups_named(&self.cgroups);
        containerd::unmount_below(self.kubelet.path());
        // Others that make any wait for us.
        for path in of_cni().difference(&self.before) {
            let _ = rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH);
            let _ = fs::remove_file(path);
        }
        for directory in &self.made {
            let _ = fs::remove_dir(directory);
        }
        common::shell(&format!("ip link delete {} 2>/dev/null || true", self.bridge));
    }
}

fn orphaned(samples: &Samples) -> Vec<f64> {
    let of =
        samples.rows().iter().filter(|row| std::ptr::eq(row.metric, &ORPHANED_MOUNTS) && &*row.labels[0] == "machine");
    of.map(|row| row.value).collect()
}

#[test]
fn fifty_pods_come_and_go_and_no_address_is_leaked_until_the_runtime_is_killed() {
    let _lock = common::machine_lock();
    let lab = match Lab::open() {
        Ok(lab) => lab,
        Err(why) => skip!("{why}"),
    };
    let mode = lab.mode();
    // Else nothing that is mounted here is mounted on the machine.
    let machine = common::is_in_the_machines_mount_namespace();
    if !machine {
        common::say_skip("mounts and network namespaces of pods: not in the machine's mount namespace");
    }
    let resident = lab.containerd.run_sandbox("resident", "11111111-0000-4000-8000-000000000000");
    let samples = collect(&mode);
    assert_eq!(samples.errors(), []);
    assert_eq!((samples.value(&USED, &lab.set()), samples.value(&FREE, &lab.set())), (Some(1.0), Some(252.0)));

    let (next, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut most = (0, 0.0_f64);
    let mut told = 0;
    std::thread::scope(|scope| {
        let churn = || {
            while next.load(Ordering::Relaxed) < PODS && !done.load(Ordering::Relaxed) {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let uid = format!("22222222-0000-4000-8000-{number:012}");
                let pod = lab.containerd.run_sandbox(&format!("churn{number}"), &uid);
                lab.containerd.remove_sandbox(&pod.id).unwrap();
                lab.remove_cgroup(&uid);
            }
        };
        let churners = [scope.spawn(churn), scope.spawn(churn)];
        let scraped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while !churners.iter().all(|churner| churner.is_finished()) {
                let samples = collect(&mode);
                assert_eq!(samples.errors(), []);
                assert_eq!(samples.value(&LEAKED, &lab.set()), Some(0.0), "after {} scrapes", most.0);
                assert_eq!(samples.value(&ORPHANED_SHIMS, &[]), Some(0.0), "after {} scrapes", most.0);
                if machine {
                    assert_eq!(orphaned(&samples), [0.0; 3], "after {} scrapes", most.0);
                    let namespaces = samples.value(&ORPHANED_NAMESPACES, &[]);
                    assert!(namespaces.is_none_or(|count| count == 0.0), "{namespaces:?} after {} scrapes", most.0);
                    told += usize::from(namespaces.is_some());
                }
                most = (most.0 + 1, most.1.max(samples.value(&USED, &lab.set()).unwrap()));
            }
        }));
        done.store(true, Ordering::Relaxed);
        if let Err(panic) = scraped {
            std::panic::resume_unwind(panic);
        }
    });
    eprintln!("{PODS} pods, {} scrapes, at most {} addresses at once", most.0, most.1);
    assert!(most.0 > 50 && most.1 > 1.0, "the test saw nothing of the churn: {most:?}");
    assert!(!machine || told * 2 > most.0, "of {} scrapes {told} told of network namespaces", most.0);
    assert_eq!(collect(&mode).value(&USED, &lab.set()), Some(1.0), "all have given theirs back but the resident");

    // Killed in the middle of removals. containerd takes these up again when it is back, and gives the addresses back;
    // so somebody helps, as people do with pods that do not go, and deletes what is left of them with `ctr`.
    let mut rounds = 0;
    let leaked = loop {
        rounds += 1;
        let made: Vec<_> = (0..3)
            .map(|pod| {
                let uid = format!("33333333-0000-4000-8000-{:012}", rounds * 10 + pod);
                lab.containerd.run_sandbox(&format!("killed{rounds}-{pod}"), &uid)
            })
            .collect();
        std::thread::scope(|scope| {
            for pod in &made {
                // It fails where the end comes before.
                scope.spawn(|| lab.containerd.remove_sandbox(&pod.id));
            }
            // Sooner or later in the removal, round by round.
            std::thread::sleep(Duration::from_millis(25 * rounds));
            lab.containerd.kill();
        });
        // Plugins end on their own.
        std::thread::sleep(Duration::from_millis(500));
        lab.containerd.launch().unwrap();
        let ctr = format!("ctr --address {} --namespace k8s.io", lab.containerd.socket().display());
        for id in lab.listed().into_iter().filter(|id| *id != resident.id) {
            common::shell(&format!("{ctr} task delete --force {id} 2>/dev/null || true; {ctr} container delete {id}"));
        }
        lab.containerd.kill();
        lab.containerd.launch().unwrap();
        let listed = lab.listed();
        let leaked: Vec<_> = lab.reserved().into_iter().filter(|(_, id)| !listed.contains(id)).collect();
        if leaked.len() >= 2 {
            break leaked;
        }
        assert!(rounds < 20, "containerd was killed {rounds} times, and left {leaked:?}");
    };
    eprintln!("killed {rounds} times: {leaked:?}");

    // Volumes of a pod that is there and of one that is gone.
    for (uid, volume) in [
        (&*resident.uid, "a"),
        ("44444444-0000-4000-8000-000000000000", "b"),
        ("44444444-0000-4000-8000-000000000000", "c"),
    ] {
        let place = lab.kubelet.path().join(format!("pods/{uid}/volumes/kubernetes.io~empty-dir/{volume}"));
        fs::create_dir_all(&place).unwrap();
        common::shell(&format!("mount -t tmpfs headroom-test {}", place.display()));
    }
    let samples = collect(&mode);
    assert_eq!(samples.value(&LEAKED, &lab.set()), Some(0.0), "not at first sight");
    let patience = Instant::now() + Duration::from_secs(90);
    let samples = loop {
        let samples = collect(&mode);
        if samples.value(&LEAKED, &lab.set()) == Some(leaked.len() as f64) {
            break samples;
        }
        assert!(Instant::now() < patience, "{:?} of {leaked:?}", samples.value(&LEAKED, &lab.set()));
        std::thread::sleep(Duration::from_millis(200));
    };
    assert_eq!(samples.errors(), []);
    assert_eq!(samples.value(&USED, &lab.set()), Some(lab.reserved().len() as f64));
    let names = fs::read_dir("/run/netns").unwrap().count() as f64;
    let named = samples.value(&NAMED_NAMESPACES, &[]).unwrap();
    assert!((named - names).abs() <= 2.0, "{named} {names}: other tests make some too");
    if machine {
        common::eventually_within(60, "two mounts of the pod that is gone", || {
            collect(&mode).value(&ORPHANED_MOUNTS, &["machine", "pods"]) == Some(2.0)
        });
        let samples = collect(&mode);
        assert_eq!(samples.value(&MOUNTS, &["machine", "pods"]), Some(3.0));
        // What holds a leaked address is a namespace: containerd unmounts it after the plugins gave the address back.
        let empty = lab.empty_namespaces();
        eprintln!("network namespaces that nobody is in: {empty:?}");
        assert!(empty.len() >= leaked.len(), "{empty:?} {leaked:?}");
        common::eventually_within(60, "the namespaces of sandboxes that are gone", || {
            collect(&mode).value(&ORPHANED_NAMESPACES, &[]) == Some(empty.len() as f64)
        });
        assert_eq!(lab.ports(), empty.len() + 1, "a veth for each, and the resident's");
    }

    // A runtime that is away makes no leak, and takes none back.
    lab.containerd.kill();
    std::thread::sleep(Duration::from_millis(60));
    let samples = collect(&mode);
    assert_eq!((samples.errors().len(), samples.value(&LEAKED, &lab.set())), (1, None));
    lab.containerd.launch().unwrap();
    common::eventually("the runtime answers again", || collect(&mode).errors().is_empty());
    assert_eq!(collect(&mode).value(&LEAKED, &lab.set()), Some(leaked.len() as f64));

    // Given back as the runbook says: by removing the names, and the files.
    if machine {
        let empty = lab.empty_namespaces();
        assert_eq!(collect(&mode).value(&ORPHANED_NAMESPACES, &[]), Some(empty.len() as f64));
        empty.iter().for_each(|name| drop(common::shell(&format!("ip netns delete {name}"))));
        assert_eq!(collect(&mode).value(&ORPHANED_NAMESPACES, &[]), Some(0.0));
        common::eventually("the kernel removes their veths", || lab.ports() == 1);
    }
    for (address, _) in &leaked {
        fs::remove_file(lab.cni.reservations(&lab.network).join(address)).unwrap();
    }
    let samples = collect(&mode);
    assert_eq!((samples.value(&LEAKED, &lab.set()), samples.value(&USED, &lab.set())), (Some(0.0), Some(1.0)));
    // What a runtime knows its shims by is gone when it comes back, and the pod is removed without them.
    let samples = collect(&mode);
    let strays = lab.shims().iter().filter(|(_, id)| !lab.listed().contains(id)).count() as f64;
    assert_eq!((samples.errors(), samples.value(&ORPHANED_SHIMS, &[])), (&[][..], Some(strays)));
    let pod = lab.containerd.run_sandbox("shim", "55555555-0000-4000-8000-000000000000");
    lab.containerd.kill();
    let bundle = lab.containerd.root().join("state/io.containerd.runtime.v2.task/k8s.io").join(&pod.id);
    common::shell(&format!("umount -l {0}/rootfs; rm -r {0}", bundle.display()));
    lab.containerd.launch().unwrap();
    lab.containerd.remove_sandbox(&pod.id).unwrap();
    let left: Vec<_> = lab.shims().into_iter().filter(|(_, id)| *id == pod.id).collect();
    let [(shim, _)] = left[..] else { panic!("{left:?} of {:?}", lab.shims()) };
    assert!(!lab.listed().contains(&pod.id));
    assert_eq!(collect(&mode).value(&ORPHANED_SHIMS, &[]), Some(strays), "not at first sight");
    common::eventually_within(60, "the shim of a sandbox that is gone", || {
        collect(&mode).value(&ORPHANED_SHIMS, &[]) == Some(strays + 1.0)
    });
    assert_eq!(collect(&mode).errors(), []);
    // Ended as the runbook says: first what runs in it.
    common::shell(&format!("kill -9 $(ps -o pid= --ppid {shim}) {shim}"));
    common::eventually("it has ended", || collect(&mode).value(&ORPHANED_SHIMS, &[]) == Some(strays));
}
