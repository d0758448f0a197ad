//! Manifests, configs, indexes, digests, media types and JSON.

use super::*;
use Reason::{
    ArchiveAmbiguous, DigestInvalid, DigestMismatch, ForeignLayer, JsonInvalid, LayerMissing, LimitExceeded,
    ManifestInvalid, MediaTypeAmbiguous, PathInvalid, ReservedKey, SizeMismatch, UnsupportedMediaType,
};

pub(super) fn cases() -> Vec<Case> {
    [
        digests(),
        types(),
        blobs(),
        configs(),
        annotations(),
        json_forms(),
        indexes(),
        docker_manifests(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Changes the manifest of a good layout before it is stored.
fn manifest(change: impl FnOnce(&mut Value, &mut Layout)) -> Vec<u8> {
    let mut layout = Layout::default();
    let mut manifest = layout.image(AMD64, &[layer("hello")], media_type::OCI_LAYER_GZIP, gzipped);
    change(&mut manifest, &mut layout);
    layout.index = vec![layout.manifest(&manifest, media_type::OCI_MANIFEST)];
    layout.tar().end()
}

fn untouched() -> Vec<u8> {
    manifest(|_, _| ())
}

/// Changes the config of a good layout before it is stored.
fn image_config(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    manifest(|manifest, layout| {
        let mut config = config(AMD64, &[layer("hello")]);
        change(&mut config);
        manifest["config"] = descriptor(media_type::OCI_CONFIG, layout.blob(bytes(&config)));
    })
}

fn digests() -> Vec<Case> {
    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let text = |text: &str| manifest(|manifest, _| manifest["layers"][0]["digest"] = json!(text));
    let upper = format!("sha256:{}", HEX.to_uppercase());
    let wide: String = HEX
        .chars()
        .map(|c| if c.is_ascii_digit() { '\u{ff11}' } else { c })
        .collect();
    let refused = |name, digest: &str| bad(name, DigestInvalid, text(digest), untouched());
    vec![
        refused("digest-upper", &upper),
        refused("digest-short", "sha256:ab"),
        refused("digest-traversal", "sha256:../../../../etc/passwd"),
        refused("digest-sha1", "sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709"),
        refused("digest-empty-alg", &format!(":{HEX}")),
        refused("digest-unicode", &format!("sha256:{wide}")),
        refused("digest-bare", HEX),
        good("digest-sha512", sha512()),
    ]
}

/// A whole image in sha512.
fn sha512() -> Vec<u8> {
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
    // A name of 141 bytes does not fit a header.
    let blob = |tar: Tar, content: &[u8]| {
        let name = format!("blobs/sha512/{}", sha512(content).hex());
        tar.pax(&[("path", name.as_bytes())]).file("blob", content)
    };
    let tar = Tar::default().file("index.json", &bytes(&index));
    [&layer, &config, &manifest]
        .into_iter()
        .fold(tar, |tar, content| blob(tar, content))
        .end()
}

fn types() -> Vec<Case> {
    let layer_type = |text: String| manifest(|manifest, _| manifest["layers"][0]["mediaType"] = json!(text));
    let known = media_type::OCI_LAYER_GZIP;
    let refused = |name, text: String| bad(name, UnsupportedMediaType, layer_type(text), untouched());
    let foreign = |name, archive: Vec<u8>| bad(name, ForeignLayer, archive, untouched());
    let urls = |url: &str| manifest(|m, _| m["layers"][0]["urls"] = json!([url]));
    vec![
        bad(
            "mt-both-shapes",
            MediaTypeAmbiguous,
            manifest(|m, _| m["manifests"] = json!([])),
            manifest(|m, _| m["x-manifests"] = json!([])),
        ),
        bad(
            "mt-header-body-differ",
            MediaTypeAmbiguous,
            manifest(|m, _| m["mediaType"] = json!(media_type::DOCKER_MANIFEST)),
            manifest(|m, _| {
                m.as_object_mut().unwrap().remove("mediaType");
            }),
        ),
        refused("mt-unknown", "text/plain".into()),
        refused("mt-params", format!("{known}; a=b")),
        refused("mt-case", known.to_uppercase()),
        foreign(
            "foreign-urls-metadata-ip",
            urls("http://169.254.169.254/latest/meta-data/"),
        ),
        foreign("foreign-urls-https", urls("https://example.com/layer")),
        foreign(
            "foreign-type-oci",
            layer_type("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip".into()),
        ),
        foreign(
            "foreign-type-docker",
            layer_type("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".into()),
        ),
    ]
}

fn blobs() -> Vec<Case> {
    let layer_missing = manifest(|m, _| m["layers"][0] = descriptor(media_type::OCI_LAYER_GZIP, b"nowhere"));
    let config_missing = manifest(|m, _| m["config"] = descriptor(media_type::OCI_CONFIG, b"nowhere"));
    let layers = |change: fn(&mut Vec<Value>)| manifest(|m, _| change(m["layers"].as_array_mut().unwrap()));
    vec![
        bad(
            "blob-size-wrong",
            SizeMismatch,
            manifest(|m, _| m["layers"][0]["size"] = json!(7)),
            untouched(),
        ),
        bad(
            "blob-digest-wrong",
            DigestMismatch,
            stored_elsewhere(true),
            stored_elsewhere(false),
        ),
        bad("blob-name-wrong", DigestMismatch, misnamed(), untouched()),
        bad(
            "data-field-wrong",
            DigestMismatch,
            manifest(|m, _| m["config"]["data"] = json!("e30=")),
            manifest(|m, layout| {
                let config = layout
                    .blob(
                        b"{\"os\":\"linux\",\"architecture\":\"amd64\",\"rootfs\":{\"diff_ids\":[]}}"
                            .to_vec(),
                    )
                    .to_vec();
                m["config"] = descriptor(media_type::OCI_CONFIG, &config);
                m["config"]["data"] = json!(base64::Engine::encode(
                    &base64::engine::general_purpose::STANDARD,
                    &config
                ));
                m["layers"] = json!([]);
            }),
        ),
        bad("save-missing-layer", LayerMissing, layer_missing, untouched()),
        bad("config-absent", ManifestInvalid, config_missing, untouched()),
        bad(
            "save-extra-layer",
            ManifestInvalid,
            layers(|layers| layers.push(layers[0].clone())),
            untouched(),
        ),
        bad(
            "manifest-no-layers",
            ManifestInvalid,
            layers(Vec::clear),
            untouched(),
        ),
        bad(
            "schema-version-1",
            ManifestInvalid,
            manifest(|m, _| m["schemaVersion"] = json!(1)),
            untouched(),
        ),
        bad("layers-513", LimitExceeded, repeated(513), repeated(512)),
    ]
}

/// One layer so many times.
fn repeated(count: usize) -> Vec<u8> {
    let mut layout = Layout::default();
    layout.image(
        AMD64,
        &vec![layer("again"); count],
        media_type::OCI_LAYER,
        <[u8]>::to_vec,
    );
    layout.tar().end()
}

/// A plain layer, with a byte changed under its old name or not.
fn stored_elsewhere(changed: bool) -> Vec<u8> {
    let mut layout = Layout::default();
    layout.image(AMD64, &[layer("hello")], media_type::OCI_LAYER, <[u8]>::to_vec);
    let mut tar = Tar::default();
    for (name, mut content) in layout.files(&layout.root()) {
        if changed && content == layer("hello") {
            content[512] ^= 1;
        }
        tar = tar.file(&name, &content);
    }
    tar.end()
}

fn misnamed() -> Vec<u8> {
    let layout = oci();
    let layer = Digest::of(&layout.blobs[0]);
    let mut tar = Tar::default();
    for (name, content) in layout.files(&layout.root()) {
        let name = if name.ends_with(layer.hex()) {
            format!("blobs/sha256/{}", Digest::of(b"another").hex())
        } else {
            name
        };
        tar = tar.file(&name, &content);
    }
    tar.end()
}

fn configs() -> Vec<Case> {
    let diff_ids = |diff_ids: Value| image_config(|c| c["rootfs"]["diff_ids"] = diff_ids);
    vec![
        bad(
            "save-diffid-wrong",
            DigestMismatch,
            diff_ids(json!([Digest::of(b"x")])),
            untouched(),
        ),
        bad(
            "save-diffid-count",
            ManifestInvalid,
            diff_ids(json!([])),
            untouched(),
        ),
        bad(
            "diffid-invalid",
            DigestInvalid,
            diff_ids(json!(["sha256:ab"])),
            untouched(),
        ),
        bad(
            "hist-mismatch",
            ManifestInvalid,
            image_config(|c| c["history"] = json!([{}, {}])),
            image_config(|c| c["history"] = json!([{}, {"empty_layer": true}])),
        ),
        good(
            "hist-absent",
            image_config(|c| {
                c.as_object_mut().unwrap().remove("history");
            }),
        ),
        good(
            "hist-of-a-base-without",
            image_config(|c| c["history"] = json!([{"empty_layer": true}])),
        ),
        bad(
            "label-reserved",
            ReservedKey,
            image_config(|c| c["config"]["Labels"]["dev.slipway.base"] = json!("x")),
            image_config(|c| c["config"]["Labels"]["dev.slip.base"] = json!("x")),
        ),
    ]
}

fn annotations() -> Vec<Case> {
    let annotated = |key: &str, value: &str| manifest(|m, _| m["annotations"] = json!({key: value}));
    let many = |count: usize| {
        manifest(|m, _| {
            let all = (0..count).map(|n| (n.to_string(), json!("")));
            m["annotations"] = all.collect::<serde_json::Map<_, _>>().into();
        })
    };
    vec![
        good("ann-ansi", annotated("a", "\x1b[31mred\x1b[0m")),
        good("ann-bidi", annotated("a", "\u{202e}desrever")),
        good("ann-newline-log", annotated("a", "x\nlevel=error msg=forged")),
        bad(
            "ann-reserved",
            ReservedKey,
            annotated("slipway.dev/record", "x"),
            annotated("slipway.example/record", "x"),
        ),
        bad(
            "ann-1MiB",
            LimitExceeded,
            annotated("a", &"x".repeat(1 << 20)),
            annotated("a", &"x".repeat(64 << 10)),
        ),
        bad("json-100k-annotations", LimitExceeded, many(100_001), many(4096)),
    ]
}

/// A layout whose manifest is this text, filled with what a good one says.
fn raw(form: impl FnOnce(&str) -> Vec<u8>) -> Vec<u8> {
    let mut layout = Layout::default();
    let good = layout.image(AMD64, &[layer("hello")], media_type::OCI_LAYER_GZIP, gzipped);
    let text = serde_json::to_string(&good).unwrap();
    let inside = text.strip_prefix('{').unwrap();
    let stored = layout.blob(form(inside)).to_vec();
    layout.index = vec![descriptor(media_type::OCI_MANIFEST, &stored)];
    layout.tar().end()
}

fn json_forms() -> Vec<Case> {
    let with = |extra: &str| raw(|rest| format!("{{{extra},{rest}").into_bytes());
    let refused =
        |name, archive: Vec<u8>| bad(name, JsonInvalid, archive, with(r#""x":{"a":[1,null,-3,0.5]}"#));
    let deep = |depth: usize| format!(r#""x":{}{}"#, "[".repeat(depth), "]".repeat(depth));
    let size = |size: Value| manifest(move |m, _| m["layers"][0]["size"] = size);
    vec![
        good(
            "json-unknown-fields",
            manifest(|m, _| m["x-more"] = json!({"a": [1]})),
        ),
        refused("json-dup-key", with(r#""x":1,"x":1"#)),
        refused("json-dup-escaped", with(r#""x":1,"\u0078":2"#)),
        bad("json-depth-1000", JsonInvalid, with(&deep(1000)), with(&deep(31))),
        refused("json-bom", raw(|rest| format!("\u{feff}{{{rest}").into_bytes())),
        refused(
            "json-utf16",
            raw(|rest| {
                format!("{{{rest}")
                    .encode_utf16()
                    .flat_map(u16::to_le_bytes)
                    .collect()
            }),
        ),
        refused("json-trailing", raw(|rest| format!("{{{rest} x").into_bytes())),
        refused(
            "json-two-documents",
            raw(|rest| format!("{{{rest}{{}}").into_bytes()),
        ),
        refused("json-nan", with(r#""x":NaN"#)),
        refused("json-1e400", with(r#""x":1e400"#)),
        refused(
            "json-not-utf8",
            raw(|rest| [b"{\"x\":\"\xff\",", rest.as_bytes()].concat()),
        ),
        refused("json-neg-size", size(json!(-1))),
        refused("json-size-2e53", size(json!(1_u64 << 53))),
        bad(
            "json-5MiB-manifest",
            LimitExceeded,
            with(&format!(r#""x":"{}""#, "x".repeat(5 << 20))),
            with(&format!(r#""x":"{}""#, "x".repeat(3 << 20))),
        ),
        bad(
            "json-100k-values",
            LimitExceeded,
            with(&format!(r#""x":[{}0]"#, "0,".repeat(100_000))),
            with(&format!(r#""x":[{}0]"#, "0,".repeat(90_000))),
        ),
        bad(
            "json-36MiB-together",
            LimitExceeded,
            large_images(12),
            large_images(9),
        ),
    ]
}

/// Images whose manifests have 3 MiB each.
fn large_images(count: usize) -> Vec<u8> {
    let mut layout = Layout::default();
    for number in 0..count {
        let mut manifest = layout.image(
            AMD64,
            &[layer(&number.to_string())],
            media_type::OCI_LAYER,
            <[u8]>::to_vec,
        );
        layout.blobs.pop();
        manifest["x"] = json!("x".repeat(3 << 20));
        layout.index[number] = layout.manifest(&manifest, media_type::OCI_MANIFEST);
    }
    layout.tar().end()
}

/// Indexes in each other, the innermost naming the image.
pub(super) fn nested(depth: usize) -> Vec<u8> {
    let mut layout = oci();
    for _ in 0..depth {
        let index =
            json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": layout.index});
        layout.index = vec![layout.manifest(&index, media_type::OCI_INDEX)];
    }
    layout.tar().end()
}

fn indexes() -> Vec<Case> {
    let wide = |count: usize| {
        let mut layout = oci();
        layout.index = vec![layout.index[0].clone(); count];
        layout.tar().end()
    };
    // An index that contains its own digest cannot be made; one that lies about being it can.
    let own = |member_is_it: bool| {
        let mut layout = oci();
        let index =
            json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": layout.index});
        let entry = layout.manifest(&index, media_type::OCI_INDEX);
        let name = format!(
            "blobs/sha256/{}",
            entry["digest"].as_str().unwrap().split_once(':').unwrap().1
        );
        layout.index = vec![entry.clone()];
        let mut tar = Tar::default();
        for (file, content) in layout.files(&layout.root()) {
            let content = if file == name && member_is_it {
                bytes(&json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [entry]}))
            } else {
                content
            };
            tar = tar.file(&file, &content);
        }
        tar.end()
    };
    vec![
        good("idx-depth-3", nested(3)),
        bad("idx-depth-4", LimitExceeded, nested(4), nested(1)),
        bad("idx-10k", LimitExceeded, wide(10_000), wide(1000)),
        bad("idx-self", SizeMismatch, own(true), own(false)),
        bad("idx-cycle", DigestMismatch, cycle(true), cycle(false)),
    ]
}

/// Two indexes of equal size that name each other, as far as that can be written down.
fn cycle(closed: bool) -> Vec<u8> {
    let mut layout = oci();
    let image = layout.index[0].clone();
    let index =
        |entry: &Value| json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [entry]});
    let inner = bytes(&index(&image));
    let mut entry = descriptor(media_type::OCI_INDEX, &inner);
    entry["size"] = json!(inner.len());
    let outer = bytes(&index(&entry));
    let mut root = descriptor(media_type::OCI_INDEX, &outer);
    root["size"] = json!(outer.len());
    layout.index = vec![root.clone()];
    let name = |content: &[u8]| format!("blobs/sha256/{}", Digest::of(content).hex());
    // In place of the inner index stands one that names the outer one again.
    let mut back = bytes(&index(&root));
    back.resize(inner.len(), b' ');
    let stored = if closed { &back } else { &inner };
    layout
        .tar()
        .file(&name(&inner), stored)
        .file(&name(&outer), &outer)
        .end()
}

/// A docker archive with this `manifest.json`, and a config and two layers to name.
fn docker(document: &str) -> Vec<u8> {
    let layers = [layer("a"), layer("b")];
    Tar::default()
        .file("c.json", &bytes(&config(AMD64, &layers)))
        .file("one.tar", &layers[0])
        .file("two.tar", &layers[1])
        .file("manifest.json", document.as_bytes())
        .end()
}

fn docker_manifests() -> Vec<Case> {
    let fine = || docker(r#"[{"Config":"c.json","Layers":["one.tar","two.tar"]}]"#);
    let case = |name, reason, document: &str| bad(name, reason, docker(document), fine());
    let neither = Tar::default().file("repositories", b"{}").end();
    vec![
        case("save-null-manifest", ManifestInvalid, "null"),
        case("save-empty-list", ManifestInvalid, "[]"),
        case("save-no-list", ManifestInvalid, r#"{"Config":"c.json"}"#),
        case("save-dup-key", JsonInvalid, r#"[{"Config":"a","Config":"b"}]"#),
        case(
            "save-config-climbs",
            PathInvalid,
            r#"[{"Config":"../etc/passwd","Layers":[]}]"#,
        ),
        case(
            "save-config-absolute",
            PathInvalid,
            r#"[{"Config":"/etc/passwd","Layers":[]}]"#,
        ),
        case(
            "save-config-absent",
            ManifestInvalid,
            r#"[{"Config":"a.json","Layers":[]}]"#,
        ),
        case(
            "save-fewer-layers",
            ManifestInvalid,
            r#"[{"Config":"c.json","Layers":["one.tar"]}]"#,
        ),
        case(
            "save-more-layers",
            ManifestInvalid,
            r#"[{"Config":"c.json","Layers":["one.tar","two.tar","two.tar"]}]"#,
        ),
        case(
            "save-swapped-layers",
            DigestMismatch,
            r#"[{"Config":"c.json","Layers":["two.tar","one.tar"]}]"#,
        ),
        case(
            "save-one-file-two-layers",
            ManifestInvalid,
            r#"[{"Config":"c.json","Layers":["one.tar","one.tar"]}]"#,
        ),
        case(
            "save-layer-absent",
            LayerMissing,
            r#"[{"Config":"c.json","Layers":["one.tar","three.tar"]}]"#,
        ),
        bad("save-neither-view", Reason::ArchiveMalformed, neither, fine()),
        bad(
            "save-views-differ",
            ArchiveAmbiguous,
            super::traps::views_differ(),
            super::traps::views_agree(),
        ),
    ]
}
