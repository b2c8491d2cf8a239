//! Buffers requests for revisions without capacity and reports them to the autoscaler.
