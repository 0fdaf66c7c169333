//! The setup: one agent, two sources, and the services of each source.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::{Request, Response};
use tower::util::BoxCloneSyncService;
use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::clock::{Clock, UnixTime};
use tower_spiffe::server::UnknownKeyWait;
use tower_spiffe::source::{JwtSourceBuilder, WithdrawalPolicy};
use tower_spiffe::testing::{FakeAgent, Issuer, PausedClock};
use tower_spiffe::token::KeepWarm;
use tower_spiffe::token::SvidRequest;
use tower_spiffe::{Allow, JwtSource, SvidCache, ValidateJwtSvidLayer, Validator};

use crate::gate::Gate;
use crate::log::Log;
use crate::tally::Tally;
use crate::times::Times;

pub(crate) const TD: &str = "example.org";
pub(crate) const WEB: &str = "spiffe://example.org/web";
pub(crate) const BATCH: &str = "spiffe://example.org/batch";
/// The hint of [`BATCH`].
pub(crate) const BATCH_HINT: &str = "batch";
/// Trust domains that the agent federates with at times.
pub(crate) const FOREIGN: [&str; 2] = ["other.test", "third.test"];
/// The names of the services.
pub(crate) const AUDIENCES: [&str; 4] = ["reports", "ledger", "orders", "stock"];

/// A service with the server layer.
pub(crate) type Door = BoxCloneSyncService<Request<String>, Response<String>, Infallible>;

/// A source, and the validators and services that use it.
pub(crate) struct Station {
    pub(crate) name: &'static str,
    pub(crate) source: JwtSource,
    pub(crate) cached: Validator,
    pub(crate) cold: Validator,
    pub(crate) door: Door,
    /// Waits for unknown keys for a short time.
    pub(crate) patient: Door,
    _warm: KeepWarm,
}

pub(crate) struct World {
    pub(crate) times: Times,
    pub(crate) seed: u64,
    pub(crate) log: Log,
    pub(crate) tally: Tally,
    pub(crate) gate: Gate,
    pub(crate) clock: PausedClock,
    pub(crate) agent: FakeAgent,
    pub(crate) foreign: Vec<Issuer>,
    /// Signs with keys that no source trusts.
    pub(crate) forger: Issuer,
    pub(crate) stations: Vec<Station>,
    keys: Mutex<Keys>,
}

/// Recent keys, published or not, in the order of their creation.
#[derive(Default)]
pub(crate) struct Keys {
    all: Vec<Key>,
    made: u64,
}

#[derive(Clone)]
pub(crate) struct Key {
    pub(crate) kid: String,
    /// A number for the log that is the same in every run.
    pub(crate) number: u64,
    /// 0 for the agent's own trust domain, else one of [`FOREIGN`].
    pub(crate) issuer: usize,
}

impl World {
    pub(crate) async fn build(times: Times, seed: u64, socket: bool) -> Self {
        let clock = PausedClock::new(UnixTime::from_secs(1_790_000_000));
        let log = Log::new();
        let agent = FakeAgent::builder(TD)
            .clock(clock.shared())
            .token_life(times.token_life)
            .seed(seed);
        let agent = if socket {
            agent.start().await.unwrap()
        } else {
            agent.start_in_memory().await.unwrap()
        };
        let life = times.token_life;
        agent.register(WEB, "", life).unwrap();
        agent.register(BATCH, BATCH_HINT, life).unwrap();
        let issuer = |trust_domain| {
            let issuer = Issuer::with_clock(trust_domain, clock.shared()).unwrap();
            issuer.set_token_life(life);
            issuer
        };
        let foreign: Vec<_> = FOREIGN.map(issuer).into();
        for issuer in &foreign {
            agent.federate_with(issuer);
        }
        let mut world = Self {
            seed,
            log,
            tally: Tally::default(),
            gate: Gate::new(),
            forger: issuer(TD),
            foreign,
            stations: Vec::new(),
            keys: Mutex::default(),
            clock,
            agent,
            times,
        };
        let steady = world.source(seed).build().await.unwrap();
        let lenient = world
            .source(seed ^ 1)
            .withdrawal(WithdrawalPolicy::After(world.times.grace))
            .max_staleness(world.times.max_staleness)
            .build()
            .await
            .unwrap();
        world.stations = vec![
            world.station("steady", steady),
            world.station("lenient", lenient),
        ];
        world.note_keys();
        world
    }

    /// Returns a builder for a source of the agent.
    pub(crate) fn source(&self, seed: u64) -> JwtSourceBuilder {
        let builder = JwtSource::builder().clock(self.clock.shared());
        let builder = tower_spiffe::testing::internals::seeded(builder, seed);
        let builder = match self.socket() {
            Some(endpoint) => builder.endpoint(endpoint.as_str()),
            None => builder.connector(self.agent.connector()),
        };
        (self.times.pace)(builder)
    }

    /// Returns the agent's address; `None` if it is in memory.
    pub(crate) fn socket(&self) -> Option<String> {
        (self.times.name == "real").then(|| self.agent.endpoint().to_string())
    }

    fn station(&self, name: &'static str, source: JwtSource) -> Station {
        let validator = || {
            Validator::builder(source.clone())
                .audiences(AUDIENCES)
                .leeway(self.times.leeway)
                .clock(self.clock.shared())
        };
        // Small, so that entries are evicted.
        let cached = validator().cache_bytes(64 << 10).build().unwrap();
        let cold = validator().no_cache().build().unwrap();
        let layer = ValidateJwtSvidLayer::required(cached.clone(), Allow::any_trust_domain());
        let handler = service_fn(|_: Request<String>| async {
            Ok::<_, Infallible>(Response::new(String::new()))
        });
        let door = BoxCloneSyncService::new(layer.clone().layer(handler));
        let wait = UnknownKeyWait::new(self.times.key_wait).cool_down(self.times.key_wait * 2);
        let patient = layer.wait_for_unknown_keys(wait).layer(handler);
        let warm = SvidCache::from(&source)
            .keep_warm([SvidRequest::new([AUDIENCES[0]]).unwrap()])
            .unwrap();
        Station {
            name,
            door,
            patient: BoxCloneSyncService::new(patient),
            cached,
            cold,
            source,
            _warm: warm,
        }
    }

    pub(crate) fn now(&self) -> UnixTime {
        self.clock.now()
    }

    pub(crate) fn issuer(&self, number: usize) -> &Issuer {
        match number.checked_sub(1) {
            None => self.agent.issuer(),
            Some(foreign) => &self.foreign[foreign],
        }
    }

    pub(crate) fn issuers(&self) -> impl Iterator<Item = (usize, &Issuer)> {
        (0..=self.foreign.len()).map(|number| (number, self.issuer(number)))
    }

    /// Records new keys.
    pub(crate) fn note_keys(&self) {
        const MOST: usize = 24;
        let mut keys = self.keys();
        for (number, issuer) in self.issuers() {
            for kid in issuer.key_ids() {
                if !keys.all.iter().any(|key| key.kid == kid) {
                    keys.made += 1;
                    let key = Key {
                        kid,
                        number: keys.made,
                        issuer: number,
                    };
                    keys.all.push(key);
                }
            }
        }
        while keys.all.len() > MOST {
            // Remove the oldest key that is not published, if any.
            let served = |key: &Key| self.issuer(key.issuer).key_ids().contains(&key.kid);
            let oldest = keys.all.iter().position(|key| !served(key)).unwrap_or(0);
            keys.all.remove(oldest);
        }
    }

    /// Returns the recent keys, and the number of all keys ever.
    pub(crate) fn known_keys(&self) -> (Vec<Key>, u64) {
        let keys = self.keys();
        (keys.all.clone(), keys.made)
    }

    pub(crate) fn draw_key(&self, rng: &mut fastrand::Rng) -> Key {
        let keys = self.keys();
        keys.all[rng.usize(..keys.all.len())].clone()
    }

    /// Returns a key's number, for the log.
    pub(crate) fn number_of(&self, kid: &str) -> u64 {
        let keys = self.keys();
        let known = keys.all.iter().find(|key| key.kid == kid);
        known.map_or(0, |key| key.number)
    }

    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails the test if an invariant is broken.
    pub(crate) fn check(&self) {
        if self.log.is_broken() {
            self.fail("an invariant is broken");
        }
    }

    pub(crate) fn fail(&self, why: &str) -> ! {
        panic!(
            "{}\nlong haul, {} time, seed {}: {why}; to repeat: TOWER_SPIFFE_SEED={}",
            self.log.report(),
            self.times.name,
            self.seed,
            self.seed
        );
    }
}

/// Key IDs by trust domain.
pub(crate) type KeySets = BTreeMap<String, Vec<String>>;

impl Station {
    /// Returns the keys of this source, or `None` if its bundles are unavailable.
    pub(crate) fn key_sets(&self) -> Option<KeySets> {
        let set = self.source.bundle_set().ok()?;
        let key_sets = set.iter().map(|bundle| {
            let mut kids: Vec<_> = bundle
                .authorities()
                .map(|authority| authority.key_id().to_owned())
                .collect();
            kids.sort_unstable();
            (bundle.trust_domain().name().to_owned(), kids)
        });
        Some(key_sets.collect())
    }
}

/// Returns a request with this token.
pub(crate) fn bearing(token: &str) -> Request<String> {
    Request::get("https://reports.example.org/")
        .header(http::header::AUTHORIZATION, format!("Bearer {token}"))
        .body(String::new())
        .unwrap()
}

/// Returns the status of the response.
pub(crate) async fn status_of(door: &Door, request: Request<String>) -> http::StatusCode {
    match door.clone().oneshot(request).await {
        Ok(response) => response.status(),
        Err(never) => match never {},
    }
}

pub(crate) type Shared = Arc<World>;
