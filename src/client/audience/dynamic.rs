//! Audiences that are derived from the origin of a request, for an allow-list of origins.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Arc, PoisonError, RwLock};

use super::{AudienceError, Found, parse};
use crate::client::Origin;
use crate::client::origin::{OriginError, Target, ends_an_address};
use crate::token::{Identity, SvidRequest, TokenError};

/// Derives the audience from an origin.
type Make = Arc<dyn Fn(&Origin) -> Option<String> + Send + Sync>;

pub(super) struct Dynamic {
    audience: Make,
    allowed: Vec<Allowed>,
    identity: Option<Identity>,
    single_use: bool,
    /// The derived requests, by the hash of the origin; cleared if there are too many.
    known: RwLock<HashMap<u64, Vec<(Origin, SvidRequest)>>>,
    hasher: RandomState,
}

/// Allowed origins: one, or all hosts with `labels` labels in front of a domain.
#[derive(Clone)]
pub(super) enum Allowed {
    One(Origin),
    Below { labels: usize, domain: Origin },
}

impl Allowed {
    pub(super) fn parse(text: &str) -> Result<Self, AudienceError> {
        let Some((scheme, mut domain)) = text.split_once("://") else {
            return parse(text).map(Self::One);
        };
        let mut labels = 0;
        while let Some(rest) = domain.strip_prefix("*.") {
            labels += 1;
            domain = rest;
        }
        if labels == 0 {
            return parse(text).map(Self::One);
        }
        format!("{scheme}://{domain}")
            .parse()
            .and_then(|domain: Origin| {
                let host = domain.host();
                let name = host.strip_suffix('.').unwrap_or(host);
                // One label would be a whole top-level domain, and an address has no subdomains.
                if name.contains('.') && !ends_an_address(name) {
                    Ok(Self::Below { labels, domain })
                } else {
                    Err(OriginError::Host)
                }
            })
            .map_err(|error| AudienceError::Origin {
                origin: text.to_owned(),
                error,
            })
    }

    fn matches(&self, target: Target<'_>) -> bool {
        match self {
            Self::One(origin) => origin.target() == target,
            Self::Below { labels, domain } => target.is_below(domain.target(), *labels),
        }
    }
}

impl Dynamic {
    const MAX_KNOWN: usize = 16 * 1024;

    pub(super) fn new(audience: Make, allowed: Vec<Allowed>) -> Self {
        Self {
            audience,
            allowed,
            identity: None,
            single_use: false,
            known: RwLock::default(),
            hasher: RandomState::new(),
        }
    }

    pub(super) fn find(&self, target: Target<'_>) -> Found<'static> {
        let hash = self.hasher.hash_one(target);
        let find = |known: &HashMap<u64, Vec<(Origin, SvidRequest)>>| {
            let same = known.get(&hash)?;
            let (_, request) = same.iter().find(|(origin, _)| origin.target() == target)?;
            Some(request.clone())
        };
        if let Some(request) = find(&self.known.read().unwrap_or_else(PoisonError::into_inner)) {
            return Found::Made(request);
        }
        if !self.allowed.iter().any(|allowed| allowed.matches(target)) {
            return Found::Nothing;
        }
        let origin = target.to_origin();
        let Some(audience) = (self.audience)(&origin) else {
            return Found::Nothing;
        };
        let request = match SvidRequest::new([&audience]) {
            Ok(request) => request,
            Err(error) => {
                return Found::Invalid(TokenError::invalid_audience(&origin, &audience, error));
            }
        };
        let request = match &self.identity {
            Some(identity) => request.with_identity(identity.clone()),
            None => request,
        };
        let request = if self.single_use {
            request.single_use()
        } else {
            request
        };
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= Self::MAX_KNOWN {
            known.clear();
        }
        known
            .entry(hash)
            .or_default()
            .push((origin, request.clone()));
        Found::Made(request)
    }

    pub(super) fn identified(&self, identity: &Identity) -> Self {
        Self {
            identity: Some(identity.clone()),
            ..self.without_known()
        }
    }

    pub(super) fn single_use(&self) -> Self {
        Self {
            single_use: true,
            ..self.without_known()
        }
    }

    fn without_known(&self) -> Self {
        Self {
            audience: self.audience.clone(),
            allowed: self.allowed.clone(),
            identity: self.identity.clone(),
            single_use: self.single_use,
            known: RwLock::default(),
            hasher: self.hasher.clone(),
        }
    }
}
