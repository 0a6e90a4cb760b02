//! The walk over folders; over cgroups of the kernel it is in the tests of the modes.

use std::time::Duration;

use super::*;

fn bounds(directories: u64) -> Bounds {
    Bounds { directories, deadline: Deadline::after(Duration::from_secs(10)) }
}

/// a/{b/{c,d},e}, and files and a symbolic link that do not count.
fn tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for path in ["a/b/c", "a/b/d", "a/e"] {
        std::fs::create_dir_all(dir.path().join(path)).unwrap();
    }
    std::fs::write(dir.path().join("a/e/cgroup.events"), "populated 1\n").unwrap();
    std::os::unix::fs::symlink("a", dir.path().join("link")).unwrap();
    dir
}

#[test]
fn every_directory_once_and_parents_first() {
    let dir = tree();
    let mut seen = Vec::new();
    let extent = walk(dir.path(), 0usize, bounds(100), |entry, parent| {
        seen.push((entry.name().into_owned(), parent));
        Some(seen.len())
    })
    .unwrap();
    assert_eq!(extent.directories, 6);
    assert!(extent.stopped.is_none());
    let parent = |name: &str| seen.iter().find(|(n, _)| n == name).map(|&(_, p)| p.checked_sub(1).map(|i| &*seen[i].0));
    assert_eq!(parent("a"), Some(None));
    assert_eq!(parent("e"), Some(Some("a")));
    assert_eq!((parent("c"), parent("d")), (Some(Some("b")), Some(Some("b"))));
    assert_eq!(seen.len(), 5);
}

#[test]
fn none_leaves_out_what_is_below() {
    let dir = tree();
    let extent = walk(dir.path(), (), bounds(100), |entry, ()| (entry.name() != "b").then_some(())).unwrap();
    assert_eq!(extent.directories, 4, "top, a, b, e");
}

#[test]
fn files_of_an_entry() {
    let dir = tree();
    let mut found = None;
    walk(dir.path(), (), bounds(100), |entry, ()| {
        if entry.name() == "e" {
            let error = entry.first("none").unwrap_err();
            assert!(!entry.is_gone(&error), "the directory is there, the file is not");
            found = Some((entry.first("cgroup.events").unwrap(), error.reason()));
            std::fs::rename(dir.path().join("a/e"), dir.path().join("a/old")).unwrap();
            assert!(entry.is_gone(&error));
            std::fs::create_dir(dir.path().join("a/e")).unwrap();
            assert!(entry.is_gone(&error), "another of the same name");
        }
        Some(())
    })
    .unwrap();
    assert_eq!(found, Some(("populated 1\n".into(), Reason::Absent)));
}

#[test]
fn bounds_are_kept_and_reported() {
    let dir = tree();
    let extent = walk(dir.path(), (), bounds(4), |_, ()| Some(())).unwrap();
    assert!(matches!(extent.stopped, Some(Stopped::Bound(left)) if left >= 1), "{extent:?}");
    assert_eq!(extent.directories, 4);
    let late = Bounds { directories: 100, deadline: Deadline::after(Duration::ZERO) };
    let extent = walk(dir.path(), (), late, |_, ()| Some(())).unwrap();
    assert!(matches!(&extent.stopped, Some(Stopped::Failed(error)) if error.reason() == Reason::Timeout), "{extent:?}");
}

#[test]
fn what_lies_too_deep_is_left_out_and_the_rest_is_not() {
    let dir = tree();
    let chain: std::path::PathBuf = std::iter::repeat_n("d", DEEPEST as usize + 3).collect();
    std::fs::create_dir_all(dir.path().join("a/e").join(&chain)).unwrap();
    let mut seen = 0;
    let extent = walk(dir.path(), (), bounds(1000), |_, ()| {
        seen += 1;
        Some(())
    })
    .unwrap();
    assert!(extent.stopped.is_none(), "{extent:?}");
    assert_eq!(extent.beyond, [(None, 1)].into());
    // a, e and 126 of the chain, then b, c and d.
    assert_eq!((seen, extent.directories), (DEEPEST + 3, u64::from(DEEPEST) + 4));
}

/// pods/{0,1,2}/c, of which the first has a thousand directories, the second a deep chain.
fn pods() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..1000 {
        std::fs::create_dir_all(dir.path().join(format!("pods/0/c/{number}"))).unwrap();
    }
    let chain: std::path::PathBuf = std::iter::repeat_n("d", 2 * DEEPEST as usize).collect();
    std::fs::create_dir_all(dir.path().join("pods/1/c").join(chain)).unwrap();
    std::fs::create_dir_all(dir.path().join("pods/2/c/one/two")).unwrap();
    dir
}

/// What was seen of each pod, where what lies below their containers is a share of each.
fn by_pod(dir: &Path, most: u64) -> (BTreeMap<usize, u64>, Extent) {
    let mut seen = BTreeMap::new();
    let extent = walk(dir, None, bounds(most), |entry, pod: Option<usize>| {
        let pod = pod.or_else(|| entry.name().parse().ok());
        if let Some(pod) = pod {
            *seen.entry(pod).or_insert(0) += 1;
        }
        match (&*entry.name(), pod) {
            ("c", Some(share)) => Below::Apart(pod, share),
            _ => Below::Enter(pod),
        }
    });
    (seen, extent.unwrap())
}

#[test]
fn one_share_takes_nothing_from_another() {
    let dir = pods();
    let (seen, extent) = by_pod(dir.path(), 10_000);
    assert_eq!(seen, [(0, 1002), (1, u64::from(DEEPEST) - 1), (2, 4)].into());
    assert!(extent.stopped.is_none());
    assert_eq!(extent.beyond, [(Some(1), 1)].into(), "too deep");
    // 8 are outside of shares. Of the other 92 each may have a third, and what one does not need is the next one's.
    let (seen, extent) = by_pod(dir.path(), 100);
    assert_eq!(seen[&2], 4);
    assert!(seen[&1] >= 32 && seen[&0] >= 32, "{seen:?}");
    assert!(extent.stopped.is_none(), "{extent:?}");
    assert_eq!(extent.directories, 100);
    assert!(extent.beyond.keys().eq(&[Some(0), Some(1)]) && extent.beyond[&Some(0)] > 900, "{extent:?}");
    // Not even all pods.
    let (_, extent) = by_pod(dir.path(), 5);
    assert!(matches!(extent.stopped, Some(Stopped::Bound(left)) if left > 1), "{extent:?}");
}

#[test]
fn what_the_kernel_counts_below_is_how_much_is_left_out() {
    let dir = pods();
    std::fs::write(dir.path().join("pods/0/c/cgroup.stat"), "nr_descendants 1000\n").unwrap();
    let (seen, extent) = by_pod(dir.path(), 100);
    assert_eq!(seen[&0] - 2 + extent.beyond[&Some(0)], 1000);
}

#[test]
fn removed_under_the_walk() {
    let dir = tree();
    let extent = walk(dir.path(), (), bounds(100), |entry, ()| {
        if entry.name() == "b" {
            std::fs::remove_dir_all(dir.path().join("a/b")).unwrap();
        }
        Some(())
    })
    .unwrap();
    assert!(extent.stopped.is_none(), "{extent:?}");
    assert_eq!(walk(&dir.path().join("none"), (), bounds(1), |_, ()| Some(())).unwrap_err().reason(), Reason::Absent);
}
