//! One poll of a CRI runtime on a full node: 200 running containers, 5,000 exited ones, 2,000 images.
//! `cargo bench --bench runtime`
//!
//! Our CPU is that of the thread that polls: everything on our side of the connection runs on it. The daemon is a
//! stand-in in this process, so resident memory is the whole process's, and what counts is that it stays.
#![allow(clippy::disallowed_methods, reason = "a benchmark looks at its own process")]
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

#[path = "../tests/common/fake_runtime.rs"]
mod fake_runtime;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use fake_runtime::{Container, ContainerMetadata, Fake, Image, Images, Metadata, Sandbox, Sandboxes, empty, reply};
use headroom::host::{Deadline, Host, Roots};
use headroom::runtime::{Runtime, Settings};

const POLLS: u32 = 100;

fn main() {
    let root = tempfile::tempdir().unwrap();
    let _fake = Fake::start(&root.path().join("run/containerd/containerd.sock"), full_node());
    let host = Host::new(Roots { root: root.path().to_owned(), ..Roots::default() });
    let runtime = Runtime::new(Settings { fresh: Duration::ZERO, ..Settings::default() });
    let poll = || {
        let inventory = runtime.inventory(&host, Deadline::after(Duration::from_secs(10))).unwrap();
        assert_eq!((inventory.containers.len(), inventory.images.unwrap().count), (5_200, 2_000));
    };
    for _ in 0..5 {
        poll();
    }
    let (resident, cpu, wall) = (resident_kib(), thread_cpu(), Instant::now());
    for _ in 0..POLLS {
        poll();
    }
    let each = |total: Duration| (total / POLLS).as_secs_f64() * 1e3;
    println!("polls                       {POLLS}");
    println!("our CPU per poll            {:.1} ms", each(thread_cpu() - cpu));
    println!("wall per poll               {:.1} ms", each(wall.elapsed()));
    println!("resident, before and after  {resident} KiB, {} KiB", resident_kib());
}

fn full_node() -> fake_runtime::Replies {
    let text = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let labels = |pod: usize| {
        HashMap::from([
            text("io.kubernetes.pod.namespace", "default"),
            text("io.kubernetes.pod.name", &format!("sleeps-56c794bd77-{pod:05}")),
            text("io.kubernetes.pod.uid", &uid(pod)),
            text("io.kubernetes.container.name", "sleep"),
        ])
    };
    let annotations = HashMap::from([
        text("io.kubernetes.container.hash", "d99fa0cf"),
        text("io.kubernetes.container.restartCount", "12"),
        text("io.kubernetes.container.terminationMessagePath", "/dev/termination-log"),
        text("io.kubernetes.container.terminationMessagePolicy", "File"),
        text("io.kubernetes.pod.terminationGracePeriod", "30"),
    ]);
    let sandbox = |pod| Sandbox {
        id: format!("{pod:064x}"),
        metadata: Some(Metadata {
            name: format!("sleeps-56c794bd77-{pod:05}"),
            uid: uid(pod),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        labels: labels(pod),
        annotations: HashMap::from([text("kubectl.kubernetes.io/last-applied-configuration", &"x".repeat(1_000))]),
        ..Default::default()
    };
    let container = |index: usize| Container {
        id: format!("{:064x}", index + 1_000_000),
        pod_sandbox_id: format!("{:064x}", index % 200),
        metadata: Some(ContainerMetadata { name: "sleep".to_owned(), attempt: 0 }),
        image_ref: format!("sha256:{:064x}", index % 500),
        state: if index < 200 { 1 } else { 2 },
        labels: labels(index % 200),
        annotations: annotations.clone(),
        ..Default::default()
    };
    let image = |index: usize| Image {
        id: format!("sha256:{index:064x}"),
        repo_tags: vec![format!("registry.example/team/service-{index}:1.2.3")],
        repo_digests: vec![format!("registry.example/team/service-{index}@sha256:{index:064x}")],
        size: 100_000_000,
        pinned: false,
    };
    let mut replies = empty();
    replies.insert("ListPodSandbox", reply(&Sandboxes { items: (0..200).map(sandbox).collect() }));
    let containers = fake_runtime::Containers { containers: (0..5_200).map(container).collect() };
    replies.insert("ListContainers", reply(&containers));
    replies.insert("ListImages", reply(&Images { images: (0..2_000).map(image).collect() }));
    replies
}

fn uid(pod: usize) -> String {
    format!("{pod:08x}-2624-4bb9-9d40-1cb98a6219c2")
}

fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
