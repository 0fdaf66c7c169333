//! Callers for unit tests, without verification.

use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

use super::{misuse, must};
use crate::clock::{Clock as _, SystemClock};
use crate::identity::SpiffeId;
use crate::verify::VerifiedSvid;

const AUDIENCE: &str = "testing";
const KEY_ID: &str = "testing";

/// Creates a caller with this SPIFFE ID for a unit test of a handler, without a token, a key or a check.
/// It expires in five minutes.
///
/// ```
/// use tower_spiffe::{VerifiedSvid, testing};
///
/// fn greet(caller: &VerifiedSvid) -> String {
///     format!("Hello, {}", caller.spiffe_id())
/// }
///
/// let caller = testing::verified_svid("spiffe://example.org/web");
/// assert_eq!(greet(&caller), "Hello, spiffe://example.org/web");
/// ```
///
/// # Panics
/// The SPIFFE ID is malformed.
#[track_caller]
pub fn verified_svid(spiffe_id: &str) -> VerifiedSvid {
    verified_svid_with_claims(spiffe_id, Map::new())
}

/// Creates such a caller with additional claims, besides `sub`, `aud`, `iat` and `exp`.
///
/// ```
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Tenant { tenant: u32 }
///
/// let caller = tower_spiffe::testing::verified_svid_with_claims(
///     "spiffe://example.org/web",
///     Tenant { tenant: 7 },
/// );
/// assert_eq!(caller.claims::<Tenant>()?.tenant, 7);
/// # Ok::<(), tower_spiffe::verify::ClaimsError>(())
/// ```
///
/// # Panics
/// The SPIFFE ID is malformed, or the claims are not a JSON object.
#[track_caller]
pub fn verified_svid_with_claims(spiffe_id: &str, claims: impl Serialize) -> VerifiedSvid {
    let id = must(SpiffeId::parse(spiffe_id), "the SPIFFE ID is well-formed");
    let Ok(Value::Object(mut all)) = serde_json::to_value(claims) else {
        misuse("claims must be a JSON object");
    };
    let now = SystemClock.now();
    let expires_at = now.saturating_add(Duration::from_secs(300));
    for (name, value) in [
        ("sub", Value::from(id.as_str())),
        ("aud", Value::from(vec![AUDIENCE])),
        ("iat", Value::from(now.secs())),
        ("exp", Value::from(expires_at.secs())),
    ] {
        all.entry(name).or_insert(value);
    }
    VerifiedSvid::assumed(
        id,
        vec![AUDIENCE.to_owned()],
        expires_at,
        Some(now),
        KEY_ID,
        &Value::Object(all).to_string(),
    )
}
