//! Mount tables of any size, row by row, and only when they have changed.
//!
//! `/proc/PID/mountinfo` costs the kernel a microsecond or two for each row, and there may be a hundred thousand.
//! Whoever holds it open can ask with `poll(2)` whether the mount namespace has changed since (`mounts_poll` in
//! fs/proc_namespace.c: `POLLPRI`). An open one also keeps its namespace alive, with every mount in it: so only those
//! are held that cannot outlive us by it, the machine's first process's and our own.

use std::borrow::Cow;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec};

use super::{Deadline, Host};
use crate::error::{Error, Reason, Result};

/// A longer row, of an overlay with very many layers, is cut; what tells mounts apart stands at its beginning, but for
/// the type of the file system, which is then unknown.
const MOST_BYTES: u64 = 256 << 10;
/// How many rows are read between two looks at the clock.
const ROWS: u64 = 1024;

/// A mount table that is held open between readings.
#[derive(Debug, Default)]
pub struct WatchedMounts(Option<File>);

impl WatchedMounts {
    /// Reads the table of `process` (`1`, `self`) and shows `row` each of its rows, unless it is as it was at the last
    /// reading: then `None`. Never longer than until `deadline`.
    ///
    /// # Errors
    /// The operating system's, with the path; timeout.
    pub fn read<T: Send + 'static>(
        &mut self,
        host: &Host,
        process: &str,
        deadline: Deadline,
        start: T,
        row: impl Fn(&mut T, &str) + Send + 'static,
    ) -> Result<Option<T>> {
        let path = host.proc(format!("{process}/mountinfo"));
        let held = self.0.take();
        if held.as_ref().is_some_and(|file| !has_changed(file)) {
            self.0 = held;
            return Ok(None);
        }
        let key = path.display().to_string();
        let (file, value) = host.bounded(&key, deadline, move || {
            let os = |error: std::io::Error| Error::os(path.display(), &error);
            let file = match held {
                Some(mut file) => {
                    file.seek(SeekFrom::Start(0)).map_err(os)?;
                    file
                }
                None => File::open(&path).map_err(os)?,
            };
            let value = fold(&file, &path, deadline, start, row)?;
            Ok((file, value))
        })?;
        // A file of a recording says of itself that nothing changed.
        let watchable = rustix::fs::fstatfs(&file).is_ok_and(|statfs| statfs.f_type == rustix::fs::PROC_SUPER_MAGIC);
        self.0 = Some(file).filter(|_| watchable);
        Ok(Some(value))
    }
}

impl Host {
    /// Shows `row` each row of the mount table of `pid`.
    ///
    /// # Errors
    /// As [`WatchedMounts::read`]; gone if it exited.
    pub fn fold_mounts<T: Send + 'static>(
        &self,
        pid: u32,
        deadline: Deadline,
        start: T,
        row: impl Fn(&mut T, &str) + Send + 'static,
    ) -> Result<T> {
        let path = self.proc(format!("{pid}/mountinfo"));
        let key = path.display().to_string();
        self.bounded(&key, deadline, move || {
            let file = File::open(&path).map_err(|error| Error::os(path.display(), &error))?;
            fold(&file, &path, deadline, start, row)
        })
    }

    /// The id of the first mount that each of `processes` sees, on one thread; `None` for one that cannot be asked. As
    /// long as a mount is there no other of the machine has its id, so two processes with the same first one are in
    /// one mount namespace and have one root.
    pub fn first_mounts<const N: usize>(&self, processes: [&str; N], deadline: Deadline) -> [Option<u64>; N] {
        let paths = processes.map(|process| self.proc(format!("{process}/mountinfo")));
        let first = |path: &Path| {
            let mut text = [0; 32];
            let length = File::open(path).and_then(|mut file| file.read(&mut text)).ok()?;
            id(&String::from_utf8_lossy(&text[..length]))
        };
        let key = format!("the first rows of {}", paths[0].display());
        let call = move || Ok(paths.each_ref().map(|path| first(path)));
        self.bounded(&key, deadline, call).unwrap_or([None; N])
    }
}

/// The mount id of a row.
fn id(row: &str) -> Option<u64> {
    row.split_once(' ')?.0.parse().ok()
}

fn has_changed(file: &File) -> bool {
    let mut fds = [PollFd::new(file, PollFlags::PRI)];
    // What cannot be asked is read.
    rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).map_or(true, |ready| ready > 0)
}

fn fold<T>(file: &File, path: &Path, deadline: Deadline, mut value: T, row: impl Fn(&mut T, &str)) -> Result<T> {
    let mut rows = Rows::of(file);
    let mut count = 0_u64;
    while let Some(text) = rows.next().map_err(|error| Error::os(path.display(), &error))? {
        row(&mut value, &text);
        count += 1;
        if count.is_multiple_of(ROWS) && deadline.expired() {
            let what = format!("{}: {count} rows, and not all, before the deadline", path.display());
            return Err(Error::new(Reason::Timeout, what));
        }
    }
    Ok(value)
}

/// The rows of a mount table, one after the other, each of bounded length.
pub(super) struct Rows<F> {
    reader: BufReader<F>,
    row: Vec<u8>,
}

impl<F: std::io::Read> Rows<F> {
    pub(super) fn of(file: F) -> Self {
        // The kernel makes a page of rows at a time, whatever is asked for.
        Rows { reader: BufReader::with_capacity(4096, file), row: Vec::new() }
    }

    /// The next one, without its end; `None` after the last.
    pub(super) fn next(&mut self) -> std::io::Result<Option<Cow<'_, str>>> {
        self.row.clear();
        if self.reader.by_ref().take(MOST_BYTES).read_until(b'\n', &mut self.row)? == 0 {
            return Ok(None);
        }
        if self.row.pop_if(|end| *end == b'\n').is_none() {
            self.reader.skip_until(b'\n')?;
        }
        Ok(Some(String::from_utf8_lossy(&self.row)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::host::Roots;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(20))
    }

    #[test]
    fn a_table_that_has_not_changed_is_not_read_again() {
        let host = Host::new(Roots::default());
        let count =
            |watched: &mut WatchedMounts| watched.read(&host, "self", soon(), 0_u64, |count, _| *count += 1).unwrap();
        let mut watched = WatchedMounts::default();
        let witness = || std::fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count() as u64;
        assert!(count(&mut watched).is_some_and(|rows| rows > 0));
        // Other tests of this machine mount and unmount: at some moment nothing changes.
        let quiet = (0..1000).any(|_| {
            std::thread::sleep(Duration::from_millis(2));
            count(&mut watched).is_none()
        });
        assert!(quiet, "always read again");
        let equal = (0..1000)
            .any(|_| WatchedMounts::default().read(&host, "self", soon(), 0, |n, _| *n += 1) == Ok(Some(witness())));
        assert!(equal);
    }

    #[test]
    fn the_first_mount_tells_namespaces_apart() {
        let host = Host::new(Roots::default());
        let me = std::process::id().to_string();
        let [own, by_number, nobody] = host.first_mounts(["self", &me, "4294967295"], soon());
        assert!(own.is_some() && own == by_number && nobody.is_none(), "{own:?} {by_number:?} {nobody:?}");
    }

    #[test]
    fn a_row_without_end_is_cut_and_the_next_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("1")).unwrap();
        let long = "x".repeat(MOST_BYTES as usize + 7);
        let file = dir.path().join("1/mountinfo");
        std::fs::write(&file, format!("36 35 {long}\n37 35 b\n38 c")).unwrap();
        let host = Host::new(Roots { proc: dir.path().into(), ..Roots::default() });
        let mut watched = WatchedMounts::default();
        let mut ids = || {
            let row = |ids: &mut Vec<u64>, row: &str| ids.extend(id(row));
            watched.read(&host, "1", soon(), Vec::new(), row).unwrap()
        };
        assert_eq!(ids(), Some(vec![36, 37, 38]));
        assert_eq!(ids(), Some(vec![36, 37, 38]), "a recording is read each time");
        assert_eq!(host.first_mounts(["1"], soon()), [Some(36)]);
        assert_eq!(host.fold_mounts(1, soon(), 0, |rows, _| *rows += 1).unwrap(), 3);
    }
}
