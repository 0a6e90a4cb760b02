//! The modes on the running kernel: real processes, sockets, cgroups, mounts and namespaces. Root; without it most say
//! SKIP.

#[macro_use]
#[path = "../common/mod.rs"]
mod common;

mod cgroup;
mod cni_leak;
mod configz;
mod drill;
mod eviction;
mod identity;
mod machine;
mod memory_volume;
mod open_files;
mod pod_interface;
mod runtime_sockets;
mod sockets;
mod stacked_interfaces;
mod system_filesystem;
mod task_limit;
mod tenants;
mod vm;
