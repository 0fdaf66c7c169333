//! A Workload API, a server that verifies callers and a client that signs requests, in one program.
//! Shows allowed calls, rejections, and a key rotation during calls.
//!
//! ```text
//! cargo run --example quickstart
//! ```
//!
//! Starts an embedded Workload API. If `SPIFFE_ENDPOINT_SOCKET` is set, it uses that agent instead, and
//! reports the steps that it skips. The exit code is 0 only if all checks passed.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program")]

use std::error::Error;
use std::net::SocketAddr;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::Request;
use axum::routing::get;
use axum::{Router, ServiceExt};
use reqwest::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt as _};
use tower_spiffe::client::Plaintext;
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::{
    AddJwtSvidLayer, Allow, AllowCallersLayer, Audience, JwtSource, SpiffeId, ValidateJwtSvidLayer,
    Validator, VerifiedSvid,
};

type BoxError = Box<dyn Error + Send + Sync>;

/// The server's audience.
const AUDIENCE: &str = "spiffe://example.org/reports";
/// The allowed caller, with the embedded Workload API.
const WEB: &str = "spiffe://example.org/web";
/// Another identity of the same issuer, which is not allowed.
const BATCH: &str = "spiffe://example.org/batch";
/// Short, so that a whole rotation fits into this program: SPIRE's default is five minutes.
const TOKEN_LIFE: Duration = Duration::from_secs(5);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    match chain().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quickstart: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn chain() -> Result<(), BoxError> {
    let mut run = Run::default();

    // 1. One source for the whole process.
    let (agent, source) = match std::env::var_os("SPIFFE_ENDPOINT_SOCKET") {
        Some(socket) => {
            println!("Workload API: the agent at {}", socket.display());
            let what = format!("the first bundles from {}, 30 s at most", socket.display());
            (None, announced(&what, JwtSource::new()).await?)
        }
        None => {
            let agent = FakeAgent::builder("example.org").token_life(TOKEN_LIFE);
            let agent = if cfg!(windows) {
                agent.start_tcp().await?
            } else {
                agent.start().await?
            };
            agent.register(WEB, "", TOKEN_LIFE)?;
            println!("Workload API: embedded, at {}", agent.endpoint());
            let source = agent.source().await?;
            (Some(agent), source)
        }
    };
    // For another audience, so that the first call below fetches its token.
    let me = source.fetch_jwt_svid(["quickstart"]);
    let me = announced("a token from the agent", me).await?;
    let me = me.spiffe_id().clone();
    println!("our identity: {me}\n");

    // 2. A server that allows only this caller.
    let address = serve(&source, me.clone()).await?;
    let url = format!("http://{address}/whoami");

    // 3. A client that signs its requests to that server only. It uses the same identity,
    //    if the agent has several for this workload.
    let audience = Audience::fixed(AUDIENCE).for_origin(&format!("http://{address}"))?;
    let client = AddJwtSvidLayer::new(source.clone(), audience.spiffe_id(me.clone()))
        .allow_plaintext(Plaintext::Loopback)
        .layer(reqwest::Client::new());

    println!("Calls with a token");
    for (name, token) in [("first call", "fetched"), ("second call", "cached")] {
        let started = Instant::now();
        let (status, body) = call(client.clone(), &url).await?;
        let took = started.elapsed();
        run.check(
            name,
            status == 200 && body == me.as_str(),
            format!("{status}, caller {body}, {took:.1?}, token {token}"),
        );
    }
    token_times(&source).await?;

    println!("\nRejections");
    let plain = reqwest::Client::new();
    rejected(
        &mut run,
        "no token",
        &plain,
        &url,
        None,
        401,
        "Bearer realm=\"spiffe\"",
    )
    .await?;
    let other = source
        .fetch_jwt_svid(["spiffe://example.org/ledger"])
        .await?;
    rejected(
        &mut run,
        "for another audience",
        &plain,
        &url,
        Some(other.token()),
        401,
        "another audience",
    )
    .await?;
    match &agent {
        Some(agent) => {
            let expired = agent
                .issuer()
                .token(WEB, AUDIENCE)
                .expired(Duration::from_secs(60))
                .sign();
            rejected(
                &mut run,
                "expired",
                &plain,
                &url,
                Some(&expired),
                401,
                "expired",
            )
            .await?;
            let batch = agent.token(BATCH, AUDIENCE);
            rejected(
                &mut run,
                "caller not allowed",
                &plain,
                &url,
                Some(&batch),
                403,
                "insufficient_scope",
            )
            .await?;
        }
        None => {
            println!("  skipped               expired token: a real agent returns none");
            // The policy of this route denies the only identity of this workload.
            let ours = source.fetch_jwt_svid_with_id([AUDIENCE], Some(&me)).await?;
            rejected(
                &mut run,
                "caller not allowed",
                &plain,
                &format!("http://{address}/ops"),
                Some(ours.token()),
                403,
                "insufficient_scope",
            )
            .await?;
        }
    }

    println!("\nKey rotation during calls");
    match &agent {
        Some(agent) => rotation(&mut run, agent, &source, client, &url).await?,
        None => println!(
            "  skipped               rotation: only the operator of the issuer can rotate keys"
        ),
    }

    source.shutdown().await;
    run.finish()
}

/// Awaits `work`. If it takes longer than half a second, prints what it waits for.
async fn announced<T>(what: &str, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    match tokio::time::timeout(Duration::from_millis(500), &mut work).await {
        Ok(done) => done,
        Err(_) => {
            eprintln!("quickstart: waiting for {what}");
            work.await
        }
    }
}

/// Serves `/whoami` and `/ops` on a free loopback port. The policy of `/ops` denies this workload.
async fn serve(source: &JwtSource, allowed: SpiffeId) -> Result<SocketAddr, BoxError> {
    async fn whoami(caller: VerifiedSvid) -> String {
        caller.spiffe_id().to_string()
    }
    let validator = Validator::builder(source.clone())
        .audience(AUDIENCE)
        .build()?;
    let ops = format!("spiffe://{}/ops-only", allowed.trust_domain().name());
    let router = Router::new().route("/whoami", get(whoami)).route(
        "/ops",
        get(whoami).layer(AllowCallersLayer::new(Allow::id(ops.as_str())?)),
    );
    let app = ValidateJwtSvidLayer::required(validator, Allow::id(allowed.as_str())?).layer(router);

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        axum::serve(listener, ServiceExt::<Request>::into_make_service(app)).await
    });
    Ok(address)
}

/// Sends a GET with the signing client.
async fn call<S>(mut client: S, url: &str) -> Result<(u16, String), BoxError>
where
    S: Service<reqwest::Request, Response = reqwest::Response, Error = BoxError>,
{
    let request = reqwest::Request::new(reqwest::Method::GET, url.parse()?);
    let response = client.ready().await?.call(request).await?;
    Ok((response.status().as_u16(), response.text().await?))
}

/// Prints the time to fetch a token, and to read it from the cache.
async fn token_times(source: &JwtSource) -> Result<(), BoxError> {
    source.get_jwt_svid([AUDIENCE]).await?;
    let fetch = Instant::now();
    source.fetch_jwt_svid([AUDIENCE]).await?;
    let fetch = fetch.elapsed();
    let cached = Instant::now();
    source.get_jwt_svid([AUDIENCE]).await?;
    let cached = cached.elapsed();
    println!("  token                 {fetch:.1?} when fetched, {cached:.1?} from the cache");
    Ok(())
}

/// Sends a GET with this token, and checks that it is rejected with this status and challenge.
async fn rejected(
    run: &mut Run,
    name: &str,
    client: &reqwest::Client,
    url: &str,
    token: Option<&str>,
    status: u16,
    challenge: &str,
) -> Result<(), BoxError> {
    let mut request = client.get(url);
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let response = request.send().await?;
    let got = response.status().as_u16();
    let challenge_sent = match response.headers().get(WWW_AUTHENTICATE) {
        Some(value) => value.to_str()?.to_owned(),
        None => "no challenge".to_owned(),
    };
    run.check(
        name,
        got == status && challenge_sent.contains(challenge),
        format!("{got}, {challenge_sent}"),
    );
    Ok(())
}

/// Sends requests continuously during a key rotation, until the old key is removed. Checks that no
/// request fails.
async fn rotation<S>(
    run: &mut Run,
    agent: &FakeAgent,
    source: &JwtSource,
    client: S,
    url: &str,
) -> Result<(), BoxError>
where
    S: Service<reqwest::Request, Response = reqwest::Response, Error = BoxError>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
{
    let done = Arc::new(AtomicBool::new(false));
    let caller = {
        let (done, url) = (done.clone(), url.to_owned());
        tokio::spawn(async move {
            let (mut calls, mut lost) = (0u32, 0u32);
            while !done.load(Ordering::Relaxed) {
                calls += 1;
                lost += u32::from(!matches!(call(client.clone(), &url).await, Ok((200, _))));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            (calls, lost)
        })
    };
    let old = agent.issuer().signing_key_id();
    let new = agent.rotate().await;
    println!(
        "  rotated               from key {old} to {new}; calls continue until {old} is removed"
    );
    // The old key is removed from the bundle one token lifetime after the rotation.
    let trust_domain = agent.issuer().trust_domain().clone();
    let mut updates = source.updated();
    while source
        .bundle_for_trust_domain(&trust_domain)?
        .authority(&old)
        .is_some()
    {
        updates.changed().await?;
    }
    let signed_by = source
        .get_jwt_svid([AUDIENCE])
        .await?
        .key_id()
        .unwrap_or_default()
        .to_owned();
    tokio::time::sleep(Duration::from_millis(200)).await;
    done.store(true, Ordering::Relaxed);
    let (calls, lost) = caller.await?;
    run.check(
        "calls in this time",
        lost == 0 && calls > 100 && signed_by == new,
        format!("{calls}, of which {lost} were lost; they are signed with {signed_by} now"),
    );
    Ok(())
}

/// Counts failed checks.
#[derive(Default)]
struct Run {
    failed: u32,
}

impl Run {
    fn check(&mut self, name: &str, passed: bool, what: String) {
        let mark = if passed { " " } else { "!" };
        println!("{mark} {name:<21} {what}");
        self.failed += u32::from(!passed);
    }

    fn finish(self) -> Result<(), BoxError> {
        if self.failed > 0 {
            return Err(format!("{} checks failed; they are marked with `!`", self.failed).into());
        }
        println!("\nAll checks passed.");
        Ok(())
    }
}
