//! The names of child objects and of the objects every installation has.

use md5::{Digest, Md5};

/// The namespace of Serving itself.
pub const SYSTEM_NAMESPACE: &str = "knative-serving";
/// The Service of the activator, in the system namespace.
pub const ACTIVATOR_SERVICE: &str = "activator-service";
/// The Service of the autoscaler, in the system namespace.
pub const AUTOSCALER_SERVICE: &str = "autoscaler";
/// The class of Ingresses that Ember's gateway implements.
pub const EMBER_INGRESS_CLASS: &str = "ember.ingress.networking.knative.dev";
/// The class of PodAutoscalers scaled by requests.
pub const KPA_CLASS: &str = "kpa.autoscaling.knative.dev";
/// The class of PodAutoscalers handed to a HorizontalPodAutoscaler.
pub const HPA_CLASS: &str = "hpa.autoscaling.knative.dev";
/// The sidecar's container.
pub const QUEUE_CONTAINER: &str = "queue-proxy";
/// The name a lone user container gets.
pub const USER_CONTAINER: &str = "user-container";
/// The Certificate, and its Secret, for traffic within the system.
pub const SERVING_CERT: &str = "serving-certs";

const LONGEST: usize = 63;
const MD5_LENGTH: usize = 32;
const HEAD: usize = LONGEST - MD5_LENGTH;

/// The name of a child: parent and suffix, with a hash in the middle where that would be longer than a DNS label.
///
/// Lengths count bytes; Kubernetes names are ASCII.
#[must_use]
pub fn child(parent: &str, suffix: &str) -> String {
    if parent.len() + suffix.len() <= LONGEST {
        return format!("{parent}{suffix}");
    }
    // A long suffix is hashed too; the parent alone, where the suffix can stand behind it in full.
    if suffix.len() < HEAD {
        let head = prefix(parent, HEAD - suffix.len());
        return format!("{head}{}{suffix}", md5_hex(&[parent]));
    }
    let mut name = format!("{}{}", prefix(parent, HEAD), md5_hex(&[parent, suffix]));
    name.push_str(prefix(suffix, LONGEST.saturating_sub(name.len())));
    name.trim_end_matches(|last: char| !last.is_ascii_alphanumeric()).to_owned()
}

/// The Revision that a generation of a Configuration makes.
#[must_use]
pub fn revision(configuration: &str, generation: i64) -> String {
    child(configuration, &format!("-{generation:05}"))
}

/// The Deployment of a Revision.
#[must_use]
pub fn deployment(revision: &str) -> String {
    child(revision, "-deployment")
}

/// The Image of one of a Revision's containers.
#[must_use]
pub fn image_cache(revision: &str, container: &str) -> String {
    child(&child(revision, "-cache"), &format!("-{container}"))
}

/// The PodAutoscaler of a Revision. ServerlessService, public Service and Metric have the same name.
#[must_use]
pub fn pod_autoscaler(revision: &str) -> String {
    revision.to_owned()
}

/// The private Service of a ServerlessService.
#[must_use]
pub fn private_service(serverless_service: &str) -> String {
    child(serverless_service, "-private")
}

/// The Ingress of a Route or a DomainMapping.
#[must_use]
pub fn ingress(parent: &str) -> String {
    child(parent, "")
}

fn prefix(text: &str, length: usize) -> &str {
    text.get(..length.min(text.len())).unwrap_or(text)
}

fn md5_hex(parts: &[&str]) -> String {
    let mut hash = Md5::new();
    for part in parts {
        hash.update(part.as_bytes());
    }
    hex::encode(hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    #[test]
    fn golden_childname() {
        let cases = golden::cases("childname");
        let failures: Vec<String> = cases
            .iter()
            .filter_map(|case| {
                let text = |key: &str| case[key].as_str().unwrap_or_default();
                let got = child(text("parent"), text("suffix"));
                (got != text("expect")).then(|| format!("{case}: got {got}"))
            })
            .collect();
        golden::report("childname", cases.len(), &failures);
    }

    #[test]
    fn the_contracts_private_services() {
        let name = |letters: usize| private_service(&"a".repeat(letters));
        assert_eq!(name(55), format!("{}-private", "a".repeat(55)));
        assert_eq!(name(56), "aaaaaaaaaaaaaaaaaaaaaaa3b0c8ac703f828b04c6c197006d17218-private");
    }

    proptest::proptest! {
        #[test]
        fn a_child_is_a_label_long_at_most(parent in "[a-z0-9.-]{0,120}", suffix in "[a-z0-9-]{0,80}") {
            let name = child(&parent, &suffix);
            assert!(name.len() <= LONGEST, "{name}");
            if parent.len() + suffix.len() <= LONGEST {
                assert_eq!(name, format!("{parent}{suffix}"));
            }
        }
    }

    #[test]
    fn generations_have_at_least_five_digits() {
        assert_eq!(revision("hello", 1), "hello-00001");
        assert_eq!(revision("hello", 123_456), "hello-123456");
    }
}
