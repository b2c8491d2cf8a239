//! Log lines: JSON where machines read them, plain text where people do. Always on standard error: standard output
//! belongs to what a command was asked to print.

use std::fmt;
use std::io::{self, IsTerminal};

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Registry, reload};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line, as Knative's components log.
    Json,
    /// Plain lines for a terminal.
    Plain,
}

/// Logging could not be set up.
#[derive(Debug)]
pub enum LogError {
    /// The filter directives could not be parsed.
    Filter(tracing_subscriber::filter::ParseError),
    /// A subscriber is already installed in this process.
    Installed(TryInitError),
    /// The subscriber whose filter is to change is gone.
    Gone(reload::Error),
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Filter(error) => write!(f, "invalid log filter: {error}"),
            Self::Installed(error) => write!(f, "logging is already set up: {error}"),
            Self::Gone(error) => write!(f, "the log filter cannot change: {error}"),
        }
    }
}

impl std::error::Error for LogError {}

/// What the process's logger lets pass, to be changed while it runs.
#[derive(Debug, Clone)]
pub struct Filter(reload::Handle<Targets, Registry>);

impl Filter {
    /// From now on the logger lets that pass; the form is that of [`init`].
    ///
    /// # Errors
    /// When the filter does not parse, which changes nothing, or the logger is gone.
    pub fn set(&self, filter: &str) -> Result<(), LogError> {
        self.0.reload(parse(filter)?).map_err(LogError::Gone)
    }
}

fn parse(filter: &str) -> Result<Targets, LogError> {
    filter.parse().map_err(LogError::Filter)
}

/// Installs the process's logger. `filter` has the form of `RUST_LOG`, for instance `info,ember_autoscaler=debug`.
/// Whether a line passes is decided once for each place in the code, and again after [`Filter::set`].
///
/// # Errors
/// When the filter does not parse or a logger is installed already.
pub fn init(format: Format, filter: &str) -> Result<Filter, LogError> {
    init_to(format, filter, std::io::stderr)
}

/// As [`init`], with each line written at once to what `writer` returns, which stands for the standard error.
///
/// # Errors
/// As [`init`].
pub fn init_to<W: io::Write>(
    format: Format,
    filter: &str,
    writer: impl Fn() -> W + Send + Sync + 'static,
) -> Result<Filter, LogError> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines = match format {
        Format::Json => lines.json().flatten_event(true).boxed(),
        Format::Plain => {
            let colours = std::io::stderr().is_terminal();
            lines.with_target(false).with_ansi(colours).boxed()
        }
    };
    tracing_subscriber::registry().with(filter).with(lines).try_init().map_err(LogError::Installed)?;
    Ok(Filter(handle))
}
