//! Tokens and bundles of the agent.

use tower_spiffe::Validator;
use tower_spiffe::token::SvidRequest;
use tower_spiffe::verify::ValidateReason;
use tower_spiffe::workload_api::{Endpoint, WorkloadApiClient};
use tower_spiffe_test_support::wait::soon;

use crate::{AUDIENCE, source};

#[tokio::test]
async fn live_tokens_are_valid() {
    let Some(source) = source("live_tokens_are_valid").await else {
        return;
    };
    let client = WorkloadApiClient::connect(&Endpoint::from_env().unwrap()).unwrap();
    let request = SvidRequest::new([AUDIENCE]).unwrap();
    let svids = soon("tokens", client.fetch_jwt_svids(&request)).await;
    let svids = svids.unwrap();
    assert!(!svids.is_empty());
    let validator = |audience: &str| {
        let builder = Validator::builder(source.clone()).audience(audience);
        builder.build().unwrap()
    };
    for svid in &svids {
        // Validated twice, because of the cache, and by the agent.
        for _ in 0..2 {
            let verified = validator(AUDIENCE).validate(svid.token()).unwrap();
            assert_eq!(verified.spiffe_id(), svid.spiffe_id());
        }
        let theirs = client.validate_jwt_svid(AUDIENCE, svid.token()).await;
        assert_eq!(theirs.unwrap().spiffe_id(), svid.spiffe_id());
        // Another audience, and another signature.
        let other = validator("spiffe://example.org/other").validate(svid.token());
        assert_eq!(other.unwrap_err().reason(), ValidateReason::Audience);
        let (signed, signature) = svid.token().rsplit_once('.').unwrap();
        let forged: String = signature.chars().rev().collect();
        let forged = validator(AUDIENCE).validate(&format!("{signed}.{forged}"));
        assert!(forged.is_err());
    }
    // The same identity by ID, and a token for two audiences.
    let id = svids[0].spiffe_id();
    let by_id = source.fetch_jwt_svid_with_id([AUDIENCE], Some(id)).await;
    assert_eq!(by_id.unwrap().spiffe_id(), id);
    let both = source.fetch_jwt_svid([AUDIENCE, "another"]).await.unwrap();
    for audience in [AUDIENCE, "another"] {
        assert!(validator(audience).validate(both.token()).is_ok());
    }
}

#[tokio::test]
async fn live_bundles_are_complete() {
    let Some(first) = source("live_bundles_are_complete").await else {
        return;
    };
    let svid = first.fetch_jwt_svid([AUDIENCE]).await.unwrap();
    let set = first.bundle_set().unwrap();
    let own = set.get(svid.spiffe_id().trust_domain_name());
    assert!(own.is_some_and(|bundle| !bundle.is_empty()));
    for bundle in set.iter() {
        let ignored = bundle.ignored();
        assert!(ignored.is_empty(), "{}: {ignored:?}", bundle.trust_domain());
    }
    assert!(first.is_ready() && first.is_healthy());
    let second = source("live_bundles_are_complete").await.unwrap();
    assert_eq!(second.bundle_set().unwrap(), set);
    first.shutdown().await;
    assert!(first.bundle_set().is_err());
    assert!(second.is_ready());
}
