//! Rules for traffic splits.

use std::collections::HashMap;

use super::metadata::listed;
use crate::field_error::FieldError;
use crate::golang::quote;
use crate::serving::v1::TrafficTarget;
use crate::syntax;

/// What the split belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// A Service, which has one Configuration.
    Service,
    /// A Route, which has to name Configurations.
    Route,
}

pub(super) fn list(traffic: &[TrafficTarget], owner: Owner) -> FieldError {
    let mut errors = FieldError::none();
    let mut tags: HashMap<&str, usize> = HashMap::new();
    let mut sum = 0_i64;
    for (index, target) in traffic.iter().enumerate() {
        errors.add(self::target(target, owner).via_index(index));
        sum = sum.saturating_add(target.percent.unwrap_or_default());
        if target.tag.is_empty() {
            continue;
        }
        let problems = syntax::dns1035_label(&target.tag);
        if !problems.is_empty() {
            let value = format!("not a DNS 1035 label: {}", listed(&problems));
            errors.add(FieldError::invalid_array_value(value, "tag", index));
        }
        match tags.get(target.tag.as_str()) {
            Some(first) => {
                let paths = [format!("[{index}].tag"), format!("[{first}].tag")];
                let message = format!("Multiple definitions for {}", quote(&target.tag));
                errors.add(FieldError::generic(message, &[&paths[0], &paths[1]]));
            }
            None => {
                tags.insert(&target.tag, index);
            }
        }
    }
    if sum != 100 {
        errors.add(FieldError::generic(format!("Traffic targets sum to {sum}, want 100"), &[""]));
    }
    errors
}

fn target(target: &TrafficTarget, owner: Owner) -> FieldError {
    let mut errors = FieldError::none();
    let pinned = !target.revision_name.is_empty();
    if let Some(latest) = target.latest_revision.filter(|latest| *latest == pinned) {
        let name = quote(&target.revision_name);
        let message = format!("may not set revisionName {name} when latestRevision is {latest}");
        errors.add(FieldError::generic(message, &["latestRevision"]));
    }
    let configured = !target.configuration_name.is_empty();
    if owner == Owner::Service && configured {
        errors.add(FieldError::disallowed(&["configurationName"]));
    } else if pinned && configured {
        errors.add(FieldError::multiple_one_of(&["revisionName", "configurationName"]));
    } else if pinned {
        errors.add(qualified_name(&target.revision_name, "revisionName"));
    } else if configured {
        errors.add(qualified_name(&target.configuration_name, "configurationName"));
    } else if owner == Owner::Route {
        errors.add(FieldError::missing_one_of(&["revisionName", "configurationName"]));
    }
    if let Some(percent) = target.percent.filter(|percent| !(0..=100).contains(percent)) {
        errors.add(FieldError::out_of_bounds(percent, 0, 100, "percent"));
    }
    if target.url.as_ref().is_some_and(|url| !url.is_empty()) {
        errors.add(FieldError::disallowed(&["url"]));
    }
    errors
}

fn qualified_name(name: &str, field: &str) -> FieldError {
    let problems = syntax::qualified_name(name);
    if problems.is_empty() {
        return FieldError::none();
    }
    FieldError::invalid_key_name(name, field).with_details(problems.join(", "))
}
