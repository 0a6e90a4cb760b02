//! The eviction signals beside the kubelet's own figures (`/stats/summary`) and its running configuration (`/configz`).

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::bed::{self, Cluster, NODE};
use crate::checks::{Checks, same};
use crate::common::Exporter;
use crate::page::Page;

/// One figure of the kubelet, and when it took it.
struct Figure {
    series: &'static str,
    signal: &'static str,
    value: f64,
    at: SystemTime,
}

pub(super) fn check(cluster: &Cluster, exporter: &Exporter, checks: &mut Checks) {
    moving(cluster, exporter, checks);
    checks.soon("thresholds are those of /configz", 30, || thresholds(cluster, exporter));
    checks.soon("capacities of memory are the node object's", 10, || {
        let node = cluster.get(&["node", NODE])?;
        let memory = quantity(node["status"]["capacity"]["memory"].as_str().unwrap_or_default(), f64::NAN);
        let page = Page::of(exporter);
        same(page.one("headroom_eviction_capacity_bytes", &[("signal", "memory.available")])?, memory)
    });
    checks.soon("images are those of the node object", 30, || {
        let node = cluster.get(&["node", NODE])?;
        let images = node["status"]["images"].as_array().cloned().unwrap_or_default();
        let bytes: f64 = images.iter().filter_map(|image| image["sizeBytes"].as_f64()).sum();
        let page = Page::of(exporter);
        same((page.one("headroom_images", &[])?, page.one("headroom_images_bytes", &[])?), (images.len() as f64, bytes))
    });
}

/// What the kubelet says is up to some seconds old: it must be between the least and the most that we said around the
/// moment at which it looked. Where nothing else writes, as on file systems of their own, that is one value.
fn moving(cluster: &Cluster, exporter: &Exporter, checks: &mut Checks) {
    const PATIENCE: Duration = Duration::from_secs(75);
    let (pages, done) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        // Meanwhile too: whoever asks the kubelet is a process with threads, which the kubelet counts.
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) && begun.elapsed() < 2 * PATIENCE {
                let page = Page::of(exporter);
                pages.lock().unwrap().push(page);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        ask_the_kubelet(cluster, &pages, PATIENCE, checks);
        done.store(true, Ordering::Relaxed);
    });
}

fn ask_the_kubelet(cluster: &Cluster, pages: &Mutex<Vec<Page>>, patience: Duration, checks: &mut Checks) {
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    let mut missed: std::collections::BTreeMap<(&str, &str), String> = std::collections::BTreeMap::new();
    let begun = Instant::now();
    while begun.elapsed() < patience {
        std::thread::sleep(Duration::from_secs(3));
        let Ok(summary) = cluster.kubelet_api("stats/summary") else { continue };
        // There shall be pages of the moments after it, too.
        std::thread::sleep(Duration::from_millis(500));
        for figure in figures(&summary) {
            let key = (figure.series, figure.signal);
            if !wanted.contains(&key) {
                wanted.push(key);
                missed.insert(key, "not compared".to_owned());
            }
            // What agreed once is not looked at again.
            if let Some(said) = missed.get_mut(&key) {
                match between(&pages.lock().unwrap(), &figure) {
                    Ok(()) => drop(missed.remove(&key)),
                    Err(why) => *said = why,
                }
            }
        }
        if !wanted.is_empty() && missed.is_empty() {
            break;
        }
    }
    // memory, allocatable memory, bytes and inodes of two file systems with their capacities, process ids with theirs.
    checks.check("the kubelet's figures are there", same(wanted.len(), 13));
    for (series, signal) in wanted {
        let outcome = missed.remove(&(series, signal)).map_or(Ok(()), Err);
        checks.check(&format!("{series} {signal} is the kubelet's"), outcome);
    }
}

fn between(pages: &[Page], figure: &Figure) -> Result<(), String> {
    // Of some of its figures the kubelet says the second only.
    let around = figure.at - Duration::from_millis(1500)..figure.at + Duration::from_millis(2500);
    let seen = pages.iter().filter(|page| around.contains(&page.asked));
    let values: Vec<f64> =
        seen.map(|page| page.one(figure.series, &[("signal", figure.signal)])).collect::<Result<_, _>>()?;
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if values.len() < 3 {
        return Err("no pages around the moment of the kubelet's".to_owned());
    }
    if (least..=most).contains(&figure.value) {
        return Ok(());
    }
    Err(format!("{least} to {most}, and by the kubelet {}", figure.value))
}

fn figures(summary: &Value) -> Vec<Figure> {
    const AVAILABLE: [&str; 3] =
        ["headroom_eviction_available_bytes", "headroom_eviction_available_inodes", "headroom_eviction_available_pids"];
    const CAPACITY: [&str; 3] =
        ["headroom_eviction_capacity_bytes", "headroom_eviction_capacity_inodes", "headroom_eviction_capacity_pids"];
    let node = &summary["node"];
    let pods = node["systemContainers"].as_array().into_iter().flatten().find(|container| container["name"] == "pods");
    let mut figures = Vec::new();
    let mut add = |series, signal, of: &Value, value: Option<f64>| {
        let time = of["time"].as_str().and_then(|time| time.parse::<jiff::Timestamp>().ok());
        if let (Some(value), Some(time)) = (value, time) {
            let since = time.duration_since(jiff::Timestamp::UNIX_EPOCH).unsigned_abs();
            figures.push(Figure { series, signal, value, at: SystemTime::UNIX_EPOCH + since });
        }
    };
    let number = |of: &Value, name: &str| of[name].as_f64();
    add(AVAILABLE[0], "memory.available", &node["memory"], number(&node["memory"], "availableBytes"));
    if let Some(memory) = pods.map(|pods| &pods["memory"]) {
        let available = number(memory, "availableBytes");
        add(AVAILABLE[0], "allocatableMemory.available", memory, available);
        let capacity = available.zip(number(memory, "workingSetBytes")).map(|(free, used)| free + used);
        add(CAPACITY[0], "allocatableMemory.available", memory, capacity);
    }
    for (of, bytes, inodes) in [
        (&node["fs"], "nodefs.available", "nodefs.inodesFree"),
        (&node["runtime"]["imageFs"], "imagefs.available", "imagefs.inodesFree"),
    ] {
        add(AVAILABLE[0], bytes, of, number(of, "availableBytes"));
        add(CAPACITY[0], bytes, of, number(of, "capacityBytes"));
        add(AVAILABLE[1], inodes, of, number(of, "inodesFree"));
        add(CAPACITY[1], inodes, of, number(of, "inodes"));
    }
    let ids = &node["rlimit"];
    let most = number(ids, "maxpid");
    add(AVAILABLE[2], "pid.available", ids, most.zip(number(ids, "curproc")).map(|(most, used)| most - used));
    add(CAPACITY[2], "pid.available", ids, most);
    figures
}

/// Of each threshold of the running kubelet, what it is of the capacity; and no other is on the page.
fn thresholds(cluster: &Cluster, exporter: &Exporter) -> Result<(), String> {
    let running = cluster.kubelet_api("configz")?["kubeletconfig"].clone();
    let page = Page::of(exporter);
    // A kubelet before 1.33 wants the right to run commands in every pod for it, which nobody gives: its files tell.
    let version = bed::version().unwrap_or_default();
    let minor: u32 = version.split('.').nth(1).and_then(|minor| minor.parse().ok()).unwrap_or_default();
    let source = if minor < 33 { "file" } else { "configz" };
    same(page.all("headroom_eviction_config_info", &[("source", source)]).count(), 1)?;
    same(page.all("headroom_eviction_config_drift", &[]).map(|series| series.value).sum::<f64>(), 0.0)?;
    let mut expected = Vec::new();
    for (kind, name) in [("hard", "evictionHard"), ("soft", "evictionSoft")] {
        for (signal, threshold) in running[name].as_object().ok_or("no thresholds in /configz")? {
            let unit = match signal.as_str() {
                "pid.available" => "pids",
                inodes if inodes.ends_with("inodesFree") => "inodes",
                _ => "bytes",
            };
            // What all pods together may use has the threshold of the node's memory.
            let signals = match (signal.as_str(), kind) {
                ("memory.available", "hard") => vec![signal.as_str(), "allocatableMemory.available"],
                _ => vec![signal.as_str()],
            };
            for signal in signals {
                let capacity = page.one(&format!("headroom_eviction_capacity_{unit}"), &[("signal", signal)])?;
                let value = quantity(threshold.as_str().unwrap(), capacity);
                expected.push((unit.to_owned(), signal.to_owned(), kind.to_owned(), value));
            }
        }
    }
    // The writable layers' file system has no thresholds of its own: those of the images' where it is another than the
    // kubelet's, else the kubelet's.
    let device = |path| std::fs::metadata(path).map(|of| std::os::unix::fs::MetadataExt::dev(&of)).unwrap();
    let apart = device(cluster.kubelet_root()) != device(cluster.dir().join("containerd"));
    let model = if apart { "imagefs." } else { "nodefs." };
    let shared: Vec<_> = expected
        .iter()
        .filter_map(|(unit, signal, kind, value)| {
            let rest = signal.strip_prefix(model)?;
            Some((unit.clone(), format!("containerfs.{rest}"), kind.clone(), *value))
        })
        .collect();
    expected.extend(shared);
    let units = ["bytes", "inodes", "pids"];
    let ours = units.into_iter().flat_map(|unit| {
        let name = format!("headroom_eviction_threshold_{unit}");
        let series: Vec<_> = page.all(&name, &[]).cloned().collect();
        series
            .into_iter()
            .map(move |one| (unit.to_owned(), one.label("signal").to_owned(), one.label("type").to_owned(), one.value))
    });
    let mut ours: Vec<_> = ours.collect();
    let order = |one: &(String, String, String, f64), other: &(String, String, String, f64)| {
        (&one.0, &one.1, &one.2).cmp(&(&other.0, &other.1, &other.2))
    };
    ours.sort_by(order);
    expected.sort_by(order);
    same(ours, expected)
}

/// As the kubelet takes it: percentages are 32-bit floats of the capacity, cut to a whole number.
fn quantity(text: &str, capacity: f64) -> f64 {
    if let Some(percent) = text.strip_suffix('%') {
        let part: f32 = percent.parse::<f32>().unwrap() / 100.0;
        return (capacity * f64::from(part)).trunc();
    }
    let digits = text.trim_end_matches(char::is_alphabetic);
    let factor = match &text[digits.len()..] {
        "" => 1.0,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        other => panic!("{text}: unit {other}"),
    };
    digits.parse::<f64>().unwrap_or(f64::NAN) * factor
}
