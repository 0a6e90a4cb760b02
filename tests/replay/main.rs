//! What pages: every incident replayed, and the rules, the verdicts and the dashboards held to a real Prometheus.

#[macro_use]
#[path = "../common/mod.rs"]
mod common;
#[path = "../testbed/mod.rs"]
mod testbed;

mod alertmanager;
mod alerts;
mod dashboards;
mod incidents;
mod scrape;
mod server;
mod verdict;

/// The second processes of the test bed.
#[test]
fn helper() {
    testbed::helper();
}
