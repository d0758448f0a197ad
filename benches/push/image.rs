//! Images of noise, which no registry, file system or proxy makes smaller.

use std::process::Command;

use serde_json::json;
use slipway::image::{Digest, media_type};

use crate::server::Server;

/// So many layers of so many bytes; the same for the same seed.
pub fn layers(count: usize, size: usize, seed: u64) -> Vec<Vec<u8>> {
    (0..count)
        .map(|number| {
            let mut noise = fastrand::Rng::with_seed(seed * 1000 + number as u64);
            let mut layer = vec![0; size];
            noise.fill(&mut layer);
            // What a gzip stream begins with; nobody looks further.
            layer[..4].copy_from_slice(&[0x1f, 0x8b, 8, 0]);
            layer
        })
        .collect()
}

/// Twenty places in what a push of the large image sends, the first one last.
pub fn cuts(run: usize) -> Vec<u64> {
    let mib: u64 = std::env::var("BENCH_MIB").map_or(1024, |text| text.parse().unwrap());
    let mut random = fastrand::Rng::with_seed(7 + run as u64);
    let mut cuts: Vec<u64> = (0..20).map(|_| random.u64(0..mib << 20)).collect();
    cuts.sort_unstable_by_key(|cut| std::cmp::Reverse(*cut));
    cuts
}

/// Writes a layout and lets the tool under test bring it to a registry.
pub fn put(server: &Server, name: &str, layers: &[Vec<u8>]) {
    let folder = tempfile::tempdir().unwrap();
    let blobs = folder.path().join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let keep = |media_type: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    };
    let diff_ids: Vec<Digest> = (0..layers.len())
        .map(|number| Digest::of(&number.to_le_bytes()))
        .collect();
    let config =
        json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": keep(media_type::OCI_CONFIG, config.to_string().as_bytes()),
        "layers": layers.iter().map(|layer| keep(media_type::OCI_LAYER_GZIP, layer)).collect::<Vec<_>>(),
    });
    let root = keep(media_type::OCI_MANIFEST, manifest.to_string().as_bytes());
    let index = json!({"schemaVersion": 2, "manifests": [root]});
    std::fs::write(folder.path().join("index.json"), index.to_string()).unwrap();
    std::fs::write(
        folder.path().join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    let pushed = Command::new(crate::tool::slipway())
        .args(["push", "--plain-http", &server.host])
        .arg(folder.path())
        .arg(format!("{}/{name}", server.host))
        .output()
        .unwrap();
    assert!(
        pushed.status.success(),
        "{}",
        String::from_utf8_lossy(&pushed.stderr)
    );
}
