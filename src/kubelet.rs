//! What the kubelet was told, how it computes, and how it names things.

pub mod cgroup_name;
pub mod kubepods;
