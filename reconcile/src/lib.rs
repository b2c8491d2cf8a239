//! What every control loop shares: caches, work queue, the applier of plans, typed ConfigMap snapshots.
