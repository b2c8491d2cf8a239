//! Which traces are recorded.

use crate::otlp::{Environment, Protocol};

/// How is decided whether a trace is recorded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Root {
    /// All.
    Always,
    /// None.
    Never,
    /// So many of them, by the trace's id.
    Ratio(f64),
}

/// How is decided whether a span is recorded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    /// Without a caller.
    pub root: Root,
    /// Whether the caller's decision is followed, if there is one.
    pub parent_based: bool,
}

impl Sampler {
    /// By `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG` where they are set; what is printed is all; else by the
    /// rate, where everything and nothing are so whatever the caller has decided.
    #[must_use]
    pub fn choose(protocol: Protocol, rate: f64, environment: &Environment) -> Self {
        if let Some(name) = environment.get("OTEL_TRACES_SAMPLER") {
            return Self::named(name, environment.get("OTEL_TRACES_SAMPLER_ARG"));
        }
        if protocol == Protocol::Stdout || rate >= 1.0 {
            Self { root: Root::Always, parent_based: false }
        } else if rate > 0.0 {
            Self { root: Root::Ratio(rate), parent_based: true }
        } else {
            Self { root: Root::Never, parent_based: false }
        }
    }

    /// A sampler by OpenTelemetry's name; the default of that is the caller's decision, and else everything.
    fn named(name: &str, argument: Option<&str>) -> Self {
        let ratio = || {
            let ratio = argument.and_then(|argument| argument.trim().parse::<f64>().ok());
            Root::Ratio(ratio.filter(|ratio| (0.0..=1.0).contains(ratio)).unwrap_or(1.0))
        };
        let (root, parent_based) = match name.trim().to_ascii_lowercase().as_str() {
            "always_on" => (Root::Always, false),
            "always_off" => (Root::Never, false),
            "traceidratio" => (ratio(), false),
            "parentbased_always_off" => (Root::Never, true),
            "parentbased_traceidratio" => (ratio(), true),
            _ => (Root::Always, true),
        };
        Self { root, parent_based }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(protocol: Protocol, rate: f64, variables: &[(&str, &str)]) -> (Root, bool) {
        let environment =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let Sampler { root, parent_based } = Sampler::choose(protocol, rate, &environment);
        (root, parent_based)
    }

    #[test]
    fn by_the_rate() {
        let grpc = |rate| choose(Protocol::Grpc, rate, &[]);
        assert_eq!(grpc(1.0), (Root::Always, false));
        assert_eq!(grpc(7.0), (Root::Always, false));
        assert_eq!(grpc(0.0), (Root::Never, false));
        assert_eq!(grpc(-1.0), (Root::Never, false));
        assert_eq!(grpc(f64::NAN), (Root::Never, false));
        assert_eq!(grpc(0.25), (Root::Ratio(0.25), true));
        assert_eq!(choose(Protocol::Stdout, 0.0, &[]), (Root::Always, false));
    }

    #[test]
    fn the_environment_decides_where_it_says_something() {
        let named = |name, argument| {
            choose(
                Protocol::Stdout,
                1.0,
                &[("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", argument)],
            )
        };
        assert_eq!(named("always_off", ""), (Root::Never, false));
        assert_eq!(named("always_on", ""), (Root::Always, false));
        assert_eq!(named("traceidratio", "0.1"), (Root::Ratio(0.1), false));
        assert_eq!(named("parentbased_traceidratio", "0.5"), (Root::Ratio(0.5), true));
        assert_eq!(named("parentbased_traceidratio", "x"), (Root::Ratio(1.0), true));
        assert_eq!(named("parentbased_always_off", ""), (Root::Never, true));
        assert_eq!(named("unheard_of", ""), (Root::Always, true));
        let alone = choose(Protocol::Grpc, 0.0, &[("OTEL_TRACES_SAMPLER_ARG", "1")]);
        assert_eq!(alone, (Root::Never, false), "an argument of no sampler");
    }
}
