//! Stores that are torn, cut short or damaged: what was acknowledged is found, or the store is refused as it is.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails")]

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use ember_apiserver::{ApiServer, Config, Error, OpenError};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, ResourceExt};
use proptest::prelude::*;
use serde_json::json;

const PAGE: usize = 4096;

/// A data folder and what its store was after each of the last two acknowledged writes. Both are as a kill leaves them.
struct Sample {
    folder: tempfile::TempDir,
    before: Vec<u8>,
    after: Vec<u8>,
    /// Names in `before`; `after` has one more.
    names: Vec<String>,
}

const LAST: &str = "last";

static SAMPLE: LazyLock<Sample> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store.redb");
    let (before, after, mut names) = run(async {
        let server = ApiServer::open(Config::new(folder.path())).unwrap();
        for number in 0..40 {
            create(&server.client(), &format!("m{number:02}")).await;
        }
        // Nothing is left to be written behind.
        server.flush().await.unwrap();
        let (before, names) = (fs::read(&store).unwrap(), names(&server.client()).await);
        create(&server.client(), LAST).await;
        (before, fs::read(&store).unwrap(), names)
    });
    names.sort();
    Sample { folder, before, after, names }
});

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

async fn create(client: &Client, name: &str) {
    let map: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": name}, "data": {"k": name.repeat(50)}})).unwrap();
    Api::namespaced(client.clone(), "default").create(&PostParams::default(), &map).await.unwrap();
}

async fn names(client: &Client) -> Vec<String> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    let found = maps.list(&ListParams::default()).await.unwrap();
    for map in &found {
        assert_eq!(map.data.as_ref().unwrap()["k"], map.name_any().repeat(50));
    }
    found.iter().map(ResourceExt::name_any).collect()
}

/// A folder with this store and the sample's credentials.
fn folder_with(store: &[u8]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("pki")).unwrap();
    for file in fs::read_dir(SAMPLE.folder.path().join("pki")).unwrap().flatten() {
        fs::copy(file.path(), folder.path().join("pki").join(file.file_name())).unwrap();
    }
    fs::write(folder.path().join("store.redb"), store).unwrap();
    folder
}

/// The names that a server finds in a store; or that it refused the store, named it, and left it as it was.
fn open(store: &[u8]) -> Option<Vec<String>> {
    let folder = folder_with(store);
    let path = folder.path().join("store.redb");
    match ApiServer::open(Config::new(folder.path())) {
        Ok(server) => Some(run(async { names(&server.client()).await })),
        Err(Error::Store(error @ (OpenError::Damaged { .. } | OpenError::Format { .. }))) => {
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
            assert!(fs::read(&path).unwrap() == store, "a refused store was changed");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Refused, or with everything that was acknowledged.
fn check(store: &[u8]) -> Result<bool, TestCaseError> {
    let Some(mut found) = open(store) else { return Ok(false) };
    let last = found.iter().position(|name| name == LAST).map(|at| found.remove(at));
    prop_assert!(last.is_some(), "the last acknowledged write was lost in silence");
    prop_assert_eq!(&found, &SAMPLE.names);
    Ok(true)
}

#[test]
fn a_store_as_a_kill_leaves_it_is_whole() {
    assert!(check(&SAMPLE.after).unwrap());
    assert_eq!(open(&SAMPLE.before).unwrap(), SAMPLE.names);
}

#[test]
fn the_end_of_a_store_cannot_be_cut_off_in_silence() {
    let whole = SAMPLE.after.len();
    // What the last commit has written, byte by byte around its ends; and then coarsely.
    let changed: Vec<usize> = (0..whole)
        .step_by(PAGE)
        .filter(|at| SAMPLE.before.get(*at..at + PAGE) != SAMPLE.after.get(*at..at + PAGE))
        .collect();
    let fine = changed.iter().flat_map(|at| [at.saturating_sub(1), *at, at + 1, at + PAGE / 2]);
    let coarse = (0..whole).step_by(whole / 60);
    for length in fine.chain(coarse).filter(|length| *length < whole) {
        check(&SAMPLE.after[..length]).unwrap();
        let mut zeroed = SAMPLE.after.clone();
        zeroed[length..].fill(0);
        check(&zeroed).unwrap();
    }
}

#[test]
fn what_is_not_a_store_is_refused_with_what_to_do() {
    for content in [&b""[..], b"x", &[0; 10_000], &[0xff; 10_000]] {
        let folder = folder_with(content);
        let error = ApiServer::open(Config::new(folder.path())).err().unwrap().to_string();
        let path = folder.path().join("store.redb");
        assert!(error.contains(&format!("mv {0} {0}.damaged", path.display())), "{error}");
    }
}

#[test]
fn a_first_start_that_was_cut_short_is_begun_anew() {
    for half in [&b""[..], &SAMPLE.after[..SAMPLE.after.len() / 2], &SAMPLE.after] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("store.new"), half).unwrap();
        fs::create_dir(folder.path().join("pki")).unwrap();
        fs::write(folder.path().join("pki/ca.crt"), "cut sh").unwrap();
        fs::write(folder.path().join("pki/ca.key.new"), "cut sh").unwrap();
        let server = ApiServer::open(Config::new(folder.path())).unwrap();
        assert_eq!(run(async { names(&server.client()).await }), Vec::<String>::new());
        assert!(!folder.path().join("store.new").exists());
    }
}

#[test]
fn a_store_of_a_newer_version_is_refused_and_left_as_it_is() {
    let folder = folder_with(&SAMPLE.after);
    let path = folder.path().join("store.redb");
    write_format(&path, 2);
    let error = ApiServer::open(Config::new(folder.path())).err().unwrap();
    assert!(matches!(&error, Error::Store(OpenError::Format { found: 2, .. })), "{error}");
    let text = error.to_string();
    assert!(text.contains(path.to_str().unwrap()) && text.contains("the version that wrote it"), "{text}");
}

fn write_format(path: &Path, format: u64) {
    let database = redb::Database::open(path).unwrap();
    let transaction = database.begin_write().unwrap();
    let meta = redb::TableDefinition::<&str, u64>::new("meta");
    transaction.open_table(meta).unwrap().insert("format", format).unwrap();
    transaction.commit().unwrap();
}

#[test]
fn a_folder_in_use_names_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let first = ApiServer::open(Config::new(folder.path())).unwrap();
    let error = ApiServer::open(Config::new(folder.path())).err().unwrap().to_string();
    assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
    first.close();
    ApiServer::open(Config::new(folder.path())).unwrap();
}

/// Every case opens a store: fewer than usual, unless more are asked for.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(48)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    /// Bits that change while nobody writes.
    #[test]
    fn flipped_bytes_lose_nothing_in_silence(
        at in prop_oneof![any::<prop::sample::Index>().prop_map(Place::Anywhere),
            any::<prop::sample::Index>().prop_map(Place::Used)],
        length in 1..64_usize,
        mask in 1..=255_u8,
    ) {
        let mut store = SAMPLE.after.clone();
        let at = at.resolve(&store);
        for byte in store.iter_mut().skip(at).take(length) {
            *byte ^= mask;
        }
        check(&store)?;
    }

    /// A crash before the commit counts: any pages of it may be in the file, the first one is still the old one.
    #[test]
    fn a_commit_that_was_cut_short_is_repaired_in_silence(
        written in prop::collection::vec(any::<bool>(), SAMPLE.after.len() / PAGE + 1),
        extended in any::<bool>(),
    ) {
        let mut store = SAMPLE.before.clone();
        if extended && store.len() < SAMPLE.after.len() {
            store.resize(SAMPLE.after.len(), 0);
        }
        for (number, page) in SAMPLE.after.chunks(PAGE).enumerate().skip(1).filter(|(n, _)| written[*n]) {
            let at = number * PAGE;
            if let Some(place) = store.get_mut(at..at + page.len()) {
                place.copy_from_slice(page);
            }
        }
        let found = open(&store);
        prop_assert_eq!(found.as_ref(), Some(&SAMPLE.names));
    }
}

/// Where bytes are flipped: most of a small store is empty.
#[derive(Debug, Clone)]
enum Place {
    Anywhere(prop::sample::Index),
    Used(prop::sample::Index),
}

impl Place {
    fn resolve(&self, store: &[u8]) -> usize {
        match self {
            Self::Anywhere(index) => index.index(store.len()),
            Self::Used(index) => {
                let pages: Vec<usize> = (0..store.len())
                    .step_by(PAGE)
                    .filter(|at| store[*at..store.len().min(at + PAGE)].iter().any(|byte| *byte != 0))
                    .collect();
                let at = index.index(pages.len() * PAGE);
                (pages[at / PAGE] + at % PAGE).min(store.len() - 1)
            }
        }
    }
}
