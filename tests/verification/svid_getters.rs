//! The getters of a verified token.

use serde_json::json;
use tower_spiffe::clock::UnixTime;

use crate::signer::{NOW, claims_with};
use crate::support::{Fixture, es256};

#[test]
fn svid_has_the_claims_of_the_token() {
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    let mut claims = claims_with("nbf", json!(NOW - 7));
    claims["iat"] = json!(NOW - 8);
    let svid = fixture.accepts(&signer.sign(&claims));
    assert_eq!(svid.not_before(), Some(UnixTime::from_secs(NOW - 7)));
    assert_eq!(svid.issued_at(), Some(UnixTime::from_secs(NOW - 8)));
    assert_eq!(svid.claims_json(), claims.to_string());
    claims.as_object_mut().unwrap().remove("nbf");
    claims.as_object_mut().unwrap().remove("iat");
    let svid = fixture.accepts(&signer.sign(&claims));
    assert_eq!((svid.not_before(), svid.issued_at()), (None, None));
}

#[test]
fn claims_error_has_a_position_and_no_values() {
    let signer = es256();
    let fixture = Fixture::new(&[&signer]);
    let svid = fixture.accepts(&signer.sign(&claims_with("team", json!("secret"))));
    #[derive(Debug, serde::Deserialize)]
    struct Claims {
        #[allow(dead_code, reason = "never read")]
        team: u32,
    }
    let error = svid.claims::<Claims>().unwrap_err();
    let place = format!("line {}, column {}", error.line, error.column);
    assert!(error.to_string().contains(&place), "{error}");
    assert!(!error.to_string().contains("secret"));
}
