//! Who this is, for those who read telemetry: OpenTelemetry's resource attributes.

use std::collections::BTreeMap;

use ember_telemetry::build;
use ember_telemetry::otlp::Environment;

/// The attributes, by the container's environment. What `OTEL_RESOURCE_ATTRIBUTES` adds does not override them.
pub(crate) fn attributes<'a>(
    variable: impl Fn(&str) -> Option<&'a str>,
    environment: &Environment,
) -> Vec<(String, String)> {
    let first = |names: &[&str]| {
        names.iter().filter_map(|name| variable(name)).find(|value| !value.is_empty()).unwrap_or_default()
    };
    let pod = first(&["POD_NAME", "HOSTNAME", "SERVING_POD"]);
    let service =
        first(&["OTEL_SERVICE_NAME", "SERVING_SERVICE", "SERVING_CONFIGURATION", "SERVING_REVISION"]);
    let own = [
        ("container.name", "queue-proxy"),
        ("k8s.namespace.name", first(&["SERVING_NAMESPACE"])),
        ("k8s.pod.name", pod),
        ("service.instance.id", pod),
        ("service.version", build::VERSION),
        ("service.name", if service.is_empty() { pod } else { service }),
        ("kn.service.name", first(&["SERVING_SERVICE"])),
        ("kn.configuration.name", first(&["SERVING_CONFIGURATION"])),
        ("kn.revision.name", first(&["SERVING_REVISION"])),
    ];
    let own = own.into_iter().filter(|(_, value)| !value.is_empty());
    let mut all: BTreeMap<String, String> = environment.resource_attributes().into_iter().collect();
    all.extend(own.map(|(name, value)| (name.to_owned(), value.to_owned())));
    all.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&'static str, &'static str)]) -> BTreeMap<String, String> {
        let environment =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let variable =
            |name: &str| variables.iter().find(|(other, _)| *other == name).map(|(_, value)| *value);
        attributes(variable, &environment).into_iter().collect()
    }

    #[test]
    fn names_come_from_the_environment() {
        let all = of(&[
            ("SERVING_NAMESPACE", "ns"),
            ("SERVING_SERVICE", ""),
            ("SERVING_CONFIGURATION", "app"),
            ("SERVING_REVISION", "app-00001"),
            ("SERVING_POD", "pod-1"),
            ("HOSTNAME", "host-1"),
            ("OTEL_RESOURCE_ATTRIBUTES", "team=a,kn.revision.name=mine"),
        ]);
        let expected = [
            ("container.name", "queue-proxy"),
            ("k8s.namespace.name", "ns"),
            ("k8s.pod.name", "host-1"),
            ("kn.configuration.name", "app"),
            ("kn.revision.name", "app-00001"),
            ("service.instance.id", "host-1"),
            ("service.name", "app"),
            ("service.version", build::VERSION),
            ("team", "a"),
        ];
        assert_eq!(all, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
    }

    #[test]
    fn the_service_has_a_name_in_any_case() {
        assert_eq!(of(&[("OTEL_SERVICE_NAME", "own"), ("SERVING_SERVICE", "s")])["service.name"], "own");
        assert_eq!(of(&[("SERVING_SERVICE", "s"), ("SERVING_REVISION", "r")])["service.name"], "s");
        assert_eq!(of(&[("SERVING_REVISION", "r")])["service.name"], "r");
        assert_eq!(of(&[("POD_NAME", "p"), ("HOSTNAME", "h")])["service.name"], "p");
    }
}
