//! What the registry needs to know of each kind's shape: its schema and its printer columns.

use serde_json::Value;

use crate::resource::RESOURCES;
use crate::table::{self, Column};

/// Shapes by position in the registry.
pub(crate) struct Kinds(Vec<Kind>);

struct Kind {
    schema: Option<Value>,
    columns: Vec<Column>,
}

impl Kinds {
    pub(crate) fn new() -> Self {
        let kinds = RESOURCES.iter().map(|resource| {
            let info = ember_api::schema::find(resource.group, resource.kind).filter(|_| resource.custom);
            let Some(info) = info else {
                return Kind { schema: None, columns: table::builtin(resource) };
            };
            let mut columns = vec![table::name_column()];
            columns.extend(info.columns.iter().filter_map(|c| {
                Column::declared(&c.name, &c.type_, &c.description, c.priority.into(), &c.json_path)
            }));
            if columns.len() == 1 {
                columns.push(Column::age());
            }
            Kind { schema: Some(info.schema.clone()), columns }
        });
        Self(kinds.collect())
    }

    /// The structural schema of a custom kind.
    pub(crate) fn schema(&self, resource: usize) -> Option<&Value> {
        self.0[resource].schema.as_ref()
    }

    pub(crate) fn columns(&self, resource: usize) -> &[Column] {
        &self.0[resource].columns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_registry_serves_the_custom_kinds_as_they_are_described() {
        let kinds = Kinds::new();
        for info in ember_api::schema::all() {
            let found =
                RESOURCES.iter().enumerate().find(|(_, r)| r.group == info.group && r.kind == info.kind);
            let (index, resource) = found.unwrap_or_else(|| panic!("{} is not served", info.kind));
            assert!(resource.custom);
            assert_eq!((resource.version, resource.plural), (info.version.as_str(), info.plural.as_str()));
            assert_eq!(resource.singular, info.singular);
            let sorted = |list: &[&str]| {
                let mut list: Vec<String> = list.iter().map(|s| (*s).to_owned()).collect();
                list.sort();
                list
            };
            let strings = |list: &[String]| sorted(&list.iter().map(String::as_str).collect::<Vec<_>>());
            assert_eq!(sorted(resource.short_names), strings(&info.short_names), "{}", info.kind);
            assert_eq!(sorted(resource.categories), strings(&info.categories), "{}", info.kind);
            assert_eq!(resource.namespaced, info.namespaced);
            assert!(kinds.schema(index).is_some());
            assert_eq!(
                kinds.columns(index).len(),
                info.columns.len().max(1) + 1,
                "{}: a column's path",
                info.kind
            );
        }
        let served = RESOURCES.iter().filter(|r| r.custom).count();
        assert_eq!(served, ember_api::schema::all().len());
    }
}
