//! An asynchronous policy that queries the Open Policy Agent.

use std::time::Duration;

use http::request::Parts;
use reqwest::Client;
use reqwest::header::CONTENT_TYPE;
use serde::Deserialize;
use tower_spiffe::VerifiedSvid;
use tower_spiffe::server::{
    AsyncDecision, AsyncPolicy, Decision, DecisionFuture, PolicyUnavailable,
};

/// The longest response of OPA, in bytes.
const MAX_RESPONSE: usize = 64 * 1024;

/// Queries the rule at `POST <base>/v1/data/<rule>`, which returns `{"allow": …, "reason": …}`.
pub struct Opa {
    client: Client,
    url: String,
}

impl Opa {
    pub fn new(base: &str, rule: &str) -> Result<Self, reqwest::Error> {
        let client = Client::builder()
            .connect_timeout(Duration::from_secs(1))
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        let url = format!("{base}/v1/data/{rule}");
        Ok(Self { client, url })
    }
}

/// OPA omits `result` if the rule is undefined.
#[derive(Deserialize)]
struct Answer {
    result: Option<RuleResult>,
}

#[derive(Deserialize)]
struct RuleResult {
    allow: bool,
    reason: Option<String>,
}

impl AsyncPolicy for Opa {
    fn decide(&self, caller: Option<&VerifiedSvid>, parts: &Parts) -> DecisionFuture {
        // The input of the decision. It does not contain the token.
        let input = serde_json::json!({ "input": {
            "caller": caller.map(|caller| caller.spiffe_id().as_str()),
            "method": parts.method.as_str(),
            "path": parts.uri.path(),
        }});
        let is_anonymous = caller.is_none();
        let request = self
            .client
            .post(&self.url)
            .header(CONTENT_TYPE, "application/json")
            .body(input.to_string());
        Box::pin(async move {
            let failed = |error: reqwest::Error| PolicyUnavailable::new(error.to_string());
            let mut response = request.send().await.map_err(failed)?;
            if !response.status().is_success() {
                let status = response.status();
                return Err(PolicyUnavailable::new(format!("OPA returned {status}")));
            }
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(failed)? {
                body.extend_from_slice(&chunk);
                if body.len() > MAX_RESPONSE {
                    return Err(PolicyUnavailable::new("the response of OPA is too long"));
                }
            }
            let Ok(Answer { result }) = serde_json::from_slice(&body) else {
                return Err(PolicyUnavailable::new("the response of OPA is malformed"));
            };
            Ok(match result {
                Some(RuleResult { allow: true, .. }) => Decision::Allow.into(),
                _ if is_anonymous => Decision::AuthenticationRequired.into(),
                Some(RuleResult {
                    reason: Some(reason),
                    ..
                }) => AsyncDecision::from(Decision::Deny).because(reason),
                Some(_) => Decision::Deny.into(),
                None => Decision::DenyBecause("the rule is undefined").into(),
            })
        })
    }

    /// The rule depends only on these values.
    fn cache_key(&self, _: Option<&VerifiedSvid>, parts: &Parts) -> Option<String> {
        Some(format!("{} {}", parts.method, parts.uri.path()))
    }
}
