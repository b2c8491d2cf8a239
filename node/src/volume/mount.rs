//! Where a container wants which part of which volume.

use k8s_openapi::api::core::v1::Container;

use super::payload::is_inside;
use crate::env;

/// Where the kubelet looks for last words unless the container names another file.
const DEFAULT_TERMINATION_PATH: &str = "/dev/termination-log";

/// One entry of `volumeMounts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// The volume.
    pub(crate) volume: String,
    /// An absolute path.
    pub(crate) target: String,
    /// What of the volume; all of it if empty.
    pub(crate) sub_path: String,
    /// Whether the container asks for it.
    pub(crate) read_only: bool,
}

/// The container's mounts, `subPathExpr` expanded with its environment.
///
/// # Errors
/// The first entry that cannot be honoured, by field.
pub(crate) fn wanted(container: &Container, env: &[(String, String)]) -> Result<Vec<Wanted>, String> {
    if container.volume_devices.as_ref().is_some_and(|d| !d.is_empty()) {
        return Err("volumeDevices: the process runtime has no block devices".to_owned());
    }
    let mounts = container.volume_mounts.iter().flatten().enumerate();
    let wanted = mounts.map(|(at, mount)| {
        let fail = |field: &str, problem: &str| Err(format!("volumeMounts[{at}].{field}: {problem}"));
        let target = format!("/{}", mount.mount_path.trim_matches('/'));
        if target == "/" || !is_inside(target.trim_start_matches('/')) {
            return fail("mountPath", "must be a path below / without '..'");
        }
        let expression = mount.sub_path_expr.as_deref().filter(|e| !e.is_empty());
        let (field, sub_path) = match expression {
            Some(expression) => (
                "subPathExpr",
                expand(expression, env).map_err(|name| {
                    format!("volumeMounts[{at}].subPathExpr: there is no variable {name:?}")
                })?,
            ),
            None => ("subPath", mount.sub_path.clone().unwrap_or_default()),
        };
        if !sub_path.is_empty() && !is_inside(&sub_path) {
            return fail(field, "must be a relative path without '..'");
        }
        let read_only = mount.read_only == Some(true);
        Ok(Wanted { volume: mount.name.clone(), target, sub_path, read_only })
    });
    wanted.collect()
}

/// The first name that is not known is the error.
fn expand(text: &str, env: &[(String, String)]) -> Result<String, String> {
    let missing = std::cell::RefCell::new(None);
    let expanded = env::expand(text, |name| {
        let value = env::lookup(env, name);
        if value.is_none() {
            missing.borrow_mut().get_or_insert_with(|| name.to_owned());
        }
        value
    });
    missing.into_inner().map_or(Ok(expanded), Err)
}

/// The file of last words, if the container names one. The default lies in the host's `/dev`, which is not rebuilt for
/// every container; there the log stands in.
pub(crate) fn termination_path(container: &Container) -> Option<&str> {
    container.termination_message_path.as_deref().filter(|p| !p.is_empty() && *p != DEFAULT_TERMINATION_PATH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn mount(mount: &Value) -> Result<Vec<Wanted>, String> {
        let container = json!({"name": "c", "volumeMounts": [mount]});
        wanted(&serde_json::from_value(container).unwrap(), &[("POD".to_owned(), "p-1".to_owned())])
    }

    #[test]
    fn paths_are_checked_by_field() {
        let good = mount(
            &json!({"name": "v", "mountPath": "data/", "subPathExpr": "logs/$(POD)", "readOnly": true}),
        );
        let expected = Wanted {
            volume: "v".to_owned(),
            target: "/data".to_owned(),
            sub_path: "logs/p-1".to_owned(),
            read_only: true,
        };
        assert_eq!(good, Ok(vec![expected]));
        for (bad, part) in [
            (json!({"name": "v", "mountPath": "/"}), "volumeMounts[0].mountPath"),
            (json!({"name": "v", "mountPath": "/a/../b"}), "volumeMounts[0].mountPath"),
            (json!({"name": "v", "mountPath": "/a", "subPath": "/b"}), "volumeMounts[0].subPath:"),
            (json!({"name": "v", "mountPath": "/a", "subPath": "../b"}), "volumeMounts[0].subPath:"),
            (json!({"name": "v", "mountPath": "/a", "subPathExpr": "$(NO)"}), "there is no variable \"NO\""),
        ] {
            let error = mount(&bad).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
