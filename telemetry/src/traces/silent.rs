//! Traces in a build without exporters: there are none.

use std::borrow::Cow;
use std::time::Duration;

use http::HeaderMap;

use super::{Kind, Settings};
use crate::otlp::{Attribute, ExportError, Value};

/// Makes spans. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Tracer(());

impl Tracer {
    /// Makes spans and exports them.
    ///
    /// # Errors
    /// [`ExportError::Unsupported`], in this build.
    pub fn start(_: &Settings) -> Result<Self, ExportError> {
        Err(ExportError::Unsupported)
    }

    /// A span of a request, under the caller's span that `headers` tell of. Nothing, if traces are off.
    #[must_use]
    pub fn server(&self, _: impl Into<Cow<'static, str>>, _: &HeaderMap) -> Option<Span> {
        None
    }

    /// Exports what is left, and no longer than `within`.
    pub async fn finish(&self, _: Duration) {}
}

/// A span; it ends when it is dropped.
#[derive(Debug)]
pub struct Span(());

impl Span {
    /// A span under this one.
    #[must_use]
    pub fn child(&self, _: Kind, _: impl Into<Cow<'static, str>>) -> Self {
        Self(())
    }

    /// Whether attributes are of use to anybody.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        false
    }

    /// Adds an attribute.
    pub fn set(&mut self, _: &'static str, _: impl Into<Value>) {}

    /// Adds attributes.
    pub fn extend(&mut self, _: impl IntoIterator<Item = Attribute>) {}

    /// What it stands for has failed.
    pub fn fail(&mut self, _: impl Into<Cow<'static, str>>) {}

    /// Ends it now. It may still be the parent of others.
    pub fn end(&mut self) {}

    /// Makes it the parent of the next hop's.
    pub fn inject(&self, _: &mut HeaderMap) {}
}
