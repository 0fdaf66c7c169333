//! JWKs with a member twice: two readers could take different keys from them.

use serde_json::json;
use tower_spiffe::bundle::{IgnoredReason, JwtBundle};

use crate::support::{es256, rs256};

#[test]
fn key_with_a_member_twice_is_ignored() {
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
            // The same value, and another one: neither is chosen.
            for first in [value.clone(), json!("other")] {
                let twice = format!("{{\"{name}\":{first},{}", &whole[1..]);
                let bundle = read(&twice);
                assert!(bundle.is_empty(), "{name}");
                let ignored = bundle.ignored().first().map(|key| key.reason());
                assert_eq!(ignored, Some(IgnoredReason::Malformed), "{name}");
            }
        }
        // Members that are not read may come twice.
        let twice = format!("{{\"a\":1,\"a\":2,{}", &whole[1..]);
        assert_eq!(read(&twice).len(), 1);
    }
}

fn read(jwk: &str) -> JwtBundle {
    let set = format!("{{\"keys\":[{jwk}]}}");
    JwtBundle::from_spiffe_bundle("td.test".parse().unwrap(), set.as_bytes()).unwrap()
}
