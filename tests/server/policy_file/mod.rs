//! Policies as data: `PolicyDocument` and `FilePolicy`.

mod callers;
mod dry_run;
mod follow;
mod format;
mod limits;
mod metrics;
mod paths;
mod whole;

use http::Request;
use http::request::Parts;
use tower_spiffe::server::{Decision, Policy, PolicyDocument};
use tower_spiffe::testing::{verified_svid, verified_svid_with_claims};
use tower_spiffe::verify::VerifiedSvid;

use crate::support::{OPS, WEB};

fn document(text: &str) -> PolicyDocument {
    text.parse()
        .unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Returns the parts of a request like `GET /path`; the default method is GET.
fn parts(request: &str) -> Parts {
    let (method, path) = request.split_once(' ').unwrap_or(("GET", request));
    let request = Request::builder()
        .method(method)
        .uri(path)
        .body(())
        .unwrap();
    request.into_parts().0
}

/// Returns the decision for a request, as the layer gets it. The explanation must agree.
fn decide(policy: &PolicyDocument, caller: Option<&VerifiedSvid>, request: &str) -> Decision {
    let parts = parts(request);
    let decision = policy.decide(caller, &parts);
    assert_eq!(policy.explain(caller, &parts).decision(), decision);
    let anonymous = policy.decide(None, &parts) == Decision::Allow;
    assert_eq!(policy.is_public(&parts), anonymous, "{request}");
    decision
}

fn allows(policy: &PolicyDocument, id: &str, request: &str) -> bool {
    decide(policy, Some(&verified_svid(id)), request) == Decision::Allow
}

fn allows_anonymous(policy: &PolicyDocument, request: &str) -> bool {
    let decision = decide(policy, None, request);
    assert!(!decision.is_deny(), "{request}");
    decision == Decision::Allow
}

fn web_rule(path: &str, methods: &str) -> String {
    rule(path, methods, WEB)
}

fn rule(path: &str, methods: &str, id: &str) -> String {
    format!("[[rule]]\npath = {path:?}\nmethods = {methods}\nids = [{id:?}]\n")
}

fn ops_rule(path: &str) -> String {
    rule(path, "['GET']", OPS)
}

fn with_claims(claims: serde_json::Value) -> VerifiedSvid {
    verified_svid_with_claims(WEB, claims)
}
