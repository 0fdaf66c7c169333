//! `call`: a GET like curl's, signed with a JWT-SVID from the running agent.

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt};
use tower_spiffe::client::Plaintext;
use tower_spiffe::clock::{Clock, SystemClock};
use tower_spiffe::token::{TokenError, TokenErrorReason};
use tower_spiffe::workload_api::Endpoint;
use tower_spiffe::{AddJwtSvidLayer, Audience, JwtSource, SpiffeId};

use crate::{BoxError, waiting};

/// Call a URL with GET, signed with a token from the agent.
///
/// Uses the agent at SPIFFE_ENDPOINT_SOCKET. Prints the status and the body, and the subject,
/// audiences and remaining lifetime of the token, but never the token itself. Does not follow
/// redirects.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The audience of the token: the service to call
    #[arg(long, value_name = "AUD")]
    audience: String,
    /// The identity to use, if the agent has several
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<SpiffeId>,
    /// Send the token over http:// too
    #[arg(long)]
    allow_plaintext: bool,
    /// The number of calls
    #[arg(short = 'n', value_name = "N", default_value_t = 1)]
    times: u32,
    /// The URL to call
    url: reqwest::Url,
}

const EXAMPLES: &str = "\
Examples:
  tower-spiffe call --audience spiffe://example.org/reports https://reports:8443/health
  tower-spiffe call --audience reports --allow-plaintext -n 3 http://127.0.0.1:8080/

Exit code: 0 if every response has a 2xx status, 1 if not, 2 for an invalid command line.";

/// How long to wait for the agent, as `JwtSource::new` does.
const INITIAL_SYNC: Duration = Duration::from_secs(30);

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn run(args: Args) -> ExitCode {
    match calls(args).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            warn!("call: {}", text(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Returns the text of an error with its causes. The text of a `TokenError` already has its cause.
fn text(error: &(dyn Error + 'static)) -> String {
    if let Some(token) = TokenError::find(error) {
        let hint = match token.reason() {
            TokenErrorReason::Plaintext => " (use --allow-plaintext)",
            _ => "",
        };
        return format!("{token}{hint}");
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Returns a source that has its first bundles.
async fn source(agent: &Endpoint) -> Result<JwtSource, BoxError> {
    let source = JwtSource::builder().build_lazy()?;
    let ready = tokio::time::timeout(INITIAL_SYNC, source.ready());
    let what = || waiting::first_bundles(agent, &source.state());
    match waiting::announced("call", what, ready).await {
        Ok(ready) => ready?,
        Err(_) => {
            let (state, within) = (source.state(), INITIAL_SYNC.as_secs());
            let why = waiting::why(&state);
            return Err(
                format!("no bundles from the agent at {agent} within {within} s: {why}").into(),
            );
        }
    }
    Ok(source)
}

async fn calls(args: Args) -> Result<bool, BoxError> {
    let agent = Endpoint::from_env()?;
    let source = source(&agent).await?;
    let svid = waiting::announced(
        "call",
        || format!("a token for {:?} from the agent at {agent}", args.audience),
        source.get_jwt_svid_with_id([&args.audience], args.spiffe_id.as_ref()),
    )
    .await?;
    let left = svid
        .expires_at()
        .saturating_since(SystemClock::shared().now())
        .as_secs();
    say!(
        "token: sub {}, aud {:?}, {left} s left",
        svid.spiffe_id(),
        svid.audiences().collect::<Vec<_>>()
    );

    let origin = args.url.origin().ascii_serialization();
    let mut audience = Audience::fixed(&args.audience).for_origin(&origin)?;
    if let Some(id) = args.spiffe_id {
        audience = audience.spiffe_id(id);
    }
    // A call without a token is an error.
    let mut layer = AddJwtSvidLayer::new(source.clone(), audience).strict();
    if args.allow_plaintext {
        layer = layer.allow_plaintext(Plaintext::Any);
    }
    // A redirect may lead to a host that must not get this token.
    let http = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .build()?;
    let mut client = layer.layer(http);

    let mut all_succeeded = true;
    for _ in 0..args.times {
        let started = Instant::now();
        let request = reqwest::Request::new(reqwest::Method::GET, args.url.clone());
        let sent = client.ready().await?.call(request);
        let response = waiting::announced("call", || format!("{origin} to respond"), sent).await?;
        let status = response.status();
        all_succeeded &= status.is_success();
        let challenge = response
            .headers()
            .get(reqwest::header::WWW_AUTHENTICATE)
            .map(|value| format!(", {}", String::from_utf8_lossy(value.as_bytes())))
            .unwrap_or_default();
        let rest = || format!("the rest of the response from {origin}");
        let body = waiting::announced("call", rest, response.text()).await?;
        say!("{status} in {:.1?}{challenge}", started.elapsed());
        if !body.is_empty() {
            say!("{body}");
        }
    }
    source.shutdown().await;
    Ok(all_succeeded)
}
