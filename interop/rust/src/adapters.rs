//! Adapters from the `spiffe` crate: a `BundleSource` on its `JwtSource` and a `FetchSvid` on its
//! client. For programs that already use a `spiffe::JwtSource`.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use spiffe_0_19 as spiffe;
use spiffe_0_19::WorkloadApiError;
use tokio::sync::watch;
use tower_spiffe::TrustDomain;
use tower_spiffe::bundle::{BundleAnswer, BundleSource, BundlesUnavailable, JwtBundle};
use tower_spiffe::token::{FetchSvid, FetchSvidError, FetchSvidFuture, FetchSvidReason};
use tower_spiffe::token::{JwtSvid, SvidRequest};

/// The bundles of a `spiffe::JwtSource`, parsed again after each update.
pub(crate) struct SpiffeBundles(watch::Receiver<Snapshot>);

struct Snapshot {
    revision: u64,
    /// `None` once the source is closed.
    bundles: Option<HashMap<String, Arc<JwtBundle>>>,
}

impl SpiffeBundles {
    /// Follows the source until it is closed.
    pub(crate) fn follow(source: spiffe::JwtSource) -> Self {
        let mut updates = source.updated();
        let (sender, receiver) = watch::channel(Snapshot {
            revision: 0,
            bundles: bundles_of(&source),
        });
        tokio::spawn(async move {
            loop {
                let open = tokio::select! {
                    update = updates.changed() => update.is_ok(),
                    () = sender.closed() => return,
                };
                let bundles = open.then(|| bundles_of(&source)).flatten();
                // The bundles and their revision change under one lock, so that a validator
                // never sees a new revision with old bundles.
                sender.send_modify(|snapshot| {
                    snapshot.revision += 1;
                    snapshot.bundles = bundles;
                });
                if !open {
                    return;
                }
            }
        });
        Self(receiver)
    }
}

fn bundles_of(source: &spiffe::JwtSource) -> Option<HashMap<String, Arc<JwtBundle>>> {
    let set = source.bundle_set().ok()?;
    let all = set.iter().filter_map(|(name, bundle)| {
        // The bundle has the JSON of each key, which `JwtBundle` can parse.
        let keys: Vec<&str> = bundle
            .jwt_authorities()
            .filter_map(|key| std::str::from_utf8(key.jwk_json()).ok())
            .collect();
        let jwks = format!(r#"{{"keys":[{}]}}"#, keys.join(","));
        let trust_domain = TrustDomain::parse(name.as_str()).ok()?;
        let bundle = JwtBundle::from_jwks(trust_domain, jwks.as_bytes()).ok()?;
        Some((name.as_str().to_owned(), Arc::new(bundle)))
    });
    Some(all.collect())
}

impl BundleSource for SpiffeBundles {
    fn revision(&self) -> Result<u64, BundlesUnavailable> {
        let snapshot = self.0.borrow();
        match snapshot.bundles {
            Some(_) => Ok(snapshot.revision),
            None => Err(BundlesUnavailable::Closed),
        }
    }

    fn bundle(&self, trust_domain: &str) -> BundleAnswer {
        match &self.0.borrow().bundles {
            None => BundleAnswer::Unavailable(BundlesUnavailable::Closed),
            Some(bundles) => match bundles.get(trust_domain) {
                Some(bundle) => BundleAnswer::Ready(bundle.clone()),
                None => BundleAnswer::UnknownTrustDomain,
            },
        }
    }

    fn changed_since(&self, seen: u64) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        let mut receiver = self.0.clone();
        Some(Box::pin(async move {
            let _ = receiver.wait_for(|now| now.revision != seen).await;
        }))
    }
}

/// Fetches tokens with the client of the `spiffe` crate, which has no cache.
pub(crate) struct SpiffeFetcher(pub(crate) spiffe::WorkloadApiClient);

impl FetchSvid for SpiffeFetcher {
    fn fetch_svid(&self, request: &SvidRequest) -> FetchSvidFuture {
        let (client, request) = (self.0.clone(), request.clone());
        Box::pin(async move {
            let svid = match (request.hint(), request.spiffe_id()) {
                (Some(hint), _) => {
                    let audiences = request.audiences();
                    client.fetch_jwt_svid_by_hint(audiences, None, hint).await
                }
                (None, id) => {
                    let id = id.map(|id| spiffe::SpiffeId::new(id.as_str())).transpose();
                    let id = id.map_err(|error| failed(FetchSvidReason::InvalidRequest, &error))?;
                    client
                        .fetch_jwt_svid(request.audiences(), id.as_ref())
                        .await
                }
            };
            let svid = svid.map_err(|error| match error {
                WorkloadApiError::NoIdentityIssued | WorkloadApiError::PermissionDenied(_) => {
                    failed(FetchSvidReason::Denied, &error)
                }
                error => failed(FetchSvidReason::Unavailable, &error),
            })?;
            JwtSvid::parse_unverified(svid.token(), svid.hint().unwrap_or_default())
                .map_err(|error| failed(FetchSvidReason::Unacceptable, &error))
        })
    }
}

fn failed(reason: FetchSvidReason, error: &dyn std::fmt::Display) -> FetchSvidError {
    FetchSvidError::new(reason, error.to_string())
}
