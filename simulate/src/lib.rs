//! What a setting of the autoscaler would have done: its core, run over a trace of load on a clock of its own.
//!
//! [`trace`], [`azure`] and [`generator`] say how much load there is, [`setting`] what holds for the revision,
//! [`revision`] is one revision with its windows, decider, scaler and pods. What it lived through is a [`history`],
//! which [`table`], [`report`], [`chart`] and [`page`] show. The same input gives the same output.

pub mod azure;
pub mod chart;
pub mod generator;
pub mod history;
pub mod page;
mod recording;
pub mod report;
pub mod revision;
pub mod setting;
pub mod table;
pub mod trace;

pub use history::History;
pub use revision::simulate;
pub use setting::Setting;
pub use trace::Trace;
