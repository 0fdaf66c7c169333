//! The trust domain, the tokens and the agent of the suite.

use serde_json::{Value, json};
use tower_spiffe::bundle::Algorithm;
use tower_spiffe::clock::UnixTime;
use tower_spiffe::source::{JwtSourceBuilder, SourceUpdates};
use tower_spiffe::testing::{FakeAgent, PausedClock, Replay};
use tower_spiffe::verify::ValidateReason;
use tower_spiffe::{JwtSource, Validator};
use tower_spiffe_test_support::bundles::Bundles;
use tower_spiffe_test_support::clock::HandClock;
use tower_spiffe_test_support::signer::{NOW, Signer, bundle};
pub use tower_spiffe_test_support::wait::{eventually, millis, secs, settle, soon};

pub const TD: &str = "test.example.org";
pub const OTHER: &str = "other.example.org";
pub const AUDIENCE: &str = "conformance";
pub const WORKLOAD: &str = "spiffe://test.example.org/workload";

/// A new ES256 key of the suite's trust domain.
pub fn key(key_id: &str) -> Signer {
    Signer::generate(Algorithm::ES256, key_id)
}

/// The claims of a valid token: five minutes, one audience.
pub fn claims(sub: &str) -> Value {
    json!({"sub": sub, "aud": [AUDIENCE], "iat": NOW, "exp": NOW + 300})
}

/// The claims of a valid token with one claim changed, or removed if the value is `null`.
pub fn claims_with(name: &str, value: Value) -> Value {
    changed(claims(WORKLOAD), name, value)
}

/// A valid token with one header field changed, or removed if the value is `null`.
pub fn header_with(signer: &Signer, name: &str, value: Value) -> String {
    let header = changed(signer.header(), name, value);
    signer.sign_texts(&header.to_string(), &claims(WORKLOAD).to_string())
}

fn changed(mut object: Value, name: &str, value: Value) -> Value {
    let fields = object.as_object_mut().unwrap();
    match value {
        Value::Null => fields.remove(name),
        value => fields.insert(name.to_owned(), value),
    };
    object
}

/// Two validators, without a cache and with one, that use the bundles of a row.
pub struct Suite {
    pub signer: Signer,
    bundles: Bundles,
    validators: [Validator; 2],
}

impl Suite {
    /// The suite's trust domain has one ES256 key.
    pub fn new() -> Self {
        let signer = key("key-1");
        let bundles = Bundles::of([bundle(TD, &[signer.jwk()])]);
        let builder = || {
            Validator::builder(bundles.clone())
                .audience(AUDIENCE)
                .clock(HandClock::at(NOW))
        };
        let validators = [
            builder().no_cache().build().unwrap(),
            builder().build().unwrap(),
        ];
        Self {
            signer,
            bundles,
            validators,
        }
    }

    /// Serves these keys by trust domain.
    pub fn serve(&self, domains: &[(&str, &[Value])]) {
        let bundles = domains.iter().map(|(name, keys)| bundle(name, keys));
        self.bundles.set(bundles);
    }

    #[track_caller]
    pub fn accepts(&self, token: &str, id: &str) {
        for validator in &self.validators {
            for sight in ["first", "second"] {
                match validator.validate(token) {
                    Ok(svid) => assert_eq!(svid.spiffe_id().as_str(), id, "at {sight} sight"),
                    Err(error) => panic!("{id}: {error}, at {sight} sight: {token}"),
                }
            }
        }
    }

    /// Accepts a valid token first, because a validator that rejects everything must not pass a row.
    #[track_caller]
    pub fn rejects(&self, token: &str, reason: ValidateReason) {
        self.accepts(&self.signer.sign(&claims(WORKLOAD)), WORKLOAD);
        for validator in &self.validators {
            for sight in ["first", "second"] {
                let error = validator.validate(token).unwrap_err();
                assert_eq!(error.reason(), reason, "at {sight} sight: {token}");
            }
        }
    }
}

/// An agent on paused time, a source for it, and a validator for the source.
pub struct Live {
    pub agent: FakeAgent,
    pub source: JwtSource,
    pub validator: Validator,
    updates: SourceUpdates,
}

impl Live {
    pub async fn start() -> Self {
        let clock = clock();
        let agent = agent(&clock).await;
        let source = builder(&agent, &clock).build().await.unwrap();
        let validator = Validator::builder(source.clone())
            .audience(AUDIENCE)
            .clock(clock.shared())
            .build()
            .unwrap();
        Self {
            updates: source.updated(),
            agent,
            source,
            validator,
        }
    }

    /// Streams exactly this set, and waits until the source has it.
    pub async fn push(&mut self, replay: &Replay, domains: &[(&str, &[Value])]) {
        let set = domains.iter().map(|(name, keys)| {
            let jwks = json!({ "keys": keys }).to_string();
            (format!("spiffe://{name}"), jwks)
        });
        replay.send(set.collect::<Vec<_>>()).await;
        soon("an update", self.updates.changed()).await.unwrap();
    }

    #[track_caller]
    pub fn accepts(&self, signer: &Signer, id: &str) {
        match self.validator.validate(&signer.sign(&claims(id))) {
            Ok(svid) => assert_eq!(svid.spiffe_id().as_str(), id),
            Err(error) => panic!("{id}: {error}"),
        }
    }

    #[track_caller]
    pub fn rejects(&self, signer: &Signer, id: &str, reason: ValidateReason) {
        let error = self.validator.validate(&signer.sign(&claims(id)));
        assert_eq!(error.unwrap_err().reason(), reason);
    }
}

/// An agent in memory on this clock.
pub async fn agent(clock: &PausedClock) -> FakeAgent {
    FakeAgent::builder(TD)
        .clock(clock.shared())
        .start_in_memory()
        .await
        .unwrap()
}

/// Returns a builder for a source of this agent, with deterministic backoff.
pub fn builder(agent: &FakeAgent, clock: &PausedClock) -> JwtSourceBuilder {
    let builder = JwtSource::builder()
        .connector(agent.connector())
        .clock(clock.shared());
    tower_spiffe::testing::internals::seeded(builder, 7)
}

/// A clock of paused time that starts at the time of the tokens.
pub fn clock() -> PausedClock {
    PausedClock::new(UnixTime::from_secs(NOW))
}
