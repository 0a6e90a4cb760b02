//! What an earlier walk read and cannot have changed.
//!
//! **Killed processes.** The kernel counts each in `/proc/vmstat` and in its cgroup, one right after the other
//! (`__oom_kill_process` in mm/oom_kill.c). While the node's count stays the same no cgroup's changes, and that is one
//! file instead of one in each cgroup. What was read before the count stood still for a whole walk may be from between
//! the two.

use std::collections::HashMap;

use super::Tree;

/// From walk to walk. Inode numbers name cgroups: kernfs does not use one again.
#[derive(Debug, Default)]
pub(super) struct Recall {
    /// The node's count before the last walk, and before how many in a row it was that.
    node_kills: Option<u64>,
    walks: u32,
    kills: HashMap<u64, u64>,
}

/// What a walk need not read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known<'a>(Option<&'a HashMap<u64, u64>>);

impl Known<'_> {
    /// Of a cgroup, by its inode number.
    pub(super) fn kills(&self, inode: u64) -> Option<u64> {
        self.0?.get(&inode).copied()
    }
}

impl Recall {
    /// Before a walk, with the node's count, if there is one.
    pub(super) fn begin(&mut self, node_kills: Option<u64>) -> Known<'_> {
        self.walks = if node_kills.is_some() && node_kills == self.node_kills { self.walks + 1 } else { 1 };
        self.node_kills = node_kills;
        Known((self.walks > 2).then_some(&self.kills))
    }

    /// After it.
    pub(super) fn end(&mut self, tree: &Tree) {
        let read = tree.directories.iter().filter_map(|directory| Some((directory.inode, directory.kills?)));
        self.kills.clear();
        self.kills.extend(read);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Directory, Kind};
    use super::*;
    use crate::kubelet::cgroup_name::Qos;

    fn tree(kills: Option<u64>) -> Tree {
        let directory = Directory {
            kind: Kind::Pod,
            qos: Qos::Burstable,
            inode: 7,
            name: "pod".into(),
            parent: None,
            pod: Some(0),
            populated: Some(true),
            pid: None,
            kills,
            kernel_memory: None,
            base: 0,
        };
        Tree { directories: vec![directory], ..Tree::default() }
    }

    #[test]
    fn a_count_is_known_while_the_nodes_count_stands_still() {
        let mut recall = Recall::default();
        let mut walk = |node, read| {
            let known = recall.begin(node).kills(7);
            recall.end(&tree(known.or(read)));
            known
        };
        assert_eq!(walk(Some(5), Some(1)), None);
        assert_eq!(walk(Some(5), Some(2)), None, "the first reading may be from before the fifth one was counted here");
        assert_eq!(walk(Some(5), None), Some(2));
        assert_eq!(walk(Some(5), None), Some(2));
        assert_eq!(walk(Some(6), Some(2)), None, "somewhere one was killed");
        assert_eq!(walk(Some(6), Some(3)), None);
        assert_eq!(walk(Some(6), None), Some(3));
        assert_eq!(walk(None, Some(3)), None, "a kernel that does not count");
        assert_eq!((walk(None, Some(3)), walk(None, Some(3))), (None, None));
        assert_eq!((walk(Some(6), None), walk(Some(6), None), walk(Some(6), None)), (None, None, None), "never read");
    }
}
