//! Reading what a kubelet was told: its command line, its file, its drop-ins.
//!
//! What is on disk now is what the kubelet will run with after its next start; an edit since the last one misleads.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::configuration::{KubeletInputs, Text};
use super::flags::Flags;
use super::process::KubeletProcess;
use crate::error::{Error, Reason, Result};
use crate::host::rootfs::{Kind, Tree};
use crate::host::{Deadline, Host};

/// Far more drop-ins, and far deeper folders of them, than anyone has.
const MOST_DROPINS: usize = 256;
const DEEPEST: usize = 16;

/// Paths that take the place of the kubelet's own, as the machine calls them.
#[derive(clap::Args, Clone, Debug, Default, PartialEq, Eq)]
#[group(skip)]
#[command(next_help_heading = "Kubelet")]
pub struct Overrides {
    /// The kubelet's --root-dir, which decides what nodefs is [default: what the running kubelet says, else
    /// /var/lib/kubelet]
    #[arg(id = "kubelet.root-dir", long = "kubelet.root-dir", value_name = "DIR")]
    pub root_dir: Option<PathBuf>,
    /// Its configuration [default: as it was started]
    #[arg(
        long_help = "The kubelet's configuration file [default: what the running kubelet was started with]",
        id = "kubelet.config",
        long = "kubelet.config",
        value_name = "FILE"
    )]
    pub config: Option<PathBuf>,
    /// The kubelet's drop-in directory [default: what the running kubelet was started with]
    #[arg(id = "kubelet.config-dir", long = "kubelet.config-dir", value_name = "DIR")]
    pub config_dir: Option<PathBuf>,
    /// The kubelet's own kubeconfig, which names the apiserver that it talks to; only its server is read [default: what
    /// the running kubelet was started with]
    #[arg(id = "kubelet.kubeconfig", long = "kubelet.kubeconfig", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

/// Where the kubelet keeps its files unless it is told otherwise.
pub const DEFAULT_ROOT_DIR: &str = "/var/lib/kubelet";

/// One kubelet's command line, and where the files on it are.
#[derive(Clone, Debug)]
pub struct Sources {
    flags: Option<Flags>,
    /// Why these are not all that the kubelet was told.
    untold: Option<Error>,
    overrides: Overrides,
    /// The machine's root, and the kubelet's own: it may run in a container.
    machine: Tree,
    inside: Option<Tree>,
    /// Where the kubelet was started, if a path on its command line is relative.
    cwd: Option<Result<PathBuf>>,
}

impl Sources {
    /// What `kubelet`, if one runs, has on its command line.
    pub fn of(host: &Host, kubelet: Option<&KubeletProcess>, overrides: &Overrides) -> Self {
        let flags = kubelet.map(|kubelet| Flags::parse(kubelet.arguments.iter().map(String::as_str)));
        let relative = flags.as_ref().is_some_and(|flags| {
            let paths = [&flags.config, &flags.config_dir, &flags.root_dir, &flags.kubeconfig];
            paths.into_iter().flatten().any(|path| path.is_relative())
        });
        let cwd = kubelet.filter(|_| relative).map(|kubelet| host.pids().and_then(|pids| pids.cwd(kubelet.pid)));
        let inside = kubelet.map(|kubelet| host.tree_of(kubelet.pid));
        let untold = kubelet.and_then(|kubelet| kubelet.untold.clone());
        Sources { flags, untold, overrides: overrides.clone(), machine: host.tree(), inside, cwd }
    }

    /// The same once that process is gone: its number may be another's.
    pub fn of_the_dead(&self) -> Self {
        Sources { inside: None, ..self.clone() }
    }

    /// The flags; `None` without a kubelet.
    pub fn flags(&self) -> Option<&Flags> {
        self.flags.as_ref()
    }

    /// An error where what the kubelet was told is not all known: what is missing from it is no default then.
    fn told(&self) -> Result<()> {
        let Some(untold) = &self.untold else { return Ok(()) };
        let reason = if untold.is_gone() { Reason::Malformed } else { untold.reason() };
        Err(Error::new(reason, format!("the configuration of this node's kubelet: {untold}")))
    }

    /// The directory whose file system is nodefs.
    ///
    /// # Errors
    /// If the kubelet's is relative and its working directory cannot be read, or is not known.
    pub fn root_dir(&self) -> Result<PathBuf> {
        match (&self.overrides.root_dir, self.flags.as_ref().and_then(|flags| flags.root_dir.as_ref())) {
            (Some(ours), _) => Ok(ours.clone()),
            (None, Some(theirs)) => self.absolute(theirs),
            (None, None) => self.told().map(|()| DEFAULT_ROOT_DIR.into()),
        }
    }

    /// The name of its node: `--hostname-override`, else the name of the machine `host`, in lower case
    /// (`pkg/util/node.GetHostname`). A kubelet with an in-tree cloud provider may have asked that for another.
    ///
    /// # Errors
    /// If the machine's name cannot be read.
    pub fn node_name(&self, host: &Host) -> Result<String> {
        let given = self.flags.as_ref().and_then(|flags| flags.hostname_override.clone());
        let machine = || self.told().and_then(|()| host.read(host.proc("sys/kernel/hostname")));
        let name = given.map_or_else(machine, Ok)?;
        Ok(name.trim().to_lowercase())
    }

    /// Its kubeconfig; `None` if it was told of none: a standalone kubelet.
    ///
    /// # Errors
    /// Denied if we may not read it; malformed if it is not there.
    pub fn kubeconfig(&self) -> Result<Option<Text>> {
        let theirs = self.flags.as_ref().and_then(|flags| flags.kubeconfig.as_ref());
        let Some(path) = self.named(self.overrides.kubeconfig.as_ref(), theirs, &KUBECONFIG)? else {
            return self.told().map(|()| None);
        };
        let text = self.in_either_tree(|tree| tree.read(&path)).map_err(|error| explain(error, &KUBECONFIG))?;
        Ok(Some(Text { path, text }))
    }

    /// Reads the files.
    ///
    /// # Errors
    /// Denied if we may not; malformed if a file that was named is not there or cannot be read, which a kubelet would
    /// not start with either.
    pub fn read(&self, deadline: Deadline) -> Result<KubeletInputs> {
        if self.overrides.config.is_none() && self.overrides.config_dir.is_none() {
            self.told()?;
        }
        let flag = |of: fn(&Flags) -> Option<&PathBuf>| self.flags.as_ref().and_then(of);
        let mut told = KubeletInputs { flags: self.flags.clone(), ..KubeletInputs::default() };
        let config = self.named(self.overrides.config.as_ref(), flag(|flags| flags.config.as_ref()), &CONFIG)?;
        if let Some(path) = config {
            let text = self.in_either_tree(|tree| tree.read(&path)).map_err(|error| explain(error, &CONFIG))?;
            told.file = Some(Text { path, text });
        }
        let dir = flag(|flags| flags.config_dir.as_ref());
        if let Some(path) = self.named(self.overrides.config_dir.as_ref(), dir, &CONFIG_DIR)? {
            let dropins = self.in_either_tree(|tree| dropins(tree, &path, deadline));
            told.dropins = Some(dropins.map_err(|error| explain(error, &CONFIG_DIR))?);
        }
        Ok(told)
    }

    /// The path that counts: ours before theirs.
    fn named(&self, ours: Option<&PathBuf>, theirs: Option<&PathBuf>, what: &File) -> Result<Option<PathBuf>> {
        match (ours, theirs) {
            (Some(ours), _) => Ok(Some(ours.clone())),
            (None, Some(theirs)) => self.absolute(theirs).map(Some).map_err(|error| explain(error, what)),
            (None, None) => Ok(None),
        }
    }

    /// A path on the command line is relative to where the kubelet was started.
    fn absolute(&self, path: &Path) -> Result<PathBuf> {
        match &self.cwd {
            Some(cwd) if path.is_relative() => Ok(cwd.clone()?.join(path)),
            _ => Ok(path.to_owned()),
        }
    }

    /// On the machine, or, if it is not there, where the kubelet sees it: it may run in a container.
    fn in_either_tree<T>(&self, read: impl Fn(&Tree) -> Result<T>) -> Result<T> {
        match (read(&self.machine), &self.inside) {
            (Err(error), Some(inside)) if error.is_gone() => {
                // What the machine says is the better story unless the kubelet's own view exists and tells another.
                read(inside).map_err(|inside| if inside.is_gone() { error } else { inside })
            }
            (result, _) => result,
        }
    }
}

/// What a kubelet would be told that is started with these: no running one is looked for, and relative paths are ours.
///
/// # Errors
/// The operating system's, with the path; malformed if it is far too large.
pub fn named(
    host: &Host,
    config: Option<&Path>,
    config_dir: Option<&Path>,
    flags: Flags,
    deadline: Deadline,
) -> Result<KubeletInputs> {
    let tree = host.tree();
    let ours = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    // The names stay as they were given.
    let file = config.map(|path| {
        let text = tree.read(ours(path)).map_err(|error| error.context(path.display()))?;
        Ok(Text { path: path.to_owned(), text })
    });
    let dropins = config_dir.map(|dir| {
        // The slash: whoever names a directory here means what is in it, be it a link.
        let from = ours(&dir.join(""));
        let mut found = dropins(&tree, &from, deadline)?;
        for dropin in &mut found {
            dropin.path = dropin.path.strip_prefix(&from).map_or_else(|_| dropin.path.clone(), |rest| dir.join(rest));
        }
        Ok(found)
    });
    Ok(KubeletInputs { flags: Some(flags), file: file.transpose()?, dropins: dropins.transpose()?, version: None })
}

/// A file that was named and is not there is not "this machine has no such thing".
fn explain(error: Error, what: &File) -> Error {
    let reason = if error.is_gone() { Reason::Malformed } else { error.reason() };
    let File { name, unknown, option } = what;
    Error::new(reason, format!("{name}: {error}; {unknown} until it can be read, or {option} is set to another"))
}

/// A file of the kubelet's, for those who must do something about it.
struct File {
    name: &'static str,
    /// What is not known without it.
    unknown: &'static str,
    /// The option of ours that could name another.
    option: &'static str,
}

const CONFIG: File = File::configuration("--kubelet.config");
const CONFIG_DIR: File = File::configuration("--kubelet.config-dir");
const KUBECONFIG: File =
    File { name: "the kubelet's kubeconfig", unknown: "its apiserver is unknown", option: "--kubelet.kubeconfig" };

impl File {
    const fn configuration(option: &'static str) -> Self {
        File { name: "kubelet configuration", unknown: "eviction thresholds are unknown", option }
    }
}

/// The files of a `--config-dir` as `filepath.WalkDir` meets them: by name, folders in their place, only `*.conf`.
fn dropins(tree: &Tree, dir: &Path, deadline: Deadline) -> Result<Vec<Text>> {
    let mut found = Vec::new();
    match tree.kind(dir)? {
        Kind::Directory => walk(tree, dir, 0, deadline, &mut found)?,
        // The walk does not follow a symbolic link that it starts at: without a slash behind it the kubelet finds
        // nothing.
        Kind::Link | Kind::File => {
            if is_dropin(dir) {
                found.push(Text { path: dir.to_owned(), text: tree.read(dir)? });
            }
        }
    }
    Ok(found)
}

fn walk(tree: &Tree, dir: &Path, depth: usize, deadline: Deadline, found: &mut Vec<Text>) -> Result<()> {
    if depth > DEEPEST {
        return Err(Error::malformed(format!("{}: folders nested more than {DEEPEST} deep", dir.display())));
    }
    for (name, kind) in tree.list(dir)? {
        if deadline.expired() {
            return Err(Error::new(Reason::Timeout, format!("{}: not read before the deadline", dir.display())));
        }
        let path = dir.join(&name);
        match kind {
            Kind::Directory => walk(tree, &path, depth + 1, deadline, found)?,
            Kind::Link | Kind::File if is_dropin(&path) => {
                if found.len() >= MOST_DROPINS {
                    return Err(Error::malformed(format!("{}: more than {MOST_DROPINS} drop-ins", dir.display())));
                }
                found.push(Text { text: tree.read(&path)?, path });
            }
            Kind::Link | Kind::File => {}
        }
    }
    Ok(())
}

/// Go's `filepath.Ext` is `.conf`, also for a file that has no other name.
fn is_dropin(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_bytes().ends_with(b".conf"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Roots;
    use std::time::Duration;

    struct Machine {
        dir: tempfile::TempDir,
        host: Host,
    }

    impl Machine {
        fn new(files: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let (root, proc) = (dir.path().join("root"), dir.path().join("proc"));
            std::fs::create_dir_all(&root).unwrap();
            std::fs::create_dir_all(proc.join("7")).unwrap();
            let host = Host::new(Roots { root, proc, ..Roots::default() });
            let machine = Machine { dir, host };
            for (path, text) in files {
                machine.write(path, text);
            }
            machine
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        fn link(&self, target: &str, path: &str) {
            std::os::unix::fs::symlink(target, self.dir.path().join(path)).unwrap();
        }

        fn read(&self, flags: &[&str]) -> Result<KubeletInputs> {
            let kubelet = KubeletProcess {
                pid: 7,
                arguments: flags.iter().map(|&flag| flag.to_owned()).collect(),
                ..KubeletProcess::default()
            };
            Sources::of(&self.host, Some(&kubelet), &Overrides::default()).read(Deadline::after(Duration::from_secs(5)))
        }

        fn dropins(&self, flags: &[&str]) -> Vec<String> {
            let dropins = self.read(flags).unwrap().dropins.unwrap();
            dropins.into_iter().map(|Text { path, text }| format!("{}={text}", path.display())).collect()
        }
    }

    #[test]
    fn the_walk_is_lexical_and_takes_conf_files_only() {
        let machine = Machine::new(&[
            ("root/d/20-b.conf", "b"),
            ("root/d/10-a.conf", "a"),
            ("root/d/15-sub/99.conf", "sub"),
            ("root/d/15-sub/deeper/00.conf", "deeper"),
            ("root/d/05-x.yaml", "no"),
            ("root/d/07-kubelet-conf", "no"),
            ("root/d/30.conf.bak", "no"),
            ("root/d/40.conf/00.conf", "in a folder of that name"),
            ("root/d/.conf", "hidden"),
            ("root/elsewhere", "linked"),
        ]);
        machine.link("/elsewhere", "root/d/50.conf");
        machine.link("/d/15-sub", "root/d/60");
        assert_eq!(
            machine.dropins(&["--config-dir=/d"]),
            [
                "/d/.conf=hidden",
                "/d/10-a.conf=a",
                "/d/15-sub/99.conf=sub",
                "/d/15-sub/deeper/00.conf=deeper",
                "/d/20-b.conf=b",
                "/d/40.conf/00.conf=in a folder of that name",
                "/d/50.conf=linked",
            ]
        );
    }

    #[test]
    fn a_walk_does_not_follow_the_link_that_it_starts_at() {
        let machine = Machine::new(&[("root/real/10.conf", "x")]);
        machine.link("/real", "root/d");
        assert!(machine.dropins(&["--config-dir=/d"]).is_empty());
        assert_eq!(machine.dropins(&["--config-dir=/d/"]), ["/d/10.conf=x"]);
    }

    #[test]
    fn relative_paths_are_the_kubelets() {
        let machine = Machine::new(&[("root/etc/k/config.yaml", "x")]);
        machine.link("/etc/k", "proc/7/cwd");
        let told = machine.read(&["--config=config.yaml"]).unwrap();
        assert_eq!(told.file, Some(Text { path: "/etc/k/config.yaml".into(), text: "x".into() }));
    }

    #[test]
    fn a_kubelet_in_a_container_sees_other_files() {
        let machine =
            Machine::new(&[("root/both", "machine"), ("inside/only", "container"), ("inside/both", "container")]);
        machine.link("../../inside", "proc/7/root");
        let text = |path: &str| machine.read(&[&format!("--config={path}")]).map(|told| told.file.unwrap().text);
        assert_eq!(text("/both").unwrap(), "machine");
        assert_eq!(text("/only").unwrap(), "container");
        let error = text("/none").unwrap_err();
        assert_eq!(error.reason(), Reason::Malformed, "{error}");
        assert!(error.to_string().contains("/none") && error.to_string().contains("--kubelet.config"), "{error}");
    }

    #[test]
    fn what_we_may_not_read_is_denied() {
        let denied = explain(Error::new(Reason::Denied, "/etc/k.yaml: Permission denied"), &CONFIG);
        assert_eq!(denied.reason(), Reason::Denied);
    }

    #[test]
    fn its_kubeconfig_and_its_name() {
        let machine = Machine::new(&[("root/k/kubelet.conf", "server: x"), ("proc/sys/kernel/hostname", "Node-1\n")]);
        machine.link("/k", "proc/7/cwd");
        let of = |flags: &[&str]| {
            let kubelet = KubeletProcess {
                pid: 7,
                arguments: flags.iter().map(|&flag| flag.to_owned()).collect(),
                ..KubeletProcess::default()
            };
            let overrides = Overrides::default();
            let sources = Sources::of(&machine.host, Some(&kubelet), &overrides);
            (sources.kubeconfig(), sources.node_name(&machine.host).unwrap())
        };
        let (kubeconfig, name) = of(&["--kubeconfig=kubelet.conf"]);
        let path = PathBuf::from("/k/kubelet.conf");
        assert_eq!((kubeconfig.unwrap(), &*name), (Some(Text { path, text: "server: x".into() }), "node-1"));
        let (kubeconfig, name) = of(&["--hostname-override= Other "]);
        assert_eq!((kubeconfig.unwrap(), &*name), (None, "other"), "a standalone kubelet");
        let error = of(&["--kubeconfig=/none"]).0.unwrap_err();
        assert_eq!(error.reason(), Reason::Malformed);
        assert!(error.to_string().contains("/none") && error.to_string().contains("--kubelet.kubeconfig"), "{error}");
    }

    #[test]
    fn a_missing_folder_stops_a_kubelet_too() {
        let machine = Machine::new(&[]);
        let error = machine.read(&["--config-dir=/none"]).unwrap_err();
        assert_eq!(error.reason(), Reason::Malformed);
        assert!(error.to_string().contains("--kubelet.config-dir"), "{error}");
    }

    #[test]
    fn too_much_is_refused() {
        let machine = Machine::new(&[]);
        for index in 0..=MOST_DROPINS {
            machine.write(&format!("root/many/{index:04}.conf"), "x");
        }
        machine.write(&format!("root/deep/{}x.conf", "d/".repeat(DEEPEST + 1)), "x");
        machine.write("root/large.yaml", &"#".repeat(5 << 20));
        for flag in ["--config-dir=/many", "--config-dir=/deep", "--config=/large.yaml"] {
            assert!(machine.read(&[flag]).is_err(), "{flag}");
        }
    }

    #[test]
    fn ours_take_the_place_of_theirs_one_by_one() {
        let machine = Machine::new(&[("root/ours", "ours"), ("root/theirs", "theirs"), ("root/d/1.conf", "dropin")]);
        let flags = ["--config=/theirs", "--config-dir=/d", "--root-dir=/r", "--eviction-hard="];
        let kubelet =
            KubeletProcess { pid: 7, arguments: flags.map(str::to_owned).to_vec(), ..KubeletProcess::default() };
        let overrides = Overrides { config: Some("/ours".into()), ..Overrides::default() };
        let sources = Sources::of(&machine.host, Some(&kubelet), &overrides);
        let told = sources.read(Deadline::after(Duration::from_secs(5))).unwrap();
        assert_eq!(told.file.unwrap().text, "ours");
        assert_eq!(told.dropins.unwrap().len(), 1);
        assert!(told.flags.unwrap().eviction_hard.is_some(), "its flags count on top");
        assert_eq!(sources.root_dir().unwrap(), Path::new("/r"));
        let none = Sources::of(&machine.host, None, &overrides);
        assert_eq!(none.root_dir().unwrap(), Path::new(DEFAULT_ROOT_DIR));
        assert_eq!(none.read(Deadline::after(Duration::from_secs(5))).unwrap().flags, None);
    }
}
