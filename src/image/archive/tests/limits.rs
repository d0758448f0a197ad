//! Bounds that a caller sets lower than the defaults.

use super::*;

#[test]
fn members_and_names_are_bounded() {
    let many = (0..2000).fold(Tar::default(), |tar, n| tar.file(&format!("{n}"), b""));
    let archive = [many.bytes, oci().tar().end()].concat();
    for limits in [
        Limits {
            members: 1999,
            ..Limits::default()
        },
        Limits {
            name_bytes: 10_000,
            ..Limits::default()
        },
    ] {
        let error = verify_with(&archive, limits).unwrap_err();
        assert_eq!(error.reason(), Reason::LimitExceeded);
    }
    verify(&archive).unwrap();
}
