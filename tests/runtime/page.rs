//! The page of the real binary beside a real containerd: names on it, the runtime killed in the middle, and back.
#![allow(clippy::disallowed_methods, reason = "tests look at the machine with their own eyes")]

use crate::common::containerd::{self, Containerd};
use crate::common::{self, Exporter, Page, eventually};

const UID: &str = "0b3c2a54-6a1d-4c55-9a53-2f1c7c1f6e01";

/// The cgroups of this test, in every hierarchy. Dropped, they go.
struct Cgroups(String);

impl Drop for Cgroups {
    fn drop(&mut self) {
        containerd::remove_cgroups_named(&self.0);
    }
}

fn with<'a>(page: &'a Page, family: &'a str, label: &str) -> Vec<&'a str> {
    page.family(family).map(|(series, _)| series).filter(|series| series.contains(label)).collect()
}

#[test]
fn the_runtimes_word_is_on_the_page_and_its_death_costs_only_that() {
    alone!();
    let cgroups = Cgroups(format!("headroom-page-{}", common::unique()));
    let containerd = match Containerd::start_below(&format!("/{}/kubepods/besteffort", cgroups.0)) {
        Ok(containerd) => containerd,
        Err(why) => skip!("{why}"),
    };
    let pod = containerd.run_sandbox("web", UID);
    let id = containerd.run_container(&pod, "server", &["sleep", "1000000"]);
    // In a pid namespace of its own the exporter would not see the pods; so open_files may refuse a pid 1 that lets
    // nobody look.
    let endpoint = format!("--runtime.endpoint={}", containerd.endpoint());
    let exporter = Exporter::start(&[&endpoint, "--collector.open_files.top=100"]);

    let page = exporter.scrape();
    for collector in ["cgroup_leak", "eviction"] {
        assert_eq!(page.outcome(collector), "ok", "{page:#?}");
    }
    assert_eq!(with(&page, "headroom_runtime_info", "source=\"cri\",runtime=\"containerd\"").len(), 1);
    assert_eq!(page.value("headroom_containers{state=\"running\"}"), 1.0);
    assert_eq!(page.value("headroom_pod_sandboxes{state=\"ready\"}"), 1.0);
    assert_eq!(page.value("headroom_images"), 1.0);
    assert_eq!(page.value("headroom_images_unused_bytes"), 0.0, "a container runs our only image");
    let names =
        format!("pod_uid=\"{UID}\",container_id=\"{id}\",namespace=\"default\",pod=\"web\",container=\"server\"");
    assert_eq!(with(&page, "headroom_process_open_fds", &names).len(), 1, "{page:#?}");
    let imagefs = with(&page, "headroom_filesystem_info", "role=\"imagefs\"");
    assert_eq!(imagefs.len(), 1);

    containerd.kill();
    eventually("the page says that the runtime is gone", || exporter.scrape().outcome("cgroup_leak") == "failed");
    let page = exporter.scrape();
    let reasons: f64 = ["vanished", "io", "absent"].iter().map(|reason| page.errors("cgroup_leak", reason)).sum();
    assert!(reasons > 0.0, "{page:#?}");
    assert_eq!(page.errors("cgroup_leak", "timeout") + page.errors("cgroup_leak", "panic"), 0.0);
    assert_eq!(page.family("headroom_containers").count(), 0, "absent, not zero and not guessed");
    for series in ["headroom_memcg_ids_used", "headroom_open_fds", "headroom_kmem_accounting_enabled"] {
        assert!(page.get(series).is_some(), "{series} has nothing to do with the runtime");
    }
    assert!(page.get("headroom_eviction_available_bytes{signal=\"memory.available\"}").is_some());
    assert!(page.get("headroom_eviction_available_bytes{signal=\"nodefs.available\"}").is_some());

    containerd.launch().unwrap();
    eventually("it is back without a restart of ours", || {
        let page = exporter.scrape();
        page.outcome("cgroup_leak") == "ok" && page.get("headroom_containers{state=\"running\"}") == Some(1.0)
    });
}
