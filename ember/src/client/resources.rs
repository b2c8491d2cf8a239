//! Which collection a kind or a name on the command line stands for, as the API's discovery tells.

use anyhow::{Context, bail};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{APIGroupList, APIResource, APIResourceList};
use kube::Client;
use serde::de::DeserializeOwned;

/// One collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Collection {
    pub(crate) group_version: String,
    pub(crate) kind: String,
    pub(crate) plural: String,
    pub(crate) namespaced: bool,
    names: Vec<String>,
}

impl Collection {
    /// The path of the collection, or of one object in it.
    pub(crate) fn path(&self, namespace: Option<&str>, name: Option<&str>) -> String {
        let root = if self.group_version.contains('/') { "/apis" } else { "/api" };
        let mut path = format!("{root}/{}", self.group_version);
        if let (true, Some(namespace)) = (self.namespaced, namespace) {
            path += &format!("/namespaces/{namespace}");
        }
        path += &format!("/{}", self.plural);
        if let Some(name) = name {
            path += &format!("/{name}");
        }
        path
    }
}

/// All collections of an API server.
#[derive(Debug)]
pub(crate) struct Resources(Vec<Collection>);

async fn fetch<T: DeserializeOwned>(client: &Client, path: &str) -> anyhow::Result<T> {
    let request = http::Request::get(path).body(Vec::new())?;
    Ok(client.request(request).await?)
}

impl Resources {
    /// Asks the API what it serves.
    pub(crate) async fn discover(client: &Client) -> anyhow::Result<Self> {
        let groups: APIGroupList = fetch(client, "/apis").await.context("cannot reach the API server")?;
        let mut lists = vec!["/api/v1".to_owned()];
        for group in groups.groups {
            lists.extend(group.versions.iter().map(|version| format!("/apis/{}", version.group_version)));
        }
        let mut collections = Vec::new();
        for path in lists {
            let list: APIResourceList = fetch(client, &path).await?;
            let own = list.resources.into_iter().filter(|r| !r.name.contains('/'));
            collections.extend(own.map(|resource| collection(&list.group_version, resource)));
        }
        Ok(Self(collections))
    }

    /// The collection of a manifest's kind.
    ///
    /// # Errors
    /// In kubectl's words, when the server has no such kind.
    pub(crate) fn of_kind(&self, api_version: &str, kind: &str) -> anyhow::Result<&Collection> {
        match self.0.iter().find(|c| c.group_version == api_version && c.kind == kind) {
            Some(collection) => Ok(collection),
            None => bail!("no matches for kind {kind:?} in version {api_version:?}{}", self.like(kind)),
        }
    }

    /// The collection a person means by `ksvc`, `services.serving.knative.dev`, `Pod` or `pods`.
    ///
    /// # Errors
    /// In kubectl's words, when the server has none of that name.
    pub(crate) fn of_name(&self, name: &str) -> anyhow::Result<&Collection> {
        let name = name.to_lowercase();
        let (short, group) = name.split_once('.').unwrap_or((&name, ""));
        let found = self.0.iter().find(|c| {
            let of_group =
                group.is_empty() || c.group_version.split_once('/').is_some_and(|(g, _)| g == group);
            of_group && c.names.iter().any(|n| n == short)
        });
        found.with_context(|| {
            let like = self.like(short);
            format!(
                "the server doesn't have a resource type {name:?}{like}; for instance ksvc, revisions or pods"
            )
        })
    }

    /// What somebody may have meant by the name of a kind.
    fn like(&self, name: &str) -> String {
        let name = name.to_lowercase();
        let likeness =
            |c: &Collection| c.names.iter().map(|known| strsim::jaro(known, &name)).fold(0.0, f64::max);
        let all = self.0.iter().map(|c| (likeness(c), c));
        let best = all.filter(|(likeness, _)| *likeness > 0.8).max_by(|a, b| a.0.total_cmp(&b.0));
        best.map_or_else(String::new, |(_, c)| format!(" (did you mean {} of {}?)", c.kind, c.group_version))
    }
}

fn collection(group_version: &str, resource: APIResource) -> Collection {
    let mut names = vec![resource.name.clone(), resource.singular_name, resource.kind.to_lowercase()];
    names.extend(resource.short_names.into_iter().flatten());
    Collection {
        group_version: group_version.to_owned(),
        kind: resource.kind,
        plural: resource.name,
        namespaced: resource.namespaced,
        names,
    }
}
