//! Log lines: JSON where machines read them, plain text where people do. Always on standard error: standard output
//! belongs to what a command was asked to print.

use std::fmt;
use std::io::IsTerminal;

use tracing::Level;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

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
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Filter(error) => write!(f, "invalid log filter: {error}"),
            Self::Installed(error) => write!(f, "logging is already set up: {error}"),
        }
    }
}

impl std::error::Error for LogError {}

/// Installs the process's logger. `filter` has the form of `RUST_LOG`, for instance `info,ember_autoscaler=debug`.
///
/// # Errors
/// When the filter does not parse or a logger is installed already.
pub fn init(format: Format, filter: &str) -> Result<(), LogError> {
    let filter: Targets = filter.parse().map_err(LogError::Filter)?;
    // Whatever the filter lets pass.
    let builder = tracing_subscriber::fmt().with_max_level(Level::TRACE).with_writer(std::io::stderr);
    match format {
        Format::Json => builder.json().flatten_event(true).finish().with(filter).try_init(),
        Format::Plain => {
            let colours = std::io::stderr().is_terminal();
            builder.with_target(false).with_ansi(colours).finish().with(filter).try_init()
        }
    }
    .map_err(LogError::Installed)
}
