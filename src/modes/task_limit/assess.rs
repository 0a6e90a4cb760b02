//! What is shown of it, and how. Pure: no system call, no clock.

use std::cmp::Reverse;

use super::cgroups::NodeCgroup;
use super::pods::Pod;
use super::refusals::Tallies;
use super::threads::Largest;
use super::{MOST_REFUSED, NODE_LIMIT, NODE_REFUSALS, NODE_TASKS, POD_LIMIT, POD_REFUSALS, POD_TASKS, THREADS};
use crate::metric::Samples;
use crate::runtime::Names;

/// Used of the limit, in units of 2^-32; without a limit nothing.
fn near(pod: &Pod) -> u64 {
    pod.limit.map_or(0, |limit| (pod.tasks.min(u32::MAX.into()) << 32) / limit.max(1))
}

/// Puts those first that are shown, and says how many these are: the nearest to their limit, of equals the largest.
pub(super) fn choose(pods: &mut [Pod], top: usize) -> usize {
    pods.sort_by(|a, b| {
        let key = |pod: &Pod| (Reverse(near(pod)), Reverse(pod.tasks));
        key(a).cmp(&key(b)).then_with(|| a.path.cmp(&b.path))
    });
    top.min(pods.len())
}

/// Of pods that are not shown those with the latest refusals.
pub(super) fn latest(pods: &[Pod], refusals: &Tallies) -> Vec<Pod> {
    let with = pods.iter().filter_map(|pod| {
        let (total, last) = refusals.of_pod(&pod.uid)?;
        (total > 0).then_some((Reverse(last), Reverse(total), pod))
    });
    let mut with: Vec<_> = with.collect();
    with.sort_by(|a, b| (a.0, a.1, &a.2.path).cmp(&(b.0, b.1, &b.2.path)));
    with.into_iter().take(MOST_REFUSED).map(|(.., pod)| pod.clone()).collect()
}

/// The node's own cgroups.
pub(super) fn node(node: &[NodeCgroup], refusals: &Tallies, samples: &mut Samples) {
    for one in node {
        let path = format!("/{}", one.path);
        let labels = [one.role.as_str(), &path];
        samples.push(&NODE_TASKS, &labels, one.tasks as f64);
        samples.push_some(&NODE_LIMIT, &labels, one.limit.map(|limit| limit as f64));
        samples.push_some(&NODE_REFUSALS, &labels, refusals.of_node(one).map(|count| count as f64));
    }
}

/// The pods: the first `shown` in detail, `extra` with what was refused. `unread`: pods whose tasks are not known.
pub(super) fn pods(
    pods: &[Pod],
    shown: usize,
    extra: &[Pod],
    unread: u64,
    refusals: &Tallies,
    names: &Names,
    samples: &mut Samples,
) {
    let mut held_back = 0;
    for (pod, detail) in pods[..shown].iter().map(|pod| (pod, true)).chain(extra.iter().map(|pod| (pod, false))) {
        if names.awaits(&pod.uid) {
            held_back += if detail { pod.tasks } else { 0 };
            continue;
        }
        let (namespace, name) = label(names, &pod.uid);
        let labels = [namespace, name, &pod.uid];
        if detail {
            samples.push(&POD_TASKS, &labels, pod.tasks as f64);
            samples.push_some(&POD_LIMIT, &labels, pod.limit.map(|limit| limit as f64));
        }
        samples.push_some(&POD_REFUSALS, &labels, refusals.of_pod(&pod.uid).map(|(total, _)| total as f64));
    }
    if !pods.is_empty() && unread == 0 {
        let others = pods[shown..].iter().map(|pod| pod.tasks).sum::<u64>() + held_back;
        samples.push(&POD_TASKS, &["", "", "other"], others as f64);
    }
}

/// The largest processes.
pub(super) fn threads(found: &[Largest], names: &Names, samples: &mut Samples) {
    for one in found.iter().filter(|one| !names.awaits(&one.pod_uid)) {
        let (namespace, pod) = label(names, &one.pod_uid);
        let role = one.role.map_or("pod", |role| role.as_str());
        let pid = one.pid.to_string();
        let labels = [&pid, &one.comm, role, namespace, pod, &one.pod_uid];
        samples.push(&THREADS, &labels, one.threads as f64);
    }
}

fn label<'a>(names: &'a Names, uid: &str) -> (&'a str, &'a str) {
    names.pod(uid).map_or(("", ""), |pod| (pod.namespace.as_str(), pod.name.as_str()))
}
