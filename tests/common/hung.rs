//! A FUSE mount whose server never answers: every `statfs` on it waits for ever.
#![allow(unreachable_pub, missing_docs, reason = "shared by several test binaries")]
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};

pub struct HungFilesystem {
    path: PathBuf,
    server: Option<File>,
    _dir: Option<tempfile::TempDir>,
}

impl HungFilesystem {
    /// In a folder of its own.
    pub fn mount() -> std::io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut mounted = Self::mount_at(dir.path())?;
        mounted._dir = Some(dir);
        Ok(mounted)
    }

    /// Over whatever is at `path`.
    pub fn mount_at(path: &Path) -> std::io::Result<Self> {
        let server = File::options().read(true).write(true).open("/dev/fuse")?;
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount("hung", path, "fuse", MountFlags::empty(), Some(options.as_c_str()))?;
        Ok(HungFilesystem { path: path.to_owned(), server: Some(server), _dir: None })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The server dies: whoever waits gets an error.
    pub fn release(&mut self) {
        self.server = None;
    }
}

impl Drop for HungFilesystem {
    fn drop(&mut self) {
        self.release();
        let _ = rustix::mount::unmount(self.path(), UnmountFlags::DETACH);
    }
}
