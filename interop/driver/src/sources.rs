//! Sources of tower-spiffe, on its own agents and bundle endpoints and on those of other
//! implementations.

use std::time::Duration;

use serde_json::{Value, json};
use tower_spiffe::source::https::SpiffeBootstrap;
use tower_spiffe::token::{GrpcCode, SvidRequest};
use tower_spiffe::{HttpsBundles, JwtSource, SpiffeId, SvidCache, TrustDomain, Validator};

use crate::{Error, Made, text, text_or_none};

/// Starts a source and waits for its first bundles.
pub(crate) async fn start(made: &mut Made, command: &Value) -> Result<Value, Error> {
    let source = JwtSource::builder()
        .endpoint(text(command, "endpoint")?)
        .initial_sync_timeout(Duration::from_secs(5))
        .reconnect_backoff(Duration::from_millis(20), Duration::from_millis(100));
    let source = match source.build().await {
        Ok(source) => source,
        Err(error) => {
            let code = error.code().map(GrpcCode::as_u8);
            return Ok(json!({ "failed": error.to_string(), "code": code }));
        }
    };
    made.sources
        .insert(text(command, "source")?.to_owned(), source);
    Ok(json!({}))
}

/// Returns the state of the source.
pub(crate) fn state(source: &JwtSource) -> Value {
    let state = source.state();
    let domains: serde_json::Map<String, Value> = state
        .trust_domains
        .iter()
        .map(|domain| {
            let name = domain.trust_domain.name().to_owned();
            (name, json!(domain.key_ids))
        })
        .collect();
    json!({
        "domains": domains,
        "ready": state.is_ready(),
        "withdrawn": state.withdrawn.is_some(),
        "connected": state.connected,
        "reconnects": state.reconnects,
    })
}

/// Fetches a token for the SPIFFE ID or the hint, if there is one.
pub(crate) async fn fetch(source: &JwtSource, command: &Value) -> Result<Value, Error> {
    let audiences: Vec<&str> = match command.get("audiences").and_then(Value::as_array) {
        Some(all) => all.iter().filter_map(Value::as_str).collect(),
        None => vec![text(command, "audience")?],
    };
    if let Some(hint) = text_or_none(command, "hint") {
        let request = SvidRequest::new(&audiences)?.with_hint(hint)?;
        return Ok(match SvidCache::from(source).get(&request).await {
            Ok(svid) => json!({ "token": svid.token(), "id": svid.spiffe_id().to_string() }),
            Err(error) => json!({ "failed": error.to_string() }),
        });
    }
    let svid = match text_or_none(command, "id") {
        Some(id) => {
            let id = SpiffeId::parse(id)?;
            source.fetch_jwt_svid_with_id(&audiences, Some(&id)).await
        }
        None => source.fetch_jwt_svid(&audiences).await,
    };
    Ok(match svid {
        Ok(svid) => json!({
            "token": svid.token(),
            "id": svid.spiffe_id().to_string(),
            "hint": svid.hint(),
        }),
        Err(error) => json!({
            "failed": error.to_string(),
            "code": error.code().map(GrpcCode::as_u8),
        }),
    })
}

/// Validates a token with the source's bundles.
pub(crate) fn check(source: &JwtSource, command: &Value) -> Result<Value, Error> {
    let validator = Validator::builder(source.clone()).audience(text(command, "audience")?);
    crate::tokens::verdict(validator.build()?.validate(text(command, "token")?))
}

/// Validates a token with the bundle of an endpoint: `https_spiffe` if there is a `bootstrap`, else
/// `https_web`.
pub(crate) async fn poll(command: &Value) -> Result<Value, Error> {
    let trust_domain = TrustDomain::parse(text(command, "trust_domain")?)?;
    let url = text(command, "url")?;
    let mut builder = match text_or_none(command, "bootstrap") {
        Some(bootstrap) => {
            let endpoint_id = SpiffeId::parse(text(command, "endpoint_id")?)?;
            let bootstrap = SpiffeBootstrap::text(bootstrap);
            HttpsBundles::https_spiffe(trust_domain, url, endpoint_id, bootstrap)
        }
        None => HttpsBundles::https_web(trust_domain, url),
    };
    if let Some(roots) = text_or_none(command, "roots") {
        builder = builder.add_roots_pem(roots);
    }
    let bundles = builder.initial_sync_timeout(Duration::from_secs(3)).build();
    let bundles = match bundles.await {
        Ok(bundles) => bundles,
        Err(error) => return Ok(json!({ "failed": error.to_string() })),
    };
    let validator = Validator::builder(bundles).audience(text(command, "audience")?);
    crate::tokens::verdict(validator.build()?.validate(text(command, "token")?))
}
