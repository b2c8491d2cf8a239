//! Objects as the webhook would store them now: what was stored before a default existed is not to differ from what is
//! made today.

use ember_api::admission::Kind;
use ember_api::configmaps::Configs;
use ember_api::defaulting::{self, Context};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The object with the defaults that do not depend on an operation. It is the decision's own: it is never sent.
pub(crate) fn filled<K: Serialize + DeserializeOwned + Clone>(
    kind: Kind,
    object: &K,
    configs: &Configs,
) -> K {
    let context = Context { operation: None, old: None, user: None, configs };
    let filled = serde_json::to_value(object).ok().and_then(|mut value| {
        defaulting::default(kind, &mut value, context);
        serde_json::from_value(value).ok()
    });
    // The API has taken the object as one of its type, and defaults fit the type.
    filled.unwrap_or_else(|| object.clone())
}
