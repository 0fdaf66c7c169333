//! The conformance vectors have the expected results: cold and warm, in order and shuffled.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tower_spiffe::bundle::Algorithm;
use tower_spiffe::bundle::{JwtBundle, JwtBundleSet};
use tower_spiffe::clock::UnixTime;
use tower_spiffe::{TrustDomain, Validator};

use crate::support::{HandClock, Swappable};

const VECTORS: &str = include_str!("../data/jwt-svid.json");

/// The bytes of the case's token.
pub fn token_of(case: &Value) -> Vec<u8> {
    match case["token"].as_str() {
        Some(token) => token.as_bytes().to_vec(),
        None => STANDARD
            .decode(case["token_b64"].as_str().unwrap())
            .unwrap(),
    }
}

pub struct Harness {
    pub vectors: Value,
    sets: HashMap<String, JwtBundleSet>,
    source: Swappable,
    clock: Arc<HandClock>,
    allow_unknown_headers: bool,
    cache: bool,
    validators: HashMap<(Vec<String>, u64), Validator>,
}

impl Harness {
    pub fn new(allow_unknown_headers: bool, cache: bool) -> Self {
        let vectors: Value = serde_json::from_str(VECTORS).unwrap();
        let sets = vectors["bundles"].as_object().unwrap().iter();
        let sets = sets.map(|(name, set)| {
            let bundles = set.as_object().unwrap().iter().map(|(name, jwks)| {
                let trust_domain = TrustDomain::parse(name).unwrap();
                JwtBundle::from_jwks(trust_domain, jwks.to_string().as_bytes()).unwrap()
            });
            (name.clone(), bundles.collect())
        });
        Self {
            sets: sets.collect(),
            source: Swappable::new(JwtBundleSet::default()),
            clock: HandClock::at(0),
            allow_unknown_headers,
            cache,
            validators: HashMap::new(),
            vectors,
        }
    }

    /// Returns the validator for this case. Validators are kept per audiences and leeway; the bundles
    /// and the clock are swapped in them.
    pub fn validator(&mut self, case: &Value) -> Validator {
        let audiences: Vec<String> = serde_json::from_value(case["audience"].clone()).unwrap();
        let leeway = case["leeway"].as_u64().unwrap();
        self.source
            .set(Ok(self.sets[case["bundles"].as_str().unwrap()].clone()));
        self.clock
            .set(UnixTime::from_secs(case["now"].as_i64().unwrap()));
        let validator = self
            .validators
            .entry((audiences.clone(), leeway))
            .or_insert_with(|| {
                let builder = Validator::builder(self.source.clone())
                    .audiences(audiences)
                    .leeway(Duration::from_secs(leeway))
                    .allow_unknown_headers(self.allow_unknown_headers)
                    .clock(self.clock.clone());
                let builder = if self.cache {
                    builder
                } else {
                    builder.no_cache()
                };
                builder.build().unwrap()
            });
        validator.clone()
    }

    /// Returns the SPIFFE ID, or the reason string.
    fn validate(&mut self, case: &Value) -> Result<String, &'static str> {
        let validator = self.validator(case);
        // `validate` accepts only UTF-8.
        let token = String::from_utf8(token_of(case)).map_err(|_| "malformed-token")?;
        match validator.validate(&token) {
            Ok(svid) => {
                for (name, value) in case["claims"].as_object().into_iter().flatten() {
                    let claims: HashMap<String, Box<serde_json::value::RawValue>> =
                        svid.claims().unwrap();
                    assert_eq!(
                        &serde_json::from_str::<Value>(claims[name].get()).unwrap(),
                        value,
                        "{}",
                        case["id"]
                    );
                }
                Ok(svid.spiffe_id().to_string())
            }
            Err(error) => Err(error.reason().as_str()),
        }
    }

    fn run(&mut self, order: &[usize]) -> Vec<String> {
        let cases = self.vectors["cases"].as_array().unwrap().clone();
        let by_id: HashMap<&str, &Value> = cases
            .iter()
            .map(|case| (case["id"].as_str().unwrap(), case))
            .collect();
        let mut wrong = Vec::new();
        for &at in order {
            let case = &cases[at];
            if let Some(first) = case["after"].as_str() {
                assert!(self.validate(by_id[first]).is_ok(), "{first}");
            }
            let verdict = self.validate(case);
            if let Some(problem) = self.problem(case, &verdict) {
                wrong.push(format!("{}: {problem}", case["id"]));
            }
        }
        wrong
    }

    fn problem(&self, case: &Value, verdict: &Result<String, &'static str>) -> Option<String> {
        let expect = match case["unknown_headers_ignored"].as_str() {
            Some(expect) if self.allow_unknown_headers => expect,
            // Only its unknown field is invalid; the vectors have no result for this mode.
            None if self.allow_unknown_headers && case["id"] == "header-deep" => "ok",
            _ => case["expect"].as_str().unwrap(),
        };
        match verdict {
            Ok(id)
                if expect == "ok" && case["spiffe_id"].as_str().is_none_or(|want| want == id) =>
            {
                None
            }
            Ok(id) => Some(format!("accepted as {id}, expected {expect}")),
            Err(class) if *class == expect => None,
            // Other listed reasons are also correct.
            Err(class)
                if expect != "ok"
                    && case["or"]
                        .as_array()
                        .is_some_and(|or| or.contains(&Value::from(*class))) =>
            {
                None
            }
            Err(class) => Some(format!("rejected as {class}, expected {expect}")),
        }
    }
}

fn in_order(harness: &Harness) -> Vec<usize> {
    (0..harness.vectors["cases"].as_array().unwrap().len()).collect()
}

fn shuffled(mut order: Vec<usize>, seed: u64) -> Vec<usize> {
    let mut rng = fastrand::Rng::with_seed(seed);
    rng.shuffle(&mut order);
    order
}

#[test]
fn vectors_pass_in_order_and_with_warm_cache() {
    let mut harness = Harness::new(false, true);
    let order = in_order(&harness);
    assert_eq!(order.len(), 625);
    assert_eq!(harness.run(&order), Vec::<String>::new());
    assert_eq!(harness.run(&order), Vec::<String>::new());
    let hits: u64 = harness
        .validators
        .values()
        .map(|validator| validator.cache_stats().hits)
        .sum();
    assert!(hits > 100, "too few cache hits: {hits}");
}

#[test]
fn vectors_pass_in_any_order() {
    let mut harness = Harness::new(false, true);
    for seed in 0..8 {
        let order = shuffled(in_order(&harness), seed);
        assert_eq!(harness.run(&order), Vec::<String>::new(), "seed {seed}");
    }
}

#[test]
fn vectors_pass_without_a_cache() {
    let mut harness = Harness::new(false, false);
    let order = in_order(&harness);
    assert_eq!(harness.run(&order), Vec::<String>::new());
}

#[test]
fn vectors_pass_with_unknown_headers_allowed() {
    let mut harness = Harness::new(true, true);
    let order = in_order(&harness);
    assert_eq!(harness.run(&order), Vec::<String>::new());
    assert_eq!(harness.run(&shuffled(order, 7)), Vec::<String>::new());
}

#[test]
fn vectors_of_jwk_sets_have_their_usable_keys() {
    let vectors: Value = serde_json::from_str(VECTORS).unwrap();
    let documents = vectors["jwks"].as_array().unwrap();
    assert_eq!(documents.len(), 83);
    let mut wrong = Vec::new();
    for document in documents {
        let trust_domain = TrustDomain::parse("td.test").unwrap();
        let read =
            JwtBundle::from_jwks(trust_domain, document["jwks"].as_str().unwrap().as_bytes());
        let expect = &document["expect"];
        let got = match &read {
            Err(_) => None,
            Ok(bundle) => Some(
                bundle
                    .authorities()
                    .filter(|key| {
                        Algorithm::ALL
                            .into_iter()
                            .any(|algorithm| key.supports(algorithm))
                    })
                    .map(|key| key.key_id())
                    .collect::<BTreeSet<_>>(),
            ),
        };
        let want = expect["usable_kids"].as_array().map(|kids| {
            kids.iter()
                .map(|kid| kid.as_str().unwrap())
                .collect::<BTreeSet<_>>()
        });
        if got != want {
            wrong.push(format!("{}: {got:?}, expected {want:?}", document["id"]));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}
