//! Kubelets that run inside another process: k3s, MicroK8s, MicroShift. Such a process is started with other words than
//! a kubelet's, and tells its kubelet in files. What those say is put into a kubelet's own words here, so that all that
//! knows a command line knows these too.
//!
//! - **k3s** (`k3s server`, `k3s agent`; it hides its arguments): `agent/etc/kubelet.conf.d` below its data directory,
//!   from 1.32 on, and whatever `kubelet-arg` adds. Before that its kubelet's flags are nowhere to be read, and its
//!   thresholds are unknown unless the kubelet is asked. A server without an agent has no kubelet, and no
//!   `agent/kubelet.kubeconfig` (`pkg/daemons/agent/agent_linux.go`).
//! - **MicroK8s** (`kubelite`): a file of flags, one a line, that it names (`microk8s-resources/default-args/kubelet`).
//! - **MicroShift** (`microshift run`): `resources/kubelet` below its data directory (`pkg/node/kubelet.go`).
//!
//! RKE2 and k0s start a kubelet of its own name, and need nothing of this.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::host::rootfs::Tree;

/// What a kubelet may be inside of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Embedder {
    /// Also as Rancher's containers of it.
    K3s,
    /// `kubelite`
    MicroK8s,
    /// `microshift`
    MicroShift,
}

impl Embedder {
    /// By the name of its process.
    pub fn of_comm(comm: &str) -> Option<Self> {
        match comm {
            "k3s-server" | "k3s-agent" => Some(Embedder::K3s),
            "kubelite" => Some(Embedder::MicroK8s),
            "microshift" => Some(Embedder::MicroShift),
            _ => None,
        }
    }

    /// True if a process of this name and command line is a control plane as well.
    pub fn is_control_plane(self, comm: &str, argv: &[String]) -> bool {
        match self {
            Embedder::K3s => comm == "k3s-server",
            Embedder::MicroK8s => argv.iter().any(|argument| argument == "--start-control-plane=true"),
            Embedder::MicroShift => true,
        }
    }
}

/// What a process was started with.
#[derive(Clone, Copy, Debug)]
pub struct Started<'a> {
    /// Its arguments, the program first.
    pub argv: &'a [String],
    /// `NAME=value` each.
    pub environ: &'a [String],
}

impl Started<'_> {
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.environ.iter().find_map(|variable| variable.strip_prefix(name)?.strip_prefix('='))
    }

    /// Every value of this flag, in either form.
    pub(super) fn flags<'a>(&'a self, names: &[&str]) -> Vec<&'a str> {
        let mut values = Vec::new();
        let mut arguments = self.argv.iter();
        while let Some(argument) = arguments.next() {
            let (name, value) =
                argument.split_once('=').map_or((argument.as_str(), None), |(name, value)| (name, Some(value)));
            if names.contains(&name) {
                values.extend(value.or_else(|| arguments.next().map(String::as_str)));
            }
        }
        values
    }
}

/// The flags that a kubelet of its own would have been given; `None` if there is no kubelet in it.
///
/// # Errors
/// Denied or the operating system's if a file that tells cannot be read; malformed.
pub fn arguments(embedder: Embedder, started: Started<'_>, tree: &Tree) -> Result<Option<Vec<String>>> {
    match embedder {
        Embedder::K3s => k3s(started, tree),
        Embedder::MicroK8s => microk8s(started, tree).map(Some),
        Embedder::MicroShift => {
            let at = "/var/lib/microshift/resources/kubelet";
            let endpoint = "--container-runtime-endpoint=unix:///var/run/crio/crio.sock";
            let own = [
                format!("--config={at}/config/config.yaml"),
                format!("--kubeconfig={at}/kubeconfig"),
                endpoint.to_owned(),
            ];
            Ok(Some(own.to_vec()))
        }
    }
}

/// Where a k3s keeps everything.
///
/// # Errors
/// As [`arguments`].
pub fn k3s_data_dir(started: Started<'_>, tree: &Tree) -> Result<PathBuf> {
    Ok(k3s_data(started, &k3s_files(started, tree)?).into())
}

fn k3s_data(started: Started<'_>, files: &BTreeMap<String, Vec<String>>) -> String {
    let flag = started.flags(&["--data-dir", "-d"]).last().map(|value| (*value).to_owned());
    let variable = || started.variable("K3S_DATA_DIR").map(str::to_owned);
    let of_file = || files.get("data-dir").and_then(|values| values.last().cloned());
    flag.or_else(variable).or_else(of_file).unwrap_or_else(|| "/var/lib/rancher/k3s".to_owned())
}

fn k3s(started: Started<'_>, tree: &Tree) -> Result<Option<Vec<String>>> {
    let files = k3s_files(started, tree)?;
    let of_file = |name: &str| files.get(name).and_then(|values| values.last().cloned());
    let one = |flags: &[&str], variable: &str, name: &str| {
        let flag = started.flags(flags).last().map(|value| (*value).to_owned());
        flag.or_else(|| started.variable(variable).map(str::to_owned)).or_else(|| of_file(name))
    };
    let agent = Path::new(&k3s_data(started, &files)).join("agent");
    let kubeconfig = agent.join("kubelet.kubeconfig");
    if gone(tree.kind(&kubeconfig))?.is_none() {
        return Ok(None);
    }
    let dropins = agent.join("etc/kubelet.conf.d");
    let mut arguments = vec![
        format!("--config-dir={}", dropins.display()),
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--tls-cert-file={}", agent.join("serving-kubelet.crt").display()),
    ];
    if gone(tree.kind(&dropins))?.is_none() {
        // Else the drop-ins tell.
        let endpoint =
            one(&["--container-runtime-endpoint"], "K3S_CONTAINER_RUNTIME_ENDPOINT", "container-runtime-endpoint");
        let endpoint = endpoint.unwrap_or_else(|| "unix:///run/k3s/containerd/containerd.sock".to_owned());
        arguments.push(format!("--container-runtime-endpoint={endpoint}"));
    }
    if let Some(name) = one(&["--node-name"], "K3S_NODE_NAME", "node-name") {
        arguments.push(format!("--hostname-override={name}"));
    }
    let own = started.flags(&["--kubelet-arg"]);
    let given = if own.is_empty() {
        files.get("kubelet-arg").cloned().unwrap_or_default()
    } else {
        own.into_iter().map(str::to_owned).collect()
    };
    arguments.extend(given.iter().map(|argument| format!("--{}", argument.trim_start_matches('-'))));
    Ok(Some(arguments))
}

/// Its configuration file and the drop-ins beside it: a later one replaces a value, or adds to it where its name ends
/// in `+`.
fn k3s_files(started: Started<'_>, tree: &Tree) -> Result<BTreeMap<String, Vec<String>>> {
    let named = started.flags(&["--config", "-c"]).last().copied().or_else(|| started.variable("K3S_CONFIG_FILE"));
    let first = PathBuf::from(named.unwrap_or("/etc/rancher/k3s/config.yaml"));
    let folder = PathBuf::from(format!("{}.d", first.display()));
    let mut paths = vec![first];
    if let Some(names) = gone(tree.list(&folder))? {
        let mut more: Vec<PathBuf> = names.into_iter().map(|(name, _)| folder.join(name)).collect();
        more.retain(|path| path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml"));
        more.sort();
        paths.append(&mut more);
    }
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in paths {
        let Some(text) = gone(tree.read(&path))? else { continue };
        for (name, value) in settings(&text, &path)? {
            let values = match value {
                Value::Array(values) => values,
                value => vec![value],
            };
            let words = values.into_iter().map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
            match name.strip_suffix('+') {
                Some(name) => all.entry(name.to_owned()).or_default().extend(words),
                None => drop(all.insert(name, words.collect())),
            }
        }
    }
    Ok(all)
}

/// The settings of a YAML file, by name.
pub(super) fn settings(text: &str, path: &Path) -> Result<BTreeMap<String, Value>> {
    let options = serde_saphyr::options! { with_snippet: false };
    let mut bytes = text.as_bytes();
    let parsed: Option<BTreeMap<String, Value>> = match serde_saphyr::read_with_options(&mut bytes, options).next() {
        None => None,
        Some(parsed) => parsed.map_err(|error| Error::malformed(format!("{}: {error}", path.display())))?,
    };
    Ok(parsed.unwrap_or_default())
}

fn microk8s(started: Started<'_>, tree: &Tree) -> Result<Vec<String>> {
    let Some(file) = started.flags(&["--kubelet-args-file"]).last().copied() else {
        return Err(Error::malformed(
            "kubelite runs without --kubelet-args-file: the flags of its kubelet are unknown",
        ));
    };
    let text = tree.read(Path::new(file)).map_err(|error| error.context("MicroK8s' file with the kubelet's flags"))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(|line| expand(&line.replace('"', ""), started)).collect())
}

/// `$NAME` and `${NAME}` of the environment that the process was started with; others stay as they are.
fn expand(text: &str, started: Started<'_>) -> String {
    let mut parts = text.split('$');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = match part.strip_prefix('{').and_then(|braced| braced.split_once('}')) {
            Some(braced) => braced,
            None => part.split_at(part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(part.len())),
        };
        match started.variable(name) {
            Some(value) => out.extend([value, rest]),
            None => out.extend(["$", part]),
        }
    }
    out
}

/// What is not there is nothing.
pub(super) fn gone<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_gone() => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(embedder: Embedder, line: &str, environ: &[&str], tree: &Tree) -> Result<Option<Vec<String>>> {
        let argv: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let environ: Vec<String> = environ.iter().map(|&variable| variable.to_owned()).collect();
        arguments(embedder, Started { argv: &argv, environ: &environ }, tree)
    }

    const DROPIN: &str = "evictionHard: {imagefs.available: 5%, nodefs.available: 5%}";

    #[test]
    fn k3s_as_it_comes() {
        let (_dir, tree) = Tree::recorded(&[
            ("var/lib/rancher/k3s/agent/kubelet.kubeconfig", ""),
            ("var/lib/rancher/k3s/agent/etc/kubelet.conf.d/00-k3s-defaults.conf", DROPIN),
        ]);
        let expected = [
            "--config-dir=/var/lib/rancher/k3s/agent/etc/kubelet.conf.d",
            "--kubeconfig=/var/lib/rancher/k3s/agent/kubelet.kubeconfig",
            "--tls-cert-file=/var/lib/rancher/k3s/agent/serving-kubelet.crt",
        ];
        for line in ["/usr/local/bin/k3s agent", "/usr/local/bin/k3s server"] {
            assert_eq!(told(Embedder::K3s, line, &["PATH=/bin"], &tree).unwrap().unwrap(), expected);
        }
    }

    #[test]
    fn k3s_elsewhere_with_settings_of_its_own() {
        let (_dir, tree) = Tree::recorded(&[
            ("data/agent/kubelet.kubeconfig", ""),
            ("etc/rancher/k3s/config.yaml", "data-dir: /data\nnode-name: One\nkubelet-arg:\n  - max-pods=50\n"),
            ("etc/rancher/k3s/config.yaml.d/10-more.yaml", "kubelet-arg+: [\"eviction-hard=nodefs.available<7%\"]\n"),
            ("etc/rancher/k3s/config.yaml.d/README", "no: [yaml"),
        ]);
        let before_1_32 = told(Embedder::K3s, "k3s agent", &[], &tree).unwrap().unwrap();
        assert_eq!(
            before_1_32[3..],
            [
                "--container-runtime-endpoint=unix:///run/k3s/containerd/containerd.sock",
                "--hostname-override=One",
                "--max-pods=50",
                "--eviction-hard=nodefs.available<7%",
            ]
        );
        // What is on the command line, where it is not hidden, comes first; then the environment.
        let line = "k3s server --node-name=two --kubelet-arg=root-dir=/k --kubelet-arg v=2 -d /nowhere";
        assert_eq!(told(Embedder::K3s, line, &[], &tree).unwrap(), None, "a server without an agent");
        let line = "k3s server --node-name=two --kubelet-arg=root-dir=/k --kubelet-arg v=2";
        let both = told(Embedder::K3s, line, &["K3S_NODE_NAME=three", "K3S_DATA_DIR=/data"], &tree).unwrap().unwrap();
        assert_eq!(both[4..], ["--hostname-override=two", "--root-dir=/k", "--v=2"]);
        let (_dir, tree) = Tree::recorded(&[("etc/rancher/k3s/config.yaml", "data-dir: [")]);
        let error = told(Embedder::K3s, "k3s agent", &[], &tree).unwrap_err().to_string();
        assert!(error.contains("/etc/rancher/k3s/config.yaml"), "{error}");
    }

    #[test]
    fn microk8s() {
        let file = "--kubeconfig=${SNAP_DATA}/credentials/kubelet.config\n--root-dir=${SNAP_COMMON}/var/lib/kubelet\n\n\
                    # a word\n--eviction-hard=\"memory.available<100Mi,nodefs.available<1Gi\"\n\
                    --container-runtime-endpoint=$SNAP_COMMON/run/containerd.sock\n--v=$UNKNOWN\n";
        let (_dir, tree) = Tree::recorded(&[("var/snap/microk8s/7/args/kubelet", file)]);
        let environ = ["SNAP_DATA=/var/snap/microk8s/7", "SNAP_COMMON=/var/snap/microk8s/common"];
        let line = "/snap/microk8s/7/kubelite --kubelet-args-file=/var/snap/microk8s/7/args/kubelet --start-control-plane=true";
        assert_eq!(
            told(Embedder::MicroK8s, line, &environ, &tree).unwrap().unwrap(),
            [
                "--kubeconfig=/var/snap/microk8s/7/credentials/kubelet.config",
                "--root-dir=/var/snap/microk8s/common/var/lib/kubelet",
                "--eviction-hard=memory.available<100Mi,nodefs.available<1Gi",
                "--container-runtime-endpoint=/var/snap/microk8s/common/run/containerd.sock",
                "--v=$UNKNOWN",
            ]
        );
        for line in ["kubelite", "kubelite --kubelet-args-file=/nowhere"] {
            assert!(told(Embedder::MicroK8s, line, &environ, &tree).is_err(), "{line}");
        }
    }

    #[test]
    fn microshift() {
        let (_dir, tree) = Tree::recorded(&[]);
        let told = told(Embedder::MicroShift, "microshift run", &[], &tree).unwrap().unwrap();
        assert_eq!(told[0], "--config=/var/lib/microshift/resources/kubelet/config/config.yaml");
    }
}
