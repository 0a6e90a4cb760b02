//! What the modes share: each service looks at one thing, at most once a scrape, whoever asks.

pub mod node_filesystems;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::apiserver::{self, Apiserver};
use crate::host::{Deadline, Host};
use crate::kubelet;
use crate::kubelet::handle::Kubelet;
use crate::kubelet::kubepods::{self, Kubepods};
use crate::metric::{Metric, Samples, Unit};
use crate::runtime::{self, Runtime};
use node_filesystems::NodeFilesystems;

/// Whether more than pods is at stake. It is the node's and no mode's: alerts of six modes ask for it.
pub static CONTROL_PLANE: Metric = Metric::gauge(
    "headroom_control_plane",
    Unit::None,
    &[],
    "1 if a control plane runs on this machine: kube-apiserver or etcd, or a program that has them inside. A new one \
     is seen within a minute.\n\n\
     The machine's own processes or static pods; k3s server, MicroK8s and MicroShift have them inside. What takes \
     this node down may take the cluster down.",
);

/// Whether what is said of the kubelet is said of one that runs.
pub static KUBELET_RUNNING: Metric = Metric::gauge(
    "headroom_kubelet_running",
    Unit::None,
    &[],
    "1 if the kubelet runs, 0 if it does not. Missing if none was seen since the exporter started.\n\n\
     While it is 0, the kubelet's last known configuration, root directory and node name count.",
);

/// Which kubelet the arithmetic is that of.
pub static KUBELET_INFO: Metric = Metric::info(
    "headroom_kubelet_info",
    &["version"],
    "The kubelet's version, from this node's object or --kubelet.version. Missing while it is unknown.\n\n\
     Defaults and arithmetic follow it. While it is unknown, defaults are those of 1.36, and memory.available on \
     cgroup v2 is the lower of two.",
);

/// Whether what several modes could not read is the runtime's doing: alerts on the exporter itself ask for it.
pub static RUNTIME_UP: Metric = Metric::gauge(
    "headroom_runtime_up",
    Unit::None,
    &[],
    "1 if the container runtime answered when a collector last asked it, 0 if it did not. Absent without a runtime, with --no-runtime, and where we may not ask it.",
);

/// The metrics that are on the page whatever mode is off.
pub static METRICS: &[&Metric] = &[&CONTROL_PLANE, &KUBELET_INFO, &KUBELET_RUNNING, &RUNTIME_UP];

/// How each is found and asked.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The kubelet.
    pub kubelet: kubelet::handle::Settings,
    /// The cgroups of pods.
    pub kubepods: kubepods::Settings,
    /// The apiserver.
    pub apiserver: apiserver::Settings,
    /// The container runtime.
    pub runtime: runtime::Settings,
}

/// One handle each. A clone shares them.
#[derive(Clone, Debug, Default)]
pub struct Services {
    /// The kubelet of this node.
    pub kubelet: Kubelet,
    /// The cgroups of its pods.
    pub kubepods: Kubepods,
    /// The container runtime.
    pub runtime: Runtime,
    /// The file systems that the kubelet evicts for.
    pub filesystems: NodeFilesystems,
    /// The apiserver that modes may ask, over one connection.
    pub apiserver: Apiserver,
}

/// The directory of this node's kubelet, if one runs or ran here, or somebody named it. Blocks, for a second at the
/// most.
pub fn kubelet_root(kubelet: &Kubelet, host: &Host) -> Option<PathBuf> {
    const PATIENCE: Duration = Duration::from_secs(1);
    let look = kubelet.look(host, Deadline::after(PATIENCE), Instant::now()).ok()?;
    look.names_root_dir().then(|| look.root_dir().ok()).flatten()
}

impl Services {
    /// Services that find and ask as they are told here. None of them does anything before it is asked.
    pub fn new(settings: Settings) -> Self {
        let kubelet = Kubelet::new(settings.kubelet);
        let runtime = Runtime::of_kubelet(settings.runtime, kubelet.clone());
        let kubepods = Kubepods::new(settings.kubepods);
        let apiserver = Apiserver::new(settings.apiserver);
        Services { kubelet, kubepods, runtime, apiserver, ..Services::default() }
    }

    /// The default services with a kubelet that is found and asked like this, for tests.
    pub fn with_kubelet(settings: kubelet::handle::Settings) -> Self {
        Services { kubelet: Kubelet::new(settings), ..Services::default() }
    }

    /// The default services with cgroups of pods that are walked over like this, for tests.
    pub fn with_kubepods(settings: kubepods::Settings) -> Self {
        Services { kubepods: Kubepods::new(settings), ..Services::default() }
    }

    /// The default services with this runtime, for tests.
    pub fn with_runtime(runtime: Runtime) -> Self {
        Services { runtime, ..Services::default() }
    }

    /// What the modes learned in asking. Asks nobody.
    pub fn learned(&self, samples: &mut Samples) {
        samples.push_some(&RUNTIME_UP, &[], self.runtime.answered().map(|answered| f64::from(u8::from(answered))));
    }

    /// What is known of the node itself. Blocks, so not from asynchronous code. What cannot be read is missing: the
    /// mode that needs the same source says why.
    pub fn samples(&self, host: &Host, deadline: Deadline, since: Instant) -> Samples {
        let mut samples = Samples::new();
        if let Some(version) = self.kubelet.version() {
            samples.info(&KUBELET_INFO, &[&version.to_string()]);
        }
        let Ok(look) = self.kubelet.look(host, deadline, since) else { return samples };
        let control_plane = look.found().ok().map(|found| found.control_plane);
        for (metric, is) in [(&CONTROL_PLANE, control_plane), (&KUBELET_RUNNING, look.runs())] {
            samples.push_some(metric, &[], is.map(|is| f64::from(u8::from(is))));
        }
        samples
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::error::{Error, Reason};
    use crate::golden::inventory::recorded;
    use crate::host::Roots;

    #[test]
    fn a_runtime_is_up_or_away_or_none_of_our_business() {
        let answer = Arc::new(Mutex::new(Err(Error::new(Reason::Timeout, "no answer before the deadline"))));
        let told = Arc::clone(&answer);
        let services = Services::with_runtime(Runtime::answering(move || told.lock().unwrap().clone()));
        let host = Host::new(Roots::default());
        let up = |answers| {
            *answer.lock().unwrap() = answers;
            let _ = services.runtime.inventory(&host, Deadline::after(Duration::from_secs(1)));
            let mut samples = Samples::new();
            services.learned(&mut samples);
            samples.value(&RUNTIME_UP, &[])
        };
        let mut samples = Samples::new();
        services.learned(&mut samples);
        assert_eq!(samples.value(&RUNTIME_UP, &[]), None, "nobody has asked");
        for reason in [Reason::Timeout, Reason::Vanished, Reason::Io, Reason::Malformed] {
            assert_eq!(up(Err(Error::new(reason, "away"))), Some(0.0), "{reason}");
        }
        for reason in [Reason::Absent, Reason::Denied] {
            assert_eq!(up(Err(Error::new(reason, "not ours"))), None, "{reason}");
        }
        assert_eq!(up(Ok(Arc::new(recorded("k8s-1.36-cgroupv1")))), Some(1.0));
    }
}
