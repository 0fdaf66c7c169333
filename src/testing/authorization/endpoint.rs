//! The token endpoint: requests, rules, responses.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use http::{HeaderMap, Method, Request, Response};
use http_body_util::Full;
use serde_json::{Value, json};
use tower_service::Service;

use super::fault::TokenEndpointFault as Fault;
use super::{IssuedToken, State};
use crate::oauth::AssertionType;
use crate::testing::must;

const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

/// The token endpoint of a [`FakeAuthorizationServer`](super::FakeAuthorizationServer), as a tower
/// service.
#[derive(Clone)]
pub struct FakeTokenEndpoint(Arc<State>);

type Answer = Pin<Box<dyn Future<Output = io::Result<Response<Full<Bytes>>>> + Send>>;

impl FakeTokenEndpoint {
    pub(super) fn new(state: Arc<State>) -> Self {
        Self(state)
    }
}

impl Service<Request<Bytes>> for FakeTokenEndpoint {
    type Response = Response<Full<Bytes>>;
    type Error = io::Error;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Bytes>) -> Answer {
        let state = self.0.clone();
        Box::pin(async move { state.answer(request).await })
    }
}

impl fmt::Debug for FakeTokenEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeTokenEndpoint").finish_non_exhaustive()
    }
}

/// An error response: the status, the error, and why.
type Rejection = (u16, &'static str, &'static str);

impl State {
    async fn answer(&self, request: Request<Bytes>) -> io::Result<Response<Full<Bytes>>> {
        let body = String::from_utf8_lossy(request.body()).into_owned();
        let fault = {
            let mut inner = self.inner();
            inner.counts.requests += 1;
            inner.bodies.push(body.clone());
            inner.fault.clone()
        };
        match &fault {
            Some(Fault::Down) => return Err(io::ErrorKind::ConnectionReset.into()),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Slow(delay)) => tokio::time::sleep(*delay).await,
            Some(Fault::Error {
                status,
                error,
                description,
            }) => return Ok(error_response(*status, error, description.as_deref())),
            Some(Fault::Raw {
                status,
                content_type,
                body,
            }) => return Ok(response(*status, content_type, body.clone())),
            Some(Fault::Redirect { status, location }) => {
                let mut response = response(*status, "text/plain", Vec::new());
                let location = must(location.parse(), "the location fits into a header");
                response.headers_mut().insert(LOCATION, location);
                return Ok(response);
            }
            Some(Fault::TooManyRequests(secs)) => {
                let mut response = response(429, "text/plain", Vec::new());
                response.headers_mut().insert(RETRY_AFTER, (*secs).into());
                return Ok(response);
            }
            Some(Fault::Echo) => return Ok(error_response(401, "invalid_client", Some(&body))),
            _ => {}
        }
        match self.issue(request.method(), request.headers(), &body, fault) {
            Ok(granted) => {
                self.inner().counts.granted += 1;
                Ok(granted)
            }
            Err((status, error, description)) => {
                self.inner().counts.rejected += 1;
                Ok(error_response(status, error, Some(description)))
            }
        }
    }

    /// The rules of RFC 6749, RFC 8693 and draft-ietf-oauth-spiffe-client-auth.
    fn issue(
        &self,
        method: &Method,
        headers: &HeaderMap,
        body: &str,
        fault: Option<Fault>,
    ) -> Result<Response<Full<Bytes>>, Rejection> {
        if method != Method::POST {
            return Err((405, "invalid_request", "only POST is allowed"));
        }
        let form = "application/x-www-form-urlencoded";
        if headers.get(CONTENT_TYPE).is_none_or(|is| is != form) {
            return Err((400, "invalid_request", "the body is not a form"));
        }
        let form = Form::read(body)?;
        let assertion_type = form.required("client_assertion_type")?;
        let known = [AssertionType::JwtSpiffe, AssertionType::JwtBearer];
        if known.iter().all(|known| known.as_str() != assertion_type) {
            return Err((401, "invalid_client", "unknown client_assertion_type"));
        }
        let client = self.clients.validate(form.required("client_assertion")?);
        let client = client
            .map_err(|_| (401, "invalid_client", "the client assertion is invalid"))?
            .spiffe_id()
            .clone();
        let is_clients = |client_id: &str| {
            let registered = self.client_ids.get(client_id).map(String::as_str);
            registered.unwrap_or(client_id) == client.as_str()
        };
        if form.get("client_id").is_some_and(|id| !is_clients(id)) {
            return Err((
                401,
                "invalid_client",
                "the client_id belongs to another client",
            ));
        }
        let grant_type = form.required("grant_type")?;
        let (subject, actor) = match grant_type {
            "client_credentials" => (client.clone(), None),
            TOKEN_EXCHANGE => {
                if form.required("subject_token_type")? != JWT {
                    return Err((400, "invalid_request", "unknown subject_token_type"));
                }
                let subject = self.subjects.validate(form.required("subject_token")?);
                let subject = subject
                    .map_err(|_| (400, "invalid_request", "the subject token is invalid"))?;
                let actor = match form.get("actor_token") {
                    None => None,
                    Some(token) => {
                        if form.required("actor_token_type")? != JWT {
                            return Err((400, "invalid_request", "unknown actor_token_type"));
                        }
                        let actor = self.clients.validate(token);
                        let invalid = (400, "invalid_request", "the actor token is invalid");
                        Some(actor.map_err(|_| invalid)?.spiffe_id().clone())
                    }
                };
                (subject.spiffe_id().clone(), actor)
            }
            _ => return Err((400, "unsupported_grant_type", "unknown grant_type")),
        };

        let mut inner = self.inner();
        let now = self.clock.now();
        let issued = IssuedToken {
            client,
            subject,
            actor,
            audiences: form.targets(),
            scope: form.get("scope").map(str::to_owned),
            grant_type: grant_type.to_owned(),
            assertion_type: assertion_type.to_owned(),
            expires_at: now.saturating_add(inner.token_life),
        };
        let same = inner
            .last
            .clone()
            .filter(|_| fault == Some(Fault::SameToken));
        let token = same.unwrap_or_else(new_token);
        inner.issued.insert(token.clone(), issued);
        inner.last = Some(token.clone());

        let mut answer = json!({
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": inner.token_life.as_secs(),
        });
        if grant_type == TOKEN_EXCHANGE {
            set(&mut answer, "issued_token_type", json!(ACCESS_TOKEN));
        }
        match fault {
            Some(Fault::TokenType(kind)) => set(&mut answer, "token_type", json!(kind)),
            Some(Fault::ExpiresIn(expires_in)) => {
                if let Some(members) = answer.as_object_mut() {
                    members.remove("expires_in");
                }
                if let Some(raw) = expires_in {
                    // As text, so that it need not be a number of this JSON library.
                    let text = answer.to_string();
                    let rest = text.strip_prefix('{').unwrap_or_default();
                    let text = format!("{{\"expires_in\":{raw},{rest}");
                    return Ok(response(200, "application/json", text.into_bytes()));
                }
            }
            _ => {}
        }
        Ok(response(200, "application/json", answer.to_string().into()))
    }
}

/// The parameters of a request.
struct Form(Vec<(String, String)>);

impl Form {
    fn read(body: &str) -> Result<Self, Rejection> {
        let all: Vec<_> = form_urlencoded::parse(body.as_bytes())
            .into_owned()
            .collect();
        for (at, (name, _)) in all.iter().enumerate() {
            let again = all.iter().skip(at + 1).any(|(other, _)| other == name);
            if again && !matches!(name.as_str(), "audience" | "resource") {
                return Err((400, "invalid_request", "a parameter is duplicate"));
            }
        }
        Ok(Self(all))
    }

    fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    fn required(&self, name: &'static str) -> Result<&str, Rejection> {
        self.get(name).ok_or((400, "invalid_request", name))
    }

    fn targets(&self) -> Vec<String> {
        let targets = self.0.iter();
        let targets = targets.filter(|(name, _)| matches!(name.as_str(), "audience" | "resource"));
        targets.map(|(_, value)| value.clone()).collect()
    }
}

fn set(answer: &mut Value, name: &str, value: Value) {
    if let Some(members) = answer.as_object_mut() {
        members.insert(name.to_owned(), value);
    }
}

fn new_token() -> String {
    let mut bytes = [0; 24];
    must(SystemRandom::new().fill(&mut bytes), "there is randomness");
    URL_SAFE_NO_PAD.encode(bytes)
}

fn error_response(status: u16, error: &str, description: Option<&str>) -> Response<Full<Bytes>> {
    let mut body = json!({ "error": error });
    if let Some(description) = description {
        set(&mut body, "error_description", json!(description));
    }
    response(status, "application/json", body.to_string().into())
}

fn response(status: u16, content_type: &str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let response = Response::builder()
        .status(status)
        .header(CONTENT_TYPE, content_type)
        .header(CACHE_CONTROL, "no-store")
        .body(Full::new(Bytes::from(body)));
    must(response, "the status and the content type are valid")
}
