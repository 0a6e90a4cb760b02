//! Tells the crate which commit it is built from, for `--version` and `headroom_build_info`.
//!
//! `HEADROOM_COMMIT` says it where the sources come without their history (an image, a tarball). Else a release build
//! reads `.git`, without git. A debug build does not ask: it would be built anew at each commit. Where nothing says it,
//! it is "unknown".
#![allow(clippy::disallowed_methods, reason = "a build script looks at the sources, not at a node")]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=HEADROOM_COMMIT");
    let told = env::var("HEADROOM_COMMIT").ok().filter(|told| !told.is_empty());
    let release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = told.or_else(|| if release { head(Path::new(".git")) } else { None });
    let commit = commit.unwrap_or_else(|| "unknown".to_owned());
    println!("cargo:rustc-env=HEADROOM_REVISION={commit}");
    println!("cargo:rustc-env=HEADROOM_SHORT_REVISION={}", short(&commit));
}

/// The commit that is checked out. A work tree of its own has a file `.git` that names its folder, and there a file
/// that names the shared one.
fn head(git: &Path) -> Option<String> {
    let folder = match fs::read_to_string(git) {
        Ok(link) => PathBuf::from(link.strip_prefix("gitdir:")?.trim()),
        Err(_) => git.to_owned(),
    };
    let shared = match fs::read_to_string(folder.join("commondir")) {
        Ok(relative) => folder.join(relative.trim()),
        Err(_) => folder.clone(),
    };
    let head = watched(&folder.join("HEAD"))?;
    // Where the branch is kept changes when git packs it; this grows with each commit.
    let _ = watched(&folder.join("logs/HEAD"));
    let Some(name) = head.trim().strip_prefix("ref:").map(str::trim) else { return hash(&head) };
    if let Some(loose) = watched(&shared.join(name)) {
        return hash(&loose);
    }
    let packed = watched(&shared.join("packed-refs"))?;
    let line = packed.lines().find(|line| line.split_once(' ').is_some_and(|(_, packed)| packed == name))?;
    hash(line.split(' ').next()?)
}

/// What is in this file, if it is there; the next commit changes it, and then this is built anew.
fn watched(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    println!("cargo:rerun-if-changed={}", path.display());
    Some(text)
}

fn hash(text: &str) -> Option<String> {
    let text = text.trim();
    (text.len() >= 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| text.to_owned())
}

/// Twelve digits name a commit; what is said behind the hash ("-dirty") stays.
fn short(commit: &str) -> String {
    let digits = commit.bytes().take_while(u8::is_ascii_hexdigit).count();
    if digits >= 40 { format!("{}{}", &commit[..12], &commit[digits..]) } else { commit.to_owned() }
}

/// Run by `tests/fast`, which cargo does not do itself.
#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "71c05d3f1f2a4f0e8ad4c9a6b1a2f3c4d5e6f708";

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn the_commit_as_git_keeps_it() {
        let folder = tempfile::tempdir().unwrap();
        let git = folder.path().join("here/.git");
        assert_eq!(head(&git), None, "no history");
        write(&git.join("HEAD"), "ref: refs/heads/main\n");
        assert_eq!(head(&git), None, "no commit yet");
        write(
            &git.join("packed-refs"),
            &format!("# pack-refs with: peeled\n{} refs/heads/mai\n{COMMIT} refs/heads/main\n", "0".repeat(40)),
        );
        assert_eq!(head(&git).as_deref(), Some(COMMIT), "packed");
        let newer = "f".repeat(40);
        write(&git.join("refs/heads/main"), &format!("{newer}\n"));
        assert_eq!(head(&git), Some(newer), "a loose one is newer than a packed one");

        write(&git.join("worktrees/other/HEAD"), "ref: refs/heads/other\n");
        write(&git.join("worktrees/other/commondir"), "../..\n");
        write(&git.join("refs/heads/other"), COMMIT);
        let other = folder.path().join("other/.git");
        write(&other, &format!("gitdir: {}\n", git.join("worktrees/other").display()));
        assert_eq!(head(&other).as_deref(), Some(COMMIT), "a work tree of its own");

        write(&git.join("HEAD"), &format!("{COMMIT}\n"));
        assert_eq!(head(&git).as_deref(), Some(COMMIT), "no branch");
        write(&git.join("HEAD"), "nonsense\n");
        assert_eq!(head(&git), None);
    }

    #[test]
    fn what_is_short() {
        assert_eq!(short(COMMIT), "71c05d3f1f2a");
        assert_eq!(short(&format!("{COMMIT}-dirty")), "71c05d3f1f2a-dirty");
        assert_eq!(short("unknown"), "unknown");
        assert_eq!(short("deadbeef"), "deadbeef");
    }
}
