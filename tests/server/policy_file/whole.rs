//! Each request is decided by one version of the file, even if the file changes meanwhile.

use std::convert::Infallible;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use http::{HeaderValue, Request, Response};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::server::{Decision, FilePolicy, Policy, PolicyDocument, ValidateJwtSvidLayer};
use tower_spiffe::testing::verified_svid;
use tower_spiffe_test_support::temp::{TempDir, replace};
use tower_spiffe_test_support::wait::SetOnDrop;

use super::{document, parts};
use crate::support::{OPS, WEB, World};

const PATHS: [&str; 4] = ["/a", "/a/{x}", "/{*rest}", "/a/{x}/{y}"];
const METHODS: [&str; 3] = ["['GET']", "['POST']", "'any'"];
const CALLERS: [&str; 5] = [
    "ids = ['spiffe://x/web']",
    "ids = ['spiffe://x/ops']",
    "path_prefixes = ['spiffe://x/web']",
    "trust_domains = ['x']",
    "public = true",
];
const REQUESTS: [&str; 6] = [
    "GET /a",
    "POST /a",
    "GET /a/1",
    "POST /a/1",
    "GET /a/1/2",
    "GET /b",
];
const THREADS: usize = 4;
const SWAPS: usize = 40;

/// A policy of one to four rules.
fn policies() -> impl Strategy<Value = (String, PolicyDocument)> {
    let rule = (0..PATHS.len(), 0..METHODS.len(), 0..CALLERS.len());
    prop::collection::vec(rule, 1..5).prop_filter_map("rules without effect", |rules| {
        let rules = rules.iter().map(|(path, methods, callers)| {
            let (path, methods, callers) = (PATHS[*path], METHODS[*methods], CALLERS[*callers]);
            format!("[[rule]]\npath = {path:?}\nmethods = {methods}\n{callers}\n")
        });
        let text: String = rules.collect();
        let document = text.parse().ok()?;
        Some((text, document))
    })
}

#[test]
fn p06_no_request_uses_a_partial_policy() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let callers = [None, Some(WEB), Some(OPS)].map(|id| id.map(verified_svid));
    let cases: Vec<_> = callers
        .iter()
        .flat_map(|caller| REQUESTS.map(|request| (caller.as_ref(), parts(request))))
        .collect();
    let answers = |policy: &dyn Policy| -> Vec<Decision> {
        let cases = cases.iter();
        cases
            .map(|(caller, parts)| policy.decide(*caller, parts))
            .collect()
    };
    let mut runner = TestRunner::new(Config::with_cases(24));
    let (mut contradictions, mut agreements) = (0, 0);
    let property =
        |((a, of_a), (b, of_b)): ((String, PolicyDocument), (String, PolicyDocument))| {
            let dir = TempDir::new();
            let path = dir.join("policy.toml");
            let put = |text: &str| replace(&path, text);
            put(&a);
            let policy = FilePolicy::builder(&path).open().unwrap();
            let (of_a, of_b) = (answers(&of_a), answers(&of_b));
            let done = AtomicBool::new(false);
            let (rounds, start) = (AtomicUsize::new(0), Barrier::new(THREADS + 1));
            std::thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        start.wait();
                        loop {
                            let ended = done.load(Ordering::Acquire);
                            for (at, answer) in answers(&policy).into_iter().enumerate() {
                                let whole = answer == of_a[at] || answer == of_b[at];
                                assert!(whole, "{answer:?} of {a}\nand {b}");
                            }
                            rounds.fetch_add(1, Ordering::Relaxed);
                            if ended {
                                return;
                            }
                        }
                    });
                }
                start.wait();
                let _done = SetOnDrop(&done);
                for n in 0..SWAPS {
                    // Wait for some decisions before the next change.
                    let before = rounds.load(Ordering::Relaxed);
                    match n % 3 {
                        0 => put(&b),
                        1 => put("[[rule]]"),
                        _ => put(&a),
                    }
                    let _ = policy.reload();
                    while rounds.load(Ordering::Relaxed) < before + 2 {
                        std::thread::yield_now();
                    }
                }
            });
            let differ = of_a.iter().zip(&of_b).filter(|(a, b)| a != b).count();
            contradictions += differ;
            agreements += of_a.len() - differ;
            assert!(policy.state().revision > 10 || a == b);
        };
    let property = std::cell::RefCell::new(property);
    let both = (policies(), policies());
    runner
        .run(&both, |both| {
            (property.borrow_mut())(both);
            Ok(())
        })
        .unwrap();
    assert!(contradictions > 50 && agreements > 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn p06_responses_are_those_of_one_file() {
    let world = World::new();
    let dir = TempDir::new();
    let path = dir.join("policy.toml");
    // Both files deny POST for web and GET for ops, each with another reason.
    let file = |id: &str, method: &str| {
        format!(
            "[[rule]]\npath = '/a/{{x}}'\nmethods = [{method:?}]\nids = [{id:?}]\n\
             [[rule]]\npath = '/always'\nmethods = ['GET']\npublic = true\n"
        )
    };
    let (a, b) = (file(WEB, "GET"), file(OPS, "POST"));
    replace(&path, &a);
    let policy = FilePolicy::builder(&path).open().unwrap();
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), policy.clone());
    let (web, ops) = (world.bearer(WEB), world.bearer(OPS));
    let done = std::sync::Arc::new(AtomicBool::new(false));
    let ask = async |method: &str, path: &str, token: Option<&HeaderValue>| {
        let service = layer.layer(service_fn(async |_: Request<String>| {
            Ok::<_, Infallible>(Response::new(String::new()))
        }));
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .body(String::new())
            .unwrap();
        if let Some(token) = token {
            request.headers_mut().insert("authorization", token.clone());
        }
        service.oneshot(request).await.unwrap().status().as_u16()
    };
    let swaps = {
        let done = done.clone();
        let policy = policy.clone();
        std::thread::spawn(move || {
            for n in 0..200 {
                let next = if n % 2 == 0 { &b } else { &a };
                replace(dir.join("policy.toml"), next);
                policy.reload().unwrap();
            }
            done.store(true, Ordering::Release);
            dir
        })
    };
    let mut seen = [0_usize; 2];
    while !done.load(Ordering::Acquire) {
        assert_eq!(ask("POST", "/a/1", Some(&web)).await, 403);
        assert_eq!(ask("GET", "/a/1", Some(&ops)).await, 403);
        assert_eq!(ask("GET", "/always", None).await, 200);
        assert_eq!(ask("GET", "/always", Some(&ops)).await, 200);
        assert_eq!(ask("GET", "/a/1", None).await, 401);
        match ask("GET", "/a/1", Some(&web)).await {
            200 => seen[0] += 1,
            403 => seen[1] += 1,
            other => panic!("{other}"),
        }
        tokio::task::yield_now().await;
    }
    drop(swaps.join().unwrap());
    assert_eq!(policy.state().revision, 201);
    assert!(seen[0] + seen[1] > 0, "{seen:?}");
    let _ = document(&file(WEB, "GET"));
}
