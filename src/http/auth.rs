//! Who is let in: passwords of the web configuration file, tokens that the apiserver judges.

mod basic;
mod digest_cache;
pub(in crate::http) mod policy;
mod token_cache;
mod token_review;
