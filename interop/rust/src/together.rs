//! The validator and the token cache of tower-spiffe on the `spiffe` crate, with the adapters.

use std::time::Duration;

use serde_json::json;
use spiffe_0_19 as spiffe;
use tower_spiffe::token::SvidRequest;
use tower_spiffe::verify::ValidateReason;
use tower_spiffe::{SvidCache, Validator};

use crate::adapters::{SpiffeBundles, SpiffeFetcher};
use crate::driver::{Driver, Error, equal, row, text, until};
use crate::{AUDIENCE, DOMAIN, OPS, WEB};

pub(crate) async fn run(driver: &mut Driver) -> Result<bool, Error> {
    let started =
        driver.run(json!({ "do": "agent", "agent": "together", "trust_domain": DOMAIN }))?;
    let endpoint = text(&started["endpoint"]);
    for (id, hint) in [(WEB, "internal"), (OPS, "external")] {
        driver.change(
            "together",
            json!({ "what": "register", "id": id, "hint": hint }),
        )?;
    }
    let source = spiffe::JwtSource::builder()
        .endpoint(&endpoint)
        .reconnect_backoff(Duration::from_millis(20), Duration::from_millis(50))
        .build()
        .await?;
    let bundles = SpiffeBundles::follow(source.clone());
    let validator = Validator::builder(bundles).audience(AUDIENCE).build()?;
    let client = spiffe::WorkloadApiClient::connect_to(&endpoint).await?;
    let cache = SvidCache::new(SpiffeFetcher(client));
    let mut passed = true;

    let request = SvidRequest::new([AUDIENCE])?;
    let validated = async |request: &SvidRequest, id: &str| -> Result<(), Error> {
        let token = cache.get(request).await?;
        equal(
            "ID",
            validator.validate(token.token())?.spiffe_id().as_str(),
            id,
        )
    };
    passed &= row(
        "rust-adapter-default",
        "cache and validator work on the spiffe crate",
        validated(&request, WEB).await,
    );
    let hinted = request.clone().with_hint("external")?;
    passed &= row(
        "rust-adapter-hint",
        "the hint is forwarded",
        validated(&hinted, OPS).await,
    );
    let named = request.clone().with_spiffe_id(OPS.parse()?);
    passed &= row(
        "rust-adapter-id",
        "the SPIFFE ID is forwarded",
        validated(&named, OPS).await,
    );

    for (case, spec, reason) in [
        (
            "forged",
            json!({ "forged": true }),
            ValidateReason::Signature,
        ),
        (
            "expired",
            json!({ "exp_in": -120 }),
            ValidateReason::Expired,
        ),
        (
            "other-domain",
            json!({ "claims": { "sub": "spiffe://example.com/web" } }),
            ValidateReason::TrustDomainUnknown,
        ),
    ] {
        let token = driver.token("together", WEB, &spec)?;
        let result = match validator.validate(&token) {
            Ok(_) => Err("accepted, expected a rejection".into()),
            Err(error) => equal("reason", error.reason(), reason),
        };
        passed &= row(
            &format!("rust-adapter-{case}"),
            "the validator rejects the token",
            result,
        );
    }

    let mut rotated = async || -> Result<(), Error> {
        let kid = text(
            &driver.change(
                "together",
                json!({ "what": "rotate", "algorithm": "ES512" }),
            )?["kid"],
        );
        let token = driver.token("together", WEB, &json!({}))?;
        until(async || equal("key", validator.validate(&token)?.key_id(), kid.as_str())).await?;
        driver.change("together", json!({ "what": "revoke", "kid": kid }))?;
        until(async || match validator.validate(&token) {
            Ok(_) => Err("the revoked key is still accepted".into()),
            Err(error) => equal("reason", error.reason(), ValidateReason::KeyUnknown),
        })
        .await
    };
    passed &= row(
        "rust-adapter-rotate",
        "rotation and revocation reach the validator",
        rotated().await,
    );

    let token = cache.get(&request).await?;
    source.shutdown().await;
    let closed = until(async || match validator.validate(token.token()) {
        Ok(_) => Err("accepted after the shutdown".into()),
        Err(error) => match error.reason() {
            ValidateReason::BundlesUnavailable(_) => Ok(()),
            other => Err(format!("{other:?}").into()),
        },
    });
    passed &= row(
        "rust-adapter-closed",
        "after a shutdown bundles are unavailable",
        closed.await,
    );
    Ok(passed)
}
