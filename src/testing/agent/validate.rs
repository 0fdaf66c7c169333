//! The validation of tokens by the agent.

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value as ProtoValue};
use serde_json::Value;
use tonic::Status;

use super::state::Agent;
use crate::bundle::{FixedBundles, JwtBundle, JwtBundleSet};
use crate::identity::TrustDomain;
use crate::verify::Validator;
use crate::workload_api::pb::ValidateJwtsvidResponse;

/// The claims that SPIFFE defines. For tokens of other trust domains, the agent returns only these.
const DEFINED: [&str; 3] = ["sub", "aud", "exp"];

/// Validates with the bundles that the agent serves. The caller does not need an identity.
pub(super) fn validate(
    agent: &Agent,
    audience: &str,
    token: &str,
) -> Result<ValidateJwtsvidResponse, Status> {
    let rejected = |error: &dyn std::fmt::Display| Status::invalid_argument(error.to_string());
    let validator = Validator::builder(FixedBundles::new(bundles(agent)))
        .audience(audience)
        .allow_unknown_headers(true)
        .clock(agent.clock.clone())
        .no_cache()
        .build()
        .map_err(|error| rejected(&error))?;
    let svid = validator
        .validate(token)
        .map_err(|error| rejected(&error))?;

    let own = svid.spiffe_id().is_member_of(agent.issuer.trust_domain());
    let claims: serde_json::Map<String, Value> = svid.claims().map_err(|error| rejected(&error))?;
    let fields = claims
        .into_iter()
        .filter(|(name, _)| own || DEFINED.contains(&name.as_str()))
        .map(|(name, value)| match (name.as_str(), value) {
            // The agent always returns a list.
            ("aud", one @ Value::String(_)) => (name, proto(Value::Array(vec![one]))),
            (_, value) => (name, proto(value)),
        })
        .collect();
    Ok(ValidateJwtsvidResponse {
        spiffe_id: svid.spiffe_id().to_string(),
        claims: Some(Struct { fields }),
    })
}

/// The agent's own bundle, which is always included, and those that it publishes.
fn bundles(agent: &Agent) -> JwtBundleSet {
    let published = agent.publication().bundles.unwrap_or_default();
    published
        .iter()
        .filter_map(|(name, jwks)| {
            let trust_domain = TrustDomain::parse(name.strip_prefix("spiffe://")?).ok()?;
            JwtBundle::from_jwks(trust_domain, jwks).ok()
        })
        .chain([agent.issuer.bundle()])
        .collect()
}

fn proto(value: Value) -> ProtoValue {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(truth) => Kind::BoolValue(truth),
        // All numbers of a `Struct` are doubles.
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(all) => Kind::ListValue(ListValue {
            values: all.into_iter().map(proto).collect(),
        }),
        Value::Object(members) => Kind::StructValue(Struct {
            fields: members
                .into_iter()
                .map(|(name, value)| (name, proto(value)))
                .collect(),
        }),
    };
    ProtoValue { kind: Some(kind) }
}
