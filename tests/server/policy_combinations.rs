//! `and`, `or`, `not`, and the reasons of denials.

use std::convert::Infallible;
use std::fs;

use http::request::Parts;
use http::{Request, Response};
use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::server::{Allow, Decision, Policy, Rejection, ValidateJwtSvidLayer};
use tower_spiffe::testing::verified_svid;
use tower_spiffe::verify::VerifiedSvid;

use crate::log::Log;
use crate::support::{OPS, WEB, World};

use Decision::{Allow as Yes, AuthenticationRequired as Ask, Deny as No};

/// A policy with a fixed decision.
struct Always(Decision);

impl Policy for Always {
    fn decide(&self, _: Option<&VerifiedSvid>, _: &Parts) -> Decision {
        self.0
    }
}

fn always(decision: Decision) -> Allow {
    Allow::policy(Always(decision))
}

fn decide(policy: &Allow, caller: Option<&str>) -> Decision {
    let (parts, ()) = Request::new(()).into_parts();
    policy.decide(caller.map(verified_svid).as_ref(), &parts)
}

/// Checks each row of the table in the documentation of `Allow`.
#[test]
fn combinations_follow_the_documented_table() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../src/server/allow.rs");
    let source = fs::read_to_string(root).unwrap();
    let word = |text: &str| match text {
        "Allow" => Some(Yes),
        "Deny" => Some(No),
        "Ask" => Some(Ask),
        _ => None,
    };
    let mut rows = 0;
    for line in source.lines() {
        let Some(line) = line.strip_prefix("/// | ") else {
            continue;
        };
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [a, b, and, or, not, _] = cells[..] else {
            continue;
        };
        let (Some(a), Some(b)) = (word(a), word(b)) else {
            continue;
        };
        rows += 1;
        for caller in [None, Some(WEB)] {
            let expected_not = match (not.split_once(';'), caller) {
                (Some((_, anonymous)), None) => {
                    anonymous.trim_start_matches(" for an anonymous caller ")
                }
                (Some((verified, _)), Some(_)) => verified,
                (None, _) => not,
            };
            assert_eq!(
                decide(&always(a).and(always(b)), caller),
                word(and).unwrap(),
                "{line}"
            );
            assert_eq!(
                decide(&always(a).or(always(b)), caller),
                word(or).unwrap(),
                "{line}"
            );
            assert_eq!(
                decide(&always(a).not(), caller),
                word(expected_not).unwrap(),
                "{line}"
            );
            assert_eq!(a.and(b), word(and).unwrap());
            assert_eq!(a.or(b), word(or).unwrap());
        }
    }
    assert_eq!(rows, 9);
}

#[test]
fn not_never_allows_anonymous_callers() {
    let web = Allow::id(WEB).unwrap();
    for (policy, expected) in [
        (web.clone().not(), [Ask, No, Yes]),
        (web.clone().not().not(), [Ask, Yes, No]),
        (Allow::anyone().not(), [No, No, No]),
        (Allow::anyone().not().not(), [Ask, Yes, Yes]),
        (Allow::when(|_, _| false).not(), [Ask, Yes, Yes]),
        (always(No).not(), [Ask, Yes, Yes]),
        (always(Decision::DenyBecause("x")).not(), [Ask, Yes, Yes]),
    ] {
        let decisions = [None, Some(WEB), Some(OPS)].map(|caller| decide(&policy, caller));
        assert_eq!(decisions, expected, "{policy:?}");
    }
}

#[test]
fn the_first_reason_is_kept() {
    let because = |reason| always(Decision::DenyBecause(reason));
    for policy in [
        because("a").or(because("b")),
        because("a").and(because("b")),
        because("a").and(always(Yes)),
        always(Yes).and(because("a")),
        always(No).or(because("a")),
        always(No).because("a"),
        because("a").because("b"),
        always(No).and(always(Yes)).because("a"),
    ] {
        let decision = decide(&policy, Some(WEB));
        assert_eq!(decision.reason(), Some("a"), "{policy:?}");
        assert!(decision.is_deny());
    }
    // Only denials have a reason.
    assert_eq!(decide(&always(Yes).because("a"), Some(WEB)), Yes);
    assert_eq!(decide(&always(Ask).because("a"), None), Ask);
}

#[tokio::test]
async fn reasons_are_logged_and_never_sent() {
    let world = World::new();
    let log = Log::default();
    let guard = log.begin(tracing::Level::INFO);
    let ops = Allow::id(OPS).unwrap().because("only ops\nreason=forged");
    let ok =
        service_fn(async |_: Request<String>| Ok::<_, Infallible>(Response::new(String::new())));
    let open = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::any_trust_domain());
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), ops.clone());
    let nested = open.layer(open.allow_callers(ops).layer(ok));
    for response in [
        layer.layer(ok).oneshot(world.request(WEB)).await.unwrap(),
        nested.oneshot(world.request(WEB)).await.unwrap(),
    ] {
        assert_eq!(response.status(), 403);
        assert!(!format!("{:?} {}", response.headers(), response.body()).contains("only ops"));
        let rejection = response.extensions().get::<Rejection>().unwrap();
        assert_eq!(rejection.policy_reason(), Some("only ops\nreason=forged"));
        assert!(!rejection.to_string().contains("only ops"));
    }
    drop(guard);
    let text = log.text();
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("only ops"))
        .collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(
        lines
            .iter()
            .all(|line| line.contains(r#"policy_reason="only ops\nreason=forged""#)),
        "{text}"
    );
}
