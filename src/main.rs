//! The `slipway` binary.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> anyhow::Result<ExitCode> {
    // One TLS provider for every client, before the first client exists.
    let _ = rustls::crypto::ring::default_provider().install_default();
    slipway::cli::run(slipway::cli::Arguments::parse())
}
