//! Resources without objects: reviews, which are answered and forgotten, and kinds that are refused with advice.

use bytes::Bytes;
use http::{Method, request::Parts};
use serde_json::Value;

use crate::api::Caller;
use crate::decode;
use crate::review::{self, Question};
use crate::status::ApiError;

/// What is done with a request for such a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Treatment {
    Review(Question),
    Refusal,
}

/// One resource type without objects.
#[derive(Debug)]
pub(crate) struct Unstored {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub namespaced: bool,
    pub verbs: &'static [&'static str],
    treatment: Treatment,
}

impl Unstored {
    const fn review(
        group: &'static str,
        kind: &'static str,
        plural: &'static str,
        singular: &'static str,
        question: Question,
    ) -> Self {
        Self {
            group,
            version: "v1",
            kind,
            plural,
            singular,
            short_names: &[],
            namespaced: false,
            verbs: &["create"],
            treatment: Treatment::Review(question),
        }
    }

    /// Listed in discovery, so that clients come here and hear what to do instead of "no matches for kind".
    const fn horizontal_pod_autoscaler(version: &'static str) -> Self {
        Self {
            group: "autoscaling",
            version,
            kind: "HorizontalPodAutoscaler",
            plural: "horizontalpodautoscalers",
            singular: "horizontalpodautoscaler",
            short_names: &["hpa"],
            namespaced: true,
            // No "list" and "watch": controllers that follow everything there is are not to wait for these.
            verbs: &["create", "get"],
            treatment: Treatment::Refusal,
        }
    }
}

/// Every resource without objects, grouped by API group in the order of discovery; the preferred version comes first.
pub(crate) static UNSTORED: [Unstored; 5] = [
    Unstored::review(
        "authentication.k8s.io",
        "SelfSubjectReview",
        "selfsubjectreviews",
        "selfsubjectreview",
        Question::Identity,
    ),
    Unstored::review(
        "authorization.k8s.io",
        "SelfSubjectAccessReview",
        "selfsubjectaccessreviews",
        "selfsubjectaccessreview",
        Question::Access,
    ),
    Unstored::review(
        "authorization.k8s.io",
        "SelfSubjectRulesReview",
        "selfsubjectrulesreviews",
        "selfsubjectrulesreview",
        Question::Rules,
    ),
    Unstored::horizontal_pod_autoscaler("v2"),
    Unstored::horizontal_pod_autoscaler("v1"),
];

const NO_AUTOSCALERS: &str = "nothing here runs HorizontalPodAutoscalers, so they are not kept: let Knative scale the \
    revision by its own metrics (annotations autoscaling.knative.dev/class: kpa.autoscaling.knative.dev, /metric, \
    /target, /min-scale and /max-scale), or set the scale of a Deployment with kubectl scale";

/// The resource that the segments after `/apis/{group}/{version}` are about, if it is one of these.
fn find(group: &str, version: &str, segments: &[&str]) -> Option<&'static Unstored> {
    let (namespaced, plural) = match segments {
        ["namespaces", _, plural, ..] => (true, plural),
        [plural, ..] => (false, plural),
        [] => return None,
    };
    UNSTORED.iter().find(|r| {
        r.group == group && r.version == version && r.plural == *plural && (r.namespaced || !namespaced)
    })
}

/// The answer to a request for one of these resources; `None` when it is about something else.
///
/// # Errors
/// 404 with advice for a kind that is refused; 400, 405, 415 and 422 for what is no review.
pub(crate) fn answer(
    (group, version, segments): (&str, &str, &[&str]),
    parts: &Parts,
    body: &Bytes,
    caller: &Caller,
) -> Option<Result<Value, ApiError>> {
    let resource = find(group, version, segments)?;
    let Treatment::Review(question) = resource.treatment else {
        return Some(Err(ApiError::refused(NO_AUTOSCALERS)));
    };
    if segments.len() != 1 {
        return Some(Err(ApiError::no_such_path()));
    }
    if parts.method != Method::POST {
        return Some(Err(ApiError::method_not_allowed()));
    }
    let read = decode::encoding(&parts.headers).and_then(|encoding| decode::parse(body, encoding));
    Some(read.and_then(|(value, _)| review::answer(question, resource, value, &caller.user)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_kinds_are_found_wherever_they_would_be() {
        for segments in [
            &["horizontalpodautoscalers"][..],
            &["namespaces", "n", "horizontalpodautoscalers"],
            &["namespaces", "n", "horizontalpodautoscalers", "a", "status"],
        ] {
            assert!(find("autoscaling", "v2", segments).is_some(), "{segments:?}");
        }
        assert!(find("autoscaling", "v3", &["horizontalpodautoscalers"]).is_none());
        assert!(
            find("authorization.k8s.io", "v1", &["namespaces", "n", "selfsubjectaccessreviews"]).is_none()
        );
    }
}
