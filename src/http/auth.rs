//! Who is let in: passwords of the web configuration file, tokens that the apiserver judges.

mod basic;
mod buckets;
mod digest_cache;
mod places;
pub(in crate::http) mod policy;
mod token_cache;
mod token_review;
