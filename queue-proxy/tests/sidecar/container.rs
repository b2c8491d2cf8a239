//! The sidecar's container as the controller makes it.

/// The environment, with `more` instead of or beside what the controller writes.
pub(crate) fn environment(user_port: u16, more: &[(&str, &str)]) -> Vec<(String, String)> {
    let user_port = user_port.to_string();
    let mut env = vec![
        ("CONTAINER_CONCURRENCY", "0"),
        ("QUEUE_SERVING_PORT", "8012"),
        ("QUEUE_SERVING_TLS_PORT", "8112"),
        ("USER_PORT", &user_port),
        ("REVISION_TIMEOUT_SECONDS", "300"),
        ("SERVING_LOGGING_CONFIG", ""),
        ("SERVING_LOGGING_LEVEL", ""),
        ("SERVING_NAMESPACE", "default"),
        ("SERVING_CONFIGURATION", "app"),
        ("SERVING_REVISION", "app-00001"),
        ("SERVING_POD", "pod-1"),
        ("SERVING_POD_IP", "127.0.0.1"),
    ];
    env.retain(|(name, _)| !more.iter().any(|(other, _)| other == name));
    env.extend_from_slice(more);
    env.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}
