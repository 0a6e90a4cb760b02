//! What a release is made of: the image and the archive, built and run. Root and `buildah`.
//!
//! A binary of its own, because an optimised build takes both processors for minutes: nothing that is timed runs beside
//! it.

#[macro_use]
#[path = "../common/mod.rs"]
mod common;

mod built;
