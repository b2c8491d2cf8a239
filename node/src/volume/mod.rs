//! The volumes of a pod: folders that live as long as it does, made when the first container mounts them, and kept
//! up to date.

mod mount;
pub mod payload;
mod writer;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::stream::{BoxStream, SelectAll};
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Secret, Volume};
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::task::spawn_blocking;

use crate::container::PodContext;
use crate::helper::protocol::{HOSTS, Identity, Mount, Mounts};
use crate::ports::QUEUE_PROXY;
use mount::Wanted;
use payload::Content;

/// The most that last words may take, as for the kubelet.
const LAST_WORDS: u64 = 4096;

/// The volumes of one pod.
#[derive(Debug)]
pub(crate) struct Volumes {
    /// The pod's own.
    folder: PathBuf,
    /// What has been made so far, with whose it is.
    made: tokio::sync::Mutex<BTreeMap<String, Made>>,
}

#[derive(Debug, Clone)]
struct Made {
    content: Content,
    owner: Option<(u32, u32)>,
}

impl Volumes {
    /// Nothing is made yet.
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self { folder, made: tokio::sync::Mutex::default() }
    }

    /// Removes everything; the pod has ended.
    pub(crate) async fn remove(&self) {
        remove(&self.folder).await;
    }

    fn volume(&self, name: &str) -> PathBuf {
        self.folder.join("volumes").join(name)
    }

    fn last_words(&self, container: &str) -> PathBuf {
        self.folder.join("termination").join(container)
    }
}

/// Removes a folder, if it is there.
pub(crate) async fn remove(folder: &Path) {
    match tokio::fs::remove_dir_all(folder).await {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!(folder = %folder.display(), %error, "cannot remove the volumes of pods");
        }
        _ => {}
    }
}

impl PodContext {
    /// What is to be mounted for the container; its volumes are made, and brought up to date.
    pub(crate) async fn mounts(
        &self,
        container: &Container,
        env: &[(String, String)],
        identity: Option<Identity>,
    ) -> Result<Option<Mounts>, String> {
        let wanted = mount::wanted(container, env)?;
        let last_words = mount::termination_path(container).map(str::to_owned);
        let hosts = self.node.config.hosts_file.as_deref();
        let hosts = hosts.filter(|_| wanted.iter().all(|w| w.target != HOSTS)).map(Mount::hosts);
        if wanted.is_empty() && last_words.is_none() {
            // Nothing is to be prepared for it.
            return Ok(hosts.map(|point| Mounts { stage: String::new(), points: vec![point] }));
        }
        // Files that only their owner may read are the user's that the node chose for the service.
        let owner = identity.filter(|i| !i.required).map(|i| (i.uid, i.gid));
        let mut points: Vec<Mount> = hosts.into_iter().collect();
        for wanted in wanted {
            let content = self.make(&wanted.volume, Some(owner)).await?;
            let folder = self.volumes.volume(&wanted.volume);
            let point = spawn_blocking(move || point(&folder, wanted, matches!(content, Content::Files(_))));
            points.push(point.await.map_err(|e| e.to_string())??);
        }
        if let Some(target) = last_words {
            let source = self.volumes.last_words(&container.name);
            let path = source.clone();
            let made = spawn_blocking(move || make_file(&path)).await.map_err(|e| e.to_string())?;
            made.map_err(|e| format!("terminationMessagePath: {e}"))?;
            points.push(Mount { source: source.to_string_lossy().into_owned(), target, read_only: false });
        }
        let stage = self.volumes.folder.join("root");
        tokio::fs::create_dir_all(&stage).await.map_err(|e| format!("volumes: {e}"))?;
        Ok(Some(Mounts { stage: stage.to_string_lossy().into_owned(), points }))
    }

    /// Makes a volume, or brings it up to date; `owner` decides when it is made first.
    async fn make(&self, name: &str, owner: Option<Option<(u32, u32)>>) -> Result<Content, String> {
        let volume = self.volume(name).ok_or_else(|| format!("volumeMounts: there is no volume {name:?}"))?;
        let mut made = self.volumes.made.lock().await;
        let before = made.get(name).cloned();
        let owner = before.as_ref().map(|b| b.owner).or(owner).flatten();
        let (config_maps, secrets) = payload::references(volume);
        let sources = self.sources(config_maps, secrets).await?;
        let content =
            payload::content(volume, &self.pod, &self.facts, &sources).map_err(|e| e.to_string())?;
        if before.is_some_and(|b| b.content == content) {
            return Ok(content);
        }
        let (folder, wanted) = (self.volumes.volume(name), content.clone());
        let written =
            spawn_blocking(move || write(&folder, &wanted, owner)).await.map_err(|e| e.to_string())?;
        written.map_err(|e| format!("volume {name:?}: {e}"))?;
        made.insert(name.to_owned(), Made { content: content.clone(), owner });
        Ok(content)
    }

    fn volume(&self, name: &str) -> Option<&Volume> {
        self.spec.volumes.iter().flatten().find(|v| v.name == name)
    }

    /// Keeps the volumes that processes mount like the objects they are made of. Endless; nothing if there are none.
    pub(crate) async fn follow_volumes(self: Arc<Self>) {
        let containers = self.spec.containers.iter().chain(self.spec.init_containers.iter().flatten());
        let mounts =
            containers.filter(|c| c.name != QUEUE_PROXY).flat_map(|c| c.volume_mounts.iter().flatten());
        let names: std::collections::BTreeSet<&str> = mounts.map(|m| m.name.as_str()).collect();
        let mut changes: SelectAll<BoxStream<'_, &str>> = SelectAll::new();
        for volume in names.into_iter().filter_map(|name| self.volume(name)) {
            let (config_maps, secrets) = payload::references(volume);
            for object in config_maps {
                changes.push(self.changes::<ConfigMap>(&object).map(|()| volume.name.as_str()).boxed());
            }
            for object in secrets {
                changes.push(self.changes::<Secret>(&object).map(|()| volume.name.as_str()).boxed());
            }
        }
        while let Some(volume) = changes.next().await {
            let is_made = self.volumes.made.lock().map(|made| made.contains_key(volume)).await;
            if is_made && let Err(error) = self.make(volume, None).await {
                tracing::warn!(pod = self.name(), %error, "a volume stays as it was");
            }
        }
    }

    /// Something whenever the object may have changed.
    fn changes<K>(&self, name: &str) -> BoxStream<'static, ()>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned
            + Send
            + 'static,
    {
        let api = Api::<K>::namespaced(self.node.client.clone(), self.namespace());
        let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let events = watcher(api, only).default_backoff();
        events
            .filter_map(async |event| match event {
                Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => None,
                Ok(_) => Some(()),
                Err(error) => {
                    tracing::debug!(%error, "watch of a volume's source");
                    None
                }
            })
            .boxed()
    }

    /// What the container left in its `terminationMessagePath`, if it names one.
    pub(crate) async fn last_words(&self, container: &Container) -> Option<String> {
        mount::termination_path(container)?;
        let path = self.volumes.last_words(&container.name);
        let bytes = spawn_blocking(move || read_end(&path)).await.ok()?.ok()?;
        (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// What is bound for a mount. A part of a volume that is the pod's own is made; of others it has to exist.
fn point(folder: &Path, wanted: Wanted, is_files: bool) -> Result<Mount, String> {
    let mut source = folder.to_owned();
    if !wanted.sub_path.is_empty() {
        let fail =
            |e: io::Error| format!("volumeMounts: {}: subPath {:?}: {e}", wanted.target, wanted.sub_path);
        let path = folder.join(&wanted.sub_path);
        if !is_files && !path.exists() {
            make_open(&path).map_err(fail)?;
        }
        source = fs::canonicalize(&path).map_err(fail)?;
        // Links of the container's own making lead nowhere else.
        if !source.starts_with(fs::canonicalize(folder).map_err(fail)?) {
            return Err(fail(io::Error::other("leads out of the volume")));
        }
    }
    let source = source.to_string_lossy().into_owned();
    Ok(Mount { source, target: wanted.target, read_only: wanted.read_only || is_files })
}

fn write(folder: &Path, content: &Content, owner: Option<(u32, u32)>) -> io::Result<()> {
    match content {
        Content::Empty => make_open(folder),
        Content::Files(files) => {
            fs::create_dir_all(folder)?;
            writer::write(folder, files, owner, Timestamp::now())
        }
    }
}

/// A folder that every user may write to: containers of a pod may have different ones.
fn make_open(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777))
}

/// An empty file that every user may write to.
fn make_file(path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::File::create(path)?.set_permissions(fs::Permissions::from_mode(0o666))
}

fn read_end(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS)))?;
    let mut bytes = Vec::new();
    file.take(LAST_WORDS).read_to_end(&mut bytes)?;
    Ok(bytes)
}
