//! The requests that a rule applies to.

use axum::Router;
use axum::body::Body;
use axum::routing::{any, get};
use http::{Request, Uri};
use tower::{Layer, ServiceExt};
use tower_spiffe::server::{PolicyDocument, RuleOutcome, ValidateJwtSvidLayer};
use tower_spiffe::testing::verified_svid;

use super::{allows, allows_anonymous, document, ops_rule, parts, rule, web_rule};
use crate::support::{OPS, WEB, World};

#[test]
fn p02_the_most_specific_pattern_decides() {
    let policy = document(&format!(
        "{}{}{}{}",
        web_rule("/{*rest}", "'any'"),
        ops_rule("/reports/{id}"),
        web_rule("/reports/export", "['POST']"),
        ops_rule("/reports/{id}/pages"),
    ));
    for (request, by) in [
        ("/", ""),
        ("/other", WEB),
        ("/reports", WEB),
        ("/reports/", WEB),
        ("/reports/7", OPS),
        // A rule with other methods decides too.
        ("PUT /reports/7", ""),
        ("/reports/export", ""),
        ("POST /reports/export", WEB),
        ("/reports/7/pages", OPS),
        // Static segments first, as in axum, but with backtracking.
        ("/reports/export/pages", OPS),
        ("/reports/exports", OPS),
        ("/reports/7/other", WEB),
    ] {
        for id in [WEB, OPS] {
            assert_eq!(allows(&policy, id, request), id == by, "{request} {id}");
        }
        assert!(!allows_anonymous(&policy, request));
    }
    let explained = policy.explain(Some(&verified_svid(WEB)), &parts("/reports/7"));
    assert_eq!(explained.pattern(), Some("/reports/{id}"));
    let outcomes: Vec<_> = explained.rules().iter().map(|it| it.outcome()).collect();
    let less = RuleOutcome::LessSpecific {
        pattern: "/{*rest}".to_owned(),
    };
    assert_eq!(outcomes, [&less, &RuleOutcome::OtherCallers]);
    let lines: Vec<_> = explained.rules().iter().map(|it| it.line()).collect();
    assert_eq!(lines, [1, 5]);
}

#[test]
fn p02_ambiguous_paths_are_denied() {
    let policy = document(&format!(
        "{}{}{}{}",
        web_rule("/{*rest}", "['GET']"),
        ops_rule("/admin/{*rest}"),
        ops_rule("/exact"),
        "[[rule]]\npath = '/public/{*rest}'\nmethods = ['GET']\npublic = true\n",
    ));
    for path in [
        "/a",
        "/a/",
        "/a%20b",
        "/a;b",
        "/a/%C3%A4",
        "/a%2Fb",
        "/admins",
        "/Admin/x",
    ] {
        assert!(allows(&policy, WEB, path), "{path}");
    }
    for path in [
        "//admin/x",
        "/a//b",
        "/a/../admin/x",
        "/./admin/x",
        "/a/..",
        "/%61dmin/x",
        "/admin%2Fx",
        "/%2e%2e/admin/x",
        "/a/%2E%2E/admin/x",
        "/a%5cb",
        "/%65xact",
        "/a%00b",
        "/a%0ab",
        "/a%",
        "/a%2",
        "/a%zz",
        "/a%ff",
        "/public/../admin/x",
        "/public/%2e%2e/admin/x",
        "/public//x",
        "/public%2F%2E%2E%2Fx",
        // Paths that match no pattern.
        "/admin/x",
        "/exact",
    ] {
        assert!(!allows(&policy, WEB, path), "{path}");
        assert!(!allows_anonymous(&policy, path), "{path}");
    }
    assert!(allows_anonymous(&policy, "/public/x"));
    let explained = policy.explain(Some(&verified_svid(WEB)), &parts("//admin/x"));
    assert!(
        explained.to_string().contains("in several ways"),
        "{explained}"
    );
}

#[test]
fn p02_paths_are_compared_exactly() {
    let policy = document(&web_rule("/reports", "['GET']"));
    assert!(allows(&policy, WEB, "/reports"));
    assert!(allows(&policy, WEB, "/reports?x=1"));
    assert!(allows(&policy, WEB, "http://host/reports"));
    for path in [
        "/Reports",
        "/reports/",
        "//reports",
        "/report%73",
        "/reports/.",
        "/reports;x",
    ] {
        assert!(!allows(&policy, WEB, path), "{path}");
    }
}

#[test]
fn p02_get_includes_head_only() {
    let policy = document(&format!(
        "{}{}{}{}",
        web_rule("/get", "['GET']"),
        web_rule("/head", "['HEAD']"),
        web_rule("/any", "'any'"),
        web_rule("/connect", "['CONNECT']"),
    ));
    for (request, expected) in [
        ("GET /get", true),
        ("HEAD /get", true),
        ("OPTIONS /get", false),
        ("POST /get", false),
        ("get /get", false),
        ("GET /head", false),
        ("HEAD /head", true),
        ("OPTIONS /any", true),
        ("BREW /any", true),
        ("CONNECT /any", false),
        ("CONNECT /connect", true),
        ("GET /connect", false),
    ] {
        assert_eq!(allows(&policy, WEB, request), expected, "{request}");
    }
    // Request targets without a path.
    let policy = document(&web_rule("/{*rest}", "'any'"));
    for target in ["CONNECT host:443", "OPTIONS *"] {
        assert!(!allows(&policy, WEB, target), "{target}");
    }
}

#[test]
fn p07_grpc_rules_are_exact_and_post() {
    let policy = document(&format!(
        "[[rule]]\ngrpc_service = 'r.Reports'\nids = [{WEB:?}]\n\
         [[rule]]\ngrpc_method = '/r.Reports/Delete'\nids = [{OPS:?}]\n\
         [[rule]]\ngrpc_service = 'grpc.health.v1.Health'\npublic = true\n"
    ));
    for (request, by) in [
        ("POST /r.Reports/Get", WEB),
        ("POST /r.Reports/Delete", OPS),
        ("GET /r.Reports/Get", ""),
        ("POST /r.Reports/", ""),
        ("POST /r.Reports/Get/", ""),
        ("POST /r.Reports/Get%20", ""),
        ("POST /r.Reports/%47et", ""),
        ("POST /r.Reports/a.b", ""),
        ("POST /r.reports/Get", ""),
        ("POST /api/r.Reports/Get", ""),
    ] {
        for id in [WEB, OPS] {
            assert_eq!(allows(&policy, id, request), id == by, "{request} {id}");
        }
    }
    assert!(allows_anonymous(
        &policy,
        "POST /grpc.health.v1.Health/Check"
    ));
    assert!(!allows_anonymous(
        &policy,
        "GET /grpc.health.v1.Health/Check"
    ));
    // A rule with the same pattern over HTTP is an alternative.
    let both = format!(
        "[[rule]]\ngrpc_service = 'r.R'\nids = [{WEB:?}]\n{}",
        rule("/r.R/{method}", "['POST']", OPS)
    );
    let policy = document(&both);
    assert!(allows(&policy, OPS, "POST /r.R/not-a.method"));
    assert!(!allows(&policy, WEB, "POST /r.R/not-a.method"));
    assert!(allows(&policy, WEB, "POST /r.R/Get"));
}

async fn status(
    app: &(
         impl tower::Service<
        Request<Body>,
        Response = axum::response::Response,
        Error = std::convert::Infallible,
    > + Clone
     ),
    world: &World,
    path: &str,
) -> u16 {
    let mut request = Request::get(path).body(Body::empty()).unwrap();
    request
        .headers_mut()
        .insert("authorization", world.bearer(WEB));
    app.clone()
        .oneshot(request)
        .await
        .unwrap()
        .status()
        .as_u16()
}

fn layer(world: &World, policy: PolicyDocument) -> ValidateJwtSvidLayer {
    ValidateJwtSvidLayer::required(world.validator.clone(), policy)
}

#[tokio::test]
async fn p02_router_and_policy_agree_on_patterns() {
    let patterns = [
        "/a",
        "/a/",
        "/a/{x}",
        "/a/b",
        "/a/{x}/c",
        "/a/{x}/{y}",
        "/a/b/{z}",
        "/f/{*rest}",
        "/v{n}/x",
        "/{top}",
    ];
    // Each rule allows another ID, and each route returns its pattern.
    let rules = patterns.iter().enumerate();
    let text: String = rules
        .map(|(n, pattern)| rule(pattern, "['GET']", &format!("spiffe://x/{n}")))
        .collect();
    let policy = document(&text);
    let mut router = Router::new();
    for (n, pattern) in patterns.iter().enumerate() {
        router = router.route(pattern, any(async move || n.to_string()));
    }
    let paths = [
        "/", "/a", "/a/", "/a/b", "/a/1", "/a/b/c", "/a/1/c", "/a/1/2", "/a/b/2", "/a/bb", "/f/",
        "/f/1", "/f/1/2/", "/f", "/v1/x", "/v1", "/v/x", "/vx", "/1", "/A", "/a/b/c/d", "/a/c/c",
        "/a/b/",
    ];
    for path in paths {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let by_router = match response.status().as_u16() {
            200 => {
                let body = axum::body::to_bytes(response.into_body(), 9).await.unwrap();
                let n: usize = std::str::from_utf8(&body).unwrap().parse().unwrap();
                Some(n)
            }
            _ => None,
        };
        let allowed = (0..patterns.len())
            .filter(|n| allows(&policy, &format!("spiffe://x/{n}"), path))
            .collect::<Vec<_>>();
        assert_eq!(allowed, Vec::from_iter(by_router), "{path}");
    }
}

#[tokio::test]
async fn p02_paths_changed_inside_the_layer_are_not_checked() {
    let world = World::new();
    let policy = document(&format!(
        "{}{}",
        web_rule("/{*rest}", "['GET']"),
        ops_rule("/admin")
    ));
    let trim = || {
        tower::util::MapRequestLayer::new(|mut request: Request<Body>| {
            let path = request.uri().path().trim_end_matches('/').to_owned();
            *request.uri_mut() = path.parse::<Uri>().unwrap();
            request
        })
    };
    let router = Router::new().route("/admin", get(async || "done"));
    let inside = layer(&world, policy.clone()).layer(trim().layer(router.clone()));
    assert_eq!(status(&inside, &world, "/admin").await, 403);
    assert_eq!(status(&inside, &world, "/admin/").await, 200);
    let outside = trim().layer(layer(&world, policy).layer(router));
    assert_eq!(status(&outside, &world, "/admin/").await, 403);
}

#[tokio::test]
async fn p02_nested_policies_see_either_path() {
    let world = World::new();
    let text = web_rule("/v1/reports", "['GET']");
    let nested = |policy| {
        let inner = Router::new().route("/reports", get(async || "done"));
        let inner = Router::new().fallback_service(layer(&world, policy).layer(inner));
        Router::new().nest("/v1", inner)
    };
    let seen = nested(document(&text));
    assert_eq!(status(&seen, &world, "/v1/reports").await, 403);
    let original = nested(document(&text).match_original_uri());
    assert_eq!(status(&original, &world, "/v1/reports").await, 200);
    let stripped = nested(document(&web_rule("/reports", "['GET']")));
    assert_eq!(status(&stripped, &world, "/v1/reports").await, 200);
}

#[test]
fn p02_parts_without_a_path_are_denied() {
    let policy = document(&web_rule("/{*rest}", "'any'"));
    for uri in ["*", "host:443"] {
        let mut parts = parts("/");
        parts.uri = uri.parse::<Uri>().unwrap();
        let decision =
            tower_spiffe::server::Policy::decide(&policy, Some(&verified_svid(WEB)), &parts);
        assert!(decision.is_deny(), "{uri}");
    }
}
