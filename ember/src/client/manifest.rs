//! YAML manifests: from files, folders or standard input to JSON objects, each with the place it came from.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::Value;

/// One object of a manifest.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    /// File and document number, for messages.
    pub(crate) source: String,
    /// The object.
    pub(crate) object: Value,
}

impl Manifest {
    fn text(&self, path: &str) -> &str {
        self.object.pointer(path).and_then(Value::as_str).unwrap_or("")
    }

    pub(crate) fn api_version(&self) -> &str {
        self.text("/apiVersion")
    }

    pub(crate) fn kind(&self) -> &str {
        self.text("/kind")
    }

    pub(crate) fn name(&self) -> &str {
        self.text("/metadata/name")
    }

    pub(crate) fn namespace(&self) -> Option<&str> {
        self.object.pointer("/metadata/namespace").and_then(Value::as_str)
    }
}

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind(), self.name())
    }
}

/// Reads `-` (standard input), a file, or every `*.yaml`, `*.yml` and `*.json` of a folder, in order of name.
///
/// # Errors
/// Names the file, the document and what is wrong with it; nothing is returned of the good ones.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Manifest>> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
        return parse("standard input", &text);
    }
    let mut manifests = Vec::new();
    for file in files(path)? {
        let text =
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        manifests.extend(parse(&file.display().to_string(), &text)?);
    }
    Ok(manifests)
}

fn files(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let about = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if !about.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
        let file = entry?.path();
        let wanted = file.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
        if wanted && file.is_file() {
            files.push(file);
        }
    }
    if files.is_empty() {
        bail!("{} has no .yaml, .yml or .json file", path.display());
    }
    files.sort();
    Ok(files)
}

/// Parses the documents of one text; empty documents are left out, a `List` is taken apart.
pub(crate) fn parse(source: &str, text: &str) -> anyhow::Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    let starts = starts(text);
    for (index, document) in serde_norway::Deserializer::from_str(text).enumerate() {
        let line = starts.get(index).map(|line| format!(" (line {line})")).unwrap_or_default();
        let place = format!("{source}, document {}{line}", index + 1);
        let value =
            serde_norway::Value::deserialize(document).with_context(|| format!("{place}: not valid YAML"))?;
        let value: Value =
            serde_json::to_value(value).with_context(|| format!("{place}: not a Kubernetes object"))?;
        match value {
            Value::Null => {}
            Value::Object(mut list) if list.get("kind").is_some_and(|k| k == "List") => {
                let items = list.remove("items").and_then(|items| match items {
                    Value::Array(items) => Some(items),
                    _ => None,
                });
                for (item, object) in items.unwrap_or_default().into_iter().enumerate() {
                    manifests.push(checked(format!("{place}, item {}", item + 1), object)?);
                }
            }
            object => manifests.push(checked(place, object)?),
        }
    }
    Ok(manifests)
}

/// The lines that documents start at, from 1: after each `---`, and at the top where something stands before the first.
fn starts(text: &str) -> Vec<usize> {
    let mut starts = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let content = line.trim_start();
        let marked = line == "---" || line.starts_with("--- ");
        if marked || (starts.is_empty() && !content.is_empty() && !content.starts_with(['#', '%'])) {
            starts.push(index + 1);
        }
    }
    starts
}

fn checked(source: String, object: Value) -> anyhow::Result<Manifest> {
    let manifest = Manifest { source, object };
    let place = &manifest.source;
    if !manifest.object.is_object() {
        bail!("{place}: not a Kubernetes object: a mapping with apiVersion, kind and metadata is expected");
    }
    if manifest.api_version().is_empty() {
        bail!("{place}: apiVersion not set");
    }
    if manifest.kind().is_empty() {
        bail!("{place}: kind not set");
    }
    if manifest.name().is_empty() {
        bail!("{place}: metadata.name not set: resource name may not be empty");
    }
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_lists_and_gaps() {
        let text = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\n# nothing\n---\napiVersion: v1\n\
                    kind: List\nitems:\n- {apiVersion: v1, kind: Secret, metadata: {name: b}}\n";
        let names: Vec<_> = parse("f", text).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["ConfigMap a", "Secret b"]);
    }

    #[test]
    fn what_is_wrong_and_where() {
        for (text, part) in [
            ("a: [", "f, document 1 (line 1): not valid YAML"),
            (
                "# a\napiVersion: v1\nkind: A\nmetadata: {name: a}\n---\nb: [\nc: [",
                "f, document 2 (line 5): not valid YAML",
            ),
            ("a: 1\nb: [", "at line 3"),
            (
                "---\napiVersion: v1\nkind: A\nmetadata: {name: a}\n---\nkind: X",
                "f, document 2 (line 5): apiVersion not set",
            ),
            ("kind: X\nmetadata: {name: a}", "apiVersion not set"),
            ("apiVersion: v1\nmetadata: {name: a}", "kind not set"),
            ("apiVersion: v1\nkind: X", "metadata.name not set"),
            ("hello", "not a Kubernetes object"),
        ] {
            let error = format!("{:#}", parse("f", text).unwrap_err());
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }
}
