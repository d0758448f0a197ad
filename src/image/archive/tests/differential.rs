//! What is accepted here, skopeo reads to the same layers.
//!
//! skopeo is the most widely used reader of both layouts; an archive that the two read differently is what an
//! attacker looks for. What only one of them reads is no danger, and is counted.

use std::{collections::HashSet, io::Read as _, path::Path, process::Command};

use super::{
    corpus::{self, Given},
    tools, *,
};
use crate::image::compress::{Compression, Decoder};

/// Larger ones are large for a limit's sake only.
const SIZE_LIMIT: usize = 1 << 20;

/// In these the list of layers in `manifest.json` is wrong. Configuration and index agree on the right one, which is
/// taken here; skopeo believes the list, and loses or swaps layers without a word.
const BELIEVED_BY_SKOPEO: [&str; 2] = ["T1-manifest-without-layers", "T1-layers-in-another-order"];

/// Diff IDs as skopeo reads them, by copying the image and hashing what its layers decompress to.
fn by_skopeo(transport: &str, archive: &Path) -> Option<Vec<Digest>> {
    let folder = tempfile::tempdir().unwrap();
    let copied = Command::new("skopeo")
        .args(["copy", "--insecure-policy", "--quiet"])
        .args(["--override-os", "linux", "--override-arch", "amd64"])
        .arg(format!("{transport}:{}", archive.display()))
        .arg(format!("dir:{}", folder.path().display()))
        .env("TMPDIR", folder.path())
        .output()
        .unwrap();
    if !copied.status.success() {
        return None;
    }
    let manifest = std::fs::read(folder.path().join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let layers = manifest["layers"].as_array().unwrap().iter();
    let diff_ids = layers.map(|layer| {
        let (_, hex) = layer["digest"].as_str().unwrap().split_once(':').unwrap();
        let stored = std::fs::read(folder.path().join(hex)).unwrap();
        let mut plain = Vec::new();
        Decoder::new(Compression::sniff(&stored), &stored[..], 1_000_000, 1 << 20)
            .read_to_end(&mut plain)
            .unwrap();
        Digest::of(&plain)
    });
    Some(diff_ids.collect())
}

#[test]
fn skopeo_reads_the_same_layers() {
    if tools::find("skopeo").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("archive");
    let (mut seen, mut same, mut only_ours, mut differ) = (HashSet::new(), 0, Vec::new(), Vec::new());
    for case in corpus::groups().into_iter().flat_map(|(_, cases)| cases()) {
        let accepted = match case.refused {
            None => Some(case.archive),
            Some(_) => case.twin,
        };
        let Some(Given::Bytes(archive)) = accepted else {
            continue;
        };
        if BELIEVED_BY_SKOPEO.contains(&case.name)
            || archive.len() > SIZE_LIMIT
            || !seen.insert(Digest::of(&archive))
        {
            continue;
        }
        let ours = verify(&archive).unwrap();
        let Ok(image) = ours.single(Some(&"linux/amd64".parse().unwrap())) else {
            continue;
        };
        std::fs::write(&path, &archive).unwrap();
        let read: Vec<_> = ["docker-archive", "oci-archive"]
            .into_iter()
            .filter_map(|transport| by_skopeo(transport, &path))
            .collect();
        if read.is_empty() {
            only_ours.push(case.name);
        }
        for theirs in &read {
            let ours: Vec<&Digest> = image.diff_ids.iter().collect();
            if theirs.iter().collect::<Vec<_>>() != ours {
                differ.push(case.name);
            }
        }
        same += usize::from(!read.is_empty());
    }
    println!(
        "differential: {same} archives read alike, {} only here: {only_ours:?}",
        only_ours.len()
    );
    assert!(differ.is_empty(), "read to other layers: {differ:?}");
    assert!(same > 80, "{same}; only here: {only_ours:?}");
}
