//! The headline figure of each mode: how much of what runs out is in use, as expressions over the same series as the
//! rules.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Duration;

use promql_parser::parser::Expr;

use super::history::History;
use super::promql::eval::Evaluator;
use super::promql::labels::Labels;
use super::promql::store::is_stale;
use super::promql::{expression, humanize};

/// How one mode's figure is found. Of several series the one with the highest ratio of used and limit is the figure.
struct Row {
    mode: &'static str,
    used: &'static str,
    limit: &'static str,
    /// What moves towards the cliff, as a selector; nothing if its slope says nothing.
    slope: Option<&'static str>,
    /// In words, from what is used, the limit and the labels of the series.
    text: fn(f64, f64, &Labels) -> String,
}

/// kmem has none: a kernel leaks or does not.
const ROWS: &[Row] = &[
    Row {
        mode: "cgroup_leak",
        used: "headroom_memcg_ids_used",
        limit: "headroom_memcg_ids_limit",
        slope: Some("headroom_memcg_ids_used"),
        text: |used, limit, _| format!("{} memory cgroup ids", share(used, limit, grouped)),
    },
    Row {
        mode: "eviction",
        // So that the ratio is the higher the nearer the threshold is.
        used: "1 - headroom_eviction_headroom_ratio{signal!~\"containerfs.+\"}",
        limit: "headroom_eviction_headroom_ratio{signal!~\"containerfs.+\"} * 0 + 1",
        slope: Some("headroom_eviction_headroom_ratio{signal!~\"containerfs.+\"}"),
        text: |used, limit, labels| {
            let (room, side) = if used <= limit { (limit - used, "above") } else { (used - limit, "below") };
            let (signal, kind) = (labels.get("signal"), labels.get("type"));
            format!("{signal} is {} of its capacity {side} the {kind} threshold", humanize::percentage(room))
        },
    },
    Row {
        mode: "open_files",
        used: "headroom_process_open_fds",
        // A low limit is a choice of the program's: systemd's helpers run with 64.
        limit: "headroom_process_fd_limit >= 256",
        slope: Some("headroom_process_open_fds"),
        text: |used, limit, labels| {
            let (comm, pid) = (labels.get("comm"), labels.get("pid"));
            format!("{} file descriptors of {comm} (pid {pid})", share(used, limit, grouped))
        },
    },
    Row {
        mode: "memory_volume",
        used: "headroom_memory_volume_used_bytes",
        limit: "headroom_memory_volume_limit_bytes",
        slope: Some("headroom_memory_volume_used_bytes"),
        text: |used, limit, labels| {
            let pod = match labels.get("pod") {
                "" => labels.get("pod_uid").to_owned(),
                pod => format!("{}/{pod}", labels.get("namespace")),
            };
            let limit = share(used, limit, |bytes| format!("{}B", humanize::humanize1024(bytes)));
            format!("{limit} of memory in volume {} of pod {pod}", labels.get("volume"))
        },
    },
    Row {
        mode: "task_limit",
        used: "headroom_node_cgroup_tasks or headroom_pod_tasks",
        limit: "headroom_node_cgroup_tasks_limit or headroom_pod_tasks_limit",
        slope: None,
        text: |used, limit, labels| {
            let whose = match (labels.get("role"), labels.get("pod")) {
                ("", "") => format!("pod {}", labels.get("pod_uid")),
                ("", pod) => format!("pod {}/{pod}", labels.get("namespace")),
                (role, _) => format!("{role} ({})", labels.get("cgroup")),
            };
            format!("{} processes and threads of {whose}", share(used, limit, grouped))
        },
    },
    Row {
        mode: "pod_interface",
        used: "headroom_pods_without_network_interface",
        limit: "headroom_pods_with_network_namespace > 0",
        slope: None,
        text: |used, limit, _| format!("{} of {} pods have no network interface", grouped(used), grouped(limit)),
    },
    Row {
        mode: "apiserver_connection",
        used: "sum by (instance) (headroom_apiserver_connection_stalled{leg=~\"kubelet|onward\"})",
        limit: "sum by (instance) (headroom_apiserver_connections{leg=~\"kubelet|onward\"}) > 0",
        slope: None,
        text: |used, limit, _| {
            format!("{} of {} connections on the kubelet's way to the apiserver stalled", grouped(used), grouped(limit))
        },
    },
    Row {
        mode: "system_filesystem",
        used: "1 - headroom_system_filesystem_headroom_ratio",
        limit: "headroom_system_filesystem_headroom_ratio * 0 + 1",
        slope: Some("headroom_system_filesystem_headroom_ratio"),
        text: |used, limit, labels| {
            let (mountpoint, resource) = (labels.get("mountpoint"), labels.get("resource"));
            format!("{mountpoint} has {} of its {resource} left", humanize::percentage(limit - used))
        },
    },
    Row {
        mode: "node_status",
        used: "headroom_node_lease_age_seconds",
        limit: "headroom_node_lease_duration_seconds",
        slope: None,
        text: |used, limit, _| {
            let (age, duration) = (humanize::duration(used.round()), humanize::duration(limit));
            format!("the lease was {age} old when it was read, and expires after {duration}")
        },
    },
    Row {
        mode: "cni_leak",
        used: "headroom_cni_addresses_used or sum by (instance, mount_namespace) (headroom_mounts)",
        limit: "headroom_cni_addresses_used + headroom_cni_addresses_free \
                or 0 * sum by (instance, mount_namespace) (headroom_mounts) \
                + on (instance) group_left () headroom_mounts_limit",
        slope: Some("headroom_cni_addresses_used"),
        text: |used, limit, labels| match labels.get("network") {
            "" => format!("{} mounts of the {}", share(used, limit, grouped), labels.get("mount_namespace")),
            network => format!("{} addresses of network {network}", share(used, limit, grouped)),
        },
    },
];

/// The number that a mode's verdict turns on: how full the fullest thing is, or how near the nearest threshold.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// "12,034 of 65,535 (18.36%) memory cgroup ids"
    pub text: String,
    /// Used of the limit.
    pub ratio: f64,
    /// Change per second over all that the history has: of what is used, or of a headroom ratio. `None`
    /// if the series covers less than ten minutes, and where a slope says nothing.
    pub rate: Option<f64>,
    /// When the limit is met at that rate, if it is met within 24 times the time that the series covers.
    pub time_to_cliff: Option<Duration>,
    /// Which of several series it is: all its labels but `instance` and `job`.
    pub labels: BTreeMap<String, String>,
}

/// Least time that a series must cover before its slope is a trend. In seconds of samples one log file or one page
/// cache that grows makes a healthy node look minutes from eviction.
const TREND: Duration = Duration::from_secs(600);

/// Fewest samples of a trend: two ends make a line of anything.
const SAMPLES: usize = 4;

/// How many times what it covers a trend is drawn on.
const AHEAD: u32 = 24;

struct Parsed {
    row: &'static Row,
    used: Expr,
    ratio: Expr,
    rate: Option<Expr>,
    limit: Expr,
}

static PARSED: LazyLock<Vec<Parsed>> = LazyLock::new(|| {
    let parse = |text: &str| expression::parse(text).expect("the expressions that are built in can be parsed");
    let each = |row: &'static Row| Parsed {
        row,
        used: parse(row.used),
        ratio: parse(&format!("topk(1, ({}) / ({}))", row.used, row.limit)),
        rate: row.slope.map(|slope| parse(&format!("deriv({slope}[6h])"))),
        limit: parse(row.limit),
    };
    ROWS.iter().map(each).collect()
});

pub(super) fn names(wanted: &mut BTreeSet<String>) {
    for parsed in PARSED.iter() {
        expression::names(&parsed.ratio, wanted);
    }
}

/// Every expression that a figure is found with.
#[cfg(test)]
pub(super) fn expressions() -> impl Iterator<Item = &'static Expr> {
    PARSED.iter().flat_map(|parsed| [&parsed.ratio].into_iter().chain(&parsed.rate))
}

/// The headline figure of a mode at the newest page: nothing for a mode that has none, or whose series are not on it.
pub fn figure(mode: &str, history: &History) -> Option<Figure> {
    let parsed = PARSED.iter().find(|parsed| parsed.row.mode == mode)?;
    let (_, newest) = history.span()?;
    let evaluator = Evaluator::new(&history.store, newest);
    let worst = evaluator.vector(&parsed.ratio).ok()?.into_iter().next()?;
    let of = |expr| {
        let vector = evaluator.vector(expr).ok()?;
        vector.into_iter().find(|element| element.labels.without_name() == worst.labels).map(|element| element.value)
    };
    let (used, limit) = (of(&parsed.used)?, of(&parsed.limit)?);
    let covered = parsed.row.slope.and_then(|slope| covered(history, slope, &worst.labels));
    let rate = covered.and_then(|_| parsed.rate.as_ref().and_then(of));
    // What is left of a headroom falls; what is used grows.
    let falls = parsed.row.slope.is_some_and(|slope| slope.contains("_headroom_ratio"));
    let towards = rate.map(|rate| if falls { -rate } else { rate });
    let left = towards.filter(|rate| *rate > 0.0).map(|rate| (limit - used).max(0.0) / rate);
    let labels = worst.labels.iter().filter(|(name, _)| !matches!(*name, "instance" | "job"));
    Some(Figure {
        text: (parsed.row.text)(used, limit, &worst.labels),
        ratio: worst.value,
        rate,
        time_to_cliff: left
            .and_then(|left| Duration::try_from_secs_f64(left).ok())
            .filter(|left| covered.is_some_and(|covered| *left <= covered * AHEAD)),
        labels: labels.map(|(name, value)| (name.into(), value.into())).collect(),
    })
}

/// How long the series of this selector with these labels has been there, if that is enough for a trend.
fn covered(history: &History, selector: &str, labels: &Labels) -> Option<Duration> {
    let name = selector.split('{').next();
    let mut series = history.store.select(name, &[]);
    let (_, points) = series.find(|(of, _)| of.without_name() == *labels)?;
    // A series that was away begins again: what it was before need not be the same thing.
    let since = points.iter().rposition(|point| is_stale(point.value)).map_or(0, |gap| gap + 1);
    let points = points.get(since..).filter(|points| points.len() >= SAMPLES)?;
    let covered = points.last()?.at - points.first()?.at;
    Some(Duration::from_millis(covered.unsigned_abs())).filter(|covered| *covered >= TREND)
}

/// 12,034 of 65,535 (18.36%)
fn share(used: f64, limit: f64, number: fn(f64) -> String) -> String {
    format!("{} of {} ({})", number(used), number(limit), humanize::percentage(used / limit))
}

/// 12,034
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
