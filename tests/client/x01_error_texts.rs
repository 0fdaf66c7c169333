//! Error texts of the token endpoint: what the server said, and how to fix it.

use tower_spiffe::testing::TokenEndpointFault;

use crate::x01_oauth::World;

const ENDPOINT: &str = "token endpoint https://as.example.org/token responded with status";

#[tokio::test(start_paused = true)]
async fn x01_error_texts_say_how_to_fix_them() {
    let error = TokenEndpointFault::error;
    for (fault, said, fix) in [
        (
            error(401, "invalid_client"),
            "401 and error `invalid_client`",
            "register its SPIFFE ID as a client",
        ),
        (
            error(400, "invalid_grant"),
            "400 and error `invalid_grant`",
            "check its `aud`",
        ),
        (
            error(400, "access_denied"),
            "400 and error `access_denied`",
            "allow the grant",
        ),
        (
            error(400, "invalid_scope"),
            "400 and error `invalid_scope`",
            "check `scope`",
        ),
        (
            error(400, "invalid_target"),
            "400 and error `invalid_target`",
            "the audience of the layer",
        ),
        (
            error(400, "invalid_request"),
            "400 and error `invalid_request`",
            "check `assertion_type`",
        ),
        (
            error(400, "unsupported_grant_type"),
            "400 and error `unsupported_grant_type`",
            "`token_exchange`",
        ),
        (TokenEndpointFault::html(503, ""), "503", "is unavailable"),
    ] {
        let text = text_of(fault).await;
        let begin = format!("{ENDPOINT} {said}");
        assert!(text.contains(&begin), "{text}");
        let (_, rest) = text.split_once(&begin).unwrap();
        let (_, how) = rest.split_once(": ").expect(&text);
        assert!(how.contains(fix), "{text}");
    }
    // No text after the status if there is nothing to fix.
    for (fault, said) in [
        (TokenEndpointFault::html(404, ""), "404"),
        (TokenEndpointFault::html(403, ""), "403"),
        (error(400, "what_is_this"), "400 and error `what_is_this`"),
    ] {
        let text = text_of(fault).await;
        assert!(text.ends_with(&format!("{ENDPOINT} {said}")), "{text}");
    }
}

/// The error of a fetch that this fault fails.
async fn text_of(fault: TokenEndpointFault) -> String {
    let world = World::new().await;
    world.server.fail(fault);
    let error = world.get("api").await.unwrap_err();
    error.fetch_error().unwrap().to_string()
}
