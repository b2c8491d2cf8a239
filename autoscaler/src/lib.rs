//! The Knative Pod Autoscaler: metric windows, decisions, scale to zero.
