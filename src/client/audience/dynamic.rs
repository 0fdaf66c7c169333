//! Audiences that are derived from the origin of a request, for an allow-list of origins.

use std::sync::{PoisonError, RwLock};

use super::by_origin::ByOrigin;
use super::{AudienceError, Found, parse};
use crate::client::Origin;
use crate::client::origin::{OriginError, Target, ends_an_address};
use crate::token::{SvidRequest, TokenError};

/// Derives the audience from an origin.
type Make = Box<dyn Fn(&Origin) -> Option<String> + Send + Sync>;

pub(super) struct Dynamic {
    audience: Make,
    allowed: Vec<Allowed>,
    /// The derived requests; cleared if there are too many.
    known: RwLock<ByOrigin<SvidRequest>>,
}

/// Allowed origins: one, or all hosts with `labels` labels in front of a domain.
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
            known: RwLock::new(ByOrigin::new()),
        }
    }

    pub(super) fn find(&self, target: Target<'_>) -> Found<'static> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(request) = known.get(target) {
            return Found::Made(request.clone());
        }
        drop(known);
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
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= Self::MAX_KNOWN {
            *known = ByOrigin::new();
        }
        known.insert(origin, request.clone());
        Found::Made(request)
    }
}
