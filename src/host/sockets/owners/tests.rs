use super::*;
use crate::host::Roots;

/// A folder like a procfs, in which processes hold sockets.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn host(&self) -> Host {
        Host::new(Roots { proc: self.0.path().into(), ..Roots::default() })
    }

    /// A process with these sockets and so many other fds before them.
    fn process(&self, pid: u32, comm: &str, others: u32, sockets: &[u32]) {
        let dir = self.0.path().join(pid.to_string());
        std::fs::create_dir_all(dir.join("fd")).unwrap();
        std::fs::write(dir.join("comm"), format!("{comm}\n")).unwrap();
        let links = (0..others).map(|_| "/dev/null".to_owned());
        let links = links.chain(sockets.iter().map(|inode| format!("socket:[{inode}]")));
        for (fd, link) in links.enumerate() {
            std::os::unix::fs::symlink(link, dir.join("fd").join(fd.to_string())).unwrap();
        }
    }

    fn remove(&self, pid: u32) {
        std::fs::remove_dir_all(self.0.path().join(pid.to_string())).unwrap();
    }
}

/// The cookie of a test's socket is its inode number and a thousand.
fn wanted(inodes: &[u32]) -> Vec<(u64, u32)> {
    inodes.iter().map(|&inode| (u64::from(inode) + 1000, inode)).collect()
}

fn owner(found: &Found, inode: u32) -> Option<(u32, &str)> {
    found.owners.get(&(u64::from(inode) + 1000)).map(|owner| (owner.pid, &*owner.comm))
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

#[test]
fn found_once_and_then_remembered() {
    let folder = Folder::new();
    folder.process(7, "kubelet", 3, &[70, 71]);
    folder.process(8, "containerd", 0, &[80]);
    folder.process(9, "other", 5, &[90]);
    let mut owners = Owners::default();
    let found = owners.find(&folder.host(), &wanted(&[71, 80]), Hints::default(), 1000, soon()).unwrap();
    assert_eq!((owner(&found, 71), owner(&found, 80)), (Some((7, "kubelet")), Some((8, "containerd"))));
    assert_eq!((found.owners.len(), found.cut, found.refused), (2, false, 0));
    assert!((2..=6).contains(&found.looked_at), "not further than the last one: {}", found.looked_at);
    // Not even the procfs is opened any more.
    let nowhere = Host::new(Roots { proc: "/nonexistent".into(), ..Roots::default() });
    let again = owners.find(&nowhere, &wanted(&[71, 80]), Hints::default(), 1000, soon()).unwrap();
    assert_eq!(again, Found { looked_at: 0, ..found });
    assert!(owners.find(&nowhere, &wanted(&[71, 90]), Hints::default(), 1000, soon()).unwrap_err().is_gone());
}

#[test]
fn answers_are_looked_at_again_after_a_minute() {
    let folder = Folder::new();
    folder.process(7, "sh", 0, &[70, 71]);
    folder.process(8, "heir", 0, &[72]);
    let mut owners = Owners::default();
    let start = Instant::now();
    let mut at = |seconds, inodes: &[u32]| {
        let now = start + Duration::from_secs(seconds);
        owners.find_at(now, &folder.host(), &wanted(inodes), Hints::default(), 1000, soon()).unwrap()
    };
    assert_eq!(owner(&at(0, &[70, 71]), 70), Some((7, "sh")));
    // It has become another program, and closed one of the two, which a child of it inherited.
    folder.remove(7);
    folder.process(7, "kubelet", 0, &[70]);
    folder.process(9, "child", 0, &[71]);
    let young = at(59, &[70, 71]);
    assert_eq!((owner(&young, 70), owner(&young, 71), young.looked_at), (Some((7, "sh")), Some((7, "sh")), 0));
    let old = at(60, &[70, 71]);
    assert_eq!((owner(&old, 70), owner(&old, 71)), (Some((7, "kubelet")), Some((9, "child"))));
    assert_eq!(at(119, &[70, 71]).looked_at, 0);
    assert_eq!(at(120, &[70]).looked_at, 1, "one link for the one that is still wanted");
    folder.remove(7);
    let gone = at(180, &[70]);
    assert_eq!((owner(&gone, 70), gone.cut), (None, false));
}

#[test]
fn forgotten_when_not_wanted() {
    let folder = Folder::new();
    folder.process(7, "kubelet", 0, &[70]);
    let mut owners = Owners::default();
    owners.find(&folder.host(), &wanted(&[70]), Hints::default(), 1000, soon()).unwrap();
    assert_eq!(owners.find(&folder.host(), &[], Hints::default(), 1000, soon()).unwrap(), Found::default());
    assert!(owners.known.is_empty());
    // The same inode number with another cookie is another socket.
    folder.remove(7);
    folder.process(8, "other", 0, &[70]);
    let found = owners.find(&folder.host(), &[(5, 70)], Hints::default(), 1000, soon()).unwrap();
    assert_eq!(found.owners[&5].pid, 8);
}

#[test]
fn guesses_come_first() {
    let folder = Folder::new();
    (1..=50).for_each(|pid| folder.process(pid, "many", 20, &[]));
    folder.process(60, "kubelet", 0, &[70, 71]);
    let mut owners = Owners::default();
    let found = owners.find(&folder.host(), &wanted(&[70]), Hints { first: &[60], share: None }, 1000, soon()).unwrap();
    assert!(owner(&found, 70).is_some() && found.looked_at <= 2, "{found:?}");
    // A new socket of the same process needs no guess any more.
    let found = owners.find(&folder.host(), &wanted(&[70, 71]), Hints::default(), 1000, soon()).unwrap();
    assert!(owner(&found, 71).is_some() && found.looked_at <= 2, "{found:?}");
}

#[test]
fn a_cut_search_goes_on_and_ends() {
    let folder = Folder::new();
    (1..=9).for_each(|pid| folder.process(pid, "many", 40, &[]));
    folder.process(10, "kubelet", 40, &[70]);
    folder.process(11, "after", 40, &[]);
    let mut owners = Owners::default();
    let mut calls = 0;
    // Within a process, too: 25 do not reach the end of one. The wrong guess takes its half of each.
    let found = loop {
        let found =
            owners.find(&folder.host(), &wanted(&[70, 99]), Hints { first: &[3], share: None }, 25, soon()).unwrap();
        assert!(found.looked_at <= 25);
        calls += 1;
        if owner(&found, 70).is_some() {
            break found;
        }
        assert!(found.cut && calls < 100);
    };
    assert!(calls >= 15, "{calls} calls for 400 links");
    assert!(found.cut, "the other one is still looked for");
    while owners.find(&folder.host(), &wanted(&[70, 99]), Hints { first: &[3], share: None }, 25, soon()).unwrap().cut {
        calls += 1;
        assert!(calls < 200);
    }
    // A whole round did not find it: not looked for again, for a minute.
    let found =
        owners.find(&folder.host(), &wanted(&[70, 99]), Hints { first: &[3], share: None }, 25, soon()).unwrap();
    assert_eq!((found.looked_at, found.cut, found.owners.len()), (0, false, 1));
    let later = Instant::now() + TRUSTED;
    let found = owners.find_at(later, &folder.host(), &wanted(&[70, 99]), Hints::default(), 1000, soon()).unwrap();
    assert!(found.looked_at > 400 && !found.cut, "{found:?}");
}

#[test]
fn a_search_that_began_in_the_middle_sees_everything_once() {
    let folder = Folder::new();
    (1..=4).for_each(|pid| folder.process(pid, "many", 10, &[pid + 500]));
    for spent in 1..60 {
        let mut owners = Owners::default();
        // A search for something that is nowhere brings the rounds to some place.
        owners.find(&folder.host(), &wanted(&[99]), Hints::default(), spent, soon()).unwrap();
        let all = owners.find(&folder.host(), &wanted(&[501, 502, 503, 504]), Hints::default(), 1000, soon()).unwrap();
        assert_eq!((all.owners.len(), all.cut), (4, false), "from the place after {spent} links");
        assert!(all.looked_at <= 44 + 11, "no more than one round and a process: {}", all.looked_at);
    }
}

#[test]
fn no_time_is_no_answer_but_what_is_known_stays() {
    let folder = Folder::new();
    folder.process(7, "kubelet", 0, &[70, 71]);
    let mut owners = Owners::default();
    owners.find(&folder.host(), &wanted(&[70]), Hints::default(), 1000, soon()).unwrap();
    let passed = Deadline::after(Duration::ZERO);
    let later = Instant::now() + TRUSTED;
    let found = owners.find_at(later, &folder.host(), &wanted(&[70, 71]), Hints::default(), 1000, passed).unwrap();
    assert_eq!((owner(&found, 70), owner(&found, 71)), (Some((7, "kubelet")), None));
    assert!(found.cut && found.looked_at == 0, "{found:?}");
    let nothing = owners.find(&folder.host(), &wanted(&[70, 71]), Hints::default(), 0, soon()).unwrap();
    assert!(nothing.cut && nothing.looked_at == 0);
}

#[test]
fn what_has_no_file_has_no_owner() {
    let folder = Folder::new();
    folder.process(7, "kubelet", 10, &[]);
    let found = Owners::default().find(&folder.host(), &[(4, 0)], Hints::default(), 1000, soon()).unwrap();
    assert_eq!(found, Found::default());
}

#[test]
fn few_with_very_many_do_not_keep_others_waiting() {
    let folder = Folder::new();
    (1..=5).for_each(|pid| folder.process(pid, "giant", 900, &[]));
    folder.process(9, "leaks", 5, &(100..200).collect::<Vec<_>>());
    let sought = wanted(&(100..200).collect::<Vec<_>>());
    let (mut owners, mut calls) = (Owners::default(), 0);
    loop {
        calls += 1;
        let found = owners.find(&folder.host(), &sought, Hints::default(), 50, soon()).unwrap();
        assert!(found.looked_at <= 50);
        if owner(&found, 150).is_some() && found.owners.len() == 100 {
            break;
        }
        assert!(calls < 20, "a turn of each giant, and its own fds: {}", found.owners.len());
    }
    // And what is nowhere is given up after everything was looked at once.
    let sought = wanted(&[99]);
    let mut cut = (0..2 * 4_600 / 50 + 10).map(|_| owners.find(&folder.host(), &sought, Hints::default(), 50, soon()));
    assert!(cut.any(|found| !found.unwrap().cut));
}

#[test]
fn many_of_one_share_do_not_keep_others_waiting() {
    let folder = Folder::new();
    (1..=300).for_each(|pid| folder.process(pid, "many", 10, &[]));
    folder.process(301, "leaks", 5, &[70, 71]);
    (302..=310).for_each(|pid| folder.process(pid, "daemon", 10, &[pid]));
    let share = |pid| match pid {
        1..=300 => Some(1),
        301 => Some(2),
        _ => None,
    };
    let hints = Hints { first: &[], share: Some(&share) };
    let mut owners = Owners::default();
    let sought = wanted(&[70, 71, 302, 309]);
    let found = owners.find(&folder.host(), &sought, hints, 150, soon()).unwrap();
    assert_eq!(found.owners.len(), 4, "{found:?}");
}
