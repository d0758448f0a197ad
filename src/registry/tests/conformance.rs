//! The tests' own registry against the specification's official test.

use std::process::Stdio;

use crate::registry::testing::FaultRegistry;

/// Every data switch, and what the specification's next version adds where the registry has it.
const SWITCHES: [(&str, &str); 7] = [
    ("OCI_TLS", "disabled"),
    ("OCI_VERSION", "1.1"),
    ("OCI_API_BLOBS_UPLOAD_CANCEL", "true"),
    ("OCI_API_BLOBS_DIGEST_HEADER", "true"),
    ("OCI_API_MANIFESTS_DIGEST_HEADER", "true"),
    ("OCI_API_MANIFESTS_TAG_PARAM", "true"),
    ("OCI_API_BLOBS_MOUNT_ANONYMOUS", "false"),
];

#[tokio::test]
async fn the_fault_registry_without_faults_passes_the_official_conformance_suite() {
    let Some(suite) = crate::testing::tool("conformance") else {
        crate::testing::skip(
            "conformance",
            "there is none; hack/cluster/build-tools conformance builds it",
        );
        return;
    };
    let registry = FaultRegistry::start()
        .await
        .without(|features| features.lengths = false);
    let results = tempfile::tempdir().unwrap();
    let output = tokio::process::Command::new(suite)
        .current_dir(results.path())
        .env("OCI_RESULTS_DIR", results.path())
        .env("OCI_REGISTRY", registry.host())
        .envs(SWITCHES)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let report = std::fs::read_to_string(results.path().join("junit.xml")).unwrap_or_default();
    let said = String::from_utf8_lossy(&output.stdout);
    let count = |name: &str| {
        let (_, rest) = report.split_once(&format!("{name}=\""))?;
        rest.split_once('"')?.0.parse::<u32>().ok()
    };
    let (tests, failures, errors) = (count("tests"), count("failures"), count("errors"));
    println!("conformance: {tests:?} tests, {failures:?} failures, {errors:?} errors");
    assert!(tests.is_some_and(|tests| tests > 100), "{said}");
    assert_eq!(
        (failures, errors.unwrap_or(0)),
        (Some(0), 0),
        "{said}\n{}\n{report}",
        String::from_utf8_lossy(&output.stderr)
    );
}
