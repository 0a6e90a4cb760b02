//! This node's etcds: where their data is on the machine, what they may have, and how much that is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::host::filesystem::{DeviceNumber, Filesystem};
use crate::host::{Deadline, Host};
use crate::kubelet::datastore::{self, Datastore};
use crate::kubelet::process::DatastoreProcess;
use crate::metric::Samples;

/// How long files may take that lie on a disk which may hang.
const FILES: Duration = Duration::from_secs(1);
/// More are not remembered.
const MOST: usize = 8;

/// Those that run, and those that ran.
#[derive(Debug, Default)]
pub(super) struct Datastores(Vec<Known>);

#[derive(Debug)]
struct Known {
    process: DatastoreProcess,
    runs: bool,
    data: Data,
}

/// Where its data is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Data {
    Here(Place),
    /// In a layer of its container, which goes with it, under this name of its own.
    Layer(PathBuf),
    /// On another machine.
    Elsewhere,
}

/// Where the machine has it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    data_dir: PathBuf,
    /// Which file system it is on by the mount tables.
    number: Option<DeviceNumber>,
    wal_dir: Option<PathBuf>,
    database: Option<PathBuf>,
    quota: Option<u64>,
    /// Why something of it is not known.
    unread: Option<Error>,
}

/// The database of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Database {
    pub(super) data_dir: PathBuf,
    pub(super) bytes: Option<u64>,
    pub(super) quota: Option<u64>,
}

impl Known {
    fn place(&self) -> Option<&Place> {
        match &self.data {
            Data::Here(place) => Some(place),
            Data::Layer(_) | Data::Elsewhere => None,
        }
    }
}

impl Datastores {
    /// Reads what those were told that are new. One that could not be read is tried again by the next scrape.
    pub(super) fn look(
        &mut self,
        host: &Host,
        running: &[DatastoreProcess],
        deadline: Deadline,
        samples: &mut Samples,
    ) {
        for known in &mut self.0 {
            known.runs = running.contains(&known.process);
        }
        for process in running {
            if !self.0.iter().any(|known| known.process == *process) {
                match read(host, process, deadline) {
                    Ok(data) => self.learn(Known { process: process.clone(), runs: true, data }),
                    // It ended meanwhile.
                    Err(_) if !host.pids().is_ok_and(|pids| pids.started(process.pid).is_ok()) => {}
                    Err(error) => {
                        samples.fail(error.context(format_args!("the data of {} (pid {})", process.comm, process.pid)));
                    }
                }
            }
        }
        for Known { process: DatastoreProcess { pid, comm, .. }, data, .. } in &self.0 {
            if let Data::Layer(dir) = data {
                let dir = dir.display();
                samples.note(format!(
                    "the data of {comm} (pid {pid}), {dir}, is in a layer of its container and goes with it"
                ));
            }
        }
    }

    /// It takes the place of who had the same data before, and of who ended and has none here.
    fn learn(&mut self, new: Known) {
        let data_dir = |known: &Known| known.place().map(|place| place.data_dir.clone());
        self.0.retain(|known| known.runs || known.place().is_some() && data_dir(known) != data_dir(&new));
        self.0.push(new);
        let beyond = self.0.len().saturating_sub(MOST);
        self.0.drain(..beyond);
    }

    fn places(&self) -> impl Iterator<Item = &Place> {
        self.0.iter().filter_map(Known::place)
    }

    /// Their directories.
    pub(super) fn directories(&self) -> impl Iterator<Item = &Path> {
        self.places().flat_map(|place| {
            let all = [Some(&place.data_dir), place.wal_dir.as_ref()];
            all.into_iter().flatten().map(PathBuf::as_path)
        })
    }

    /// True unless `path` is the data directory of one, and on another file system here than it is by the mount tables.
    pub(super) fn is_meant(&self, path: &Path, filesystem: &Filesystem) -> bool {
        let is = filesystem.mount.as_ref().and_then(|mount| mount.number);
        let mut places = self.places().filter(|place| place.data_dir == path);
        places.all(|place| place.number.zip(is).is_none_or(|(meant, is)| meant == is))
    }

    /// Forgets those that ended and whose directory is not there any more.
    pub(super) fn forget(&mut self, is_gone: impl Fn(&Path) -> bool) {
        self.0.retain(|known| known.runs || known.place().is_some_and(|place| !is_gone(&place.data_dir)));
    }

    /// How large their databases are.
    pub(super) fn measure(&self, host: &Host, deadline: Deadline, samples: &mut Samples) -> Vec<Database> {
        let mut databases = Vec::new();
        for place in self.places() {
            if let Some(error) = &place.unread {
                samples.fail(error.clone());
            }
            let length = place.database.clone().map(|database| {
                let (tree, key) = (host.tree(), database.display().to_string());
                host.bounded(&key, deadline.part(FILES), move || tree.length(&database))
            });
            let bytes = match length {
                // An etcd that is being set up has none yet.
                Some(Err(error)) if error.is_gone() => None,
                Some(length) => samples.ok(length),
                None => None,
            };
            databases.push(Database { data_dir: place.data_dir.clone(), bytes, quota: place.quota });
        }
        databases
    }
}

fn read(host: &Host, process: &DatastoreProcess, deadline: Deadline) -> Result<Data> {
    let DatastoreProcess { pid, ref comm, .. } = *process;
    let (argv, environ) = host.started_with(pid, deadline)?;
    if argv.is_empty() {
        return Err(Error::absent("it ended"));
    }
    let (tree, name) = (host.tree_of(pid), comm.clone());
    let told = host.bounded("what an etcd was told", deadline.part(FILES), move || {
        datastore::told(&name, &argv, &environ, &tree)
    })?;
    let Some(Datastore { data_dir, wal_dir, database, quota, unread }) = told else { return Ok(Data::Elsewhere) };
    let whole = |path: PathBuf| {
        if path.is_absolute() { Ok(path) } else { host.pids()?.cwd(pid).map(|cwd| cwd.join(path)) }
    };
    let (data_dir, wal_dir) = (whole(data_dir)?, wal_dir.map(whole).transpose()?);
    let (own, machine) = (host.mount_table(pid, deadline)?, host.mount_table(1, deadline)?);
    let place = |path: &Path| {
        // Among the same mounts links are followed as the process follows them; the tables know none.
        if own == machine {
            let at = host.resolve(path, deadline.part(FILES)).unwrap_or_else(|_| path.to_owned());
            let number = datastore::on_machine(&at, &machine, &machine).map(|(_, number)| number);
            return Some((path.to_owned(), number));
        }
        datastore::on_machine(path, &own, &machine).map(|(at, number)| (at, Some(number)))
    };
    let Some((at, number)) = place(&data_dir) else { return Ok(Data::Layer(data_dir)) };
    let database = database.map(|database| at.join(database));
    let wal_dir = wal_dir.and_then(|dir| place(&dir)).map(|(at, _)| at);
    Ok(Data::Here(Place { data_dir: at, number, wal_dir, database, quota, unread }))
}
