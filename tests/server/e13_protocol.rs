//! The protocol of rejections is set by the server, not by the caller.

use std::convert::Infallible;
use std::sync::Arc;

use http::{HeaderValue, Method, Request, Response, Version};
use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::server::{
    Allow, AllowCallersLayer, GrpcPolicy, Policy, Protocol, SwapPolicy, ValidateJwtSvidLayer,
};

use crate::support::{OPS, WEB, World};

const KINDS: [&str; 6] = [
    "application/json",
    "application/grpc",
    "application/grpc+proto",
    "application/grpc-web",
    "application/grpc-web-text+proto",
    "APPLICATION/GRPC-WEB",
];

fn requests() -> impl Iterator<Item = Request<String>> {
    let versions = [
        Version::HTTP_10,
        Version::HTTP_11,
        Version::HTTP_2,
        Version::HTTP_3,
    ];
    let methods = [Method::GET, Method::POST];
    versions.into_iter().flat_map(move |version| {
        let methods = methods.clone();
        methods.into_iter().flat_map(move |method| {
            KINDS.into_iter().map(move |kind| {
                let mut request = Request::new(String::new());
                *request.version_mut() = version;
                *request.method_mut() = method.clone();
                *request.uri_mut() = "/r.R/Get".parse().unwrap();
                let kind = HeaderValue::from_static(kind);
                request.headers_mut().insert("content-type", kind);
                request
            })
        })
    })
}

async fn ok(_: Request<String>) -> Result<Response<String>, Infallible> {
    Ok(Response::new(String::new()))
}

fn methods() -> GrpcPolicy {
    let policy = GrpcPolicy::deny_by_default().method("/r.R/Get", Allow::id(OPS).unwrap());
    policy.build().unwrap()
}

#[tokio::test]
async fn e13_a_caller_cannot_choose_status_200() {
    let world = World::new();
    let validator = || world.validator.clone();
    let allow = || Allow::any_trust_domain();
    for layer in [
        ValidateJwtSvidLayer::required(validator(), allow()),
        ValidateJwtSvidLayer::optional(validator(), allow().or(Allow::id(WEB).unwrap())),
        ValidateJwtSvidLayer::required(validator(), SwapPolicy::new(allow())),
        ValidateJwtSvidLayer::required(validator(), methods()).protocol(Protocol::Http),
    ] {
        let service = layer.layer(service_fn(ok));
        for request in requests() {
            let what = format!("{request:?}");
            let response = service.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), 401, "{what}");
            assert!(!response.headers().contains_key("grpc-status"), "{what}");
        }
    }
    let open = ValidateJwtSvidLayer::optional(validator(), Allow::anyone());
    for narrow in [
        AllowCallersLayer::new(allow()),
        open.allow_callers(allow()),
        AllowCallersLayer::new(methods()).protocol(Protocol::Http),
    ] {
        let service = open.layer(narrow.layer(service_fn(ok)));
        for request in requests() {
            let response = service.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), 401);
        }
    }
}

#[tokio::test]
async fn e13_a_grpc_policy_implies_grpc() {
    let world = World::new();
    let required = |policy| ValidateJwtSvidLayer::required(world.validator.clone(), policy);
    let any = Allow::any_trust_domain;
    let shared: Arc<dyn Policy> = Arc::new(methods());
    let open = ValidateJwtSvidLayer::optional(world.validator.clone(), Allow::anyone());
    let narrow = |narrow: AllowCallersLayer| open.layer(narrow.layer(service_fn(ok)));
    for policy in [
        Allow::policy(methods()),
        Allow::policy(methods()).and(any()),
        any().and(Allow::policy(methods())),
        Allow::id(OPS).unwrap().or(Allow::policy(methods())),
        Allow::policy(SwapPolicy::new(methods())),
        Allow::policy(SwapPolicy::new(SwapPolicy::new(shared.clone()))),
        Allow::policy(shared),
    ] {
        let service = required(policy.clone()).layer(service_fn(ok));
        for request in requests() {
            let kind = request.headers()["content-type"].to_str().unwrap();
            let kind = kind.to_ascii_lowercase();
            let expected = match kind.starts_with("application/grpc-web") {
                true => kind,
                false => "application/grpc".to_owned(),
            };
            let response = service.clone().oneshot(request).await.unwrap();
            assert_eq!(response.status(), 200, "{policy:?}");
            assert_eq!(response.headers()["grpc-status"], "16", "{policy:?}");
            assert_eq!(response.headers()["content-type"], expected, "{policy:?}");
        }
        // Inside the layer too: by its own policy, or by the outer layer's policy.
        for service in [
            narrow(AllowCallersLayer::new(policy.clone())),
            narrow(required(policy).allow_callers(any())),
        ] {
            let request = requests().next().unwrap();
            let response = service.oneshot(request).await.unwrap();
            assert_eq!(response.headers()["grpc-status"], "16");
        }
    }
}

#[tokio::test]
async fn e13_a_swapped_policy_swaps_the_protocol() {
    let world = World::new();
    let policy = SwapPolicy::new(Allow::any_trust_domain());
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), policy.clone());
    let status = async || {
        let request = requests().last().unwrap();
        let service = layer.layer(service_fn(ok));
        service.oneshot(request).await.unwrap().status().as_u16()
    };
    assert_eq!(status().await, 401);
    policy.replace(methods());
    assert_eq!(status().await, 200);
}
