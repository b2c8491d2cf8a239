//! The embedded Kubernetes-style API server: store, watch, patch, discovery, tables.
