//! What must not matter does not: the order of members, and how a stream arrives.

use std::io::Read;

use proptest::{collection::vec, prelude::*, sample::Index};

use super::{
    corpus::{self, Given},
    views::{config_bytes, docker_view, layers, oci_buildkit, save_crane, save_podman, save_v25},
    *,
};
use crate::image::archive::ArchiveImage;

/// Names and bodies of an archive whose members are all files.
fn members(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut entries = ::tar::Archive::new(archive);
    let members = entries.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut body = Vec::new();
        entry.read_to_end(&mut body).unwrap();
        (entry.path().unwrap().to_str().unwrap().to_owned(), body)
    });
    members.collect()
}

/// Archives of each view and of both.
fn archives() -> [Vec<u8>; 4] {
    let mut two = save_v25();
    two.image(
        ("linux", "arm64"),
        &[layer("other")],
        media_type::OCI_LAYER_ZSTD,
        zstded,
    );
    [
        two.tar().end(),
        docker_view(&save_v25(), &layers(), &config_bytes()),
        oci_buildkit(),
        save_crane(),
    ]
}

/// Hands bytes out in pieces of these sizes, over and over.
struct Pieces<'a> {
    left: &'a [u8],
    sizes: Vec<usize>,
    next: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let size = self.sizes[self.next % self.sizes.len()].min(buffer.len());
        self.next += 1;
        self.left.read(&mut buffer[..size])
    }
}

/// What came of an archive: its images, or the reason of the refusal.
fn outcome(stream: impl Read) -> Result<Vec<ArchiveImage>, Reason> {
    let archive = Archive::from_stream(stream, Limits::default());
    let proven = archive.and_then(|archive| {
        for layer in archive.images().iter().flat_map(|image| &image.layers) {
            let Some(content) = archive.content(layer)? else {
                return Err(archive.missing(layer));
            };
            super::super::layer::prove(layer, &content, archive.limits(), |_| Ok(()))?;
        }
        Ok(archive.images().to_vec())
    });
    proven.map_err(|error| error.reason())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_order_of_members_changes_nothing(which in 0..4_usize, picks in vec(any::<Index>(), 16)) {
        let archive = archives()[which].clone();
        let straight = outcome(&archive[..]).unwrap();
        let mut left = members(&archive);
        let mut shuffled = Tar::default();
        for pick in picks.iter().cycle() {
            if left.is_empty() {
                break;
            }
            let (name, body) = left.swap_remove(pick.index(left.len()));
            shuffled = shuffled.file(&name, &body);
        }
        prop_assert_eq!(outcome(&shuffled.end()[..]), Ok(straight));
    }

    #[test]
    fn the_pieces_of_a_stream_change_nothing(which in 0..6_usize, sizes in vec(1..5000_usize, 1..20)) {
        let plain = archives();
        let archive = match which {
            0..4 => plain[which].clone(),
            4 => gzipped(&save_podman()),
            _ => zstded(&plain[1]),
        };
        let whole = outcome(&archive[..]);
        prop_assert!(whole.is_ok());
        prop_assert_eq!(outcome(Pieces { left: &archive, sizes, next: 0 }), whole);
    }
}

#[test]
fn every_case_of_the_corpus_is_the_same_in_pieces() {
    let mut count = 0;
    for case in corpus::groups().into_iter().flat_map(|(_, cases)| cases()) {
        for given in [Some(case.archive), case.twin].into_iter().flatten() {
            let Given::Bytes(archive) = given else { continue };
            if archive.len() > 1 << 20 {
                continue;
            }
            let pieces = Pieces {
                left: &archive,
                sizes: vec![1, 511, 3, 512, 4097, 2],
                next: 0,
            };
            assert_eq!(outcome(pieces), outcome(&archive[..]), "{}", case.name);
            count += 1;
        }
    }
    assert!(count > 300, "{count}");
}
