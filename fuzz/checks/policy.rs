//! Policy files.

use http::request::Parts;
use http::{Method, Request, Uri};
use tower_spiffe::VerifiedSvid;
use tower_spiffe::server::{Decision, Policy, PolicyDocument, RuleOutcome};
use tower_spiffe::testing::verified_svid_with_claims;

use super::check_error_text;

/// Checks a policy file: decisions and explanations agree, and every caller may do what an anonymous
/// caller may do.
///
/// After a zero byte follows a request: the method, a space and the path.
pub fn policy_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (text, request) = text.split_once('\0').unwrap_or((text, "GET /a/b"));
    let policy = match PolicyDocument::parse(text) {
        Ok(policy) => policy,
        Err(error) => {
            check_error_text(&error);
            let lines = text.lines().count().max(1) + 1;
            assert!(error.line().is_some_and(|line| (1..=lines).contains(&line)));
            assert!(error.column().is_some_and(|column| column >= 1));
            return;
        }
    };
    assert!(policy.len() > 0);
    let callers = ["spiffe://x/web", "spiffe://x/web/1", "spiffe://y/ops"];
    let callers = callers.map(|id| {
        let claims = serde_json::json!({"a": 1, "groups": ["ops"], "stage": "live"});
        verified_svid_with_claims(id, claims)
    });
    let (method, path) = request.split_once(' ').unwrap_or(("GET", request));
    let method = Method::from_bytes(method.as_bytes()).unwrap_or(Method::GET);
    let mut requests = vec![(method.clone(), path.to_owned())];
    // Paths from the strings in the document, so that rules match.
    for part in text
        .split(['"', '\''])
        .filter(|part| part.starts_with('/'))
        .take(8)
    {
        let path = part.replace(['{', '}', '*'], "");
        requests.push((Method::POST, path.clone()));
        requests.push((method.clone(), format!("{path}/1")));
        requests.push((method.clone(), path));
    }
    for (method, path) in requests {
        if let Ok(uri) = path.parse::<Uri>() {
            let mut parts = Request::new(()).into_parts().0;
            (parts.method, parts.uri) = (method, uri);
            check_decisions(&policy, &callers, &parts);
        }
    }
}

fn check_decisions(policy: &PolicyDocument, callers: &[VerifiedSvid], parts: &Parts) {
    let decide = |caller: Option<&VerifiedSvid>| {
        let decision = policy.decide(caller, parts);
        let explained = policy.explain(caller, parts);
        assert_eq!(explained.decision(), decision);
        let mut rules = explained.rules().iter();
        let allows = rules.any(|rule| *rule.outcome() == RuleOutcome::Allows);
        assert_eq!(allows, decision == Decision::Allow, "{explained}");
        for rule in explained.rules() {
            check_error_text(rule);
        }
        decision
    };
    let anonymous = decide(None);
    assert!(
        !anonymous.is_deny(),
        "an anonymous caller is denied instead of asked for a token"
    );
    assert_eq!(policy.is_public(parts), anonymous == Decision::Allow);
    for caller in callers {
        let decision = decide(Some(caller));
        assert_ne!(decision, Decision::AuthenticationRequired);
        assert!(anonymous != Decision::Allow || decision == Decision::Allow);
    }
}
