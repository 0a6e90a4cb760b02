//! Beside real container runtimes: Debian's containerd and Docker. Root.

#[macro_use]
#[path = "../common/mod.rs"]
mod common;

mod churn;
mod cni_leak;
mod cri;
mod docker;
mod fake;
mod full_run;
mod page;
