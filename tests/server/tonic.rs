//! A tonic server with the layer: for the whole server, and for one service.

use tonic::Code;
use tonic::service::{LayerExt, Routes};
use tonic::transport::{Channel, Endpoint, Server};
use tower_spiffe::bundle::BundlesUnavailable;
use tower_spiffe::server::{Allow, GrpcPolicy, ValidateJwtSvidLayer};

use crate::loopback::{At, Doors};
use crate::support::{OPS, WEB, World};
use crate::talk::{Other, Talk, Talker};

/// Serves a tonic router over TCP and a Unix socket.
macro_rules! serve {
    ($server:expr) => {{
        let doors = Doors::open().await;
        let tcp = tokio_stream::wrappers::TcpListenerStream::new(doors.tcp);
        tokio::spawn($server.serve_with_incoming(tcp));
        #[cfg(unix)]
        {
            let unix = tokio_stream::wrappers::UnixListenerStream::new(doors.unix);
            tokio::spawn($server.serve_with_incoming(unix));
        }
        doors.at
    }};
}
pub(crate) use serve;

pub async fn channels(at: &At) -> Vec<Channel> {
    let tcp = Endpoint::try_from(format!("http://{}", at.tcp)).unwrap();
    vec![
        tcp.connect().await.unwrap(),
        #[cfg(unix)]
        over_unix(at).await,
    ]
}

#[cfg(unix)]
async fn over_unix(at: &At) -> Channel {
    use hyper_util::rt::TokioIo;
    use tokio::net::UnixStream;
    let path = at.unix.clone();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { std::io::Result::Ok(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    let unix = Endpoint::from_static("http://reports.test");
    unix.connect_with_connector(connector).await.unwrap()
}

fn bearer(world: &World, id: &str) -> Option<String> {
    Some(world.bearer(id).to_str().unwrap().to_owned())
}

fn policy() -> GrpcPolicy {
    let everyone = || Allow::trust_domain("x").unwrap();
    GrpcPolicy::deny_by_default()
        .method("/t.Talk/Say", everyone())
        .method("/t.Talk/Chat", everyone())
        .method("/t.Talk/Listen", Allow::id(OPS).unwrap())
        .method("/t.Talk/Tell", Allow::id(OPS).unwrap())
        .public("/t.Talk/Open")
        .build()
        .unwrap()
}

/// Asserts that the [`policy`] applies to the methods of [`Talk`], of each kind.
async fn assert_protected(world: &World, channel: Channel) {
    let mut ops = Talker::new(channel.clone(), bearer(world, OPS));
    assert_eq!(ops.say("hello").await.unwrap(), "spiffe://x/ops says hello");
    assert_eq!(ops.listen(&["a", "b"]).await.unwrap(), "spiffe://x/ops a b");
    let mut ticks = ops.tell().await.unwrap();
    assert_eq!(ticks.message().await.unwrap().as_deref(), Some("tick"));
    let words = tokio_stream::iter(["one".to_owned(), "two".to_owned()]);
    let mut answers = ops.chat(words).await.unwrap();
    assert_eq!(
        answers.message().await.unwrap().as_deref(),
        Some("/ops says one")
    );
    assert_eq!(
        answers.message().await.unwrap().as_deref(),
        Some("/ops says two")
    );
    assert_eq!(answers.message().await.unwrap(), None);

    // By method: the same caller may call `Say`, but not `Listen`.
    let mut web = Talker::new(channel.clone(), bearer(world, WEB));
    assert_eq!(web.say("hi").await.unwrap(), "spiffe://x/web says hi");
    let status = web.listen(&["a"]).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::PermissionDenied, "the caller is not allowed")
    );
    assert_eq!(web.tell().await.unwrap_err().code(), Code::PermissionDenied);
    // Methods that the policy does not list are denied, even if they do not exist.
    assert_eq!(
        web.unary("Nothing", "").await.unwrap_err().code(),
        Code::PermissionDenied
    );

    let mut anonymous = Talker::new(channel.clone(), None);
    assert_eq!(anonymous.unary("Open", "").await.unwrap(), "open");
    for status in [
        anonymous.say("hello").await.unwrap_err(),
        anonymous.listen(&["a"]).await.unwrap_err(),
        anonymous.tell().await.unwrap_err(),
        anonymous.chat(tokio_stream::empty()).await.unwrap_err(),
    ] {
        assert_eq!(
            (status.code(), status.message()),
            (Code::Unauthenticated, "a bearer token is required")
        );
    }
    let mut liar = Talker::new(channel, Some("Bearer a.b.c".to_owned()));
    let status = liar.say("hello").await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unauthenticated, "the token is malformed")
    );
}

#[tokio::test]
async fn jwt_19_all_four_kinds_of_calls_are_protected() {
    let world = World::new();
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), policy());
    let at = serve!(Server::builder().layer(layer.clone()).add_service(Talk));
    for channel in channels(&at).await {
        assert_protected(&world, channel).await;
    }
    world.bundles.bundles_unavailable(BundlesUnavailable::Stale);
    for channel in channels(&at).await {
        let mut ops = Talker::new(channel, bearer(&world, OPS));
        assert_eq!(
            ops.say("hello").await.unwrap_err().code(),
            Code::Unavailable
        );
    }
}

#[tokio::test]
async fn one_service_of_a_server_is_protected() {
    let world = World::new();
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), policy());
    let routes = Routes::new(layer.named_layer(Talk)).add_service(Other);
    let at = serve!(Server::builder().add_routes(routes.clone()));
    for channel in channels(&at).await {
        assert_protected(&world, channel.clone()).await;
        // The other services of that server are not protected.
        let mut anonymous = Talker::new(channel, None);
        let path = |method: &str| format!("/t.Other/{method}").parse().unwrap();
        assert_eq!(anonymous.call(path("Open"), "").await.unwrap(), "open");
        let status = anonymous.call(path("Say"), "hi").await.unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (
                Code::Internal,
                "ValidateJwtSvidLayer is missing from the stack"
            )
        );
    }
}

#[tokio::test]
async fn a_handler_without_the_layer_reports_it() {
    let at = serve!(Server::builder().add_service(Talk));
    for channel in channels(&at).await {
        let status = Talker::new(channel, None).say("hi").await.unwrap_err();
        assert_eq!(
            (status.code(), status.message()),
            (
                Code::Internal,
                "ValidateJwtSvidLayer is missing from the stack"
            )
        );
    }
}

#[tokio::test]
async fn anonymous_caller_is_unauthenticated_in_the_handler() {
    let world = World::new();
    let layer = ValidateJwtSvidLayer::optional(world.validator.clone(), Allow::anyone());
    let at = serve!(Server::builder().layer(layer.clone()).add_service(Talk));
    for channel in channels(&at).await {
        let status = Talker::new(channel.clone(), None)
            .say("hi")
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert_eq!(
            Talker::new(channel, bearer(&world, WEB))
                .listen(&[])
                .await
                .unwrap(),
            WEB
        );
    }
}
