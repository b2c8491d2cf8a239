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
use crate::owner::{controller_ref, is_controlled_by};
use crate::plan::EventText;

/// What there is of the certificate. All `None` where system traffic is not encrypted.
#[derive(Clone, Debug, Default)]
pub(crate) struct SystemCertificate {
    pub(crate) namespace: Option<Namespace>,
    pub(crate) certificate: Option<Arc<Certificate>>,
    pub(crate) secret: Option<Secret>,
}

/// The Certificate for the Revision's namespace, which owns it.
pub(super) fn desired(revision: &Revision, observed: &SystemCertificate, configs: &Configs) -> Certificate {
    let namespace = revision.namespace().unwrap_or_default();
    let class = annotations::lookup(revision.annotations(), annotations::CERTIFICATE_CLASS)
        .map_or_else(|| configs.network.default_certificate_class.clone(), |(_, class)| class.to_owned());
    let class_key = annotations::CERTIFICATE_CLASS[0];
    let kind = (labels::CERTIFICATE_TYPE.to_owned(), labels::CERTIFICATE_SYSTEM_INTERNAL.to_owned());
    Certificate {
        metadata: ObjectMeta {
            name: Some(names::SERVING_CERT.to_owned()),
            namespace: Some(namespace.clone()),
            annotations: Some(BTreeMap::from([(class_key.to_owned(), class)])),
            labels: Some(BTreeMap::from([kind])),
            owner_references: observed.namespace.as_ref().map(|namespace| vec![controller_ref(namespace)]),
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
    pub(super) error: &'static str,
}

/// The write that makes the Certificate what is desired, if it is not.
///
/// # Errors
/// There is a Certificate of that name that is not the namespace's.
pub(super) fn write(observed: &SystemCertificate, desired: Certificate) -> Result<Option<Write>, String> {
    let name = format!("{}/{}", desired.namespace().unwrap_or_default(), desired.name_any());
    let Some(live) = &observed.certificate else {
        return Ok(Some(Write {
            action: Action::create(&desired),
            done: EventText::normal("Created", format!("Created Certificate {name}")),
            failed: ("CreationFailed", format!("Failed to create Certificate {name}")),
            error: "failed to create Certificate",
        }));
    };
    let owned = observed.namespace.as_ref().is_some_and(|owner| is_controlled_by(&live.metadata, owner));
    if !owned {
        let owner = desired.namespace().unwrap_or_default();
        let text = format!(
            "notowned: owner: {owner} with Type *v1.Namespace does not own Certificate: {:?}",
            desired.name_any()
        );
        return Err(text);
    }
    let same = live.spec == desired.spec
        && live.annotations() == desired.annotations()
        && live.labels() == desired.labels();
    if same {
        return Ok(None);
    }
    let mut next = (**live).clone();
    next.spec = desired.spec;
    next.metadata.annotations = desired.metadata.annotations;
    next.metadata.labels = desired.metadata.labels;
    Ok(Some(Write {
        action: Action::update(&next),
        done: EventText::normal("Updated", format!("Updated Spec for Certificate {name}")),
        failed: ("UpdateFailed", format!("Failed to update Spec for Certificate {name}")),
        error: "failed to update Certificate",
    }))
}

/// Checks that the certificate has been issued.
///
/// # Errors
/// Which part of it is missing.
pub(super) fn check_secret(revision: &Revision, observed: &SystemCertificate) -> Result<(), String> {
    let name = format!("{}/{}", revision.namespace().unwrap_or_default(), names::SERVING_CERT);
    let Some(secret) = &observed.secret else {
        return Err(format!("secret {name} is not ready yet: secret could not be found"));
    };
    let has = |key: &str| secret.data.as_ref().is_some_and(|data| data.contains_key(key));
    for (key, part) in [("tls.crt", "public cert"), ("tls.key", "private key")] {
        if !has(key) {
            return Err(format!("certificate in secret {name} is not ready yet: {part} not found"));
        }
    }
    Ok(())
}
