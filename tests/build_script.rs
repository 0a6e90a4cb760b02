//! The tests of `build.rs`, which cargo does not run itself.
#![allow(dead_code, reason = "its main is cargo's to call")]
#![allow(clippy::print_stdout, reason = "that is how a build script talks to cargo")]

#[path = "../build.rs"]
mod build_script;
