//! ID: SPIFFE IDs in `sub` of a token with a valid signature.

use tower_spiffe::verify::ValidateReason;

use crate::support::*;

#[test]
fn id_1_invalid_spiffe_ids_are_rejected() {
    let suite = Suite::new();
    for sub in [
        "spiffe:///a",
        "spiffe://test.example.org:8080/a",
        "spiffe://u@test.example.org/a",
        "spiffe://test.example.org/a?x=1",
        "spiffe://test.example.org/a#f",
        "spiffe://test.example.org/%41",
        "spiffe://test.example.org/a//b",
        "spiffe://test.example.org/a/./b",
        "spiffe://test.example.org/a/../b",
        "spiffe://test.example.org/a/",
        "spiffe://test.example.org/a!b",
        "spiffe://t$d/a",
    ] {
        let token = suite.signer.sign(&claims(sub));
        suite.rejects(&token, ValidateReason::Claims);
    }
}

#[test]
fn id_2_valid_edge_cases_are_accepted() {
    let suite = Suite::new();
    let mut longest = format!("spiffe://{TD}");
    while longest.len() + 101 <= 2048 {
        longest = format!("{longest}/{}", "a".repeat(100));
    }
    longest = format!("{longest}/{}", "b".repeat(2047 - longest.len()));
    assert_eq!(longest.len(), 2048);
    for id in [
        "spiffe://test.example.org/Path.With-Mixed_Case/a.b-c_D/..x/x..",
        "spiffe://td_1.example-2.org/id-2",
        "spiffe://192.168.1.1/id-2",
        &longest,
    ] {
        let domain = id.split('/').nth(2).unwrap();
        suite.serve(&[(domain, &[suite.signer.jwk()])]);
        suite.accepts(&suite.signer.sign(&claims(id)), id);
    }
}
