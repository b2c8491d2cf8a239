//! The sidecar of every Knative pod: counts and limits concurrency, probes, drains.
