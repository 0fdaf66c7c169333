//! What the state shows of the bundle stream; validation does not use it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::intake::{Intake, Trouble};
use super::state::{LastError, SourceState, TrustDomainState, Withdrawal};
use crate::bundle::{BundlesUnavailable, JwtBundle, JwtBundleSet};
use crate::grpc_code::GrpcCode;
use crate::identity::TrustDomain;
use crate::token::SvidCacheStats;
use crate::workload_api::WorkloadApiError;

/// All moments are of the [`TrustClock`](crate::source::trust_clock::TrustClock).
#[derive(Default)]
pub(super) struct Record {
    pub(super) domains: BTreeMap<TrustDomain, Domain>,
    pub(super) unnamed: Vec<(Box<str>, Box<str>)>,
    pub(super) last_message: Option<Duration>,
    pub(super) last_contact: Option<Duration>,
    pub(super) connected: bool,
    /// The newest message was discarded.
    pub(super) discarding: bool,
    pub(super) down_since: Option<Duration>,
    pub(super) last_error: Option<(Duration, LastError)>,
    pub(super) withdrawn: Option<(Duration, Box<str>)>,
    pub(super) was_connected: bool,
    pub(super) reconnects: u64,
    pub(super) reconnect_attempts: u64,
}

#[derive(Default)]
pub(super) struct Domain {
    updated: Option<Duration>,
    changed: Option<Duration>,
    trouble: Option<Trouble>,
}

/// What a message changed in the record.
pub(super) struct Noted {
    /// It ends a withdrawal, in force or not.
    pub(super) given_back: bool,
    /// It is the first one after the stream was lost.
    pub(super) reconnected: bool,
    /// Trust domains whose newest keys could not be read, and when their last good keys came.
    pub(super) aging: Vec<(TrustDomain, Duration)>,
}

impl Record {
    /// Records an applied message. `before` is the set before it; `nothing` means that it has no
    /// bundles.
    pub(super) fn note(
        &mut self,
        now: Duration,
        before: &JwtBundleSet,
        intake: &Intake,
        nothing: bool,
    ) -> Noted {
        self.last_message = Some(now);
        self.last_contact = Some(now);
        let reconnected = self.was_connected && !self.connected;
        self.reconnects += u64::from(reconnected);
        self.was_connected = true;
        self.connected = true;
        self.discarding = false;
        self.down_since = None;
        self.last_error = None;
        self.unnamed.clone_from(&intake.unnamed);
        self.domains.retain(|domain, _| {
            intake.set.get(domain.name()).is_some() || intake.troubles.contains_key(domain)
        });
        for bundle in intake.set.iter() {
            let name = bundle.trust_domain();
            let domain = self.domains.entry(name.clone()).or_default();
            domain.trouble = intake.troubles.get(name).cloned();
            if domain.trouble.is_none() {
                domain.updated = Some(now);
                if before.get(name.name()) != Some(bundle) {
                    domain.changed = Some(now);
                }
            }
        }
        for (name, trouble) in &intake.troubles {
            self.domains.entry(name.clone()).or_default().trouble = Some(trouble.clone());
        }
        let failing = self.domains.iter();
        let failing = failing.filter(|(_, domain)| domain.trouble.is_some());
        Noted {
            given_back: !nothing && self.withdrawn.take().is_some(),
            reconnected,
            aging: failing
                .filter_map(|(name, domain)| Some((name.clone(), domain.updated?)))
                .collect(),
        }
    }

    /// The stream is no longer open.
    pub(super) fn disconnected(&mut self, now: Duration, heard: Option<Duration>) {
        if self.connected {
            self.connected = false;
            self.down_since = Some(now);
            self.last_contact = self.last_contact.max(heard);
        }
    }

    pub(super) fn failed(&mut self, now: Duration, error: LastError) {
        self.last_error = Some((now, error));
    }

    /// When the agent last sent anything over the connection of the bundle stream; `heard` is what the
    /// connection recorded.
    pub(super) fn contact(&self, heard: Option<Duration>) -> Option<Duration> {
        if self.connected {
            self.last_contact.max(heard)
        } else {
            self.last_contact
        }
    }

    /// Why there are no bundles yet: the code of the agent's last error, if any, and a text.
    pub(super) fn why_not_ready(&self) -> (Option<GrpcCode>, String) {
        if let Some((_, error)) = &self.last_error {
            let code = error.rpc.as_ref().and_then(WorkloadApiError::code);
            return (code, error.text.to_string());
        }
        let mut troubles = self.domains.iter().filter_map(|(domain, known)| {
            let trouble = known.trouble.as_ref()?;
            Some(format!("trust domain {domain}: {}", trouble.text))
        });
        let unnamed = self.unnamed.iter();
        let mut unnamed = unnamed.map(|(name, why)| format!("trust domain \"{name}\": {why}"));
        let text = troubles.next().or_else(|| unnamed.next());
        let nothing = "it sent nothing; is it a SPIFFE Workload API, and is it healthy?";
        (None, text.unwrap_or_else(|| nothing.to_owned()))
    }

    /// The state of a source with this set and this revision; `bundles_unavailable` is why they cannot be used.
    pub(super) fn state(
        &self,
        now: Duration,
        heard: Option<Duration>,
        set: &JwtBundleSet,
        revision: u64,
        bundles_unavailable: Option<BundlesUnavailable>,
        overdue: bool,
    ) -> SourceState {
        let since = |then: Duration| now.saturating_sub(then);
        let domain = |(name, domain): (&TrustDomain, &Domain)| {
            let bundle = set.get(name.name());
            TrustDomainState {
                trust_domain: name.clone(),
                key_ids: bundle.map(key_ids).unwrap_or_default(),
                ignored_keys: bundle.map_or(0, |bundle| bundle.ignored().len()),
                last_update: domain.updated.map(since),
                last_change: domain.changed.map(since),
                last_error: domain.trouble.as_ref().map(|trouble| trouble.text.clone()),
            }
        };
        SourceState {
            revision,
            bundles_unavailable,
            withdrawn: self.withdrawn.as_ref().map(|(at, why)| Withdrawal {
                age: since(*at),
                why: why.clone(),
                in_force: bundles_unavailable == Some(BundlesUnavailable::Withdrawn),
            }),
            connected: self.connected && !overdue,
            overdue,
            discarding: self.discarding,
            down_for: self.down_since.map(since),
            last_contact: self.contact(heard).map(since),
            last_message: self.last_message.map(since),
            last_error: self.last_error.as_ref().map(|(at, error)| LastError {
                age: since(*at),
                ..error.clone()
            }),
            reconnects: self.reconnects,
            reconnect_attempts: self.reconnect_attempts,
            trust_domains: self.domains.iter().map(domain).collect(),
            unnamed: self.unnamed.clone(),
            // The caller adds the state of the cache.
            svid_cache: SvidCacheStats::default(),
            audiences: Vec::new(),
        }
    }
}

fn key_ids(bundle: &Arc<JwtBundle>) -> Vec<Box<str>> {
    bundle
        .authorities()
        .map(|authority| authority.key_id().into())
        .collect()
}
