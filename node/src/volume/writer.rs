//! Puts files into a volume's folder so that who reads them sees all of one version or all of the next, in the layout
//! of the kubelet: `NAME → ..data/NAME`, `..data → ..TIME`, and the files in the last of these.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::payload::Payload;

const DATA: &str = "..data";
const NEXT: &str = "..data_tmp";

/// Replaces what `folder` holds. The files are `owner`'s (user and group), or else this process's.
///
/// # Errors
/// What the system says; the version before then stays.
pub(crate) fn write(
    folder: &Path,
    payload: &Payload,
    owner: Option<(u32, u32)>,
    now: Timestamp,
) -> io::Result<()> {
    let before = fs::read_link(folder.join(DATA)).ok();
    let version = now.strftime("..%Y_%m_%d_%H_%M_%S.%9f").to_string();
    let dir = folder.join(&version);
    make_dir(&dir)?;
    for (path, file) in payload {
        let path = dir.join(path);
        if let Some(parent) = path.parent() {
            make_dir(parent)?;
        }
        let mut out = fs::File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        out.write_all(&file.bytes)?;
        if let Some((uid, gid)) = owner {
            chown(&path, Some(uid), Some(gid))?;
        }
        out.set_permissions(fs::Permissions::from_mode(file.mode))?;
    }
    let next = folder.join(NEXT);
    ignore_missing(fs::remove_file(&next))?;
    symlink(&version, &next)?;
    fs::rename(&next, folder.join(DATA))?;
    show(folder, payload)?;
    match before {
        Some(old) => fs::remove_dir_all(folder.join(old)),
        None => Ok(()),
    }
}

/// The links by which files are seen: added, and removed with their file.
fn show(folder: &Path, payload: &Payload) -> io::Result<()> {
    let names: BTreeSet<PathBuf> = payload
        .keys()
        .filter_map(|path| Some(Path::new(path).components().next()?.as_os_str().into()))
        .collect();
    for entry in fs::read_dir(folder)? {
        let name = PathBuf::from(entry?.file_name());
        if !name.to_string_lossy().starts_with("..") && !names.contains(&name) {
            fs::remove_file(folder.join(name))?;
        }
    }
    for name in names {
        match symlink(Path::new(DATA).join(&name), folder.join(&name)) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            other => other?,
        }
    }
    Ok(())
}

fn make_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path)
}

fn ignore_missing(outcome: io::Result<()>) -> io::Result<()> {
    outcome.or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(()) } else { Err(e) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::payload::File;

    fn payload(files: &[(&str, &str, u32)]) -> Payload {
        let file = |(path, text, mode): &(&str, &str, u32)| {
            ((*path).to_owned(), File { bytes: text.as_bytes().to_vec(), mode: *mode })
        };
        files.iter().map(file).collect()
    }

    #[test]
    fn versions_are_swapped_whole() {
        let folder = tempfile::tempdir().unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).ok();
        let at = |second: i64| Timestamp::from_second(1_700_000_000 + second).unwrap();
        write(folder.path(), &payload(&[("a", "1", 0o400), ("deep/b", "2", 0o644)]), None, at(0)).unwrap();
        assert_eq!((read("a"), read("deep/b")), (Some("1".into()), Some("2".into())));
        let mode = fs::metadata(folder.path().join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o400);
        assert_eq!(fs::read_link(folder.path().join("a")).unwrap(), Path::new("..data/a"));
        write(folder.path(), &payload(&[("a", "3", 0o644), ("c", "4", 0o644)]), None, at(1)).unwrap();
        assert_eq!((read("a"), read("c"), read("deep/b")), (Some("3".into()), Some("4".into()), None));
        let mut names: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["..2023_11_14_22_13_21.000000000", "..data", "a", "c"]);
    }
}
