//! JB: bundles that change on the stream. Each row ends with a valid token of the last update, which
//! shows that the update has taken effect.

use serde_json::json;
use tower_spiffe::verify::ValidateReason;

use crate::support::*;

const THEIRS: &str = "spiffe://other.example.org/workload";

#[tokio::test(start_paused = true)]
async fn jb_01_added_key_is_used() {
    let mut live = Live::start().await;
    let replay = live.agent.replay();
    let (first, added) = (key("key-1"), key("key-2"));
    live.push(&replay, &[(TD, &[first.jwk()])]).await;
    live.accepts(&first, WORKLOAD);
    live.rejects(&added, WORKLOAD, ValidateReason::KeyUnknown);
    let both = [first.jwk(), added.jwk()];
    live.push(&replay, &[(TD, &both)]).await;
    live.accepts(&added, WORKLOAD);
    live.accepts(&first, WORKLOAD);
}

#[tokio::test(start_paused = true)]
async fn jb_02_removed_key_is_rejected() {
    let mut live = Live::start().await;
    let replay = live.agent.replay();
    let (kept, removed, added) = (key("key-0"), key("key-1"), key("key-2"));
    let before = [kept.jwk(), removed.jwk()];
    live.push(&replay, &[(TD, &before)]).await;
    // Its result is cached when the key is removed.
    let token = removed.sign(&claims(WORKLOAD));
    assert!(live.validator.validate(&token).is_ok());
    let after = [kept.jwk(), added.jwk()];
    live.push(&replay, &[(TD, &after)]).await;
    let error = live.validator.validate(&token).unwrap_err();
    assert_eq!(error.reason(), ValidateReason::KeyUnknown);
    live.accepts(&added, WORKLOAD);
}

#[tokio::test(start_paused = true)]
async fn jb_03_removed_trust_domain_is_rejected() {
    let mut live = Live::start().await;
    let replay = live.agent.replay();
    let (ours, theirs, added) = (key("key-0"), key("other-1"), key("key-1"));
    live.push(&replay, &[(TD, &[ours.jwk()]), (OTHER, &[theirs.jwk()])])
        .await;
    live.accepts(&theirs, THEIRS);
    let keys = [ours.jwk(), added.jwk()];
    live.push(&replay, &[(TD, &keys)]).await;
    live.accepts(&added, WORKLOAD);
    live.rejects(&theirs, THEIRS, ValidateReason::TrustDomainUnknown);
}

#[tokio::test(start_paused = true)]
async fn jb_04_key_is_selected_by_kid() {
    let mut live = Live::start().await;
    let replay = live.agent.replay();
    let keys = [key("key-1"), key("key-2"), key("key-3")];
    let jwks = keys.each_ref().map(|key| key.jwk());
    live.push(&replay, &[(TD, &jwks)]).await;
    for key in &keys {
        live.accepts(key, WORKLOAD);
    }
    // The right key with another key's name.
    let [one, two, _] = keys;
    let wrong = two.with_key_id(&one.key_id);
    live.rejects(&wrong, WORKLOAD, ValidateReason::Signature);
}

#[tokio::test(start_paused = true)]
async fn jb_05_key_of_another_use_is_ignored() {
    let mut live = Live::start().await;
    let replay = live.agent.replay();
    let (good, other) = (key("key-1"), key("key-2"));
    let mut jwk = other.jwk();
    jwk["use"] = json!("x509-svid");
    live.push(&replay, &[(TD, &[jwk, good.jwk()])]).await;
    live.accepts(&good, WORKLOAD);
    live.rejects(&other, WORKLOAD, ValidateReason::KeyUnknown);
}

/// This part of the row is optional and fails: SPIRE sets no `use` in the Workload API's bundles, so a
/// client that ignores such keys cannot be used with SPIRE.
#[tokio::test(start_paused = true)]
async fn jb_05_key_without_use_is_used() {
    let mut live = Live::start().await;
    let replay = live.agent.replay();
    let signer = key("key-1");
    assert!(signer.jwk().get("use").is_none());
    live.push(&replay, &[(TD, &[signer.jwk()])]).await;
    live.accepts(&signer, WORKLOAD);
}

#[tokio::test(start_paused = true)]
async fn jb_06_unknown_key_type_is_ignored_alone() {
    let mut live = Live::start().await;
    let replay = live.agent.replay();
    let (before, after) = (key("key-1"), key("key-2"));
    let unknown = json!({"kty": "UNKNOWN", "use": "jwt-svid", "kid": "key-x", "k": "AQAB"});
    let keys = [before.jwk(), unknown, after.jwk()];
    live.push(&replay, &[(TD, &keys)]).await;
    live.accepts(&before, WORKLOAD);
    live.accepts(&after, WORKLOAD);
}

#[tokio::test(start_paused = true)]
async fn jb_07_empty_bundle_trusts_nothing() {
    let mut live = Live::start().await;
    let replay = live.agent.replay();
    let (ours, theirs) = (key("key-1"), key("other-1"));
    live.push(&replay, &[(TD, &[ours.jwk()])]).await;
    live.accepts(&ours, WORKLOAD);
    live.push(&replay, &[(TD, &[]), (OTHER, &[theirs.jwk()])])
        .await;
    live.accepts(&theirs, THEIRS);
    live.rejects(&ours, WORKLOAD, ValidateReason::KeyUnknown);
}

#[tokio::test(start_paused = true)]
async fn jb_08_federated_token_is_accepted() {
    let mut live = Live::start().await;
    let replay = live.agent.replay();
    let (ours, theirs) = (key("key-1"), key("key-1"));
    live.push(&replay, &[(TD, &[ours.jwk()]), (OTHER, &[theirs.jwk()])])
        .await;
    live.accepts(&theirs, THEIRS);
    live.accepts(&ours, WORKLOAD);
    // Equal key IDs: each trust domain verifies with its own key.
    live.rejects(&theirs, WORKLOAD, ValidateReason::Signature);
}
