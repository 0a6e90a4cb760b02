//! The drills `disk` and `inodes`: a file system without free bytes or inodes, its own or by one entry in somebody's.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{StatVfs, statvfs};

use super::cli::{bytes, duration};
use super::expect::{Page, page};
use super::journal::{Item, Journal, MARK};
use super::paths::{is_mounted, real};
use super::{Fault, Result, Run, failed, refused, run as command, tried};

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Bytes,
    Inodes,
}

/// More empty files are never made.
const MOST_FILES: u64 = 2_000_000;
/// The kubelet's thresholds are nowhere near this on a file system of somebody else.
const LEAST_LEFT: [u64; 2] = [64 << 20, 1000];
/// As many files as one directory gets.
const FILES_A_DIRECTORY: u64 = 10_000;

fn image(options: &Disk) -> PathBuf {
    options.image_dir.join(format!("{MARK}{}.img", Journal::number()))
}

/// The file system to fill, and the entry that fills it.
fn target(options: &Disk) -> Result<(&Path, PathBuf)> {
    let Some(on) = options.mount.as_deref().or(options.path.as_deref()) else {
        return refused("neither --mount nor --path");
    };
    Ok((on, on.join(format!("{MARK}{}.fill", Journal::number()))))
}

/// With paths as the journal takes them.
fn check(options: &Disk, what: What) -> Result<Disk> {
    let whole = |path: &Option<PathBuf>| path.as_deref().map(real).transpose();
    let options = Disk {
        mount: whole(&options.mount)?,
        path: whole(&options.path)?,
        image_dir: real(&options.image_dir)?,
        ..options.clone()
    };
    if let Some(at) = &options.mount {
        if is_mounted(at) {
            return refused(format_args!("{} is a mount point", at.display()));
        }
        if fs::read_dir(at).is_ok_and(|mut inside| inside.next().is_some()) {
            return refused(format_args!("{} is not empty", at.display()));
        }
        if !(16 << 20..=16 << 30).contains(&options.size) {
            return refused("the ext4 must have 16Mi to 16Gi");
        }
        let below = tried(options.image_dir.display(), statvfs(&options.image_dir))?;
        // The image is sparse, and full in the end.
        if what == What::Bytes && below.f_bavail * below.f_frsize < 2 * options.size {
            return refused(format_args!("{} has less than twice the image's size free", options.image_dir.display()));
        }
    }
    if let Some(path) = &options.path {
        let least = LEAST_LEFT[usize::from(what == What::Inodes)];
        if options.leave.is_none_or(|leave| leave < least) {
            return refused(format_args!("with --path, --leave must be at least {least}"));
        }
        if !path.is_dir() {
            return refused(format_args!("{}: no such directory", path.display()));
        }
    }
    Ok(options)
}

#[derive(clap::Args, Clone, Debug)]
#[command(group(clap::ArgGroup::new("where").required(true).args(["mount", "path"])))]
pub(super) struct Disk {
    /// Mount an ext4 here and fill that: an empty directory, or one that does not exist yet
    #[arg(long, value_name = "DIR")]
    pub(super) mount: Option<PathBuf>,
    /// Fill the file system of this directory, by one entry in it; --leave says how far
    #[arg(long, value_name = "DIR", requires = "leave")]
    pub(super) path: Option<PathBuf>,
    /// What stays free: bytes (Ki, Mi, Gi), or inodes [default: with --mount 2 %]
    #[arg(long, value_name = "N", value_parser = bytes)]
    pub(super) leave: Option<u64>,
    /// Size of the ext4
    #[arg(long, value_name = "BYTES", default_value = "256Mi", value_parser = bytes)]
    pub(super) size: u64,
    /// Where the image of the ext4 is made, as a sparse file
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub(super) image_dir: PathBuf,
    /// Fill it little by little over this time
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = duration)]
    pub(super) over: Duration,
}

// The same of inodes.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Inodes {
    #[command(flatten)]
    disk: Disk,
}

impl Fault for Disk {
    fn plan(&self) -> Result<Vec<String>> {
        plan(self, What::Bytes)
    }

    fn make(&self, run: &mut Run) -> Result<()> {
        make(self, What::Bytes, run)
    }

    fn pages(&self) -> Vec<Page> {
        let near = "once less than 1.3 times the threshold is left of nodefs or imagefs";
        let by_trend = "with --over 20m or more, if what is left then is less than a quarter of an hour away, by a trend of that time";
        vec![page("HeadroomEvictionNear", 115, near), page("HeadroomEvictionPredicted", 1060, by_trend)]
    }
}

impl Fault for Inodes {
    fn plan(&self) -> Result<Vec<String>> {
        plan(&self.disk, What::Inodes)
    }

    fn make(&self, run: &mut Run) -> Result<()> {
        make(&self.disk, What::Inodes, run)
    }

    fn pages(&self) -> Vec<Page> {
        self.disk.pages()
    }
}

fn plan(options: &Disk, what: What) -> Result<Vec<String>> {
    let options = &check(options, what)?;
    let mut lines = Vec::new();
    if let Some(at) = &options.mount {
        lines.push(format!(
            "mount an ext4 of {} bytes at {}, its image at {}",
            options.size,
            at.display(),
            image(options).display()
        ));
    }
    let leave = options.leave.map_or_else(|| "2 %".to_owned(), |leave| leave.to_string());
    let signal = if what == What::Bytes { "nodefs.available" } else { "nodefs.inodesFree" };
    let noun = if what == What::Bytes { "bytes" } else { "inodes" };
    lines.push(format!(
        "fill it by {} until {leave} {noun} are left, over {}s; see headroom_eviction_headroom_ratio{{signal=\"{signal}\"}} fall \
         (or imagefs's, where the image store is there), alert by its trend",
        target(options)?.1.display(),
        options.over.as_secs()
    ));
    Ok(lines)
}

fn left(what: What, stat: &StatVfs) -> u64 {
    if what == What::Bytes { stat.f_bavail * stat.f_frsize } else { stat.f_favail }
}

fn make(options: &Disk, what: What, run: &mut Run) -> Result<()> {
    let options = &check(options, what)?;
    let (on, fill) = target(options)?;
    if let Some(at) = &options.mount {
        let image = image(options);
        run.journal.note(Item::File(image.clone()))?;
        let file = tried(image.display(), File::create_new(&image))?;
        tried(image.display(), file.set_len(options.size))?;
        drop(file);
        let image = image.to_string_lossy();
        // Few inodes are soon used up; many take long and much of the image.
        let inodes: &[&str] = if what == What::Inodes { &["-N", "4096"] } else { &[] };
        command("mkfs.ext4", &[&["-q", "-F"], inodes, &[&image]].concat())?;
        run.journal.make_dirs(at)?;
        run.journal.note(Item::Mount(at.clone()))?;
        // The kernel frees a loop device that mount made with the mount.
        command("mount", &["-o", "loop", &image, &at.to_string_lossy()])?;
    } else {
        run.journal.note(if what == What::Bytes { Item::File(fill.clone()) } else { Item::Tree(fill.clone()) })?;
    }
    Filler::new(what, on, options.mount.is_some(), fill, options.leave)?.run(options.over, run)
}

/// Fills a file system by one entry.
pub(super) struct Filler<'a> {
    what: What,
    on: &'a Path,
    /// It is mounted for the drill.
    mounted: bool,
    fill: PathBuf,
    capacity: u64,
    /// What may be taken.
    whole: u64,
    leave: u64,
    /// Bytes written or files made.
    count: u64,
    file: Option<File>,
}

impl<'a> Filler<'a> {
    /// Of what is mounted right there for the drill, until 2 % are left.
    pub(super) fn of_a_mount(what: What, on: &'a Path, fill: PathBuf) -> Result<Self> {
        Filler::new(what, on, true, fill, None)
    }

    fn new(what: What, on: &'a Path, mounted: bool, fill: PathBuf, leave: Option<u64>) -> Result<Self> {
        let stat = tried(on.display(), statvfs(on))?;
        let capacity = if what == What::Bytes { stat.f_blocks * stat.f_frsize } else { stat.f_files };
        let leave = leave.unwrap_or(capacity / 50);
        let whole = left(what, &stat).saturating_sub(leave);
        Ok(Filler { what, on, mounted, fill, capacity, whole, leave, count: 0, file: None })
    }

    /// Fills it over this time, and stays until the drill ends.
    pub(super) fn run(&mut self, over: Duration, run: &mut Run) -> Result<()> {
        let (what, on, capacity) = (self.what, self.on, self.capacity);
        let begin = std::time::Instant::now();
        while !run.stop.asked() && std::time::Instant::now() < run.until {
            let part =
                if over.is_zero() { 1.0 } else { begin.elapsed().div_f64(over.as_secs_f64()).as_secs_f64().min(1.0) };
            run.journal.check()?;
            self.check()?;
            let full = self.fill_to((self.whole as f64 * part) as u64, run)?;
            let now = left(what, &tried(on.display(), statvfs(on))?);
            super::say(format_args!("t={}s {now} of {capacity} left on {}", begin.elapsed().as_secs(), on.display()));
            if full || part >= 1.0 {
                break;
            }
            run.stop.wait(Duration::from_millis(500));
        }
        run.every_second(|_, _| {
            self.check()?;
            let now = left(what, &tried(on.display(), statvfs(on))?);
            Ok(format!("{now} of {capacity} left on {}", on.display()))
        })
    }

    /// An error once what was taken is free again, or taken from another file system than was meant.
    fn check(&self) -> Result<()> {
        if let Some(at) = Some(self.on).filter(|at| self.mounted && !is_mounted(at)) {
            return failed(format_args!("{} was unmounted by somebody else", at.display()));
        }
        let there = fs::metadata(&self.fill).map(|meta| if meta.is_dir() { u64::MAX } else { meta.len() });
        if self.count == 0 || there.is_ok_and(|bytes| bytes >= self.count) {
            return Ok(());
        }
        failed(format_args!(
            "{} was removed or cut by somebody else: whoever cleans this disk up took it along",
            self.fill.display()
        ))
    }

    /// Goes on until so much is there in all; true once nothing more may be taken.
    fn fill_to(&mut self, count: u64, run: &Run) -> Result<bool> {
        while self.count < count && !run.stop.asked() {
            let free = left(self.what, &tried(self.on.display(), statvfs(self.on))?);
            let spare = free.saturating_sub(self.leave);
            // Less than a block is nothing, of what is left and of what is to be taken.
            let least = if self.what == What::Bytes { 4096 } else { 1 };
            if spare < least {
                return Ok(true);
            }
            if count - self.count < least {
                break;
            }
            // A little at a time: others may write too, and what must be left is looked at again.
            let step = (count - self.count).min(spare).min(if self.what == What::Bytes { 1 << 20 } else { 100 });
            match self.what {
                What::Bytes => self.write(step)?,
                What::Inodes => self.touch(step)?,
            }
            self.count += step;
        }
        Ok(false)
    }

    fn write(&mut self, bytes: u64) -> Result<()> {
        if self.file.is_none() {
            self.file = Some(tried(self.fill.display(), File::create_new(&self.fill))?);
        }
        let Some(file) = &mut self.file else { return failed("no file") };
        tried(self.fill.display(), file.write_all(&vec![b'x'; usize::try_from(bytes).unwrap_or(0)]))?;
        // Only what has its blocks counts as taken.
        tried(self.fill.display(), file.sync_data())
    }

    fn touch(&mut self, files: u64) -> Result<()> {
        for number in self.count..self.count + files {
            if number >= MOST_FILES {
                return failed(format_args!("{MOST_FILES} files were made and inodes are still left"));
            }
            let folder = self.fill.join((number / FILES_A_DIRECTORY).to_string());
            if number % FILES_A_DIRECTORY == 0 {
                tried(folder.display(), fs::create_dir_all(&folder))?;
            }
            let file = folder.join(number.to_string());
            tried(file.display(), File::create_new(&file))?;
        }
        Ok(())
    }
}
