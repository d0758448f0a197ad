//! A folder in Launchpad's layout as a store: layers and configs as files, no manifests.
//!
//! Everything is written into a folder of its own inside the target, which goes away by itself, and moved
//! out of it at the end, `digests.json` last, since readers look for that one: whoever is interrupted leaves
//! nothing that looks finished.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use tempfile::TempDir;

use crate::{
    image::{Descriptor, Digest, Known, launchpad},
    record::{ImageRecord, LayerOrigin, LayerRecord},
    staging::{StagingError, Store, StoredManifest, Upload},
};

/// A folder that is filled.
#[derive(Debug)]
pub struct Folder {
    target: PathBuf,
    /// Set when the target was made here, and may go again.
    is_ours: bool,
    pending: TempDir,
    blobs: Arc<Mutex<Blobs>>,
}

#[derive(Debug, Default)]
struct Blobs {
    /// Sizes of what was written.
    written: HashMap<Digest, u64>,
    /// Sizes of what is elsewhere, as somebody vouches.
    given: HashMap<Digest, u64>,
    /// Files begun, for their names.
    begun: u64,
}

impl Folder {
    /// Begins to fill a folder, which is made if it is missing. The layers of `given` need not be written.
    ///
    /// # Errors
    /// When it cannot be written to.
    pub fn new(target: &Path, given: &Known) -> io::Result<Self> {
        let is_ours = !target.exists();
        fs::create_dir_all(target)?;
        let sizes = given
            .iter()
            .filter_map(|layer| Some((layer.digest.clone(), layer.size?)));
        Ok(Self {
            target: target.to_owned(),
            is_ours,
            pending: tempfile::Builder::new().prefix(".slipway-").tempdir_in(target)?,
            blobs: Arc::new(Mutex::new(Blobs {
                given: sizes.collect(),
                ..Blobs::default()
            })),
        })
    }

    /// Names everything as Launchpad does and moves it to where it belongs. `images` with their tags.
    ///
    /// # Errors
    /// When a file cannot be written or moved; what was moved by then stays, without a `digests.json`.
    pub fn finish(mut self, images: &[(ImageRecord, Vec<String>)]) -> io::Result<()> {
        self.is_ours = false;
        // An earlier one would describe files that are replaced now.
        match fs::remove_file(self.target.join("digests.json")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let images = with_own_names(images);
        let mut files: HashMap<String, &Digest> = HashMap::new();
        for (image, _) in &images {
            files.insert(launchpad::config_file(image), &image.config.digest);
            for layer in &image.layers {
                files.insert(launchpad::layer_file(&layer.layer_id), &layer.digest);
            }
        }
        for (name, digest) in files {
            let from = self.blob_path(digest);
            // What was known is somewhere else; a blob may be needed under two names.
            if from.exists() {
                fs::hard_link(&from, self.pending.path().join(&name))
                    .or_else(|_| fs::copy(&from, self.pending.path().join(&name)).map(drop))?;
                fs::rename(self.pending.path().join(&name), self.target.join(&name))?;
            }
        }
        let records: Vec<&ImageRecord> = images.iter().map(|(image, _)| image).collect();
        let sections: Vec<(&ImageRecord, &[String])> =
            images.iter().map(|(image, tags)| (image, &tags[..])).collect();
        for (name, bytes) in [
            ("manifest.json", launchpad::manifest_json(&sections)?),
            ("digests.json", launchpad::digests_json(&records)?),
        ] {
            let pending = self.pending.path().join(name);
            fs::write(&pending, bytes)?;
            fs::rename(pending, self.target.join(name))?;
        }
        Ok(())
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.pending.path().join(digest.as_str())
    }

    fn blobs(&self) -> std::sync::MutexGuard<'_, Blobs> {
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.is_ours {
            // Before the folder that it is in.
            let _ = fs::remove_dir_all(self.pending.path());
            let _ = fs::remove_dir(&self.target);
        }
    }
}

/// Two images may each call another layer by one name; one of them is then called by its diff ID.
fn with_own_names(images: &[(ImageRecord, Vec<String>)]) -> Vec<(ImageRecord, Vec<String>)> {
    let mut taken: HashMap<String, Digest> = HashMap::new();
    let mut name = |layer: &LayerRecord| {
        let earlier = taken
            .entry(layer.layer_id.clone())
            .or_insert_with(|| layer.diff_id.clone());
        if *earlier == layer.diff_id {
            layer.layer_id.clone()
        } else {
            layer.diff_id.hex().to_owned()
        }
    };
    images
        .iter()
        .map(|(image, tags)| {
            let layers = image.layers.iter().map(|layer| LayerRecord {
                layer_id: name(layer),
                ..layer.clone()
            });
            let layers = layers
                .filter(|layer| layer.origin != LayerOrigin::Foreign)
                .collect();
            let image = ImageRecord {
                layers,
                ..image.clone()
            };
            (image, tags.clone())
        })
        .collect()
}

impl Store for Folder {
    type Upload = Writing;

    async fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StagingError> {
        let blobs = self.blobs();
        Ok(blobs
            .written
            .get(digest)
            .or_else(|| blobs.given.get(digest))
            .copied())
    }

    async fn blob(&self, descriptor: &Descriptor) -> Result<Bytes, StagingError> {
        fs::read(self.blob_path(&descriptor.digest))
            .map(Bytes::from)
            .map_err(|error| failed(&error))
    }

    async fn begin_upload(&self) -> Result<Writing, StagingError> {
        let number = {
            let mut blobs = self.blobs();
            blobs.begun += 1;
            blobs.begun
        };
        let path = self.pending.path().join(number.to_string());
        Ok(Writing {
            file: File::create_new(&path).map_err(|error| failed(&error))?,
            path,
            size: 0,
            blobs: Arc::clone(&self.blobs),
        })
    }

    /// None: the layout has no place for them.
    async fn manifest(&self, _: &str) -> Result<Option<StoredManifest>, StagingError> {
        Ok(None)
    }

    /// Written nowhere, for the same reason.
    async fn put_manifest(&self, _: &str, _: Bytes, _: &str) -> Result<(), StagingError> {
        Ok(())
    }
}

/// A file that is written.
#[derive(Debug)]
pub struct Writing {
    file: File,
    path: PathBuf,
    size: u64,
    blobs: Arc<Mutex<Blobs>>,
}

impl Upload for Writing {
    /// Writes without giving up the thread: pieces are small, and the page cache takes them at once.
    async fn write(&mut self, bytes: Bytes) -> Result<(), StagingError> {
        self.size += bytes.len() as u64;
        self.file.write_all(&bytes).map_err(|error| failed(&error))
    }

    async fn commit(self, digest: &Digest) -> Result<(), StagingError> {
        fs::rename(&self.path, self.path.with_file_name(digest.as_str())).map_err(|error| failed(&error))?;
        let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        blobs.written.insert(digest.clone(), self.size);
        Ok(())
    }
}

fn failed(error: &io::Error) -> StagingError {
    StagingError::Refused(format!("the folder cannot be written to: {error}"))
}
