//! Rules that are made as requests come: an audience of the origin, for the origins of a list.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Arc, PoisonError, RwLock};

use super::{AudienceError, parse};
use crate::client::origin::{Origin, OriginError, Target};
use crate::svid::{Identity, SvidRequest};

/// Makes the audience of an origin.
type Make = Arc<dyn Fn(&Origin) -> String + Send + Sync>;

pub(super) struct Dynamic {
    audience: Make,
    allowed: Vec<Allowed>,
    identity: Option<Identity>,
    /// What was made of an origin, by the origin's hash; made anew where too many are known.
    known: RwLock<HashMap<u64, Vec<(Origin, SvidRequest)>>>,
    hasher: RandomState,
}

/// Origins that are allowed: one, or all those of hosts below a domain.
#[derive(Clone)]
pub(super) enum Allowed {
    One(Origin),
    Below(Origin),
}

impl Allowed {
    pub(super) fn parse(text: &str) -> Result<Self, AudienceError> {
        let Some(at) = text.find("://*.") else {
            return parse(text).map(Self::One);
        };
        let domain = [
            text.get(..at).unwrap_or_default(),
            text.get(at + 5..).unwrap_or_default(),
        ];
        match domain.join("://").parse::<Origin>() {
            // Every host below a single label would be a whole top-level domain, an address none.
            Ok(origin) if !origin.host().contains('.') || ends_an_address(origin.host()) => {
                Err(AudienceError::Origin {
                    origin: text.to_owned(),
                    error: OriginError::Host,
                })
            }
            Ok(origin) => Ok(Self::Below(origin)),
            Err(error) => Err(AudienceError::Origin {
                origin: text.to_owned(),
                error,
            }),
        }
    }

    fn admits(&self, target: Target<'_>) -> bool {
        match self {
            Self::One(origin) => origin.target() == target,
            Self::Below(domain) => target.is_below(domain.target()),
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
            known: RwLock::default(),
            hasher: RandomState::new(),
        }
    }

    pub(super) fn find(&self, target: Target<'_>) -> Option<SvidRequest> {
        let hash = self.hasher.hash_one(target);
        let find = |known: &HashMap<u64, Vec<(Origin, SvidRequest)>>| {
            let same = known.get(&hash)?;
            let (_, request) = same.iter().find(|(origin, _)| origin.target() == target)?;
            Some(request.clone())
        };
        if let Some(request) = find(&self.known.read().unwrap_or_else(PoisonError::into_inner)) {
            return Some(request);
        }
        if !self.allowed.iter().any(|allowed| allowed.admits(target)) {
            return None;
        }
        let origin = target.to_origin();
        // An empty audience means: none for this origin.
        let request = SvidRequest::new([(self.audience)(&origin)]).ok()?;
        let request = match &self.identity {
            Some(identity) => request.with_identity(identity.clone()),
            None => request,
        };
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= Self::MAX_KNOWN {
            known.clear();
        }
        known
            .entry(hash)
            .or_default()
            .push((origin, request.clone()));
        Some(request)
    }

    pub(super) fn identified(&self, identity: &Identity) -> Self {
        Self {
            audience: self.audience.clone(),
            allowed: self.allowed.clone(),
            identity: Some(identity.clone()),
            known: RwLock::default(),
            hasher: self.hasher.clone(),
        }
    }
}

/// Whether what ends so is read as an address by some or by all: in brackets, or with a number for
/// its last label.
fn ends_an_address(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or_default();
    let hex = last.strip_prefix("0x");
    let digits = |text: &str, hex: bool| {
        text.bytes()
            .all(|byte| byte.is_ascii_digit() || hex && byte.is_ascii_hexdigit())
    };
    host.starts_with('[') || hex.map_or_else(|| digits(last, false), |hex| digits(hex, true))
}
