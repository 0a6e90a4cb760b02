//! The evaluator of the alert rules, held to the rules' own cases for promtool and to recorded nodes.
//! `replay/verdict.rs` holds it to Prometheus itself.
#![allow(clippy::disallowed_methods, reason = "tests look at the source with their own eyes")]

mod cases;
mod node;
