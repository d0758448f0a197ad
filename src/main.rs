//! The `slipway` binary.

use std::process::ExitCode;

fn main() -> anyhow::Result<ExitCode> {
    // One TLS provider for every client, before the first client exists.
    let _ = rustls::crypto::ring::default_provider().install_default();
    slipway::cli::run(slipway::cli::Arguments::from_words(std::env::args_os()))
}
