//! One copy of an object for all the caches of a process.
//!
//! In one process several components watch the same kinds. UID and resourceVersion say which state of which object is
//! meant: what one cache holds is given to the others instead of a copy for each.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock, Weak};

use kube::Resource;
use parking_lot::Mutex;

/// Those that are gone are looked for when there are twice as many as were left the last time, and so many more.
const SLACK: usize = 64;

static STATES: LazyLock<Mutex<States>> = LazyLock::new(Mutex::default);

/// The newest state of each object that some cache holds.
#[derive(Default)]
struct States {
    /// By a hash of type and UID, so that no keys are kept: what is found is compared.
    newest: HashMap<u64, Weak<dyn Any + Send + Sync>>,
    hasher: RandomState,
    left: usize,
}

/// The object as caches keep it: the copy that another cache has of this very state, or else one without spare room in
/// its strings and lists. `managedFields` are left out, which none of us reads; who writes an object without them
/// leaves them as they are.
pub(crate) fn shared<K>(mut object: K) -> Arc<K>
where
    K: Resource + Clone + Send + Sync + 'static,
{
    object.meta_mut().managed_fields = None;
    let (Some(uid), Some(version)) = (object.meta().uid.as_deref(), version(&object)) else {
        return Arc::new(object.clone());
    };
    let mut states = STATES.lock();
    let hash = states.hasher.hash_one((TypeId::of::<K>(), uid));
    let known = states.newest.get(&hash).and_then(Weak::upgrade).and_then(|known| known.downcast::<K>().ok());
    if let Some(known) = &known {
        let (mine, theirs) = (object.meta(), known.meta());
        let same = mine.uid == theirs.uid && mine.namespace == theirs.namespace && mine.name == theirs.name;
        match self::version(&**known) {
            Some(newest) if same && newest == version => return Arc::clone(known),
            // A cache that is behind is not there for long.
            Some(newest) if newest > version => return Arc::new(object.clone()),
            _ => {}
        }
    }
    let state = Arc::new(object.clone());
    let held: Arc<dyn Any + Send + Sync> = Arc::clone(&state) as _;
    states.newest.insert(hash, Arc::downgrade(&held));
    if states.newest.len() > 2 * states.left + SLACK {
        states.newest.retain(|_, state| state.strong_count() > 0);
        states.left = states.newest.len();
    }
    state
}

fn version<K: Resource>(object: &K) -> Option<u64> {
    object.meta().resource_version.as_deref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{ConfigMap, Secret};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    fn metadata(uid: &str, version: u64) -> ObjectMeta {
        ObjectMeta {
            uid: Some(uid.into()),
            resource_version: Some(version.to_string()),
            managed_fields: Some(Vec::new()),
            ..ObjectMeta::default()
        }
    }

    fn map(uid: &str, version: u64) -> ConfigMap {
        ConfigMap { metadata: metadata(uid, version), ..ConfigMap::default() }
    }

    #[test]
    fn the_same_state_is_one_copy() {
        let first = shared(map("same", 5));
        assert_eq!(first.metadata.managed_fields, None);
        assert!(Arc::ptr_eq(&first, &shared(map("same", 5))));
        // Another state, another object and another kind are not it.
        let second = shared(map("same", 6));
        assert!(!Arc::ptr_eq(&first, &second));
        assert!(!Arc::ptr_eq(&second, &shared(map("other", 6))));
        let secret = Secret { metadata: metadata("same", 6), ..Secret::default() };
        assert_eq!(shared(secret).metadata.resource_version.as_deref(), Some("6"));
        // One that is behind does not take the place of the newest.
        assert_eq!(shared(map("same", 5)).metadata.resource_version.as_deref(), Some("5"));
        assert!(Arc::ptr_eq(&second, &shared(map("same", 6))));
    }

    #[test]
    fn objects_without_identity_are_not_shared() {
        let anonymous = || ConfigMap { metadata: ObjectMeta::default(), ..ConfigMap::default() };
        assert!(!Arc::ptr_eq(&shared(anonymous()), &shared(anonymous())));
    }

    #[test]
    fn what_is_gone_is_let_go() {
        for n in 0..10_000 {
            drop(shared(map(&format!("gone-{n}"), 1)));
        }
        let held = STATES.lock().newest.len();
        assert!(held < 1_000, "{held}");
    }
}
