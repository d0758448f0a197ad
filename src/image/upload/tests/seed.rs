//! The three cases by which Launchpad itself tests `OCIRecipeUpload`, with files that hash to nothing.

use super::*;

struct Seed(tempfile::TempDir);

impl Seed {
    /// Files in `test/1/ubuntu`, as the upload processor finds them.
    fn new(files: &[(&str, &[u8])]) -> Self {
        let seed = Self(tempfile::tempdir().unwrap());
        let folder = seed.0.path().join("1/ubuntu");
        fs::create_dir_all(&folder).unwrap();
        for (name, content) in files {
            fs::write(folder.join(name), content).unwrap();
        }
        seed
    }

    fn accept(&self) -> Result<Accepted, UploadError> {
        let known = Known::default();
        let options = Options {
            mode: Mode::PresenceOnly,
            known: &known,
            keep: None,
            limits: Limits::default(),
        };
        accept(self.0.path(), &options, &mut |_| ())
    }
}

const DIGESTS: &[u8] = br#"[{
    "diff_id_1": {"digest": "digest_1", "source": "test/base_1", "layer_id": "layer_1"},
    "diff_id_2": {"digest": "digest_2", "source": "", "layer_id": "layer_2"}
}]"#;

#[test]
fn an_upload_with_every_file_is_accepted() {
    let seed = Seed::new(&[
        ("layer_1.tar.gz", b"layer_1"),
        ("layer_2.tar.gz", b"layer_2"),
        ("digests.json", DIGESTS),
        ("manifest.json", b"manifest"),
    ]);
    let accepted = seed.accept().unwrap();
    let files: Vec<_> = accepted
        .files
        .iter()
        .map(|file| (file.name.as_str(), file.size, file.digest.as_deref()))
        .collect();
    assert_eq!(
        files,
        [
            ("layer_1.tar.gz", 7, Some("digest_1")),
            ("layer_2.tar.gz", 7, Some("digest_2")),
            ("digests.json", DIGESTS.len() as u64, None),
            ("manifest.json", 8, None),
        ]
    );
    assert_eq!(accepted.folder, "1/ubuntu");
}

#[test]
fn an_upload_without_digests_is_refused() {
    let error = Seed::new(&[("layer_1.tar.gz", b"layer_1")]).accept().unwrap_err();
    assert_eq!(error.to_string(), "Build did not produce a digests.json.");
    assert_eq!(error.reason(), Reason::DigestsMissing);
}

#[test]
fn an_upload_without_a_layers_file_is_refused() {
    let seed = Seed::new(&[("layer_1.tar.gz", b"layer_1"), ("digests.json", DIGESTS)]);
    let error = seed.accept().unwrap_err();
    assert_eq!(error.to_string(), "Missing layer file: layer_2.");
    assert_eq!(error.reason(), Reason::LayerMissing);
}

#[test]
fn an_upload_is_not_accepted_first_and_found_incomplete_later() {
    let seed = Seed::new(&[
        ("layer_1.tar.gz", b"layer_1"),
        ("layer_2.tar.gz", b"layer_2"),
        ("digests.json", DIGESTS),
    ]);
    let error = seed.accept().unwrap_err();
    assert_eq!(error.to_string(), "Build did not produce a manifest.json.");
}
