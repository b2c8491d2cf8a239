//! The request log: a line for each request, made by the template that `config-observability` has.
//!
//! A [`Record`] is begun when a request arrives and written when it is dropped: at the end of the exchange, however
//! that came. The line is rendered then and there, and handed to an [`Output`], which never waits.

mod input;
mod output;
mod record;

use std::net::SocketAddr;
use std::sync::Arc;

use ember_template::Template;
use http::Request;

pub use ember_template::{DEFAULT_REQUEST_LOG as DEFAULT_TEMPLATE, TemplateError};
pub use output::Output;
pub use record::Record;

/// What a template may know of the revision that serves a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revision {
    /// The Revision's name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The Service, or empty.
    pub service: String,
    /// The Configuration, or empty.
    pub configuration: String,
    /// The pod, or empty where the pod is another's.
    pub pod_name: String,
    /// Its address, or empty.
    pub pod_ip: String,
}

/// A template and where its lines go.
#[derive(Debug)]
pub struct RequestLog {
    template: Template,
    output: Output,
}

impl RequestLog {
    /// A log with lines of that template, which end with a line feed in any case; `None` if it is empty: nothing is
    /// logged. `output` is asked for where there is to be something to write.
    ///
    /// # Errors
    /// The text is no template.
    pub fn new(template: &str, output: impl FnOnce() -> Output) -> Result<Option<Arc<Self>>, TemplateError> {
        if template.is_empty() {
            return Ok(None);
        }
        let end = if template.ends_with('\n') { "" } else { "\n" };
        let template = Template::parse("requestLog", &format!("{template}{end}"))?;
        Ok(Some(Arc::new(Self { template, output: output() })))
    }

    /// Begins the record of a request that `peer` has sent. `content_length`: the size of its body, if it is known.
    #[must_use]
    pub fn begin<B>(
        self: &Arc<Self>,
        request: &Request<B>,
        revision: &Arc<Revision>,
        peer: SocketAddr,
        content_length: Option<u64>,
    ) -> Record {
        Record::new(Arc::clone(self), request, Arc::clone(revision), peer, content_length)
    }
}

#[cfg(test)]
mod tests;
