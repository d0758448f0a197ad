//! What tests of every room need.

use std::{io::Write as _, path::PathBuf};

/// Says that a test is skipped, and why, past what keeps a passing test's words: `hack/suite` counts these lines.
pub(crate) fn skip(what: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "\nSKIPPED {what}: {why}");
}

/// A program of `SLIPWAY_TOOLS`, of what `hack/cluster/build-tools` and `hack/from-debian` made, or of `PATH`.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let given = std::env::var_os("SLIPWAY_TOOLS").map(PathBuf::from);
    let folder = |variable: &str, below: &str| Some(PathBuf::from(std::env::var_os(variable)?).join(below));
    let cache = folder("SLIPWAY_CACHE", "tools")
        .or_else(|| folder("XDG_CACHE_HOME", "slipway/tools"))
        .or_else(|| folder("HOME", ".cache/slipway/tools"));
    let made = cache
        .into_iter()
        .filter_map(|cache| std::fs::read_dir(cache).ok())
        .flatten()
        .filter_map(Result::ok)
        // Folders that are not whole yet start with a dot; the sets are links to the others.
        .filter(|folder| {
            let name = folder.file_name();
            let name = name.to_string_lossy();
            !name.starts_with('.') && !name.starts_with("set-")
        })
        .map(|folder| folder.path());
    let path = std::env::var_os("PATH")?;
    let installed = std::env::split_paths(&path).collect::<Vec<_>>();
    given
        .into_iter()
        .chain(made)
        .chain(installed)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}
