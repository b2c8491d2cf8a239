//! What a container finds out about the cluster it runs in.

/// The cluster domain by the resolver's configuration, for instance `cluster.local`: that of the first `svc.<domain>` in
/// a `search` line.
#[must_use]
pub fn domain(resolv_conf: &str) -> Option<&str> {
    resolv_conf
        .lines()
        .map(str::split_ascii_whitespace)
        .filter_map(|mut words| (words.next() == Some("search")).then_some(words))
        .flatten()
        .filter_map(|entry| entry.strip_prefix("svc."))
        .map(|domain| domain.trim_end_matches('.'))
        .find(|domain| !domain.is_empty())
}
