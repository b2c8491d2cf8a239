//! Resolving the tags of a Revision's images to digests, so that all its pods run the same code for ever.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Debug;

use ember_api::images::Reference;
use ember_api::serving::v1::{ContainerStatus, Revision};
use ember_reconcile::cache::Key;

/// The digests of a Revision's images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Digests {
    /// Of the containers, in their order.
    pub(crate) containers: Vec<ContainerStatus>,
    /// Of the init containers, in their order.
    pub(crate) init_containers: Vec<ContainerStatus>,
}

/// How far the images of a Revision are resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resolution {
    /// All are.
    Resolved(Digests),
    /// The registry has not answered yet; the Revision is looked at again when it has.
    Pending,
    /// One cannot be resolved; the text says which, and why.
    Failed(String),
}

/// What a lookup of one image came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The image by digest; empty if it stays with its tag.
    Found(String),
    /// Under way. The resolver queues the Revision when it is done.
    Pending,
    /// Why it cannot be resolved.
    Failed(String),
}

/// Asks registries which digest a tag stands for.
///
/// A lookup never waits: it answers from what is known, or starts a request and answers [`Lookup::Pending`]. Images
/// that carry a digest, and those of registries whose tags are not resolved, do not come here.
pub trait DigestResolver: Debug + Send + Sync + 'static {
    /// Looks up an image for a Revision.
    fn look_up(&self, revision: &Key, image: &str) -> Lookup;

    /// Forgets what is known for a Revision: it has its digests, or is gone.
    fn forget(&self, revision: &Key);
}

/// A resolver without access to the network: every image stays with its tag, as images of skipped registries do.
/// Pods of one Revision may then run different code if the tag is moved. Images run as processes of this host have no
/// registry to ask; a client for registries belongs to the runtime that pulls images.
#[derive(Clone, Copy, Debug, Default)]
pub struct KeepTags;

impl DigestResolver for KeepTags {
    fn look_up(&self, _revision: &Key, _image: &str) -> Lookup {
        Lookup::Found(String::new())
    }

    fn forget(&self, _revision: &Key) {}
}

/// Resolves the images of a Revision; the first failure counts. Equal images are looked up once.
pub(crate) fn resolve(
    revision: &Revision,
    skipped: &BTreeSet<String>,
    resolver: &dyn DigestResolver,
) -> Resolution {
    let key = Key::of(revision);
    let pod = &revision.spec.pod_spec;
    let mut known: HashMap<&str, Lookup> = HashMap::new();
    let mut pending = false;
    let mut digests = Digests::default();
    let groups = [
        (pod.containers.as_slice(), &mut digests.containers),
        (pod.init_containers.as_deref().unwrap_or_default(), &mut digests.init_containers),
    ];
    for (containers, statuses) in groups {
        for container in containers {
            let image = container.image.as_deref().unwrap_or_default();
            let lookup = known
                .entry(image)
                .or_insert_with(|| settled(image, skipped).unwrap_or_else(|| resolver.look_up(&key, image)));
            match lookup {
                Lookup::Found(digest) => {
                    statuses
                        .push(ContainerStatus { name: container.name.clone(), image_digest: digest.clone() });
                }
                Lookup::Pending => pending = true,
                Lookup::Failed(error) => return Resolution::Failed(error.clone()),
            }
        }
    }
    if pending { Resolution::Pending } else { Resolution::Resolved(digests) }
}

/// The answer for an image for which no registry has to be asked: its own digest, none where tags are kept, or that
/// it is no image at all.
fn settled(image: &str, skipped: &BTreeSet<String>) -> Option<Lookup> {
    if Reference::parse(image).is_ok_and(|reference| reference.is_digest()) {
        return Some(Lookup::Found(image.to_owned()));
    }
    match Reference::parse_tag(image) {
        Ok(tag) => skipped.contains(&tag.registry).then(|| Lookup::Found(String::new())),
        Err(error) => Some(Lookup::Failed(format!(
            "Unable to fetch image {image:?}: failed to resolve image to digest: failed to parse image name {image:?} \
             into a tag: {error}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ember_api::serving::v1::RevisionSpec;
    use k8s_openapi::api::core::v1::{Container, PodSpec};

    fn revision(images: &[&str], init: &[&str]) -> Revision {
        let containers = |images: &[&str]| {
            let one = |(i, image): (usize, &&str)| Container {
                name: format!("c{i}"),
                image: Some((*image).to_owned()),
                ..Container::default()
            };
            images.iter().enumerate().map(one).collect::<Vec<_>>()
        };
        let pod_spec = PodSpec {
            containers: containers(images),
            init_containers: Some(containers(init)),
            ..PodSpec::default()
        };
        Revision::new("r", RevisionSpec { pod_spec, ..RevisionSpec::default() })
    }

    fn skipped() -> BTreeSet<String> {
        ["dev.local", "ko.local"].map(ToOwned::to_owned).into()
    }

    /// Knows nothing but what it was given, and counts.
    #[derive(Debug)]
    struct Fixed(Lookup, std::sync::atomic::AtomicUsize);

    impl DigestResolver for Fixed {
        fn look_up(&self, _: &Key, _: &str) -> Lookup {
            self.1.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            self.0.clone()
        }

        fn forget(&self, _: &Key) {}
    }

    #[test]
    fn digests_and_skipped_registries_need_no_lookup() {
        let digest = format!("example.com/app@sha256:{}", "0a".repeat(32));
        let resolver = Fixed(Lookup::Failed("asked".to_owned()), Default::default());
        let revision = revision(&[&digest, "dev.local/host"], &["ko.local/app:1"]);
        let Resolution::Resolved(digests) = resolve(&revision, &skipped(), &resolver) else {
            panic!("not resolved")
        };
        let found: Vec<_> = digests.containers.iter().map(|c| c.image_digest.as_str()).collect();
        assert_eq!(found, [digest.as_str(), ""]);
        assert_eq!(digests.init_containers[0].image_digest, "");
    }

    #[test]
    fn equal_images_are_looked_up_once_and_pending_waits_for_all() {
        let resolver = Fixed(Lookup::Pending, Default::default());
        let revision = revision(&["nginx", "dev.local/host", "nginx"], &["nginx"]);
        assert_eq!(resolve(&revision, &skipped(), &resolver), Resolution::Pending);
        assert_eq!(resolver.1.into_inner(), 1);
    }

    #[test]
    fn without_a_registry_client_tags_stay() {
        let Resolution::Resolved(digests) = resolve(&revision(&["nginx"], &[]), &skipped(), &KeepTags) else {
            panic!("not resolved")
        };
        assert_eq!(digests.containers[0].image_digest, "");
    }

    #[test]
    fn what_is_no_image_fails_with_its_name() {
        let Resolution::Failed(error) = resolve(&revision(&["a b"], &[]), &skipped(), &KeepTags) else {
            panic!("resolved")
        };
        let cause = "failed to resolve image to digest: failed to parse image name \"a b\" into a tag: ";
        assert!(error.starts_with(&format!("Unable to fetch image \"a b\": {cause}")), "{error}");
    }
}
