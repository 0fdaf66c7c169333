//! Error statuses of an agent, and the errors that the client returns.

use tower_spiffe::testing::{AgentCall, Fault};
use tower_spiffe::token::GrpcCode;
use tower_spiffe::workload_api::WorkloadApiErrorReason as Reason;

use crate::support::*;

#[tokio::test]
async fn ep12_to_ep14_statuses_name_place_and_fix() {
    for place in places().await {
        let client = place.client();
        let token = place.agent.token(WEB, AUD);
        for (code, reason, fix) in [
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
                assert_error(&error, reason, &[&place.name, &code.to_string(), fix]);
                assert_eq!(error.code(), Some(code));
            }
        }
        // Its meaning depends on the call.
        place.agent.fail(Fault::Refuse(GrpcCode::InvalidArgument));
        let [fetch, validate, bundles] = failures(&client, &token).await;
        for error in [fetch, bundles] {
            let says = [&place.name, "workload.spiffe.io", "proxy"];
            assert_error(&error, Reason::InvalidArgument, &says);
        }
        let says = [&place.name, "rejects the token"];
        assert_error(&validate, Reason::InvalidArgument, &says);
        assert_eq!(place.agent.counts().connections, 1);
    }
}

#[tokio::test]
async fn wa30_rejected_token_is_a_permanent_error() {
    for place in places().await {
        let client = place.client();
        let good = place.agent.token(WEB, AUD);
        let tampered = format!("{}AAAA", &good[..good.len() - 4]);
        let elsewhere = place.agent.token(WEB, "spiffe://example.org/other");
        let expired = place.agent.issuer().token(WEB, AUD).expired(LIFE).sign();
        for bad in [&tampered, &elsewhere, &expired, "eyJ", "\r\n"] {
            let error = client.validate_jwt_svid(AUD, bad).await.unwrap_err();
            assert_error(
                &error,
                Reason::InvalidArgument,
                &[&place.name, "rejects the token"],
            );
            assert!(!error.is_retryable());
            assert_eq!(error.code(), Some(GrpcCode::InvalidArgument));
        }
        client.validate_jwt_svid(AUD, &good).await.unwrap();
    }
}

#[tokio::test]
async fn invalid_arguments_fail_without_a_call() {
    for place in places().await {
        let client = place.client();
        for (audience, token, fix) in [
            ("", "eyJ.e30.c2ln", "name the service"),
            (AUD, "", "pass the one that the caller sent"),
        ] {
            let error = client.validate_jwt_svid(audience, token).await.unwrap_err();
            assert_error(
                &error,
                Reason::InvalidRequest,
                &[&place.name, "was not called", fix],
            );
            assert!(!error.is_retryable());
        }
        assert_eq!(place.agent.counts().connections, 0);
    }
}

#[tokio::test]
async fn unknown_hint_is_quoted_within_limits() {
    for place in places().await {
        let client = place.client();
        let long = format!("eyJ{}\r\n", "\u{1b}".repeat(2000));
        for (hint, shown) in [("billing", "\"billing\""), (&long, "[redacted]")] {
            let by_hint = request().with_hint(hint).unwrap();
            let error = client.fetch_jwt_svid(&by_hint).await.unwrap_err();
            let says = [&place.name, shown, "registration entry"];
            assert_error(&error, Reason::NoSuchHint, &says);
            assert!(error.is_retryable(), "the hint may be registered later");
        }
    }
}

#[tokio::test]
async fn oversized_message_says_how_to_fix_it() {
    for place in places().await {
        let client = place.builder().max_message_bytes(1 << 20).build().unwrap();
        place.agent.fail(Fault::Oversized(2 << 20));
        let fetch = client.fetch_jwt_svid(&request()).await.unwrap_err();
        let says = [&place.name, "larger than allowed", "issuer"];
        assert_error(&fetch, Reason::MessageTooLarge, &says);
        let mut stream = client.fetch_jwt_bundles().await.unwrap();
        let says = [&place.name, "larger than allowed", "`max_message_bytes`"];
        assert_error(
            &stream.message().await.unwrap_err(),
            Reason::MessageTooLarge,
            &says,
        );
    }
}

#[tokio::test]
async fn malformed_message_is_an_invalid_response() {
    for place in places().await {
        let client = place.client();
        place.agent.fail(Fault::NotProtobuf);
        let fetch = client.fetch_jwt_svid(&request()).await.unwrap_err();
        let validate = client.validate_jwt_svid(AUD, "eyJ").await.unwrap_err();
        let mut stream = client.fetch_jwt_bundles().await.unwrap();
        let bundles = stream.message().await.unwrap_err();
        for error in [fetch, validate, bundles] {
            let says = [&place.name, "cannot be read", "a Workload API"];
            assert_error(&error, Reason::InvalidAnswer, &says);
        }
        // An invalid field in a valid message.
        place
            .agent
            .fail_call(AgentCall::ValidateJwtSvid, Fault::Garbage);
        let validate = client.validate_jwt_svid(AUD, "eyJ").await.unwrap_err();
        let says = [&place.name, "not a SPIFFE ID", "a SPIFFE agent"];
        assert_error(&validate, Reason::InvalidAnswer, &says);
    }
}
