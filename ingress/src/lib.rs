//! The gateway: implements Knative's Ingress contract on the data-plane engine.
