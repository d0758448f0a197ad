//! What producers really write, and the traps that readers were caught in, by number.
//!
//! `docs/reference/archive-traps.md` is a table of them. The traps' sources are in the issue trackers of moby, containerd, go-containerregistry, skopeo and podman.
//! Number 25, a tag overwritten by a push of one architecture, is no archive's; pushes are tested for it.

use super::*;
use Reason::{
    ArchiveAmbiguous, DigestMismatch, ForeignLayer, LayerMissing, LinkInvalid, ManifestInvalid, ManyImages,
    MediaTypeAmbiguous, NoImage, PathInvalid,
};
use views::{
    config_bytes, docker_view, hex, layers, oci_buildkit, remanifest, save_crane, save_legacy, save_podman,
    save_v25,
};

/// Genuine shapes, plain and compressed as a whole.
pub(super) fn producers() -> Vec<Case> {
    let v25 = || docker_view(&save_v25(), &layers(), &config_bytes());
    vec![
        good("save-legacy", save_legacy()),
        good("layer-legacy-symlink", save_legacy()),
        good("save-v25", v25()),
        good("save-v25-compressed", gzipped(&v25())),
        good("save-v25-zstd", zstded(&v25())),
        good("save-podman", save_podman()),
        good("save-crane", save_crane()),
        good("oci-buildkit", oci_buildkit()),
        good(
            "oci-folder",
            Given::Path(|folder| {
                save_v25().write(folder);
                folder.to_owned()
            }),
        ),
        good("tar-order-reversed", ordered(|files| files.reverse())),
        good("tar-manifest-last", ordered(|files| files.rotate_left(2))),
        good("tar-interleaved", ordered(|files| files.swap(1, 3))),
    ]
}

fn ordered(order: fn(&mut Vec<(String, Vec<u8>)>)) -> Vec<u8> {
    let layout = save_v25();
    let mut files = layout.files(&layout.root());
    order(&mut files);
    files
        .iter()
        .fold(Tar::default(), |tar, (name, content)| tar.file(name, content))
        .end()
}

/// Both views of an archive, the OCI one changed.
fn two_views(change: impl FnOnce(&mut Layout)) -> Vec<u8> {
    let mut layout = save_v25();
    change(&mut layout);
    docker_view(&layout, &layers(), &config_bytes())
}

pub(super) fn views_differ() -> Vec<u8> {
    two_views(|layout| {
        let other = descriptor(media_type::OCI_LAYER, layout.blob(layer("other")));
        remanifest(layout, |layers| layers[1] = other);
    })
}

pub(super) fn views_agree() -> Vec<u8> {
    two_views(|_| ())
}

/// A docker archive of a config with these layers, which `manifest.json` gives these names.
fn docker(config: &Value, names: &[&str], change: impl FnOnce(Tar) -> Tar) -> Vec<u8> {
    let manifest = json!([{"Config": "c.json", "RepoTags": null, "Layers": names}]);
    let tar = Tar::default().file("c.json", &bytes(config));
    change(tar).file("manifest.json", &bytes(&manifest)).end()
}

fn plain_docker() -> Vec<u8> {
    let [base, top] = both();
    docker(&config(AMD64, &layers()), &["one.tar", "two.tar"], |tar| {
        tar.file("one.tar", &base).file("two.tar", &top)
    })
}

fn both() -> [Vec<u8>; 2] {
    [layer("base"), layer("top")]
}

pub(super) fn cases() -> Vec<Case> {
    [
        of_views(),
        of_links_and_names(),
        of_counts(),
        of_kinds(),
        of_types(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn of_views() -> Vec<Case> {
    let other_platform = |layout: &mut Layout| {
        let mut other = descriptor(media_type::OCI_MANIFEST, b"not there");
        other["platform"] = json!({"os": "linux", "architecture": "arm64"});
        layout.index.push(other);
    };
    let null = {
        let layout = save_v25();
        let root = json!({"schemaVersion": 2, "manifests": null});
        let view = docker_view(&layout, &layers(), &config_bytes());
        replace(&view, "index.json", &bytes(&root))
    };
    let nameless = {
        let mut layout = save_v25();
        layout.index[0]["annotations"] = json!({});
        layout.tar().end()
    };
    let without = |digest: &str| {
        let layout = save_v25();
        let files = layout.files(&layout.root());
        let kept = files.iter().filter(|(name, _)| !name.ends_with(digest));
        kept.fold(Tar::default(), |tar, (name, content)| tar.file(name, content))
            .end()
    };
    vec![
        good(
            "T1-manifest-without-layers",
            two_views(|layout| remanifest(layout, Vec::clear)),
        ),
        good(
            "T1-layers-in-another-order",
            two_views(|layout| remanifest(layout, |layers| layers.reverse())),
        ),
        good("T2-manifests-null", null),
        good(
            "T2-only-the-first-listed",
            two_views(|layout| layout.index.clear()),
        ),
        bad(
            "T2-another-image-listed",
            ArchiveAmbiguous,
            two_views(|layout| {
                layout.index.clear();
                layout.image(AMD64, &[layer("other")], media_type::OCI_LAYER, <[u8]>::to_vec);
            }),
            views_agree(),
        ),
        good("T3-no-tag", nameless),
        good("T4-other-platform-absent", {
            let mut layout = save_v25();
            other_platform(&mut layout);
            layout.tar().end()
        }),
        bad(
            "T4-own-layer-absent",
            LayerMissing,
            without(&hex(&both()[1])),
            without("none"),
        ),
        good("T5-both-views", views_agree()),
        good("T6-layer-sources", views_agree()),
        bad(
            "T6-layer-sources-with-urls",
            ForeignLayer,
            sources(json!(["https://example.com/"])),
            sources(json!([])),
        ),
    ]
}

/// `LayerSources` with these `urls`.
fn sources(urls: Value) -> Vec<u8> {
    let [base, top] = both();
    let mut source = descriptor(media_type::DOCKER_LAYER_GZIP, &base);
    source["urls"] = urls;
    let manifest = json!([{"Config": "c.json", "Layers": ["one.tar", "two.tar"],
        "LayerSources": {Digest::of(&base).as_str(): source}}]);
    Tar::default()
        .file("c.json", &config_bytes())
        .file("one.tar", &base)
        .file("two.tar", &top)
        .file("manifest.json", &bytes(&manifest))
        .end()
}

/// The archive with another content under one name.
fn replace(archive: &[u8], wanted: &str, with: &[u8]) -> Vec<u8> {
    let mut entries = ::tar::Archive::new(archive);
    let mut tar = Tar::default();
    for entry in entries.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut body = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut body).unwrap();
        tar = tar.file(&name, if name == wanted { with } else { &body });
    }
    tar.end()
}

fn of_links_and_names() -> Vec<Case> {
    let [base, top] = both();
    let linked = |target: &str| {
        docker(
            &config(AMD64, &layers()),
            &["a/layer.tar", "b/layer.tar"],
            |tar| {
                tar.file("one.tar", &base)
                    .file("b/layer.tar", &top)
                    .symlink("a/layer.tar", target)
            },
        )
    };
    let hard = docker(
        &config(AMD64, &layers()),
        &["a/layer.tar", "b/layer.tar"],
        |tar| {
            tar.file("one.tar", &base)
                .file("b/layer.tar", &top)
                .hardlink("a/layer.tar", "one.tar")
        },
    );
    let dotted = |prefix: &str| {
        let layout = save_v25();
        let files = layout.files(&layout.root());
        files
            .iter()
            .fold(Tar::default(), |tar, (name, content)| {
                tar.file(&format!("{prefix}{name}"), content)
            })
            .end()
    };
    let named = |name: &str| {
        docker(&config(AMD64, &layers()), &[name, "two.tar"], |tar| {
            tar.file("one.tar", &base).file("two.tar", &top)
        })
    };
    vec![
        good("T7-link-from-root", linked("one.tar")),
        bad(
            "T8-link-cycle",
            LinkInvalid,
            linked("layer.tar"),
            linked("../one.tar"),
        ),
        bad(
            "T8-link-outside",
            LinkInvalid,
            linked("../../../etc/passwd"),
            hard,
        ),
        good("T9-dot-slash", dotted("./")),
        bad("T9-absolute", PathInvalid, dotted("/"), dotted("")),
        bad(
            "T23-layer-climbs",
            PathInvalid,
            named("../../etc/passwd"),
            named("./one.tar"),
        ),
        bad(
            "T23-layer-absolute",
            PathInvalid,
            named("/etc/passwd"),
            named("one.tar"),
        ),
    ]
}

fn of_counts() -> Vec<Case> {
    let [base, top] = both();
    let again = [base.clone(), top.clone(), base.clone()];
    let tar = |tar: Tar| tar.file("one.tar", &base).file("two.tar", &top);
    let mixed = docker(&config(AMD64, &layers()), &["one.tar", "two.tar.gz"], |tar| {
        tar.file("one.tar", &base).file("two.tar.gz", &gzipped(&top))
    });
    let sections = |count: usize| {
        let section = |n: usize| {
            json!({"Config": format!("{n}.json"), "RepoTags": [format!("app:{n}")],
            "Layers": ["one.tar"]})
        };
        let all: Vec<Value> = (0..count).map(section).collect();
        let configs = (0..count).fold(Tar::default(), |tar, n| {
            let mut config = config(AMD64, &[layer("base")]);
            config["author"] = json!(n);
            tar.file(&format!("{n}.json"), &bytes(&config))
        });
        configs
            .file("one.tar", &base)
            .file("manifest.json", &bytes(&json!(all)))
            .end()
    };
    let single = |case: Case| Case { single: true, ..case };
    vec![
        bad(
            "T10-fewer-layers-than-diff-ids",
            ManifestInvalid,
            docker(&config(AMD64, &again), &["one.tar", "two.tar"], tar),
            docker(&config(AMD64, &again), &["one.tar", "two.tar", "one.tar"], tar),
        ),
        good(
            "T11-layer-twice",
            docker(&config(AMD64, &again), &["one.tar", "two.tar", "one.tar"], tar),
        ),
        good("T12-some-layers-compressed", mixed),
        bad(
            "T13-empty-layer-name",
            LayerMissing,
            docker(&config(AMD64, &layers()), &["", "two.tar"], tar),
            docker(&config(AMD64, &layers()), &["one.tar", "two.tar"], tar),
        ),
        good("save-two-images", sections(2)),
        single(bad(
            "T14-two-images-where-one-is-wanted",
            ManyImages,
            sections(2),
            sections(1),
        )),
        good("T15-manifest-behind-all-blobs", plain_docker()),
        good("T16-other-order-same-image", ordered(|files| files.reverse())),
    ]
}

fn of_kinds() -> Vec<Case> {
    let newer_attestation = {
        let mut layout = oci();
        let image = layout.index[0].clone();
        let statement = layout.blob(&b"{}"[..]).to_vec();
        let manifest = json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
            "artifactType": "application/vnd.docker.attestation.manifest.v1+json",
            "config": descriptor(media_type::OCI_EMPTY, &statement),
            "layers": [descriptor("application/vnd.in-toto+json", &statement)], "subject": image});
        let entry = layout.manifest(&manifest, media_type::OCI_MANIFEST);
        layout.index.push(entry);
        layout.tar().end()
    };
    let artifact = {
        let mut layout = Layout::default();
        let manifest = json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
            "artifactType": "application/vnd.example", "config": descriptor(media_type::OCI_EMPTY, layout.blob(&b"{}"[..])),
            "layers": []});
        layout.index = vec![layout.manifest(&manifest, media_type::OCI_MANIFEST)];
        layout.tar().end()
    };
    let helm = |config_type: &str| {
        let mut layout = Layout::default();
        let mut manifest = layout.image(AMD64, &[layer("hello")], media_type::OCI_LAYER_GZIP, gzipped);
        manifest["config"]["mediaType"] = json!(config_type);
        layout.index = vec![layout.manifest(&manifest, media_type::OCI_MANIFEST)];
        layout.tar().end()
    };
    let platforms = |architectures: &[&str]| {
        let mut layout = Layout::default();
        for architecture in architectures {
            layout.image(
                ("linux", architecture),
                &[layer(architecture)],
                media_type::OCI_LAYER,
                <[u8]>::to_vec,
            );
        }
        layout
    };
    let twice = {
        let mut layout = platforms(&["amd64"]);
        layout.image(AMD64, &[layer("newer")], media_type::OCI_LAYER, <[u8]>::to_vec);
        layout.tar().end()
    };
    let per_platform = {
        let mut layout = platforms(&["amd64", "arm64"]);
        layout.index = layout
            .index
            .clone()
            .into_iter()
            .map(|entry| {
                let index =
                    json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [entry]});
                layout.manifest(&index, media_type::OCI_INDEX)
            })
            .collect();
        layout.tar().end()
    };
    let single = |case: Case| Case { single: true, ..case };
    vec![
        good("T17-attestation-beside-the-image", oci_buildkit()),
        good("T17-attestation-by-subject", newer_attestation),
        good("T17-artifact-type-of-an-image", crane_layout()),
        bad("T17-only-an-artifact", NoImage, artifact, oci().tar().end()),
        single(good("T18-index-in-index-per-platform", per_platform)),
        bad(
            "T19-config-of-no-image",
            NoImage,
            helm("application/vnd.cncf.helm.config.v1+json"),
            helm(media_type::OCI_CONFIG),
        ),
        good("T20-podman-keeps-the-config", save_podman()),
        single(bad(
            "T24-one-platform-twice",
            ManyImages,
            twice,
            platforms(&["amd64", "arm64"]).tar().end(),
        )),
    ]
}

/// crane's layout: the entry of an image has an artifact type, which is its config's type.
fn crane_layout() -> Vec<u8> {
    let mut layout = oci();
    layout.index[0]["artifactType"] = json!(media_type::OCI_CONFIG);
    layout.tar().end()
}

fn of_types() -> Vec<Case> {
    let labelled = |media_type: &'static str, store: fn(&[u8]) -> Vec<u8>| {
        let mut layout = Layout::default();
        layout.image(AMD64, &layers(), media_type, store);
        layout.tar().end()
    };
    let named_gz = |store: fn(&[u8]) -> Vec<u8>| {
        let [base, top] = both();
        docker(&config(AMD64, &layers()), &["one.tar.gz", "two.tar.gz"], |tar| {
            tar.file("one.tar.gz", &store(&base))
                .file("two.tar.gz", &store(&top))
        })
    };
    let gz = media_type::OCI_LAYER_GZIP;
    vec![
        bad(
            "T21-plain-labelled-gzip",
            MediaTypeAmbiguous,
            labelled(gz, <[u8]>::to_vec),
            labelled(gz, gzipped),
        ),
        bad(
            "T22-zstd-labelled-gzip",
            MediaTypeAmbiguous,
            labelled(gz, zstded),
            labelled(media_type::OCI_LAYER_ZSTD, zstded),
        ),
        good("T22-zstd-named-gz", named_gz(zstded)),
        good("T12-plain-named-gz", named_gz(<[u8]>::to_vec)),
        bad(
            "T10-layer-of-another-image",
            DigestMismatch,
            {
                let [base, _] = both();
                docker(&config(AMD64, &layers()), &["one.tar", "two.tar"], |tar| {
                    tar.file("one.tar", &base).file("two.tar", &layer("other"))
                })
            },
            plain_docker(),
        ),
    ]
}
