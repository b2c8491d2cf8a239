//! Reconcilers of Service, Configuration, Revision, Route and ServerlessService.
