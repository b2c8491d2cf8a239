//! What is left in a Namespace that is being deleted, as conditions of its status.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::NamespaceCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// What holds a Namespace back: how many objects of each resource (`plural.group`), and how many with each finalizer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Remaining {
    pub resources: BTreeMap<String, usize>,
    pub finalizers: BTreeMap<String, usize>,
}

/// The conditions that say so, in the words of a cluster. What has not changed keeps its time.
pub(crate) fn conditions(
    remaining: &Remaining,
    old: &[NamespaceCondition],
    now: Timestamp,
) -> Vec<NamespaceCondition> {
    let list = |counts: &BTreeMap<String, usize>, words: &str| {
        let parts: Vec<String> =
            counts.iter().map(|(name, count)| format!("{name} {words} {count} resource instances")).collect();
        parts.join(", ")
    };
    let content = if remaining.resources.is_empty() {
        ("False", "ContentRemoved", "All content successfully removed".to_owned())
    } else {
        let text = format!("Some resources are remaining: {}", list(&remaining.resources, "has"));
        ("True", "SomeResourcesRemain", text)
    };
    let finalizers = if remaining.finalizers.is_empty() {
        ("False", "ContentHasNoFinalizers", "All content-preserving finalizers finished".to_owned())
    } else {
        let left = list(&remaining.finalizers, "in");
        let text = format!("Some content in the namespace has finalizers remaining: {left}");
        ("True", "SomeFinalizersRemain", text)
    };
    let made = |type_: &str, (status, reason, message): (&str, &str, String)| {
        let before = old.iter().find(|c| c.type_ == type_ && c.status == status);
        NamespaceCondition {
            last_transition_time: Some(
                before.and_then(|c| c.last_transition_time.clone()).unwrap_or(Time(now)),
            ),
            message: Some(message),
            reason: Some(reason.to_owned()),
            status: status.to_owned(),
            type_: type_.to_owned(),
        }
    };
    vec![made("NamespaceContentRemaining", content), made("NamespaceFinalizersRemaining", finalizers)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_count_what_is_left_and_keep_their_time() {
        let remaining = Remaining {
            resources: [("pods.".to_owned(), 2)].into(),
            finalizers: [("a/b".to_owned(), 1)].into(),
        };
        let first = conditions(&remaining, &[], Timestamp::UNIX_EPOCH);
        let text = |at: usize| first[at].message.clone().unwrap();
        assert_eq!(text(0), "Some resources are remaining: pods. has 2 resource instances");
        assert_eq!(
            text(1),
            "Some content in the namespace has finalizers remaining: a/b in 1 resource instances"
        );
        let later = Timestamp::from_second(9).unwrap();
        assert_eq!(conditions(&remaining, &first, later), first);
        let done = conditions(&Remaining::default(), &first, later);
        assert!(done.iter().all(|c| c.status == "False" && c.last_transition_time == Some(Time(later))));
    }
}
