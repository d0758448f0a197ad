//! Hostile archives, each refused with its own reason, beside harmless twins that are accepted.
//!
//! Cases carry the names of the corpus of malicious inputs.

use rstest::rstest;
use serde_json::json;

use super::*;
use Reason::{
    ArchiveAmbiguous, ArchiveMalformed, DigestInvalid, DigestMismatch, ForeignLayer, JsonInvalid,
    LayerMissing, LimitExceeded, LinkInvalid, ManifestInvalid, MediaTypeAmbiguous, PathInvalid, ReservedKey,
    SizeMismatch, UnsupportedCompression, UnsupportedEntry, UnsupportedMediaType,
};

/// A good archive with these entries in front.
fn with(tar: Tar) -> Vec<u8> {
    let mut tar = tar;
    tar.bytes.extend(oci().tar().bytes);
    tar.end()
}

fn spoiled(kind: u8, spoil: impl FnOnce(&mut [u8; 512])) -> Tar {
    let mut block = header(kind, b"odd", "", 0);
    spoil(&mut block);
    Tar::default().block(&sealed(block))
}

fn tar() -> Tar {
    Tar::default()
}

fn inner() -> Vec<u8> {
    tar().file("manifest.json", b"[]").bytes
}

#[rstest]
#[case::nothing_odd(tar().file("a", b"b"))]
#[case::pax_size_over_zero({
    let inner = inner();
    tar().pax(&[("size", inner.len().to_string().as_bytes())]).block(&header(b'0', b"a", "", 0)).body(&inner)
})]
#[case::pax_same_size(tar().pax(&[("size", b"1")]).file("a", b"x"))]
#[case::pax_path(tar().pax(&[("path", b"a/long/name")]).file("a", b"x"))]
#[case::pax_xattr(tar().pax(&[("SCHILY.xattr.user.a", b"\xff\0")]).file("a", b"x"))]
#[case::pax_global_comment(tar().entry(b'g', b"g", "", &record("comment", b"a commit")))]
#[case::long_name(tar().long_name(&[b'n'; 300]).file("a", b"x"))]
#[case::same_name_same_content(tar().file("a", b"x").file("./a", b"x"))]
#[case::folder_twice(tar().folder("d/").folder("d/"))]
#[case::root_folder(tar().folder("./"))]
#[case::hardlink(tar().file("a", b"x").hardlink("b", "a"))]
#[case::symlink(tar().symlink("b", "a").file("a", b"x"))]
#[case::symlink_from_root(tar().file("x/layer.tar", b"x").symlink("y/layer.tar", "x/layer.tar"))]
#[case::link_chain(tar().file("0", b"x").symlink("1", "0").symlink("2", "1").symlink("3", "2"))]
fn harmless_twins_are_accepted(#[case] odd: Tar) {
    verify(&with(odd)).unwrap();
}

#[rstest]
#[case::tar_pax_zero_over_size(tar().pax(&[("size", b"0")]).file("a", b"x"), ArchiveAmbiguous)]
#[case::tar_pax_size_mismatch(tar().pax(&[("size", b"2")]).file("a", b"x"), ArchiveAmbiguous)]
#[case::tar_pax_before_longname(tar().pax(&[("size", b"1")]).long_name(b"l").file("a", b"x"), ArchiveAmbiguous)]
#[case::tar_pax_dup_size(tar().pax(&[("size", b"1"), ("size", b"1")]).file("a", b"x"), ArchiveAmbiguous)]
#[case::tar_pax_dup_path(tar().pax(&[("path", b"a"), ("path", b"b")]).file("a", b"x"), ArchiveAmbiguous)]
#[case::tar_pax_bad_length(tar().entry(b'x', b"x", "", b"13 size=1\n").file("a", b"x"), ArchiveMalformed)]
#[case::tar_pax_global_size(tar().entry(b'g', b"g", "", &record("size", b"1")), ArchiveAmbiguous)]
#[case::tar_pax_global_path(tar().entry(b'g', b"g", "", &record("path", b"a")), ArchiveAmbiguous)]
#[case::tar_pax_nul_path(tar().pax(&[("path", b"a\0b")]).file("a", b"x"), PathInvalid)]
#[case::tar_pax_huge(tar().pax(&[("comment", &vec![b'x'; 66_560])]).file("a", b"x"), LimitExceeded)]
#[case::tar_two_pax(tar().pax(&[("mtime", b"1")]).pax(&[("mtime", b"1")]).file("a", b"x"), ArchiveAmbiguous)]
#[case::tar_two_longnames(tar().long_name(b"a").long_name(b"b").file("c", b"x"), ArchiveAmbiguous)]
#[case::tar_longname_plus_pax(tar().long_name(b"a").pax(&[("path", b"b")]).file("c", b"x"), ArchiveAmbiguous)]
#[case::tar_dir_body(tar().entry(b'5', b"d", "", &inner()), ArchiveAmbiguous)]
#[case::tar_symlink_body(tar().entry(b'2', b"s", "index.json", &inner()), ArchiveAmbiguous)]
#[case::tar_hardlink_body(tar().file("a", b"x").entry(b'1', b"h", "a", &inner()), ArchiveAmbiguous)]
#[case::tar_sparse_old(tar().entry(b'S', b"s", "", b""), UnsupportedEntry)]
#[case::tar_sparse_pax(tar().pax(&[("GNU.sparse.major", b"1")]).file("a", b"x"), UnsupportedEntry)]
#[case::tar_neg_size(spoiled(b'0', |b| b[124..136].fill(0xff)), ArchiveMalformed)]
#[case::tar_size_2e63(spoiled(b'0', |b| b[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0])), ArchiveMalformed)]
#[case::tar_octal_overflow(spoiled(b'0', |b| b[124..136].copy_from_slice(b"777777777777")), ArchiveMalformed)]
#[case::tar_nonoctal(spoiled(b'0', |b| b[124..136].copy_from_slice(b"00000000009\0")), ArchiveMalformed)]
#[case::tar_badsum({
    let mut block = header(b'0', b"a", "", 0);
    block[0] = b'b';
    tar().block(&block)
}, ArchiveMalformed)]
#[case::tar_one_zero_block(tar().block(&[0; 512]), ArchiveMalformed)]
#[case::tar_dup_name(tar().file("a", b"x").file("a", b"y"), ArchiveAmbiguous)]
#[case::tar_dup_dotslash(tar().file("a", b"x").file("./a", b"yy"), ArchiveAmbiguous)]
#[case::tar_dup_link_vs_file(tar().file("a", b"x").symlink("a", "index.json"), ArchiveAmbiguous)]
#[case::tar_dotdot(tar().file("a/../b", b"x"), PathInvalid)]
#[case::tar_absolute(tar().file("/a", b"x"), PathInvalid)]
#[case::tar_backslash(tar().file("a\\b", b"x"), PathInvalid)]
#[case::tar_ctrl_name(tar().file("a\x1b[1m", b"x"), PathInvalid)]
#[case::tar_nonutf8(tar().entry(b'0', b"a\xff", "", b""), PathInvalid)]
#[case::tar_name_4k(tar().long_name(&[b'a'; 4096]).file("a", b"x"), PathInvalid)]
#[case::tar_symlink_escape(tar().symlink("a", "../../etc/passwd"), LinkInvalid)]
#[case::tar_symlink_absolute(tar().symlink("a", "/etc/passwd"), LinkInvalid)]
#[case::tar_symlink_dangling(tar().symlink("a", "b"), LinkInvalid)]
#[case::tar_link_cycle(tar().symlink("a", "b").symlink("b", "a"), LinkInvalid)]
#[case::tar_link_chain_9((1..10).fold(tar().file("0", b"x"), |tar, n| tar.symlink(&n.to_string(), &(n - 1).to_string())), LinkInvalid)]
#[case::tar_link_to_dir(tar().folder("d/").symlink("a", "d"), LinkInvalid)]
#[case::tar_hardlink_forward(tar().hardlink("b", "a").file("a", b"x"), LinkInvalid)]
#[case::tar_device(tar().entry(b'3', b"d", "", b""), UnsupportedEntry)]
#[case::tar_fifo(tar().entry(b'6', b"d", "", b""), UnsupportedEntry)]
#[case::tar_unknown_type(tar().entry(b'Z', b"d", "", b""), UnsupportedEntry)]
#[case::tar_v7(spoiled(b'0', |b| b[257..265].fill(0)), UnsupportedEntry)]
fn odd_entries_are_refused(#[case] odd: Tar, #[case] expected: Reason) {
    assert_eq!(reason(&with(odd)), Some(expected));
}

#[test]
fn the_end_of_an_archive_is_its_end() {
    let good = oci().tar();
    let mut hidden = good.clone().end();
    hidden.extend(Tar::default().file("b", b"x").end());
    let dangling = good.clone().pax(&[("path", b"a")]).end();
    let mut padded = good.clone().end();
    padded.extend([0; 9 * 1024 + 17]);
    assert_eq!(reason(&padded), None);
    assert_eq!(reason(&hidden), Some(ArchiveMalformed), "tar-hidden-after-end");
    assert_eq!(reason(&dangling), Some(ArchiveMalformed), "tar-pax-dangling");
    assert_eq!(reason(&good.bytes), Some(ArchiveMalformed), "tar-no-end");
    assert_eq!(
        reason(&good.bytes[..good.bytes.len() - 700]),
        Some(ArchiveMalformed),
        "tar-trunc-body"
    );
    assert_eq!(
        reason(&good.bytes[..300]),
        Some(ArchiveMalformed),
        "tar-trunc-header"
    );
    assert_eq!(reason(b""), Some(ArchiveMalformed), "file-empty");
    assert_eq!(reason(b"\xfd7zXZ\0 and so on"), Some(UnsupportedCompression));
}

#[test]
fn members_and_names_are_bounded() {
    let many = (0..2000).fold(tar(), |tar, n| tar.file(&format!("{n}"), b""));
    let limits = Limits {
        members: 1999,
        ..Limits::default()
    };
    assert_eq!(
        verify_with(&with(many.clone()), limits).unwrap_err().reason(),
        LimitExceeded
    );
    let limits = Limits {
        name_bytes: 10_000,
        ..Limits::default()
    };
    assert_eq!(
        verify_with(&with(many.clone()), limits).unwrap_err().reason(),
        LimitExceeded
    );
    verify(&with(many)).unwrap();
}

/// Changes the manifest of a good layout before it is stored.
fn manifest(change: impl FnOnce(&mut Value, &mut Layout)) -> Vec<u8> {
    let mut layout = Layout::default();
    let mut manifest = layout.image(AMD64, &[layer("hello")], media_type::OCI_LAYER_GZIP, gzipped);
    change(&mut manifest, &mut layout);
    layout.index = vec![layout.manifest(&manifest, media_type::OCI_MANIFEST)];
    layout.tar().end()
}

/// Changes the config of a good layout before it is stored.
fn image_config(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    manifest(|manifest, layout| {
        let mut config = config(AMD64, &[layer("hello")]);
        change(&mut config);
        manifest["config"] = descriptor(media_type::OCI_CONFIG, layout.blob(bytes(&config)));
    })
}

fn digest_text(text: &str) -> Vec<u8> {
    manifest(|manifest, _| manifest["layers"][0]["digest"] = json!(text))
}

const HEX: &str = "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855";

#[rstest]
#[case::nothing_odd(manifest(|_, _| {}), None)]
#[case::json_unknown_fields(manifest(|m, _| m["x-more"] = json!({"a": [1]})), None)]
#[case::digest_upper(digest_text(&format!("sha256:{HEX}")), Some(DigestInvalid))]
#[case::digest_short(digest_text("sha256:ab"), Some(DigestInvalid))]
#[case::digest_traversal(digest_text("sha256:../../../../etc/passwd"), Some(DigestInvalid))]
#[case::digest_sha1(
    digest_text("sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709"),
    Some(DigestInvalid)
)]
#[case::digest_empty_alg(digest_text(&format!(":{}", HEX.to_lowercase())), Some(DigestInvalid))]
#[case::mt_both_shapes(manifest(|m, _| m["manifests"] = json!([])), Some(MediaTypeAmbiguous))]
#[case::mt_header_body_differ(manifest(|m, _| m["mediaType"] = json!(media_type::DOCKER_MANIFEST)), Some(MediaTypeAmbiguous))]
#[case::mt_unknown(manifest(|m, _| m["layers"][0]["mediaType"] = json!("text/plain")), Some(UnsupportedMediaType))]
#[case::mt_params(manifest(|m, _| m["layers"][0]["mediaType"] = json!(format!("{}; a=b", media_type::OCI_LAYER_GZIP))), Some(UnsupportedMediaType))]
#[case::mt_case(manifest(|m, _| m["layers"][0]["mediaType"] = json!(media_type::OCI_LAYER_GZIP.to_uppercase())), Some(UnsupportedMediaType))]
#[case::blob_size_wrong(manifest(|m, _| m["layers"][0]["size"] = json!(7)), Some(SizeMismatch))]
#[case::json_neg_size(manifest(|m, _| m["layers"][0]["size"] = json!(-1)), Some(JsonInvalid))]
#[case::json_size_2e53(manifest(|m, _| m["layers"][0]["size"] = json!(1_u64 << 53)), Some(JsonInvalid))]
#[case::schema_version(manifest(|m, _| m["schemaVersion"] = json!(1)), Some(ManifestInvalid))]
#[case::foreign_urls(manifest(|m, _| m["layers"][0]["urls"] = json!(["http://169.254.169.254/"])), Some(ForeignLayer))]
#[case::foreign_type(manifest(|m, _| m["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip")), Some(ForeignLayer))]
#[case::data_field_wrong(manifest(|m, _| m["config"]["data"] = json!("e30=")), Some(DigestMismatch))]
#[case::ann_reserved(manifest(|m, _| m["annotations"] = json!({"slipway.dev/record": "x"})), Some(ReservedKey))]
#[case::label_reserved(image_config(|c| c["config"]["Labels"]["dev.slipway.base"] = json!("x")), Some(ReservedKey))]
#[case::ann_1mib(manifest(|m, _| m["annotations"] = json!({"a": "x".repeat(1 << 20)})), Some(LimitExceeded))]
#[case::json_100k_annotations(manifest(|m, _| {
    m["annotations"] = (0..100_001).map(|n| (n.to_string(), json!(""))).collect::<serde_json::Map<_, _>>().into();
}), Some(LimitExceeded))]
#[case::json_5mib_manifest(manifest(|m, _| m["x"] = json!("x".repeat(5 << 20))), Some(LimitExceeded))]
#[case::layer_absent(manifest(|m, _| m["layers"][0] = descriptor(media_type::OCI_LAYER_GZIP, b"nowhere")), Some(LayerMissing))]
#[case::config_absent(manifest(|m, _| m["config"] = descriptor(media_type::OCI_CONFIG, b"nowhere")), Some(ManifestInvalid))]
#[case::extra_layer(manifest(|m, _| { let again = m["layers"][0].clone(); m["layers"].as_array_mut().unwrap().push(again); }), Some(ManifestInvalid))]
#[case::no_layers(manifest(|m, _| m["layers"] = json!([])), Some(ManifestInvalid))]
#[case::diffid_wrong(image_config(|c| c["rootfs"]["diff_ids"][0] = json!(Digest::of(b"x"))), Some(DigestMismatch))]
#[case::diffid_count(image_config(|c| c["rootfs"]["diff_ids"] = json!([])), Some(ManifestInvalid))]
#[case::hist_mismatch(image_config(|c| c["history"] = json!([{}, {}])), Some(ManifestInvalid))]
#[case::hist_of_buildah_on_a_base_without(image_config(|c| {
    c["rootfs"]["diff_ids"] = json!([Digest::of(&layer("hello"))]);
    c["history"] = json!([{"empty_layer": true}]);
}), None)]
#[case::hist_empty_layer(image_config(|c| c["history"] = json!([{}, {"empty_layer": true}])), None)]
#[case::hist_absent(image_config(|c| { c.as_object_mut().unwrap().remove("history"); }), None)]
fn manifests_and_configs(#[case] archive: Vec<u8>, #[case] refused: Option<Reason>) {
    assert_eq!(reason(&archive), refused);
}

#[test]
fn content_under_a_wrong_name_is_found_out() {
    let layout = oci();
    let layer = Digest::of(&layout.blobs[0]);
    let mut other = layout.blobs[0].clone();
    let last = other.len() - 6;
    other[last] ^= 1;
    let mut tar = tar().file("index.json", &bytes(&layout.root()));
    for blob in &layout.blobs {
        let name = format!("blobs/sha256/{}", Digest::of(blob).hex());
        tar = tar.file(&name, if Digest::of(blob) == layer { &other } else { blob });
    }
    // The flipped bit is in the stream's checksum, so the stream itself is damaged as well.
    assert!(matches!(
        reason(&tar.end()),
        Some(ArchiveMalformed | DigestMismatch)
    ));

    let mut tar = Tar::default();
    for (name, content) in layout.files(&layout.root()) {
        let name = if name.ends_with(layer.hex()) {
            format!("blobs/sha256/{}", Digest::of(b"another").hex())
        } else {
            name
        };
        tar = tar.file(&name, &content);
    }
    assert_eq!(reason(&tar.end()), Some(DigestMismatch), "blob-name-wrong");
}

#[rstest]
#[case::both(b"null", ManifestInvalid)]
#[case::empty(b"[]", ManifestInvalid)]
#[case::json_dup_key(br#"[{"Config":"a","Config":"b"}]"#, JsonInvalid)]
#[case::config_climbs(br#"[{"Config":"../etc/passwd","Layers":[]}]"#, PathInvalid)]
#[case::config_absolute(br#"[{"Config":"/etc/passwd","Layers":[]}]"#, PathInvalid)]
#[case::config_absent(br#"[{"Config":"a.json","Layers":[]}]"#, ManifestInvalid)]
#[case::no_list(br#"{"Config":"a.json"}"#, ManifestInvalid)]
fn docker_manifests(#[case] document: &[u8], #[case] expected: Reason) {
    assert_eq!(
        reason(&tar().file("manifest.json", document).end()),
        Some(expected)
    );
}

/// A docker archive whose config lists these layers' digests, and which stores these files.
fn docker(diff_ids: &[Vec<u8>], files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let config = bytes(&config(AMD64, diff_ids));
    let names: Vec<_> = files.iter().map(|(name, _)| *name).collect();
    let manifest = json!([{"Config": "c.json", "Layers": names}]);
    let mut tar = tar()
        .file("c.json", &config)
        .file("manifest.json", &bytes(&manifest));
    for (name, content) in files {
        if !tar
            .bytes
            .windows(name.len())
            .skip(2048)
            .any(|window| window == name.as_bytes())
        {
            tar = tar.file(name, content);
        }
    }
    tar.end()
}

#[test]
fn counts_and_files_of_a_docker_archive() {
    let (a, b) = (layer("a"), layer("b"));
    let both = [a.clone(), b.clone()];
    let file = |name, content: &Vec<u8>| (name, content.clone());
    assert_eq!(
        reason(&docker(&both, &[file("one.tar", &a), file("two.tar", &b)])),
        None
    );
    assert_eq!(
        reason(&docker(&both, &[file("one.tar", &a)])),
        Some(ManifestInvalid),
        "missing"
    );
    assert_eq!(
        reason(&docker(&both[..1], &[file("one.tar", &a), file("two.tar", &b)])),
        Some(ManifestInvalid)
    );
    assert_eq!(
        reason(&docker(&both, &[file("one.tar", &b), file("two.tar", &a)])),
        Some(DigestMismatch)
    );
}

/// Indexes in each other, the innermost naming the image.
fn nested(depth: usize) -> Vec<u8> {
    let mut layout = oci();
    for _ in 0..depth {
        let index =
            json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": layout.index});
        layout.index = vec![layout.manifest(&index, media_type::OCI_INDEX)];
    }
    layout.tar().end()
}

#[test]
fn indexes_nest_three_deep_and_are_bounded() {
    assert_eq!(reason(&nested(3)), None);
    assert_eq!(reason(&nested(4)), Some(LimitExceeded));
    let mut layout = oci();
    layout.index = vec![layout.index[0].clone(); 10_000];
    assert_eq!(reason(&layout.tar().end()), Some(LimitExceeded), "idx-10k");
}

#[test]
fn an_image_in_sha512_is_read() {
    let sha512 = |bytes: &[u8]| {
        let mut hasher = crate::image::Hasher::sha512();
        hasher.update(bytes);
        hasher.finish()
    };
    let describe = |media_type: &str, content: &[u8]| json!({"mediaType": media_type, "digest": sha512(content), "size": content.len()});
    let layer = layer("hello");
    let config =
        bytes(&json!({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [sha512(&layer)]}}));
    let manifest = bytes(&json!({"schemaVersion": 2,
        "config": describe(media_type::OCI_CONFIG, &config), "layers": [describe(media_type::OCI_LAYER, &layer)]}));
    let index = json!({"schemaVersion": 2, "manifests": [describe(media_type::OCI_MANIFEST, &manifest)]});
    let name = |content: &[u8]| format!("blobs/sha512/{}", sha512(content).hex());
    let archive = tar()
        .file("index.json", &bytes(&index))
        .file(&name(&layer), &layer)
        .file(&name(&config), &config)
        .file(&name(&manifest), &manifest)
        .end();
    assert_eq!(reason(&archive), None);
}
