//! The state of the agent, and what it publishes.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::counts::Counters;
use super::fault::{AgentCall, Fault, Faults};
use super::replay::Script;
use super::tick::{Tick, Ticks};
use super::tokens::TokenCache;
use crate::clock::{Clock, UnixTime};
use crate::identity::{SpiffeId, TrustDomain};
use crate::source::SourceUpdates;
use crate::testing::clock::stepped;
use crate::testing::issuer::{Issuer, OnChange};

/// JWKS by the trust domain's SPIFFE ID, as in a message.
pub(super) type Bundles = HashMap<String, Bytes>;

/// The part of the embedded Workload API that is independent of sockets.
pub(super) struct Agent {
    pub(super) issuer: Issuer,
    pub(super) clock: Arc<OffsetClock>,
    pub(super) counters: Counters,
    pub(super) enforce_pings: bool,
    state: Mutex<State>,
    /// Held by the rotation in progress.
    pub(super) rotating: tokio::sync::Mutex<()>,
    /// Ticks whenever something changed that may affect an open call.
    tick: Tick,
    /// The number of the publication that each live bundle stream has taken.
    taken: watch::Sender<HashMap<u64, u64>>,
    next_stream: AtomicU64,
}

pub(super) struct State {
    pub(super) entries: Vec<Entry>,
    /// Whether the only entry is the default one.
    pub(super) stand_in: bool,
    /// The entries that a withdrawal removed, for the restoration.
    pub(super) withdrawn: Vec<Entry>,
    pub(super) federated: BTreeMap<TrustDomain, Federated>,
    /// Whether key sets are written in the other order.
    pub(super) reversed: bool,
    pub(super) faults: Faults,
    pub(super) script: Option<Script>,
    /// Whether the agent is stopping or stopped.
    pub(super) stopping: bool,
    pub(super) cache: TokenCache,
    /// The sources that the agent itself created: a rotation waits for them.
    pub(super) sources: Vec<SourceUpdates>,
    publication: Publication,
}

/// An identity that the agent returns to every caller.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) id: SpiffeId,
    pub(super) hint: String,
    pub(super) token_life: Duration,
}

pub(super) enum Federated {
    /// The bundle follows this issuer.
    Issuer(Issuer),
    /// The bundle is these bytes, which are not checked.
    Bytes(Bytes),
}

/// What the bundle streams send now; `None` if there is no identity and so no bundle.
#[derive(Clone)]
pub(super) struct Publication {
    pub(super) number: u64,
    pub(super) bundles: Option<Arc<Bundles>>,
}

impl Agent {
    pub(super) fn new(
        issuer: Issuer,
        clock: Arc<OffsetClock>,
        entry: Entry,
        cache: TokenCache,
        enforce_pings: bool,
    ) -> Arc<Self> {
        let agent = Arc::new(Self {
            issuer,
            clock,
            counters: Counters::default(),
            enforce_pings,
            state: Mutex::new(State {
                entries: vec![entry],
                stand_in: true,
                withdrawn: Vec::new(),
                federated: BTreeMap::new(),
                reversed: false,
                faults: Faults::default(),
                script: None,
                stopping: false,
                cache,
                sources: Vec::new(),
                publication: Publication {
                    number: 0,
                    bundles: None,
                },
            }),
            rotating: tokio::sync::Mutex::new(()),
            tick: Tick::default(),
            taken: watch::Sender::new(HashMap::new()),
            next_stream: AtomicU64::new(0),
        });
        agent.follow(&agent.issuer);
        agent.publish();
        agent
    }

    /// Publishes again whenever this issuer's keys change.
    pub(super) fn follow(self: &Arc<Self>, issuer: &Issuer) {
        let agent: Arc<dyn OnChange> = self.clone();
        issuer.notify(&agent);
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, publishes what follows from it, and wakes every open call.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let result = change(&mut self.state());
        self.publish();
        result
    }

    /// What the bundle streams send now.
    pub(super) fn publication(&self) -> Publication {
        self.state().publication.clone()
    }

    fn publish(&self) {
        let mut state = self.state();
        let bundles = (!state.entries.is_empty()).then(|| state.bundles(&self.issuer));
        if state.publication.bundles.as_deref() != bundles.as_ref() {
            state.publication.bundles = bundles.map(Arc::new);
            state.publication.number += 1;
        }
        drop(state);
        self.tick.tick();
    }

    /// A receiver of changes.
    pub(super) fn ticks(&self) -> Ticks {
        self.tick.ticks()
    }

    pub(super) fn fault(&self, call: AgentCall) -> Option<Fault> {
        self.state().faults.of(call).cloned()
    }

    /// The trust domain's issuer: the agent's own, or a federated one that it follows.
    pub(super) fn issuer_of(&self, spiffe_id: &str) -> Issuer {
        if let Ok(id) = SpiffeId::parse(spiffe_id)
            && let Some(Federated::Issuer(issuer)) =
                self.state().federated.get(id.trust_domain_name())
        {
            return issuer.clone();
        }
        self.issuer.clone()
    }

    /// Registers a bundle stream. A rotation waits for it.
    pub(super) fn stream_opened(&self) -> u64 {
        self.counters.open_streams.up();
        self.next_stream.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn stream_took(&self, stream: u64, number: u64) {
        self.taken
            .send_if_modified(|taken| taken.insert(stream, number) != Some(number));
    }

    /// Excludes a stream that does not send what is published, so that no rotation waits for it.
    pub(super) fn exclude_stream(&self, stream: u64) {
        self.taken
            .send_if_modified(|taken| taken.remove(&stream).is_some());
    }

    pub(super) fn stream_closed(&self, stream: u64) {
        self.counters.open_streams.down();
        self.exclude_stream(stream);
    }

    /// Waits until every live bundle stream has taken what is published now.
    pub(super) async fn all_streams_have_taken(&self) {
        let number = self.publication().number;
        let mut taken = self.taken.subscribe();
        // The sender lives in `self`.
        let _ = taken
            .wait_for(|taken| taken.values().all(|has| *has >= number))
            .await;
    }
}

impl OnChange for Agent {
    fn changed(&self) {
        self.publish();
    }
}

impl State {
    fn bundles(&self, issuer: &Issuer) -> Bundles {
        let write = |issuer: &Issuer| {
            Bytes::from(if self.reversed {
                issuer.jwks_in_another_order()
            } else {
                issuer.jwks()
            })
        };
        let own = (issuer.trust_domain(), write(issuer));
        let federated = self.federated.iter().map(|(trust_domain, federated)| {
            let jwks = match federated {
                Federated::Issuer(issuer) => write(issuer),
                Federated::Bytes(bytes) => bytes.clone(),
            };
            (trust_domain, jwks)
        });
        // The agent's own bundle last: a federation with itself must not replace it.
        federated
            .chain([own])
            .map(|(trust_domain, jwks)| (trust_domain.to_spiffe_id().to_string(), jwks))
            .collect()
    }
}

/// The test's clock with an offset, as on a machine with a wrong clock.
pub(super) struct OffsetClock {
    base: Arc<dyn Clock>,
    seconds: AtomicI64,
}

impl OffsetClock {
    pub(super) fn new(base: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            base,
            seconds: AtomicI64::new(0),
        })
    }

    pub(super) fn set(&self, seconds: i64) {
        self.seconds.store(seconds, Ordering::Relaxed);
    }

    /// The clock without the offset.
    pub(super) fn base(&self) -> &Arc<dyn Clock> {
        &self.base
    }
}

impl Clock for OffsetClock {
    fn now(&self) -> UnixTime {
        stepped(self.base.now(), self.seconds.load(Ordering::Relaxed))
    }

    fn monotonic(&self) -> Duration {
        self.base.monotonic()
    }
}
