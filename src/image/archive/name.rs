//! Names of members: judged once, then compared as text.

use super::ArchiveError;

/// Longer names are in no image archive, and every one is kept in memory.
const NAME_LIMIT: usize = 1024;

/// The name as the index keeps it: relative, without `./` in front or `/` behind; empty is the root folder.
pub(super) fn clean(raw: &[u8], is_folder: bool) -> Result<String, ArchiveError> {
    let refuse = |why| {
        Err(ArchiveError::Path {
            name: String::from_utf8_lossy(&raw[..raw.len().min(80)]).into_owned(),
            why,
        })
    };
    if raw.len() > NAME_LIMIT {
        return refuse("it is longer than 1024 bytes");
    }
    let Ok(text) = std::str::from_utf8(raw) else {
        return refuse("it is not UTF-8");
    };
    if text.chars().any(|char| char.is_control() || char == '\\') {
        return refuse("it has a backslash or a control character");
    }
    if text.starts_with('/') {
        return refuse("it is absolute");
    }
    let mut name = text;
    if is_folder {
        if matches!(text, "." | "./") {
            return Ok(String::new());
        }
        name = name.strip_suffix('/').unwrap_or(name);
    }
    name = name.strip_prefix("./").unwrap_or(name);
    for component in name.split('/') {
        match component {
            "" => return refuse("it has an empty component"),
            "." | ".." => return refuse("it climbs"),
            _ => {}
        }
    }
    Ok(name.to_owned())
}

/// Where `target` leads from the folder `from`; `None` when it leaves the archive.
pub(super) fn join(from: &str, target: &str) -> Option<String> {
    if target.starts_with('/') || target.is_empty() {
        return None;
    }
    let mut path: Vec<&str> = from.split('/').filter(|part| !part.is_empty()).collect();
    for component in target.split('/') {
        match component {
            "" | "." => {}
            ".." => {
                path.pop()?;
            }
            part => path.push(part),
        }
    }
    Some(path.join("/"))
}

/// The folder that a name is in.
pub(super) fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plain(b"blobs/sha256/ab", false, Some("blobs/sha256/ab"))]
    #[case::dot_slash(b"./manifest.json", false, Some("manifest.json"))]
    #[case::folder(b"blobs/", true, Some("blobs"))]
    #[case::root(b"./", true, Some(""))]
    #[case::colon(b"sha256:ab", false, Some("sha256:ab"))]
    #[case::twice_dot_slash(b"././a", false, None)]
    #[case::climbs(b"a/../b", false, None)]
    #[case::absolute(b"/etc/passwd", false, None)]
    #[case::backslash(b"a\\b", false, None)]
    #[case::control(b"a\x1bb", false, None)]
    #[case::nul(b"a\0b", false, None)]
    #[case::not_utf8(b"a\xff", false, None)]
    #[case::empty(b"", false, None)]
    #[case::empty_component(b"a//b", false, None)]
    #[case::file_with_slash(b"a/", false, None)]
    #[case::long(&[b'a'; 1025], false, None)]
    fn names(#[case] raw: &[u8], #[case] is_folder: bool, #[case] expected: Option<&str>) {
        assert_eq!(clean(raw, is_folder).ok().as_deref(), expected);
    }

    #[rstest]
    #[case::sibling("abc", "../def/layer.tar", Some("def/layer.tar"))]
    #[case::same_folder("", "x", Some("x"))]
    #[case::escape("abc", "../../x", None)]
    #[case::absolute("abc", "/x", None)]
    fn links(#[case] from: &str, #[case] target: &str, #[case] expected: Option<&str>) {
        assert_eq!(join(from, target).as_deref(), expected);
    }
}
