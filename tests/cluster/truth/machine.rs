//! The node as a machine and as an object: cgroups, descriptors, connections, lease and conditions, beside `/proc`,
//! `ss` and kubectl.

use std::collections::BTreeMap;
use std::fs;

use crate::bed::{APISERVER, Cluster, NODE};
use crate::checks::{Checks, same};
use crate::common::{self, Exporter};
use crate::page::Page;

pub(super) fn check(cluster: &Cluster, exporter: &Exporter, checks: &mut Checks) {
    checks.soon("cgroups are the kernel's", 20, || cgroups(exporter));
    for daemon in ["kubelet", "containerd", "etcd", "kube-apiserver"] {
        checks.soon(&format!("descriptors of {daemon} are those of /proc"), 20, || {
            descriptors(cluster, exporter, daemon)
        });
    }
    checks.soon("connections to the apiserver are those of ss", 30, || connections(exporter));
    checks.soon("lease and conditions are kubectl's", 30, || node_object(cluster, exporter));
    checks.soon("file systems are those of df", 10, || file_systems(cluster, exporter));
}

fn cgroups(exporter: &Exporter) -> Result<(), String> {
    let pure = !std::path::Path::new("/sys/fs/cgroup/memory").exists();
    // All rows of hierarchy 0 count the same cgroups. Linux 7.2 has no row for a controller that it does not build for
    // v1, as memory is none in Debian.
    let held = || {
        let table = fs::read_to_string("/proc/cgroups").unwrap();
        let is_wanted = |row: &[&str]| if pure { row.get(1) == Some(&"0") } else { row[0] == "memory" };
        let mut rows = table.lines().map(|line| line.split('\t').collect::<Vec<_>>());
        let count = rows.find(|row| is_wanted(row)).and_then(|row| row.get(2)?.parse::<f64>().ok());
        count.unwrap_or_else(|| panic!("no row with a count: {table}"))
    };
    let subsystem = if pure { "unified" } else { "memory" };
    let find = || {
        let root = if pure { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/memory" };
        common::shell(&format!("find {root} -type d | wc -l")).trim().parse::<f64>().unwrap()
    };
    let before = (held(), find());
    let page = Page::of(exporter);
    let ours = |name: &str| page.one(name, &[("subsystem", subsystem)]);
    let (cgroups, directories) = (ours("headroom_cgroups")?, ours("headroom_cgroup_directories")?);
    let after = (held(), find());
    if before != after {
        return Err(format!("the witness moved: {before:?}, {after:?}"));
    }
    same((cgroups, directories), before)
}

fn descriptors(cluster: &Cluster, exporter: &Exporter, daemon: &str) -> Result<(), String> {
    let pid = cluster.pid(daemon).to_string();
    let open = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as f64;
    let before = open();
    let page = Page::of(exporter);
    let after = open();
    let labels = [("pid", pid.as_str())];
    let ours = page.one("headroom_process_open_fds", &labels)?;
    if !(before.min(after)..=before.max(after)).contains(&ours) {
        return Err(format!("{ours}, and by /proc {before} and then {after}"));
    }
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let soft =
        limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse().ok());
    same(Some(page.one("headroom_process_fd_limit", &labels)?), soft)
}

/// How many each process has, by the name of the process.
fn connections(exporter: &Exporter) -> Result<(), String> {
    let seen = || {
        let lines = common::shell(&format!("ss -tnpH state established dst {APISERVER}"));
        let mut owners: BTreeMap<String, f64> = BTreeMap::new();
        for line in lines.lines() {
            let name = line.split("((\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or("unknown");
            let name = if line.contains(&format!("pid={},", exporter.pid())) { "self" } else { name };
            *owners.entry(name.to_owned()).or_default() += 1.0;
        }
        owners
    };
    let before = seen();
    let page = Page::of(exporter);
    let after = seen();
    if before != after {
        return Err(format!("the witness moved: {before:?}, {after:?}"));
    }
    let all = page.all("headroom_apiserver_connections", &[]);
    let ours: BTreeMap<_, _> = all
        .filter(|series| series.value > 0.0)
        .map(|series| (series.label("owner").to_owned(), series.value))
        .collect();
    same(&ours, &before)?;
    if !ours.contains_key("kubelet") {
        return Err(format!("the kubelet has none: {ours:?}"));
    }
    same(page.sum("headroom_apiserver_connection_stalled", &[]), 0.0)?;
    for probe in ["reused", "fresh"] {
        same(page.one("headroom_apiserver_probe_success", &[("connection", probe)])?, 1.0)?;
    }
    Ok(())
}

fn node_object(cluster: &Cluster, exporter: &Exporter) -> Result<(), String> {
    let node = cluster.get(&["node", NODE])?;
    let lease = cluster.get(&["lease", NODE, "--namespace=kube-node-lease"])?;
    let page = Page::of(exporter);
    same(page.one("headroom_node_info", &[("node", NODE)])?, 1.0)?;
    let version = node["status"]["nodeInfo"]["kubeletVersion"].as_str().unwrap_or_default();
    same(page.one("headroom_kubelet_info", &[("version", version)])?, 1.0)?;
    let apiserver: serde_json::Value =
        serde_json::from_str(&cluster.kubectl(&["get", "--raw=/version"])?).map_err(|error| error.to_string())?;
    let version = apiserver["gitVersion"].as_str().unwrap_or_default();
    same(page.one("headroom_apiserver_info", &[("version", version)])?, 1.0)?;
    // Its node controller runs with defaults.
    same(page.one("headroom_node_monitor_grace_period_seconds", &[])?, 50.0)?;
    for object in ["node", "lease"] {
        same((object, page.one("headroom_node_object_present", &[("object", object)])?), (object, 1.0))?;
    }
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let theirs: BTreeMap<String, String> = node["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|condition| (text(&condition["type"]), text(&condition["status"]).to_lowercase()))
        .collect();
    let all = page.all("headroom_node_condition", &[]).filter(|series| series.value == 1.0);
    let ours = all.map(|series| (series.label("condition").to_owned(), series.label("status").to_owned())).collect();
    same(&theirs, &ours)?;
    same(
        page.one("headroom_node_lease_duration_seconds", &[])?,
        lease["spec"]["leaseDurationSeconds"].as_f64().unwrap(),
    )?;
    // The age is that at the moment of our reading, which was at most a second before the page, or a slow answer more.
    let renewed: jiff::Timestamp = text(&lease["spec"]["renewTime"]).parse().map_err(|error| format!("{error}"))?;
    let since = jiff::Timestamp::try_from(page.answered).unwrap().duration_since(renewed).as_secs_f64();
    let (age, read) = (
        page.one("headroom_node_lease_age_seconds", &[])?,
        page.one("headroom_node_object_read_age_seconds", &[("object", "lease")])?,
    );
    let told = age + read;
    // Read before the latest renewal it may be older by one.
    if (told - since).abs() < 0.5 { Ok(()) } else { Err(format!("renewed {told} s ago, and by kubectl {since} s")) }
}

fn file_systems(cluster: &Cluster, exporter: &Exporter) -> Result<(), String> {
    let page = Page::of(exporter);
    for (role, path) in [("nodefs", cluster.kubelet_root()), ("imagefs", cluster.dir().join("containerd"))] {
        let df = common::shell(&format!("df --output=target,fstype {}", path.display()));
        let theirs: Vec<&str> = df.lines().last().unwrap().split_whitespace().collect();
        let labels = [("role", role)];
        let infos: Vec<_> = page.all("headroom_filesystem_info", &labels).collect();
        same((role, infos.len()), (role, 1))?;
        same((role, vec![infos[0].label("mountpoint"), infos[0].label("fstype")]), (role, theirs))?;
    }
    Ok(())
}
