//! References to container images: what is one, and where it points.

use crate::golang::quote;

const DEFAULT_REGISTRY: &str = "index.docker.io";
const REPOSITORY_CHARS: &str = "abcdefghijklmnopqrstuvwxyz0123456789_-./";
const TAG_CHARS: &str = "abcdefghijklmnopqrstuvwxyz0123456789_-.ABCDEFGHIJKLMNOPQRSTUVWXYZ";
const DIGEST: &str = "sha256:";

/// Why a text refers to no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("could not parse reference: {0}")]
pub struct ReferenceError(String);

/// Why a text is no image with a tag.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TagError(String);

/// What selects an image in its repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Version {
    /// A name that may come to mean another image.
    Tag(String),
    /// The image's content.
    Digest(String),
}

/// A reference to a container image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Host of the registry, with the port if there is one.
    pub registry: String,
    /// Path of the repository in it.
    pub path: String,
    /// Which image of the repository.
    pub version: Version,
}

impl Reference {
    /// Parses a reference. Without a registry it is Docker Hub's, without a tag it is `latest`.
    ///
    /// # Errors
    /// The text refers to no image.
    pub fn parse(image: &str) -> Result<Self, ReferenceError> {
        tag(image).or_else(|_| digest(image)).map_err(|_: TagError| ReferenceError(image.to_owned()))
    }

    /// Parses a reference that must not be a digest.
    ///
    /// # Errors
    /// The first problem as an image with a tag.
    pub fn parse_tag(image: &str) -> Result<Self, TagError> {
        tag(image)
    }

    /// Whether it names content, so that there is nothing to resolve.
    #[must_use]
    pub fn is_digest(&self) -> bool {
        matches!(self.version, Version::Digest(_))
    }

    /// Registry and path: what a digest is appended to.
    #[must_use]
    pub fn repository(&self) -> String {
        format!("{}/{}", self.registry, self.path)
    }
}

fn tag(image: &str) -> Result<Reference, TagError> {
    // A colon before a slash belongs to the registry's port.
    let (base, tag) = match image.rsplit_once(':') {
        Some((base, tag)) if !tag.contains('/') => (base, Some(tag)),
        _ => (image, None),
    };
    // A colon with nothing behind it selects nothing.
    let tag = tag.filter(|tag| !tag.is_empty());
    if let Some(tag) = tag {
        check("tag", tag, TAG_CHARS, 1, 128)?;
    }
    let (registry, path) = repository(base)?;
    Ok(Reference { registry, path, version: Version::Tag(tag.unwrap_or("latest").to_owned()) })
}

fn digest(image: &str) -> Result<Reference, TagError> {
    let Some((base, digest)) = image.split_once('@').filter(|(_, d)| !d.contains('@')) else {
        return Err(TagError("a digest must contain exactly one '@' separator".to_owned()));
    };
    let hex = digest.strip_prefix(DIGEST).unwrap_or_default();
    if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Err(TagError(format!("unsupported digest {}", quote(digest))));
    }
    // A tag beside a digest says nothing.
    let Reference { registry, path, .. } = tag(base)?;
    Ok(Reference { registry, path, version: Version::Digest(digest.to_owned()) })
}

fn repository(name: &str) -> Result<(String, String), TagError> {
    if name.is_empty() {
        return Err(TagError("a repository name must be specified".to_owned()));
    }
    let (registry, path) = match name.split_once('/') {
        Some((registry, path)) if registry.contains(['.', ':']) => (registry, path),
        _ => ("", name),
    };
    check("repository", path, REPOSITORY_CHARS, 2, 255)?;
    if !registry.is_empty() && !is_host(registry) {
        return Err(TagError(format!("registries must be valid RFC 3986 URI authorities: {registry}")));
    }
    let registry = if registry.is_empty() || registry == "docker.io" { DEFAULT_REGISTRY } else { registry };
    let path = if registry == DEFAULT_REGISTRY && !path.contains('/') {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    Ok((registry.to_owned(), path))
}

fn is_host(registry: &str) -> bool {
    let (host, port) = registry.split_once(':').map_or((registry, None), |(host, port)| (host, Some(port)));
    !host.is_empty()
        && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._~%!$&'()*+,;=".contains(c))
        && port.is_none_or(|port| port.bytes().all(|b| b.is_ascii_digit()))
}

fn check(what: &str, text: &str, allowed: &str, min: usize, max: usize) -> Result<(), TagError> {
    if !(min..=max).contains(&text.chars().count()) {
        return Err(TagError(format!("{what} must be between {min} and {max} characters in length: {text}")));
    }
    if !text.chars().all(|c| allowed.contains(c)) {
        return Err(TagError(format!("{what} can only contain the characters `{allowed}`: {text}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::golden;

    #[test]
    fn golden_images() {
        let cases = golden::cases("images");
        let failures: Vec<String> = cases
            .iter()
            .filter_map(|case| {
                let image = case["image"].as_str().unwrap_or_default();
                let mut got = json!({});
                match Reference::parse(image) {
                    Ok(reference) => got["isDigest"] = json!(reference.is_digest()),
                    Err(error) => got["parseError"] = json!(error.to_string()),
                }
                match Reference::parse_tag(image) {
                    Ok(reference) => {
                        got["registry"] = json!(reference.registry);
                        got["repository"] = json!(reference.repository());
                        if let Version::Tag(tag) = reference.version {
                            got["tag"] = json!(tag);
                        }
                    }
                    Err(error) => got["tagError"] = json!(error.to_string()),
                }
                (got != case["expect"]).then(|| format!("{image}: got {got}\nwant {}", case["expect"]))
            })
            .collect();
        golden::report("images", cases.len(), &failures);
    }

    #[test]
    fn an_empty_tag_is_none() {
        let reference = Reference::parse("nginx:");
        assert_eq!(reference.map(|r| r.version), Ok(Version::Tag("latest".into())));
        assert!(Reference::parse("example.com/app:").is_ok());
        assert!(Reference::parse(":").is_err());
    }

    #[test]
    fn digests_name_content() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let reference = Reference::parse(&format!("example.com/app/web:v1@{digest}"));
        assert_eq!(
            reference,
            Ok(Reference {
                registry: "example.com".into(),
                path: "app/web".into(),
                version: Version::Digest(digest)
            })
        );
    }
}
