//! The certificate the sidecar proves itself with: two files that Kubernetes mounts, and exchanges now and then.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ember_dataplane::tls::{InvalidPair, InvalidSetting, Pair, Server, Settings};
use tokio::fs;
use tokio::time::MissedTickBehavior;

/// The sidecar is to speak TLS, but cannot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Whether there is a file cannot be told, or it cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The files are no certificate and its key.
    #[error("{}: {source}", directory.display())]
    Invalid {
        /// Where they are.
        directory: PathBuf,
        /// What is wrong.
        source: InvalidPair,
    },
    /// `QUEUE_PROXY_TLS_*` cannot be followed.
    #[error(transparent)]
    Setting(#[from] InvalidSetting),
}

/// The pair of files, and the server that hands the certificate out.
#[derive(Debug)]
pub(crate) struct Certificate {
    files: Files,
    /// What the files held when they were last good.
    held: Contents,
    server: Server,
}

#[derive(Debug)]
struct Files {
    directory: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Contents").finish_non_exhaustive()
    }
}

impl Certificate {
    /// Reads `tls.crt` and `tls.key`. `None`: one of them is not there, and TLS is off; `settings` do not count then.
    ///
    /// # Errors
    /// [`Error`].
    pub(crate) async fn load(
        directory: &Path,
        settings: &Result<Settings, InvalidSetting>,
    ) -> Result<Option<Self>, Error> {
        let files = Files {
            directory: directory.to_owned(),
            certificate: directory.join("tls.crt"),
            key: directory.join("tls.key"),
        };
        if !(exists(&files.certificate)? && exists(&files.key)?) {
            return Ok(None);
        }
        let settings = settings.as_ref().map_err(Clone::clone)?;
        let held = files.read().await?;
        let server = Server::new(files.pair(&held)?, settings)?;
        Ok(Some(Self { files, held, server }))
    }

    /// The server that hands it out.
    pub(crate) fn server(&self) -> Server {
        self.server.clone()
    }

    /// Looks every `period` whether the files have changed, for ever.
    pub(crate) async fn watch(mut self, period: Duration) {
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            match self.reload().await {
                Ok(false) => {}
                Ok(true) => tracing::info!("Certificate and/or key have changed on disk and were reloaded."),
                Err(error) => tracing::error!("failed to reload certificate and key: {error}"),
            }
        }
    }

    /// Whether there was something new. A pair that is no good is looked at again the next time: the two files do not
    /// change at the same moment.
    async fn reload(&mut self) -> Result<bool, Error> {
        let now = self.files.read().await?;
        if now == self.held {
            return Ok(false);
        }
        self.server.exchange(self.files.pair(&now)?);
        self.held = now;
        Ok(true)
    }
}

impl Files {
    async fn read(&self) -> Result<Contents, Error> {
        Ok(Contents { certificate: read(&self.certificate).await?, key: read(&self.key).await? })
    }

    fn pair(&self, contents: &Contents) -> Result<Pair, Error> {
        Pair::from_pem(&contents.certificate, &contents.key)
            .map_err(|source| Error::Invalid { directory: self.directory.clone(), source })
    }
}

/// Asked once, at start, and without a thread for it: most sidecars have no such file.
fn exists(path: &Path) -> Result<bool, Error> {
    match path.metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(Error::File { path: path.to_owned(), source }),
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).await.map_err(|source| Error::File { path: path.to_owned(), source })
}
