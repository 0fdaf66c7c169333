//! Responses of the token endpoint.

use std::borrow::Cow;
use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use serde_json::Value;

use super::transport::{Answer, MAX_BODY};
use crate::clock::UnixTime;
use crate::presentable::{bounded, json_fault, presentable};
use crate::source::retry_after::retry_after;
use crate::token::{FetchSvidError, FetchSvidReason, OAuthError};

/// An exchange that returned no access token.
pub(super) struct Failure {
    /// One of `EXCHANGE_OUTCOMES`.
    pub(super) outcome: &'static str,
    pub(super) error: FetchSvidError,
}

impl Failure {
    pub(super) fn new(
        outcome: &'static str,
        reason: FetchSvidReason,
        text: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            outcome,
            error: FetchSvidError::new(reason, text),
        }
    }

    fn with(mut self, error: OAuthError) -> Self {
        self.error = self.error.with_oauth(error);
        self
    }
}

/// A successful response (RFC 6749 section 5.1).
pub(super) struct Granted {
    pub(super) access_token: String,
    /// Its `expires_in`, if it has one.
    pub(super) lifetime: Option<Duration>,
}

#[derive(Deserialize)]
struct Success {
    access_token: String,
    token_type: String,
    expires_in: Option<Value>,
}

/// An error response (RFC 6749 section 5.2).
#[derive(Deserialize)]
struct ErrorBody {
    error: String,
    error_description: Option<String>,
}

/// Reads a response of `endpoint`. Texts of the server are shown without `secrets`.
pub(super) fn read(
    answer: &Answer,
    endpoint: &str,
    secrets: &[&str],
    now: UnixTime,
) -> Result<Granted, Failure> {
    let Answer {
        status,
        headers,
        body,
        redirected,
    } = answer;
    let mut oauth = OAuthError {
        status: status.as_u16(),
        error: None,
        description: None,
        retry_after: None,
    };
    if *redirected || status.is_redirection() {
        let text = format!(
            "token endpoint {endpoint} redirects to another URL: the JWT-SVID was not sent there; \
             set the final URL as `token_endpoint`"
        );
        return Err(Failure::new("redirect", FetchSvidReason::Other, text).with(oauth));
    }
    if status.is_success() {
        let granted = body
            .as_deref()
            .ok_or_else(|| format!("it has more than {MAX_BODY} bytes").into())
            .and_then(success);
        return granted.map_err(|why: Cow<'static, str>| {
            let text = format!("the response of token endpoint {endpoint} is unacceptable: {why}");
            Failure::new("unacceptable", FetchSvidReason::Unacceptable, text).with(oauth)
        });
    }
    let said: Option<ErrorBody> = body
        .as_deref()
        .and_then(|body| serde_json::from_slice(body).ok());
    if let Some(said) = said {
        oauth.error = Some(clean(&said.error, secrets, 64));
        let description = said.error_description.as_deref();
        oauth.description = description.map(|text| clean(text, secrets, usize::MAX));
    }
    oauth.retry_after = retry_after(headers, now);
    let (outcome, reason, fix) = class(oauth.error(), *status);
    let mut text = format!(
        "token endpoint {endpoint} responded with status {}",
        oauth.status
    );
    if let Some(error) = oauth.error() {
        text = format!("{text} and error `{error}`");
    }
    if let Some(description) = oauth.description() {
        text = format!("{text} ({description})");
    }
    if !fix.is_empty() {
        text = format!("{text}: {fix}");
    }
    Err(Failure::new(outcome, reason, text).with(oauth))
}

/// The class of an error response, and how to fix it.
fn class(error: Option<&str>, status: StatusCode) -> (&'static str, FetchSvidReason, &'static str) {
    use FetchSvidReason::{Denied, InvalidRequest, Other, Unavailable};
    const BUSY: (&str, FetchSvidReason, &str) =
        ("unavailable", Unavailable, "the server is unavailable");
    match error {
        // Checked before the error code, because servers send any code with these.
        _ if status == StatusCode::TOO_MANY_REQUESTS => BUSY,
        Some("invalid_client") => (
            "invalid-client",
            Denied,
            "the server does not accept the JWT-SVID; register its SPIFFE ID as a client there, \
             let the server trust our trust domain, and check that `issuer` is the issuer that the \
             server expects as the only `aud`",
        ),
        Some("invalid_grant") => (
            "invalid-grant",
            Denied,
            "the server does not accept the subject token; check its `aud` and that the server \
             trusts its issuer",
        ),
        Some("unauthorized_client" | "access_denied") => (
            "denied",
            Denied,
            "the server does not issue this access token to this client; allow the grant and the \
             audience for the client there",
        ),
        Some("invalid_scope") => (
            "invalid-scope",
            InvalidRequest,
            "the server does not allow this scope; check `scope`",
        ),
        Some("invalid_target") => (
            "invalid-target",
            InvalidRequest,
            "the server does not know this audience or resource; check the audience of the layer \
             and `target`",
        ),
        Some("invalid_request") => (
            "invalid-request",
            InvalidRequest,
            "the server does not accept the parameters; check `assertion_type`, `client_id` and \
             `target`",
        ),
        Some("unsupported_grant_type") => (
            "invalid-request",
            InvalidRequest,
            "the server does not support the grant; add or remove `token_exchange`",
        ),
        Some("temporarily_unavailable" | "server_error") => BUSY,
        _ if status.is_server_error() => BUSY,
        _ if matches!(status.as_u16(), 401 | 403) => ("denied", Denied, ""),
        _ => ("other", Other, ""),
    }
}

fn success(body: &[u8]) -> Result<Granted, Cow<'static, str>> {
    const EXPECTED: &str = "`access_token` and `token_type` are expected as strings";
    let read: Success =
        serde_json::from_slice(body).map_err(|error| json_fault(&error, EXPECTED))?;
    if !read.token_type.eq_ignore_ascii_case("bearer") {
        return Err(
            "its `token_type` is not Bearer, and only Bearer tokens can be sent; configure the \
                    server to issue Bearer tokens to this client"
                .into(),
        );
    }
    let lifetime = lifetime(read.expires_in.as_ref())?;
    Ok(Granted {
        access_token: read.access_token,
        lifetime,
    })
}

/// The value of `expires_in`. A string of digits is accepted, since some servers send one.
fn lifetime(value: Option<&Value>) -> Result<Option<Duration>, &'static str> {
    const NOT_A_NUMBER: &str = "its `expires_in` is not a number of seconds";
    let secs = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Number(number)) => match (number.as_u64(), number.as_f64()) {
            (Some(secs), _) => secs,
            // A conversion to an integer saturates, and a negative one is 0.
            (None, Some(secs)) => secs as u64,
            (None, None) => return Err(NOT_A_NUMBER),
        },
        Some(Value::String(text)) => {
            if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(NOT_A_NUMBER);
            }
            text.parse().unwrap_or(u64::MAX)
        }
        Some(_) => return Err(NOT_A_NUMBER),
    };
    if secs == 0 {
        return Err("its `expires_in` is not positive: the token has already expired");
    }
    Ok(Some(Duration::from_secs(secs)))
}

/// Makes a text of the server or of the HTTP client safe for logs: redacts it if it contains one of
/// these secrets, also as it is encoded in a form, or a part of one; cuts it at `len` bytes.
pub(super) fn clean(text: &str, secrets: &[&str], len: usize) -> Box<str> {
    const SHORTEST: usize = 12;
    let leaks = secrets.iter().any(|secret| {
        let encoded: String = form_urlencoded::byte_serialize(secret.as_bytes()).collect();
        let mut parts = secret.split('.').filter(|part| part.len() >= SHORTEST);
        text.contains(secret) || text.contains(&encoded) || parts.any(|part| text.contains(part))
    });
    if leaks {
        return "[redacted]".into();
    }
    bounded(&presentable(text), len).into()
}
