//! The certificate with which queue-proxy serves encrypted traffic of the system: one for each namespace.

use std::collections::BTreeMap;
use std::sync::Arc;

use ember_api::networking::v1alpha1::{Certificate, CertificateSpec};
use ember_api::serving::v1::Revision;
use ember_api::{annotations, labels, names};
use ember_reconcile::apply::Action;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use crate::context::Configs;
use crate::metadata::same_maps;
use crate::owner::{controller_ref, is_controlled_by};
use crate::plan::EventText;

/// What there is of the certificate. What could not be read says why.
#[derive(Clone, Debug)]
pub(crate) struct SystemCertificate {
    /// The namespace, which owns the Certificate.
    pub(crate) namespace: Result<Namespace, String>,
    pub(crate) certificate: Option<Arc<Certificate>>,
    pub(crate) secret: Result<Option<Secret>, String>,
}

/// The Certificate for the Revision's namespace, which owns it.
pub(super) fn desired(revision: &Revision, owner: &Namespace, configs: &Configs) -> Certificate {
    let namespace = owner.name_any();
    let class = annotations::lookup(revision.annotations(), annotations::CERTIFICATE_CLASS)
        .filter(|(_, class)| !class.is_empty())
        .map_or_else(|| configs.network.default_certificate_class.clone(), |(_, class)| class.to_owned());
    let class_key = annotations::CERTIFICATE_CLASS[0];
    let kind = (labels::CERTIFICATE_TYPE.to_owned(), labels::CERTIFICATE_SYSTEM_INTERNAL.to_owned());
    Certificate {
        metadata: ObjectMeta {
            name: Some(names::SERVING_CERT.to_owned()),
            namespace: Some(namespace.clone()),
            annotations: Some(BTreeMap::from([(class_key.to_owned(), class)])),
            labels: Some(BTreeMap::from([kind])),
            owner_references: Some(vec![controller_ref(owner)]),
            ..ObjectMeta::default()
        },
        spec: CertificateSpec {
            dns_names: vec![
                format!("kn-user-{}", namespace.to_lowercase()),
                "data-plane.knative.dev".to_owned(),
            ],
            domain: String::new(),
            secret_name: names::SERVING_CERT.to_owned(),
        },
        status: None,
    }
}

/// A write of the Certificate and what is said of it.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) action: Action,
    /// The event of its success.
    pub(super) done: EventText,
    /// Reason and beginning of the message of the event of its failure.
    pub(super) failed: (&'static str, String),
    /// Beginning of the error of its failure.
    pub(super) error: String,
}

/// The write that makes the Certificate what is desired, if it is not.
///
/// # Errors
/// There is a Certificate of that name that is not the namespace's.
pub(super) fn write(
    live: Option<&Certificate>,
    owner: &Namespace,
    desired: Certificate,
) -> Result<Option<Write>, String> {
    let name = format!("{}/{}", desired.namespace().unwrap_or_default(), desired.name_any());
    let failed = |what: &str| format!("failed to reconcile Knative certificate {name}: {what}");
    let Some(live) = live else {
        return Ok(Some(Write {
            action: Action::create(&desired),
            done: EventText::normal("Created", format!("Created Certificate {name}")),
            failed: ("CreationFailed", format!("Failed to create Certificate {name}")),
            error: failed("failed to create Certificate"),
        }));
    };
    if !is_controlled_by(&live.metadata, owner) {
        return Err(failed(&format!(
            "notowned: owner: {} with Type *v1.Namespace does not own Certificate: {:?}",
            owner.name_any(),
            desired.name_any()
        )));
    }
    if live.spec == desired.spec && same_maps(&live.metadata, &desired.metadata) {
        return Ok(None);
    }
    let mut next = live.clone();
    next.spec = desired.spec;
    next.metadata.annotations = desired.metadata.annotations;
    next.metadata.labels = desired.metadata.labels;
    Ok(Some(Write {
        action: Action::update(&next),
        done: EventText::normal("Updated", format!("Updated Spec for Certificate {name}")),
        failed: ("UpdateFailed", format!("Failed to update Certificate {name}")),
        error: failed("failed to update Certificate"),
    }))
}

/// Checks that the certificate has been issued.
///
/// # Errors
/// Which part of it is missing.
pub(super) fn check_secret(revision: &Revision, observed: &SystemCertificate) -> Result<(), String> {
    let name = format!("{}/{}", revision.namespace().unwrap_or_default(), names::SERVING_CERT);
    let secret = match &observed.secret {
        Ok(Some(secret)) => secret,
        Ok(None) => return Err(format!("secret {name} is not ready yet: secret could not be found")),
        Err(error) => return Err(format!("secret {name} is not ready yet: {error}")),
    };
    let has = |key: &str| secret.data.as_ref().is_some_and(|data| data.contains_key(key));
    for (key, part) in [("tls.crt", "public cert"), ("tls.key", "private key")] {
        if !has(key) {
            return Err(format!("certificate in secret {name} is not ready yet: {part} not found"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn namespace() -> Namespace {
        serde_json::from_value(json!({"metadata": {"name": "NS", "uid": "u"}})).expect("a Namespace")
    }

    #[test]
    fn the_namespace_owns_its_certificate_and_nobody_elses_is_taken() {
        let revision = Revision::default();
        let desired = desired(&revision, &namespace(), &Configs::default());
        assert_eq!(desired.spec.dns_names, ["kn-user-ns", "data-plane.knative.dev"]);
        let created = write(None, &namespace(), desired.clone()).expect("a plan").expect("a write");
        assert_eq!(created.done.message, "Created Certificate NS/serving-certs");
        assert!(write(Some(&desired), &namespace(), desired.clone()).expect("a plan").is_none());
        let foreign = Certificate { metadata: ObjectMeta::default(), ..desired.clone() };
        let error = write(Some(&foreign), &namespace(), desired).expect_err("not owned");
        assert_eq!(
            error,
            "failed to reconcile Knative certificate NS/serving-certs: notowned: owner: NS with Type \
             *v1.Namespace does not own Certificate: \"serving-certs\""
        );
    }

    #[test]
    fn both_parts_of_the_secret_are_waited_for() {
        let revision: Revision = serde_json::from_value(json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
            "metadata": {"name": "r", "namespace": "ns"}, "spec": {"containers": []}
        }))
        .expect("a Revision");
        let told = |secret: Result<Option<Secret>, String>| {
            let observed = SystemCertificate { namespace: Ok(namespace()), certificate: None, secret };
            check_secret(&revision, &observed)
        };
        let secret = |data| Ok(serde_json::from_value(json!({ "data": data })).ok());
        let error = |text: &str| Err(text.to_owned());
        assert_eq!(
            told(Ok(None)),
            error("secret ns/serving-certs is not ready yet: secret could not be found")
        );
        let part = "certificate in secret ns/serving-certs is not ready yet";
        assert_eq!(told(secret(json!({}))), Err(format!("{part}: public cert not found")));
        assert_eq!(told(secret(json!({"tls.crt": "YQ=="}))), Err(format!("{part}: private key not found")));
        assert_eq!(told(secret(json!({"tls.crt": "YQ==", "tls.key": "YQ=="}))), Ok(()));
    }
}
