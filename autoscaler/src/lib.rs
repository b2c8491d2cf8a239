//! The Knative Pod Autoscaler: metric windows, decisions, scale to zero.

pub mod bucket;
pub mod collection;
pub mod config;
pub mod decider;
pub mod pods;
pub mod sample_size;
pub mod scaler;
mod scrape_client;
pub mod scraper;
pub mod stat;
pub mod stat_server;
pub mod time;
pub mod window;
#[cfg(test)]
mod golden;
