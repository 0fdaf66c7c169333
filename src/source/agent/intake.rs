//! Reads a message of the agent as a bundle set. A bad entry affects only its own trust domain.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use super::limits::ResourceLimits;
use crate::bundle::{JwtBundle, JwtBundleSet, UseRule};
use crate::identity::TrustDomain;
use crate::presentable::presentable;
use crate::workload_api::JwtBundlesMessage;

/// A whole message, read.
#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) set: JwtBundleSet,
    /// Trust domains of the message whose keys could not be read, by name.
    pub(crate) troubles: BTreeMap<TrustDomain, Trouble>,
    /// Entries whose name is not a trust domain: the escaped name, and why.
    pub(crate) unnamed: Vec<(Box<str>, Box<str>)>,
}

/// Why the keys of a trust domain could not be read, or why a message is discarded as a whole and the
/// last bundles stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub(crate) kind: &'static str,
    pub(crate) text: Box<str>,
}

impl Trouble {
    fn new(kind: &'static str, text: impl Into<Box<str>>) -> Self {
        let text = text.into();
        Self { kind, text }
    }
}

impl Intake {
    /// Removes the bundles that were kept from before because the newest ones could not be read.
    pub(crate) fn forget_kept(&mut self) {
        let read = self.set.iter();
        let read = read.filter(|bundle| !self.troubles.contains_key(bundle.trust_domain()));
        self.set = read.cloned().collect();
    }
}

/// The bundles of a message by name, if there are not too many of them: they are counted first.
pub(crate) fn unpack(
    message: JwtBundlesMessage,
    limits: &ResourceLimits,
) -> Result<HashMap<String, Bytes>, Trouble> {
    within(message.len(), limits)?;
    Ok(message.into_bundles())
}

fn within(sent: usize, limits: &ResourceLimits) -> Result<(), Trouble> {
    let limit = limits.max_bundles;
    if sent <= limit {
        return Ok(());
    }
    let text = format!(
        "the agent sent {sent} bundles, more than the {limit} allowed; discarded (see \
         ResourceLimits::max_bundles)"
    );
    Err(Trouble::new("too-many-bundles", text))
}

/// Reads a message after `known`: if a bundle cannot be read, the last one stays; keys that did not
/// change are not parsed again.
pub(crate) fn read(
    bundles: HashMap<String, Bytes>,
    known: &JwtBundleSet,
    limits: &ResourceLimits,
) -> Result<Intake, Trouble> {
    if bundles.is_empty() {
        // A mandatory field at its default (Workload API section 4.5).
        let text = "the agent sent a message without any bundle; discarded";
        return Err(Trouble::new("empty-message", text));
    }
    within(bundles.len(), limits)?;
    let mut troubles = BTreeMap::new();
    let mut unnamed: Vec<(Box<str>, Box<str>)> = Vec::new();
    let mut by_domain: BTreeMap<TrustDomain, (bool, Bytes)> = BTreeMap::new();
    for (name, jwks) in bundles {
        // The key is the trust domain's SPIFFE ID (section 6.2.2); some agents send the bare name.
        let proper = name.starts_with("spiffe://");
        match TrustDomain::parse(&name) {
            // If a trust domain has both names, the entry with the SPIFFE ID counts.
            Ok(domain) => match by_domain.get(&domain) {
                Some((true, _)) => {}
                _ => {
                    by_domain.insert(domain, (proper, jwks));
                }
            },
            Err(error) => unnamed.push((
                presentable(&name).into(),
                format!("not the name of a trust domain: {error}").into(),
            )),
        }
    }
    unnamed.sort_unstable();
    if let (true, Some((name, why))) = (by_domain.is_empty(), unnamed.first()) {
        // Like an empty message, it has no bundle.
        let text = format!(
            "the agent sent a message in which no trust domain has a valid name (\"{name}\": {why}); \
             discarded"
        );
        return Err(Trouble::new("bundle-unnamed", text));
    }
    let mut set: Vec<Arc<JwtBundle>> = Vec::with_capacity(by_domain.len());
    for (domain, (_, jwks)) in by_domain {
        let before = known.get(domain.name());
        match one(&domain, &jwks, before, limits) {
            Ok(bundle) => set.push(bundle.shared(before)),
            Err(trouble) => {
                set.extend(before.cloned());
                troubles.insert(domain, trouble);
            }
        }
    }
    Ok(Intake {
        set: set.into_iter().collect(),
        troubles,
        unnamed,
    })
}

fn one(
    domain: &TrustDomain,
    jwks: &[u8],
    before: Option<&Arc<JwtBundle>>,
    limits: &ResourceLimits,
) -> Result<JwtBundle, Trouble> {
    // The trust domain has no keys now: all earlier ones are revoked (section 4.4).
    if jwks.is_empty() {
        return Ok(JwtBundle::without_keys(domain.clone()));
    }
    let (size, limit) = (jwks.len(), limits.max_bundle_jwks_bytes);
    if size > limit {
        let text = format!(
            "its JWK Set has {size} bytes, more than the {limit} allowed (see \
             ResourceLimits::max_bundle_jwks_bytes)"
        );
        return Err(Trouble::new("bundle-too-large", text));
    }
    let before = before.map(|before| &**before);
    JwtBundle::read(domain.clone(), jwks, UseRule::AbsentOrJwtSvid, before).map_err(|error| {
        let text = format!("its JWK Set cannot be read: {error}");
        Trouble::new("bundle-unreadable", text)
    })
}

#[cfg(test)]
#[path = "intake_tests.rs"]
mod tests;
