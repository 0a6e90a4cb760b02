//! headroom-exporter: how far a node is from the failures that take it down while every dashboard is green.

pub mod error;
pub mod host;
pub mod kubelet;
pub mod metric;
pub mod modes;
