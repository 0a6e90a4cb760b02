//! What a tenant does to this mode, on folders of files that look like a procfs: what stands beside it must stay.

use super::assess::*;
use super::inotify::{INSTANCES, UNEXAMINED, WATCHES};
use super::tests::{FILE, FakeProc, detailed, mode_with};
use super::*;

impl FakeProc {
    /// A process of a pod, of which there is one for each number, and of one of its containers.
    pub(super) fn of_pod(&self, pid: u32, comm: &str, pod: u32, container: &str, limit: u64, fds: usize) {
        self.process(pid, comm.as_bytes(), limit, &[]);
        // All with so many have the same: thousands of links take long to make.
        let shared = self.path(&format!("fds-{fds}"));
        if !shared.exists() {
            std::fs::create_dir(&shared).unwrap();
            (0..fds).for_each(|fd| std::os::unix::fs::symlink(FILE, shared.join(fd.to_string())).unwrap());
        }
        std::fs::remove_dir(self.path(&format!("{pid}/fd"))).unwrap();
        std::os::unix::fs::symlink(shared, self.path(&format!("{pid}/fd"))).unwrap();
        let cgroup = format!("0::/kubepods/besteffort/pod{}/{}\n", uid(pod), container.repeat(64));
        self.write(&format!("{pid}/cgroup"), cgroup.as_bytes());
        self.write(&format!("{pid}/status"), format!("Name:\tx\nUid:\t0\t0\t0\t0\nNSpid:\t{pid}\t1\n").as_bytes());
    }
}

fn uid(pod: u32) -> String {
    format!("11111111-2222-4333-8444-{pod:012}")
}

fn small() -> Settings {
    Settings { top: 2, ..Settings::default() }
}

fn shows(samples: &Samples, pid: u32) -> bool {
    detailed(samples).contains(&pid)
}

#[test]
fn what_no_alert_reads_hides_nothing_that_one_does() {
    let fake = FakeProc::new();
    // Of the node, and of pods: the hundredth page that an alert would send is of the last.
    (1..=10).for_each(|pid| fake.process(pid, b"locked", 1, &[FILE; 4]));
    (11..=40).for_each(|pid| fake.of_pod(pid, "locked", pid, "a", 255, 250));
    fake.process(100, b"victim", 300, &[FILE; 290]);
    fake.of_pod(101, "victim", 101, "a", 300, 290);
    let samples = fake.collect_with(Settings { top: 1, ..Settings::default() });
    assert!(shows(&samples, 100) && shows(&samples, 101), "{:?}", detailed(&samples));
    assert_eq!(samples.dropped(), 0);
}

#[test]
fn no_pod_takes_the_places_of_another_or_of_the_node() {
    let fake = FakeProc::new();
    // One pod with many, and a hundred pods with two each, all nearer and larger than the victims.
    (1..=60).for_each(|pid| fake.of_pod(pid, "evil", 1, "a", 256, 256));
    for pod in 100..200 {
        fake.of_pod(pod * 2, "evil", pod, "a", 256, 256);
        fake.of_pod(pod * 2 + 1, "evil", pod, "a", 256, 256);
    }
    fake.process(900, b"agent", 1000, &[FILE; 30]);
    fake.of_pod(901, "near", 3, "a", 300, 245);
    fake.of_pod(902, "rising", 4, "a", 1000, 110);
    let samples = fake.collect_with(small());
    for victim in [900, 901, 902] {
        assert!(shows(&samples, victim), "{victim} is not among {:?}", detailed(&samples));
    }
    let labels = ["901", "near", &uid(3), &"a".repeat(64), "", "", ""];
    assert_eq!(samples.value(&PROCESS_OPEN_FDS, &labels), Some(245.0));
    assert_eq!(samples.value(&PROCESS_FD_LIMIT, &labels), Some(300.0));
    // Eight of the one that has sixty, and it is told who lost the rest.
    let dropped = samples.dropped_by();
    let lost: Vec<_> = dropped.pods.iter().map(|(pod, count)| (pod.uid.clone(), *count)).collect();
    assert_eq!((dropped.node, lost), (0, vec![(uid(1), 52)]));
    assert_eq!(detailed(&samples).len(), 8 + 200 + 3);
}

/// In a cgroup namespace of our own, without the machine's cgroups.
#[test]
fn of_whom_nothing_is_known_is_no_pod_with_a_pods_share() {
    let fake = FakeProc::new();
    for pid in 1..=4 {
        fake.process(pid, b"somebody", 300, &[FILE; 290]);
        fake.write(&format!("{pid}/cgroup"), b"0::/../../other\n");
    }
    fake.of_pod(100, "victim", 100, "a", 300, 290);
    let samples = fake.collect_with(Settings { top: 4, ..Settings::default() });
    assert_eq!(detailed(&samples), [1, 2, 3, 4, 100]);
    assert_eq!(samples.dropped(), 0);
    let samples = fake.collect_with(small());
    assert!(shows(&samples, 100), "{:?}", detailed(&samples));
    assert_eq!(samples.dropped(), 2, "two of four have no place, and that is told");
}

#[test]
fn each_container_of_a_pod_is_told_before_the_second_process_of_another() {
    let fake = FakeProc::new();
    (1..=50).for_each(|pid| fake.of_pod(pid, "worker", 1, "a", 256, 250));
    fake.of_pod(60, "sidecar", 1, "b", 1000, 850);
    fake.of_pod(61, "sidecar", 1, "c", 1000, 120);
    let samples = fake.collect_with(small());
    assert!(shows(&samples, 60) && shows(&samples, 61), "{:?}", detailed(&samples));
    assert_eq!(detailed(&samples).len(), 8);
}

#[test]
fn more_pods_than_a_node_has_lose_what_no_alert_pages_on() {
    let fake = FakeProc::new();
    (1..=510).for_each(|pod| fake.of_pod(pod, "web", pod, "a", 256, if pod == 510 { 240 } else { 30 }));
    let samples = fake.collect_with(small());
    assert!(shows(&samples, 510), "the only one that is near its limit");
    assert_eq!((detailed(&samples).len(), samples.dropped()), (500, 0));
}

#[test]
fn a_name_makes_no_daemon_of_what_a_pod_runs() {
    let fake = FakeProc::new();
    (1..=40).for_each(|pid| fake.of_pod(pid, "kubelet", 1, "a", 1000, 3));
    (41..=80).for_each(|pid| fake.of_pod(pid, "containerd", pid, "a", 1000, 3));
    fake.process(500, b"kubelet", 1_000_000, &[FILE]);
    // Outside of any pod, but in namespaces of its own: a Kubernetes in a container.
    fake.process(501, b"kubelet", 1_000_000, &[FILE]);
    fake.write("501/status", b"Name:\tx\nUid:\t0\t0\t0\t0\nNSpid:\t501\t9\t1\n");
    // In a static pod, as kubeadm starts it.
    fake.of_pod(502, "etcd", 2, "a", 1_000_000, 1);
    fake.write("502/cgroup", b"0::/kubepods/burstable/pod55a0906791c86e41cb268c3f20fa8205/x\n");
    let samples = fake.collect_with(Settings { top: 1, ..Settings::default() });
    assert!(shows(&samples, 500) && shows(&samples, 502), "{:?}", detailed(&samples));
    assert!(!shows(&samples, 501));
    assert_eq!(samples.dropped_by().node, 0, "no daemon was left out");
    let of_pods = detailed(&samples).iter().filter(|pid| **pid <= 80).count();
    assert!(of_pods <= 32 + 2, "{of_pods}: one of each pod, and no more than so many");
}

#[test]
fn whose_a_process_is_is_asked_again_when_another_has_its_number() {
    let fake = FakeProc::new();
    let mode = mode_with(small());
    (1..=9).for_each(|pid| fake.of_pod(pid, "web", 1, "a", 256, 250));
    fake.collect(&mode);
    // The eighth and the last are of another pod now, under the same names.
    fake.of_pod(8, "web", 8, "a", 256, 240);
    fake.of_pod(9, "web", 8, "b", 256, 240);
    let mut seen = (0..60).map(|_| fake.collect(&mode));
    assert!(seen.any(|samples| shows(&samples, 8) && shows(&samples, 9)), "not kept for ever");
}

/// A process of a pod with one inotify fd of this number, which has so many watches.
fn watcher(fake: &FakeProc, pid: u32, pod: Option<u32>, fd: usize, watches: usize) {
    let mut links = vec![FILE; 3];
    links.resize(3 + fd, FILE);
    fake.process(pid, b"watches", 1000, &links);
    (3..3 + fd).for_each(|fd| std::fs::remove_file(fake.path(&format!("{pid}/fd/{fd}"))).unwrap());
    std::os::unix::fs::symlink("anon_inode:inotify", fake.path(&format!("{pid}/fd/{}", 3 + fd))).unwrap();
    fake.watches(pid, 3 + fd as u32, watches);
    fake.write(&format!("{pid}/status"), b"Name:\tx\nUid:\t0\t0\t0\t0\n");
    if let Some(pod) = pod {
        let cgroup = format!("0::/kubepods/besteffort/pod{}/{}\n", uid(pod), "a".repeat(64));
        fake.write(&format!("{pid}/cgroup"), cgroup.as_bytes());
    }
}

#[test]
fn an_fd_that_moves_costs_its_own_watches_and_hides_nobody() {
    let fake = FakeProc::new();
    // The first has a count that takes a scrape of its own, and a new fd each time.
    watcher(&fake, 1, Some(1), 0, 90_000);
    watcher(&fake, 2, None, 0, 150);
    fake.write("2/status", b"Name:\tx\nUid:\t0\t0\t0\t0\n");
    let mode = mode_with(Settings::default());
    let known = (0..5).map(|_| fake.collect(&mode)).last().unwrap();
    assert_eq!(known.value(&WATCHES, &["0"]), Some(90_150.0));
    for turn in 1..=30 {
        watcher(&fake, 1, Some(1), turn, 90_000);
        if turn == 10 {
            watcher(&fake, 2, None, 0, 250);
        }
        let samples = fake.collect(&mode);
        let watches = samples.value(&WATCHES, &["0"]);
        let expected = if turn < 10 { 90_150.0 } else { 90_250.0 };
        assert_eq!((watches, samples.value(&INSTANCES, &["0"])), (Some(expected), Some(2.0)), "turn {turn}");
    }
}

#[test]
fn what_is_held_ends_and_is_said() {
    let fake = FakeProc::new();
    watcher(&fake, 1, Some(1), 0, 50);
    watcher(&fake, 2, None, 0, 7);
    let mode = mode_with(Settings::default());
    assert_eq!(fake.collect(&mode).value(&WATCHES, &["0"]), Some(57.0));
    // Its watches cannot be read any more.
    std::fs::remove_dir_all(fake.path("1/fdinfo")).unwrap();
    std::fs::create_dir_all(fake.path("1/fdinfo/3")).unwrap();
    let mut held = 0;
    for scrape in 1..=60 {
        let samples = fake.collect(&mode);
        let (watches, unexamined) = (samples.value(&WATCHES, &["0"]), samples.value(&UNEXAMINED, &[]).unwrap());
        assert!(unexamined >= 1.0, "scrape {scrape}");
        match watches {
            Some(57.0) => held = scrape,
            watches => assert_eq!(watches, Some(7.0), "scrape {scrape}"),
        }
        let lost: Vec<_> = samples.dropped_by().pods.iter().map(|(pod, _)| pod.uid.clone()).collect();
        assert_eq!((samples.dropped_by().node, lost), (0, vec![uid(1)]));
    }
    assert_eq!(held, 40);
}

#[test]
fn copies_without_end_take_no_place_of_others() {
    let fake = FakeProc::new();
    let (links, infos) = (fake.path("links"), fake.path("infos"));
    std::fs::create_dir(&links).unwrap();
    for fd in 0..990 {
        std::os::unix::fs::symlink("anon_inode:inotify", links.join(fd.to_string())).unwrap();
        fake.write(&format!("infos/{fd}"), b"pos:\t0\ninotify wd:1 ino:1\n");
    }
    for pid in 1..=12 {
        fake.of_pod(pid, "copies", pid, "a", 2000, 3);
        std::fs::remove_file(fake.path(&format!("{pid}/fd"))).unwrap();
        std::os::unix::fs::symlink(&links, fake.path(&format!("{pid}/fd"))).unwrap();
        std::os::unix::fs::symlink(&infos, fake.path(&format!("{pid}/fdinfo"))).unwrap();
    }
    watcher(&fake, 100, Some(100), 0, 3);
    fake.write("100/status", b"Name:\tx\nUid:\t7\t7\t7\t7\n");
    watcher(&fake, 101, None, 0, 4);
    fake.write("101/status", b"Name:\tx\nUid:\t8\t8\t8\t8\n");
    let mode = mode_with(Settings::default());
    let samples = (0..4).map(|_| fake.collect(&mode)).last().unwrap();
    assert_eq!((samples.value(&WATCHES, &["7"]), samples.value(&WATCHES, &["8"])), (Some(3.0), Some(4.0)));
    assert!(samples.value(&INSTANCES, &["0"]).unwrap() <= 10_000.0);
    assert!(samples.value(&UNEXAMINED, &[]).unwrap() > 0.0);
    assert_eq!(samples.dropped_by().node, 0, "whoever has too many loses its own");
}
