//! `sole_audience`: a token must not have other audiences.

use serde_json::json;
use tower_spiffe::Validator;
use tower_spiffe::verify::{ValidateReason, ValidatorBuilder};

use crate::signer::{AUDIENCE, claims_with};
use crate::support::{Fixture, HandClock, es256, keys_of};

const OTHER: &str = "https://as.other.test";

#[test]
fn t02_second_audience_is_rejected() {
    let signer = es256();
    let fixture = Fixture::with(keys_of(&[&signer]), ValidatorBuilder::sole_audience);
    for only in [json!(AUDIENCE), json!([AUDIENCE])] {
        let svid = fixture.accepts(&signer.sign(&claims_with("aud", only)));
        assert_eq!(svid.audiences().collect::<Vec<_>>(), [AUDIENCE]);
    }
    let case = AUDIENCE.to_uppercase();
    let slash = format!("{AUDIENCE}/");
    for aud in [
        json!([AUDIENCE, OTHER]),
        json!([OTHER, AUDIENCE]),
        json!([AUDIENCE, AUDIENCE]),
        json!([AUDIENCE, case]),
        json!([AUDIENCE, slash]),
        json!([AUDIENCE, " "]),
        json!([OTHER]),
        json!(OTHER),
        json!(format!("{AUDIENCE} {OTHER}")),
    ] {
        let token = signer.sign(&claims_with("aud", aud.clone()));
        assert!(
            matches!(
                fixture.validate(&token),
                Err(ValidateReason::Audience | ValidateReason::Claims)
            ),
            "{aud}"
        );
    }
}

#[test]
fn t02_one_of_several_own_audiences_suffices() {
    let signer = es256();
    let fixture = Fixture::with(keys_of(&[&signer]), |builder| {
        builder.audience(OTHER).sole_audience()
    });
    fixture.accepts(&signer.sign(&claims_with("aud", json!([OTHER]))));
    fixture.accepts(&signer.sign(&claims_with("aud", json!(AUDIENCE))));
    // Both are audiences of this validator, but the token has more than one.
    let both = signer.sign(&claims_with("aud", json!([AUDIENCE, OTHER])));
    fixture.rejects(&both, ValidateReason::Audience);
}

/// Validators share the cache of a thread. A result of one validator does not apply to another.
#[test]
fn t02_other_validators_cache_does_not_count() {
    let signer = es256();
    let clock = HandClock::at(crate::signer::NOW);
    let bundles = tower_spiffe::bundle::FixedBundles::new(keys_of(&[&signer]));
    let builder = || {
        Validator::builder(bundles.clone())
            .audience(AUDIENCE)
            .clock(clock.clone())
    };
    let any = builder().build().unwrap();
    let sole = builder().sole_audience().build().unwrap();
    let token = signer.sign(&claims_with("aud", json!([AUDIENCE, OTHER])));
    for _ in 0..3 {
        any.validate(&token).unwrap();
        let error = sole.validate(&token).unwrap_err();
        assert_eq!(error.reason(), ValidateReason::Audience);
        assert!(error.detail().contains("more than one value"));
        assert!(error.audiences().unwrap().contains(OTHER));
    }
    assert!(any.cache_stats().hits > 0);
    assert_eq!(sole.cache_stats().entries, 0);
}

#[test]
fn t02_issuer_claim_is_not_required() {
    let signer = es256();
    let fixture = Fixture::with(keys_of(&[&signer]), ValidatorBuilder::sole_audience);
    let mut claims = claims_with("aud", json!(AUDIENCE));
    claims.as_object_mut().unwrap().remove("iss");
    fixture.accepts(&signer.sign(&claims));
    claims["iss"] = json!("https://spire.example.org");
    fixture.accepts(&signer.sign(&claims));
}
