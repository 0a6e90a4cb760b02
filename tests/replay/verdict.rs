//! The evaluator of the alert rules, held to Prometheus itself (`promtool`).
#![allow(clippy::disallowed_methods, reason = "tests look at the source with their own eyes")]

mod promtool;
mod situations;
