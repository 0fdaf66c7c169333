//! Checks the source and both layers while an operator rotates keys and restarts the agent, for
//! `TOWER_SPIFFE_LIVE_SECONDS` (3 by default).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::time::Instant;
use tower_spiffe::bundle::{BundleSource, JwtBundleSet};
use tower_spiffe::clock::{Clock as _, SystemClock};
use tower_spiffe::verify::ValidateReason;
use tower_spiffe::{JwtSource, JwtSvid, Validator};
use tower_spiffe_test_support::wait::{eventually_async, millis, secs};

use crate::layers::{ask, axum_server, signed};
use crate::{AUDIENCE, report, source};

const SECONDS: &str = "TOWER_SPIFFE_LIVE_SECONDS";
/// How long a healthy source may reject new tokens or requests: an agent may sign with a new key
/// before it has sent the key.
const LAG: Duration = secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn live_watch_keeps_invariants() {
    let Some(source) = source("live_watch_keeps_invariants").await else {
        return;
    };
    let seconds = std::env::var(SECONDS).map_or(3, |value| value.parse().unwrap());
    let at = axum_server(&source).await;
    let clients = signed(&source, &at);
    let mut watch = Watch::new(source.clone());
    let began = Instant::now();
    let mut turn = 0;
    while began.elapsed() < secs(seconds) {
        watch.check_results();
        watch.fetch().await;
        let client = turn % clients.len();
        watch.request(client, ask(&clients[client], None).await);
        turn += 1;
        tokio::time::sleep(millis(100)).await;
    }
    // Everything works at the end.
    eventually_async("a healthy source", async || source.is_healthy()).await;
    for client in &clients {
        let works = async || matches!(ask(client, None).await, Ok((200, _)));
        eventually_async("an allowed request", works).await;
    }
    watch.check_results();
    watch.summary();
}

struct Watch {
    source: JwtSource,
    validators: [Validator; 2],
    /// All tokens that are not about to expire, with their key IDs.
    tokens: BTreeMap<String, (JwtSvid, String)>,
    began: Instant,
    revision: u64,
    keys: BTreeSet<String>,
    ready: bool,
    /// The time since which something is rejected that a healthy source should accept.
    rejected: BTreeMap<String, Instant>,
    counts: BTreeMap<String, u64>,
}

impl Watch {
    fn new(source: JwtSource) -> Self {
        let builder = || Validator::builder(source.clone()).audience(AUDIENCE);
        Self {
            validators: [
                builder().no_cache().build().unwrap(),
                builder().build().unwrap(),
            ],
            source,
            tokens: BTreeMap::new(),
            began: Instant::now(),
            revision: 0,
            keys: BTreeSet::new(),
            ready: true,
            rejected: BTreeMap::new(),
            counts: BTreeMap::new(),
        }
    }

    fn report(&self, what: &str) {
        report(&format!(
            "{:6.1} s: {what}",
            self.began.elapsed().as_secs_f64()
        ));
    }

    fn count(&mut self, what: String) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Checks that results follow the bundles, with and without a cache, and that the revision only grows.
    fn check_results(&mut self) {
        let soon = SystemClock::shared().now().saturating_add(secs(15));
        self.tokens.retain(|_, (svid, _)| svid.expires_at() > soon);
        let seen = self.revision();
        let set = self.source.bundle_set();
        let verdicts: Vec<_> = self
            .tokens
            .values()
            .map(|(svid, key)| {
                let verdicts = self.validators.each_ref().map(|validator| {
                    let verdict = validator.validate(svid.token());
                    verdict.map(drop).map_err(|error| error.reason())
                });
                (svid.clone(), key.clone(), verdicts)
            })
            .collect();
        self.changes(set.as_ref().ok());
        if seen != self.revision() {
            // The bundles changed meanwhile: the next call checks the new ones.
            return;
        }
        for (svid, key, verdicts) in verdicts {
            for verdict in verdicts {
                let name = svid.spiffe_id().trust_domain_name();
                match (&set, verdict) {
                    (Err(_), Err(ValidateReason::BundlesUnavailable(_))) => {}
                    (Ok(set), Ok(())) if has_key(set, name, &key) => {}
                    (Ok(set), Err(reason)) if !has_key(set, name, &key) => {
                        let known = set.get(name).is_some();
                        let expected = match known {
                            true => ValidateReason::KeyUnknown,
                            false => ValidateReason::TrustDomainUnknown,
                        };
                        assert_eq!(reason, expected, "key {key}");
                    }
                    (set, verdict) => panic!("key {key}: {verdict:?} with {set:?}"),
                }
            }
        }
    }

    fn revision(&self) -> Option<u64> {
        BundleSource::revision(&self.source).ok()
    }

    /// Reports what an operator caused.
    fn changes(&mut self, set: Option<&JwtBundleSet>) {
        let state = self.source.state();
        assert!(state.revision >= self.revision, "the revision decreased");
        self.revision = state.revision;
        if self.ready != state.is_ready() {
            self.ready = state.is_ready();
            let why = state.withdrawn.map(|withdrawal| withdrawal.why);
            self.report(&format!("ready: {}, withdrawn: {why:?}", self.ready));
        }
        let Some(set) = set else { return };
        let keys = set.iter().flat_map(|bundle| {
            let domain = bundle.trust_domain();
            let keys = bundle.authorities();
            keys.map(move |key| format!("{domain}/{}", key.key_id()))
        });
        let keys: BTreeSet<_> = keys.collect();
        if keys != self.keys {
            self.report(&format!("revision {}, keys {keys:?}", self.revision));
            self.keys = keys;
        }
    }

    /// Checks that a new token is valid, at the latest when its key has arrived.
    async fn fetch(&mut self) {
        match self.source.fetch_jwt_svid([AUDIENCE]).await {
            Ok(svid) => {
                let verdict = self.validators[0].validate(svid.token());
                let known = self.tokens.contains_key(svid.token());
                if !known {
                    self.count("new tokens".to_owned());
                    let entry = (svid.clone(), key_of(&svid));
                    self.tokens.insert(svid.token().to_owned(), entry);
                }
                let valid = verdict.is_ok();
                if let Err(error) = verdict {
                    self.count(format!("fetched tokens rejected: {}", error.reason()));
                }
                self.lag("fetched tokens", valid);
            }
            Err(error) => self.count(format!("failed fetches: {:?}", error.reason())),
        }
    }

    /// Checks that signed requests are allowed. Only a server without bundles may respond with 503.
    fn request(&mut self, client: usize, outcome: Result<(u16, String), tower::BoxError>) {
        let what = format!("requests of client {client}");
        match outcome {
            Ok((200, _)) => {
                self.count("allowed requests".to_owned());
                self.lag(&what, true);
            }
            Ok((status, text)) => {
                self.count(format!("requests rejected: {status} {text}"));
                assert!([401, 503].contains(&status), "{status}: {text}");
                self.lag(&what, false);
            }
            Err(error) => {
                self.count(format!("requests that were not sent: {error}"));
                self.lag(&what, false);
            }
        }
    }

    /// Fails if something is rejected for longer than a healthy source may reject it.
    fn lag(&mut self, what: &str, accepted: bool) {
        if accepted || !self.source.is_healthy() {
            self.rejected.remove(what);
            return;
        }
        let since = *self
            .rejected
            .entry(what.to_owned())
            .or_insert_with(Instant::now);
        let rejected = since.elapsed();
        assert!(rejected < LAG, "{what} are rejected for {rejected:?}");
    }

    fn summary(&self) {
        let state = self.source.state();
        self.report(&format!(
            "done: revision {}, {} reconnects, {:?}",
            state.revision, state.reconnects, self.counts
        ));
        let allowed = self.counts.get("allowed requests");
        assert!(allowed.is_some_and(|count| *count > 0));
    }
}

fn has_key(set: &JwtBundleSet, trust_domain: &str, key: &str) -> bool {
    let bundle = set.get(trust_domain);
    bundle.is_some_and(|bundle| bundle.authority(key).is_some())
}

fn key_of(svid: &JwtSvid) -> String {
    let header = svid.token().split('.').next().unwrap();
    let header = URL_SAFE_NO_PAD.decode(header).unwrap();
    let header: serde_json::Value = serde_json::from_slice(&header).unwrap();
    header["kid"].as_str().unwrap().to_owned()
}
