//! Knative Serving's API: types, conditions, defaulting, validation, configuration.
