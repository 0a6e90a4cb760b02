//! The kubelet of this node: one handle that every mode shares.
//!
//! A [`Look`] is what one moment shows of it. It is made once a scrape; what costs a file or a request is read when the
//! first mode wants it, and then serves all. Files are read on a thread of their own: one that lies on a dead mount
//! costs that thread.
//!
//! **A kubelet that does not run** is still this node's: its pods go on, its disk fills, and it comes back with the
//! configuration it had. The last one that was seen counts, with all that was known of it, until another is seen or its
//! root directory is gone. [`Look::runs`] tells which of the two it is.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::configuration::{Configuration, KubeletInputs, Source, Text};
use super::configz::drift::{self, Drift};
use super::configz::{self, Configz, Running};
use super::http2::Http2;
use super::identity::Why;
use super::process::{Finder, Found, KubeletProcess, PassedOver};
use super::proxy;
use super::sources::{Overrides, Sources};
use super::thresholds::Thresholds;
use super::version::Version;
use crate::error::{Error, Reason, Result};
use crate::host::single_flight::SingleFlight;
use crate::host::{Deadline, Host};

/// How long it may take to find the kubelet for its node's name.
const NAME: Duration = Duration::from_secs(5);
/// How old a look may be for that: a kubelet that is restarted under another name is seen by the next reading.
const NAME_SERVES: Duration = Duration::from_secs(10);

/// How long its files may take: what is not there by then costs what needs it, and not all that comes after.
const FILES: Duration = Duration::from_secs(2);

/// How the kubelet is found and asked.
#[derive(clap::Args, Clone, Debug, Default, PartialEq, Eq)]
#[group(skip)]
pub struct Settings {
    /// Paths in place of the kubelet's own.
    #[command(flatten)]
    pub overrides: Overrides,
    /// How it is asked itself, before its files and flags.
    #[command(flatten)]
    pub configz: configz::Settings,
    /// This node [default: as the kubelet calls it]
    #[arg(
        long_help = "The name of this node [default: the kubelet's --hostname-override, else the machine's name]",
        long = "node-name",
        value_name = "NAME"
    )]
    pub node_name: Option<String>,
    /// Which kubelet this is [default: as the node object says]
    #[arg(
        long_help = "The kubelet's version, such as v1.28.15 [default: from this node's object, which the collector node_status reads; else unknown]",
        id = "kubelet.version",
        long = "kubelet.version",
        value_name = "VERSION",
        hide_short_help = true,
        help_heading = "Kubelet"
    )]
    pub version: Option<Version>,
    /// Whose processes may be this node's kubelet
    #[arg(
        long_help = "The user that this node's kubelet runs as, if it is rootless: a kubelet of another user is ignored, as is one in a pod or in a container",
        id = "kubelet.uid",
        long = "kubelet.uid",
        value_name = "UID",
        default_value_t = 0,
        hide_short_help = true,
        help_heading = "Kubelet"
    )]
    pub uid: u32,
}

/// The kubelet of this node. A clone is the same handle; the default one looks for a kubelet, and asks nobody.
#[derive(Clone, Debug, Default)]
pub struct Kubelet(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    known: Arc<Known>,
    finder: Finder,
    looks: SingleFlight<Arc<Look>>,
}

/// What outlives a look.
#[derive(Debug, Default)]
struct Known {
    settings: Settings,
    configz: Configz,
    /// Its environment, which never changes while it runs, by pid and start time.
    environment: Mutex<Option<((u32, u64), Environment)>>,
    /// As the node object said last.
    version: Mutex<Option<Version>>,
    last: Mutex<Option<Last>>,
}

/// The kubelet that was seen last, for when it does not run.
#[derive(Debug)]
struct Last {
    pid: u32,
    /// Without its process: whose that number is now, nobody knows.
    sources: Sources,
    /// What it ran with, once that was known.
    effective: Option<Effective>,
    /// Its end was told.
    told: bool,
}

/// What the environment that it was started with says of its connection to the apiserver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// What it does about a dead HTTP/2 connection.
    pub http2: Http2,
    /// By which proxy it connects.
    pub proxies: proxy::Environment,
}

/// What one moment shows of the kubelet.
#[derive(Debug)]
pub struct Look {
    known: Arc<Known>,
    found: Result<Found>,
    sources: Sources,
    /// Nobody runs now, and these are the sources of who did.
    away: bool,
    inputs: OnceLock<Result<KubeletInputs>>,
    effective: OnceLock<Effective>,
}

/// What the kubelet runs with, or would.
#[derive(Clone, Debug, Default)]
pub struct Effective {
    /// The configuration and its thresholds; `None` if they could not be had (the errors say why).
    pub configuration: Option<(Configuration, Thresholds)>,
    /// Where it came from.
    pub sources: Vec<Source>,
    /// What a restart of the kubelet would change; empty unless both sides are known.
    pub drift: Vec<Drift>,
    /// What could not be read.
    pub errors: Vec<Error>,
    /// Why the kubelet itself could not be asked, where its files and flags tell all the same.
    pub unasked: Option<Error>,
}

impl Kubelet {
    /// One that is found and asked as it is told here.
    pub fn new(settings: Settings) -> Self {
        let configz = Configz::new(settings.configz.clone()).of_node(settings.node_name.clone());
        let finder = Finder::of_user(settings.uid);
        let known = Arc::new(Known { settings, configz, ..Known::default() });
        Kubelet(Arc::new(Shared { known, finder, ..Shared::default() }))
    }

    /// The kubelet as it was at `since` or later. All who ask for the same moment share one look.
    ///
    /// # Errors
    /// Timeout, if a look under way does not end before the deadline. What the look itself could not see is in it.
    pub fn look(&self, host: &Host, deadline: Deadline, since: Instant) -> Result<Arc<Look>> {
        let look = || {
            let known = &self.0.known;
            let found = self.0.finder.find(host, deadline, since);
            let process = found.as_ref().ok().and_then(|found| found.kubelet.as_ref());
            let last = if process.is_none() { known.last(host, found.is_ok(), deadline) } else { None };
            let away = last.is_some();
            let sources = last.unwrap_or_else(|| Sources::of(host, process, &known.settings.overrides));
            if let Some(process) = process {
                known.note(process, &sources);
            }
            let (inputs, effective) = (OnceLock::new(), OnceLock::new());
            Arc::new(Look { known: Arc::clone(known), found, sources, away, inputs, effective })
        };
        let landed = self.0.looks.since(since, deadline, look);
        landed.map(|landed| landed.value).ok_or_else(|| {
            Error::new(Reason::Timeout, "the kubelet: the search for it did not end before the deadline")
        })
    }

    /// Which one it is: `--kubelet.version`, else what somebody learned last. `None`: unknown.
    pub fn version(&self) -> Option<Version> {
        self.0.known.version()
    }

    /// Takes note of the version that its own node object gives, which no pod can write.
    pub fn learn_version(&self, version: Version) {
        let mut known = self.0.known.version.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref() != Some(&version) {
            tracing::info!(%version, "the kubelet's version, as its node object gives it");
            *known = Some(version);
        }
    }

    /// The name of its node: `--node-name`, else as the kubelet would name it. What is not given is looked up each
    /// time: a kubelet may come back under another name.
    ///
    /// # Errors
    /// If neither the kubelet's command line nor the machine's name can be read; malformed if no node can be called so.
    pub async fn node_name(&self, host: &Arc<Host>) -> Result<String> {
        let (kubelet, host) = (self.clone(), Arc::clone(host));
        // It reads procfs, which has no place on a thread that others wait for.
        let name = tokio::task::spawn_blocking(move || kubelet.look_up_name(&host)).await;
        name.unwrap_or_else(|error| Err(Error::new(Reason::Panic, error.to_string())))
    }

    fn look_up_name(&self, host: &Host) -> Result<String> {
        let name = match &self.0.known.settings.node_name {
            Some(name) => name.clone(),
            None => {
                let now = Instant::now();
                let look = self.look(host, Deadline::after(NAME), now.checked_sub(NAME_SERVES).unwrap_or(now))?;
                if !look.away {
                    look.found()?;
                }
                look.sources.node_name(host)?
            }
        };
        // It becomes part of a path: an object's name, RFC 1123.
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
        if name.is_empty() || name.len() > 253 || !name.bytes().all(fits) || name.starts_with('.') {
            return Err(Error::malformed(format!("{name:?} cannot be a node's name: set --node-name")));
        }
        Ok(name)
    }
}

impl Known {
    fn version(&self) -> Option<Version> {
        let learned = || self.version.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.settings.version.clone().or_else(learned)
    }

    fn lock_last(&self) -> MutexGuard<'_, Option<Last>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, process: &KubeletProcess, sources: &Sources) {
        let mut last = self.lock_last();
        // The same process: what is known of it stays.
        let effective = last.take().filter(|last| last.pid == process.pid).and_then(|last| last.effective);
        *last = Some(Last { pid: process.pid, sources: sources.of_the_dead(), effective, told: false });
    }

    /// The sources of the kubelet that was seen last. `gone`: it does not run, which we do not know where processes
    /// could not be looked at.
    fn last(&self, host: &Host, gone: bool, deadline: Deadline) -> Option<Sources> {
        let sources = self.lock_last().as_ref()?.sources.clone();
        if let Ok(root) = sources.root_dir() {
            let tree = host.tree();
            let seen =
                host.bounded("the kubelet's root directory", deadline.part(FILES), move || tree.kind(root).map(drop));
            if seen.is_err_and(|error| error.is_gone()) {
                *self.lock_last() = None;
                tracing::info!(
                    "the kubelet does not run and its root directory is gone: its configuration is forgotten"
                );
                return None;
            }
        }
        if let Some(last) = self.lock_last().as_mut().filter(|last| gone && !last.told) {
            last.told = true;
            tracing::warn!(
                pid = last.pid,
                "the kubelet does not run; its last known configuration is used until a kubelet runs again"
            );
        }
        Some(sources)
    }
}

impl Look {
    /// True while its process is there; `None` if no kubelet was ever seen, or processes could not be looked at.
    pub fn runs(&self) -> Option<bool> {
        match &self.found {
            Ok(found) if found.kubelet.is_some() => Some(true),
            Ok(_) if self.away => Some(false),
            _ => None,
        }
    }

    /// The processes that were found.
    ///
    /// # Errors
    /// As [`Finder::find`].
    pub fn found(&self) -> Result<&Found> {
        self.found.as_ref().map_err(Clone::clone)
    }

    /// The kubelet's process, if it runs and we may see it.
    pub fn process(&self) -> Option<&KubeletProcess> {
        self.found.as_ref().ok()?.kubelet.as_ref()
    }

    /// Its process and when that started: what one process knows, another with its number does not. `None` without one.
    ///
    /// # Errors
    /// Gone if it exited.
    pub fn instance(&self, host: &Host) -> Result<Option<(u32, u64)>> {
        let pid = self.process().map(|kubelet| kubelet.pid);
        pid.map(|pid| Ok((pid, host.pids()?.started(pid)?))).transpose()
    }

    /// The directory whose file system is nodefs.
    ///
    /// # Errors
    /// If the kubelet's is relative and its working directory cannot be read.
    pub fn root_dir(&self) -> Result<PathBuf> {
        self.sources.root_dir()
    }

    /// True if somebody named that directory, or would have: without a kubelet it is only where one would be.
    pub fn names_root_dir(&self) -> bool {
        self.known.settings.overrides.root_dir.is_some() || self.away || self.process().is_some()
    }

    /// Its kubeconfig; `None` if it was told of none: a standalone kubelet.
    ///
    /// # Errors
    /// Denied if we may not read it; malformed if it is not there.
    pub fn kubeconfig(&self, host: &Host, deadline: Deadline) -> Result<Option<Text>> {
        let sources = self.sources.clone();
        host.bounded("the kubelet's kubeconfig", deadline.part(FILES), move || sources.kubeconfig())
    }

    /// What its environment says; `None` without a kubelet.
    ///
    /// # Errors
    /// Denied without `CAP_SYS_PTRACE` if it is another user's; gone if it exited; timeout and busy if it is stuck.
    pub fn environment(&self, host: &Host, deadline: Deadline) -> Result<Option<Environment>> {
        let Some(process) = self.instance(host)? else { return Ok(None) };
        let known = || self.known.environment.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, environment)) = known().as_ref().filter(|(known, _)| *known == process) {
            return Ok(Some(environment.clone()));
        }
        let environ = host.environ(process.0, deadline)?;
        let environ = || environ.iter().map(String::as_str);
        let environment =
            Environment { http2: Http2::of_environ(environ()), proxies: proxy::Environment::of_environ(environ()) };
        *known() = Some((process, environment.clone()));
        Ok(Some(environment))
    }

    /// What it runs with: its own word if it can be asked, else its files and flags. Read when it is first asked for.
    pub fn effective(&self, host: &Host, deadline: Deadline) -> &Effective {
        self.effective.get_or_init(|| self.read_effective(host, deadline))
    }

    /// The runtime's endpoint, by its configuration, or by its command line where that is unknown.
    pub fn runtime_endpoint(&self, host: &Host, deadline: Deadline) -> Option<&str> {
        match &self.effective(host, deadline).configuration {
            Some((configuration, _)) => configuration.runtime_endpoint.as_deref(),
            None => self.sources.flags().and_then(|flags| flags.runtime_endpoint.as_deref()),
        }
    }

    fn read_effective(&self, host: &Host, deadline: Deadline) -> Effective {
        if self.away {
            let last = self.known.lock_last().as_ref().and_then(|last| last.effective.clone());
            return last.unwrap_or_else(|| {
                let mut effective = Effective::default();
                self.take_files(host, deadline, &mut effective);
                effective
            });
        }
        let effective = self.ask_or_read(host, deadline);
        let mut last = self.known.lock_last();
        if let (Some(process), Some(last)) = (self.process(), last.as_mut())
            && process.pid == last.pid
            && effective.configuration.is_some()
        {
            last.effective = Some(Effective { errors: Vec::new(), ..effective.clone() });
        }
        effective
    }

    fn ask_or_read(&self, host: &Host, deadline: Deadline) -> Effective {
        let mut effective = Effective::default();
        let overrides = &self.known.settings.overrides;
        let files = || self.inputs(host, deadline).and_then(KubeletInputs::effective).ok();
        let answer = self.known.configz.ask(host, self.process(), self.sources.flags(), files, deadline);
        // Whoever did not answer us is a kubelet with thresholds of its own: the defaults would be a guess.
        let known = answer.error.is_none()
            || self.process().is_some()
            || overrides.config.is_some()
            || overrides.config_dir.is_some();
        match answer.running {
            Some(running) => {
                self.take_running(running, host, deadline, &mut effective);
                effective.errors.extend(answer.error);
            }
            // Without a look at the processes we do not know that there is no kubelet: its defaults would be a guess.
            None => {
                if self.found.is_ok() && known {
                    self.take_files(host, deadline, &mut effective);
                }
                // Thresholds are known or they are not: how they became known is no failure.
                match effective.configuration {
                    Some(_) => effective.unasked = answer.error,
                    None => effective.errors.extend(answer.error),
                }
            }
        }
        effective
    }

    /// Why nobody's defaults are this node's, though no kubelet of its own was found.
    fn rootless(&self) -> Option<Error> {
        let Overrides { config, config_dir, .. } = &self.known.settings.overrides;
        if config.is_some() || config_dir.is_some() {
            return None;
        }
        let found = self.found.as_ref().ok().filter(|found| found.kubelet.is_none() && !self.away)?;
        let rootless = found.passed_over.iter().find(|passed| matches!(passed.why, Why::User(_)))?;
        let PassedOver { pid, comm, why } = rootless;
        Some(Error::new(
            Reason::Denied,
            format!("process {pid} ({comm}) looks like this node's kubelet but is ignored: {why}"),
        ))
    }

    /// What it was told, read once.
    fn inputs(&self, host: &Host, deadline: Deadline) -> Result<&KubeletInputs> {
        let read = || {
            let sources = self.sources.clone();
            let deadline = deadline.part(FILES);
            let inputs = host.bounded("the kubelet's configuration", deadline, move || sources.read(deadline))?;
            Ok(KubeletInputs { version: self.known.version(), ..inputs })
        };
        self.inputs.get_or_init(read).as_ref().map_err(Clone::clone)
    }

    /// The kubelet's own word counts. Its files and flags are read beside it to see what its next start would change,
    /// if we can.
    fn take_running(&self, running: Running, host: &Host, deadline: Deadline, effective: &mut Effective) {
        effective.sources.push(Source::Configz(running.url));
        // Without its command line we do not know which files are the kubelet's, nor what it would make of them.
        if let Some(Ok(inputs)) = self.sources.flags().map(|_| self.inputs(host, deadline)) {
            effective.sources.extend(inputs.sources());
            let next = inputs.effective();
            let drift = next
                .and_then(|next| drift::compare(&running.configuration, &next).map_err(|error| inputs.blame(error)));
            let hint = "the kubelet runs with other settings; with these it would not start again";
            match drift {
                Ok(drift) => effective.drift = drift,
                Err(error) => effective.errors.push(Error::new(error.reason(), format!("{error}; {hint}"))),
            }
        }
        effective.configuration = Some((running.configuration, running.thresholds));
    }

    fn take_files(&self, host: &Host, deadline: Deadline, effective: &mut Effective) {
        if let Some(rootless) = self.rootless() {
            return effective.errors.push(rootless);
        }
        let inputs = match self.inputs(host, deadline) {
            Ok(inputs) => inputs,
            Err(error) => return effective.errors.push(error),
        };
        effective.sources = inputs.sources();
        let parsed = inputs.effective().and_then(|configuration| {
            let thresholds = Thresholds::parse(&configuration).map_err(|error| inputs.blame(error))?;
            Ok((configuration, thresholds))
        });
        let hint = "correct the file if a kubelet would refuse it too, or set --kubelet.config to the file that this kubelet runs with; until then its thresholds are unknown";
        match parsed {
            Ok(parsed) => effective.configuration = Some(parsed),
            Err(error) => effective.errors.push(Error::new(error.reason(), format!("{error}; {hint}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Roots;

    async fn name(given: Option<&str>, hostname: &str) -> Result<String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("sys/kernel")).unwrap();
        std::fs::write(dir.path().join("sys/kernel/hostname"), hostname).unwrap();
        let host = Arc::new(Host::new(Roots { proc: dir.path().into(), ..Roots::default() }));
        let settings = Settings { node_name: given.map(str::to_owned), ..Settings::default() };
        Kubelet::new(settings).node_name(&host).await
    }

    #[tokio::test]
    async fn the_node_is_named_by_the_flag_or_as_the_machine() {
        assert_eq!(name(Some("ip-10-0-0-1.ec2.internal"), "x").await.unwrap(), "ip-10-0-0-1.ec2.internal");
        assert_eq!(name(None, "Worker-7\n").await.unwrap(), "worker-7");
    }

    #[tokio::test]
    async fn nothing_that_is_no_name_gets_into_a_path() {
        for odd in ["", "a/b", "../secrets", "..", "a?b", "A", "a b", "é"] {
            let error = name(Some(odd), "x").await.unwrap_err();
            assert!(error.to_string().contains("--node-name"), "{odd}: {error}");
        }
    }

    fn write(dir: &tempfile::TempDir, path: &str, text: &str) {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(5))
    }

    #[test]
    fn one_look_serves_all_of_a_scrape_and_none_of_the_next() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir, "proc/41/comm", "kubelet\n");
        write(&dir, "proc/41/stat", "41 (kubelet) S 1 1 1");
        write(&dir, "proc/41/cmdline", "/usr/bin/kubelet\0--config=/k.yaml\0--root-dir=/data\0");
        let head = "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\n";
        let socket = |name: &str| format!("{head}containerRuntimeEndpoint: unix:///run/{name}.sock\n");
        write(&dir, "root/k.yaml", &socket("one"));
        let host =
            Host::new(Roots { proc: dir.path().join("proc"), root: dir.path().join("root"), ..Roots::default() });
        let kubelet = Kubelet::default();
        let began = Instant::now();
        let look = kubelet.look(&host, soon(), began).unwrap();
        assert_eq!(look.process().unwrap().pid, 41);
        assert_eq!(look.root_dir().unwrap(), PathBuf::from("/data"));
        assert_eq!(look.runtime_endpoint(&host, soon()), Some("unix:///run/one.sock"));
        write(&dir, "root/k.yaml", &socket("two"));
        let same = kubelet.look(&host, soon(), began).unwrap();
        assert_eq!(same.runtime_endpoint(&host, soon()), Some("unix:///run/one.sock"), "of the same moment");
        let next = kubelet.look(&host, soon(), Instant::now()).unwrap();
        assert_eq!(next.runtime_endpoint(&host, soon()), Some("unix:///run/two.sock"));
    }

    /// A node whose kubelet has everything elsewhere.
    fn node() -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        write(&dir, "proc/sys/kernel/hostname", "machine\n");
        write(&dir, "root/data/cpu_manager_state", "");
        let eviction = "evictionHard:\n  nodefs.available: 3%\n";
        write(
            &dir,
            "root/k.yaml",
            &format!("kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\n{eviction}"),
        );
        start(&dir, 41);
        let roots = Roots { proc: dir.path().join("proc"), root: dir.path().join("root"), ..Roots::default() };
        (dir, Host::new(roots))
    }

    fn start(dir: &tempfile::TempDir, pid: u32) {
        write(dir, &format!("proc/{pid}/comm"), "kubelet\n");
        write(dir, &format!("proc/{pid}/stat"), &format!("{pid} (kubelet) S 1 1 1"));
        let line = "/usr/bin/kubelet\0--config=/k.yaml\0--root-dir=/data\0--hostname-override=Worker-7\0";
        write(dir, &format!("proc/{pid}/cmdline"), line);
    }

    /// What a look knows: root directory, node name, threshold of nodefs, source.
    fn known(look: &Look, host: &Host) -> (PathBuf, String, Option<String>, Vec<Source>) {
        let effective = look.effective(host, soon());
        let hard = effective.configuration.as_ref().and_then(|(one, _)| one.eviction_hard.get("nodefs.available"));
        (look.root_dir().unwrap(), look.sources.node_name(host).unwrap(), hard.cloned(), effective.sources.clone())
    }

    #[test]
    fn what_is_known_of_a_kubelet_outlives_it() {
        let (dir, host) = node();
        let kubelet = Kubelet::default();
        let look = || kubelet.look(&host, soon(), Instant::now()).unwrap();
        let before = look();
        assert_eq!(before.runs(), Some(true));
        let of_it = known(&before, &host);
        assert_eq!((of_it.1.as_str(), of_it.2.as_deref()), ("worker-7", Some("3%")));

        // A zombie has no arguments.
        write(&dir, "proc/41/cmdline", "");
        let zombie = look();
        assert_eq!((zombie.runs(), zombie.process()), (Some(false), None));
        assert_eq!(known(&zombie, &host), of_it);
        std::fs::remove_dir_all(dir.path().join("proc/41")).unwrap();
        // What it would be started with next is not what it ran with.
        std::fs::remove_file(dir.path().join("root/k.yaml")).unwrap();
        let away = look();
        assert_eq!(away.runs(), Some(false));
        assert_eq!(known(&away, &host), of_it);
        assert_eq!(away.effective(&host, soon()).errors, []);
        assert!(away.names_root_dir());
    }

    #[test]
    fn until_another_is_seen_or_its_root_directory_is_gone() {
        let (dir, host) = node();
        let kubelet = Kubelet::default();
        let look = || kubelet.look(&host, soon(), Instant::now()).unwrap();
        assert_eq!(known(&look(), &host).2.as_deref(), Some("3%"));
        std::fs::remove_dir_all(dir.path().join("proc/41")).unwrap();
        assert_eq!(look().runs(), Some(false));
        start(&dir, 77);
        let another = Kubelet::default();
        assert_eq!(another.look(&host, soon(), Instant::now()).unwrap().process().unwrap().pid, 77);
        std::fs::remove_dir_all(dir.path().join("root/data")).unwrap();
        std::fs::remove_dir_all(dir.path().join("proc/77")).unwrap();
        for kubelet in [&kubelet, &another] {
            let look = kubelet.look(&host, soon(), Instant::now()).unwrap();
            assert_eq!(look.runs(), None);
            assert_eq!(known(&look, &host).0, PathBuf::from("/var/lib/kubelet"));
        }
    }

    #[test]
    fn a_kubelet_that_was_never_seen_is_not_away() {
        let (dir, host) = node();
        std::fs::remove_dir_all(dir.path().join("proc/41")).unwrap();
        assert_eq!(Kubelet::default().look(&host, soon(), Instant::now()).unwrap().runs(), None);
    }
}
