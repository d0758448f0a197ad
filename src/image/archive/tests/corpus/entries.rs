//! Odd entries, framing and paths.

use super::*;
use Reason::{
    ArchiveAmbiguous, ArchiveChanged, ArchiveMalformed, ArchiveMissing, LimitExceeded, LinkInvalid,
    PathInvalid, UnsupportedCompression, UnsupportedEntry,
};

/// A good archive with these entries in front.
fn with(odd: Tar) -> Vec<u8> {
    let mut tar = odd;
    tar.bytes.extend(oci().tar().bytes);
    tar.end()
}

fn tar() -> Tar {
    Tar::default()
}

/// A tar archive as a body: whoever reads the body as entries sees them.
fn inner() -> Vec<u8> {
    tar().file("manifest.json", b"[]").bytes
}

fn spoiled(kind: u8, spoil: impl FnOnce(&mut [u8; 512])) -> Tar {
    let mut block = header(kind, b"odd", "", 0);
    spoil(&mut block);
    tar().block(&sealed(block))
}

fn odd(name: &'static str, reason: Reason, entries: Tar, harmless: Tar) -> Case {
    bad(name, reason, with(entries), with(harmless))
}

pub(super) fn cases() -> Vec<Case> {
    [
        extended(),
        bodies(),
        numbers(),
        names(),
        links(),
        kinds(),
        framing(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn extended() -> Vec<Case> {
    let x = || tar().file("a", b"x");
    let plain = || tar().pax(&[("mtime", b"1")]).file("a", b"x");
    let pax = |records: &[(&str, &[u8])]| tar().pax(records).file("a", b"x");
    let raw = |body: &[u8]| tar().entry(b'x', b"x", "", body).file("a", b"x");
    let global = |key: &str, value: &[u8]| tar().entry(b'g', b"g", "", &record(key, value));
    let body = inner();
    let size = body.len().to_string();
    let over_zero = tar()
        .pax(&[("size", size.as_bytes())])
        .block(&header(b'0', b"a", "", 0))
        .body(&body);
    let unnamed =
        |name: &'static str, body: &[u8]| odd(name, ArchiveMalformed, raw(body), raw(&record("mtime", b"1")));
    vec![
        good("tar-pax-size-over-zero", with(over_zero)),
        good("tar-pax-xattr", with(pax(&[("SCHILY.xattr.user.a", b"\xff\0")]))),
        odd(
            "tar-pax-zero-over-size",
            ArchiveAmbiguous,
            pax(&[("size", b"0")]),
            pax(&[("size", b"1")]),
        ),
        odd(
            "tar-pax-size-mismatch",
            ArchiveAmbiguous,
            pax(&[("size", b"2")]),
            pax(&[("size", b"1")]),
        ),
        odd(
            "tar-pax-before-longname",
            ArchiveAmbiguous,
            tar()
                .pax(&[("size", b"1")])
                .long_name(b"l")
                .file("a", b"x")
                .file("b", b"y"),
            tar().long_name(b"l").file("a", b"x").file("b", b"y"),
        ),
        odd(
            "tar-pax-dup-size",
            ArchiveAmbiguous,
            pax(&[("size", b"1"), ("size", b"1")]),
            pax(&[("size", b"1")]),
        ),
        odd(
            "tar-pax-dup-path",
            ArchiveAmbiguous,
            pax(&[("path", b"a"), ("path", b"b")]),
            pax(&[("path", b"b")]),
        ),
        unnamed("tar-pax-bad-length-short", b"5 mtime=1\n"),
        unnamed("tar-pax-bad-length-long", b"99 mtime=1\n"),
        unnamed("tar-pax-bad-length-words", b"ab mtime=1\n"),
        unnamed("tar-pax-no-newline", b"11 mtime=12"),
        odd(
            "tar-pax-global-size",
            ArchiveAmbiguous,
            global("size", b"1"),
            global("comment", b"a commit"),
        ),
        odd(
            "tar-pax-global-path",
            ArchiveAmbiguous,
            global("path", b"a"),
            global("comment", b"a commit"),
        ),
        odd(
            "tar-pax-nul-path",
            PathInvalid,
            pax(&[("path", b"a\0b")]),
            pax(&[("path", b"a/b")]),
        ),
        odd(
            "tar-pax-huge-65KiB",
            LimitExceeded,
            pax(&[("comment", &vec![b'x'; 66_560])]),
            pax(&[("comment", &vec![b'x'; 60_000])]),
        ),
        odd(
            "tar-pax-huge-2GiB",
            LimitExceeded,
            tar().block(&header(b'x', b"x", "", 2 << 30)),
            plain(),
        ),
        odd(
            "tar-two-pax",
            ArchiveAmbiguous,
            tar()
                .pax(&[("mtime", b"1")])
                .pax(&[("mtime", b"1")])
                .file("a", b"x"),
            plain(),
        ),
        odd(
            "tar-two-longnames",
            ArchiveAmbiguous,
            tar().long_name(b"a").long_name(b"b").file("c", b"x"),
            tar().long_name(&[b'n'; 300]).file("c", b"x"),
        ),
        odd(
            "tar-longname-plus-pax",
            ArchiveAmbiguous,
            tar().long_name(b"a").pax(&[("path", b"b")]).file("c", b"x"),
            tar().long_name(b"a").file("c", b"x"),
        ),
        bad(
            "tar-pax-dangling",
            ArchiveMalformed,
            oci().tar().pax(&[("path", b"a")]).end(),
            [oci().tar().bytes, pax(&[("path", b"b")]).end()].concat(),
        ),
        odd(
            "tar-sparse-pax00",
            UnsupportedEntry,
            pax(&[("GNU.sparse.map", b"0,1")]),
            x(),
        ),
        odd(
            "tar-sparse-pax10-bomb",
            UnsupportedEntry,
            {
                let map = "1\n".repeat(20_000);
                tar()
                    .pax(&[
                        ("GNU.sparse.major", b"1"),
                        ("GNU.sparse.minor", b"0"),
                        ("GNU.sparse.realsize", b"10000000"),
                    ])
                    .file("a", format!("10000000\n{map}").as_bytes())
            },
            x(),
        ),
        odd(
            "tar-sparse-old",
            UnsupportedEntry,
            tar().entry(b'S', b"s", "", b""),
            x(),
        ),
    ]
}

fn bodies() -> Vec<Case> {
    let body = inner();
    vec![
        odd(
            "tar-dir-body",
            ArchiveAmbiguous,
            tar().entry(b'5', b"d", "", &body),
            tar().folder("d/"),
        ),
        odd(
            "tar-symlink-body",
            ArchiveAmbiguous,
            tar().entry(b'2', b"s", "index.json", &body),
            tar().symlink("s", "index.json"),
        ),
        odd(
            "tar-hardlink-body",
            ArchiveAmbiguous,
            tar().file("a", b"x").entry(b'1', b"h", "a", &body),
            tar().file("a", b"x").hardlink("h", "a"),
        ),
    ]
}

fn numbers() -> Vec<Case> {
    let size = |field: &'static [u8]| spoiled(b'0', |block| block[124..136].copy_from_slice(field));
    let fine = || size(b"00000000000\0");
    let base_256 = || size(&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    vec![
        good("tar-size-base-256", with(base_256())),
        odd("tar-neg-size", ArchiveMalformed, size(&[0xff; 12]), base_256()),
        odd(
            "tar-size-2e63",
            ArchiveMalformed,
            size(&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]),
            base_256(),
        ),
        odd(
            "tar-octal-overflow",
            ArchiveMalformed,
            size(b"777777777777"),
            fine(),
        ),
        odd("tar-empty-size", ArchiveMalformed, size(&[0; 12]), fine()),
        odd("tar-nonoctal", ArchiveMalformed, size(b"00000000009\0"), fine()),
        odd(
            "tar-badsum",
            ArchiveMalformed,
            {
                let mut block = header(b'0', b"a", "", 0);
                block[0] = b'b';
                tar().block(&block)
            },
            tar().file("b", b""),
        ),
    ]
}

fn names() -> Vec<Case> {
    let x = || tar().file("a", b"x");
    vec![
        odd(
            "tar-dup-name",
            ArchiveAmbiguous,
            x().file("a", b"y"),
            x().file("a", b"x"),
        ),
        odd(
            "tar-dup-dotslash",
            ArchiveAmbiguous,
            x().file("./a", b"yy"),
            x().file("./a", b"x"),
        ),
        odd(
            "tar-dup-link-vs-file",
            ArchiveAmbiguous,
            x().symlink("a", "index.json"),
            x().symlink("b", "index.json"),
        ),
        odd(
            "tar-dup-many",
            LimitExceeded,
            (0..66).fold(tar(), |tar, _| tar.file("a", b"x")),
            (0..65).fold(tar(), |tar, _| tar.file("a", b"x")),
        ),
        odd(
            "tar-dotdot",
            PathInvalid,
            tar().file("a/../b", b"x"),
            tar().file("a/b", b"x"),
        ),
        odd(
            "tar-absolute",
            PathInvalid,
            tar().file("/a", b"x"),
            tar().file("./a", b"x"),
        ),
        odd(
            "tar-backslash",
            PathInvalid,
            tar().file("a\\b", b"x"),
            tar().file("a b", b"x"),
        ),
        odd(
            "tar-ctrl-name",
            PathInvalid,
            tar().file("a\x1b[1m", b"x"),
            tar().file("a[1m", b"x"),
        ),
        odd(
            "tar-nonutf8",
            PathInvalid,
            tar().entry(b'0', b"a\xff", "", b""),
            tar().file("aÿ", b""),
        ),
        odd(
            "tar-name-4k",
            PathInvalid,
            tar().long_name(&[b'a'; 4096]).file("a", b"x"),
            tar().long_name(&[b'a'; 1000]).file("a", b"x"),
        ),
        odd(
            "tar-folder-twice-as-file",
            ArchiveAmbiguous,
            tar().folder("d/").file("d", b""),
            tar().folder("d/").folder("d/"),
        ),
        good("tar-root-folder", with(tar().folder("./"))),
    ]
}

fn links() -> Vec<Case> {
    let file = || tar().file("0", b"x");
    let chain =
        |length: usize| (1..=length).fold(file(), |tar, n| tar.symlink(&n.to_string(), &(n - 1).to_string()));
    let near = || file().symlink("a", "0");
    vec![
        odd(
            "tar-symlink-escape",
            LinkInvalid,
            tar().symlink("a", "../../etc/passwd"),
            near(),
        ),
        odd(
            "tar-symlink-absolute",
            LinkInvalid,
            tar().symlink("a", "/etc/passwd"),
            near(),
        ),
        odd(
            "tar-symlink-dangling",
            LinkInvalid,
            tar().symlink("a", "b"),
            near(),
        ),
        odd(
            "tar-link-cycle",
            LinkInvalid,
            tar().symlink("a", "b").symlink("b", "a"),
            chain(2),
        ),
        odd("tar-link-chain-9", LinkInvalid, chain(9), chain(8)),
        odd(
            "tar-link-to-dir",
            LinkInvalid,
            tar().folder("d/").symlink("a", "d"),
            near(),
        ),
        odd(
            "tar-hardlink-forward",
            LinkInvalid,
            tar().hardlink("b", "a").file("a", b"x"),
            tar().file("a", b"x").hardlink("b", "a"),
        ),
        odd(
            "tar-hardlink-escape",
            LinkInvalid,
            file().hardlink("b", "../0"),
            file().hardlink("b", "./0"),
        ),
    ]
}

fn kinds() -> Vec<Case> {
    let file = || tar().file("d", b"");
    let odd_kind = |name, kind| odd(name, UnsupportedEntry, tar().entry(kind, b"d", "", b""), file());
    vec![
        odd_kind("tar-char-device", b'3'),
        odd_kind("tar-device", b'4'),
        odd_kind("tar-fifo", b'6'),
        odd_kind("tar-contiguous", b'7'),
        odd_kind("tar-multivolume", b'M'),
        odd_kind("tar-solaris-acl", b'A'),
        odd_kind("tar-unknown-type", b'Z'),
        odd(
            "tar-v7",
            UnsupportedEntry,
            spoiled(b'0', |b| b[257..265].fill(0)),
            file(),
        ),
    ]
}

/// So many empty files, then a good archive.
fn many(count: u32) -> Vec<u8> {
    let zero = header(b'0', b"00000000", "", 0);
    let base: u32 = 8 * 32
        + zero.iter().enumerate().fold(0, |sum, (at, byte)| {
            sum + if (148..156).contains(&at) {
                0
            } else {
                u32::from(*byte)
            }
        });
    let mut archive = Vec::with_capacity(512 * count as usize + (1 << 16));
    for number in 0..count {
        let mut block = zero;
        let name = format!("{number:08}");
        block[..8].copy_from_slice(name.as_bytes());
        let sum = base + name.bytes().map(|digit| u32::from(digit - b'0')).sum::<u32>();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        archive.extend(block);
    }
    archive.extend(oci().tar().end());
    archive
}

fn framing() -> Vec<Case> {
    let good_tar = || oci().tar();
    let whole = || good_tar().end();
    let cut = |from_end: usize| {
        let bytes = good_tar().bytes;
        bytes[..bytes.len() - from_end].to_vec()
    };
    vec![
        odd(
            "tar-one-zero-block",
            ArchiveMalformed,
            tar().block(&[0; 512]),
            tar().file("a", b""),
        ),
        bad("tar-no-end", ArchiveMalformed, good_tar().bytes, whole()),
        bad(
            "tar-trunc-header",
            ArchiveMalformed,
            whole()[..300].to_vec(),
            whole(),
        ),
        bad("tar-trunc-body", ArchiveMalformed, cut(700), whole()),
        bad(
            "tar-hidden-after-end",
            ArchiveMalformed,
            [whole(), tar().file("b", b"x").end()].concat(),
            [whole(), vec![0; 9 * 1024 + 17]].concat(),
        ),
        bad(
            "tar-padding-2MiB",
            LimitExceeded,
            [whole(), vec![0; 2 << 20]].concat(),
            [whole(), vec![0; 1 << 20]].concat(),
        ),
        bad(
            "tar-million-members",
            LimitExceeded,
            many(1_000_000),
            many(150_000),
        ),
        bad("file-empty", ArchiveMalformed, Vec::new(), whole()),
        bad(
            "file-other-compression",
            UnsupportedCompression,
            b"\xfd7zXZ\0 and so on".to_vec(),
            gzipped(&whole()),
        ),
        bad(
            "file-gz-bomb",
            LimitExceeded,
            gzipped(&with(tar().file("zeros", &vec![0; 24 << 20]))),
            gzipped(&with(tar().file("zeros", &vec![0; 2 << 20]))),
        ),
    ]
}

/// What stands at the archive's path.
pub(super) fn paths() -> Vec<Case> {
    let whole = || oci().tar().end();
    let file = |folder: &Path| {
        let path = folder.join("archive");
        std::fs::write(&path, oci().tar().end()).unwrap();
        path
    };
    vec![
        bad(
            "file-is-symlink",
            ArchiveMissing,
            Given::Path(|folder| {
                std::fs::write(folder.join("archive"), oci().tar().end()).unwrap();
                std::os::unix::fs::symlink("archive", folder.join("link")).unwrap();
                folder.join("link")
            }),
            Given::Path(file),
        ),
        bad(
            "file-is-fifo",
            ArchiveMissing,
            Given::Path(|folder| {
                let path = folder.join("archive");
                rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
                path
            }),
            whole(),
        ),
        bad(
            "file-is-device",
            ArchiveMissing,
            Given::Path(|_| "/dev/zero".into()),
            whole(),
        ),
        bad(
            "file-is-absent",
            ArchiveMissing,
            Given::Path(|folder| folder.join("archive")),
            whole(),
        ),
        bad(
            "file-is-dir",
            ArchiveMalformed,
            Given::Path(Path::to_owned),
            Given::Path(|folder| {
                oci().write(folder);
                folder.to_owned()
            }),
        ),
        bad(
            "dir-blob-is-symlink",
            LinkInvalid,
            Given::Path(|folder| {
                let layout = oci();
                layout.write(folder);
                let blob = folder
                    .join("blobs/sha256")
                    .join(Digest::of(&layout.blobs[0]).hex());
                std::fs::rename(&blob, folder.join("moved")).unwrap();
                std::os::unix::fs::symlink("../../moved", blob).unwrap();
                folder.to_owned()
            }),
            Given::Path(|folder| {
                oci().write(folder);
                folder.to_owned()
            }),
        ),
        bad(
            "file-changes-while-read",
            ArchiveChanged,
            Given::Growing(whole()),
            whole(),
        ),
    ]
}
