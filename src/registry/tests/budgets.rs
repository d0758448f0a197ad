//! A registry that has a budget is asked no more than that: each test looks at the least time that it takes.

use std::time::Instant;

use rstest::rstest;

use super::{content, describe};
use crate::registry::{Budget, BytesSource, Client, ClientOptions, Credentials, testing::FaultRegistry};

#[rstest]
#[case::bytes(None, Some(1_000_000.0), 3, 1.0)]
#[case::requests(Some(5.0), None, 10, 1.0)]
#[tokio::test]
async fn a_budget_is_not_exceeded(
    #[case] requests_per_second: Option<f64>,
    #[case] bytes_per_second: Option<f64>,
    #[case] blobs: usize,
    #[case] least: f64,
) {
    let registry = FaultRegistry::start().await;
    let budget = Budget {
        requests_per_second,
        bytes_per_second,
    };
    let options = ClientOptions {
        budgets: vec![(registry.host(), budget)],
        ..registry.options()
    };
    let client = Client::new(options, Credentials::anonymous()).unwrap();
    let repository = client.repository(&registry.host(), "a");
    let start = Instant::now();
    for number in 0..blobs {
        let bytes = content(1_000_000 / blobs * 2 + number);
        let source = BytesSource(bytes.clone());
        repository.upload_blob(&describe(&bytes), &source).await.unwrap();
    }
    // Two million bytes, or twenty requests and more, of which those of the first second go at once.
    let took = start.elapsed().as_secs_f64();
    assert!(took >= least, "{took} s");
}

#[tokio::test]
async fn what_is_read_counts_as_well() {
    let registry = FaultRegistry::start().await;
    let budget = Budget {
        requests_per_second: None,
        bytes_per_second: Some(1_000_000.0),
    };
    let options = ClientOptions {
        budgets: vec![(registry.host(), budget)],
        ..registry.options()
    };
    let client = Client::new(options, Credentials::anonymous()).unwrap();
    let bytes = content(2_000_000);
    registry.put_blob("a", &bytes);
    let start = Instant::now();
    let repository = client.repository(&registry.host(), "a");
    let read = repository.blob_bytes(&describe(&bytes), 3_000_000).await;
    assert_eq!(read.unwrap(), bytes);
    assert!(start.elapsed().as_secs_f64() >= 1.0);
}
