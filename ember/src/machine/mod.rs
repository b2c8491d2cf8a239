//! What this machine tells of itself: who listens where, which instances run.

pub(crate) mod instances;
pub(crate) mod listeners;
