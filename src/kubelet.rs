//! What the kubelet was told, and how it computes.
//!
//! Its numbers must come out of the same arithmetic here as there, so each piece is a pure function on texts, held
//! against what real kubelets did: [`quantity`] (Go's and Kubernetes' number formats), [`flags`] (its command line),
//! [`configuration`] (the precedence of its sources), [`thresholds`] (what they mean for eviction), [`signals`] (what
//! is compared with them), [`version`] (by which some of it goes). Only [`process`] (finding it), [`sources`] (reading
//! what it was told) and [`configz`] (asking it) touch the machine, and [`handle`] puts what they say together, once
//! for all modes; [`http2`] and [`proxy`] are about its connection to the apiserver.
//!
//! Paths like `cmd/kubelet/app/server.go:216` in comments are of the kubernetes/kubernetes repository at 1.36.

pub mod cgroup_name;
mod config_file;
pub mod configuration;
pub mod configz;
pub mod datastore;
pub mod embedded;
mod environ;
pub mod flags;
pub mod handle;
pub mod http2;
pub mod identity;
pub mod kubepods;
pub mod pod_places;
pub mod process;
pub mod provenance;
pub mod proxy;
pub mod quantity;
pub mod signals;
pub mod sources;
pub mod thresholds;
pub mod version;
