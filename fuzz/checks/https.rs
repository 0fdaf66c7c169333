//! Responses of servers that publish bundles.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tower_spiffe::TrustDomain;
use tower_spiffe::bundle::JwtBundle;
use tower_spiffe::clock::UnixTime;
use tower_spiffe::source::HttpsBundles;
use tower_spiffe::testing::{PausedClock, internals};

use super::check_error_text;

const ISSUER: &str = "https://issuer.test";

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Jwks,
    Oidc,
    Web,
}

/// Checks polls of an https source. The first byte is the kind of source and whether its hosts are
/// limited. The rest are the responses of servers, separated by zero bytes; the source polls until
/// all are used.
///
/// Requests are sent only to https URLs of allowed hosts, at most six for a document. The bundle has
/// the keys of the document. A failed poll changes nothing, and a lower sequence is not accepted.
pub fn https_response(data: &[u8]) {
    let Some((&settings, bytes)) = data.split_first() else {
        return;
    };
    let kind = match settings & 3 {
        0 => Kind::Jwks,
        1 => Kind::Oidc,
        _ => Kind::Web,
    };
    let own_hosts_only = settings & 4 != 0;
    thread_local! {
        static RUNTIME: RefCell<tokio::runtime::Runtime> = RefCell::new(
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(true)
                .build()
                .expect("a runtime"),
        );
    }
    RUNTIME.with_borrow_mut(|runtime| runtime.block_on(polls(kind, own_hosts_only, bytes)));
}

/// The responses to send, and the URLs of the requests.
#[derive(Default)]
struct Servers {
    responses: VecDeque<Vec<u8>>,
    requests: Vec<String>,
}

async fn polls(kind: Kind, own_hosts_only: bool, bytes: &[u8]) {
    let responses: VecDeque<_> = bytes.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
    let most = responses.len().min(8);
    let servers = Arc::new(Mutex::new(Servers {
        responses,
        requests: Vec::new(),
    }));
    let domain = TrustDomain::parse("example.org").expect("a trust domain");
    let builder = match kind {
        Kind::Jwks => HttpsBundles::jwks_url(domain.clone(), "https://issuer.test/keys"),
        Kind::Oidc => HttpsBundles::oidc_issuer(domain.clone(), ISSUER),
        Kind::Web => HttpsBundles::https_web(domain.clone(), "https://issuer.test/bundle"),
    };
    let clock = PausedClock::new(UnixTime::from_secs(1_790_000_000));
    let mut builder = builder
        .clock(clock.shared())
        .poll_seed(7)
        // Not called. With a client, the system's root certificates are not read.
        .client(|_| std::future::ready(Ok::<_, Infallible>(http::Response::new(String::new()))));
    if own_hosts_only {
        builder = builder.allowed_hosts([]);
    }
    let at = servers.clone();
    let open = move |url: &str| {
        let mut servers = at.lock().expect("no panic");
        servers.requests.push(url.to_owned());
        let response = servers.responses.pop_front().unwrap_or_default();
        let (client, mut server) = tokio::io::duplex(1 << 16);
        tokio::spawn(async move {
            let _ = server.write_all(&response).await;
            let _ = server.shutdown().await;
            // Wait until the client has read the response.
            let _ = tokio::io::copy(&mut server, &mut tokio::io::sink()).await;
        });
        client
    };
    let bundles = internals::over_streams(builder, open)
        .build_lazy()
        .expect("the settings are valid");
    for poll in 1..=most as u64 {
        let before = (
            bundles.spiffe_bundle(),
            bundles.state().revision,
            bundles.state().sequence,
        );
        while bundles.state().polls < poll {
            let wait = bundles.state().next_poll.unwrap_or_default();
            tokio::time::sleep(wait + Duration::from_millis(2)).await;
        }
        let state = bundles.state();
        let requests = std::mem::take(&mut servers.lock().expect("no panic").requests);
        check_requests(&requests, kind, own_hosts_only);
        let after = bundles.spiffe_bundle();
        if let Some(error) = state.last_error {
            check_error_text(&error.text());
            assert_ne!(error.kind(), "internal");
            if error.kind() != "bundle-unusable" {
                assert!(after == before.0 && state.revision == before.1);
            }
        } else {
            assert!(after.is_some());
        }
        assert!(state.sequence >= before.2);
        match (&after, bundles.jwt_bundle()) {
            (Some(document), Ok(bundle)) => {
                assert!(document.len() <= 1 << 20);
                let document = document.strip_prefix(b"\xef\xbb\xbf").unwrap_or(document);
                let read = match kind {
                    Kind::Jwks | Kind::Oidc => JwtBundle::from_oidc_jwks(domain.clone(), document),
                    Kind::Web => JwtBundle::from_spiffe_bundle(domain.clone(), document),
                };
                assert!(read.expect("it was read before") == *bundle);
            }
            (None, Err(_)) => {}
            (document, bundle) => panic!("{:?} {bundle:?}", document.is_some()),
        }
        if servers.lock().expect("no panic").responses.is_empty() {
            break;
        }
    }
    drop(bundles);
    // Let the task and its streams end.
    tokio::task::yield_now().await;
}

fn check_requests(requests: &[String], kind: Kind, own_hosts_only: bool) {
    let documents = if kind == Kind::Oidc { 2 } else { 1 };
    assert!((1..=6 * documents).contains(&requests.len()));
    for url in requests {
        let url: http::Uri = url.parse().expect("a URL");
        assert_eq!(url.scheme_str(), Some("https"));
        let authority = url.authority().expect("a host");
        assert!(!authority.host().is_empty() && !authority.as_str().contains('@'));
        if own_hosts_only {
            assert!(
                authority.host().eq_ignore_ascii_case("issuer.test"),
                "{url}"
            );
            assert!(matches!(authority.port_u16(), None | Some(443)), "{url}");
        }
    }
}
