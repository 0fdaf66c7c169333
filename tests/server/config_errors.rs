//! Invalid configuration is an error when a value is built. Its text says how to fix it.

use tower_spiffe::identity::SpiffeIdMatcher;
use tower_spiffe::server::{Allow, GrpcPolicy, ValidateJwtSvidLayer};
use tower_spiffe::verify::{Validator, ValidatorBuilder};

use crate::support::{AUDIENCE, WEB, World};

#[test]
fn each_error_names_its_fix() {
    let world = World::new();
    let validator = |configure: fn(ValidatorBuilder) -> ValidatorBuilder| {
        let builder = configure(Validator::builder(world.bundles.clone()));
        builder.build().unwrap_err().to_string()
    };
    let realm = |text: &str| {
        let validator = world.validator.clone();
        let layer = ValidateJwtSvidLayer::required(validator, Allow::any_trust_domain());
        layer.realm(text).unwrap_err().to_string()
    };
    let none: [&str; 0] = [];
    let any = Allow::any_trust_domain;
    let new = GrpcPolicy::deny_by_default;
    for (error, fix) in [
        (
            validator(|builder| builder),
            "name this service with `.audience(\"spiffe://…\")`",
        ),
        (
            validator(|builder| builder.audience(AUDIENCE).audience("")),
            "use the name that callers request tokens for",
        ),
        (
            validator(|builder| {
                let leeway = std::time::Duration::from_secs(301);
                builder.audience(AUDIENCE).leeway(leeway)
            }),
            "reduce it, or fix the clock skew",
        ),
        (
            validator(|builder| builder.audience(AUDIENCE).algorithms([])),
            "name one, or remove `.algorithms`",
        ),
        (
            validator(|builder| builder.audience(AUDIENCE).max_token_len(0)),
            "remove `.max_token_len`",
        ),
        (realm(""), "name the service, or leave `.realm(…)` out"),
        (realm(&"x".repeat(129)), "use a shorter name"),
        (realm("a\"b"), "use printable ASCII without `\"` and `\\`"),
        (
            Allow::one_of(none).unwrap_err().to_string(),
            "name at least one caller or method, or write `Allow::any_trust_domain()`",
        ),
        (
            Allow::matching(SpiffeIdMatcher::one_of([]))
                .unwrap_err()
                .to_string(),
            "name at least one caller or method, or write `Allow::any_trust_domain()`",
        ),
        (
            new().build().unwrap_err().to_string(),
            "name at least one caller or method, or write `Allow::any_trust_domain()`",
        ),
        (
            Allow::id("").unwrap_err().to_string(),
            "expected `spiffe://<trust domain>/<path>`",
        ),
        (
            Allow::id("https://x/web").unwrap_err().to_string(),
            "must begin with `spiffe://` in lower case",
        ),
        (
            Allow::path_prefix("spiffe://x/web/")
                .unwrap_err()
                .to_string(),
            "remove that slash",
        ),
        (
            Allow::trust_domain(WEB).unwrap_err().to_string(),
            "remove what follows its name",
        ),
        (
            new().public("r.R/M").build().unwrap_err().to_string(),
            "write `/package.Service/Method`",
        ),
        (
            new()
                .public("/r.R/M")
                .method("/r.R/M", any())
                .build()
                .unwrap_err()
                .to_string(),
            "join them with `Allow::or`",
        ),
    ] {
        // The text ends with the fix.
        let wrong = error.strip_suffix(fix);
        let wrong = wrong.unwrap_or_else(|| panic!("{error:?} does not end with {fix:?}"));
        assert!(wrong.len() > 10 && !error.contains('\n'), "{error}");
    }
}
