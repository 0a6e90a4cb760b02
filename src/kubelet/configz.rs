//! `/configz`: the configuration that the running kubelet really has, in its own words.
//!
//! Files and flags say what a kubelet will run with after its next start; `/configz` is registered once everything is
//! merged (`cmd/kubelet/app/server.go:770`) and never changes while the process lives. So it is asked once per kubelet
//! process (pid and start time), again every [`Settings::interval`], and after a failure not before 30 s. Its answer
//! holds for as long as the process is the same, whatever comes of asking again: with the apiserver away a kubelet
//! cannot judge our token and says 401. Where the process cannot be seen (a pod without hostPID) it is asked again
//! every 30 s, and the last answer holds with an error that says so.
//!
//! **Permission.** The kubelet asks the apiserver whether the token may `get` `nodes/configz` (fine-grained
//! authorization, 1.36 on without a switch) or, before that, `nodes/proxy`. The first is harmless. The second lets its
//! holder run commands in every pod of every node it is granted for: grant `nodes/configz` alone where kubelets are new
//! enough, and think twice otherwise; without either the files and flags are read as before. A `Role` cannot hold it:
//! nodes are cluster-wide, so it is a `ClusterRole` with `apiGroups: [""]`, `resources: [nodes/configz]`,
//! `verbs: [get]`. No capability and no host path is needed; a pod without hostNetwork names the node's address
//! (`--kubelet.url=https://$(NODE_IP):10250`).
//!
//! **The token** goes to the configured kubelet and nowhere else: only over TLS, only after its certificate has
//! verified (unless that was switched off by name), never along a redirect, never into a log or an error. It is read
//! for each request, because a mounted token is replaced about every hour.
//!
//! **The certificate.** A kubelet with `serverTLSBootstrap` has one from the cluster's signer, which need not be the CA
//! of the service account. One without, kubeadm's default, signs its own. Where we can read it on the kubelet's disk
//! (`tlsCertFile`, else `kubelet-server-current.pem` or `kubelet.crt` in its `--cert-dir`: root's files) whoever shows
//! that very certificate and has its key is the kubelet of this machine, better than by any CA: no name in it matters
//! then, nor who signed it. It is read for each request: kubelets renew theirs. Otherwise a CA must have signed it, for
//! the host of the URL; what the node is called (`--node-name`, the kubelet's `--hostname-override`) is as good, and on
//! this machine's own addresses its hostname.
//!
//! **The address.** Unless it is named: as the kubelet's own files and flags have `address` and `port`.
//!
//! **When it misleads.** Of several kubelets on a machine (Kubernetes in containers) the one at the address answers,
//! which need not be the one whose process was found.

pub mod drift;

pub use crate::client::Address;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;

use super::configuration::Configuration;
use super::flags::Flags;
use super::process::KubeletProcess;
use super::thresholds::Thresholds;
use crate::client::connect::Connector;
use crate::client::credentials::{Token, certificates, present, service_account};
use crate::client::request::Request;
use crate::client::target::{Material, Target, Tls};
use crate::client::{Exchange, Outcome, Server, http1};
use crate::error::{Error, Reason, Result};
use crate::host::{Deadline, Host};
use crate::values::{defaults, some_time};

/// How long after a failure the kubelet is left alone.
const RETRY: Duration = Duration::from_secs(30);

/// How long a request may take, connection and TLS included.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where a kubelet keeps its certificates unless it is told otherwise (`--cert-dir`).
const CERT_DIR: &str = "/var/lib/kubelet/pki";

/// What it keeps there, in the order in which it uses them (`pkg/kubelet/certificate`, `initializeServerTLS`): the one
/// that the cluster signs, and the one that it signs itself.
const CERTIFICATES: [&str; 2] = ["kubelet-server-current.pem", "kubelet.crt"];

/// What is asked for.
const PATH: &str = "/configz";

/// The configuration of a kubelet is a few kilobytes.
const LARGEST_ANSWER: usize = 4 << 20;

/// Whether there is a kubelet to ask, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Never.
    Never,
    /// The one on this machine, if we are in a pod with a service-account token.
    IfToken,
    /// The one at this address, with a token if there is one.
    At(Address),
}

fn url_flag(text: &str) -> std::result::Result<Ask, String> {
    match text {
        "off" => Ok(Ask::Never),
        "auto" => Ok(Ask::IfToken),
        url => Address::kubelet(url).map(Ask::At),
    }
}

/// How the kubelet is asked.
#[derive(clap::Args, Clone, Debug, PartialEq, Eq)]
#[group(skip)]
#[command(next_help_heading = "Kubelet")]
pub struct Settings {
    /// Its API, for /configz, or off [default: in a pod]
    #[arg(
        long_help = "The kubelet's API, whose /configz gives the settings that it runs with: https://HOST:PORT, or off [default: in a pod with a service-account token the kubelet's own address and port, usually https://127.0.0.1:10250; else off]",
        id = "kubelet.url", long = "kubelet.url", value_name = "URL", default_value = "auto", hide_default_value = true, value_parser = url_flag
    )]
    pub ask: Ask,
    /// Token for the kubelet, read for each request; it needs the verb get on nodes/configz [default: that of the pod's
    /// service account]
    #[arg(id = "kubelet.token-file", long = "kubelet.token-file", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Authorities that may have signed the kubelet's certificate, as PEM [default: ca.crt of the pod's service
    /// account]
    #[arg(id = "kubelet.ca-file", long = "kubelet.ca-file", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// The name that the kubelet's certificate must be valid for [default: the host of the URL; for a loopback
    /// address the node's names too]
    #[arg(id = "kubelet.server-name", long = "kubelet.server-name", value_name = "NAME")]
    pub server_name: Option<String>,
    /// Do not verify the kubelet's certificate: the token goes to any server that answers there
    #[arg(id = "kubelet.insecure-skip-verify", long = "kubelet.insecure-skip-verify")]
    pub insecure_skip_verify: bool,
    /// How long an answer of /configz is used while the kubelet's process stays the same
    #[arg(id = "kubelet.configz-interval", long = "kubelet.configz-interval", value_name = "DURATION", default_value = "5m", value_parser = some_time)]
    pub interval: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        defaults()
    }
}

/// What came of asking.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// What the kubelet runs with, if it said so while its process was this one.
    pub running: Option<Running>,
    /// Why it could not be asked this time. `None` if there was nobody to ask.
    pub error: Option<Error>,
}

/// What a kubelet runs with.
#[derive(Clone, Debug, PartialEq)]
pub struct Running {
    /// Where it said so.
    pub url: String,
    /// Its configuration.
    pub configuration: Configuration,
    /// The thresholds in it.
    pub thresholds: Thresholds,
}

/// Asks the kubelet, and remembers what it said.
#[derive(Debug, Default)]
pub struct Configz {
    settings: Settings,
    /// `--node-name`
    node_name: Option<String>,
    connector: Connector,
    last: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    process: Option<Process>,
    asked: Option<Instant>,
    good: Option<(String, Configuration)>,
    error: Option<Error>,
}

/// One life of a kubelet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    pid: u32,
    started: u64,
}

impl Process {
    fn of(host: &Host, kubelet: Option<&KubeletProcess>) -> Option<Self> {
        let pid = kubelet?.pid;
        let started = host.pids().and_then(|pids| pids.started(pid)).ok()?;
        Some(Process { pid, started })
    }
}

impl Configz {
    /// One that asks as it is told here.
    pub fn new(settings: Settings) -> Self {
        Configz { settings, ..Configz::default() }
    }

    /// The same for a node of which we were told its name.
    #[must_use]
    pub fn of_node(self, node_name: Option<String>) -> Self {
        Configz { node_name, ..self }
    }

    /// What the kubelet runs with. `kubelet` is its process, if it can be seen, and `flags` its command line: two
    /// things are only there. `files` reads what its files and flags make of it, for where its API is.
    pub fn ask(
        &self,
        host: &Host,
        kubelet: Option<&KubeletProcess>,
        flags: Option<&Flags>,
        files: impl FnOnce() -> Option<Configuration>,
        deadline: Deadline,
    ) -> Answer {
        if self.settings.ask == Ask::Never {
            return Answer::default();
        }
        // Before asking: an answer of a later process than this is found out by the next scrape, the reverse never.
        let process = Process::of(host, kubelet);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.process != process {
            *last = Last { process, ..Last::default() };
        }
        if last.is_due(self.settings.interval) {
            let answer = self.get(host, kubelet, flags, files, deadline);
            last.note(answer);
        }
        let running = last.good.as_ref().map(|(url, configuration)| running(url, configuration, flags)).transpose();
        match running {
            Ok(running) => Answer { running, error: last.error.clone() },
            Err(error) => Answer { running: None, error: Some(error.context("kubelet's /configz")) },
        }
    }

    /// `None`: nobody to ask.
    fn get(
        &self,
        host: &Host,
        kubelet: Option<&KubeletProcess>,
        flags: Option<&Flags>,
        files: impl FnOnce() -> Option<Configuration>,
        deadline: Deadline,
    ) -> Result<Option<(String, Configuration)>> {
        let token = self.token(host)?;
        if self.settings.ask == Ask::IfToken && token.is_none() {
            return Ok(None);
        }
        let files = files();
        let (address, ours) = match &self.settings.ask {
            Ask::At(address) => (address.clone(), address.is_loopback()),
            // A kubelet listens on addresses of its own machine only.
            Ask::Never | Ask::IfToken => {
                let (ip, port) = files
                    .as_ref()
                    .map_or((Ipv4Addr::LOCALHOST.into(), Server::Kubelet.default_port()), Configuration::api);
                (Address::of_kubelet(ip, port), true)
            }
        };
        let url = format!("{address}{PATH}");
        let material = Material {
            names: self.names(host, &address, ours, flags),
            pinned: self.pinned(host, kubelet, flags, files.as_ref()),
            address: address.clone(),
            ca: None,
            client: None,
        };
        let material = self.with_ca(host, material).map_err(|error| error.context(&url))?;
        let tls = Tls::of(material, 0).map_err(|error| error.context(&url))?;
        let target = Target { address, token, tls: Arc::new(tls) };
        let Exchange { outcome, status, body, error, .. } = self.exchange(&target, deadline.part(PATIENCE))?;
        match (outcome, status) {
            (Outcome::Ok, _) => {
                let text = std::str::from_utf8(&body).map_err(|_| Error::malformed("its answer is not text"));
                let configuration = text.and_then(Configuration::of_configz).map_err(|error| error.context(&url))?;
                Ok(Some((url, configuration)))
            }
            // A kubelet without `/configz`: `enableDebuggingHandlers: false`.
            (_, Some(404)) => Ok(None),
            // Nobody said that a kubelet must be there, and none is to be seen.
            (Outcome::Refused, _) if self.settings.ask == Ask::IfToken && kubelet.is_none() => Ok(None),
            (Outcome::Refused, _) => Err(Error::new(
                Reason::Io,
                format!(
                    "{url}: connection refused (a pod without hostNetwork needs --kubelet.url with the node's address)"
                ),
            )),
            (_, Some(status)) if status != 200 => Err(refusal(status, target.token.is_some()).context(url)),
            _ => Err(error.unwrap_or_else(|| Error::malformed(format!("{url}: {}", outcome.as_str())))),
        }
    }

    /// In a runtime of its own, on this thread: it is gone with everything in it when the answer is there or the time
    /// is over.
    fn exchange(&self, target: &Target, deadline: Deadline) -> Result<Exchange> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Error::os("starting an event loop for the request", &error))?;
        let request = Request::object(PATH, LARGEST_ANSWER);
        let exchange = runtime.block_on(http1::exchange(&self.connector, target, &request, deadline));
        // A name that is being looked up holds a thread that cannot be stopped: it is not waited for.
        runtime.shutdown_background();
        Ok(exchange)
    }

    fn token(&self, host: &Host) -> Result<Option<Token>> {
        let named = self.settings.token_file.as_deref();
        let default = service_account("token");
        let path = named.unwrap_or(&default);
        match host.read(path) {
            Ok(text) => Token::new(&text).map(Some).map_err(|error| error.context(path.display())),
            Err(error) if error.is_gone() && named.is_none() => Ok(None),
            Err(error) => Err(present(error).context("the token for the kubelet (--kubelet.token-file)")),
        }
    }

    /// What its certificate may be made out to.
    fn names(&self, host: &Host, address: &Address, ours: bool, flags: Option<&Flags>) -> Vec<String> {
        if let Some(name) = &self.settings.server_name {
            return vec![name.clone()];
        }
        let theirs = flags.and_then(|flags| flags.hostname_override.clone());
        // Only on this machine: elsewhere another could be called so too.
        let machine = ours.then(|| host.read_some(host.proc("sys/kernel/hostname")).ok().flatten()).flatten();
        let node = [self.node_name.clone(), theirs, machine].into_iter().flatten();
        let node = node.map(|name| name.trim().to_ascii_lowercase()).filter(|name| !name.is_empty());
        std::iter::once(address.host().to_owned()).chain(node).collect()
    }

    /// The kubelet's own certificate, if we may read it, where it counts: on the machine, or where a kubelet in a
    /// container sees it.
    fn pinned(
        &self,
        host: &Host,
        kubelet: Option<&KubeletProcess>,
        flags: Option<&Flags>,
        files: Option<&Configuration>,
    ) -> Vec<CertificateDer<'static>> {
        if self.settings.insecure_skip_verify || self.settings.ca_file.is_some() {
            return Vec::new();
        }
        let given = flags.and_then(|flags| flags.tls_cert_file.clone());
        let given = given.or_else(|| files.and_then(|files| files.tls_cert_file.clone()));
        let dir = flags.and_then(|flags| flags.cert_dir.clone()).unwrap_or_else(|| CERT_DIR.into());
        let paths = given.map_or_else(|| CERTIFICATES.map(|name| dir.join(name)).to_vec(), |given| vec![given]);
        let trees: Vec<_> =
            [Some(host.tree()), kubelet.map(|kubelet| host.tree_of(kubelet.pid))].into_iter().flatten().collect();
        let texts = paths.iter().filter_map(|path| trees.iter().find_map(|tree| tree.read(path).ok()));
        // The first in the file is the kubelet's, the others are who signed it.
        texts.filter_map(|pem| certificates(pem.as_bytes()).ok()?.into_iter().next()).collect()
    }

    fn with_ca(&self, host: &Host, material: Material) -> Result<Material> {
        if self.settings.insecure_skip_verify {
            return Ok(material);
        }
        let default = service_account("ca.crt");
        let path = self.settings.ca_file.as_deref().unwrap_or(&default);
        match host.read(path) {
            Ok(pem) => Ok(Material { ca: Some((path.display().to_string(), pem.into_bytes())), ..material }),
            // Not in a pod: its own certificate is enough.
            Err(error) if error.is_gone() && !material.pinned.is_empty() => Ok(material),
            Err(error) => Err(present(error).context("CA of the kubelet's certificate (--kubelet.ca-file)")),
        }
    }
}

/// What a status other than 200 of a kubelet means.
fn refusal(status: u16, with_token: bool) -> Error {
    match status {
        401 if !with_token => Error::new(
            Reason::Denied,
            "401: the kubelet wants a token, and the exporter has none: give one with --kubelet.token-file",
        ),
        401 => Error::new(
            Reason::Denied,
            "401: the kubelet does not accept the token: it has expired, it is another cluster's, or this kubelet has no webhook authentication",
        ),
        403 => Error::new(
            Reason::Denied,
            "403: the token's service account is not allowed to: it needs a ClusterRole with verb get on nodes/configz (before Kubernetes 1.33: on nodes/proxy, which permits far more)",
        ),
        300..=399 => Error::malformed(format!(
            "{status}: a redirect, which is not followed: no kubelet sends one, check --kubelet.url"
        )),
        _ => Error::new(Reason::Io, format!("HTTP status {status}")),
    }
}

impl Last {
    fn is_due(&self, interval: Duration) -> bool {
        let settled = self.good.is_some() && self.process.is_some();
        let holds = if settled { interval } else { RETRY.min(interval) };
        self.asked.is_none_or(|asked| asked.elapsed() >= holds)
    }

    fn note(&mut self, answer: Result<Option<(String, Configuration)>>) {
        self.asked = Some(Instant::now());
        match answer {
            Ok(good) => {
                self.good = good;
                self.error = None;
            }
            Err(error) => {
                let error = error.context("kubelet's /configz");
                let instead = match (&self.good, self.process) {
                    (Some(_), Some(_)) => {
                        tracing::info!(%error, "the kubelet cannot be asked; its last answer stays in use, since its process is the same");
                        return;
                    }
                    (Some(_), None) => {
                        "its last answer stays in use, but its process cannot be seen: it may have restarted with other settings"
                    }
                    (None, _) => {
                        self.error = Some(error);
                        return;
                    }
                };
                self.error = Some(Error::new(error.reason(), format!("{error}; {instead}")));
            }
        }
    }
}

/// Two things are on the command line alone: `--experimental-allocatable-ignore-eviction`, and, before 1.27, the
/// runtime's endpoint.
fn running(url: &str, configuration: &Configuration, flags: Option<&Flags>) -> Result<Running> {
    let mut configuration = configuration.clone();
    if let Some(flags) = flags {
        configuration.ignore_allocatable_eviction = flags.ignore_allocatable_eviction;
        configuration.runtime_endpoint = configuration.runtime_endpoint.or_else(|| flags.runtime_endpoint.clone());
    }
    let thresholds = Thresholds::parse(&configuration)?;
    Ok(Running { url: url.to_owned(), configuration, thresholds })
}
