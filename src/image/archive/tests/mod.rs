//! Archives made byte by byte, good and bad.

pub(crate) mod corpus;
mod differential;
mod fuzzing;
mod limits;
mod properties;
mod tools;
mod views;

use std::io::Write as _;

use serde_json::{Value, json};

use super::{Archive, ArchiveError, Limits};
use crate::{
    image::{Digest, media_type},
    record::Reason,
};

/// Writes tar archives, also those that no library would.
#[derive(Clone, Default)]
pub(crate) struct Tar {
    pub bytes: Vec<u8>,
}

impl Tar {
    pub fn file(self, name: &str, body: &[u8]) -> Self {
        self.entry(b'0', name.as_bytes(), "", body)
    }

    pub fn folder(self, name: &str) -> Self {
        self.entry(b'5', name.as_bytes(), "", b"")
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name.as_bytes(), target, b"")
    }

    pub fn hardlink(self, name: &str, target: &str) -> Self {
        self.entry(b'1', name.as_bytes(), target, b"")
    }

    /// An extended header of these records.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let body = records
            .iter()
            .flat_map(|(key, value)| record(key, value))
            .collect::<Vec<u8>>();
        self.entry(b'x', b"PaxHeaders/x", "", &body)
    }

    pub fn long_name(self, name: &[u8]) -> Self {
        self.entry(b'L', b"././@LongLink", "", &[name, b"\0"].concat())
    }

    pub fn entry(self, kind: u8, name: &[u8], link: &str, body: &[u8]) -> Self {
        let header = header(kind, name, link, body.len() as u64);
        self.block(&header).body(body)
    }

    pub fn block(mut self, block: &[u8; 512]) -> Self {
        self.bytes.extend(block);
        self
    }

    pub fn body(mut self, body: &[u8]) -> Self {
        self.bytes.extend(body);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub fn end(mut self) -> Vec<u8> {
        self.bytes.extend([0; 1024]);
        self.bytes
    }
}

pub(crate) fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// A header block; change it with [`sealed`] around.
pub(crate) fn header(kind: u8, name: &[u8], link: &str, size: u64) -> [u8; 512] {
    let mut block = [0; 512];
    let length = name.len().min(100);
    block[..length].copy_from_slice(&name[..length]);
    block[100..108].copy_from_slice(b"0000644\0");
    block[108..116].copy_from_slice(b"0000000\0");
    block[116..124].copy_from_slice(b"0000000\0");
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[136..148].copy_from_slice(b"00000000000\0");
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link.as_bytes());
    block[257..265].copy_from_slice(b"ustar\x0000");
    sealed(block)
}

/// The block with a right checksum.
pub(crate) fn sealed(mut block: [u8; 512]) -> [u8; 512] {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

pub(crate) fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstded(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// A layer as a tar archive of one file.
pub(crate) fn layer(text: &str) -> Vec<u8> {
    Tar::default().file("etc/motd", text.as_bytes()).end()
}

/// A config of these uncompressed layers.
pub(crate) fn config(platform: (&str, &str), layers: &[Vec<u8>]) -> Value {
    json!({
        "architecture": platform.1,
        "os": platform.0,
        "config": {"Labels": {"maintainer": "nobody"}},
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|l| Digest::of(l)).collect::<Vec<_>>()},
        "history": layers.iter().map(|_| json!({"created_by": "test"})).collect::<Vec<_>>(),
    })
}

pub(crate) fn bytes(document: &Value) -> Vec<u8> {
    serde_json::to_vec(document).unwrap()
}

pub(crate) fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(content), "size": content.len()})
}

/// An OCI layout under construction.
#[derive(Clone, Default)]
pub(crate) struct Layout {
    pub blobs: Vec<Vec<u8>>,
    pub index: Vec<Value>,
}

impl Layout {
    pub fn blob(&mut self, content: impl Into<Vec<u8>>) -> &[u8] {
        self.blobs.push(content.into());
        self.blobs.last().unwrap()
    }

    /// Adds an image of these plain layers, stored as `store` makes them; answers its manifest.
    pub fn image(
        &mut self,
        platform: (&str, &str),
        layers: &[Vec<u8>],
        media_type: &str,
        store: fn(&[u8]) -> Vec<u8>,
    ) -> Value {
        let config = bytes(&config(platform, layers));
        let descriptors: Vec<Value> = layers
            .iter()
            .map(|layer| descriptor(media_type, self.blob(store(layer))))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": descriptor(media_type::OCI_CONFIG, self.blob(config)),
            "layers": descriptors,
        });
        let entry = self.manifest(&manifest, media_type::OCI_MANIFEST);
        self.index.push(entry);
        manifest
    }

    /// Stores a document and answers its descriptor.
    pub fn manifest(&mut self, manifest: &Value, media_type: &str) -> Value {
        descriptor(media_type, self.blob(bytes(manifest)))
    }

    pub fn root(&self) -> Value {
        json!({"schemaVersion": 2, "manifests": self.index})
    }

    pub fn tar(&self) -> Tar {
        self.tar_with(&self.root())
    }

    pub fn tar_with(&self, root: &Value) -> Tar {
        self.files(root)
            .iter()
            .fold(Tar::default(), |tar, (name, content)| tar.file(name, content))
    }

    /// Writes the layout to a folder.
    pub fn write(&self, folder: &std::path::Path) {
        std::fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
        for (name, content) in self.files(&self.root()) {
            std::fs::write(folder.join(name), content).unwrap();
        }
    }

    pub fn files(&self, root: &Value) -> Vec<(String, Vec<u8>)> {
        let mut files = vec![
            (
                "oci-layout".to_owned(),
                br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
            ),
            ("index.json".to_owned(), bytes(root)),
        ];
        for blob in &self.blobs {
            let name = format!("blobs/sha256/{}", Digest::of(blob).hex());
            if !files.iter().any(|(known, _)| *known == name) {
                files.push((name, blob.clone()));
            }
        }
        files
    }
}

pub(crate) const AMD64: (&str, &str) = ("linux", "amd64");

/// An OCI layout of one image of one gzip layer.
pub(crate) fn oci() -> Layout {
    let mut layout = Layout::default();
    layout.image(AMD64, &[layer("hello")], media_type::OCI_LAYER_GZIP, gzipped);
    layout
}

pub(crate) fn open(archive: &[u8]) -> Result<Archive, ArchiveError> {
    Archive::from_stream(archive, Limits::default())
}

/// Opens an archive and reads every layer of it.
pub(crate) fn verify(archive: &[u8]) -> Result<Archive, ArchiveError> {
    verify_with(archive, Limits::default())
}

pub(crate) fn verify_with(archive: &[u8], limits: Limits) -> Result<Archive, ArchiveError> {
    let archive = Archive::from_stream(archive, limits)?;
    for layer in archive.images().iter().flat_map(|image| &image.layers) {
        let Some(content) = archive.content(layer)? else {
            return Err(archive.missing(layer));
        };
        super::layer::prove(layer, &content, archive.limits(), |_| Ok(()))?;
    }
    Ok(archive)
}
