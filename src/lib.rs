//! headroom-exporter: how far a node is from the failures that take it down while every dashboard is green.

pub mod about;
pub mod apiserver;
pub mod background;
pub mod catalog;
pub mod check_config;
pub mod config;
pub mod credentials;
pub mod doctor;
#[cfg(feature = "drill")]
pub mod drill;
pub mod error;
pub mod exposition;
#[cfg(test)]
mod golden;
pub mod host;
pub mod http;
pub mod kubelet;
pub mod metric;
pub mod modes;
pub mod report;
pub mod runtime;
pub mod scrape;
pub mod verdict;
