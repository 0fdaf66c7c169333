//! The rules of a document, indexed for decisions.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use http::Method;
use quick_cache::DefaultHashBuilder;

use super::coverage;
use super::error::{FilePolicyError, FilePolicyErrorReason as Reason};
use super::parse::{self, Callers, Rule};
use super::pattern::{Pattern, Wildcard, decoded, is_plain};
use super::table::shown;
use crate::server::Decision;
use crate::verify::VerifiedSvid;

pub(super) const NO_PATH: &str = "no rule of the policy file is for this path";
pub(super) const NO_METHOD: &str = "no rule of the policy file is for this method on this path";
pub(super) const NO_CALLER: &str = "no rule of the policy file allows this caller";
pub(super) const NO_CLAIMS: &str = "no rule of the policy file allows the claims of this caller";

type Index = HashMap<Box<str>, Vec<usize>, DefaultHashBuilder>;

/// The rules of one document.
#[derive(Debug)]
pub(super) struct Rules {
    pub(super) rules: Vec<Rule>,
    routes: Vec<Route>,
    /// Routes without wildcards, by path. They are the most specific ones.
    paths: HashMap<Box<str>, usize, DefaultHashBuilder>,
    wildcards: matchit::Router<usize>,
}

/// The rules of one pattern.
#[derive(Debug, Default)]
pub(super) struct Route {
    pub(super) pattern: Pattern,
    /// Indexes of rules.
    pub(super) rules: Vec<usize>,
    public: Vec<usize>,
    any: Vec<usize>,
    ids: Index,
    /// By the ID that the IDs are under.
    prefixes: Index,
    /// The number of segments in the longest of these.
    depth: usize,
}

impl Rules {
    pub(super) fn read(text: &str) -> Result<Self, FilePolicyError> {
        let rules = parse::rules(text)?;
        let conflict = |rule: &Rule, why: String| {
            FilePolicyError::at(Reason::Invalid, text, rule.at.start, why)
        };
        let mut routes: Vec<Route> = Vec::new();
        let mut by_key: HashMap<Box<str>, usize> = HashMap::new();
        let mut places: HashMap<Box<str>, (Wildcard, usize)> = HashMap::new();
        let mut paths = HashMap::default();
        let mut wildcards = matchit::Router::new();
        for (at, rule) in rules.iter().enumerate() {
            let route = match by_key.entry(rule.pattern.key.clone()) {
                Entry::Occupied(entry) => *entry.get(),
                Entry::Vacant(entry) => {
                    let route = *entry.insert(routes.len());
                    routes.push(Route {
                        pattern: rule.pattern.clone(),
                        ..Route::default()
                    });
                    for (place, kind) in &rule.pattern.wildcards {
                        let (other, first) = *places.entry(place.clone()).or_insert((*kind, at));
                        if other != *kind {
                            let line = rules.get(first).map_or(0, |rule| rule.line);
                            let why = format!(
                                "{} conflicts with the pattern in line {line}: a parameter and a \
                                 catch-all are at the same place; use one of them",
                                shown(&rule.pattern.text)
                            );
                            return Err(conflict(rule, why));
                        }
                    }
                    if rule.pattern.wildcards.is_empty() {
                        paths.insert(rule.pattern.text.clone(), route);
                    } else {
                        let inserted = wildcards.insert(&*rule.pattern.text, route);
                        inserted.map_err(|_| {
                            let pattern = shown(&rule.pattern.text);
                            conflict(rule, format!("{pattern} conflicts with another pattern"))
                        })?;
                    }
                    route
                }
            };
            if let Some(route) = routes.get_mut(route) {
                route.add(at, rule);
            }
        }
        coverage::check(text, &rules, &routes)?;
        Ok(Self {
            rules,
            routes,
            paths,
            wildcards,
        })
    }

    /// The rules of the most specific pattern that matches this path.
    pub(super) fn route(&self, path: &str) -> Option<&Route> {
        if let Some(route) = self.paths.get(path) {
            return self.routes.get(*route);
        }
        if !is_plain(path) {
            return None;
        }
        let route = *self.wildcards.at(path).ok()?.value;
        if path.contains('%') {
            // An upstream program may decode the path first. It must find the same pattern.
            let decoded = decoded(path)?;
            if self.paths.contains_key(&*decoded)
                || !is_plain(&decoded)
                || *self.wildcards.at(&decoded).ok()?.value != route
            {
                return None;
            }
        }
        self.routes.get(route)
    }

    pub(super) fn decide(
        &self,
        caller: Option<&VerifiedSvid>,
        method: &Method,
        path: &str,
    ) -> Decision {
        let Some(route) = self.route(path) else {
            // An anonymous caller does not learn which paths have a rule.
            return caller.map_or(Decision::AuthenticationRequired, |_| {
                Decision::DenyBecause(NO_PATH)
            });
        };
        if self.is_public_on(route, method, path) {
            return Decision::Allow;
        }
        let Some(caller) = caller else {
            return Decision::AuthenticationRequired;
        };
        let mut is_named = false;
        for at in route.candidates(caller) {
            let Some(rule) = self.rules.get(*at) else {
                continue;
            };
            if rule.verbs.allow(method, path) {
                is_named = true;
                if rule.missing_claim(caller).is_none() {
                    return Decision::Allow;
                }
            }
        }
        let mut rules = route.rules.iter().filter_map(|at| self.rules.get(*at));
        Decision::DenyBecause(if is_named {
            NO_CLAIMS
        } else if rules.any(|rule| rule.verbs.allow(method, path)) {
            NO_CALLER
        } else {
            NO_METHOD
        })
    }

    pub(super) fn is_public(&self, method: &Method, path: &str) -> bool {
        let route = self.route(path);
        route.is_some_and(|route| self.is_public_on(route, method, path))
    }

    fn is_public_on(&self, route: &Route, method: &Method, path: &str) -> bool {
        let mut public = route.public.iter().filter_map(|at| self.rules.get(*at));
        public.any(|rule| rule.verbs.allow(method, path))
    }
}

impl Route {
    fn add(&mut self, at: usize, rule: &Rule) {
        self.rules.push(at);
        match &rule.callers {
            Callers::Public => self.public.push(at),
            Callers::AnyTrustDomain => self.any.push(at),
            Callers::Listed { ids, prefixes } => {
                for id in ids {
                    self.ids.entry(id.as_str().into()).or_default().push(at);
                }
                for prefix in prefixes {
                    self.depth = self.depth.max(prefix.path().matches('/').count());
                    let of_prefix = self.prefixes.entry(prefix.as_str().into());
                    of_prefix.or_default().push(at);
                }
            }
        }
    }

    /// The rules that name this caller.
    pub(super) fn candidates(&self, caller: &VerifiedSvid) -> impl Iterator<Item = &usize> {
        let id = caller.spiffe_id();
        let ids = self.ids.get(id.as_str());
        let depth = (!self.prefixes.is_empty()).then_some(self.depth);
        let above = depth
            .into_iter()
            .flat_map(move |depth| super::above(id.as_str(), depth));
        let prefixes = above.filter_map(|prefix| self.prefixes.get(prefix));
        self.any
            .iter()
            .chain(ids.into_iter().chain(prefixes).flatten())
    }
}

impl Rule {
    /// The first claim that the caller does not have.
    pub(super) fn missing_claim(
        &self,
        caller: &VerifiedSvid,
    ) -> Option<&(Box<str>, crate::server::Claim)> {
        let mut claims = self.claims.iter();
        claims.find(|(name, claim)| !caller.claim(name).is_some_and(|raw| claim.matches(raw)))
    }
}
