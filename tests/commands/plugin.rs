//! The binary under the name that makes it a plugin of kubectl.

use std::{os::unix::process::CommandExt as _, process::Command};

#[test]
fn as_a_plugin_of_kubectl_push_means_the_clusters() {
    for (name, says) in [
        ("slipway", "Bring an image to repositories"),
        ("/usr/local/bin/kubectl-slipway", "Have the cluster push"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_slipway"))
            .arg0(name)
            .args(["push", "--help"])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains(says), "{name}: {text}");
    }
}
