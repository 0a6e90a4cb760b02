//! What is installed: manifests, unit, quickstart, man pages, and the rights that each of them gives.
//! Root and the tools of `tests/deploy/tools.sh`.

#[macro_use]
#[path = "../common/mod.rs"]
mod common;

mod command;
mod manifests;
mod privileges;
mod quickstart;
mod systemd;
