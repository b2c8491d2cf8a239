//! Buckets: their names, owners and hosts.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::{check, differ};
use crate::bucket;

#[test]
fn golden_bucket_name() {
    #[derive(Debug, Deserialize)]
    struct Case {
        ordinal: u32,
        total: u32,
        want: String,
    }
    check("bucket_name", |case: &Case| {
        differ("name", &case.want, &bucket::bucket_name(case.ordinal, case.total)).into_iter().collect()
    });
}

#[test]
fn golden_bucket_owner() {
    #[derive(Debug, Deserialize)]
    struct Case {
        buckets: u32,
        bucket_names: Vec<String>,
        owner_by_key: BTreeMap<String, String>,
    }
    check("bucket_owner", |case: &Case| {
        let names: Vec<String> = (0..case.buckets).map(|i| bucket::bucket_name(i, case.buckets)).collect();
        let set: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        let mut wrong: Vec<_> = differ("names", &case.bucket_names, &names).into_iter().collect();
        wrong.extend(
            case.owner_by_key
                .iter()
                .filter_map(|(key, want)| differ(key, &Some(want.as_str()), &bucket::owner(&set, key))),
        );
        wrong
    });
}

#[test]
fn golden_choose_subset() {
    #[derive(Debug, Deserialize)]
    struct Case {
        from: Option<Vec<String>>,
        n: usize,
        target: String,
        want_sorted: Option<Vec<String>>,
    }
    check("choose_subset", |case: &Case| {
        let from: BTreeSet<&str> = case.from.iter().flatten().map(String::as_str).collect();
        let got: Vec<&str> = bucket::choose_subset(&from, case.n, &case.target).into_iter().collect();
        let want: Vec<&str> = case.want_sorted.iter().flatten().map(String::as_str).collect();
        differ("subset", &want, &got).into_iter().collect()
    });
}

#[test]
fn golden_holder_identity() {
    #[derive(Debug, Deserialize)]
    struct Case {
        holder_identity: String,
        want_pod_name: String,
        want_ip: String,
        want_error: String,
    }
    check("holder_identity", |case: &Case| {
        let want = if case.want_error.is_empty() {
            Ok((case.want_pod_name.as_str(), case.want_ip.as_str()))
        } else {
            Err(case.want_error.clone())
        };
        differ("holder", &want, &bucket::parse_holder(&case.holder_identity)).into_iter().collect()
    });
}

#[test]
fn golden_bucket_host() {
    #[derive(Debug, Deserialize)]
    struct Case {
        host: String,
        want: bool,
    }
    check("bucket_host", |case: &Case| {
        differ("is a bucket", &case.want, &bucket::bucket_of_host(&case.host).is_some()).into_iter().collect()
    });
}
