//! Knative's conformance tests of the API and of what a container gets, at `ember up`. They are named as upstream's;
//! those that need images of their own run a small program in Python instead.

#![expect(clippy::unwrap_used, reason = "a test may panic to fail")]

mod app;
mod constraints;
mod containers;
mod failures;
mod metadata;
mod names;
mod objects;
mod protocols;
mod revisions;
mod routes;
mod runtime;
mod services;
mod volumes;
