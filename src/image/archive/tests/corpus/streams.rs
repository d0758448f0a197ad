//! Compressed layers, good and bad, under types that tell the truth or do not.

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

/// A frame with a checksum of its content at its end.
fn zstd_with_checksum(plain: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

pub(super) fn cases() -> Vec<Case> {
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
    let checked = zstd_with_checksum(&plain);
    let calm = Tar::default().file("zeros", &vec![0; 4 << 20]).end();
    let around = Tar::default().file("layer.tar.gz", &gz).end();
    vec![
        good("layer-plain", stored(OCI_LAYER, &plain, &plain)),
        good("layer-gzip", stored(OCI_LAYER_GZIP, &plain, &gz)),
        good("layer-zstd", stored(OCI_LAYER_ZSTD, &plain, &zst)),
        good("gz-multimember", stored(OCI_LAYER_GZIP, &plain, &split)),
        good(
            "gz-trailing-zeros",
            stored(OCI_LAYER_GZIP, &plain, &join(&[&gz, &[0; 777]])),
        ),
        good("gz-small-extra", stored(OCI_LAYER_GZIP, &plain, &extra(40))),
        good("zstd-frames", stored(OCI_LAYER_ZSTD, &plain, &frames)),
        bad(
            "gz-trailing",
            ArchiveMalformed,
            stored(OCI_LAYER_GZIP, &plain, &join(&[&gz, b"x"])),
            stored(OCI_LAYER_GZIP, &plain, &join(&[&gz, &[0; 777]])),
        ),
        bad(
            "gz-zeros-then-more",
            ArchiveMalformed,
            stored(OCI_LAYER_GZIP, &plain, &join(&[&gz, b"\0\0x"])),
            stored(OCI_LAYER_GZIP, &plain, &join(&[&gz, b"\0\0"])),
        ),
        bad(
            "gz-bad-crc",
            ArchiveMalformed,
            stored(OCI_LAYER_GZIP, &plain, &spoil(&gz, 6)),
            stored(OCI_LAYER_GZIP, &plain, &gz),
        ),
        bad(
            "gz-bad-length",
            ArchiveMalformed,
            stored(OCI_LAYER_GZIP, &plain, &spoil(&gz, 2)),
            stored(OCI_LAYER_GZIP, &plain, &gz),
        ),
        bad(
            "gz-cut",
            ArchiveMalformed,
            stored(OCI_LAYER_GZIP, &plain, &gz[..gz.len() - 9]),
            stored(OCI_LAYER_GZIP, &plain, &gz),
        ),
        bad(
            "gz-huge-extra",
            LimitExceeded,
            stored(OCI_LAYER_GZIP, &plain, &extra(60_000)),
            stored(OCI_LAYER_GZIP, &plain, &extra(40)),
        ),
        bad(
            "gz-nested",
            MediaTypeAmbiguous,
            stored(OCI_LAYER_GZIP, &gz, &gzipped(&gz)),
            stored(OCI_LAYER_GZIP, &around, &gzipped(&around)),
        ),
        bad(
            "gz-bomb-1000x",
            LimitExceeded,
            stored(OCI_LAYER_GZIP, &gz_plain, &gz_bomb),
            stored(OCI_LAYER_GZIP, &calm, &gzipped(&calm)),
        ),
        bad(
            "zstd-bomb",
            LimitExceeded,
            stored(OCI_LAYER_ZSTD, &zst_plain, &zst_bomb),
            stored(OCI_LAYER_ZSTD, &calm, &zstded(&calm)),
        ),
        bad(
            "zstd-cut",
            ArchiveMalformed,
            stored(OCI_LAYER_ZSTD, &plain, &zst[..zst.len() - 3]),
            stored(OCI_LAYER_ZSTD, &plain, &zst),
        ),
        bad(
            "zstd-trailing",
            ArchiveMalformed,
            stored(OCI_LAYER_ZSTD, &plain, &join(&[&zst, b"trailing"])),
            stored(OCI_LAYER_ZSTD, &plain, &frames),
        ),
        bad(
            "zstd-skippable-1GiB",
            LimitExceeded,
            stored(OCI_LAYER_ZSTD, &plain, b"\x50\x2a\x4d\x18\0\0\0\x40...."),
            stored(OCI_LAYER_ZSTD, &plain, &frames),
        ),
        bad(
            "zstd-window-31",
            LimitExceeded,
            stored(OCI_LAYER_ZSTD, &plain, b"\x28\xb5\x2f\xfd\x00\xa8\0\0\0\0\0\0"),
            stored(OCI_LAYER_ZSTD, &plain, &zst),
        ),
        bad(
            "zstd-dict",
            UnsupportedCompression,
            stored(OCI_LAYER_ZSTD, &plain, b"\x28\xb5\x2f\xfd\x01\x58\x07\0\0\0\0\0"),
            stored(OCI_LAYER_ZSTD, &plain, &zst),
        ),
        bad(
            "zstd-bad-checksum",
            ArchiveMalformed,
            stored(OCI_LAYER_ZSTD, &plain, &spoil(&checked, 2)),
            stored(OCI_LAYER_ZSTD, &plain, &checked),
        ),
        bad(
            "gz-as-zstd",
            MediaTypeAmbiguous,
            stored(OCI_LAYER_ZSTD, &plain, &gz),
            stored(OCI_LAYER_GZIP, &plain, &gz),
        ),
        bad(
            "tar-as-gz",
            MediaTypeAmbiguous,
            stored(OCI_LAYER_GZIP, &plain, &plain),
            stored(OCI_LAYER, &plain, &plain),
        ),
        bad(
            "zip-as-layer",
            MediaTypeAmbiguous,
            stored(OCI_LAYER, b"PK\x03\x04", b"PK\x03\x04"),
            stored(OCI_LAYER, &plain, &plain),
        ),
    ]
}
