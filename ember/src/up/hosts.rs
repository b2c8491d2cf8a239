//! Names of the inside for programs that know nothing of it: a file that stands in for `/etc/hosts` in containers, with
//! this machine's names and those of the Services that lead to the gateway.
//!
//! Containers hold the file itself, so it is written in place. No line ever moves, so that whoever reads it meanwhile
//! misses nothing that was there before.

use std::collections::{BTreeSet, HashMap};
use std::fs::{File, Permissions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ember_reconcile::cache::{Cache, Key};
use k8s_openapi::api::core::v1::Service;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// What this machine knows by itself.
const OF_THE_MACHINE: &str = "/etc/hosts";

/// The lines of the file.
struct Table {
    gateway: IpAddr,
    cluster_domain: String,
    head: String,
    rows: Vec<String>,
    /// The row of each name.
    places: HashMap<Key, usize>,
    free: Vec<usize>,
}

impl Table {
    /// Begins with what this machine's own file says.
    fn new(of_the_machine: &str, gateway: IpAddr, cluster_domain: &str) -> Self {
        let mut head = of_the_machine.to_owned();
        if !head.is_empty() && !head.ends_with('\n') {
            head.push('\n');
        }
        head.push_str("# Services, by Ember:\n");
        Self {
            gateway,
            cluster_domain: cluster_domain.to_owned(),
            head,
            rows: Vec::new(),
            places: HashMap::new(),
            free: Vec::new(),
        }
    }

    /// Shows exactly these; tells whether that changed anything.
    fn update(&mut self, names: &BTreeSet<Key>) -> bool {
        let gone: Vec<Key> = self.places.keys().filter(|key| !names.contains(key)).cloned().collect();
        let mut changed = !gone.is_empty();
        for row in gone.iter().filter_map(|key| self.places.remove(key)) {
            let length = self.rows[row].len();
            self.rows[row] = format!("{:<length$}", "#");
            self.free.push(row);
        }
        for key in names {
            if self.places.contains_key(key) {
                continue;
            }
            changed = true;
            let (name, namespace) = (&key.name, &key.namespace);
            let local = format!("{name}.{namespace}");
            let text = format!("{} {local}.svc.{} {local}.svc {local}", self.gateway, self.cluster_domain);
            let fits = self.free.iter().position(|row| self.rows[*row].len() >= text.len());
            let row = if let Some(place) = fits {
                let row = self.free.swap_remove(place);
                let length = self.rows[row].len();
                self.rows[row] = format!("{text:<length$}");
                row
            } else {
                self.rows.push(text);
                self.rows.len() - 1
            };
            self.places.insert(key.clone(), row);
        }
        changed
    }

    fn text(&self) -> String {
        let rows = self.rows.iter().flat_map(|row| [row.as_str(), "\n"]);
        std::iter::once(self.head.as_str()).chain(rows).collect()
    }
}

/// The file, and what keeps it.
pub(crate) struct HostsFile {
    path: PathBuf,
    file: File,
    table: Table,
}

impl HostsFile {
    /// Makes the file in `folder`.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn create(folder: &Path, gateway: IpAddr, cluster_domain: &str) -> io::Result<Self> {
        let path = std::path::absolute(folder.join("hosts"))?;
        let of_the_machine = std::fs::read_to_string(OF_THE_MACHINE).unwrap_or_default();
        // Users of services read it; the folder around it keeps others out.
        let file = File::options().write(true).create(true).truncate(true).open(&path)?;
        file.set_permissions(Permissions::from_mode(0o644))?;
        let table = Table::new(&of_the_machine, gateway, cluster_domain);
        let hosts = Self { path, file, table };
        hosts.write()?;
        Ok(hosts)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// One write: no reader sees half of it but at a boundary of the system's own.
    fn write(&self) -> io::Result<()> {
        self.file.write_all_at(self.table.text().as_bytes(), 0)
    }

    /// Follows the Services until `stop`. `gateway` is the name that those of the inside lead to.
    pub(crate) async fn run(mut self, services: Cache<Service>, gateway: String, stop: CancellationToken) {
        let changed = Arc::new(Notify::new());
        let notify = Arc::clone(&changed);
        services.on_change(move |_| notify.notify_one());
        loop {
            let leads_inside = |service: &Arc<Service>| {
                let spec = service.spec.as_ref()?;
                (spec.external_name.as_ref() == Some(&gateway)).then(|| Key::of(&**service))
            };
            let names: BTreeSet<Key> = services.all().iter().filter_map(leads_inside).collect();
            if self.table.update(&names)
                && let Err(error) = self.write()
            {
                tracing::warn!(%error, file = %self.path.display(), "containers do not learn of all Services");
            }
            tokio::select! {
                () = changed.notified() => {}
                () = stop.cancelled() => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> BTreeSet<Key> {
        list.iter().map(|name| Key::new("default", *name)).collect()
    }

    #[test]
    fn what_is_there_stays_where_it_is() {
        let mut table = Table::new("127.0.0.1 localhost", "127.16.0.3".parse().unwrap(), "cluster.local");
        assert_eq!(table.text(), "127.0.0.1 localhost\n# Services, by Ember:\n");
        assert!(table.update(&names(&["bb", "cc"])));
        let row = |name: &str| {
            format!("127.16.0.3 {name}.default.svc.cluster.local {name}.default.svc {name}.default")
        };
        let head = "127.0.0.1 localhost\n# Services, by Ember:\n";
        assert_eq!(table.text(), format!("{head}{}\n{}\n", row("bb"), row("cc")));
        assert!(!table.update(&names(&["bb", "cc"])));
        // One that is new comes last, whatever its name.
        table.update(&names(&["aa", "bb", "cc"]));
        assert_eq!(table.text(), format!("{head}{}\n{}\n{}\n", row("bb"), row("cc"), row("aa")));
        // One that is gone leaves its place to the next one that fits.
        table.update(&names(&["aa", "cc"]));
        let blank = format!("#{}", " ".repeat(row("bb").len() - 1));
        assert_eq!(table.text(), format!("{head}{blank}\n{}\n{}\n", row("cc"), row("aa")));
        table.update(&names(&["aa", "cc", "longer"]));
        table.update(&names(&["aa", "cc", "d", "longer"]));
        let padded = format!("{:<1$}", row("d"), row("bb").len());
        assert_eq!(
            table.text(),
            format!("{head}{padded}\n{}\n{}\n{}\n", row("cc"), row("aa"), row("longer"))
        );
    }
}
