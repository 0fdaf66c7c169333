//! A GET as curl would do it, signed with a JWT-SVID of the running agent.
//!
//! ```text
//! cargo run --example call -- --audience AUD [--spiffe-id ID] [--allow-plaintext] [-n N] URL
//! ```
//!
//! The agent is the one that `SPIFFE_ENDPOINT_SOCKET` names. Prints status and body, and of the
//! token only who it is for, who it is from and how long it lives, never the token itself.
//! Exit code: 0 when every call was answered with success, 1 when not, 2 for a wrong command line.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program")]

use std::error::Error;
use std::process::ExitCode;

use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt};
use tower_spiffe::{
    AddJwtSvidLayer, Audience, Clock, JwtSource, Plaintext, SpiffeId, SystemClock, TokenError,
    TokenErrorReason,
};

type BoxError = Box<dyn Error + Send + Sync>;

const USAGE: &str = "usage: call --audience AUD [--spiffe-id ID] [--allow-plaintext] [-n N] URL";

struct Args {
    audience: String,
    spiffe_id: Option<SpiffeId>,
    allow_plaintext: bool,
    times: u32,
    url: reqwest::Url,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    if std::env::args_os().skip(1).eq(["--help"]) {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(error) => {
            eprintln!("call: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(args).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("call: {}", told(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// The error in words: what a token could not be had for says all of it, others leave the cause to
/// their sources.
fn told(error: &(dyn Error + 'static)) -> String {
    if let Some(token) = TokenError::find(error) {
        let hint = match token.reason() {
            TokenErrorReason::Plaintext => " (here: --allow-plaintext)",
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

async fn run(args: Args) -> Result<bool, BoxError> {
    let source = JwtSource::new().await?;
    let svid = source
        .get_jwt_svid_with_id([&args.audience], args.spiffe_id.as_ref())
        .await?;
    let left = svid
        .expires_at()
        .saturating_since(SystemClock::shared().now())
        .as_secs();
    println!(
        "token: sub {}, aud {:?}, {left} s left",
        svid.spiffe_id(),
        svid.audiences()
    );

    let origin = args.url.origin().ascii_serialization();
    let mut layer = AddJwtSvidLayer::new(
        source.clone(),
        Audience::fixed(&args.audience).for_origin(&origin)?,
    )
    // Rather no call than one without a token.
    .strict();
    if let Some(id) = args.spiffe_id {
        layer = layer.spiffe_id(id);
    }
    if args.allow_plaintext {
        layer = layer.allow_plaintext(Plaintext::Any);
    }
    // A redirect may lead to a host that must not see this token.
    let http = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .build()?;
    let mut client = layer.layer(http);

    let mut all_well = true;
    for _ in 0..args.times {
        let started = Instant::now();
        let request = reqwest::Request::new(reqwest::Method::GET, args.url.clone());
        let response = client.ready().await?.call(request).await?;
        let status = response.status();
        all_well &= status.is_success();
        let challenge = response
            .headers()
            .get(reqwest::header::WWW_AUTHENTICATE)
            .map(|value| format!(", {}", String::from_utf8_lossy(value.as_bytes())))
            .unwrap_or_default();
        let body = response.text().await?;
        println!("{status} in {:.1?}{challenge}", started.elapsed());
        if !body.is_empty() {
            println!("{body}");
        }
    }
    source.shutdown().await;
    Ok(all_well)
}

impl Args {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let (mut audience, mut spiffe_id, mut allow_plaintext, mut times, mut url) =
            (None, None, false, 1, None);
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} wants a value"));
            match arg.as_str() {
                "--audience" => audience = Some(value()?),
                "--spiffe-id" => {
                    let text = value()?;
                    spiffe_id = Some(
                        text.parse()
                            .map_err(|e| format!("--spiffe-id {text}: {e}"))?,
                    );
                }
                "--allow-plaintext" => allow_plaintext = true,
                "-n" => {
                    let text = value()?;
                    times = text.parse().map_err(|e| format!("-n {text}: {e}"))?;
                }
                _ if arg.starts_with('-') => return Err(format!("{arg} is not known")),
                _ if url.is_some() => return Err(format!("one URL only; {arg} is a second")),
                _ => url = Some(arg.parse().map_err(|e| format!("{arg}: {e}"))?),
            }
        }
        Ok(Self {
            audience: audience.ok_or("--audience is missing: the service that the call is for")?,
            spiffe_id,
            allow_plaintext,
            times,
            url: url.ok_or("the URL is missing")?,
        })
    }
}
