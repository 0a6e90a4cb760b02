//! Where the cluster's data lies: what an etcd was told, or the program that has one inside, and which directory of the
//! machine that is.
//!
//! - **etcd** (`server/etcdmain/config.go`, `server/embed/config.go` of 3.3 to 3.6): `--config-file` or
//!   `ETCD_CONFIG_FILE` alone if there is one; else a flag, else its variable `ETCD_…`. The data directory is
//!   `NAME.etcd` below its working directory if nobody says another; the database is `member/snap/db` in it.
//!   `quota-backend-bytes` is 2 GiB if it is 0 or nobody says it, and a negative one is none (`storage/quota.go`).
//! - **k3s** writes its etcd's configuration to `server/db/etcd/config` below its own data directory
//!   (`pkg/daemons/executor`), as RKE2 does for an etcd of its own name. Without etcd it is SQLite's
//!   `server/db/state.db`; with neither, the data is elsewhere.
//! - **MicroK8s** keeps dqlite in `$SNAP_DATA/var/kubernetes/backend`; **MicroShift** an etcd in
//!   `/var/lib/microshift/etcd`, whose quota is nowhere to be read.
//!
//! **Whose path it is.** A static pod's etcd names a directory of *its* mount namespace. [`on_machine`] finds by both
//! mount tables where the machine has that very directory: the row that holds it there tells the file system and the
//! place in it, and a row of the machine's table with both is where we look.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::embedded::{Started, gone, k3s_data_dir, settings};
use crate::error::{Error, Result};
use crate::host::filesystem::{DeviceNumber, MountRow};
use crate::host::rootfs::Tree;

/// etcd's own default (`DefaultQuotaBytes`).
const DEFAULT_QUOTA: u64 = 2 << 30;

/// What keeps the cluster's data, and how it was told to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datastore {
    /// Its directory, as it calls it itself; relative to its working directory where it is not absolute.
    pub data_dir: PathBuf,
    /// Where its write-ahead log is, if not below that.
    pub wal_dir: Option<PathBuf>,
    /// The file of the database, in the directory.
    pub database: Option<&'static str>,
    /// Bytes that the database may have; `None` if it has no quota, or where that is not to be read.
    pub quota: Option<u64>,
    /// Why the quota is not known, where it should be.
    pub unread: Option<Error>,
}

impl Datastore {
    fn new(data_dir: impl Into<PathBuf>, database: Option<&'static str>) -> Self {
        Datastore { data_dir: data_dir.into(), wal_dir: None, database, quota: None, unread: None }
    }
}

const ETCD_DATABASE: &str = "member/snap/db";

/// What the process called `comm` was told. `tree` is the root file system that it sees itself. `None`: the data is on
/// another machine.
///
/// # Errors
/// Denied or the operating system's if what tells cannot be read; malformed.
pub fn told(comm: &str, argv: &[String], environ: &Result<Vec<String>>, tree: &Tree) -> Result<Option<Datastore>> {
    let none = Vec::new();
    let started = Started { argv, environ: environ.as_ref().unwrap_or(&none) };
    // Whoever hides its environment may have been told by it.
    let whole = || environ.as_ref().map(drop).map_err(Clone::clone);
    match comm {
        "k3s-server" => {
            whole()?;
            k3s(started, tree)
        }
        "kubelite" => {
            whole()?;
            let data = started.variable("SNAP_DATA").unwrap_or("/var/snap/microk8s/current");
            Ok(Some(Datastore::new(Path::new(data).join("var/kubernetes/backend"), None)))
        }
        "microshift" => Ok(Some(Datastore::new("/var/lib/microshift/etcd", Some(ETCD_DATABASE)))),
        _ => etcd(started, whole(), tree).map(Some),
    }
}

fn k3s(started: Started<'_>, tree: &Tree) -> Result<Option<Datastore>> {
    let db = k3s_data_dir(started, tree)?.join("server/db");
    let etcd = db.join("etcd");
    if gone(tree.kind(&etcd))?.is_some() {
        let file = etcd.join("config");
        return match gone(tree.read(&file))? {
            Some(text) => of_file(&text, &file, &etcd).map(Some),
            None => Ok(Some(Datastore::new(etcd, Some(ETCD_DATABASE)))),
        };
    }
    let sqlite = gone(tree.kind(db.join("state.db")))?;
    Ok(sqlite.map(|_| Datastore::new(db, Some("state.db"))))
}

fn etcd(started: Started<'_>, whole: Result<()>, tree: &Tree) -> Result<Datastore> {
    let flag = |name: &str| started.flags(&[&format!("--{name}"), &format!("-{name}")]).last().copied();
    // An empty variable is none (`pkg/flags/flag.go`).
    let variable = |name: &str| started.variable(name).filter(|value| !value.is_empty());
    let one = |name: &str, of_environ: &str| match flag(name).or_else(|| variable(of_environ)) {
        Some(value) => Ok(Some(value)),
        None => whole.clone().map(|()| None),
    };
    if let Some(file) = one("config-file", "ETCD_CONFIG_FILE")? {
        let file = Path::new(file);
        return of_file(&tree.read(file)?, file, Path::new(&default_dir(None)));
    }
    let data_dir = match one("data-dir", "ETCD_DATA_DIR")? {
        Some(dir) => PathBuf::from(dir),
        None => default_dir(one("name", "ETCD_NAME")?).into(),
    };
    let wal_dir = one("wal-dir", "ETCD_WAL_DIR")?.filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let quota = one("quota-backend-bytes", "ETCD_QUOTA_BACKEND_BYTES").and_then(|told| match told {
        Some(told) => told.parse().map(Some).map_err(|_| not_a_quota(told)),
        None => Ok(None),
    });
    Ok(Datastore { wal_dir, ..Datastore::new(data_dir, Some(ETCD_DATABASE)) }.with(quota))
}

fn of_file(text: &str, path: &Path, otherwise: &Path) -> Result<Datastore> {
    let settings = settings(text, path)?;
    let text = |name: &str| settings.get(name).and_then(Value::as_str).filter(|value| !value.is_empty());
    let data_dir = match (text("data-dir"), text("name")) {
        (Some(dir), _) => PathBuf::from(dir),
        (None, Some(name)) if otherwise.is_relative() => default_dir(Some(name)).into(),
        (None, _) => otherwise.to_owned(),
    };
    let quota = match settings.get("quota-backend-bytes") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => whole_number(value).map(Some).ok_or_else(|| not_a_quota(value)),
    };
    Ok(Datastore { wal_dir: text("wal-dir").map(PathBuf::from), ..Datastore::new(data_dir, Some(ETCD_DATABASE)) }
        .with(quota))
}

/// Also one that a program wrote as 8.589934592e+09.
fn whole_number(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| {
        let float = value.as_f64().filter(|float| float.fract() == 0.0 && float.abs() < 9e15)?;
        Some(float as i64)
    })
}

fn default_dir(name: Option<&str>) -> String {
    format!("{}.etcd", name.unwrap_or("default"))
}

fn not_a_quota(told: impl std::fmt::Display) -> Error {
    Error::malformed(format!("etcd's quota-backend-bytes is no number: {told}"))
}

impl Datastore {
    fn with(mut self, quota: Result<Option<i64>>) -> Self {
        match quota {
            Ok(None | Some(0)) => self.quota = Some(DEFAULT_QUOTA),
            Ok(Some(bytes)) => self.quota = u64::try_from(bytes).ok(),
            Err(error) => self.unread = Some(error),
        }
        self
    }
}

/// What the machine calls the absolute `path` of a process, by the process's mount table and the machine's, and the
/// number of the file system that it is on. `None` if no mount of the machine shows it: it is the container's own.
pub fn on_machine(path: &Path, own: &str, machine: &str) -> Option<(PathBuf, DeviceNumber)> {
    let holder = holder(path, own)?;
    let inside = holder.root.join(path.strip_prefix(&holder.mountpoint).ok()?);
    let seen =
        machine.lines().filter_map(MountRow::parse).filter(|row| row.number == holder.number).filter_map(|row| {
            let at = joined(&row.mountpoint, inside.strip_prefix(&row.root).ok()?);
            // Nothing else may be mounted over it.
            let is_seen = self::holder(&at, machine).is_some_and(|of| of.number == row.number && of.root == row.root);
            is_seen.then_some((at, row.number))
        });
    // Its own name is the one that people know.
    let mut seen: Vec<_> = seen.collect();
    seen.sort_by_key(|(at, _)| at != path);
    seen.into_iter().next()
}

/// The row on which `path` lies: of those above it the deepest, of several at one place the last.
fn holder(path: &Path, table: &str) -> Option<MountRow> {
    let above = table.lines().filter_map(MountRow::parse).filter(|row| path.starts_with(&row.mountpoint));
    above.max_by_key(|row| row.mountpoint.components().count())
}

/// Without the slash at the end that joining nothing makes.
fn joined(path: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() { path.to_owned() } else { path.join(below) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(comm: &str, line: &str, environ: &[&str], files: &[(&str, &str)]) -> Result<Option<Datastore>> {
        let (_dir, tree) = Tree::recorded(files);
        let argv: Vec<String> = line.split(' ').map(str::to_owned).collect();
        told(comm, &argv, &Ok(environ.iter().map(|&variable| variable.to_owned()).collect()), &tree)
    }

    fn etcd(line: &str, environ: &[&str], files: &[(&str, &str)]) -> Datastore {
        of("etcd", line, environ, files).unwrap().unwrap()
    }

    const GIB: u64 = 1 << 30;

    #[test]
    fn flags_before_variables_before_defaults() {
        let kubeadm =
            "etcd --advertise-client-urls=https://10.0.0.1:2379 --data-dir=/var/lib/etcd --snapshot-count=10000";
        let told = etcd(kubeadm, &["ETCD_DATA_DIR=/elsewhere"], &[]);
        assert_eq!(
            (told.data_dir.as_path(), told.wal_dir, told.quota),
            (Path::new("/var/lib/etcd"), None, Some(2 * GIB))
        );
        let told = etcd("etcd -data-dir /d --wal-dir=/w --quota-backend-bytes=8589934592", &[], &[]);
        assert_eq!((told.data_dir.as_path(), told.wal_dir.as_deref()), (Path::new("/d"), Some(Path::new("/w"))));
        assert_eq!(told.quota, Some(8 * GIB));
        let told =
            etcd("/usr/bin/etcd", &["ETCD_DATA_DIR=/var/lib/etcd/default", "ETCD_QUOTA_BACKEND_BYTES=1000"], &[]);
        assert_eq!((told.data_dir.as_path(), told.quota), (Path::new("/var/lib/etcd/default"), Some(1000)));
        assert_eq!(etcd("etcd --name=one", &[], &[]).data_dir, Path::new("one.etcd"));
        assert_eq!(etcd("etcd", &["ETCD_DATA_DIR="], &[]).data_dir, Path::new("default.etcd"));
    }

    #[test]
    fn a_quota_may_be_none_or_unknown() {
        for (told, expected) in [("0", Some(2 * GIB)), ("-1", None), ("9223372036854775807", Some(i64::MAX as u64))] {
            assert_eq!(etcd(&format!("etcd --quota-backend-bytes={told}"), &[], &[]).quota, expected, "{told}");
        }
        let odd = etcd("etcd --data-dir=/d --quota-backend-bytes=8Gi", &[], &[]);
        assert_eq!((odd.quota, odd.unread.is_some()), (None, true), "unknown is not the default");
        // Its environment cannot be read: what it does not say on its command line is unknown.
        let (_dir, tree) = Tree::recorded(&[]);
        let denied = Err(Error::new(crate::error::Reason::Denied, "environ"));
        let argv = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(
            told("etcd", &argv("etcd --data-dir=/d"), &denied, &tree).is_err(),
            "a configuration file may be named"
        );
    }

    #[test]
    fn a_configuration_file_alone_counts() {
        let files =
            [("etc/etcd.yaml", "name: one\ndata-dir: /data/etcd\nquota-backend-bytes: 4294967296\nwal-dir: ''\n")];
        let told = etcd("etcd --config-file=/etc/etcd.yaml --data-dir=/ignored", &["ETCD_WAL_DIR=/ignored"], &files);
        assert_eq!((told.data_dir.as_path(), told.wal_dir, told.quota), (Path::new("/data/etcd"), None, Some(4 * GIB)));
        let told =
            etcd("etcd", &["ETCD_CONFIG_FILE=/c"], &[("c", "name: two\nquota-backend-bytes: 8.589934592e+09\n")]);
        assert_eq!((told.data_dir.as_path(), told.quota), (Path::new("two.etcd"), Some(8 * GIB)));
        assert!(of("etcd", "etcd --config-file=/none", &[], &[]).is_err());
        assert!(of("etcd", "etcd --config-file=/c", &[], &[("c", "a: [")]).is_err());
    }

    #[test]
    fn etcd_inside_others() {
        let config = [("var/lib/rancher/k3s/server/db/etcd/config", "data-dir: /var/lib/rancher/k3s/server/db/etcd\n")];
        let told = of("k3s-server", "/usr/local/bin/k3s server", &[], &config).unwrap().unwrap();
        assert_eq!(told.data_dir, Path::new("/var/lib/rancher/k3s/server/db/etcd"));
        assert_eq!((told.database, told.quota), (Some(ETCD_DATABASE), Some(2 * GIB)));
        let sqlite = [("data/server/db/state.db", "")];
        let told = of("k3s-server", "k3s server", &["K3S_DATA_DIR=/data"], &sqlite).unwrap().unwrap();
        assert_eq!(
            (told.data_dir.as_path(), told.database, told.quota),
            (Path::new("/data/server/db"), Some("state.db"), None)
        );
        assert_eq!(of("k3s-server", "k3s server", &[], &[]).unwrap(), None, "a datastore on another machine");
        let told = of("kubelite", "kubelite", &["SNAP_DATA=/var/snap/microk8s/7"], &[]).unwrap().unwrap();
        assert_eq!(told.data_dir, Path::new("/var/snap/microk8s/7/var/kubernetes/backend"));
        assert_eq!(of("microshift", "microshift run", &[], &[]).unwrap().unwrap().quota, None);
    }

    const MACHINE: &str = "\
20 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
21 20 0:20 / /run rw,nosuid shared:2 - tmpfs tmpfs rw,size=2469284k,mode=755
22 20 254:16 / /mnt/master-vol rw shared:3 - ext4 /dev/vdb rw
23 20 0:40 / /var/lib/hidden rw shared:4 - tmpfs tmpfs rw
";

    #[test]
    fn a_directory_of_a_container_is_found_on_the_machine() {
        let at = |path: &str, own: &str| {
            let found = on_machine(Path::new(path), own, MACHINE);
            found.map(|(at, number)| (at.display().to_string(), (number.major, number.minor)))
        };
        assert_eq!(at("/var/lib/etcd", MACHINE), Some(("/var/lib/etcd".into(), (254, 0))), "no container");
        // kubeadm: the host's directory at the same place.
        let kubeadm =
            "90 80 0:70 / / rw - overlay overlay rw\n91 90 254:0 /var/lib/etcd /var/lib/etcd rw - ext4 /dev/vda rw\n";
        assert_eq!(at("/var/lib/etcd", kubeadm), Some(("/var/lib/etcd".into(), (254, 0))));
        // A disk of its own, at another place.
        let kops = "90 80 0:70 / / rw - overlay overlay rw\n91 90 254:16 / /rootfs/vol rw - ext4 /dev/vdb rw\n";
        assert_eq!(at("/rootfs/vol/data/x", kops), Some(("/mnt/master-vol/data/x".into(), (254, 16))));
        assert_eq!(at("/var/lib/etcd", kops), None, "the container's own layer");
        let hidden = "91 90 254:0 /var/lib/hidden/etcd /data rw - ext4 /dev/vda rw\n";
        assert_eq!(at("/data", hidden), None, "the machine has something else mounted over it");
        assert_eq!(at("/data", ""), None);
    }
}
