//! The registry: which resources are served, and how each is named, scoped and kept.

use crate::unstored::UNSTORED;

/// What an acknowledged write of a resource has survived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Declared intent: on disk before it is acknowledged. Its status is logged behind.
    Intent,
    /// Made by controllers: acknowledged from memory and logged behind.
    Behind,
    /// Describes this run of the process only: never written.
    Memory,
}

/// The grammar of `metadata.name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameRule {
    Subdomain,
    Label,
    Label1035,
}

/// One served resource type.
#[derive(Debug)]
pub(crate) struct Resource {
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    pub status: bool,
    pub scale: bool,
    /// Served as a CRD would be: structural schema, no strategic merge patch, updates need a resourceVersion.
    pub custom: bool,
    /// `metadata.generation` counts the changes of everything but metadata and status.
    pub generation: bool,
    /// An update may leave out `metadata.resourceVersion`.
    pub unconditional_update: bool,
    pub durability: Durability,
    pub name_rule: NameRule,
}

impl Resource {
    const fn core(
        group: &'static str,
        kind: &'static str,
        plural: &'static str,
        singular: &'static str,
    ) -> Self {
        Self {
            group,
            version: "v1",
            kind,
            plural,
            singular,
            short_names: &[],
            categories: &[],
            namespaced: true,
            status: false,
            scale: false,
            custom: false,
            generation: false,
            unconditional_update: true,
            durability: Durability::Behind,
            name_rule: NameRule::Subdomain,
        }
    }

    const fn custom(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
        singular: &'static str,
    ) -> Self {
        Self {
            version,
            status: true,
            custom: true,
            generation: true,
            unconditional_update: false,
            ..Self::core(group, kind, plural, singular)
        }
    }

    const fn short(mut self, names: &'static [&'static str]) -> Self {
        self.short_names = names;
        self
    }

    const fn categories(mut self, names: &'static [&'static str]) -> Self {
        self.categories = names;
        self
    }

    const fn kept(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    const fn named(mut self, rule: NameRule) -> Self {
        self.name_rule = rule;
        self
    }

    const fn with_status(mut self) -> Self {
        self.status = true;
        self
    }

    const fn cluster_scoped(mut self) -> Self {
        self.namespaced = false;
        self
    }

    /// `v1` or `group/version`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `configmaps` or `services.serving.knative.dev`, as error messages name a resource.
    pub(crate) fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `ConfigMap` or `Service.serving.knative.dev`, as error messages name a kind.
    pub(crate) fn qualified_kind(&self) -> String {
        if self.group.is_empty() { self.kind.to_owned() } else { format!("{}.{}", self.kind, self.group) }
    }

    /// Whether an object of this resource is in the named group and kind.
    pub(crate) fn is(&self, group: &str, plural: &str) -> bool {
        self.group == group && self.plural == plural
    }
}

/// Groups of Knative's own resources.
pub(crate) const SERVING: &str = "serving.knative.dev";
const AUTOSCALING: &str = "autoscaling.internal.knative.dev";
const NETWORKING: &str = "networking.internal.knative.dev";
const CACHING: &str = "caching.internal.knative.dev";

const SERVING_CATEGORIES: &[&str] = &["all", "knative", "serving"];
const NETWORKING_CATEGORIES: &[&str] = &["knative-internal", "networking"];
const AUTOSCALING_CATEGORIES: &[&str] = &["knative-internal", "autoscaling"];

/// Positions in [`RESOURCES`] that the server itself needs.
pub(crate) const NAMESPACES: usize = 0;
/// See [`NAMESPACES`].
pub(crate) const CONFIG_MAPS: usize = 1;
/// See [`NAMESPACES`].
#[cfg(test)]
pub(crate) const PODS: usize = 5;
/// See [`NAMESPACES`].
pub(crate) const EVENTS: usize = 6;

/// Every resource, grouped by API group in the order of discovery.
pub(crate) static RESOURCES: [Resource; 23] = [
    Resource::core("", "Namespace", "namespaces", "namespace")
        .short(&["ns"])
        .cluster_scoped()
        .with_status()
        .kept(Durability::Intent)
        .named(NameRule::Label),
    Resource::core("", "ConfigMap", "configmaps", "configmap").short(&["cm"]).kept(Durability::Intent),
    Resource::core("", "Secret", "secrets", "secret").kept(Durability::Intent),
    Resource::core("", "Service", "services", "service")
        .short(&["svc"])
        .categories(&["all"])
        .with_status()
        .named(NameRule::Label1035),
    Resource::core("", "Endpoints", "endpoints", "endpoints").short(&["ep"]).kept(Durability::Memory),
    Resource::core("", "Pod", "pods", "pod")
        .short(&["po"])
        .categories(&["all"])
        .with_status()
        .kept(Durability::Memory),
    Resource::core("", "Event", "events", "event").short(&["ev"]).kept(Durability::Memory),
    Resource::core("", "ServiceAccount", "serviceaccounts", "serviceaccount").short(&["sa"]),
    Resource {
        generation: true,
        scale: true,
        ..Resource::core("apps", "Deployment", "deployments", "deployment")
            .short(&["deploy"])
            .categories(&["all"])
            .with_status()
    },
    Resource::core("discovery.k8s.io", "EndpointSlice", "endpointslices", "endpointslice")
        .kept(Durability::Memory),
    Resource {
        unconditional_update: false,
        ..Resource::core("coordination.k8s.io", "Lease", "leases", "lease").kept(Durability::Memory)
    },
    Resource::custom(SERVING, "v1", "Service", "services", "service")
        .short(&["kservice", "ksvc"])
        .categories(SERVING_CATEGORIES)
        .kept(Durability::Intent),
    Resource::custom(SERVING, "v1", "Configuration", "configurations", "configuration")
        .short(&["config", "cfg"])
        .categories(SERVING_CATEGORIES)
        .kept(Durability::Intent),
    Resource::custom(SERVING, "v1", "Revision", "revisions", "revision")
        .short(&["rev"])
        .categories(SERVING_CATEGORIES)
        .kept(Durability::Intent),
    Resource::custom(SERVING, "v1", "Route", "routes", "route")
        .short(&["rt"])
        .categories(SERVING_CATEGORIES)
        .kept(Durability::Intent),
    Resource::custom(SERVING, "v1beta1", "DomainMapping", "domainmappings", "domainmapping")
        .short(&["dm"])
        .categories(SERVING_CATEGORIES)
        .kept(Durability::Intent),
    Resource::custom(AUTOSCALING, "v1alpha1", "PodAutoscaler", "podautoscalers", "podautoscaler")
        .short(&["kpa", "pa"])
        .categories(AUTOSCALING_CATEGORIES),
    Resource::custom(AUTOSCALING, "v1alpha1", "Metric", "metrics", "metric")
        .categories(AUTOSCALING_CATEGORIES),
    Resource::custom(NETWORKING, "v1alpha1", "ServerlessService", "serverlessservices", "serverlessservice")
        .short(&["sks"])
        .categories(NETWORKING_CATEGORIES),
    Resource::custom(NETWORKING, "v1alpha1", "Ingress", "ingresses", "ingress")
        .short(&["kingress", "king"])
        .categories(NETWORKING_CATEGORIES),
    Resource::custom(NETWORKING, "v1alpha1", "Certificate", "certificates", "certificate")
        .short(&["kcert"])
        .categories(NETWORKING_CATEGORIES),
    Resource::custom(
        NETWORKING,
        "v1alpha1",
        "ClusterDomainClaim",
        "clusterdomainclaims",
        "clusterdomainclaim",
    )
    .short(&["cdc"])
    .categories(NETWORKING_CATEGORIES)
    .cluster_scoped(),
    Resource::custom(CACHING, "v1alpha1", "Image", "images", "image")
        .categories(&["knative-internal", "caching"]),
];

/// The index in [`RESOURCES`] of a resource, by the names in its URL.
pub(crate) fn find(group: &str, version: &str, plural: &str) -> Option<usize> {
    RESOURCES.iter().position(|r| r.plural == plural && r.group == group && r.version == version)
}

/// Group and version pairs in the order of discovery, each once.
pub(crate) fn group_versions() -> Vec<(&'static str, &'static str)> {
    let mut all = Vec::new();
    let stored = RESOURCES.iter().map(|r| (r.group, r.version));
    for pair in stored.chain(UNSTORED.iter().map(|r| (r.group, r.version))) {
        if !all.contains(&pair) {
            all.push(pair);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_what_their_names_say() {
        assert_eq!(RESOURCES[NAMESPACES].plural, "namespaces");
        assert_eq!(RESOURCES[CONFIG_MAPS].plural, "configmaps");
        assert_eq!(RESOURCES[PODS].plural, "pods");
        assert_eq!(RESOURCES[EVENTS].plural, "events");
    }
}
