//! An OCI artifact as a source: read from its registry, each layer proven before it is placed.
//!
//! What becomes of a layer is in [`super::layer`].

use std::{
    fs::File,
    io::{self, Seek as _, Write as _},
    path::Path,
};

use futures_util::TryStreamExt as _;

use super::layer::Content;
use crate::{
    agent::{certificates::client_options, docker_config::credentials, plan::Registries},
    image::{Descriptor, Manifest, json, media_type},
    record::{Failure, Reason, Revision},
    registry::{Client, RawManifest, Reference, RegistryError, Repository},
};

/// Brings the artifact's files into the folder `source`; the revision is its manifest's digest.
///
/// # Errors
/// When the reference or the Secret is wrong, when the registry does not have the artifact or does not
/// answer, and when a layer is not what its digest says or does not belong into a source.
pub async fn fetch(
    reference: &str,
    credentials_dir: Option<&str>,
    registries: &Registries,
    source: &Path,
) -> Result<Revision, Failure> {
    let parsed: Reference = reference.parse().map_err(|error| {
        Failure::new(
            Reason::SpecInvalid,
            format!("spec.source.artifact.reference: {error}"),
        )
    })?;
    let failed = |error: RegistryError| read_failure(reference, &error);
    let (options, unreadable) = client_options(registries);
    unreadable.check(&parsed.registry)?;
    let client = Client::new(options, credentials(credentials_dir)?).map_err(failed)?;
    let repository = client.repository(&parsed.registry, &parsed.repository);
    let found = repository.manifest(parsed.selector()).await.map_err(failed)?;
    let raw = found.ok_or_else(|| {
        Failure::new(
            Reason::ArtifactNotFound,
            format!("{reference} does not exist; push it, or correct the reference"),
        )
    })?;
    for layer in &manifest(reference, &raw)?.layers {
        let content = Content::of(&layer.media_type, &layer.annotations)?;
        let file = download(&repository, layer, source, &failed).await?;
        content.place(file, source)?;
    }
    Ok(Revision {
        revision: raw.digest.to_string(),
        time: None,
    })
}

fn manifest(reference: &str, raw: &RawManifest) -> Result<Manifest, Failure> {
    if matches!(
        raw.media_type.as_str(),
        media_type::OCI_INDEX | media_type::DOCKER_LIST
    ) {
        let text = format!("{reference} is an index; name one of the manifests in it by digest");
        return Err(Failure::new(Reason::SpecInvalid, text));
    }
    json::parse(&raw.bytes).map_err(|error| {
        Failure::new(
            Reason::ManifestInvalid,
            format!("the manifest of {reference}: {error}"),
        )
    })
}

/// A layer in a file without a name, proven by its digest.
async fn download(
    repository: &Repository,
    layer: &Descriptor,
    source: &Path,
    failed: &impl Fn(RegistryError) -> Failure,
) -> Result<File, Failure> {
    let unwritable = |error: io::Error| {
        Failure::new(
            Reason::FetchFailed,
            format!("the workspace cannot be written: {error}; if it is full, raise spec.resources.scratch"),
        )
    };
    // On the volume whose size is limited.
    let mut file = tempfile::tempfile_in(source.parent().unwrap_or(source)).map_err(unwritable)?;
    let mut hasher = layer.digest.hasher();
    let mut stream = std::pin::pin!(repository.open_blob(layer, 0).await.map_err(failed)?);
    while let Some(piece) = stream.try_next().await.map_err(failed)? {
        hasher.update(&piece);
        file.write_all(&piece).map_err(unwritable)?;
    }
    let found = hasher.finish();
    if found != layer.digest {
        let text = format!(
            "a layer that is to be {} hashes to {found}; push the artifact again",
            layer.digest
        );
        return Err(Failure::new(Reason::DigestMismatch, text));
    }
    file.rewind().map_err(unwritable)?;
    Ok(file)
}

fn read_failure(reference: &str, error: &RegistryError) -> Failure {
    let text = format!("{reference}: {error}");
    match error.reason() {
        Reason::SourceMissing
        | Reason::RepositoryNotFound
        | Reason::PushUnauthorized
        | Reason::PushDenied => {
            let text =
                format!("{text}; correct the reference, or name a Secret that may read it in credentialsRef");
            Failure::new(Reason::ArtifactNotFound, text)
        }
        Reason::RegistryUnavailable | Reason::RateLimited => Failure::new(Reason::FetchFailed, text),
        reason => Failure::new(reason, text),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        image::Digest,
        registry::{BytesSource, Credentials, testing::FaultRegistry},
    };

    /// A registry with one artifact of one file; the digest of its manifest.
    async fn artifact(registry: &FaultRegistry, registries: &Registries, content: &'static [u8]) -> Digest {
        let client = Client::new(registries.options(), Credentials::anonymous()).unwrap();
        let repository = client.repository(&registry.host(), "team/source");
        let mut layer = Descriptor::new("application/vnd.test", Digest::of(content), content.len() as u64);
        layer
            .annotations
            .insert("org.opencontainers.image.title".into(), "src/hello.txt".into());
        let config = Descriptor::new(media_type::OCI_EMPTY, Digest::of(b"{}"), 2);
        for (descriptor, bytes) in [(&layer, content), (&config, &b"{}"[..])] {
            repository
                .upload_blob(descriptor, &BytesSource(Bytes::from_static(bytes)))
                .await
                .unwrap();
        }
        let document = serde_json::json!({ "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": [layer] });
        let bytes = Bytes::from(document.to_string());
        repository
            .put_manifest("v1", media_type::OCI_MANIFEST, &bytes)
            .await
            .unwrap()
    }

    fn plain(registry: &FaultRegistry) -> Registries {
        Registries {
            plain_http: vec![registry.host()],
            ..Registries::default()
        }
    }

    #[tokio::test]
    async fn an_artifacts_files_are_placed_and_its_digest_is_the_revision() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let registry = FaultRegistry::start().await;
        let digest = artifact(&registry, &plain(&registry), b"hello").await;
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("source");
        std::fs::create_dir(&source).unwrap();
        let reference = format!("{}/team/source:v1", registry.host());
        let revision = fetch(&reference, None, &plain(&registry), &source).await.unwrap();
        assert_eq!(revision.revision, digest.as_str());
        assert_eq!(std::fs::read(source.join("src/hello.txt")).unwrap(), b"hello");
    }

    #[tokio::test]
    async fn an_artifact_that_is_not_there_is_the_users_to_mend() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let registry = FaultRegistry::start().await;
        let folder = tempfile::tempdir().unwrap();
        let reference = format!("{}/team/none:v1", registry.host());
        let failure = fetch(&reference, None, &plain(&registry), folder.path())
            .await
            .unwrap_err();
        assert_eq!(failure.reason, Reason::ArtifactNotFound);
        assert!(failure.message.contains("team/none:v1"));
    }
}
