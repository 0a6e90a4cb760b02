//! The walk on the recorded nodes. What each mode makes of it is in that mode's own tests.
#![allow(clippy::disallowed_methods, reason = "tests write the files of a recorded machine")]

use std::time::Duration;

use super::*;
use crate::host::cgroup::recorded::Machine;

const POD_V1: &str = "memory/kubepods/burstable/podbcb1982f-2628-449a-accb-e40ecdefbb3b";
const POD_V2: &str =
    "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poddffe967d_a11f_417e_8310_08020db089c7.slice";
const ID: &str = "55f765a8788dcccb46fae55db15b169605b66df347604a06a4f6ed7c15f879c6";

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(30))
}

fn look(machine: &Machine) -> Arc<Look> {
    Kubepods::default().look(&machine.host, soon(), Instant::now()).unwrap().value
}

fn walk_of(look: &Look) -> &Walk {
    look.walk.as_ref().unwrap()
}

/// Index of the directory at this path below `sys/fs/cgroup`.
fn at(machine: &Machine, tree: &Tree, path: &str) -> usize {
    let path = machine.cgroup_path(path);
    (0..tree.directories.len()).find(|&index| tree.path(index) == path).unwrap()
}

#[test]
fn one_walk_serves_all_of_a_scrape_and_none_of_the_next() {
    let machine = Machine::v1();
    let (kubepods, began) = (Kubepods::default(), Instant::now());
    let other_mode = kubepods.clone();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                assert_eq!(other_mode.look(&machine.host, soon(), began).unwrap().value.memory().unwrap().tree.roots, 1)
            });
        }
    });
    assert_eq!(kubepods.looks(), 1);
    let younger = kubepods.look(&machine.host, soon(), Instant::now()).unwrap();
    assert_eq!(kubepods.looks(), 2, "who needs a younger one asks for it");
    let same = kubepods.look(&machine.host, soon(), began).unwrap();
    assert!(Arc::ptr_eq(&younger.value, &same.value));
}

#[test]
fn a_directory_is_known_with_all_that_is_above_it() {
    for (machine, pod, app) in [
        (Machine::v1(), POD_V1, ID.to_owned()),
        (
            Machine::v2(),
            POD_V2,
            "cri-containerd-fbac8099e388339f9fbcb5c13711ebbc562fb774b7a291a4387f6a5bceb13091.scope".to_owned(),
        ),
    ] {
        let below = format!("{pod}/{app}/init.scope");
        machine.cgroup(&format!("{below}/cgroup.procs"), "77\n");
        machine.cgroup(&format!("{below}/cgroup.events"), "populated 1\n");
        let look = look(&machine);
        let tree = &walk_of(&look).tree;
        let [pod, container, inner] = [pod, &format!("{pod}/{app}"), &below].map(|path| at(&machine, tree, path));
        let [of_pod, of_container, of_inner] = [pod, container, inner].map(|index| &tree.directories[index]);
        assert_eq!([of_pod, of_container, of_inner].map(|one| one.kind), [Kind::Pod, Kind::Container, Kind::Other]);
        assert_eq!([of_pod, of_container, of_inner].map(|one| one.parent), [None, Some(pod), Some(container)]);
        assert!([of_pod, of_container, of_inner].iter().all(|one| one.pod == Some(pod) && one.qos == Qos::Burstable));
        assert_eq!([of_pod, of_container, of_inner].map(|one| one.populated), [Some(true); 3]);
        assert!(
            of_container.pid.is_some() && (of_pod.pid, of_inner.pid) == (None, None),
            "one process of each container"
        );
        assert_eq!(of_pod.kills, Some(0));
        assert_eq!(of_pod.kernel_memory, None, "all or none, on this kernel");
    }
}

#[test]
fn the_whole_hierarchy_is_walked_where_its_directories_are_counted() {
    let v1 = look(&Machine::v1());
    let walk = walk_of(&v1);
    // 36 with kubepods, 7 with system.slice, the root, of 73 that the kernel holds.
    assert_eq!((walk.extent.directories, walk.held), (44, Some(73)));
    assert_eq!(walk.memory_ids, Ok(None));

    let machine = Machine::v2();
    assert_eq!(walk_of(&look(&machine)).memory_ids, Ok(Some(54)), "6.1 does not print them");
    let stat = "nr_descendants 63\nnr_subsys_memory 60\nnr_dying_descendants 29\nnr_dying_subsys_memory 27\n";
    machine.cgroup("cgroup.stat", stat);
    let v2 = look(&machine);
    assert_eq!(walk_of(&v2).memory_ids, Ok(None));
    // kubepods, what lies beside it without being entered, and the root.
    assert_eq!(walk_of(&v2).extent.directories, 36 + 1 + 1);
}

#[test]
fn an_error_concerns_one_kind_of_reading() {
    let errors = |file: &str, release: &str| {
        let machine = Machine::v1();
        machine.proc("sys/kernel/osrelease", release);
        let file = machine.cgroup_path(&format!("{POD_V1}/{ID}/{file}"));
        let _ = std::fs::remove_file(&file);
        // Reading a directory fails as a file may, and through a link it is none of the walk's.
        std::os::unix::fs::symlink(".", &file).unwrap();
        let look = look(&machine);
        let Unread { population, processes, kills, kernel_memory } = &walk_of(&look).tree.unread;
        [population, processes, kills, kernel_memory].map(|error| error.as_ref().map(Error::reason))
    };
    let (old, new) = ("3.10.0-957.el7.x86_64", "6.18.1");
    assert_eq!(errors("cgroup.procs", new), [Some(Reason::Io), Some(Reason::Io), None, None]);
    assert_eq!(errors("memory.oom_control", new), [None, None, Some(Reason::Io), None]);
    assert_eq!(errors("memory.kmem.usage_in_bytes", old), [None, None, None, Some(Reason::Io)]);
    assert_eq!(errors("memory.kmem.usage_in_bytes", new), [None; 4], "not read");
}

#[test]
fn where_nobody_is_further_up_nobody_is_looked_for() {
    let machine = Machine::v2();
    machine.cgroup(&format!("{POD_V2}/cgroup.events"), "populated 0\nfrozen 0\n");
    let look = look(&machine);
    let tree = &walk_of(&look).tree;
    let pod = at(&machine, tree, POD_V2);
    let below: Vec<_> = tree.directories.iter().filter(|one| one.pod == Some(pod)).collect();
    assert_eq!(below.len(), 3);
    assert!(below.iter().all(|one| one.populated == Some(false) && one.pid.is_none()));
}

#[test]
fn without_the_memory_controller_there_is_no_word_of_memory() {
    let machine = Machine::v1();
    std::fs::remove_dir_all(machine.cgroup_path("memory")).unwrap();
    let look = look(&machine);
    assert!(look.memory().is_none());
    let walk = walk_of(&look);
    assert!(walk.hierarchy.has("pids") && walk.tree.roots == 1 && walk.tree.charged.is_none());
    assert!(walk.tree.directories.iter().all(|one| one.kills.is_none()));
}
