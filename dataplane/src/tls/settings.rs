//! What a server agrees to, from the environment.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::server::WantsServerCert;
use rustls::server::danger::ClientCertVerifier;
use rustls::{
    CipherSuite, ConfigBuilder, NamedGroup, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion,
};

/// Versions, cipher suites and groups of a server. The default is TLS 1.3 alone with all there is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    prefix: String,
    min: Version,
    max: Version,
    /// Of TLS 1.2; those of TLS 1.3 are not for choosing.
    cipher_suites: Option<Vec<CipherSuite>>,
    groups: Option<Vec<NamedGroup>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Version {
    V1_2,
    #[default]
    V1_3,
}

/// A variable whose value cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {variable} {value:?}: {rule}")]
pub struct InvalidSetting {
    /// The variable's whole name.
    pub variable: String,
    /// What it holds.
    pub value: String,
    /// What it has to hold.
    pub rule: String,
}

const MIN_VERSION: &str = "TLS_MIN_VERSION";
const MAX_VERSION: &str = "TLS_MAX_VERSION";
const CIPHER_SUITES: &str = "TLS_CIPHER_SUITES";
const CURVE_PREFERENCES: &str = "TLS_CURVE_PREFERENCES";

/// The suites Go calls secure. Those of TLS 1.3 may be named, to no effect.
const SUITES: [(&str, CipherSuite); 13] = [
    ("TLS_AES_128_GCM_SHA256", CipherSuite::TLS13_AES_128_GCM_SHA256),
    ("TLS_AES_256_GCM_SHA384", CipherSuite::TLS13_AES_256_GCM_SHA384),
    ("TLS_CHACHA20_POLY1305_SHA256", CipherSuite::TLS13_CHACHA20_POLY1305_SHA256),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA),
    ("TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA),
    ("TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA", CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
    (
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
        CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    ),
];

const GROUPS: [(&str, NamedGroup); 8] = [
    ("CurveP256", NamedGroup::secp256r1),
    ("P-256", NamedGroup::secp256r1),
    ("CurveP384", NamedGroup::secp384r1),
    ("P-384", NamedGroup::secp384r1),
    ("CurveP521", NamedGroup::secp521r1),
    ("P-521", NamedGroup::secp521r1),
    ("X25519", NamedGroup::X25519),
    ("X25519MLKEM768", NamedGroup::X25519MLKEM768),
];

impl Settings {
    /// Reads `<prefix>TLS_MIN_VERSION` (`1.2` or `1.3`, the default), `<prefix>TLS_MAX_VERSION` (the same),
    /// `<prefix>TLS_CIPHER_SUITES` and `<prefix>TLS_CURVE_PREFERENCES` (names, separated by commas). Empty and unset
    /// are the default. Known suites and groups that are not at hand are left out as long as one remains.
    ///
    /// # Errors
    /// The first variable that says what cannot be done.
    pub fn from_env<'a>(prefix: &str, get: impl Fn(&str) -> Option<&'a str>) -> Result<Self, InvalidSetting> {
        let value = |name: &str| get(&format!("{prefix}{name}")).unwrap_or_default();
        let invalid = |name: &str, rule: String| InvalidSetting {
            variable: format!("{prefix}{name}"),
            value: value(name).to_owned(),
            rule,
        };
        let version = |name: &str| match value(name) {
            "1.2" => Ok(Version::V1_2),
            "" | "1.3" => Ok(Version::V1_3),
            _ => Err(invalid(name, "must be 1.2 or 1.3".to_owned())),
        };
        let (min, max) = (version(MIN_VERSION)?, version(MAX_VERSION)?);
        if max < min {
            return Err(invalid(MAX_VERSION, format!("must not be less than {prefix}{MIN_VERSION} (1.3)")));
        }
        let cipher_suites = named(value(CIPHER_SUITES), &SUITES)
            .map_err(|unknown| invalid(CIPHER_SUITES, format!("unknown cipher suite {unknown:?}")))?;
        let groups = named(value(CURVE_PREFERENCES), &GROUPS)
            .map_err(|unknown| invalid(CURVE_PREFERENCES, format!("unknown curve {unknown:?}")))?;
        let settings = Self { prefix: prefix.to_owned(), min, max, cipher_suites, groups };
        // Whatever does not work out is to be known now.
        settings.provider().map_err(|(name, rule)| invalid(name, rule))?;
        Ok(settings)
    }

    /// The provider, cut down to what was chosen; otherwise the variable to blame and the rule.
    fn provider(&self) -> Result<CryptoProvider, (&'static str, String)> {
        let mut provider = rustls::crypto::ring::default_provider();
        if let Some(chosen) = &self.cipher_suites {
            let allowed = |suite: &SupportedCipherSuite| {
                matches!(suite, SupportedCipherSuite::Tls13(_)) || chosen.contains(&suite.suite())
            };
            provider.cipher_suites.retain(allowed);
            let version = |version| provider.cipher_suites.iter().any(|suite| suite.version() == version);
            let only_1_2 = self.max == Version::V1_2;
            let asked = chosen.iter().any(|suite| !is_tls13(*suite));
            if self.min == Version::V1_2 && !version(&rustls::version::TLS12) && (asked || only_1_2) {
                return Err((CIPHER_SUITES, "none of these is supported with TLS 1.2".to_owned()));
            }
        }
        if let Some(chosen) = &self.groups {
            let at_hand = |group: &NamedGroup| -> Option<&'static dyn SupportedKxGroup> {
                provider.kx_groups.iter().copied().find(|known| known.name() == *group)
            };
            let kept: Vec<_> = chosen.iter().filter_map(at_hand).collect();
            if kept.is_empty() {
                return Err((CURVE_PREFERENCES, "must name one of P-256, P-384 and X25519".to_owned()));
            }
            provider.kx_groups = kept;
        }
        Ok(provider)
    }

    fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        static ALL: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];
        match (self.min, self.max) {
            (_, Version::V1_2) => &ALL[1..],
            (Version::V1_2, Version::V1_3) => &ALL,
            (Version::V1_3, Version::V1_3) => &ALL[..1],
        }
    }

    /// A server that follows the settings and asks clients for what `clients` says.
    pub(super) fn server(
        &self,
        clients: Arc<dyn ClientCertVerifier>,
    ) -> Result<ConfigBuilder<ServerConfig, WantsServerCert>, InvalidSetting> {
        let invalid = |(name, rule): (&str, String)| InvalidSetting {
            variable: format!("{}{name}", self.prefix),
            value: String::new(),
            rule,
        };
        let provider = self.provider().map_err(invalid)?;
        ServerConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(self.versions())
            .map(|builder| builder.with_client_cert_verifier(clients))
            .map_err(|error| invalid((MIN_VERSION, error.to_string())))
    }
}

fn is_tls13(suite: CipherSuite) -> bool {
    // 0x1301 and the following are suites of TLS 1.3.
    u16::from(suite) >> 8 == 0x13
}

/// What the names of a list mean; `None` when it names nothing. The error is the first unknown name.
fn named<'a, T: Copy>(list: &'a str, known: &[(&str, T)]) -> Result<Option<Vec<T>>, &'a str> {
    let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
    let meanings = names
        .map(|name| known.iter().find(|(known, _)| *known == name).map(|(_, meaning)| *meaning).ok_or(name));
    let meanings = meanings.collect::<Result<Vec<_>, _>>()?;
    Ok((!meanings.is_empty()).then_some(meanings))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &'static str)]) -> Result<Settings, InvalidSetting> {
        Settings::from_env("QUEUE_PROXY_", |name| {
            let name = name.strip_prefix("QUEUE_PROXY_")?;
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
        })
    }

    fn asked(settings: &Settings) -> Result<ConfigBuilder<ServerConfig, WantsServerCert>, InvalidSetting> {
        settings.server(rustls::server::WebPkiClientVerifier::no_client_auth())
    }

    fn said(variables: &[(&str, &'static str)]) -> String {
        with(variables).unwrap_err().to_string()
    }

    #[test]
    fn tls_1_3_is_the_default() {
        for settings in [with(&[]).unwrap(), with(&[("TLS_MIN_VERSION", "")]).unwrap()] {
            assert_eq!(settings.versions(), [&rustls::version::TLS13]);
            assert!(asked(&settings).is_ok());
        }
        assert!(asked(&Settings::default()).is_ok());
    }

    #[test]
    fn versions() {
        let of = |min, max| with(&[("TLS_MIN_VERSION", min), ("TLS_MAX_VERSION", max)]);
        assert_eq!(of("1.2", "").unwrap().versions(), [&rustls::version::TLS13, &rustls::version::TLS12]);
        assert_eq!(of("1.2", "1.2").unwrap().versions(), [&rustls::version::TLS12]);
        assert!(asked(&of("1.2", "1.2").unwrap()).is_ok());
        assert_eq!(
            said(&[("TLS_MIN_VERSION", "1.1")]),
            "invalid QUEUE_PROXY_TLS_MIN_VERSION \"1.1\": must be 1.2 or 1.3"
        );
        assert_eq!(
            said(&[("TLS_MAX_VERSION", "1.3 ")]),
            "invalid QUEUE_PROXY_TLS_MAX_VERSION \"1.3 \": must be 1.2 or 1.3"
        );
        assert_eq!(
            of("1.3", "1.2").unwrap_err().to_string(),
            "invalid QUEUE_PROXY_TLS_MAX_VERSION \"1.2\": must not be less than QUEUE_PROXY_TLS_MIN_VERSION (1.3)"
        );
    }

    #[test]
    fn cipher_suites() {
        let gcm = " TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 ,, TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA";
        let settings = with(&[("TLS_MIN_VERSION", "1.2"), ("TLS_CIPHER_SUITES", gcm)]).unwrap();
        let suites = settings.provider().unwrap().cipher_suites;
        let of_1_2 = suites.iter().filter(|suite| suite.tls13().is_none()).map(SupportedCipherSuite::suite);
        assert_eq!(of_1_2.collect::<Vec<_>>(), [CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]);
        assert_eq!(suites.iter().filter(|suite| suite.tls13().is_some()).count(), 3);
        assert!(asked(&settings).is_ok());

        assert_eq!(
            said(&[("TLS_CIPHER_SUITES", "TLS_RSA_WITH_RC4_128_SHA")]),
            "invalid QUEUE_PROXY_TLS_CIPHER_SUITES \"TLS_RSA_WITH_RC4_128_SHA\": \
             unknown cipher suite \"TLS_RSA_WITH_RC4_128_SHA\""
        );
        let cbc = ("TLS_CIPHER_SUITES", "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA");
        assert!(
            said(&[("TLS_MIN_VERSION", "1.2"), cbc]).ends_with("none of these is supported with TLS 1.2")
        );
        // Without TLS 1.2 they are nobody's business.
        assert!(asked(&with(&[cbc]).unwrap()).is_ok());
        let modern = ("TLS_CIPHER_SUITES", "TLS_AES_128_GCM_SHA256");
        assert!(asked(&with(&[("TLS_MIN_VERSION", "1.2"), modern]).unwrap()).is_ok());
        assert!(with(&[("TLS_MIN_VERSION", "1.2"), ("TLS_MAX_VERSION", "1.2"), modern]).is_err());
    }

    #[test]
    fn groups() {
        let of = |names| with(&[("TLS_CURVE_PREFERENCES", names)]);
        let names = |settings: &Settings| -> Vec<_> {
            settings.provider().unwrap().kx_groups.iter().map(|group| group.name()).collect()
        };
        assert_eq!(
            names(&of("CurveP384, X25519,P-256,").unwrap()),
            [NamedGroup::secp384r1, NamedGroup::X25519, NamedGroup::secp256r1]
        );
        assert_eq!(names(&of("X25519MLKEM768,CurveP521,X25519").unwrap()), [NamedGroup::X25519]);
        assert_eq!(
            of("X25519MLKEM768").unwrap_err().to_string(),
            "invalid QUEUE_PROXY_TLS_CURVE_PREFERENCES \"X25519MLKEM768\": \
             must name one of P-256, P-384 and X25519"
        );
        assert!(of("CurveP128").unwrap_err().to_string().ends_with("unknown curve \"CurveP128\""));
        assert_eq!(names(&of(" , ").unwrap()).len(), 3);
    }
}
