//! Which images this machine can run.

use ember_controller::{DigestResolver, Lookup};
use ember_reconcile::cache::Key;

/// Nothing here pulls images: a service of another image than [`ember_node`]'s fails at once, in the words in which a
/// cluster tells that an image cannot be fetched, and not only when its progress deadline has passed.
#[derive(Debug)]
pub(crate) struct HostProgramsOnly;

impl DigestResolver for HostProgramsOnly {
    fn look_up(&self, _revision: &Key, image: &str) -> Lookup {
        Lookup::Failed(format!(
            "Unable to fetch image {image:?}: failed to resolve image to digest: this machine runs programs of its own, \
             as image dev.local/host with a command; it does not pull images"
        ))
    }

    fn forget(&self, _revision: &Key) {}
}
