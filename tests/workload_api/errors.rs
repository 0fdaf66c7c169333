//! What an agent that is there answers, and what is made of it.

use tower_spiffe::testing::{AgentCall, Fault};
use tower_spiffe::token::GrpcCode;
use tower_spiffe::workload_api::WorkloadApiErrorReason as Reason;

use crate::support::*;

#[tokio::test]
async fn ep12_to_ep14_each_status_is_passed_on_with_where_and_what_to_do() {
    for place in places().await {
        let client = place.client();
        let token = place.agent.token(WEB, AUD);
        for (code, reason, mend) in [
            (GrpcCode::Unavailable, Reason::Unavailable, "its log"),
            (
                GrpcCode::PermissionDenied,
                Reason::PermissionDenied,
                "registration entry",
            ),
            (
                GrpcCode::Unimplemented,
                Reason::Unimplemented,
                "JWT profile",
            ),
            (GrpcCode::Internal, Reason::Status, "its log"),
            (GrpcCode::ResourceExhausted, Reason::Status, "its log"),
        ] {
            place.agent.fail(Fault::Refuse(code));
            for error in failures(&client, &token).await {
                told(&error, reason, &[&place.name, &code.to_string(), mend]);
                assert_eq!(error.code(), Some(code));
            }
        }
        // Its meaning hangs on the call.
        place.agent.fail(Fault::Refuse(GrpcCode::InvalidArgument));
        let [fetch, validate, bundles] = failures(&client, &token).await;
        for error in [fetch, bundles] {
            let says = [&place.name, "workload.spiffe.io", "between"];
            told(&error, Reason::InvalidArgument, &says);
        }
        let says = [&place.name, "refuses the token"];
        told(&validate, Reason::InvalidArgument, &says);
        assert_eq!(place.agent.counts().connections, 1);
    }
}

#[tokio::test]
async fn wa30_a_refused_token_is_final_for_it_and_says_why_without_it() {
    for place in places().await {
        let client = place.client();
        let good = place.agent.token(WEB, AUD);
        let tampered = format!("{}AAAA", &good[..good.len() - 4]);
        let elsewhere = place.agent.token(WEB, "spiffe://example.org/other");
        let expired = place.agent.issuer().token(WEB, AUD).expired(LIFE).sign();
        for bad in [&tampered, &elsewhere, &expired, "eyJ", "\r\n"] {
            let error = client.validate_jwt_svid(AUD, bad).await.unwrap_err();
            told(
                &error,
                Reason::InvalidArgument,
                &[&place.name, "refuses the token"],
            );
            assert!(!error.is_retryable());
            assert_eq!(error.code(), Some(GrpcCode::InvalidArgument));
        }
        client.validate_jwt_svid(AUD, &good).await.unwrap();
    }
}

#[tokio::test]
async fn what_no_agent_could_answer_is_not_asked() {
    for place in places().await {
        let client = place.client();
        for (audience, token, mend) in [
            ("", "eyJ.e30.c2ln", "name the service"),
            (AUD, "", "give the one that the caller sent"),
        ] {
            let error = client.validate_jwt_svid(audience, token).await.unwrap_err();
            told(
                &error,
                Reason::InvalidRequest,
                &[&place.name, "was not asked", mend],
            );
            assert!(!error.is_retryable());
        }
        assert_eq!(place.agent.counts().connections, 0);
    }
}

#[tokio::test]
async fn a_hint_that_nobody_has_is_named_in_bounds() {
    for place in places().await {
        let client = place.client();
        let long = format!("eyJ{}\r\n", "\u{1b}".repeat(2000));
        for (hint, shown) in [("billing", "\"billing\""), (&long, "[redacted]")] {
            let by_hint = request().with_hint(hint).unwrap();
            let error = client.fetch_jwt_svid(&by_hint).await.unwrap_err();
            let says = [&place.name, shown, "registration entry"];
            told(&error, Reason::NoSuchHint, &says);
            assert!(error.is_retryable(), "it may be given yet");
        }
    }
}

#[tokio::test]
async fn a_message_that_is_too_large_says_what_can_be_done_about_it() {
    for place in places().await {
        let client = place.builder().max_message_bytes(1 << 20).build().unwrap();
        place.agent.fail(Fault::Oversized(2 << 20));
        let fetch = client.fetch_jwt_svid(&request()).await.unwrap_err();
        let says = [&place.name, "larger than allowed", "issuer"];
        told(&fetch, Reason::MessageTooLarge, &says);
        let mut stream = client.fetch_jwt_bundles().await.unwrap();
        let says = [&place.name, "larger than allowed", "`max_message_bytes`"];
        told(
            &stream.message().await.unwrap_err(),
            Reason::MessageTooLarge,
            &says,
        );
    }
}

#[tokio::test]
async fn what_is_no_message_is_an_invalid_answer() {
    for place in places().await {
        let client = place.client();
        place.agent.fail(Fault::NotProtobuf);
        let fetch = client.fetch_jwt_svid(&request()).await.unwrap_err();
        let validate = client.validate_jwt_svid(AUD, "eyJ").await.unwrap_err();
        let mut stream = client.fetch_jwt_bundles().await.unwrap();
        let bundles = stream.message().await.unwrap_err();
        for error in [fetch, validate, bundles] {
            let says = [&place.name, "cannot be read", "no Workload API"];
            told(&error, Reason::InvalidAnswer, &says);
        }
        // Rubbish in a message that is one.
        place
            .agent
            .fail_call(AgentCall::ValidateJwtSvid, Fault::Garbage);
        let validate = client.validate_jwt_svid(AUD, "eyJ").await.unwrap_err();
        let says = [&place.name, "no SPIFFE ID", "the SPIFFE agent?"];
        told(&validate, Reason::InvalidAnswer, &says);
    }
}
