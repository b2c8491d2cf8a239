//! What the queue-proxy container requests and is limited to.
//!
//! In rising order of precedence: the deployment configuration, the defaults of the resource-defaults feature where
//! the configuration says nothing, a percentage of the serving container's resources, explicit annotations.

use std::collections::BTreeMap;

use ember_api::{annotations, configmaps, quantity};
use k8s_openapi::api::core::v1::{Container, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

const CPU: &str = "cpu";
const MEMORY: &str = "memory";
const EPHEMERAL_STORAGE: &str = "ephemeral-storage";

type Amounts = BTreeMap<String, Quantity>;

/// The resources of the sidecar of a revision with these annotations and this serving container.
pub(super) fn resources(
    config: &configmaps::deployment::Deployment,
    use_defaults: bool,
    given: &BTreeMap<String, String>,
    serving: &Container,
) -> ResourceRequirements {
    let mut requests = Amounts::new();
    let mut limits = Amounts::new();
    let configured = [
        (CPU, &config.queue_sidecar_cpu_request, &config.queue_sidecar_cpu_limit, Some(("25m", "1"))),
        (
            MEMORY,
            &config.queue_sidecar_memory_request,
            &config.queue_sidecar_memory_limit,
            Some(("400Mi", "800Mi")),
        ),
        (
            EPHEMERAL_STORAGE,
            &config.queue_sidecar_ephemeral_storage_request,
            &config.queue_sidecar_ephemeral_storage_limit,
            None,
        ),
    ];
    for (resource, request, limit, defaults) in configured {
        let defaults = defaults.filter(|_| use_defaults);
        if let Some(request) =
            request.clone().or_else(|| defaults.map(|(request, _)| Quantity(request.to_owned())))
        {
            requests.insert(resource.to_owned(), request);
        }
        if let Some(limit) = limit.clone().or_else(|| defaults.map(|(_, limit)| Quantity(limit.to_owned()))) {
            limits.insert(resource.to_owned(), limit);
        }
    }
    if let Some(fraction) = fraction(given) {
        scale(&mut requests, &mut limits, fraction, serving.resources.as_ref());
    }
    for resource in [CPU, MEMORY, EPHEMERAL_STORAGE] {
        for (kind, amounts) in [("request", &mut requests), ("limit", &mut limits)] {
            let key = format!("queue.sidecar.serving.knative.dev/{resource}-resource-{kind}");
            // The webhook has refused what is no quantity.
            if let Some(amount) = given.get(&key).and_then(|text| quantity::parse(text).ok()) {
                amounts.insert(resource.to_owned(), amount);
            }
        }
    }
    ResourceRequirements {
        requests: Some(requests),
        limits: (!limits.is_empty()).then_some(limits),
        ..ResourceRequirements::default()
    }
}

fn fraction(given: &BTreeMap<String, String>) -> Option<f64> {
    let (_, percentage) = annotations::lookup(given, annotations::QUEUE_SIDECAR_RESOURCE_PERCENTAGE)?;
    percentage.parse::<f64>().ok().map(|percentage| percentage / 100.0)
}

/// Bounds in thousandths of the base unit.
struct Bounds {
    least: i64,
    most: i64,
}

const MEBI: i64 = 1024 * 1024 * 1000;
const CPU_REQUEST: Bounds = Bounds { least: 25, most: 100 };
const CPU_LIMIT: Bounds = Bounds { least: 40, most: 500 };
const MEMORY_REQUEST: Bounds = Bounds { least: 50 * MEBI, most: 200 * MEBI };
const MEMORY_LIMIT: Bounds = Bounds { least: 200 * MEBI, most: 500 * MEBI };

fn scale(requests: &mut Amounts, limits: &mut Amounts, fraction: f64, user: Option<&ResourceRequirements>) {
    let Some(user) = user else { return };
    let rules = [
        (&user.requests, requests, [(CPU, CPU_REQUEST), (MEMORY, MEMORY_REQUEST)]),
        (&user.limits, limits, [(CPU, CPU_LIMIT), (MEMORY, MEMORY_LIMIT)]),
    ];
    for (given, result, bounded) in rules {
        for (resource, bounds) in bounded {
            let given = given.as_ref().and_then(|amounts| amounts.get(resource));
            if let Some(scaled) = given.and_then(|amount| share(amount, fraction, &bounds)) {
                result.insert(resource.to_owned(), scaled);
            }
        }
    }
}

/// The fraction of an amount within bounds; nothing of nothing.
fn share(amount: &Quantity, fraction: f64, bounds: &Bounds) -> Option<Quantity> {
    let amount = quantity::value(&amount.0).unwrap_or(0.0);
    if amount == 0.0 {
        return None;
    }
    // Whole thousandths, as the reference computes them. The cast saturates.
    let exact = amount * 1000.0;
    let whole = if (exact - exact.round()).abs() < 1e-6 { exact.round() } else { exact.ceil() };
    #[expect(clippy::cast_possible_truncation, reason = "a fraction of a thousandth is cut off on purpose")]
    let scaled = (whole * fraction) as i64;
    Some(Quantity(binary(scaled.clamp(bounds.least, bounds.most))))
}

/// A number of thousandths as Kubernetes prints a quantity of binary format: with binary units if it is a whole number
/// of at least 1024, else with decimal ones.
fn binary(thousandths: i64) -> String {
    if thousandths % 1000 == 0 && thousandths >= 1024 * 1000 {
        let mut amount = thousandths / 1000;
        let mut units = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].into_iter();
        let mut unit = units.next().unwrap_or_default();
        while amount % 1024 == 0 {
            let Some(next) = units.next() else { break };
            (amount, unit) = (amount / 1024, next);
        }
        return format!("{amount}{unit}");
    }
    let mut amount = thousandths;
    let mut units = ["m", "", "k", "M", "G", "T", "P"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    while amount != 0 && amount % 1000 == 0 {
        let Some(next) = units.next() else { break };
        (amount, unit) = (amount / 1000, next);
    }
    format!("{amount}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_of_binary_format_print_like_kubernetes() {
        for (thousandths, text) in [
            (25, "25m"),
            (1000, "1"),
            (500_000, "500"),
            (200 * MEBI, "200Mi"),
            (1536 * 1024 * 1000, "1536Ki"),
            (1_000_000_000, "1000000"),
            // 107374182.4 bytes are no whole number.
            (107_374_182_400, "107374182400m"),
        ] {
            assert_eq!(binary(thousandths), text);
        }
    }
}
