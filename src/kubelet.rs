//! x
pub mod quantity;
