//! Paths that a recipe gives: files written inline, the context and the build file.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Component, Path, PathBuf},
};

use crate::{
    image::Hasher,
    record::{Failure, Reason, Revision},
};

/// Writes the files; their revision is a digest over sorted paths and contents.
pub fn write_inline(files: &BTreeMap<String, String>, source: &Path) -> Result<Revision, Failure> {
    let mut hasher = Hasher::sha256();
    for (path, text) in files {
        let relative = relative(path)?;
        if relative.as_os_str().is_empty() {
            return Err(invalid(path, "names no file"));
        }
        // Lengths, so that no two sets of files hash alike by moving a border.
        for part in [path, text] {
            hasher.update(&(part.len() as u64).to_be_bytes());
            hasher.update(part.as_bytes());
        }
        write_new(&source.join(relative), text.as_bytes())
            .map_err(|error| invalid(path, &format!("cannot be written: {error}")))?;
    }
    Ok(Revision {
        revision: hasher.finish().to_string(),
        time: None,
    })
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, bytes)
}

/// Proves that context and build file exist and that no link of the source leads them out of it.
pub fn check_context(source: &Path, context: &str, build_file: Option<&str>) -> Result<(), Failure> {
    let root = fs::canonicalize(source)
        .map_err(|error| Failure::new(Reason::FetchFailed, format!("the source cannot be read: {error}")))?;
    let folder = inside(&root, &root, context, Reason::ContextMissing, "spec.contextDir")?;
    if !folder.is_dir() {
        return Err(missing(
            Reason::ContextMissing,
            context,
            "is no folder",
            "spec.contextDir",
        ));
    }
    if let Some(build_file) = build_file {
        let file = inside(
            &root,
            &folder,
            build_file,
            Reason::BuildFileMissing,
            "spec.buildFile",
        )?;
        if !file.is_file() {
            return Err(missing(
                Reason::BuildFileMissing,
                build_file,
                "is no file",
                "spec.buildFile",
            ));
        }
    }
    Ok(())
}

/// Where `path` below `folder` leads, which is in `root`.
fn inside(root: &Path, folder: &Path, path: &str, absent: Reason, field: &str) -> Result<PathBuf, Failure> {
    let relative = relative(path)?;
    let resolved = fs::canonicalize(folder.join(relative)).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            missing(absent, path, "does not exist in the source", field)
        }
        _ => invalid(path, &format!("cannot be followed: {error}")),
    })?;
    if resolved.starts_with(root) {
        Ok(resolved)
    } else {
        Err(invalid(path, "leads out of the source by a link"))
    }
}

/// A relative path that goes only downwards.
pub fn relative(path: &str) -> Result<PathBuf, Failure> {
    if path.contains('\0') {
        return Err(invalid(path, "has a NUL in it"));
    }
    let mut cleaned = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::CurDir => {}
            Component::ParentDir => return Err(invalid(path, "has a `..` in it")),
            Component::RootDir | Component::Prefix(_) => return Err(invalid(path, "is not relative")),
        }
    }
    Ok(cleaned)
}

fn invalid(path: &str, what: &str) -> Failure {
    Failure::new(
        Reason::PathInvalid,
        format!("the path {path:?} {what}; paths are relative to the source and stay in it"),
    )
}

fn missing(reason: Reason, path: &str, what: &str, field: &str) -> Failure {
    Failure::new(reason, format!("{path:?} {what}; correct {field}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rstest::rstest;

    use super::*;

    fn tree() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("app/src")).unwrap();
        fs::write(folder.path().join("app/Containerfile"), "").unwrap();
        symlink("app", folder.path().join("alias")).unwrap();
        symlink("/etc", folder.path().join("etc")).unwrap();
        symlink("../..", folder.path().join("app/up")).unwrap();
        symlink("/etc/hostname", folder.path().join("app/stolen")).unwrap();
        symlink("circle", folder.path().join("circle")).unwrap();
        folder
    }

    #[rstest]
    #[case::root(".", None)]
    #[case::unsaid("", None)]
    #[case::below("./app", Some("Containerfile"))]
    #[case::link_within("alias", Some("./Containerfile"))]
    fn what_is_in_the_source_is_accepted(#[case] context: &str, #[case] build_file: Option<&str>) {
        assert_eq!(check_context(tree().path(), context, build_file), Ok(()));
    }

    #[rstest]
    #[case::absent("nowhere", None, Reason::ContextMissing)]
    #[case::file("app/Containerfile", None, Reason::ContextMissing)]
    #[case::below_a_file("app/Containerfile/x", None, Reason::ContextMissing)]
    #[case::upwards("app/../..", None, Reason::PathInvalid)]
    #[case::absolute("/etc", None, Reason::PathInvalid)]
    #[case::nul("app\0", None, Reason::PathInvalid)]
    #[case::link_outside("etc", None, Reason::PathInvalid)]
    #[case::link_upwards("app/up", None, Reason::PathInvalid)]
    #[case::circle("circle", None, Reason::PathInvalid)]
    #[case::no_build_file("app", Some("Dockerfile"), Reason::BuildFileMissing)]
    #[case::folder_as_build_file("app", Some("src"), Reason::BuildFileMissing)]
    #[case::build_file_upwards("app", Some("../app/Containerfile"), Reason::PathInvalid)]
    #[case::build_file_outside("app", Some("stolen"), Reason::PathInvalid)]
    fn what_is_not_is_refused(
        #[case] context: &str,
        #[case] build_file: Option<&str>,
        #[case] reason: Reason,
    ) {
        let refused = check_context(tree().path(), context, build_file).unwrap_err();
        assert_eq!(refused.reason, reason, "{}", refused.message);
    }

    #[rstest]
    #[case::upwards("../x")]
    #[case::absolute("/x")]
    #[case::nothing(".")]
    fn inline_files_stay_in_the_source(#[case] path: &str) {
        let folder = tempfile::tempdir().unwrap();
        let files = BTreeMap::from([(path.to_owned(), String::new())]);
        let refused = write_inline(&files, folder.path()).unwrap_err();
        assert_eq!(refused.reason, Reason::PathInvalid);
    }

    #[test]
    fn the_revision_of_inline_files_tells_where_a_name_ends() {
        let folder = tempfile::tempdir().unwrap();
        let revision = |path: &str, text: &str| {
            let files = BTreeMap::from([(path.to_owned(), text.to_owned())]);
            write_inline(&files, folder.path()).unwrap().revision
        };
        assert_eq!(revision("ab", "c"), revision("ab", "c"));
        assert_ne!(revision("ab", "c"), revision("a", "bc"));
        assert_eq!(fs::read_to_string(folder.path().join("ab")).unwrap(), "c");
    }
}
