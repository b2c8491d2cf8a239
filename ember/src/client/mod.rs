//! The command line's half of the conversation with an API server: `apply`, `get`, `delete`, `logs`.

pub(crate) mod apply;
pub(crate) mod commands;
pub(crate) mod manifest;
mod merge;
pub(crate) mod resources;

use std::path::{Path, PathBuf};

use anyhow::Context;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};

/// The folder Ember keeps its state in unless told otherwise: `$XDG_DATA_HOME/ember`, or `~/.local/share/ember`.
pub(crate) fn default_data_dir() -> PathBuf {
    let base = std::env::var_os("XDG_DATA_HOME").filter(|v| !v.is_empty()).map(PathBuf::from).or_else(|| {
        std::env::var_os("HOME")
            .filter(|v| !v.is_empty())
            .map(|home| PathBuf::from(home).join(".local/share"))
    });
    base.unwrap_or_else(|| PathBuf::from(".")).join("ember")
}

/// A client of the API server that `kubeconfig` names.
///
/// # Errors
/// When the file cannot be read or does not describe a reachable configuration.
pub(crate) async fn connect(kubeconfig: &Path) -> anyhow::Result<Client> {
    let file = kubeconfig.display();
    let content = Kubeconfig::read_from(kubeconfig).with_context(|| {
        format!(
            "cannot use {file}: is `ember up` running? (--kubeconfig or EMBER_KUBECONFIG names another file)"
        )
    })?;
    let config = kube::Config::from_custom_kubeconfig(content, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("{file} is not a usable kubeconfig"))?;
    Client::try_from(config).with_context(|| format!("{file} is not a usable kubeconfig"))
}
