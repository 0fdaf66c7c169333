//! Set-up of each library as its documentation recommends.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::marker::PhantomData;
use std::task::{Context, Poll};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::FutureExt as _;
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response};
use serde::Deserialize;
use tower_spiffe::bundle::{Algorithm, FixedBundles, JwtBundle, JwtBundleSet};
use tower_spiffe::server::{Allow, ValidateJwtSvidLayer};
use tower_spiffe::{TrustDomain, Validator};

use crate::keys::{AUDIENCE, Signer, TRUST_DOMAIN};

/// The claims that users of jsonwebtoken define to read the caller.
#[derive(Debug, Clone, Deserialize)]
#[allow(dead_code, reason = "only deserialization is measured")]
pub struct Claims {
    pub sub: String,
    pub aud: Vec<String>,
    pub exp: u64,
}

// === tower-spiffe ===

pub fn our_bundle(trust_domain: &str, jwks: &str) -> JwtBundle {
    JwtBundle::from_jwks(TrustDomain::parse(trust_domain).unwrap(), jwks.as_bytes()).unwrap()
}

pub fn our_bundles(signer: &Signer) -> JwtBundleSet {
    JwtBundleSet::from_iter([our_bundle(TRUST_DOMAIN, &signer.jwks())])
}

pub fn validator(bundles: &JwtBundleSet) -> Validator {
    Validator::builder(FixedBundles::new(bundles.clone()))
        .audience(AUDIENCE)
        .build()
        .unwrap()
}

pub fn our_layer(validator: Validator) -> ValidateJwtSvidLayer {
    ValidateJwtSvidLayer::required(validator, Allow::trust_domain(TRUST_DOMAIN).unwrap())
}

// === spiffe ===

pub fn spiffe_bundle(trust_domain: &str, jwks: &str) -> spiffe::JwtBundle {
    let trust_domain = spiffe::TrustDomain::new(trust_domain).unwrap();
    spiffe::JwtBundle::from_jwt_authorities(trust_domain, jwks.as_bytes()).unwrap()
}

pub fn spiffe_bundles(signer: &Signer) -> spiffe::JwtBundleSet {
    let mut bundles = spiffe::JwtBundleSet::new();
    bundles.add_bundle(spiffe_bundle(TRUST_DOMAIN, &signer.jwks()));
    bundles
}

// === jsonwebtoken ===

/// A key and a validation, both created once.
pub struct Jsonwebtoken {
    key: jsonwebtoken::DecodingKey,
    /// The same key, by its ID.
    keys: HashMap<String, jsonwebtoken::DecodingKey>,
    validation: jsonwebtoken::Validation,
}

impl Jsonwebtoken {
    /// Returns `None` if jsonwebtoken does not support the algorithm.
    pub fn new(signer: &Signer) -> Option<Self> {
        Self::with_audiences(signer, &[AUDIENCE])
    }

    pub fn with_audiences(signer: &Signer, audiences: &[&str]) -> Option<Self> {
        let algorithm = signer.algorithm.as_str().parse().ok()?;
        let jwk = serde_json::from_value(signer.jwk()).ok()?;
        let mut validation = jsonwebtoken::Validation::new(algorithm);
        validation.set_audience(audiences);
        let key = jsonwebtoken::DecodingKey::from_jwk(&jwk).ok()?;
        Some(Self {
            keys: HashMap::from([(signer.key_id.clone(), key.clone())]),
            key,
            validation,
        })
    }

    pub fn verify(&self, token: &str) -> jsonwebtoken::errors::Result<Claims> {
        jsonwebtoken::decode(token, &self.key, &self.validation).map(|data| data.claims)
    }

    /// Looks up the key by the token's `kid`, as servers with several keys do.
    pub fn verify_by_kid(&self, token: &str) -> Option<Claims> {
        let header = jsonwebtoken::decode_header(token).ok()?;
        let key = self.keys.get(&header.kid?)?;
        let data = jsonwebtoken::decode(token, key, &self.validation).ok()?;
        Some(data.claims)
    }
}

// === jwt-authorizer ===

pub type JwtAuthorizer = jwt_authorizer::Authorizer<Claims>;

pub fn jwt_authorizer(signer: &Signer) -> Option<JwtAuthorizer> {
    if signer.algorithm == Algorithm::ES512 {
        return None;
    }
    jwt_authorizer::AuthorizerBuilder::from_jwks_text(&signer.jwks())
        .validation(jwt_authorizer::Validation::new().aud(&[AUDIENCE]))
        .build()
        .now_or_never()
        .expect("static keys need no fetch")
        .ok()
}

// === tower-oauth2-resource-server ===

pub type OAuth2Server = tower_oauth2_resource_server::server::OAuth2ResourceServer<Claims>;

pub fn oauth2_server(signer: &Signer) -> Option<OAuth2Server> {
    use tower_oauth2_resource_server::server::OAuth2ResourceServer;
    use tower_oauth2_resource_server::tenant::TenantConfiguration;

    let tenant = TenantConfiguration::static_builder(signer.jwks())
        .audiences(&[AUDIENCE])
        .build()
        .ok()?;
    <OAuth2ResourceServer<Claims>>::builder()
        .add_tenant(tenant)
        .build()
        .now_or_never()
        .expect("static keys need no fetch")
        .ok()
}

// === axum-jwt-auth ===

pub type AxumJwtAuth = axum_jwt_auth::LocalDecoder;

/// Returns `None` if axum-jwt-auth does not support the algorithm.
pub fn axum_jwt_auth(signer: &Signer) -> Option<AxumJwtAuth> {
    let algorithm = signer.algorithm.as_str().parse().ok()?;
    let jwk = serde_json::from_value(signer.jwk()).ok()?;
    let mut validation = jsonwebtoken_10::Validation::new(algorithm);
    validation.set_audience(&[AUDIENCE]);
    AxumJwtAuth::builder()
        .keys(vec![jsonwebtoken_10::DecodingKey::from_jwk(&jwk).ok()?])
        .validation(validation)
        .build()
        .ok()
}

/// Verifies a token and returns its claims.
pub fn decode_by_axum_jwt_auth(
    decoder: &AxumJwtAuth,
    token: &str,
) -> Result<Claims, axum_jwt_auth::Error> {
    use axum_jwt_auth::JwtDecoder as _;

    let decoded = decoder.decode(token).now_or_never();
    let data = decoded.expect("decoding does not wait")?;
    Ok(data.claims)
}

/// The extractor of axum-jwt-auth. Its state is the decoder.
pub type AxumJwtAuthClaims = axum_jwt_auth::Claims<Claims>;

// === aws-lc-rs alone ===

/// The lower limit: one signature check with a parsed key.
pub struct Raw {
    key: aws_lc_rs::signature::ParsedPublicKey,
}

/// The signed text and the signature of a token, split in advance.
pub struct RawToken {
    signed: Box<str>,
    signature: Box<[u8]>,
}

impl Raw {
    pub fn new(signer: &Signer) -> Self {
        Self {
            key: signer.parsed(),
        }
    }

    pub fn verify(&self, token: &RawToken) -> bool {
        self.key
            .verify_sig(token.signed.as_bytes(), &token.signature)
            .is_ok()
    }
}

impl RawToken {
    pub fn new(token: &str) -> Self {
        let (signed, signature) = token.rsplit_once('.').unwrap();
        Self {
            signed: signed.into(),
            signature: URL_SAFE_NO_PAD.decode(signature).unwrap().into(),
        }
    }
}

// === The inner service and its requests ===

/// Returns 200 with an empty body of type `R`.
pub struct Bare<R>(PhantomData<fn() -> R>);

impl<R> Bare<R> {
    pub fn new() -> Self {
        Self(PhantomData)
    }
}

impl<R> Clone for Bare<R> {
    fn clone(&self) -> Self {
        Self::new()
    }
}

impl<B, R: Default> tower::Service<Request<B>> for Bare<R> {
    type Response = Response<R>;
    type Error = Infallible;
    type Future = Ready<Result<Response<R>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        drop(request);
        ready(Ok(Response::new(R::default())))
    }
}

pub fn bearer(token: &str) -> HeaderValue {
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).unwrap();
    value.set_sensitive(true);
    value
}

/// Returns a typical request: a few headers, and optionally `authorization`.
pub fn request(authorization: Option<&HeaderValue>) -> Request<String> {
    let mut request = Request::get("https://reports.prod.example/v1/reports/7")
        .header("accept", "application/json")
        .header("user-agent", "peers/1")
        .header("x-request-id", "0123456789abcdef")
        .body(String::new())
        .unwrap();
    if let Some(value) = authorization {
        request.headers_mut().insert(AUTHORIZATION, value.clone());
    }
    request
}
