//! The Certificates that a Route's hosts need.

use std::collections::BTreeMap;

use ember_api::configmaps::Configs;
use ember_api::networking::v1alpha1::{Certificate, CertificateSpec, IngressTls};
use ember_api::serving::v1::Route;
use ember_api::{annotations, labels};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::metadata;
use crate::owner::controller_ref;
use crate::route::ingress::is_excluded_annotation;

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Hosts that the outside reaches.
    External,
    /// Hosts within the cluster.
    ClusterLocal,
}

impl Scope {
    /// The value of the certificate-type label.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::External => labels::CERTIFICATE_EXTERNAL_DOMAIN,
            Self::ClusterLocal => labels::CERTIFICATE_CLUSTER_LOCAL_DOMAIN,
        }
    }
}

/// The Certificate of the target `tag` for `hosts`, which are all under `domain`.
pub(crate) fn certificate(
    configs: &Configs,
    route: &Route,
    tag: &str,
    hosts: Vec<String>,
    domain: String,
    scope: Scope,
) -> Certificate {
    let own = metadata::annotations(&route.metadata);
    let class = annotations::lookup(&own, annotations::CERTIFICATE_CLASS)
        .filter(|(_, class)| !class.is_empty())
        .map_or(configs.network.default_certificate_class.as_str(), |(_, v)| v);
    let mut all = BTreeMap::from([(annotations::CERTIFICATE_CLASS[0].to_owned(), class.to_owned())]);
    all.extend(own.clone());
    all.retain(|key, _| !is_excluded_annotation(key));
    let name = name(route, tag, scope);
    Certificate {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: route.metadata.namespace.clone(),
            labels: Some(BTreeMap::from([
                (labels::ROUTE.to_owned(), route.metadata.name.clone().unwrap_or_default()),
                (labels::CERTIFICATE_TYPE.to_owned(), scope.as_str().to_owned()),
            ])),
            annotations: Some(all),
            owner_references: Some(vec![controller_ref(route)]),
            ..ObjectMeta::default()
        },
        spec: CertificateSpec { dns_names: hosts, domain, secret_name: name },
        status: None,
    }
}

fn name(route: &Route, tag: &str, scope: Scope) -> String {
    let uid = route.metadata.uid.as_deref().unwrap_or_default();
    let mut name = format!("route-{uid}");
    if !tag.is_empty() {
        name.push_str(&format!("-{}", adler32(tag)));
    }
    if scope == Scope::ClusterLocal {
        name.push_str("-local");
    }
    name
}

fn adler32(text: &str) -> u32 {
    let (a, b) = text.bytes().fold((1_u32, 0_u32), |(a, b), byte| {
        let a = (a + u32::from(byte)) % 65521;
        (a, (b + a) % 65521)
    });
    b << 16 | a
}

/// The Ingress's use of a certificate for `hosts`.
pub(crate) fn ingress_tls(certificate: &Certificate, hosts: &[String]) -> IngressTls {
    IngressTls {
        hosts: hosts.to_vec(),
        secret_name: certificate.spec.secret_name.clone(),
        secret_namespace: certificate.metadata.namespace.clone().unwrap_or_default(),
    }
}

/// Whether a wildcard certificate holds for all of `hosts`.
pub(crate) fn covers(wildcard: &Certificate, hosts: &[String]) -> bool {
    hosts.iter().all(|host| {
        host.split_once('.').is_some_and(|(_, parent)| {
            let parents = wildcard.spec.dns_names.iter().filter_map(|name| name.split_once('.'));
            parents.map(|(_, of_name)| of_name).any(|of_name| of_name == parent)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::adler32;

    #[test]
    fn adler32_is_the_well_known_checksum() {
        assert_eq!(adler32("t"), 7_667_829);
        assert_eq!(adler32("Wikipedia"), 0x11E6_0398);
    }
}
