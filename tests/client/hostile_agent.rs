//! A malicious agent, with a source and the layer: a failed call, and nothing is sent.

use std::convert::Infallible;
use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{Request, Response};
use tower::{ServiceExt, service_fn};
use tower_spiffe::client::{AddJwtSvid, Audience, UnboundAudience};
use tower_spiffe::clock::UnixTime;
use tower_spiffe::testing::{Issuer, PausedClock};
use tower_spiffe::token::{TokenError, TokenErrorReason};
use tower_spiffe::{JwtSource, SpiffeId};

use crate::layer::to;
use crate::raw_agent::RawAgent;
use crate::support::{START, secs};

const WEB: &str = "spiffe://x/web";
const ADMIN: &str = "spiffe://x/admin";

struct Deployment {
    raw: RawAgent,
    source: JwtSource,
    issuer: Issuer,
}

async fn deployment() -> Deployment {
    let clock = Arc::new(PausedClock::new(UnixTime::from_secs(START)));
    let raw = RawAgent::default();
    let source = JwtSource::builder()
        .connector(raw.connector())
        .clock(clock.clone())
        .build_lazy()
        .unwrap();
    let issuer = Issuer::with_clock("x", clock).unwrap();
    Deployment {
        raw,
        source,
        issuer,
    }
}

fn audience() -> UnboundAudience {
    Audience::fixed("a")
}

/// Returns the header that is sent, or the error.
async fn sent(deployment: &Deployment, audience: Audience) -> Result<String, TokenError> {
    let echo = service_fn(|request: Request<()>| async move {
        let token = request.headers()[AUTHORIZATION].to_str().unwrap();
        Ok::<_, Infallible>(Response::new(token.to_owned()))
    });
    let client = AddJwtSvid::new(echo, &deployment.source, audience);
    match client.oneshot(to("https://reports/x")).await {
        Ok(response) => Ok(response.into_body()),
        Err(error) => Err(TokenError::find(&*error).unwrap().clone()),
    }
}

#[tokio::test(start_paused = true)]
async fn hostile_responses_are_errors_and_not_sent() {
    let Deployment { issuer, .. } = deployment().await;
    let good = issuer.token(WEB, "a").sign();
    let of_admin = issuer.token(ADMIN, "a").sign();
    let for_b = issuer.token(WEB, "b").sign();
    let for_both = issuer.token(WEB, "a").audiences(["a", "b"]).sign();
    let expired = issuer.token(WEB, "a").expired(secs(60)).sign();
    let endless = issuer.token(WEB, "a").without_claim("exp").sign();
    let huge = "a".repeat(1 << 20);
    let split = format!("{good}\r\nx-admin: true");
    use TokenErrorReason::{StaleToken, Unacceptable};
    for (what, svids, reason) in [
        ("none", &[][..], Unacceptable),
        (
            "second token of another identity",
            &[(WEB, of_admin.as_str(), "")],
            Unacceptable,
        ),
        (
            "first token of another identity",
            &[(ADMIN, good.as_str(), "")],
            Unacceptable,
        ),
        (
            "another audience",
            &[(WEB, for_b.as_str(), "")],
            Unacceptable,
        ),
        (
            "more audiences",
            &[(WEB, for_both.as_str(), "")],
            Unacceptable,
        ),
        ("expired", &[(WEB, expired.as_str(), "")], StaleToken),
        (
            "without expiry",
            &[(WEB, endless.as_str(), "")],
            Unacceptable,
        ),
        ("1 MiB", &[(WEB, huge.as_str(), "")], Unacceptable),
        ("two lines", &[(WEB, split.as_str(), "")], Unacceptable),
    ] {
        let deployment = deployment().await;
        deployment.raw.answer(svids);
        let bound = audience().for_origin("https://reports").unwrap();
        let error = sent(&deployment, bound).await.expect_err(what);
        assert_eq!(error.reason(), reason, "{what}: {error}");
        let text = format!("{error} {error:?}");
        assert!(!text.contains("eyJ") && text.len() < 1500, "{what}: {text}");
        assert_eq!(deployment.raw.asked().len(), 1, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn first_token_is_sent_and_matches_the_id() {
    let deployment = deployment().await;
    let (first, second) = (
        deployment.issuer.token(WEB, "a").sign(),
        deployment.issuer.token(WEB, "a").claim("n", 2).sign(),
    );
    deployment
        .raw
        .answer(&[(WEB, &first, "x"), (WEB, &second, "x")]);
    let bound = audience().for_origin("https://reports").unwrap();
    assert_eq!(
        sent(&deployment, bound).await.unwrap(),
        format!("Bearer {first}")
    );

    let admin: SpiffeId = ADMIN.parse().unwrap();
    let bound = audience().for_origin("https://reports").unwrap();
    let error = sent(&deployment, bound.spiffe_id(admin)).await.unwrap_err();
    assert_eq!(error.reason(), TokenErrorReason::Unacceptable, "{error}");
}
