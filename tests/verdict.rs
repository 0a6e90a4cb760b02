//! The evaluator of the alert rules, held to the rules' own cases for promtool, to Prometheus itself, and to recorded nodes.
#![allow(clippy::disallowed_methods, reason = "tests look at the source with their own eyes")]

mod common;

#[path = "verdict/cases.rs"]
mod cases;
#[path = "verdict/node.rs"]
mod node;
#[path = "verdict/promtool.rs"]
mod promtool;
#[path = "verdict/recorded.rs"]
mod recorded;
#[path = "verdict/series.rs"]
mod series;
#[path = "verdict/situations.rs"]
mod situations;
