//! Paths as the journal and the kernel's mount tables have them: absolute, and without links.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Result, tried};
use crate::host::filesystem::Mount;

/// Where this really is, also if it, or what it is in, is not there yet. `clean` may be run from another directory
/// than the drill, and a mount is never found by the name of a link to it.
pub(super) fn real(path: &Path) -> Result<PathBuf> {
    let path = tried(path.display(), std::path::absolute(path))?;
    let there = path.ancestors().find(|above| above.exists()).unwrap_or(Path::new("/"));
    let base = tried(there.display(), fs::canonicalize(there))?;
    match path.strip_prefix(there) {
        Ok(rest) if !rest.as_os_str().is_empty() => Ok(base.join(rest)),
        _ => Ok(base),
    }
}

/// Whether something is mounted right there.
pub(super) fn is_mounted(path: &Path) -> bool {
    is_mounted_for("self", path)
}

/// The same among the mounts that a process sees.
pub(super) fn is_mounted_for(process: &str, path: &Path) -> bool {
    let table = fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap_or_default();
    table.lines().any(|line| Mount::parse(line).is_some_and(|mount| mount.mountpoint == path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_followed_as_far_as_the_path_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let top = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir(top.join("data")).unwrap();
        std::os::unix::fs::symlink("data", top.join("link")).unwrap();
        assert_eq!(real(&top.join("link")).unwrap(), top.join("data"));
        assert_eq!(real(&top.join("link/new/deep")).unwrap(), top.join("data/new/deep"));
        assert_eq!(
            real(Path::new("none-of-this-name")).unwrap(),
            std::env::current_dir().unwrap().join("none-of-this-name")
        );
    }
}
