//! Who may reach a Route's targets.

use std::collections::BTreeMap;

use ember_api::configmaps::Configs;
use ember_api::domains::{self, DomainError};
use ember_api::networking::v1alpha1::IngressVisibility;
use ember_api::serving::v1::Route;

use crate::metadata;

/// The visibility of targets by tag.
pub(super) type Visibility = BTreeMap<String, IngressVisibility>;

/// The visibility of every target: the label of a placeholder Service hides its target from the outside, label and
/// domain of the Route hide all. `label_of` gives the visibility label of the placeholder of a name.
pub(super) fn visibility<'a>(
    configs: &Configs,
    route: &Route,
    tags: impl IntoIterator<Item = &'a str>,
    label_of: impl Fn(&str) -> Option<String>,
) -> Result<Visibility, DomainError> {
    let name = route.metadata.name.as_deref().unwrap_or_default();
    let domain = configs.domain.for_labels(&metadata::labels(&route.metadata));
    let local = domain == configs.domain.cluster_local();
    let mut visibility = BTreeMap::new();
    for tag in tags {
        let placeholder = domains::hostname(&configs.network, name, tag)?;
        let hidden = local || label_of(&placeholder).is_some_and(|value| !value.is_empty());
        let seen = if hidden { IngressVisibility::ClusterLocal } else { IngressVisibility::ExternalIP };
        visibility.insert(tag.to_owned(), seen);
    }
    Ok(visibility)
}

/// The visibility of one target.
pub(super) fn of(visibility: &Visibility, tag: &str) -> IngressVisibility {
    visibility.get(tag).copied().unwrap_or_default()
}
