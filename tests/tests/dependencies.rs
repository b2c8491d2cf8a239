//! The architecture's dependency table, enforced: components never import one another.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, MetadataCommand};

/// Without IO: they use no telemetry, and nothing else to test them.
const PURE: &[&str] = &["ember-allocator", "ember-template", "ember-api"];

/// What each crate may import of the others, besides `ember-telemetry`, which all but the pure ones may use.
const ALLOWED: &[(&str, &[&str])] = &[
    ("ember-allocator", &[]),
    ("ember-template", &[]),
    ("ember-api", &["ember-template"]),
    ("ember-dataplane", &[]),
    ("ember-telemetry", &["ember-template"]),
    ("ember-queue-proxy", &["ember-allocator", "ember-dataplane"]),
    ("ember-reconcile", &["ember-api"]),
    ("ember-activator", &["ember-api", "ember-dataplane", "ember-reconcile"]),
    ("ember-autoscaler", &["ember-api", "ember-dataplane", "ember-reconcile"]),
    // Runs the autoscaler's pure core over a trace.
    ("ember-simulate", &["ember-api", "ember-autoscaler", "ember-dataplane"]),
    ("ember-ingress", &["ember-api", "ember-dataplane", "ember-reconcile"]),
    ("ember-controller", &["ember-api", "ember-reconcile"]),
    ("ember-apiserver", &["ember-api"]),
    ("ember-node", &["ember-api"]),
    // Composes the data plane with an API server: the activator to measure it alone, all of it for the soak. What is
    // measured of the sidecar is the program.
    (
        "ember-bench",
        &[
            "ember-activator",
            "ember-allocator",
            "ember-api",
            "ember-apiserver",
            "ember-dataplane",
            "ember-ingress",
            "ember-queue-proxy",
        ],
    ),
    ("ember-tests", &[]),
];

/// Sees everything: the composition root.
const ROOT: &str = "ember";

#[test]
fn components_import_only_what_the_architecture_allows() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let metadata = MetadataCommand::new().manifest_path(manifest).no_deps().exec().unwrap();
    let members: BTreeSet<&str> = metadata.packages.iter().map(|p| p.name.as_str()).collect();
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        let name = package.name.as_str();
        if name == ROOT {
            continue;
        }
        let Some(allowed) = allowed.get(name) else {
            wrong.push(format!("{name} is not in the table"));
            continue;
        };
        for dependency in &package.dependencies {
            let imported = dependency.name.as_str();
            let ours = members.contains(imported);
            let telemetry = imported == "ember-telemetry" && !PURE.contains(&name);
            // Tests may drive a component through its real neighbours.
            let for_tests = dependency.kind == DependencyKind::Development && !PURE.contains(&name);
            if ours && !telemetry && !for_tests && !allowed.contains(&imported) {
                wrong.push(format!("{name} imports {imported}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_sidecar_does_not_link_the_kubernetes_client() {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let metadata = MetadataCommand::new().manifest_path(manifest).exec().unwrap();
    let resolve = metadata.resolve.as_ref().unwrap();
    let name = |id| metadata.packages.iter().find(|p| &p.id == id).map(|p| p.name.to_string()).unwrap();
    let start = metadata.packages.iter().find(|p| p.name.as_str() == "ember-queue-proxy").unwrap();
    let mut seen = BTreeSet::new();
    let mut open = vec![&start.id];
    while let Some(id) = open.pop() {
        if !seen.insert(id) {
            continue;
        }
        let node = resolve.nodes.iter().find(|n| &n.id == id).unwrap();
        let linked =
            node.deps.iter().filter(|d| d.dep_kinds.iter().any(|k| k.kind == DependencyKind::Normal));
        open.extend(linked.map(|d| &d.pkg));
    }
    let kube: Vec<_> =
        seen.into_iter().map(name).filter(|n| n.starts_with("kube") || n == "k8s-openapi").collect();
    assert!(kube.is_empty(), "{kube:?}");
}
