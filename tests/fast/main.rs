//! What a change is tested by within a minute: no root, no network but the loopback, no Debian package.
//! `tests/run --fast` runs these.

#[macro_use]
#[path = "../common/mod.rs"]
mod common;

mod alerts;
mod apiserver_client;
mod architecture;
#[allow(dead_code, reason = "its main is cargo's to call")]
#[allow(clippy::print_stdout, reason = "that is how a build script talks to cargo")]
#[path = "../../build.rs"]
mod build_script;
mod catalog;
mod check_config;
mod configz;
mod dashboards;
mod distributions;
mod eviction_configz;
mod eviction_node;
mod house;
mod links;
mod machine;
mod parity;
mod verdict;
mod versions;
