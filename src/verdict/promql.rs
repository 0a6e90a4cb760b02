//! PromQL as Prometheus 3 evaluates it, and the templates of its alerts, over a store of our own samples.

pub(super) mod aggregate;
pub mod eval;
pub mod expression;
pub(super) mod functions;
pub(in crate::verdict) mod labels;
mod matching;
pub(in crate::verdict) mod store;
pub(in crate::verdict) mod template;
