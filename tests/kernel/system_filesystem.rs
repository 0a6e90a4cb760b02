//! Mode system_filesystem on the running kernel: file systems that really fill up, die and hang, and a real etcd. Every
//! figure has a witness that shares no code with us: `stat -f`, `/proc/self/mountinfo`, etcd's own metrics.
//!
//! Root, for mount and process namespaces of its own.
#![allow(clippy::disallowed_methods, reason = "a test makes its machine of files")]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use headroom::error::Reason;
use headroom::host::{Deadline, Host, Roots};
use headroom::kubelet::handle;
use headroom::kubelet::sources::Overrides;
use headroom::metric::Samples;
use headroom::modes::system_filesystem::{
    AVAILABLE_BYTES, AVAILABLE_INODES, CAPACITY_BYTES, CAPACITY_INODES, DATABASE, HEADROOM, MODE, PATH, QUOTA, READONLY,
};
use headroom::modes::{Collector, Context};
use headroom::runtime::Runtime;
use headroom::services::Services;

use crate::common;
use crate::common::hung::HungFilesystem;

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(format!("{program}: {}", text(&output.stderr))) }
}

/// In the mount namespace of this test alone.
fn tmpfs(at: &str, options: &str) {
    std::fs::create_dir_all(at).unwrap();
    run("mount", &["-t", "tmpfs", "-o", options, "headroom-test", at]).unwrap();
}

/// On a machine whose nodefs is that of `kubelet`, without a runtime.
fn collector(kubelet: &Path) -> Box<dyn Collector> {
    let overrides = Overrides { root_dir: Some(kubelet.into()), ..Overrides::default() };
    let services = Services::with_kubelet(handle::Settings { overrides, ..handle::Settings::default() });
    (MODE.build)(&Default::default(), &Services { runtime: Runtime::default(), ..services })
}

fn page(collector: &dyn Collector) -> Samples {
    let host = Host::new(Roots::default());
    let mut samples = collector.collect(Context::new(&host, Deadline::after(Duration::from_secs(20)))).unwrap();
    samples.refuse_duplicates();
    samples.refuse_undeclared(MODE.metrics);
    samples
}

fn look(collector: &dyn Collector) -> Samples {
    let samples = page(collector);
    assert!(samples.errors().is_empty(), "{:?}", samples.errors());
    samples
}

/// What `stat -f` says: capacity, available, inodes, free inodes.
fn stat(path: &str) -> [f64; 4] {
    let text = run("stat", &["-f", "-c", "%S %b %a %c %d", path]).unwrap();
    let numbers: Vec<f64> = text.split(' ').map(|number| number.parse().unwrap()).collect();
    [numbers[0] * numbers[1], numbers[0] * numbers[2], numbers[3], numbers[4]]
}

/// Mountpoint and judge of a path.
fn place(samples: &Samples, path: &str) -> Option<(String, String)> {
    let row = samples.rows().iter().find(|row| std::ptr::eq(row.metric, &PATH) && &*row.labels[0] == path)?;
    Some((row.labels[2].to_string(), row.labels[5].to_string()))
}

/// The series of a file system, whatever else it holds.
fn value(samples: &Samples, metric: &'static headroom::metric::Metric, mountpoint: &str) -> Option<f64> {
    let mut rows =
        samples.rows().iter().filter(|row| std::ptr::eq(row.metric, metric) && &*row.labels[0] == mountpoint);
    let first = rows.next().map(|row| row.value);
    assert!(rows.next().is_none(), "{mountpoint} twice");
    first
}

fn figures(samples: &Samples, mountpoint: &str) -> [Option<f64>; 4] {
    [&CAPACITY_BYTES, &AVAILABLE_BYTES, &CAPACITY_INODES, &AVAILABLE_INODES]
        .map(|metric| value(samples, metric, mountpoint))
}

fn ratio(samples: &Samples, mountpoint: &str, resource: &str) -> Option<f64> {
    let mut rows = samples.rows().iter().filter(|row| std::ptr::eq(row.metric, &HEADROOM));
    rows.find(|row| &*row.labels[0] == mountpoint && &*row.labels[2] == resource).map(|row| row.value)
}

#[test]
fn a_run_that_fills_by_bytes_and_by_inodes() {
    alone!();
    if !common::is_root() {
        skip!("system_filesystem: root mounts a tmpfs");
    }
    let kubelet = tempfile::tempdir().unwrap();
    let collector = collector(kubelet.path());
    tmpfs("/run", "size=16m,nr_inodes=500");
    tmpfs("/var/log", "size=8m");
    std::fs::create_dir("/run/containerd").unwrap();
    std::fs::create_dir("/var/log/pods").unwrap();
    let samples = look(&*collector);
    let expect = |samples: &Samples, at: &str| assert_eq!(figures(samples, at), stat(at).map(Some), "{at}");
    expect(&samples, "/run");
    expect(&samples, "/var/log");
    for (path, mountpoint) in [("/run/containerd", "/run"), ("/var/log/pods", "/var/log")] {
        assert_eq!(place(&samples, path), Some((mountpoint.into(), "system_filesystem".into())), "{path}");
    }

    std::fs::write("/run/fill", vec![b'x'; 12 << 20]).unwrap();
    let samples = look(&*collector);
    expect(&samples, "/run");
    assert_eq!(ratio(&samples, "/run", "bytes"), Some(0.25));
    assert!(std::fs::write("/run/more", vec![b'x'; 8 << 20]).is_err(), "it is full now");
    assert_eq!(ratio(&look(&*collector), "/run", "bytes"), Some(0.0));
    std::fs::remove_file("/run/fill").unwrap();

    while std::fs::create_dir(format!("/run/containerd/{}", common::unique())).is_ok() {}
    let samples = look(&*collector);
    expect(&samples, "/run");
    assert_eq!(
        (ratio(&samples, "/run", "inodes"), value(&samples, &CAPACITY_INODES, "/run")),
        (Some(0.0), Some(500.0))
    );
    assert_eq!(value(&samples, &READONLY, "/run"), Some(0.0));

    // A mount over it is what programs see now.
    tmpfs("/run", "size=4m");
    assert_eq!(value(&look(&*collector), &CAPACITY_BYTES, "/run"), Some(4_194_304.0));
}

#[test]
fn limits_that_are_none_bind_mounts_and_nodefs() {
    alone!();
    if !common::is_root() {
        skip!("system_filesystem: root mounts a tmpfs");
    }
    let kubelet = tempfile::tempdir().unwrap();
    let collector = collector(kubelet.path());
    tmpfs("/run", "size=0,nr_inodes=0");
    // One file system at two places, and two of one name.
    let disk = tempfile::tempdir().unwrap();
    let disk = disk.path().to_str().unwrap();
    tmpfs(disk, "size=8m");
    tmpfs("/var/lib", "size=1m");
    std::fs::create_dir("/var/lib/cni").unwrap();
    run("mount", &["--bind", disk, "/var/log"]).unwrap();
    run("mount", &["--bind", disk, "/var/lib/cni"]).unwrap();
    let samples = look(&*collector);
    assert_eq!(figures(&samples, "/run"), [None; 4], "no limit is not 0");
    assert_eq!(value(&samples, &READONLY, "/run"), Some(0.0));
    let of_disk: Vec<_> = samples.rows().iter().filter(|row| std::ptr::eq(row.metric, &CAPACITY_BYTES)).collect();
    assert_eq!(of_disk.len(), 1, "{of_disk:?}");
    assert_eq!((&*of_disk[0].labels[1], of_disk[0].value), ("cni,logs", 8_388_608.0));

    // The kubelet's directory comes to lie on it: from then on it is eviction's.
    let below = tempfile::tempdir_in(disk).unwrap();
    let samples = look(&*self::collector(below.path()));
    assert!(place(&samples, "/var/log").is_some_and(|(_, judge)| judge == "eviction"));
    assert_eq!(figures(&samples, "/var/log"), [None; 4]);
    // /tmp lies on what was nodefs before.
    let judge = |samples: &Samples| place(samples, "/tmp").map(|(_, judge)| judge);
    assert_eq!(judge(&samples).as_deref(), Some("system_filesystem"));
    assert_eq!(judge(&look(&*collector)).as_deref(), Some("eviction"));
}

#[test]
fn one_that_dies_and_one_that_hangs() {
    alone!();
    if !common::is_root() {
        skip!("system_filesystem: root mounts a tmpfs");
    }
    let kubelet = tempfile::tempdir().unwrap();
    let collector = collector(kubelet.path());
    tmpfs("/run", "size=8m");
    tmpfs("/var/log", "size=8m");
    tmpfs("/var/lib", "size=1m");
    std::fs::create_dir("/var/lib/cni").unwrap();
    // A read-only mount of a good file system, which is how a pod sees the machine.
    run("mount", &["-o", "remount,bind,ro", "/var/log"]).unwrap();
    assert_eq!(value(&look(&*collector), &READONLY, "/var/log"), Some(0.0));
    run("mount", &["-o", "remount,ro", "/var/log"]).unwrap();
    assert_eq!(value(&look(&*collector), &READONLY, "/var/log"), Some(1.0));

    let mut hung = match HungFilesystem::mount_at(Path::new("/var/lib/cni")) {
        Ok(hung) => hung,
        Err(error) => skip!("no FUSE here: {error}"),
    };
    for _ in 0..3 {
        let began = Instant::now();
        let samples = page(&*collector);
        let reasons: Vec<Reason> = samples.errors().iter().map(headroom::error::Error::reason).collect();
        assert!(matches!(reasons[..], [Reason::Timeout | Reason::Busy]), "{:?}", samples.errors());
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        assert_eq!(figures(&samples, "/run"), stat("/run").map(Some), "the others are there");
        assert_eq!(place(&samples, "/var/lib/cni"), None);
    }
    hung.release();
}

struct Etcd(Child);

impl Etcd {
    /// In a mount namespace of its own in which `data` is at `/mnt`, as a static pod has it at another place.
    fn start(data: &str, quota: u64) -> Self {
        let urls = "--listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379 \
                    --listen-peer-urls=http://127.0.0.1:2380 --initial-advertise-peer-urls=http://127.0.0.1:2380 \
                    --initial-cluster=default=http://127.0.0.1:2380";
        let script = format!(
            "mount --make-rprivate / && mount --bind {data} /mnt && exec etcd --data-dir=/mnt/etcd --quota-backend-bytes={quota} {urls}"
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script]).stdout(Stdio::null()).stderr(Stdio::null());
        let etcd = Etcd(command.spawn().unwrap());
        common::eventually("etcd answers", || run("curl", &["-sf", "http://127.0.0.1:2379/version"]).is_ok());
        etcd
    }

    /// As it says itself.
    fn metric(name: &str) -> f64 {
        let text = run("curl", &["-sf", "http://127.0.0.1:2379/metrics"]).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap();
        line.parse().unwrap()
    }

    /// A megabyte under a key of its own: `{"header":…}` or `{"error":…}`.
    fn put(number: u32) -> String {
        // Base64, as it is: three bytes for four letters.
        let key = format!("{number:04}");
        let request = format!(r#"{{"key":"{key}","value":"{}"}}"#, "QUJD".repeat(250_000));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), request).unwrap();
        let data = format!("@{}", file.path().display());
        run("curl", &["-s", "-X", "POST", "-d", &data, "http://127.0.0.1:2379/v3/kv/put"]).unwrap()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_real_etcd_and_its_quota() {
    alone!();
    if !common::is_root() {
        skip!("system_filesystem: root mounts a tmpfs");
    }
    if let Some(missing) = ["etcd", "curl", "unshare"].into_iter().find(|program| !common::has(program)) {
        skip!("no {missing} here (Debian: etcd-server, curl)");
    }
    let kubelet = tempfile::tempdir().unwrap();
    let collector = collector(kubelet.path());
    let disk = tempfile::tempdir().unwrap();
    let disk = disk.path().to_str().unwrap();
    tmpfs(disk, "size=300m");
    let data = &format!("{disk}/data/etcd");
    std::fs::create_dir(format!("{disk}/data")).unwrap();
    let told = |samples: &Samples| [&DATABASE, &QUOTA].map(|metric| samples.value(metric, &[data]));
    assert_eq!(told(&look(&*collector)), [None; 2], "no etcd yet");
    let etcd = Etcd::start(&format!("{disk}/data"), 20 << 20);
    // The search for processes holds for some seconds; another exporter sees it at once.
    let collector = self::collector(kubelet.path());
    let samples = look(&*collector);
    assert_eq!(place(&samples, data), Some((disk.into(), "system_filesystem".into())), "{samples:?}");
    assert_eq!(figures(&samples, disk), stat(data).map(Some));
    assert_eq!(told(&samples)[1], Some(Etcd::metric("etcd_server_quota_backend_bytes")));

    let refused = (1..60).find(|number| Etcd::put(*number).contains("database space exceeded"));
    assert!(refused.is_some_and(|number| number > 5), "{refused:?}");
    let [database, quota] = told(&look(&*collector)).map(Option::unwrap);
    let own = Etcd::metric("etcd_mvcc_db_total_size_in_bytes");
    assert!(database >= own && database <= own + f64::from(16 << 20), "{database} and {own}");
    assert!(database / quota > 0.95, "the page comes before: {database} of {quota}");

    // It ends, most likely for want of space: its disk is looked at all the same.
    drop(etcd);
    let samples = look(&*collector);
    assert_eq!(told(&samples), [Some(database), Some(quota)]);
    assert!(value(&samples, &AVAILABLE_BYTES, disk).is_some());
}
