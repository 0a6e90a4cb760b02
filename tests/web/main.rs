//! The real binary as its users meet it: the web side asked by curl, Prometheus and a browser, and the doctor.

#[macro_use]
#[path = "../common/mod.rs"]
mod common;

mod doctor;
mod kubernetes;
mod landing;
mod limits;
mod server;
mod site;
mod tls;
