//! The response of the agent to a valid token.

use prost_types::value::Kind;
use prost_types::{Struct, Value};
use serde_json::{Map, Number};

use super::error::{Call, WorkloadApiError};
use super::pb::ValidateJwtsvidResponse;
use crate::identity::SpiffeId;
use crate::presentable::{debug_fields, presentable};

/// A token that the agent validated: the response of `ValidateJWTSVID`.
#[derive(Clone, PartialEq)]
pub struct ValidatedJwtSvid {
    spiffe_id: SpiffeId,
    claims: Map<String, serde_json::Value>,
}

impl ValidatedJwtSvid {
    pub(crate) fn from_answer(
        answer: ValidateJwtsvidResponse,
        place: &str,
    ) -> Result<Self, WorkloadApiError> {
        let invalid =
            |what: String| WorkloadApiError::invalid_answer(Call::ValidateJwtSvid, place, what);
        let spiffe_id = SpiffeId::parse(&answer.spiffe_id).map_err(|error| {
            let shown = presentable(&answer.spiffe_id);
            invalid(format!("\"{shown}\" is not a SPIFFE ID: {error}"))
        })?;
        let claims = answer
            .claims
            .ok_or_else(|| invalid("it has no claims".to_owned()))?;
        let claims = object(claims, DEPTH)
            .ok_or_else(|| invalid("its claims are nested too deeply".to_owned()))?;
        Ok(Self { spiffe_id, claims })
    }

    /// Returns the SPIFFE ID of the token.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    /// Returns the claims of the token. The agent may omit claims that SPIFFE does not define. Numbers
    /// arrive as doubles; integers are converted back.
    pub fn claims(&self) -> &Map<String, serde_json::Value> {
        &self.claims
    }
}

debug_fields!(ValidatedJwtSvid, |it| {
    spiffe_id: it.spiffe_id,
    claims: it.claims.keys().collect::<Vec<_>>(),
});

// The same depth as in serde_json.
const DEPTH: usize = 128;

fn object(fields: Struct, depth: usize) -> Option<Map<String, serde_json::Value>> {
    let depth = depth.checked_sub(1)?;
    fields
        .fields
        .into_iter()
        .map(|(name, value)| Some((name, json(value, depth)?)))
        .collect()
}

fn json(value: Value, depth: usize) -> Option<serde_json::Value> {
    use serde_json::Value as Json;
    Some(match value.kind {
        None | Some(Kind::NullValue(_)) => Json::Null,
        Some(Kind::BoolValue(value)) => Json::Bool(value),
        Some(Kind::StringValue(value)) => Json::String(value),
        Some(Kind::NumberValue(value)) => number(value),
        Some(Kind::StructValue(value)) => Json::Object(object(value, depth)?),
        Some(Kind::ListValue(list)) => {
            let depth = depth.checked_sub(1)?;
            Json::Array(
                list.values
                    .into_iter()
                    .map(|one| json(one, depth))
                    .collect::<Option<_>>()?,
            )
        }
    })
}

fn number(value: f64) -> serde_json::Value {
    // Doubles represent integers exactly up to here.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= EXACT {
        return serde_json::Value::from(value as i64);
    }
    Number::from_f64(value).map_or(serde_json::Value::Null, serde_json::Value::Number)
}

#[cfg(test)]
mod tests {
    use super::super::error::WorkloadApiErrorReason as Reason;
    use super::*;

    const PLACE: &str = "unix:///run/agent.sock";

    fn answer(id: &str, claims: Option<Struct>) -> ValidateJwtsvidResponse {
        ValidateJwtsvidResponse {
            spiffe_id: id.to_owned(),
            claims,
        }
    }

    fn claims(fields: impl IntoIterator<Item = (&'static str, Kind)>) -> Struct {
        let fields = fields.into_iter();
        Struct {
            fields: fields
                .map(|(name, kind)| (name.to_owned(), Value { kind: Some(kind) }))
                .collect(),
        }
    }

    #[test]
    fn wa30_claims_are_json_with_integers() {
        let sent = claims([
            ("exp", Kind::NumberValue(1_790_000_000.0)),
            ("load", Kind::NumberValue(0.5)),
            ("odd", Kind::NumberValue(f64::NAN)),
        ]);
        let got = ValidatedJwtSvid::from_answer(answer("spiffe://x/web", Some(sent)), PLACE)
            .expect("good");
        assert_eq!(got.spiffe_id().as_str(), "spiffe://x/web");
        let shown = serde_json::to_string(got.claims()).expect("json");
        assert_eq!(shown, r#"{"exp":1790000000,"load":0.5,"odd":null}"#);
    }

    #[test]
    fn wa30_every_field_is_mandatory() {
        for bad in [answer("", Some(claims([]))), answer("spiffe://x/web", None)] {
            let error = ValidatedJwtSvid::from_answer(bad, PLACE).expect_err("incomplete");
            assert_eq!(error.reason(), Reason::InvalidAnswer);
        }
    }

    #[test]
    fn deeply_nested_claims_are_an_error() {
        let mut nest = claims([]);
        for _ in 0..1000 {
            nest = claims([("x", Kind::StructValue(nest))]);
        }
        let error = ValidatedJwtSvid::from_answer(answer("spiffe://x/web", Some(nest)), PLACE);
        assert_eq!(error.expect_err("deep").reason(), Reason::InvalidAnswer);
    }
}
