//! The port Prometheus finds metrics on: where it is, and whom it talks to.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::tls::{InvalidClients, InvalidPair, InvalidSetting, Pair, Roots, Server, Settings};
use tokio::fs;

const HOST: &str = "METRICS_PROMETHEUS_HOST";
const PORT: &str = "METRICS_PROMETHEUS_PORT";
const CERTIFICATE: &str = "METRICS_PROMETHEUS_TLS_CERT";
const KEY: &str = "METRICS_PROMETHEUS_TLS_KEY";
const CLIENT_AUTH: &str = "METRICS_PROMETHEUS_TLS_CLIENT_AUTH";
const CLIENT_CA: &str = "METRICS_PROMETHEUS_TLS_CLIENT_CA_FILE";

/// The port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prometheus {
    /// The address, if it is not that of the other ports.
    pub host: Option<IpAddr>,
    /// The port. 9091.
    pub port: Option<u16>,
    /// TLS, if it is spoken.
    pub tls: Option<Tls>,
}

/// TLS on the port. The files are read at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The certificate and its chain, PEM. `METRICS_PROMETHEUS_TLS_CERT`.
    pub certificate: PathBuf,
    /// Its key, PEM. `METRICS_PROMETHEUS_TLS_KEY`.
    pub key: PathBuf,
    /// Who may ask. `METRICS_PROMETHEUS_TLS_CLIENT_AUTH` and `METRICS_PROMETHEUS_TLS_CLIENT_CA_FILE`.
    pub clients: Clients,
    /// What is agreed on. `METRICS_PROMETHEUS_TLS_MIN_VERSION` and the like.
    pub settings: Settings,
}

/// Who may ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clients {
    /// Anyone.
    Any,
    /// Anyone, but who shows a certificate has to have it from these authorities, PEM.
    Optional(PathBuf),
    /// Who shows a certificate of these authorities, PEM.
    Required(PathBuf),
}

/// The port cannot speak TLS.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("{variable}: {}: {source}", path.display())]
    File {
        /// The variable that names it.
        variable: &'static str,
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The files are no certificate and its key.
    #[error("{CERTIFICATE}: {0}")]
    Pair(#[from] InvalidPair),
    /// `METRICS_PROMETHEUS_TLS_*` cannot be followed.
    #[error(transparent)]
    Setting(#[from] InvalidSetting),
    /// The file names no authority.
    #[error("{CLIENT_CA}: {0}")]
    Clients(#[from] InvalidClients),
}

impl Prometheus {
    /// By the configured endpoint, `host:port` with either missing, and the environment that overrides it.
    ///
    /// # Errors
    /// What is wrong, by the name of the variable.
    pub fn parse<'a>(endpoint: &str, variable: impl Fn(&str) -> Option<&'a str>) -> Result<Self, String> {
        let (endpoint_host, endpoint_port) = match endpoint.rsplit_once(':') {
            Some((host, port)) => (host.trim_matches(['[', ']']), port),
            None => ("", endpoint),
        };
        let host = variable(HOST).unwrap_or(endpoint_host);
        let host = match host {
            "" => None,
            host => Some(host.parse().map_err(|_| format!("prometheus host {host:?}: not an IP address"))?),
        };
        let port = variable(PORT).unwrap_or(endpoint_port);
        let port = match port {
            "" => None,
            port => Some(
                port.parse()
                    .ok()
                    .filter(|port| *port >= 1024)
                    .ok_or_else(|| format!("prometheus port {port:?}: must be between 1024 and 65535"))?,
            ),
        };
        Ok(Self { host, port, tls: Tls::parse(variable)? })
    }
}

impl Tls {
    /// By the environment; `None` where no certificate is named.
    ///
    /// # Errors
    /// What is wrong, by the name of the variable.
    pub fn parse<'a>(variable: impl Fn(&str) -> Option<&'a str>) -> Result<Option<Self>, String> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let (certificate, key) = match (set(CERTIFICATE), set(KEY)) {
            (None, None) => {
                let auth = set(CLIENT_AUTH).filter(|auth| *auth != "none").map(|_| CLIENT_AUTH);
                return match auth {
                    Some(name) => Err(format!("{name}: needs {CERTIFICATE} and {KEY}")),
                    None => Ok(None),
                };
            }
            (Some(certificate), Some(key)) => (certificate.into(), key.into()),
            (Some(_), None) => return Err(format!("{CERTIFICATE}: needs {KEY}")),
            (None, Some(_)) => return Err(format!("{KEY}: needs {CERTIFICATE}")),
        };
        let authorities =
            || set(CLIENT_CA).map(PathBuf::from).ok_or(format!("{CLIENT_AUTH}: needs {CLIENT_CA}"));
        let clients = match set(CLIENT_AUTH) {
            None | Some("none") => Clients::Any,
            Some("optional") => Clients::Optional(authorities()?),
            Some("require") => Clients::Required(authorities()?),
            Some(other) => return Err(format!("{CLIENT_AUTH} {other:?}: must be none, optional or require")),
        };
        let settings =
            Settings::from_env("METRICS_PROMETHEUS_", variable).map_err(|error| error.to_string())?;
        Ok(Some(Self { certificate, key, clients, settings }))
    }

    /// Reads the files.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn server(&self) -> Result<Server, Error> {
        let certificate = read(CERTIFICATE, &self.certificate).await?;
        let pair = Pair::from_pem(&certificate, &read(KEY, &self.key).await?)?;
        let (authorities, required) = match &self.clients {
            Clients::Any => return Ok(Server::new(pair, &self.settings)?),
            Clients::Optional(authorities) => (authorities, false),
            Clients::Required(authorities) => (authorities, true),
        };
        let mut roots = Roots::default();
        for left_out in roots.add_pem(&read(CLIENT_CA, authorities).await?) {
            tracing::warn!("{CLIENT_CA}: {left_out}");
        }
        Ok(Server::new(pair, &self.settings)?.with_clients(&roots, required, &self.settings)?)
    }
}

async fn read(variable: &'static str, path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).await.map_err(|source| Error::File { variable, path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &'static str)]) -> Result<Option<Tls>, String> {
        let variable =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        Prometheus::parse("", variable).map(|found| found.tls)
    }

    #[test]
    fn what_belongs_together_is_asked_for_by_name() {
        let pair = [(CERTIFICATE, "/c"), (KEY, "/k")];
        let with = |more: &[(&'static str, &'static str)]| of(&[&pair, more].concat());
        assert_eq!(of(&[(CERTIFICATE, ""), (KEY, "")]), Ok(None));
        assert_eq!(of(&[(CLIENT_AUTH, "none")]), Ok(None));
        assert_eq!(with(&[]).unwrap().unwrap().clients, Clients::Any);
        assert_eq!(with(&[(CLIENT_CA, "/ca")]).unwrap().unwrap().clients, Clients::Any);
        let required = with(&[(CLIENT_AUTH, "require"), (CLIENT_CA, "/ca")]).unwrap().unwrap();
        assert_eq!(required.clients, Clients::Required("/ca".into()));
        let optional = with(&[(CLIENT_AUTH, "optional"), (CLIENT_CA, "/ca")]).unwrap().unwrap();
        assert_eq!(optional.clients, Clients::Optional("/ca".into()));
        let wrong = [
            (of(&pair[..1]), CERTIFICATE),
            (of(&pair[1..]), KEY),
            (of(&[(CLIENT_AUTH, "require")]), CLIENT_AUTH),
            (with(&[(CLIENT_AUTH, "require")]), CLIENT_CA),
            (with(&[(CLIENT_AUTH, "maybe")]), CLIENT_AUTH),
            (with(&[("METRICS_PROMETHEUS_TLS_MIN_VERSION", "1.1")]), "METRICS_PROMETHEUS_TLS_MIN_VERSION"),
        ];
        for (result, name) in wrong {
            let error = result.unwrap_err();
            assert!(error.contains(name), "{name} in {error}");
        }
    }
}
