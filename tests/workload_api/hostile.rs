//! Invalid responses of an agent.

use tower_spiffe::source::JwtSourceError;
use tower_spiffe::source::JwtSourceErrorReason;
use tower_spiffe::testing::{AgentCall, FakeAgent, Fault, RawSvid};
use tower_spiffe::token::TokenErrorReason;
use tower_spiffe::workload_api::WorkloadApiErrorReason as Reason;
use tower_spiffe::{JwtSource, SpiffeId};

use crate::support::*;

/// Makes the agent return only these from now on.
fn answer(agent: &FakeAgent, svids: impl IntoIterator<Item = RawSvid>) {
    let svids = svids.into_iter().collect();
    agent.fail_call(AgentCall::FetchJwtSvid, Fault::Svids(svids));
}

/// Returns a token for this identity and audience, padded to this size.
fn padded(agent: &FakeAgent, bytes: usize) -> String {
    let token = agent.issuer().token(WEB, AUD);
    token.claim("padding", "x".repeat(bytes)).sign()
}

#[tokio::test]
async fn unexpected_responses_are_rejected() {
    for place in places().await {
        let (agent, client) = (&place.agent, place.client());
        let source = source(&place).await;
        let good = agent.token(WEB, AUD);
        let header_injection = format!("{good}\r\nx-admin: true");
        let folded = good.replacen('.', ".\r\n ", 1);
        let long_id = format!("spiffe://example.org/eyJ{}", "x".repeat(2000));
        let of_long_id = agent.token(&long_id, AUD);
        let raw = RawSvid::new;
        let answers = [
            (vec![], "has no token"),
            (vec![raw(WEB, "", "")], "cannot be used"),
            (vec![raw("", &good, "")], "is not the `sub` of its token"),
            (vec![raw(OPS, &good, "")], "is not the `sub` of its token"),
            (
                vec![raw(WEB, &of_long_id, "")],
                "is not the `sub` of its token",
            ),
            (
                vec![raw(
                    WEB,
                    &agent.token(WEB, "spiffe://example.org/other"),
                    "",
                )],
                "other audiences",
            ),
            (vec![raw(WEB, &two_audiences(agent), "")], "other audiences"),
            (
                vec![raw(WEB, &padded(agent, 1 << 20), "")],
                "longer than 8 KiB",
            ),
            (vec![raw(WEB, &header_injection, "")], "is not base64url"),
            (vec![raw(WEB, &folded, "")], "is not base64url"),
            (vec![raw(WEB, "eyJ\0.eyJ\0.eyJ\0", "")], "is not base64url"),
            (
                vec![raw(WEB, &good.replace('.', " "), "")],
                "three non-empty parts",
            ),
            (
                vec![raw(WEB, &format!("{good}.{good}"), "")],
                "three non-empty parts",
            ),
        ];
        for (svids, says) in answers {
            answer(agent, svids);
            for error in [
                client.fetch_jwt_svid(&request()).await.unwrap_err(),
                client.fetch_jwt_svids(&request()).await.unwrap_err(),
            ] {
                let says = [&place.name, says, "a SPIFFE agent"];
                assert_error(&error, Reason::InvalidAnswer, &says);
                assert!(error.is_retryable(), "the next response may be valid");
            }
            let error = source.fetch_jwt_svid([AUD]).await.unwrap_err();
            assert_source_error(&error, TokenErrorReason::Unacceptable, &[&place.name, says]);
        }
        // Valid, but for another identity.
        answer(agent, [raw(WEB, &good, "")]);
        let by_id = request().with_spiffe_id(SpiffeId::parse(OPS).unwrap());
        let error = client.fetch_jwt_svid(&by_id).await.unwrap_err();
        assert_error(&error, Reason::InvalidAnswer, &[&place.name, OPS, WEB]);
        // The requested one is accepted.
        client.fetch_jwt_svid(&request()).await.unwrap();
    }
}

fn two_audiences(agent: &FakeAgent) -> String {
    let token = agent.issuer().token(WEB, AUD);
    token.audiences([AUD, "spiffe://example.org/other"]).sign()
}

/// Returns a source for this agent.
async fn source(place: &Place) -> JwtSource {
    let builder = JwtSource::builder();
    let builder = match place.name.parse::<tower_spiffe::workload_api::Endpoint>() {
        Ok(endpoint) => builder.endpoint(endpoint),
        Err(_) => builder.connector(place.agent.connector()),
    };
    builder.build().await.unwrap()
}

#[track_caller]
fn assert_source_error(error: &JwtSourceError, reason: TokenErrorReason, says: &[&str]) {
    assert_eq!(
        error.reason(),
        JwtSourceErrorReason::Token(reason),
        "{error}"
    );
    let text = format!("{error:#}");
    for part in says {
        assert!(text.contains(part), "no {part:?} in: {text}");
    }
    for text in [text, format!("{error:?}")] {
        assert!(text.len() < 900 && !text.contains("eyJ"), "{text}");
        assert!(!text.contains(char::is_control), "{text:?}");
    }
}

/// The client does not check expiry: it has no leeway and no retries. The cache, and so the source's
/// `get_jwt_svid`, rejects expired tokens.
#[tokio::test]
async fn expired_token_is_returned_but_not_cached() {
    for place in places().await {
        let agent = &place.agent;
        let expired = agent.issuer().token(WEB, AUD).expired(LIFE).sign();
        answer(agent, [RawSvid::new(WEB, &expired, "")]);
        let svid = place.client().fetch_jwt_svid(&request()).await.unwrap();
        assert!(
            svid.expires_at()
                < tower_spiffe::clock::Clock::now(&*tower_spiffe::clock::SystemClock::shared())
        );
        let error = source(&place).await.get_jwt_svid([AUD]).await.unwrap_err();
        assert_source_error(&error, TokenErrorReason::StaleToken, &["old token"]);
    }
}

#[tokio::test]
async fn wa12_wa23_long_and_duplicate_hints_are_handled() {
    for place in places().await {
        let (agent, client) = (&place.agent, place.client());
        let long = "\r\n\u{1b}[2Jh".repeat(1000);
        let ids = ["a", "b", "c", "d", "e", "f"].map(|path| format!("spiffe://{TD}/{path}"));
        let hints = ["", "twice", "twice", "", &long, "once"];
        answer(
            agent,
            ids.iter()
                .zip(hints)
                .map(|(id, hint)| RawSvid::new(id, &agent.token(id, AUD), hint)),
        );
        let all = client.fetch_jwt_svids(&request()).await.unwrap();
        let kept: Vec<_> = all
            .iter()
            .map(|svid| (svid.spiffe_id().as_str(), svid.hint()))
            .collect();
        let expected = [
            (&*ids[0], ""),
            (&*ids[1], "twice"),
            (&*ids[3], ""),
            (&*ids[4], ""),
            (&*ids[5], "once"),
        ];
        assert_eq!(kept, expected, "{}", place.name);
        for (hint, id) in [("twice", &ids[1]), ("once", &ids[5])] {
            let by_hint = request().with_hint(hint).unwrap();
            let svid = client.fetch_jwt_svid(&by_hint).await.unwrap();
            assert_eq!(svid.spiffe_id().as_str(), id);
        }
        let by_long = request().with_hint(&long).unwrap();
        let error = client.fetch_jwt_svid(&by_long).await.unwrap_err();
        assert_error(&error, Reason::NoSuchHint, &[&place.name]);
    }
}

/// Agents may have a thousand identities. An invalid one among them affects only calls for all of them
/// or for that identity.
#[tokio::test]
async fn many_identities_keep_order_and_isolate_errors() {
    for place in places().await {
        let (agent, client) = (&place.agent, place.client());
        let entry = |n: usize| {
            let id = format!("spiffe://{TD}/w{n}");
            RawSvid::new(&id, &agent.token(&id, AUD), &format!("h{n}"))
        };
        answer(agent, (0..1000).map(entry));
        let all = client.fetch_jwt_svids(&request()).await.unwrap();
        assert_eq!((all.len(), all[999].hint()), (1000, "h999"));

        let odd = RawSvid::new(OPS, "not a token\r\n", "odd");
        answer(
            agent,
            (0..10).map(entry).chain([odd]).chain((10..20).map(entry)),
        );
        let by_hint = |hint| request().with_hint(hint).unwrap();
        for hint in ["h0", "h19"] {
            client.fetch_jwt_svid(&by_hint(hint)).await.unwrap();
        }
        for error in [
            client.fetch_jwt_svid(&by_hint("odd")).await.unwrap_err(),
            client.fetch_jwt_svids(&request()).await.unwrap_err(),
        ] {
            assert_error(
                &error,
                Reason::InvalidAnswer,
                &[&place.name, "cannot be used"],
            );
        }
    }
}
