//! Orphaned cgroups beside a real containerd: fifty pods come and go while the mode is scraped without a pause and
//! without grace, and none of them is ever an orphan; a directory that was left over is one; a runtime that dies makes
//! none and forgets none.
#![allow(clippy::disallowed_methods, reason = "tests make the files that the library may only read through `host`")]

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use headroom::host::{Deadline, Host, Roots};
use headroom::metric::Samples;
use headroom::modes::cgroup_leak::{CONTAINERS, CgroupLeak, KUBEPODS, ORPHANED, RUNTIME_INFO, SANDBOXES, Settings};
use headroom::modes::{Collector as _, Context};
use headroom::runtime::{self, Runtime};
use headroom::services::Services;

use crate::common;
use crate::common::containerd::{self, Containerd};

const PODS: u64 = 50;
const LEFT_OVER: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Cgroups of this test, in every hierarchy. Dropped, they go.
struct Cgroups(String);

impl Cgroups {
    /// Directories of the same cgroup in the hierarchies that have it.
    fn everywhere(below: &str) -> Vec<std::path::PathBuf> {
        let mut roots = vec![Path::new("/sys/fs/cgroup").to_owned()];
        roots.extend(fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path()));
        roots.into_iter().map(|root| root.join(below)).filter(|path| path.is_dir()).collect()
    }

    /// Removes a pod's directories once they are empty, as the kubelet does.
    fn remove_pod(&self, uid: &str) {
        for directory in Self::everywhere(&format!("{}/kubepods/besteffort/pod{uid}", self.0)) {
            common::eventually("the pod's cgroup is empty", || fs::remove_dir(&directory).is_ok());
        }
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        containerd::remove_cgroups_named(&self.0);
    }
}

struct Lab {
    collector: CgroupLeak,
    host: Host,
}

impl Lab {
    fn new(endpoint: String) -> Self {
        // Hardly shared, so that there are many questions; what is shared is tested with made-up moments.
        let settings =
            runtime::Settings { endpoint: Some(endpoint), fresh: Duration::from_millis(50), ..Default::default() };
        // A churner that is not scheduled for a moment leaves a true orphan for as long.
        let leak = Settings { orphan_grace: Duration::from_secs(3), ..Settings::default() };
        Lab {
            collector: CgroupLeak::new(leak, &Services::with_runtime(Runtime::new(settings))),
            host: Host::new(Roots::default()),
        }
    }

    fn scrape(&self) -> Samples {
        let context = Context::new(&self.host, Deadline::after(Duration::from_secs(20)));
        self.collector.collect(context).unwrap()
    }

    /// Scrapes without errors until it is so.
    fn until(&self, what: &str, so: impl Fn(&Samples) -> bool) -> Samples {
        let patience = Instant::now() + Duration::from_secs(60);
        loop {
            let samples = self.scrape();
            assert_eq!(samples.errors(), [], "{what}");
            if so(&samples) {
                return samples;
            }
            assert!(Instant::now() < patience, "not so after a minute: {what}: {:?}", orphaned(&samples));
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// pod, container, other.
fn orphaned(samples: &Samples) -> [Option<f64>; 3] {
    ["pod", "container", "other"].map(|kind| samples.value(&ORPHANED, &[kind]))
}

#[test]
fn fifty_pods_come_and_go_and_none_is_an_orphan() {
    // Other tests make a kubepods tree at the root of the hierarchy, and that would be this node's.
    let _lock = common::machine_lock();
    if !Cgroups::everywhere("kubepods").is_empty() || !Cgroups::everywhere("kubepods.slice").is_empty() {
        skip!("this is a Kubernetes node: /sys/fs/cgroup/…/kubepods exists");
    }
    let cgroups = Cgroups(format!("headroom-churn-{}", common::unique()));
    let containerd = match Containerd::start_below(&format!("/{}/kubepods/besteffort", cgroups.0)) {
        Ok(containerd) => containerd,
        Err(why) => skip!("{why}"),
    };
    let lab = Lab::new(containerd.endpoint());

    // One pod stays, so that there is a kubepods tree throughout.
    let resident = containerd.run_sandbox("resident", "11111111-0000-4000-8000-000000000000");
    let container = containerd.run_container(&resident, "sleep", &["sleep", "1000000"]);
    let samples = lab.until("the resident pod is seen", |samples| samples.value(&SANDBOXES, &["ready"]) == Some(1.0));
    assert_eq!(samples.value(&CONTAINERS, &["running"]), Some(1.0));
    assert_eq!(samples.value(&KUBEPODS, &["container", "besteffort"]), Some(2.0), "its pause container, too");

    let (next, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut most = (0, 0.0_f64);
    std::thread::scope(|scope| {
        let churn = || {
            while next.load(Ordering::Relaxed) < PODS && !done.load(Ordering::Relaxed) {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let uid = format!("22222222-0000-4000-8000-{number:012}");
                let pod = containerd.run_sandbox(&format!("churn{number}"), &uid);
                let container = containerd.run_container(&pod, "sleep", &["sleep", "1000000"]);
                containerd.stop_container(&container).unwrap();
                containerd.remove_container(&container).unwrap();
                containerd.remove_sandbox(&pod.id).unwrap();
                cgroups.remove_pod(&uid);
            }
        };
        let churners = [scope.spawn(churn), scope.spawn(churn)];
        let scraped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            while !churners.iter().all(|churner| churner.is_finished()) {
                let samples = lab.scrape();
                assert_eq!(samples.errors(), []);
                assert_eq!(orphaned(&samples), [Some(0.0); 3], "after {} scrapes", most.0);
                let pods = samples.value(&KUBEPODS, &["pod", "besteffort"]).unwrap();
                most = (most.0 + 1, most.1.max(pods));
            }
        }));
        done.store(true, Ordering::Relaxed);
        if let Err(panic) = scraped {
            std::panic::resume_unwind(panic);
        }
    });
    eprintln!("{PODS} pods, {} scrapes, at most {} pods at once", most.0, most.1);
    assert!(most.0 > 50 && most.1 > 1.0, "the test saw nothing of the churn: {most:?}");
    let samples = lab.scrape();
    assert_eq!(samples.value(&KUBEPODS, &["pod", "besteffort"]), Some(1.0), "all are gone but the resident");

    // A pod that nobody knows with a container in it, and a container in a live pod.
    let memory = Cgroups::everywhere(&format!("{}/kubepods/besteffort", cgroups.0));
    let memory = memory.iter().find(|path| path.starts_with("/sys/fs/cgroup/memory")).or(memory.first()).unwrap();
    fs::create_dir_all(memory.join(format!("pod33333333-0000-4000-8000-000000000000/{LEFT_OVER}"))).unwrap();
    fs::create_dir(memory.join(format!("pod{}/{LEFT_OVER}", resident.uid))).unwrap();
    assert_eq!(orphaned(&lab.scrape()), [Some(0.0); 3], "not at first sight");
    let found = [Some(1.0), Some(2.0), Some(0.0)];
    let samples = lab.until("the left-over directories are orphans", |samples| orphaned(samples)[1] != Some(0.0));
    assert_eq!(orphaned(&samples), found);
    assert_eq!(samples.value(&CONTAINERS, &["running"]), Some(1.0));

    // Without its runtime the mode says nothing about containers, and everything else.
    containerd.kill();
    std::thread::sleep(Duration::from_millis(60));
    let samples = lab.scrape();
    assert_eq!(samples.errors().len(), 1, "{:?}", samples.errors());
    assert_eq!(orphaned(&samples), [None, None, Some(0.0)]);
    assert!(samples.rows().iter().all(|row| !std::ptr::eq(row.metric, &RUNTIME_INFO)));
    assert_eq!(samples.value(&CONTAINERS, &["running"]), None);
    assert_eq!(samples.value(&KUBEPODS, &["pod", "besteffort"]), Some(2.0));
    containerd.launch().unwrap();
    let patience = Instant::now() + Duration::from_secs(60);
    let samples = loop {
        let samples = lab.scrape();
        if samples.errors().is_empty() {
            break samples;
        }
        assert!(Instant::now() < patience, "{:?}", samples.errors());
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(orphaned(&samples), found, "what was known before is not forgotten, and nobody joined");

    // What the runtime forgets while its directory stays is not an orphan at once.
    containerd.stop_container(&container).unwrap();
    containerd.remove_sandbox(&resident.id).unwrap();
    assert_eq!(orphaned(&lab.scrape())[0], Some(1.0), "only the one left over");
    let samples = lab.until("the resident's pod directory is one more", |samples| orphaned(samples)[0] == Some(2.0));
    assert_eq!(samples.value(&CONTAINERS, &["running"]), Some(0.0));
}
