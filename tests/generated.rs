//! What is generated must be what is committed.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on says so by ending"
)]
#![allow(missing_docs, reason = "a test's name is its documentation")]

use std::path::Path;

use clap::CommandFactory as _;

fn compare(folder: &str, files: Vec<(String, String)>, command: &str) {
    for (name, expected) in files {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(&name);
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == expected,
            "{folder}/{name} is not what the code says: run `{command}` and commit it"
        );
    }
}

#[test]
fn definitions_are_those_of_the_code() {
    compare("crds", slipway::cli::crds::files().unwrap(), "make crds");
}

#[test]
fn the_chart_of_definitions_ships_them() {
    compare(
        "charts/slipway-crds/files",
        slipway::cli::crds::files().unwrap(),
        "make crds",
    );
}

#[test]
fn reference_pages_are_those_of_the_code() {
    let pages = slipway::cli::docs::pages(&slipway::cli::Arguments::command()).unwrap();
    compare("docs/reference", pages, "make docs");
}

#[test]
fn every_definition_is_small_enough_for_client_side_apply() {
    for (name, text) in slipway::cli::crds::files().unwrap() {
        assert!(text.len() < 256 * 1024, "{name} has {} bytes", text.len());
    }
}
