//! headroom-exporter: how far a node is from the failures that take it down while every dashboard is green.

pub mod apiserver;
pub mod catalog;
pub mod check_config;
pub mod client;
pub mod config;
pub mod doctor;
#[cfg(feature = "drill")]
pub mod drill;
pub mod error;
pub mod exposition;
pub mod heap;
pub mod host;
pub mod http;
pub mod humanize;
pub mod kubelet;
pub mod log;
pub mod metric;
pub mod modes;
pub mod printable;
pub mod probes;
pub mod report;
pub mod runtime;
pub mod scrape;
pub mod self_metrics;
pub mod services;
#[cfg(test)]
mod tests;
#[cfg(test)]
use tests as golden;
pub mod values;
pub mod verdict;
