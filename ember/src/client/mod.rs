//! The command line's half of the conversation with an API server: `apply`, `get`, `delete`, `logs`, `wait`.

pub(crate) mod apply;
pub(crate) mod commands;
pub(crate) mod manifest;
mod merge;
pub(crate) mod resources;
pub(crate) mod wait;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::machine::instances;

/// How long an API server may take to say that it is there.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// The folder Ember keeps its state in unless told otherwise: `$XDG_DATA_HOME/ember`, or `~/.local/share/ember`.
pub(crate) fn default_data_dir() -> PathBuf {
    let base = std::env::var_os("XDG_DATA_HOME").filter(|v| !v.is_empty()).map(PathBuf::from).or_else(|| {
        std::env::var_os("HOME")
            .filter(|v| !v.is_empty())
            .map(|home| PathBuf::from(home).join(".local/share"))
    });
    base.unwrap_or_else(|| PathBuf::from(".")).join("ember")
}

/// A client of the API server that `kubeconfig` names, once that has answered.
///
/// # Errors
/// When the file cannot be read or used, or nobody answers there; what to do about it is said.
pub(crate) async fn connect(kubeconfig: &Path) -> anyhow::Result<Client> {
    let file = kubeconfig.display();
    let content = Kubeconfig::read_from(kubeconfig).with_context(|| {
        format!(
            "cannot use {file}: is `ember up` running? (--kubeconfig or EMBER_KUBECONFIG names another file){}",
            elsewhere(kubeconfig)
        )
    })?;
    let config = kube::Config::from_custom_kubeconfig(content, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("{file} is not a usable kubeconfig"))?;
    let url = config.cluster_url.clone();
    let client = Client::try_from(config).with_context(|| format!("{file} is not a usable kubeconfig"))?;
    let asked = tokio::time::timeout(ANSWER_WITHIN, client.apiserver_version()).await;
    let hint = || elsewhere(kubeconfig);
    match asked {
        Ok(Ok(_)) => Ok(client),
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 401 | 403) => bail!(
            "{url} refuses the credentials in {file}: another instance may have taken that address; `ember up` writes a \
             new file{}",
            hint()
        ),
        // It answers, if not that: whoever asks for more is told more.
        Ok(Err(kube::Error::Api(_))) => Ok(client),
        Ok(Err(error)) => Err(anyhow::Error::new(error).context(format!(
            "nobody answers at {url}, which {file} names: is `ember up` running?{}",
            hint()
        ))),
        Err(_) => bail!("{url}, which {file} names, did not answer within {ANSWER_WITHIN:?}{}", hint()),
    }
}

/// Where else an instance runs, for people who look for one in vain.
fn elsewhere(tried: &Path) -> String {
    let others = instances::running().into_iter().filter(|instance| instance.kubeconfig != tried);
    let others: Vec<String> = others
        .map(|instance| format!("process {}: --kubeconfig {}", instance.pid, instance.kubeconfig.display()))
        .collect();
    if others.is_empty() { String::new() } else { format!("; one runs elsewhere ({})", others.join(", ")) }
}
