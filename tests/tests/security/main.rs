//! What `docs/security.md` says of one machine, point by point, at a real `ember up`.

#![expect(clippy::unwrap_used, reason = "a test may panic to fail")]

mod api;
mod app;
mod files;
mod gateway;
mod limits;
mod processes;
