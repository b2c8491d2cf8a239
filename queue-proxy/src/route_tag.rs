//! The route tag: which of a Route's targets a request was sent to by name.

use ember_dataplane::header::{DEFAULT_ROUTE, TAG};
use ember_dataplane::metrics::family::OTHER;
use ember_dataplane::metrics::http::Extra;
use ember_dataplane::metrics::text::Label;
use http::{HeaderMap, HeaderName, HeaderValue};

/// The attribute's name.
pub(crate) const NAME: &str = "kn.route.tag";
/// Longer ones name no target.
const LONGEST: usize = 255;

/// What the routing in front says about a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum RouteTag {
    /// Not asked: a probe.
    Absent,
    /// Nothing.
    Disabled,
    /// No tag, the default route.
    Default,
    /// A tag that no target has.
    Undefined,
    /// A tag.
    Named(HeaderValue),
    /// One of too many.
    Other,
}

impl RouteTag {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let value = |name: &HeaderName| headers.get(name).filter(|value| !value.is_empty());
        match (value(&TAG), value(&DEFAULT_ROUTE)) {
            (None, None) => Self::Disabled,
            (None, Some(_)) => Self::Default,
            (Some(_), Some(default)) if default == "true" => Self::Undefined,
            (Some(tag), _) if tag.len() > LONGEST => Self::Other,
            (Some(tag), _) => Self::Named(tag.clone()),
        }
    }

    /// The attribute's value.
    pub(crate) fn value(&self) -> Option<String> {
        let text = match self {
            Self::Absent => return None,
            Self::Disabled => "kn:disabled",
            Self::Default => "kn:default",
            Self::Undefined => "kn:undefined",
            Self::Other => OTHER,
            Self::Named(tag) => return Some(String::from_utf8_lossy(tag.as_bytes()).into_owned()),
        };
        Some(text.to_owned())
    }
}

impl Extra for RouteTag {
    fn add_to<'a>(&'a self, labels: &mut Vec<Label<'a>>) {
        labels.extend(self.value().map(|value| (NAME, value.into())));
    }

    fn other(&self) -> Self {
        match self {
            Self::Named(_) => Self::Other,
            known => known.clone(),
        }
    }

    fn detached(&self) -> Self {
        match self {
            Self::Named(tag) => HeaderValue::from_bytes(tag.as_bytes()).map_or(Self::Other, Self::Named),
            known => known.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_the_two_headers() {
        let table = [
            ("", "", "kn:disabled"),
            ("", "true", "kn:default"),
            ("", "false", "kn:default"),
            ("canary", "true", "kn:undefined"),
            ("canary", "false", "canary"),
            ("canary", "", "canary"),
        ];
        for (tag, default, expected) in table {
            let mut headers = HeaderMap::new();
            headers.insert(TAG, HeaderValue::from_static(tag));
            headers.insert(DEFAULT_ROUTE, HeaderValue::from_static(default));
            assert_eq!(RouteTag::of(&headers).value().as_deref(), Some(expected), "{tag:?} {default:?}");
        }
        assert_eq!(RouteTag::of(&HeaderMap::new()), RouteTag::Disabled);
    }
}
