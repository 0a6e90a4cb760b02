//! The apiserver's side in a network of two namespaces, where each fault is made for real. Root.

#[macro_use]
#[path = "../common/mod.rs"]
mod common;
#[path = "../testbed/mod.rs"]
mod testbed;

mod faults;
mod leaks;
mod testbed_alone;
mod ways;
mod ways_alone;

/// The second processes of the test bed.
#[test]
fn helper() {
    testbed::helper();
}
