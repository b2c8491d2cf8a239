//! What `resourceFieldRef` gives: a container's limits and requests as numbers.

use ember_api::quantity;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use thiserror::Error;

/// What the machine has; a container without a limit has all of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Machine {
    /// Processors.
    pub cpus: u32,
    /// Memory in bytes.
    pub memory: u64,
}

/// Why a `resourceFieldRef` has no value.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ResourceError {
    /// Not one of the resources that can be asked for.
    #[error("resourceFieldRef: resource {0:?} is not supported")]
    Resource(String),
    /// `containerName` is none of the pod's, or is missing in a volume.
    #[error("resourceFieldRef: containerName: there is no container {0:?}")]
    Container(String),
    /// A quantity that is none, or a divisor of zero.
    #[error("resourceFieldRef: {0:?} is no quantity to compute with")]
    Quantity(String),
    /// No limit is declared, and the machine's own is not known.
    #[error(
        "resourceFieldRef: {0}: the container declares none, and the process runtime has none of its own"
    )]
    Unlimited(String),
}

impl Machine {
    /// This machine.
    #[must_use]
    pub fn current() -> Self {
        let cpus =
            std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX));
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self { cpus, memory: total_memory(&text).unwrap_or_default() }
    }
}

fn total_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The value, divided and rounded up as Kubernetes does. `own` is the container that asks; a volume has none.
///
/// # Errors
/// What is asked for does not exist.
pub fn value(
    selector: &ResourceFieldSelector,
    own: Option<&Container>,
    pod: &Pod,
    machine: Machine,
) -> Result<String, ResourceError> {
    let named = selector.container_name.as_deref().filter(|n| !n.is_empty());
    let spec = pod.spec.as_ref();
    let all = || spec.iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let container = match named {
        Some(name) => all().find(|c| c.name == name),
        None => own,
    };
    let container =
        container.ok_or_else(|| ResourceError::Container(named.unwrap_or_default().to_owned()))?;
    let asked = selector.resource.as_str();
    let (kind, resource) = asked.split_once('.').ok_or_else(|| ResourceError::Resource(asked.to_owned()))?;
    if !matches!(resource, "cpu" | "memory" | "ephemeral-storage") {
        return Err(ResourceError::Resource(asked.to_owned()));
    }
    let declared = container.resources.as_ref();
    let found = match kind {
        "limits" => declared.and_then(|r| r.limits.as_ref()),
        "requests" => declared.and_then(|r| r.requests.as_ref()),
        _ => return Err(ResourceError::Resource(asked.to_owned())),
    };
    let found = found.and_then(|map| map.get(resource)).map(|q| q.0.as_str());
    let amount = |text: &str| quantity::value(text).map_err(|_| ResourceError::Quantity(text.to_owned()));
    let amount_of = match (found, kind, resource) {
        (Some(text), ..) => amount(text)?,
        (None, "requests", _) => 0.0,
        (None, _, "cpu") => f64::from(machine.cpus),
        (None, _, "memory") => machine.memory as f64,
        (None, ..) => return Err(ResourceError::Unlimited(asked.to_owned())),
    };
    // An absent divisor is read back as "0".
    let divisor = selector.divisor.as_ref().map(|q| q.0.as_str()).filter(|q| !q.is_empty() && *q != "0");
    let by = divisor.map_or(Ok(1.0), amount)?;
    if by <= 0.0 {
        return Err(ResourceError::Quantity(divisor.unwrap_or_default().to_owned()));
    }
    // A fraction that is only rounding is none.
    let ratio = amount_of / by;
    Ok(format!("{:.0}", (ratio - ratio * 1e-12).ceil()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn limits_requests_and_the_machine() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [
            {"name": "a", "resources": {"limits": {"cpu": "1500m", "memory": "128Mi"}, "requests": {"cpu": "100m"}}},
            {"name": "b"}
        ]}}))
        .unwrap();
        let machine = Machine { cpus: 8, memory: 1 << 30 };
        let own = &pod.spec.as_ref().unwrap().containers[0];
        let get = |selector: serde_json::Value| {
            value(&serde_json::from_value(selector).unwrap(), Some(own), &pod, machine)
        };
        for (selector, expected) in [
            (json!({"resource": "limits.cpu"}), "2"),
            (json!({"resource": "limits.cpu", "divisor": "0"}), "2"),
            (json!({"resource": "limits.cpu", "divisor": "1m"}), "1500"),
            (json!({"resource": "requests.cpu", "divisor": "1m"}), "100"),
            (json!({"resource": "requests.cpu"}), "1"),
            (json!({"resource": "limits.memory"}), "134217728"),
            (json!({"resource": "limits.memory", "divisor": "1Mi"}), "128"),
            (json!({"resource": "limits.memory", "containerName": "b", "divisor": "1Mi"}), "1024"),
            (json!({"resource": "limits.cpu", "containerName": "b"}), "8"),
            (json!({"resource": "requests.memory", "containerName": "b"}), "0"),
        ] {
            assert_eq!(get(selector.clone()).as_deref(), Ok(expected), "{selector}");
        }
        for (selector, part) in [
            (json!({"resource": "limits.gpu"}), "\"limits.gpu\" is not supported"),
            (json!({"resource": "cpu"}), "\"cpu\" is not supported"),
            (json!({"resource": "limits.cpu", "containerName": "c"}), "no container \"c\""),
            (json!({"resource": "limits.ephemeral-storage"}), "declares none"),
            (json!({"resource": "limits.cpu", "divisor": "-1"}), "\"-1\""),
        ] {
            let error = get(selector).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn reads_meminfo() {
        assert_eq!(total_memory("MemTotal:       1000 kB\nMemFree: 1 kB\n"), Some(1_024_000));
        assert_eq!(total_memory(""), None);
    }
}
