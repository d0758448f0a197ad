//! Compressed layers, good and bad, under types that tell the truth or do not.

use serde_json::json;

use super::*;
use Reason::{ArchiveMalformed, LimitExceeded, MediaTypeAmbiguous, UnsupportedCompression};

/// A layer stored in some way, under a type that says so or that does not.
fn stored(media_type: &str, plain: &[u8], stored: &[u8]) -> Vec<u8> {
    let mut layout = Layout::default();
    let config = bytes(&config(AMD64, &[plain.to_vec()]));
    let manifest = json!({"schemaVersion": 2,
        "config": descriptor(media_type::OCI_CONFIG, layout.blob(config)),
        "layers": [descriptor(media_type, layout.blob(stored))]});
    layout.index = vec![layout.manifest(&manifest, media_type::OCI_MANIFEST)];
    layout.tar().end()
}

fn bomb(compress: fn(&[u8]) -> Vec<u8>) -> (Vec<u8>, Vec<u8>) {
    let plain = Tar::default().file("zeros", &vec![0; 24 << 20]).end();
    let stored = compress(&plain);
    (plain, stored)
}

#[test]
#[allow(clippy::too_many_lines, reason = "one table")]
fn compressed_layers() {
    use media_type::{OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD};
    let plain = layer("content");
    let (gz, zst) = (gzipped(&plain), zstded(&plain));
    let join = |parts: &[&[u8]]| parts.concat();
    let spoil = |bytes: &[u8], from_end: usize| {
        let mut bytes = bytes.to_vec();
        let at = bytes.len() - from_end;
        bytes[at] ^= 0x10;
        bytes
    };
    let split = join(&[&gzipped(&plain[..700]), &gzipped(&plain[700..])]);
    let frames = join(&[
        &zstded(&plain[..700]),
        b"\x50\x2a\x4d\x18\x03\0\0\0abc",
        &zstded(&plain[700..]),
    ]);
    let extra = |length: u16| {
        let mut stream = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255];
        stream.extend(length.to_le_bytes());
        stream.extend(vec![0; usize::from(length)]);
        stream.extend(&gz[10..]);
        stream
    };
    let (gz_plain, gz_bomb) = bomb(gzipped);
    let (zst_plain, zst_bomb) = bomb(zstded);
    let cases: Vec<(&str, Vec<u8>, Option<Reason>)> = vec![
        ("plain", stored(OCI_LAYER, &plain, &plain), None),
        ("gzip", stored(OCI_LAYER_GZIP, &plain, &gz), None),
        ("zstd", stored(OCI_LAYER_ZSTD, &plain, &zst), None),
        ("gz-multimember", stored(OCI_LAYER_GZIP, &plain, &split), None),
        (
            "gz-trailing-zeros",
            stored(OCI_LAYER_GZIP, &plain, &join(&[&gz, &[0; 777]])),
            None,
        ),
        ("gz-small-extra", stored(OCI_LAYER_GZIP, &plain, &extra(40)), None),
        ("zstd-frames", stored(OCI_LAYER_ZSTD, &plain, &frames), None),
        (
            "gz-trailing",
            stored(OCI_LAYER_GZIP, &plain, &join(&[&gz, b"x"])),
            Some(ArchiveMalformed),
        ),
        (
            "gz-zeros-then-more",
            stored(OCI_LAYER_GZIP, &plain, &join(&[&gz, b"\0\0x"])),
            Some(ArchiveMalformed),
        ),
        (
            "gz-bad-crc",
            stored(OCI_LAYER_GZIP, &plain, &spoil(&gz, 6)),
            Some(ArchiveMalformed),
        ),
        (
            "gz-bad-length",
            stored(OCI_LAYER_GZIP, &plain, &spoil(&gz, 2)),
            Some(ArchiveMalformed),
        ),
        (
            "gz-cut",
            stored(OCI_LAYER_GZIP, &plain, &gz[..gz.len() - 9]),
            Some(ArchiveMalformed),
        ),
        (
            "gz-huge-extra",
            stored(OCI_LAYER_GZIP, &plain, &extra(60_000)),
            Some(LimitExceeded),
        ),
        (
            "gz-nested",
            stored(OCI_LAYER_GZIP, &gz, &gzipped(&gz)),
            Some(MediaTypeAmbiguous),
        ),
        (
            "gz-bomb",
            stored(OCI_LAYER_GZIP, &gz_plain, &gz_bomb),
            Some(LimitExceeded),
        ),
        (
            "zstd-bomb",
            stored(OCI_LAYER_ZSTD, &zst_plain, &zst_bomb),
            Some(LimitExceeded),
        ),
        (
            "zstd-cut",
            stored(OCI_LAYER_ZSTD, &plain, &zst[..zst.len() - 3]),
            Some(ArchiveMalformed),
        ),
        (
            "zstd-trailing",
            stored(OCI_LAYER_ZSTD, &plain, &join(&[&zst, b"trailing"])),
            Some(ArchiveMalformed),
        ),
        (
            "zstd-skippable",
            stored(OCI_LAYER_ZSTD, &plain, b"\x50\x2a\x4d\x18\0\0\0\x40...."),
            Some(LimitExceeded),
        ),
        (
            "zstd-window-31",
            stored(OCI_LAYER_ZSTD, &plain, b"\x28\xb5\x2f\xfd\x00\xa8\0\0\0\0\0\0"),
            Some(LimitExceeded),
        ),
        (
            "zstd-dict",
            stored(OCI_LAYER_ZSTD, &plain, b"\x28\xb5\x2f\xfd\x01\x58\x07\0\0\0\0\0"),
            Some(UnsupportedCompression),
        ),
        (
            "gz-as-zstd",
            stored(OCI_LAYER_ZSTD, &plain, &gz),
            Some(MediaTypeAmbiguous),
        ),
        (
            "tar-as-gz",
            stored(OCI_LAYER_GZIP, &plain, &plain),
            Some(MediaTypeAmbiguous),
        ),
        (
            "zip-as-layer",
            stored(OCI_LAYER, b"PK\x03\x04", b"PK\x03\x04"),
            Some(MediaTypeAmbiguous),
        ),
    ];
    for (name, archive, refused) in cases {
        assert_eq!(reason(&archive), refused, "{name}");
    }
}
