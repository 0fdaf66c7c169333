//! JWKs with a duplicate member: different parsers could choose different keys.

use serde_json::json;
use tower_spiffe::bundle::{IgnoredReason, JwtBundle};

use crate::support::{es256, rs256};

#[test]
fn key_with_a_duplicate_member_is_ignored() {
    for (signer, names) in [
        (es256(), &["kty", "kid", "use", "crv", "x", "y"][..]),
        (rs256(), &["kty", "kid", "use", "n", "e"]),
    ] {
        let mut jwk = signer.jwk();
        jwk["use"] = json!("jwt-svid");
        let whole = jwk.to_string();
        for name in names {
            let value = &jwk[*name];
            assert!(value.is_string(), "{name}");
            // The same value, and another value: the key is ignored.
            for first in [value.clone(), json!("other")] {
                let twice = format!("{{\"{name}\":{first},{}", &whole[1..]);
                let bundle = read(&twice);
                assert!(bundle.is_empty(), "{name}");
                let ignored = bundle.ignored().first().map(|key| key.reason());
                assert_eq!(ignored, Some(IgnoredReason::Malformed), "{name}");
            }
        }
        // Unknown members may be duplicated.
        let twice = format!("{{\"a\":1,\"a\":2,{}", &whole[1..]);
        assert_eq!(read(&twice).len(), 1);
    }
}

fn read(jwk: &str) -> JwtBundle {
    let set = format!("{{\"keys\":[{jwk}]}}");
    JwtBundle::from_spiffe_bundle("td.test".parse().unwrap(), set.as_bytes()).unwrap()
}
