//! The fuzzers' functions over their seeds and over mutations that are the same every time.
//!
//! With `SLIPWAY_SEEDS` set to a folder, the seeds are written there, for `make fuzz` to begin with.

use std::path::Path;

use super::{
    super::fuzzing::TARGETS,
    corpus::{self, Given},
    *,
};
use crate::image::archive::tests::views::{config_bytes, layers};

/// Seeds are small: what a fuzzer can change in time.
const SEED_LIMIT: usize = 16 * 1024;

/// Mutations for each target; enough to fail soon where a promise is gone.
const MUTATIONS: usize = 2000;

#[test]
fn every_seed_and_its_mutations_keep_the_promises() {
    let folder = std::env::var_os("SLIPWAY_SEEDS");
    let mut executions = 0;
    for (name, target) in TARGETS {
        let seeds = seeds(name);
        assert!(seeds.len() >= 5, "{name} has {} seeds", seeds.len());
        for (number, seed) in seeds.iter().enumerate() {
            if let Some(folder) = &folder {
                let folder = Path::new(folder).join(name);
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(folder.join(Digest::of(seed).short()), seed).unwrap();
            }
            target(seed);
            let mut random = fastrand::Rng::with_seed(number as u64);
            for _ in 0..MUTATIONS.div_ceil(seeds.len()) {
                let mut input = seed.clone();
                for _ in 0..random.u32(1..4) {
                    mutate(&mut input, &mut random, &seeds);
                }
                target(&input);
                executions += 1;
            }
        }
    }
    println!("fuzzing: {executions} mutations of {} targets", TARGETS.len());
}

fn mutate(input: &mut Vec<u8>, random: &mut fastrand::Rng, seeds: &[Vec<u8>]) {
    if input.is_empty() {
        input.push(random.u8(..));
    }
    let at = random.usize(..input.len());
    match random.u32(0..7) {
        0 => input[at] ^= 1 << random.u32(0..8),
        1 => {
            let odd = [0, 1, 0x7f, 0x80, 0xff, b'0', b'7', b'"', b'{', b'/'];
            input[at] = odd[random.usize(..odd.len())];
        }
        2 => input.truncate(at),
        3 => {
            let end = input.len().min(at + random.usize(1..600));
            input.drain(at..end);
        }
        4 => {
            let end = input.len().min(at + random.usize(1..600));
            let again = input[at..end].to_vec();
            input.splice(at..at, again);
        }
        5 => {
            let other = &seeds[random.usize(..seeds.len())];
            let from = random.usize(..=other.len());
            let piece = &other[from..other.len().min(from + 512)];
            input.splice(at..at, piece.iter().copied());
        }
        _ => input.insert(at, random.u8(..)),
    }
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "tar" | "tar_sealed" => archives(),
        "docker" => docker(),
        "oci" => oci_members(),
        "two_views" => two_views(),
        "json" => documents(),
        "gzip" => streams(gzipped),
        "zstd" => streams(zstded),
        _ => digests(),
    }
}

/// The corpus itself, where it is small.
fn archives() -> Vec<Vec<u8>> {
    let cases = corpus::groups().into_iter().flat_map(|(_, cases)| cases());
    cases
        .flat_map(|case| [Some(case.archive), case.twin])
        .flatten()
        .filter_map(|given| match given {
            Given::Bytes(bytes) if bytes.len() <= SEED_LIMIT => Some(bytes),
            _ => None,
        })
        .collect()
}

/// Members as the views' targets read them: name, line end, body; 0xff between.
fn members(members: &[(&str, &[u8])]) -> Vec<u8> {
    let members: Vec<Vec<u8>> = members
        .iter()
        .map(|(name, body)| [name.as_bytes(), b"\n", body].concat())
        .collect();
    members.join(&0xff)
}

fn docker() -> Vec<Vec<u8>> {
    let both = layers();
    let manifest = |text: &'static str| -> Vec<u8> {
        members(&[
            ("one.tar", &both[0]),
            ("b/layer.tar", &both[1]),
            ("c.json", &config_bytes()),
            ("manifest.json", text.as_bytes()),
        ])
    };
    vec![
        manifest(r#"[{"Config":"c.json","RepoTags":["app:1"],"Layers":["one.tar","b/layer.tar"]}]"#),
        manifest(r#"[{"Config":"c.json","RepoTags":null,"Layers":["","b/layer.tar"]}]"#),
        manifest(
            r#"[{"Config":"c.json","Layers":["one.tar","b/layer.tar"],"LayerSources":{"%0":{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"%0","size":#0}}}]"#,
        ),
        manifest(
            r#"[{"Config":"c.json","Layers":["one.tar","b/layer.tar"]},{"Config":"c.json","Layers":["one.tar","b/layer.tar"]}]"#,
        ),
        manifest("null"),
        members(&[
            ("one.tar.gz", &gzipped(&both[0])),
            ("c.json", &bytes(&config(AMD64, &both[..1]))),
            (
                "manifest.json",
                br#"[{"Config":"c.json","Layers":["one.tar.gz"]}]"#,
            ),
        ]),
    ]
}

const CONFIG: &[u8] = br#"{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["%0"]},"history":[{"created_by":"x"}],"config":{"Labels":{"a":"b"}}}"#;
const MANIFEST: &[u8] = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%1","size":#1},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"%0","size":#0,"annotations":{"containerd.io/distribution.source.docker.io":"library/app"}}]}"#;
const INDEX: &[u8] = br#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"%2","size":#2,"platform":{"os":"linux","architecture":"amd64"},"annotations":{"org.opencontainers.image.ref.name":"1"}}]}"#;
const OUTER: &[u8] = br#"{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"%3","size":#3}]}"#;
const ATTESTATION: &[u8] = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%1","size":#1},"layers":[{"mediaType":"application/vnd.in-toto+json","digest":"%0","size":#0}],"subject":{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"%2","size":#2}}"#;

fn oci_members() -> Vec<Vec<u8>> {
    let plain = layer("base");
    let stored = |media_type: &str| {
        let manifest =
            String::from_utf8_lossy(MANIFEST).replace("application/vnd.oci.image.layer.v1.tar", media_type);
        // The diff ID is that of the plain layer, which is a member too.
        let manifest = manifest.replace("\"%0\",\"size\":#0", "\"%3\",\"size\":#3");
        let index = String::from_utf8_lossy(INDEX)
            .replace('2', "4")
            .replace("\"schemaVersion\":4", "\"schemaVersion\":2");
        let compressed = if media_type.ends_with("gzip") {
            gzipped(&plain)
        } else {
            zstded(&plain)
        };
        members(&[
            ("@", &plain),
            ("@", CONFIG),
            ("unused", b""),
            ("@", &compressed),
            ("@", manifest.as_bytes()),
            ("index.json", index.as_bytes()),
        ])
    };
    vec![
        members(&[
            ("@", &plain),
            ("@", CONFIG),
            ("@", MANIFEST),
            ("index.json", INDEX),
        ]),
        members(&[
            ("@", &plain),
            ("@", CONFIG),
            ("@", MANIFEST),
            ("@", INDEX),
            ("index.json", OUTER),
        ]),
        members(&[
            ("@", &plain),
            ("@", CONFIG),
            ("@", MANIFEST),
            ("@", ATTESTATION),
            ("index.json", INDEX),
        ]),
        stored(media_type::OCI_LAYER_GZIP),
        stored(media_type::OCI_LAYER_ZSTD),
        members(&[("index.json", br#"{"schemaVersion":2,"manifests":null}"#)]),
    ]
}

fn two_views() -> Vec<Vec<u8>> {
    let plain = layer("base");
    let blob = |content: &[u8]| format!("blobs/sha256/{}", Digest::of(content).hex());
    let config = String::from_utf8_lossy(CONFIG).replace("%0", Digest::of(&plain).as_str());
    let docker = format!(
        r#"[{{"Config":"{}","RepoTags":["app:1"],"Layers":["{}"]}}]"#,
        blob(config.as_bytes()),
        blob(&plain)
    );
    let with = |index: &[u8], docker: &str| {
        members(&[
            ("@", &plain),
            ("@", CONFIG),
            ("@", MANIFEST),
            ("index.json", index),
            ("manifest.json", docker.as_bytes()),
        ])
    };
    let hollow = br#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"%1","size":#1},"layers":[]}"#;
    vec![
        with(INDEX, &docker),
        with(br#"{"schemaVersion":2,"manifests":null}"#, &docker),
        with(br#"{"schemaVersion":2,"manifests":[]}"#, &docker),
        with(INDEX, "[]"),
        members(&[
            ("@", &plain),
            ("@", CONFIG),
            ("@", hollow),
            ("index.json", INDEX),
            ("manifest.json", docker.as_bytes()),
        ]),
    ]
}

fn documents() -> Vec<Vec<u8>> {
    let texts: [&[u8]; 10] = [
        CONFIG,
        MANIFEST,
        INDEX,
        ATTESTATION,
        br#"{"a":1,"a":2}"#,
        br#"{"a":1,"\u0061":2}"#,
        br#"[null,true,-3,0.5,1e300,9007199254740991,"\ud83d\ude00",""]"#,
        br#"{"size":-1}"#,
        // Read, written and read again, the fraction's last bit differs.
        b"[-1,0,9,21e300,90071]",
        b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]",
    ];
    texts.map(<[u8]>::to_vec).into()
}

fn streams(compress: fn(&[u8]) -> Vec<u8>) -> Vec<Vec<u8>> {
    let plain = layer("content");
    let (one, two) = (compress(&plain[..700]), compress(&plain[700..]));
    vec![
        compress(&plain),
        compress(b""),
        [one.clone(), two.clone()].concat(),
        [one.clone(), vec![0; 40]].concat(),
        [one, b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec(), two].concat(),
        compress(&vec![0; 1 << 20]),
    ]
}

fn digests() -> Vec<Vec<u8>> {
    let (bare, digest) = (Digest::of(b"x").hex().to_owned(), Digest::of(b"y"));
    let entry =
        |digest: &str, layer_id: &str| json!({"digest": digest, "source": "a/b", "layer_id": layer_id});
    let line =
        json!({"diffID": digest, "digest": digest, "source": "", "size": 1, "mediaType": "x"}).to_string();
    vec![
        bytes(&json!([{digest.as_str(): entry(&bare, "layer_1")}])),
        bytes(&json!([{digest.as_str(): entry(digest.as_str(), "a.b-c")}, {}])),
        bytes(&json!([{"diff_id_1": entry("digest_1", "layer_1"), "diff_id_2": entry("digest_2", "../x")}])),
        bytes(
            &json!([{digest.as_str(): {"digest": bare, "layer_id": "l", "size": 3, "mediaType": "m", "blob": digest}}]),
        ),
        format!("{line}\n{line}\n").into_bytes(),
    ]
}
