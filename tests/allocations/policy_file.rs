//! Allocations of a decision by a policy file.

use allocation_counter::measure;
use http::Request;
use tower_spiffe::server::{Decision, FilePolicy, Policy, PolicyDocument};
use tower_spiffe::testing::verified_svid_with_claims;
use tower_spiffe_test_support::temp::TempDir;

const WEB: &str = "spiffe://x/web/1";

/// 1,000 rules, and some rules for the counted decisions.
fn text() -> String {
    let others = (0..1000).map(|n| {
        format!(
            "[[rule]]\npath = '/p{n}/{{a}}/{{b}}'\nmethods = ['GET']\nids = ['spiffe://x/{n}']\n"
        )
    });
    let others: String = others.collect();
    format!(
        r#"
        {others}
        [[rule]]
        path = "/exact"
        methods = ["GET"]
        ids = ["spiffe://x/web/1"]
        [[rule]]
        path = "/exact"
        methods = ["GET"]
        path_prefixes = ["spiffe://x/web"]
        claims = {{ a = 1, groups = {{ contains = "ops" }} }}
        [[rule]]
        path = "/a/{{x}}/{{y}}/{{z}}"
        methods = ["GET"]
        path_prefixes = ["spiffe://x/web"]
        [[rule]]
        path = "/claims/{{x}}"
        methods = ["GET"]
        trust_domains = ["x"]
        claims = {{ a = 1, groups = {{ contains = "ops" }} }}
        [[rule]]
        path = "/files/{{*rest}}"
        methods = "any"
        any_trust_domain = true
        [[rule]]
        path = "/public/{{*rest}}"
        methods = ["GET"]
        public = true
        [[rule]]
        grpc_service = "r.R"
        ids = ["spiffe://x/web/1"]
        "#
    )
}

fn count(policy: &impl Policy) {
    let claims = serde_json::json!({"a": 1, "groups": ["web", "ops"]});
    let caller = verified_svid_with_claims(WEB, claims);
    for (method, path, allowed) in [
        ("GET", "/exact", true),
        ("HEAD", "/exact", true),
        ("POST", "/exact", false),
        ("GET", "/exact/", false),
        ("GET", "/a/1/2/3", true),
        ("GET", "/claims/7", true),
        ("PUT", "/files/1/2", true),
        ("GET", "/files//2", false),
        ("GET", "/public/x", true),
        ("GET", "/p999/1/2", false),
        ("GET", "/none", false),
        ("POST", "/r.R/Get", true),
        ("GET", "/r.R/Get", false),
    ] {
        let request = Request::builder().method(method).uri(path).body(());
        let (parts, ()) = request.unwrap().into_parts();
        let decide = || policy.decide(Some(&caller), &parts);
        // The first decision parses the claims of the token.
        assert_eq!(decide() == Decision::Allow, allowed, "{method} {path}");
        let allocations = measure(|| {
            for _ in 0..100 {
                decide();
                policy.decide(None, &parts);
                policy.is_public(&parts);
            }
        });
        assert_eq!(allocations.count_total, 0, "{method} {path}");
    }
}

#[test]
fn p09_a_decision_of_a_document_allocates_nothing() {
    count(&text().parse::<PolicyDocument>().unwrap());
}

#[tokio::test]
async fn p09_a_decision_of_a_file_allocates_nothing() {
    let dir = TempDir::new();
    std::fs::write(dir.join("policy.toml"), text()).unwrap();
    count(&FilePolicy::builder(dir.join("policy.toml")).open().unwrap());
}
