//! Rules about claims.

use http::Request;
use serde_json::json;
use tower_spiffe::server::{Allow, Claim, Decision, Policy, PolicyError};
use tower_spiffe::verify::VerifiedSvid;

use crate::support::{WEB, World};

fn allows(claim: Claim, name: &str, caller: &VerifiedSvid) -> bool {
    let (parts, ()) = Request::new(()).into_parts();
    let policy = Allow::claim(name, claim);
    assert_eq!(
        policy.decide(None, &parts),
        Decision::AuthenticationRequired
    );
    policy.decide(Some(caller), &parts) == Decision::Allow
}

#[test]
fn claims_are_compared_by_type_and_value() {
    let world = World::new();
    let token = world.issuer.token_with(
        WEB,
        json!({
            "tenant": "acme", "level": 7, "admin": true, "half": 1.5, "one": 1.0, "none": {},
            "groups": ["a", "b\"c", 7, true, null, ["x"], {"y": "z"}], "empty": [],
            "nested": {"groups": ["a"]}, "é\n": "ü\t", "number": "7", "large": u64::MAX,
        }),
    );
    let caller = world.validator.validate(&token).unwrap();
    let is = |name: &str, claim: Claim| allows(claim, name, &caller);
    // Twice, because the second call uses the index.
    for _ in 0..2 {
        for (name, claim) in [
            ("tenant", Claim::equals("acme")),
            ("tenant", Claim::contains("acme")),
            ("tenant", Claim::one_of(["x", "acme"]).unwrap()),
            ("level", Claim::equals(7)),
            ("admin", Claim::equals(true)),
            ("é\n", Claim::equals("ü\t")),
            ("groups", Claim::contains("b\"c")),
            ("groups", Claim::contains(7)),
            ("groups", Claim::contains(true)),
            ("groups", Claim::contains_any(["x", "a"]).unwrap()),
            ("sub", Claim::equals(WEB)),
        ] {
            assert!(is(name, claim.clone()), "{name} {claim:?}");
        }
        for (name, claim) in [
            ("tenant", Claim::equals("Acme")),
            ("tenant", Claim::equals("acm")),
            ("Tenant", Claim::equals("acme")),
            ("missing", Claim::equals("acme")),
            ("", Claim::equals("")),
            ("level", Claim::equals("7")),
            ("number", Claim::equals(7)),
            ("half", Claim::equals(1)),
            ("one", Claim::equals(1)),
            ("large", Claim::equals(-1)),
            ("admin", Claim::equals("true")),
            ("admin", Claim::equals(false)),
            ("groups", Claim::equals("a")),
            ("groups", Claim::one_of(["a"]).unwrap()),
            ("groups", Claim::contains("x")),
            ("groups", Claim::contains("z")),
            ("groups", Claim::contains("c")),
            ("groups", Claim::contains("null")),
            ("empty", Claim::contains("")),
            ("nested", Claim::contains("a")),
            ("nested", Claim::contains("groups")),
            ("none", Claim::equals("")),
        ] {
            assert!(!is(name, claim.clone()), "{name} {claim:?}");
        }
    }
}

#[test]
fn a_claim_rule_without_values_is_not_built() {
    let none: [&str; 0] = [];
    assert_eq!(Claim::one_of(none).unwrap_err(), PolicyError::Empty);
    assert_eq!(Claim::contains_any(none).unwrap_err(), PolicyError::Empty);
}

/// A payload is parsed by the first call only.
#[test]
fn later_checks_allocate_nothing() {
    let world = World::new();
    let changes = json!({ "groups": ["a", "b"], "tenant": "acme" });
    let caller = world
        .validator
        .validate(&world.issuer.token_with(WEB, changes))
        .unwrap();
    let (parts, ()) = Request::new(()).into_parts();
    let policy = Allow::claim("groups", Claim::contains("b"))
        .and(Allow::claim("tenant", Claim::equals("acme")));
    let decide = || assert_eq!(policy.decide(Some(&caller), &parts), Decision::Allow);
    let count = |ask: &dyn Fn()| allocation_counter::measure(ask).count_total;
    let first = count(&decide);
    assert!(first > 0, "the index was not made on demand");
    assert_eq!(count(&decide), 0);
    // Other requests with the same token share the index.
    let caller = caller.clone();
    let decide = || assert_eq!(policy.decide(Some(&caller), &parts), Decision::Allow);
    assert_eq!(count(&decide), 0);
}
